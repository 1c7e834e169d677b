"""scaled_dot_product_attention as a call: what is refused and how, `out=`, dropout and generators.

The text of an error names the argument, what was expected (in the letters of the documentation) and what
came.
"""

import numpy as np
import pytest
from compare import assert_same_bits, normals, qkv

import headwise as hw

pytestmark = pytest.mark.once

sdpa = hw.scaled_dot_product_attention


def ones(*shapes):
    """Return arrays of ones."""
    return [np.ones(shape, dtype=np.float32) for shape in shapes]


# --- refused ------------------------------------------------------------------------------------------------

BAD_SHAPES = {
    "key width": ([(2, 5, 8), (2, 7, 6), (2, 7, 8)], "key"),
    "value length": ([(2, 5, 8), (2, 7, 8), (2, 6, 8)], "value"),
    "value heads": ([(4, 5, 8), (2, 7, 8), (4, 7, 8)], "value"),
    "query rank 1": ([(8,), (7, 8), (7, 8)], "query"),
    "key rank 1": ([(5, 8), (8,), (7, 8)], "key"),
    "heads not divisible": ([(1, 6, 5, 8), (1, 4, 7, 8), (1, 4, 7, 8)], "head"),
    "more key heads than query heads": ([(1, 2, 5, 8), (1, 4, 7, 8), (1, 4, 7, 8)], "head"),
    "batch": ([(2, 4, 5, 8), (3, 4, 7, 8), (3, 4, 7, 8)], "key"),
    "value batch": ([(3, 4, 5, 8), (3, 4, 7, 8), (2, 4, 7, 8)], "value"),
    "no width": ([(2, 5, 0), (2, 7, 0), (2, 7, 4)], "E"),
}


@pytest.mark.parametrize("what", BAD_SHAPES)
def test_shapes_that_do_not_fit(what):
    shapes, named = BAD_SHAPES[what]
    with pytest.raises(hw.ShapeError, match=named) as caught:
        sdpa(*ones(*shapes))
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, hw.HeadwiseError)
    assert any(str(n) in str(caught.value) for n in shapes[0] + shapes[1] + shapes[2] if n)  # what came


def test_three_axes_hint_at_heads():
    """A torch user's (N, L, E) is read as (H, L, E); the error for a mismatch says so."""
    with pytest.raises(hw.ShapeError, match=r"\(H, L, E\)"):
        sdpa(*ones((4, 5, 8), (3, 5, 8), (3, 5, 8)))


BAD_VALUES = {
    "attn_mask keys": ({"attn_mask": np.ones((5, 6), dtype=bool)}, "attn_mask"),
    "attn_mask queries": ({"attn_mask": np.ones((4, 7), dtype=bool)}, "attn_mask"),
    "attn_mask heads": ({"attn_mask": np.ones((3, 5, 7), dtype=bool)}, "attn_mask"),
    "attn_mask batch": ({"attn_mask": np.ones((3, 2, 5, 7), dtype=bool)}, "attn_mask"),
    "attn_mask would widen": ({"attn_mask": np.ones((4, 2, 2, 5, 7), dtype=bool)}, "attn_mask"),
    "key_mask keys": ({"key_mask": np.ones((2, 6), dtype=bool)}, "key_mask"),
    "key_mask batch": ({"key_mask": np.ones((3, 7), dtype=bool)}, "key_mask"),
    "key_mask of twos": ({"key_mask": np.full((2, 7), 2)}, "key_mask"),
    "key_mask of minus one": ({"key_mask": np.full((2, 7), -1)}, "key_mask"),
    "key_lengths batch": ({"key_lengths": np.array([1, 2, 3])}, "key_lengths"),
    "key_lengths too long": ({"key_lengths": np.array([8, 1])}, "key_lengths"),
    "key_lengths negative": ({"key_lengths": np.array([-1, 1])}, "key_lengths"),
    "causal_offset batch": ({"is_causal": True, "causal_offset": np.array([1, 2, 3])}, "causal_offset"),
    "causal_offset name": ({"is_causal": True, "causal_offset": "top"}, "causal_offset"),
    "softcap zero": ({"softcap": 0.0}, "softcap"),
    "softcap negative": ({"softcap": -1.0}, "softcap"),
    "softcap nan": ({"softcap": float("nan")}, "softcap"),
    "dropout_p over 1": ({"dropout_p": 1.5}, "dropout_p"),
    "dropout_p negative": ({"dropout_p": -0.1}, "dropout_p"),
    "dropout_p nan": ({"dropout_p": float("nan")}, "dropout_p"),
    "window minus one": ({"window": (-1, 0)}, "window"),
    "window right minus one": ({"window": (0, -1)}, "window"),
    "return_weights name": ({"return_weights": "logits"}, "return_weights"),
}


