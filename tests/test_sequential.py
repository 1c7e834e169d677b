"""Sequential: names, keywords, seeds, state, forms, and gradients that go through all layers."""

import copy
import pickle

import numpy as np
import pytest
from compare import assert_same_bits, normals
from differences import check_vjp
from layers import randomize

import headwise as hw

D = 8


def text_model(**options):
    """Return a model of token ids, with an encoder inside."""
    return hw.Sequential(
        embed=hw.Embedding(11, D, padding_idx=0, rng=1, **options),
        encoder=hw.Encoder(2, D, 2, 12, activation="gelu", rng=2, **options),
        norm=hw.LayerNorm(D, **options),
        head=hw.Linear(D, 3, rng=3, **options),
    )


def row_model(dropout=0.0, **options):
    """Return a nested model of rows."""
    return hw.Sequential(
        hw.Linear(5, D, rng=1, **options),
        hw.Sequential(
            hw.RMSNorm(D, **options),
            part=hw.FeedForward(D, 9, activation="gelu", dropout=dropout, rng=2, **options),
        ),
        hw.FeedForward(D, 7, activation="silu", ffn="glu", dropout=dropout, rng=3, **options),
        hw.LayerNorm(D, **options),
    )


def attention_model(**options):
    """Return a model with attention inside."""
    return hw.Sequential(
        hw.LayerNorm(D, **options),
        hw.MultiHeadAttention(D, 2, rng=1, **options),
        hw.Linear(D, 3, rng=2, **options),
    )


MODELS = {"text": text_model, "rows": row_model, "attention": attention_model}


def input_of(name, rng, dtype="float32"):
    """Return an input of a model, two sequences of six."""
    if name == "text":
        return rng.integers(0, 11, (2, 6))
    return normals(rng, 2, 6, 5 if name == "rows" else D, dtype=dtype)


@pytest.fixture(params=MODELS)
def name(request):
    """Return the name of each model in turn."""
    return request.param


def test_layers_follow_one_another(rng, name):
    model, x = randomize(MODELS[name](), rng), input_of(name, rng)
    want = x
    for layer in model:
        want = layer(want)
    assert_same_bits(model(x), want)
    listed = model(list(x))
    assert isinstance(listed, list)
    for one, other in zip(listed, want, strict=True):
        assert_same_bits(one, other)
    assert model([]) == []


def test_names(rng):
    model = row_model()
    assert model.names == ("0", "1", "2", "3")
    state = model.state_dict()
    assert list(state) == [
        "0.weight",
        "0.bias",
        "1.0.weight",
        *(f"1.part.linear{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")),
        *(f"2.linear{i}.{kind}" for i in ("1", "_gate", "2") for kind in ("weight", "bias")),
        "3.weight",
        "3.bias",
    ]
    assert model.num_parameters == sum(array.size for array in state.values())
    assert text_model().names == ("embed", "encoder", "norm", "head")
    mixed = hw.Sequential(hw.Linear(5, 6), hw.LayerNorm(6), head=hw.Linear(6, 2))
    assert mixed.names == ("0", "1", "head")


def test_indexing(rng):
    model, x = text_model(), input_of("text", rng)
    assert len(model) == 4
    assert [type(layer) for layer in model] == [hw.Embedding, hw.Encoder, hw.LayerNorm, hw.Linear]
    assert model[0] is model["embed"] is model[-4] is model[np.int64(0)]
    assert model[-1] is model["head"]
    part = model[:2]
    assert isinstance(part, hw.Sequential)
    assert part.names == ("embed", "encoder")
    assert_same_bits(model[2:](part(x)), model(x))
    with pytest.raises(IndexError):
        model[4]
    with pytest.raises(KeyError, match="expected one of embed, encoder, norm, head"):
        model["tail"]


def test_what_is_no_layer_is_refused():
    for wrong in (3, None, "relu", np.tanh, hw.linear, hw.Linear, np.ones(3)):
        with pytest.raises(TypeError, match="layer '1'"):
            hw.Sequential(hw.Linear(2, 2), wrong)
    with pytest.raises(ValueError, match="at least one"):
        hw.Sequential()
    layer = hw.Linear(2, 2)
    for wrong in ("", "a.b", "0"):
        with pytest.raises(ValueError, match="name of a layer"):
            hw.Sequential(layer, **{wrong: layer})


def test_functions_stand_among_the_layers(rng):
    model = hw.Sequential(hw.Linear(5, 9, rng=0), hw.gelu, hw.Linear(9, 4, rng=1), end=hw.softmax)
    x = normals(rng, 2, 6, 5)
    want = hw.softmax(model[2](hw.gelu(model[0](x))))
    assert_same_bits(model(x), want)
    for one, other in zip(model(list(x)), want, strict=True):
        assert_same_bits(one, other)
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert model[1] is hw.gelu
    assert (model.dtype, len(model)) == ("float32", 4)
    assert "\n  (1): gelu\n" in repr(model)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), model.to("float64").to("float32")):
        assert other[1] is hw.gelu
        assert_same_bits(other(x), want)
    with pytest.raises(ValueError, match=r"layer '1': state: unexpected weight"):
        model.load_state_dict(model.state_dict() | {"1.weight": np.ones(3)})


