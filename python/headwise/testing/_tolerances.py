"""How far a result may be from the float64 truth: a bound for each dtype, and an assertion that uses it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# Bounds of the root mean square of the error over that of the truth, for attention of normal inputs. Those of
# the half types are the rounding of the output alone: they are computed in float32.
_TOLERANCES = {"float64": 1e-15, "float32": 4e-7, "float16": 2.1e-4, "bfloat16": 1.7e-3}
_WIDE = 5e-7
"""The bound of float32 for heads wider than 64 or more than 2048 keys: longer sums round more."""
_SAMPLE = 4.0
"""How much the error of few elements may scatter: the bounds are those of many."""
_ONE_ELEMENT = 100.0
"""How many times the bound a single element may be off, relative to itself and the root mean square."""


def tolerance(dtype: npt.DTypeLike, *, head_width: int = 64, keys: int = 2048) -> float:
    """Give the bound that attention in a dtype is held to by headwise's own tests.

    Parameters
    ----------
    dtype : dtype
        One of float64, float32, float16 and ml_dtypes' bfloat16; the names will do.
    head_width : int
        E, the width of a head.
    keys : int
        S, the number of keys.

    Returns
    -------
    float
        What rms(got - want) / rms(want) may be at most, for normally distributed inputs.

    Raises
    ------
    TypeError
        If there is no bound for the dtype.

    Examples
    --------
    >>> headwise.testing.tolerance(np.float32)
    4e-07
    >>> headwise.testing.tolerance("bfloat16")
    0.0017
    """
    # NumPy knows bfloat16 by its name only where ml_dtypes was imported.
    name = dtype if isinstance(dtype, str) and dtype in _TOLERANCES else np.dtype(dtype).name
    if name not in _TOLERANCES:
        msg = f"dtype: expected one of {', '.join(_TOLERANCES)}, got {name}"
        raise TypeError(msg)
    if name == "float32" and (head_width > 64 or keys > 2048):
        return _WIDE
    return _TOLERANCES[name]


def assert_close(got: npt.ArrayLike, want: npt.ArrayLike, *, bound: float | None = None) -> None:
    """Fail unless a result is as near to the truth as its dtype allows.

    The root mean square of the error, over that of the truth, must be within the bound, widened by the factor
    1 + 4 / sqrt(n): n elements are a sample. No single element may be off by more than 100 times the bound,
    relative to its own size plus the root mean square. NaN and infinities must stand in the same places; they
    are left out of the sums.

    Parameters
    ----------
    got : array_like
        The result.
    want : array_like
        The truth, of the same shape; float64 as `attention_reference` gives it.
    bound : float, optional
        What to hold it to; `tolerance` of the dtype of `got` by default.

    Raises
    ------
    AssertionError
        If the shapes differ or the result is too far off; the text says how far and where most.
    TypeError
        If `bound` is not given and there is none for the dtype of `got`.

    Examples
    --------
    >>> from headwise.testing import assert_close, attention_reference
    >>> rng = np.random.default_rng(0)
    >>> query, key, value = rng.standard_normal((3, 2, 10, 64), dtype=np.float32)
    >>> out = headwise.scaled_dot_product_attention(query, key, value, is_causal=True)
    >>> assert_close(out, attention_reference(query, key, value, is_causal=True))
    """
    got = np.asarray(got)
    bound = tolerance(got.dtype) if bound is None else bound
    result, truth = got.astype(np.float64), np.asarray(want).astype(np.float64)
    if result.shape != truth.shape:
        msg = f"shapes differ: got {result.shape}, want {truth.shape}"
        raise AssertionError(msg)
    finite = np.isfinite(truth)
    odd = ~finite & ~((result == truth) | (np.isnan(result) & np.isnan(truth))) | (
        finite & ~np.isfinite(result)
    )
    if odd.any():
        _fail("NaN or infinity in another place", odd, result, truth)
    error, size = np.where(finite, result - np.where(finite, truth, 0.0), 0.0), np.where(finite, truth, 0.0)
    count = max(int(finite.sum()), 1)
    rms_error, rms = (float(np.sqrt((x * x).sum() / count)) for x in (error, size))
    off = np.abs(error) / np.where(np.abs(size) + rms > 0, np.abs(size) + rms, 1.0)
    worst = off == off.max(initial=0.0)
    if rms_error > bound * rms * (1.0 + _SAMPLE / np.sqrt(count)):
        relative = rms_error / rms if rms > 0 else np.inf
        _fail(
            f"error {relative:.3g} relative by root mean square, allowed {bound:.3g}; worst",
            worst,
            result,
            truth,
        )
    if (off > _ONE_ELEMENT * bound).any():
        _fail(f"one element is off by more than {_ONE_ELEMENT * bound:.3g} relative", worst, result, truth)


def _fail(
    what: str, where: npt.NDArray[np.bool_], got: npt.NDArray[np.float64], want: npt.NDArray[np.float64]
) -> None:
    at = tuple(int(i) for i in np.argwhere(where)[0])
    msg = f"{what} at {at}: got {float(got[at])!r}, want {float(want[at])!r}"
    raise AssertionError(msg)
