"""Write sentence_transformers_golden.npz: what sentence-transformers gives for calls that headwise has.

Run with an interpreter that has sentence-transformers, and name MiniLM's folder::

    python make_sentence_transformers_golden.py ~/.cache/headwise/models/all-MiniLM-L6-v2

The model runs in float64, so that the file holds what float32 results should come close to. It was made by
sentence-transformers 6.2.0, transformers 5.23.0 and torch 2.15.0, and names them under ``versions``.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import sentence_transformers
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import quantize_embeddings

TEXTS = ["The cat is sleeping on the sofa.", "A kitten naps.", "", "Ünïcode — 日本語", "word " * 40]
PAIRS = [["Who is hungry?", "The dog."], ["a", "the food that the dog ate"]]
PROMPTS = {"query": "query: ", "passage": "Represent the passage: "}


def load(source: Path) -> SentenceTransformer:
    """Load the model with prompts in its folder, in float64."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "model"
        shutil.copytree(source, copy)
        model = SentenceTransformer(str(copy), device="cpu", prompts=PROMPTS)
    return model.double()


def main() -> None:
    """Write the file beside this script."""
    torch.set_num_threads(1)
    model = load(Path(sys.argv[1]).expanduser())
    plain = model.encode(TEXTS)
    golden = {
        "plain": plain,
        "one": model.encode(TEXTS[0]),
        "by_name": model.encode(TEXTS, "passage"),
        "by_prompt": model.encode(TEXTS, prompt="Say: "),
        "query": model.encode_query(TEXTS),
        "document": model.encode_document(TEXTS),
        "pairs": model.encode(PAIRS),
        "truncated": model.encode(TEXTS, truncate_dim=64),
        "truncated_normalized": model.encode(TEXTS, normalize_embeddings=True, truncate_dim=64),
        "document_prompt": np.array(model.prompts["document"]),
    }
    for number, tokens in enumerate(model.encode(TEXTS[:3], output_value="token_embeddings")):
        golden[f"tokens_{number}"] = tokens.numpy()
    everything = model.encode(TEXTS[1], output_value=None, prompt_name="query", truncate_dim=8)
    golden["everything_keys"] = np.array(list(everything))
    golden["everything_ids"] = everything["input_ids"].numpy()
    golden["everything_prompt_length"] = np.array(everything["prompt_length"])
    golden["everything_embedding"] = everything["sentence_embedding"].numpy()

    model.set_pooling_include_prompt(False)
    golden["prompt_not_pooled"] = model.encode(TEXTS, prompt_name="passage")
    model.default_prompt_name = "query"
    golden["default_not_pooled"] = model.encode(TEXTS)

    for name in ("cosine", "dot", "euclidean", "manhattan"):
        model.similarity_fn_name = name
        golden[f"similarity_{name}"] = model.similarity(plain[:2], plain[2:]).numpy()
        golden[f"pairwise_{name}"] = model.similarity_pairwise(plain[:2], plain[2:4]).numpy()

    numbers = np.random.default_rng(6).standard_normal((6, 21)).astype(np.float32)
    numbers[0, :3] = [0.0, -0.0, 1e-30]
    ranges = np.stack([numbers.min(axis=0) + 0.1, numbers.max(axis=0)])
    ranges[:, 5] = 0.25
    golden |= {"numbers": numbers, "ranges": ranges}
    for precision in ("int8", "uint8", "binary", "ubinary"):
        golden[f"numbers_{precision}"] = quantize_embeddings(numbers, precision, ranges=ranges)

    modules = {"sentence-transformers": sentence_transformers, "transformers": transformers, "torch": torch}
    golden["versions"] = np.array([f"{name} {module.__version__}" for name, module in modules.items()])
    target = Path(__file__).with_name("sentence_transformers_golden.npz")
    np.savez_compressed(target, **golden)
    print(target, target.stat().st_size, golden["versions"], {k: v.shape for k, v in golden.items()})


if __name__ == "__main__":
    main()
