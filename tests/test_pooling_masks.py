"""Attention pooling and the one rule for masks, and the law of bits: batch, padding, neighbours, threads."""

import numpy as np
import pytest
from layers import randomize
from pooling_cases import NORMALIZE, SCORES, WIDTH, arrays, score

import headwise as hw
from headwise.testing import assert_same_bits


def window_of(dtype="float64"):
    """Return a predicted window with random parameters."""
    return randomize(hw.PredictiveWindow(WIDTH, 4, width=3, dtype=dtype), np.random.default_rng(8))


def everything(q, k, v, d_out=None, **options):
    """Return the result, the weights, and all gradients, those of parameters in a list."""
    out, weights = hw.attention(q, k, v, return_weights=True, **options)
    same, pullback = hw.vjp.attention(q, k, v, **options)
    assert_same_bits(out, same)
    answer = pullback(np.ones_like(out) if d_out is None else d_out)
    answer, grads = answer if len(answer) == 2 else (answer, {})
    return [out, weights, *answer], list(grads.values())


@pytest.mark.parametrize("local", [False, True], ids=["", "local"])
@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("name", SCORES)
def test_queries_without_a_key(name, normalize, local):
    q, k, v = arrays()
    q[0, 0, 1] = k[1] = v[1] = np.nan
    allowed = np.ones((2, 2, 4, 7), bool)
    allowed[0, 0, 1] = allowed[1] = False
    options = {"score": score(name)[0], "normalize": NORMALIZE[normalize], "attn_mask": allowed}
    if local:
        options["local"] = window_of()
    d_out = np.ones((2, 2, 4, 3))
    d_out[1] = np.nan
    arrays_, grads = everything(q, k, v, d_out, **options)
    out, weights, d_query, d_key, d_value = arrays_
    for x in (out, weights, d_query):
        np.testing.assert_array_equal(x[0, 0, 1], 0)
        np.testing.assert_array_equal(x[1], 0)
    for x in (d_key, d_value):
        np.testing.assert_array_equal(x[1], 0)
    assert all(np.isfinite(x).all() for x in (*arrays_, *grads))


@pytest.mark.parametrize("rng", [None, 5])
@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("name", SCORES)
def test_what_is_blocked_leaves_no_trace(name, normalize, rng):
    """Each query may attend some keys only; every key is NaN to those that may not attend it."""
    q, k, v = arrays(B=(), H=1, Hk=1, L=5, S=8)
    allowed = np.random.default_rng(2).random((5, 8)) < 0.6
    allowed[:, 3] = False
    allowed[:4, 6], allowed[4, 6] = False, True
    options = {"score": score(name)[0], "normalize": NORMALIZE[normalize], "attn_mask": allowed, "rng": rng}
    (out, weights, d_query, d_key, d_value), _ = everything(q, k, v, **options)
    bad_k, bad_v = k.copy(), v.copy()
    bad_k[0, [3, 6]], bad_v[0, [3, 6]] = np.nan, np.inf
    (bad_out, bad_weights, bad_query, bad_key, bad_value), grads = everything(q, bad_k, bad_v, **options)
    assert_same_bits(bad_out[:, :4], out[:, :4])
    assert_same_bits(bad_weights[:, :4], weights[:, :4])
    assert_same_bits(bad_query[:, :4], d_query[:, :4])
    untouched = [0, 1, 2, 3, 5, 7]
    # Query 4 met a NaN, and its own keys hear of it; a key that only the others may attend does not.
    alone = [j for j in untouched if not allowed[4, j]]
    assert_same_bits(bad_key[:, alone], d_key[:, alone])
    assert_same_bits(bad_value[:, alone], d_value[:, alone])
    np.testing.assert_array_equal(bad_key[0, 3], 0)
    bad_k[0, 6], bad_v[0, 6] = k[0, 6], v[0, 6]
    clean, grads = everything(q, bad_k, bad_v, **options)
    assert all(np.isfinite(x).all() for x in (*clean, *grads))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("local", [False, True], ids=["", "local"])
@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("name", SCORES)
def test_padding_and_neighbours(name, normalize, local, dtype):
    lengths = [7, 3, 0, 5]
    own = [arrays(dtype, B=(), S=max(n, 1), seed=n) for n in lengths]
    options = {"score": score(name, dtype)[0], "normalize": NORMALIZE[normalize]}
    if local:
        options["local"] = window_of(dtype)
    rng = np.random.default_rng(1)
    q = np.stack([x[0] for x in own])
    wide = [np.full((4, 2, 12, n), np.nan, dtype) for n in (WIDTH, 3)]
    keys = np.zeros((4, 12), bool)
    for b, n in enumerate(lengths):
        places = np.sort(rng.permutation(12)[:n])
        keys[b, places] = True
        wide[0][b][:, places], wide[1][b][:, places] = own[b][1][:, :n], own[b][2][:, :n]
    (out, weights, d_query, d_key, d_value), grads = everything(q, *wide, key_mask=keys, **options)
    for b, n in enumerate(lengths):
        alone, _ = everything(q[b], own[b][1][:, :n], own[b][2][:, :n], **options)
        here = keys[b]
        for got, want in zip(
            (out[b], weights[b][..., here], d_query[b], d_key[b][:, here], d_value[b][:, here]),
            alone,
            strict=True,
        ):
            assert_same_bits(got, want)
    # Parameters: the same sequences, padded elsewhere.
    front = [np.full((4, 2, 9, n), np.inf, dtype) for n in (WIDTH, 3)]
    for b, n in enumerate(lengths):
        front[0][b][:, :n], front[1][b][:, :n] = own[b][1][:, :n], own[b][2][:, :n]
    _, again = everything(q, *front, key_lengths=lengths, **options)
    for a, b in zip(grads, again, strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("name", SCORES)
def test_threads(name, normalize):
    q, k, v = arrays("float32", B=(3,), L=40, S=300)
    options = {"score": score(name, "float32")[0], "normalize": NORMALIZE[normalize], "is_causal": True}
    options["local"] = window_of("float32")
    results = []
    for n in (1, 3):
        with hw.num_threads(n):
            results.append(everything(q, k, v, **options))
    for a, b in zip(*(arrays_ + grads for arrays_, grads in results), strict=True):
        assert_same_bits(a, b)


def test_nan_in_an_allowed_place_shows():
    for name in SCORES:
        for normalize in NORMALIZE.values():
            q, k, v = arrays()
            k[0, 0, 2] = np.nan
            out = hw.attention(q, k, v, score=score(name)[0], normalize=normalize)
            assert np.isnan(out[0, 0]).all(), (name, normalize)
            assert np.isfinite(out[1]).all()


def test_values_that_are_not_chosen_are_not_read():
    q, k, v = arrays(B=(), H=1, Hk=1, L=1)
    for normalize in ("hard", "sparsemax", hw.TopK(2)):
        out, weights = hw.attention(q, k, v, score="dot", normalize=normalize, return_weights=True)
        bad = np.where((weights[0, 0] == 0)[:, None], np.nan, v)
        assert_same_bits(hw.attention(q, k, bad, score="dot", normalize=normalize), out)


def test_inputs_are_never_changed():
    q, k, v = arrays()
    before = [x.copy() for x in (q, k, v)]
    for x in (q, k, v):
        x.flags.writeable = False
    everything(q[::-1], k[::-1], v[::-1], score="l2", key_lengths=[3, 0])
    for x, y in zip((q, k, v), before, strict=True):
        assert_same_bits(x, y)
