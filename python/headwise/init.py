"""First values of parameters: functions that return arrays, under torch's names; and Admin, for an encoder.

The numbers are drawn by a counter-based generator (Philox), so that a seed means the same numbers on every
machine, for every number of threads. A parameter is (N, K), as in a linear map of K numbers to N, or (N, K,
...) for kernels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from headwise import _core
from headwise._admin import admin
from headwise._errors import DTypeError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import SupportsIndex

    from numpy.typing import DTypeLike, NDArray

    Shape: TypeAlias = SupportsIndex | Sequence[SupportsIndex]
    Rng: TypeAlias = SupportsIndex | np.random.Generator | None

__all__ = [
    "admin",
    "calculate_gain",
    "kaiming_normal",
    "kaiming_uniform",
    "normal",
    "ones",
    "truncated_normal",
    "uniform",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
]

_GAINS = {"linear": 1.0, "sigmoid": 1.0, "tanh": 5 / 3, "relu": math.sqrt(2.0), "selu": 3 / 4}


def uniform(
    shape: Shape, low: float = 0.0, high: float = 1.0, *, rng: Rng = None, dtype: DTypeLike = "float32"
) -> NDArray[Any]:
    """Draw numbers uniformly between two bounds.

    Parameters
    ----------
    shape : int or tuple of int
        The shape of the array.
    low : float, default 0.0
        The lower bound.
    high : float, default 1.0
        The upper bound.
    rng : int, Generator or None, default None
        The seed; a `numpy.random.Generator`, which is advanced by one draw; or None for a seed of the system.
    dtype : {"float32", "float64"}, default "float32"
        The dtype of the array.

    Returns
    -------
    ndarray
        Of `shape` and `dtype`.

    Raises
    ------
    ValueError
        If a length is negative, or the bounds are not finite or not in order.
    TypeError
        If `shape` is of another kind, or `dtype` is neither float32 nor float64 (`DTypeError`).

    Examples
    --------
    >>> import headwise as hw
    >>> hw.init.uniform((2, 3), -1, 1, rng=0).shape
    (2, 3)
    """
    return _core._draw("uniform", shape, low, high, rng=rng, dtype=_name(dtype))


def normal(
    shape: Shape, mean: float = 0.0, std: float = 1.0, *, rng: Rng = None, dtype: DTypeLike = "float32"
) -> NDArray[Any]:
    """Draw normally distributed numbers.

    Parameters
    ----------
    shape : int or tuple of int
        The shape of the array.
    mean : float, default 0.0
        Their mean.
    std : float, default 1.0
        Their standard deviation.
    rng : int, Generator or None, default None
        The seed; a `numpy.random.Generator`, which is advanced by one draw; or None for a seed of the system.
    dtype : {"float32", "float64"}, default "float32"
        The dtype of the array.

    Returns
    -------
    ndarray
        Of `shape` and `dtype`.

    Raises
    ------
    ValueError
        If a length or `std` is negative, or a number is not finite.
    TypeError
        If `shape` is of another kind, or `dtype` is neither float32 nor float64 (`DTypeError`).

    Examples
    --------
    >>> import headwise as hw
    >>> hw.init.normal(3, std=0.02, rng=0).dtype
    dtype('float32')
    """
    return _core._draw("normal", shape, mean, std, rng=rng, dtype=_name(dtype))


def truncated_normal(
    shape: Shape,
    mean: float = 0.0,
    std: float = 1.0,
    low: float = -2.0,
    high: float = 2.0,
    *,
    rng: Rng = None,
    dtype: DTypeLike = "float32",
) -> NDArray[Any]:
    """Draw normally distributed numbers within bounds: those outside are drawn again.

    Parameters
    ----------
    shape : int or tuple of int
        The shape of the array.
    mean : float, default 0.0
        The mean, without the bounds.
    std : float, default 1.0
        The standard deviation, without the bounds.
    low : float, default -2.0
        No number is below.
    high : float, default 2.0
        No number is above.
    rng : int, Generator or None, default None
        The seed; a `numpy.random.Generator`, which is advanced by one draw; or None for a seed of the system.
    dtype : {"float32", "float64"}, default "float32"
        The dtype of the array.

    Returns
    -------
    ndarray
        Of `shape` and `dtype`.

    Raises
    ------
    ValueError
        If the bounds leave less than a thousandth of the distribution, or a number is out of range.
    TypeError
        If `shape` is of another kind, or `dtype` is neither float32 nor float64 (`DTypeError`).

    Examples
    --------
    >>> import headwise as hw
    >>> bool(abs(hw.init.truncated_normal(1000, rng=0)).max() <= 2.0)
    True
    """
    return _core._draw("normal", shape, mean, std, bounds=(low, high), rng=rng, dtype=_name(dtype))


def xavier_uniform(
    shape: Shape, *, gain: float = 1.0, rng: Rng = None, dtype: DTypeLike = "float32"
) -> NDArray[Any]:
    """Draw uniformly between -b and b, b = gain sqrt(6 / (fan in + fan out)).

    Parameters
    ----------
    shape : tuple of int
        (N, K, ...); the fan in is K times, the fan out N times what follows.
    gain : float, default 1.0
        A factor; `calculate_gain` knows those of activations.
    rng : int, Generator or None, default None
        The seed; a `numpy.random.Generator`, which is advanced by one draw; or None for a seed of the system.
    dtype : {"float32", "float64"}, default "float32"
        The dtype of the array.

    Returns
    -------
    ndarray
        Of `shape` and `dtype`.

    Raises
    ------
    ValueError
        If `shape` has less than two axes (`ShapeError`).
    TypeError
        If `shape` is of another kind, or `dtype` is neither float32 nor float64 (`DTypeError`).

    References
    ----------
    .. [1] X. Glorot, Y. Bengio, "Understanding the difficulty of training deep feedforward neural networks",
       2010. https://proceedings.mlr.press/v9/glorot10a.html

    Examples
    --------
    >>> import headwise as hw
    >>> bool(abs(hw.init.xavier_uniform((2, 4), rng=0)).max() <= 1.0)
    True
    """
    bound = math.sqrt(3.0) * _xavier_std(shape, gain)
    return uniform(shape, -bound, bound, rng=rng, dtype=dtype)


def xavier_normal(
    shape: Shape, *, gain: float = 1.0, rng: Rng = None, dtype: DTypeLike = "float32"
) -> NDArray[Any]:
    """Draw from the normal distribution with std = gain sqrt(2 / (fan in + fan out)).

    Parameters
    ----------
    shape : tuple of int
        (N, K, ...); the fan in is K times, the fan out N times what follows.
    gain : float, default 1.0
        A factor; `calculate_gain` knows those of activations.
    rng : int, Generator or None, default None
        The seed; a `numpy.random.Generator`, which is advanced by one draw; or None for a seed of the system.
    dtype : {"float32", "float64"}, default "float32"
        The dtype of the array.

    Returns
    -------
    ndarray
        Of `shape` and `dtype`.

    Raises
    ------
    ValueError
        If `shape` has less than two axes (`ShapeError`).
    TypeError
        If `shape` is of another kind, or `dtype` is neither float32 nor float64 (`DTypeError`).

    References
    ----------
    .. [1] X. Glorot, Y. Bengio, "Understanding the difficulty of training deep feedforward neural networks",
       2010. https://proceedings.mlr.press/v9/glorot10a.html

    Examples
    --------
    >>> import headwise as hw
    >>> hw.init.xavier_normal((2, 4), rng=0).shape
    (2, 4)
    """
    return normal(shape, 0.0, _xavier_std(shape, gain), rng=rng, dtype=dtype)


def kaiming_uniform(
    shape: Shape,
    *,
    a: float = 0.0,
    mode: Literal["fan_in", "fan_out"] = "fan_in",
    nonlinearity: str = "leaky_relu",
    rng: Rng = None,
    dtype: DTypeLike = "float32",
) -> NDArray[Any]:
    """Draw uniformly between -b and b, b = gain sqrt(3 / fan).

    Parameters
    ----------
    shape : tuple of int
        (N, K, ...); the fan in is K times, the fan out N times what follows.
    a : float, default 0.0
        The slope of leaky_relu for negative numbers.
    mode : {"fan_in", "fan_out"}, default "fan_in"
        Which variance stays the same: that of the values forward, or that of the gradients backward.
    nonlinearity : str, default "leaky_relu"
        What follows, as `calculate_gain` knows it.
    rng : int, Generator or None, default None
        The seed; a `numpy.random.Generator`, which is advanced by one draw; or None for a seed of the system.
    dtype : {"float32", "float64"}, default "float32"
        The dtype of the array.

    Returns
    -------
    ndarray
        Of `shape` and `dtype`.

    Raises
    ------
    ValueError
        If `shape` has less than two axes (`ShapeError`), or `mode` or `nonlinearity` is another.
    TypeError
        If `shape` is of another kind, or `dtype` is neither float32 nor float64 (`DTypeError`).

    References
    ----------
    .. [1] K. He, X. Zhang, S. Ren, J. Sun, "Delving Deep into Rectifiers", 2015.
       https://arxiv.org/abs/1502.01852

    Examples
    --------
    >>> import headwise as hw
    >>> hw.init.kaiming_uniform((2, 4), nonlinearity="relu", rng=0).shape
    (2, 4)
    """
    bound = math.sqrt(3.0) * _kaiming_std(shape, a, mode, nonlinearity)
    return uniform(shape, -bound, bound, rng=rng, dtype=dtype)


def kaiming_normal(
    shape: Shape,
    *,
    a: float = 0.0,
    mode: Literal["fan_in", "fan_out"] = "fan_in",
    nonlinearity: str = "leaky_relu",
    rng: Rng = None,
    dtype: DTypeLike = "float32",
) -> NDArray[Any]:
    """Draw from the normal distribution with std = gain / sqrt(fan).

    Parameters
    ----------
    shape : tuple of int
        (N, K, ...); the fan in is K times, the fan out N times what follows.
    a : float, default 0.0
        The slope of leaky_relu for negative numbers.
    mode : {"fan_in", "fan_out"}, default "fan_in"
        Which variance stays the same: that of the values forward, or that of the gradients backward.
    nonlinearity : str, default "leaky_relu"
        What follows, as `calculate_gain` knows it.
    rng : int, Generator or None, default None
        The seed; a `numpy.random.Generator`, which is advanced by one draw; or None for a seed of the system.
    dtype : {"float32", "float64"}, default "float32"
        The dtype of the array.

    Returns
    -------
    ndarray
        Of `shape` and `dtype`.

    Raises
    ------
    ValueError
        If `shape` has less than two axes (`ShapeError`), or `mode` or `nonlinearity` is another.
    TypeError
        If `shape` is of another kind, or `dtype` is neither float32 nor float64 (`DTypeError`).

    References
    ----------
    .. [1] K. He, X. Zhang, S. Ren, J. Sun, "Delving Deep into Rectifiers", 2015.
       https://arxiv.org/abs/1502.01852

    Examples
    --------
    >>> import headwise as hw
    >>> hw.init.kaiming_normal((2, 4), nonlinearity="relu", rng=0).shape
    (2, 4)
    """
    return normal(shape, 0.0, _kaiming_std(shape, a, mode, nonlinearity), rng=rng, dtype=dtype)


def zeros(shape: Shape, *, dtype: DTypeLike = "float32") -> NDArray[Any]:
    """Return an array of zeros.

    Parameters
    ----------
    shape : int or tuple of int
        The shape of the array.
    dtype : {"float32", "float64"}, default "float32"
        The dtype of the array.

    Returns
    -------
    ndarray
        Of `shape` and `dtype`.

    Raises
    ------
    ValueError
        If a length is negative.
    TypeError
        If `dtype` is neither float32 nor float64 (`DTypeError`).

    Examples
    --------
    >>> import headwise as hw
    >>> hw.init.zeros(3)
    array([0., 0., 0.], dtype=float32)
    """
    return np.zeros(shape, dtype=_name(dtype))


def ones(shape: Shape, *, dtype: DTypeLike = "float32") -> NDArray[Any]:
    """Return an array of ones.

    Parameters
    ----------
    shape : int or tuple of int
        The shape of the array.
    dtype : {"float32", "float64"}, default "float32"
        The dtype of the array.

    Returns
    -------
    ndarray
        Of `shape` and `dtype`.

    Raises
    ------
    ValueError
        If a length is negative.
    TypeError
        If `dtype` is neither float32 nor float64 (`DTypeError`).

    Examples
    --------
    >>> import headwise as hw
    >>> hw.init.ones(3)
    array([1., 1., 1.], dtype=float32)
    """
    return np.ones(shape, dtype=_name(dtype))


def calculate_gain(nonlinearity: str, a: float = 0.01) -> float:
    """Return the factor that keeps the variance over a nonlinearity, as torch has it.

    Parameters
    ----------
    nonlinearity : {"linear", "sigmoid", "tanh", "relu", "leaky_relu", "selu"}
        What follows the parameter.
    a : float, default 0.01
        The slope of leaky_relu for negative numbers.

    Returns
    -------
    float
        The factor.

    Raises
    ------
    ValueError
        If the nonlinearity is another.

    Examples
    --------
    >>> import headwise as hw
    >>> hw.init.calculate_gain("relu") == 2**0.5
    True
    """
    if nonlinearity == "leaky_relu":
        return math.sqrt(2.0 / (1.0 + a * a))
    if nonlinearity not in _GAINS:
        known = ", ".join(sorted([*_GAINS, "leaky_relu"]))
        msg = f"nonlinearity: expected one of {known}, got {nonlinearity!r}"
        raise ValueError(msg)
    return _GAINS[nonlinearity]


def _xavier_std(shape: Shape, gain: float) -> float:
    fan_in, fan_out = _fans(shape)
    return gain * math.sqrt(2.0 / max(fan_in + fan_out, 1))


def _kaiming_std(shape: Shape, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        msg = f'mode: expected "fan_in" or "fan_out", got {mode!r}'
        raise ValueError(msg)
    fan_in, fan_out = _fans(shape)
    fan = fan_in if mode == "fan_in" else fan_out
    return calculate_gain(nonlinearity, a) / math.sqrt(max(fan, 1))


def _fans(shape: Shape) -> tuple[int, int]:
    """Return how many numbers go into, and come out of, a unit of the parameter."""
    lengths = [int(n) for n in shape] if hasattr(shape, "__iter__") else [int(shape)]
    if len(lengths) < 2:
        msg = f"shape: expected (N, K) or (N, K, ...), got {tuple(lengths)}"
        raise ShapeError(msg)
    rest = math.prod(lengths[2:])
    return lengths[1] * rest, lengths[0] * rest


def _name(dtype: DTypeLike) -> str:
    name = np.dtype(dtype).name
    if name not in ("float32", "float64"):
        msg = f"dtype: expected float32 or float64, got {name}"
        raise DTypeError(msg)
    return name
