"""Any combination of options of attention pooling against its twin, and any kind of array."""

import ml_dtypes
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pooling_cases import NORMALIZE, SCORES, arrays, check, score

import headwise as hw
from headwise.testing import assert_same_bits

small = st.integers(0, 6)


@st.composite
def calls(draw):
    """Return the arrays of a call and its options, all of which may be absent."""
    groups, kv_heads = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    batch, length, count = draw(st.integers(1, 2)), draw(small), draw(small)
    q, k, v = arrays(B=(batch,), H=groups * kv_heads, Hk=kv_heads, L=length, S=count, seed=draw(small))
    rng = np.random.default_rng(draw(small))
    full = (batch, groups * kv_heads, length, count)
    bias = np.where(rng.random(full) < 0.3, -np.inf, rng.standard_normal(full))
    options = {
        "attn_mask": draw(st.sampled_from([None, bias, bias > 0, bias[:1, :1]])),
        "key_mask": draw(st.sampled_from([None, rng.random((batch, count)) < 0.7])),
        "key_lengths": draw(st.sampled_from([None, rng.integers(0, count + 1, batch)])),
        "is_causal": draw(st.booleans()),
        "causal_offset": draw(st.sampled_from([0, 2, -1, "bottom_right"])),
        "window": draw(st.sampled_from([None, (1, None), (0, 2), (None, 0)])),
        "softcap": draw(st.sampled_from([None, 0.7])),
        "scale": draw(st.sampled_from([None, 0.3, -1.0])),
    }
    return (q, k, v), {name: option for name, option in options.items() if option is not None}


@settings(max_examples=150, deadline=None, derandomize=True)
@given(calls(), st.sampled_from(SCORES), st.sampled_from(list(NORMALIZE)))
def test_any_call(call, name, normalize):
    three, options = call
    check(*three, score(name), normalize, 5e-15, **options)


class OnlyDLPack:
    """An array of a library that speaks nothing but DLPack."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **keywords):
        return self._array.__dlpack__(**keywords)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


def test_arrays_as_they_come():
    q, k, v = arrays("float32")
    want = hw.attention(q, k, v, score="l2")
    wide = np.zeros((2, 2, 9, 10), np.float32)
    wide[..., 1:8, ::2] = k
    odd = [
        (q.astype(">f4"), k, v),
        (q, wide[..., 1:8, ::2], v),
        (q, k[..., ::-1].copy()[..., ::-1], np.asfortranarray(v)),
        (OnlyDLPack(q), OnlyDLPack(k), OnlyDLPack(v)),
        (q.tolist(), k, v),
    ]
    for some in odd[:-1]:
        got = hw.attention(*some, score="l2")
        assert got.dtype == np.float32
        assert_same_bits(got, want)
    assert hw.attention(*odd[-1], score="l2").dtype == np.float64
    swapped = hw.attention(*(x.astype(np.float16).astype(">f2") for x in (q, k, v)), score="l2")
    assert swapped.dtype == np.float16
    assert swapped.dtype.isnative


def test_bfloat16():
    bfloat16 = ml_dtypes.bfloat16
    q, k, v = (x.astype(bfloat16) for x in arrays("float32"))
    out, pullback = hw.vjp.attention(q, k, v, score="cosine", normalize="sparsemax")
    wide = [x.astype(np.float32) for x in (q, k, v)]
    want = hw.attention(*wide, score="cosine", normalize="sparsemax").astype(bfloat16)
    assert out.dtype == bfloat16
    np.testing.assert_array_equal(out.astype(np.float32), want.astype(np.float32))
    assert all(d.dtype == bfloat16 for d in pullback(out))
    assert hw.attention(q, k.astype(np.float16), v, score="l2").dtype == np.float32
