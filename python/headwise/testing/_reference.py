"""The naive float64 twin of `headwise.scaled_dot_product_attention`, in plain NumPy.

Written for reading, not for speed: the L x S matrix is built, masks are boolean arrays, and each step is one
line of the definition

    scores = scale * q @ k.T          (L, S), per batch and head
    capped = softcap * tanh(scores / softcap)
    masked = where(allowed, capped + bias, -inf)
    weights = exp(masked - max) / sum(exp(masked - max)), 0 where nothing is allowed
    out = weights @ v                 (L, Ev), blocked values left out by selection, never by 0 * v
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from headwise.testing._masks import Window, allowed_reference, split_mask

_Floats = npt.NDArray[np.float64]


def attention_reference(
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    value: npt.ArrayLike,
    attn_mask: npt.ArrayLike | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool | None = None,
    key_mask: npt.ArrayLike | None = None,
    key_lengths: npt.ArrayLike | None = None,
    causal_offset: npt.ArrayLike | Literal["bottom_right"] = 0,
    window: Window | None = None,
    softcap: float | None = None,
    return_weights: bool | Literal["raw", "capped", "masked"] = False,
    return_lse: bool = False,
) -> Any:  # noqa: ANN401 - one array or a tuple of them, as asked for
    """Compute scaled dot-product attention in float64, step by step as it is defined.

    The arguments mean what they mean to `headwise.scaled_dot_product_attention`; True in a mask = may be
    attended. The (B, H, L, S) scores are built several times over: this is for small inputs. B stands for any
    number of batch axes. With H query heads and Hk key heads, query head h reads key head h // (H // Hk).

    Parameters
    ----------
    query : array_like of shape (B, H, L, E) or (L, E)
        Queries.
    key : array_like of shape (B, Hk, S, E) or (S, E)
        Keys.
    value : array_like of shape (B, Hk, S, Ev) or (S, Ev)
        Values.
    attn_mask : array_like, optional
        Booleans or floats that broadcast to (B, H, L, S). Floats are added to the scores; -inf blocks.
    dropout_p : float
        Only 0: the reference draws nothing.
    is_causal : bool
        Allow query i the keys j <= i + offset.
    scale : float, optional
        Factor of the scores; 1 / sqrt(E) by default.
    enable_gqa : bool, optional
        False refuses H != Hk.
    key_mask : array_like of shape (B, S), optional
        Keys that may be attended, booleans or 0 and 1.
    key_lengths : array_like of shape B, optional
        Keys j < length may be attended.
    causal_offset : array_like of shape B or "bottom_right"
        The offset of `is_causal` and `window`.
    window : (int or None, int or None), optional
        Allow the keys i + offset - left <= j <= i + offset + right.
    softcap : float, optional
        Scores s become softcap * tanh(s / softcap), before masks.
    return_weights : bool or {"raw", "capped", "masked"}
        Return the weights too, or the scores at that step.
    return_lse : bool
        Return the log of the sum of the exponentials too.

    Returns
    -------
    out : ndarray of shape (B, H, L, Ev)
        The result, float64; (L, Ev) for one head. Rows with no allowed key are exactly 0.
    weights : ndarray of shape (B, H, L, S)
        If asked for; rows with no allowed key are exactly 0.
    lse : ndarray of shape (B, H, L)
        If asked for; -inf where no key is allowed.

    Raises
    ------
    ValueError
        If shapes do not fit, or an argument is none of those named here.
    TypeError
        If `attn_mask` holds integers.

    Examples
    --------
    >>> from headwise.testing import attention_reference
    >>> x = np.eye(3)
    >>> out, weights = attention_reference(x, x, x, is_causal=True, return_weights=True)
    >>> weights.round(2)
    array([[1.  , 0.  , 0.  ],
           [0.36, 0.64, 0.  ],
           [0.26, 0.26, 0.47]])
    """
    if dropout_p != 0.0:
        msg = f"dropout_p: expected 0, the reference draws nothing, got {dropout_p}"
        raise ValueError(msg)
    if return_weights not in (False, True, "raw", "capped", "masked"):
        msg = f"return_weights: expected a bool, 'raw', 'capped' or 'masked', got {return_weights!r}"
        raise ValueError(msg)
    q, k, v = (np.asarray(x).astype(np.float64) for x in (query, key, value))  # halves are widened exactly
    one_head = q.ndim == 2
    if one_head:
        q, k, v = q[None], k[None], v[None]
    q, k, v = _same_heads(q, k, v, enable_gqa)
    batch, (heads, length, width), keys = q.shape[:-3], q.shape[-3:], k.shape[-2]
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
    steps = {"raw": raw, "capped": capped, "masked": masked}
    shown = steps[return_weights] if isinstance(return_weights, str) else weights
    if one_head:
        out, shown, lse = out[..., 0, :, :], shown[..., 0, :, :], lse[..., 0, :]
    answer = (out, *((shown,) if return_weights else ()), *((lse,) if return_lse else ()))
    return answer if len(answer) > 1 else out


def _same_heads(
    q: _Floats, k: _Floats, v: _Floats, enable_gqa: bool | None
) -> tuple[_Floats, _Floats, _Floats]:
    """Check shapes, repeat key and value heads for their query heads, broadcast the batch axes."""
    got = f"{q.shape}, {k.shape}, {v.shape}"
    if min(q.ndim, k.ndim, v.ndim) < 3 or q.shape[-1] != k.shape[-1] or k.shape[-3:-1] != v.shape[-3:-1]:
        msg = f"query, key, value: expected (*B, H, L, E), (*B, Hk, S, E), (*B, Hk, S, Ev), got {got}"
        raise ValueError(msg)
    heads, kv_heads = q.shape[-3], k.shape[-3]
    if kv_heads == 0 or heads % kv_heads or (enable_gqa is False and heads != kv_heads):
        msg = f"query, key: expected H % Hk == 0 (H == Hk where enable_gqa is False), got {got}"
        raise ValueError(msg)
    if q.shape[-1] == 0:
        msg = f"query: expected E of at least 1, got {got}"
        raise ValueError(msg)
    k, v = (np.repeat(x, heads // kv_heads, axis=-3) for x in (k, v))
    batch = np.broadcast_shapes(q.shape[:-3], k.shape[:-3], v.shape[:-3])
    q, k, v = (np.broadcast_to(x, (*batch, *x.shape[-3:])) for x in (q, k, v))
    return q, k, v


def _weighted_sum(weights: _Floats, allowed: npt.NDArray[np.bool_], value: _Floats) -> _Floats:
    """Return weights @ value where a blocked value leaves no trace even if it is NaN or inf."""
    finite = np.isfinite(value)
    out: _Floats = weights @ np.where(finite, value, 0.0)
    for j in np.flatnonzero(~finite.all(axis=(*range(value.ndim - 2), value.ndim - 1))):
        odd = np.where(finite[..., j, :], 0.0, value[..., j, :])[..., None, :]  # (B, H, 1, Ev)
        here = allowed[..., j][..., None] & ~finite[..., j, :][..., None, :]
        out = out + np.where(here, weights[..., j][..., None] * odd, 0.0)
    return out
