"""Beam search: the K likeliest unfinished sequences of each source, and the K best finished ones.

One step, for each source:

1. Every beam with sum of log-probabilities s offers s + log p(c) for its tokens c. The 2K best offers of
   all beams are the candidates: each beam can end in one way only, so at least K of them go on.
2. Candidates that end and are among the first K enter the pool of finished sequences, which keeps the K
   with the best s / length**length_penalty, the end counted in the length. At `max_length` every
   candidate is taken as one that ends.
3. The K best candidates that do not end are the next beams.
4. The source is done when its pool is full and no beam can get into it any more, as `early_stopping`
   judges that: True does not ask; False takes the best beam at its present length; "never" takes it at
   its present sum and the length, up to `max_length`, that favours it most. Then all its beams leave the
   batch.

These are the rules of the transformers library. Where the vocabulary is too small for 2K candidates, and
at the first step, where there is one beam, places stay empty: their sum is -inf, and they never enter the
pool.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from headwise.generation._history import History, Leaves
from headwise.generation._logits import largest, log_normalizer, without
from headwise.generation._model import Step, Stepper
from headwise.generation._options import BeamOptions, Lengths, Prefix
from headwise.generation._single import Found

ScalarT = TypeVar("ScalarT", bound=np.generic)
Floats = NDArray[np.float64]
Ids = NDArray[np.int64]
Places = NDArray[np.intp]


def beam_search(
    stepper: Stepper,
    history: History,
    options: BeamOptions,
    *,
    start: int,
    end: int,
    lengths: Lengths,
    prefix: Prefix,
    num_return_sequences: int,
) -> Found:
    """Search with beams; the leaves are those of source 0, the best first, then those of source 1, ..."""
    count, beams = len(stepper), options.num_beams
    pool = Pool(count, beams)
    impossible = np.zeros(count, np.bool_)  # whether the model gives a prefix the probability 0
    live = np.arange(count)  # the source of each group of beams
    sums = np.zeros((count, 1))  # (sources, beams so far)
    tokens = np.full(count, start, np.int64)
    for step in range(lengths.longest):
        if live.size == 0:
            break
        answer = stepper.next(tokens)
        history.see(answer.weights)
        found = _candidates(answer, sums, 2 * beams, end if step < lengths.shortest else None)
        if step < prefix.longest:
            forced = prefix.lengths[live] > step
            impossible[live[forced]] |= _force(found, answer, sums, forced, prefix.tokens[live[forced], step])
        length = step + 1
        ended = found.tokens == end
        closing = ended if length < lengths.longest else np.ones_like(ended)
        pool.offer(live, step, found, closing, ended, length**options.length_penalty)
        if length == lengths.longest:
            break

        # The next beams; as long as prefixes left no choice there is but one of each source.
        width = max(sums.shape[1], 1 if (prefix.lengths[live] > step).all() else beams)
        order = np.argsort(ended, axis=1, kind="stable")[:, :width]
        sums = _pick(np.where(ended, -np.inf, found.sums), order)
        open_ = _can_improve(sums[:, 0], pool.worst(live), options, length, lengths.longest)
        live, sums, order = live[open_], sums[open_], order[open_]
        # An empty place runs along with the first beam: what cannot follow is never fed to the model.
        order = np.where(np.isneginf(sums), order[:, :1], order)
        tokens = _pick(found.tokens[open_], order).reshape(-1)
        origins = _pick(found.rows[open_], order).reshape(-1)
        if live.size:
            stepper.reorder(origins)
            history.go_on(origins, tokens)
    best = pool.best(num_return_sequences)
    best.scores[np.repeat(impossible, num_return_sequences)] = -np.inf
    return best


class _Candidates:
    """The best offers (sources, 2K) of each source, in descending order."""

    def __init__(self, sums: Floats, rows: Places, tokens: Ids) -> None:
        self.sums, self.rows, self.tokens = sums, rows, tokens


def _candidates(answer: Step, sums: Floats, count: int, blocked: int | None) -> _Candidates:
    """Return the `count` best offers of each source.

    Among equal sums the better beam comes first, and in a beam the token with the larger logit, then the
    smaller id: sums of float64 may round two logits to the same, and the order of a beam of one is that
    of greedy search.
    """
    logits, row_max, _ = answer
    sources, width = sums.shape
    normalizer = log_normalizer(logits, row_max)
    if blocked is not None:
        logits, _ = without(blocked, logits, row_max)
    ids, values = largest(logits, min(count, logits.shape[1]))  # (sources * width, C)
    offers = (sums.reshape(-1, 1) + (values - normalizer[:, None])).reshape(sources, -1)
    order = np.argsort(-offers, axis=1, kind="stable")[:, :count]
    rows = order // ids.shape[1] + width * np.arange(sources)[:, None]
    found = _Candidates(
        _pick(offers, order),
        rows,
        _pick(ids.reshape(sources, -1), order).astype(np.int64, copy=False),
    )
    missing = count - order.shape[1]
    if missing:
        pad = ((0, 0), (0, missing))
        found.sums = np.pad(found.sums, pad, constant_values=-np.inf)
        found.rows = np.pad(found.rows, pad, mode="edge")
        found.tokens = np.pad(found.tokens, pad, mode="edge")
    return found


def _force(
    found: _Candidates, answer: Step, sums: Floats, forced: NDArray[np.bool_], tokens: Ids
) -> NDArray[np.bool_]:
    """Leave one candidate in the `forced` sources: their first beam with these tokens.

    Returns whether its probability is 0. The search goes on as if it were 1, since all of a source's
    sequences share it.
    """
    rows = np.flatnonzero(forced) * sums.shape[1]
    normalizer = log_normalizer(answer.logits[rows], answer.row_max[rows])
    added = answer.logits[rows, tokens] - normalizer
    impossible: NDArray[np.bool_] = np.isneginf(added)
    found.sums[forced] = -np.inf
    found.sums[forced, 0] = sums[forced, 0] + np.where(impossible, 0.0, added)
    found.rows[forced], found.tokens[forced] = rows[:, None], tokens[:, None]
    return impossible


def _can_improve(
    best: Floats, worst: Floats, options: BeamOptions, length: int, longest: int
) -> NDArray[np.bool_]:
    """Tell for each source whether a beam may still get into the pool; one with room has the worst -inf."""
    if options.early_stopping is True:
        best = np.where(np.isneginf(worst), best, -np.inf)
    elif options.early_stopping == "never" and options.length_penalty > 0.0:
        length = longest
    improving: NDArray[np.bool_] = best / length**options.length_penalty > worst
    return improving


def _pick(rows: NDArray[ScalarT], places: Places) -> NDArray[ScalarT]:
    """Return the elements at `places` (sources, n) of each row."""
    picked: NDArray[ScalarT] = rows[np.arange(len(rows))[:, None], places]
    return picked


class Pool:
    """The K best finished sequences of each source, the best first."""

    def __init__(self, sources: int, beams: int) -> None:
        self._scores = np.full((sources, beams), -np.inf)
        self._steps = np.full((sources, beams), -1, np.intp)
        self._rows = np.zeros((sources, beams), np.intp)
        self._tokens = np.zeros((sources, beams), np.int64)
        self._ended = np.zeros((sources, beams), np.bool_)

    def offer(
        self,
        live: Places,
        step: int,
        found: _Candidates,
        closing: NDArray[np.bool_],
        ended: NDArray[np.bool_],
        divisor: float,
    ) -> None:
        """Take in what closes among the first K candidates; among equal scores what is in comes first."""
        beams = self._scores.shape[1]
        closing = closing[:, :beams]
        which = np.flatnonzero(closing.any(axis=1))
        if which.size == 0:
            return
        sources, first = live[which], (which, slice(beams))
        offers = np.where(closing[which], found.sums[first] / divisor, -np.inf)
        scores = np.concatenate([self._scores[sources], offers], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :beams]

        def merge(kept: NDArray[np.generic], new: NDArray[np.generic] | int) -> None:
            both = np.concatenate([kept[sources], np.broadcast_to(new, offers.shape)], axis=1)
            kept[sources] = _pick(both, order)

        merge(self._scores, offers)
        merge(self._steps, step)
        merge(self._rows, found.rows[first])
        merge(self._tokens, found.tokens[first])
        merge(self._ended, ended[first])

    def worst(self, live: Places) -> Floats:
        """Return the worst score of each source's pool, -inf if it has room."""
        worst: Floats = self._scores[live, -1]
        return worst

    def best(self, count: int) -> Found:
        """Return the `count` best of each source, one source after the other."""
        scores = self._scores[:, :count].flatten()
        full = np.isfinite(scores)
        ended = self._ended[:, :count].reshape(-1) & full
        leaves = Leaves(
            np.where(full, self._steps[:, :count].reshape(-1), -1),
            self._rows[:, :count].flatten(),
            self._tokens[:, :count].flatten(),
            ended,
        )
        return Found(leaves, scores, ended)
