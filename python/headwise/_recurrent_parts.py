"""What a `RecurrentSeq2Seq` is made of: its layers by name, its attention over padded states, its state."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise._steps import Layer
from headwise._token_batch import joined

Array = NDArray[Any]

CELLS = {"gru": "GRU", "lstm": "LSTM", "rnn": "RNN"}
"""The class of each cell."""


def _bilinear(query_dim: int, key_dim: int, _: int, dtype: Any, key: int) -> Layer:  # noqa: ANN401
    from headwise import Bilinear

    return Bilinear(query_dim, key_dim, dtype=dtype, rng=key)


def _additive(query_dim: int, key_dim: int, hidden_size: int, dtype: Any, key: int) -> Layer:  # noqa: ANN401
    from headwise import Additive

    return Additive(query_dim, key_dim, hidden_size, dtype=dtype, rng=key)


SCORES: dict[str, Callable[[int, int, int, Any, int], Layer] | None] = {
    "bilinear": _bilinear,
    "additive": _additive,
    "dot": None,
    "scaled_dot": None,
}
"""What makes a score's layer from the widths of query, key and hidden rows, dtype and key; None has none."""


class Calls:
    """Calls of layers, and their pullbacks by name where they are kept.

    Parameters
    ----------
    keep : bool
        Whether pullbacks are kept.
    """

    def __init__(self, keep: bool) -> None:
        self.keep = keep
        self.pullbacks: dict[str, Layer] = {}

    def __call__(self, name: str, layer: Layer, *arrays: Any, **keywords: Any) -> Any:  # noqa: ANN401
        if not self.keep:
            return layer(*arrays, **keywords)
        out, self.pullbacks[name] = layer.vjp(*arrays, **keywords)
        return out


class Attend:
    """Attention from the states of a decoder to those of an encoder.

    Parameters
    ----------
    score : str or layer
        How states are compared.
    normalize : str or TopK
        How scores become weights.
    rng : int or None
        Key of the draws of hard attention; None for the best.
    """

    def __init__(self, score: Any, normalize: Any, rng: int | None) -> None:  # noqa: ANN401
        self._options = {"score": score, "normalize": normalize}
        if rng is not None:
            self._options["rng"] = rng

    def __call__(self, query: Array, memory: Array, lengths: Array) -> Array:
        """Return the contexts (B, L, C) of queries (B, L, H) over memories (B, S, C) of such lengths."""
        from headwise import attention

        wide = memory[:, None]
        out: Array = attention(query[:, None], wide, wide, key_lengths=lengths, **self._options)
        return out[:, 0]

    def vjp(self, query: Array, memory: Array, lengths: Array) -> tuple[Array, Layer]:
        """Return the contexts, and a pullback to queries, memories and the score's parameters."""
        from headwise import vjp

        wide = memory[:, None]
        out, back = vjp.attention(query[:, None], wide, wide, key_lengths=lengths, **self._options)

        def pullback(d_out: Array) -> tuple[tuple[Array, Array], dict[str, Array]]:
            found = back(np.ascontiguousarray(d_out[:, None]))
            # With a score that has parameters, their gradients stand beside those of the arrays.
            (d_query, d_key, d_value), named = found if isinstance(found[0], tuple) else (found, {})
            grads = {name.removeprefix("score."): grad for name, grad in named.items()}
            return (d_query[:, 0], (d_key + d_value)[:, 0]), grads

        return out[:, 0], pullback

    def over(self, query: Array, memory: Array, key_mask: Array) -> tuple[Array, Array]:
        """Return contexts (N, 1, L, C) and weights (N, 1, L, S) over the states that a mask names."""
        from headwise import attention

        wide = memory[:, None]
        keep = None if key_mask.all() else key_mask
        found: tuple[Array, Array] = attention(
            query[:, None], wide, wide, key_mask=keep, return_weights=True, **self._options
        )
        return found


class RecurrentState:
    """Sequences that a `RecurrentSeq2Seq` generates: the state of its cells, and what it has read.

    Parameters
    ----------
    cell : ndarray or tuple of ndarray
        (layers, N, H), or (h, c) of an LSTM.
    summary : ndarray
        (N, C): the encoder's last states.
    memory : ndarray
        (N, S, C): all its states.
    key_mask : ndarray
        (N, S): which of them are tokens.
    """

    def __init__(self, cell: Any, summary: Array, memory: Array, key_mask: Array) -> None:  # noqa: ANN401
        self.cell, self.summary, self.memory, self.key_mask = cell, summary, memory, key_mask

    def __len__(self) -> int:
        return len(self.summary)

    def reorder(self, indices: NDArray[np.intp]) -> None:
        """Keep the sequences at `indices`, in their order; one may stand there several times, or not at all.

        Parameters
        ----------
        indices : array_like
            (N,) places of sequences.
        """
        if isinstance(self.cell, tuple):
            self.cell = tuple(np.ascontiguousarray(part[:, indices]) for part in self.cell)
        else:
            self.cell = np.ascontiguousarray(self.cell[:, indices])
        self.summary, self.memory = self.summary[indices], self.memory[indices]
        self.key_mask = self.key_mask[indices]

    def __repr__(self) -> str:
        return f"<state of {len(self)} sequences of a RecurrentSeq2Seq>"


def through_tanh(d: Array, y: Array) -> Array:
    """Return the gradient of x from that of y = tanh(x)."""
    return np.asarray(d * (y.dtype.type(1) - y * y))


def padded(items: Sequence[Array], width: int, dtype: str) -> Array:
    """Return a list of (L_i, D) as (B, L, D), 0 at the ends."""
    longest = max((len(item) for item in items), default=0)
    wide = np.zeros((len(items), longest, width), dtype=dtype)
    for row, item in zip(wide, items, strict=True):
        row[: len(item)] = item
    return wide


def items_of(wide: Array, lengths: Array) -> list[Array]:
    """Return (B, L, D) as a list of (L_i, D)."""
    return [np.ascontiguousarray(row[:n]) for row, n in zip(wide, lengths, strict=True)]


def rows_of(wide: Array, lengths: Array) -> Array:
    """Return (B, L, D) as the rows of the tokens (T, D)."""
    return joined(items_of(wide, lengths), wide.shape[-1], str(wide.dtype))


def sums(rows: Array, lengths: Array) -> Array:
    """Return the sums (B, D) of each sequence's rows (T, D), in their order."""
    ends = [0, *itertools.accumulate(int(n) for n in lengths)]
    total = np.zeros((len(lengths), rows.shape[-1]), dtype=rows.dtype)
    for b, (start, end) in enumerate(itertools.pairwise(ends)):
        for row in rows[start:end]:
            total[b] += row
    return total
