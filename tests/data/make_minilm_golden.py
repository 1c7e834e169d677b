"""Write minilm_golden.npz: what MiniLM should answer on corpus.jsonl, by other means than headwise.

Run in an environment with numpy, ``safetensors``, ``tokenizers`` and, for the check only, ``torch``,
``transformers`` and ``sentence-transformers``::

    python tests/data/make_minilm_golden.py FOLDER_OF_THE_MODEL

Token ids come from Hugging Face's ``tokenizers`` with the length of sentence_bert_config.json (256) and no
padding. Embeddings come from the plain NumPy model below, in float64 throughout, written from the formulas of
BERT; it is checked here against torch in float64 and the ids against sentence-transformers' own, and the file
says with which versions. What is stored:

==================  ==================================================================================
``ids_sha256``      (1000,) SHA-256 of each text's ids as little-endian int32
``full_texts``      (50,) indices of the texts whose ids are stored whole
``full_ids``        their ids, back to back; ``full_starts`` (51,) says where each begins
``embedded_texts``  (100,) indices of the texts whose embeddings are stored
``embeddings``      (100, 384) float64, mean-pooled, before normalisation; ``normalized`` after it
``attention``       (6, 12, 12, 12) float64: every map of `SENTENCE`, from NumPy
``corpus_sha256``   of corpus.jsonl; ``versions``: what made the file
==================  ==================================================================================
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

HERE = Path(__file__).parent
SENTENCE = "a dog ate the food because it was hungry"
LENGTH, HEADS, LAYERS, EPS = 256, 12, 6, 1e-12

_erf = np.vectorize(math.erf, otypes=[np.float64])


def layer_norm(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Normalise the rows of x (L, D)."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + EPS) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Apply x W' + b."""
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def bert(ids: np.ndarray, weights: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Give the last hidden state (L, D) and the attention maps (layers, H, L, L) of one text."""
    word, position, kind = (
        weights[f"embeddings.{n}_embeddings.weight"] for n in ("word", "position", "token_type")
    )
    x = layer_norm(word[ids] + position[: len(ids)] + kind[0], weights, "embeddings.LayerNorm")
    maps = []
    for n in range(LAYERS):
        layer = f"encoder.layer.{n}"
        q, k, v = (
            linear(x, weights, f"{layer}.attention.self.{part}")
            .reshape(len(ids), HEADS, -1)
            .transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])
        weight = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weight /= weight.sum(axis=-1, keepdims=True)
        maps.append(weight)
        mixed = (weight @ v).transpose(1, 0, 2).reshape(x.shape)
        x = layer_norm(
            x + linear(mixed, weights, f"{layer}.attention.output.dense"),
            weights,
            f"{layer}.attention.output.LayerNorm",
        )
        hidden = linear(x, weights, f"{layer}.intermediate.dense")
        hidden = hidden * 0.5 * (1 + _erf(hidden / math.sqrt(2)))
        x = layer_norm(
            x + linear(hidden, weights, f"{layer}.output.dense"), weights, f"{layer}.output.LayerNorm"
        )
    return x, np.stack(maps)


def chosen(ids: list[list[int]], kinds: list[str]) -> list[int]:
    """Choose 100 texts: up to 7 of each kind spread over the file, then sentences."""
    taken: list[int] = []
    for kind in dict.fromkeys(kinds):
        of_kind = [i for i, k in enumerate(kinds) if k == kind]
        taken += of_kind[:: max(1, len(of_kind) // 7)][:7]
    sentences = [i for i, kind in enumerate(kinds) if kind == "sentence" and i not in taken]
    taken += sentences[: 100 - len(taken)]
    assert any(len(ids[i]) == LENGTH for i in taken)
    assert any(len(ids[i]) == 2 for i in taken)
    return sorted(taken)


def compare_with_torch(
    folder: Path, texts: list[str], ids: list[list[int]], embeddings: dict[int, Any]
) -> list[str]:
    """Compare ids and embeddings with sentence-transformers and torch; give their versions."""
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer

    transformers.logging.set_verbosity_error()
    reference = SentenceTransformer(str(folder), device="cpu")
    assert reference.max_seq_length == LENGTH
    for text, expected in zip(texts, ids, strict=True):
        got = reference.preprocess([text])["input_ids"][0].tolist()
        assert got == expected, text
    model = transformers.AutoModel.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager"
    ).eval()
    worst = 0.0
    for i, (hidden, _) in embeddings.items():
        with torch.no_grad():
            state = model(torch.tensor([ids[i]])).last_hidden_state[0].numpy()
        worst = max(worst, float(np.abs(state - hidden).max()))
    assert worst < 1e-11, worst
    print(f"against torch in float64: {worst:.1e}")
    return ["torch", "transformers", "sentence-transformers"]


def main(folder: Path) -> None:
    """Write the file."""
    corpus = (HERE / "corpus.jsonl").read_bytes()
    records = [json.loads(line) for line in corpus.decode().split("\n") if line]
    texts = [record["text"] for record in records]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LENGTH)
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]

    weights = {name: x.astype(np.float64) for name, x in load_file(folder / "model.safetensors").items()}
    embedded = chosen(ids, [record["kind"] for record in records])
    states = {i: bert(np.array(ids[i]), weights) for i in embedded}
    pooled = np.stack([states[i][0].mean(axis=0) for i in embedded])
    attention = bert(np.array(tokenizer.encode(SENTENCE).ids), weights)[1]

    packages = ["numpy", "safetensors", "tokenizers", *compare_with_torch(folder, texts, ids, states)]
    versions = {name: importlib.metadata.version(name) for name in packages}
    full = embedded[::2]
    np.savez_compressed(
        HERE / "minilm_golden.npz",
        ids_sha256=np.array([hashlib.sha256(np.array(row, "<i4").tobytes()).hexdigest() for row in ids]),
        full_texts=np.array(full),
        full_ids=np.concatenate([np.array(ids[i], np.int32) for i in full]),
        full_starts=np.cumsum([0] + [len(ids[i]) for i in full]),
        embedded_texts=np.array(embedded),
        embeddings=pooled,
        normalized=pooled / np.linalg.norm(pooled, axis=1, keepdims=True),
        attention=attention,
        corpus_sha256=np.array(hashlib.sha256(corpus).hexdigest()),
        versions=np.array(json.dumps({"python": platform.python_version(), **versions})),
    )
    print((HERE / "minilm_golden.npz").stat().st_size, versions)
    words = tokenizer.encode(SENTENCE).tokens
    for layer, head in ((5, 11), (3, 1)):
        print(layer, head, attention[layer, head, words.index("it"), words.index("dog")])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
