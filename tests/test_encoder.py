"""EncoderLayer and Encoder: every option, extras, ragged lists, padding, dropout."""

from itertools import product

import numpy as np
import pytest
from compare import assert_same_bits, normals, rms_relative
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import pad, randomize
from reference_layers import encoder_layer_reference, encoder_reference

import headwise as hw

# float32: every step of a layer rounds once more; a few layers stay below 1e-6
BARS = {"float32": 1e-6, "float64": 5e-15}
MODEL_OPTIONS = ("bias", "dtype", "rng", "dropout", "ffn")  # the reference reads these off the parameters


def make(rng, num_layers=2, d_model=32, num_heads=4, d_ff=48, **options):
    """Return an Encoder (or an EncoderLayer for 0 layers) with random parameters, and its reference."""
    keywords = {k: v for k, v in options.items() if k not in MODEL_OPTIONS} | {"num_heads": num_heads}
    if num_layers:
        layer = hw.Encoder(num_layers, d_model, num_heads, d_ff, **options)
        keywords["num_layers"] = num_layers
        run = encoder_reference
    else:
        layer, run = hw.EncoderLayer(d_model, num_heads, d_ff, **options), encoder_layer_reference
    keywords.pop("head_dim", None)
    randomize(layer, rng)
    return layer, lambda x, **call: run(layer.state_dict(), x, **keywords, **call)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("activation", "norm", "norm_first", "ffn"),
    [*product(["relu", "gelu", "gelu_tanh", "silu"], ["layer", "rms"], [False, True], ["mlp", "glu"])],
)
def test_layer_options(rng, activation, norm, norm_first, ffn, dtype):
    layer, reference = make(
        rng, 0, activation=activation, norm=norm, norm_first=norm_first, ffn=ffn, dtype=dtype
    )
    x = normals(rng, 2, 17, 32, dtype=dtype)
    out = layer(x)
    assert out.dtype == dtype
    assert out.shape == x.shape
    assert rms_relative(out, reference(x)) <= BARS[dtype]


@pytest.mark.parametrize(
    "options",
    [
        {"bias": False},
        {"num_kv_heads": 2},
        {"num_kv_heads": 1, "head_dim": 10},
        {"layer_norm_eps": 0.1},
        {"layer_norm_eps": 0.1, "norm": "rms"},
        {
            "bias": False,
            "ffn": "glu",
            "norm": "rms",
            "activation": "silu",
            "norm_first": True,
            "num_kv_heads": 2,
        },
    ],
)
def test_more_layer_options(rng, options):
    layer, reference = make(rng, 0, **options)
    x = normals(rng, 2, 17, 32)
    assert rms_relative(layer(x), reference(x)) <= 1e-6


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("positions", [None, "sinusoidal", "rotary", "alibi"])
@pytest.mark.parametrize(("norm_first", "final_norm"), [*product([False, True], repeat=2)])
def test_encoders(rng, positions, norm_first, final_norm, dtype):
    options = {"positions": positions, "norm_first": norm_first, "final_norm": final_norm}
    layer, reference = make(rng, 3, activation="gelu", dtype=dtype, **options)
    x = normals(rng, 2, 33, 32, dtype=dtype)
    assert rms_relative(layer(x), reference(x)) <= BARS[dtype]


@pytest.mark.parametrize("num_heads", [1, 2, 3, 6, 12])
def test_alibi_of_any_number_of_heads(rng, num_heads):
    layer, reference = make(rng, 1, d_model=36, num_heads=num_heads, positions="alibi")
    x = normals(rng, 2, 65, 36)
    assert rms_relative(layer(x), reference(x)) <= 1e-6
    mask = rng.random((65, 65)) < 0.8
    assert rms_relative(layer(x, attn_mask=mask), reference(x, attn_mask=mask)) <= 1e-6


@pytest.mark.parametrize("L", [1, 15, 16, 17, 63, 64, 65, 129])
@pytest.mark.parametrize("d_model", [100, 32])
def test_lengths_and_widths(rng, L, d_model):
    layer, reference = make(rng, 1, d_model=d_model, num_heads=4, d_ff=2 * d_model + 1)
    x = normals(rng, 2, L, d_model)
    assert rms_relative(layer(x), reference(x)) <= 1e-6


