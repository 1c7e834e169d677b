"""Attention pooling against its naive twin: scores, normalisations, shapes, dtypes and local windows."""

import numpy as np
import pytest
from layers import randomize
from pooling_cases import NORMALIZE, SCORES, WIDTH, arrays, check, score

import headwise as hw
from headwise.testing import assert_same_bits

BARS = {"float32": 2e-6, "float64": 4e-15}


@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("name", SCORES)
def test_twin(name, normalize, dtype):
    q, k, v = arrays(dtype)
    check(q, k, v, score(name, dtype), normalize, BARS[dtype])


@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("name", SCORES)
def test_twin_with_every_mask(name, normalize):
    rng = np.random.default_rng(3)
    q, k, v = arrays(B=(3,), H=4, Hk=2, L=5, S=9)
    bias = rng.standard_normal((3, 4, 5, 9))
    bias[rng.random(bias.shape) < 0.2] = -np.inf
    check(
        q,
        k,
        v,
        score(name),
        normalize,
        4e-15,
        attn_mask=bias,
        key_mask=rng.random((3, 9)) < 0.8,
        key_lengths=[9, 4, 0],
        is_causal=True,
        causal_offset=[3, 2, 0],
        window=(4, None),
        softcap=2.0,
        scale=0.7,
    )


def test_one_head_and_broadcast_batches():
    q, k, v = arrays(B=(), H=1, Hk=1)
    out, weights = hw.attention(q[0], k[0], v[0], score="l2", return_weights=True)
    assert out.shape == (4, 3)
    assert weights.shape == (4, 7)
    assert_same_bits(out, hw.attention(q, k, v, score="l2")[0])
    q, k, v = arrays(B=(3, 1), H=2)[0], *arrays(B=(1, 2), H=1, Hk=1)[1:]
    check(q, k, v, score("l2"), "sparsemax", 4e-15)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["scaled_dot", "dot"])
def test_softmax_of_products_is_scaled_dot_product_attention(name, dtype):
    q, k, v = arrays(dtype, L=9, S=9)
    mask = np.random.default_rng(1).standard_normal((9, 9))
    options = {"attn_mask": mask, "key_lengths": [9, 5], "is_causal": True, "softcap": 3.0}
    scale = None if name == "scaled_dot" else 1.0
    want = hw.scaled_dot_product_attention(q, k, v, scale=scale, return_weights=True, **options)
    got = hw.attention(q, k, v, score=name, return_weights=True, **options)
    for a, b in zip(got, want, strict=True):
        assert_same_bits(a, b)


def test_kernel_regression():
    """Nadaraya and Watson: a mean of the values, weighted by a Gaussian of the distance."""
    rng = np.random.default_rng(2)
    q, k, v = rng.standard_normal((4, 1)), rng.standard_normal((50, 1)), rng.standard_normal((50, 1))
    bandwidth = 0.3
    kernel = np.exp(-((q - k.T) ** 2) / (2 * bandwidth**2))
    want = kernel @ v / kernel.sum(axis=1, keepdims=True)
    got = hw.attention(q, k, v, score="l2", scale=1 / (2 * bandwidth**2))
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_a_cosine_is_at_most_one():
    q, k, v = arrays()
    k[..., 0, :] = 0
    q[..., 0, :] *= 1e150
    weights = hw.attention(q, k, v, score="cosine", normalize="sigmoid", return_weights=True)[1]
    assert (weights[..., 0] == 0.5).all()
    assert weights.max() <= 1 / (1 + np.exp(-1.0)) + 1e-15


def test_ties_go_to_the_smaller_index():
    q, k, v = np.zeros((3, 2)), np.zeros((6, 2)), np.eye(6)
    allowed = [False, True, True, False, True, True]
    hard = hw.attention(q, k, v, normalize="hard", key_mask=allowed)
    np.testing.assert_array_equal(hard, np.eye(6)[[1, 1, 1]])
    two = hw.attention(q, k, v, normalize=hw.TopK(2), key_mask=allowed)
    np.testing.assert_array_equal(two, np.tile([0, 0.5, 0.5, 0, 0, 0], (3, 1)))
    assert_same_bits(hw.attention(q, k, v, normalize=hw.TopK(1), key_mask=allowed), hard)


def test_top_k_of_more_than_there_are_is_softmax():
    q, k, v = arrays()
    of_all = hw.attention(q, k, v, score="l2")
    assert_same_bits(hw.attention(q, k, v, score="l2", normalize=hw.TopK(100)), of_all)


def test_sparsemax_has_zeros_and_sums_to_one():
    q, k, v = arrays(S=40)
    weights = hw.attention(q, k, v, score="dot", normalize="sparsemax", return_weights=True)[1]
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-14)
    assert (weights == 0).mean() > 0.5


