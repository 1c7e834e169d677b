"""Decoder.step and DecoderCache: the bits of the causal call, whatever the steps and what happens between."""

import copy
import os
import pickle
import signal
import sys
import threading

import numpy as np
import pytest
from compare import assert_same_bits, normals, rms_relative
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import pad, randomize
from reference import linear_reference, sinusoidal_positions_reference
from reference_layers import heads_of, norm_reference, part, projections

import headwise as hw

D = 32
MAKERS = {
    "plain": lambda **k: hw.Decoder(2, D, 4, 48, **k),
    "pre-norm": lambda **k: hw.Decoder(2, D, 4, 48, norm_first=True, final_norm=True, activation="gelu", **k),
    "sinusoidal": lambda **k: hw.Decoder(2, D, 4, 48, positions="sinusoidal", activation="gelu_tanh", **k),
    "rotary": lambda **k: hw.Decoder(2, D, 4, 48, positions="rotary", **k),
    "alibi": lambda **k: hw.Decoder(2, D, 4, 48, positions="alibi", **k),
    "modern": lambda **k: hw.Decoder(
        2, D, 4, 40, positions="rotary", activation="silu", norm="rms", norm_first=True, ffn="glu",
        bias=False, num_kv_heads=2, final_norm=True, **k,
    ),
    "narrow heads": lambda **k: hw.Decoder(1, D, 3, 51, head_dim=10, num_kv_heads=1, positions="alibi", **k),
    "pruned": lambda **k: hw.Decoder(1, D, 4, 48, **k).prune_heads({0: [1]}, {0: [0, 2]}),
}  # fmt: skip
SIZES = (1, 1, 2, 1, 7, 50, 1, 1, 1, 3, 60, 1, 1, 12)
"""Sizes of steps, 142 tokens: their edges fall before, on and after 64 and 128, and inside of steps."""


def made(name="plain", dtype="float32", seed=7):
    """Return one of the decoders, with random parameters."""
    return randomize(MAKERS[name](dtype=dtype), np.random.default_rng(seed))


def walk(decoder, x, cache, sizes):
    """Take x (B, L, D) through the decoder in steps of these sizes; return (B, sum of sizes, D)."""
    ends = np.cumsum(sizes)
    steps = [decoder.step(x[:, end - n : end], cache) for n, end in zip(sizes, ends, strict=True)]
    return np.concatenate(steps, axis=1)


# --- the bits of the whole ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", MAKERS)
def test_steps_have_the_bits_of_the_causal_call(rng, name, dtype):
    decoder = made(name, dtype)
    L = sum(SIZES)
    x, memory = normals(rng, 3, L, D, dtype=dtype), normals(rng, 3, 70, D, dtype=dtype)
    want = decoder(x, memory)
    for sizes in (SIZES, SIZES[::-1], [1] * L, [64, 64, L - 128], [63, 1, 1, L - 65], [L], [0, 5, 0, L - 5]):
        cache = decoder.new_cache(memory)
        assert_same_bits(walk(decoder, x, cache, sizes), want)
        assert cache.lengths.tolist() == [L] * 3
        assert cache.first == 0


@pytest.mark.parametrize("threads_used", [1, 2, 5])
def test_threads(rng, threads, threads_used):
    threads(threads_used)
    decoder = made("modern")
    x, memory = normals(rng, 5, 90, D), normals(rng, 5, 70, D)
    cache = decoder.new_cache(memory)
    out = walk(decoder, x, cache, [1, 70, 1, 18])
    with hw.num_threads(3):
        assert_same_bits(out, decoder(x, memory))


