"""Known faults of other attention libraries, one test each: the docstring says what the peer does or did.

"Torch 2.15" was seen with that version on a CPU; "older", "gave", "may": fixed since, or on other backends.
"""

import numpy as np
import pytest
from compare import assert_same_bits, normals, qkv
from layers import pad, randomize

import headwise as hw

sdpa = hw.scaled_dot_product_attention


def test_nan_in_a_masked_value(rng):
    """Torch 2.15 multiplies weight 0 with the value: 0 * NaN makes the whole row NaN."""
    q, k, v = qkv(rng, 5, 9, 8, H=2)
    allowed = np.arange(9) != 4
    want = sdpa(q, k, v, allowed)
    v[:, 4] = np.nan
    assert_same_bits(sdpa(q, k, v, allowed), want)


def test_nan_in_a_masked_key(rng):
    """Torch 2.15 adds -inf to a score that is NaN already, so a NaN in padding survives its mask."""
    q, k, v = qkv(rng, 5, 9, 8, H=2)
    allowed = np.broadcast_to(np.arange(9) != 4, (5, 9)).copy()
    allowed[2, 0] = False  # rows differ, so the key cannot simply be dropped for all of them
    want = sdpa(q, k, v, allowed)
    k[:, 4] = np.inf
    assert_same_bits(sdpa(q, k, v, allowed), want)


def test_row_with_every_key_masked(rng):
    """Torch's function gave NaN for a row whose mask is all False; its attention layer still does in 2.15."""
    q, k, v = qkv(rng, 5, 9, 8, H=2)
    mask = np.ones((5, 9), dtype=bool)
    mask[1] = False
    assert_same_bits(sdpa(q, k, v, mask)[:, 1], np.zeros((2, 8), dtype=np.float32))


def test_row_of_minus_infinity(rng):
    """Softmax of -inf - (-inf) is NaN where a float mask blocks a whole row: older torch, 2.15's layer."""
    q, k, v = qkv(rng, 5, 9, 8, H=2)
    out = sdpa(q, k, v, np.full((5, 9), -np.inf, dtype=np.float32))
    assert_same_bits(out, np.zeros_like(out))


def test_padded_batch_element_without_tokens(rng):
    """Older torch encoders gave NaN for a sequence of padding alone, and the next layer spread it."""
    layer = randomize(hw.Encoder(2, 16, 4, 24), rng)
    x = normals(rng, 2, 7, 16)
    out = layer(x, lengths=np.array([7, 0]))
    assert_same_bits(out[0], layer(x[0]))
    assert not out[1].any()


def test_asking_for_weights(rng):
    """Torch takes another path when need_weights=True; on some shapes and backends the last bits change."""
    layer = randomize(hw.MultiHeadAttention(32, 4), rng)
    x = normals(rng, 2, 70, 32)
    assert_same_bits(layer(x, need_weights=True)[0], layer(x))
    q, k, v = qkv(rng, 70, 70, 32, H=2)
    assert_same_bits(sdpa(q, k, v, return_weights=True)[0], sdpa(q, k, v))


def test_one_polarity_of_masks(rng):
    """Torch's True allows in scaled_dot_product_attention and blocks in MultiheadAttention."""
    layer = randomize(hw.MultiHeadAttention(16, 1), rng)
    x = normals(rng, 1, 6, 16)
    allowed = np.tril(np.ones((6, 6), dtype=bool))
    weights = layer(x, attn_mask=allowed, need_weights=True)[1][0, 0]
    assert (weights[allowed] > 0).all()
    assert not weights[~allowed].any()
    weights = sdpa(x, x, x, allowed, return_weights=True)[1][0]
    assert (weights[allowed] > 0).all()
    assert not weights[~allowed].any()
    weights = layer(x, x, key_mask=np.arange(6)[None] < 4, need_weights=True)[1][0, 0]
    assert not weights[:, 4:].any()
    assert (weights[:, :4] > 0).all()


def test_mask_that_allows_everything(rng):
    """Torch may pick another kernel as soon as a mask is given, and with it other last bits."""
    q, k, v = qkv(rng, 65, 129, 32, H=2)
    assert_same_bits(sdpa(q, k, v, np.ones((65, 129), dtype=bool)), sdpa(q, k, v))


