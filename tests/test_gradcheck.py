"""gradcheck: wrong gradients are found and named, right ones pass; layers, compositions, ragged lists."""

import numpy as np
import pytest

import headwise as hw


def scaled(x, *, factor=1.0):
    """Return x * x and a pullback that is off by a factor."""
    return x * x, lambda d: (factor * 2 * x * d,)


class Layer:
    """Return x @ weight.T + bias, with a pullback like those of layers."""

    def __init__(self, rng, wrong=None):
        self.state = {"weight": rng.standard_normal((4, 3)), "bias": rng.standard_normal(4)}
        self.wrong = wrong

    def state_dict(self):
        return {name: value.copy() for name, value in self.state.items()}

    def load_state_dict(self, state):
        self.state = dict(state)

    def vjp(self, x, *, head_mask=None):
        weight, bias = self.state["weight"], self.state["bias"]
        gate = np.ones(4) if head_mask is None else head_mask
        many = isinstance(x, list)
        parts = x if many else [x]
        outs = [gate * (part @ weight.T + bias) for part in parts]

        def pullback(d_out):
            ds = [gate * d for d in (d_out if many else [d_out])]
            grads = {
                "weight": sum(d.T @ part for d, part in zip(ds, parts, strict=True)),
                "bias": sum(d.sum(axis=0) for d in ds),
            }
            if head_mask is not None:
                raw = zip(d_out if many else [d_out], parts, strict=True)
                grads["head_mask"] = sum(np.sum(d * (part @ weight.T + bias), axis=0) for d, part in raw)
            if self.wrong == "missing":
                del grads["bias"]
            elif self.wrong is not None:
                grads[self.wrong] = grads[self.wrong] * (1 + 1e-6)
            d_inputs = [d @ weight for d in ds]
            return (d_inputs if many else d_inputs[0]), grads

        return (outs if many else outs[0]), pullback


# --- functions ----------------------------------------------------------------------------------------------


def test_a_right_gradient_passes(rng):
    error = hw.gradcheck(scaled, [rng.standard_normal((3, 4))])
    assert isinstance(error, float)
    assert error <= 1e-9


@pytest.mark.parametrize("shape", [(), (1,), (3, 4), (40, 50)])  # the last along directions
def test_a_wrong_gradient_is_found(rng, shape):
    x = rng.standard_normal(shape)
    with pytest.raises(hw.GradientError, match=r"inputs\[0\].*off by"):
        hw.gradcheck(scaled, [x], factor=1 + 1e-6)
    assert hw.gradcheck(scaled, [x], factor=1 + 1e-6, tolerance=1e-5) > 1e-7


def test_one_wrong_number_among_many_is_found(rng):
    def f(x):
        def pullback(d):
            d_x = 2 * x * d
            d_x[17, 3] += 1e-2
            return (d_x,)

        return x * x, pullback

    with pytest.raises(hw.GradientError):
        hw.gradcheck(f, [rng.standard_normal((60, 50))])


def test_nan_is_found():
    with pytest.raises(hw.GradientError, match="nan"):
        hw.gradcheck(lambda x: (x * 1.0, lambda d: (d * np.nan,)), [np.ones(3)])


def test_the_error_is_an_assertion():
    assert issubclass(hw.GradientError, AssertionError)
    assert issubclass(hw.GradientError, hw.HeadwiseError)


def test_a_gradient_of_another_shape(rng):
    with pytest.raises(hw.GradientError, match=r"inputs\[0\].*\(3,\).*\(3, 1\)"):
        hw.gradcheck(lambda x: (x * 1.0, lambda d: (d[:, None],)), [rng.standard_normal(3)])


def test_too_few_gradients(rng):
    with pytest.raises(hw.GradientError, match="2 inputs"):
        hw.gradcheck(lambda x, y: (x + y, lambda d: (d,)), [np.ones(3), np.ones(3)])


