"""One row for each sequence: greedy search and sampling.

Step t feeds every row its last token and chooses the next: the likeliest one, or one that is drawn. A row
that chooses the end leaves the batch. While t is below the length of a row's prefix, the prefix chooses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from headwise.generation._history import History, Leaves
from headwise.generation._logits import Logits, log_normalizer, without
from headwise.generation._model import Stepper
from headwise.generation._options import Lengths, Prefix

Choose: TypeAlias = Callable[[int, NDArray[np.intp], Logits, NDArray[Any]], NDArray[np.int64]]
"""From the step, the sequences (N,), their logits (N, V) and the maxima (N,) to a token of each (N,)."""


class Found(NamedTuple):
    """What a search found: where each path ends, its score, and whether it was finished."""

    leaves: Leaves
    scores: NDArray[np.float64]
    finished: NDArray[np.bool_]


def likeliest(
    step: int, sequences: NDArray[np.intp], logits: Logits, row_max: NDArray[Any]
) -> NDArray[np.int64]:
    """Choose the likeliest token of each row, the smaller id where two are equal."""
    ids: NDArray[np.int64] = logits.argmax(axis=1).astype(np.int64, copy=False)
    return ids


def search(
    stepper: Stepper,
    history: History,
    choose: Choose,
    *,
    start: int,
    end: int,
    lengths: Lengths,
    prefix: Prefix,
) -> Found:
    """Choose token after token, until every sequence has ended or is as long as it may be."""
    count = len(stepper)
    scores = np.zeros(count)
    # Where each sequence stopped: the step and its row in it, and the last token.
    steps, rows = np.full(count, -1, np.intp), np.zeros(count, np.intp)
    last, finished = np.zeros(count, np.int64), np.zeros(count, np.bool_)
    live = np.arange(count)  # the sequence that each row is
    tokens = np.full(count, start, np.int64)
    for step in range(lengths.longest):
        if live.size == 0:
            break
        logits, row_max, weights = stepper.next(tokens)
        history.see(weights)
        normalizer = log_normalizer(logits, row_max)
        allowed, allowed_max = without(end, logits, row_max) if step < lengths.shortest else (logits, row_max)
        tokens = choose(step, live, allowed, allowed_max)
        if step < prefix.longest:
            tokens = np.where(prefix.lengths[live] > step, prefix.tokens[live, step], tokens)
        here = np.arange(live.size)
        scores[live] += logits[here, tokens] - normalizer
        ended = tokens == end
        if step + 1 == lengths.longest:
            steps[live], rows[live], last[live], finished[live] = step, here, tokens, ended
        elif ended.any():
            gone = live[ended]
            steps[gone], rows[gone], last[gone], finished[gone] = step, here[ended], end, True
            here = here[~ended]
            live, tokens = live[here], tokens[here]
        if step + 1 < lengths.longest and live.size:
            stepper.reorder(here)
            history.go_on(here, tokens)
    return Found(Leaves(steps, rows, last, finished), scores, finished)
