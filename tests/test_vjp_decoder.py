"""Gradients of decoders: by differences, of ragged and padded batches, and what must leave no trace."""

import copy

import numpy as np
import pytest
from differences import flat, norm_relative, slopes
from layers import pad, randomize

import headwise as hw

OPTIONS = {
    "plain": {},
    "pre-norm": dict(norm_first=True, final_norm=True),
    "modern": dict(
        ffn="glu", norm="rms", activation="silu", bias=False, norm_first=True, num_kv_heads=2, final_norm=True
    ),
    "gated post-norm": dict(ffn="glu", activation="gelu_tanh", num_kv_heads=1, head_dim=4),
    "dropout": dict(dropout=0.4),
    "dropout, pre-norm": dict(dropout=0.4, activation="silu", norm_first=True),
}


def stack(rng, num_layers=2, d_model=8, d_ff=10, dtype="float64", **options):
    """Return a Decoder (a DecoderLayer for 0 layers) of smooth activation with random parameters."""
    options = {"activation": "gelu"} | options
    if num_layers:
        layer = hw.Decoder(num_layers, d_model, 4, d_ff, dtype=dtype, **options)
    else:
        layer = hw.DecoderLayer(d_model, 4, d_ff, dtype=dtype, **options)
    return randomize(layer, rng)


PAIRS = [
    *zip(OPTIONS, ["rotary", "alibi", None, "sinusoidal", "rotary", "alibi"], strict=True),
    ("pre-norm", "rotary"),
    ("modern", "alibi"),
]


@pytest.mark.parametrize(("name", "positions"), PAIRS)
def test_by_differences(name, positions):
    rng = np.random.default_rng(5)
    options = OPTIONS[name]
    layer = stack(rng, d_ff=6, positions=positions, **options)
    keywords = {"training": True, "rng": 3} if options.get("dropout") else {"window": (2, 0)}
    arrays = [rng.standard_normal((2, 4, 8)), rng.standard_normal((2, 4, 8))]
    hw.gradcheck(layer.vjp, arrays, lengths=[4, 3], memory_lengths=[2, 4], **keywords)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_layer_by_differences(options):
    rng = np.random.default_rng(6)
    layer = stack(rng, 0, **{k: v for k, v in options.items() if k != "final_norm"})
    keywords = {"training": True, "rng": np.random.default_rng(3)} if options.get("dropout") else {}
    arrays = [rng.standard_normal((2, 4, 8)), rng.standard_normal((2, 6, 8))]
    hw.gradcheck(layer.vjp, arrays, key_mask=[[1, 0, 1, 1], [0, 0, 1, 1]], **keywords)


L, S = 5, 6
_RNG = np.random.default_rng(1)
CALLS = {
    "plain": {},
    "not causal": {"is_causal": False},
    "float masks": {
        "attn_mask": np.where(_RNG.random((L, L)) < 0.8, _RNG.standard_normal((L, L)), -np.inf),
        "memory_mask": _RNG.standard_normal((2, 4, L, S)),
    },
    "boolean masks": {"attn_mask": _RNG.random((4, L, L)) < 0.7, "memory_mask": _RNG.random((L, S)) < 0.5},
    "holes": {"key_mask": _RNG.random((2, L)) < 0.6, "memory_key_mask": _RNG.random((2, S)) < 0.6},
    "a blocked memory": {"memory_lengths": [0, 4]},
    "an empty target": {"lengths": [0, 5]},
    "window": {"window": (1, 1), "is_causal": False},
    "head masks": {
        "head_mask": np.array([[0.5, 0.0, 2.0, 1.0]]),
        "cross_head_mask": np.array([[1.5, 1.0, -1.0, 0.0]]),
    },
    "a head mask of the memory": {"cross_head_mask": np.array([[1.5, 1.0, -1.0, 0.0]])},
    "head masks and dropout": {
        "head_mask": np.array([[0.5, 0.4, 2.0, 1.0]]),
        "cross_head_mask": np.array([[0.2, 0.3, 0.7, 1.1]]),
        "training": True,
        "rng": 9,
    },
}


