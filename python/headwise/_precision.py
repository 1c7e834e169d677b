"""Embeddings in fewer bits: what sentence-transformers' `quantize_embeddings` computes.

::

    binary   bits of x > 0, eight to a byte, most significant first, minus 128    (B, ceil(D / 8)) int8
    ubinary  the same without the 128                                             (B, ceil(D / 8)) uint8
    uint8    floor((x - low) / ((high - low) / 255)), kept within 0..255          (B, D) uint8
    int8     the same minus 128                                                   (B, D) int8

`low` and `high` come from the caller, one for each column. Taking them from the batch itself, as
sentence-transformers does by default, makes an embedding depend on its neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._errors import ShapeError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")


def check_precision(precision: str | None, ranges: ArrayLike | None) -> str:
    """Give the name of a known precision; int8 and uint8 need ranges, the others know nothing of them."""
    if precision is None:
        precision = "float32"
    if precision not in PRECISIONS:
        msg = f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}"
        raise ValueError(msg)
    if precision in ("int8", "uint8") and ranges is None:
        msg = (
            f"precision: {precision!r} needs ranges=, an array (2, D) of the least and the greatest value of "
            "each column, for instance np.stack([x.min(axis=0), x.max(axis=0)]) of embeddings x of many texts"
        )
        raise ValueError(msg)
    if precision not in ("int8", "uint8") and ranges is not None:
        msg = f"ranges: belongs to precision 'int8' and 'uint8', got it with {precision!r}"
        raise ValueError(msg)
    return precision


def quantize(embeddings: NDArray[Any], precision: str, ranges: ArrayLike | None) -> NDArray[Any]:
    """Give embeddings (..., D) in another precision."""
    if precision == "float32":
        return embeddings
    if precision in ("binary", "ubinary"):
        bits: NDArray[Any] = np.packbits(embeddings > 0, axis=-1)
        return (bits - 128).astype(np.int8) if precision == "binary" else bits
    low, step = _steps(ranges, embeddings.shape[-1])
    levels: NDArray[Any] = np.clip(np.floor((embeddings - low) / step), 0, 255)
    return (levels - 128).astype(np.int8) if precision == "int8" else levels.astype(np.uint8)


def _steps(ranges: ArrayLike | None, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Give the least value and the width of a level for each column."""
    found = np.asarray(ranges, dtype=np.float32)
    if found.shape != (2, width):
        msg = f"ranges: expected shape (2, {width}), the least and greatest values, got {found.shape}"
        raise ShapeError(msg)
    low, high = found
    if not (np.isfinite(found).all() and (low <= high).all()):
        msg = "ranges: expected finite numbers, ranges[0] <= ranges[1]"
        raise ValueError(msg)
    step = (high - low) / np.float32(255)
    return low, np.where(step == 0, np.float32(1), step)
