"""A progress bar over texts: tqdm's where it is installed, else a line on standard error."""

from __future__ import annotations

import sys
from typing import Protocol


class Progress(Protocol):
    """What is told of progress."""

    def update(self, n: int) -> object:
        """Count `n` more texts."""

    def close(self) -> object:
        """End the display."""


class _Silent:
    def update(self, n: int) -> None:
        pass

    def close(self) -> None:
        pass


class _Line:
    """One line, written over as long as standard error is a terminal; else only its last state is written."""

    def __init__(self, total: int | None) -> None:
        self._total = "" if total is None else f" of {total}"
        self._done = 0
        self._live = sys.stderr.isatty()

    def update(self, n: int) -> None:
        self._done += n
        if self._live:
            print(f"\rTexts: {self._done}{self._total}", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        start = "\r" if self._live else ""
        print(f"{start}Texts: {self._done}{self._total}", file=sys.stderr, flush=True)


def progress(shown: bool, total: int | None) -> Progress:
    """Begin a display of `total` texts, or one that shows nothing."""
    if not shown:
        return _Silent()
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return _Line(total)
    bar: Progress = tqdm(total=total, desc="Texts", unit="text")
    return bar
