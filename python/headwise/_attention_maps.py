"""What each head of a text encoder attends to in one text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # numpy.typing would cost a tenth of the import
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt


class AttentionMaps:
    """Attention weights of every layer and head for one text or pair of texts.

    ``maps[layer, head]``, counted from 0, is an (L, L) array: row i holds the weights with which token i
    attends to each token; they sum to 1. `TextEncoder.attentions` makes it.

    Parameters
    ----------
    weights : ndarray of shape (layers, H, L, L)
        The weights; kept, and not to be changed.
    tokens : sequence of str
        The L tokens, special ones included, as the vocabulary spells them.
    words : sequence of int or None
        The word that each token belongs to, counted from 0 within its text; None for special tokens.
    texts : sequence of int or None
        The text that each token comes from, 0 or 1; None for special tokens.
    offsets : sequence of (int, int)
        Where each token lies in its text, in characters, end excluded; (0, 0) for special tokens.
    """

    __slots__ = ("_offsets", "_texts", "_tokens", "_weights", "_words")

    def __init__(
        self,
        weights: npt.NDArray[np.floating],
        tokens: Sequence[str],
        words: Sequence[int | None],
        texts: Sequence[int | None],
        offsets: Sequence[tuple[int, int]],
    ) -> None:
        length = len(tokens)
        if weights.ndim != 4 or weights.shape[2:] != (length, length):
            msg = (
                f"weights: expected (layers, H, {length}, {length}) for {length} tokens, got {weights.shape}"
            )
            raise ValueError(msg)
        if not len(words) == len(texts) == len(offsets) == length:
            got = f"{len(words)}, {len(texts)}, {len(offsets)}"
            msg = f"words, texts, offsets: expected {length} each, got {got}"
            raise ValueError(msg)
        self._weights = weights
        self._tokens = tuple(tokens)
        self._words = tuple(words)
        self._texts = tuple(texts)
        self._offsets = tuple(offsets)

    @property
    def tokens(self) -> tuple[str, ...]:
        """The L tokens, special ones included, as the vocabulary spells them."""
        return self._tokens

    @property
    def words(self) -> tuple[int | None, ...]:
        """The word that each token belongs to, counted from 0 within its text; None for special tokens."""
        return self._words

    @property
    def texts(self) -> tuple[int | None, ...]:
        """The text that each token comes from, 0 or 1; None for special tokens."""
        return self._texts

    @property
    def offsets(self) -> tuple[tuple[int, int], ...]:
        """Where each token lies in its text, in characters, end excluded; (0, 0) for special tokens."""
        return self._offsets

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return len(self._weights)

    @property
    def num_heads(self) -> int:
        """H, the heads of each layer."""
        heads: int = self._weights.shape[1]
        return heads

    def to_numpy(self) -> npt.NDArray[np.floating]:
        """Give all weights.

        Returns
        -------
        ndarray of shape (layers, H, L, L)
            A copy, free to be changed.
        """
        return self._weights.copy()

    def __getitem__(self, index: tuple[int, int]) -> npt.NDArray[np.floating]:
        layer, head = index
        view: npt.NDArray[np.floating] = self._weights[layer, head]
        view.flags.writeable = False
        return view

    def __reduce__(self) -> tuple[type[AttentionMaps], tuple[object, ...]]:
        return type(self), (self._weights, self.tokens, self.words, self.texts, self.offsets)

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        shown = " ".join(self.tokens[:12]) + (" ..." if len(self) > 12 else "")
        return f"AttentionMaps({self.num_layers} layers, {self.num_heads} heads, {len(self)} tokens: {shown})"


# Users know the class by the package.
AttentionMaps.__module__ = "headwise"
