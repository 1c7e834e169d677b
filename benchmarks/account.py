"""Account for the time of MiniLM and of an encoder: what the arithmetic needs, and where the rest goes.

``make account`` builds headwise a second time, with clocks in its kernels (`src/account.rs`), lets both
builds and the peak loop take turns, and writes the tables into docs/performance.md.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import headwise as hw
from benchmarks import report
from benchmarks.account_child import WORKS, Answer, Work
from benchmarks.account_table import Measured, Spent, legend, middle, table
from benchmarks.cpu import cpu_name

TASK_ROWS = 72
"""Rows that a thread takes at a time (src/ops/linear.rs): as many are multiplied alone."""
BOTH = [1, 2]
"""Numbers of threads in the page."""


class Build:
    """A process with one build of headwise, asked line by line."""

    def __init__(self, folder: Path, *, accounts: bool) -> None:
        path = os.pathsep.join([str(folder), str(Path(__file__).parent.parent)])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.account_child"],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if self._read()["accounts"] is not accounts:
            self._process.communicate()
            raise RuntimeError(f"{folder}: expected a build {'with' if accounts else 'without'} an account")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def ask(self, threads: int, seconds: float, **what: Any) -> Answer:  # noqa: ANN401
        """Let the build compute for some time."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"threads": threads, "seconds": seconds, **what}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Answer:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a build's process ended; what it said stands above")
        answer: Answer = json.loads(line)
        return answer


def spent(burst: Answer) -> Spent:
    """Return one call of a burst of the build that has an account."""
    account, count = burst["account"], burst["count"]
    return Spent(
        seconds=burst["seconds"],
        calls=account["calls"] / count,
        stages=tuple(seconds / count for seconds in account["seconds"].values()),
        spans=tuple(spans / count for spans in account["spans"].values()),
    )


def product_seconds(burst: Answer) -> float:
    """Return the thread-seconds of the product in one call of a burst, without what the clock took."""
    account = burst["account"]
    seconds, spans = account["seconds"]["product"], account["spans"]["product"]
    return float(seconds - account["mark"] * spans) / float(burst["count"])


def measure(
    work: Work, threads: int, options: argparse.Namespace, ordinary: Build, second: Build
) -> Measured:
    """Let both builds take turns."""
    rows = min(work.tokens, TASK_ROWS * threads)
    bursts: list[Answer] = []
    accounts: list[Answer] = []
    products: list[list[float]] = [[] for _ in work.products]
    for _ in range(options.turns):
        bursts.append(ordinary.ask(threads, options.seconds, work=astuple(work)))
        accounts.append(second.ask(threads, options.seconds, work=astuple(work)))
        for taken, (inputs, outputs) in zip(products, work.products, strict=True):
            burst = second.ask(threads, options.seconds / 5, product=(rows, inputs, outputs))
            taken.append(product_seconds(burst))
    return Measured(
        name=work.name,
        threads=threads,
        product_operations=work.product_operations,
        attention_operations=work.attention_operations,
        peak=statistics.median(burst["peak"] for burst in bursts + accounts),
        ordinary=middle([Spent(burst["seconds"]) for burst in bursts]).seconds,
        names=tuple(accounts[0]["account"]["seconds"]),
        accounted=middle([spent(burst) for burst in accounts]),
        mark=statistics.median(burst["account"]["mark"] for burst in accounts),
        alone=work.layers * work.tokens / rows * sum(map(statistics.median, products)),
    )


def section(tables: dict[int, Sequence[Measured]], command: str) -> str:
    """Return the generated part of the page."""
    facts = {"CPU": cpu_name(), "instruction set of headwise": hw.isa(), "command": f"`{command}`"}
    parts = [report.facts_list(facts), legend()]
    for threads, rows in tables.items():
        peak = statistics.median(row.peak for row in rows)
        parts += [f"### {report.threads_of(threads)}, peak {peak:.0f} GFLOP/s", table(rows)]
    return "\n\n".join(parts)


def arguments() -> argparse.Namespace:
    """Return the options of this run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.account", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--ordinary", type=Path, default=Path("target/bench"), help="folder of the build")
    parser.add_argument("--accounted", type=Path, default=Path("target/account"), help="of that with clocks")
    parser.add_argument("--threads", type=int, nargs="+", default=BOTH, help="a table for each (default 1 2)")
    parser.add_argument("--seconds", type=float, default=0.2, help="of a turn, at least (default 0.2)")
    parser.add_argument("--turns", type=int, default=9, help="of each build for each row (default 9)")
    parser.add_argument("--rows", default="", metavar="TEXT", help="only rows whose name contains this")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the whole account into this page")
    return parser.parse_args()


def make_command(argv: Sequence[str]) -> str:
    """Return what repeats this run, without the places of files: `make account` knows them."""
    kept = list(argv)
    for option in ("--ordinary", "--accounted", "--write"):
        if option in kept:
            del kept[kept.index(option) : kept.index(option) + 2]
    return f'make account ACCOUNT_OPTIONS="{shlex.join(kept)}"' if kept else "make account"


def main() -> None:
    """Measure, print, and write the page if nothing was left out."""
    options = arguments()
    works = [work for work in WORKS if options.rows in work.name]
    if not works:
        sys.exit(f"no row's name contains {options.rows!r}")
    tables: dict[int, Sequence[Measured]] = {}
    with (
        Build(options.ordinary, accounts=False) as ordinary,
        Build(options.accounted, accounts=True) as second,
    ):
        for threads in options.threads:
            rows = []
            for work in works:
                rows.append(measure(work, threads, options, ordinary, second))
                lines = table(rows).splitlines()
                print("\n".join(lines if len(rows) == 1 else lines[-1:]), flush=True)
            tables[threads] = rows
    body = section(tables, make_command(sys.argv[1:]))
    print(f"\n{body}")
    if options.write and works == WORKS and options.threads == BOTH:
        page = options.write.read_text(encoding="utf-8")
        options.write.write_text(
            report.replace_block(page, "account", body, "make account"), encoding="utf-8"
        )
        print(f"\nwritten to {options.write}")
    else:
        print("\nno page is written: that takes all rows on 1 and on 2 threads, and --write")


if __name__ == "__main__":
    main()