def test_padding_changes_no_bits(rng):
    """In torch 2.15 a sequence's result depends on its batch in the last digits."""
    layer = randomize(hw.Encoder(2, 32, 4, 64), rng)
    x = normals(rng, 9, 32)
    alone = layer(x)
    for longest in (10, 33, 130):
        batch, real = pad([x, normals(rng, longest, 32)])
        assert_same_bits(layer(batch, key_mask=real)[0, :9], alone)


def test_padded_output_keeps_its_length(rng):
    """Torch's fast path has returned a padded batch only as long as its longest sequence."""
    layer = randomize(hw.Encoder(2, 16, 4, 24), rng)
    x = normals(rng, 2, 12, 16)
    out = layer(x, lengths=np.array([5, 3]))
    assert out.shape == x.shape
    assert not out[0, 5:].any()


def test_padded_queries_hold_no_garbage(rng):
    """Torch leaves numbers (or NaN) in the rows of padded tokens, which a mean then picks up."""
    layer = randomize(hw.Encoder(1, 16, 4, 24), rng)
    x, real = pad([normals(rng, 7, 16), normals(rng, 3, 16)], fill=np.nan)
    out = layer(x, key_mask=real)
    assert_same_bits(out[~real], np.zeros_like(out[~real]))


def test_causal_alignment_when_lengths_differ(rng):
    """Libraries disagree on is_causal for L != S: torch aligns at the first key, flash-attn at the last."""
    q, k, v = qkv(rng, 2, 5, 8)
    first = sdpa(q, k, v, is_causal=True, return_weights=True)[1][0]
    last = sdpa(q, k, v, is_causal=True, causal_offset="bottom_right", return_weights=True)[1][0]
    np.testing.assert_array_equal(first > 0, np.tri(2, 5, 0, dtype=bool))
    np.testing.assert_array_equal(last > 0, np.tri(2, 5, 3, dtype=bool))


def test_mask_and_causal_together(rng):
    """Torch 2.15 refuses attn_mask together with is_causal; other libraries ignored one of them."""
    q, k, v = qkv(rng, 9, 9, 8)
    mask = rng.random((9, 9)) < 0.7
    mask[:, 0] = True
    both = sdpa(q, k, v, mask, is_causal=True)
    assert_same_bits(both, sdpa(q, k, v, mask & np.tri(9, dtype=bool)))


def test_dropout_of_one(rng):
    """Dividing by 1 - p = 0 gave NaN for dropout_p=1 in some libraries."""
    q, k, v = qkv(rng, 5, 9, 8)
    assert_same_bits(sdpa(q, k, v, dropout_p=1.0, rng=0), np.zeros((1, 5, 8), dtype=np.float32))


def test_dropout_needs_no_global_state(rng):
    """Torch's function drops in evaluation too, from a global generator that nobody can pass."""
    layer = randomize(hw.MultiHeadAttention(16, 4, dropout=0.5), rng)
    x = normals(rng, 2, 7, 16)
    assert_same_bits(layer(x), layer(x))
    assert_same_bits(layer(x, training=True, rng=4), layer(x, training=True, rng=4))


def test_order_of_grouped_heads(rng):
    """Tiling key heads (0 1 0 1) instead of repeating them (0 0 1 1) spoiled several ports."""
    q, k, v = qkv(rng, 5, 9, 8, H=4, Hk=2)
    assert_same_bits(sdpa(q, k, v), sdpa(q, np.repeat(k, 2, axis=0), np.repeat(v, 2, axis=0)))


def test_weights_are_per_head(rng):
    """Torch averages the weights over the heads unless told otherwise, which hides what single heads do."""
    layer = randomize(hw.MultiHeadAttention(16, 4), rng)
    x = normals(rng, 2, 7, 16)
    weights = layer(x, need_weights=True)[1]
    assert weights.shape == (2, 4, 7, 7)
    assert not np.array_equal(weights[:, 0], weights[:, 1])


