"""The steps of a generation as a tree, and the way back from its leaves.

A step has rows: the sequences or beams that the model saw. Row r of step t + 1 continues row
``origin[r]`` of step t with the token ``token[r]``. Beams that branch and rows that leave are one thing
here, and nothing is copied while the search goes on; only at its end are the paths that were chosen
walked back, all at once, step by step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Leaves:
    """Where paths end: after row `row` of step `step`, with `token` as their last one.

    Parameters
    ----------
    steps, rows, tokens : ndarray of int
        (N,). A step of -1 is a path without any token.
    ended : ndarray of bool
        (N,), whether `token` is the end, which is no part of the path.
    """

    def __init__(
        self,
        steps: NDArray[np.intp],
        rows: NDArray[np.intp],
        tokens: NDArray[np.int64],
        ended: NDArray[np.bool_],
    ) -> None:
        self.steps, self.rows, self.tokens, self.ended = steps, rows, tokens, ended

    @property
    def lengths(self) -> NDArray[np.intp]:
        """How many tokens each path has."""
        return self.steps + 1 - self.ended


class History:
    """All steps so far: what each row continues, with which token, and with which weights on the source."""

    def __init__(self, *, aligned: bool) -> None:
        self._aligned = aligned
        self._origins: list[NDArray[np.intp]] = []
        self._tokens: list[NDArray[np.int64]] = []
        self._weights: list[NDArray[Any]] = []

    def see(self, weights: NDArray[Any] | None) -> None:
        """Keep the weights (rows, layers, H, S) of the step that is being taken."""
        if weights is not None:
            self._weights.append(weights)

    def go_on(self, origins: NDArray[np.intp], tokens: NDArray[np.int64]) -> None:
        """Open the next step: its row r continues row origins[r] of this step with tokens[r]."""
        self._origins.append(origins)
        self._tokens.append(tokens)

    def paths(self, leaves: Leaves) -> tuple[list[NDArray[np.int64]], list[NDArray[Any]] | None]:
        """Return the tokens (T_i,) of each path, and the weights (T_i, layers, H, S) if they were kept."""
        count, lengths = len(leaves.steps), leaves.lengths
        longest = int(leaves.steps.max(initial=-1)) + 1
        tokens = np.zeros((count, longest), np.int64)
        aligned = None
        if self._weights:
            first = self._weights[0]
            aligned = np.zeros((count, longest, *first.shape[1:]), first.dtype)
        rows, chosen = leaves.rows.copy(), leaves.tokens.copy()
        for step in range(longest - 1, -1, -1):
            here = np.flatnonzero(leaves.steps >= step)
            # `chosen` is what followed row `rows` of this step.
            tokens[here, step] = chosen[here]
            if aligned is not None:
                aligned[here, step] = self._weights[step][rows[here]]
            if step > 0:
                before = rows[here]
                chosen[here] = self._tokens[step - 1][before]
                rows[here] = self._origins[step - 1][before]
        cut = [tokens[i, :length].copy() for i, length in enumerate(lengths)]
        if not self._aligned:
            return cut, None
        if aligned is None:
            return cut, []
        return cut, [aligned[i, :length].copy() for i, length in enumerate(lengths)]
