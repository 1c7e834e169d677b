"""Make the golden files of torch: attention layers and encoders, weights, inputs and outputs.

Run once with torch 2.15 (never a dependency of the tests):  python tests/golden/make_torch_golden.py
Writes torch_functions.npz, torch_mha.npz and torch_encoder.npz beside itself. Parameters and inputs are drawn
in float32 and used exactly in both runs, float64 (`out64`, the truth) and float32 (`out32`, what torch itself
reaches). Array names are `case/thing`; the array `about` holds JSON: versions, and the options of each case.
Masks are stored as torch takes them: True blocks. Torch's fast path is off: it drops padding and answers for
other shapes.
"""

import json
import platform
from pathlib import Path

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent

# name: (arguments of the module, shape of the call, masks)
MHA = {
    "self": (dict(embed_dim=32, num_heads=4), dict(B=3, L=17), []),
    "self_100": (dict(embed_dim=100, num_heads=5), dict(B=2, L=15), []),
    "self_no_bias": (dict(embed_dim=16, num_heads=2, bias=False), dict(B=2, L=16), []),
    "one_row": (dict(embed_dim=16, num_heads=16), dict(B=2, L=1), []),
    "unbatched": (dict(embed_dim=24, num_heads=3), dict(B=None, L=9), []),
    "sequence_first": (dict(embed_dim=24, num_heads=3, batch_first=False), dict(B=2, L=11), []),
    "tiles": (dict(embed_dim=32, num_heads=1), dict(B=1, L=129), []),
    "cross": (dict(embed_dim=32, num_heads=4), dict(B=2, L=5, S=65), []),
    "cross_widths": (dict(embed_dim=32, num_heads=2, kdim=20, vdim=12), dict(B=2, L=7, S=16), []),
    "cross_widths_no_bias": (
        dict(embed_dim=16, num_heads=2, kdim=5, vdim=16, bias=False),
        dict(B=2, L=3, S=4),
        [],
    ),
    "causal": (dict(embed_dim=32, num_heads=4), dict(B=2, L=33), ["causal"]),
    "bool_mask": (dict(embed_dim=32, num_heads=4), dict(B=2, L=13, S=13), ["bool2d"]),
    "float_mask": (dict(embed_dim=32, num_heads=4), dict(B=2, L=13), ["float2d"]),
    "mask_per_head": (dict(embed_dim=32, num_heads=4), dict(B=2, L=9), ["bool3d"]),
    "padding": (dict(embed_dim=32, num_heads=4), dict(B=3, L=18), ["padding"]),
    "padding_left": (dict(embed_dim=32, num_heads=4), dict(B=3, L=18), ["padding_left"]),
    "padding_and_mask": (dict(embed_dim=32, num_heads=4), dict(B=3, L=18), ["padding", "causal"]),
    "cross_padding": (dict(embed_dim=32, num_heads=4), dict(B=3, L=6, S=20), ["padding"]),
}

ENCODERS = {
    "layer_post_relu": (dict(d_model=32, nhead=4, dim_feedforward=64), None, dict(B=2, L=17), []),
    "layer_pre_gelu": (
        dict(d_model=32, nhead=4, dim_feedforward=48, norm_first=True, activation="gelu"),
        None,
        dict(B=2, L=16),
        [],
    ),
    "layer_100": (dict(d_model=100, nhead=5, dim_feedforward=129), None, dict(B=2, L=15), []),
    "layer_no_bias": (dict(d_model=16, nhead=2, dim_feedforward=33, bias=False), None, dict(B=2, L=8), []),
    "layer_eps": (
        dict(d_model=16, nhead=4, dim_feedforward=32, layer_norm_eps=1e-2),
        None,
        dict(B=2, L=8),
        [],
    ),
    "layer_mask": (dict(d_model=32, nhead=4, dim_feedforward=64), None, dict(B=2, L=12), ["bool2d"]),
    "layer_float_mask": (dict(d_model=32, nhead=4, dim_feedforward=64), None, dict(B=2, L=12), ["float2d"]),
    "layer_padding": (dict(d_model=32, nhead=4, dim_feedforward=64), None, dict(B=3, L=18), ["padding"]),
    "post": (dict(d_model=32, nhead=4, dim_feedforward=64), dict(num_layers=3), dict(B=2, L=17), []),
    "pre_final_norm": (
        dict(d_model=32, nhead=2, dim_feedforward=64, norm_first=True, activation="gelu"),
        dict(num_layers=2, norm=True),
        dict(B=2, L=17),
        [],
    ),
    "causal": (
        dict(d_model=32, nhead=4, dim_feedforward=64),
        dict(num_layers=2),
        dict(B=2, L=64),
        ["causal"],
    ),
    "padding": (
        dict(d_model=32, nhead=4, dim_feedforward=64, activation="gelu"),
        dict(num_layers=2, norm=True),
        dict(B=4, L=20),
        ["padding"],
    ),
    "padding_left_pre": (
        dict(d_model=32, nhead=4, dim_feedforward=64, norm_first=True),
        dict(num_layers=2, norm=True),
        dict(B=3, L=18),
        ["padding_left"],
    ),
    "unbatched": (dict(d_model=16, nhead=2, dim_feedforward=24), dict(num_layers=2), dict(B=None, L=10), []),
}


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


