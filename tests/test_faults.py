"""Poison and excess: NaN and inf where they may and may not be seen, sizes that overflow."""

import numpy as np
import pytest
from compare import assert_same_bits, normals, qkv
from layers import randomize

import headwise as hw

sdpa = hw.scaled_dot_product_attention
POISON = [np.nan, np.inf, -np.inf]
L, S = 40, 150


def blocked_ways(rng):
    """Return {how: (keywords, boolean (L, S) of what is blocked)}."""
    keys = rng.random(S) < 0.4
    rows = rng.random((L, S)) < 0.4
    index, column = np.arange(L)[:, None], np.arange(S)[None]
    return {
        "key_mask": ({"key_mask": ~keys}, np.broadcast_to(keys, (L, S))),
        "bool mask": ({"attn_mask": ~rows}, rows),
        "float mask": ({"attn_mask": np.where(rows, -np.inf, 0.5)}, rows),
        "lengths": ({"key_lengths": np.array(70)}, np.broadcast_to(column >= 70, (L, S))),
        "causal": ({"is_causal": True, "causal_offset": 60}, column > index + 60),
        "window": ({"window": (3, 5), "causal_offset": 50}, (column < index + 47) | (column > index + 55)),
    }


WAYS = ["key_mask", "bool mask", "float mask", "lengths", "causal", "window"]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("how", WAYS)
def test_poison_in_blocked_places_leaves_no_trace(rng, how, poison, dtype):
    q, k, v = qkv(rng, L, S, 16, H=4, Hk=2, dtype=dtype)
    options, blocked = blocked_ways(rng)[how]
    want = sdpa(q, k, v, return_weights=True, return_lse=True, **options)
    for j in np.flatnonzero(blocked.any(axis=0))[::19]:
        # the rows that may not see key j must not change in one bit; the others may become NaN
        bad_k, bad_v = k.copy(), v.copy()
        bad_k[:, j, 3] = poison
        bad_v[:, j] = poison
        rows = blocked[:, j]
        for keys, values in ((bad_k, v), (k, bad_v), (bad_k, bad_v)):
            got = sdpa(q, keys, values, return_weights=True, return_lse=True, **options)
            for one, other in zip(got, want, strict=True):
                assert_same_bits(one[:, rows], other[:, rows])


@pytest.mark.parametrize("poison", POISON)
def test_poison_in_all_blocked_places_at_once(rng, poison):
    q, k, v = qkv(rng, L, S, 16, H=2)
    blocked = rng.random(S) < 0.5
    want = sdpa(q, k, v, key_mask=~blocked)
    k[:, blocked], v[:, blocked] = poison, poison
    assert_same_bits(sdpa(q, k, v, key_mask=~blocked), want)
    assert_same_bits(sdpa(q, k, v, ~blocked), want)
    assert_same_bits(sdpa(q, k, v, np.where(blocked, -np.inf, 0)), want)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nan_in_allowed_places_is_seen(rng, dtype):
    q, k, v = qkv(rng, L, S, 16, H=2, dtype=dtype)
    mask = rng.random((L, S)) < 0.7
    for array, axis in ((q, 1), (k, 1), (v, 1)):
        poisoned = array.copy()
        poisoned[0, 10, 3] = np.nan
        arrays = [poisoned if x is array else x for x in (q, k, v)]
        out = sdpa(*arrays, mask)
        seen = np.isnan(out)
        assert axis == 1
        assert not seen[1].any()  # the other head
        if array is q:
            assert seen[0, 10].all()
            assert not np.delete(seen[0], 10, axis=0).any()
        elif array is k:
            np.testing.assert_array_equal(seen[0], np.broadcast_to(mask[:, 10:11], seen[0].shape))
        else:
            np.testing.assert_array_equal(seen[0, :, 3], mask[:, 10])
            assert not np.delete(seen[0], 3, axis=1).any()


def test_infinity_in_allowed_places_is_seen(rng):
    q, k, v = qkv(rng, 5, 9, 8)
    v[0, 4, 2] = np.inf
    out = sdpa(q, k, v)
    assert np.isposinf(out[0, :, 2]).all()
    assert np.isfinite(np.delete(out, 2, axis=-1)).all()
    mask = np.zeros((5, 9))
    mask[1, 3] = np.inf  # inf - inf in the softmax
    mask[2, 3] = np.nan
    out = sdpa(*qkv(rng, 5, 9, 8), mask)
    assert np.isnan(out[0, 1:3]).all()
    assert np.isfinite(out[0, [0, 3, 4]]).all()