def test_half_precision_is_computed_in_float32_and_rounded_once():
    q, k, v = arrays("float16")
    for normalize in NORMALIZE.values():
        wide = hw.attention(*(x.astype(np.float32) for x in (q, k, v)), score="l2", normalize=normalize)
        half = hw.attention(q, k, v, score="l2", normalize=normalize)
        assert half.dtype == np.float16
        np.testing.assert_array_equal(half, wide.astype(np.float16))


def test_integers_count_as_float64():
    q, k, v = [[1, 0]], [[1, 2], [3, 4]], [[True], [False]]
    out = hw.attention(q, k, v, score="cosine")
    assert out.dtype == np.float64
    assert_same_bits(out, hw.attention(*(np.array(x, float) for x in (q, k, v)), score="cosine"))


def test_layers_answer_in_the_dtype_of_the_arrays():
    q, k, v = arrays("float32")
    wide = hw.attention(q, k, v, score=score("additive", "float64")[0])
    assert wide.dtype == np.float32
    close = hw.attention(q, k, v, score=score("additive", "float32")[0])
    np.testing.assert_allclose(wide, close, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["bilinear", "additive"])
def test_queries_and_keys_of_different_widths(name):
    q, k, v = arrays(E=4, Ek=6)
    check(q, k, v, score(name, query_dim=4, key_dim=6), "softmax", 4e-15)


def test_a_callable_score():
    q, k, v = arrays()
    got = hw.attention(
        q, k, v, score=lambda q, k: q @ np.swapaxes(k, -1, -2), normalize="sparsemax", scale=0.5
    )
    want = hw.attention(q, k, v, score="dot", normalize="sparsemax", scale=0.5)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-14)


@pytest.mark.parametrize("normalize", NORMALIZE)
def test_a_monotonic_window_is_a_window(normalize):
    q, k, v = arrays(L=7)
    named = {"score": "l2", "normalize": NORMALIZE[normalize]}
    assert_same_bits(
        hw.attention(q, k, v, local=("m", 2), **named), hw.attention(q, k, v, window=(2, 2), **named)
    )
    narrower = hw.attention(q, k, v, local=("m", 2), window=(1, None), causal_offset=1, **named)
    assert_same_bits(narrower, hw.attention(q, k, v, window=(1, 2), causal_offset=1, **named))


@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("name", ["scaled_dot", "additive"])
def test_predicted_windows(name, normalize):
    q, k, v = arrays(B=(3,), S=11)
    window = randomize(hw.PredictiveWindow(WIDTH, 6, width=2.5, dtype="float64"), np.random.default_rng(5))
    state = window.state_dict()
    z = np.tanh(q @ state["proj.weight"].T) @ state["v.weight"][0]
    lengths = np.array([11, 6, 0])
    places = lengths[:, None, None] / (1 + np.exp(-z))
    twin = {"places": places, "width": 2.5}
    check(q, k, v, score(name), normalize, 4e-15, twin, local=window, key_lengths=lengths)
    np.testing.assert_allclose(window(q, lengths[:, None]), places, rtol=1e-14)
    # Causality and windows hold beside it.
    check(q, k, v, score(name), normalize, 4e-15, twin, local=window, key_lengths=lengths, is_causal=True)


def test_predicted_places_are_counted_among_the_keys_that_are_there():
    q, k, v = arrays(B=(), H=1, Hk=1, S=6)
    window = hw.PredictiveWindow(WIDTH, 4, width=2, dtype="float64", rng=0)
    here = np.array([False, True, True, False, True, True, False, True, True, False])
    wide_k, wide_v = np.full((1, 10, WIDTH), np.nan), np.full((1, 10, 3), np.nan)
    wide_k[:, here], wide_v[:, here] = k, v
    padded = hw.attention(q, wide_k, wide_v, key_mask=here, local=window)
    assert_same_bits(padded, hw.attention(q, k, v, local=window))


@pytest.mark.parametrize("sizes", [{"B": (0,)}, {"L": 0}, {"S": 0}, {"L": 0, "S": 0}, {"Ev": 0}], ids=str)
@pytest.mark.parametrize("name", SCORES)
def test_nothing_to_attend_to(name, sizes):
    q, k, v = arrays(**sizes)
    window = hw.PredictiveWindow(WIDTH, 3, width=2, dtype="float64", rng=0)
    for normalize in NORMALIZE.values():
        for local in (None, window):
            options = {"score": score(name)[0], "normalize": normalize, "local": local}
            out, pullback = hw.vjp.attention(q, k, v, **options)
            assert out.shape == q.shape[:-1] + v.shape[-1:]
            np.testing.assert_array_equal(out, 0)
            gradients = pullback(np.ones_like(out))
            gradients = gradients[0] if len(gradients) == 2 else gradients
            for d, x in zip(gradients, (q, k, v), strict=True):
                np.testing.assert_array_equal(d, np.zeros_like(x))
