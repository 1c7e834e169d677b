"""The naive float64 twin of the functions of headwise, in plain NumPy.

Everything here is written for reading, not for speed: the L x S matrix is built, masks are boolean arrays,
and each step is one line of the definition

    scores = scale * q @ k.T          (L, S), per batch and head
    capped = softcap * tanh(scores / softcap)
    masked = where(allowed, capped + bias, -inf)
    weights = exp(masked - max) / sum(exp(masked - max)), 0 where nothing is allowed
    out = weights @ v                 (L, Ev), blocked values left out by selection, never by 0 * v

Letters: B batch axes, H query heads, Hk key and value heads, L query length, S key length, E and Ev head
widths. The layers are in `reference_layers.py`.
"""

import math

import numpy as np

F32_MAX = float(np.finfo(np.float32).max)


def as_f64(x):
    """Return x as a float64 array (half and bfloat16 are widened exactly)."""
    return np.asarray(x).astype(np.float64)


# --- masks --------------------------------------------------------------------------------------------------


def _column(values, batch):
    """Return values of shape (B,) as int64 (*B, 1, 1, 1), broadcast over the batch axes."""
    return np.broadcast_to(np.asarray(values, dtype=np.int64), batch)[..., None, None, None]


def split_mask(attn_mask):
    """Split a mask into (allowed, bias): booleans allow where True, floats are added and block at -inf.

    A float64 value below float32's range blocks as -inf does.
    """
    mask = np.asarray(attn_mask)
    if mask.dtype == bool:
        return mask, np.zeros(mask.shape)
    bias = as_f64(mask)
    allowed = ~(bias < -F32_MAX)  # NaN stays allowed: it propagates
    return allowed, np.where(allowed, bias, 0.0)


def allowed_reference(
    batch,
    length,
    keys,
    *,
    attn_mask=None,
    key_mask=None,
    key_lengths=None,
    is_causal=False,
    causal_offset=0,
    window=None,
):
    """Return the boolean array (*B, 1 or H, L, S) that all constraints together mean: they are ANDed."""
    rows = np.arange(length)[:, None]
    cols = np.arange(keys)[None, :]
    if isinstance(causal_offset, str):
        assert causal_offset == "bottom_right"
        causal_offset = (np.asarray(key_lengths) if key_lengths is not None else keys) - length
    at = rows + _column(causal_offset, batch)  # the key position that each query stands at
    allowed = np.ones((*batch, 1, length, keys), dtype=bool)
    if is_causal:
        allowed = allowed & (cols <= at)
    if window is not None:
        left, right = window
        if left is not None:
            allowed = allowed & (cols >= at - left)
        if right is not None:
            allowed = allowed & (cols <= at + right)
    if key_lengths is not None:
        allowed = allowed & (cols < _column(key_lengths, batch))
    if key_mask is not None:
        named = np.asarray(key_mask).astype(bool)
        allowed = allowed & np.broadcast_to(named, (*batch, keys))[..., None, None, :]
    if attn_mask is not None:
        allowed = allowed & split_mask(attn_mask)[0]
    return allowed


def allowed_mask_reference(L, S, **masks):
    """Return what `headwise.allowed_mask` means, with the batch axes read from the arguments."""
    batch = ()
    for name, drop in (("key_mask", 1), ("key_lengths", 0), ("causal_offset", 0)):
        given = masks.get(name)
        if given is not None and not isinstance(given, str):
            shape = np.shape(given)
            batch = np.broadcast_shapes(batch, shape[: len(shape) - drop])
    if masks.get("attn_mask") is not None:
        batch = np.broadcast_shapes(batch, np.shape(masks["attn_mask"])[:-3])
    return allowed_reference(batch, L, S, **masks)


# --- attention ----------------------------------------------------------------------------------------------


