"""Progress of long work: tqdm's bar where it is installed, else a line on standard error."""

from __future__ import annotations

import sys
import time
from typing import Protocol


class Progress(Protocol):
    """What is told of progress."""

    def update(self, n: int) -> object:
        """Count `n` more."""

    def set_postfix_str(self, s: str, refresh: bool) -> object:
        """Show a text behind the count, at once or with the next update."""

    def close(self) -> object:
        """End the display."""


class _Silent:
    def update(self, n: int) -> None:
        pass

    def set_postfix_str(self, s: str, refresh: bool) -> None:
        pass

    def close(self) -> None:
        pass


class _Line:
    """One line, written over as long as standard error is a terminal; else only its last state is written."""

    def __init__(self, total: int | None, description: str, every: float) -> None:
        self._description = description
        self._total = "" if total is None else f" of {total}"
        self._postfix = ""
        self._done = self._width = 0
        self._every, self._next = every, 0.0
        self._live = sys.stderr.isatty()

    def update(self, n: int) -> None:
        self._done += n
        if self._live and time.monotonic() >= self._next:
            self._next = time.monotonic() + self._every
            self._write("")

    def set_postfix_str(self, s: str, refresh: bool) -> None:
        self._postfix = f", {s}" if s else ""
        if refresh and self._live:
            self._write("")

    def close(self) -> None:
        self._write("\n")

    def _write(self, end: str) -> None:
        text = f"{self._description}: {self._done}{self._total}{self._postfix}"
        # A shorter line covers a longer one that was there.
        line = text.ljust(self._width) if self._live else text
        self._width = len(text)
        print(f"\r{line}" if self._live else line, end=end, file=sys.stderr, flush=True)


def progress(
    shown: bool, total: int | None, *, description: str = "Texts", unit: str = "text", every: float = 0.0
) -> Progress:
    """Begin a display of `total` texts (or what `unit` says), or one that shows nothing.

    A line is written anew after `every` seconds at the soonest; tqdm has its own measure.
    """
    if not shown:
        return _Silent()
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return _Line(total, description, every)
    bar: Progress = tqdm(total=total, desc=description, unit=unit)
    return bar
