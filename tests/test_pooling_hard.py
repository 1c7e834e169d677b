"""Hard attention that draws its keys: frequencies, seeds, and the score-function gradient.

Bounds are statistical: with a fixed seed a test always passes or always fails, and its bound is what an
honest sampler keeps but for one seed in some tens of thousands.
"""

import numpy as np
import pytest
from pooling_cases import arrays

import headwise as hw
from headwise.testing import assert_same_bits

DRAWS = 20_000


def one_query(draws=DRAWS):
    """Return `draws` equal queries (draws, 1, 5), keys and values (6, .), and the softmax of their scores."""
    q, k, v = (x[0] for x in arrays(B=(), H=1, Hk=1, L=1, S=6))
    _, p = hw.attention(q, k, v, return_weights=True)
    return np.tile(q, (draws, 1)), k, v, p[0]


def test_frequencies_are_the_softmax():
    q, k, v, p = one_query()
    out, weights = hw.attention(q, k, v, normalize="hard", rng=11, return_weights=True)
    assert ((weights == 1).sum(axis=1) == 1).all()
    assert ((weights == 0) | (weights == 1)).all()
    np.testing.assert_array_equal(out, v[weights.argmax(axis=1)])
    counts = weights.sum(axis=0)
    chi_square = np.sum((counts - DRAWS * p) ** 2 / (DRAWS * p))
    # The 0.9999 quantile of chi-square with 5 degrees of freedom.
    assert chi_square < 25.75


def test_blocked_keys_are_never_drawn():
    q, k, v, p = one_query()
    allowed = np.array([True, False, True, True, False, True])
    weights = hw.attention(q, k, v, normalize="hard", rng=3, key_mask=allowed, return_weights=True)[1]
    assert (weights[:, ~allowed] == 0).all()
    share = p[allowed] / p[allowed].sum()
    counts = weights[:, allowed].sum(axis=0)
    # 0.9999 quantile, 3 degrees of freedom.
    assert np.sum((counts - DRAWS * share) ** 2 / (DRAWS * share)) < 21.11


def test_seeds_and_generators():
    q, k, v, _ = one_query(200)
    named = {"normalize": "hard"}
    assert_same_bits(hw.attention(q, k, v, rng=1, **named), hw.attention(q, k, v, rng=1, **named))
    assert (hw.attention(q, k, v, rng=1, **named) != hw.attention(q, k, v, rng=2, **named)).any()
    one, other = np.random.default_rng(4), np.random.default_rng(4)
    assert_same_bits(hw.attention(q, k, v, rng=one, **named), hw.attention(q, k, v, rng=other, **named))
    # One draw a call, whatever the normalisation.
    hw.attention(q, k, v, rng=one)
    other.integers(0, 2**64 - 1, dtype=np.uint64, endpoint=True)
    assert one.integers(1000) == other.integers(1000)
    for n in (1, 3):
        with hw.num_threads(n):
            assert_same_bits(
                hw.attention(q, k, v, rng=1, **named), hw.vjp.attention(q, k, v, rng=1, **named)[0]
            )


def exact(q, k, v, loss_of_value):
    """Return the gradient of the expected loss with respect to one query, and the expected loss."""
    out, pullback = hw.vjp.attention(q, k, loss_of_value[:, None])
    return pullback(np.ones_like(out))[0], float(out[0, 0])


def mean_is_within(samples, want):
    """Check the mean of samples (N, E) against the truth, within four and a half of its standard errors."""
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    assert (np.abs(samples.mean(axis=0) - want) < 4.5 * error).all()


def test_the_mean_of_the_score_function_gradient_of_a_linear_loss():
    q, k, v, _ = one_query()
    d_out = np.array([1.0, -2.0, 0.5])
    want, _ = exact(q[:1], k, v, v @ d_out)
    _, pullback = hw.vjp.attention(q, k, v, normalize="hard", rng=17)
    d_query, _, d_value = pullback(np.tile(d_out, (DRAWS, 1)))
    mean_is_within(d_query, want[0])
    # Of the value it is that of the mean result: the share of its draws.
    counts = hw.attention(q, k, v, normalize="hard", rng=17, return_weights=True)[1].sum(axis=0)
    np.testing.assert_allclose(d_value, np.outer(counts, d_out), rtol=1e-12)


def test_an_advantage_with_a_baseline():
    """A loss that is not linear in the result; a baseline leaves the mean and takes from the variance."""
    q, k, v, _ = one_query()
    loss = np.sum(v**2, axis=1) + 10.0
    want, expected = exact(q[:1], k, v, loss)
    out, pullback = hw.vjp.attention(q, k, v, normalize="hard", rng=23)
    losses = np.sum(out**2, axis=1) + 10.0
    none = np.zeros_like(out)
    plain = pullback((none, losses))[0]
    better = pullback((none, losses - expected))[0]
    mean_is_within(plain, want[0])
    mean_is_within(better, want[0])
    assert better.var() < 0.1 * plain.var()
    np.testing.assert_array_equal(pullback((none, losses))[2], 0)


def test_the_formula_of_one_draw():
    q, k, v = arrays()
    keep = np.random.default_rng(1).random((2, 2, 4, 7)) < 0.7
    named = {"attn_mask": np.where(keep, 0.0, -np.inf), "softcap": 2.0}
    _, p = hw.attention(q, k, v, return_weights=True, **named)
    out, weights = hw.attention(q, k, v, normalize="hard", rng=5, return_weights=True, **named)
    _, pullback = hw.vjp.attention(q, k, v, normalize="hard", rng=5, mask_grad=True, **named)
    advantage = np.random.default_rng(2).standard_normal((2, 2, 4))
    d_mask = pullback((np.ones_like(out), advantage))[3]
    np.testing.assert_allclose(d_mask, advantage[..., None] * (weights - p), rtol=1e-12, atol=1e-15)
    d_mask = pullback(out)[3]
    np.testing.assert_allclose(d_mask, (out * out).sum(-1)[..., None] * (weights - p), rtol=1e-12, atol=1e-15)


def test_the_greatest_has_no_advantage():
    q, k, v = arrays()
    out, pullback = hw.vjp.attention(q, k, v, normalize="hard")
    with pytest.raises(TypeError, match=r"d_out: expected an array; \(d_out, advantage\) is for"):
        pullback((out, out[..., 0]))
    d_query, d_key, _ = pullback(out)
    np.testing.assert_array_equal(d_query, 0)
    np.testing.assert_array_equal(d_key, 0)
    _, pullback = hw.vjp.attention(q, k, v, normalize="hard", rng=0)
    with pytest.raises(hw.ShapeError, match=r"advantage: expected \(B, H, L\) = \(2, 2, 4\), got \(2, 2\)"):
        pullback((out, out[..., 0, 0]))
