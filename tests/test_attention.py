"""scaled_dot_product_attention against the contract and the naive reference: values, masks, extras, accuracy.

Accuracy bars (docs: Truth): rms-relative to float64 on normal inputs 4e-7 in float32 for E <= 80 and S <=
2048, 5e-7 for E 128 or S 4096; float16 2.1e-4 and bfloat16 1.7e-3, which is the rounding of the output alone.
"""

from itertools import product

import ml_dtypes
import numpy as np
import pytest
from compare import assert_same_bits, check, normals, qkv, rms_relative

import headwise as hw
from headwise.testing import attention_reference

LENGTHS = (1, 15, 16, 17, 63, 64, 65, 129, 1000)
WIDTHS = (1, 3, 32, 64, 80)
# every pair of lengths, the widths in turn; then every width at one odd pair
SHAPES = [(L, S, WIDTHS[i % 5]) for i, (L, S) in enumerate(product(LENGTHS, LENGTHS))]
SHAPES += [(L, S, E) for L, S in ((17, 65), (1, 1000)) for E in WIDTHS]
sdpa = hw.scaled_dot_product_attention


# --- accuracy -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("L", "S", "E"), SHAPES)
def test_accuracy_float32(rng, L, S, E):
    enough = -(-2000 // (2 * L * E))  # a ratio of two means needs some thousand elements to be one
    q, k, v = qkv(rng, L, S, E, B=(max(2, enough),), H=2)
    assert rms_relative(sdpa(q, k, v), attention_reference(q, k, v)) <= 4e-7


@pytest.mark.parametrize(("L", "S", "E"), SHAPES[::3])
def test_accuracy_float64(rng, L, S, E):
    q, k, v = qkv(rng, L, S, E, H=2, dtype="float64")
    assert rms_relative(sdpa(q, k, v), attention_reference(q, k, v)) <= 3e-15


@pytest.mark.parametrize(("L", "S", "E"), [(129, 2048, 64), (65, 2048, 80)])
def test_accuracy_long_keys(rng, L, S, E):
    q, k, v = qkv(rng, L, S, E, H=2)
    assert rms_relative(sdpa(q, k, v), attention_reference(q, k, v)) <= 4e-7


@pytest.mark.parametrize(("L", "S", "E"), [(129, 1000, 128), (64, 4096, 64), (64, 4096, 128)])
def test_accuracy_wide_or_very_long(rng, L, S, E):
    q, k, v = qkv(rng, L, S, E, H=2)
    assert rms_relative(sdpa(q, k, v), attention_reference(q, k, v)) <= 5e-7


@pytest.mark.parametrize(("dtype", "bar"), [("float16", 2.1e-4), (ml_dtypes.bfloat16, 1.7e-3)])
@pytest.mark.parametrize(("L", "S", "E"), [(65, 129, 64), (129, 1000, 32), (64, 17, 80), (1000, 65, 3)])
def test_half_is_widened_computed_in_float32_and_rounded_once(rng, dtype, bar, L, S, E):
    q, k, v = qkv(rng, L, S, E, H=4, dtype=dtype)
    out, weights, lse = sdpa(q, k, v, return_weights=True, return_lse=True)
    wide = [x.astype(np.float32) for x in (q, k, v)]
    out32, weights32, lse32 = sdpa(*wide, return_weights=True, return_lse=True)
    assert out.dtype == weights.dtype == dtype
    assert rms_relative(out, attention_reference(q, k, v)) <= bar
    assert_same_bits(out, out32.astype(dtype))
    assert_same_bits(weights, weights32.astype(dtype))
    assert lse.dtype == np.float32
    assert_same_bits(lse, lse32)


@pytest.mark.parametrize("spread", [0.01, 5.0, 30.0])
def test_flat_and_peaked_scores(rng, spread):
    q, k, v = qkv(rng, 65, 129, 32, H=2)
    q *= np.float32(spread)
    # a score s of float32 is off by some eps * |s|, and so is the exponent: the bar grows with the scores
    bar = 4e-7 * max(1.0, spread)
    assert rms_relative(sdpa(q, k, v), attention_reference(q, k, v)) <= bar


# --- shapes -------------------------------------------------------------------------------------------------


def test_one_head_without_batch(rng):
    q, k, v = qkv(rng, 5, 7, 8)
    out, weights, lse = check(q[0], k[0], v[0])
    assert (out.shape, weights.shape, lse.shape) == ((5, 8), (5, 7), (5,))


def test_three_axes_are_heads(rng):
    q, k, v = qkv(rng, 5, 7, 8, H=6, Hk=2)
    out, weights, lse = check(q, k, v)
    assert (out.shape, weights.shape, lse.shape) == ((6, 5, 8), (6, 5, 7), (6, 5))


def test_batch_axes_broadcast(rng):
    q = normals(rng, 2, 1, 4, 5, 8)
    k = normals(rng, 3, 2, 7, 8)
    v = normals(rng, 2, 3, 2, 7, 6)
    out, weights, lse = check(q, k, v)
    assert (out.shape, weights.shape, lse.shape) == ((2, 3, 4, 5, 6), (2, 3, 4, 5, 7), (2, 3, 4, 5))


@pytest.mark.parametrize("Ev", [1, 5, 16, 100])
def test_values_have_their_own_width(rng, Ev):
    check(*qkv(rng, 17, 33, 24, B=(2,), H=3, Ev=Ev))


@pytest.mark.parametrize(("H", "Hk"), [(8, 1), (8, 2), (6, 3), (9, 3)])
def test_grouped_queries(rng, H, Hk):
    q, k, v = qkv(rng, 17, 65, 16, B=(2,), H=H, Hk=Hk)
    out, *_ = check(q, k, v)
    for h in range(H):
        assert_same_bits(
            sdpa(q[:, h : h + 1], k[:, [h // (H // Hk)]], v[:, [h // (H // Hk)]]), out[:, h : h + 1]
        )
    assert_same_bits(sdpa(q, k, v, enable_gqa=True), out)


@pytest.mark.parametrize("shape", [(0, 2, 3), (2, 0, 3)])
def test_nothing_in_nothing_out(shape):
    B, L, S = shape
    q, k, v = np.ones((B, 2, L, 4)), np.ones((B, 2, S, 4)), np.ones((B, 2, S, 5))
    out, weights, lse = sdpa(q, k, v, return_weights=True, return_lse=True)
    assert (out.shape, weights.shape, lse.shape) == ((B, 2, L, 5), (B, 2, L, S), (B, 2, L))


def test_no_keys_gives_zero_rows():
    q, k, v = np.ones((2, 4, 3, 8)), np.ones((2, 4, 0, 8)), np.ones((2, 4, 0, 5))
    out, weights, lse = sdpa(q, k, v, return_weights=True, return_lse=True)
    assert_same_bits(out, np.zeros((2, 4, 3, 5)))
    assert weights.shape == (2, 4, 3, 0)
    assert_same_bits(lse, np.full((2, 4, 3), -np.inf))


def test_lists_are_arrays_of_float64():
    out = sdpa([[1.0, 0.0]], [[1, 0], [0, 1]], [[True, False], [False, True]])
    np.testing.assert_allclose(out, attention_reference([[1, 0]], np.eye(2), np.eye(2)), rtol=1e-14)
    assert out.dtype == np.float64


# --- dtypes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtypes", "result"),
    [
        (("float32",) * 3, "float32"),
        (("float64", "float32", "float32"), "float64"),
        (("float16", "float32", "float16"), "float32"),
        (("float32", "int8", "float32"), "float64"),
        (("bool", "int64", "uint8"), "float64"),
        (("float16", ml_dtypes.bfloat16, "float16"), "float32"),
        ((ml_dtypes.bfloat16,) * 3, ml_dtypes.bfloat16),
        ((ml_dtypes.bfloat16, "float64", "float32"), "float64"),
    ],
)
def test_result_dtype(rng, dtypes, result):
    arrays = [np.abs(normals(rng, 2, 3, 4, dtype="float64") * 3).astype(d) for d in dtypes]
    out = sdpa(*arrays)
    assert out.dtype == result
    assert_same_bits(out, sdpa(*(a.astype(result) for a in arrays)))


@pytest.mark.parametrize("dtype", ["complex64", "complex128", "longdouble", "object", "str", "datetime64[s]"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_other_dtypes_are_refused(dtype, place):
    arrays = [np.ones((2, 3, 4)) for _ in range(3)]
    arrays[place] = np.zeros((2, 3, 4), dtype=dtype)
    with pytest.raises(hw.DTypeError, match=("query", "key", "value")[place]):
        sdpa(*arrays)


@pytest.mark.parametrize("dtype", ["float16", "float64", ml_dtypes.bfloat16])
@pytest.mark.parametrize("inputs", ["float16", "float32", "float64"])
def test_mask_dtype_never_matters(rng, dtype, inputs):
    q, k, v = qkv(rng, 9, 17, 8, H=2, dtype=inputs)
    mask = rng.integers(-8, 8, (9, 17)).astype(np.float32) / 4  # exact in every dtype
    mask[:, 3] = -np.inf
    out = sdpa(q, k, v, mask.astype(dtype))
    assert out.dtype == inputs
    assert_same_bits(out, sdpa(q, k, v, mask))


def test_inputs_are_not_changed(rng):
    q, k, v = qkv(rng, 9, 17, 8, H=2)
    mask, key_mask = normals(rng, 9, 17), rng.random(17) < 0.7
    copies = [x.copy() for x in (q, k, v, mask, key_mask)]
    sdpa(q, k, v, mask, key_mask=key_mask, return_weights=True)
    for now, before in zip((q, k, v, mask, key_mask), copies, strict=True):
        np.testing.assert_array_equal(now, before)


# --- scale, cap, scores -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 0.05, -0.3, 0.0])
@pytest.mark.parametrize("softcap", [None, 0.5, 30.0])
def test_scale_and_softcap(rng, scale, softcap):
    check(*qkv(rng, 17, 65, 16, H=2), scale=scale, softcap=softcap)


def test_default_scale(rng):
    q, k, v = qkv(rng, 5, 9, 16, H=2)
    assert_same_bits(sdpa(q, k, v), sdpa(q, k, v, scale=0.25))


@pytest.mark.parametrize("kind", ["raw", "capped", "masked"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scores(rng, kind, dtype):
    q, k, v = qkv(rng, 33, 65, 16, B=(2,), H=4, Hk=2, dtype=dtype)
    bias = normals(rng, 33, 65)
    bias[rng.random(bias.shape) < 0.3] = -np.inf
    options = {"attn_mask": bias, "is_causal": True, "causal_offset": 30, "softcap": 2.0, "scale": 0.5}
    out, scores = sdpa(q, k, v, return_weights=kind, **options)
    _, want = attention_reference(q, k, v, return_weights=kind, **options)
    assert scores.dtype == dtype
    tolerance = 2e-6 if dtype == "float32" else 1e-14
    # raw and capped scores are those of every pair: no mask is in them
    np.testing.assert_allclose(scores, want, rtol=tolerance, atol=tolerance)
    assert_same_bits(out, sdpa(q, k, v, **options))


def test_raw_scores_of_pairs_that_key_mask_blocks(rng):
    q, k, v = qkv(rng, 5, 9, 16, B=(2,), H=2)
    _, scores = sdpa(q, k, v, key_mask=rng.random((2, 9)) < 0.5, return_weights="raw")
    np.testing.assert_allclose(
        scores, attention_reference(q, k, v, return_weights="raw")[1], rtol=2e-6, atol=2e-6
    )


def test_scores_without_a_cap_are_raw(rng):
    q, k, v = qkv(rng, 5, 9, 16, H=2)
    raw, capped, masked = (sdpa(q, k, v, return_weights=kind)[1] for kind in ("raw", "capped", "masked"))
    assert_same_bits(raw, capped)
    assert_same_bits(raw, masked)


def test_what_comes_back(rng):
    q, k, v = qkv(rng, 5, 9, 8, B=(2,), H=3)
    out = sdpa(q, k, v)
    assert isinstance(out, np.ndarray)
    a, weights = sdpa(q, k, v, return_weights=True)
    b, lse = sdpa(q, k, v, return_lse=True)
    c, weights_too, lse_too = sdpa(q, k, v, return_weights=True, return_lse=True)
    for other in (a, b, c):
        assert_same_bits(out, other)
    assert_same_bits(weights, weights_too)
    assert_same_bits(lse, lse_too)
    assert (weights.shape, lse.shape) == ((2, 3, 5, 9), (2, 3, 5))
    np.testing.assert_allclose(weights.sum(axis=-1), 1.0, rtol=1e-6)


def test_positional_arguments_are_torchs(rng):
    q, k, v = qkv(rng, 7, 7, 8, H=2)
    mask = rng.random((7, 7)) < 0.8
    assert_same_bits(
        sdpa(q, k, v, mask, 0.0, True), sdpa(q, k, v, attn_mask=mask, dropout_p=0.0, is_causal=True)
    )
