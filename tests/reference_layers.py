"""The naive float64 twin of the layers: MultiHeadAttention, EncoderLayer, Encoder, from a `state_dict`.

    attention  out = concat_h(head_mask[h] * attention(x Wq_h, y Wk_h, z Wv_h)) Wo + bo
    post-norm  x = norm1(x + attention(x));        x = norm2(x + feed(x))
    pre-norm   x = x + attention(norm1(x));        x = x + feed(norm2(x)), and a last norm if the encoder has
    one feed       mlp: down(act(up(x)));  glu: down(act(gate(x)) * up(x))

Ways to name the same parameters are understood here too: packed `in_proj_weight`, `q_proj_weight` (torch's
form for separate widths), `q_proj.weight`. Ragged batches are loops over their sequences; nothing is padded.
"""

import numpy as np
from reference import (
    ACTIVATIONS,
    alibi_slopes_reference,
    as_f64,
    layer_norm_reference,
    linear_reference,
    rms_norm_reference,
    rotary_reference,
    sinusoidal_positions_reference,
)

from headwise.testing import attention_reference


def part(state, prefix):
    """Return the entries of a state dict below a prefix, the prefix cut off."""
    return {name[len(prefix) :]: array for name, array in state.items() if name.startswith(prefix)}


def projections(state, d_model):
    """Return the three (weight, bias) pairs of query, key, value from any of the forms."""
    if "in_proj_weight" in state:
        weights = np.split(state["in_proj_weight"], 3)
    elif "q_proj_weight" in state:
        weights = [state[f"{x}_proj_weight"] for x in "qkv"]
    else:
        return [(state[f"{x}_proj.weight"], state.get(f"{x}_proj.bias")) for x in "qkv"]
    biases = np.split(state["in_proj_bias"], 3) if "in_proj_bias" in state else [None] * 3
    assert weights[0].shape[1] == d_model
    return list(zip(weights, biases, strict=True))


