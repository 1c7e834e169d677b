"""The masks of a `Transformer`'s call, and under which names its two stacks have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from numpy.typing import ArrayLike

from headwise._errors import ArgumentTypeError
from headwise._steps import Rng, key_of, key_of_place


class SourceMasks(TypedDict, total=False):
    """Of the encoder; the key mask and the lengths name keys of the decoder, too."""

    source_mask: ArrayLike | None
    source_key_mask: ArrayLike | None
    source_lengths: ArrayLike | None
    source_window: Any
    source_head_mask: ArrayLike | None


class Masks(SourceMasks, total=False):
    """Of both."""

    target_mask: ArrayLike | None
    target_key_mask: ArrayLike | None
    target_lengths: ArrayLike | None
    is_causal: bool
    window: Any
    memory_mask: ArrayLike | None
    target_head_mask: ArrayLike | None
    cross_head_mask: ArrayLike | None


OF_ENCODER = {
    "source_mask": "attn_mask",
    "source_key_mask": "key_mask",
    "source_lengths": "lengths",
    "source_window": "window",
    "source_head_mask": "head_mask",
}
OF_DECODER = {
    "target_mask": "attn_mask",
    "target_key_mask": "key_mask",
    "target_lengths": "lengths",
    "is_causal": "is_causal",
    "window": "window",
    "memory_mask": "memory_mask",
    "source_key_mask": "memory_key_mask",
    "source_lengths": "memory_lengths",
    "target_head_mask": "head_mask",
    "cross_head_mask": "cross_head_mask",
}

# What torch calls them; padding is True there where headwise's key masks are False.
_TORCH = {
    "src_mask": "source_mask",
    "tgt_mask": "target_mask",
    "src_key_padding_mask": "source_key_mask",
    "tgt_key_padding_mask": "target_key_mask",
    "memory_key_padding_mask": "source_key_mask",
}


def plan(masks: Mapping[str, object], training: bool, rng: Rng) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the keywords of the encoder and of the decoder; each has a key of its own for dropout."""
    refuse("Transformer", {name for name in masks if name not in OF_ENCODER and name not in OF_DECODER})
    of_encoder, of_decoder = (
        {own: masks[name] for name, own in names.items() if masks.get(name) is not None}
        for names in (OF_ENCODER, OF_DECODER)
    )
    if training:
        key = key_of(rng)
        of_encoder |= {"training": True, "rng": key_of_place(key, 0)}
        of_decoder |= {"training": True, "rng": key_of_place(key, 1)}
    return of_encoder, of_decoder


def refuse(caller: str, unknown: set[str]) -> None:
    """Fail if there are unknown keywords; of torch's names the text says what to pass instead."""
    for name in sorted(unknown):
        text = f"{caller}() got an unexpected keyword argument {name!r}"
        if name in _TORCH and name.endswith("padding_mask"):
            text += f"; pass {_TORCH[name]}=~{name}, True where a key may be attended"
        elif name in _TORCH:
            text += f"; pass {_TORCH[name]}, where True means may be attended"
        raise ArgumentTypeError(text)
