"""Arithmetic on logits (N, V), row by row: the log-softmax and the largest of each row.

The log-probability of token c is ``x_c - log(sum_j exp(x_j))``. Only a few tokens of a row are ever looked
at, so the second term, the normaliser, is computed alone, and the array of log-probabilities never exists.
It is

    m + log(sum_j exp(x_j - m)),   m = max_j x_j,

in float64, whatever the model computes in: no exponential overflows, and the sum is at least 1.

Rows are taken a few at a time, so that what is made of them in float64 stays in the cache. A row's numbers
depend on that row alone, never on how many stand beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[Any]
"""(N, V), float32 or float64, C-contiguous, every row with a finite maximum."""

CACHED = 1 << 16
"""Numbers of float64 that are made at once: 512 KiB, which stay near the core between two sweeps."""

GROUPS = 16
"""Into how many parts a row is folded to find a bound of its largest logits."""


def few_rows(logits: Logits) -> Iterator[slice]:
    """Yield the rows in pieces of about `CACHED` numbers."""
    rows, vocabulary = logits.shape
    step = max(1, CACHED // vocabulary)
    return (slice(first, first + step) for first in range(0, rows, step))


def log_normalizer(logits: Logits, row_max: NDArray[Any]) -> NDArray[np.float64]:
    """Return log(sum(exp(x))) of each row (N,), whose maximum is known."""
    highest = row_max.astype(np.float64)
    total = np.empty(len(logits))
    for some in few_rows(logits):
        below = logits[some] - highest[some, None]
        np.exp(below, out=below).sum(axis=1, out=total[some])
    return highest + np.log(total)


def largest(logits: Logits, count: int) -> tuple[NDArray[np.intp], NDArray[Any]]:
    """Return ids and logits (N, count) of the largest of each row, in descending order.

    Where logits are equal the smaller id comes first, and is the one that is kept. `count` is at most V.
    """
    rows, vocabulary = logits.shape
    if count == 1:
        ids = logits.argmax(axis=1)[:, None]
        return ids, logits[np.arange(rows)[:, None], ids]
    pick = _all_in_order if 4 * count >= vocabulary else _few_in_order
    parts = [pick(logits[some], count) for some in few_rows(logits)]
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([ids for ids, _ in parts]), np.concatenate([values for _, values in parts])


def _all_in_order(logits: Logits, count: int) -> tuple[NDArray[np.intp], NDArray[Any]]:
    """Sort whole rows, then the ids of equal logits: NumPy vectorises sorts that are not stable."""
    ids = np.argsort(-logits, axis=1)
    values = logits[np.arange(len(logits))[:, None], ids]
    as_next = values[:, :-1] == values[:, 1:]
    if as_next.any():
        equal = np.zeros(values.shape, np.bool_)
        equal[:, :-1] |= as_next
        equal[:, 1:] |= as_next
        row, _ = np.nonzero(equal)
        among = ids[equal]
        ids[equal] = among[np.lexsort((among, -values[equal], row))]
    return ids[:, :count], values[:, :count]


def _few_in_order(logits: Logits, count: int) -> tuple[NDArray[np.intp], NDArray[Any]]:
    """Sort only what reaches a bound that at least `count` logits of the row reach.

    Of a row folded into columns, the count-th largest of the columns' maxima is such a bound, and few others
    reach it.
    """
    rows, vocabulary = logits.shape
    width = vocabulary // GROUPS
    columns = logits
    if width >= 4 * count:
        columns = logits[:, : GROUPS * width].reshape(rows, GROUPS, width).max(axis=1)
    place = columns.shape[1] - count
    bound = np.partition(columns, place, axis=1)[:, place, None]
    places = np.flatnonzero(logits >= bound)
    row, ids = np.divmod(places, vocabulary)
    values = logits.reshape(-1)[places]
    # Stable, and ids ascend: among equals the smaller id stays in front.
    order = np.lexsort((-values, row))
    first = np.searchsorted(row, np.arange(rows))
    chosen = order[first[:, None] + np.arange(count)]
    return ids[chosen], values[chosen]


def without(token: int, logits: Logits, row_max: NDArray[Any]) -> tuple[Logits, NDArray[Any]]:
    """Return logits and their maxima with one token blocked, but for rows that allow nothing else."""
    blocked = logits.copy()
    blocked[:, token] = -np.inf
    new_max = blocked.max(axis=1)
    alone = np.isneginf(new_max)
    blocked[alone, token] = logits[alone, token]
    return blocked, np.where(alone, row_max, new_max)