# --- keywords -----------------------------------------------------------------------------------------------


def test_keywords_go_to_the_layers_that_have_them(rng):
    model, x = randomize(text_model(), rng), input_of("text", rng)
    embed, encoder, norm, head = model
    for keywords in ({"lengths": [6, 4]}, {"key_mask": x > 3}, {"is_causal": True, "window": (2, 0)}):
        assert_same_bits(model(x, **keywords), head(norm(encoder(embed(x), **keywords))))
    attention = attention_model()
    outer = hw.Sequential(attention, hw.LayerNorm(3))
    y = input_of("attention", rng)
    want = attention[2](attention[1](attention[0](y), key_lengths=[6, 2]))
    assert_same_bits(outer(y, key_lengths=[6, 2]), outer[1](want))


def test_keywords_that_no_layer_has_are_refused(rng):
    model, x = row_model(), input_of("rows", rng)
    with pytest.raises(TypeError, match="unexpected keyword argument 'key_mask': no layer takes it"):
        model(x, key_mask=np.ones((2, 6), dtype=bool))
    with pytest.raises(TypeError, match="unexpected keyword argument 'lengths'"):
        model.vjp(x, lengths=[6, 6])
    with pytest.raises(TypeError, match="key_mask=~src_key_padding_mask"):
        text_model()(np.ones((2, 6), dtype=int), src_key_padding_mask=np.ones((2, 6), dtype=bool))


def test_several_results_only_at_the_end(rng):
    x = input_of("attention", rng)
    with pytest.raises(TypeError, match="layer '2': the layer before it gave 2 results"):
        attention_model()(x, need_weights=True)
    last = attention_model()[:2]
    out, weights = last(x, need_weights=True)
    assert_same_bits(out, last(x))
    assert weights.shape == (2, 2, 6, 6)


# --- seeds --------------------------------------------------------------------------------------------------


def test_one_seed_repeats_a_run(rng):
    model, x = row_model(dropout=0.5), input_of("rows", rng)
    out = model(x, training=True, rng=7)
    assert_same_bits(model(x, training=True, rng=7), out)
    assert_same_bits(model(list(x), training=True, rng=7)[0], out[0])
    assert not np.array_equal(model(x, training=True, rng=8), out)
    assert not np.array_equal(model(x, training=True), model(x, training=True))
    assert_same_bits(model.vjp(x, training=True, rng=7)[0], out)
    assert_same_bits(model(x, rng=7), model(x))


def test_layers_of_one_run_drop_different_numbers():
    twice = hw.FeedForward(64, 64, dropout=0.5, rng=0)
    eye = {f"linear{i}.weight": np.eye(64) for i in (1, 2)} | {
        f"linear{i}.bias": np.zeros(64) for i in (1, 2)
    }
    twice.load_state_dict(eye)
    kept = hw.Sequential(twice, twice)(np.ones((50, 64)), training=True, rng=0) > 0
    assert abs(kept.mean() - 0.25) < 0.05


