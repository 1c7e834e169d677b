"""Training a `TextEncoder`: gradients by differences, and parameters that come in and go out."""

import copy
import pickle

import numpy as np
import pytest
from checkpoints import small_tensors, write_dense, write_json, write_model, write_modules
from minilm import minilm_folder

import headwise as hw

TEXTS = ["a dog ate the food", "it was", "a a dog", "the"]
POOLINGS = {
    "mean": {},
    "cls": {"pooling_mode": "cls"},
    "max": {"pooling_mode": "max"},
    "lasttoken": {"pooling_mode": "lasttoken"},
    "weighted": {"pooling_mode": ["weightedmean", "mean_sqrt_len_tokens"]},
}


def model(folder, pooling, *, dense=None, normalize=True, dtype="float64"):
    """Return the small model, with a pooling and what may follow it."""
    write_model(folder)
    kinds = ["Pooling"] + (["Dense"] if dense else []) + (["Normalize"] if normalize else [])
    write_modules(folder, *kinds)
    width = small_tensors()["embeddings.LayerNorm.weight"].size
    ways = pooling.get("pooling_mode", "mean")
    write_json(folder / "1" / "config.json", {"word_embedding_dimension": width, "pooling_mode": ways})
    if dense:
        into = width * (len(ways) if isinstance(ways, list) else 1)
        write_dense(folder / "2", 5, into, f"torch.nn.modules.activation.{dense}")
    return hw.TextEncoder.from_pretrained(folder, dtype=dtype)


def along(encoder, name, direction, d_out, step=1e-5):
    """Return the slope of <d_out, embeddings> along a direction of one parameter."""
    values = []
    for sign in (1, -1):
        moved = copy.copy(encoder)
        moved.load_state_dict({name: encoder.state_dict()[name] + sign * step * direction}, strict=False)
        values.append(moved.encode(TEXTS))
    return ((values[0] - values[1]) * d_out).sum() / (2 * step)


@pytest.mark.parametrize("pooling", POOLINGS.values(), ids=POOLINGS)
@pytest.mark.parametrize("dense", [None, "Tanh", "Sigmoid", "GELU"])
@pytest.mark.parametrize("normalize", [True, False])
def test_gradients_by_differences(tmp_path, pooling, dense, normalize):
    rng = np.random.default_rng(0)
    encoder = model(tmp_path, pooling, dense=dense, normalize=normalize)
    embeddings, pullback = encoder.vjp(TEXTS)
    np.testing.assert_array_equal(embeddings, encoder.encode(TEXTS))
    d_out = rng.standard_normal(embeddings.shape)
    _, grads = pullback(d_out)
    state = encoder.state_dict()
    assert {k: v.shape for k, v in grads.items()} == {k: v.shape for k, v in state.items()}
    for name, gradient in grads.items():
        direction = rng.standard_normal(gradient.shape)
        slope, want = along(encoder, name, direction, d_out), (gradient * direction).sum()
        scale = max(np.linalg.norm(gradient), 1e-3 * np.linalg.norm(d_out)) * np.linalg.norm(direction)
        assert abs(slope - want) <= 1e-7 * scale, name


def test_input_embeddings_are_the_words_rows(tmp_path):
    rng = np.random.default_rng(1)
    encoder = model(tmp_path, {})
    embeddings, pullback = encoder.vjp(TEXTS)
    d_inputs, grads = pullback(rng.standard_normal(embeddings.shape))
    ids = encoder.tokenize(TEXTS)
    table = np.zeros_like(grads["embeddings.word_embeddings.weight"])
    for row, mask, d in zip(ids["input_ids"], ids["attention_mask"], d_inputs, strict=True):
        np.add.at(table, row[mask == 1], d)
    np.testing.assert_allclose(grads["embeddings.word_embeddings.weight"], table, rtol=1e-13, atol=1e-15)


def test_the_last_layers_alone(tmp_path):
    rng = np.random.default_rng(2)
    encoder = model(tmp_path, {}, dense="Tanh")
    whole, pullback = encoder.vjp(TEXTS)
    d_out = rng.standard_normal(whole.shape)
    _, everything = pullback(d_out)
    layers = 1 + max(int(name.split(".")[2]) for name in everything if name.startswith("encoder.layer."))
    for first in range(1, layers + 1):
        embeddings, pullback = encoder.vjp(TEXTS, first_layer=first)
        np.testing.assert_array_equal(embeddings, whole)
        _, grads = pullback(d_out)
        kept = {f"encoder.layer.{n}." for n in range(first, layers)}
        names = [n for n in everything if n.startswith("dense.") or any(n.startswith(k) for k in kept)]
        assert list(grads) == names
        for name, gradient in grads.items():
            np.testing.assert_array_equal(gradient, everything[name], err_msg=name)
    with pytest.raises(ValueError, match=f"first_layer: expected at most {layers}"):
        encoder.vjp(TEXTS, first_layer=layers + 1)


def test_parameters_go_out_and_in(tmp_path):
    encoder = model(tmp_path / "a", {}, dense="Tanh", dtype="float32")
    state = encoder.state_dict()
    tensors = small_tensors()
    assert set(tensors) == {name for name in state if not name.startswith("dense.")}
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(state[name], tensor, err_msg=name)
    before = encoder.encode(TEXTS)
    other = {name: value * np.float32(1.5) for name, value in state.items()}
    encoder.load_state_dict({f"bert.{name}": value for name, value in other.items()})
    after = encoder.encode(TEXTS)
    assert not np.array_equal(before, after)
    for again in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        np.testing.assert_array_equal(again.encode(TEXTS), after)
    encoder.max_seq_length = 7
    encoder.save_pretrained(tmp_path / "b")
    saved = hw.TextEncoder.from_pretrained(tmp_path / "b")
    np.testing.assert_array_equal(saved.encode(TEXTS), after)
    encoder.load_state_dict(state)
    np.testing.assert_array_equal(encoder.encode(TEXTS), before)


def test_states_that_do_not_fit_change_nothing(tmp_path):
    encoder = model(tmp_path, {})
    before = encoder.encode(TEXTS)
    state = encoder.state_dict()
    name = "encoder.layer.0.attention.self.query.weight"
    with pytest.raises(ValueError, match="missing"):
        encoder.load_state_dict({name: state[name]})
    with pytest.raises(ValueError, match="unexpected"):
        encoder.load_state_dict(state | {"pooler.dense.weight": np.zeros((2, 2))})
    with pytest.raises(ValueError, match="expected shape"):
        encoder.load_state_dict({name: np.zeros((3, 3))}, strict=False)
    np.testing.assert_array_equal(encoder.encode(TEXTS), before)


@pytest.mark.once
def test_a_step_down_the_gradient_brings_texts_together():
    encoder = hw.TextEncoder.from_pretrained(minilm_folder())
    pair = ["a dog ate the food", "stock prices fell sharply"]
    optimizer = hw.optim.SGD(encoder, lr=0.05)
    similar = []
    for _ in range(3):
        embeddings, pullback = encoder.vjp(pair, first_layer=5)
        similar.append(float(embeddings[0] @ embeddings[1]))
        _, grads = pullback(-embeddings[::-1])
        optimizer.step(grads)
    assert similar[0] < similar[1] < similar[2]
