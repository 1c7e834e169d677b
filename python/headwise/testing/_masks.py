"""The one rule for masks as boolean arrays, written for reading."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Window = tuple[int | None, int | None]

F32_MAX = float(np.finfo(np.float32).max)


def split_mask(attn_mask: npt.ArrayLike) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Split a mask into (allowed, bias): booleans allow where True, floats are added and block at -inf.

    A float64 value below float32's range blocks as -inf does.
    """
    mask = np.asarray(attn_mask)
    if mask.dtype == bool:
        return mask, np.zeros(mask.shape)
    if np.issubdtype(mask.dtype, np.integer):
        msg = f"attn_mask: expected bool or float, got {mask.dtype}"
        raise TypeError(msg)
    bias = mask.astype(np.float64)
    allowed = ~(bias < -F32_MAX)  # NaN stays allowed: it propagates
    return allowed, np.where(allowed, bias, 0.0)


def allowed_reference(
    batch: tuple[int, ...],
    length: int,
    keys: int,
    *,
    attn_mask: npt.ArrayLike | None = None,
    key_mask: npt.ArrayLike | None = None,
    key_lengths: npt.ArrayLike | None = None,
    is_causal: bool = False,
    causal_offset: npt.ArrayLike | Literal["bottom_right"] = 0,
    window: Window | None = None,
) -> npt.NDArray[np.bool_]:
    """Return the boolean array (*B, 1 or H, L, S) that all constraints together mean: they are ANDed."""
    rows = np.arange(length)[:, None]
    cols = np.arange(keys)[None, :]
    if isinstance(causal_offset, str):
        if causal_offset != "bottom_right":
            msg = f"causal_offset: expected integers or 'bottom_right', got {causal_offset!r}"
            raise ValueError(msg)
        causal_offset = (np.asarray(key_lengths) if key_lengths is not None else keys) - length
    at = rows + _column(causal_offset, batch)  # the key position that each query stands at
    allowed = np.ones((*batch, 1, length, keys), dtype=bool)
    if is_causal:
        allowed = allowed & (cols <= at)
    if window is not None:
        left, right = window
        if left is not None:
            allowed = allowed & (cols >= at - left)
        if right is not None:
            allowed = allowed & (cols <= at + right)
    if key_lengths is not None:
        allowed = allowed & (cols < _column(key_lengths, batch))
    if key_mask is not None:
        named = np.asarray(key_mask).astype(bool)
        allowed = allowed & np.broadcast_to(named, (*batch, keys))[..., None, None, :]
    if attn_mask is not None:
        allowed = allowed & split_mask(attn_mask)[0]
    return allowed


def _column(values: Any, batch: tuple[int, ...]) -> npt.NDArray[np.int64]:  # noqa: ANN401
    """Return values of shape (B,) as int64 (*B, 1, 1, 1), broadcast over the batch axes."""
    return np.broadcast_to(np.asarray(values, dtype=np.int64), batch)[..., None, None, None]
