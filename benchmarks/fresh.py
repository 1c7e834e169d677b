"""What a fresh process needs, in seconds and in bytes, until the first text is embedded.

``python -m benchmarks.fresh CONTESTANT MINILM_FOLDER FORMS_FOLDER`` is that process: it imports NumPy, then
counts, and prints one JSON object. Each contestant is written as a user of that library alone would write it,
so that it imports nothing that it does not need. `cold_start` and `memory` start such processes.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from benchmarks.peers import FORMS, Setup
from benchmarks.resident import MEGABYTE, resident
from benchmarks.results import OURS

TEXT = "a dog ate the food because it was hungry"

Embedded: TypeAlias = tuple[object, Any]
"""What must stay in memory to embed the next text, and the embedding."""


def with_headwise(minilm: Path, forms: Path) -> Embedded:
    """Embed with headwise."""
    import headwise as hw

    model = hw.TextEncoder.from_pretrained(minilm)
    return model, model.encode(TEXT)


def with_onnxruntime(minilm: Path, forms: Path) -> Embedded:
    """Embed with ONNX Runtime and the tokenizers package."""
    import onnxruntime
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(minilm / "tokenizer.json"))
    tokenizer.no_padding()
    file = forms / FORMS["onnxruntime"]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    ids = np.array([tokenizer.encode(TEXT).ids])
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    mean = session.run(None, inputs)[0][0].mean(axis=0)
    return (tokenizer, session), mean / np.linalg.norm(mean)


def with_sentence_transformers(minilm: Path, forms: Path) -> Embedded:
    """Embed with sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(minilm), device="cpu")
    return model, model.encode(TEXT)


CONTESTANTS: dict[str, Callable[[Path, Path], Embedded]] = {
    OURS: with_headwise,
    "onnxruntime": with_onnxruntime,
    "sentence-transformers": with_sentence_transformers,
}


def here(contestant: str, minilm: Path, forms: Path) -> dict[str, Any]:
    """Embed one text in this process and return what it took, and the embedding."""
    embed = CONTESTANTS[contestant]
    before = resident()
    start = time.perf_counter()
    model, embedding = embed(minilm, forms)
    seconds = time.perf_counter() - start
    held = resident() - before
    del model  # not before now: its memory counts
    return {
        "seconds": seconds,
        "bytes": held,
        "embedding": np.asarray(embedding).ravel().tolist(),
    }


@cache
def elsewhere(setup: Setup, times: int = 5) -> dict[str, list[dict[str, Any]]]:
    """Let all contestants embed in fresh processes, in turn; the first round fills the page cache."""
    taken: dict[str, list[dict[str, Any]]] = {
        name: [] for name in CONTESTANTS if name == OURS or name in setup.peers
    }
    for _ in range(times + 1):
        for name, runs in taken.items():
            command = [sys.executable, "-m", "benchmarks.fresh", name, str(setup.minilm), str(setup.forms)]
            done = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            runs.append(json.loads(done.stdout.splitlines()[-1]))
    expected = np.array(taken[OURS][0]["embedding"])
    for name, runs in taken.items():
        if not np.allclose(runs[0]["embedding"], expected, rtol=0, atol=1e-4):
            raise RuntimeError(f"cold start: the embedding of {name} differs from headwise's")
    return {name: runs[1:] for name, runs in taken.items()}


def cold_start(setup: Setup) -> str:
    """Return a table of the seconds from `import numpy` to the first embedding, medians."""
    lines = ["| from `import numpy` to the first embedding | seconds |", "| --- | ---: |"]
    for name, runs in elsewhere(setup).items():
        lines.append(f"| {name} | {statistics.median(run['seconds'] for run in runs):.3f} |")
    return "\n".join(lines)


def memory(setup: Setup) -> str:
    """Return a table of the memory resident after the first embedding, above that after `import numpy`."""
    weights = (setup.minilm / "model.safetensors").stat().st_size / MEGABYTE
    lines = [
        "| after the first embedding, above NumPy alone | MB | beyond the weights |",
        "| --- | ---: | ---: |",
    ]
    for name, runs in elsewhere(setup).items():
        megabytes = statistics.median(run["bytes"] for run in runs) / MEGABYTE
        lines.append(f"| {name} | {megabytes:.0f} | {megabytes - weights:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(json.dumps(here(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))))
