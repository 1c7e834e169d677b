"""RNN, LSTM and GRU: the formula, gradients by differences, the law of bits, padding, states, errors."""

import copy
import pickle

import numpy as np
import pytest
from compare import assert_same_bits, normals
from differences import norm_relative, slopes
from layers import pad
from recurrent import CELLS, drawn_state, joined, make, parts
from reference_recurrent import recurrent_reference

import headwise as hw

FORMS = {
    "plain": {},
    "two layers": {"num_layers": 2},
    "both directions": {"bidirectional": True},
    "two layers, both directions, no bias": {"num_layers": 2, "bidirectional": True, "bias": False},
}
LENGTHS = [9, 1, 17, 0, 17, 5]


@pytest.fixture(params=CELLS)
def cell(request):
    """Return each cell in turn."""
    return request.param


@pytest.fixture(params=FORMS)
def options(request):
    """Return each form of a layer in turn."""
    return FORMS[request.param]


def flat(result):
    """Return all arrays of a nested result."""
    if isinstance(result, (tuple, list)):
        return [array for part in result for array in flat(part)]
    return [result[k] for k in result] if isinstance(result, dict) else [result]


def same(got, want):
    """Compare nested results bit for bit."""
    got, want = flat(got), flat(want)
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sizes", [(1, 1), (3, 15), (16, 16), (33, 17), (20, 200)])
def test_the_formula(rng, cell, options, sizes, dtype):
    layer = make(cell, *sizes, **options, dtype=dtype, rng=3)
    sequences = [normals(rng, n, sizes[0], dtype=dtype) for n in (7, 0, 4)]
    state = drawn_state(cell, layer, rng, 3)
    out, last = layer(sequences, state)
    form = {k: v for k, v in options.items() if k != "bias"}
    bar = 1e-13 if dtype == "float64" else 2e-6
    for b, x in enumerate(sequences):
        first = [part[:, b] for part in parts(state)]
        want, *ends = recurrent_reference(cell, layer.state_dict(), x, *first, **form)
        assert out[b].shape == want.shape
        np.testing.assert_allclose(out[b], want, rtol=0, atol=bar)
        for got, end in zip(parts(last), ends, strict=False):
            assert got.dtype == dtype
            np.testing.assert_allclose(got[:, b], end, rtol=0, atol=bar)


def test_gradients_by_differences(rng, cell, options):
    layer = make(cell, 3, 5, **options, dtype="float64", rng=11)
    x, lengths = normals(rng, 3, 4, 3, dtype="float64"), [4, 2, 0]
    state = drawn_state(cell, layer, rng, 3)
    (out, last), pullback = layer.vjp(x, state, lengths=lengths)
    d_out = normals(rng, *out.shape, dtype="float64")
    d_last = joined([normals(rng, *part.shape, dtype="float64") for part in parts(last)])
    (d_x, d_state), grads = pullback((d_out, d_last))

    def loss(x, *states):
        out, last = layer(x, joined(states), lengths=lengths)
        ends = zip(parts(last), parts(d_last), strict=True)
        return float(np.vdot(out, d_out) + sum(np.vdot(a, b) for a, b in ends))

    first = parts(state)
    assert norm_relative(d_x, slopes(lambda x: loss(x, *first), x)) <= 1e-7
    assert not d_x[1, 2:].any()
    assert not d_x[2].any()
    for i, d in enumerate(parts(d_state)):
        want = slopes(lambda part, i=i: loss(x, *first[:i], part, *first[i + 1 :]), first[i])
        assert norm_relative(d, want) <= 1e-7
    kept = layer.state_dict()
    assert list(grads) == list(kept)
    for name, array in kept.items():

        def of_parameter(p, name=name):
            layer.load_state_dict(kept | {name: p})
            return loss(x, *first)

        want = slopes(of_parameter, array)
        layer.load_state_dict(kept)
        assert norm_relative(grads[name], want) <= 1e-7, name