def test_an_allowed_score_that_overflows_is_not_an_empty_row():
    q, k = np.full((2, 4), 1e30, dtype=np.float32), np.full((3, 4), -1e30, dtype=np.float32)
    v = np.ones((3, 4), dtype=np.float32)
    assert np.isnan(sdpa(q, k, v)).all()  # softmax of -inf alone, by IEEE: no zero row
    k[1] = 0.0
    np.testing.assert_array_equal(
        sdpa(q, k, v), np.ones((2, 4), dtype=np.float32)
    )  # weight 0 beside a finite one


def test_nan_does_not_reach_other_sequences(rng):
    layer = randomize(hw.Encoder(2, 16, 4, 24), rng)
    x = normals(rng, 3, 20, 16)
    out = layer(x)
    x[1, 7, 3] = np.nan
    poisoned = layer(x)
    assert_same_bits(poisoned[[0, 2]], out[[0, 2]])
    assert np.isnan(poisoned[1]).all()


@pytest.mark.parametrize("tiny", [1e-40, 1e-45])
def test_subnormal_numbers_are_kept(tiny):
    q, v = np.zeros((2, 4), dtype=np.float32), np.full((1, 4), tiny, dtype=np.float32)
    assert_same_bits(sdpa(q, np.zeros((1, 4), dtype=np.float32), v), np.broadcast_to(v, (2, 4)).copy())


# --- sizes --------------------------------------------------------------------------------------------------


def huge(*shape, dtype="float32"):
    """Return a read-only array of a huge shape over one element."""
    return np.broadcast_to(np.zeros(1, dtype=dtype), shape)


@pytest.mark.parametrize("n", [2**40, 2**58])
def test_sizes_that_no_memory_holds(n):
    one = np.zeros((1, 4), dtype=np.float32)
    with pytest.raises((MemoryError, ValueError)):
        sdpa(huge(n, 1), one[:, :1], one)
    with pytest.raises((MemoryError, ValueError)):
        hw.allowed_mask(n, n)
    with pytest.raises((MemoryError, ValueError)):
        hw.sinusoidal_positions(n, 4)
    with pytest.raises((MemoryError, ValueError)):
        hw.softmax(huge(n, 1))
    with pytest.raises((MemoryError, ValueError)):
        hw.linear(huge(n, 1), np.ones((4, 1), dtype=np.float32))


def test_weights_that_no_memory_holds():
    q = huge(1, 2**22, 4)
    with pytest.raises((MemoryError, ValueError)):
        sdpa(q, q, q, return_weights=True)  # 2 ** 44 weights
    with pytest.raises((MemoryError, ValueError)):
        hw.MultiHeadAttention(2**40, 1)
    with pytest.raises((MemoryError, ValueError)):
        hw.EncoderLayer(8, 2, 2**60)


@pytest.mark.parametrize("number", [2**63, 2**64, -(2**63) - 1, 10**30])
def test_numbers_that_no_word_holds(number):
    x = np.ones((3, 4))
    with pytest.raises((ValueError, OverflowError)):
        sdpa(x, x, x, is_causal=True, causal_offset=number)
    try:  # a window wider than any word is refused, or it is what it says: open
        out = sdpa(x, x, x, window=(number, 0))
    except (ValueError, OverflowError):
        pass
    else:
        assert number > 0
        assert_same_bits(out, sdpa(x, x, x, window=(None, 0)))
    with pytest.raises((ValueError, OverflowError)):
        hw.allowed_mask(number, 3)
    with pytest.raises((ValueError, OverflowError)):
        hw.MultiHeadAttention(number, 1)


@pytest.mark.parametrize("offset", [2**62, -(2**62), 2**63 - 1, -(2**63)])
def test_offsets_at_the_ends_of_a_word(offset):
    x = np.ones((3, 4))
    out = sdpa(x, x, x, is_causal=True, causal_offset=offset)
    np.testing.assert_array_equal(out, np.ones((3, 4)) if offset > 0 else np.zeros((3, 4)))
    windowed = sdpa(x, x, x, window=(2**63 - 1, 2**63 - 1), causal_offset=offset)
    assert windowed.shape == (3, 4)


def test_seeds_may_be_large(rng):
    q, k, v = qkv(rng, 5, 9, 8)
    for seed in (0, 2**32, 2**63 - 1, 2**64 - 1):
        assert np.isfinite(sdpa(q, k, v, dropout_p=0.5, rng=seed)).all()
    with pytest.raises((ValueError, OverflowError, TypeError)):
        sdpa(q, k, v, dropout_p=0.5, rng=-1)
