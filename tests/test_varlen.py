"""attention_varlen: sequences packed one after the other equal a loop over them, bit for bit."""

import ml_dtypes
import numpy as np
import pytest
from compare import assert_same_bits, normals

import headwise as hw


def loop(q, k, v, cu_q, cu_k, offsets=None, **options):
    """Return what scaled_dot_product_attention gives for one sequence at a time, packed again (Tq, H, Ev)."""
    rows = []
    for n in range(len(cu_q) - 1):
        a, b = slice(cu_q[n], cu_q[n + 1]), slice(cu_k[n], cu_k[n + 1])
        more = {} if offsets is None else {"causal_offset": int(offsets[n])}
        heads = (x.swapaxes(0, 1) for x in (q[a], k[b], v[b]))  # (H, L, E)
        rows.append(hw.scaled_dot_product_attention(*heads, **options, **more).swapaxes(0, 1))
    return np.concatenate(rows)


OPTIONS = {
    "plain": {},
    "causal": {"is_causal": True},
    "bottom right": {"is_causal": True, "causal_offset": "bottom_right"},
    "offset": {"is_causal": True, "causal_offset": 3},
    "window": {"window": (4, 2)},
    "window with an offset": {"window": (9, None), "causal_offset": "bottom_right"},
    "cap and scale": {"softcap": 1.5, "scale": 0.3},
}


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", OPTIONS)
def test_equals_a_loop(rng, name, dtype):
    cu_q, cu_k = np.array([0, 5, 5, 70, 71, 100]), np.array([0, 9, 12, 90, 90, 230])
    q = normals(rng, 100, 4, 16, dtype=dtype)
    k, v = normals(rng, 230, 2, 16, dtype=dtype), normals(rng, 230, 2, 12, dtype=dtype)
    out = hw.attention_varlen(q, k, v, cu_q, cu_k, **OPTIONS[name])
    assert out.shape == (100, 4, 12)
    assert out.flags.c_contiguous
    assert_same_bits(out, loop(q, k, v, cu_q, cu_k, **OPTIONS[name]))
    assert not out[70:71].any()  # a sequence without keys


def test_self_attention_needs_one_list(rng):
    q, k, v = (normals(rng, 40, 2, 8) for _ in range(3))
    cu = np.array([0, 13, 40], dtype=np.int32)
    assert_same_bits(hw.attention_varlen(q, k, v, cu), loop(q, k, v, cu, cu))
    assert_same_bits(hw.attention_varlen(q, k, v, [0, 13, 40]), loop(q, k, v, cu, cu))


def test_an_offset_for_each_sequence(rng):
    q, k, v = (normals(rng, 40, 2, 8) for _ in range(3))
    cu, offsets = np.array([0, 13, 40]), np.array([2, -5])
    out = hw.attention_varlen(q, k, v, cu, is_causal=True, causal_offset=offsets)
    assert_same_bits(out, loop(q, k, v, cu, cu, offsets, is_causal=True))


def test_lse(rng):
    q, k, v = normals(rng, 40, 2, 8), normals(rng, 60, 2, 8), normals(rng, 60, 2, 8)
    cu_q, cu_k = [0, 13, 40], [0, 60, 60]
    out, lse = hw.attention_varlen(q, k, v, cu_q, cu_k, return_lse=True)
    # the contract does not say which axis comes first: (H, Tq) as in flash attention, or (Tq, H) as the query
    assert lse.shape in {(2, 40), (40, 2)}
    by_token = lse.T if lse.shape == (2, 40) else lse
    for n, (a, b) in enumerate([(0, 13), (13, 40)]):
        heads = (x.swapaxes(0, 1) for x in (q[a:b], k[cu_k[n] : cu_k[n + 1]], v[cu_k[n] : cu_k[n + 1]]))
        want = hw.scaled_dot_product_attention(*heads, return_lse=True)[1]
        assert_same_bits(by_token[a:b].T, want)
    assert np.isneginf(by_token[13:]).all()
    assert_same_bits(out, hw.attention_varlen(q, k, v, cu_q, cu_k))


@pytest.mark.parametrize(
    ("cu_q", "cu_k", "named"),
    [
        ([1, 40], [0, 60], "cu_seqlens_q"),
        ([0, 39], [0, 60], "cu_seqlens_q"),
        ([0, 41], [0, 60], "cu_seqlens_q"),
        ([0, 30, 20, 40], [0, 1, 2, 60], "cu_seqlens_q"),
        ([0, 40], [0, 61], "cu_seqlens_k"),
        ([0, 40], [0, 20, 60], "cu_seqlens_k"),
        ([0, 40], [0, -1, 60], "cu_seqlens_k"),
        ([], [0, 60], "cu_seqlens_q"),
        ([[0, 40]], [0, 60], "cu_seqlens_q"),
    ],
)
def test_lists_that_do_not_fit(rng, cu_q, cu_k, named):
    q, k, v = normals(rng, 40, 2, 8), normals(rng, 60, 2, 8), normals(rng, 60, 2, 8)
    with pytest.raises(ValueError, match=named):
        hw.attention_varlen(q, k, v, np.array(cu_q, dtype=np.int64), np.array(cu_k))


def test_lengths_of_floats_are_refused(rng):
    q = normals(rng, 40, 2, 8)
    with pytest.raises(TypeError, match="cu_seqlens_q"):
        hw.attention_varlen(q, q, q, np.array([0.0, 40.0]))


def test_nothing():
    empty = np.zeros((0, 2, 8), dtype=np.float32)
    assert hw.attention_varlen(empty, empty, empty, [0]).shape == (0, 2, 8)
    assert hw.attention_varlen(empty, empty, empty, [0, 0, 0]).shape == (0, 2, 8)
