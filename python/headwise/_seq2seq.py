"""`Seq2Seq`: ids of a source and of a target to the scores of each next id.

::

    x = source_table[source_ids] sqrt(D)        (B, S, D)
    y = target_table[target_ids] sqrt(D)        (B, L, D)
    logits = projection(transformer(x, y))      (B, L, V)

Inside there are tokens only, back to back: padding is removed before the first table and put back, as zeros,
after the projection. Sums over tokens, those of the gradients, are then the same for every form of a batch.
What NumPy does here, a product with the factor and a sum of two gradients of a shared table, is one rounded
operation for each number: its bits are those of every machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Unpack

import numpy as np
from numpy.typing import ArrayLike

from headwise._errors import ArgumentTypeError, ShapeError
from headwise._parts import Parts, listed
from headwise._seq2seq_parts import (
    TIED,
    Array,
    Seq2SeqPullback,
    SidesMasks,
    SourceSideMasks,
    Tied,
    make_layers,
)
from headwise._seq2seq_state import Seq2SeqState
from headwise._steps import Batch, Layer, Rng, key_of
from headwise._token_batch import TokenBatch, joined
from headwise._transformer import Transformer
from headwise._transformer_masks import refuse

if TYPE_CHECKING:
    from headwise.generation import Generated

_DType: TypeAlias = Any


class Seq2Seq:
    """Token embeddings, a `Transformer` and an output projection: sequences of ids to sequences of ids.

    Parameters
    ----------
    num_source_tokens : int
        How many ids the source has.
    num_target_tokens : int
        V, how many ids the target has.
    d_model : int, default 512
        D.
    num_heads : int, default 8
        H.
    num_encoder_layers : int, default 6
        Layers of the encoder.
    num_decoder_layers : int, default 6
        Layers of the decoder.
    d_ff : int, default 2048
        F.
    tied : {True, False, "all"}, default True
        True: the target's embedding table is the weight of the output projection. "all": the source's is it
        too, for one vocabulary of both sides. False: three tables.
    output_bias : bool, default True
        Whether the output projection has a bias.
    positions : {"sinusoidal", "rotary", "alibi", None}, default "sinusoidal"
        How tokens are told apart by their place.
    dtype : {"float32", "float64"}, default "float32"
        What the model computes and answers in.
    rng : int or numpy.random.Generator, optional
        From which the first parameters are drawn.
    **of_the_transformer : object
        More options of `Transformer`: `norm_first`, `final_norm`, `activation`, `dropout` and so on.

    Raises
    ------
    ValueError
        If a width is 0 or does not divide, a name is not one of those above, or ``tied="all"`` meets two
        vocabularies of different sizes.
    TypeError
        If an option is not known.

    See Also
    --------
    headwise.generation.generate : Greedy, beam search and sampling, also for models of your own.

    Notes
    -----
    Embeddings are multiplied by sqrt(D), as in [1]_, and their tables are drawn with a standard deviation of
    1 / sqrt(D), so that both the rows and the scores of a tied projection begin with one of about 1.

    Names of parameters are ``source_embedding.weight``, ``target_embedding.weight``,
    ``transformer.encoder.*``, ``transformer.decoder.*``, ``output_projection.weight`` and
    ``output_projection.bias``. A shared table is one parameter: `state_dict` and gradients have it under the
    first of its names in this order, `load_state_dict` takes it under any of them, or under several if they
    agree. Its gradient is that of the source's embedding (if it shares), plus that of the target's, plus that
    of the projection.

    References
    ----------
    .. [1] A. Vaswani et al., "Attention Is All You Need", 2017. https://arxiv.org/abs/1706.03762
    .. [2] O. Press, L. Wolf, "Using the Output Embedding to Improve Language Models" (tied tables), 2017.
       https://arxiv.org/abs/1608.05859

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> model = hw.Seq2Seq(30, 12, 16, 4, 2, 2, 32, rng=0)
    >>> source, target = np.ones((3, 7), dtype=int), np.ones((3, 5), dtype=int)
    >>> model(source, target, source_lengths=[7, 4, 2]).shape
    (3, 5, 12)
    """

    def __init__(
        self,
        num_source_tokens: int,
        num_target_tokens: int,
        d_model: int = 512,
        num_heads: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        d_ff: int = 2048,
        *,
        tied: Tied = True,
        output_bias: bool = True,
        positions: Literal["sinusoidal", "rotary", "alibi"] | None = "sinusoidal",
        dtype: _DType = "float32",
        rng: Rng = None,
        **of_the_transformer: Any,  # noqa: ANN401 - what Transformer takes
    ) -> None:
        options = {"positions": positions, "dtype": dtype, **of_the_transformer}
        sizes = (num_source_tokens, num_target_tokens)
        widths = (d_model, num_heads, num_encoder_layers, num_decoder_layers, d_ff)
        layers, first = make_layers(sizes, widths, tied, output_bias, key_of(rng), options)
        self._set(layers, tied)
        self.load_state_dict(first, strict=False)

    def _set(self, layers: dict[str, Layer], tied: Tied) -> Seq2Seq:
        self._layers, self._tied = layers, tied
        self._parts = Parts(layers, TIED[tied])
        self._factor = np.dtype(self.dtype).type(math.sqrt(self.transformer.d_model))
        return self

    def __call__(
        self,
        source_ids: Batch,
        target_ids: Batch,
        *,
        training: bool = False,
        rng: Rng = None,
        **masks: Unpack[SidesMasks],
    ) -> Batch:
        """Compute the scores of the id that follows each token of the target.

        Parameters
        ----------
        source_ids : array_like or list of array_like
            (B, S), (S,), or a list of (S_i,): a ragged batch.
        target_ids : array_like or list of array_like
            (B, L), (L,), or a list of (L_i,), in the form of `source_ids`; the first of each is usually an id
            that says "start".
        training : bool, default False
            Whether dropout is at work.
        rng : int or numpy.random.Generator, optional
            Seed of dropout; in training a generator is advanced by one draw.
        **masks : optional
            ``source_key_mask`` (B, S), bool or 0 and 1, True = a token, and ``source_lengths`` (B,), tokens
            at the start of each source; ``target_key_mask`` (B, L) and ``target_lengths`` (B,) likewise. What
            stands at other places is not looked at, and such rows of the result are 0. ``window`` is that of
            the decoder's self-attention, counted in tokens.

        Returns
        -------
        ndarray or list of ndarray
            Logits (B, L, V), (L, V), or a list of (L_i, V). A token's hang on the source and on the tokens
            before and at its place, on none after it.

        Raises
        ------
        ValueError
            If an id is out of range, or shapes do not fit (`ShapeError`).
        TypeError
            If ids are no integers (`DTypeError`), one side is a list and the other is not, or a keyword is
            not known.
        """
        source, target = self._read_both(source_ids, target_ids, masks)
        x, y = (
            batch.ragged(self._layers[f"{side}_embedding"](batch.ids) * self._factor)
            for side, batch in (("source", source), ("target", target))
        )
        out = self.transformer(x, y, window=masks.get("window"), training=training, rng=rng)
        logits: Array = self._layers["output_projection"](self._joined(out))
        return target.formed(logits)

    def vjp(
        self,
        source_ids: Batch,
        target_ids: Batch,
        *,
        training: bool = False,
        rng: Rng = None,
        **masks: Unpack[SidesMasks],
    ) -> tuple[Batch, Seq2SeqPullback]:
        """Compute as a call does, and return what turns the gradient of the logits into gradients.

        Parameters
        ----------
        source_ids : array_like or list of array_like
            As in a call.
        target_ids : array_like or list of array_like
            As in a call.
        training : bool, default False
            Whether dropout is at work; the pullback drops the same numbers.
        rng : int or numpy.random.Generator, optional
            Seed of dropout.
        **masks : optional
            As in a call.

        Returns
        -------
        logits : ndarray or list of ndarray
            As of a call, the same bits.
        pullback : callable
            `pullback(d_logits)` gives `((None, None), grads)`: ids have no gradients; `grads` is a dict of
            those of the parameters, named as in `state_dict`. What `d_logits` has in padding is left out.

        Raises
        ------
        ValueError
            As of a call.
        TypeError
            As of a call.
        """
        source, target = self._read_both(source_ids, target_ids, masks)
        x, through_source = self._layers["source_embedding"].vjp(source.ids)
        y, through_target = self._layers["target_embedding"].vjp(target.ids)
        out, through_transformer = self.transformer.vjp(
            source.ragged(x * self._factor),
            target.ragged(y * self._factor),
            window=masks.get("window"),
            training=training,
            rng=rng,
        )
        logits, through_projection = self._layers["output_projection"].vjp(self._joined(out))
        pullbacks = (through_source, through_target, through_transformer, through_projection)
        return target.formed(logits), Seq2SeqPullback(self, target, pullbacks)

    def begin(self, source_ids: Batch, **masks: Unpack[SourceSideMasks]) -> Seq2SeqState:
        """Encode sources, and return the state from which `next` goes on: no token of a target yet.

        Parameters
        ----------
        source_ids : array_like or list of array_like
            As in a call; (S,) is a batch of one.
        **masks : optional
            ``source_key_mask``, ``source_lengths`` and ``window``, as in a call.

        Returns
        -------
        Seq2SeqState
            With a cache of the decoder's keys and values, those of the source already computed.

        Raises
        ------
        ValueError
            As of a call.
        TypeError
            As of a call.
        """
        refuse("begin", {*masks} - SourceSideMasks.__optional_keys__)
        source = self._read("source_ids", source_ids, masks)
        rows = self._layers["source_embedding"](source.ids) * self._factor
        memory = self._joined(self.transformer.encode(source.ragged(rows)))
        # The memory keeps the places of the source: alignments are read beside the source's own ids.
        cache = self.transformer.decoder.new_cache(
            source.padded(memory), memory_key_mask=source.mask, window=masks.get("window")
        )
        return Seq2SeqState(cache)

    def next(
        self, tokens: ArrayLike, state: Seq2SeqState, *, need_weights: bool = False
    ) -> tuple[Array, Array | None]:
        """Take one more token of each target, and return the scores of the next.

        Parameters
        ----------
        tokens : array_like
            (N,) ids, one for each sequence of the state.
        state : Seq2SeqState
            What `begin` returned; it grows by the tokens.
        need_weights : bool, default False
            Whether the attention to the source is returned.

        Returns
        -------
        logits : ndarray
            (N, V), the same bits as the row of a call with all tokens so far.
        weights : ndarray or None
            (N, num_decoder_layers, H, S).

        Raises
        ------
        ValueError
            If an id is out of range, or there are not N of them (`ShapeError`).
        TypeError
            If they are no integers (`DTypeError`), or `state` is of another kind.
        """
        if not hasattr(state, "cache"):
            msg = f"state: expected what begin() returned, got {type(state).__name__}"
            raise ArgumentTypeError(msg)
        read = self._read("tokens", tokens, {})
        if not read.is_single or read.ids.size != len(state):
            msg = f"tokens: expected (N,) with N = {len(state)}, the state's, got shape {np.shape(tokens)}"
            raise ShapeError(msg)
        x = (self._layers["target_embedding"](read.ids) * self._factor)[:, None]
        found = self.transformer.decoder.step(x, state.cache, need_weights=need_weights)
        out, weights = found if need_weights else (found, None)
        logits: Array = self._layers["output_projection"](out[:, 0])
        return logits, None if weights is None else np.stack([w[:, :, 0] for w in weights], axis=1)

    def generate(self, source_ids: Batch, **options: Any) -> Generated:  # noqa: ANN401 - generate's own
        """Generate a target for each source, with `headwise.generation.generate`.

        Parameters
        ----------
        source_ids : array_like or list of array_like
            As in a call.
        **options : object
            `start` and `end`, ids that begin and end a target, and all other options of
            `headwise.generation.generate`, those of `begin` among them.

        Returns
        -------
        Generated
            Token ids, scores and, if asked for, alignments.

        Raises
        ------
        ValueError
            If an option is out of range.
        TypeError
            If an option is missing or not known.
        """
        # What generates is loaded when it is asked for.
        from headwise.generation import generate

        return generate(self, source_ids, **options)

    def _read_both(
        self, source_ids: Batch, target_ids: Batch, masks: Mapping[str, Any]
    ) -> tuple[TokenBatch, TokenBatch]:
        """Return the tokens of both sides, which have one form."""
        refuse("Seq2Seq", {*masks} - SidesMasks.__optional_keys__)
        source = self._read("source_ids", source_ids, masks)
        target = self._read("target_ids", target_ids, masks)
        target.check_form(source)
        return source, target

    def _read(self, name: str, ids: Batch, masks: Mapping[str, Any]) -> TokenBatch:
        """Return the tokens of one side."""
        side = "source" if name == "source_ids" else "target"
        size = self._layers[f"{side}_embedding"].num_embeddings
        return TokenBatch(name, ids, size, masks.get(f"{side}_key_mask"), masks.get(f"{side}_lengths"))

    def _joined(self, items: list[Array]) -> Array:
        return joined(items, self.transformer.d_model, self.dtype)

    def state_dict(self) -> dict[str, Array]:
        """Return copies of the parameters; a shared table once, under the first of its names.

        Returns
        -------
        dict of str to ndarray
            Fresh arrays.
        """
        return self._parts.state_dict()

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Load parameters by name, with or without wrappers' prefixes.

        Parts are loaded one after the other: a call in another thread meanwhile may find some of them before
        it and some after, none in between.

        Parameters
        ----------
        state : mapping of str to array_like
            The parameters. A shared table may have any of its names, or several if they agree.
        strict : bool, default True
            Whether a missing or an unexpected name is an error.

        Raises
        ------
        ValueError
            If a parameter has another shape, names do not fit, or tied ones differ; then nothing changes.
        """
        self._parts.load_state_dict(state, strict)

    def to(self, dtype: _DType) -> Seq2Seq:
        """Return the same model in another dtype.

        Parameters
        ----------
        dtype : {"float32", "float64"}
            What the new one computes in.

        Returns
        -------
        Seq2Seq
            With new layers.
        """
        layers = {name: layer.to(dtype) for name, layer in self._layers.items()}
        return Seq2Seq.__new__(Seq2Seq)._set(layers, self._tied)

    @property
    def transformer(self) -> Transformer:
        """The `Transformer` between the tables and the projection."""
        found: Transformer = self._layers["transformer"]
        return found

    @property
    def num_source_tokens(self) -> int:
        """How many ids the source has."""
        return int(self._layers["source_embedding"].num_embeddings)

    @property
    def num_target_tokens(self) -> int:
        """V, how many ids the target has."""
        return int(self._layers["target_embedding"].num_embeddings)

    @property
    def tied(self) -> Tied:
        """Which tables are one parameter."""
        return self._tied

    @property
    def num_parameters(self) -> int:
        """How many numbers the parameters have; a shared table counts once."""
        return self._parts.num_parameters

    @property
    def dtype(self) -> str:
        """NumPy's name of the dtype that it computes in."""
        return self.transformer.dtype

    def __repr__(self) -> str:
        return f"Seq2Seq({listed(self._layers)})"


# Users know it by the package.
Seq2Seq.__module__ = "headwise"
