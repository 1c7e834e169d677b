"""The deeper network of single heads that has as many heads, and nearly as many parameters, as an encoder.

    N layers of H heads, F hidden numbers    ->    N H layers of 1 head, F / H hidden numbers

A head keeps its width E, so that the projections of one layer are those of H layers cut apart: in both
networks they hold 4 N H E D weights, and the feed-forward parts 2 N F D (3 N F D with a gate). What the
deeper one has on top are norms and the biases of outputs, two of each for every layer more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headwise import Encoder


def deep_single_head(encoder: Encoder, rng: Any) -> Encoder:  # noqa: ANN401 - what a user passes
    """Return a new encoder with a layer for every head of the given one; `Encoder.to_deep_single_head`."""
    # What pickles an encoder says how it was made, and which heads went since.
    cls, made, gone, _ = encoder.__reduce__()[1]
    layers, heads = made["num_layers"], made["num_heads"]
    total = layers * heads - sum(map(len, gone.values()))
    made |= {"num_layers": total, "num_heads": 1, "num_kv_heads": 1, "rng": rng}
    # F / H where that is whole and no head went; else as near to all hidden numbers as equal layers can come.
    made["d_ff"] = max(1, round(layers * made["d_ff"] / total))
    deep: Encoder = cls(**made)
    return deep
