"""The naive float64 twin of `headwise.attention`, one query and one key at a time, from the papers' formulas.

Independent of the package: NumPy's own exponentials, sparsemax by bisection, top-k by sorting Python tuples.
What a query may attend comes from `headwise.testing`'s reference of the masks.
"""

import math

import numpy as np

from headwise.testing._masks import allowed_reference, split_mask


def score_of(score):
    """Return f(q, k) of a name, or of a layer's parameters: ("bilinear", W) or ("additive", Wq, Wk, b, v)."""
    if score in ("dot", "scaled_dot"):
        return lambda q, k: float(q @ k)
    if score == "cosine":
        return lambda q, k: float(q @ k) / (max(np.linalg.norm(q), 1e-12) * max(np.linalg.norm(k), 1e-12))
    if score == "l2":
        return lambda q, k: -float((q - k) @ (q - k))
    kind, *parameters = score
    parameters = [np.asarray(p, dtype=np.float64) for p in parameters]
    if kind == "bilinear":
        return lambda q, k: float(k @ parameters[0] @ q)
    of_query, of_key, bias, v = parameters
    return lambda q, k: float(v @ np.tanh(of_query @ q + of_key @ k + bias))


def default_scale(score, width):
    """Return the factor that a score has where none is given."""
    return {"scaled_dot": 1 / math.sqrt(width), "l2": 0.5}.get(score, 1.0) if isinstance(score, str) else 1.0


def sparsemax(z):
    """Return the point of the simplex nearest to z: max(z - tau, 0), tau found by halving."""
    low, high = max(z) - 1, max(z)
    for _ in range(100):
        tau = (low + high) / 2
        if sum(max(x - tau, 0.0) for x in z) > 1:
            low = tau
        else:
            high = tau
    return np.array([max(x - low, 0.0) for x in z])


def weights_of(normalize, z):
    """Return the weights of the scores z of the keys that a query may attend; top-k as ("top_k", k)."""
    if len(z) == 0:
        return np.zeros(0)
    if normalize == "sigmoid":
        return np.array([1 / (1 + math.exp(-x)) for x in z])
    if normalize == "sparsemax":
        return sparsemax(z)
    chosen = len(z)
    if normalize == "hard":
        chosen = 1
    elif normalize != "softmax":
        chosen = normalize[1]
    order = sorted(range(len(z)), key=lambda j: (-z[j], j))[:chosen]
    e = np.zeros(len(z))
    e[order] = np.exp(np.array(z)[order] - max(z))
    return e / e.sum()


def pooling(
    query,
    key,
    value,
    *,
    score="scaled_dot",
    normalize="softmax",
    scale=None,
    softcap=None,
    attn_mask=None,
    places=None,
    width=None,
    **masks,
):
    """Return out (*B, H, L, Ev) and weights (*B, H, L, S) for query, key and value with batch and heads.

    `places` (*B, H, L) and `width` are those of a predicted window (Luong et al. 2015, "local-p").
    """
    q, k, v = (np.asarray(x, dtype=np.float64) for x in (query, key, value))
    groups = q.shape[-3] // k.shape[-3]
    k, v = np.repeat(k, groups, axis=-3), np.repeat(v, groups, axis=-3)
    batch = np.broadcast_shapes(q.shape[:-3], k.shape[:-3], v.shape[:-3])
    q, k, v = (np.broadcast_to(x, batch + x.shape[-3:]) for x in (q, k, v))
    lead, length, count = batch + q.shape[-3:-2], q.shape[-2], k.shape[-2]
    full = (*lead, length, count)
    allowed = np.broadcast_to(allowed_reference(batch, length, count, attn_mask=attn_mask, **masks), full)
    bias = np.zeros(full) if attn_mask is None else np.broadcast_to(split_mask(attn_mask)[1], full)
    of_keys = {name: masks[name] for name in ("key_mask", "key_lengths") if name in masks}
    of_keys = np.broadcast_to(allowed_reference(batch, 1, count, **of_keys), (*lead, 1, count))
    scale = default_scale(score, q.shape[-1]) if scale is None else scale
    f = score_of(score)
    out, weights = np.zeros((*lead, length, v.shape[-1])), np.zeros(full)
    for at in np.ndindex(*lead, length):
        b, i = at[:-1], at[-1]
        rank = np.cumsum(of_keys[b][0]) - 1
        own = [j for j in range(count) if allowed[at][j]]
        if places is not None:
            own = [j for j in own if abs(rank[j] - places[at]) <= width]
        z = []
        for j in own:
            s = scale * f(q[b][i], k[b][j])
            s = s if softcap is None else softcap * math.tanh(s / softcap)
            z.append(s + bias[at][j])
        w = weights_of(normalize, z)
        if places is not None:
            sigma = width / 2
            w = w * np.array([math.exp(-((rank[j] - places[at]) ** 2) / (2 * sigma**2)) for j in own])
        for weight, j in zip(w, own, strict=True):
            weights[at][j] = weight
            if weight != 0:
                out[at] += weight * v[b][j]
    return out, weights
