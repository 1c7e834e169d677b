"""Masks of scaled_dot_product_attention: every rank and kind, offsets, windows, queries without allowed keys.

True allows, everywhere; a float mask is added and blocks at -inf; all constraints are ANDed.
"""

import numpy as np
import pytest
from compare import assert_same_bits, check, normals, qkv, rms_relative
from reference import allowed_mask_reference

import headwise as hw
from headwise.testing import attention_reference

sdpa = hw.scaled_dot_product_attention


# --- masks --------------------------------------------------------------------------------------------------

MASK_SHAPES = [(65,), (1,), (33, 65), (33, 1), (1, 65), (4, 33, 65), (4, 1, 65), (1, 33, 65), (2, 4, 33,
65),
               (2, 1, 33, 65), (2, 1, 1, 65), (1, 4, 33, 1), (1, 1, 1, 1)]  # fmt: skip


@pytest.mark.parametrize("kind", ["bool", "float", "float with -inf"])
@pytest.mark.parametrize("shape", MASK_SHAPES)
def test_masks_of_every_rank(rng, shape, kind):
    q, k, v = qkv(rng, 33, 65, 16, B=(2,), H=4, Hk=2)
    mask = rng.random(shape) < 0.6 if kind == "bool" else np.asarray(normals(rng, *shape))
    if kind.endswith("inf"):
        mask = np.where(rng.random(shape) < 0.3, -np.inf, mask)
    want = attention_reference(q, k, v, mask)
    out = sdpa(q, k, v, mask)
    if want.any():
        assert rms_relative(out, want) <= 4e-7
    else:
        assert_same_bits(out, np.zeros_like(out))


def test_mask_over_many_batch_axes(rng):
    q, k, v = qkv(rng, 5, 9, 8, B=(2, 3), H=4)
    for shape in [(2, 1, 1, 5, 9), (3, 4, 5, 9), (2, 3, 1, 1, 9)]:
        check(q, k, v, attn_mask=rng.random(shape) < 0.7)


def test_true_allows():
    v = np.eye(3)
    out = sdpa(np.zeros((1, 4)), np.zeros((3, 4)), v, [[True, False, True]])
    np.testing.assert_array_equal(out, [[0.5, 0.0, 0.5]])


def test_float_masks_are_added_after_scale_and_cap(rng):
    q, k, v = qkv(rng, 9, 17, 8, H=2)
    check(q, k, v, attn_mask=normals(rng, 9, 17) * 3, scale=0.7, softcap=1.5)


def test_only_minus_infinity_blocks(rng):
    q, k, v = qkv(rng, 1, 3, 8)
    lows = np.array([-1e9, -1e9, -1e9], dtype=np.float32)
    out, weights = sdpa(q, k, v, lows, return_weights=True)
    np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-6)  # finite lows on every key are a shift, no mask
    assert out.any()
    below = np.array([0.0, -1e39, -1.7e308])  # below float32's range: as good as -inf
    assert_same_bits(sdpa(q, k, v, below), sdpa(q, k, v, np.array([True, False, False])))
    lowest = np.array([0.0, 0.0, np.finfo(np.float32).min], dtype=np.float32)  # in range: allowed, weight 0
    _, weights = sdpa(q, k, v, np.full(3, lowest[2]), return_weights=True)
    np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bool", "int8", "int64", "uint8"])
def test_key_mask_is_boolean_or_zero_and_one(rng, dtype):
    q, k, v = qkv(rng, 9, 17, 8, B=(3,), H=2)
    key_mask = rng.random((3, 17)) < 0.6
    out, *_ = check(q, k, v, key_mask=key_mask)
    assert_same_bits(sdpa(q, k, v, key_mask=key_mask.astype(dtype)), out)
    assert_same_bits(sdpa(q, k, v, key_mask[:, None, None, :]), out)


def test_key_mask_without_batch(rng):
    q, k, v = qkv(rng, 9, 17, 8, H=2)
    key_mask = np.arange(17) % 3 > 0
    check(q, k, v, key_mask=key_mask)
    check(q[0], k[0], v[0], key_mask=key_mask)


