"""Draw the next token: temperature, the k likeliest, the nucleus of mass p, and each sequence's own numbers.

With x the logits of a row and h the temperature, token c is drawn with the probability

    p_c = exp(x_c / h) / sum_j exp(x_j / h)

among those that are left: first the k largest (`top_k`), then of these the fewest, from the likeliest on,
whose probabilities sum to `top_p` or more. The uniform number u falls into the cumulated sum of what is
left. So a step needs one number for each sequence, and never a loop over the vocabulary.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from headwise.generation._logits import Logits, few_rows, largest
from headwise.generation._options import SamplingOptions

ScalarT = TypeVar("ScalarT", bound=np.generic)

BLOCK = 64
"""Numbers that are drawn for a sequence at once: making them one by one costs more than the step."""

PART = 64
"""Tokens whose weights are summed as one: sums are vectorised, cumulated sums wait for one another."""

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
    tokens = np.empty(len(logits), np.int64)
    if options.top_k is not None and options.top_k < vocabulary:
        ids, values = largest(logits, options.top_k)
        cumulated = _weights(values, highest, options.temperature).cumsum(axis=1)
        cumulated = _nucleus(cumulated, cumulated[:, -1], options.top_p)
        return _take(ids, _place(cumulated, uniform))
    for some in few_rows(logits):
        if options.top_p < 1.0:
            ids, cumulated = _likeliest(logits[some], highest[some], options)
            tokens[some] = _take(ids, _place(cumulated, uniform[some]))
        else:
            tokens[some] = _any(logits[some], highest[some], options.temperature, uniform[some])
    return tokens


def _weights(
    values: NDArray[Any], highest: NDArray[np.float64], temperature: float, room: int = 0
) -> NDArray[np.float64]:
    """Return exp((x - max) / temperature): probabilities times a factor of the row, and `room` zeros more."""
    rows, count = values.shape
    weights = np.zeros((rows, count + room))
    below = weights[:, :count]
    np.subtract(values, highest, out=below)
    if temperature != 1.0:
        with np.errstate(over="ignore"):  # to -inf, near a temperature of 0
            below /= temperature
    np.exp(below, out=below)
    return weights


def _any(
    logits: Logits, highest: NDArray[np.float64], temperature: float, uniform: NDArray[np.float64]
) -> NDArray[np.intp]:
    """Draw from all tokens. A large vocabulary is summed in parts, and cumulated in the part that is hit."""
    rows, vocabulary = logits.shape
    if vocabulary <= 4 * PART:
        return _place(_weights(logits, highest, temperature).cumsum(axis=1), uniform)
    weights = _weights(logits, highest, temperature, -vocabulary % PART).reshape(rows, -1, PART)
    cumulated = weights.sum(axis=2).cumsum(axis=1)
    part = _place(cumulated, uniform)
    here = np.arange(rows)
    before = np.where(part > 0, cumulated[here, part - 1], 0.0)
    within = weights[here, part].cumsum(axis=1)
    # The part's sum has another order than `within`: what is left may be as large, by rounding.
    left = np.minimum(uniform * cumulated[:, -1] - before, np.nextafter(within[:, -1], 0.0))
    places: NDArray[np.intp] = PART * part + (within > left[:, None]).argmax(axis=1)
    return places


def _likeliest(
    logits: Logits, highest: NDArray[np.float64], options: SamplingOptions
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return the nucleus of each row in ids (N, k), and its cumulated weights.

    Sorting a vocabulary is the dearest part of a step, and a nucleus is mostly small: it is looked for
    among the likeliest few, then among more. The sums, and so the result, are the same for every number
    of them.
    """
    vocabulary = logits.shape[1]
    total = _weights(logits, highest, options.temperature).sum(axis=1)
    count = min(FIRST, vocabulary)
    while True:
        ids, values = largest(logits, count)
        cumulated = _weights(values, highest, options.temperature).cumsum(axis=1)
        if count == vocabulary or (cumulated[:, -1] >= options.top_p * total).all():
            return ids, _nucleus(cumulated, total, options.top_p)
        count = min(16 * count, vocabulary)


def _nucleus(cumulated: NDArray[np.float64], total: NDArray[np.float64], mass: float) -> NDArray[np.float64]:
    """Let the sums stay as they are from the place on where `mass` of the total is reached."""
    if mass == 1.0:
        return cumulated
    reached = (cumulated >= mass * total[:, None]).argmax(axis=1)
    # No place reaches it where the rounding of two sums says so: then all are in.
    short = cumulated[:, -1] < mass * total
    reached[short] = cumulated.shape[1] - 1
    return np.minimum(cumulated, _take(cumulated, reached)[:, None])


def _place(cumulated: NDArray[np.float64], uniform: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the first place of each row whose sum exceeds `uniform` times the last one.

    Such a place exists, since uniform < 1, and its weight is above 0, since the sum rises there.
    """
    places: NDArray[np.intp] = (cumulated > (uniform * cumulated[:, -1])[:, None]).argmax(axis=1)
    return places


def _take(rows: NDArray[ScalarT], places: NDArray[np.intp]) -> NDArray[ScalarT]:
    """Return one element (N,) of each row."""
    taken: NDArray[ScalarT] = rows[np.arange(len(rows)), places]
    return taken