def test_parts_of_a_gradient_may_be_left_out(rng, cell):
    layer = make(cell, 3, 4, 2, rng=1)
    (out, last), pullback = layer.vjp(normals(rng, 2, 5, 3))
    d_out, zero = normals(rng, *out.shape), joined([np.zeros_like(part) for part in parts(last)])
    same(pullback(d_out), pullback((d_out, zero)))
    same(pullback(d_out), pullback((d_out, None)))
    d_last = joined([normals(rng, *part.shape) for part in parts(last)])
    same(pullback((None, d_last)), pullback((np.zeros_like(out), d_last)))
    same(pullback((d_out, d_last)), pullback((d_out, d_last)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_row_has_the_same_bits_in_every_batch(rng, cell, options, dtype):
    layer = make(cell, 20, 50, **options, dtype=dtype, rng=5)
    sequences = [normals(rng, n, 20, dtype=dtype) for n in LENGTHS]
    state = drawn_state(cell, layer, rng, len(LENGTHS))
    d_rows = [normals(rng, n, 50 * (2 if layer.bidirectional else 1), dtype=dtype) for n in LENGTHS]
    d_last = drawn_state(cell, layer, rng, len(LENGTHS))
    (out, last), pullback = layer.vjp(sequences, state)
    (d_x, d_state), grads = pullback((d_rows, d_last))

    # Padded: the same rows, parameters' gradients too, whatever stands in the padding.
    wide, real = pad(sequences, fill=np.nan)
    d_wide, _ = pad(d_rows, fill=np.nan)
    (padded, end), back = layer.vjp(wide, state, lengths=LENGTHS)
    (d_padded, d_end), padded_grads = back((d_wide, d_last))
    assert not padded[~real].any()
    assert not d_padded[~real].any()
    same((end, d_end, padded_grads), (last, d_state, grads))
    for b, n in enumerate(LENGTHS):
        same((padded[b, :n], d_padded[b, :n]), (out[b], d_x[b]))
    longer = np.concatenate([wide, np.full_like(wide[:, :3], np.inf)], axis=1)
    again, end = layer(longer, state, lengths=LENGTHS)
    same((again[:, : wide.shape[1]], end), (padded, last))

    # Alone, without an axis of the batch, and in another order.
    for b, x in enumerate(sequences):
        one = joined([part[:, b] for part in parts(state)])
        (alone, end), back = layer.vjp(x, one)
        same((alone, end), (out[b], joined([part[:, b] for part in parts(last)])))
        (d_alone, d_end), _ = back((d_rows[b], joined([part[:, b] for part in parts(d_last)])))
        same((d_alone, d_end), (d_x[b], joined([part[:, b] for part in parts(d_state)])))
    order = rng.permutation(len(LENGTHS))
    mixed, end = layer([sequences[b] for b in order], joined([part[:, order] for part in parts(state)]))
    same((mixed, end), ([out[b] for b in order], joined([part[:, order] for part in parts(last)])))


def test_threads_change_no_bit(rng, cell, options, threads):
    layer = make(cell, 40, 96, **options, rng=5)
    x = normals(rng, 13, 21, 40)
    lengths = rng.integers(0, 22, 13)
    results = []
    for n in (1, 2, 3, 8):
        threads(n)
        result, pullback = layer.vjp(x, lengths=lengths)
        results.append((result, pullback((np.ones_like(result[0]), result[1]))))
        same(layer(x, lengths=lengths), result)
    for other in results[1:]:
        same(other, results[0])


def test_one_step_after_the_other_is_the_whole(rng, cell):
    layer = make(cell, 6, 21, 2, rng=2)
    x = normals(rng, 3, 8, 6)
    out, last = layer(x)
    state = None
    for t in range(8):
        row, state = layer(x[:, t : t + 1], state)
        same(row[:, 0], out[:, t])
    same(state, last)


def test_nothing_gives_nothing(rng, cell, options):
    layer = make(cell, 3, 4, **options)
    width = 4 * (2 if layer.bidirectional else 1)
    for x, shape, batch in [
        (np.zeros((2, 0, 3)), (2, 0, width), (2,)),
        (np.zeros((0, 5, 3)), (0, 5, width), (0,)),
        (np.zeros((0, 3)), (0, width), ()),
    ]:
        state = drawn_state(cell, layer, rng, *batch)
        (out, last), pullback = layer.vjp(x, state)
        assert out.shape == shape
        same(last, state)
        (d_x, d_state), grads = pullback((out, state))
        assert d_x.shape == x.shape
        same(d_state, state)
        assert {k: v.shape for k, v in grads.items()} == {k: v.shape for k, v in layer.state_dict().items()}
        assert not any(grad.any() for grad in grads.values())
    (out, last), pullback = layer.vjp([])
    assert out == []
    assert parts(last)[0].shape[1:] == (0, 4)
    assert pullback([])[0][0] == []


def test_dropout_between_layers(rng, cell):
    layer = make(cell, 5, 40, 2, dropout=0.5, rng=4)
    x = normals(rng, 3, 6, 5)
    plain = layer(x)
    same(layer(x, rng=1), plain)
    dropped = layer(x, training=True, rng=1)
    same(layer(x, training=True, rng=1), dropped)
    assert not np.array_equal(dropped[0], plain[0])
    assert not np.array_equal(layer(x, training=True, rng=2)[0], dropped[0])
    one = make(cell, 5, 40, dropout=0.5, rng=4)
    same(one(x, training=True, rng=1), one(x))
    generator = np.random.default_rng(3)
    layer(x, training=True, rng=generator)
    assert generator.integers(1 << 60) != np.random.default_rng(3).integers(1 << 60)


def test_gradients_pass_the_same_dropout(rng, cell):
    layer = make(cell, 3, 6, 2, dropout=0.4, bidirectional=True, dtype="float64", rng=4)
    x = normals(rng, 2, 4, 3, dtype="float64")
    (out, _), pullback = layer.vjp(x, training=True, rng=9)
    d_out = normals(rng, *out.shape, dtype="float64")
    (d_x, _), _ = pullback(d_out)
    want = slopes(lambda x: float(np.vdot(layer(x, training=True, rng=9)[0], d_out)), x)
    assert norm_relative(d_x, want) <= 1e-7


@pytest.mark.once
def test_copies_and_texts(rng, cell, options):
    layer = make(cell, 3, 4, **options, dropout=0.25, rng=8)
    x = normals(rng, 2, 5, 3)
    for other in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert type(other) is type(layer)
        assert repr(other) == repr(layer)
        same(other(x), layer(x))
    wide = layer.to("float64")
    assert wide.dtype == "float64"
    assert wide(x)[0].dtype == "float64"
    same(wide.to("float32")(x), layer(x))
    state = layer.state_dict()
    other = make(cell, 3, 4, **options, rng=9)
    assert not np.array_equal(other(x)[0], layer(x)[0])
    other.load_state_dict({f"module.{k}": v for k, v in state.items()})
    same(other(x), layer(x))
    assert layer.num_parameters == sum(a.size for a in state.values())
    assert all(np.abs(a).max() <= 0.5 for a in state.values())  # 1 / sqrt(H)
    assert (layer.input_size, layer.hidden_size) == (3, 4)
    assert layer.num_layers == options.get("num_layers", 1)
    assert layer.bidirectional is options.get("bidirectional", False)


@pytest.mark.once
def test_names_and_repr():
    assert list(hw.GRU(2, 3, 2, bidirectional=True).state_dict())[4:8] == [
        "weight_ih_l0_reverse",
        "weight_hh_l0_reverse",
        "bias_ih_l0_reverse",
        "bias_hh_l0_reverse",
    ]
    assert hw.LSTM(2, 3, 2).state_dict()["weight_ih_l1"].shape == (12, 3)
    assert hw.GRU(2, 3, 2, bidirectional=True).state_dict()["weight_ih_l1"].shape == (9, 6)
    assert repr(hw.LSTM(2, 3)) == 'LSTM(2, 3, dtype="float32")'
    layer = hw.RNN(2, 3, 2, nonlinearity="relu", bias=False, dropout=0.5, bidirectional=True, dtype="float64")
    assert repr(layer) == (
        'RNN(2, 3, 2, nonlinearity="relu", bias=False, dropout=0.5, bidirectional=True, dtype="float64")'
    )
    assert layer.nonlinearity == "relu"


@pytest.mark.once
def test_what_is_refused(rng, cell):
    layer = make(cell, 3, 4)
    x, good = np.zeros((2, 5, 3)), joined([np.zeros((1, 2, 4))] * (2 if cell == "lstm" else 1))
    for error, text, call in [
        (ValueError, r"x: expected .*D = 3", lambda: layer(np.zeros((2, 5, 4)))),
        (ValueError, r"x: expected \(B, L, D\)", lambda: layer(np.zeros(3))),
        (ValueError, r"lengths: .* 0 to L = 5, got 6", lambda: layer(x, lengths=[5, 6])),
        (ValueError, r"lengths: expected \(B,\) = \[2\]", lambda: layer(x, lengths=[5])),
        (TypeError, r"lengths: expected integers", lambda: layer(x, lengths=[5.0, 4.0])),
        (ValueError, r"lengths: a list", lambda: layer([x[0]], lengths=[5])),
        (TypeError, r"key_padding_mask", lambda: layer(x, key_padding_mask=x)),
        (TypeError, r"unexpected keyword", lambda: layer.vjp(x, mask=x)),
        (TypeError, r"rng", lambda: layer(x, training=True, rng="1")),
    ]:
        with pytest.raises(error, match=text):
            call()
    wrong = joined([np.zeros((1, 3, 4))] * (2 if cell == "lstm" else 1))
    with pytest.raises(ValueError, match=r"state: expected \(num_layers \* directions, B, H\) = \[1, 2, 4\]"):
        layer(x, wrong)
    with pytest.raises(TypeError, match="state: expected"):
        layer(x, good[0] if cell == "lstm" else (good, good))
    _, pullback = layer.vjp(x)
    with pytest.raises(ValueError, match="d_out: expected"):
        pullback(np.zeros((2, 5, 5)))
    with pytest.raises(ValueError, match="d_state: expected"):
        pullback((np.zeros((2, 5, 4)), wrong))
    with pytest.raises(TypeError, match="d_out: expected"):
        pullback((np.zeros((2, 5, 4)), good, good))
    for error, text, arguments, options in [
        (ValueError, "input_size", (0, 4), {}),
        (ValueError, "hidden_size", (3, 0), {}),
        (ValueError, "num_layers", (3, 4, 0), {}),
        (TypeError, "hidden_size", (3, 4.0), {}),
        (ValueError, "dropout", (3, 4), {"dropout": 1.5}),
        (TypeError, "dtype", (3, 4), {"dtype": "float16"}),
    ]:
        with pytest.raises(error, match=text):
            make(cell, *arguments, **options)
    with pytest.raises(ValueError, match="nonlinearity"):
        hw.RNN(3, 4, nonlinearity="gelu")
    with pytest.raises(ValueError, match="weight_hh_l0"):
        layer.load_state_dict(layer.state_dict() | {"weight_hh_l0": np.zeros((4, 3))})


@pytest.mark.once
def test_relu_and_tanh_meet_the_ends():
    layer = hw.RNN(1, 1, nonlinearity="relu", bias=False)
    layer.load_state_dict({"weight_ih_l0": [[1.0]], "weight_hh_l0": [[0.0]]})
    out, _ = layer(np.array([[np.nan], [-1.0], [2.0]]))
    # NaN goes on by IEEE: 0 * NaN is NaN in the step after, and so to the end.
    assert np.isnan(out).all()
    out, _ = hw.LSTM(1, 1, rng=0)(np.full((1, 3, 1), 1e30))
    assert np.isfinite(out).all()