@pytest.mark.parametrize("name", ["plain", "modern", "sinusoidal", "alibi"])
def test_ragged_steps(rng, name):
    """Each sequence takes as many of a step's tokens as `lengths` says, 0 too; the rest may be anything."""
    decoder = made(name)
    x, memory = normals(rng, 4, 140, D), normals(rng, 4, 9, D)
    cache, at = decoder.new_cache(memory), np.zeros(4, dtype=int)
    outs = [[] for _ in range(4)]
    while (at < 140).any():
        n = int(rng.integers(1, 30))
        lengths = np.minimum(rng.integers(0, n + 1, 4), 140 - at)
        step = np.full((4, n, D), np.nan, dtype=np.float32)
        for b in range(4):
            step[b, : lengths[b]] = x[b, at[b] : at[b] + lengths[b]]
        out = decoder.step(step, cache, lengths=lengths)
        for b in range(4):
            outs[b].append(out[b, : lengths[b]])
            assert_same_bits(out[b, lengths[b] :], np.zeros_like(out[b, lengths[b] :]))
        at += lengths
        assert cache.lengths.tolist() == at.tolist()
    assert_same_bits(np.stack([np.concatenate(rows) for rows in outs]), decoder(x, memory))


@pytest.mark.parametrize("name", ["plain", "modern"])
def test_weights_over_the_memory(rng, name):
    decoder = made(name)
    x, memory = normals(rng, 3, 20, D), normals(rng, 3, 11, D)
    call = {"memory_lengths": [11, 0, 4]}
    every = decoder(x, memory, need_weights=True, **call)
    cache, quiet = decoder.new_cache(memory, **call), decoder.new_cache(memory, **call)
    for start, end in ((0, 1), (1, 9), (9, 20)):
        out, cross = decoder.step(x[:, start:end], cache, need_weights=True)
        assert_same_bits(out, every.output[:, start:end])
        assert_same_bits(decoder.step(x[:, start:end], quiet), out)
        assert len(cross) == 2
        for got, whole in zip(cross, every.cross_weights, strict=True):
            assert_same_bits(got, whole[:, :, start:end])


@pytest.mark.parametrize("name", ["plain", "modern"])
def test_memories_with_masks_and_lists(rng, name):
    decoder = made(name)
    lengths = (70, 1, 0, 33)
    memories = [normals(rng, n, D) for n in lengths]
    x = normals(rng, 4, 12, D)
    want = np.stack([decoder(*both) for both in zip(x, memories, strict=True)])
    right, kept = pad(memories, fill=np.nan)
    left, kept_left = pad(memories, fill=np.inf, left=True)
    holes = rng.random((4, 100)) < 0.6
    spread = np.where(holes[..., None], normals(rng, 4, 100, D), np.nan)
    for cache in (
        decoder.new_cache(memories),
        decoder.new_cache(right, memory_lengths=lengths),
        decoder.new_cache(right, memory_key_mask=kept),
        decoder.new_cache(right, memory_key_mask=kept.astype(int), memory_lengths=np.array(lengths)),
        decoder.new_cache(left, memory_key_mask=kept_left),
    ):
        assert len(cache) == 4
        assert_same_bits(walk(decoder, x, cache, [1, 3, 8]), want)
    cache = decoder.new_cache(spread, memory_key_mask=holes)
    assert_same_bits(walk(decoder, x, cache, [1, 3, 8]), decoder(x, spread, memory_key_mask=holes))


def test_one_sequence_and_none(rng):
    decoder = made()
    x, memory = normals(rng, 9, D), normals(rng, 5, D)
    cache = decoder.new_cache(memory)
    assert len(cache) == 1
    assert_same_bits(
        np.concatenate([decoder.step(x[:4], cache), decoder.step(x[None, 4:], cache)[0]]), decoder(x, memory)
    )
    for empty in (decoder.new_cache([]), decoder.new_cache(np.zeros((0, 5, D)))):
        assert len(empty) == 0
        assert decoder.step(np.zeros((0, 3, D)), empty).shape == (0, 3, D)
        assert empty.lengths.shape == (0,)
    nothing = decoder.new_cache(np.zeros((2, 0, D), dtype=np.float32))
    targets = normals(rng, 2, 9, D)
    assert_same_bits(
        walk(decoder, targets, nothing, [2, 7]), decoder(targets, np.zeros((2, 0, D), dtype=np.float32))
    )


