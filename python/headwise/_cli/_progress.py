"""Progress of long work: on stderr, and only where that is a terminal."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

_SECONDS = 0.2
"""How often the line is written anew."""
_CHUNK = 1 << 20


@contextlib.contextmanager
def progress(total: int | None) -> Iterator[Callable[[int], object]]:
    """Show how many texts are done; tqdm does it where it is installed.

    Parameters
    ----------
    total : int or None
        How many there are, if that is known.

    Yields
    ------
    callable
        To be called with the number of texts done since the last call.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    try:
        from tqdm import tqdm
    except ImportError:
        line = _Line(total)
        try:
            yield line.advance
        finally:
            line.end()
        return
    with tqdm(total=total, unit=" texts", file=sys.stderr, leave=False) as bar:
        yield bar.update


def count_lines(files: Sequence[str]) -> int | None:
    """Count the lines of files that can be read twice; None where one of them cannot, or nobody looks."""
    if not sys.stderr.isatty() or not all(name != "-" and Path(name).is_file() for name in files):
        return None
    total = 0
    for name in files:
        last = b"\n"
        with open(name, "rb") as file:
            while chunk := file.read(_CHUNK):
                total += chunk.count(b"\n")
                last = chunk[-1:]
        total += last != b"\n"
    return total


class _Line:
    """One line that is written over and over."""

    def __init__(self, total: int | None) -> None:
        self._of = "" if total is None else f" of {total:,}"
        self._done = 0
        self._next = time.monotonic() + _SECONDS

    def advance(self, done: int) -> None:
        self._done += done
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _SECONDS
            print(f"\rheadwise: {self._done:,}{self._of} texts", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        # Back to the start of the line, and clear it.
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