def test_a_thousand_tokens(rng):
    layer, reference = make(rng, 1, d_model=100, num_heads=5, positions="rotary")
    x = normals(rng, 1, 1000, 100)
    assert rms_relative(layer(x), reference(x)) <= 1e-6


MASKS = {
    "bool": {"attn_mask": np.arange(20 * 20).reshape(20, 20) % 3 > 0},
    "float": {"attn_mask": np.where(np.arange(400).reshape(20, 20) % 3 > 0, 0.7, -np.inf)},
    "per head": {"attn_mask": np.arange(4 * 400).reshape(4, 20, 20) % 5 > 0},
    "causal": {"is_causal": True},
    "window": {"window": (3, 1)},
    "causal window": {"window": (3, None), "is_causal": True},
    "lengths": {"lengths": np.array([20, 7, 1])},
    "key_mask": {"key_mask": np.arange(60).reshape(3, 20) % 4 > 0},
    "both": {"lengths": np.array([20, 12, 3]), "key_mask": np.arange(60).reshape(3, 20) % 4 > 0},
    "all": {"lengths": np.array([20, 12, 3]), "is_causal": True, "window": (5, None)},
}


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("name", MASKS)
def test_masks(rng, name, norm_first):
    layer, reference = make(rng, norm_first=norm_first, final_norm=True)
    x = normals(rng, 3, 20, 32)
    out = layer(x, **MASKS[name])
    want = reference(x, **MASKS[name])
    assert rms_relative(out, want) <= 1e-6
    padded = ~want.any(axis=-1)
    assert_same_bits(out[padded], np.zeros_like(out[padded]))


@pytest.mark.parametrize("num_layers", [0, 2])
@pytest.mark.parametrize("fill", [0.0, 1e30, np.nan, np.inf])
@pytest.mark.parametrize("left", [False, True])
def test_padding_leaves_no_trace(rng, num_layers, fill, left):
    layer, _ = make(rng, num_layers)
    xs = [normals(rng, n, 32) for n in (70, 1, 17)]
    x, real = pad(xs, fill=fill, left=left)
    out = layer(x, key_mask=real)
    assert_same_bits(out[~real], np.zeros_like(out[~real]))
    assert_same_bits(out[real], np.concatenate([layer(one) for one in xs]))


# --- ragged lists -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_layers", [0, 2])
def test_a_list_is_a_ragged_batch(rng, num_layers):
    layer, _ = make(rng, num_layers)
    xs = [normals(rng, n, 32) for n in (5, 1, 65, 17, 130)]
    outs = layer(xs)
    assert type(outs) is list
    for x, out in zip(xs, outs, strict=True):
        assert_same_bits(out, layer(x))
    assert layer([]) == []
    assert_same_bits(layer((xs[0], xs[0])), layer(np.stack([xs[0], xs[0]])))
    with pytest.raises(ValueError, match="x"):
        layer([xs[0], xs[1][:, :31]])


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary", "alibi"])
def test_positions_of_ragged_and_of_right_padded_batches(rng, positions):
    layer, _ = make(rng, positions=positions)
    xs = [normals(rng, n, 32) for n in (30, 1, 17)]
    outs = layer(xs)
    for x, out in zip(xs, outs, strict=True):
        assert_same_bits(out, layer(x))
    x, real = pad(xs, fill=np.nan)
    assert_same_bits(layer(x, key_mask=real)[real], np.concatenate(outs))
    assert_same_bits(layer(x, lengths=np.array([30, 1, 17]))[real], np.concatenate(outs))


def test_lists_with_everything_asked(rng):
    layer, _ = make(rng)
    xs = [normals(rng, n, 32) for n in (5, 17)]
    answer = layer(xs, output_hidden_states=True, need_weights=True, is_causal=True)
    for i, x in enumerate(xs):
        one = layer(x, output_hidden_states=True, need_weights=True, is_causal=True)
        assert_same_bits(answer[0][i], one[0])
        for many, single in zip(answer.hidden_states, one.hidden_states, strict=True):
            assert_same_bits(many[i], single)
        for many, single in zip(answer.weights, one.weights, strict=True):
            assert_same_bits(many[i], single)


# --- hidden states, weights, head mask ----------------------------------------------------------------------


