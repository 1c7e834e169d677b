"""How alike embeddings are: sentence-transformers' four functions, on arrays.

::

    cosine     a.b / (max(|a|, 1e-12) max(|b|, 1e-12))
    dot        a.b
    euclidean  -|a - b|
    manhattan  -sum |a_i - b_i|
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headwise._core import _unit_rows, linear
from headwise._errors import ShapeError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")

# Differences that are held at once, numbers: they stay in a core's cache.
_BLOCK = 1 << 18


def similarity(name: str, embeddings1: ArrayLike, embeddings2: ArrayLike) -> NDArray[Any]:
    """Compare each of (B1, D) or (D,) with each of (B2, D) or (D,): (B1, B2)."""
    a, b = _rows("embeddings1", embeddings1), _rows("embeddings2", embeddings2)
    a, b = a[None] if a.ndim == 1 else a, b[None] if b.ndim == 1 else b
    if a.shape[1] != b.shape[1]:
        msg = f"embeddings2: expected (B, {a.shape[1]}) as embeddings1 has, got {b.shape}"
        raise ShapeError(msg)
    if name == "cosine":
        return linear(_unit_rows(a), _unit_rows(b))
    if name == "dot":
        return linear(a, b)
    out = np.empty((len(a), len(b)), dtype=np.result_type(a, b))
    rows = max(1, _BLOCK // max(1, b.size))
    for start in range(0, len(a), rows):
        out[start : start + rows] = _minus_distance(name, a[start : start + rows, None] - b)
    return out


def similarity_pairwise(name: str, embeddings1: ArrayLike, embeddings2: ArrayLike) -> NDArray[Any]:
    """Compare rows of (B, D) with rows of (B, D), each with its own: (B,); (D,) with (D,) gives a number."""
    a, b = _rows("embeddings1", embeddings1), _rows("embeddings2", embeddings2)
    if a.shape != b.shape:
        msg = f"embeddings2: expected the shape of embeddings1, {a.shape}, got {b.shape}"
        raise ShapeError(msg)
    if name in ("euclidean", "manhattan"):
        return _minus_distance(name, a - b)
    if name == "cosine":
        width = a.shape[-1]
        a, b = (_unit_rows(x.reshape(-1, width)).reshape(a.shape) for x in (a, b))
    found: NDArray[Any] = (a * b).sum(axis=-1)
    return found


def _minus_distance(name: str, difference: NDArray[Any]) -> NDArray[Any]:
    """Give minus the length of differences (..., D); they are overwritten."""
    manhattan = name == "manhattan"
    parts = np.abs(difference, out=difference) if manhattan else np.square(difference, out=difference)
    distance: NDArray[Any] = parts.sum(axis=-1)
    return -distance if manhattan else -np.sqrt(distance)


def _rows(name: str, embeddings: ArrayLike) -> NDArray[Any]:
    """Give embeddings as float32 or float64; those in fewer bits are widened, which is exact."""
    rows = np.asarray(embeddings)
    if rows.dtype.kind not in "fiub" or rows.ndim not in (1, 2):
        msg = f"{name}: expected numbers of shape (B, D) or (D,), got {rows.dtype} of shape {rows.shape}"
        raise ShapeError(msg) if rows.dtype.kind in "fiub" else TypeError(msg)
    return rows if rows.dtype in (np.float32, np.float64) else rows.astype(np.float32)
