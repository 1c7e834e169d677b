"""`RecurrentSeq2Seq`: a recurrent encoder and decoder, and three ways to tell the one what the other read.

::

    h_1..h_S = encoder(x_1..x_S),   c = [last forward state; last backward state],   s_0 = tanh(W_b c + b_b)
    every_step    s_t = cell(s_t-1, [y_t; c])   r_t = tanh(W_r [s_t; c] + b_r)        (Cho et al. 2014)
    first_state   s_t = cell(s_t-1, y_t)        r_t = tanh(W_r s_t + b_r)             (Sutskever et al. 2014)
    attention     s_t = cell(s_t-1, y_t)        c_t = attention(s_t, h, h)
                                                r_t = tanh(W_r [s_t; c_t] + b_r)      (Luong et al. 2015)
    logits_t = W_o r_t + b_o
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headwise import _core
from headwise._errors import ArgumentTypeError, ArgumentValueError, ShapeError
from headwise._parts import Parts, listed
from headwise._recurrent_parts import CELLS, SCORES, Attend, Calls, RecurrentState, padded, rows_of
from headwise._recurrent_pullback import RecurrentSeq2SeqPullback
from headwise._seq2seq_parts import SidesMasks, SourceSideMasks
from headwise._steps import Batch, Layer, Rng, key_of, key_of_place
from headwise._token_batch import TokenBatch, joined
from headwise._transformer_masks import refuse

if TYPE_CHECKING:
    from headwise.generation import Generated

_DType: TypeAlias = Any
Array = NDArray[Any]
Context: TypeAlias = Literal["every_step", "first_state", "attention"]
_CONTEXTS = ("every_step", "first_state", "attention")


class RecurrentSeq2Seq:
    """A recurrent encoder-decoder: sequences of ids to sequences of ids.

    Parameters
    ----------
    num_source_tokens : int
        How many ids the source has.
    num_target_tokens : int
        V, how many ids the target has.
    d_model : int, default 256
        D, width of the token embeddings.
    hidden_size : int, default 256
        H, width of the states of the decoder, and of each direction of the encoder.
    num_layers : int, default 1
        Layers of the encoder and of the decoder.
    cell : {"gru", "lstm", "rnn"}, default "gru"
        The recurrent layers: `GRU`, `LSTM` or `RNN`.
    context : {"attention", "first_state", "every_step"}, default "attention"
        What the decoder knows of the source: the encoder's last state as an input of every step (Cho et al.,
        2014 [1]_), the same as its first state alone (Sutskever et al., 2014 [2]_), or, computed anew at
        every step, attention from its own state over all states of the encoder (Bahdanau et al., 2015 [3]_;
        in the form of Luong et al., 2015 [4]_, which reads it after the step).
    score : {"bilinear", "additive", "dot", "scaled_dot"}, default "bilinear"
        How attention compares states; the products need 2 H = H, that is ``bidirectional=False``.
    normalize : str or TopK, default "softmax"
        How scores become weights, as in `attention`: "hard" looks at one state at a time; in training it is
        drawn, and scores learn by the score-function gradient (Xu et al., 2015 [5]_).
    bidirectional : bool, default True
        Whether the encoder reads from both ends.
    dropout : float, default 0.0
        Between recurrent layers, in training.
    dtype : {"float32", "float64"}, default "float32"
        What the model computes and answers in.
    rng : int or numpy.random.Generator, optional
        From which the first parameters are drawn.

    Raises
    ------
    ValueError
        If a width is 0, or a name is not one of those above.

    See Also
    --------
    Seq2Seq : The same task by a transformer.
    generate : Greedy, beam search and sampling.

    Notes
    -----
    An LSTM's memory cell begins with zeros.

    References
    ----------
    .. [1] K. Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine
       Translation", 2014. https://arxiv.org/abs/1406.1078
    .. [2] I. Sutskever, O. Vinyals, Q. V. Le, "Sequence to Sequence Learning with Neural Networks", 2014.
       https://arxiv.org/abs/1409.3215
    .. [3] D. Bahdanau, K. Cho, Y. Bengio, "Neural Machine Translation by Jointly Learning to Align and
       Translate", 2015. https://arxiv.org/abs/1409.0473
    .. [4] M.-T. Luong, H. Pham, C. D. Manning, "Effective Approaches to Attention-based Neural Machine
       Translation", 2015. https://arxiv.org/abs/1508.04025
    .. [5] K. Xu et al., "Show, Attend and Tell", 2015. https://arxiv.org/abs/1502.03044

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> model = hw.RecurrentSeq2Seq(30, 12, 16, 24, rng=0)
    >>> source, target = np.ones((3, 7), dtype=int), np.ones((3, 5), dtype=int)
    >>> model(source, target, source_lengths=[7, 4, 2]).shape
    (3, 5, 12)
    """

    def __init__(
        self,
        num_source_tokens: int,
        num_target_tokens: int,
        d_model: int = 256,
        hidden_size: int = 256,
        num_layers: int = 1,
        *,
        cell: Literal["gru", "lstm", "rnn"] = "gru",
        context: Context = "attention",
        score: Literal["bilinear", "additive", "dot", "scaled_dot"] = "bilinear",
        normalize: Any = "softmax",  # noqa: ANN401 - what `attention` takes
        bidirectional: bool = True,
        dropout: float = 0.0,
        dtype: _DType = "float32",
        rng: Rng = None,
    ) -> None:
        for name, given, known in (
            ("cell", cell, CELLS),
            ("context", context, _CONTEXTS),
            ("score", score, SCORES),
        ):
            if given not in known:
                msg = f"{name}: expected one of {', '.join(map(repr, known))}, got {given!r}"
                raise ArgumentValueError(msg)
        key = key_of(rng)
        keys = iter(key_of_place(key, place) for place in range(8))
        of_memory = (1 + bidirectional) * hidden_size
        if context == "attention" and score in ("dot", "scaled_dot") and of_memory != hidden_size:
            msg = (
                f"score: {score!r} compares states of one width, got {hidden_size} of the decoder and "
                f"{of_memory} of the encoder; pass bidirectional=False, or score='bilinear'"
            )
            raise ArgumentValueError(msg)
        kind = getattr(_core, CELLS[cell])
        extra = {"every_step": of_memory, "first_state": 0, "attention": of_memory}[context]
        to_cell = d_model + (of_memory if context == "every_step" else 0)
        options = {"num_layers": num_layers, "dropout": dropout, "dtype": dtype}
        layers: dict[str, Layer] = {
            "source_embedding": _core.Embedding(num_source_tokens, d_model, dtype=dtype, rng=next(keys)),
            "target_embedding": _core.Embedding(num_target_tokens, d_model, dtype=dtype, rng=next(keys)),
            "encoder": kind(d_model, hidden_size, bidirectional=bidirectional, rng=next(keys), **options),
            "bridge": _core.Linear(of_memory, num_layers * hidden_size, dtype=dtype, rng=next(keys)),
            "decoder": kind(to_cell, hidden_size, rng=next(keys), **options),
            "readout": _core.Linear(hidden_size + extra, hidden_size, dtype=dtype, rng=next(keys)),
            "output_projection": _core.Linear(hidden_size, num_target_tokens, dtype=dtype, rng=next(keys)),
        }
        make_score = SCORES[score]
        if context == "attention" and make_score is not None:
            layers["score"] = make_score(hidden_size, of_memory, hidden_size, dtype, next(keys))
        self._set(layers, (cell, context, score, normalize))

    def _set(self, layers: dict[str, Layer], how: tuple[Any, ...]) -> RecurrentSeq2Seq:
        self._layers, self._how = layers, how
        self._cell, self._context, self._score, self._normalize = how
        self._parts = Parts(layers)
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
            that says "start": the answers are given to the decoder (teacher forcing).
        training : bool, default False
            Whether dropout is at work, and hard attention drawn.
        rng : int or numpy.random.Generator, optional
            Seed of both; in training a generator is advanced by one draw.
        **masks : optional
            ``source_key_mask`` (B, S) or ``source_lengths`` (B,), ``target_key_mask`` (B, L) or
            ``target_lengths`` (B,): the tokens. What stands at other places is not looked at.

        Returns
        -------
        ndarray or list of ndarray
            Logits (B, L, V), (L, V), or a list of (L_i, V); rows of padding are 0.

        Raises
        ------
        ValueError
            If an id is out of range, or shapes do not fit (`ShapeError`).
        TypeError
            If ids are no integers (`DTypeError`), or one side is a list and the other is not.
        """
        source, target = self._read_both(source_ids, target_ids, masks)
        rows, _ = self._forward(source, target, Calls(False), training, rng)
        return target.formed(rows)

    def vjp(
        self,
        source_ids: Batch,
        target_ids: Batch,
        *,
        training: bool = False,
        rng: Rng = None,
        **masks: Unpack[SidesMasks],
    ) -> tuple[Batch, RecurrentSeq2SeqPullback]:
        """Compute as a call does, and return what turns the gradient of the logits into gradients.

        Parameters
        ----------
        source_ids : array_like or list of array_like
            As in a call.
        target_ids : array_like or list of array_like
            As in a call.
        training : bool, default False
            Whether dropout is at work, and hard attention drawn.
        rng : int or numpy.random.Generator, optional
            Seed of both.
        **masks : optional
            As in a call.

        Returns
        -------
        logits : ndarray or list of ndarray
            As of a call, the same bits.
        pullback : callable
            `pullback(d_logits)` gives `((None, None), grads)`: ids have no gradients; `grads` is a dict of
            those of the parameters, named as in `state_dict`.

        Raises
        ------
        ValueError
            As of a call.
        TypeError
            As of a call.
        """
        source, target = self._read_both(source_ids, target_ids, masks)
        calls = Calls(True)
        rows, kept = self._forward(source, target, calls, training, rng)
        return target.formed(rows), RecurrentSeq2SeqPullback(self, (source, target), calls, kept)

    def _forward(
        self, source: TokenBatch, target: TokenBatch, call: Calls, training: bool, rng: Rng
    ) -> tuple[Array, dict[str, Array]]:
        """Return the logits of the target's tokens (T, V), and what the way back needs."""
        layers, key = self._layers, key_of(rng) if training else 0
        of_encoder, of_decoder = ({"training": training, "rng": key_of_place(key, place)} for place in (0, 1))
        x = call("source_embedding", layers["source_embedding"], source.ids)
        memory, last = call("encoder", layers["encoder"], source.ragged(x), **of_encoder)
        summary = self._summary(last)
        first = _core._pooling_map("tanh", call("bridge", layers["bridge"], summary))
        y = call("target_embedding", layers["target_embedding"], target.ids)
        repeated = np.repeat(summary, target.lengths, axis=0)
        if self._context == "every_step":
            y = np.concatenate([y, repeated], axis=1)
        begin = self._first_state(first)
        states, _ = call("decoder", layers["decoder"], target.ragged(y), begin, **of_decoder)
        read = joined(states, self.hidden_size, self.dtype)
        if self._context == "every_step":
            read = np.concatenate([read, repeated], axis=1)
        elif self._context == "attention":
            drawn = key_of_place(key, 2) if training and self._normalize == "hard" else None
            context = call(
                "attention",
                Attend(layers.get("score", self._score), self._normalize, drawn),
                padded(states, self.hidden_size, self.dtype),
                padded(memory, self._of_memory, self.dtype),
                source.lengths,
            )
            read = np.concatenate([read, rows_of(context, target.lengths)], axis=1)
        hidden = _core._pooling_map("tanh", call("readout", layers["readout"], read))
        logits: Array = call("output_projection", layers["output_projection"], hidden)
        return logits, {"first": first, "hidden": hidden}

    def _summary(self, last: Any) -> Array:  # noqa: ANN401 - h, or (h, c)
        """Return the last layer's last states of both directions, side by side (B, C)."""
        h = last[0] if self._cell == "lstm" else last
        of_last = h[-(self._of_memory // self.hidden_size) :]
        return np.ascontiguousarray(np.moveaxis(of_last, 0, 1)).reshape(h.shape[1], self._of_memory)

    def _d_last(self, d_summary: Array) -> Any:  # noqa: ANN401 - of h, or (h, c)
        """Return the gradient of the encoder's last states from that of the summary (B, C)."""
        layers, b, h = self._layers["encoder"].num_layers, len(d_summary), self.hidden_size
        directions = self._of_memory // h
        d_h = np.zeros((layers * directions, b, h), dtype=d_summary.dtype)
        d_h[-directions:] = np.moveaxis(d_summary.reshape(b, directions, h), 0, 1)
        return (d_h, np.zeros_like(d_h)) if self._cell == "lstm" else d_h

    def _first_state(self, rows: Array) -> Any:  # noqa: ANN401 - h, or (h, c)
        """Return rows (B, layers H) as a state of the decoder."""
        h = np.ascontiguousarray(np.moveaxis(rows.reshape(len(rows), -1, self.hidden_size), 1, 0))
        return (h, np.zeros_like(h)) if self._cell == "lstm" else h

    def begin(self, source_ids: Batch, **masks: Unpack[SourceSideMasks]) -> RecurrentState:
        """Encode sources, and return the state from which `next` goes on: no token of a target yet.

        Parameters
        ----------
        source_ids : array_like or list of array_like
            As in a call; (S,) is a batch of one.
        **masks : optional
            ``source_key_mask`` and ``source_lengths``, as in a call.

        Returns
        -------
        RecurrentState
            With the encoder's states and the decoder's first.

        Raises
        ------
        ValueError
            As of a call.
        TypeError
            As of a call.
        """
        refuse("begin", {*masks} - {"source_key_mask", "source_lengths"})
        source = self._read("source_ids", source_ids, masks)
        x = self._layers["source_embedding"](source.ids)
        memory, last = self._layers["encoder"](source.ragged(x))
        summary = self._summary(last)
        first = _core._pooling_map("tanh", self._layers["bridge"](summary))
        # The memory keeps the places of the source: alignments are read beside the source's own ids.
        rows = source.padded(joined(memory, self._of_memory, self.dtype))
        return RecurrentState(self._first_state(first), summary, rows, source.mask)

    def next(
        self,
        tokens: ArrayLike,
        state: Any,  # noqa: ANN401 - a RecurrentState, checked
        *,
        need_weights: bool = False,
    ) -> tuple[Array, Array | None]:
        """Take one more token of each target, and return the scores of the next.

        Parameters
        ----------
        tokens : array_like
            (N,) ids, one for each sequence of the state.
        state : RecurrentState
            What `begin` returned; it goes on by the tokens.
        need_weights : bool, default False
            Whether the attention to the source is returned.

        Returns
        -------
        logits : ndarray
            (N, V), the same bits as the row of a call with all tokens so far.
        weights : ndarray or None
            (N, 1, 1, S): one layer of one head.

        Raises
        ------
        ValueError
            If an id is out of range, there are not N of them (`ShapeError`), or weights are asked of a model
            without attention.
        TypeError
            If they are no integers (`DTypeError`), or `state` is of another kind.
        """
        if not isinstance(state, RecurrentState):
            msg = f"state: expected what begin() returned, got {type(state).__name__}"
            raise ArgumentTypeError(msg)
        if need_weights and self._context != "attention":
            msg = f"need_weights: a decoder with context={self._context!r} has no attention"
            raise ArgumentValueError(msg)
        read = self._read("tokens", tokens, {})
        if not read.is_single or read.ids.size != len(state):
            msg = f"tokens: expected (N,) with N = {len(state)}, the state's, got shape {np.shape(tokens)}"
            raise ShapeError(msg)
        layers, weights = self._layers, None
        y = layers["target_embedding"](read.ids)
        if self._context == "every_step":
            y = np.concatenate([y, state.summary], axis=1)
        out, state.cell = layers["decoder"](y[:, None], state.cell)
        rows = out[:, 0]
        if self._context == "every_step":
            rows = np.concatenate([rows, state.summary], axis=1)
        elif self._context == "attention":
            score = Attend(layers.get("score", self._score), self._normalize, None)
            context, weights = score.over(out, state.memory, state.key_mask)
            rows = np.concatenate([rows, context[:, 0, 0]], axis=1)
        hidden = _core._pooling_map("tanh", layers["readout"](np.ascontiguousarray(rows)))
        logits: Array = layers["output_projection"](hidden)
        return logits, weights if need_weights else None

    def generate(self, source_ids: Batch, **options: Any) -> Generated:  # noqa: ANN401 - generate's own
        """Generate a target for each source, with `headwise.generation.generate`.

        Parameters
        ----------
        source_ids : array_like or list of array_like
            As in a call.
        **options : object
            `start`, `end` and the others of `generate`, and the masks of `begin`.

        Returns
        -------
        Generated
            With `tokens`, `scores`, `finished` and `alignments`.

        Raises
        ------
        ValueError
            As of `generate`.
        TypeError
            As of `generate`.
        """
        from headwise import generation

        return generation.generate(self, source_ids, **options)

    def _read_both(
        self, source_ids: Batch, target_ids: Batch, masks: Mapping[str, Any]
    ) -> tuple[TokenBatch, TokenBatch]:
        refuse("RecurrentSeq2Seq", {*masks} - (SidesMasks.__optional_keys__ - {"window"}))
        source = self._read("source_ids", source_ids, masks)
        target = self._read("target_ids", target_ids, masks)
        target.check_form(source)
        return source, target

    def _read(self, name: str, ids: Batch, masks: Mapping[str, Any]) -> TokenBatch:
        """Return the tokens of one side."""
        side = "source" if name == "source_ids" else "target"
        size = self._layers[f"{side}_embedding"].num_embeddings
        return TokenBatch(name, ids, size, masks.get(f"{side}_key_mask"), masks.get(f"{side}_lengths"))

    def state_dict(self) -> dict[str, Array]:
        """Return copies of the parameters.

        Returns
        -------
        dict of str to ndarray
            Fresh arrays, each under its layer's name, a dot and torch's name.
        """
        return self._parts.state_dict()

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Load parameters by name, with or without wrappers' prefixes.

        Parameters
        ----------
        state : mapping of str to array_like
            The parameters.
        strict : bool, default True
            Whether a missing or an unexpected name is an error.

        Raises
        ------
        ValueError
            If a parameter has another shape, or names do not fit; then nothing changes.
        """
        self._parts.load_state_dict(state, strict)

    def to(self, dtype: _DType) -> RecurrentSeq2Seq:
        """Return the same model in another dtype.

        Parameters
        ----------
        dtype : {"float32", "float64"}
            What the new one computes in.

        Returns
        -------
        RecurrentSeq2Seq
            With new layers.
        """
        layers = {name: layer.to(dtype) for name, layer in self._layers.items()}
        return RecurrentSeq2Seq.__new__(RecurrentSeq2Seq)._set(layers, self._how)

    @property
    def context(self) -> Context:
        """What the decoder knows of the source."""
        found: Context = self._context
        return found

    @property
    def hidden_size(self) -> int:
        """H."""
        return int(self._layers["decoder"].hidden_size)

    @property
    def d_model(self) -> int:
        """D."""
        return int(self._layers["source_embedding"].embedding_dim)

    @property
    def _of_memory(self) -> int:
        return int(self._layers["bridge"].in_features)

    @property
    def num_parameters(self) -> int:
        """How many numbers the parameters have."""
        return self._parts.num_parameters

    @property
    def dtype(self) -> str:
        """NumPy's name of the dtype that it computes in."""
        return str(self._layers["decoder"].dtype)

    def __repr__(self) -> str:
        return f"RecurrentSeq2Seq(context={self._context!r}, {listed(self._layers)})"


# Users know it by the package.
RecurrentSeq2Seq.__module__ = "headwise"
