"""Throughput when many Python threads call at once, beside that of one caller who makes as many calls."""

import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import headwise as hw
from benchmarks.peers import Setup
from benchmarks.row import numbers
from benchmarks.rows import CORPUS

CALLERS = 32


def throughput_ratio(call: Callable[[], object], callers: int, calls: int, turns: int) -> float:
    """Return the throughput of `callers` threads over that of one, medians of turns taken alternately."""
    one: list[float] = []
    many: list[float] = []

    def share(_: int) -> None:
        # Each thread makes its calls by itself: handing them out one by one would be measured too.
        for _ in range(calls // callers):
            call()

    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(share, range(callers)))  # starts the threads
        for _ in range(turns):
            start = time.perf_counter()
            for _ in range(calls):
                call()
            one.append(time.perf_counter() - start)
            start = time.perf_counter()
            list(pool.map(share, range(callers)))
            many.append(time.perf_counter() - start)
    return statistics.median(one) / statistics.median(many)


def works(minilm: Path) -> dict[str, Callable[[], object]]:
    """Return the calls that are made, by name: attention and embedding."""
    query, key, value = numbers(3, 4, 8, 128, 64)
    lines = CORPUS.read_text(encoding="utf-8").splitlines()[:8]
    texts = [json.loads(line)["text"] for line in lines]
    model = hw.TextEncoder.from_pretrained(minilm)
    return {
        "attention 4 x 128, 8 heads of 64": lambda: hw.scaled_dot_product_attention(query, key, value),
        "`encode` of 8 texts": lambda: model.encode(texts, show_progress_bar=False),
    }


def callers(setup: Setup, turns: int = 5) -> str:
    """Return a table of the ratios for attention and for embedding."""
    rows = ["| work | throughput, over that of one caller |", "| --- | ---: |"]
    for (name, call), calls in zip(works(setup.minilm).items(), (512, 128), strict=True):
        rows.append(f"| {name} | {throughput_ratio(call, CALLERS, calls, turns):.2f} |")
    return "\n".join(rows)