@pytest.mark.parametrize("what", BAD_VALUES)
def test_values_that_are_refused(what):
    options, named = BAD_VALUES[what]
    with pytest.raises(ValueError, match=named) as caught:
        sdpa(*ones((2, 2, 5, 8), (2, 2, 7, 8), (2, 2, 7, 8)), **options)
    assert isinstance(caught.value, hw.HeadwiseError)


BAD_KINDS = {
    "attn_mask int": ({"attn_mask": np.ones((5, 7), dtype=np.int64)}, "attn_mask"),
    "attn_mask uint8": ({"attn_mask": np.ones((5, 7), dtype=np.uint8)}, "attn_mask"),
    "attn_mask complex": ({"attn_mask": np.ones((5, 7), dtype=complex)}, "attn_mask"),
    "key_mask float": ({"key_mask": np.ones((2, 7))}, "key_mask"),
    "key_lengths float": ({"key_lengths": np.array([1.0, 2.0])}, "key_lengths"),
    "key_lengths bool": ({"key_lengths": np.array([True, False])}, "key_lengths"),
    "causal_offset float": ({"is_causal": True, "causal_offset": 1.5}, "causal_offset"),
    "window number": ({"window": 3}, "window"),
    "window floats": ({"window": (1.5, 2)}, "window"),
    "scale text": ({"scale": "half"}, "scale"),
    "rng text": ({"rng": "seed", "dropout_p": 0.5}, "rng"),
    "out list": ({"out": [[0.0]]}, "out"),
    "unknown keyword": ({"mask": None}, "mask"),
}


@pytest.mark.parametrize("what", BAD_KINDS)
def test_kinds_that_are_refused(what):
    options, named = BAD_KINDS[what]
    with pytest.raises(TypeError, match=named):
        sdpa(*ones((2, 2, 5, 8), (2, 2, 7, 8), (2, 2, 7, 8)), **options)


def test_integer_masks_hint_at_bool():
    with pytest.raises(TypeError, match="bool"):
        sdpa(*ones((5, 8), (7, 8), (7, 8)), np.ones((5, 7), dtype=int))


def test_window_minus_one_hints_at_none():
    with pytest.raises(ValueError, match="None"):
        sdpa(*ones((5, 8), (7, 8), (7, 8)), window=(-1, -1))


def test_torchs_key_padding_mask_says_what_to_pass():
    with pytest.raises(TypeError, match="key_mask"):
        sdpa(*ones((5, 8), (7, 8), (7, 8)), key_padding_mask=np.zeros(7, dtype=bool))


def test_grouped_queries_can_be_refused():
    arrays = ones((1, 4, 5, 8), (1, 2, 7, 8), (1, 2, 7, 8))
    with pytest.raises(ValueError, match="enable_gqa"):
        sdpa(*arrays, enable_gqa=False)
    assert sdpa(*arrays).shape == (1, 4, 5, 8)


def test_masks_after_the_seventh_argument_are_keyword_only():
    with pytest.raises(TypeError):
        sdpa(*ones((5, 8), (7, 8), (7, 8)), None, 0.0, False, 0.5)


# --- out= ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_out_is_filled_and_returned(rng, dtype):
    q, k, v = qkv(rng, 9, 17, 8, B=(2,), H=3, Ev=5, dtype=dtype)
    out = np.full((2, 3, 9, 5), 7, dtype=dtype)
    assert sdpa(q, k, v, out=out) is out
    assert_same_bits(out, sdpa(q, k, v))
    out[:] = 7
    answer, _weights, _lse = sdpa(q, k, v, out=out, return_weights=True, return_lse=True)
    assert answer is out
    assert_same_bits(out, sdpa(q, k, v))


def test_out_rows_without_keys_are_written(rng):
    q, k, v = qkv(rng, 4, 7, 8)
    out = np.full((1, 4, 8), np.nan, dtype=np.float32)
    sdpa(q, k, v, key_mask=np.zeros(7, dtype=bool), out=out)
    assert_same_bits(out, np.zeros_like(out))
    out = np.full((1, 4, 8), np.nan, dtype=np.float32)
    sdpa(q, k[:, :0], v[:, :0], out=out)
    assert_same_bits(out, np.zeros_like(out))


@pytest.mark.parametrize(
    ("out", "error"),
    [
        (np.zeros((2, 9, 8), dtype=np.float64), TypeError),
        (np.zeros((2, 9, 16), dtype=np.float32)[..., ::2], TypeError),
        (np.zeros((2, 8, 9), dtype=np.float32).swapaxes(1, 2), TypeError),
        (np.zeros((2, 9, 8), dtype=">f4"), TypeError),
        (np.zeros((2, 9, 7), dtype=np.float32), ValueError),
        (np.zeros((9, 8), dtype=np.float32), ValueError),
    ],
)
def test_out_that_does_not_fit(rng, out, error):
    with pytest.raises(error, match="out"):
        sdpa(*qkv(rng, 9, 17, 8, H=2), out=out)


