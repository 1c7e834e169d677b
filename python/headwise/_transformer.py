"""`Transformer`: an encoder of the source, and a decoder of the target that reads what the encoder made.

``memory = encoder(source)``, ``out = decoder(target, memory)``; gradients go the other way, and what the
decoder gives for the memory goes into the encoder. All that is added are names, and the way of a call's
keywords to the two stacks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias, Unpack

from numpy.typing import NDArray

from headwise import _core
from headwise._errors import HeadwiseError
from headwise._parts import Parts, listed
from headwise._steps import Batch, Layer, Rng, key_of, key_of_place
from headwise._transformer_masks import OF_DECODER, OF_ENCODER, Masks, SourceMasks, plan, refuse

_DType: TypeAlias = Any


class Transformer:
    """An encoder and a decoder: a target that attends to itself and to a source.

    Parameters
    ----------
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
    positions : {None, "sinusoidal", "rotary", "alibi"}, default None
        How tokens of source and target are told apart by their place, as in `Encoder` and `Decoder`.
    final_norm : bool, default True
        Whether a norm follows the last layer of each stack, as in torch.
    dtype : {"float32", "float64"}, default "float32"
        What the layers compute and answer in.
    rng : int or numpy.random.Generator, optional
        From which the first parameters are drawn.
    **of_the_layers : object
        `num_kv_heads`, `head_dim`, `activation`, `norm`, `norm_first`, `layer_norm_eps`, `ffn`, `bias` and
        `dropout`, as in `EncoderLayer` and `DecoderLayer`.

    Raises
    ------
    ValueError
        If a width is 0 or does not divide, or a name is not one of those above.
    TypeError
        If an option is not known.

    See Also
    --------
    Seq2Seq : The same with token embeddings and an output projection.

    Notes
    -----
    Names of parameters are those of ``torch.nn.Transformer`` (``encoder.layers.0.self_attn.in_proj_weight``,
    ``decoder.norm.weight``): its states load.

    References
    ----------
    .. [1] A. Vaswani et al., "Attention Is All You Need", 2017. https://arxiv.org/abs/1706.03762

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> model = hw.Transformer(16, 4, 2, 2, 32, rng=0)
    >>> source, target = np.ones((3, 7, 16)), np.ones((3, 5, 16))
    >>> model(source, target, source_lengths=[7, 4, 2]).shape
    (3, 5, 16)
    """

    def __init__(
        self,
        d_model: int = 512,
        num_heads: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        d_ff: int = 2048,
        *,
        positions: Literal["sinusoidal", "rotary", "alibi"] | None = None,
        final_norm: bool = True,
        dtype: _DType = "float32",
        rng: Rng = None,
        **of_the_layers: Any,  # noqa: ANN401 - what the compiled stacks take
    ) -> None:
        key = key_of(rng)
        width = (d_model, num_heads, d_ff)
        options = {"positions": positions, "final_norm": final_norm, "dtype": dtype, **of_the_layers}
        encoder = _core.Encoder(num_encoder_layers, *width, rng=key_of_place(key, 0), **options)
        decoder = _core.Decoder(num_decoder_layers, *width, rng=key_of_place(key, 1), **options)
        self._set(encoder, decoder)

    def _set(self, encoder: Layer, decoder: Layer) -> Transformer:
        self._encoder, self._decoder = encoder, decoder
        self._parts = Parts({"encoder": encoder, "decoder": decoder})
        return self

    def __call__(
        self,
        source: Batch,
        target: Batch,
        *,
        training: bool = False,
        rng: Rng = None,
        **masks: Unpack[Masks],
    ) -> Batch:
        """Encode the source, and decode the target beside it.

        Parameters
        ----------
        source : array_like or list of array_like
            (B, S, D), (S, D), or a list of (S_i, D): a ragged batch.
        target : array_like or list of array_like
            (B, L, D), (L, D), or a list of (L_i, D), in the form of `source`.
        training : bool, default False
            Whether dropout is at work.
        rng : int or numpy.random.Generator, optional
            Seed of dropout; in training a generator is advanced by one draw.
        **masks : optional
            ``source_key_mask`` (B, S) or ``source_lengths`` (B,) name the tokens of the source: encoder and
            decoder attend to no others. ``target_key_mask`` (B, L) or ``target_lengths`` (B,) name those of
            the target; other rows of the result are 0. ``is_causal`` (True by default), ``window`` and
            ``target_mask`` are those of the decoder's self-attention, ``source_window`` and ``source_mask``
            of the encoder's, ``memory_mask`` (broadcast to (B, H, L, S)) is that of the attention from the
            target to the source. ``source_head_mask`` (num_encoder_layers, H), ``target_head_mask`` and
            ``cross_head_mask`` (num_decoder_layers, H) are factors of the heads.

        Returns
        -------
        ndarray or list of ndarray
            Of the form of `target`.

        Raises
        ------
        ValueError
            If shapes do not fit (`ShapeError`) or a value is out of range.
        TypeError
            If one input is a list and the other is not, or a keyword is not known.
        """
        of_encoder, of_decoder = plan(masks, training, rng)
        memory = _named("encoder", self._encoder, source, **of_encoder)
        return _named("decoder", self._decoder, target, memory, **of_decoder)

    def encode(self, source: Batch, **masks: Unpack[SourceMasks]) -> Batch:
        """Return the memory: what the decoder attends to, the encoder's output.

        Parameters
        ----------
        source : array_like or list of array_like
            (B, S, D), (S, D), or a list of (S_i, D).
        **masks : optional
            Those of the source, as in a call.

        Returns
        -------
        ndarray or list of ndarray
            Of the form of `source`; padded rows are 0.

        Raises
        ------
        ValueError
            If shapes do not fit (`ShapeError`).
        TypeError
            If a keyword is not known.
        """
        refuse("encode", {*masks} - {*OF_ENCODER})
        of_encoder, _ = plan(masks, False, None)
        return _named("encoder", self._encoder, source, **of_encoder)

    def vjp(
        self,
        source: Batch,
        target: Batch,
        *,
        training: bool = False,
        rng: Rng = None,
        **masks: Unpack[Masks],
    ) -> tuple[Batch, TransformerPullback]:
        """Compute as a call does, and return what turns the gradient of the result into gradients.

        Parameters
        ----------
        source : array_like or list of array_like
            As in a call. It is held, not copied, and must not be changed before the pullback was called.
        target : array_like or list of array_like
            As in a call, held as well.
        training : bool, default False
            Whether dropout is at work; the pullback drops the same numbers.
        rng : int or numpy.random.Generator, optional
            Seed of dropout.
        **masks : optional
            As in a call.

        Returns
        -------
        out : ndarray or list of ndarray
            As of a call, the same bits.
        pullback : callable
            `pullback(d_out)` gives `((d_source, d_target), grads)`: the gradients of the inputs, and a dict
            of those of the parameters, named as in `state_dict`, and of the head masks that were given.

        Raises
        ------
        ValueError
            As of a call.
        TypeError
            As of a call.
        """
        of_encoder, of_decoder = plan(masks, training, rng)
        memory, through_encoder = _named("encoder", self._encoder.vjp, source, **of_encoder)
        out, through_decoder = _named("decoder", self._decoder.vjp, target, memory, **of_decoder)
        given = {name for name, value in masks.items() if name.endswith("head_mask") and value is not None}
        return out, TransformerPullback(self._parts, through_encoder, through_decoder, given)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return copies of the parameters, under torch's names.

        Returns
        -------
        dict of str to ndarray
            Fresh arrays: ``encoder.*``, then ``decoder.*``.
        """
        return self._parts.state_dict()

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Load parameters by name, with or without wrappers' prefixes.

        The encoder is loaded first, then the decoder: a call in another thread meanwhile may find the one
        loaded and the other not, neither in between.

        Parameters
        ----------
        state : mapping of str to array_like
            The parameters; the state of a ``torch.nn.Transformer`` as arrays fits.
        strict : bool, default True
            Whether a missing or an unexpected name is an error.

        Raises
        ------
        ValueError
            If a parameter has another shape, or names do not fit; then nothing changes.
        """
        self._parts.load_state_dict(state, strict)

    def to(self, dtype: _DType) -> Transformer:
        """Return the same model in another dtype.

        Parameters
        ----------
        dtype : {"float32", "float64"}
            What the new one computes in.

        Returns
        -------
        Transformer
            With new layers.
        """
        return Transformer.__new__(Transformer)._set(self._encoder.to(dtype), self._decoder.to(dtype))

    def prune_heads(
        self,
        source_heads: Mapping[int, Iterable[int]] | None = None,
        target_heads: Mapping[int, Iterable[int]] | None = None,
        cross_heads: Mapping[int, Iterable[int]] | None = None,
    ) -> Transformer:
        """Return a model without some heads, smaller by their parameters.

        Parameters
        ----------
        source_heads : mapping of int to iterable of int, optional
            The heads of the encoder that go, by layer.
        target_heads : mapping of int to iterable of int, optional
            The heads of the decoder's self-attention that go, by layer.
        cross_heads : mapping of int to iterable of int, optional
            The heads that attend to the source and go, by layer of the decoder.

        Returns
        -------
        Transformer
            With new layers.

        Raises
        ------
        ValueError
            If a layer or a head is not there, or a layer would be left without heads.
        """
        return Transformer.__new__(Transformer)._set(
            _named("encoder", self._encoder.prune_heads, source_heads or {}),
            _named("decoder", self._decoder.prune_heads, target_heads or {}, cross_heads or {}),
        )

    @property
    def encoder(self) -> Layer:
        """The `Encoder`."""
        return self._encoder

    @property
    def decoder(self) -> Layer:
        """The `Decoder`."""
        return self._decoder

    @property
    def num_parameters(self) -> int:
        """How many numbers the parameters have."""
        return self._parts.num_parameters

    @property
    def d_model(self) -> int:
        """D."""
        return int(self._encoder.d_model)

    @property
    def dtype(self) -> str:
        """NumPy's name of the dtype that it computes in."""
        return str(self._encoder.dtype)

    def __repr__(self) -> str:
        return f"Transformer({listed({'encoder': self._encoder, 'decoder': self._decoder})})"


