"""MultiHeadAttention, EncoderLayer and Encoder against torch 2.15's values (golden/make_torch_golden.py).

The reference is held to the same values, so that it may judge what torch cannot hold. torch's masks have the
opposite polarity: True blocks there, so a boolean mask is inverted here, and `key_padding_mask` becomes
`key_mask`.
"""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from reference_layers import encoder_layer_reference, encoder_reference, mha_reference, real_rows

import headwise as hw

GOLDEN = Path(__file__).parent / "golden"


@cache
def golden(name):
    """Return (about, {case: arrays}) of one golden file; nothing is unpickled."""
    cases = {}
    with np.load(GOLDEN / name, allow_pickle=False) as file:
        about = json.loads(str(file["about"]))
        for key in file.files:
            if "/" in key:
                case, _, rest = key.partition("/")
                cases.setdefault(case, {})[rest] = file[key]
    return about, cases


MHA_CASES = list(golden("torch_mha.npz")[1])
ENCODER_CASES = list(golden("torch_encoder.npz")[1])


def state_of(arrays):
    """Return the state dict of a case."""
    return {k.removeprefix("state/"): v for k, v in arrays.items() if k.startswith("state/")}


def allowed(mask):
    """Turn torch's boolean polarity (True blocks) around; float masks mean the same in both."""
    return ~mask if mask is not None and mask.dtype == bool else mask


def rms_relative(got, want):
    """Return the root mean square of the error over that of the truth."""
    return np.sqrt(np.mean((np.float64(got) - want) ** 2)) / np.sqrt(np.mean(want**2))


def close(got, arrays, name, dtype, rows=slice(None)):
    """float64 must agree to rounding; float32 be as near to the float64 truth as torch's float32, or 5e-7."""
    want = arrays[f"{name}64"][rows]
    got = np.asarray(got)[rows]
    if dtype == "float64":
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-12)
    else:
        assert rms_relative(got, want) <= max(5e-7, rms_relative(arrays[f"{name}32"][rows], want))


def mha_call(name):
    """Return (arrays, options of torch's module, positional inputs batch first, keywords) of a case."""
    about, cases = golden("torch_mha.npz")
    arrays, options = cases[name], about["cases"][name][0]
    inputs = [arrays[k] for k in ("query", "key", "value") if k in arrays]
    if options.get("batch_first") is False:
        inputs = [x.swapaxes(0, 1) for x in inputs]
    attn = allowed(arrays.get("attn_mask"))
    if attn is not None and attn.ndim == 3:  # torch's (N * H, L, S)
        attn = attn.reshape(-1, options["num_heads"], *attn.shape[1:])
    return arrays, options, inputs, {"attn_mask": attn, "key_mask": allowed(arrays.get("key_padding_mask"))}


def batch_first(out, options):
    """Return torch's sequence-first output batch first."""
    return out.swapaxes(0, 1) if options.get("batch_first") is False else out


def rows_to_compare(arrays, inputs):
    """Return the rows to compare: padded queries of self-attention are 0 here, anything in torch."""
    if len(inputs) == 1 and "key_padding_mask" in arrays:
        return real_rows(inputs[0].shape[:-1], ~arrays["key_padding_mask"], None)
    return np.ones(inputs[0].shape[:-1], dtype=bool)


@pytest.mark.parametrize("name", MHA_CASES)
@pytest.mark.once
def test_reference_mha(name):
    arrays, options, inputs, masks = mha_call(name)
    out, weights = mha_reference(
        state_of(arrays), *inputs, num_heads=options["num_heads"], need_weights=True, **masks
    )
    rows = rows_to_compare(arrays, inputs)
    want = batch_first(arrays["out64"], options)
    np.testing.assert_allclose(out[rows], want[rows], rtol=1e-11, atol=1e-12)
    by_row = np.moveaxis(weights, -3, -1)  # (B, L, S, H), so that rows select
    np.testing.assert_allclose(
        by_row[rows], np.moveaxis(arrays["weights64"], -3, -1)[rows], rtol=1e-11, atol=1e-13
    )


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", MHA_CASES)
def test_mha(name, dtype):
    arrays, options, inputs, masks = mha_call(name)
    layer = hw.MultiHeadAttention(
        options["embed_dim"],
        options["num_heads"],
        key_dim=options.get("kdim"),
        value_dim=options.get("vdim"),
        bias=options.get("bias", True),
        dtype=dtype,
    )
    layer.load_state_dict(state_of(arrays))
    out, weights = layer(*inputs, need_weights=True, **masks)
    _, average = layer(*inputs, need_weights=True, average_weights=True, **masks)
    assert out.dtype == weights.dtype == average.dtype == dtype
    assert average.shape == arrays["average64"].shape
    rows = rows_to_compare(arrays, inputs)
    held = {k: batch_first(arrays[k], options) for k in ("out64", "out32")}
    held |= {k: np.moveaxis(arrays[k], -3, -1) for k in ("weights64", "weights32")}
    held |= {k: arrays[k] for k in ("average64", "average32")}
    close(out, held, "out", dtype, rows)
    close(np.moveaxis(weights, -3, -1), held, "weights", dtype, rows)
    close(average, held, "average", dtype, rows)
    assert not out[~rows].any()


def encoder_call(name):
    """Return (arrays, options of the reference, arguments of headwise, x, masks) of a case."""
    about, cases = golden("torch_encoder.npz")
    arrays, (layer, stack, *_) = cases[name], about["cases"][name]
    options = {
        "num_heads": layer["nhead"],
        "activation": layer.get("activation", "relu"),
        "norm_first": layer.get("norm_first", False),
        "layer_norm_eps": layer.get("layer_norm_eps", 1e-5),
    }
    if stack is not None:
        options |= {"num_layers": stack["num_layers"], "final_norm": stack.get("norm", False)}
    arguments = options | {
        "d_model": layer["d_model"],
        "d_ff": layer["dim_feedforward"],
        "bias": layer.get("bias", True),
    }
    masks = {
        "attn_mask": allowed(arrays.get("attn_mask")),
        "key_mask": allowed(arrays.get("key_padding_mask")),
    }
    return arrays, options, arguments, arrays["x"], masks


@pytest.mark.parametrize("name", ENCODER_CASES)
@pytest.mark.once
def test_reference_encoder(name):
    arrays, options, _, x, masks = encoder_call(name)
    run = encoder_reference if "num_layers" in options else encoder_layer_reference
    out = run(state_of(arrays), x, **options, **masks)
    rows = real_rows(x.shape[:-1], masks["key_mask"], None)
    np.testing.assert_allclose(out[rows], arrays["out64"][rows], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ENCODER_CASES)
def test_encoder(name, dtype):
    arrays, _, arguments, x, masks = encoder_call(name)
    layer = (hw.Encoder if "num_layers" in arguments else hw.EncoderLayer)(**arguments, dtype=dtype)
    layer.load_state_dict(state_of(arrays))
    out = layer(x, **masks)
    assert out.dtype == dtype
    assert out.shape == x.shape
    rows = real_rows(x.shape[:-1], masks["key_mask"], None)
    close(out, arrays, "out", dtype, rows)
    assert not out[~rows].any()


@pytest.mark.once
def test_files_name_what_made_them():
    for name in ("torch_functions.npz", "torch_mha.npz", "torch_encoder.npz"):
        about, cases = golden(name)
        assert about["torch"].startswith("2.15")
        assert set(about["cases"]) == set(cases)