@given(st.integers(0, 2**32 - 1), st.sampled_from(list(MAKERS)))
@settings(max_examples=25)
def test_property_steps_equal_the_whole(seed, name):
    rng = np.random.default_rng(seed)
    dtype = rng.choice(["float32", "float64"])
    decoder = made(name, dtype, seed)
    B, L, S = rng.integers(1, 4), int(rng.integers(1, 150)), int(rng.integers(0, 80))
    x, memory = normals(rng, B, L, D, dtype=dtype), normals(rng, B, S, D, dtype=dtype)
    window = None if rng.integers(2) else (int(rng.integers(0, 70)), None)
    call = {"memory_key_mask": rng.random((B, S)) < 0.7}
    cuts = np.unique(np.concatenate([[0, L], rng.integers(0, L + 1, int(rng.integers(0, 20)))]))
    cache = decoder.new_cache(memory, window=window, **call)
    assert_same_bits(walk(decoder, x, cache, np.diff(cuts)), decoder(x, memory, window=window, **call))


# --- windows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", [None, "sinusoidal", "rotary", "alibi"])
@pytest.mark.parametrize("window", [(0, 0), (5, 0), (64, None), (100, 0)])
def test_windows_let_go_of_old_keys(rng, window, positions):
    decoder = randomize(hw.Decoder(1, 16, 2, 8, positions=positions), rng)
    L = 700
    x, memory = normals(rng, 2, L, 16), normals(rng, 2, 5, 16)
    want = decoder(x, memory, window=window)
    cache = decoder.new_cache(memory, window=window)
    assert cache.window == window[0]
    firsts, sizes, at = [0], [], 0
    while at < L:
        n = min(int(rng.integers(1, 4)), L - at)
        assert_same_bits(decoder.step(x[:, at : at + n], cache), want[:, at : at + n])
        at += n
        firsts.append(cache.first)
        sizes.append(cache.nbytes)
        assert cache.lengths.tolist() == [at, at]
        assert cache.keys[0].shape == cache.values[0].shape == (2, 2, at - cache.first, 8)
        assert cache.first <= max(at - window[0], 0)  # what the next token sees is there
    assert (np.diff(firsts) >= 0).all()
    assert firsts[-1] > L / 2
    assert max(sizes) == max(sizes[:400])  # the longer it runs, the same room
    full = decoder.new_cache(memory)
    walk(decoder, x, full, [L])
    assert max(sizes) < full.nbytes


def test_windows_of_ragged_steps(rng):
    """The slowest sequence decides what may go."""
    decoder = made("modern")
    x, memory = normals(rng, 3, 500, D), normals(rng, 3, 5, D)
    want = decoder(x, memory, window=(20, 0))
    cache, at = decoder.new_cache(memory, window=(20, 0)), np.zeros(3, dtype=int)
    while (at < 500).any():
        lengths = np.minimum(np.array([3, 1, 2]) if at[1] < 60 else np.array([3, 9, 2]), 500 - at)
        step = np.zeros((3, 9, D), dtype=np.float32)
        for b, n in enumerate(lengths):
            step[b, :n] = x[b, at[b] : at[b] + n]
        out = decoder.step(step, cache, lengths=lengths)
        for b, n in enumerate(lengths):
            assert_same_bits(out[b, :n], want[b, at[b] : at[b] + n])
        at += lengths
        assert cache.first + 20 <= max(at.min(), 20)
    assert cache.first > 100


def test_a_window_cannot_be_undone(rng):
    decoder = made()
    x, memory = normals(rng, 1, 400, D), normals(rng, 1, 5, D)
    cache = decoder.new_cache(memory, window=(10, 0))
    walk(decoder, x, cache, [1] * 400)
    want = decoder(x, memory, window=(10, 0))
    assert cache.first > 0
    with pytest.raises(ValueError, match=r"^lengths.*window"):
        cache.crop(cache.first)
    assert cache.lengths.tolist() == [400]
    cache.crop(cache.first + 10)
    at = cache.first + 10
    assert_same_bits(walk(decoder, x[:, at:], cache, [1] * (400 - at)), want[:, at:])


@pytest.mark.parametrize("window", [(-1, 0), 3, (1, 2, 3), (1.5, 0)])
def test_windows_that_are_refused(window):
    with pytest.raises((ValueError, TypeError), match="window"):
        made().new_cache(np.zeros((1, 3, D)), window=window)


