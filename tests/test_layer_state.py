"""State of layers: torch's names, loading both ways, copies, pickle, repr, pruning, dtypes."""

import copy
import pickle
import threading

import numpy as np
import pytest
from compare import assert_same_bits, normals
from layers import randomize

import headwise as hw

pytestmark = pytest.mark.once

MHA_NAMES = {
    "packed": ({}, {"in_proj_weight": (48, 16), "in_proj_bias": (48,)}),
    "packed, no bias": ({"bias": False}, {"in_proj_weight": (48, 16)}),
    "widths": (
        {"key_dim": 12, "value_dim": 20},
        {"q_proj_weight": (16, 16), "k_proj_weight": (16, 12), "v_proj_weight": (16, 20), "in_proj_bias":
        (48,)},
    ),
    "grouped": (
        {"num_kv_heads": 2},
        {f"{x}_proj.{y}": (n, 16) if y == "weight" else (n,)
         for x, n in (("q", 16), ("k", 8), ("v", 8)) for y in ("weight", "bias")},
    ),
    "head width": (
        {"head_dim": 6, "bias": False},
        {"q_proj.weight": (24, 16), "k_proj.weight": (24, 16), "v_proj.weight": (24, 16)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", MHA_NAMES)
def test_names_of_attention(kind):
    options, names = MHA_NAMES[kind]
    layer = hw.MultiHeadAttention(16, 4, **options)
    names = names | {"out_proj.weight": (16, 24 if "head_dim" in options else 16)}
    if options.get("bias", True):
        names |= {"out_proj.bias": (16,)}
    assert {name: array.shape for name, array in layer.state_dict().items()} == names
    assert layer.num_parameters == sum(np.prod(shape) for shape in names.values())


def layer_names(prefix=""):
    """Return the names of torch's encoder layer."""
    attention = ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"]
    parts = [f"self_attn.{name}" for name in attention]
    parts += [f"{part}.{x}" for part in ("linear1", "linear2", "norm1", "norm2") for x in ("weight", "bias")]
    return {prefix + part for part in parts}


def test_names_of_encoders():
    layer = hw.EncoderLayer(16, 4, 24)
    assert set(layer.state_dict()) == layer_names()
    assert layer.state_dict()["linear1.weight"].shape == (24, 16)
    assert layer.state_dict()["linear2.weight"].shape == (16, 24)
    encoder = hw.Encoder(2, 16, 4, 24, final_norm=True)
    names = layer_names("layers.0.") | layer_names("layers.1.") | {"norm.weight", "norm.bias"}
    assert set(encoder.state_dict()) == names
    assert encoder.num_parameters == sum(a.size for a in encoder.state_dict().values())
    assert not any(n.endswith("bias") for n in hw.EncoderLayer(16, 4, 24, bias=False).state_dict())
    rms = hw.EncoderLayer(16, 4, 24, norm="rms").state_dict()
    assert "norm1.weight" in rms
    assert "norm1.bias" not in rms


MAKERS = {
    "attention": lambda **k: hw.MultiHeadAttention(16, 4, **k),
    "grouped attention": lambda **k: hw.MultiHeadAttention(16, 4, num_kv_heads=2, **k),
    "layer": lambda **k: hw.EncoderLayer(16, 4, 24, **k),
    "gated layer": lambda **k: hw.EncoderLayer(
        16, 4, 24, activation="silu", norm="rms", norm_first=True, ffn="glu", bias=False, num_kv_heads=2, **k
    ),
    "encoder": lambda **k: hw.Encoder(2, 16, 4, 24, final_norm=True, positions="alibi", **k),
}


@pytest.fixture(params=MAKERS)
def maker(request):
    """Return each layer's constructor in turn."""
    return MAKERS[request.param]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_state_goes_round(rng, maker, dtype):
    layer, other = randomize(maker(dtype=dtype), rng), maker(dtype=dtype)
    x = normals(rng, 2, 7, 16, dtype=dtype)
    state = layer.state_dict()
    assert all(a.dtype == dtype for a in state.values())
    assert not np.array_equal(layer(x), other(x))
    other.load_state_dict(state)
    assert_same_bits(layer(x), other(x))


def test_state_is_copied(rng, maker):
    layer = randomize(maker(), rng)
    x = normals(rng, 2, 7, 16)
    out, state = layer(x), layer.state_dict()
    for array in state.values():
        array[...] = 7.0
    assert_same_bits(layer(x), out)
    layer.load_state_dict(kept := {k: np.full_like(v, 0.1) for k, v in state.items()})
    out = layer(x)
    for array in kept.values():
        array[...] = 7.0
    assert_same_bits(layer(x), out)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_are_understood(rng, maker, prefix):
    layer, other = randomize(maker(), rng), maker()
    other.load_state_dict({prefix + k: v for k, v in layer.state_dict().items()})
    x = normals(rng, 2, 7, 16)
    assert_same_bits(layer(x), other(x))


def test_known_buffers_are_passed_over(rng, maker):
    layer, other = randomize(maker(), rng), maker()
    other.load_state_dict(layer.state_dict() | {"embeddings.position_ids": np.arange(512)[None]})
    x = normals(rng, 2, 7, 16)
    assert_same_bits(layer(x), other(x))


@pytest.mark.parametrize("kind", ["q_proj_weight", "q_proj.weight"])
def test_both_forms_load(rng, kind):
    layer, other = randomize(hw.MultiHeadAttention(16, 4), rng), hw.MultiHeadAttention(16, 4)
    state = layer.state_dict()
    split = {k: v for k, v in state.items() if k.startswith("out_proj")}
    for i, x in enumerate("qkv"):
        split[kind.replace("q", x, 1)] = state["in_proj_weight"][16 * i : 16 * (i + 1)]
        if "." in kind:
            split[f"{x}_proj.bias"] = state["in_proj_bias"][16 * i : 16 * (i + 1)]
    if "." not in kind:
        split["in_proj_bias"] = state["in_proj_bias"]
    other.load_state_dict(split)
    x = normals(rng, 2, 7, 16)
    assert_same_bits(layer(x), other(x))


@pytest.mark.parametrize("name", ["bias_k", "bias_v"])
def test_torchs_bias_k_is_refused_clearly(name):
    layer = hw.MultiHeadAttention(16, 4)
    with pytest.raises((ValueError, NotImplementedError), match=name):
        layer.load_state_dict(layer.state_dict() | {name: np.zeros((1, 1, 16))})
    with pytest.raises((ValueError, NotImplementedError), match=name):
        layer.load_state_dict(layer.state_dict() | {name: np.zeros((1, 1, 16))}, strict=False)


def test_strict_loading(rng, maker):
    layer = randomize(maker(), rng)
    state = layer.state_dict()
    x = normals(rng, 2, 7, 16)
    before = layer(x)
    gone = next(iter(state))
    less = {k: v for k, v in state.items() if k != gone}
    with pytest.raises(ValueError, match=gone.replace(".", r"\.")):
        layer.load_state_dict(less)
    with pytest.raises(ValueError, match="what_is_this"):
        layer.load_state_dict(state | {"what_is_this": np.zeros(3)})
    with pytest.raises(ValueError, match=gone.replace(".", r"\.")):
        layer.load_state_dict(state | {gone: np.zeros((3, 3))})
    assert_same_bits(layer(x), before)  # a refused state changes nothing
    layer.load_state_dict(less | {"what_is_this": np.zeros(3)}, strict=False)
    assert_same_bits(layer(x), before)


def test_state_is_converted(rng, maker):
    layer, wide = randomize(maker(), rng), maker(dtype="float64")
    wide.load_state_dict(layer.state_dict())
    assert all(a.dtype == np.float64 for a in wide.state_dict().values())
    narrow = maker()
    narrow.load_state_dict(wide.state_dict())
    x = normals(rng, 2, 7, 16)
    assert_same_bits(narrow(x), layer(x))


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(rng, maker, protocol):
    layer = randomize(maker(), rng)
    x = normals(rng, 2, 7, 16)
    other = pickle.loads(pickle.dumps(layer, protocol))
    assert type(other) is type(layer)
    assert repr(other) == repr(layer)
    assert_same_bits(other(x), layer(x))


def test_copies_share_nothing(rng, maker):
    layer = randomize(maker(), rng)
    x = normals(rng, 2, 7, 16)
    other, out = copy.deepcopy(layer), layer(x)
    assert_same_bits(other(x), out)
    other.load_state_dict({k: np.zeros_like(v) for k, v in other.state_dict().items()})
    assert_same_bits(layer(x), out)


def test_repr_names_what_differs_from_the_default(maker):
    layer = maker(dtype="float64")
    text = repr(layer)
    assert type(layer).__name__ in text
    assert "16" in text
    assert "float64" in text


def test_to(rng, maker):
    layer = randomize(maker(), rng)
    x = normals(rng, 2, 7, 16)
    out = layer(x)
    wide = copy.deepcopy(layer).to("float64")
    assert wide(x).dtype == np.float64
    np.testing.assert_allclose(wide(x), out, rtol=1e-4, atol=1e-5)
    assert_same_bits(wide.to("float32")(x), out)
    with pytest.raises((TypeError, ValueError), match="dtype"):
        layer.to("int32")


def test_initial_parameters_follow_the_generator(maker):
    states = [maker(rng=seed).state_dict() for seed in (1, 1, 2, np.random.default_rng(1))]
    for name in states[0]:
        assert_same_bits(states[0][name], states[1][name])
    matrices = [n for n, a in states[0].items() if a.ndim == 2]
    assert all(not np.array_equal(states[0][n], states[2][n]) for n in matrices)
    assert all(np.isfinite(a).all() for a in states[3].values())
    assert any(not np.array_equal(maker().state_dict()[n], maker().state_dict()[n]) for n in matrices)


def test_pruned_heads_are_as_masked_heads(rng):
    layer = randomize(hw.MultiHeadAttention(16, 4), rng)
    x = normals(rng, 2, 7, 16)
    want = layer(x, head_mask=np.array([1, 0, 1, 0]))
    pruned = copy.deepcopy(layer)
    pruned = pruned.prune_heads([1, 3]) or pruned  # in place or a new layer: the contract leaves it open
    np.testing.assert_allclose(pruned(x), want, rtol=1e-5, atol=1e-6)
    assert pruned.num_parameters < layer.num_parameters
    assert pruned(x, need_weights=True)[1].shape == (2, 2, 7, 7)
    again = pickle.loads(pickle.dumps(pruned))
    assert_same_bits(again(x), pruned(x))
    with pytest.raises(ValueError, match="heads"):
        copy.deepcopy(layer).prune_heads([4])


def test_pruned_heads_of_an_encoder(rng):
    encoder = randomize(hw.Encoder(2, 16, 4, 24), rng)
    x = normals(rng, 2, 7, 16)
    mask = np.ones((2, 4))
    mask[1, [0, 2]] = 0
    want = encoder(x, head_mask=mask)
    pruned = copy.deepcopy(encoder)
    pruned = pruned.prune_heads({1: [0, 2]}) or pruned  # as transformers names them: {layer: heads}
    np.testing.assert_allclose(pruned(x), want, rtol=1e-4, atol=1e-5)
    assert pruned.num_parameters < encoder.num_parameters


def test_loading_while_others_compute(rng, maker):
    layer = maker()
    states = [{k: normals(rng, *v.shape) for k, v in layer.state_dict().items()} for _ in range(2)]
    x = normals(rng, 4, 33, 16)
    answers = []
    for state in states:
        layer.load_state_dict(state)
        answers.append(layer(x).tobytes())
    failures, stop = [], threading.Event()

    def compute():
        try:
            while not stop.is_set():
                if layer(x).tobytes() not in answers:
                    failures.append("a mixture of two states")
        except Exception as error:
            failures.append(repr(error))

    workers = [threading.Thread(target=compute) for _ in range(3)]
    for worker in workers:
        worker.start()
    for turn in range(60):
        layer.load_state_dict(states[turn % 2])
    stop.set()
    for worker in workers:
        worker.join()
    assert not failures
