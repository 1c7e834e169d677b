"""Equality to the last bit, and a message that says where and how far two arrays differ."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def assert_same_bits(a: npt.ArrayLike, b: npt.ArrayLike) -> None:
    """Fail unless two arrays have the same dtype, shape and bits.

    A NaN equals every NaN, whatever its bits; 0.0 and -0.0 differ. Strides and byte order are no part of the
    comparison.

    Parameters
    ----------
    a, b : array_like
        Arrays of booleans, integers or floats, float16 and ml_dtypes' types included.

    Raises
    ------
    AssertionError
        If they differ; the text names the first differing index, both values, and how many representable
        numbers they are apart (ulp).
    TypeError
        If the dtype is none of those.

    Examples
    --------
    >>> from headwise.testing import assert_same_bits
    >>> assert_same_bits([1.0, np.nan], [1.0, np.nan])
    >>> assert_same_bits(np.float32([1, 2]), np.float32([1, 2.0000002]))
    Traceback (most recent call last):
        ...
    AssertionError: bits differ in 1 of 2 elements, first at (1,): 2.0 and 2.0000002, 1 ulp apart
    """
    one, other = _native(np.asarray(a)), _native(np.asarray(b))
    if one.dtype != other.dtype:
        msg = f"dtypes differ: {one.dtype} and {other.dtype}"
        raise AssertionError(msg)
    if one.shape != other.shape:
        msg = f"shapes differ: {one.shape} and {other.shape}"
        raise AssertionError(msg)
    words, other_words = _words(one), _words(other)
    differ = words != other_words
    floats = one.dtype.kind not in "biu"
    if floats:
        differ &= ~(np.isnan(one) & np.isnan(other))
    if not differ.any():
        return
    at = tuple(int(i) for i in np.argwhere(differ)[0])
    msg = f"bits differ in {int(differ.sum())} of {one.size} elements, first at {at}: "
    msg += f"{one[at]!s} and {other[at]!s}"
    if floats and not (np.isnan(one[at]) or np.isnan(other[at])):
        ulps = _ulps(words[at], other_words[at])
        msg += f", {ulps} ulp apart" if ulps else ", the sign of a zero"
    raise AssertionError(msg)


def _native(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Give the array in the byte order of the machine; refuse what has no plain bits."""
    dtype = array.dtype
    # ml_dtypes registers its types with kinds of their own; what they have in common is finfo or a name.
    plain = dtype.kind in "biuf" or dtype.name.startswith(("bfloat16", "float8"))
    if not plain or dtype.itemsize not in _WORDS:
        msg = f"a, b: expected booleans, integers or floats of at most 8 bytes, got {dtype}"
        raise TypeError(msg)
    return array.astype(dtype.newbyteorder("="), copy=False)


def _words(array: npt.NDArray[Any]) -> npt.NDArray[np.unsignedinteger]:
    words: npt.NDArray[np.unsignedinteger] = (
        np.ascontiguousarray(array).view(_WORDS[array.dtype.itemsize]).reshape(array.shape)
    )
    return words


def _ulps(one: np.unsignedinteger, other: np.unsignedinteger) -> int:
    """Count the representable numbers from one to the other; 0.0 and -0.0 are none apart."""
    sign = 1 << (8 * one.itemsize - 1)
    places = (int(word) if int(word) < sign else sign - int(word) for word in (one, other))
    return abs(next(places) - next(places))
