"""The small functions: linear, softmax, norms, activations, positions, rotary, slopes."""

import ml_dtypes
import numpy as np
import pytest
from compare import assert_same_bits, normals, rms_relative
from reference import (
    ACTIVATIONS,
    alibi_slopes_reference,
    gelu_reference,
    layer_norm_reference,
    linear_reference,
    relu_reference,
    rms_norm_reference,
    rotary_reference,
    silu_reference,
    sinusoidal_positions_reference,
    softmax_reference,
)

import headwise as hw

WIDTHS = (1, 3, 15, 16, 17, 63, 64, 65, 100, 129, 1000)
DTYPES = ("float32", "float64")
BARS = {"float32": 2e-7, "float64": 1e-15}  # a few roundings of one element; sums keep below too
EXACT = ("float16", ml_dtypes.bfloat16)

ROWS = {
    "softmax": (hw.softmax, softmax_reference),
    "layer_norm": (hw.layer_norm, layer_norm_reference),
    "rms_norm": (hw.rms_norm, rms_norm_reference),
}
POINTS = {
    "relu": (hw.relu, relu_reference),
    "gelu": (hw.gelu, gelu_reference),
    "gelu tanh": (lambda x: hw.gelu(x, approximate="tanh"), lambda x: gelu_reference(x, "tanh")),
    "silu": (hw.silu, silu_reference),
}
BOTH = ROWS | POINTS


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("width", WIDTHS)
def test_accuracy(rng, name, width, dtype):
    function, reference = BOTH[name]
    x = normals(rng, 40, width, dtype=dtype) * 3
    out, want = function(x), reference(x)
    assert out.dtype == dtype
    assert out.shape == x.shape
    if not want.any():  # a layer norm over one element is 0
        np.testing.assert_allclose(out, want, atol=1e-30)
    else:
        assert rms_relative(out, want) <= BARS[dtype]


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("name", BOTH)
def test_half_is_float32_rounded_once(rng, name, dtype):
    function, _ = BOTH[name]
    x = normals(rng, 20, 65, dtype=dtype)
    assert_same_bits(function(x), function(x.astype(np.float32)).astype(dtype))


@pytest.mark.parametrize("name", BOTH)
def test_integers_and_lists_are_float64(name):
    function, _ = BOTH[name]
    out = function([[1, 2, -3], [0, 5, 4]])
    assert out.dtype == np.float64
    assert_same_bits(out, function(np.array([[1.0, 2, -3], [0, 5, 4]])))


@pytest.mark.parametrize("dtype", ["complex128", "longdouble", "object"])
@pytest.mark.parametrize("name", BOTH)
def test_other_dtypes_are_refused(name, dtype):
    with pytest.raises(hw.DTypeError, match="x"):
        BOTH[name][0](np.zeros((2, 3), dtype=dtype))


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4, 5), (0, 5), (2, 0, 5)])
@pytest.mark.parametrize("name", BOTH)
def test_any_number_of_axes(rng, name, shape):
    function, reference = BOTH[name]
    x = normals(rng, *shape, dtype="float64")
    out = function(x)
    assert out.shape == shape
    np.testing.assert_allclose(out, reference(x) if x.size else x, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BOTH)
def test_rows_do_not_know_each_other(rng, threads, name, dtype):
    function, _ = BOTH[name]
    x = normals(rng, 300, 129, dtype=dtype)
    out = function(x)
    assert_same_bits(function(x[7]), out[7])
    assert_same_bits(function(x[::-3]), out[::-3])
    assert_same_bits(function(np.asfortranarray(x)), out)
    for n in (1, 2, 3):
        threads(n)
        assert_same_bits(function(x), out)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", POINTS)
def test_points_do_not_know_their_place(rng, name, dtype):
    function, _ = POINTS[name]
    x = normals(rng, 67, dtype=dtype)
    assert_same_bits(np.concatenate([function(x[i : i + 1]) for i in range(67)]), function(x))


# --- softmax ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_softmax_over_any_axis(rng, axis):
    x = normals(rng, 3, 17, 33)
    out = hw.softmax(x, axis)
    assert rms_relative(out, softmax_reference(x, axis)) <= 2e-7
    assert_same_bits(out, np.moveaxis(hw.softmax(np.moveaxis(x, axis, -1)), -1, axis))
    np.testing.assert_allclose(out.sum(axis=axis), 1.0, rtol=1e-6)


@pytest.mark.parametrize("axis", [2, -3])
def test_softmax_axis_that_is_not_there(axis):
    with pytest.raises(ValueError, match="axis"):  # np.exceptions.AxisError is one too
        hw.softmax(np.ones((2, 3)), axis)


