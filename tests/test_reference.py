"""The reference judges headwise; here it is judged itself: by torch, and by other ways to say it."""

import math
from itertools import product

import numpy as np
import pytest
import reference
from test_torch_golden import golden

from headwise.testing import attention_reference

pytestmark = pytest.mark.once

TWINS = {
    "attention": attention_reference,
    "attention_causal": lambda *a: attention_reference(*a, is_causal=True),
    "attention_scale": lambda *a: attention_reference(*a, scale=0.9),
    "attention_gqa": attention_reference,
    "attention_bias": attention_reference,
    "softmax": reference.softmax_reference,
    "layer_norm": reference.layer_norm_reference,
    "rms_norm": reference.rms_norm_reference,
    "gelu": reference.gelu_reference,
    "gelu_tanh": lambda x: reference.gelu_reference(x, "tanh"),
    "silu": reference.silu_reference,
    "linear": reference.linear_reference,
}


@pytest.mark.parametrize("name", TWINS)
def test_against_torch(name):
    arrays = golden("torch_functions.npz")[1][name]
    inputs = [arrays[f"input{i}"] for i in range(len(arrays) - 1)]
    np.testing.assert_allclose(TWINS[name](*inputs), arrays["out64"], rtol=1e-12, atol=1e-13)


def test_every_golden_function_has_a_twin():
    assert set(golden("torch_functions.npz")[1]) == set(TWINS)


def by_hand(q, k, v, allowed, bias, scale, softcap):
    """Return (out, lse) of one head by loops over numbers, sums by math.fsum; blocked keys are left out."""
    out, lse = np.zeros((len(q), v.shape[1])), np.full(len(q), -np.inf)
    for i in range(len(q)):
        keys = np.flatnonzero(allowed[i])
        if len(keys) == 0:
            continue
        scores = [scale * math.fsum(q[i] * k[j]) for j in keys]
        scores = [softcap * math.tanh(s / softcap) + bias[i, j] for s, j in zip(scores, keys, strict=True)]
        total = math.fsum(math.exp(s) for s in scores)
        lse[i] = math.log(total)
        for c in range(v.shape[1]):
            out[i, c] = math.fsum(math.exp(s) * v[j, c] for s, j in zip(scores, keys, strict=True)) / total
    return out, lse


def test_attention_by_hand(rng):
    L, S = 6, 11
    q, k, v = rng.standard_normal((L, 4)), rng.standard_normal((S, 4)), rng.standard_normal((S, 3))
    bias = np.where(rng.random((L, S)) < 0.2, -np.inf, rng.standard_normal((L, S)))
    key_mask = rng.random(S) < 0.8
    k[~key_mask], v[~key_mask] = np.nan, np.inf
    allowed = np.zeros((L, S), dtype=bool)
    for i, j in product(range(L), range(S)):
        at = i + 2
        allowed[i, j] = at - 4 <= j <= at + 3 and j <= at and key_mask[j] and j < 9 and bias[i, j] > -np.inf
    allowed[4] = False
    bias[4] = -np.inf
    out, lse = attention_reference(
        q, k, v, bias, is_causal=True, scale=0.7, key_mask=key_mask, key_lengths=9, causal_offset=2,
        window=(4, 3), softcap=1.5, return_lse=True,
    )  # fmt: skip
    want, want_lse = by_hand(q, k, v, allowed, bias, 0.7, 1.5)
    np.testing.assert_allclose(out, want, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(lse, want_lse, rtol=1e-13, atol=1e-15)
    assert not out[4].any()


def test_poisoned_values_by_hand(rng):
    q, k, v = rng.standard_normal((3, 4)), rng.standard_normal((5, 4)), rng.standard_normal((5, 2))
    v[2, 0], v[3] = np.inf, np.nan
    mask = np.array([[1, 1, 1, 0, 1], [1, 1, 0, 0, 1], [1, 1, 1, 1, 1]], dtype=bool)
    out = attention_reference(q, k, v, mask)
    assert np.isposinf(out[0, 0])
    assert np.isfinite(out[0, 1])
    assert np.isfinite(out[1]).all()
    assert np.isnan(out[2]).all()
    np.testing.assert_allclose(out[1], attention_reference(q[1:2], k[[0, 1, 4]], v[[0, 1, 4]])[0], rtol=1e-14)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_is_a_product_of_complex_numbers(rng, interleaved):
    x, positions = rng.standard_normal((2, 5, 8)), np.array([0, 3, 4, 100, 7])
    pairs = x.reshape(2, 5, 4, 2) if interleaved else np.stack([x[..., :4], x[..., 4:]], axis=-1)
    turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(
        1j * np.outer(positions, 100.0 ** -(np.arange(4) / 4))
    )
    want = np.stack([turned.real, turned.imag], axis=-1)
    want = want.reshape(2, 5, 8) if interleaved else np.concatenate([want[..., 0], want[..., 1]], axis=-1)
    got = reference.rotary_reference(x, positions, theta=100.0, interleaved=interleaved)
    np.testing.assert_allclose(got, want, rtol=1e-13)


def test_known_slopes():
    np.testing.assert_array_equal(reference.alibi_slopes_reference(8), 0.5 ** np.arange(1, 9))
    twelve = [*(0.5 ** np.arange(1, 9)), *(0.5 ** (np.arange(1, 9, 2) / 2))]  # as the paper fills up
    np.testing.assert_allclose(reference.alibi_slopes_reference(12), twelve, rtol=1e-15)


def test_known_positions():
    table = reference.sinusoidal_positions_reference(3, 4)
    want = [[0, 1, 0, 1], [math.sin(1), math.cos(1), math.sin(0.01), math.cos(0.01)]]
    np.testing.assert_allclose(table[:2], want, rtol=1e-15)
    concat = reference.sinusoidal_positions_reference(3, 4, layout="concat")
    np.testing.assert_array_equal(concat, table[:, [0, 2, 1, 3]])
