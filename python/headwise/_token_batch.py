"""Ids of a batch as its tokens alone, back to back, and how rows of tokens take the form of the ids again.

A padded array, a ragged list and a single sequence become the same T ids: whatever is computed from them
cannot depend on the form they came in, and no time goes into padding. Ids at padded places are not looked at.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise._errors import ArgumentTypeError, ArgumentValueError, DTypeError, ShapeError
from headwise._steps import Batch

Array = NDArray[Any]


class TokenBatch:
    """The tokens of ids (B, L), (L,), or a list of (L_i,).

    Parameters
    ----------
    name : str
        What errors call the ids; masks are called by its first word.
    ids : array_like or list of ndarray
        Integers from 0 to `size` - 1.
    size : int
        How many ids there are.
    key_mask : array_like, optional
        (B, L), bool or 0 and 1. True = a token.
    lengths : array_like, optional
        (B,): tokens at the start of each sequence.
    """

    def __init__(
        self,
        name: str,
        ids: Batch,
        size: int,
        key_mask: Any = None,  # noqa: ANN401 - what a user passes
        lengths: Any = None,  # noqa: ANN401
    ) -> None:
        self.name = name
        self.is_list = type(ids) is list and all(getattr(item, "ndim", None) == 1 for item in ids)
        side = name.partition("_")[0]
        if self.is_list:
            wide, self.mask = _of_list(name, ids)
            for what, mask in ((f"{side}_key_mask", key_mask), (f"{side}_lengths", lengths)):
                if mask is not None:
                    msg = f"{what}: a list of arrays has no padding to mask; leave it out, or pass (B, L)"
                    raise ArgumentValueError(msg)
        else:
            wide = _integers(name, ids)
            if wide.ndim not in (1, 2):
                msg = f"{name}: expected (B, L), (L,) or a list of (L,), got shape {wide.shape}"
                raise ShapeError(msg)
            self.mask = _mask(side, wide.shape, key_mask, lengths)
        self.is_single = wide.ndim == 1
        if self.is_single:
            wide, self.mask = wide[None], self.mask[None]
        self._check_range(wide, size)
        self.ids = wide[self.mask]
        self.lengths = self.mask.sum(axis=1)

    def _check_range(self, wide: Array, size: int) -> None:
        """Fail where a token has no row in a table of `size`."""
        bad = self.mask & ((wide < 0) | (wide >= size))
        if bad.any():
            b, i = (int(place) for place in np.argwhere(bad)[0])
            where = f"[{i}]" if self.is_single else f"[{b}][{i}]" if self.is_list else f"[{b}, {i}]"
            msg = f"{self.name}{where}: expected an id from 0 to {size - 1}, got {wide[b, i]}"
            raise ArgumentValueError(msg)

    def __len__(self) -> int:
        return len(self.mask)

    def check_form(self, other: TokenBatch) -> None:
        """Fail unless the other batch has the same form and as many sequences."""
        if self.is_list != other.is_list:
            msg = (
                f"{self.name}: a list of arrays goes only with a list; got {self._form()} "
                f"with {other.name} as {other._form()}"
            )
            raise ArgumentTypeError(msg)
        if self.is_single != other.is_single or len(self) != len(other):
            expected = "(L,)" if other.is_single else f"B = {len(other)} sequences"
            msg = f"{self.name}: expected {expected}, as {other.name} has, got {self._form()}"
            raise ShapeError(msg)

    def ragged(self, rows: Array) -> list[Array]:
        """Return rows (T, D) as a list of (L_i, D), without copying them."""
        ends = [0, *itertools.accumulate(int(n) for n in self.lengths)]
        return [rows[start:end] for start, end in itertools.pairwise(ends)]

    def padded(self, rows: Array) -> Array:
        """Return rows (T, D) as (B, L, D), 0 where there is no token."""
        if self.mask.all():
            return rows.reshape(*self.mask.shape, rows.shape[-1])
        wide = np.zeros((*self.mask.shape, rows.shape[-1]), dtype=rows.dtype)
        wide[self.mask] = rows
        return wide

    def formed(self, rows: Array) -> Batch:
        """Return rows (T, V) in the form of the ids."""
        if self.is_list:
            return [part.copy() for part in self.ragged(rows)]
        wide = self.padded(rows)
        return wide[0] if self.is_single else wide

    def rows_of(self, name: str, batch: Batch, width: int, dtype: str) -> Array:
        """Return the rows (T, V) of what has the form of `formed`; what stands in padding is left out."""
        if self.is_list != (type(batch) is list):
            expected = "a list" if self.is_list else "an array"
            msg = f"{name}: expected {expected}, the form of the result, got {type(batch).__name__}"
            raise ArgumentTypeError(msg)
        if self.is_list:
            shapes = [(int(n), width) for n in self.lengths]
            items = [_array(name, item) for item in batch]
            if [item.shape for item in items] != shapes:
                came = [item.shape for item in items]
                msg = f"{name}: expected shapes {shapes}, those of the result, got {came}"
                raise ShapeError(msg)
            return joined(items, width, dtype)
        wide = _array(name, batch)
        shape = (*(self.mask.shape[1:] if self.is_single else self.mask.shape), width)
        if wide.shape != shape:
            msg = f"{name}: expected shape {shape}, that of the result, got {wide.shape}"
            raise ShapeError(msg)
        return wide.reshape(*self.mask.shape, width)[self.mask].astype(dtype, copy=False)

    def _form(self) -> str:
        if self.is_list:
            return f"a list of {len(self)}"
        return f"shape {self.mask.shape[1:] if self.is_single else self.mask.shape}"


def joined(items: Sequence[Array], width: int, dtype: str) -> Array:
    """Return a list of (L_i, D) as rows (T, D)."""
    return np.concatenate([np.zeros((0, width), dtype=dtype), *items]).astype(dtype, copy=False)


def _of_list(name: str, ids: list[Array]) -> tuple[Array, NDArray[np.bool_]]:
    """Return a list of (L_i,) as (B, L), and where its tokens stand."""
    items = [_integers(f"{name}[{i}]", item) for i, item in enumerate(ids)]
    mask = _lengths_mask([len(item) for item in items], None)
    wide = np.zeros(mask.shape, dtype=np.int64)
    wide[mask] = np.concatenate([*items, np.zeros(0, dtype=np.int64)])
    return wide, mask


def _array(name: str, given: Any) -> Array:  # noqa: ANN401 - what a user passes
    """Return what NumPy makes of an argument; DLPack serves what knows nothing of NumPy."""
    if hasattr(given, "__dlpack__") and not hasattr(given, "__array__"):
        return np.from_dlpack(given)
    try:
        return np.asarray(given)
    except ValueError as error:
        msg = f"{name}: expected an array, or what np.asarray makes one of: {error}"
        raise ShapeError(msg) from None


def _integers(name: str, ids: object) -> Array:
    array = _array(name, ids)
    if array.size and array.dtype.kind not in "iu":
        msg = f"{name}: expected integers, got dtype {array.dtype}"
        raise DTypeError(msg)
    return array.astype(np.int64, copy=False)


def _mask(side: str, shape: tuple[int, ...], key_mask: object, lengths: object) -> NDArray[np.bool_]:
    """Return the tokens of ids of `shape`, where both masks name them."""
    mask = np.ones(shape, dtype=bool)
    if key_mask is not None:
        given = _array(f"{side}_key_mask", key_mask)
        if given.dtype.kind in "iu" and ((given == 0) | (given == 1)).all():
            given = given.astype(bool)
        if given.dtype != bool:
            msg = f"{side}_key_mask: expected booleans or 0 and 1, True for a token, got dtype {given.dtype}"
            raise DTypeError(msg)
        mask = mask & _broadcast(f"{side}_key_mask", given, shape)
    if lengths is not None:
        given = _integers(f"{side}_lengths", lengths)
        bad = given[(given < 0) | (given > shape[-1])]
        if bad.size:
            msg = f"{side}_lengths: expected numbers from 0 to {shape[-1]}, got {bad.flat[0]}"
            raise ArgumentValueError(msg)
        mask = mask & _lengths_mask(_broadcast(f"{side}_lengths", given, shape[:-1]), shape[-1])
    return mask


def _lengths_mask(lengths: Any, width: int | None) -> NDArray[np.bool_]:  # noqa: ANN401 - array_like
    """Return (B, L) of lengths (B,), or (L,) of a number."""
    lengths = np.asarray(lengths)
    width = max(lengths, default=0) if width is None else width
    mask: NDArray[np.bool_] = np.arange(width) < lengths[..., None]
    return mask


def _broadcast(name: str, array: Array, shape: tuple[int, ...]) -> Array:
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        msg = f"{name}: expected a shape that broadcasts to {shape}, got {array.shape}"
        raise ShapeError(msg) from None
