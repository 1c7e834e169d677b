"""RNN, LSTM and GRU against torch 2.15 (golden/make_torch_recurrent.py): outputs, states and all gradients.

States are loaded under torch's names, unchanged. What torch computes in packed sequences is computed here
from the padded batch with `lengths`, and from the list of its sequences.
"""

import numpy as np
import pytest
from recurrent import joined, make, parts
from test_torch_golden import golden

NAME = "torch_recurrent.npz"
CASES = list(golden(NAME)[1])
PACKED = [name for name in CASES if golden(NAME)[0]["cases"][name][2].get("lengths")]
BARS = {"float64": 1e-12, "float32": 1e-6}


def parameters(name, what):
    """Return a case's `state` or gradients under torch's names."""
    about, cases = golden(NAME)
    shapes = about["parameters"][name]
    ends = np.cumsum([np.prod(shape, dtype=int) for shape in shapes.values()])
    arrays = np.split(cases[name][what], ends[:-1])
    return {k: array.reshape(shape) for (k, shape), array in zip(shapes.items(), arrays, strict=True)}


def call_of(name, dtype):
    """Return a case's arrays, its layer with torch's parameters, the first states and the lengths."""
    about, cases = golden(NAME)
    cell, options, call = about["cases"][name]
    options = dict(options)
    layer = make(cell, options.pop("D"), options.pop("H"), **options, dtype=dtype)
    layer.load_state_dict(parameters(name, "state"))
    arrays = cases[name]
    return arrays, layer, joined([arrays[k] for k in ("h0", "c0") if k in arrays]), call.get("lengths")


def close(got, want, dtype):
    """Hold the largest error to the bar, relative to the largest number."""
    assert got.dtype == dtype
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= BARS[dtype] * max(1.0, np.abs(want).max())


@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize("name", CASES)
def test_like_torch(name, dtype):
    arrays, layer, state, lengths = call_of(name, dtype)
    out, last = layer(arrays["x"], state, lengths=lengths)
    close(out, arrays["out64"], dtype)
    last = parts(last)
    for part, got in zip("hc", last, strict=False):
        close(got, arrays[f"{part}64"], dtype)

    (again, last_again), pullback = layer.vjp(arrays["x"], state, lengths=lengths)
    for got, want in zip((again, *parts(last_again)), (out, *last), strict=True):
        np.testing.assert_array_equal(got, want)
    d_last = joined([arrays[f"d_{part}"] for part in "hc" if f"d_{part}" in arrays])
    (d_x, d_first), grads = pullback((arrays["d_out"], d_last))
    close(d_x, arrays["d_x64"], dtype)
    for part, got in zip("hc", parts(d_first), strict=False):
        if state is not None:
            close(got, arrays[f"d_{part}0_64"], dtype)
    want = parameters(name, "grad64")
    assert list(grads) == list(want)
    for k, truth in want.items():
        close(grads[k], truth, dtype)


@pytest.mark.parametrize("name", PACKED)
def test_lists_are_packed_sequences(name):
    arrays, layer, state, lengths = call_of(name, "float64")
    sequences = [x[:n] for x, n in zip(arrays["x"], lengths, strict=True)]
    out, last = layer(sequences, state)
    for got, want, n in zip(out, arrays["out64"], lengths, strict=True):
        close(got, want[:n], "float64")
    close(parts(last)[0], arrays["h64"], "float64")


@pytest.mark.once
def test_the_file_names_what_made_it():
    about, cases = golden(NAME)
    assert about["torch"].startswith("2.15")
    assert set(about["cases"]) == set(about["parameters"]) == set(cases)
