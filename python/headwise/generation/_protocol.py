"""What `generate` asks of a model: two methods, and a state whose rows can be picked.

A decoder with a cache of keys and values and a recurrent network look the same from here. ``begin`` reads
the source once and gives a state of one row for each sequence; ``next`` takes one token for each row of
the state, moves the state on, and tells how likely each token is to follow. Beams that branch, beams that
lose and sequences that have ended are all one operation: ``state.reorder(indices)``.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

StateT = TypeVar("StateT", bound="GenerationState")


@runtime_checkable
class GenerationState(Protocol):
    """What a model remembers of each sequence between two steps.

    A state has N rows, one for each sequence or beam, and ``next`` of its model changes it in place.
    """

    def reorder(self, indices: NDArray[np.intp], /) -> object:
        """Keep the rows `indices`, in that order, in place.

        Parameters
        ----------
        indices : ndarray of intp
            (N',), each from 0 to N - 1. A row may be named several times, or not at all.

        Returns
        -------
        object
            Is not looked at.
        """

    def __len__(self) -> int:
        """Return the number N of rows."""


@runtime_checkable
class GenerativeModel(Protocol[StateT]):
    """A model that sequences can be generated with."""

    def begin(self, *source: Any, **masks: Any) -> StateT:  # noqa: ANN401 - fits every signature
        """Read the source, and return the state before the first token.

        Parameters
        ----------
        *source : object
            One argument: what the sequences are generated from.
        **masks : object
            What `generate` was given beyond its own keywords.

        Returns
        -------
        GenerationState
            Of one row for each sequence.
        """

    def next(
        self, tokens: NDArray[np.int64], state: StateT, /, *, need_weights: bool = False
    ) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Take one token for each row of the state, and score each token that may follow.

        Parameters
        ----------
        tokens : ndarray of int64
            (N,), the last token of each row.
        state : GenerationState
            Moved on by one token, in place.
        need_weights : bool, default False
            Whether weights are asked for.

        Returns
        -------
        logits : ndarray
            (N, V), before the softmax; -inf where a token cannot follow.
        weights : ndarray or None
            (N, layers, H, S), the weights with which each row attended to the source; None if not asked for.
        """
