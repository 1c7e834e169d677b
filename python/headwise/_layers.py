"""What the compiled layers need from Python: the result of a stack, and the way back from a pickle."""

from __future__ import annotations

from typing import Any, NamedTuple


class EncoderOutput(NamedTuple):
    """What `Encoder` returns if hidden states or weights are asked for.

    Parameters
    ----------
    output : ndarray or list of ndarray
        (B, L, D) or (L, D); of a ragged batch, a list of (L_i, D).
    hidden_states : list of ndarray or of list of ndarray, or None
        The input and each layer's output, each of the form of `output`; None if not asked for.
    weights : list or dict of ndarray or of list of ndarray, or None
        (B, H, L, L) of each layer, or a dict of (layer, head) to (B, L, L), whichever was asked for.
    """

    output: Any
    hidden_states: list[Any] | None
    weights: Any


class DecoderOutput(NamedTuple):
    """What `Decoder` returns if hidden states or weights are asked for.

    Parameters
    ----------
    output : ndarray or list of ndarray
        (B, L, D) or (L, D); of a ragged batch, a list of (L_i, D).
    hidden_states : list of ndarray or of list of ndarray, or None
        The input and each layer's output, each of the form of `output`; None if not asked for.
    weights : list or dict of ndarray or of list of ndarray, or None
        Of self-attention: (B, H, L, L) of each layer, or a dict of (layer, head) to (B, L, L).
    cross_weights : list or dict of ndarray or of list of ndarray, or None
        Of attention to the memory: (B, H, L, S) of each layer, or a dict of (layer, head) to (B, L, S).
    """

    output: Any
    hidden_states: list[Any] | None
    weights: Any
    cross_weights: Any


for _field, _text in {
    "output": "The output of the last layer.",
    "hidden_states": "The input and each layer's output, or None.",
    "weights": "Weights of each layer, or of each (layer, head) asked for, or None.",
}.items():
    getattr(EncoderOutput, _field).__doc__ = _text
    getattr(DecoderOutput, _field).__doc__ = _text
DecoderOutput.cross_weights.__doc__ = (
    "Weights over the memory, of each layer or of each (layer, head), or None."
)


def rebuild(
    cls: type[Any],
    keywords: dict[str, Any],
    pruned: dict[int, list[int]] | tuple[Any, Any] | None,
    state: dict[str, Any],
) -> object:
    """Make a layer again from what its `__reduce__` gave.

    Pruned heads are a tuple where the layer has two attentions.
    """
    layer = cls(**keywords)
    if pruned:
        layer = layer.prune_heads(*pruned) if isinstance(pruned, tuple) else layer.prune_heads(pruned)
    layer.load_state_dict(state)
    return layer