# --- reorder, copy, crop ------------------------------------------------------------------------------------


def check_histories(decoder, cache, memory, histories, rng):
    """Take new tokens through a cache and through fresh ones that are fed the same histories."""
    new = normals(rng, len(histories), 70, D)
    got = np.concatenate([decoder.step(new[:, :1], cache), decoder.step(new[:, 1:], cache)], axis=1)
    for b, (row, history) in enumerate(histories):
        whole = decoder(np.concatenate([history, new[b]]), memory[row])
        assert_same_bits(got[b], whole[len(history) :])
    return [(row, np.concatenate([history, new[b]])) for b, (row, history) in enumerate(histories)]


@pytest.mark.parametrize("name", ["plain", "modern"])
@pytest.mark.parametrize(
    "orders",
    [
        [[2, 0, 1]], [[0, 1, 2]], [[1, 1, 1]], [[0, 2]], [[2]], [[0, 0, 1, 2, 2]],
        [[1, 2, 2], [2, 0, 0, 1], [1]],
    ],
)  # fmt: skip
def test_reorder(rng, name, orders):
    decoder = made(name)
    x, memory = normals(rng, 3, 66, D), normals(rng, 3, 11, D)
    cache = decoder.new_cache(memory, memory_lengths=[11, 3, 0])
    memories = [memory[0], memory[1, :3], memory[2, :0]]
    lengths = [66, 1, 30]
    decoder.step(x, cache, lengths=lengths)
    histories = [(b, x[b, :n]) for b, n in enumerate(lengths)]
    for order in orders:
        assert cache.reorder(np.array(order)) is None
        histories = [histories[i] for i in order]
        assert len(cache) == len(order)
        assert cache.lengths.tolist() == [len(history) for _, history in histories]
        assert [cache.memory_rows[b] for b in range(len(order))] == [row for row, _ in histories]
        histories = check_histories(decoder, cache, memories, histories, rng)


def test_reorder_to_nothing(rng):
    decoder = made()
    x, memory = normals(rng, 3, 5, D), normals(rng, 3, 11, D)
    for nothing in ([], np.array([], dtype=int), np.zeros(0)):
        cache = decoder.new_cache(memory)
        decoder.step(x, cache)
        cache.reorder(nothing)
        assert len(cache) == 0
        assert cache.lengths.shape == (0,)
        assert cache.keys[0].shape[0] == 0
        assert decoder.step(x[:0], cache).shape == (0, 5, D)
        cache.reorder([])
    before_the_first = decoder.new_cache(memory)
    before_the_first.reorder([2, 2])
    assert_same_bits(decoder.step(x[:2], before_the_first), decoder(x[:2], memory[[2, 2]]))


@pytest.mark.parametrize(
    ("indices", "error"),
    [
        ([3], ValueError), ([-1], ValueError), ([[0, 1]], ValueError), (1, ValueError),
        ([0.0, 1.0], TypeError), ([True, False, True], TypeError), (["a"], TypeError), (None, TypeError),
    ],
)  # fmt: skip
def test_indices_that_are_refused(rng, indices, error):
    decoder = made()
    x, memory = normals(rng, 3, 5, D), normals(rng, 3, 4, D)
    cache = decoder.new_cache(memory)
    decoder.step(x[:, :3], cache)
    with pytest.raises(error, match=r"^indices: expected"):
        cache.reorder(indices)
    assert_same_bits(decoder.step(x[:, 3:], cache), decoder(x, memory)[:, 3:])


COPIES = {
    "copy": lambda c: c.copy(),
    "deepcopy": copy.deepcopy,
    "pickle": lambda c: pickle.loads(pickle.dumps(c)),
}


