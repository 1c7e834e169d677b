"""What `generate` returns."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Generated(NamedTuple):
    """Sequences that `generate` made, N = B * num_return_sequences of them.

    Those of one source stand together: source 0's, the best first, then source 1's.

    Parameters
    ----------
    tokens : list of ndarray of int64
        N arrays (T_i,), without start and end.
    scores : ndarray of float64
        (N,), the sum of the logarithms of the probabilities that the model gave the tokens, the end's
        included; of beams, divided by length**length_penalty.
    finished : ndarray of bool
        (N,), True where the sequence reached its end, False where `max_length` cut it.
    alignments : list of ndarray, or None
        N arrays (T_i, layers, H, S): row t holds the weights with which the model looked at the source
        when it chose token t. None if not asked for.
    """

    tokens: list[NDArray[np.int64]]
    scores: NDArray[np.float64]
    finished: NDArray[np.bool_]
    alignments: list[NDArray[Any]] | None


for _field, _text in {
    "tokens": "The sequences, without start and end.",
    "scores": "Sums of log-probabilities; of beams, divided by length**length_penalty.",
    "finished": "Whether each sequence reached its end.",
    "alignments": "Weights on the source for each token, or None.",
}.items():
    getattr(Generated, _field).__doc__ = _text
