"""What the tests of attention pooling share: every score and normalisation, and their twins' names."""

import numpy as np
from layers import randomize
from reference_pooling import pooling

import headwise as hw

NORMALIZE = {
    "softmax": "softmax",
    "hard": "hard",
    "sparsemax": "sparsemax",
    "sigmoid": "sigmoid",
    "top_2": hw.TopK(2),
}
TWIN = {**{name: name for name in NORMALIZE}, "top_2": ("top_k", 2)}
SCORES = ["scaled_dot", "dot", "cosine", "l2", "bilinear", "additive"]
WIDTH = 5


def score(name, dtype="float64", query_dim=WIDTH, key_dim=WIDTH):
    """Return the argument `score` of a name, and that of the twin."""
    rng = np.random.default_rng(7)
    if name == "bilinear":
        layer = randomize(hw.Bilinear(query_dim, key_dim, dtype=dtype), rng)
        return layer, ("bilinear", layer.state_dict()["weight"])
    if name == "additive":
        layer = randomize(hw.Additive(query_dim, key_dim, 6, dtype=dtype), rng)
        state = layer.state_dict()
        names = ("query_proj.weight", "key_proj.weight", "key_proj.bias")
        return layer, ("additive", *(state[n] for n in names), state["v.weight"][0])
    return name, name


def arrays(dtype="float64", B=(2,), H=2, Hk=2, L=4, S=7, E=WIDTH, Ek=WIDTH, Ev=3, seed=0):
    """Return query, key and value of normal numbers."""
    rng = np.random.default_rng(seed)
    shapes = ((*B, H, L, E), (*B, Hk, S, Ek), (*B, Hk, S, Ev))
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def check(q, k, v, of_score, normalize, bar, twin=None, **options):
    """Compare a call with the twin, and the result alone with the result beside its weights."""
    layer, parameters = of_score
    named = {"score": layer, "normalize": NORMALIZE[normalize], **options}
    out, weights = hw.attention(q, k, v, **named, return_weights=True)
    hw.testing.assert_same_bits(hw.attention(q, k, v, **named), out)
    assert out.flags.c_contiguous
    options.pop("local", None)
    want, want_weights = pooling(
        q, k, v, score=parameters, normalize=TWIN[normalize], **options, **(twin or {})
    )
    np.testing.assert_allclose(weights, want_weights, rtol=0, atol=bar)
    np.testing.assert_allclose(out, want, rtol=0, atol=4 * bar)
    return out, weights