@pytest.mark.parametrize("how", COPIES)
def test_copies_go_their_own_way(rng, how):
    decoder = made()
    x, other, memory = normals(rng, 2, 80, D), normals(rng, 2, 80, D), normals(rng, 2, 4, D)
    cache = decoder.new_cache(memory, memory_lengths=[4, 2])
    decoder.step(x[:, :30], cache)
    twin = COPIES[how](cache)
    assert isinstance(twin, hw.DecoderCache)
    other[:, :30] = x[:, :30]
    want, wanted = (decoder(y, memory, memory_lengths=[4, 2])[:, 30:] for y in (x, other))
    one, two = [], []
    for i in range(30, 80):
        one.append(decoder.step(x[:, i : i + 1], cache))
        two.append(decoder.step(other[:, i : i + 1], twin))
    assert_same_bits(np.concatenate(one, axis=1), want)
    assert_same_bits(np.concatenate(two, axis=1), wanted)
    twin.reorder([1])
    cache.crop(3)
    assert (twin.lengths.tolist(), cache.lengths.tolist()) == ([80], [3, 3])
    new = normals(rng, 1, 1, D)
    whole = decoder(np.concatenate([other[1], new[0]]), memory[1, :2])
    assert_same_bits(decoder.step(new, twin)[0], whole[80:])


@pytest.mark.parametrize("name", ["plain", "modern"])
def test_crop_and_go_on(rng, name):
    decoder = made(name)
    x, memory = normals(rng, 3, 130, D), normals(rng, 3, 4, D)
    want = decoder(x, memory)
    cache = decoder.new_cache(memory)
    decoder.step(x, cache)
    for lengths in (129, [100, 3, 65], np.array([64, 0, 1]), 0):
        stay = np.broadcast_to(lengths, 3)
        cache.crop(lengths)
        assert cache.lengths.tolist() == stay.tolist()
        fork = cache.copy()
        decoder.step(normals(rng, 3, 20, D), fork)  # another way, which must leave no trace
        decoder.step(normals(rng, 3, 5, D), cache)
        cache.crop(lengths)
        ahead = np.zeros_like(x)
        for b, n in enumerate(stay):
            ahead[b, : 130 - n] = x[b, n:]
        out = decoder.step(ahead, cache, lengths=130 - stay)
        for b, n in enumerate(stay):
            assert_same_bits(out[b, : 130 - n], want[b, n:])


@pytest.mark.parametrize(
    ("lengths", "error"),
    [
        (6, ValueError), (-1, ValueError), ([5, 6], ValueError), ([5], ValueError), ([[5, 5]], ValueError),
        (2.0, (TypeError, ValueError)), (None, (TypeError, ValueError)),
    ],
)  # fmt: skip
def test_lengths_that_are_refused(rng, lengths, error):
    decoder = made()
    x, memory = normals(rng, 2, 8, D), normals(rng, 2, 4, D)
    cache = decoder.new_cache(memory)
    decoder.step(x[:, :5], cache)
    with pytest.raises(error, match=r"^lengths: expected"):
        cache.crop(lengths)
    assert_same_bits(decoder.step(x[:, 5:], cache), decoder(x, memory)[:, 5:])


# --- what is in it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "pre-norm", "sinusoidal", "alibi", "narrow heads"])
def test_keys_and_values_are_the_layers_projections(rng, name):
    decoder = made(name)
    x, memory = normals(rng, 3, 70, D), normals(rng, 3, 11, D)
    cache = decoder.new_cache(memory)
    walk(decoder, x, cache, [1, 68, 1])
    state = decoder.state_dict()
    hidden = decoder(x, memory, output_hidden_states=True).hidden_states
    if name == "sinusoidal":
        np.testing.assert_allclose(hidden[0], x + sinusoidal_positions_reference(70, D), atol=1e-6)
    kv_heads = 1 if name == "narrow heads" else 4
    for i in range(decoder.num_layers):
        own, cross = (part(state, f"layers.{i}.{which}.") for which in ("self_attn", "multihead_attn"))
        rows = hidden[i]
        if name == "pre-norm":
            rows = norm_reference(part(state, f"layers.{i}.norm1."), rows, "layer", 1e-5)
        for inputs, attention, arrays in (
            (rows, own, (cache.keys, cache.values)),
            (memory, cross, (cache.memory_keys, cache.memory_values)),
        ):
            for (weight, bias), got in zip(projections(attention, D)[1:], arrays, strict=True):
                want = heads_of(linear_reference(inputs, weight, bias), kv_heads)
                assert got[i].dtype == np.float32
                assert rms_relative(got[i], want) <= 4e-7


