"""Whether memory stays where it was over thousands of calls of random length.

``python -m benchmarks.growth MODEL_FOLDER WORK THREADS WARM_UP CALLS`` is a fresh process that makes calls of
one kind of work, or of ``all`` in turn, first to warm up, and prints by how many bytes it has grown over
those that follow. With ``threads`` each call is a wave of Python threads that come, make some calls of each
kind and end.
"""

import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

import headwise as hw
from benchmarks.peers import Setup
from benchmarks.resident import MEGABYTE, resident

WARM_UP, CALLS = 2000, 10_000
WAVES = 200
"""Of threads that come, call and go; each is worth a hundred calls."""

Work = Callable[[], object]


def works(folder: Path) -> dict[str, Work]:
    """Return calls of random length, by name; what the numbers are is of no matter."""
    draw = random.Random(0)
    encoder = hw.Encoder(2, 32, 4, 64, rng=0)
    model = hw.TextEncoder.from_pretrained(folder)

    def ones(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return np.ones(shape, np.float32)

    def attention() -> None:
        query, key = ones(2, draw.randint(1, 200), 16), ones(2, draw.randint(1, 200), 16)
        hw.scaled_dot_product_attention(query, key, key, is_causal=draw.random() < 0.5)

    def padded() -> None:
        batch, length = draw.randint(1, 4), draw.randint(1, 60)
        encoder(ones(batch, length, 32), lengths=[draw.randint(0, length) for _ in range(batch)])

    def ragged() -> None:
        encoder([ones(draw.randint(0, 60), 32) for _ in range(draw.randint(0, 4))])

    def encode() -> None:
        model.encode(["dog " * draw.randint(0, 40) for _ in range(draw.randint(1, 3))])

    calls: dict[str, Work] = {"attention": attention, "padded": padded, "ragged": ragged, "encode": encode}

    def some() -> None:
        for call in (attention, padded, ragged, encode):
            call()
            call()
            call()

    def wave() -> None:
        group = [threading.Thread(target=some) for _ in range(8)]
        for thread in group:
            thread.start()
        for thread in group:
            thread.join()

    return calls | {"threads": wave}


def grown(calls: list[Work], warm_up: int, count: int) -> int:
    """Return by how many bytes this process grows over `count` calls of each, once warmed up."""

    def make(times: int) -> None:
        for _ in range(times):
            for call in calls:
                call()

    make(warm_up)
    before = resident()
    make(count)
    return resident() - before


def elsewhere(folder: Path, work: str, threads: int, warm_up: int, count: int) -> int:
    """Return what a fresh process prints, whose allocator has seen nothing else."""
    root = Path(__file__).parent.parent
    command = [sys.executable, "-m", "benchmarks.growth", str(folder), work]
    command += [str(number) for number in (threads, warm_up, count)]
    # The C library gives threads heaps of their own, which go on filling up for hundreds of waves of threads
    # though nothing is kept. With one heap for all what grows is what somebody keeps.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=root, env=environment)
    return int(done.stdout)


def growth(setup: Setup) -> str:
    """Return a table of what processes have grown by."""
    rows = [
        ("attention", "attention, L and S of 1 to 200", WARM_UP, CALLS),
        ("padded", "`Encoder`, padded batches", WARM_UP, CALLS),
        ("ragged", "`Encoder`, ragged lists", WARM_UP, CALLS),
        ("encode", "MiniLM's `encode`, 1 to 3 texts", WARM_UP, CALLS),
        ("threads", "all of it, eight Python threads that end after twelve calls", WAVES // 5, WAVES),
    ]
    lines = ["| calls of random length | how many | MB more than before |", "| --- | ---: | ---: |"]
    for work, name, warm_up, count in rows:
        bytes_more = elsewhere(setup.minilm, work, setup.threads, warm_up, count)
        calls = count * 96 if work == "threads" else count
        lines.append(f"| {name} | {calls:,} | {bytes_more / MEGABYTE:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Be the fresh process."""
    folder, work, *numbers = sys.argv[1:]
    threads, warm_up, count = map(int, numbers)
    hw.set_num_threads(threads)
    of = works(Path(folder))
    calls = [call for name, call in of.items() if name == work or (work == "all" and name != "threads")]
    print(grown(calls, warm_up, count))


if __name__ == "__main__":
    main()
