"""The law of bits for decoders, in the manner of test_bits_layers.py: target and memory each with its own."""

import numpy as np
import pytest
from compare import assert_same_bits, normals
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import pad, randomize

import headwise as hw

DTYPES = ["float32", "float64"]
D = 48
MODERN = {
    "activation": "silu",
    "norm": "rms",
    "norm_first": True,
    "ffn": "glu",
    "bias": False,
    "num_kv_heads": 2,
}
MAKERS = {
    "layer": lambda **k: hw.DecoderLayer(D, 4, 100, activation="gelu", **k),
    "plain": lambda **k: hw.Decoder(2, D, 4, 100, **k),
    "pre-norm": lambda **k: hw.Decoder(2, D, 4, 100, final_norm=True, norm_first=True, **k),
    "modern": lambda **k: hw.Decoder(2, D, 4, 70, final_norm=True, positions="rotary", **MODERN, **k),
    "narrow heads": lambda **k: hw.Decoder(1, D, 3, 51, head_dim=10, num_kv_heads=1, **k),
    "alibi": lambda **k: hw.Decoder(2, D, 4, 100, positions="alibi", **k),
    "sinusoidal": lambda **k: hw.Decoder(2, D, 4, 100, positions="sinusoidal", activation="gelu_tanh", **k),
}
LENGTHS, MEMORY_LENGTHS = (65, 1, 17, 130, 16), (3, 129, 64, 65, 0)


@pytest.fixture(
    params=[(name, dtype) for name in MAKERS for dtype in DTYPES], ids=lambda p: f"{p[0]}, {p[1]}"
)
def decoder(request):
    """Return each decoder in each dtype, with random parameters."""
    name, dtype = request.param
    return dtype, randomize(MAKERS[name](dtype=dtype), np.random.default_rng(7))


def test_batch_together_alone_and_in_another_order(decoder, rng):
    dtype, run = decoder
    x, memory = normals(rng, 5, 33, D, dtype=dtype), normals(rng, 5, 65, D, dtype=dtype)
    out = run(x, memory)
    for b in range(5):
        assert_same_bits(run(x[b], memory[b]), out[b])
        assert_same_bits(run(x[b : b + 1], memory[b : b + 1]), out[b : b + 1])
    order = [3, 0, 4, 2, 1]
    assert_same_bits(run(x[order], memory[order]), out[order])


def test_a_prefix_does_not_know_what_follows(decoder, rng):
    dtype, run = decoder
    x, memory = normals(rng, 2, 130, D, dtype=dtype), normals(rng, 2, 70, D, dtype=dtype)
    out = run(x, memory)
    for n in (1, 16, 63, 64, 65, 129):
        assert_same_bits(run(x[:, :n], memory), out[:, :n])
    windowed = run(x, memory, window=(20, 0))
    for n in (1, 65, 129):
        assert_same_bits(run(x[:, :n], memory, window=(20, None)), windowed[:, :n])


def test_lists_and_right_padding_equal_single_sequences(decoder, rng):
    dtype, run = decoder
    xs, memories = ([normals(rng, n, D, dtype=dtype) for n in ns] for ns in (LENGTHS, MEMORY_LENGTHS))
    singles = [run(*both) for both in zip(xs, memories, strict=True)]
    for one, listed in zip(singles, run(xs, memories), strict=True):
        assert_same_bits(listed, one)
    (x, real), (memory, kept) = pad(xs, fill=np.nan), pad(memories, fill=np.nan)
    for keywords in (
        {"key_mask": real, "memory_key_mask": kept},
        {"key_mask": real.astype(int), "memory_lengths": MEMORY_LENGTHS},
        {"lengths": LENGTHS, "memory_key_mask": kept.astype(int)},
        {"lengths": LENGTHS, "memory_lengths": np.array(MEMORY_LENGTHS)},
    ):
        out = run(x, memory, **keywords)
        assert_same_bits(out[real], np.concatenate(singles))
        assert_same_bits(out[~real], np.zeros_like(out[~real]))
    wider, wider_memory = (np.concatenate([y, np.full_like(y[:, :70], 1e30)], axis=1) for y in (x, memory))
    call = {"lengths": LENGTHS, "memory_lengths": MEMORY_LENGTHS}
    assert_same_bits(run(wider, wider_memory, **call)[:, :130], out)


@pytest.mark.parametrize("is_causal", [True, False])
def test_left_padding_and_holes_equal_deletion(decoder, rng, is_causal):
    dtype, run = decoder
    x, memory = normals(rng, 3, 100, D, dtype=dtype), normals(rng, 3, 150, D, dtype=dtype)
    left, kept_left = (np.arange(n) >= np.array([0, 37, n - 1])[:, None] for n in (100, 150))
    holes, kept_holes = rng.random((3, 100)) < 0.5, rng.random((3, 150)) < 0.5
    for real, kept in ((left, kept_holes), (holes, kept_left), (left & holes, kept_left & kept_holes)):
        poisoned = [np.where(m[..., None], y, np.nan) for m, y in ((real, x), (kept, memory))]
        out = run(*poisoned, key_mask=real, memory_key_mask=kept, is_causal=is_causal)
        for b in range(3):
            if real[b].any():
                alone = run(x[b, real[b]], memory[b, kept[b]], is_causal=is_causal)
                assert_same_bits(out[b, real[b]], alone)
        assert_same_bits(out[~real], np.zeros_like(out[~real]))