@pytest.mark.parametrize("name", CALLS)
def test_masks_by_differences(name):
    rng = np.random.default_rng(2)
    layer = stack(rng, 1, num_kv_heads=2, dropout=0.3, positions="rotary", head_dim=4)
    hw.gradcheck(layer.vjp, [rng.standard_normal((2, L, 8)), rng.standard_normal((2, S, 8))], **CALLS[name])


@pytest.mark.parametrize("num_layers", [0, 2])
def test_lists_and_single_sequences_by_differences(num_layers):
    rng = np.random.default_rng(3)
    layer = stack(rng, num_layers)
    xs, memories = ([rng.standard_normal((n, 8)) for n in ns] for ns in ((3, 1, 0, 5), (2, 0, 4, 6)))
    hw.gradcheck(layer.vjp, [xs, memories])
    hw.gradcheck(layer.vjp, [xs[0], memories[0]], window=(1, None))


@pytest.mark.parametrize(
    ("target", "memory", "width"), [(1, 1, 32), (17, 3, 100), (65, 17, 16), (3, 129, 16), (129, 65, 16)]
)
def test_lengths_by_differences(target, memory, width):
    rng = np.random.default_rng(target + width)
    layer = stack(rng, 0, width, 24, activation="silu")
    hw.gradcheck(layer.vjp, [rng.standard_normal((n, width)) for n in (target, memory)])


def test_every_gradient_against_slopes():
    """The same by other code than `gradcheck`: inputs, head masks and each parameter by its own name."""
    rng = np.random.default_rng(4)
    layer = stack(rng, 1, positions="alibi", final_norm=True)
    given = {
        "x": rng.standard_normal((2, 3, 8)),
        "memory": rng.standard_normal((2, 4, 8)),
        "head_mask": rng.uniform(0.2, 1.5, (1, 4)),
        "cross_head_mask": rng.uniform(0.2, 1.5, (1, 4)),
    }
    masks = {"memory_key_mask": np.array([[1, 1, 0, 1], [1, 0, 1, 1]])}
    d_out = rng.standard_normal((2, 3, 8))
    out, pullback = layer.vjp(**given, **masks)
    np.testing.assert_array_equal(out, layer(**given, **masks))
    (d_x, d_memory), grads = pullback(d_out)
    got = {"x": d_x, "memory": d_memory} | {name: grads.pop(name) for name in list(given)[2:]}
    for name, array in given.items():

        def of_input(value, name=name):
            return float(np.sum(layer(**given | {name: value}, **masks) * d_out))

        assert got[name].dtype == np.float64
        assert norm_relative(got[name], slopes(of_input, array)) <= 1e-7, name
    state = layer.state_dict()
    assert list(grads) == list(state)
    moved = copy.deepcopy(layer)
    for name, array in state.items():

        def of_parameter(value, name=name):
            moved.load_state_dict(state | {name: value})
            return float(np.sum(moved(**given, **masks) * d_out))

        assert grads[name].dtype == array.dtype
        want = slopes(of_parameter, array)
        if name.endswith("in_proj_bias"):  # a key's bias moves all scores of a row alike: its gradient is 0
            assert np.abs(grads[name][8:16]).max() <= 1e-12
            grads[name][8:16] = want[8:16] = 0.0
        assert norm_relative(grads[name], want) <= 1e-7, name


def test_names_of_gradients():
    rng = np.random.default_rng(4)
    layer = stack(rng, 2)
    x, memory = rng.standard_normal((2, 3, 8)), rng.standard_normal((2, 4, 8))
    names = list(layer.state_dict())
    ones = np.ones((2, 4))
    for given in (["head_mask"], ["cross_head_mask"], ["head_mask", "cross_head_mask"], []):
        grads = layer.vjp(x, memory, **dict.fromkeys(given, ones))[1](x)[1]
        assert sorted(grads) == sorted([*names, *given])
        assert all(grads[name].shape == (2, 4) for name in given)
    one = stack(rng, 0)
    grads = one.vjp(x, memory, head_mask=ones[0], cross_head_mask=ones[0])[1](x)[1]
    assert grads["head_mask"].shape == grads["cross_head_mask"].shape == (4,)
    for dtype in ("float32", "float64"):
        (d_x, d_memory), grads = layer.to(dtype).vjp(x, memory)[1](x)
        assert {d_x.dtype, d_memory.dtype, *(g.dtype for g in grads.values())} == {np.dtype(dtype)}


