"""DecoderLayer and Decoder against their float64 twin: options, masks of both attentions, extras, lists."""

from itertools import product

import numpy as np
import pytest
from compare import assert_same_bits, normals, rms_relative
from layers import pad, randomize
from reference_decoder import decoder_layer_reference, decoder_reference

import headwise as hw

# float32: every step of a layer rounds once more; a few layers stay below 1e-6
BARS = {"float32": 1e-6, "float64": 5e-15}
MODEL_OPTIONS = (
    "bias",
    "dtype",
    "rng",
    "dropout",
    "ffn",
    "head_dim",
)  # the twin reads these off the parameters


def make(rng, num_layers=2, d_model=32, num_heads=4, d_ff=48, **options):
    """Return a Decoder (or a DecoderLayer for 0 layers) with random parameters, and its twin."""
    keywords = {k: v for k, v in options.items() if k not in MODEL_OPTIONS} | {"num_heads": num_heads}
    if num_layers:
        layer = hw.Decoder(num_layers, d_model, num_heads, d_ff, **options)
        keywords["num_layers"] = num_layers
        run = decoder_reference
    else:
        layer, run = hw.DecoderLayer(d_model, num_heads, d_ff, **options), decoder_layer_reference
    randomize(layer, rng)
    return layer, lambda x, memory, **call: run(layer.state_dict(), x, memory, **keywords, **call)


def close_weights(got, want):
    """Compare probabilities: those near 0 absolutely."""
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)


# --- options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("activation", "norm", "norm_first", "ffn"),
    [*product(["relu", "gelu", "gelu_tanh", "silu"], ["layer", "rms"], [False, True], ["mlp", "glu"])],
)
def test_layer_options(rng, activation, norm, norm_first, ffn, dtype):
    layer, twin = make(rng, 0, activation=activation, norm=norm, norm_first=norm_first, ffn=ffn, dtype=dtype)
    x, memory = normals(rng, 2, 17, 32, dtype=dtype), normals(rng, 2, 11, 32, dtype=dtype)
    out, weights, cross_weights = layer(x, memory, need_weights=True)
    want, want_weights, want_cross = twin(x, memory, need_weights=True)
    assert out.dtype == weights.dtype == cross_weights.dtype == dtype
    assert out.shape == x.shape
    assert rms_relative(out, want) <= BARS[dtype]
    close_weights(weights, want_weights)
    close_weights(cross_weights, want_cross)


MORE_OPTIONS = {
    "no bias": {"bias": False},
    "grouped": {"num_kv_heads": 2},
    "one key head, narrow": {"num_kv_heads": 1, "head_dim": 10},
    "wide heads": {"head_dim": 24},
    "eps": {"layer_norm_eps": 0.1},
    "eps of rms": {"layer_norm_eps": 0.1, "norm": "rms"},
    "modern": {
        "bias": False, "ffn": "glu", "norm": "rms", "activation": "silu", "norm_first": True,
        "num_kv_heads": 2,
    },
}  # fmt: skip


@pytest.mark.parametrize("num_layers", [0, 2])
@pytest.mark.parametrize("name", MORE_OPTIONS)
def test_more_options(rng, name, num_layers):
    layer, twin = make(rng, num_layers, **MORE_OPTIONS[name])
    x, memory = normals(rng, 2, 17, 32), normals(rng, 2, 11, 32)
    assert rms_relative(layer(x, memory), twin(x, memory)) <= 1e-6


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("positions", [None, "sinusoidal", "rotary", "alibi"])
@pytest.mark.parametrize(("norm_first", "final_norm"), [*product([False, True], repeat=2)])
def test_stacks(rng, positions, norm_first, final_norm, dtype):
    options = {"positions": positions, "norm_first": norm_first, "final_norm": final_norm}
    layer, twin = make(rng, 3, activation="gelu", dtype=dtype, **options)
    x, memory = normals(rng, 2, 33, 32, dtype=dtype), normals(rng, 2, 17, 32, dtype=dtype)
    answer = layer(x, memory, output_hidden_states=True, need_weights=True)
    want, hidden, maps, cross_maps = twin(x, memory, everything=True)
    assert isinstance(answer, hw.DecoderOutput)
    assert answer._fields == ("output", "hidden_states", "weights", "cross_weights")
    assert rms_relative(answer.output, want) <= BARS[dtype]
    assert len(answer.hidden_states) == 4
    for state, expected in zip(answer.hidden_states[:-1], hidden[:-1], strict=True):
        assert rms_relative(state, expected) <= BARS[dtype]
    # after the last layer: before the final norm or after it, the contract leaves that open
    last = answer.hidden_states[-1]
    assert min(rms_relative(last, hidden[-1]), rms_relative(last, want)) <= BARS[dtype]
    for got, expected in zip(answer.weights + answer.cross_weights, maps + cross_maps, strict=True):
        close_weights(got, expected)
    assert_same_bits(answer.output, layer(x, memory))


