"""`headwise.progress`: the progress bar around the steps of a loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from headwise import _progress

T = TypeVar("T")

_SECONDS = 0.2
"""How often a line is written anew: steps may be short."""


class Loop(Generic[T]):
    """The items of an iterable, and a display of how many were taken."""

    def __init__(self, items: Iterable[T], total: int | None, description: str, shown: bool) -> None:
        self._items = items
        self._total = total
        self._description = description
        self._shown = shown
        self._bar: _progress.Progress | None = None
        self._text = ""

    def __iter__(self) -> Iterator[T]:
        bar = _progress.progress(
            self._shown, self._total, description=self._description, unit="step", every=_SECONDS
        )
        self._bar = bar
        bar.set_postfix_str(self._text, refresh=False)
        try:
            for item in self._items:
                yield item
                bar.update(1)
        finally:
            self._bar = None
            bar.close()

    def __len__(self) -> int:
        if self._total is None:
            msg = "the number of items is not known"
            raise TypeError(msg)
        return self._total

    def set(self, **values: object) -> None:
        """Show values behind the count, as ``loss=0.123``; floats with four digits."""
        self._text = ", ".join(f"{name}={_short(value)}" for name, value in values.items())
        if self._bar is not None:
            self._bar.set_postfix_str(self._text, refresh=False)


def progress(
    iterable: Iterable[T], *, total: int | None = None, description: str = "Steps", shown: bool = True
) -> Loop[T]:
    """Show how far a loop is: tqdm's bar where it is installed, else a line on standard error.

    Parameters
    ----------
    iterable : iterable
        What the loop goes over.
    total : int, optional
        How many items there are; by default the iterable's length, if it has one.
    description : str, default "Steps"
        What stands in front.
    shown : bool, default True
        False shows nothing.

    Returns
    -------
    iterable
        The same items. Its method ``set(**values)`` shows values behind the count, such as the loss. Without
        a terminal and without tqdm, one line is written at the end.

    Examples
    --------
    >>> import headwise as hw
    >>> steps = hw.progress(range(3), shown=False)
    >>> for step in steps:
    ...     steps.set(loss=1 / (step + 1))
    """
    if total is None:
        try:
            total = len(iterable)  # type: ignore[arg-type]
        except TypeError:
            total = None
    return Loop(iterable, total, description, shown)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