def test_out_that_cannot_be_written(rng):
    out = np.zeros((2, 9, 8), dtype=np.float32)
    out.flags.writeable = False
    with pytest.raises((ValueError, TypeError), match="out"):
        sdpa(*qkv(rng, 9, 17, 8, H=2), out=out)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_out_may_not_overlap_an_input(rng, place):
    arrays = [normals(rng, 2, 9, 8) for _ in range(3)]
    before = arrays[place].copy()
    with pytest.raises(ValueError, match="out"):
        sdpa(*arrays, out=arrays[place])
    np.testing.assert_array_equal(arrays[place], before)


def test_out_may_not_overlap_a_mask(rng):
    memory = np.zeros((2, 8, 8), dtype=np.float32)
    with pytest.raises(ValueError, match="out"):
        sdpa(*qkv(rng, 8, 8, 8, H=2), memory, out=memory)


# --- dropout ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dropout_drops_and_scales(rng, p, dtype):
    q, k, _ = qkv(rng, 200, 100, 8, H=2, dtype=dtype)
    v = np.eye(100, dtype=dtype) * np.ones((2, 1, 1), dtype=dtype)  # the output is the dropped weights
    out, weights = sdpa(q, k, v, dropout_p=p, rng=3, return_weights=True)
    assert_same_bits(weights, sdpa(q, k, v, return_weights=True)[1])  # before dropout
    kept = out != 0
    np.testing.assert_allclose(out[kept], (weights / (1 - p))[kept], rtol=1e-5)
    spread = np.sqrt(p * (1 - p) / kept.size)
    assert abs(kept.mean() - (1 - p)) < 5 * spread
    for axis in [(0, 1), (0, 2), (1, 2)]:  # no row, column or head is favoured
        share = kept.mean(axis=axis)
        assert np.abs(share - (1 - p)).max() < 6 * np.sqrt(p * (1 - p) * share.size / kept.size)
    assert not np.array_equal(kept[0], kept[1])


def test_dropout_keys(rng):
    q, k, v = qkv(rng, 17, 33, 8, B=(2,), H=2)
    a = sdpa(q, k, v, dropout_p=0.3, rng=1)
    assert_same_bits(a, sdpa(q, k, v, dropout_p=0.3, rng=1))
    assert_same_bits(a, sdpa(q, k, v, None, 0.3, rng=1, return_weights=True, return_lse=True)[0])
    assert not np.array_equal(a, sdpa(q, k, v, dropout_p=0.3, rng=2))
    drawn = [sdpa(q, k, v, dropout_p=0.3) for _ in range(2)]  # rng=None: fresh each time
    assert not np.array_equal(*drawn)
    assert_same_bits(sdpa(q, k, v, dropout_p=0.0, rng=1), sdpa(q, k, v))


def test_a_generator_is_advanced_by_one_fixed_draw(rng):
    one, other, still = (np.random.default_rng(5) for _ in range(3))
    q, k, v = qkv(rng, 17, 33, 8, B=(2,), H=2)
    a = sdpa(q, k, v, dropout_p=0.3, rng=one)
    sdpa(q[:, :, :1], k[:, :, :4], v[:, :, :4], dropout_p=0.7, rng=other)  # another shape, the same draw
    assert one.bit_generator.state == other.bit_generator.state
    assert one.bit_generator.state != still.bit_generator.state
    assert_same_bits(a, sdpa(q, k, v, dropout_p=0.3, rng=still))
    assert not np.array_equal(a, sdpa(q, k, v, dropout_p=0.3, rng=one))


def test_the_global_generator_is_left_alone(rng):
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    sdpa(*qkv(rng, 17, 33, 8), dropout_p=0.3, rng=1)
    sdpa(*qkv(rng, 17, 33, 8), dropout_p=0.3)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_dropout_is_independent_of_threads(rng, threads):
    q, k, v = qkv(rng, 129, 300, 32, B=(2,), H=4)
    answers = []
    for n in (1, 2, 3):
        threads(n)
        answers.append(sdpa(q, k, v, dropout_p=0.3, rng=7))
    assert_same_bits(answers[0], answers[1])
    assert_same_bits(answers[0], answers[2])


def test_dropout_of_everything_is_zero(rng):
    q, k, v = qkv(rng, 5, 9, 8)
    assert_same_bits(sdpa(q, k, v, dropout_p=1.0, rng=0), np.zeros((1, 5, 8), dtype=np.float32))