def test_key_lengths(rng):
    q, k, v = qkv(rng, 9, 130, 8, B=(4,), H=2)
    lengths = np.array([130, 64, 1, 0])
    out, *_ = check(q, k, v, key_lengths=lengths)
    for b, n in enumerate(lengths):
        assert_same_bits(out[b], sdpa(q[b], k[b, :, :n], v[b, :, :n]))
    assert not out[3].any()


@pytest.mark.parametrize(("L", "S"), [(5, 9), (9, 5), (64, 64), (65, 130), (130, 65), (1, 7)])
@pytest.mark.parametrize("offset", [0, 3, -2, "bottom_right", 1000, -1000])
def test_causal_offsets(rng, L, S, offset):
    q, k, v = qkv(rng, L, S, 8, H=2)
    want = attention_reference(q, k, v, is_causal=True, causal_offset=offset)
    out = sdpa(q, k, v, is_causal=True, causal_offset=offset)
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=2e-6)
    empty = ~allowed_mask_reference(L, S, is_causal=True, causal_offset=offset)[0].any(axis=-1)
    assert not out[:, empty].any()


def test_causal_offset_for_each_batch(rng):
    q, k, v = qkv(rng, 5, 70, 8, B=(3,), H=2)
    offsets = np.array([0, 65, -3])
    out, *_ = check(q, k, v, is_causal=True, causal_offset=offsets)
    for b in range(3):
        assert_same_bits(out[b], sdpa(q[b], k[b], v[b], is_causal=True, causal_offset=int(offsets[b])))


def test_bottom_right_follows_the_key_lengths(rng):
    q, k, v = qkv(rng, 4, 20, 8, B=(3,), H=2)
    lengths = np.array([20, 7, 2])
    out, *_ = check(q, k, v, is_causal=True, causal_offset="bottom_right", key_lengths=lengths)
    assert_same_bits(out, sdpa(q, k, v, is_causal=True, causal_offset=lengths - 4, key_lengths=lengths))
    assert not out[2, :, :2].any()  # two keys, four queries: the first two see none


