"""Teach MiniLM's last layers what kind of text a text is, and look at its embeddings before and after.

    python examples/finetune.py [--epochs 15]

The labelled set is small and made from the corpus of this project's tests: code, addresses, numbers, emoji,
scripts and so on, 17 to 40 texts of each kind. Two thirds are trained on; the others are told apart by the
nearest mean of the embeddings of a kind. Needs the model: `headwise fetch minilm`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import headwise as hw

CORPUS = Path(__file__).parents[1] / "tests" / "data" / "corpus.jsonl"
KINDS = ["code", "url", "number", "emoji", "cjk", "script", "right-to-left", "combining", "mixture", "odd"]
FIRST_LAYER = 4
BATCH = 32


def labelled() -> tuple[list[str], NDArray[np.int64]]:
    """Return the texts of these kinds and the numbers of their kinds."""
    lines = [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line["kind"] in KINDS]
    return [line["text"] for line in lines], np.array([KINDS.index(line["kind"]) for line in lines])


def describe(
    model: hw.TextEncoder, texts: list[str], kinds: NDArray[np.int64], train: NDArray[np.bool_]
) -> str:
    """Say how near embeddings of a kind are, and how many others the nearest mean tells right."""
    embeddings, _ = model.encode(texts, return_info=True)
    similar = embeddings @ embeddings.T
    same = kinds[:, None] == kinds
    apart = ~np.eye(len(texts), dtype=bool)
    means = np.stack([embeddings[train & (kinds == kind)].mean(axis=0) for kind in range(len(KINDS))])
    right = (embeddings[~train] @ means.T).argmax(axis=1) == kinds[~train]
    within, between = similar[same & apart].mean(), similar[~same].mean()
    return f"cosine within kinds {within:.2f}, between {between:.2f}; told right {100 * right.mean():.1f} %"


def main() -> None:
    """Train, and describe the embeddings before and after."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    texts, kinds = labelled()
    rng = np.random.default_rng(arguments.seed)
    train = rng.random(len(texts)) < 2 / 3
    model = hw.TextEncoder.from_pretrained("minilm", max_length=128)
    head = hw.Linear(model.get_embedding_dimension(), len(KINDS), rng=rng)
    print("before:", describe(model, texts, kinds, train))

    chosen = np.flatnonzero(train)
    steps = arguments.epochs * (len(chosen) // BATCH)
    schedule = hw.optim.warmup_linear(1.0, warmup=steps // 10, total=steps)
    slow = hw.optim.AdamW(model, lr=lambda step: 1e-4 * schedule(step), weight_decay=0.01)
    fast = hw.optim.AdamW(head, lr=lambda step: 2e-2 * schedule(step), weight_decay=0.01)
    start = time.perf_counter()
    for epoch in range(arguments.epochs):
        total = 0.0
        for batch in rng.permutation(chosen)[: len(chosen) // BATCH * BATCH].reshape(-1, BATCH):
            embeddings, through_model = model.vjp([texts[i] for i in batch], first_layer=FIRST_LAYER)
            scores, through_head = head.vjp(embeddings)
            loss, d_scores = hw.losses.cross_entropy(scores, kinds[batch])
            d_embeddings, of_head = through_head(d_scores)
            _, of_model = through_model(d_embeddings)
            fast.step(of_head)
            slow.step(hw.optim.clip_by_norm(of_model, 1.0)[0])
            total += loss
        print(f"epoch {epoch + 1}: loss {total / (len(chosen) // BATCH):.3f}")
    print(f"{steps} steps in {time.perf_counter() - start:.0f} s")
    print("after: ", describe(model, texts, kinds, train))


if __name__ == "__main__":
    main()