@pytest.mark.parametrize("final_norm", [False, True])
def test_hidden_states(rng, final_norm):
    """One state before the first layer and one after each; the output is the first field of the tuple."""
    layer, reference = make(rng, 3, final_norm=final_norm)
    x = normals(rng, 2, 17, 32)
    answer = layer(x, output_hidden_states=True)
    want, hidden, _ = reference(x, everything=True)
    assert isinstance(answer, tuple)
    assert {"hidden_states", "weights"} <= set(answer._fields)
    assert_same_bits(answer[0], layer(x))
    assert len(answer.hidden_states) == 4
    assert_same_bits(answer.hidden_states[0], x)
    # after the last layer: before the final norm or after it, the contract leaves that open
    for state, expected in zip(answer.hidden_states[:-1], hidden[:-1], strict=True):
        assert rms_relative(state, expected) <= 1e-6
    last = answer.hidden_states[-1]
    assert min(rms_relative(last, hidden[-1]), rms_relative(last, want)) <= 1e-6


def test_weights_of_every_layer(rng):
    layer, reference = make(rng, 3)
    x = normals(rng, 2, 17, 32)
    lengths = np.array([17, 9])
    answer = layer(x, need_weights=True, lengths=lengths)
    assert_same_bits(answer[0], layer(x, lengths=lengths))
    maps = reference(x, lengths=lengths, everything=True)[2]
    assert len(answer.weights) == 3
    for got, want in zip(answer.weights, maps, strict=True):
        assert got.shape == (2, 4, 17, 17)
        for b, n in enumerate(lengths):  # what a padded query's weights are is not promised
            np.testing.assert_allclose(got[b, :, :n], want[b, :, :n], rtol=2e-5, atol=1e-6)


def picked(weights, number, pair):
    """Return the weights of one (layer, head): by key of a mapping, else by the order of asking."""
    return weights[pair] if hasattr(weights, "keys") else weights[number]


@pytest.mark.parametrize("pairs", [[(0, 1)], [(2, 3), (0, 0), (2, 0)]])
def test_weights_of_chosen_heads(rng, pairs):
    layer, _ = make(rng, 3)
    x = normals(rng, 2, 17, 32)
    answer = layer(x, need_weights=pairs)
    every = layer(x, need_weights=True).weights
    assert_same_bits(answer[0], layer(x))
    assert len(answer.weights) == len(pairs)
    for number, (at, head) in enumerate(pairs):
        assert_same_bits(picked(answer.weights, number, (at, head)), every[at][:, head])


@pytest.mark.parametrize("pairs", [[(3, 0)], [(0, 4)], [(0, 1, 2)], [5], "all"])
def test_heads_that_are_not_there(rng, pairs):
    layer, _ = make(rng, 3)
    with pytest.raises((ValueError, TypeError), match="need_weights"):
        layer(normals(rng, 2, 17, 32), need_weights=pairs)


def test_head_mask(rng):
    layer, reference = make(rng, 3)
    x = normals(rng, 2, 17, 32)
    mask = np.array([[1, 1, 0, 1], [0.5, 1, 1, 2], [0, 0, 0, 0]])
    assert rms_relative(layer(x, head_mask=mask), reference(x, head_mask=mask)) <= 1e-6
    assert_same_bits(layer(x, head_mask=np.ones((3, 4))), layer(x))
    with pytest.raises(ValueError, match="head_mask"):
        layer(x, head_mask=np.ones((2, 4)))
    with pytest.raises(ValueError, match="head_mask"):
        layer(x, head_mask=np.ones((3, 5)))


def test_without_batch(rng):
    layer, _ = make(rng)
    x = normals(rng, 9, 32)
    assert_same_bits(layer(x), layer(x[None])[0])
    answer = layer(x, need_weights=True, output_hidden_states=True)
    assert answer.weights[0].shape == (4, 9, 9)
    assert answer.hidden_states[0].shape == (9, 32)


def test_a_stack_is_its_layers(rng):
    stack, _ = make(rng, 2)
    x = normals(rng, 2, 17, 32)
    out = x
    for number in range(2):
        layer = hw.EncoderLayer(32, 4, 48)
        prefix = f"layers.{number}."
        layer.load_state_dict(
            {k.removeprefix(prefix): v for k, v in stack.state_dict().items() if prefix in k}
        )
        out = layer(out)
    assert_same_bits(stack(x), out)


