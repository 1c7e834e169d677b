"""What each head links one word to."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import numpy.typing as npt

    from headwise._tables import Cell


class AttentionLink(NamedTuple):
    """A link from one word to another in one head.

    Parameters
    ----------
    layer, head : int
        Where it was found, counted from 0.
    word : str
        The word that is linked to.
    position : int
        Its place in `AttentionMaps.words`.
    weight : float
        How much of the attention it gets, in 0 to 1.
    """

    layer: int
    head: int
    word: str
    position: int
    weight: float


for _field, _text in {
    "layer": "The layer, counted from 0.",
    "head": "The head, counted from 0.",
    "word": "The word that is linked to.",
    "position": "Its place in `AttentionMaps.words`.",
    "weight": "How much of the attention it gets, in 0 to 1.",
}.items():
    getattr(AttentionLink, _field).__doc__ = _text


class AttentionLinks:
    """What each head links one word to, and with which weight.

    ``links[layer, head]``, counted from 0, is the strongest link of a head, an `AttentionLink`; iterating
    gives that of every head, layer by layer. ``str(links)`` is the table of all of them; notebooks show it
    coloured. `AttentionMaps.links` makes it.

    Parameters
    ----------
    weights : ndarray of shape (layers, H, W)
        What the word's sub-tokens, averaged, give to each word, special tokens included; kept, and not to be
        changed.
    words : sequence of str
        The W words.
    position : int
        The place of the word among them.
    candidates : sequence of int
        The places of the words that may be linked to, at least one.
    """

    __slots__ = ("_candidates", "_position", "_weights", "_words")

    def __init__(
        self,
        weights: npt.NDArray[np.floating],
        words: Sequence[str],
        position: int,
        candidates: Sequence[int],
    ) -> None:
        if weights.ndim != 3 or weights.shape[2] != len(words):
            msg = f"weights: expected (layers, H, {len(words)}) for {len(words)} words, got {weights.shape}"
            raise ValueError(msg)
        if not candidates:
            msg = "candidates: expected at least one position, got none"
            raise ValueError(msg)
        self._weights = weights
        self._words = tuple(words)
        self._position = position
        self._candidates = tuple(candidates)

    @property
    def word(self) -> str:
        """The word that the links start from."""
        return self._words[self._position]

    @property
    def position(self) -> int:
        """Its place in `words`."""
        return self._position

    @property
    def words(self) -> tuple[str, ...]:
        """The W words, special tokens included: the last axis of `to_numpy`."""
        return self._words

    def ranked(self, layer: int, head: int) -> list[AttentionLink]:
        """Give all links of one head, the strongest first.

        Parameters
        ----------
        layer, head : int
            The head, counted from 0; negative numbers count from the end.

        Returns
        -------
        list of AttentionLink
            A link for each word that may be linked to; equal weights in the order of the text.

        Raises
        ------
        IndexError
            If there is no such head.
        """
        row = self._weights[layer, head]
        layers, heads = self._weights.shape[:2]
        found = [
            AttentionLink(layer % layers, head % heads, self._words[at], at, float(row[at]))
            for at in self._candidates
        ]
        return sorted(found, key=lambda link: -link.weight)

    def to_numpy(self) -> npt.NDArray[np.floating]:
        """Give the weights of all links.

        Returns
        -------
        ndarray of shape (layers, H, W)
            What each head gives to each word; each row sums to 1. A copy, free to be changed.
        """
        return self._weights.copy()

    def __getitem__(self, index: tuple[int, int]) -> AttentionLink:
        layer, head = index
        return self.ranked(layer, head)[0]

    def __len__(self) -> int:
        layers, heads = self._weights.shape[:2]
        return int(layers * heads)

    def __iter__(self) -> Iterator[AttentionLink]:
        layers, heads = self._weights.shape[:2]
        return (self[layer, head] for layer in range(layers) for head in range(heads))

    def __str__(self) -> str:
        return self._text(bounded=False)

    def __repr__(self) -> str:
        return self._text(bounded=True)

    def _repr_html_(self) -> str:
        from headwise._tables import html_table

        return html_table(self._caption(), *self._table())

    def _text(self, *, bounded: bool) -> str:
        from headwise._tables import text_table

        return f"{self._caption()}\n\n{text_table(*self._table(), bounded=bounded)}"

    def _caption(self) -> str:
        from headwise._tables import shown

        return f'what each head links "{shown(self.word)}" (word {self._position}) to, and its weight'

    def _table(self) -> tuple[list[str], list[str], list[list[Cell]]]:
        """Give labels and cells: a row for each head, a column for each layer."""
        from headwise._tables import Cell, shown

        layers, heads = self._weights.shape[:2]
        strongest = [[self[layer, head] for layer in range(layers)] for head in range(heads)]
        rows = [
            [Cell(f"{shown(link.word)} {link.weight:.2f}", link.weight) for link in row] for row in strongest
        ]
        digits = len(str(heads - 1))
        labels = [f"head {head:>{digits}}" for head in range(heads)]
        return labels, [f"layer {layer}" for layer in range(layers)], rows


# Users know the classes by the package.
AttentionLink.__module__ = AttentionLinks.__module__ = "headwise"
