"""``headwise.testing``: the reference against loops over numbers, the assertions by what they let through."""

import math
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from compare import qkv

import headwise as hw
from headwise.testing import assert_close, assert_same_bits, attention_reference, tolerance

pytestmark = pytest.mark.once


# ---- attention_reference -----------------------------------------------------------------------------------


def test_the_reference_of_grouped_heads_by_loops(rng):
    q, k, v = qkv(rng, 3, 5, 4, B=(2,), H=4, Hk=2, dtype="float64")
    bias = rng.standard_normal((4, 1, 5))
    out, weights, lse = attention_reference(
        q, k, v, bias, key_lengths=[5, 0], softcap=2.0, return_weights=True, return_lse=True
    )
    assert out.shape == (2, 4, 3, 4)
    for h in range(4):
        for i in range(3):
            scores = [math.fsum(q[0, h, i] * k[0, h // 2, j]) / 2 for j in range(5)]
            p = [math.exp(2 * math.tanh(s / 2) + bias[h, 0, j]) for j, s in enumerate(scores)]
            np.testing.assert_allclose(weights[0, h, i], np.array(p) / sum(p), rtol=1e-14)
            np.testing.assert_allclose(lse[0, h, i], math.log(sum(p)), rtol=1e-13)
            want = [math.fsum(np.array(p) * v[0, h // 2, :, c]) / sum(p) for c in range(4)]
            np.testing.assert_allclose(out[0, h, i], want, rtol=1e-13, atol=1e-15)
    # A sequence without keys: exactly nothing.
    assert not out[1].any()
    assert not weights[1].any()
    assert np.isneginf(lse[1]).all()


@pytest.mark.parametrize("step", ["raw", "capped", "masked"])
def test_the_reference_shows_each_step(rng, step):
    q, k, v = qkv(rng, 4, 6, 8, H=2)
    options = {"softcap": 1.5, "is_causal": True, "return_weights": step}
    want = hw.scaled_dot_product_attention(q, k, v, **options)[1]
    np.testing.assert_allclose(attention_reference(q, k, v, **options)[1], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("shapes", "options", "error", "match"),
    [
        (((2, 3), (4, 5), (4, 5)), {}, ValueError, "query, key, value: expected"),
        (((2, 3), (4, 3), (5, 3)), {}, ValueError, "query, key, value: expected"),
        (((3, 2, 3), (2, 4, 3), (2, 4, 3)), {}, ValueError, "H % Hk"),
        (((2, 2, 3), (1, 4, 3), (1, 4, 3)), {"enable_gqa": False}, ValueError, "enable_gqa"),
        (((2, 0), (4, 0), (4, 1)), {}, ValueError, "E of at least 1"),
        (((2, 3), (4, 3), (4, 3)), {"dropout_p": 0.5}, ValueError, "dropout_p"),
        (((2, 3), (4, 3), (4, 3)), {"return_weights": "all"}, ValueError, "return_weights"),
        (((2, 3), (4, 3), (4, 3)), {"causal_offset": "left"}, ValueError, "causal_offset"),
        (((2, 3), (4, 3), (4, 3)), {"attn_mask": np.ones((2, 4), int)}, TypeError, "attn_mask"),
    ],
)
def test_the_reference_refuses(shapes, options, error, match):
    with pytest.raises(error, match=match):
        attention_reference(*map(np.ones, shapes), **options)


# ---- tolerance and assert_close ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [
        ("float64", 1e-15),
        (np.float32, 4e-7),
        ("f2", 2.1e-4),
        (ml_dtypes.bfloat16, 1.7e-3),
        ("bfloat16", 1.7e-3),
    ],
)
def test_tolerances(dtype, bound):
    assert tolerance(dtype) == bound
    assert tolerance("float32", head_width=128) == tolerance("float32", keys=4096) == 5e-7
    with pytest.raises(TypeError, match="int64"):
        tolerance(np.int64)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", ml_dtypes.bfloat16])
@pytest.mark.parametrize(("L", "S", "E"), [(1, 1, 1), (5, 3, 1), (16, 1000, 32), (65, 129, 64)])
def test_close_is_what_headwise_reaches(rng, dtype, L, S, E):
    q, k, v = qkv(rng, L, S, E, H=2, dtype=dtype)
    assert_close(hw.scaled_dot_product_attention(q, k, v), attention_reference(q, k, v))


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", ml_dtypes.bfloat16])
def test_what_is_not_close(rng, dtype):
    truth = rng.standard_normal((50, 40))
    good = truth.astype(dtype)
    assert_close(good, truth)
    with pytest.raises(AssertionError, match=r"root mean square.*worst at \("):
        assert_close((truth * (1 + 3 * tolerance(dtype))).astype(dtype), truth)
    one = good.copy()
    one[7, 9] = truth[7, 9] + np.sign(truth[7, 9]) * 300 * tolerance(dtype) * (1 + abs(truth[7, 9]))
    with pytest.raises(AssertionError, match=r"at \(7, 9\)"):
        assert_close(one, truth)


def test_one_wrong_element_among_many_is_found():
    truth = np.ones(1_000_000)
    got = truth.astype(np.float32)
    got[123] += 1e-4  # 1e-7 of the root mean square
    with pytest.raises(AssertionError, match=r"one element is off .* at \(123,\)"):
        assert_close(got, truth)


def test_nan_infinity_zero_and_shape(rng):
    nan, inf = np.nan, np.inf
    assert_close([1.0, nan, inf, -inf], [1.0, nan, inf, -inf])
    assert_close(np.zeros((3, 0)), np.zeros((3, 0)))
    assert_close(np.zeros(3), np.zeros(3))
    for got, want in (([nan], [1.0]), ([1.0], [nan]), ([inf], [-inf]), ([1.0], [inf]), ([inf], [nan])):
        with pytest.raises(AssertionError, match=r"NaN or infinity in another place at \(0,\)"):
            assert_close(got, want)
    with pytest.raises(AssertionError, match="root mean square"):
        assert_close([1e-30], [0.0])
    with pytest.raises(AssertionError, match="shapes differ"):
        assert_close(np.ones(3), np.ones((1, 3)))
    assert_close([1.0], [1.1], bound=0.1)
    with pytest.raises(TypeError, match="int64"):
        assert_close([1], [1])


# ---- assert_same_bits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", ["f2", "f4", "f8", ">f4", "i1", "u8", "?", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]
)
def test_equal_bits(dtype):
    x = np.arange(12).astype(dtype)
    assert_same_bits(x.reshape(3, 4), np.asfortranarray(x.reshape(3, 4)))
    assert_same_bits(x[::2], x[::2].copy())
    assert_same_bits(x[:0], x[:0])
    assert_same_bits(x.astype(np.dtype(dtype).newbyteorder()), x)
    other = x.copy()
    other[5] = not other[5]
    with pytest.raises(AssertionError, match=r"in 1 of 12 elements, first at \(5,\): "):
        assert_same_bits(x, other)


def test_every_nan_is_equal():
    odd = np.array([0x7FC00001, 0xFFC00000, 0x3F800000], dtype=np.uint32).view(np.float32)
    assert_same_bits(odd, np.float32([np.nan, np.nan, 1]))
    assert_same_bits(np.array([np.nan], ml_dtypes.bfloat16), np.array([-np.nan], ml_dtypes.bfloat16))
    with pytest.raises(AssertionError, match=r"first at \(1,\): nan and 2\.0$"):
        assert_same_bits([1.0, np.nan], [1.0, 2.0])


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (np.float32(1), np.nextafter(np.float32(1), np.float32(2)), "1 ulp"),
        (np.float64(0), -np.nextafter(0.0, 1.0), "1 ulp"),
        (np.float16(-1), np.float16(1), "30720 ulp"),
        (np.float32(0), np.float32(-0.0), "the sign of a zero"),
        (np.array(2, ml_dtypes.bfloat16), np.array(1, ml_dtypes.bfloat16), "128 ulp"),
        (np.float32(np.inf), np.finfo(np.float32).max, "1 ulp"),
        (3, 4, "3 and 4$"),
    ],
)
def test_the_distance_is_told(one, other, said):
    with pytest.raises(AssertionError, match=said):
        assert_same_bits(one, other)


def test_what_cannot_be_equal():
    with pytest.raises(AssertionError, match="dtypes differ: float32 and float64"):
        assert_same_bits(np.float32(1), np.float64(1))
    with pytest.raises(AssertionError, match=r"shapes differ: \(2,\) and \(1, 2\)"):
        assert_same_bits(np.ones(2), np.ones((1, 2)))
    for odd in (np.ones(2, complex), np.ones(2, object), np.array(["a"]), np.ones(2, "M8[s]")):
        with pytest.raises(TypeError, match="expected booleans"):
            assert_same_bits(odd, odd)


# ---- the module --------------------------------------------------------------------------------------------


def test_it_comes_with_the_package_but_is_loaded_on_demand():
    code = (
        "import sys, headwise; assert 'headwise.testing' not in sys.modules; "
        "headwise.testing.tolerance('f4'); "
        "assert 'pytest' not in sys.modules; headwise.no_such_name"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert said.stderr.endswith("AttributeError: module 'headwise' has no attribute 'no_such_name'\n")