def _weighted_sum(weights, allowed, value):
    """Return weights @ value where a blocked value leaves no trace even if it is NaN or inf."""
    finite = np.isfinite(value)
    out = weights @ np.where(finite, value, 0.0)
    for j in np.flatnonzero(~finite.all(axis=(*range(value.ndim - 2), value.ndim - 1))):
        odd = np.where(finite[..., j, :], 0.0, value[..., j, :])[..., None, :]  # (B, H, 1, Ev)
        here = allowed[..., j][..., None] & ~finite[..., j, :][..., None, :]
        out = out + np.where(here, weights[..., j][..., None] * odd, 0.0)
    return out


def attention_reference(
    query,
    key,
    value,
    attn_mask=None,
    dropout_p=0.0,
    is_causal=False,
    *,
    scale=None,
    enable_gqa=None,
    key_mask=None,
    key_lengths=None,
    causal_offset=0,
    window=None,
    softcap=None,
    return_weights=False,
    return_lse=False,
):
    """Return scaled dot-product attention in float64; the arguments are those of the public function.

    `scale=None` is 1 / sqrt(E). Results are `out`, `(out, weights)`, `(out, lse)` or `(out, weights, lse)`.
    """
    assert dropout_p == 0.0, "the reference draws nothing"
    q, k, v = as_f64(query), as_f64(key), as_f64(value)
    one_head = q.ndim == 2
    if one_head:
        q, k, v = q[None], k[None], v[None]
    heads, length, width = q.shape[-3:]
    kv_heads, keys = k.shape[-3:-1]
    assert enable_gqa is not False or heads == kv_heads
    k = np.repeat(k, heads // kv_heads, axis=-3)  # kv head = h // (H // Hk)
    v = np.repeat(v, heads // kv_heads, axis=-3)
    batch = np.broadcast_shapes(q.shape[:-3], k.shape[:-3], v.shape[:-3])
    q, k, v = (np.broadcast_to(x, (*batch, *x.shape[-3:])) for x in (q, k, v))
    scale = 1.0 / math.sqrt(width) if scale is None else scale

    allowed = allowed_reference(
        batch,
        length,
        keys,
        attn_mask=attn_mask,
        key_mask=key_mask,
        key_lengths=key_lengths,
        is_causal=is_causal,
        causal_offset=causal_offset,
        window=window,
    )
    allowed = np.broadcast_to(allowed, (*batch, heads, length, keys))
    with np.errstate(all="ignore"):  # NaN, inf and -inf are part of the definition here
        raw = scale * (q @ np.swapaxes(k, -1, -2))
        capped = raw if softcap is None else softcap * np.tanh(raw / softcap)
        biased = capped if attn_mask is None else capped + split_mask(attn_mask)[1]
        masked = np.where(allowed, biased, -np.inf)
        some = allowed.any(axis=-1, keepdims=True)
        top = np.max(masked, axis=-1, keepdims=True, initial=-np.inf)
        p = np.where(allowed, np.exp(masked - np.where(some, top, 0.0)), 0.0)
        total = p.sum(axis=-1, keepdims=True)
        weights = np.where(allowed, p / np.where(some, total, 1.0), 0.0)
        out = np.where(some, _weighted_sum(weights, allowed, v), 0.0)
        lse = np.where(some, top + np.log(np.where(some, total, 1.0)), -np.inf)[..., 0]
    shown = {"raw": raw, "capped": capped, "masked": masked}.get(return_weights, weights)
    if one_head:
        out, shown, lse = out[..., 0, :, :], shown[..., 0, :, :], lse[..., 0, :]
    answer = (out,) + ((shown,) if return_weights else ()) + ((lse,) if return_lse else ())
    return answer if len(answer) > 1 else out


# --- small functions ----------------------------------------------------------------------------------------


def softmax_reference(x, axis=-1):
    """Return exp(x - max) / sum over the axis; a row of -inf alone has no definition here and gives NaN."""
    x = as_f64(x)
    with np.errstate(invalid="ignore"):
        p = np.exp(x - x.max(axis=axis, keepdims=True))
        return p / p.sum(axis=axis, keepdims=True)


def layer_norm_reference(x, weight=None, bias=None, *, eps=1e-5):
    """Return (x - mean) / sqrt(variance + eps) * weight + bias over the last axis, biased variance."""
    x = as_f64(x)
    centred = x - x.mean(axis=-1, keepdims=True)
    y = centred / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + eps)
    y = y if weight is None else y * as_f64(weight)
    return y if bias is None else y + as_f64(bias)


def rms_norm_reference(x, weight=None, *, eps=1e-5):
    """Return x / sqrt(mean(x * x) + eps) * weight over the last axis."""
    x = as_f64(x)
    y = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)
    return y if weight is None else y * as_f64(weight)


