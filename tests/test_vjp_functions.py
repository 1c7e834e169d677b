"""Pullbacks of functions: gradients by differences, layouts, dtypes, bits, errors."""

import json
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from compare import assert_same_bits, normals, rms_relative

import headwise as hw

WIDTHS = (1, 3, 15, 16, 17, 63, 64, 65, 100, 129)
DTYPES = ("float32", "float64")
ACTIVATIONS = (None, "relu", "gelu", "gelu_tanh", "silu")


def away_from_zero(x):
    """Return `x` with nothing closer to 0 than 1e-2: differences must not cross the kink of relu."""
    return x + np.copysign(1e-2, x)


# name: (function with pullback, function alone, shapes of its arrays for a width)
ROWS = {
    "layer_norm": (hw.vjp.layer_norm, hw.layer_norm, lambda w: [(3, w)]),
    "layer_norm parameters": (hw.vjp.layer_norm, hw.layer_norm, lambda w: [(2, 3, w), (w,), (w,)]),
    "linear": (hw.vjp.linear, hw.linear, lambda w: [(5, w), (7, w)]),
    "linear bias": (hw.vjp.linear, hw.linear, lambda w: [(2, 3, w), (4, w), (4,)]),
    "rms_norm": (hw.vjp.rms_norm, hw.rms_norm, lambda w: [(3, w)]),
    "rms_norm parameters": (hw.vjp.rms_norm, hw.rms_norm, lambda w: [(2, 3, w), (w,)]),
    "softmax": (hw.vjp.softmax, hw.softmax, lambda w: [(3, w)]),
    "softmax first": (lambda x: hw.vjp.softmax(x, 0), lambda x: hw.softmax(x, 0), lambda w: [(w, 2, 3)]),
}
POINTS = {
    "gelu": (hw.vjp.gelu, hw.gelu, lambda w: [(2, w)]),
    "gelu tanh": (lambda x: hw.vjp.gelu(x, "tanh"), lambda x: hw.gelu(x, "tanh"), lambda w: [(2, w)]),
    "relu": (hw.vjp.relu, hw.relu, lambda w: [(2, w)]),
    "silu": (hw.vjp.silu, hw.silu, lambda w: [(2, w)]),
}
TURNS = {
    "rotary": (hw.vjp.rotary_embedding, hw.rotary_embedding, lambda w: [(2, 3, 2 * w)]),
}
ALL = ROWS | POINTS | TURNS


def arrays(rng, shapes, dtype="float64"):
    """Return normal numbers of some shapes, none near 0."""
    return [away_from_zero(normals(rng, *shape, dtype="float64")).astype(dtype) for shape in shapes]


def run(function, given, seed=1):
    """Return the result and the gradients for normal numbers, all in one list."""
    out, pullback = function(*given)
    d_out = np.random.default_rng(seed).standard_normal(out.shape).astype(out.dtype)
    return [out, *pullback(d_out)]


# --- by differences -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ALL)
def test_gradients_by_differences(rng, name, width):
    function, alone, shapes = ALL[name]
    given = arrays(rng, shapes(width))
    assert_same_bits(function(*given)[0], alone(*given))
    assert hw.gradcheck(function, given) <= 1e-7


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("M", "N", "K"), [(1, 1, 1), (7, 33, 100), (65, 17, 8), (200, 3, 5), (2, 300, 65)])
def test_linear_by_differences(rng, M, N, K, activation):
    x, weight, bias = arrays(rng, [(M, K), (N, K), (N,)])
    weight = weight / np.sqrt(K)
    if activation == "relu":  # sums away from the kink, on both of its sides
        x = np.where(np.abs(x @ weight.T + bias).min(axis=1, keepdims=True) < 1e-3, 0.0, x)
    for given in ([x, weight], [x, weight, bias]):
        alone = hw.linear(*given, activation=activation)
        assert_same_bits(hw.vjp.linear(*given, activation=activation)[0], alone)
        if activation == "relu" and len(given) == 2:
            continue
        assert hw.gradcheck(hw.vjp.linear, given, activation=activation) <= 1e-7


