r"""Learning rates over time: functions of the number of steps taken before.

::

    rate
     lr |    /‾‾\_            linear warm-up over `warmup` steps, the first of which has lr / warmup already,
        |   /     ‾\_         then down to `end` at step `total`, in a line or half a cosine wave,
    end |  /         ‾‾───    then `end`
        +--|----------|-> step
         warmup     total
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from headwise import _core
from headwise.optim._optimizer import number

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, repr=False)
class _Constant:
    lr: float

    def __call__(self, step: int) -> float:
        return self.lr

    def __repr__(self) -> str:
        return f"constant({self.lr})"


@dataclass(frozen=True, repr=False)
class _Warmup:
    lr: float
    warmup: int
    total: int
    end: float
    form: Literal["linear", "cosine"]

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if step >= self.total:
            return self.end
        done = (step - self.warmup) / (self.total - self.warmup)
        left = 1.0 - done if self.form == "linear" else _core._cosine_decay(done)
        return self.end + (self.lr - self.end) * left

    def __repr__(self) -> str:
        return f"warmup_{self.form}({self.lr}, warmup={self.warmup}, total={self.total}, end={self.end})"


def constant(lr: float) -> Callable[[int], float]:
    """Return the schedule that always gives `lr`.

    Parameters
    ----------
    lr : float
        The learning rate.

    Returns
    -------
    callable
        From the number of steps taken before to the learning rate.

    Raises
    ------
    ValueError
        If `lr` is negative or not finite.

    Examples
    --------
    >>> import headwise as hw
    >>> hw.optim.constant(0.1)(1000)
    0.1
    """
    return _Constant(number("lr", lr))


def warmup_linear(lr: float, *, warmup: int = 0, total: int, end: float = 0.0) -> Callable[[int], float]:
    """Return the schedule that rises linearly to `lr` and falls linearly to `end`.

    Parameters
    ----------
    lr : float
        The greatest learning rate.
    warmup : int, default 0
        Steps of the rise; the first of them has lr / warmup, the last `lr`.
    total : int
        Steps until `end`, those of the rise included; later steps stay there.
    end : float, default 0.0
        The last learning rate.

    Returns
    -------
    callable
        From the number of steps taken before to the learning rate.

    Raises
    ------
    ValueError
        If a number is negative or not finite, or `total` is not above `warmup`.

    Examples
    --------
    >>> import headwise as hw
    >>> schedule = hw.optim.warmup_linear(1.0, warmup=2, total=6)
    >>> [schedule(step) for step in range(7)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    return _warmup(lr, warmup, total, end, "linear")


def warmup_cosine(lr: float, *, warmup: int = 0, total: int, end: float = 0.0) -> Callable[[int], float]:
    """Return the schedule that rises linearly to `lr` and falls to `end` along half a cosine wave.

    Parameters
    ----------
    lr : float
        The greatest learning rate.
    warmup : int, default 0
        Steps of the rise; the first of them has lr / warmup, the last `lr`.
    total : int
        Steps until `end`, those of the rise included; later steps stay there.
    end : float, default 0.0
        The last learning rate.

    Returns
    -------
    callable
        From the number of steps taken before to the learning rate.

    Raises
    ------
    ValueError
        If a number is negative or not finite, or `total` is not above `warmup`.

    References
    ----------
    .. [1] I. Loshchilov, F. Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017.
       https://arxiv.org/abs/1608.03983

    Examples
    --------
    >>> import headwise as hw
    >>> schedule = hw.optim.warmup_cosine(1.0, warmup=2, total=6)
    >>> [round(schedule(step), 3) for step in range(7)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    return _warmup(lr, warmup, total, end, "cosine")


def _warmup(
    lr: float, warmup: int, total: int, end: float, form: Literal["linear", "cosine"]
) -> Callable[[int], float]:
    if not 0 <= warmup < total:
        msg = f"warmup, total: expected 0 <= warmup < total, got {warmup} and {total}"
        raise ValueError(msg)
    return _Warmup(number("lr", lr), warmup, total, number("end", end), form)
