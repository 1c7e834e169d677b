"""Gradients of attention layers and encoders: torch's, differences, what must leave no trace.

torch's values come from golden/make_torch_gradients.py; its masks have the opposite polarity (see
test_torch_golden).
"""

import numpy as np
import pytest
from layers import pad, randomize
from test_torch_golden import ENCODER_CASES, MHA_CASES, batch_first, encoder_call, golden, mha_call, state_of

import headwise as hw


def relative(got, want):
    """Return the norm of the error over that of the truth."""
    return np.linalg.norm(np.float64(got) - want) / max(np.linalg.norm(want), 1e-300)


def close_gradients(got, arrays, dtype, scale):
    """Compare gradients of parameters; what is 0 in truth (biases of keys) is held to `scale`."""
    bound = 1e-11 if dtype == "float64" else 1e-5
    want = {k.removeprefix("grad/"): v for k, v in arrays.items() if k.startswith("grad/")}
    assert list(got) == list(want)
    for name, truth in want.items():
        assert got[name].dtype == dtype
        error = np.linalg.norm(got[name] - truth)
        assert error <= bound * max(np.linalg.norm(truth), scale), name


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", MHA_CASES)
def test_mha_like_torch(name, dtype):
    arrays, options, inputs, masks = mha_call(name)
    truth = golden("torch_mha_gradients.npz")[1][name]
    layer = hw.MultiHeadAttention(
        options["embed_dim"],
        options["num_heads"],
        key_dim=options.get("kdim"),
        value_dim=options.get("vdim"),
        bias=options.get("bias", True),
        dtype=dtype,
    )
    layer.load_state_dict(state_of(arrays))
    out, pullback = layer.vjp(*inputs, **masks)
    np.testing.assert_array_equal(out, layer(*inputs, **masks))
    d_inputs, grads = pullback(batch_first(truth["d_out"], options))
    d_inputs = (d_inputs,) if len(inputs) == 1 else d_inputs
    names = ["query", "key", "value"][: len(inputs)]
    for got, what in zip(d_inputs, names, strict=True):
        want = batch_first(truth[f"d_{what}"], options)
        assert got.dtype == dtype
        assert got.shape == want.shape
        assert relative(got, want) <= (1e-11 if dtype == "float64" else 1e-5)
    close_gradients(grads, truth, dtype, np.linalg.norm(truth["d_out"]))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ENCODER_CASES)
def test_encoder_like_torch(name, dtype):
    arrays, _, arguments, x, masks = encoder_call(name)
    truth = golden("torch_encoder_gradients.npz")[1][name]
    layer = (hw.Encoder if "num_layers" in arguments else hw.EncoderLayer)(**arguments, dtype=dtype)
    layer.load_state_dict(state_of(arrays))
    out, pullback = layer.vjp(x, **masks)
    np.testing.assert_array_equal(out, layer(x, **masks))
    d_x, grads = pullback(truth["d_out"])
    assert d_x.dtype == dtype
    assert relative(d_x, truth["d_x"]) <= (1e-11 if dtype == "float64" else 1e-5)
    close_gradients(grads, truth, dtype, np.linalg.norm(truth["d_out"]))
    assert not d_x[~masks["key_mask"]].any() if masks["key_mask"] is not None else True


