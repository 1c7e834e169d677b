"""Gradients shortened to a greatest length."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from headwise import _core
from headwise.optim._optimizer import number
from headwise.optim._parameters import flatten

_SMALL = 1e-6
"""Added to the norm, as torch does, so that a norm of 0 divides nothing."""


def clip_by_norm(grads: Mapping[str, Any], max_norm: float) -> tuple[dict[str, Any], float]:
    """Scale all gradients by one factor, so that their common norm is at most `max_norm`.

    Parameters
    ----------
    grads : dict of str to array_like
        Gradients, perhaps in dicts of dicts. They are not changed.
    max_norm : float
        The greatest norm: the root of the sum of the squares of all numbers of all gradients.

    Returns
    -------
    grads : dict
        The gradients times max_norm / (norm + 1e-6) where that is below 1, else the arrays that were given.
    norm : float
        The norm before. It is NaN or infinite where a gradient is: the gradients then are NaN, or 0 and NaN,
        as in torch.

    Raises
    ------
    ValueError
        If `max_norm` is negative or not finite.
    TypeError
        If `grads` is no dict, or a gradient no array of numbers (`DTypeError`).

    Notes
    -----
    Squares are added in float64, array after array in the order of the dict, each in blocks of 4,096 numbers.

    References
    ----------
    .. [1] R. Pascanu, T. Mikolov, Y. Bengio, "On the difficulty of training recurrent neural networks", 2013.
       https://arxiv.org/abs/1211.5063

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> grads, norm = hw.optim.clip_by_norm({"w": np.array([3.0]), "b": np.array([4.0])}, 1.0)
    >>> norm
    5.0
    >>> {name: value.round(3) for name, value in grads.items()}
    {'w': array([0.6]), 'b': array([0.8])}
    """
    max_norm = number("max_norm", max_norm)
    total = 0.0
    for gradient in flatten(grads).values():
        total += _core._sum_of_squares(gradient)
    norm = math.sqrt(total)
    scale = max_norm / (norm + _SMALL)
    # A NaN is not above 1: it goes on into the gradients.
    return (dict(grads) if scale >= 1.0 else _scaled(grads, scale)), norm


def _scaled(grads: Mapping[str, Any], scale: float) -> dict[str, Any]:
    scaled: dict[str, Any] = {}
    for name, value in grads.items():
        if isinstance(value, Mapping):
            scaled[name] = _scaled(value, scale)
        else:
            array = np.asarray(value)
            with np.errstate(invalid="ignore"):
                scaled[name] = array * (array.dtype.type(scale) if array.dtype.kind not in "iub" else scale)
    return scaled
