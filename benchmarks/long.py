"""Long attention: how its time and its memory grow with the length, and what causality and a window save.

``python -m benchmarks.long KIND THREADS`` is a fresh process that prints the bytes that attention over the
longer length needs at most beside its inputs and its output.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import headwise as hw
from benchmarks.peers import Setup
from benchmarks.resident import MEGABYTE, peak_growth

HEADS, WIDTH = 8, 64
SHORTER, LONGER = 4096, 16_384
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "causal": {"is_causal": True},
    "window of 512": {"window": (512, 0)},
}
"""What a call is given beside query, key and value."""
TURNS = 5


def attention(length: int, kind: str) -> Callable[[], object]:
    """Return a call over inputs that have been written to."""
    query, key, value = np.random.default_rng(0).standard_normal((3, HEADS, length, WIDTH), dtype=np.float32)
    return partial(hw.scaled_dot_product_attention, query, key, value, **KINDS[kind])


def seconds(calls: dict[tuple[str, int], Callable[[], object]]) -> dict[tuple[str, int], float]:
    """Return the median time of each call; all take turns."""
    taken: dict[tuple[str, int], list[float]] = {name: [] for name in calls}
    for _ in range(TURNS):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def extra_bytes(kind: str, threads: int) -> int:
    """Return what a fresh process prints."""
    command = [sys.executable, "-m", "benchmarks.long", kind, str(threads)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ)
    return int(done.stdout)


def long(setup: Setup) -> str:
    """Return a table of times, their ratios and the memory."""
    taken = seconds({(kind, n): attention(n, kind) for kind in KINDS for n in (SHORTER, LONGER)})
    lines = [
        f"| {HEADS} heads of {WIDTH} | L {SHORTER:,}, s | L {LONGER:,}, s | "
        f"{LONGER // SHORTER} x the length | of the time of full | extra MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for kind in KINDS:
        shorter, longer = taken[kind, SHORTER], taken[kind, LONGER]
        extra = max(extra_bytes(kind, setup.threads), 0) / MEGABYTE  # the system counts pages in batches
        lines.append(
            f"| {kind} | {shorter:.3f} | {longer:.3f} | {longer / shorter:.1f} x the time | "
            f"{longer / taken['full', LONGER]:.2f} | {extra:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Be the fresh process."""
    kind, threads = sys.argv[1:]
    hw.set_num_threads(int(threads))
    attention(256, kind)()  # starts the threads
    output = 4 * HEADS * LONGER * WIDTH
    print(peak_growth(attention(LONGER, kind)) - output)


if __name__ == "__main__":
    main()