LAYERS = {
    "plain": {},
    "pre_norm": dict(norm_first=True, activation="gelu"),
    "gated_rms": dict(ffn="glu", norm="rms", activation="silu", bias=False, norm_first=True),
    "gated_post": dict(ffn="glu", activation="gelu_tanh", num_kv_heads=2),
    "dropout": dict(dropout=0.4, activation="gelu"),
    "dropout_pre": dict(dropout=0.4, activation="silu", norm_first=True),
}


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("positions", [None, "sinusoidal", "rotary", "alibi"])
def test_encoder_by_differences(options, positions):
    rng = np.random.default_rng(5)
    stack = hw.Encoder(
        2, 8, 4, 10, positions=positions, final_norm=True, dtype="float64", **{"activation": "gelu"} | options
    )
    randomize(stack, rng)
    keywords = (
        {"training": True, "rng": 3} if options.get("dropout") else {"is_causal": True, "window": (2, 0)}
    )
    hw.gradcheck(stack.vjp, [rng.standard_normal((2, 5, 8))], lengths=[5, 3], **keywords)


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"softcap": 0.7, "scale": 1.3},
        {"is_causal": True, "causal_offset": "bottom_right"},
        {"window": (2, 1), "key_lengths": [6, 3]},
        {"head_mask": np.array([0.5, 0.0, 2.0, 1.0])},
        {"training": True, "rng": 7},
        {"attn_mask": np.random.default_rng(1).standard_normal((2, 4, 4, 6))},
    ],
    ids=["plain", "cap", "causal", "window", "head_mask", "dropout", "bias"],
)
@pytest.mark.parametrize("given", [2, 3])
def test_cross_attention_by_differences(keywords, given):
    rng = np.random.default_rng(2)
    layer = hw.MultiHeadAttention(
        8, 4, num_kv_heads=2, head_dim=3, value_dim=5 if given == 3 else None, dropout=0.3, dtype="float64"
    )
    randomize(layer, rng)
    shapes = [(2, 4, 8), (2, 6, 8), (2, 6, 5)][:given]
    hw.gradcheck(layer.vjp, [rng.standard_normal(shape) for shape in shapes], **keywords)


@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (2, 65), (1, 129)])
@pytest.mark.parametrize("width", [32, 80, 100])
def test_layer_by_differences(shape, width):
    rng = np.random.default_rng(shape[1] + width)
    layer = randomize(hw.EncoderLayer(width, 4, 24, activation="silu", dtype="float64"), rng)
    hw.gradcheck(layer.vjp, [rng.standard_normal((*shape, width))])


@pytest.mark.once
def test_a_long_layer_padded_on_the_left_by_differences():
    rng = np.random.default_rng(11)
    layer = randomize(hw.EncoderLayer(100, 5, 129, activation="gelu", num_kv_heads=1, dtype="float64"), rng)
    tokens = np.arange(1000) >= np.array([[0], [333]])
    hw.gradcheck(layer.vjp, [rng.standard_normal((2, 1000, 100))], key_mask=tokens, window=(64, 64))
    query, key, value = (rng.standard_normal((4, 1000, 64)) for _ in range(3))
    attention = hw.vjp.scaled_dot_product_attention
    hw.gradcheck(attention, [query, key[:2], value[:2]], is_causal=True, window=(40, 0))


def test_gradient_of_head_factors():
    rng = np.random.default_rng(4)
    stack = randomize(hw.Encoder(2, 8, 4, 12, activation="silu", dtype="float64"), rng)
    x, d_out = rng.standard_normal((2, 7, 8)), rng.standard_normal((2, 7, 8))
    factors = rng.uniform(0.2, 1.5, (2, 4))
    _, pullback = stack.vjp(x, head_mask=factors)
    got = pullback(d_out)[1]["head_mask"]
    step = 1e-5
    for place in np.ndindex(2, 4):
        moved = [factors.copy(), factors.copy()]
        moved[0][place] += step
        moved[1][place] -= step
        high, low = (stack(x, head_mask=m) for m in moved)
        assert abs(got[place] - ((high - low) * d_out).sum() / (2 * step)) <= 1e-7 * np.linalg.norm(got)
    _, pullback = hw.EncoderLayer(8, 4, 12, rng=0).vjp(x, head_mask=factors[0])
    assert pullback(d_out)[1]["head_mask"].shape == (4,)


@pytest.mark.parametrize("positions", [None, "rotary"])
def test_ragged_lists_have_the_bits_of_padding(positions):
    rng = np.random.default_rng(6)
    stack = randomize(hw.Encoder(2, 16, 4, 24, positions=positions), rng)
    xs = [rng.standard_normal((n, 16), dtype=np.float32) for n in (5, 70, 1)]
    ds = [rng.standard_normal(x.shape, dtype=np.float32) for x in xs]
    out, pullback = stack.vjp(xs)
    d_xs, grads = pullback(ds)
    for left in (False, True):
        wide, real = pad(xs, fill=np.nan, left=left)
        d_wide, _ = pad(ds, fill=np.nan, left=left)
        padded, back = stack.vjp(wide, key_mask=real)
        np.testing.assert_array_equal(padded[real], np.concatenate(out))
        d_wide_x, of_padded = back(d_wide)
        np.testing.assert_array_equal(d_wide_x[real], np.concatenate(d_xs))
        assert not d_wide_x[~real].any()
        assert list(grads) == list(of_padded)
        for name, gradient in grads.items():
            np.testing.assert_array_equal(gradient, of_padded[name], err_msg=name)