# --- dropout, refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_layers", [0, 2])
def test_dropout_in_training_only(rng, threads, num_layers):
    layer, _ = make(rng, num_layers, dropout=0.2)
    x = normals(rng, 4, 33, 32)
    assert_same_bits(layer(x), layer(x, rng=1))
    out = layer(x, training=True, rng=1)
    assert not np.array_equal(out, layer(x))
    assert not np.array_equal(out, layer(x, training=True, rng=2))
    for n in (1, 2, 3):
        threads(n)
        assert_same_bits(layer(x, training=True, rng=1), out)
    one, other = np.random.default_rng(5), np.random.default_rng(5)
    layer(x, training=True, rng=one)
    layer(x[:1, :3], training=True, rng=other)
    assert one.bit_generator.state == other.bit_generator.state
    assert one.bit_generator.state != np.random.default_rng(5).bit_generator.state


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"activation": "swish2"}, "activation"),
        ({"norm": "batch"}, "norm"),
        ({"ffn": "moe"}, "ffn"),
        ({"layer_norm_eps": -1.0}, "layer_norm_eps"),
        ({"num_kv_heads": 3}, "num_kv_heads"),
        ({"d_ff": 0}, "d_ff"),
        ({"dropout": 2.0}, "dropout"),
    ],
)
def test_arguments_that_are_refused(options, named):
    for make_layer in (hw.EncoderLayer, lambda *a, **k: hw.Encoder(2, *a, **k)):
        with pytest.raises(ValueError, match=named):
            make_layer(32, 4, **options)


def test_arguments_of_the_stack_that_are_refused():
    with pytest.raises(ValueError, match="positions"):
        hw.Encoder(2, 32, 4, positions="learned")
    with pytest.raises(ValueError, match="num_layers"):
        hw.Encoder(-1, 32, 4)
    with pytest.raises(ValueError, match="positions"):
        hw.Encoder(1, 9, 3, head_dim=3, positions="rotary")  # pairs need an even head width
    with pytest.raises(TypeError):
        hw.Encoder(2, 32, 4, no_such_option=1)


def test_inputs_that_are_refused(rng):
    layer, _ = make(rng)
    x = normals(rng, 2, 5, 32)
    for bad in (x[..., :31], x[0, 0], x[None]):
        with pytest.raises(ValueError, match="x"):
            layer(bad)
    with pytest.raises(ValueError, match="lengths"):
        layer(x, lengths=np.array([5, 6]))
    with pytest.raises(ValueError, match="key_mask"):
        layer(x, key_mask=np.ones((2, 4), dtype=bool))
    with pytest.raises(TypeError, match="key_mask"):
        layer(x, src_key_padding_mask=np.zeros((2, 5), dtype=bool))
    with pytest.raises(TypeError, match="key_mask"):
        layer(x, key_padding_mask=np.zeros((2, 5), dtype=bool))
    with pytest.raises(ValueError, match=r"\(H, L, S\)"):
        layer(normals(rng, 3, 5, 32), attn_mask=np.ones((3, 5, 5), dtype=bool))


# --- properties ---------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(1, 80), min_size=1, max_size=5), st.integers(0, 2**32 - 1), st.sampled_from([0, 2])
)
@settings(max_examples=30)
def test_property_together_equals_one_by_one(lengths, seed, num_layers):
    rng = np.random.default_rng(seed)
    dtype = rng.choice(["float32", "float64"])
    layer, _ = make(rng, num_layers, dtype=dtype, norm_first=bool(rng.integers(2)))
    xs = [normals(rng, n, 32, dtype=dtype) for n in lengths]
    want = [layer(x) for x in xs]
    for got, one in zip(layer(xs), want, strict=True):
        assert_same_bits(got, one)
    order = rng.permutation(len(xs))
    for i, got in zip(order, layer([xs[i] for i in order]), strict=True):
        assert_same_bits(got, want[i])
    for left in (False, True):
        x, real = pad(xs, fill=np.nan, left=left)
        assert_same_bits(layer(x, key_mask=real)[real], np.concatenate(want))
