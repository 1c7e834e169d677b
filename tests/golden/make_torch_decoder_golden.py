"""Make the golden file of torch's decoders: weights, inputs, outputs and gradients.

Run once with torch 2.15 (never a dependency of the tests):  python tests/golden/make_torch_decoder_golden.py
Writes torch_decoder.npz beside itself: nn.TransformerDecoderLayer, nn.TransformerDecoder and nn.Transformer.
Parameters and inputs are drawn in float32 and used exactly in both runs, float64 (`out64`, the truth) and
float32 (`out32`, what torch itself reaches). Gradients are those of a random `d_out`, 0 at padded targets, in
float64: `d_target`, `d_memory` (of nn.Transformer `d_source`) and `grad`. Array names are `case/thing`; the
array `about` holds JSON: versions, the options of each case, and names and shapes of its parameters, whose
values stand one after the other in `state` and in `grad` (a file of many small arrays is mostly headers).
Masks are stored as torch takes them: True blocks. Torch's fast path of its encoder is off: it drops padding
and answers for other shapes.
"""

import json
import platform
from pathlib import Path

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent

POST = dict(d_model=8, nhead=2, dim_feedforward=10)
PRE = dict(POST, norm_first=True, activation="gelu")

# name: (options of a layer, of the stack or the whole, shape of the call, masks)
CASES = {
    "layer_post_relu": (POST, None, dict(B=2, L=7, S=9), ["causal"]),
    "layer_post_gelu_all": (dict(POST, activation="gelu"), None, dict(B=2, L=5, S=17), []),
    "layer_pre_gelu": (PRE, None, dict(B=2, L=17, S=4), ["causal"]),
    "layer_pre_relu_all": (dict(POST, norm_first=True), None, dict(B=2, L=6, S=6), []),
    "layer_no_bias": (dict(POST, bias=False), None, dict(B=2, L=6, S=5), ["causal"]),
    "layer_one_head_eps": (
        dict(d_model=9, nhead=1, dim_feedforward=7, layer_norm_eps=1e-2),
        None,
        dict(B=1, L=3, S=65),
        ["causal"],
    ),
    "layer_target_padding": (POST, None, dict(B=3, L=9, S=6), ["causal", "target_padding"]),
    "layer_memory_padding": (PRE, None, dict(B=3, L=4, S=18), ["causal", "memory_padding"]),
    "layer_memory_padding_left": (POST, None, dict(B=3, L=4, S=18), ["memory_padding_left"]),
    "layer_bool_masks": (POST, None, dict(B=2, L=8, S=7), ["target_bool", "memory_bool"]),
    "layer_float_masks": (PRE, None, dict(B=2, L=8, S=7), ["target_float", "memory_float"]),
    "layer_mask_per_head": (POST, None, dict(B=2, L=5, S=7), ["causal", "memory_bool_heads"]),
    "decoder_post": (POST, dict(num_layers=2), dict(B=2, L=7, S=11), ["causal"]),
    "decoder_pre_norm_padding": (
        PRE,
        dict(num_layers=2, norm=True),
        dict(B=3, L=7, S=9),
        ["causal", "target_padding", "memory_padding"],
    ),
    "decoder_one_row": (PRE, dict(num_layers=2, norm=True), dict(B=2, L=1, S=1), ["causal"]),
    "decoder_unbatched": (POST, dict(num_layers=2), dict(B=None, L=5, S=8), ["causal"]),
    "transformer_post": (POST, dict(encoder=2, decoder=2), dict(B=2, L=5, S=7), ["causal"]),
    "transformer_pre_padding": (
        PRE,
        dict(encoder=1, decoder=1),
        dict(B=3, L=6, S=8),
        ["causal", "source_padding", "target_padding", "memory_padding"],
    ),
    "transformer_masks_all": (
        dict(POST, activation="gelu"),
        dict(encoder=1, decoder=1),
        dict(B=2, L=5, S=6),
        ["source_bool", "memory_float"],
    ),
    "transformer_unbatched_no_bias": (
        dict(POST, bias=False),
        dict(encoder=1, decoder=1),
        dict(B=None, L=4, S=9),
        ["causal"],
    ),
}  # fmt: skip


def draw(*shape, spread=1.0):
    """Return float32 normals from torch's seeded generator."""
    return torch.randn(*shape) * spread