@pytest.mark.parametrize("L", [1, 15, 64, 65, 129])
@pytest.mark.parametrize("S", [1, 16, 63, 65, 200])
def test_lengths_of_target_and_memory(rng, L, S):
    layer, twin = make(rng, 1, d_model=100, d_ff=121)
    x, memory = normals(rng, 2, L, 100), normals(rng, 2, S, 100)
    assert rms_relative(layer(x, memory), twin(x, memory)) <= 1e-6


@pytest.mark.parametrize("num_heads", [1, 3, 6, 12])
def test_alibi_of_any_number_of_heads(rng, num_heads):
    layer, twin = make(rng, 1, d_model=36, num_heads=num_heads, positions="alibi")
    x, memory = normals(rng, 2, 65, 36), normals(rng, 2, 30, 36)
    for is_causal in (True, False):
        call = {"is_causal": is_causal}
        assert rms_relative(layer(x, memory, **call), twin(x, memory, **call)) <= 1e-6


def test_a_stack_is_its_layers(rng):
    stack, _ = make(rng, 2)
    x, memory = normals(rng, 2, 17, 32), normals(rng, 2, 11, 32)
    out = x
    for number in range(2):
        layer = hw.DecoderLayer(32, 4, 48)
        prefix = f"layers.{number}."
        layer.load_state_dict(
            {k.removeprefix(prefix): v for k, v in stack.state_dict().items() if prefix in k}
        )
        out = layer(out, memory)
    assert_same_bits(stack(x, memory), out)


# --- masks --------------------------------------------------------------------------------------------------

L, S = 20, 13
KEYS = np.random.default_rng(1).random((3, L)) < 0.6
MEMORY_KEYS = np.random.default_rng(2).random((3, S)) < 0.6
MASKS = {
    "bool": {"attn_mask": np.arange(L * L).reshape(L, L) % 3 > 0},
    "float": {"attn_mask": np.where(np.arange(L * L).reshape(L, L) % 3 > 0, 0.7, -np.inf)},
    "per head": {"attn_mask": np.arange(4 * L * L).reshape(4, L, L) % 5 > 0},
    "per sequence": {"attn_mask": np.arange(3 * L * L).reshape(3, 1, L, L) % 7 > 1},
    "not causal": {"is_causal": False},
    "not causal, bool": {"is_causal": False, "attn_mask": np.arange(L * L).reshape(L, L) % 3 > 0},
    "window": {"window": (3, 0)},
    "window without sight": {"window": (0, 0)},
    "window to both sides": {"window": (3, 1), "is_causal": False},
    "open window": {"window": (None, 2), "is_causal": False},
    "lengths": {"lengths": np.array([L, 7, 1])},
    "an empty target": {"lengths": np.array([L, 0, 1])},
    "left padding": {"key_mask": np.arange(L) >= np.array([[0], [5], [19]])},
    "holes": {"key_mask": KEYS},
    "holes of ones and zeros": {"key_mask": KEYS.astype(int), "is_causal": False},
    "holes and window": {"key_mask": KEYS, "window": (3, None)},
    "both": {"lengths": np.array([L, 12, 3]), "key_mask": KEYS},
    "memory bool": {"memory_mask": np.arange(L * S).reshape(L, S) % 3 > 0},
    "memory float": {"memory_mask": np.where(np.arange(L * S).reshape(L, S) % 3 > 0, 0.7, -np.inf)},
    "memory per head": {"memory_mask": np.arange(4 * L * S).reshape(4, L, S) % 5 > 0},
    "memory per sequence": {"memory_mask": np.arange(3 * L * S).reshape(3, 1, L, S) % 7 > 1},
    "memory rows without keys": {"memory_mask": np.arange(L)[:, None] % 2 > np.zeros(S)},
    "memory lengths": {"memory_lengths": np.array([S, 5, 1])},
    "memory padded on the left": {"memory_key_mask": np.arange(S) >= np.array([[0], [5], [12]])},
    "memory holes": {"memory_key_mask": MEMORY_KEYS},
    "memory holes and lengths": {"memory_key_mask": MEMORY_KEYS.astype(int), "memory_lengths": [S, 8, 2]},
    "a memory blocked by its mask": {"memory_key_mask": np.array([[True], [False], [True]]) & MEMORY_KEYS},
    "a memory of length 0": {"memory_lengths": np.array([S, 0, 4])},
    "everything": {
        "attn_mask": np.where(np.arange(L * L).reshape(L, L) % 3 > 0, 0.3, -np.inf),
        "lengths": np.array([L, 12, 3]),
        "window": (5, None),
        "memory_mask": np.arange(4 * L * S).reshape(4, L, S) % 5 > 0,
        "memory_lengths": np.array([S, 0, 4]),
    },
}  # fmt: skip