class TransformerPullback:
    """The second half of `Transformer.vjp`: the decoder's pullback, then the encoder's."""

    def __init__(self, parts: Parts, through_encoder: Layer, through_decoder: Layer, given: set[str]) -> None:
        self._parts, self._given = parts, given
        self._through_encoder, self._through_decoder = through_encoder, through_decoder

    def __call__(self, d_out: Batch) -> tuple[tuple[Batch, Batch], dict[str, NDArray[Any]]]:
        """Return the gradients of source and target, and those of the parameters by name."""
        (d_target, d_memory), of_decoder = self._through_decoder(d_out)
        d_source, of_encoder = self._through_encoder(d_memory)
        of_masks: dict[str, NDArray[Any]] = {}
        for names, grads in ((OF_ENCODER, of_encoder), (OF_DECODER, of_decoder)):
            of_masks |= {name: grads.pop(own) for name, own in names.items() if name in self._given}
        grads = self._parts.gradients({"encoder": of_encoder, "decoder": of_decoder})
        return (d_source, d_target), grads | of_masks

    def __repr__(self) -> str:
        return "<pullback of Transformer>"


def _named(name: str, f: Layer, *arrays: Batch, **keywords: Any) -> Any:  # noqa: ANN401 - what `f` gives
    """Call a stack or its vjp; an error says which stack it was."""
    try:
        return f(*arrays, **keywords)
    except HeadwiseError as error:
        raise type(error)(f"{name}: {error}") from error


# Users know it by the package.
Transformer.__module__ = "headwise"
