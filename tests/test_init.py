"""headwise.init: bounds, moments and bits of the numbers that parameters begin with."""

import hashlib

import numpy as np
import pytest

import headwise as hw

N = (500, 400)


def moments(x):
    return float(x.mean(dtype=np.float64)), float(x.std(dtype=np.float64))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("draw", "mean", "std", "bound"),
    [
        (lambda **o: hw.init.uniform(N, -1.0, 3.0, **o), 1.0, 4 / 12**0.5, 3.0),
        (lambda **o: hw.init.normal(N, 2.0, 0.5, **o), 2.0, 0.5, None),
        (lambda **o: hw.init.truncated_normal(N, **o), 0.0, 0.879626, 2.0),
        (
            lambda **o: hw.init.xavier_uniform(N, gain=3.0, **o),
            0.0,
            3 * (2 / 900) ** 0.5,
            3 * (6 / 900) ** 0.5,
        ),
        (lambda **o: hw.init.xavier_normal(N, **o), 0.0, (2 / 900) ** 0.5, None),
        (
            lambda **o: hw.init.kaiming_uniform(N, nonlinearity="relu", **o),
            0.0,
            (2 / 400) ** 0.5,
            (6 / 400) ** 0.5,
        ),
        (lambda **o: hw.init.kaiming_normal(N, mode="fan_out", **o), 0.0, (2 / 500) ** 0.5, None),
        (lambda **o: hw.init.kaiming_normal((100, 20, 10, 10), a=3.0, **o), 0.0, (0.2 / 2000) ** 0.5, None),
    ],
)
def test_moments(draw, mean, std, bound, dtype):
    x = draw(rng=3, dtype=dtype)
    assert x.dtype == dtype
    n = x.size
    got_mean, got_std = moments(x)
    assert abs(got_mean - mean) <= 5 * std / n**0.5
    assert abs(got_std - std) <= 5 * std / n**0.5
    if bound is not None:
        assert bound * 0.999 <= x.max() <= bound
    # One seed is one array; float32 is float64 rounded.
    np.testing.assert_array_equal(x, draw(rng=3, dtype=dtype))
    np.testing.assert_array_equal(
        draw(rng=3, dtype="float32"), draw(rng=3, dtype="float64").astype("float32")
    )
    assert not np.array_equal(x, draw(rng=4, dtype=dtype))


def test_the_bits_are_the_same_everywhere(threads):
    known = {
        "uniform": "b66649edd959f977",
        "normal": "ec62d3d99484a13d",
        "truncated_normal": "36d2d734884631af",
    }
    for n in (1, 2):
        threads(n)
        for name, digest in known.items():
            x = getattr(hw.init, name)((300, 100), rng=7, dtype="float64")
            assert hashlib.sha256(x.astype("<f8").tobytes()).hexdigest()[:16] == digest


def test_generators_are_advanced_by_one_draw():
    a, b = np.random.default_rng(1), np.random.default_rng(1)
    first, second = hw.init.normal(5, rng=a), hw.init.normal(5, rng=a)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, hw.init.normal(5, rng=b))
    hw.init.uniform((1000, 3), rng=b)
    assert a.bit_generator.state == b.bit_generator.state
    assert not np.array_equal(hw.init.normal(5), hw.init.normal(5))


def test_constants_and_gains():
    assert hw.init.zeros((2, 3)).dtype == np.float32
    assert hw.init.ones(3, dtype=np.float64).tolist() == [1.0] * 3
    gains = {"linear": 1, "sigmoid": 1, "tanh": 5 / 3, "relu": 2**0.5, "selu": 0.75}
    assert {name: hw.init.calculate_gain(name) for name in gains} == gains
    assert hw.init.calculate_gain("leaky_relu", 0.2) == (2 / 1.04) ** 0.5
    assert hw.init.uniform((0, 4)).shape == (0, 4)
    assert hw.init.normal(()).shape == ()


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: hw.init.uniform((2, -1)), ValueError, "shape.*from 0 on"),
        (lambda: hw.init.uniform((2, 1.5)), TypeError, "shape.*float"),
        (lambda: hw.init.uniform("ab"), TypeError, "shape.*str"),
        (lambda: hw.init.uniform(2.0), TypeError, "shape.*float"),
        (lambda: hw.init.uniform(2, 1.0, 0.0), ValueError, "low, high"),
        (lambda: hw.init.normal(2, 0.0, -1.0), ValueError, "std"),
        (lambda: hw.init.truncated_normal(2, low=7.0, high=9.0), ValueError, "low, high.*thousandth"),
        (lambda: hw.init.normal(2, dtype="float16"), hw.DTypeError, "dtype.*float16"),
        (lambda: hw.init.zeros(2, dtype=int), hw.DTypeError, "dtype.*int64"),
        (lambda: hw.init.normal(2, rng="x"), TypeError, "rng"),
        (lambda: hw.init.xavier_uniform(3), hw.ShapeError, r"shape.*\(N, K\).*\(3,\)"),
        (lambda: hw.init.kaiming_uniform((2, 2), mode="fan"), ValueError, "mode.*'fan'"),
        (lambda: hw.init.calculate_gain("gelu"), ValueError, "nonlinearity.*leaky_relu.*'gelu'"),
    ],
)
def test_errors_name_the_argument(call, error, text):
    with pytest.raises(error, match=text):
        call()