@pytest.mark.parametrize("positions", [None, "sinusoidal", "rotary", "alibi"])
@pytest.mark.parametrize("name", MASKS)
def test_masks(rng, name, positions):
    layer, twin = make(rng, positions=positions, norm_first=positions == "rotary", final_norm=True)
    x, memory = normals(rng, 3, L, 32), normals(rng, 3, S, 32)
    call = MASKS[name]
    answer = layer(x, memory, need_weights=True, output_hidden_states=True, **call)
    want, hidden, maps, cross_maps = twin(x, memory, everything=True, **call)
    assert rms_relative(answer.output, want) <= 1e-6
    assert_same_bits(answer.output, layer(x, memory, **call))
    padded = ~want.any(axis=-1)
    assert_same_bits(answer.output[padded], np.zeros_like(want[padded], dtype=np.float32))
    assert rms_relative(answer.hidden_states[1][~padded], hidden[1][~padded]) <= 1e-6
    for got, expected in zip(answer.weights + answer.cross_weights, maps + cross_maps, strict=True):
        kept = np.broadcast_to(~padded[:, None], got.shape[:-1])  # a padded query's weights are not promised
        close_weights(got[kept], expected[kept])


@pytest.mark.parametrize("name", MASKS)
def test_masks_of_a_layer(rng, name):
    layer, twin = make(rng, 0, norm_first=True, dtype="float64")
    x, memory = normals(rng, 3, L, 32, dtype="float64"), normals(rng, 3, S, 32, dtype="float64")
    assert rms_relative(layer(x, memory, **MASKS[name]), twin(x, memory, **MASKS[name])) <= 5e-15


@pytest.mark.parametrize("num_layers", [0, 2])
def test_a_blocked_memory_is_no_memory(rng, num_layers):
    """Nothing to attend to: weights are 0, and so is the result before the output projection."""
    layer, twin = make(rng, num_layers)
    x, memory = normals(rng, 3, L, 32), normals(rng, 3, S, 32)
    out = layer(x, memory, memory_lengths=[S, 0, S])
    assert_same_bits(out[1], layer(x[1], memory[1, :0]))
    assert_same_bits(out[1], layer(x[1], memory[1], memory_mask=np.zeros((L, S), dtype=bool)))
    assert_same_bits(out[1], layer(x[1], memory[1], memory_mask=np.full(S, -np.inf)))
    assert rms_relative(layer(x, memory[:, :0]), twin(x, memory[:, :0])) <= 1e-6
    answer = layer(x, memory, memory_lengths=[S, 0, S], need_weights=True)
    cross = answer[2] if num_layers == 0 else answer.cross_weights[1]
    assert not cross[1].any()
    np.testing.assert_allclose(cross[[0, 2]].sum(axis=-1), 1.0, rtol=1e-6)