WINDOWS = [(0, 0), (2, 0), (0, 3), (5, 5), (None, 0), (0, None), (None, None), (64, 63), (1000, 1000)]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("offset", [0, 4, -70, "bottom_right"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_windows(rng, window, offset, is_causal):
    q, k, v = qkv(rng, 70, 140, 8, H=2)
    options = {"window": window, "causal_offset": offset, "is_causal": is_causal}
    allowed = allowed_mask_reference(70, 140, **options)[0]
    out = sdpa(q, k, v, **options)
    np.testing.assert_allclose(out, attention_reference(q, k, v, **options), rtol=1e-5, atol=2e-6)
    assert not out[:, ~allowed.any(axis=-1)].any()
    assert_same_bits(out, sdpa(q, k, v, allowed))  # however a constraint is said, it means the same


def test_constraints_are_anded(rng):
    q, k, v = qkv(rng, 33, 65, 8, B=(2,), H=4, Hk=2)
    bias = normals(rng, 4, 33, 65)
    bias[rng.random(bias.shape) < 0.2] = -np.inf
    options = {
        "is_causal": True,
        "causal_offset": np.array([30, 5]),
        "window": (20, None),
        "key_mask": rng.random((2, 65)) < 0.8,
        "key_lengths": np.array([60, 44]),
    }
    _out, weights, _ = check(q, k, v, attn_mask=bias, softcap=2.0, **options)
    allowed = np.broadcast_to(allowed_mask_reference(33, 65, attn_mask=bias, **options), weights.shape)
    assert not weights[~allowed].any()
    assert (weights[allowed] > 0).all()


# --- a query with no allowed key ----------------------------------------------------------------------------

EMPTY = {
    "bool mask": {"attn_mask": np.zeros((5, 7), dtype=bool)},
    "float mask": {"attn_mask": np.full((5, 7), -np.inf)},
    "float mask, every head": {"attn_mask": np.full((2, 5, 7), -np.inf, dtype=np.float32)},
    "key_mask": {"key_mask": np.zeros(7, dtype=bool)},
    "key_lengths": {"key_lengths": np.array(0)},
    "causal": {"is_causal": True, "causal_offset": -5},
    "window": {"window": (0, 0), "causal_offset": 7},
    "two that exclude each other": {"attn_mask": np.arange(7) < 3, "key_mask": np.arange(7) >= 3},
}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("how", EMPTY)
def test_rows_without_keys(rng, how, dtype):
    q, k, v = qkv(rng, 5, 7, 8, H=2, dtype=dtype)
    out, weights, lse = sdpa(q, k, v, return_weights=True, return_lse=True, **EMPTY[how])
    assert_same_bits(out, np.zeros_like(out))  # +0, not -0
    assert_same_bits(weights, np.zeros_like(weights))
    assert np.isneginf(lse).all()


def test_one_empty_row_among_others(rng):
    q, k, v = qkv(rng, 6, 70, 8, H=2)
    mask = rng.random((6, 70)) < 0.5
    mask[2] = False
    out, weights, lse = sdpa(q, k, v, mask, return_weights=True, return_lse=True)
    assert_same_bits(out[:, 2], np.zeros_like(out[:, 2]))
    assert not weights[:, 2].any()
    assert np.isneginf(lse[:, 2]).all()
    rest = [0, 1, 3, 4, 5]
    assert_same_bits(out[:, rest], sdpa(q[:, rest], k, v, mask[rest]))
    assert np.isfinite(lse[:, rest]).all()


# --- allowed_mask -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "masks",
    [
        {},
        {"is_causal": True},
        {"is_causal": True, "causal_offset": "bottom_right"},
        {"is_causal": True, "causal_offset": np.array([0, 2, -1])},
        {"window": (1, 2)},
        {"window": (None, 0), "causal_offset": 2},
        {"key_lengths": np.array([9, 4, 0])},
        {"key_lengths": np.array([9, 4, 0]), "is_causal": True, "causal_offset": "bottom_right"},
        {"key_mask": np.arange(27).reshape(3, 9) % 4 > 0},
        {"attn_mask": np.arange(54).reshape(6, 9) % 5 > 1},
        {"attn_mask": np.where(np.arange(54).reshape(6, 9) % 5 > 1, 0.5, -np.inf)},
        {
            "attn_mask": np.arange(108).reshape(2, 6, 9) % 5 > 1,
            "key_mask": np.arange(27).reshape(3, 9) % 4 > 0,
        },
    ],
)
def test_allowed_mask(masks):
    mask = hw.allowed_mask(6, 9, **masks)
    want = allowed_mask_reference(6, 9, **masks)
    assert mask.dtype == bool
    shape = np.broadcast_shapes(want.shape, mask.shape)  # (B, 1 or H, L, S); absent axes may be left out
    assert shape == want.shape
    np.testing.assert_array_equal(np.broadcast_to(mask, shape), want)
    q, k, v = np.ones((3, 2, 6, 4)), np.ones((3, 2, 9, 4)), np.stack([np.eye(9)] * 2)
    np.testing.assert_allclose(sdpa(q, k, v, mask), sdpa(q, k, v, **masks), rtol=1e-14)


@pytest.mark.once
@pytest.mark.parametrize(
    ("masks", "error", "named"),
    [
        ({"attn_mask": np.ones((6, 8), dtype=bool)}, ValueError, "attn_mask"),
        ({"attn_mask": np.ones((6, 9), dtype=int)}, TypeError, "attn_mask"),
        ({"key_mask": np.ones((2, 8), dtype=bool)}, ValueError, "key_mask"),
        ({"key_mask": np.ones((2, 9))}, TypeError, "key_mask"),
        ({"key_lengths": np.array([10])}, ValueError, "key_lengths"),
        ({"key_mask": np.ones((2, 9), dtype=bool), "key_lengths": [1, 2, 3]}, ValueError, "key_lengths"),
        ({"causal_offset": "top", "is_causal": True}, ValueError, "causal_offset"),
        ({"window": (-1, 0)}, ValueError, "window"),
        ({"key_padding_mask": np.zeros((2, 9), dtype=bool)}, TypeError, "key_mask"),
    ],
)
def test_allowed_mask_refuses_what_attention_refuses(masks, error, named):
    with pytest.raises(error, match=named):
        hw.allowed_mask(6, 9, **masks)


@pytest.mark.parametrize(("L", "S"), [(0, 9), (6, 0), (0, 0)])
def test_allowed_mask_of_nothing(L, S):
    assert hw.allowed_mask(L, S, is_causal=True).shape[-2:] == (L, S)
