"""`Seq2Seq`: ids of a source and of a target to the scores of each next id.

::

    x = source_table[source_ids] sqrt(D)        (B, S, D)
    y = target_table[target_ids] sqrt(D)        (B, L, D)
    logits = projection(transformer(x, y))      (B, L, V)

Inside there are tokens only, back to back: padding is removed before the first table and put back, as zeros,
after the projection. Sums over tokens, those of the gradients, are then the same for every form of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headwise import _core, init
from headwise._errors import ArgumentTypeError, ArgumentValueError, ShapeError
from headwise._parts import Parts, listed
from headwise._seq2seq_state import Seq2SeqState
from headwise._steps import Batch, Layer, Rng, key_of, key_of_place
from headwise._token_batch import TokenBatch, joined
from headwise._transformer import Transformer

if TYPE_CHECKING:
    from headwise._transformer import TransformerPullback
    from headwise.generation import Generated

_DType: TypeAlias = Any
Array = NDArray[Any]

# The names of one shared table; the first is the one that is saved.
_TIED = {
    False: (),
    True: ("target_embedding.weight", "output_projection.weight"),
    "all": ("source_embedding.weight", "target_embedding.weight", "output_projection.weight"),
}


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
        tied: Literal[True, False, "all"] = True,
        output_bias: bool = True,
        positions: Literal["sinusoidal", "rotary", "alibi"] | None = "sinusoidal",
        dtype: _DType = "float32",
        rng: Rng = None,
        **of_the_transformer: Any,  # noqa: ANN401 - what Transformer takes
    ) -> None:
        if tied not in (True, False, "all"):
            msg = f'tied: expected True, False or "all", got {tied!r}'
            raise ArgumentValueError(msg)
        if tied == "all" and num_source_tokens != num_target_tokens:
            msg = (
                f'tied: "all" needs one vocabulary, got {num_source_tokens} ids of the source and '
                f"{num_target_tokens} of the target"
            )
            raise ArgumentValueError(msg)
        key = key_of(rng)
        widths = (d_model, num_heads, num_encoder_layers, num_decoder_layers, d_ff)
        options = {"positions": positions, "dtype": dtype, **of_the_transformer}
        transformer = Transformer(*widths, rng=key_of_place(key, 0), **options)
        sizes = {"source_embedding": num_source_tokens, "target_embedding": num_target_tokens}
        layers: dict[str, Layer] = {
            name: _core.Embedding(size, d_model, dtype=dtype, rng=0) for name, size in sizes.items()
        }
        layers["transformer"] = transformer
        layers["output_projection"] = _core.Linear(
            d_model, num_target_tokens, bias=output_bias, dtype=dtype, rng=key_of_place(key, 3)
        )
        self._set(layers, tied)
        first = {}
        for place, (name, size) in enumerate(sizes.items()):
            if f"{name}.weight" not in _TIED[tied][1:]:
                std, drawn_with = 1 / math.sqrt(d_model), key_of_place(key, 1 + place)
                first[f"{name}.weight"] = init.normal(
                    (size, d_model), std=std, rng=drawn_with, dtype=transformer.dtype
                )
        self.load_state_dict(first, strict=False)

    def _set(self, layers: dict[str, Layer], tied: Literal[True, False, "all"]) -> Seq2Seq:
        self._layers, self._tied = layers, tied
        self._parts = Parts(layers, _TIED[tied])
        width = self.transformer.d_model
        self._factor = np.dtype(self.dtype).type(math.sqrt(width))
        return self

    def __call__(
        self,
        source_ids: Batch,
        target_ids: Batch,
        *,
        source_key_mask: ArrayLike | None = None,
        source_lengths: ArrayLike | None = None,
        target_key_mask: ArrayLike | None = None,
        target_lengths: ArrayLike | None = None,
        window: Any = None,  # noqa: ANN401 - a pair, checked by the decoder
        training: bool = False,
        rng: Rng = None,
    ) -> Batch:
        """Compute the scores of the id that follows each token of the target.

        Parameters
        ----------
        source_ids : array_like or list of array_like
            (B, S), (S,), or a list of (S_i,): a ragged batch.
        target_ids : array_like or list of array_like
            (B, L), (L,), or a list of (L_i,), in the form of `source_ids`; the first of each is usually an id
            that says "start".
        source_key_mask : array_like, optional
            (B, S), bool or 0 and 1. True = a token. What stands at other places is not looked at.
        source_lengths : array_like, optional
            (B,): tokens at the start of each source.
        target_key_mask : array_like, optional
            (B, L), bool or 0 and 1. True = a token; other rows of the result are 0.
        target_lengths : array_like, optional
            (B,): tokens at the start of each target.
        window : tuple, optional
            Sliding window of the decoder's self-attention, counted in tokens.
        training : bool, default False
            Whether dropout is at work.
        rng : int or numpy.random.Generator, optional
            Seed of dropout; in training a generator is advanced by one draw.

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
            If ids are no integers (`DTypeError`), or one side is a list and the other is not.
        """
        source = self._read("source_ids", source_ids, source_key_mask, source_lengths)
        target = self._read("target_ids", target_ids, target_key_mask, target_lengths)
        target.check_form(source)
        tables = self._layers["source_embedding"], self._layers["target_embedding"]
        x, y = (
            batch.ragged(table(batch.ids) * self._factor)
            for table, batch in zip(tables, (source, target), strict=True)
        )
        out = self.transformer(x, y, window=window, training=training, rng=rng)
        logits: Array = self._layers["output_projection"](self._joined(out))
        return target.formed(logits)

    def vjp(
        self,
        source_ids: Batch,
        target_ids: Batch,
        *,
        source_key_mask: ArrayLike | None = None,
        source_lengths: ArrayLike | None = None,
        target_key_mask: ArrayLike | None = None,
        target_lengths: ArrayLike | None = None,
        window: Any = None,  # noqa: ANN401
        training: bool = False,
        rng: Rng = None,
    ) -> tuple[Batch, Seq2SeqPullback]:
        """Compute as a call does, and return what turns the gradient of the logits into gradients.

        Parameters
        ----------
        source_ids : array_like or list of array_like
            As in a call.
        target_ids : array_like or list of array_like
            As in a call.
        source_key_mask : array_like, optional
            As in a call.
        source_lengths : array_like, optional
            As in a call.
        target_key_mask : array_like, optional
            As in a call.
        target_lengths : array_like, optional
            As in a call.
        window : tuple, optional
            As in a call.
        training : bool, default False
            Whether dropout is at work; the pullback drops the same numbers.
        rng : int or numpy.random.Generator, optional
            Seed of dropout.

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
        source = self._read("source_ids", source_ids, source_key_mask, source_lengths)
        target = self._read("target_ids", target_ids, target_key_mask, target_lengths)
        target.check_form(source)
        x, through_source = self._layers["source_embedding"].vjp(source.ids)
        y, through_target = self._layers["target_embedding"].vjp(target.ids)
        out, through_transformer = self.transformer.vjp(
            source.ragged(x * self._factor),
            target.ragged(y * self._factor),
            window=window,
            training=training,
            rng=rng,
        )
        logits, through_projection = self._layers["output_projection"].vjp(self._joined(out))
        pullbacks = (through_source, through_target, through_transformer, through_projection)
        return target.formed(logits), Seq2SeqPullback(self, target, pullbacks)

    def begin(
        self,
        source_ids: Batch,
        *,
        source_key_mask: ArrayLike | None = None,
        source_lengths: ArrayLike | None = None,
        window: Any = None,  # noqa: ANN401
    ) -> Seq2SeqState:
        """Encode sources, and return the state from which `next` goes on: no token of a target yet.

        Parameters
        ----------
        source_ids : array_like or list of array_like
            As in a call; (S,) is a batch of one.
        source_key_mask : array_like, optional
            As in a call.
        source_lengths : array_like, optional
            As in a call.
        window : tuple, optional
            As in a call.

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
        source = self._read("source_ids", source_ids, source_key_mask, source_lengths)
        rows = self._layers["source_embedding"](source.ids) * self._factor
        memory = self._joined(self.transformer.encode(source.ragged(rows)))
        # The memory keeps the places of the source: alignments are read beside the source's own ids.
        cache = self.transformer.decoder.new_cache(
            source.padded(memory), memory_key_mask=source.mask, window=window
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
        read = self._read("tokens", tokens)
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

        # The protocol of models cannot name the keywords that `begin` has here.
        model: Any = self
        return generate(model, source_ids, **options)

    def _read(self, name: str, ids: Batch, key_mask: object = None, lengths: object = None) -> TokenBatch:
        """Return the tokens of one side."""
        table = self._layers["source_embedding" if name == "source_ids" else "target_embedding"]
        return TokenBatch(name, ids, table.num_embeddings, key_mask, lengths)

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
    def tied(self) -> Literal[True, False, "all"]:
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


class Seq2SeqPullback:
    """The second half of `Seq2Seq.vjp`: the pullbacks of its parts, from the last to the first."""

    def __init__(
        self, model: Seq2Seq, target: TokenBatch, pullbacks: tuple[Layer, Layer, TransformerPullback, Layer]
    ) -> None:
        self._model, self._target, self._pullbacks = model, target, pullbacks

    def __call__(self, d_logits: Batch) -> tuple[tuple[None, None], dict[str, Array]]:
        """Return no gradients of the ids, and those of the parameters by name."""
        model, target = self._model, self._target
        through_source, through_target, through_transformer, through_projection = self._pullbacks
        d_rows = target.rows_of("d_logits", d_logits, model.num_target_tokens, model.dtype)
        d_out, of_projection = through_projection(d_rows)
        (d_x, d_y), of_transformer = through_transformer(target.ragged(d_out))
        _, of_source = through_source(model._joined(d_x) * model._factor)
        _, of_target = through_target(model._joined(d_y) * model._factor)
        grads = model._parts.gradients(
            {
                "source_embedding": of_source,
                "target_embedding": of_target,
                "transformer": of_transformer,
                "output_projection": of_projection,
            }
        )
        return (None, None), grads

    def __repr__(self) -> str:
        return "<pullback of Seq2Seq>"


# Users know it by the package.
Seq2Seq.__module__ = "headwise"