def test_what_can_be_seen(rng):
    decoder = made("modern")
    x, memory = normals(rng, 3, 40, D), normals(rng, 3, 11, D)
    cache = decoder.new_cache(memory, memory_lengths=[11, 2, 0])
    assert cache.keys[0].shape == (3, 2, 0, 8)
    decoder.step(x, cache, lengths=[40, 7, 0])
    assert len(cache) == 3
    assert cache.window is None
    assert len(cache.keys) == len(cache.values) == len(cache.memory_keys) == len(cache.memory_values) == 2
    for i in range(2):
        assert cache.keys[i].shape == cache.values[i].shape == (3, 2, 40, 8)
        assert cache.memory_keys[i].shape == cache.memory_values[i].shape == (3, 2, 11, 8)
    assert_same_bits(cache.memory_rows, np.arange(3))
    kept = np.arange(11) < np.array([[11], [2], [0]])
    assert_same_bits(cache.memory_key_mask, kept)
    assert decoder.new_cache(memory).memory_key_mask is None
    held = sum(a.nbytes for a in (*cache.keys, *cache.values, *cache.memory_keys, *cache.memory_values))
    assert held <= cache.nbytes <= 4 * held
    assert repr(cache) == "DecoderCache(3 sequences, 2 layers, 0 to 40 tokens)"
    lengths = cache.lengths
    lengths[...] = 9
    assert cache.lengths.tolist() == [40, 7, 0]
    for i in range(2):  # the same keys as of each sequence alone
        for b, n in enumerate((40, 7)):
            alone = decoder.new_cache(memory[b, : kept[b].sum()])
            decoder.step(x[b, :n], alone)
            assert_same_bits(cache.keys[i][b, :, :n], alone.keys[i][0])
            assert_same_bits(cache.values[i][b, :, :n], alone.values[i][0])


def test_it_is_made_by_a_decoder_only():
    with pytest.raises(TypeError, match="new_cache"):
        hw.DecoderCache()


def test_growth_does_not_copy_each_step(rng):
    decoder = randomize(hw.Decoder(1, 8, 2, 8), rng)
    cache = decoder.new_cache(normals(rng, 1, 3, 8))
    x = normals(rng, 1, 1000, 8)
    bases, growths = [], 0
    for i in range(1000):
        decoder.step(x[:, i : i + 1], cache)
        keys = cache.keys[0]
        root = keys if keys.base is None else keys.base
        growths += not any(root is base for base in bases)
        bases = [root]
    assert growths <= 12
    many = decoder.new_cache(normals(rng, 1, 3, 8))
    decoder.step(x, many)
    assert many.nbytes <= 4 * 1000 * 2 * 8 * 4  # room is no more than a few times what is held


def test_views_that_are_held_stay_what_they_were(rng):
    decoder = made()
    x, memory = normals(rng, 2, 200, D), normals(rng, 2, 4, D)
    cache = decoder.new_cache(memory)
    decoder.step(x[:, :10], cache)
    views = [*cache.keys, *cache.values, *cache.memory_keys]
    then = [view.copy() for view in views]
    walk(decoder, x[:, 10:], cache, [1] * 20 + [170])
    cache.reorder([1, 1])
    del cache
    for view, copied in zip(views, then, strict=True):
        assert_same_bits(view, copied)


# --- what is refused ----------------------------------------------------------------------------------------

X, M = np.ones((2, 5, D), dtype=np.float32), np.ones((2, 3, D), dtype=np.float32)


