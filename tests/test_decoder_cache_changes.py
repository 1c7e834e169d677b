"""DecoderCache under the user's hands: reordered, copied, cropped, looked at."""

import copy
import pickle

import numpy as np
import pytest
from compare import assert_same_bits, normals, rms_relative
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import randomize
from reference import linear_reference, sinusoidal_positions_reference
from reference_layers import heads_of, norm_reference, part, projections
from test_decoder_cache import D, made, walk

import headwise as hw

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


@given(st.integers(0, 2**32 - 1), st.sampled_from(["plain", "modern", "sinusoidal", "alibi"]))
@settings(max_examples=30)
def test_property_any_course(seed, name):
    """Ragged steps, reorders, crops and copies in any order: rows are those of the whole of their history."""
    rng = np.random.default_rng(seed)
    decoder = made(name)
    window = None if rng.integers(2) else (int(rng.integers(0, 40)), 0)
    memory, kept = normals(rng, 4, 9, D), rng.random((4, 9)) < 0.7
    cache = decoder.new_cache(memory, memory_key_mask=kept, window=window)
    rows, told = [(b, np.zeros((0, D), dtype=np.float32)) for b in range(4)], []
    for _ in range(12):
        kind = rng.choice(["step", "step", "long step", "reorder", "crop", "copy"])
        if kind.endswith("step"):
            n = int(rng.integers(0, 90 if kind == "long step" else 6))
            lengths = rng.integers(n // 2, n + 1, len(rows))
            x = normals(rng, len(rows), n, D)
            out = decoder.step(x, cache, lengths=lengths)
            rows = [(b, np.concatenate([history, x[i, : lengths[i]]])) for i, (b, history) in enumerate(rows)]
            told += [(*rows[i], out[i, : lengths[i]]) for i in range(len(rows))]
        elif kind == "reorder":
            order = rng.integers(0, len(rows), int(rng.integers(1, 6)))
            cache.reorder(order)
            rows = [rows[i] for i in order]
        elif kind == "crop":
            stay = np.array([rng.integers(max(len(history) - 5, 0), len(history) + 1) for _, history in rows])
            if cache.first and (stay - window[0] < cache.first).any():
                with pytest.raises(ValueError, match="window"):
                    cache.crop(stay)
            else:
                cache.crop(stay)
                rows = [(b, history[:n]) for n, (b, history) in zip(stay, rows, strict=True)]
        else:
            left_behind, cache = cache, cache.copy()
            decoder.step(normals(rng, len(rows), 3, D), left_behind)
        assert cache.lengths.tolist() == [len(history) for _, history in rows]
    for b, history, out in told:
        whole = decoder(history, memory[b], memory_key_mask=kept[b], window=window)
        assert_same_bits(out, whole[len(history) - len(out) :])


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


def test_nothing_that_was_given_is_kept(rng):
    """What the user does to inputs and masks after a call leaves no trace in the cache, nor do layouts."""
    decoder = made("modern")
    x, memory, kept = normals(rng, 3, 20, D), normals(rng, 3, 9, D), rng.random((3, 9)) < 0.6
    lengths = np.array([9, 4, 2])
    want = decoder(x, memory, memory_key_mask=kept, memory_lengths=lengths)
    given = [memory.copy(), kept.copy(), lengths.copy()]
    cache = decoder.new_cache(given[0], memory_key_mask=given[1], memory_lengths=given[2])
    for array in given:
        array[...] = 1
    outs, frozen = [], np.asfortranarray(x).astype(">f4")
    frozen.flags.writeable = False
    for i in range(10):
        step = x[:, i : i + 1].copy()
        outs.append(decoder.step(step, cache))
        step[...] = np.nan
    outs += [decoder.step(frozen[:, i : i + 5], cache) for i in (10, 15)]
    assert_same_bits(np.concatenate(outs, axis=1), want)


def test_reordering_at_each_step_makes_no_more_room(rng):
    decoder = made()
    cache, token = decoder.new_cache(normals(rng, 4, 3, D)), np.ones((4, 1, D), dtype=np.float32)
    for _ in range(300):
        decoder.step(token, cache)
        cache.reorder(rng.integers(0, 4, 4))
    held = sum(a.nbytes for a in (*cache.keys, *cache.values))
    assert cache.nbytes <= 4 * held
    assert cache.memory_keys[0].shape[0] == 4


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
