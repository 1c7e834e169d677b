"""The law of bits for layers: MultiHeadAttention, EncoderLayer and Encoder, in the manner of test_bits.py."""

import numpy as np
import pytest
from compare import assert_same_bits, normals
from layers import pad, randomize

import headwise as hw

DTYPES = ["float32", "float64"]
D = 48
MAKERS = {
    "attention": lambda **k: hw.MultiHeadAttention(D, 4, **k),
    "grouped attention": lambda **k: hw.MultiHeadAttention(
        D, 4, num_kv_heads=2, head_dim=20, bias=False, **k
    ),
    "layer": lambda **k: hw.EncoderLayer(D, 4, 100, activation="gelu", **k),
    "encoder": lambda **k: hw.Encoder(2, D, 4, 100, final_norm=True, norm_first=True, **k),
    "gated encoder": lambda **k: hw.Encoder(
        2,
        D,
        4,
        70,
        activation="silu",
        norm="rms",
        norm_first=True,
        ffn="glu",
        bias=False,
        num_kv_heads=2,
        **k,
    ),
    "rotary encoder": lambda **k: hw.Encoder(2, D, 4, 100, positions="rotary", **k),
    "alibi encoder": lambda **k: hw.Encoder(2, D, 4, 100, positions="alibi", **k),
    "sinusoidal encoder": lambda **k: hw.Encoder(
        2, D, 4, 100, positions="sinusoidal", activation="gelu_tanh", **k
    ),
}
PLAIN = [name for name in MAKERS if name.split()[0] not in ("rotary", "alibi", "sinusoidal")]
LENGTHS = (65, 1, 17, 130, 16)


@pytest.fixture(
    params=[(name, dtype) for name in MAKERS for dtype in DTYPES], ids=lambda p: f"{p[0]}, {p[1]}"
)
def layer(request):
    """Return each layer in each dtype, with random parameters."""
    name, dtype = request.param
    made = randomize(MAKERS[name](dtype=dtype), np.random.default_rng(7))
    return name, dtype, made


def named(name, lengths):
    """Return the keyword that names a batch's lengths: the layers' words differ."""
    return {"key_lengths" if "attention" in name else "lengths": np.asarray(lengths)}


def test_batch_together_alone_and_in_another_order(layer, rng):
    _, dtype, run = layer
    x = normals(rng, 5, 33, D, dtype=dtype)
    out = run(x)
    for b in range(5):
        assert_same_bits(run(x[b]), out[b])
        assert_same_bits(run(x[b : b + 1]), out[b : b + 1])
    order = [3, 0, 4, 2, 1]
    assert_same_bits(run(x[order]), out[order])


def test_lists_and_right_padding_equal_single_sequences(layer, rng):
    name, dtype, run = layer
    xs = [normals(rng, n, D, dtype=dtype) for n in LENGTHS]
    singles = [run(x) for x in xs]
    for one, listed in zip(singles, run(xs), strict=True):
        assert_same_bits(listed, one)
    x, real = pad(xs, fill=np.nan)
    for keywords in ({"key_mask": real}, {"key_mask": real.astype(int)}, named(name, LENGTHS)):
        out = run(x, **keywords)
        assert_same_bits(out[real], np.concatenate(singles))
        assert_same_bits(out[~real], np.zeros_like(out[~real]))
    wider = np.concatenate([x, np.full_like(x[:, :70], 1e30)], axis=1)
    assert_same_bits(run(wider, **named(name, LENGTHS))[:, :130], out)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PLAIN)
def test_left_padding_and_holes_equal_deletion(rng, name, dtype):
    """Only where no position is counted: whether a hole moves the positions after it is another question."""
    run = randomize(MAKERS[name](dtype=dtype), rng)
    x = normals(rng, 3, 150, D, dtype=dtype)
    left = np.arange(150) >= np.array([0, 37, 149])[:, None]
    holes = rng.random((3, 150)) < 0.5
    for key_mask in (left, holes, left & holes):
        out = run(np.where(key_mask[..., None], x, np.nan), key_mask=key_mask)
        for b in range(3):
            if key_mask[b].any():
                assert_same_bits(out[b, key_mask[b]], run(x[b, key_mask[b]]))
        assert_same_bits(out[~key_mask], np.zeros_like(out[~key_mask]))


def test_causal_prefix(layer, rng):
    """Under a causal mask the rows of a prefix do not know what follows."""
    _, dtype, run = layer
    x = normals(rng, 2, 130, D, dtype=dtype)
    out = run(x, is_causal=True)
    for n in (1, 16, 63, 64, 65, 129):
        assert_same_bits(run(x[:, :n], is_causal=True), out[:, :n])


def test_threads(layer, rng, threads):
    name, dtype, run = layer
    x = normals(rng, 6, 150, D, dtype=dtype)
    answers = []
    for n in (1, 2, 3):
        threads(n)
        answers.append((run(x), run(x[0, :1]), run(x, **named(name, [150, 1, 64, 65, 0, 149])), run(list(x))))
    for other in answers[1:]:
        for one, two in zip(answers[0][:3], other[:3], strict=True):
            assert_same_bits(one, two)
        for one, two in zip(answers[0][3], other[3], strict=True):
            assert_same_bits(one, two)


def test_asking_for_more_changes_nothing(layer, rng):
    name, dtype, run = layer
    x = normals(rng, 2, 70, D, dtype=dtype)
    for keywords in ({}, {"is_causal": True}, named(name, [70, 33])):
        out = run(x, **keywords)
        if "attention" in name:
            assert_same_bits(run(x, need_weights=True, **keywords)[0], out)
            assert_same_bits(run(x, need_weights=True, average_weights=True, **keywords)[0], out)
        elif "encoder" in name:
            assert_same_bits(run(x, need_weights=True, **keywords)[0], out)
            assert_same_bits(run(x, need_weights=[(1, 2)], **keywords)[0], out)
            assert_same_bits(run(x, output_hidden_states=True, **keywords)[0], out)


def test_layouts(layer, rng):
    _, dtype, run = layer
    x = normals(rng, 2, 33, D, dtype=dtype)
    out = run(x)
    for view in (
        np.asfortranarray(x),
        np.repeat(x, 2, axis=1)[:, ::2],
        x.swapaxes(0, 1).copy().swapaxes(0, 1),
        x[..., ::-1].copy()[..., ::-1],
        x.astype(x.dtype.newbyteorder()),
    ):
        assert_same_bits(run(view), out)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["attention", "grouped attention"])
def test_rows_and_keys_of_cross_attention(rng, name, dtype):
    run = randomize(MAKERS[name](dtype=dtype), rng)
    q, k = normals(rng, 2, 40, D, dtype=dtype), normals(rng, 2, 130, D, dtype=dtype)
    out = run(q, k)
    for rows in (slice(0, 1), slice(17, 18), slice(5, 33)):
        assert_same_bits(run(q[:, rows], k), out[:, rows])
    key_mask = rng.random((2, 130)) < 0.6
    holed = run(q, np.where(key_mask[..., None], k, np.nan), key_mask=key_mask)
    for b in range(2):
        assert_same_bits(holed[b], run(q[b], k[b, key_mask[b]]))
    # one token at a time against what is there so far equals the whole
    causal = run(q, k, is_causal=True, causal_offset=90)
    for i in (0, 1, 38, 39):
        assert_same_bits(run(q[:, i : i + 1], k[:, : i + 91]), causal[:, i : i + 1])
