"""Draw the next token: temperature, the k likeliest, the nucleus of mass p, and each sequence's own numbers.

With x the logits of a row and h the temperature, token c is drawn with the probability

    p_c = exp(x_c / h) / sum_j exp(x_j / h)

among those that are left: first the k largest (`top_k`), then of these the fewest, from the likeliest on,
whose probabilities sum to `top_p` or more. The uniform number u falls into the cumulated sum of what is
left. So a step needs one number for each sequence, and never a loop over the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise.generation._logits import Logits, largest
from headwise.generation._options import SamplingOptions

BLOCK = 64
"""Numbers that are drawn for a sequence at once: making them one by one costs more than the step."""

FIRST = 64
"""How many of the likeliest tokens the nucleus is looked for in at first; then 16 times as many."""


class Streams:
    """Uniform numbers in [0, 1): sequence (source i, sample r) has a Philox stream of its own.

    The key is (key of the call, i) and the counter begins at r * 2**192: a sequence's numbers hang
    neither on its neighbours nor on how many samples of a source are asked for.
    """

    def __init__(self, key: int, sources: int, samples: int) -> None:
        self._generators = [
            np.random.Generator(
                np.random.Philox(counter=np.array([0, 0, 0, r], np.uint64), key=np.array([key, i], np.uint64))
            )
            for i in range(sources)
            for r in range(samples)
        ]
        self._block = np.zeros((sources * samples, BLOCK))

    def draw(self, step: int, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return the number of this step for each of `rows`; steps are asked for in ascending order."""
        if step % BLOCK == 0:
            for row in rows.tolist():
                self._generators[row].random(out=self._block[row])
        numbers: NDArray[np.float64] = self._block[rows, step % BLOCK]
        return numbers


def sample(
    logits: Logits,
    row_max: NDArray[Any],
    options: SamplingOptions,
    uniform: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Return one token (N,) of each row of the logits (N, V), drawn with the numbers `uniform` (N,)."""
    vocabulary = logits.shape[1]
    highest = row_max.astype(np.float64)[:, None]

    def weigh(values: NDArray[Any]) -> NDArray[np.float64]:
        """Return probabilities times a factor of the row: the largest is 1, whatever the temperature."""
        below: NDArray[np.float64] = values - highest
        with np.errstate(over="ignore"):  # to -inf, near a temperature of 0
            below /= options.temperature
        return np.exp(below, out=below)

    if options.top_k is not None and options.top_k < vocabulary:
        ids, values = largest(logits, options.top_k)
        cumulated = weigh(values).cumsum(axis=1)
        cumulated = _nucleus(cumulated, cumulated[:, -1], options.top_p)
    elif options.top_p < 1.0:
        ids, cumulated = _likeliest(logits, weigh, options.top_p)
    else:
        return _place(weigh(logits).cumsum(axis=1), uniform).astype(np.int64)
    places = _place(cumulated, uniform)
    return np.take_along_axis(ids, places[:, None], axis=1)[:, 0].astype(np.int64)


def _likeliest(
    logits: Logits, weigh: Callable[[NDArray[Any]], NDArray[np.float64]], mass: float
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return the nucleus of each row in ids (N, k), and its cumulated weights.

    Sorting a vocabulary is the dearest part of a step, and a nucleus is mostly small: it is looked for
    among the likeliest few, then among more. The sums, and so the result, are the same for every number
    of them.
    """
    vocabulary = logits.shape[1]
    total = weigh(logits).sum(axis=1)
    count = min(FIRST, vocabulary)
    while True:
        ids, values = largest(logits, count)
        cumulated = weigh(values).cumsum(axis=1)
        if count == vocabulary or (cumulated[:, -1] >= mass * total).all():
            return ids, _nucleus(cumulated, total, mass)
        count = min(16 * count, vocabulary)


def _nucleus(cumulated: NDArray[np.float64], total: NDArray[np.float64], mass: float) -> NDArray[np.float64]:
    """Let the sums stay as they are from the place on where `mass` of the total is reached."""
    if mass == 1.0:
        return cumulated
    reached = (cumulated >= mass * total[:, None]).argmax(axis=1)
    # No place reaches it where the rounding of two sums says so: then all are in.
    short = cumulated[:, -1] < mass * total
    reached[short] = cumulated.shape[1] - 1
    return np.minimum(cumulated, np.take_along_axis(cumulated, reached[:, None], axis=1))


def _place(cumulated: NDArray[np.float64], uniform: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the first place of each row whose sum exceeds `uniform` times the last one.

    Such a place exists, since uniform < 1, and its weight is above 0, since the sum rises there.
    """
    places: NDArray[np.intp] = (cumulated > (uniform * cumulated[:, -1])[:, None]).argmax(axis=1)
    return places