def test_large_finite_masks_do_not_overflow(rng):
    """Masks of finfo.min overflow to -inf when two of them are added, and the row becomes NaN."""
    q, k, v = qkv(rng, 5, 9, 8)
    lowest = np.full((5, 9), np.finfo(np.float32).min, dtype=np.float32)
    lowest[:, 3:] = 0.0
    np.testing.assert_allclose(sdpa(q, k, v, lowest), sdpa(q, k, v, lowest == 0), rtol=1e-6, atol=1e-7)
    assert np.isfinite(sdpa(q, k, v, lowest, is_causal=True)).all()


def test_large_scores_do_not_overflow(rng):
    """In float16 the scores of plain kernels overflow before they are scaled: softmax gives NaN."""
    q, k, v = (np.full((1, 4, 256), 30.0, dtype=np.float16) for _ in range(3))
    np.testing.assert_array_equal(sdpa(q, k, v), v)
    q, k, v = qkv(rng, 5, 9, 8)
    assert np.isfinite(sdpa(q * np.float32(1e18), k * np.float32(1e18), v)).all()


def test_empty_batches_and_empty_keys():
    """Zero-size inputs crash or give NaN in many kernels."""
    assert sdpa(np.ones((0, 2, 3, 4)), np.ones((0, 2, 5, 4)), np.ones((0, 2, 5, 4))).shape == (0, 2, 3, 4)
    np.testing.assert_array_equal(sdpa(np.ones((3, 4)), np.ones((0, 4)), np.ones((0, 6))), np.zeros((3, 6)))
    layer = hw.MultiHeadAttention(8, 2)
    assert layer(np.ones((0, 3, 8))).shape == (0, 3, 8)
    assert layer(np.ones((2, 0, 8))).shape == (2, 0, 8)


def test_layer_batch_axis_comes_first(rng):
    """Torch's default is (L, N, E): batches mix silently when a user passes (N, L, E)."""
    layer = randomize(hw.MultiHeadAttention(16, 4), rng)
    x = normals(rng, 3, 5, 16)
    out = layer(x)
    y = x.copy()
    y[1] = 0
    assert_same_bits(layer(y)[[0, 2]], out[[0, 2]])


def test_integer_masks_are_not_guessed():
    """Libraries have added a 0/1 integer mask, as tokenizers give it, as numbers: nothing is masked."""
    arrays = [np.ones((4, 8))] * 3
    with pytest.raises(TypeError, match="attn_mask"):
        sdpa(*arrays, np.ones((4, 4), dtype=np.int64))
    out = sdpa(*arrays, key_mask=np.array([1, 1, 0, 0]), return_weights=True)[1]
    np.testing.assert_array_equal(out[:, 2:], 0.0)


def test_three_axis_masks_are_per_head(rng):
    """Torch wants (N * H, L, S) in its layer, but (H, L, S) broadcasts in its function."""
    layer = randomize(hw.MultiHeadAttention(16, 2), rng)
    x = normals(rng, 3, 5, 16)
    mask = rng.random((2, 5, 5)) < 0.6
    mask[..., 0] = True
    assert_same_bits(layer(x, attn_mask=mask), layer(x, attn_mask=np.broadcast_to(mask, (3, 2, 5, 5))))


def test_softcap_comes_before_the_mask(rng):
    """Capping after the mask turns -inf into -c, and masked keys get weight."""
    q, k, v = qkv(rng, 4, 6, 8)
    weights = sdpa(q, k, v, np.arange(6) < 4, softcap=0.5, return_weights=True)[1]
    assert not weights[..., 4:].any()


def test_window_counts_from_the_offset(rng):
    """Windows of some kernels ignore the cache's offset: decoding sees other keys than the prefill."""
    q, k, v = qkv(rng, 20, 20, 8)
    out = sdpa(q, k, v, is_causal=True, window=(4, 0))
    for i in (0, 3, 11, 19):
        one = sdpa(q[:, i : i + 1], k, v, is_causal=True, window=(4, 0), causal_offset=i)
        assert_same_bits(one, out[:, i : i + 1])


def test_inputs_of_a_list_are_not_stacked(rng):
    """Libraries pad a list of sequences to one array: padded work, and its rounding with it."""
    layer = randomize(hw.Encoder(1, 16, 4, 24), rng)
    xs = [normals(rng, n, 16) for n in (3, 200)]
    short, long = layer(xs)
    assert short.shape == (3, 16)
    assert_same_bits(short, layer(xs[0]))
    assert_same_bits(long, layer(xs[1]))
