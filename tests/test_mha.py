"""MultiHeadAttention: values, masks, weights, ragged lists, refusals, dropout."""

import numpy as np
import pytest
from compare import assert_same_bits, normals, rms_relative
from layers import pad, randomize
from reference_layers import mha_reference

import headwise as hw

# two projections stand around attention: each adds a rounding like attention's own
BARS = {"float32": 6e-7, "float64": 3e-15}
KINDS = {
    "packed": {},
    "no bias": {"bias": False},
    "grouped": {"num_kv_heads": 2},
    "one key head": {"num_kv_heads": 1},
    "head width": {"head_dim": 20},
    "grouped with head width": {"num_kv_heads": 2, "head_dim": 12, "bias": False},
    "widths": {"key_dim": 40, "value_dim": 17},
    "value width": {"value_dim": 17},
}


def make(rng, kind="packed", d_model=64, num_heads=4, dtype="float32", **more):
    """Return a layer of random parameters and the keywords of its reference."""
    layer = hw.MultiHeadAttention(d_model, num_heads, dtype=dtype, **KINDS[kind], **more)
    keywords = {"num_heads": num_heads, "num_kv_heads": KINDS[kind].get("num_kv_heads")}
    return randomize(layer, rng), keywords


def inputs_of(rng, kind, B, L, S, dtype, d_model=64):
    """Return query, key and value of the widths of a kind."""
    widths = [KINDS[kind].get(name, d_model) for name in ("key_dim", "value_dim")]
    return [normals(rng, B, n, d, dtype=dtype) for n, d in zip((L, S, S), (d_model, *widths), strict=True)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_cross_attention(rng, kind, dtype):
    layer, keywords = make(rng, kind, dtype=dtype)
    inputs = inputs_of(rng, kind, 2, 17, 65, dtype)
    want, want_weights = mha_reference(layer.state_dict(), *inputs, need_weights=True, **keywords)
    out, weights = layer(*inputs, need_weights=True)
    assert out.dtype == weights.dtype == dtype
    assert weights.shape == (2, 4, 17, 65)
    assert rms_relative(out, want) <= BARS[dtype]
    assert rms_relative(weights, want_weights) <= 3 * BARS[dtype]
    assert_same_bits(layer(*inputs), out)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["packed", "no bias", "grouped", "one key head", "head width"])
def test_self_attention(rng, kind, dtype):
    layer, keywords = make(rng, kind, dtype=dtype)
    x = normals(rng, 3, 33, 64, dtype=dtype)
    assert rms_relative(layer(x), mha_reference(layer.state_dict(), x, **keywords)) <= BARS[dtype]


@pytest.mark.parametrize("L", [1, 15, 16, 17, 63, 64, 65, 129, 1000])
@pytest.mark.parametrize(("d_model", "num_heads"), [(100, 5), (3, 1), (64, 64), (96, 3)])
def test_lengths_and_widths(rng, L, d_model, num_heads):
    layer, keywords = make(rng, d_model=d_model, num_heads=num_heads)
    x = normals(rng, 1, L, d_model)
    assert rms_relative(layer(x), mha_reference(layer.state_dict(), x, **keywords)) <= 6e-7


