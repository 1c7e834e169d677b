"""The state of a generation with `Seq2Seq`: the decoder's cache, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Seq2SeqState:
    """Sequences that a `Seq2Seq` generates: how far they are, and the keys and values of their tokens.

    Parameters
    ----------
    cache : DecoderCache
        Of the decoder; it may be looked at.
    """

    def __init__(self, cache: Any) -> None:  # noqa: ANN401 - of a compiled class
        self.cache = cache

    def __len__(self) -> int:
        return len(self.cache)

    def reorder(self, indices: NDArray[np.intp]) -> None:
        """Keep the sequences at `indices`, in their order; one may stand there several times, or not at all.

        Parameters
        ----------
        indices : array_like
            (N,) places of sequences.
        """
        self.cache.reorder(indices)

    def copy(self) -> Seq2SeqState:
        """Return a state that goes on by itself.

        Returns
        -------
        Seq2SeqState
            With a copy of the cache.
        """
        return Seq2SeqState(self.cache.copy())

    def __repr__(self) -> str:
        return f"<state of {len(self)} sequences of a Seq2Seq>"
