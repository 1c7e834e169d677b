"""DecoderLayer and Decoder as objects: torch's names, loading, copies, repr, pruning, what they refuse."""

import copy
import pickle

import numpy as np
import pytest
from compare import assert_same_bits, normals
from layers import randomize

import headwise as hw

pytestmark = pytest.mark.once

ATTENTION = {
    "in_proj_weight": (48, 16),
    "in_proj_bias": (48,),
    "out_proj.weight": (16, 16),
    "out_proj.bias": (16,),
}
LAYER = {
    **{
        f"{part}.{name}": shape
        for part in ("self_attn", "multihead_attn")
        for name, shape in ATTENTION.items()
    },
    "linear1.weight": (24, 16),
    "linear1.bias": (24,),
    "linear2.weight": (16, 24),
    "linear2.bias": (16,),
    **{f"norm{i}.{name}": (16,) for i in (1, 2, 3) for name in ("weight", "bias")},
}
"""torch's `nn.TransformerDecoderLayer(16, 4, 24).state_dict()`, in its order."""

MAKERS = {
    "layer": lambda **k: hw.DecoderLayer(16, 4, 24, **k),
    "modern layer": lambda **k: hw.DecoderLayer(
        16, 4, 24, activation="silu", norm="rms", norm_first=True, ffn="glu", bias=False, num_kv_heads=2, **k
    ),
    "decoder": lambda **k: hw.Decoder(2, 16, 4, 24, final_norm=True, positions="alibi", **k),
    "modern decoder": lambda **k: hw.Decoder(
        2, 16, 4, 24, num_kv_heads=1, head_dim=6, layer_norm_eps=0.01, activation="gelu_tanh",
        positions="rotary", dropout=0.1, **k,
    ),
}  # fmt: skip


@pytest.fixture(params=MAKERS)
def maker(request):
    """Return each constructor in turn."""
    return MAKERS[request.param]


@pytest.fixture
def arrays(rng):
    """Return a target and a memory."""
    return normals(rng, 2, 7, 16), normals(rng, 2, 5, 16)


# --- state --------------------------------------------------------------------------------------------------


def test_names_are_torchs():
    layer = hw.DecoderLayer(16, 4, 24)
    assert {name: array.shape for name, array in layer.state_dict().items()} == LAYER
    assert list(layer.state_dict()) == list(LAYER)
    assert layer.num_parameters == sum(np.prod(shape) for shape in LAYER.values())
    stack = hw.Decoder(2, 16, 4, 24, final_norm=True)
    names = [f"layers.{i}.{name}" for i in range(2) for name in LAYER]
    assert list(stack.state_dict()) == [*names, "norm.weight", "norm.bias"]
    assert stack.num_parameters == sum(a.size for a in stack.state_dict().values())
    assert (stack.num_layers, stack.d_model, stack.num_heads, stack.dtype) == (2, 16, 4, "float32")
    assert (layer.d_model, layer.num_heads, layer.dtype) == (16, 4, "float32")


def test_names_of_options():
    assert not any(n.endswith("bias") for n in hw.DecoderLayer(16, 4, 24, bias=False).state_dict())
    rms = hw.DecoderLayer(16, 4, 24, norm="rms").state_dict()
    assert [n for n in rms if "norm" in n] == ["norm1.weight", "norm2.weight", "norm3.weight"]
    grouped = hw.DecoderLayer(16, 4, 24, num_kv_heads=2).state_dict()
    for part in ("self_attn", "multihead_attn"):
        assert grouped[f"{part}.q_proj.weight"].shape == (16, 16)
        assert grouped[f"{part}.k_proj.weight"].shape == (8, 16)
    gated = hw.DecoderLayer(16, 4, 24, ffn="glu").state_dict()
    encoder = hw.EncoderLayer(16, 4, 24, ffn="glu").state_dict()
    assert {n for n in encoder if "self_attn" not in n} | {"norm3.weight", "norm3.bias"} == {
        n for n in gated if "attn" not in n
    }


def test_state_goes_round(rng, maker, arrays):
    layer, other = randomize(maker(), rng), maker()
    out, state = layer(*arrays), layer.state_dict()
    assert not np.array_equal(out, other(*arrays))
    other.load_state_dict({f"module.{k}": v for k, v in state.items()})
    assert_same_bits(other(*arrays), out)
    for array in state.values():
        array[...] = 7.0
    assert_same_bits(layer(*arrays), out)
    wide = maker(dtype="float64")
    wide.load_state_dict(layer.state_dict())
    assert all(a.dtype == np.float64 for a in wide.state_dict().values())
    np.testing.assert_allclose(wide(*arrays), out, rtol=1e-4, atol=1e-5)