REFUSED = {
    "width": (X[..., :31], {}, ValueError, r"^x: .*D.*32.*31"),
    "batch": (X[:1], {}, ValueError, "^x: .*2.*1"),
    "larger batch": (np.ones((3, 5, D)), {}, ValueError, "^x: .*2.*3"),
    "no batch": (X[0], {}, ValueError, "^x: .*2"),
    "list": (list(X), {}, TypeError, "^x: .*list"),
    "complex": (X.astype(complex), {}, TypeError, "^x: .*complex"),
    "lengths too large": (X, {"lengths": [5, 6]}, ValueError, "^lengths: .*5.*6"),
    "negative lengths": (X, {"lengths": [5, -1]}, ValueError, "^lengths: .*-1"),
    "lengths of another batch": (X, {"lengths": [5, 5, 5]}, ValueError, "^lengths: .*B"),
    "lengths of floats": (X, {"lengths": [5.0, 5.0]}, TypeError, "^lengths"),
    "weights of some heads": (X, {"need_weights": [(0, 1)]}, TypeError, "need_weights"),
    "training": (X, {"training": True}, TypeError, "training"),
    "too large": (np.broadcast_to(X[:, :1], (2, 10**12, D)), {}, MemoryError, "allocate"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_failing_step_leaves_the_cache_as_it_was(rng, name):
    x, keywords, error, text = REFUSED[name]
    decoder = made()
    history = normals(rng, 2, 8, D)
    cache = decoder.new_cache(M)
    decoder.step(history[:, :3], cache)
    before = [a.copy() for a in (*cache.keys, *cache.values)]
    with pytest.raises(error, match=text):
        decoder.step(x, cache, **keywords)
    assert cache.lengths.tolist() == [3, 3]
    for one, two in zip(before, (*cache.keys, *cache.values), strict=True):
        assert_same_bits(one, two)
    assert_same_bits(decoder.step(history[:, 3:], cache), decoder(history, M)[:, 3:])


def test_caches_of_other_decoders(rng):
    decoder = made()
    history = normals(rng, 2, 8, D)
    cache = decoder.new_cache(M)
    decoder.step(history[:, :3], cache)
    others = {
        "layers": hw.Decoder(3, D, 4, 48),
        "heads": hw.Decoder(2, D, 8, 48),
        "width": hw.Decoder(2, D, 4, 48, head_dim=10),
        "grouped": hw.Decoder(2, D, 4, 48, num_kv_heads=2),
    }
    for other in others.values():
        with pytest.raises(ValueError, match=r"^cache"):
            other.step(X, cache)
    with pytest.raises(TypeError, match=r"^cache.*float64.*float32|^cache.*float32.*float64"):
        decoder.to("float64").step(X.astype(np.float64), cache)
    for nothing in (None, {}, cache.keys, M):
        with pytest.raises(TypeError, match=r"^cache: .*DecoderCache"):
            decoder.step(X, nothing)
    assert_same_bits(decoder.step(history[:, 3:], cache), decoder(history, M)[:, 3:])


def test_a_cache_of_another_decoder_of_the_same_shape(rng):
    """Its arrays fit, but its keys are projections by other parameters."""
    decoder, other = made(), made(seed=8)
    cache = decoder.new_cache(M)
    decoder.step(X, cache)
    with pytest.raises(ValueError, match=r"^cache"):
        other.step(X, cache)


MEMORIES = {
    "width": (M[..., :31], {}, ValueError, "^memory: .*D.*32.*31"),
    "axes": (M[None], {}, ValueError, "^memory"),
    "lengths": (M, {"memory_lengths": [3, 4]}, ValueError, "^memory_lengths: .*3.*4"),
    "mask": (M, {"memory_key_mask": np.ones((2, 5), bool)}, ValueError, "^memory_key_mask: .*2, 5"),
    "mask of floats": (M, {"memory_key_mask": np.ones((2, 3))}, TypeError, "^memory_key_mask"),
    "lengths of a list": (list(M), {"memory_lengths": [3, 3]}, ValueError, "^memory_lengths"),
    "mask of a list": (list(M), {"memory_key_mask": np.ones((2, 3), bool)}, ValueError, "^memory_key_mask"),
    "torch's mask": (
        M, {"memory_key_padding_mask": np.zeros((2, 3), bool)}, TypeError, "pass memory_key_mask=",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MEMORIES)
def test_memories_that_are_refused(name):
    memory, keywords, error, text = MEMORIES[name]
    with pytest.raises(error, match=text):
        made().new_cache(memory, **keywords)


# --- threads, processes -------------------------------------------------------------------------------------


@pytest.fixture
def often():
    """Let Python's threads take turns often, so that they meet at every place."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.once
@pytest.mark.usefixtures("often")
def test_threads_on_one_cache(rng, threads):
    """One may be told that the cache is in use. What the others were given is in it, in some order."""
    threads(2)
    decoder = made()
    memory, token = normals(rng, 2, 4, D), np.ones((2, 1, D), dtype=np.float32)
    want = decoder(np.ones((2, 301, D), dtype=np.float32), memory)
    for _ in range(20):
        cache, done, faults, start = decoder.new_cache(memory), [], [], threading.Barrier(3)

        def call(cache=cache, done=done, faults=faults, start=start):
            start.wait()
            for _ in range(100):
                try:
                    done.append(decoder.step(token, cache))
                except ValueError as error:
                    if not str(error).startswith("cache"):
                        faults.append(error)
                except BaseException as error:
                    faults.append(error)

        callers = [threading.Thread(target=call) for _ in range(3)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert not faults
        n = len(done)
        assert cache.lengths.tolist() == [n, n]
        assert {out.tobytes() for out in done} == {want[:, i : i + 1].tobytes() for i in range(n)}
        assert_same_bits(decoder.step(token, cache), want[:, n : n + 1])


@pytest.mark.once
@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("change", ["reorder", "copy", "crop"])
def test_a_cache_that_is_changed_beside_steps(rng, threads, change):
    """Either comes first or is told that the cache is in use; afterwards the cache is whole."""
    threads(2)
    decoder = made()
    memory, token = normals(rng, 2, 4, D), np.ones((2, 1, D), dtype=np.float32)
    memory[1] = memory[0]  # so that rows may change places
    want = decoder(np.ones((2, 202, D), dtype=np.float32), memory)
    changes = {
        "reorder": lambda cache: cache.reorder([1, 0]),
        "copy": lambda cache: decoder.step(token, cache.copy()),
        "crop": lambda cache: cache.crop(np.maximum(cache.lengths - 1, 0)),
    }
    for _ in range(10):
        cache, faults, start = decoder.new_cache(memory), [], threading.Barrier(2)

        def call(f, cache=cache, faults=faults, start=start):
            start.wait()
            for _ in range(100):
                try:
                    f(cache)
                except ValueError as error:
                    if not str(error).startswith(("cache", "lengths: expected")):
                        faults.append(error)
                except BaseException as error:
                    faults.append(error)

        callers = [
            threading.Thread(target=call, args=(f,))
            for f in (lambda cache: decoder.step(token, cache), changes[change])
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert not faults
        n, m = cache.lengths
        assert n == m
        assert_same_bits(decoder.step(token, cache), want[:, n : n + 1])


def test_an_interrupted_step_leaves_the_cache_as_it_was(rng):
    class Alarm(Exception):
        pass

    def handler(*_):
        raise Alarm

    decoder = randomize(hw.Decoder(1, 16, 2, 8), rng)
    x, memory = normals(rng, 1, 80, 16), normals(rng, 1, 5, 16)
    cache = decoder.new_cache(memory)
    decoder.step(x[:, :30], cache)
    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Alarm):
            decoder.step(np.ones((1, 60_000, 16), dtype=np.float32), cache)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert cache.lengths.tolist() == [30]
    assert_same_bits(walk(decoder, x[:, 30:], cache, [1, 49]), decoder(x, memory)[:, 30:])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_goes_on(rng, threads):
    threads(2)
    decoder = made()
    x, memory = normals(rng, 4, 70, D), normals(rng, 4, 9, D)
    want = decoder(x, memory)
    cache = decoder.new_cache(memory)
    decoder.step(x[:, :60], cache)
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(0 if np.array_equal(walk(decoder, x[:, 60:], cache, [1, 9]), want[:, 60:]) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert_same_bits(walk(decoder, x[:, 60:], cache, [3, 7]), want[:, 60:])