MASKS = {
    "causal": {"is_causal": True},
    "causal with offset": {"is_causal": True, "causal_offset": 3},
    "bottom right": {"is_causal": True, "causal_offset": "bottom_right"},
    "window": {"window": (3, 2), "causal_offset": 1},
    "softcap": {"softcap": 0.8},
    "scale": {"scale": 0.5},
    "bool": {"attn_mask": np.arange(17 * 33).reshape(17, 33) % 3 > 0},
    "float": {"attn_mask": np.where(np.arange(17 * 33).reshape(17, 33) % 3 > 0, 0.7, -np.inf)},
    "per head": {"attn_mask": np.arange(4 * 17 * 33).reshape(4, 17, 33) % 5 > 0},
    "per batch and head": {"attn_mask": np.arange(8 * 17 * 33).reshape(2, 4, 17, 33) % 5 > 0},
    "keys": {"key_mask": np.arange(66).reshape(2, 33) % 3 > 0},
    "lengths": {"key_lengths": np.array([33, 5])},
    "all at once": {
        "attn_mask": np.arange(17 * 33).reshape(17, 33) % 3 > 0,
        "key_mask": np.arange(66).reshape(2, 33) % 4 > 0,
        "key_lengths": np.array([30, 12]),
        "is_causal": True,
        "causal_offset": 5,
        "window": (20, None),
        "softcap": 2.0,
    },
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_of_cross_attention(rng, name):
    layer, keywords = make(rng)
    inputs = inputs_of(rng, "packed", 2, 17, 33, "float32")
    out = layer(*inputs, **MASKS[name])
    assert rms_relative(out, mha_reference(layer.state_dict(), *inputs, **MASKS[name], **keywords)) <= 6e-7


def test_cross_attention_masks_name_keys_only(rng):
    layer, _ = make(rng)
    q, k, v = inputs_of(rng, "packed", 2, 9, 9, "float32")
    out = layer(q, k, v, key_mask=np.arange(18).reshape(2, 9) % 2 > 0)
    assert out.any(axis=-1).all()


def test_value_defaults_to_key(rng):
    layer, _ = make(rng)
    q, k, _ = inputs_of(rng, "packed", 2, 5, 9, "float32")
    assert_same_bits(layer(q, k), layer(q, k, k))


def test_value_without_key_is_refused(rng):
    layer, _ = make(rng)
    x = normals(rng, 2, 5, 64)
    with pytest.raises((TypeError, ValueError), match="key"):
        layer(x, value=x)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("fill", [0.0, np.nan])
def test_padded_queries_of_self_attention_are_zero(rng, fill, dtype):
    layer, keywords = make(rng, dtype=dtype)
    xs = [normals(rng, n, 64, dtype=dtype) for n in (20, 7, 1)]
    for left in (False, True):
        x, real = pad(xs, fill=fill, left=left)
        out = layer(x, key_mask=real)
        assert_same_bits(out[~real], np.zeros_like(out[~real]))
        want = mha_reference(layer.state_dict(), np.where(real[..., None], x, 0), key_mask=real, **keywords)
        assert rms_relative(out[real], want[real]) <= BARS[dtype]
    x, real = pad(xs, fill=fill)
    assert_same_bits(layer(x, key_lengths=np.array([20, 7, 1])), layer(x, key_mask=real))


def test_a_real_query_without_keys_gets_the_bias(rng):
    layer, _ = make(rng)
    x = normals(rng, 2, 5, 64)
    mask = np.ones((5, 5), dtype=bool)
    mask[3] = False
    out, weights = layer(x, attn_mask=mask, need_weights=True)
    assert_same_bits(out[:, 3], np.stack([layer.state_dict()["out_proj.bias"]] * 2))
    assert not weights[:, :, 3].any()
    plain, _ = make(rng, "no bias")
    assert_same_bits(plain(x, attn_mask=mask)[:, 3], np.zeros((2, 64), dtype=np.float32))


def test_without_batch(rng):
    layer, _ = make(rng)
    x, y = normals(rng, 9, 64), normals(rng, 5, 64)
    assert_same_bits(layer(x), layer(x[None])[0])
    out, weights = layer(x, y, need_weights=True, key_mask=np.arange(5) < 4)
    assert out.shape == (9, 64)
    assert weights.shape == (4, 9, 5)
    _, average = layer(x, y, need_weights=True, average_weights=True)
    assert average.shape == (9, 5)


def test_weights(rng):
    layer, keywords = make(rng)
    x = normals(rng, 2, 17, 64)
    out, weights = layer(x, need_weights=True)
    again, average = layer(x, need_weights=True, average_weights=True)
    assert_same_bits(out, again)
    assert average.shape == (2, 17, 17)
    np.testing.assert_allclose(average, weights.mean(axis=1), rtol=1e-6, atol=1e-8)
    want = mha_reference(layer.state_dict(), x, need_weights=True, **keywords)[1]
    np.testing.assert_allclose(weights, want, rtol=1e-5, atol=1e-7)


def test_head_mask(rng):
    layer, keywords = make(rng)
    x = normals(rng, 2, 17, 64)
    assert_same_bits(layer(x, head_mask=np.ones(4)), layer(x))
    for mask in ([1, 0, 1, 1], [0.5, 2.0, 0.0, -1.0], [True, False, False, True]):
        want = mha_reference(layer.state_dict(), x, head_mask=np.asarray(mask, dtype=float), **keywords)
        assert rms_relative(layer(x, head_mask=np.asarray(mask)), want) <= 6e-7
    zero = layer(x, head_mask=np.zeros(4))
    np.testing.assert_array_equal(zero, np.broadcast_to(layer.state_dict()["out_proj.bias"], zero.shape))
    with pytest.raises(ValueError, match="head_mask"):
        layer(x, head_mask=np.ones(3))


# --- ragged lists -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["packed", "grouped"])
def test_a_list_is_a_ragged_batch(rng, kind, dtype):
    layer, _ = make(rng, kind, dtype=dtype)
    xs = [normals(rng, n, 64, dtype=dtype) for n in (5, 1, 65, 17, 130)]
    outs = layer(xs)
    assert type(outs) is list
    for x, out in zip(xs, outs, strict=True):
        assert_same_bits(out, layer(x))
    outs, maps = layer(xs, need_weights=True, is_causal=True)
    assert type(maps) is list
    for x, out, weights in zip(xs, outs, maps, strict=True):
        one, one_weights = layer(x, need_weights=True, is_causal=True)
        assert_same_bits(out, one)
        assert_same_bits(weights, one_weights)
    x, real = pad(xs, fill=np.nan)
    assert_same_bits(layer(x, key_mask=real)[real], np.concatenate(layer(xs)))


def test_lists_of_cross_attention(rng):
    layer, _ = make(rng)
    qs = [normals(rng, n, 64) for n in (5, 17)]
    ks = [normals(rng, n, 64) for n in (9, 2)]
    vs = [normals(rng, n, 64) for n in (9, 2)]
    outs, maps = layer(qs, ks, vs, need_weights=True)
    assert [w.shape for w in maps] == [(4, 5, 9), (4, 17, 2)]
    for out, q, k, v in zip(outs, qs, ks, vs, strict=True):
        assert_same_bits(out, layer(q, k, v))


def test_lists_at_the_edge(rng):
    layer, _ = make(rng)
    x = normals(rng, 5, 64)
    assert layer([]) == []
    for mixed in [([x], x[None]), (x[None], [x]), ([x], [x], x[None])]:
        with pytest.raises(TypeError, match="list"):
            layer(*mixed)
    with pytest.raises(ValueError, match="key"):
        layer([x, x], [x])
    assert_same_bits(layer((x, x)), layer(np.stack([x, x])))  # a tuple is an array
    assert_same_bits(layer([x.tolist(), x.tolist()]), layer(np.stack([x, x])))  # so is a list of lists
    empty, one = layer([x[:0], x])
    assert empty.shape == (0, 64)
    assert_same_bits(one, layer(x))


# --- dtypes, refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("given", ["float16", "float32", "float64", "int32", "bool"])
def test_layers_answer_in_their_dtype(rng, given, dtype):
    layer, _ = make(rng, dtype=dtype)
    x = (normals(rng, 2, 5, 64) * 3).astype(given)
    out, weights = layer(x, need_weights=True)
    assert out.dtype == weights.dtype == dtype
    assert_same_bits(out, layer(x.astype(dtype)))


def test_dtype_is_a_name_or_a_numpy_type():
    for dtype in ("float64", np.float64, np.dtype("float64")):
        assert hw.MultiHeadAttention(8, 2, dtype=dtype)(np.ones((1, 2, 8))).dtype == np.float64


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"d_model": 10, "num_heads": 4}, "num_heads"),
        ({"d_model": 8, "num_heads": 0}, "num_heads"),
        ({"d_model": 0, "num_heads": 1}, "d_model"),
        ({"d_model": 8, "num_heads": 4, "num_kv_heads": 3}, "num_kv_heads"),
        ({"d_model": 8, "num_heads": 4, "num_kv_heads": 0}, "num_kv_heads"),
        ({"d_model": 8, "num_heads": 4, "head_dim": 0}, "head_dim"),
        ({"d_model": 8, "num_heads": 4, "key_dim": 0}, "key_dim"),
        ({"d_model": 8, "num_heads": 4, "dropout": 1.5}, "dropout"),
        ({"d_model": 8, "num_heads": 4, "dropout": -0.5}, "dropout"),
    ],
)
def test_arguments_that_are_refused(arguments, named):
    with pytest.raises(ValueError, match=named):
        hw.MultiHeadAttention(**arguments)


