"""The naive float64 twin of DecoderLayer and Decoder, from a `state_dict`.

    self   attention of the target to itself, causal unless told otherwise
    cross  attention of the target to the memory, whose masks name keys only
    post-norm  x = norm1(x + self(x));   x = norm2(x + cross(x));   x = norm3(x + feed(x))
    pre-norm   x = x + self(norm1(x));   x = x + cross(norm2(x));   x = x + feed(norm3(x)), and a last norm if
               the decoder has one

Tokens count their places among those that masks keep, from 0. Padded rows of the result are 0. Ragged batches
are loops over their sequences; a step with a cache is the last rows of the whole.
"""

import numpy as np
from reference import alibi_slopes_reference, as_f64, sinusoidal_positions_reference
from reference_layers import feed_forward_reference, mha_reference, norm_reference, part, real_rows


def decoder_layer_reference(
    state,
    x,
    memory,
    *,
    num_heads,
    num_kv_heads=None,
    activation="relu",
    norm="layer",
    norm_first=False,
    layer_norm_eps=1e-5,
    key_mask=None,
    lengths=None,
    is_causal=True,
    memory_mask=None,
    memory_key_mask=None,
    memory_lengths=None,
    head_mask=None,
    cross_head_mask=None,
    need_weights=False,
    **of_self_attention,
):
    """Return (B, L, D) of x (B, L, D) and memory (B, S, D); if asked, the weights of both attentions too."""
    real = real_rows(np.shape(x)[:-1], key_mask, lengths)[..., None]
    x = np.where(real, as_f64(x), 0.0)  # what is padding may hold NaN
    heads = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "need_weights": True}
    kept = []

    def attend(y):
        out, weights = mha_reference(
            part(state, "self_attn."),
            y,
            key_mask=key_mask,
            key_lengths=lengths,
            is_causal=is_causal,
            head_mask=head_mask,
            **heads,
            **of_self_attention,
        )
        kept.append(weights)
        return out

    def read(y):
        out, weights = mha_reference(
            part(state, "multihead_attn."),
            y,
            memory,
            attn_mask=memory_mask,
            key_mask=memory_key_mask,
            key_lengths=memory_lengths,
            head_mask=cross_head_mask,
            **heads,
        )
        kept.append(weights)
        return out

    def feed(y):
        return feed_forward_reference(state, y, activation)

    for number, inner in enumerate((attend, read, feed), start=1):
        weights_of_norm = part(state, f"norm{number}.")
        if norm_first:
            x = x + inner(norm_reference(weights_of_norm, x, norm, layer_norm_eps))
        else:
            x = norm_reference(weights_of_norm, x + inner(x), norm, layer_norm_eps)
    x = np.where(real, x, 0.0)
    return (x, *kept) if need_weights else x


def decoder_reference(
    state,
    x,
    memory,
    *,
    num_layers,
    num_heads,
    positions=None,
    final_norm=False,
    head_mask=None,
    cross_head_mask=None,
    norm="layer",
    layer_norm_eps=1e-5,
    key_mask=None,
    lengths=None,
    everything=False,
    **of_the_layer,
):
    """Return the stack's output; with `everything` also hidden states (num_layers + 1) and lists of weights.

    Sinusoidal positions are added to x once; rotary turns queries and keys of each self-attention; alibi adds
    -slope[h] * |i - j| to its scores. Nothing tells tokens of the memory apart. Head masks are
    (num_layers, H).
    """
    real = real_rows(np.shape(x)[:-1], key_mask, lengths)
    x = np.where(real[..., None], as_f64(x), 0.0)
    places = np.maximum(np.cumsum(real, axis=-1) - 1, 0)
    if positions == "sinusoidal":
        x = x + sinusoidal_positions_reference(*x.shape[-2:])[places]
    slopes = alibi_slopes_reference(num_heads) if positions == "alibi" else None
    hidden, maps, cross_maps = [x], [], []
    for number in range(num_layers):
        x, weights, cross_weights = decoder_layer_reference(
            part(state, f"layers.{number}."),
            x,
            memory,
            num_heads=num_heads,
            norm=norm,
            layer_norm_eps=layer_norm_eps,
            key_mask=key_mask,
            lengths=lengths,
            head_mask=None if head_mask is None else np.asarray(head_mask)[number],
            cross_head_mask=None if cross_head_mask is None else np.asarray(cross_head_mask)[number],
            rotary=positions == "rotary",
            slopes=slopes,
            places=places,
            need_weights=True,
            **of_the_layer,
        )
        hidden.append(x)
        maps.append(weights)
        cross_maps.append(cross_weights)
    if final_norm:
        x = norm_reference(part(state, "norm."), x, norm, layer_norm_eps)
        x = np.where(real[..., None], x, 0.0)
    return (x, hidden, maps, cross_maps) if everything else x