def test_strict_loading(rng, maker, arrays):
    layer = randomize(maker(), rng)
    state, before = layer.state_dict(), layer(*arrays)
    for gone in state:
        less = {k: v for k, v in state.items() if k != gone}
        with pytest.raises(ValueError, match=gone.replace(".", r"\.")):
            layer.load_state_dict(less)
        with pytest.raises(ValueError, match=gone.replace(".", r"\.")):
            layer.load_state_dict(state | {gone: np.zeros((3, 3))})
    with pytest.raises(ValueError, match="what_is_this"):
        layer.load_state_dict(state | {"what_is_this": np.zeros(3)})
    assert_same_bits(layer(*arrays), before)  # a refused state changes nothing
    layer.load_state_dict(less | {"what_is_this": np.zeros(3)}, strict=False)
    assert_same_bits(layer(*arrays), before)


@pytest.mark.parametrize("part", ["self_attn", "multihead_attn"])
@pytest.mark.parametrize("name", ["bias_k", "bias_v"])
def test_torchs_bias_k_is_refused_clearly(name, part):
    layer = hw.DecoderLayer(16, 4, 24)
    with pytest.raises((ValueError, NotImplementedError), match=name):
        layer.load_state_dict(layer.state_dict() | {f"{part}.{name}": np.zeros((1, 1, 16))})


@pytest.mark.parametrize("part", ["self_attn", "multihead_attn"])
def test_split_projections_load(rng, part, arrays):
    layer, other = randomize(hw.DecoderLayer(16, 4, 24), rng), hw.DecoderLayer(16, 4, 24)
    state = layer.state_dict()
    for kind in ("weight", "bias"):
        packed = state.pop(f"{part}.in_proj_{kind}")
        for i, x in enumerate("qkv"):
            state[f"{part}.{x}_proj.{kind}"] = packed[16 * i : 16 * (i + 1)]
    other.load_state_dict(state)
    assert_same_bits(other(*arrays), layer(*arrays))


# --- copies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(rng, maker, arrays, protocol):
    layer = randomize(maker(dtype="float64"), rng)
    other = pickle.loads(pickle.dumps(layer, protocol))
    assert type(other) is type(layer)
    assert repr(other) == repr(layer)
    assert_same_bits(other(*arrays), layer(*arrays))
    assert_same_bits(other(*arrays, training=True, rng=1), layer(*arrays, training=True, rng=1))


def test_copies_share_nothing(rng, maker, arrays):
    layer = randomize(maker(), rng)
    other, out = copy.deepcopy(layer), layer(*arrays)
    assert_same_bits(other(*arrays), out)
    other.load_state_dict({k: np.zeros_like(v) for k, v in other.state_dict().items()})
    assert_same_bits(layer(*arrays), out)


def test_to(rng, maker, arrays):
    layer = randomize(maker(), rng)
    out = layer(*arrays)
    wide = layer.to("float64")
    assert (wide.dtype, layer.dtype) == ("float64", "float32")
    assert wide(*arrays).dtype == np.float64
    np.testing.assert_allclose(wide(*arrays), out, rtol=1e-4, atol=1e-5)
    assert_same_bits(wide.to("float32")(*arrays), out)
    with pytest.raises((TypeError, ValueError), match="dtype"):
        layer.to("int32")


def test_repr_evaluates_back(rng, maker, arrays):
    layer = randomize(maker(dtype="float64"), rng)
    other = eval(repr(layer), {name: getattr(hw, name) for name in ("Decoder", "DecoderLayer")})
    assert type(other) is type(layer)
    assert repr(other) == repr(layer)
    other.load_state_dict(layer.state_dict())
    assert_same_bits(other(*arrays), layer(*arrays))
    assert_same_bits(other(*arrays, training=True, rng=1), layer(*arrays, training=True, rng=1))


def test_initial_parameters_follow_the_generator(maker):
    states = [maker(rng=seed).state_dict() for seed in (1, 1, 2)]
    for name, array in states[0].items():
        assert_same_bits(array, states[1][name])
        assert np.isfinite(array).all()
        if array.ndim == 2:
            assert not np.array_equal(array, states[2][name])


# --- pruning ------------------------------------------------------------------------------------------------