def relu_reference(x):
    """Return max(x, 0)."""
    return np.maximum(as_f64(x), 0.0)


def gelu_reference(x, approximate="none"):
    """Return x * Phi(x) with Phi from erfc, or its tanh approximation."""
    x = as_f64(x)
    if approximate == "tanh":
        return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    # erfc keeps the small tail that 1 + erf cancels away
    return x * 0.5 * np.vectorize(math.erfc, otypes=[np.float64])(-x / math.sqrt(2.0))


def silu_reference(x):
    """Return x / (1 + exp(-x)), written so that no exponential overflows."""
    x = as_f64(x)
    e = np.exp(-np.abs(x))
    return x * np.where(x >= 0, 1.0 / (1.0 + e), e / (1.0 + e))


ACTIVATIONS = {
    None: as_f64,
    "relu": relu_reference,
    "gelu": gelu_reference,
    "gelu_tanh": lambda x: gelu_reference(x, "tanh"),
    "silu": silu_reference,
}


def linear_reference(x, weight, bias=None, *, activation=None):
    """Return activation(x @ weight.T + bias); weight is (out, in) as in torch."""
    y = as_f64(x) @ as_f64(weight).T
    return ACTIVATIONS[activation](y if bias is None else y + as_f64(bias))


def sinusoidal_positions_reference(n, d, *, layout="interleaved"):
    """Return (n, d): sin and cos of p / 10000 ** (2 i / d), alternating or all sines before all cosines."""
    angles = np.arange(n)[:, None] / 10000.0 ** (2.0 * np.arange((d + 1) // 2) / d)
    if layout == "concat":
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[:, :d]
    table = np.empty((n, 2 * ((d + 1) // 2)))
    table[:, 0::2], table[:, 1::2] = np.sin(angles), np.cos(angles)
    return table[:, :d]


def rotary_reference(x, positions=None, *, theta=10000.0, interleaved=False, rotary_dim=None):
    """Rotate pairs of x (..., L, E) by position * theta ** (-2 i / R), R the rotated width.

    A pair is (i, i + R/2), or (2 i, 2 i + 1) if interleaved; the rest of E passes through.
    """
    x = as_f64(x)
    width = x.shape[-1] if rotary_dim is None else rotary_dim
    positions = np.arange(x.shape[-2]) if positions is None else np.asarray(positions)
    angles = positions[..., None] * theta ** (-2.0 * np.arange(width // 2) / width)  # (..., L, R/2)
    cos, sin = np.cos(angles), np.sin(angles)
    first = slice(0, width, 2) if interleaved else slice(0, width // 2)
    second = slice(1, width, 2) if interleaved else slice(width // 2, width)
    y = x.copy()
    y[..., first] = x[..., first] * cos - x[..., second] * sin
    y[..., second] = x[..., second] * cos + x[..., first] * sin
    return y


def alibi_slopes_reference(num_heads):
    """Return the slopes of Press et al.: 2 ** (-8 i / n) for n a power of two, else filled up from 2 n."""
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
    more = [2.0 ** (-8.0 * (i + 1) / (2 * power)) for i in range(0, 2 * power, 2)]
    return np.array((slopes + more)[:num_heads])
