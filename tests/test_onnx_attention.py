"""The ONNX Attention operator's own backend cases (package `onnx` 1.23), computed by headwise.

`onnx_attention` maps the operator to `scaled_dot_product_attention`. What it does itself is only shape and
naming: split heads of 3-D inputs, append to the past, pad a short mask, name the offset and the lengths. All
arithmetic is the function's. The cases run twice: with the naive reference (so that the mapping itself is
checked) and with headwise.

What the operator means and how it is said here:
- causal: key j allowed when j <= i + offset; offset is the past's length, or nonpad_kv_seqlen - L
  ("bottom_right"), else 0;
- windows of -1 are open (None), and the same offset holds for them;
- a mask shorter than the keys blocks the rest;
- qk_matmul_output_mode 0, 1, 2, 3 = "raw", "capped", "masked", weights;
- softmax_precision double widens the inputs, so that all of it runs in float64; float32 is what float16 and
  bfloat16 do anyway.
"""

import warnings

import numpy as np
import onnx
import pytest
from onnx.backend.test.runner import Runner

import headwise as hw
from headwise.testing import attention_reference

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # making the cases overflows on purpose, in onnx's own code
    from onnx.backend.test.case.node import collect_testcases

    CASES = {
        case.name: case
        for case in collect_testcases("Attention")
        if case.name.startswith("test_attention_") and not case.name.endswith("_expanded")
    }

ONNX_INPUTS = ("Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen")
SCORES = {0: "raw", 1: "capped", 2: "masked", 3: True}


def split_heads(x, num_heads):
    """(B, L, H * E) -> (B, H, L, E); 4-D arrays are split already."""
    if x.ndim == 4:
        return x
    return x.reshape(x.shape[0], x.shape[1], num_heads, -1).transpose(0, 2, 1, 3)


def join_heads(x):
    """(B, H, L, E) -> (B, L, H * E)."""
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


def pad_mask(mask, keys):
    """Block the keys that a short mask does not name."""
    missing = keys - mask.shape[-1]
    if missing <= 0:
        return mask
    fill = np.full((*mask.shape[:-1], missing), False if mask.dtype == bool else -np.inf, dtype=mask.dtype)
    return np.concatenate([mask, fill], axis=-1)


def onnx_attention(
    sdpa,
    Q,
    K,
    V,
    attn_mask=None,
    past_key=None,
    past_value=None,
    nonpad_kv_seqlen=None,
    *,
    is_causal=0,
    scale=None,
    softcap=0.0,
    qk_matmul_output_mode=0,
    softmax_precision=None,
    q_num_heads=None,
    kv_num_heads=None,
    left_window_size=-1,
    right_window_size=-1,
):
    """Return (Y, present_key, present_value, qk_matmul_output) of the operator, computed by `sdpa`."""
    q, k, v = split_heads(Q, q_num_heads), split_heads(K, kv_num_heads), split_heads(V, kv_num_heads)
    if past_key is not None:
        k, v = np.concatenate([past_key, k], axis=2), np.concatenate([past_value, v], axis=2)
    offset = 0 if past_key is None else past_key.shape[2]
    if nonpad_kv_seqlen is not None:
        offset = "bottom_right"
    window = tuple(None if side < 0 else side for side in (left_window_size, right_window_size))
    wide = softmax_precision == onnx.TensorProto.DOUBLE
    y, scores = sdpa(
        *((x.astype(np.float64) if wide else x) for x in (q, k, v)),
        None if attn_mask is None else pad_mask(attn_mask, k.shape[2]),
        is_causal=bool(is_causal),
        scale=scale,
        softcap=softcap or None,
        key_lengths=nonpad_kv_seqlen,
        causal_offset=offset,
        window=None if window == (None, None) else window,
        return_weights=SCORES[qk_matmul_output_mode],
    )
    y, scores = (x.astype(Q.dtype) if wide else x for x in (y, scores))
    return (join_heads(y) if Q.ndim == 3 else y), k, v, scores


def run_case(case, sdpa):
    """Run every data set of one case and compare as onnx's own backend runner does."""
    (node,) = case.model.graph.node
    options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    names = [ONNX_INPUTS[i] for i, name in enumerate(node.input) if name]
    wanted = [i for i, name in enumerate(node.output) if name]
    for inputs, expected in case.data_sets:
        answer = onnx_attention(sdpa, **dict(zip(names, inputs, strict=True)), **options)
        Runner.assert_similar_outputs(expected, [answer[i] for i in wanted], rtol=case.rtol, atol=case.atol)


def rounded_reference(q, k, v, *args, **options):
    """Round the reference once at the end: headwise's rule for dtypes."""
    return tuple(x.astype(q.dtype) for x in attention_reference(q, k, v, *args, **options))


@pytest.mark.once
def test_there_are_93_cases():
    assert len(CASES) == 93


@pytest.mark.parametrize("name", CASES)
@pytest.mark.once
def test_mapping_with_the_reference(name):
    run_case(CASES[name], rounded_reference)


@pytest.mark.parametrize("name", CASES)
def test_headwise(name):
    run_case(CASES[name], hw.scaled_dot_product_attention)