def test_integers_and_none_are_constant(rng):
    def take(x, where, bias):
        assert bias is None
        assert where.dtype == np.int64

        def pullback(d):
            d_x = np.zeros_like(x)
            np.add.at(d_x, where, d)
            return (d_x,)

        return x[where], pullback

    assert hw.gradcheck(take, [rng.standard_normal((5, 2)), np.array([0, 3, 3]), None]) <= 1e-9


@pytest.mark.parametrize("dtype", ["float32", "float16", "complex128"])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(hw.DTypeError, match=r"inputs\[1\].*float64"):
        hw.gradcheck(lambda x, y: (x, None), [np.ones(3), np.ones(3, dtype=dtype)])


def test_a_single_array_is_refused():
    with pytest.raises(TypeError, match="inputs"):
        hw.gradcheck(scaled, np.ones(3))


def test_inputs_are_left_alone(rng):
    x = rng.standard_normal((3, 4))
    x.flags.writeable = False
    before = x.copy()
    hw.gradcheck(scaled, [x])
    np.testing.assert_array_equal(x, before)


def test_a_gradient_of_exactly_nothing(rng):
    # the mean of what a layer norm leaves is 0: differences see rounding alone
    def f(x):
        out, pullback = hw.vjp.layer_norm(x)
        return out.mean(axis=-1), lambda d: pullback(np.repeat(d[:, None], 20, axis=1) / 20)

    assert hw.gradcheck(f, [rng.standard_normal((3, 20))]) <= 1e-7


def test_a_generator_draws_the_same_in_every_call(rng):
    def dropped(x, *, rng):
        keep = rng.random(x.shape) < 0.5
        return np.where(keep, 2 * x, 0.0), lambda d: (np.where(keep, 2 * d, 0.0),)

    assert hw.gradcheck(dropped, [rng.standard_normal(50)], rng=np.random.default_rng(3)) <= 1e-9


def test_a_composition(rng):
    def block(x, weight, bias, gain):
        unit, back_norm = hw.vjp.rms_norm(x, gain)
        out, back_linear = hw.vjp.linear(unit, weight, bias, activation="gelu")

        def pullback(d):
            d_unit, d_weight, d_bias = back_linear(d)
            d_x, d_gain = back_norm(d_unit)
            return d_x + d, d_weight, d_bias, d_gain

        return out + x, pullback

    shapes = [(7, 16), (16, 16), (16,), (16,)]
    assert hw.gradcheck(block, [rng.standard_normal(shape) for shape in shapes]) <= 1e-7


# --- layers -------------------------------------------------------------------------------------------------


def test_parameters_of_a_layer(rng):
    layer = Layer(rng)
    before = layer.state_dict()
    assert hw.gradcheck(layer.vjp, [rng.standard_normal((5, 3))]) <= 1e-9
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_ragged_lists(rng):
    ragged = [rng.standard_normal((n, 3)) for n in (2, 1, 4)]
    assert hw.gradcheck(Layer(rng).vjp, [ragged]) <= 1e-9


def test_keywords_with_a_gradient(rng):
    mask = rng.standard_normal(4)
    assert hw.gradcheck(Layer(rng).vjp, [rng.standard_normal((5, 3))], head_mask=mask) <= 1e-9
    with pytest.raises(hw.GradientError, match="head_mask"):
        hw.gradcheck(Layer(rng, "head_mask").vjp, [rng.standard_normal((5, 3))], head_mask=mask)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_wrong_gradient_of_a_parameter_is_named(rng, name):
    with pytest.raises(hw.GradientError, match=name):
        hw.gradcheck(Layer(rng, name).vjp, [rng.standard_normal((5, 3))])


def test_a_missing_gradient_of_a_parameter_is_named(rng):
    with pytest.raises(hw.GradientError, match="bias"):
        hw.gradcheck(Layer(rng, "missing").vjp, [rng.standard_normal((5, 3))])


def test_float32_parameters_are_refused(rng):
    layer = Layer(rng)
    layer.state["bias"] = layer.state["bias"].astype(np.float32)
    with pytest.raises(hw.DTypeError, match="bias"):
        hw.gradcheck(layer.vjp, [rng.standard_normal((5, 3))])
