"""Arithmetic on logits (N, V), row by row: the log-softmax and the largest of each row.

The log-probability of token c is ``x_c - log(sum_j exp(x_j))``. Only a few tokens of a row are ever
looked at, so the second term, the normaliser, is computed alone, and the array of log-probabilities never
exists. It is

    m + log(sum_j exp(x_j - m)),   m = max_j x_j,

in float64, whatever the model computes in: no exponential overflows, and the sum is at least 1.

A row's numbers depend on that row alone, never on how many rows stand beside it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[Any]
"""(N, V), float32 or float64, every row with a finite maximum."""


def log_normalizer(logits: Logits, row_max: NDArray[Any]) -> NDArray[np.float64]:
    """Return log(sum(exp(x))) of each row (N,), whose maximum is known."""
    highest = row_max.astype(np.float64)
    below = logits - highest[:, None]  # (N, V), float64
    total: NDArray[np.float64] = np.exp(below, out=below).sum(axis=1)
    return highest + np.log(total)


def largest(logits: Logits, count: int) -> tuple[NDArray[np.intp], NDArray[Any]]:
    """Return ids and logits (N, count) of the largest of each row, in descending order.

    Where logits are equal the smaller id comes first, and is the one that is kept. `count` is at most V.
    """
    rows, vocabulary = logits.shape
    if count == 1:
        ids = logits.argmax(axis=1)[:, None]
        return ids, np.take_along_axis(logits, ids, axis=1)
    if count >= vocabulary:
        ids = np.argsort(-logits, axis=1, kind="stable")
        return ids, np.take_along_axis(logits, ids, axis=1)
    # What reaches the count-th largest value: `count` ids of a row, and more where several equal it.
    threshold = np.partition(logits, vocabulary - count, axis=1)[:, vocabulary - count, None]
    places = np.flatnonzero(logits >= threshold)
    row, found = np.divmod(places, vocabulary)
    values = logits.reshape(-1)[places]
    # Stable, and ids ascend: among equals the smaller id stays in front.
    order = np.lexsort((-values, row))
    first = np.searchsorted(row, np.arange(rows))
    chosen = order[first[:, None] + np.arange(count)]
    return found[chosen], values[chosen]


def without(token: int, logits: Logits, row_max: NDArray[Any]) -> tuple[Logits, NDArray[Any]]:
    """Return logits and their maxima with one token blocked, but for rows that allow nothing else."""
    blocked = logits.copy()
    blocked[:, token] = -np.inf
    new_max = blocked.max(axis=1)
    alone = np.isneginf(new_max)
    blocked[alone, token] = logits[alone, token]
    return blocked, np.where(alone, row_max, new_max)
