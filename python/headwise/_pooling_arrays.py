"""What a call of `headwise.attention` is given: arrays in one dtype and one shape, and the masks as booleans.

Query, key and value become (N, L, E), (N, S, E) and (N, S, Ev), N = batch elements times query heads: heads
of keys are repeated for their queries and batch axes broadcast. Rows that take part in no pair are set to 0,
so that nothing they hold can reach a result.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from headwise import _core
from headwise._errors import ArgumentTypeError, ArgumentValueError, DTypeError, ShapeError

Array: TypeAlias = NDArray[Any]
Shape: TypeAlias = tuple[int, ...]
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Masks:
    """The arguments that say which keys may be attended, as they were given."""

    attn_mask: Any = None
    key_mask: Any = None
    key_lengths: Any = None
    is_causal: bool = False
    causal_offset: Any = 0
    window: Any = None


@dataclass(frozen=True)
class Operands:
    """Query, key, value and masks of a call, ready to be computed with."""

    query: Array  # (N, L, Eq)
    key: Array  # (N, S, Ek)
    value: Array  # (N, S, Ev)
    keep: NDArray[np.bool_]  # (N, L, S)
    keys: NDArray[np.bool_]  # (N, S), what key_mask and key_lengths leave of each sequence
    bias: Array | None  # (N, L, S)
    lead: Shape  # (*B, H)
    given: tuple[Shape, Shape, Shape]
    mask_shape: Shape | None  # that of a floating attn_mask
    dtype: np.dtype[Any]  # of the results

    @property
    def places(self) -> NDArray[np.bool_]:
        """Queries (N, L) with an allowed key."""
        return some(self.keep, 2)

    def formed(self, x: Array) -> Array:
        """Return (N, ...) as (*B, H, ...) in the dtype of the results."""
        return rounded(x.reshape(self.lead + x.shape[1:]), self.dtype)

    def gradient(self, x: Array, shape: Shape) -> Array:
        """Return the gradient of an argument of `shape`: sums where it was repeated, ascending."""
        x = x.reshape(self.lead + x.shape[1:])
        if len(shape) > 2 and shape[-3] != x.shape[-3]:
            groups = x.reshape((*x.shape[:-3], shape[-3], x.shape[-3] // max(shape[-3], 1), *x.shape[-2:]))
            x = _added(groups, -3)
        return rounded(reduced(x, shape), self.dtype)


def read(name: str, given: object) -> Array:
    """Return an argument as an array of a dtype that is computed with."""
    dlpack = not hasattr(given, "__array__") and hasattr(given, "__dlpack__")
    array: Array = np.from_dlpack(given) if dlpack else np.asarray(given)  # type: ignore[arg-type]
    if array.dtype.kind not in "biu" and array.dtype.char not in "efd" and array.dtype.name != "bfloat16":
        expected = "booleans, integers, float16, bfloat16, float32 or float64"
        msg = f"{name}: expected {expected}, got dtype {array.dtype}"
        raise DTypeError(msg)
    return array


def some(keep: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    """Return which rows take part in a pair: the queries for axis 2 of (N, L, S), the keys for axis 1."""
    return np.asarray(keep.any(axis=axis))


def common(*arrays: Array) -> np.dtype[Any]:
    """Return the dtype of a result, in which bool and integers count as float64."""
    kinds = [np.dtype(np.float64) if a.dtype.kind in "biu" else a.dtype for a in arrays]
    kinds = [kind if kind.isnative else kind.newbyteorder("=") for kind in kinds]
    if all(kind == kinds[0] for kind in kinds):
        return kinds[0]
    wide = any(kind.char == "d" for kind in kinds)
    return np.dtype(np.float64 if wide else np.float32)


def computed(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype that results of `dtype` are computed in."""
    return np.dtype(np.float64 if dtype.char == "d" else np.float32)


def rounded(x: Array, dtype: np.dtype[Any]) -> Array:
    """Return the numbers in a dtype, rounded once."""
    with np.errstate(all="ignore"):
        return np.ascontiguousarray(x, dtype=dtype).reshape(x.shape)