@pytest.mark.parametrize("positions", [None, "sinusoidal", "rotary", "alibi"])
def test_ragged_lists_have_the_bits_of_padding(positions):
    rng = np.random.default_rng(6)
    layer = stack(rng, 2, 16, 24, "float32", positions=positions)
    xs, memories = (
        [rng.standard_normal((n, 16), dtype=np.float32) for n in ns] for ns in ((5, 70, 1), (66, 3, 17))
    )
    ds = [rng.standard_normal(x.shape, dtype=np.float32) for x in xs]
    out, pullback = layer.vjp(xs, memories)
    (d_xs, d_memories), grads = pullback(ds)
    for left in (False, True):
        (wide, real), (memory, kept) = (pad(ys, fill=np.nan, left=left) for ys in (xs, memories))
        d_wide, _ = pad(ds, fill=np.nan, left=left)
        padded, back = layer.vjp(wide, memory, key_mask=real, memory_key_mask=kept)
        np.testing.assert_array_equal(padded[real], np.concatenate(out))
        (d_wide_x, d_wide_memory), of_padded = back(d_wide)
        np.testing.assert_array_equal(d_wide_x[real], np.concatenate(d_xs))
        np.testing.assert_array_equal(d_wide_memory[kept], np.concatenate(d_memories))
        assert not d_wide_x[~real].any()
        assert not d_wide_memory[~kept].any()
        assert list(grads) == list(of_padded)
        for name, gradient in grads.items():
            np.testing.assert_array_equal(gradient, of_padded[name], err_msg=name)


def test_gradients_of_inputs_know_no_neighbours():
    rng = np.random.default_rng(7)
    layer = stack(rng, 2, 16, 24, "float32", positions="rotary")
    x, memory, d = (rng.standard_normal((4, n, 16), dtype=np.float32) for n in (33, 17, 33))
    d_x, d_memory = layer.vjp(x, memory)[1](d)[0]
    for b in range(4):
        alone_x, alone_memory = layer.vjp(x[b], memory[b])[1](d[b])[0]
        np.testing.assert_array_equal(alone_x, d_x[b])
        np.testing.assert_array_equal(alone_memory, d_memory[b])


def test_what_is_blocked_leaves_no_trace():
    rng = np.random.default_rng(8)
    layer = stack(rng, 2, 16, 24)
    x, memory, d_out = (rng.standard_normal((2, n, 16)) for n in (9, 12, 9))
    real, kept = np.arange(9) < np.array([[9], [4]]), np.arange(12) < np.array([[0], [7]])
    masks = {"key_mask": real, "memory_key_mask": kept}
    (d_x, d_memory), grads = layer.vjp(x, memory, **masks)[1](d_out)
    x[~real], memory[~kept], d_out[~real] = np.nan, np.inf, np.nan
    (d_x2, d_memory2), poisoned = layer.vjp(x, memory, **masks)[1](d_out)
    np.testing.assert_array_equal(d_x2, d_x)
    np.testing.assert_array_equal(d_memory2, d_memory)
    assert not d_x[~real].any()
    assert not d_memory[~kept].any()
    assert d_memory[kept].all()
    for name, gradient in grads.items():
        np.testing.assert_array_equal(gradient, poisoned[name], err_msg=name)


@pytest.mark.parametrize("lists", [False, True])
def test_threads_and_repetition_change_nothing(lists):
    rng = np.random.default_rng(9)
    layer = stack(rng, 2, 64, 96, "float32", dropout=0.2, norm_first=True)
    x, memory, d_out = (rng.standard_normal((5, n, 64), dtype=np.float32) for n in (70, 66, 70))
    if lists:
        x, memory, d_out = list(x), list(memory), list(d_out)
    results = []
    for threads in (1, 2, 5):
        with hw.num_threads(threads):
            out, pullback = layer.vjp(x, memory, training=True, rng=1)
            for _ in range(2):
                (d_x, d_memory), grads = pullback(d_out)
                results.append([flat(out), flat(d_x), flat(d_memory), *grads.values()])
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(results[0][0], flat(layer(x, memory, training=True, rng=1)))