@pytest.mark.parametrize("dtype", ["float16", "int32", "complex64", "no such thing"])
def test_dtypes_that_are_refused(dtype):
    with pytest.raises((TypeError, ValueError), match="dtype"):
        hw.MultiHeadAttention(8, 2, dtype=dtype)


def test_inputs_that_are_refused(rng):
    layer, _ = make(rng)
    x = normals(rng, 2, 5, 64)
    for bad in (x[..., :63], x[0, 0], x[None]):
        with pytest.raises(ValueError, match="query"):
            layer(bad)
    with pytest.raises(ValueError, match="key"):
        layer(x, x[..., :60])
    with pytest.raises(ValueError, match="value"):
        layer(x, x, x[:, :4])
    with pytest.raises(ValueError, match="key"):
        layer(x, normals(rng, 3, 5, 64))
    with pytest.raises(ValueError, match="key_mask"):
        layer(x, key_mask=np.ones((2, 4), dtype=bool))
    with pytest.raises(hw.DTypeError, match="query"):
        layer(x.astype(complex))


def test_a_mask_of_three_axes_is_per_head_and_the_error_says_so(rng):
    layer, _ = make(rng)
    x = normals(rng, 3, 5, 64)
    with pytest.raises(ValueError, match=r"\(H, L, S\)"):
        layer(x, attn_mask=np.ones((3, 5, 5), dtype=bool))