def test_softmax_at_the_ends_of_the_range():
    np.testing.assert_array_equal(hw.softmax(np.float32([1e38, -1e38, 1e38])), np.float32([0.5, 0, 0.5]))
    np.testing.assert_array_equal(hw.softmax([-np.inf, 0.0]), [0.0, 1.0])
    np.testing.assert_allclose(hw.softmax(np.full(7, -1e30)), 1 / 7)
    assert np.isnan(hw.softmax([np.nan, 0.0, 1.0])).all()
    assert hw.softmax(np.zeros((3, 0))).shape == (3, 0)


# --- norms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eps", [1e-5, 1e-12, 0.1])
def test_norms_with_parameters(rng, eps, dtype):
    x = normals(rng, 20, 100, dtype=dtype)
    weight, bias = normals(rng, 100, dtype=dtype), normals(rng, 100, dtype=dtype)
    pairs = [
        (hw.layer_norm(x, weight, bias, eps=eps), layer_norm_reference(x, weight, bias, eps=eps)),
        (hw.layer_norm(x, weight, eps=eps), layer_norm_reference(x, weight, eps=eps)),
        (hw.layer_norm(x, bias=bias, eps=eps), layer_norm_reference(x, bias=bias, eps=eps)),
        (hw.rms_norm(x, weight, eps=eps), rms_norm_reference(x, weight, eps=eps)),
    ]
    for got, want in pairs:
        assert got.dtype == dtype
        assert rms_relative(got, want) <= BARS[dtype] * 1.5


def test_layer_norm_far_from_zero(rng):
    x = normals(rng, 20, 1000) + np.float32(1000)  # one pass over squares would lose everything here
    assert rms_relative(hw.layer_norm(x), layer_norm_reference(x)) <= 1e-4
    np.testing.assert_allclose(hw.layer_norm(np.full((2, 64), 7.0)), 0.0, atol=1e-12)


@pytest.mark.parametrize("function", [hw.layer_norm, hw.rms_norm])
def test_norm_arguments_that_do_not_fit(function):
    x = np.ones((2, 8))
    with pytest.raises(ValueError, match="weight"):
        function(x, np.ones(7))
    with pytest.raises(ValueError, match="weight"):
        function(x, np.ones((1, 8)))
    with pytest.raises(ValueError, match="eps"):
        function(x, eps=-1.0)
    with pytest.raises(ValueError, match="x"):
        function(np.float64(3.0))
    with pytest.raises(ValueError, match="bias"):
        hw.layer_norm(x, np.ones(8), np.ones(9))


# --- activations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", POINTS)
def test_activations_over_their_range(name, dtype):
    function, reference = POINTS[name]
    x = np.linspace(-12, 12, 20001).astype(dtype)
    eps = np.finfo(dtype).eps
    # relative to the curve's own scale |x|: the far tail of gelu is below it and need not be exact to the
    # last bit
    assert (np.abs(function(x) - reference(x)) <= 4 * eps * np.abs(x)).all()


@pytest.mark.parametrize("name", POINTS)
def test_activations_at_the_ends(name):
    function, _ = POINTS[name]
    out = function(np.float32([np.inf, 0.0, 3e38, 100.0, np.nan]))
    np.testing.assert_array_equal(out, np.float32([np.inf, 0.0, 3e38, 100.0, np.nan]))
    low = function(np.float32([-100.0, -1e30]))
    np.testing.assert_allclose(low, 0.0, atol=1e-30)


def test_gelu_name_that_is_not_there():
    with pytest.raises(ValueError, match="approximate"):
        hw.gelu(np.ones(3), approximate="erf")


# --- linear -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [None, "relu", "gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize(
    ("M", "N", "K"), [(1, 1, 1), (7, 33, 100), (65, 129, 64), (1, 384, 300), (130, 3, 1000)]
)
def test_linear(rng, M, N, K, activation, dtype):
    x, weight, bias = (normals(rng, *s, dtype=dtype) for s in ((M, K), (N, K), (N,)))
    for b in (None, bias):
        out = hw.linear(x, weight, b, activation=activation)
        # float64 against itself would count the reference's own rounding: the truth is a longer type's
        long = x.astype(np.longdouble) @ weight.astype(np.longdouble).T
        exact = (long if b is None else long + b).astype(np.float64)
        want = ACTIVATIONS[activation](exact)
        np.testing.assert_allclose(linear_reference(x, weight, b), exact, rtol=1e-12, atol=1e-12)
        assert out.dtype == dtype
        assert out.shape == (M, N)
        # a chain of n fused multiply-adds over normals is off by about 0.2 eps sqrt(n / 2): 2 eps with the
        # chains of 192 that the law of bits names, 4.6 eps if all of K = 1000 were one chain
        scale = np.sqrt(np.mean(exact**2))
        assert np.sqrt(np.mean((out - want) ** 2)) <= 3 * np.finfo(dtype).eps * scale