@pytest.mark.parametrize("M", [1, 191, 192, 193, 767, 768, 769, 2000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_over_many_rows(rng, M, dtype):
    x, weight, bias, d = (normals(rng, *s, dtype=dtype) for s in ((M, 65), (50, 65), (50,), (M, 50)))
    got = hw.vjp.linear(x, weight, bias)[1](d)
    x, weight, d = (a.astype(np.longdouble) for a in (x, weight, d))
    for gradient, exact in zip(got, (d @ weight, d.T @ x, d.sum(axis=0)), strict=True):
        assert gradient.dtype == dtype
        assert rms_relative(gradient, exact.astype(np.float64)) <= 5 * np.finfo(dtype).eps


@pytest.mark.parametrize("options", [{"interleaved": True}, {"rotary_dim": 4}, {"theta": 50.0}])
def test_rotary_options_by_differences(rng, options):
    (x,) = arrays(rng, [(2, 5, 8)])
    places = rng.integers(0, 40, (2, 5))
    assert hw.gradcheck(hw.vjp.rotary_embedding, [x], positions=places, **options) <= 1e-7
    assert hw.gradcheck(hw.vjp.rotary_embedding, [x, places[0]], **options) <= 1e-7


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_softmax_over_any_axis(rng, axis):
    (x,) = arrays(rng, [(3, 5, 7)])
    assert hw.gradcheck(hw.vjp.softmax, [x], axis=axis) <= 1e-7


@pytest.mark.parametrize("eps", [1e-12, 1e-5, 0.1])
@pytest.mark.parametrize("function", [hw.vjp.layer_norm, hw.vjp.rms_norm])
def test_norms_with_any_eps(rng, function, eps):
    x, weight = arrays(rng, [(4, 20), (20,)])
    assert hw.gradcheck(function, [x, weight], eps=eps) <= 1e-7


@pytest.mark.parametrize("rows", [255, 256, 257, 1000])
def test_norm_sums_over_many_rows(rng, rows):
    x, weight, bias, d = (normals(rng, *s, dtype="float64") for s in ((rows, 33), (33,), (33,), (rows, 33)))
    _, d_weight, d_bias = hw.vjp.layer_norm(x, weight, bias)[1](d)
    unit = hw.layer_norm(x)
    assert rms_relative(d_weight, (d * unit).sum(axis=0)) <= 1e-14
    assert rms_relative(d_bias, d.sum(axis=0)) <= 1e-14


# --- which gradients there are ------------------------------------------------------------------------------


def test_absent_arguments_have_no_gradient(rng):
    x, weight, bias = arrays(rng, [(3, 8), (8,), (8,)])
    d = np.ones((3, 8))
    for given, shapes in [
        ({}, [(3, 8)]),
        ({"weight": weight}, [(3, 8), (8,)]),
        ({"bias": bias}, [(3, 8), (8,)]),
        ({"weight": weight, "bias": bias}, [(3, 8), (8,), (8,)]),
    ]:
        gradients = hw.vjp.layer_norm(x, **given)[1](d)
        assert [g.shape for g in gradients] == shapes
    assert len(hw.vjp.rms_norm(x)[1](d)) == 1
    assert len(hw.vjp.linear(x, np.ones((8, 8)))[1](d)) == 2


def test_a_pullback_may_be_called_twice(rng):
    for function, _, shapes in ALL.values():
        out, pullback = function(*arrays(rng, shapes(17)))
        d = rng.standard_normal(out.shape)
        first, other, again = pullback(d), pullback(2 * d), pullback(d)
        for a, b, c in zip(first, other, again, strict=True):
            assert_same_bits(a, c)
            assert_same_bits(2 * a, b)


def test_the_result_may_be_written_to(rng):
    for function, _, shapes in ALL.values():
        given = arrays(rng, shapes(17))
        (out, pullback), (_, other) = function(*given), function(*given)
        d = rng.standard_normal(out.shape)
        out[...] = np.nan
        for a, b in zip(pullback(d), other(d), strict=True):
            assert_same_bits(a, b)


def test_relu_where_it_is_flat():
    _, pullback = hw.vjp.relu([-1.0, 0.0, -0.0, 2.0, np.nan])
    (d,) = pullback([np.nan, np.inf, 1.0, 3.0, 4.0])
    np.testing.assert_array_equal(d, [0, 0, 0, 3, 4])


@pytest.mark.parametrize("function", [hw.vjp.gelu, hw.vjp.silu, lambda x: hw.vjp.gelu(x, "tanh")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_slopes_at_the_ends(function, dtype):
    ends = np.array([np.inf, 1e30, 800, -800, -1e30, -np.inf], dtype=dtype)
    (d,) = function(ends)[1](np.ones(6, dtype=dtype))
    np.testing.assert_array_equal(d, [1, 1, 1, 0, 0, 0])


# --- layouts and dtypes -------------------------------------------------------------------------------------


def read_only(x):
    """Return a copy that cannot be written."""
    x = x.copy()
    x.flags.writeable = False
    return x


LAYOUTS = {
    "fortran order": np.asfortranarray,
    "last axis spread": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "last axis reversed": lambda x: np.ascontiguousarray(x[..., ::-1])[..., ::-1],
    "byte-swapped": lambda x: x.astype(x.dtype.newbyteorder()),
    "read-only": read_only,
    "list": lambda x: x.tolist(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ALL)
def test_layouts(rng, name, layout):
    function, _, shapes = ALL[name]
    given, turn = arrays(rng, shapes(17)), LAYOUTS[layout]
    out, pullback = function(*given)
    d = rng.standard_normal(out.shape)
    got, other = function(*map(turn, given))
    assert_same_bits(got, out)
    for a, b in zip(other(turn(d)), pullback(d), strict=True):
        assert_same_bits(a, b)
        assert a.flags.c_contiguous


@pytest.mark.parametrize("dtype", ["float16", ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", ALL)
def test_half_is_float32_rounded_once(rng, name, dtype):
    function, _, shapes = ALL[name]
    given = arrays(rng, shapes(17), dtype)
    out, pullback = function(*given)
    d = normals(rng, *out.shape, dtype=dtype)
    _, wide = function(*(x.astype(np.float32) for x in given))
    for got, exact in zip(pullback(d), wide(d.astype(np.float32)), strict=True):
        assert got.dtype == dtype
        assert exact.dtype == np.float32
        assert_same_bits(got, exact.astype(dtype))


def test_integers_are_float64():
    d_x, d_weight = hw.vjp.linear([[1, 2]], [[3, 4]])[1]([[2]])
    assert d_x.dtype == d_weight.dtype == np.float64
    np.testing.assert_array_equal(d_x, [[6, 8]])
    np.testing.assert_array_equal(d_weight, [[2, 4]])


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5), (3, 0)])
@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "softmax", "gelu", "relu", "silu"])
def test_nothing_in_nothing_out(name, shape):
    function, _, _ = ALL[name]
    out, pullback = function(np.zeros(shape))
    assert [g.shape for g in pullback(out)] == [shape]


@pytest.mark.parametrize(("M", "N", "K"), [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0, 0)])
def test_linear_of_nothing(M, N, K):
    gradients = hw.vjp.linear(np.ones((M, K)), np.ones((N, K)), np.ones(N))[1](np.ones((M, N)))
    assert [g.shape for g in gradients] == [(M, K), (N, K), (N,)]
    assert not gradients[0].any() or N
    assert not gradients[1].any() or M
    np.testing.assert_array_equal(gradients[2], np.full(N, M))


# --- bits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_do_not_matter(rng, threads, dtype):
    calls = [
        (hw.vjp.linear, [(800, 100), (130, 100), (130,)], {"activation": "gelu"}),
        (hw.vjp.layer_norm, [(900, 129), (129,), (129,)], {}),
        (hw.vjp.rms_norm, [(900, 129), (129,)], {}),
        (hw.vjp.softmax, [(900, 129)], {}),
        (hw.vjp.silu, [(900, 129)], {}),
        (hw.vjp.rotary_embedding, [(9, 100, 64)], {}),
    ]
    for function, shapes, options in calls:
        given = arrays(rng, shapes, dtype)
        answers = []
        for n in (1, 2, 3):
            threads(n)
            answers.append(run(lambda *a, f=function, o=options: f(*a, **o), given))
        for answer in answers[1:]:
            for got, want in zip(answer, answers[0], strict=True):
                assert_same_bits(got, want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_do_not_know_each_other(rng, dtype):
    for name in ("layer_norm", "rms_norm", "softmax", "gelu", "silu"):
        function = ALL[name][0]
        x, d = normals(rng, 300, 65, dtype=dtype), normals(rng, 300, 65, dtype=dtype)
        (whole,) = function(x)[1](d)
        for part in (slice(0, 1), slice(7, 60), slice(299, 300)):
            assert_same_bits(function(x[part])[1](d[part])[0], whole[part])
    x, d, weight = (normals(rng, *s, dtype=dtype) for s in ((300, 65), (300, 40), (40, 65)))
    whole = hw.vjp.linear(x, weight)[1](d)[0]
    for part in (slice(0, 1), slice(7, 60), slice(299, 300)):
        assert_same_bits(hw.vjp.linear(x[part], weight)[1](d[part])[0], whole[part])


DIGESTS = """
import hashlib, json
import numpy as np
import headwise as hw

rng = np.random.default_rng(7)
answer = {}
for dtype in ("float32", "float64"):
    for name, shapes, options in [
        ("linear", [(400, 65), (50, 65), (50,)], {"activation": "gelu_tanh"}),
        ("linear", [(5, 300), (33, 300), (33,)], {"activation": "silu"}),
        ("layer_norm", [(300, 65), (65,), (65,)], {}),
        ("rms_norm", [(300, 100), (100,)], {}),
        ("softmax", [(30, 129)], {}),
        ("relu", [(999,)], {}),
        ("gelu", [(999,)], {}),
        ("silu", [(999,)], {}),
        ("rotary_embedding", [(3, 50, 34)], {}),
    ]:
        given = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
        out, pullback = getattr(hw.vjp, name)(*given, **options)
        d_out = rng.standard_normal(out.shape).astype(dtype)
        parts = [np.asarray(part).tobytes() for part in (out, *pullback(d_out))]
        answer[f"{name} {shapes} {dtype}"] = [hashlib.sha256(part).hexdigest() for part in parts]
print(json.dumps(answer))
"""


def test_instruction_sets_do_not_matter():
    answers = []
    for isa in {"scalar", hw.isa(), "avx2" if hw.isa() == "avx512" else hw.isa()}:
        done = subprocess.run(
            [sys.executable, "-c", DIGESTS],
            env={**os.environ, "HEADWISE_ISA": isa},
            capture_output=True,
            text=True,
            check=True,
        )
        answers.append(json.loads(done.stdout))
    assert all(answer == answers[0] for answer in answers)


# --- errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_a_gradient_of_another_shape(rng, name):
    function, _, shapes = ALL[name]
    out, pullback = function(*arrays(rng, shapes(17)))
    with pytest.raises(hw.ShapeError, match="d_out"):
        pullback(np.ones((*out.shape, 1)))
    with pytest.raises(hw.ShapeError, match="d_out"):
        pullback(1.0)
    with pytest.raises(hw.DTypeError, match="d_out"):
        pullback(np.ones(out.shape, dtype=complex))


def test_arguments_that_do_not_fit():
    x = np.ones((2, 8))
    with pytest.raises(hw.ShapeError, match="weight"):
        hw.vjp.linear(x, np.ones((3, 7)))
    with pytest.raises(ValueError, match="activation"):
        hw.vjp.linear(x, np.ones((3, 8)), activation="swish2")
    with pytest.raises(hw.ShapeError, match="bias"):
        hw.vjp.layer_norm(x, bias=np.ones(7))
    with pytest.raises(ValueError, match="eps"):
        hw.vjp.rms_norm(x, eps=-1.0)
    with pytest.raises(ValueError, match="axis"):
        hw.vjp.softmax(x, 2)
    with pytest.raises(ValueError, match="approximate"):
        hw.vjp.gelu(x, "erf")
    with pytest.raises(ValueError, match="rotary_dim"):
        hw.vjp.rotary_embedding(x, rotary_dim=3)


def test_an_input_that_was_reshaped_meanwhile():
    x, weight = np.ones((2, 8)), np.ones((3, 8))
    out, pullback = hw.vjp.linear(x, weight, activation="relu")
    x.resize((2, 9), refcheck=False)
    with pytest.raises(hw.ShapeError):
        pullback(out)
