"""How tests compare: by bits, or by the root mean square of the error over that of the truth."""

import numpy as np

import headwise as hw
from headwise.testing import assert_same_bits, attention_reference


def rms_relative(got, want):
    """Return rms(got - want) / rms(want), in float64."""
    got, want = np.asarray(got, dtype=np.float64), np.asarray(want, dtype=np.float64)
    assert got.shape == want.shape
    assert got.size > 0
    return float(np.sqrt(np.mean((got - want) ** 2)) / np.sqrt(np.mean(want**2)))


def normals(rng, *shape, dtype="float32"):
    """Return normal numbers in a dtype (also float16 and ml_dtypes' bfloat16)."""
    return rng.standard_normal(shape).astype(dtype)


def qkv(rng, L, S, E, *, B=(), H=1, Hk=None, Ev=None, dtype="float32"):
    """Return query (B, H, L, E), key (B, Hk, S, E) and value (B, Hk, S, Ev) of normal numbers."""
    Hk = H if Hk is None else Hk
    q = normals(rng, *B, H, L, E, dtype=dtype)
    k = normals(rng, *B, Hk, S, E, dtype=dtype)
    return q, k, normals(rng, *B, Hk, S, Ev or E, dtype=dtype)


def check(q, k, v, *, bar=4e-7, **options):
    """Compare out, weights and lse with the reference, and out alone with out beside its extras."""
    out, weights, lse = hw.scaled_dot_product_attention(
        q, k, v, return_weights=True, return_lse=True, **options
    )
    want, want_weights, want_lse = attention_reference(
        q, k, v, return_weights=True, return_lse=True, **options
    )
    assert_same_bits(hw.scaled_dot_product_attention(q, k, v, **options), out)
    assert out.flags.c_contiguous
    assert rms_relative(out, want) <= bar
    np.testing.assert_allclose(weights, want_weights, rtol=30 * bar, atol=bar / 10)
    np.testing.assert_allclose(lse, want_lse, rtol=5 * bar, atol=5 * bar)
    return out, weights, lse
