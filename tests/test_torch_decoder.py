"""DecoderLayer, Decoder and Transformer against torch 2.15 (golden/make_torch_decoder_golden.py).

States are loaded under torch's names, unchanged; outputs and gradients are compared as those of encoders are
(test_torch_golden, test_vjp_layers). torch's boolean masks have the opposite polarity, and its padded target
rows hold what happens to come out, where headwise's are 0: only tokens are compared.
"""

import numpy as np
import pytest
from test_torch_golden import allowed, close, golden
from test_vjp_layers import close_gradients, relative

import headwise as hw

CASES = list(golden("torch_decoder.npz")[1])

# torch's names of masks, and headwise's in a decoder and in a whole Transformer.
DECODER_MASKS = {
    "tgt_mask": "attn_mask",
    "tgt_key_padding_mask": "key_mask",
    "memory_mask": "memory_mask",
    "memory_key_padding_mask": "memory_key_mask",
}
TRANSFORMER_MASKS = {
    "src_mask": "source_mask",
    "tgt_mask": "target_mask",
    "memory_mask": "memory_mask",
    "src_key_padding_mask": "source_key_mask",
    "tgt_key_padding_mask": "target_key_mask",
}


def parameters(name, what):
    """Return a case's `state` or `grad` under torch's names."""
    about, cases = golden("torch_decoder.npz")
    shapes = about["parameters"][name]
    ends = np.cumsum([np.prod(shape, dtype=int) for shape in shapes.values()])
    parts = np.split(cases[name][what], ends[:-1])
    return {k: part.reshape(shape) for (k, shape), part in zip(shapes.items(), parts, strict=True)}


def build(name, dtype):
    """Return the layer of a case, and whether it is a whole Transformer."""
    layer, rest, *_ = golden("torch_decoder.npz")[0]["cases"][name]
    options = {"d_model": layer["d_model"], "num_heads": layer["nhead"], "d_ff": layer["dim_feedforward"]}
    options |= {k: v for k, v in layer.items() if k in ("activation", "norm_first", "layer_norm_eps", "bias")}
    if rest is None:
        return hw.DecoderLayer(**options, dtype=dtype), False
    if "encoder" in rest:
        counts = {"num_encoder_layers": rest["encoder"], "num_decoder_layers": rest["decoder"]}
        return hw.Transformer(**options, **counts, dtype=dtype), True
    return hw.Decoder(rest["num_layers"], **options, final_norm=rest.get("norm", False), dtype=dtype), False


def call_of(name):
    """Return (arrays, inputs in the order of the call, their names, keywords) of a case."""
    about, cases = golden("torch_decoder.npz")
    arrays, (layer, rest, shape, kinds) = cases[name], about["cases"][name]
    whole = rest is not None and "encoder" in rest
    names = ("source", "target") if whole else ("target", "memory")
    keywords = {"is_causal": "causal" in kinds}
    for torch_name, own in (TRANSFORMER_MASKS if whole else DECODER_MASKS).items():
        mask = allowed(arrays.get(torch_name))
        if mask is None or (torch_name == "tgt_mask" and keywords["is_causal"]):
            continue
        if mask.ndim == 3:  # torch's (B * H, L, S)
            mask = mask.reshape(shape["B"], layer["nhead"], *mask.shape[1:])
        keywords[own] = mask
    return arrays, [arrays[k] for k in names], names, keywords


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", CASES)
def test_like_torch(name, dtype):
    arrays, inputs, names, keywords = call_of(name)
    layer, _ = build(name, dtype)
    state = parameters(name, "state")
    assert {k: v.shape for k, v in layer.state_dict().items()} == {k: v.shape for k, v in state.items()}
    layer.load_state_dict(state)

    out = layer(*inputs, **keywords)
    assert out.dtype == dtype
    padding = arrays.get("tgt_key_padding_mask")
    rows = slice(None) if padding is None else ~padding
    close(out, arrays, "out", dtype, rows)
    if padding is not None:
        assert not out[padding].any()

    again, pullback = layer.vjp(*inputs, **keywords)
    np.testing.assert_array_equal(again, out)
    d_inputs, grads = pullback(arrays["d_out"])
    for got, what in zip(d_inputs, names, strict=True):
        want = arrays[f"d_{what}"]
        assert got.dtype == dtype
        assert got.shape == want.shape
        assert relative(got, want) <= (1e-11 if dtype == "float64" else 1e-5), what
    of_parameters = {f"grad/{k}": v for k, v in parameters(name, "grad").items()}
    assert set(grads) == set(state)
    close_gradients({k: grads[k] for k in state}, of_parameters, dtype, np.linalg.norm(arrays["d_out"]))


@pytest.mark.parametrize("name", [name for name in CASES if golden("torch_decoder.npz")[0]["cases"][name][1]])
def test_states_go_back_to_torch(name):
    layer, _ = build(name, "float32")
    state = parameters(name, "state")
    layer.load_state_dict({f"module.{k}": v for k, v in state.items()})
    for k, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, state[k], err_msg=k)


@pytest.mark.once
def test_a_mask_says_the_same_as_a_flag():
    name = "layer_post_relu"
    arrays, inputs, _, keywords = call_of(name)
    layer, _ = build(name, "float32")
    assert keywords == {"is_causal": True}
    masked = layer(*inputs, is_causal=False, attn_mask=~arrays["tgt_mask"])
    np.testing.assert_array_equal(masked, layer(*inputs))


@pytest.mark.once
def test_the_file_names_what_made_it():
    about, cases = golden("torch_decoder.npz")
    assert about["torch"].startswith("2.15")
    assert set(about["cases"]) == set(about["parameters"]) == set(cases)