def heads_of(x, num_heads):
    """(..., L, H * E) -> (..., H, L, E)."""
    return np.swapaxes(x.reshape(*x.shape[:-1], num_heads, x.shape[-1] // num_heads), -2, -3)


def mha_reference(
    state,
    query,
    key=None,
    value=None,
    *,
    num_heads,
    num_kv_heads=None,
    key_mask=None,
    key_lengths=None,
    head_mask=None,
    need_weights=False,
    average_weights=False,
    rotary=False,
    slopes=None,
    places=None,
    **masks,
):
    """Return MultiHeadAttention's output, with the weights if asked for (before any head mask).

    With no key given, `key_mask` and `key_lengths` name padded queries too, whose output rows are 0. A query
    with no allowed key has the attention result 0, so its row is the output projection's bias. `places`
    (B, L) are the positions of tokens for `rotary` and `slopes`; 0, 1, 2... if left out.
    """
    own = key is None
    q = as_f64(query)
    k = q if own else as_f64(key)
    v = k if value is None else as_f64(value)
    kv_heads = num_kv_heads or num_heads
    rows = zip((q, k, v), projections(state, q.shape[-1]), (num_heads, kv_heads, kv_heads), strict=True)
    q, k, v = (heads_of(linear_reference(x, *wb), n) for x, wb, n in rows)
    at_q, at_k = (np.arange(x.shape[-2]) if places is None else places for x in (q, k))
    if rotary:
        q, k = rotary_reference(q, at_q[..., None, :]), rotary_reference(k, at_k[..., None, :])
    if slopes is not None:
        away = np.abs(at_q[..., :, None] - at_k[..., None, :])[..., None, :, :]
        bias = -slopes[:, None, None] * away  # (H, L, S); |i - j|: both directions in an encoder
        given = masks.pop("attn_mask", None)
        if given is not None:
            given = np.asarray(given)
            bias = bias + (np.where(given, 0.0, -np.inf) if given.dtype == bool else as_f64(given))
        masks["attn_mask"] = bias
    result, weights = attention_reference(
        q, k, v, key_mask=key_mask, key_lengths=key_lengths, return_weights=True, **masks
    )
    if head_mask is not None:
        result = result * as_f64(head_mask)[..., None, None]
    joined = np.swapaxes(result, -2, -3)  # (B, L, H, Ev)
    joined = joined.reshape(*joined.shape[:-2], joined.shape[-2] * joined.shape[-1])
    out = linear_reference(joined, state["out_proj.weight"], state.get("out_proj.bias"))
    if own:
        out = np.where(real_rows(out.shape[:-1], key_mask, key_lengths)[..., None], out, 0.0)
    if not need_weights:
        return out
    return out, (weights.mean(axis=-3) if average_weights else weights)


def real_rows(shape, key_mask, lengths):
    """Return the boolean (B, L) of the tokens that are no padding."""
    real = np.ones(shape, dtype=bool)
    if key_mask is not None:
        real = real & np.asarray(key_mask).astype(bool)
    if lengths is not None:
        real = real & (np.arange(shape[-1]) < np.asarray(lengths)[..., None])
    return real


def feed_forward_names(state):
    """Return the prefixes (gate or None, up, down) of the feed-forward part of one encoder layer's state.

    torch's `linear1` and `linear2` are up and down. A gated one has no name in torch; what is asked of it is
    that "gate" names the gated half and that the shapes tell up (F, D) from down (D, F).
    """
    if "linear1.weight" in state and not any("gate" in name for name in state):
        return None, "linear1.", "linear2."
    weights = {
        n: a.shape for n, a in state.items() if n.endswith("weight") and a.ndim == 2 and "attn" not in n
    }
    (gate,) = [n for n in weights if "gate" in n]
    (up,) = [n for n in weights if n != gate and weights[n] == weights[gate]]
    (down,) = [n for n in weights if n not in (gate, up)]
    return tuple(n.removesuffix("weight") for n in (gate, up, down))


def feed_forward_reference(state, x, activation):
    """Return the feed-forward part: down(act(up(x))), or down(act(gate(x)) * up(x)) where there is a gate."""
    gate, up, down = feed_forward_names(state)

    def through(prefix, y):
        return linear_reference(y, state[prefix + "weight"], state.get(prefix + "bias"))

    hidden = through(up, x)
    hidden = (
        ACTIVATIONS[activation](hidden)
        if gate is None
        else ACTIVATIONS[activation](through(gate, x)) * hidden
    )
    return through(down, hidden)


def norm_reference(state, x, kind, eps):
    """Return layer or RMS norm of x with the state's weight and bias."""
    if kind == "rms":
        return rms_norm_reference(x, state["weight"], eps=eps)
    return layer_norm_reference(x, state["weight"], state.get("bias"), eps=eps)


def encoder_layer_reference(
    state,
    x,
    *,
    num_heads,
    num_kv_heads=None,
    activation="relu",
    norm="layer",
    norm_first=False,
    layer_norm_eps=1e-5,
    need_weights=False,
    key_mask=None,
    lengths=None,
    **attention,
):
    """Return one encoder layer's output (padded rows 0), with its weights (B, H, L, L) if asked."""
    x = as_f64(x)

    def attend(y):
        return mha_reference(
            part(state, "self_attn."),
            y,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            key_mask=key_mask,
            key_lengths=lengths,
            need_weights=True,
            **attention,
        )

    def normed(number, y):
        return norm_reference(part(state, f"norm{number}."), y, norm, layer_norm_eps)

    if norm_first:
        added, weights = attend(normed(1, x))
        x = x + added
        x = x + feed_forward_reference(state, normed(2, x), activation)
    else:
        added, weights = attend(x)
        x = normed(1, x + added)
        x = normed(2, x + feed_forward_reference(state, x, activation))
    x = np.where(real_rows(x.shape[:-1], key_mask, lengths)[..., None], x, 0.0)
    return (x, weights) if need_weights else x


def encoder_reference(
    state,
    x,
    *,
    num_layers,
    positions=None,
    final_norm=False,
    head_mask=None,
    norm="layer",
    layer_norm_eps=1e-5,
    num_heads,
    key_mask=None,
    lengths=None,
    everything=False,
    **layer,
):
    """Return the encoder's output; with `everything` also the hidden states (num_layers + 1) and all weights.

    Sinusoidal positions (interleaved) are added to x once; rotary turns queries and keys in every layer
    (pairs a half apart, theta 10000); alibi adds -slope[h] * |i - j| to the scores. `head_mask` is
    (num_layers, H).
    """
    x = as_f64(x)
    # what is padding may hold NaN; it must not reach the sums below even as 0 * NaN
    x = np.where(real_rows(x.shape[:-1], key_mask, lengths)[..., None], x, 0.0)
    if positions == "sinusoidal":
        x = x + sinusoidal_positions_reference(*x.shape[-2:])
    slopes = alibi_slopes_reference(num_heads) if positions == "alibi" else None
    hidden, maps = [x], []
    for number in range(num_layers):
        x, weights = encoder_layer_reference(
            part(state, f"layers.{number}."),
            x,
            num_heads=num_heads,
            norm=norm,
            layer_norm_eps=layer_norm_eps,
            key_mask=key_mask,
            lengths=lengths,
            need_weights=True,
            rotary=positions == "rotary",
            slopes=slopes,
            head_mask=None if head_mask is None else np.asarray(head_mask)[number],
            **layer,
        )
        hidden.append(x)
        maps.append(weights)
    if final_norm:
        x = norm_reference(part(state, "norm."), x, norm, layer_norm_eps)
        x = np.where(real_rows(x.shape[:-1], key_mask, lengths)[..., None], x, 0.0)
    return (x, hidden, maps) if everything else x