@pytest.mark.parametrize("num_layers", [0, 1, 2])
@pytest.mark.parametrize(("B", "L", "S"), [(2, 0, 5), (2, 4, 0), (2, 0, 0), (0, 4, 5), (0, 0, 0)])
def test_nothing_at_all(rng, num_layers, B, L, S):
    layer, _ = make(rng, num_layers, positions="rotary") if num_layers else make(rng, 0)
    out = layer(np.zeros((B, L, 32)), np.zeros((B, S, 32)), need_weights=True)
    assert out[0].shape == (B, L, 32)
    assert out[0].dtype == np.float32
    weights, cross = out[1:] if num_layers == 0 else (out.weights[-1], out.cross_weights[-1])
    assert weights.shape == (B, 4, L, L)
    assert cross.shape == (B, 4, L, S)


@pytest.mark.parametrize("num_layers", [0, 2])
@pytest.mark.parametrize("fill", [1e30, np.nan, np.inf])
@pytest.mark.parametrize("left", [False, True])
def test_padding_leaves_no_trace(rng, num_layers, fill, left):
    layer, _ = make(rng, num_layers)
    xs, memories = ([normals(rng, n, 32) for n in lengths] for lengths in ((70, 1, 17), (5, 66, 9)))
    (x, real), (memory, kept) = pad(xs, fill=fill, left=left), pad(memories, fill=fill, left=left)
    out = layer(x, memory, key_mask=real, memory_key_mask=kept)
    assert_same_bits(out[~real], np.zeros_like(out[~real]))
    assert_same_bits(out[real], np.concatenate([layer(*both) for both in zip(xs, memories, strict=True)]))
    if not left:
        assert_same_bits(layer(x, memory, lengths=[70, 1, 17], memory_lengths=[5, 66, 9]), out)


@pytest.mark.parametrize("fill", [np.nan, np.inf, -np.inf])
def test_poison_that_masks_block_leaves_no_trace(rng, fill):
    """A token of the target that no other may attend to, and keys of the memory that rows do not see."""
    layer, _ = make(rng)
    x, memory = normals(rng, 2, L, 32), normals(rng, 2, S, 32)
    seen, read = np.ones((L, L), dtype=bool), np.ones((L, S), dtype=bool)
    seen[:, 4], read[:, 6] = False, False
    others = np.arange(L) != 4
    for attn, mem in ((seen, read), (np.where(seen, 0.0, -np.inf), np.where(read, 0.0, -np.inf))):
        want = layer(x, memory, attn_mask=attn, memory_mask=mem)
        poisoned, poisoned_memory = x.copy(), memory.copy()
        poisoned[:, 4], poisoned_memory[:, 6] = fill, fill
        got = layer(poisoned, poisoned_memory, attn_mask=attn, memory_mask=mem)
        assert_same_bits(got[:, others], want[:, others])
    after = layer(np.where(np.arange(L)[:, None] >= 12, np.float32(fill), x), memory)
    assert_same_bits(after[:, :12], layer(x, memory)[:, :12])  # causal: what comes later is blocked
    assert np.isnan(after[:, 12:]).all()


# --- lists, one sequence ------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["layer", None, "sinusoidal", "rotary", "alibi"])
def test_a_list_is_a_ragged_batch(rng, positions):
    layer, _ = make(rng, 0) if positions == "layer" else make(rng, positions=positions)
    xs = [normals(rng, n, 32) for n in (5, 1, 65, 0, 130)]
    memories = [normals(rng, n, 32) for n in (9, 70, 0, 3, 1)]
    outs = layer(xs, memories)
    assert type(outs) is list
    for x, memory, out in zip(xs, memories, outs, strict=True):
        assert_same_bits(out, layer(x, memory))
    assert layer([], []) == []
    assert_same_bits(layer((xs[0],), (memories[0],)), layer(xs[0][None], memories[0][None]))


@pytest.mark.parametrize("num_layers", [0, 2])
def test_lists_with_everything_asked(rng, num_layers):
    layer, _ = make(rng, num_layers)
    xs, memories = [normals(rng, n, 32) for n in (5, 17)], [normals(rng, n, 32) for n in (9, 2)]
    call = {"need_weights": True, "window": (3, None)} | (
        {"output_hidden_states": True} if num_layers else {}
    )
    answer = layer(xs, memories, **call)
    for i, both in enumerate(zip(xs, memories, strict=True)):
        one = layer(*both, **call)
        assert_same_bits(answer[0][i], one[0])
        for many, single in zip(answer[1:], one[1:], strict=True):
            if num_layers == 0:
                assert_same_bits(many[i], single)
            else:
                for of_layer, of_one in zip(many, single, strict=True):
                    assert_same_bits(of_layer[i], of_one)


