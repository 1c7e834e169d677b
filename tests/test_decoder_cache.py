"""Decoder.step and DecoderCache: the bits of the causal call, whatever the steps and what happens between."""

import numpy as np
import pytest
from compare import assert_same_bits, normals
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import pad, randomize

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