def masks(kinds, B, L, S, heads):
    """Return (attn_mask, key_padding_mask) in torch's polarity: True blocks."""
    attn = padding = None
    for kind in kinds:
        if kind == "causal":
            attn = torch.triu(torch.ones(L, S, dtype=torch.bool), 1)
        elif kind == "bool2d":
            attn = torch.rand(L, S) < 0.4
            attn[:, 0] = False
        elif kind == "bool3d":
            attn = torch.rand(B * heads, L, S) < 0.4
            attn[..., 0] = False
        elif kind == "float2d":
            attn = draw(L, S, spread=2.0)
            attn[torch.rand(L, S) < 0.2] = -torch.inf
            attn[:, 0] = 0.5
        else:
            lengths = torch.tensor([S, max(1, S - 5), max(1, S // 3), 1][:B])
            padding = torch.arange(S)[None, :] >= lengths[:, None]
            padding = padding.flip(1) if kind == "padding_left" else padding
    return attn, padding


def numpy_of(tensors):
    """Return a dict of tensors as arrays."""
    return {k: v.detach().numpy() for k, v in tensors.items() if v is not None}


def as_run(x, dtype):
    """Return an input of the run in dtype; boolean masks stay."""
    return x if x is None or x.dtype == torch.bool else x.to(dtype)


def mha_case(options, call, kinds):
    """Return the arrays of one case of nn.MultiheadAttention."""
    module = fill(nn.MultiheadAttention(**{"batch_first": True, **options}))
    D, L, B = options["embed_dim"], call["L"], call["B"]
    S = call.get("S", L)
    shape = (
        (lambda n, d: (n, d))
        if B is None
        else ((lambda n, d: (B, n, d)) if module.batch_first else (lambda n, d: (n, B, d)))
    )
    query = draw(*shape(L, D))
    key, value = (draw(*shape(S, module.kdim)), draw(*shape(S, module.vdim))) if "S" in call else (None, None)
    attn, padding = masks(kinds, B, L, S, options["num_heads"])
    arrays = numpy_of(dict(query=query, key=key, value=value, attn_mask=attn, key_padding_mask=padding))
    arrays |= {f"state/{k}": v.numpy().copy() for k, v in module.state_dict().items()}
    for dtype, tag in ((torch.float64, "64"), (torch.float32, "32")):
        m = module.to(dtype)
        q, k, v = (
            as_run(x, dtype)
            for x in (query, query if key is None else key, query if value is None else value)
        )
        kw = dict(attn_mask=as_run(attn, dtype), key_padding_mask=padding, need_weights=True)
        out, weights = m(q, k, v, average_attn_weights=False, **kw)
        arrays |= numpy_of({f"out{tag}": out, f"weights{tag}": weights})
        arrays |= numpy_of({f"average{tag}": m(q, k, v, average_attn_weights=True, **kw)[1]})
    return arrays


def encoder_case(layer_options, stack, call, kinds):
    """Return the arrays of one case of nn.TransformerEncoderLayer or nn.TransformerEncoder."""
    layer = nn.TransformerEncoderLayer(**layer_options, dropout=0.0, batch_first=True)
    module = layer
    if stack is not None:
        norm = nn.LayerNorm(layer_options["d_model"]) if stack.get("norm") else None
        module = nn.TransformerEncoder(layer, stack["num_layers"], norm=norm, enable_nested_tensor=False)
    module = fill(module)
    B, L = call["B"], call["L"]
    x = draw(*((L,) if B is None else (B, L)), layer_options["d_model"])
    attn, padding = masks(kinds, B, L, L, layer_options["nhead"])
    arrays = numpy_of(dict(x=x, attn_mask=attn, key_padding_mask=padding))
    arrays |= {f"state/{k}": v.numpy().copy() for k, v in module.state_dict().items()}
    mask_name = "src_mask" if stack is None else "mask"
    for dtype, tag in ((torch.float64, "64"), (torch.float32, "32")):
        out = module.to(dtype)(
            as_run(x, dtype), **{mask_name: as_run(attn, dtype)}, src_key_padding_mask=padding
        )
        arrays |= numpy_of({f"out{tag}": out})
    return arrays


F = nn.functional
FUNCTIONS = {
    "attention": (F.scaled_dot_product_attention, [(2, 4, 5, 8), (2, 4, 9, 8), (2, 4, 9, 6)], {}),
    "attention_causal": (
        F.scaled_dot_product_attention,
        [(4, 7, 8), (4, 9, 8), (4, 9, 8)],
        {"is_causal": True},
    ),
    "attention_scale": (F.scaled_dot_product_attention, [(4, 7, 8), (4, 9, 8), (4, 9, 8)], {"scale": 0.9}),
    "attention_gqa": (
        F.scaled_dot_product_attention,
        [(2, 6, 7, 8), (2, 2, 9, 8), (2, 2, 9, 8)],
        {"enable_gqa": True},
    ),
    "attention_bias": (F.scaled_dot_product_attention, [(4, 7, 8), (4, 9, 8), (4, 9, 8), (7, 9)], {}),
    "softmax": (F.softmax, [(5, 33)], {"dim": -1}),
    "layer_norm": (lambda x, w, b: F.layer_norm(x, w.shape, w, b), [(5, 33), (33,), (33,)], {}),
    "rms_norm": (lambda x, w: F.rms_norm(x, w.shape, w, eps=1e-5), [(5, 33), (33,)], {}),
    "gelu": (F.gelu, [(1000,)], {}),
    "gelu_tanh": (F.gelu, [(1000,)], {"approximate": "tanh"}),
    "silu": (F.silu, [(1000,)], {}),
    "linear": (F.linear, [(5, 33), (7, 33), (7,)], {}),
}


def function_case(name):
    """Return inputs and the float64 output of one function of torch."""
    function, shapes, options = FUNCTIONS[name]
    inputs = [draw(*shape, spread=3.0) for shape in shapes]
    arrays = {f"input{i}": x for i, x in enumerate(inputs)}
    return numpy_of(arrays | {"out64": function(*(x.double() for x in inputs), **options)})


def write(path, cases, make):
    """Run the cases, each from its own seed, and write one compressed file."""
    arrays = {}
    for number, (name, arguments) in enumerate(cases.items()):
        torch.manual_seed(1000 + number)
        arrays |= {f"{name}/{k}": v for k, v in make(*arguments).items()}
    about = dict(
        made_by="tests/golden/make_torch_golden.py",
        torch=torch.__version__,
        numpy=np.__version__,
        python=platform.python_version(),
        machine=platform.machine(),
        cases=cases,
    )
    np.savez_compressed(path, about=np.array(json.dumps(about)), **arrays)
    print(path.name, f"{path.stat().st_size / 1e6:.2f} MB,", len(cases), "cases")


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.no_grad():
        write(HERE / "torch_functions.npz", {name: [name] for name in FUNCTIONS}, function_case)
        write(HERE / "torch_mha.npz", MHA, mha_case)
        write(HERE / "torch_encoder.npz", ENCODERS, encoder_case)
