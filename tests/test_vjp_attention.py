"""Gradients of attention: differences in float64, torch's values, blocked places, bits, memory."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from compare import assert_same_bits, normals, qkv, rms_relative
from test_memory import fresh

import headwise as hw
from benchmarks.resident import MEGABYTE

GOLDEN = Path(__file__).parent / "golden" / "torch_vjp_attention.npz"

sdpa = hw.vjp.scaled_dot_product_attention


# --- differences --------------------------------------------------------------------------------------------

SHAPES = [(1, 1, 1), (1, 16, 3), (15, 17, 3), (16, 15, 8), (17, 1, 4), (63, 65, 2), (64, 64, 3), (129, 63, 1)]


@pytest.mark.parametrize(("L", "S", "E"), SHAPES)
def test_differences(rng, L, S, E):
    q, k, v = qkv(rng, L, S, E, H=2, Hk=1, Ev=E + 1, dtype="float64")
    hw.gradcheck(sdpa, [q, k, v])


def low(rng, L, S):
    """Return a float mask with -inf in a fifth of its places and in the whole of row 3."""
    mask = np.where(rng.random((L, S)) < 0.2, -np.inf, rng.standard_normal((L, S)))
    mask[3] = -np.inf
    return mask


@pytest.mark.parametrize(
    "options",
    [
        {"is_causal": True},
        {"is_causal": True, "causal_offset": -5},
        {"is_causal": True, "causal_offset": [2, -3]},
        {"window": (4, 2), "causal_offset": "bottom_right"},
        {"softcap": 1.5},
        {"scale": -0.3},
        {"key_mask": np.arange(40).reshape(2, 20) % 3 > 0},
        {"key_lengths": [7, 0]},
        {"dropout_p": 0.3, "rng": 7},
        {"mask": "bool"},
        {"mask": "float", "softcap": 2.0, "is_causal": True, "causal_offset": 4},
    ],
)
def test_differences_with_options(rng, options):
    q, k, v = qkv(rng, 17, 20, 3, B=(2,), H=2, Hk=1, dtype="float64")
    options = dict(options)
    kind = options.pop("mask", None)
    if kind:
        options["attn_mask"] = rng.random((2, 17, 20)) < 0.7 if kind == "bool" else low(rng, 17, 20)
    hw.gradcheck(sdpa, [q, k, v], **options)


@pytest.mark.parametrize(
    "shape", [(20,), (1, 20), (17, 1), (17, 20), (2, 1, 20), (2, 17, 20), (3, 2, 17, 20), (3, 1, 1, 1)]
)
def test_gradient_of_the_mask(rng, shape):
    q, k, v = qkv(rng, 17, 20, 3, B=(3,), H=2, Hk=1, dtype="float64")

    def f(mask):
        out, pullback = sdpa(q, k, v, mask, is_causal=True, softcap=2.0, mask_grad=True)
        return out, lambda d_out: pullback(d_out)[3:]

    hw.gradcheck(f, [normals(rng, *shape, dtype="float64")])


def test_gradient_of_the_mask_is_zero_where_it_blocks(rng):
    q, k, v = qkv(rng, 17, 20, 3, H=2, dtype="float64")
    mask = low(rng, 17, 20)
    out, pullback = sdpa(q, k, v, mask, mask_grad=True)
    *_, d_mask = pullback(normals(rng, *out.shape, dtype="float64"))
    assert d_mask.shape == mask.shape
    assert np.all((d_mask == 0) == np.isinf(mask))


def test_broadcast_batches_are_summed(rng):
    q, k, v = qkv(rng, 5, 6, 3, B=(2, 3), H=2, dtype="float64")
    hw.gradcheck(sdpa, [q[:, :1], k[0], v[:1]])
    d_out = normals(rng, 2, 3, 2, 5, 3, dtype="float64")
    _, d_key, _ = sdpa(q, k[0, 0], v)[1](d_out)
    _, d_whole, _ = sdpa(q, np.broadcast_to(k[0, 0], k.shape), v)[1](d_out)
    np.testing.assert_allclose(d_key, d_whole.sum((0, 1)), rtol=1e-12, atol=1e-14)


def test_packed_sequences_have_the_gradients_of_each(rng):
    q, k, v = (normals(rng, 40, h, 8) for h in (4, 2, 2))
    cu = [0, 17, 17, 40]
    options = {"is_causal": True, "softcap": 3.0}
    out, pullback = hw.vjp.attention_varlen(q, k, v, cu, **options)
    assert_same_bits(out, hw.attention_varlen(q, k, v, cu, **options))
    d_out = normals(rng, *out.shape)
    packed = pullback(d_out)
    for first, end in ((0, 17), (17, 40)):
        one = [x[first:end].swapaxes(0, 1) for x in (q, k, v, d_out)]
        for got, want in zip(packed, sdpa(*one[:3], **options)[1](one[3]), strict=True):
            assert_same_bits(got[first:end], np.ascontiguousarray(want.swapaxes(0, 1)))
    hw.gradcheck(
        hw.vjp.attention_varlen, [x.astype(float) for x in (q, k, v)], cu_seqlens_q=cu, window=(5, 0)
    )


# --- torch --------------------------------------------------------------------------------------------------

with np.load(GOLDEN, allow_pickle=False) as _file:
    ABOUT = json.loads(str(_file["about"]))
    ARRAYS = {name: _file[name] for name in _file.files if name != "about"}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", list(ABOUT["cases"]))
def test_torch(case, dtype):
    arrays = {n.removeprefix(f"{case}/"): x for n, x in ARRAYS.items() if n.startswith(f"{case}/")}
    names = ["query", "key", "value"]
    mask = arrays.get("attn_mask")
    if mask is not None and mask.dtype != bool:
        mask, names = mask.astype(dtype), [*names, "attn_mask"]
    q, k, v, d_out = (arrays[n].astype(dtype) for n in ("query", "key", "value", "d_out"))
    _, pullback = sdpa(q, k, v, mask, mask_grad=len(names) == 4, **ABOUT["cases"][case]["options"])
    for name, got in zip(names, pullback(d_out), strict=True):
        assert got.dtype == dtype
        assert rms_relative(got, arrays[f"d_{name}"]) <= (1e-5 if dtype == "float32" else 1e-13)


# --- blocked places, arguments ------------------------------------------------------------------------------


def test_blocked_places_leave_no_trace(rng):
    q, k, v = qkv(rng, 70, 90, 16, B=(2,), H=2, Hk=1)
    allowed = np.ones((70, 90), bool)
    allowed[5], allowed[:, 80] = False, False
    options = {
        "attn_mask": allowed,
        "key_mask": np.arange(90) % 4 > 0,
        "is_causal": True,
        "causal_offset": 15,
    }
    d_out = normals(rng, 2, 2, 70, 16)
    clean = sdpa(q, k, v, **options)[1](d_out)
    q[..., 5, :], d_out[..., 5, 3] = np.nan, np.inf
    dead = (np.arange(90) % 4 == 0) | (np.arange(90) == 80)
    k[..., dead, 0], v[..., dead, 1] = np.inf, np.nan
    dirty = sdpa(q, k, v, **options)[1](d_out)
    for a, b in zip(clean, dirty, strict=True):
        assert_same_bits(a, b)
    assert not dirty[0][..., 5, :].any()
    assert not dirty[1][..., dead, :].any()
    assert not dirty[2][..., dead, :].any()


def test_half_precision_is_rounded_once(rng):
    q, k, v = qkv(rng, 20, 30, 16, H=2, dtype="float16")
    d_out = normals(rng, 2, 20, 16, dtype="float16")
    exact = sdpa(*(x.astype("float32") for x in (q, k, v)))[1](d_out)
    for got, want in zip(sdpa(q, k, v)[1](d_out), exact, strict=True):
        assert_same_bits(got, want.astype("float16"))


def test_the_result_is_that_of_the_function_and_may_be_changed(rng):
    q, k, v = qkv(rng, 20, 30, 16, H=2)
    out, pullback = sdpa(q, k, v, is_causal=True, dropout_p=0.2, rng=3)
    assert_same_bits(out, hw.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=0.2, rng=3))
    d_out = normals(rng, *out.shape)
    first = pullback(d_out)
    out[:] = np.nan
    for a, b in zip(first, pullback(d_out), strict=True):
        assert_same_bits(a, b)


def test_faults(rng):
    q, k, v = qkv(rng, 4, 5, 3)
    with pytest.raises(TypeError, match="mask_grad: expected a floating attn_mask"):
        sdpa(q, k, v, mask_grad=True)
    with pytest.raises(TypeError, match=r"mask_grad: expected a floating attn_mask.*bool"):
        sdpa(q, k, v, np.ones((4, 5), bool), mask_grad=True)
    with pytest.raises(hw.ShapeError, match="d_out: expected"):
        sdpa(q, k, v)[1](np.ones((4, 3)))
    with pytest.raises(hw.ShapeError, match="key: expected"):
        sdpa(q, k[..., :2], v)


@pytest.mark.parametrize(("L", "S", "Ev"), [(0, 3, 2), (3, 0, 2), (3, 4, 0)])
def test_nothing_to_attend(L, S, Ev):
    _, pullback = sdpa(np.ones((L, 2)), np.ones((S, 2)), np.ones((S, Ev)))
    got = pullback(np.ones((L, Ev)))
    assert [g.shape for g in got] == [(L, 2), (S, 2), (S, Ev)]
    assert not any(g.any() for g in got)


# --- bits, memory -------------------------------------------------------------------------------------------


def digest():
    """Return a digest of gradients of several calls, few heads and many."""
    rng = np.random.default_rng(5)
    found = hashlib.sha256()
    for (L, S, E, H, Hk), options in [
        ((300, 333, 40, 2, 1), {"is_causal": True}),
        ((70, 129, 16, 8, 4), {"softcap": 2.0, "dropout_p": 0.1, "rng": 3}),
        ((130, 190, 64, 1, 1), {"window": (50, 3), "mask": True}),
    ]:
        for dtype in ("float32", "float64"):
            q, k, v = qkv(rng, L, S, E, H=H, Hk=Hk, dtype=dtype)
            given = dict(options)
            if given.pop("mask", False):
                given |= {"attn_mask": normals(rng, L, S, dtype=dtype), "mask_grad": True}
            out, pullback = sdpa(q, k, v, **given)
            for gradient in pullback(normals(rng, *out.shape, dtype=dtype)):
                found.update(gradient.tobytes())
    return found.hexdigest()


def test_threads_do_not_change_bits(threads):
    found = set()
    for n in (1, 2, 5):
        threads(n)
        found.add(digest())
    assert len(found) == 1


@pytest.mark.once
@pytest.mark.parametrize("isa", ["scalar", "avx2"])
def test_instruction_sets_do_not_change_bits(isa):
    code = "import test_vjp_attention; print(test_vjp_attention.digest())"
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HEADWISE_ISA": isa, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if "HEADWISE_ISA" in done.stderr:
        pytest.skip(f"this processor has no {isa}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == digest()


LONG = """
    options = json.loads(sys.argv[1])
    query, key, value, d_out = np.ones((4, 2, 4096, 64), np.float32)
    hw.vjp.scaled_dot_product_attention(query[:, :64], key[:, :64], value[:, :64])[1](d_out[:, :64])
    def call():
        hw.vjp.scaled_dot_product_attention(query, key, value, **options)[1](d_out)
    print(peak_growth(call))
"""


@pytest.mark.once
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("options", [{}, {"is_causal": True}])
def test_memory_grows_with_the_length(options, threads):
    # The result, its copy and three gradients are 2 MB each; the weights would be 134 MB.
    assert fresh(LONG, json.dumps(options), threads=threads) < (10 + 4 * threads) * MEGABYTE