def test_torchs_words_are_refused_with_what_to_pass(rng):
    layer, _ = make(rng)
    x = normals(rng, 3, 5, 64)
    with pytest.raises(TypeError, match=r"key_mask"):
        layer(x, key_padding_mask=np.zeros((3, 5), dtype=bool))
    with pytest.raises(TypeError, match="bool"):
        layer(x, attn_mask=np.ones((5, 5), dtype=int))


# --- dropout ------------------------------------------------------------------------------------------------


def test_dropout_in_training_only(rng, threads):
    layer, _ = make(rng, dropout=0.3)
    same, _ = make(rng)
    same.load_state_dict(layer.state_dict())
    x = normals(rng, 4, 65, 64)
    assert_same_bits(layer(x), same(x))
    assert_same_bits(layer(x, rng=1), same(x))
    out = layer(x, training=True, rng=1)
    assert not np.array_equal(out, layer(x))
    assert not np.array_equal(out, layer(x, training=True, rng=2))
    for n in (1, 2, 3):
        threads(n)
        assert_same_bits(layer(x, training=True, rng=1), out)
    assert_same_bits(same(x, training=True, rng=1), same(x))
    weights = layer(x, training=True, rng=1, need_weights=True)[1]
    assert_same_bits(weights, layer(x, need_weights=True)[1])  # before dropout


def test_training_advances_the_generator_by_one_draw(rng):
    layer, _ = make(rng, dropout=0.3)
    one, other = np.random.default_rng(5), np.random.default_rng(5)
    layer(normals(rng, 2, 9, 64), training=True, rng=one)
    layer(normals(rng, 1, 3, 64), training=True, rng=other)
    assert one.bit_generator.state == other.bit_generator.state
    assert one.bit_generator.state != np.random.default_rng(5).bit_generator.state
