"""Measure headwise against the machine's own limits and against the peers that this interpreter has.

``make bench`` runs everything and writes docs/performance.md; ``BENCH_OPTIONS="--threads 2 --only linear"``
passes options on. The page is written only if no row and no peer was left out.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

from benchmarks import peers

GROUPS = ("minilm", "sentences", "linear", "attention", "layers", "decoding", "avx2")


def arguments() -> argparse.Namespace:
    """Return the options of this run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--threads", type=int, default=1, help="for headwise and everybody else (default 1)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each contestant of a row, at least")
    parser.add_argument("--turns", type=int, default=5, help="of each contestant of a row, at least")
    parser.add_argument(
        "--only", choices=GROUPS, action="append", help="a group of the table; may be repeated"
    )
    parser.add_argument("--rows", default="", metavar="TEXT", help="only rows whose name contains this")
    parser.add_argument("--peers", nargs="*", choices=peers.PACKAGES, help="default: all that are installed")
    parser.add_argument(
        "--forms", type=Path, default=Path("target/bench-peers/forms"), help="MiniLM for the peers"
    )
    parser.add_argument("--cold-start", action="store_true", help="only: seconds to the first embedding")
    parser.add_argument(
        "--memory", action="store_true", help="only: resident memory after the first embedding"
    )
    parser.add_argument("--callers", action="store_true", help="only: 32 threads that call at once")
    parser.add_argument("--neighbours", action="store_true", help="only: beside a second and a busy process")
    parser.add_argument("--long", action="store_true", help="only: attention over 16,384 keys")
    parser.add_argument("--growth", action="store_true", help="only: memory after ten thousand calls")
    parser.add_argument("--json", type=Path, help="write the results of the table here too")
    parser.add_argument(
        "--write", type=Path, metavar="PAGE", help="put what was measured whole into this page"
    )
    return parser.parse_args()


def main() -> None:
    """Tell the libraries how many threads to use, before they are imported, and measure."""
    options = arguments()
    peers.hold_threads(options.threads)
    options.command = make_command(sys.argv[1:])
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")

    from benchmarks.run import run

    run(options)


def make_command(argv: list[str]) -> str:
    """Return what repeats this run, without the places of files: `make bench` knows them."""
    kept = list(argv)
    for option in ("--forms", "--write", "--json"):
        if option in kept:
            del kept[kept.index(option) : kept.index(option) + 2]
    return f'make bench BENCH_OPTIONS="{shlex.join(kept)}"' if kept else "make bench"


if __name__ == "__main__":
    main()