def operands(
    query: object, key: object, value: object, masks: Masks, widths: tuple[int, int] | None
) -> Operands:
    """Check the arguments of a call; `widths` are those that the score wants of query and key."""
    q, k, v = read("query", query), read("key", key), read("value", value)
    batch, heads = _shapes(q.shape, k.shape, v.shape, widths)
    dtype = common(q, k, v)
    lead = (*batch, *heads)
    length, count = q.shape[-2], k.shape[-2]
    keep, keys, bias, mask_shape = _masks(masks, batch, heads, length, count, computed(dtype))
    n = int(np.prod(lead, dtype=np.int64))

    def spread(x: Array, used: NDArray[np.bool_]) -> Array:
        if heads and x.shape[-3] != heads[0]:
            x = np.repeat(x, heads[0] // x.shape[-3], axis=-3)
        whole = np.broadcast_to(x, lead + x.shape[-2:]).reshape(n, *x.shape[-2:])
        out = np.zeros(whole.shape, computed(dtype))
        out[used] = whole[used]
        return out

    seen = some(keep, 1)
    return Operands(
        spread(q, some(keep, 2)),
        spread(k, seen),
        spread(v, seen),
        keep,
        keys,
        bias,
        lead,
        (q.shape, k.shape, v.shape),
        mask_shape,
        dtype,
    )


def _shapes(q: Shape, k: Shape, v: Shape, widths: tuple[int, int] | None) -> tuple[Shape, Shape]:
    """Return B and, unless the arguments are one head without batch, H."""
    letters = {"query": "(B, H, L, E)", "key": "(B, Hk, S, E)", "value": "(B, Hk, S, Ev)"}
    for name, shape in zip(letters, (q, k, v), strict=True):
        if len(shape) < 2 or (len(shape) == 2) != (len(q) == 2):
            msg = (
                f"{name}: expected {letters[name]}, or two axes in query, key and value alike for one head, "
                f"got {shape} beside query {q}"
            )
            raise ShapeError(msg)
    if widths is None:
        if q[-1] == 0:
            msg = f"query: expected (B, H, L, E) with E > 0, got {q}"
            raise ShapeError(msg)
        widths, of = (q[-1], q[-1]), "that of query"
    else:
        of = "as the score has it"
    for name, shape, width in (("query", q, widths[0]), ("key", k, widths[1])):
        if shape[-1] != width:
            msg = f"{name}: expected {letters[name]} with E = {width}, {of}, got {shape}"
            raise ShapeError(msg)
    if v[-2] != k[-2]:
        msg = f"value: expected (B, Hk, S, Ev) with S = {k[-2]}, that of key {k}, got {v}"
        raise ShapeError(msg)
    if len(q) == 2:
        return (), ()
    hint = "; three axes are (H, L, E), not (N, L, E)" if 3 in (len(q), len(k)) else ""
    if v[-3] != k[-3]:
        msg = f"value: expected (B, Hk, S, Ev) with Hk = {k[-3]} heads, those of key {k}, got {v}{hint}"
        raise ShapeError(msg)
    if q[-3] != k[-3] and (k[-3] == 0 or q[-3] % k[-3]):
        msg = (
            f"key: expected (B, Hk, S, E) with a number of heads Hk that divides H = {q[-3]} of query {q}, "
            f"got {k}{hint}"
        )
        raise ShapeError(msg)
    batch = q[:-3]
    for name, shape in (("key", k), ("value", v)):
        try:
            batch = np.broadcast_shapes(batch, shape[:-3])
        except ValueError:
            msg = (
                f"{name}: expected batch axes B that broadcast with {batch}, those of query {q}, got {shape}"
            )
            raise ShapeError(msg) from None
    return batch, (q[-3],)


def _masks(
    masks: Masks, batch: Shape, heads: Shape, length: int, count: int, dtype: np.dtype[Any]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], Array | None, Shape | None]:
    """Return the pairs that are allowed, the keys of each sequence, and what is added to scores."""
    full = (*batch, *heads, length, count)
    for name, given, letters, target in (
        ("attn_mask", masks.attn_mask, "(B, H, L, S)", full),
        ("key_mask", masks.key_mask, "(B, S)", (*batch, count)),
        ("key_lengths", masks.key_lengths, "(B,)", batch),
        ("causal_offset", masks.causal_offset, "(B,)", batch),
    ):
        if given is not None and not isinstance(given, str):
            _fits(name, letters, np.shape(given), target)
    of_keys: dict[str, Any] = {"key_mask": masks.key_mask, "key_lengths": masks.key_lengths}
    allowed = _core.allowed_mask(
        length,
        count,
        attn_mask=masks.attn_mask,
        is_causal=masks.is_causal,
        causal_offset=masks.causal_offset,
        window=masks.window,
        **of_keys,
    )
    keys = _core.allowed_mask(1, count, **of_keys)
    if not heads:
        allowed, keys = (x.reshape(x.shape[-2:]) for x in (allowed, keys))
    n = int(np.prod((*batch, *heads), dtype=np.int64))
    keep = np.broadcast_to(allowed, full).reshape(n, length, count)
    keys = np.broadcast_to(keys, (*batch, *heads, 1, count)).reshape(n, count)
    if masks.attn_mask is None or read("attn_mask", masks.attn_mask).dtype.kind == "b":
        return keep, keys, None, None
    mask = read("attn_mask", masks.attn_mask)
    bias = np.broadcast_to(rounded(mask, dtype), full).reshape(n, length, count)
    return keep, keys, bias, mask.shape


