"""The law of bits: an output row depends on its own input and the parameters alone, to the last bit.

Not on its batch, neighbours, padding, order, thread count, on weights being asked for, or on how an array
lies in memory; and, through the golden file, not on the instruction set or the machine. `make test` runs this
file with HEADWISE_ISA=scalar, avx2 and avx512 in turn.
"""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from compare import assert_same_bits, normals, qkv, rms_relative
from hypothesis import given, settings
from hypothesis import strategies as st

import headwise as hw

GOLDEN = Path(__file__).parent / "golden"
_spec = importlib.util.spec_from_file_location("make_bits", GOLDEN / "make_bits.py")
make_bits = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make_bits)

DTYPES = ["float32", "float64"]
sdpa = hw.scaled_dot_product_attention


# --- the golden file ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden():
    """Return the golden file's cases; a missing file is a failure."""
    assert make_bits.FILE.exists(), "tests/golden/bits.json is missing: run tests/golden/make_bits.py"
    return json.loads(make_bits.FILE.read_text(encoding="utf-8"))["cases"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", make_bits.CASES)
def test_golden(golden, case, dtype):
    assert make_bits.compute(case, dtype) == golden[f"{case} {dtype}"]


def test_golden_names_every_case(golden):
    assert set(golden) == {f"{case} {dtype}" for case in make_bits.CASES for dtype in DTYPES}


# --- attention: batch, heads, rows --------------------------------------------------------------------------

SHAPES = [(1, 1, 3), (5, 7, 8), (16, 65, 32), (65, 129, 64), (1, 1000, 80), (129, 64, 1)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("L", "S", "E"), SHAPES)
def test_batch_together_alone_and_in_another_order(rng, L, S, E, dtype):
    q, k, v = qkv(rng, L, S, E, B=(5,), H=4, Hk=2, dtype=dtype)
    out, weights, lse = sdpa(q, k, v, return_weights=True, return_lse=True)
    for b in range(5):
        alone = sdpa(q[b], k[b], v[b], return_weights=True, return_lse=True)
        for whole, one in zip((out, weights, lse), alone, strict=True):
            assert_same_bits(whole[b], one)
        for h in range(4):
            assert_same_bits(out[b, h], sdpa(q[b, h], k[b, h // 2], v[b, h // 2]))
    order = [3, 0, 4, 2, 1]
    assert_same_bits(sdpa(q[order], k[order], v[order]), out[order])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True, "causal_offset": 30}, {"softcap": 2.0}, {"mask": 1}]
)
def test_rows_together_and_alone(rng, options, dtype):
    # a mask with a row for each query keeps blocked keys in place, also where it has a single row: else a
    # row's bits would depend on what its neighbours may see. Only masks without that axis delete keys.
    q, k, v = qkv(rng, 70, 130, 48, H=2, dtype=dtype)
    options = dict(options)
    mask = rng.random((70, 130)) < 0.7 if options.pop("mask", None) else None
    offset = options.pop("causal_offset", 0)
    out = sdpa(q, k, v, mask, causal_offset=offset, **options)
    for rows in [slice(0, 1), slice(17, 18), slice(69, 70), slice(3, 40), slice(64, 70)]:
        part = None if mask is None else mask[rows]
        some = sdpa(q[:, rows], k, v, part, causal_offset=offset + rows.start, **options)
        assert_same_bits(some, out[:, rows])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("E", [1, 16, 33, 64, 80])
def test_decode_equals_prefill(rng, E, dtype):
    q, k, v = qkv(rng, 150, 150, E, H=4, Hk=2, dtype=dtype)
    out, _, lse = sdpa(q, k, v, is_causal=True, return_weights=True, return_lse=True)
    for i in [0, 1, 15, 16, 63, 64, 65, 127, 128, 149]:
        row, row_lse = sdpa(q[:, i : i + 1], k[:, : i + 1], v[:, : i + 1], return_lse=True)
        assert_same_bits(row, out[:, i : i + 1])
        assert_same_bits(row_lse, lse[:, i : i + 1])
        cached = sdpa(q[:, i : i + 1], k, v, key_lengths=np.array(i + 1))
        assert_same_bits(cached, out[:, i : i + 1])


# --- attention: padding, holes, masks -----------------------------------------------------------------------


def spread_out(x, places, keys, fill):
    """Return x (..., S, E) with its rows at `places` of `keys`, the rest filled."""
    wide = np.full((*x.shape[:-2], keys, x.shape[-1]), fill, dtype=x.dtype)
    wide[..., places, :] = x
    return wide


PLACES = {
    "right": lambda rng, n, extra: np.arange(n),
    "left": lambda rng, n, extra: np.arange(n) + extra,
    "holes": lambda rng, n, extra: np.sort(rng.permutation(n + extra)[:n]),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fill", [0.0, 1e30, np.nan])
@pytest.mark.parametrize("extra", [1, 5, 63, 64, 200])
@pytest.mark.parametrize("where", PLACES)
def test_padding_and_holes_equal_deletion(rng, where, extra, fill, dtype):
    q, k, v = qkv(rng, 17, 70, 24, H=2, dtype=dtype)
    want = sdpa(q, k, v, return_lse=True)
    places = PLACES[where](rng, 70, extra)
    wide_k, wide_v = (spread_out(x, places, 70 + extra, fill) for x in (k, v))
    key_mask = np.zeros(70 + extra, dtype=bool)
    key_mask[places] = True
    names = [
        {"key_mask": key_mask},
        {"attn_mask": key_mask},
        {"attn_mask": key_mask[None, None]},
        {"attn_mask": np.where(key_mask, 0.0, -np.inf)},
    ]
    if where == "right":
        names.append({"key_lengths": np.array(70)})
    for named in names:
        got = sdpa(q, wide_k, wide_v, return_lse=True, **named)
        assert_same_bits(got[0], want[0])
        assert_same_bits(got[1], want[1])
    weights = sdpa(q, wide_k, wide_v, key_mask=key_mask, return_weights=True)[1]
    assert_same_bits(weights[..., key_mask], sdpa(q, k, v, return_weights=True)[1])
    assert not weights[..., ~key_mask].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_of_a_batch_padded_its_own_way(rng, dtype):
    lengths = [1, 17, 64, 65, 130]
    singles = [qkv(rng, 33, n, 16, H=4, Hk=2, dtype=dtype) for n in lengths]
    q = np.stack([s[0] for s in singles])
    k, v = np.zeros((2, 5, 2, 130, 16), dtype=dtype)
    key_mask = np.zeros((5, 130), dtype=bool)
    for b, (n, (_, k_one, v_one)) in enumerate(zip(lengths, singles, strict=True)):
        places = np.sort(rng.permutation(130)[:n])
        k[b][:, places], v[b][:, places], key_mask[b, places] = k_one, v_one, True
    out = sdpa(q, k, v, key_mask=key_mask)
    for b in range(5):
        assert_same_bits(out[b], sdpa(*singles[b]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_masks_that_change_nothing(rng, dtype):
    q, k, v = qkv(rng, 33, 130, 16, B=(2,), H=2, dtype=dtype)
    out = sdpa(q, k, v)
    for options in [
        {"attn_mask": np.ones((33, 130), dtype=bool)},
        {"attn_mask": np.ones((2, 2, 33, 130), dtype=bool)},
        {"attn_mask": np.zeros((33, 130), dtype=dtype)},
        {"key_mask": np.ones((2, 130), dtype=bool)},
        {"key_lengths": np.array([130, 130])},
        {"window": (None, None)},
        {"window": (1000, 1000)},
        {"is_causal": True, "causal_offset": 129},
    ]:
        assert_same_bits(sdpa(q, k, v, **options), out)


@pytest.mark.parametrize("dtype", DTYPES)
def test_asking_for_more_changes_nothing(rng, dtype):
    q, k, v = qkv(rng, 33, 130, 16, B=(2,), H=4, Hk=2, dtype=dtype)
    bias = np.where(rng.random((33, 130)) < 0.2, -np.inf, normals(rng, 33, 130))
    for options in [{}, {"is_causal": True}, {"attn_mask": bias, "softcap": 3.0}]:
        out, lse = sdpa(q, k, v, return_lse=True, **options)
        assert_same_bits(sdpa(q, k, v, **options), out)
        for asked in (True, "raw", "capped", "masked"):
            more = sdpa(q, k, v, return_weights=asked, return_lse=True, **options)
            assert_same_bits(more[0], out)
            assert_same_bits(more[2], lse)


# --- threads and layouts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("B", "H", "L", "S"), [(4, 8, 65, 129), (1, 1, 1000, 300), (1, 8, 1, 1000), (8, 1, 17, 17)]
)
def test_threads(rng, threads, B, H, L, S, dtype):
    q, k, v = qkv(rng, L, S, 32, B=(B,), H=H, dtype=dtype)
    answers = []
    for n in (1, 2, 3):
        threads(n)
        answers.append(sdpa(q, k, v, return_weights=True, return_lse=True))
    for other in answers[1:]:
        for one, two in zip(answers[0], other, strict=True):
            assert_same_bits(one, two)


def misaligned(x):
    """Return a copy of x one byte off its natural alignment."""
    raw = np.empty(x.nbytes + 1, dtype=np.uint8)[1:]
    y = raw.view(x.dtype).reshape(x.shape)
    y[...] = x
    assert not y.flags.aligned
    return y


LAYOUTS = {
    "fortran": np.asfortranarray,
    "every other row": lambda x: np.repeat(x, 2, axis=-2)[..., ::2, :],
    "every other column": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "backwards": lambda x: x[..., ::-1].copy()[..., ::-1],
    "heads last": lambda x: x.swapaxes(-2, -3).copy().swapaxes(-2, -3),
    "byte-swapped": lambda x: x.astype(x.dtype.newbyteorder()),
    "misaligned": misaligned,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(rng, layout, dtype):
    arrays = qkv(rng, 17, 65, 24, B=(2,), H=4, Hk=2, dtype=dtype)
    out = sdpa(*arrays)
    for i in range(3):
        views = list(arrays)
        views[i] = LAYOUTS[layout](views[i])
        assert_same_bits(sdpa(*views), out)
    assert_same_bits(sdpa(*map(LAYOUTS[layout], arrays)), out)


@pytest.mark.parametrize("dtype", DTYPES)
def test_broadcast_views(rng, dtype):
    q, k, v = qkv(rng, 17, 65, 24, B=(1,), H=2, dtype=dtype)
    wide = [np.broadcast_to(x, (3, *x.shape[1:])) for x in (q, k, v)]
    out = sdpa(*wide)
    for b in range(3):
        assert_same_bits(out[b], sdpa(q[0], k[0], v[0]))
    assert_same_bits(sdpa(wide[0], k, v), out)


# --- properties ---------------------------------------------------------------------------------------------


@st.composite
def problems(draw):
    """Draw a small attention problem: a generator, its arrays and its dtype."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    L, S = draw(st.integers(1, 70)), draw(st.integers(1, 140))
    E, Ev = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    Hk, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    B, dtype = draw(st.integers(1, 4)), draw(st.sampled_from(DTYPES))
    return rng, qkv(rng, L, S, E, B=(B,), H=Hk * group, Hk=Hk, Ev=Ev, dtype=dtype), dtype


@given(problems())
@settings(max_examples=60)
def test_property_permuted_keys(problem):
    rng, (q, k, v), dtype = problem
    order = rng.permutation(k.shape[-2])
    mask = rng.random((q.shape[-2], k.shape[-2])) < 0.8
    out = sdpa(q, k, v, mask)
    permuted = sdpa(q, k[..., order, :], v[..., order, :], mask[:, order])
    if out.any():
        assert rms_relative(permuted, out) <= (8e-7 if dtype == "float32" else 6e-15)  # twice the bar
    else:
        assert_same_bits(permuted, out)


@given(problems(), st.integers(1, 150))
@settings(max_examples=60)
def test_property_added_blocked_keys(problem, extra):
    rng, (q, k, v), _ = problem
    S = k.shape[-2]
    places = np.sort(rng.permutation(S + extra)[:S])
    fill = rng.choice([0.0, -3.5, 1e38, np.inf, np.nan])
    wide_k, wide_v = (spread_out(x, places, S + extra, fill) for x in (k, v))
    key_mask = np.isin(np.arange(S + extra), places)
    got = sdpa(q, wide_k, wide_v, key_mask=np.broadcast_to(key_mask, (len(q), S + extra)), return_lse=True)
    for one, two in zip(got, sdpa(q, k, v, return_lse=True), strict=True):
        assert_same_bits(one, two)


@given(problems(), st.booleans())
@settings(max_examples=60)
def test_property_batch_together_equals_one_by_one(problem, is_causal):
    rng, (q, k, v), _ = problem
    options = {"is_causal": is_causal, "causal_offset": int(rng.integers(-5, 100))}
    lengths = rng.integers(0, k.shape[-2] + 1, len(q))
    out = sdpa(q, k, v, key_lengths=lengths, **options)
    for b, n in enumerate(lengths):
        assert_same_bits(out[b], sdpa(q[b], k[b, :, :n], v[b, :, :n], **options))
