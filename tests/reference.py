"""The naive float64 twins of the functions of headwise, in plain NumPy.

Everything here is written for reading, not for speed. The twin of attention and of its masks is public and
lives in `headwise.testing`; test_reference.py judges it, too. The layers are in `reference_layers.py`.
"""

import math

import numpy as np

from headwise.testing._masks import allowed_reference


def as_f64(x):
    """Return x as a float64 array (half and bfloat16 are widened exactly)."""
    return np.asarray(x).astype(np.float64)


# --- masks --------------------------------------------------------------------------------------------------


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