def _fits(name: str, letters: str, shape: Shape, target: Shape) -> None:
    pairs = zip(reversed(shape), reversed(target), strict=False)
    if len(shape) > len(target) or any(n not in (1, t) for n, t in pairs):
        hint = "; three axes are (H, L, S)" if len(shape) == 3 and len(target) > 2 else ""
        msg = f"{name}: expected a shape that broadcasts to {letters} = {target}, got {shape}{hint}"
        raise ShapeError(msg)


def reduced(x: Array, shape: Shape) -> Array:
    """Return the sums over the axes along which an array of `shape` was repeated."""
    while x.ndim > len(shape):
        x = _added(x, 0)
    for axis, n in enumerate(shape):
        if n == 1 and x.shape[axis] != 1:
            x = np.expand_dims(_added(x, axis), axis)
    return x


def _added(x: Array, axis: int) -> Array:
    """Return the sum along an axis, ascending: two numbers at a time, so that the bits have no choice."""
    parts = iter(np.moveaxis(x, axis, 0))
    total = next(parts, None)
    if total is None:
        return np.zeros(np.delete(np.array(x.shape), axis), x.dtype)
    with np.errstate(all="ignore"):
        for part in parts:
            total = total + part
    return np.array(total)


def positive(name: str, number: object) -> float:
    """Return a number above 0."""
    value = real(name, number)
    if not 0.0 < value < float("inf"):
        msg = f"{name}: expected a positive number, got {number}"
        raise ArgumentValueError(msg)
    return value


def hinted(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function refuse torch's masks of the opposite polarity by saying what to pass instead."""

    @functools.wraps(function)
    def call(*given: P.args, **keywords: P.kwargs) -> R:
        for name in keywords:
            if name.endswith("key_padding_mask"):
                msg = (
                    f"{function.__name__}() got an unexpected keyword argument {name!r}; it is True where "
                    f"torch ignores a key: pass key_mask=~{name}, True where a key may be attended"
                )
                raise ArgumentTypeError(msg)
        return function(*given, **keywords)

    return call


def real(name: str, number: object) -> float:
    """Return a number as a float."""
    try:
        return float(number)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        msg = f"{name}: expected a number, got {type(number).__name__}"
        raise ArgumentTypeError(msg) from None


def count_of(name: str, number: object, least: int) -> int:
    """Return an integer that is not less than `least`."""
    if isinstance(number, (bool, np.bool_)) or not hasattr(number, "__index__"):
        msg = f"{name}: expected an int, got {type(number).__name__}"
        raise ArgumentTypeError(msg)
    value = operator.index(number)
    if value < least:
        msg = f"{name}: expected an int from {least} on, got {value}"
        raise ArgumentValueError(msg)
    return value