def test_without_batch(rng):
    layer, _ = make(rng)
    x, memory = normals(rng, 9, 32), normals(rng, 6, 32)
    assert_same_bits(layer(x, memory), layer(x[None], memory[None])[0])
    answer = layer(x, memory, need_weights=True, output_hidden_states=True)
    assert answer.weights[0].shape == (4, 9, 9)
    assert answer.cross_weights[0].shape == (4, 9, 6)
    assert answer.hidden_states[0].shape == (9, 32)
    kept = np.arange(6) > 2
    assert_same_bits(layer(x, memory, memory_key_mask=kept, lengths=7)[:7], layer(x[:7], memory[kept]))


# --- weights, head masks, dropout ---------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", [[(0, 1)], [(2, 3), (0, 0), (2, 0)], []])
def test_weights_of_chosen_heads(rng, pairs):
    layer, _ = make(rng, 3)
    x, memory = normals(rng, 2, 17, 32), normals(rng, 2, 11, 32)
    answer, every = (layer(x, memory, need_weights=asked) for asked in (pairs, True))
    assert_same_bits(answer.output, layer(x, memory))
    for got, whole in ((answer.weights, every.weights), (answer.cross_weights, every.cross_weights)):
        assert set(got) == set(pairs)
        for at, head in pairs:
            assert_same_bits(got[at, head], whole[at][:, head])
    ragged = layer(list(x), list(memory), need_weights=pairs)
    for at, head in pairs:
        assert_same_bits(np.stack(ragged.cross_weights[at, head]), answer.cross_weights[at, head])


@pytest.mark.parametrize("pairs", [[(3, 0)], [(0, 4)], [(0, 1, 2)], [5], "all"])
def test_heads_that_are_not_there(rng, pairs):
    layer, _ = make(rng, 3)
    with pytest.raises((ValueError, TypeError), match="need_weights"):
        layer(normals(rng, 2, 17, 32), normals(rng, 2, 11, 32), need_weights=pairs)


def test_head_masks(rng):
    layer, twin = make(rng, 3)
    x, memory = normals(rng, 2, 17, 32), normals(rng, 2, 11, 32)
    mask = np.array([[1, 1, 0, 1], [0.5, 1, 1, 2], [0, 0, 0, 0]])
    for call in (
        {"head_mask": mask},
        {"cross_head_mask": mask},
        {"head_mask": mask, "cross_head_mask": mask[::-1]},
    ):
        assert rms_relative(layer(x, memory, **call), twin(x, memory, **call)) <= 1e-6
    assert_same_bits(
        layer(x, memory, head_mask=np.ones((3, 4)), cross_head_mask=np.ones((3, 4))), layer(x, memory)
    )
    for name, shape in product(("head_mask", "cross_head_mask"), ((2, 4), (3, 5))):
        with pytest.raises(ValueError, match=f"^{name}"):
            layer(x, memory, **{name: np.ones(shape)})
    one, twin = make(rng, 0)
    call = {"head_mask": mask[1], "cross_head_mask": mask[0]}
    assert rms_relative(one(x, memory, **call), twin(x, memory, **call)) <= 1e-6


@pytest.mark.parametrize("num_layers", [0, 2])
def test_dropout_in_training_only(rng, threads, num_layers):
    layer, _ = make(rng, num_layers, dropout=0.2)
    x, memory = normals(rng, 4, 33, 32), normals(rng, 4, 11, 32)
    assert_same_bits(layer(x, memory), layer(x, memory, rng=1))
    out = layer(x, memory, training=True, rng=1)
    assert not np.array_equal(out, layer(x, memory))
    assert not np.array_equal(out, layer(x, memory, training=True, rng=2))
    for n in (1, 2, 3):
        threads(n)
        assert_same_bits(layer(x, memory, training=True, rng=1), out)
    one, other = np.random.default_rng(5), np.random.default_rng(5)
    layer(x, memory, training=True, rng=one)
    layer(x[:1, :3], memory[:1], training=True, rng=other)
    assert one.bit_generator.state == other.bit_generator.state
    assert one.bit_generator.state != np.random.default_rng(5).bit_generator.state