def test_dropout_draws_once_from_a_generator():
    rng = np.random.default_rng(9)
    layer = stack(rng, 2, dropout=0.5)
    x, memory = rng.standard_normal((2, 5, 8)), rng.standard_normal((2, 3, 8))
    one, other = np.random.default_rng(1), np.random.default_rng(1)
    out, pullback = layer.vjp(x, memory, training=True, rng=one)
    np.testing.assert_array_equal(out, layer(x, memory, training=True, rng=other))
    assert one.bit_generator.state == other.bit_generator.state
    first, second = pullback(x), pullback(x)
    np.testing.assert_array_equal(first[0][0], second[0][0])
    assert one.bit_generator.state == other.bit_generator.state


def test_a_pullback_keeps_the_parameters_of_its_forward_pass():
    rng = np.random.default_rng(3)
    layer = stack(rng, 1)
    x, memory = rng.standard_normal((4, 8)), rng.standard_normal((3, 8))
    _, pullback = layer.vjp(x, memory)
    before = pullback(x)[0]
    layer.load_state_dict({k: v + 1 for k, v in layer.state_dict().items()})
    for one, two in zip(pullback(x)[0], before, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("num_layers", [0, 1])
def test_nothing_at_all(num_layers):
    layer = stack(np.random.default_rng(0), num_layers)
    out, pullback = layer.vjp([], [])
    (d_x, d_memory), grads = pullback([])
    assert out == d_x == d_memory == []
    assert list(grads) == list(layer.state_dict())
    assert not any(g.any() for g in grads.values())
    for B, L, S in ((2, 0, 3), (2, 3, 0), (0, 3, 3), (2, 0, 0)):
        out, pullback = layer.vjp(np.zeros((B, L, 8)), np.zeros((B, S, 8)))
        (d_x, d_memory), grads = pullback(np.ones((B, L, 8)))
        assert (d_x.shape, d_memory.shape) == ((B, L, 8), (B, S, 8))
        assert not d_memory.any() or L
        assert all(np.isfinite(g).all() for g in grads.values())
        if not L or not B:
            assert not any(g.any() for g in grads.values())


def test_errors_name_what_came():
    layer = stack(np.random.default_rng(0), 1)
    x, memory = np.zeros((2, 3, 8)), np.zeros((2, 4, 8))
    _, pullback = layer.vjp(x, memory)
    with pytest.raises(ValueError, match=r"d_out: expected shape \(2, 3, 8\).*got shape \(3, 8\)"):
        pullback(x[0])
    with pytest.raises(ValueError, match="d_out"):
        pullback([x[0], x[1]])
    with pytest.raises(TypeError, match="need_weights"):
        layer.vjp(x, memory, need_weights=True)
    with pytest.raises(TypeError, match="output_hidden_states"):
        layer.vjp(x, memory, output_hidden_states=True)
    assert repr(pullback) == "<pullback of Decoder>"
    assert repr(stack(np.random.default_rng(0), 0).vjp(x, memory)[1]) == "<pullback of DecoderLayer>"


MASKS = {
    "lengths": np.array([3, 2]),
    "memory_lengths": np.array([4, 2]),
    "key_mask": np.ones((2, 3), dtype=int),
    "memory_key_mask": np.ones((2, 4), dtype=bool),
}


@pytest.mark.parametrize("num_layers", [0, 1])
@pytest.mark.parametrize("which", MASKS)
def test_masks_that_changed_in_between_are_refused(num_layers, which):
    layer = stack(np.random.default_rng(1), num_layers)
    x, memory = np.ones((2, 3, 8)), np.ones((2, 4, 8))
    mask = MASKS[which].copy()
    _, pullback = layer.vjp(x, memory, **{which: mask})
    pullback(x)
    mask[1] = 0
    with pytest.raises(ValueError, match="changed between"):
        pullback(x)
