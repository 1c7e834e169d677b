"""What the compiled layers need from Python: the result of a stack, and the way back from a pickle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from headwise._core import Encoder, EncoderLayer, MultiHeadAttention

Layer = TypeVar("Layer", "MultiHeadAttention", "EncoderLayer", "Encoder")


class EncoderOutput(NamedTuple):
    """What `Encoder` returns if hidden states or weights are asked for."""

    #: The output, (B, L, D), or a list of (L_i, D).
    output: Any
    #: The input and each layer's output, or None.
    hidden_states: list[Any] | None
    #: (B, H, L, L) of each layer, or a dict of (layer, head) to (B, L, L), or None.
    weights: Any


def rebuild(
    cls: type[Layer], keywords: dict[str, Any], pruned: dict[int, list[int]] | None, state: dict[str, Any]
) -> Layer:
    """Make a layer again from what its `__reduce__` gave."""
    layer = cls(**keywords, rng=0)
    if pruned:
        layer = layer.prune_heads(pruned)
    layer.load_state_dict(state)
    return layer