def fill(module):
    """Give every parameter random values, norms and biases too: defaults of 0 and 1 would hide mistakes."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            if "norm" in name and name.endswith("weight"):
                p.copy_(1.0 + draw(*p.shape, spread=0.2))
            elif p.ndim == 1:
                p.copy_(draw(*p.shape, spread=0.3))
            else:
                p.copy_(draw(*p.shape, spread=1.2 / p.shape[-1] ** 0.5))
    return module.eval()


def build(layer, rest):
    """Return the module of a case, with random parameters."""
    layer = dict(layer, dropout=0.0, batch_first=True)
    if rest is None:
        return fill(nn.TransformerDecoderLayer(**layer))
    if "encoder" in rest:
        counts = dict(num_encoder_layers=rest["encoder"], num_decoder_layers=rest["decoder"])
        return fill(nn.Transformer(**counts, **layer))
    norm = nn.LayerNorm(layer["d_model"]) if rest.get("norm") else None
    return fill(nn.TransformerDecoder(nn.TransformerDecoderLayer(**layer), rest["num_layers"], norm=norm))


def mask_of(kind, B, L, S, heads):
    """Return torch's name and the mask of one kind; True blocks."""
    side, _, form = kind.partition("_")
    if kind == "causal":
        return "tgt_mask", torch.triu(torch.ones(L, L, dtype=torch.bool), 1)
    short = {"source": "src", "target": "tgt", "memory": "memory"}[side]
    rows, keys = {"source": (S, S), "target": (L, L), "memory": (L, S)}[side]
    if form.startswith("padding"):
        lengths = torch.tensor([keys, max(1, keys - 4), max(1, keys // 3)][:B])
        padding = torch.arange(keys)[None, :] >= lengths[:, None]
        return f"{short}_key_padding_mask", padding.flip(1) if form.endswith("left") else padding
    if form == "float":
        mask = draw(rows, keys, spread=2.0)
        mask[torch.rand(rows, keys) < 0.2] = -torch.inf
        mask[:, 0] = 0.5
    else:
        mask = torch.rand(*([B * heads] if form == "bool_heads" else []), rows, keys) < 0.4
        mask[..., 0] = False
    return f"{short}_mask", mask


def in_dtype(x, dtype):
    """Return a tensor of the run in `dtype`; boolean masks stay."""
    return x if x.dtype == torch.bool else x.to(dtype)


def arrays_of(layer, rest, call, kinds):
    """Return the arrays of one case, and the shapes of its parameters."""
    module = build(layer, rest)
    parameters = dict(module.named_parameters())
    whole = rest is not None and "encoder" in rest
    B, L, S = call["B"], call["L"], call["S"]
    batch = () if B is None else (B,)
    first = draw(*batch, S, layer["d_model"])
    target = draw(*batch, L, layer["d_model"])
    masks = dict(mask_of(kind, B, L, S, layer["nhead"]) for kind in kinds)
    d_out = draw(*target.shape)
    if "tgt_key_padding_mask" in masks:
        d_out[masks["tgt_key_padding_mask"]] = 0.0
    name = "source" if whole else "memory"
    arrays = {name: first, "target": target, "d_out": d_out, **masks}
    arrays["state"] = torch.cat([p.detach().flatten() for p in parameters.values()])
    for dtype, tag in ((torch.float32, "32"), (torch.float64, "64")):
        run = module.to(dtype)
        x = {k: in_dtype(v, dtype).detach().requires_grad_() for k, v in ((name, first), ("target", target))}
        order = (x[name], x["target"]) if whole else (x["target"], x[name])
        out = run(*order, **{k: in_dtype(v, dtype) for k, v in masks.items()})
        arrays[f"out{tag}"] = out
    (out * d_out.double()).sum().backward()
    arrays |= {f"d_{k}": v.grad for k, v in x.items()}
    arrays["grad"] = torch.cat([p.grad.flatten() for p in parameters.values()])
    shapes = {k: list(p.shape) for k, p in parameters.items()}
    return {k: v.detach().numpy() for k, v in arrays.items()}, shapes


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)
    arrays, parameters = {}, {}
    for number, (case, arguments) in enumerate(CASES.items()):
        torch.manual_seed(3000 + number)
        of_case, parameters[case] = arrays_of(*arguments)
        arrays |= {f"{case}/{k}": v for k, v in of_case.items()}
    about = dict(
        made_by="tests/golden/make_torch_decoder_golden.py",
        torch=torch.__version__,
        numpy=np.__version__,
        python=platform.python_version(),
        machine=platform.machine(),
        cases=CASES,
        parameters=parameters,
    )
    path = HERE / "torch_decoder.npz"
    np.savez_compressed(path, about=np.array(json.dumps(about)), **arrays)
    print(path.name, f"{path.stat().st_size / 1e6:.2f} MB,", len(CASES), "cases")
