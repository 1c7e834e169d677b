"""Calls beside other processes: a second one that computes as well, and one that only keeps a core busy.

``python -m benchmarks.neighbours MINILM_FOLDER WORK THREADS`` is a process that computes: for each number of
seconds that it reads it makes calls for so long and prints their times as JSON.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import headwise as hw
from benchmarks.callers import works
from benchmarks.peers import Setup

SECONDS = 1.0
"""Of a turn: long against the milliseconds for which a system lets a process run before the next one's."""
TURNS = 5
SPIN = "while True: pass"


class Worker:
    """A process that makes calls when it is told to."""

    def __init__(self, minilm: Path, work: str, threads: int) -> None:
        command = [sys.executable, "-m", "benchmarks.neighbours", str(minilm), work, str(threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
        )

    def start(self, seconds: float) -> None:
        """Let it make calls for so long."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()

    def times(self) -> list[float]:
        """Wait until it is done, and return the seconds of its calls."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("a process of the benchmark ended")
        times: list[float] = json.loads(line)
        return times

    def __enter__(self) -> Self:
        self.start(0.1)  # so that it is loaded and warm
        self.times()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def together(workers: list[Worker], seconds: float) -> list[float]:
    """Let workers call at once, and return the times of all their calls."""
    for worker in workers:
        worker.start(seconds)
    return [taken for worker in workers for taken in worker.times()]


@contextmanager
def busy_core() -> Iterator[None]:
    """Keep the first of this process's cores busy."""
    spinner = subprocess.Popen([sys.executable, "-c", SPIN])
    try:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(spinner.pid, {min(os.sched_getaffinity(0))})
        yield
    finally:
        spinner.kill()
        spinner.wait()


def two_processes(minilm: Path, work: str, threads: int) -> float:
    """Return the throughput of two processes over that of one, medians of turns taken alternately."""
    one: list[int] = []
    two: list[int] = []
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(minilm, work, threads)) for _ in range(2)]
        for _ in range(TURNS):
            one.append(len(together(workers[:1], SECONDS)))
            two.append(len(together(workers, SECONDS)))
    return statistics.median(two) / statistics.median(one)


def beside_a_busy_core(minilm: Path, work: str, threads: int) -> tuple[list[float], list[float]]:
    """Return the times of calls alone and beside a process that keeps a core busy, in alternating turns."""
    alone: list[float] = []
    beside: list[float] = []
    with Worker(minilm, work, threads) as worker:
        for _ in range(TURNS):
            alone += together([worker], SECONDS)
            with busy_core():
                beside += together([worker], SECONDS)
    return alone, beside


def neighbours(setup: Setup) -> str:
    """Return a table of both."""
    lines = [
        "| work | two processes, over one | alone: median, worst ms | beside a busy core: median, worst ms |",
        "| --- | ---: | ---: | ---: |",
    ]
    for work in works(setup.minilm):
        ratio = two_processes(setup.minilm, work, setup.threads)
        cells = [
            f"{1e3 * statistics.median(times):.2f}, {1e3 * max(times):.1f}"
            for times in beside_a_busy_core(setup.minilm, work, setup.threads)
        ]
        lines.append(f"| {work} | {ratio:.2f} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def main() -> None:
    """Be the process that computes."""
    folder, work, threads = sys.argv[1:]
    hw.set_num_threads(int(threads))
    call = works(Path(folder))[work]
    for line in sys.stdin:
        end = time.perf_counter() + float(line)
        times: list[float] = []
        last = time.perf_counter()
        while last < end:
            call()
            now = time.perf_counter()
            times.append(now - last)
            last = now
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main()