def test_pruned_heads_of_a_layer_are_as_masked_heads(rng, arrays):
    layer = randomize(hw.DecoderLayer(16, 4, 24), rng)
    own, cross = np.array([1, 0, 1, 0]), np.array([0, 1, 1, 1])
    want = layer(*arrays, head_mask=own, cross_head_mask=cross)
    pruned = layer.prune_heads([1, 3], [0])
    np.testing.assert_allclose(pruned(*arrays), want, rtol=1e-5, atol=1e-6)
    assert pruned.num_parameters == layer.num_parameters - (2 + 1) * 4 * (3 * 16 + 3 + 16)
    _, weights, cross_weights = pruned(*arrays, need_weights=True)
    assert (weights.shape, cross_weights.shape) == ((2, 2, 7, 7), (2, 3, 7, 5))
    for again in (pickle.loads(pickle.dumps(pruned)), copy.deepcopy(pruned)):
        assert_same_bits(again(*arrays), pruned(*arrays))
    want = layer(*arrays, cross_head_mask=cross)
    np.testing.assert_allclose(layer.prune_heads([], [0])(*arrays), want, rtol=1e-5, atol=1e-6)
    for wrong in ([4], [-1], [0, 1, 2, 3]):
        with pytest.raises(ValueError, match="heads"):
            layer.prune_heads(wrong)
        with pytest.raises(ValueError, match="cross_heads"):
            layer.prune_heads([], wrong)


def test_pruned_heads_of_a_stack(rng, arrays):
    layer = randomize(hw.Decoder(2, 16, 4, 24, positions="alibi"), rng)
    own, cross = np.ones((2, 2, 4))
    own[1, [0, 2]], cross[0, 3] = 0, 0
    want = layer(*arrays, head_mask=own, cross_head_mask=cross)
    pruned = layer.prune_heads({1: [0, 2]}, {0: [3]})
    np.testing.assert_allclose(pruned(*arrays), want, rtol=1e-4, atol=1e-5)
    assert pruned.num_heads == layer.num_heads
    answer = pruned(*arrays, need_weights=True)
    assert [w.shape[1] for w in answer.weights] == [4, 2]
    assert [w.shape[1] for w in answer.cross_weights] == [3, 4]
    cache = pruned.new_cache(arrays[1])
    steps = [pruned.step(arrays[0][:, i : i + 1], cache) for i in range(7)]
    assert_same_bits(np.concatenate(steps, axis=1), pruned(*arrays))
    for wrong in ({2: [0]}, {0: [4]}, {0: [0, 1, 2, 3]}):
        with pytest.raises(ValueError, match="heads"):
            layer.prune_heads(wrong)
        with pytest.raises(ValueError, match="cross_heads"):
            layer.prune_heads({}, wrong)


def test_pruned_groups(rng, arrays):
    layer = randomize(hw.DecoderLayer(16, 4, 24, num_kv_heads=2), rng)
    with pytest.raises(ValueError, match="heads"):
        layer.prune_heads([1])
    want = layer(*arrays, head_mask=np.array([1, 0, 0, 1]))
    np.testing.assert_allclose(layer.prune_heads([1, 2])(*arrays), want, rtol=1e-5, atol=1e-6)


# --- what is refused ----------------------------------------------------------------------------------------


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
        ({"dtype": "int32"}, "dtype"),
    ],
)
def test_options_that_are_refused(options, named):
    for make in (hw.DecoderLayer, lambda *a, **k: hw.Decoder(2, *a, **k)):
        with pytest.raises((ValueError, TypeError), match=named):
            make(32, 4, **options)


def test_options_of_the_stack_that_are_refused():
    with pytest.raises(ValueError, match="positions"):
        hw.Decoder(2, 32, 4, positions="learned")
    with pytest.raises(ValueError, match="num_layers"):
        hw.Decoder(-1, 32, 4)
    with pytest.raises(ValueError, match="positions"):
        hw.Decoder(1, 9, 3, head_dim=3, positions="rotary")  # pairs need an even head width
    with pytest.raises(TypeError):
        hw.Decoder(2, 32, 4, no_such_option=1)
    with pytest.raises(ValueError, match="num_heads"):
        hw.Decoder(2, 32, 5)


