"""What each head of a text encoder attends to in one text."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, SupportsIndex

from headwise._attention_links import AttentionLinks

if TYPE_CHECKING:  # numpy.typing would cost a tenth of the import
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from headwise._tables import Cell

_SHOWN_TOKENS = 12
_SHOWN_PER_LAYER = 3


class AttentionMaps:
    """Attention weights of every layer and head for one text or pair of texts.

    ``maps[layer, head]``, counted from 0, is an (L, L) array: row i holds the weights with which token i
    attends to each token; they sum to 1. `links` and `to_words` speak of words instead, with the sub-tokens
    of each merged. `TextEncoder.attentions` makes it.

    Parameters
    ----------
    weights : ndarray of shape (layers, H, L, L)
        The weights; kept, and not to be changed.
    tokens : sequence of str
        The L tokens, special ones included, as the vocabulary spells them.
    word_ids : sequence of int or None
        The word that each token belongs to, counted from 0 within its text; None for special tokens.
    texts : sequence of int or None
        The text that each token comes from, 0 or 1; None for special tokens.
    offsets : sequence of (int, int)
        Where each token lies in its text, in characters, end excluded; (0, 0) for special tokens.
    sources : sequence of str, optional
        The text or the two texts. `words` are cut from them; without them they are spelled from the tokens.

    Examples
    --------
    >>> encoder = headwise.TextEncoder.from_pretrained("minilm")
    >>> maps = encoder.attentions("a dog ate the food because it was hungry")
    >>> maps.words
    ('[CLS]', 'a', 'dog', 'ate', 'the', 'food', 'because', 'it', 'was', 'hungry', '[SEP]')
    >>> maps.links("it")[5, 11]
    AttentionLink(layer=5, head=11, word='dog', position=2, weight=0.599...)
    """

    __slots__ = ("_offsets", "_sources", "_starts", "_texts", "_tokens", "_weights", "_word_ids", "_words")

    def __init__(
        self,
        weights: npt.NDArray[np.floating],
        tokens: Sequence[str],
        word_ids: Sequence[int | None],
        texts: Sequence[int | None],
        offsets: Sequence[tuple[int, int]],
        sources: Sequence[str] | None = None,
    ) -> None:
        length = len(tokens)
        if length == 0:
            msg = "tokens: expected at least one, got none"
            raise ValueError(msg)
        if weights.ndim != 4 or weights.shape[2:] != (length, length):
            msg = (
                f"weights: expected (layers, H, {length}, {length}) for {length} tokens, got {weights.shape}"
            )
            raise ValueError(msg)
        if not len(word_ids) == len(texts) == len(offsets) == length:
            got = f"{len(word_ids)}, {len(texts)}, {len(offsets)}"
            msg = f"word_ids, texts, offsets: expected {length} each, got {got}"
            raise ValueError(msg)
        self._weights = weights
        self._tokens = tuple(tokens)
        self._word_ids = tuple(word_ids)
        self._texts = tuple(texts)
        self._offsets = tuple(offsets)
        self._sources = None if sources is None else tuple(sources)
        # Word w is the tokens _starts[w] up to _starts[w + 1]: the sub-tokens of a word are neighbours.
        self._starts = [at for at in range(length) if at == 0 or not self._continues(at)]
        ends = [*self._starts[1:], length]
        self._words = tuple(self._spelled(start, end) for start, end in zip(self._starts, ends, strict=False))

    @property
    def tokens(self) -> tuple[str, ...]:
        """The L tokens, special ones included, as the vocabulary spells them."""
        return self._tokens

    @property
    def word_ids(self) -> tuple[int | None, ...]:
        """The word that each token belongs to, counted from 0 within its text; None for special tokens."""
        return self._word_ids

    @property
    def texts(self) -> tuple[int | None, ...]:
        """The text that each token comes from, 0 or 1; None for special tokens."""
        return self._texts

    @property
    def offsets(self) -> tuple[tuple[int, int], ...]:
        """Where each token lies in its text, in characters, end excluded; (0, 0) for special tokens."""
        return self._offsets

    @property
    def words(self) -> tuple[str, ...]:
        """The W words of both texts, sub-tokens merged; each special token is a word of its own."""
        return self._words

    @property
    def special(self) -> tuple[bool, ...]:
        """Whether each of the W `words` is a special token."""
        return tuple(self._word_ids[start] is None for start in self._starts)

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
        """Give the weights between tokens.

        Returns
        -------
        ndarray of shape (layers, H, L, L)
            All weights. A copy, free to be changed.
        """
        return self._weights.copy()

    def to_words(self, *, special: bool = True) -> npt.NDArray[np.floating]:
        """Give the weights between words.

        What goes into a word is the sum over its sub-tokens; what comes from it is the mean over them. A row
        sums to 1, as that of a token does.

        Parameters
        ----------
        special : bool
            Keep the special tokens. Without them the W of the shape are the `words` that are not `special`,
            and the rows sum to less than 1: nothing is scaled.

        Returns
        -------
        ndarray of shape (layers, H, W, W)
            All weights. Fresh, free to be changed.
        """
        import numpy as np

        into = np.add.reduceat(self._weights, self._starts, axis=3)
        merged = np.stack([self._from_word(into, at) for at in range(len(self._words))], axis=2)
        if special:
            return merged
        kept = [at for at, is_special in enumerate(self.special) if not is_special]
        return merged[:, :, kept][..., kept]

    def links(
        self,
        word: str | SupportsIndex,
        *,
        occurrence: SupportsIndex | None = None,
        special: bool = False,
        itself: bool = False,
    ) -> AttentionLinks:
        """Tell what each head links a word to.

        Parameters
        ----------
        word : str or int
            One of `words`, or its position among them; negative positions count from the end. Letter case
            is ignored where no word is spelled just so.
        occurrence : int, optional
            Which of several equal words, counted from 0; negative numbers count from the end.
        special : bool
            Count links to special tokens. Heads that find nothing rest on these.
        itself : bool
            Count the link of the word to itself.

        Returns
        -------
        AttentionLinks
            The links of each head, with the weights of `to_words`.

        Raises
        ------
        ValueError
            If the text has no such word, or several and `occurrence` does not say which; or if there is no
            other word.
        IndexError
            If there is no such position or occurrence.

        Examples
        --------
        >>> encoder = headwise.TextEncoder.from_pretrained("minilm")
        >>> maps = encoder.attentions("the dog saw the cat")
        >>> maps.links("the", occurrence=1)[0, 0].word
        'saw'
        """
        import numpy as np

        position = self._position(word, occurrence)
        candidates = [
            at
            for at, is_special in enumerate(self.special)
            if (special or not is_special) and (itself or at != position)
        ]
        if not candidates:
            msg = (
                f"word: expected a text with other words than {self._words[position]!r}, got "
                f"{self._brief()}; special=True and itself=True count more links"
            )
            raise ValueError(msg)
        into = np.add.reduceat(self._weights, self._starts, axis=3)
        return AttentionLinks(self._from_word(into, position), self._words, position, candidates)

    def _continues(self, at: int) -> bool:
        """Tell whether a token belongs to the word of the one before it."""
        own = self._word_ids[at]
        return own is not None and (own, self._texts[at]) == (self._word_ids[at - 1], self._texts[at - 1])

    def _spelled(self, start: int, end: int) -> str:
        """Give the word that tokens ``start`` up to ``end`` make, cut from its text if that is known."""
        text = self._texts[start]
        if self._sources is not None and text is not None and self._word_ids[start] is not None:
            return self._sources[text][self._offsets[start][0] : self._offsets[end - 1][1]]
        # The marks of WordPiece (inside of a word), byte-level BPE and SentencePiece (before it).
        first, *rest = self._tokens[start:end]
        if self._word_ids[start] is not None and len(first) > 1:
            first = first.removeprefix("Ġ").removeprefix("▁")
        return first + "".join(token.removeprefix("##") for token in rest)

    def _from_word(self, into: npt.NDArray[np.floating], at: int) -> npt.NDArray[np.floating]:
        """Average the rows of a word's sub-tokens: (layers, H, L, W) -> (layers, H, W)."""
        end = self._starts[at + 1] if at + 1 < len(self._starts) else len(self._tokens)
        mean: npt.NDArray[np.floating] = into[:, :, self._starts[at] : end].mean(axis=2)
        return mean

    def _position(self, word: str | SupportsIndex, occurrence: SupportsIndex | None) -> int:
        """Find a word, in `words`."""
        count = len(self._words)
        if not isinstance(word, str):
            at = operator.index(word)
            if occurrence is not None:
                msg = f"occurrence: expected None beside the position {at}, got {occurrence!r}"
                raise ValueError(msg)
            if not -count <= at < count:
                msg = f"word: expected a position in -{count} to {count - 1}, got {at}"
                raise IndexError(msg)
            return at % count
        found = [at for at, other in enumerate(self._words) if other == word]
        if not found:
            folded = word.casefold()
            found = [at for at, other in enumerate(self._words) if other.casefold() == folded]
        if not found:
            msg = f"word: expected one of the words of the text, {self._brief()}, got {word!r}"
            raise ValueError(msg)
        if occurrence is not None:
            at = operator.index(occurrence)
            if not -len(found) <= at < len(found):
                msg = f"occurrence: expected one of the {len(found)} of {word!r}, counted from 0, got {at}"
                raise IndexError(msg)
            return found[at]
        if len(found) > 1:
            places = ", ".join(f"{number} (word {at})" for number, at in enumerate(found))
            msg = f"word: {word!r} occurs {len(found)} times; occurrence= takes one of {places}"
            raise ValueError(msg)
        return found[0]

    def _brief(self) -> str:
        from headwise._tables import shown

        some = " ".join(shown(word) for word in self._words[:_SHOWN_TOKENS])
        return some + (" ..." if len(self._words) > _SHOWN_TOKENS else "")

    def __getitem__(self, index: tuple[int, int]) -> npt.NDArray[np.floating]:
        layer, head = index
        view: npt.NDArray[np.floating] = self._weights[layer, head]
        view.flags.writeable = False
        return view

    def __reduce__(self) -> tuple[type[AttentionMaps], tuple[object, ...]]:
        kept = (self._weights, self.tokens, self.word_ids, self.texts, self.offsets, self._sources)
        return type(self), kept

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        from headwise._tables import text_table

        rows, links = self._strongest()
        if not rows:
            return self._summary()
        ranked = [sorted(row, key=lambda cell: -cell.weight)[:_SHOWN_PER_LAYER] for row in links]
        table = text_table(rows, [""] * len(ranked[0]), ranked, bounded=True)
        return f"{self._summary()}\nthe strongest links between words in each layer:\n\n{table}"

    def _repr_html_(self) -> str:
        from headwise._tables import Cell, html_table

        layers, links = self._strongest()
        if not layers:
            return html_table(self._summary(), [], [], [])
        plain = [[Cell(cell.text.partition(": ")[2], cell.weight) for cell in row] for row in links]
        caption = f"{self._summary()}, the strongest link between words in each head"
        heads = [f"head {head}" for head in range(self.num_heads)]
        return html_table(caption, heads, layers, list(zip(*plain, strict=True)))

    def _summary(self) -> str:
        sizes = f"{self.num_layers} layers, {self.num_heads} heads, {len(self)} tokens"
        return f"AttentionMaps({sizes}: {self._brief()})"

    def _strongest(self) -> tuple[list[str], list[list[Cell]]]:
        """Give a row for each layer: the strongest link between two different words in each of its heads."""
        import numpy as np

        from headwise._tables import Cell, shown

        words = [word for word, special in zip(self._words, self.special, strict=True) if not special]
        if len(words) < 2 or not self.num_layers * self.num_heads:
            return [], []
        weights = self.to_words(special=False)
        weights[..., range(len(words)), range(len(words))] = -1.0  # a word's link to itself says little
        layers, heads = weights.shape[:2]
        best = weights.reshape(layers, heads, -1).argmax(axis=-1)
        rows = []
        for layer in range(layers):
            row = []
            for head in range(heads):
                origin, target = np.unravel_index(best[layer, head], weights.shape[2:])
                weight = float(weights[layer, head, origin, target])
                link = f"{shown(words[origin])} -> {shown(words[target])} {weight:.2f}"
                row.append(Cell(f"head {head}: {link}", weight))
            rows.append(row)
        return [f"layer {layer}" for layer in range(layers)], rows


# Users know the class by the package.
AttentionMaps.__module__ = "headwise"