def test_a_generator_is_advanced_by_one_draw(rng):
    model, x = row_model(dropout=0.5), input_of("rows", rng)
    used, other = np.random.default_rng(3), np.random.default_rng(3)
    out = model(x, training=True, rng=used)
    key = int(other.integers(0, 2**64 - 1, dtype=np.uint64, endpoint=True))
    assert used.bit_generator.state == other.bit_generator.state
    assert_same_bits(model(x, training=True, rng=key), out)
    hw.Sequential(hw.Linear(5, 5))(x, training=True, rng=used)
    other.integers(0, 2**64 - 1, dtype=np.uint64, endpoint=True)
    assert used.bit_generator.state == other.bit_generator.state
    model(x, rng=used)
    assert used.bit_generator.state == other.bit_generator.state
    for wrong, error in ((-1, ValueError), (2**64, ValueError), (0.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="rng"):
            model(x, training=True, rng=wrong)


# --- state --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_state_goes_round(rng, name, prefix):
    model, other = randomize(MODELS[name](), rng), MODELS[name]()
    x, state = input_of(name, rng), model.state_dict()
    assert not np.array_equal(other(x), model(x))
    other.load_state_dict({prefix + k: v for k, v in state.items()})
    assert_same_bits(other(x), model(x))
    wide = MODELS[name](dtype="float64")
    wide.load_state_dict(state)
    for k, array in wide.state_dict().items():
        assert array.dtype == np.float64
        np.testing.assert_array_equal(array, state[k])


def test_a_state_that_does_not_fit_changes_nothing(rng, name):
    model = randomize(MODELS[name](), rng)
    state, other = model.state_dict(), {k: np.ones_like(v) for k, v in model.state_dict().items()}
    last = list(state)[-1]
    layer = model.names[-1]
    for wrong, text in (
        ({k: v for k, v in other.items() if k != last}, f"layer '{layer}': state: missing"),
        (other | {last: np.ones((3, 3, 3))}, f"layer '{layer}': state: .*expected shape"),
        (other | {last: "a"}, f"layer '{layer}'"),
        (other | {"what.is": np.ones(1)}, r"unexpected what\.is"),
    ):
        with pytest.raises((ValueError, TypeError), match=text):
            model.load_state_dict(wrong)
        for k, array in model.state_dict().items():
            assert_same_bits(array, state[k])
    with pytest.raises(TypeError, match="state: expected a mapping"):
        model.load_state_dict(3)
    model.load_state_dict({last: other[last], "what.is": np.ones(1)}, strict=False)
    for k, array in model.state_dict().items():
        assert_same_bits(array, other[k] if k == last else state[k])


def test_copies_dtypes_and_texts(rng, name):
    model, x = randomize(MODELS[name](), rng), input_of(name, rng)
    out = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same_bits(other(x), out)
        assert repr(other) == repr(model)
        other.load_state_dict({k: np.zeros_like(v) for k, v in other.state_dict().items()})
        assert_same_bits(model(x), out)
    assert model.dtype == "float32"
    wide = model.to("float64")
    assert isinstance(wide, hw.Sequential)
    assert (wide.dtype, wide.names) == ("float64", model.names)
    assert wide(x).dtype == np.float64
    assert_same_bits(wide.to("float32")(x), out)
    text = repr(row_model())
    assert '\n  (1): Sequential(\n    (0): RMSNorm(8, dtype="float32")\n    (part): Feed' in text


# --- gradients ----------------------------------------------------------------------------------------------


def test_gradients_go_through_all_layers(rng):
    model = randomize(row_model(dtype="float64"), rng)
    x = input_of("rows", rng, "float64")
    check_vjp(model, x, normals(rng, 2, 6, D, dtype="float64"))


def test_gradients_with_dropout(rng):
    model = randomize(row_model(dropout=0.3, dtype="float64"), rng)
    x = input_of("rows", rng, "float64")
    check_vjp(model, x, normals(rng, 2, 6, D, dtype="float64"), training=True, rng=5)


def test_gradients_of_a_table_and_what_follows(rng):
    model = hw.Sequential(
        embed=hw.Embedding(11, D, padding_idx=0, dtype="float64"),
        part=hw.FeedForward(D, 9, activation="gelu_tanh", dtype="float64"),
        head=hw.Linear(D, 3, dtype="float64"),
    )
    randomize(model, rng)
    ids = rng.integers(1, 11, (2, 6))
    d_x, _ = check_vjp(model, ids, normals(rng, 2, 6, 3, dtype="float64"))
    assert d_x is None
    _, grads = model.vjp(np.zeros((2, 6), dtype=int))[1](np.ones((2, 6, 3)))
    assert not grads["embed.weight"].any()


def test_ragged_gradients_are_those_of_the_rows(rng):
    model = randomize(row_model(), rng)
    xs = [normals(rng, n, 5) for n in (3, 0, 7)]
    outs, pullback = model.vjp(xs)
    d_outs = [normals(rng, *out.shape) for out in outs]
    (d_xs, grads), (_, again) = pullback(d_outs), pullback(d_outs)
    out, whole = model.vjp(np.concatenate(xs))
    d_x, want = whole(np.concatenate(d_outs))
    assert_same_bits(np.concatenate(outs), out)
    assert_same_bits(np.concatenate(d_xs), d_x)
    assert list(grads) == list(model.state_dict())
    for k in want:
        assert_same_bits(grads[k], want[k])
        assert_same_bits(again[k], want[k])
    assert repr(pullback) == "<pullback of Sequential>"


@pytest.mark.parametrize("name", ["text", "attention"])
def test_gradients_of_models_with_attention(rng, name):
    model = randomize(MODELS[name](dtype="float64"), rng)
    x = rng.integers(1, 11, (2, 6)) if name == "text" else input_of(name, rng, "float64")
    keywords = {"lengths": [6, 4]} if name == "text" else {"key_mask": np.arange(6) < [[6], [4]]}
    check_vjp(model, x, normals(rng, 2, 6, 3, dtype="float64"), **keywords)


def test_gradients_of_functions_among_the_layers(rng):
    model = hw.Sequential(
        hw.Linear(5, 9, dtype="float64"), hw.gelu, hw.Linear(9, 4, dtype="float64"), hw.softmax
    )
    randomize(model, rng)
    x, d_out = normals(rng, 7, 5, dtype="float64"), normals(rng, 7, 4, dtype="float64")
    d_x, grads = check_vjp(model, x, d_out)
    outs, pullback = model.vjp([x[:3], x[3:]])
    d_xs, listed = pullback([d_out[:3], d_out[3:]])
    assert_same_bits(np.concatenate(outs), model(x))
    assert_same_bits(np.concatenate(d_xs), d_x)
    for k, grad in grads.items():
        assert_same_bits(listed[k], grad)