X, M = np.zeros((2, 5, 16), dtype=np.float32), np.zeros((2, 3, 16), dtype=np.float32)
REFUSED = {
    "width of x": ((X[..., :15], M), {}, ValueError, r"^x: .*D.*16.*[\[(]2, 5, 15,?[\])]"),
    "axes of x": ((X[0, 0], M), {}, ValueError, r"^x: .*[\[(]16,?[\])]"),
    "more axes of x": ((X[None], M[None]), {}, ValueError, r"^x: .*[\[(]1, 2, 5, 16,?[\])]"),
    "width of memory": ((X, M[..., :15]), {}, ValueError, r"^memory: .*D.*16.*[\[(]2, 3, 15,?[\])]"),
    "axes of memory": ((X, M[0]), {}, ValueError, r"^memory: (?!.*Single).*\b3\b"),
    "another batch": ((X, M[:1]), {}, ValueError, r"^memory: (?!.*Batch\().*\b1\b"),
    "a list of other length": ((list(X), [M[0]]), {}, ValueError, "^memory: .*as many sequences"),
    "list and array": ((list(X), M), {}, TypeError, "memory: .*list"),
    "array and list": ((X, list(M)), {}, TypeError, "memory: .*list"),
    "width in a list": (([X[0], X[1, :, :15]], list(M)), {}, ValueError, r"^x.*[\[(]5, 15,?[\])]"),
    "width in a list of memories": (
        (list(X), [M[0], M[1, :, :15]]),
        {},
        ValueError,
        r"^memory.*[\[(]3, 15,?[\])]",
    ),
    "complex x": ((X.astype(complex), M), {}, TypeError, "^x: .*complex"),
    "complex memory": ((X, M.astype(complex)), {}, TypeError, "^memory: .*complex"),
    "lengths too large": ((X, M), {"lengths": [5, 6]}, ValueError, r"^lengths: .*5.*6"),
    "lengths of another batch": ((X, M), {"lengths": [5, 5, 5]}, ValueError, r"^lengths: .*B"),
    "memory_lengths too large": ((X, M), {"memory_lengths": [3, 4]}, ValueError, "^memory_lengths: .*3.*4"),
    "memory_lengths negative": ((X, M), {"memory_lengths": [3, -1]}, ValueError, "^memory_lengths: .*-1"),
    "memory_lengths of floats": ((X, M), {"memory_lengths": [3.0, 1.0]}, TypeError, "^memory_lengths"),
    "key_mask": ((X, M), {"key_mask": np.ones((2, 4), bool)}, ValueError, r"^key_mask: .*[\[(]2, 4,?[\])]"),
    "memory_key_mask": (
        (X, M),
        {"memory_key_mask": np.ones((2, 5), bool)},
        ValueError,
        r"^memory_key_mask: .*S.*[\[(]2, 5,?[\])]",
    ),
    "memory_key_mask of floats": (
        (X, M),
        {"memory_key_mask": np.ones((2, 3))},
        TypeError,
        "^memory_key_mask",
    ),
    "attn_mask": (
        (X, M),
        {"attn_mask": np.ones((5, 3), bool)},
        ValueError,
        r"^attn_mask: .*H, L, .*[\[(]5, 3,?[\])]",
    ),
    "memory_mask": (
        (X, M),
        {"memory_mask": np.ones((5, 5), bool)},
        ValueError,
        r"^memory_mask: .*L, S.*[\[(]5, 5,?[\])]",
    ),
    "attn_mask of integers": ((X, M), {"attn_mask": np.ones((5, 5), int)}, TypeError, "^attn_mask"),
    "memory_mask of integers": ((X, M), {"memory_mask": np.ones((5, 3), int)}, TypeError, "^memory_mask"),
    "attn_mask of sequences": (
        (X, M),
        {"attn_mask": np.ones((2, 5, 5), bool)},
        ValueError,
        r"^attn_mask: .*\(H, L, ",
    ),
    "memory_mask of sequences": (
        (X, M),
        {"memory_mask": np.ones((2, 5, 3), bool)},
        ValueError,
        r"^memory_mask: .*\(H, L, S\)",
    ),
    "window": ((X, M), {"window": (-1, 0)}, ValueError, "^window"),
    "window of one number": ((X, M), {"window": 3}, TypeError, "^window"),
    "key_padding_mask": ((X, M), {"key_padding_mask": np.zeros((2, 5), bool)}, TypeError, "pass key_mask="),
    "tgt_key_padding_mask": (
        (X, M),
        {"tgt_key_padding_mask": np.zeros((2, 5), bool)},
        TypeError,
        "pass key_mask=",
    ),
    "memory_key_padding_mask": (
        (X, M),
        {"memory_key_padding_mask": np.zeros((2, 3), bool)},
        TypeError,
        "pass memory_key_mask=",
    ),
    "no such keyword": ((X, M), {"colour": 1}, TypeError, "colour"),
    "no memory": ((X,), {}, TypeError, "memory"),
}


@pytest.mark.parametrize("through", ["call", "vjp"])
@pytest.mark.parametrize("num_layers", [0, 2])
@pytest.mark.parametrize("name", REFUSED)
def test_calls_that_are_refused(name, num_layers, through):
    arguments, keywords, error, text = REFUSED[name]
    layer = hw.Decoder(num_layers, 16, 4, 24) if num_layers else hw.DecoderLayer(16, 4, 24)
    with pytest.raises(error, match=text):
        (layer.vjp if through == "vjp" else layer)(*arguments, **keywords)
