"""The arguments of `generate`, checked before the model is called."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from headwise._errors import ArgumentTypeError, ArgumentValueError, ShapeError

EarlyStopping = Literal["never"] | bool


def integer(name: str, value: Any, *, at_least: int) -> int:  # noqa: ANN401 - checked here
    """Return an int, or fail with the argument's name."""
    if isinstance(value, (bool, np.bool_)) or not hasattr(value, "__index__"):
        msg = f"{name}: expected an integer, got {value!r}"
        raise ArgumentTypeError(msg)
    number = operator.index(value)
    if number < at_least:
        msg = f"{name}: expected an integer of at least {at_least}, got {number}"
        raise ArgumentValueError(msg)
    return number


def real(name: str, value: Any) -> float:  # noqa: ANN401 - checked here
    """Return a finite float, or fail with the argument's name."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        msg = f"{name}: expected a number, got {value!r}"
        raise ArgumentTypeError(msg) from None
    if not math.isfinite(number):
        msg = f"{name}: expected a finite number, got {number}"
        raise ArgumentValueError(msg)
    return number


@dataclass(frozen=True)
class Lengths:
    """How long a sequence may be, in tokens."""

    longest: int
    """The most tokens, the end counted."""
    shortest: int
    """The fewest tokens before the end."""

    @classmethod
    def of(cls, max_length: object, min_length: object) -> Lengths:
        """Check `max_length` and `min_length`."""
        longest = integer("max_length", max_length, at_least=1)
        shortest = integer("min_length", min_length, at_least=0)
        if shortest > longest:
            msg = f"min_length: expected at most max_length = {longest}, got {shortest}"
            raise ArgumentValueError(msg)
        return cls(longest, shortest)


@dataclass(frozen=True)
class BeamOptions:
    """What beam search hangs on."""

    num_beams: int
    length_penalty: float
    early_stopping: EarlyStopping

    @classmethod
    def of(cls, num_beams: int, length_penalty: object, early_stopping: object, longest: int) -> BeamOptions:
        """Check `length_penalty` and `early_stopping`."""
        penalty = real("length_penalty", length_penalty)
        if abs(penalty) * math.log(longest) > 600.0:
            msg = (
                f"length_penalty: expected {longest}**length_penalty, the divisor of the longest sequence, "
                f"within the range of float64, got {penalty}"
            )
            raise ArgumentValueError(msg)
        if early_stopping is not True and early_stopping is not False and early_stopping != "never":
            msg = f'early_stopping: expected False, True or "never", got {early_stopping!r}'
            raise ArgumentValueError(msg)
        return cls(num_beams, penalty, early_stopping)


@dataclass(frozen=True)
class SamplingOptions:
    """What sampling hangs on."""

    temperature: float
    top_k: int | None
    top_p: float

    @classmethod
    def of(cls, temperature: object, top_k: object, top_p: object) -> SamplingOptions:
        """Check `temperature`, `top_k` and `top_p`."""
        heat = real("temperature", temperature)
        if heat <= 0.0:
            msg = f"temperature: expected a number above 0, got {heat}; do_sample=False takes the likeliest"
            raise ArgumentValueError(msg)
        kept = None if top_k is None else integer("top_k", top_k, at_least=1)
        mass = 1.0 if top_p is None else real("top_p", top_p)
        if not 0.0 < mass <= 1.0:
            msg = f"top_p: expected a probability above 0 and at most 1, got {mass}"
            raise ArgumentValueError(msg)
        return cls(heat, kept, mass)


class Prefix:
    """Tokens that each sequence must begin with.

    Parameters
    ----------
    tokens : ndarray of int64
        (N, P), filled up with 0.
    lengths : ndarray of intp
        (N,), at most P each.
    """

    def __init__(self, tokens: NDArray[np.int64], lengths: NDArray[np.intp]) -> None:
        self.tokens, self.lengths = tokens, lengths
        self.longest = int(lengths.max(initial=0))

    @classmethod
    def of(cls, given: Any, batch: int, *, end: int, longest: int) -> Prefix:  # noqa: ANN401 - checked here
        """Check `prefix`: None, one array for all sequences, or a list of one for each."""
        if given is None:
            return cls(np.zeros((batch, 0), np.int64), np.zeros(batch, np.intp))
        several = np.ndim(given) == 2 if isinstance(given, np.ndarray) else _is_list(given)
        if several:
            if len(given) != batch:
                msg = f"prefix: expected one array for each of {batch} sequences, got {len(given)}"
                raise ShapeError(msg)
            rows = [_ids(row, f"prefix[{i}]", end, longest) for i, row in enumerate(given)]
        else:
            rows = [_ids(given, "prefix", end, longest)] * batch
        lengths = np.array([len(row) for row in rows], np.intp)
        tokens = np.zeros((batch, lengths.max(initial=0)), np.int64)
        for row, ids in zip(tokens, rows, strict=True):
            row[: len(ids)] = ids
        return cls(tokens, lengths)

    def repeated(self, times: int) -> Prefix:
        """Return each row `times` times."""
        return Prefix(np.repeat(self.tokens, times, axis=0), np.repeat(self.lengths, times))


def _is_list(given: object) -> bool:
    """Tell whether a prefix is a list of arrays, and not one array written as a list."""
    return isinstance(given, (list, tuple)) and any(np.ndim(item) > 0 for item in given)


def _ids(given: Any, name: str, end: int, longest: int) -> NDArray[np.int64]:  # noqa: ANN401 - checked here
    ids = np.asarray(given)
    if ids.ndim != 1:
        msg = f"{name}: expected 1-D token ids, or a list of such for all sequences, got shape {ids.shape}"
        raise ShapeError(msg)
    if ids.size and ids.dtype.kind not in "iu":
        msg = f"{name}: expected integers, got dtype {ids.dtype}"
        raise ArgumentTypeError(msg)
    if len(ids) > longest:
        msg = f"{name}: expected at most max_length = {longest} tokens, got {len(ids)}"
        raise ShapeError(msg)
    if ids.size and ids.min() < 0:
        msg = f"{name}: expected ids from 0 to V - 1, got {ids.min()}"
        raise ArgumentValueError(msg)
    if (ids == end).any():
        msg = f"{name}: expected tokens before the end, got the end, {end}, at place {(ids == end).argmax()}"
        raise ArgumentValueError(msg)
    return ids.astype(np.int64)
