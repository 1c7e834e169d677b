"""Gradients by central differences in float64, for comparison with pullbacks."""

import numpy as np


def slopes(f, x, step=1e-5):
    """Return the gradient of the number f(x) at x, one element at a time."""
    x = np.array(x, dtype=np.float64)
    gradient = np.empty_like(x)
    for place in np.ndindex(x.shape):
        at = x[place]
        x[place] = at + step
        above = f(x)
        x[place] = at - step
        gradient[place] = (above - f(x)) / (2 * step)
        x[place] = at
    return gradient


def norm_relative(got, want):
    """Return the norm of the error over that of the truth."""
    got, want = np.asarray(got, dtype=np.float64), np.asarray(want, dtype=np.float64)
    assert got.shape == want.shape
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def flat(batch):
    """Return the numbers of an array, or of all arrays of a list."""
    return np.concatenate([np.ravel(x) for x in batch]) if isinstance(batch, list) else np.ravel(batch)


def check_vjp(layer, x, d_out, *, bar=1e-7, **keywords):
    """Compare a float64 layer's pullback with differences: of parameters, and of its input but for ids."""
    out, pullback = layer.vjp(x, **keywords)
    again = layer(x, **keywords)
    np.testing.assert_array_equal(flat(out), flat(again))
    d_x, grads = pullback(d_out)

    def loss(x):
        return float(np.dot(flat(layer(x, **keywords)), flat(d_out)))

    if d_x is not None:
        assert d_x.shape == np.shape(x)
        assert norm_relative(d_x, slopes(loss, x)) <= bar
    state = layer.state_dict()
    assert list(grads) == list(state)
    try:
        for name, array in state.items():

            def of_parameter(p, name=name):
                layer.load_state_dict(state | {name: p})
                return loss(x)

            assert grads[name].dtype == array.dtype
            assert norm_relative(grads[name], slopes(of_parameter, array)) <= bar, name
    finally:
        layer.load_state_dict(state)
    return d_x, grads