def test_what_is_blocked_leaves_no_trace():
    rng = np.random.default_rng(8)
    layer = randomize(hw.MultiHeadAttention(16, 4), rng)
    query, key = rng.standard_normal((2, 9, 16)), rng.standard_normal((2, 12, 16))
    d_out = rng.standard_normal((2, 9, 16))
    mask = np.arange(12) < np.array([[12], [7]])
    clean, grads = layer.vjp(query, key, key_mask=mask)[1](d_out)
    key[~mask] = np.nan
    (d_query, d_key), poisoned = layer.vjp(query, key, key_mask=mask)[1](d_out)
    np.testing.assert_array_equal(d_query, clean[0])
    np.testing.assert_array_equal(d_key, clean[1])
    assert not d_key[~mask].any()
    for name, gradient in grads.items():
        np.testing.assert_array_equal(gradient, poisoned[name], err_msg=name)


def test_threads_and_repetition_change_nothing():
    rng = np.random.default_rng(9)
    stack = randomize(hw.Encoder(2, 64, 4, 96, dropout=0.2, norm_first=True), rng)
    x, d_out = (rng.standard_normal((5, 90, 64), dtype=np.float32) for _ in range(2))
    results = []
    for threads in (1, 2, 3):
        with hw.num_threads(threads):
            out, pullback = stack.vjp(x, training=True, rng=1)
            results += [(out, *pullback(d_out)), (out, *pullback(d_out))]
    for out, d_x, grads in results[1:]:
        np.testing.assert_array_equal(out, results[0][0])
        np.testing.assert_array_equal(d_x, results[0][1])
        for name, gradient in grads.items():
            np.testing.assert_array_equal(gradient, results[0][2][name], err_msg=name)
    np.testing.assert_array_equal(results[0][0], stack(x, training=True, rng=1))


def test_a_pullback_keeps_the_parameters_of_its_forward_pass():
    rng = np.random.default_rng(3)
    layer = hw.EncoderLayer(8, 2, 12, rng=0)
    x = rng.standard_normal((4, 8))
    _, pullback = layer.vjp(x)
    before, _ = pullback(x)
    layer.load_state_dict({k: v + 1 for k, v in layer.state_dict().items()})
    np.testing.assert_array_equal(pullback(x)[0], before)


def test_no_sequence_at_all():
    stack = hw.Encoder(1, 8, 2, 12, rng=0)
    out, pullback = stack.vjp([])
    d_x, grads = pullback([])
    assert out == d_x == []
    assert list(grads) == list(stack.state_dict())
    assert not any(g.any() for g in grads.values())


def test_errors_name_what_came():
    stack = hw.Encoder(1, 8, 2, 12, rng=0)
    mha = hw.MultiHeadAttention(8, 2, rng=0)
    x = np.zeros((2, 3, 8))
    _, pullback = stack.vjp(x)
    with pytest.raises(ValueError, match=r"d_out: expected shape \(2, 3, 8\).*got shape \(3, 8\)"):
        pullback(x[0])
    with pytest.raises(ValueError, match="d_out"):
        pullback([x[0], x[1]])
    with pytest.raises(TypeError, match="need_weights"):
        stack.vjp(x, need_weights=True)
    with pytest.raises(TypeError, match="value: expected key"):
        mha.vjp(x, value=x)
    lengths = np.array([3, 2])
    _, pullback = stack.vjp(x, lengths=lengths)
    lengths[1] = 1
    with pytest.raises(ValueError, match="changed between"):
        pullback(x)
    assert repr(pullback) == "<pullback of Encoder>"