def test_a_memory_that_all_share(decoder, rng):
    """Broadcast views of one memory give the bits of copies."""
    dtype, run = decoder
    x, memory = normals(rng, 3, 17, D, dtype=dtype), normals(rng, 1, 65, D, dtype=dtype)
    out = run(x, np.broadcast_to(memory, (3, 65, D)))
    for b in range(3):
        assert_same_bits(run(x[b], memory[0]), out[b])


def test_threads(decoder, rng, threads):
    dtype, run = decoder
    x, memory = normals(rng, 6, 100, D, dtype=dtype), normals(rng, 6, 70, D, dtype=dtype)
    call = {"lengths": [100, 1, 64, 65, 0, 99], "memory_lengths": [0, 70, 64, 65, 1, 33]}
    answers = []
    for n in (1, 2, 5):
        threads(n)
        answers.append(
            [run(x, memory), run(x[0, :1], memory[0]), run(x, memory, **call), *run(list(x), list(memory))]
        )
    for other in answers[1:]:
        for one, two in zip(answers[0], other, strict=True):
            assert_same_bits(one, two)


def test_asking_for_more_changes_nothing(decoder, rng):
    dtype, run = decoder
    x, memory = normals(rng, 2, 70, D, dtype=dtype), normals(rng, 2, 65, D, dtype=dtype)
    mask = rng.random((70, 65)) < 0.7
    for keywords in (
        {},
        {"window": (9, 0)},
        {"lengths": [70, 33], "memory_mask": mask},
        {"is_causal": False},
    ):
        out = run(x, memory, **keywords)
        assert_same_bits(run(x, memory, need_weights=True, **keywords)[0], out)
        assert_same_bits(run.vjp(x, memory, **keywords)[0], out)
        if isinstance(run, hw.Decoder):
            assert_same_bits(run(x, memory, need_weights=[(0, 2)], **keywords)[0], out)
            assert_same_bits(run(x, memory, output_hidden_states=True, **keywords)[0], out)
    trained = run.vjp(list(x), list(memory), training=True, rng=3)[0]
    for one, two in zip(trained, run(list(x), list(memory), training=True, rng=3), strict=True):
        assert_same_bits(one, two)


def test_masks_that_change_nothing(decoder, rng):
    dtype, run = decoder
    x, memory = normals(rng, 2, 33, D, dtype=dtype), normals(rng, 2, 70, D, dtype=dtype)
    out = run(x, memory)
    for keywords in (
        {"attn_mask": np.ones((33, 33), dtype=bool)},
        {"window": (None, None)},
        {"window": (1000, 1000)},
        {"is_causal": False, "window": (None, 0)},
        {"key_mask": np.ones((2, 33), dtype=bool), "memory_key_mask": np.ones((2, 70), dtype=int)},
        {"lengths": [33, 33], "memory_lengths": [70, 70]},
        {"memory_mask": np.ones((2, 4, 33, 70), dtype=bool)} if run.num_heads == 4 else {},
        {"memory_mask": np.zeros((33, 70), dtype=dtype)},
    ):
        assert_same_bits(run(x, memory, **keywords), out)


def test_layouts(decoder, rng):
    dtype, run = decoder
    x, memory = normals(rng, 2, 33, D, dtype=dtype), normals(rng, 2, 17, D, dtype=dtype)
    out = run(x, memory)
    for view in (
        np.asfortranarray,
        lambda y: np.repeat(y, 2, axis=1)[:, ::2],
        lambda y: y.swapaxes(0, 1).copy().swapaxes(0, 1),
        lambda y: y[..., ::-1].copy()[..., ::-1],
        lambda y: y.astype(y.dtype.newbyteorder()),
    ):
        assert_same_bits(run(view(x), memory), out)
        assert_same_bits(run(x, view(memory)), out)
        frozen = view(x), view(memory)
        for array in frozen:
            array.flags.writeable = False
        assert_same_bits(run(*frozen), out)


@given(
    st.lists(st.tuples(st.integers(0, 80), st.integers(0, 80)), min_size=1, max_size=5),
    st.integers(0, 2**32 - 1),
    st.sampled_from(list(MAKERS)),
)
@settings(max_examples=30)
def test_property_together_equals_one_by_one(lengths, seed, name):
    rng = np.random.default_rng(seed)
    dtype = rng.choice(DTYPES)
    run = randomize(MAKERS[name](dtype=dtype), rng)
    xs, memories = ([normals(rng, n, D, dtype=dtype) for n in ns] for ns in zip(*lengths, strict=True))
    call = {"is_causal": bool(rng.integers(2))}
    want = [run(*both, **call) for both in zip(xs, memories, strict=True)]
    order = rng.permutation(len(xs))
    shuffled = run([xs[i] for i in order], [memories[i] for i in order], **call)
    for i, got in zip(order, shuffled, strict=True):
        assert_same_bits(got, want[i])
    for left in (False, True):
        (x, real), (memory, kept) = pad(xs, fill=np.nan, left=left), pad(memories, fill=np.nan, left=not left)
        out = run(x, memory, key_mask=real, memory_key_mask=kept, **call)
        assert_same_bits(out[real], np.concatenate(want))