def test_linear_over_many_axes(rng, threads):
    x, weight, bias = normals(rng, 2, 3, 17, 40), normals(rng, 30, 40), normals(rng, 30)
    out = hw.linear(x, weight, bias)
    assert out.shape == (2, 3, 17, 30)
    assert_same_bits(hw.linear(x[1, 2, 5], weight, bias), out[1, 2, 5])
    assert_same_bits(hw.linear(x, np.asfortranarray(weight), bias), out)
    for n in (1, 2, 3):
        threads(n)
        assert_same_bits(hw.linear(x, weight, bias), out)
    assert hw.linear(x[:, :0], weight, bias).shape == (2, 0, 17, 30)
    assert_same_bits(
        hw.linear(np.ones((2, 0)), np.ones((3, 0)), np.arange(3.0)), np.arange(3.0) * np.ones((2, 1))
    )


@pytest.mark.parametrize(
    ("shapes", "named"),
    [
        (((2, 5), (3, 4)), "weight"),
        (((2, 5), (5,)), "weight"),
        (((2, 5), (3, 5), (4,)), "bias"),
        (((), (3, 5)), "x"),
    ],
)
def test_linear_shapes_that_do_not_fit(shapes, named):
    with pytest.raises(ValueError, match=named):
        hw.linear(*(np.ones(shape) for shape in shapes))


def test_linear_activation_that_is_not_there():
    with pytest.raises(ValueError, match="activation"):
        hw.linear(np.ones((2, 5)), np.ones((3, 5)), activation="swish2")


# --- positions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["interleaved", "concat"])
@pytest.mark.parametrize(("n", "d"), [(1, 2), (17, 64), (1000, 100), (0, 8)])
def test_sinusoidal_positions(n, d, layout):
    table = hw.sinusoidal_positions(n, d, layout=layout)
    assert table.shape == (n, d)
    tolerance = 1e-12 if table.dtype == np.float64 else 1e-7  # the contract names no dtype
    np.testing.assert_allclose(table, sinusoidal_positions_reference(n, d, layout=layout), atol=tolerance)


def test_sinusoidal_arguments_that_are_refused():
    with pytest.raises(ValueError, match="layout"):
        hw.sinusoidal_positions(3, 4, layout="mixed")
    with pytest.raises((ValueError, OverflowError), match="n"):
        hw.sinusoidal_positions(-1, 4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [None, 2, 16])
def test_rotary_embedding(rng, interleaved, rotary_dim, dtype):
    x = normals(rng, 2, 3, 70, 32, dtype=dtype)
    options = {"interleaved": interleaved, "rotary_dim": rotary_dim}
    for more in ({}, {"theta": 500.0}, {"positions": np.arange(70) * 3 + 5}):
        out = hw.rotary_embedding(x, **options, **more)
        assert out.dtype == dtype
        want = rotary_reference(x, **options, **more)
        assert rms_relative(out, want) <= BARS[dtype] * 4  # an angle of some hundred loses bits in float32


def test_rotary_keeps_lengths_and_relative_positions(rng):
    x, y = normals(rng, 1, 32, dtype="float64"), normals(rng, 1, 32, dtype="float64")
    products = [
        float((hw.rotary_embedding(x, [a]) @ hw.rotary_embedding(y, [a + 3]).T)[0, 0]) for a in (0, 5, 1000)
    ]
    np.testing.assert_allclose(products, products[0], rtol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(hw.rotary_embedding(x, [77])), np.linalg.norm(x), rtol=1e-13)
    assert_same_bits(hw.rotary_embedding(x, [0]), x)


@pytest.mark.parametrize(
    ("shape", "options", "named"),
    [
        ((5, 7), {}, "x|E"),
        ((5, 8), {"rotary_dim": 3}, "rotary_dim"),
        ((5, 8), {"rotary_dim": 10}, "rotary_dim"),
        ((5, 8), {"positions": np.arange(4)}, "positions"),
        ((5, 8), {"theta": -1.0}, "theta"),
    ],
)
def test_rotary_arguments_that_are_refused(shape, options, named):
    with pytest.raises(ValueError, match=named):
        hw.rotary_embedding(np.ones(shape), **options)


@pytest.mark.parametrize("n", [1, 2, 3, 8, 12, 16, 20, 100])
def test_alibi_slopes(n):
    slopes = hw.alibi_slopes(n)
    np.testing.assert_allclose(slopes, alibi_slopes_reference(n), rtol=1e-7)
    assert slopes.shape == (n,)


def test_alibi_slopes_of_no_heads():
    with pytest.raises(ValueError, match="num_heads"):
        hw.alibi_slopes(0)
