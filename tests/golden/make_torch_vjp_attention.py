"""Make the golden gradients of torch's scaled_dot_product_attention.

Run once with torch 2.15 (never a dependency of the tests):  python tests/golden/make_torch_vjp_attention.py
Writes torch_vjp_attention.npz beside itself. Inputs are drawn in float32 and used exactly in float64, in
which torch's unfused formula gives the gradients (the truth); what float32 itself reaches is kept as their
rms-relative errors. Array names are `case/thing`; the array `about` holds JSON: versions, and the options of
each case. Boolean masks mean the same as here: True may be attended.
"""

import json
import platform
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent

# name: (B, H, Hk, L, S, E, Ev), options
CASES = {
    "plain": ((2, 2, 2, 17, 17, 32, 32), {}),
    "tiles": ((1, 1, 1, 65, 129, 16, 16), {}),
    "values_wider": ((1, 2, 2, 15, 64, 8, 24), {}),
    "grouped": ((2, 4, 2, 16, 33, 16, 16), {"enable_gqa": True}),
    "causal": ((1, 2, 2, 65, 65, 16, 16), {"is_causal": True}),
    "bool_mask": ((2, 2, 2, 17, 20, 16, 16), {"mask": "bool"}),
    "float_mask": ((2, 2, 2, 17, 20, 16, 16), {"mask": "float"}),
    "mask_of_heads": ((2, 2, 2, 9, 12, 8, 8), {"mask": "heads"}),
    "scale": ((1, 2, 2, 15, 16, 16, 16), {"scale": 0.7}),
}
MASKS = {"bool": ("L", "S"), "float": ("L", "S"), "heads": ("H", 1, "S")}


def mask_of(kind, sizes):
    """Return a mask in which every query may attend the first key."""
    shape = [sizes.get(n, n) for n in MASKS[kind]]
    if kind == "bool":
        mask = torch.rand(shape) < 0.6
        mask[..., 0] = True
        return mask
    return torch.randn(shape)


def attend(q, k, v, mask, options):
    """Return the output by torch's own formula, which keeps all weights."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, **options)


def gradients(arrays, options, dtype):
    """Return the gradients of the inputs and of a float mask in a dtype."""
    given = {n: torch.from_numpy(x) for n, x in arrays.items()}
    for name, x in given.items():
        if x.dtype != torch.bool:
            given[name] = x.to(dtype).requires_grad_(name != "d_out")
    out = attend(given["query"], given["key"], given["value"], given.get("attn_mask"), options)
    wanted = [n for n, x in given.items() if x.requires_grad]
    found = torch.autograd.grad(out, [given[n] for n in wanted], given["d_out"])
    return {f"d_{n}": g.numpy() for n, g in zip(wanted, found, strict=True)}


def main():
    torch.manual_seed(20260105)
    torch.set_num_threads(1)
    about = {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()}
    about["cases"], arrays = {}, {}
    for name, ((B, H, Hk, L, S, E, Ev), options) in CASES.items():
        options = dict(options)
        kind = options.pop("mask", None)
        inputs = {
            "query": torch.randn(B, H, L, E),
            "key": torch.randn(B, Hk, S, E),
            "value": torch.randn(B, Hk, S, Ev),
            "d_out": torch.randn(B, H, L, Ev),
        }
        if kind:
            inputs["attn_mask"] = mask_of(kind, {"H": H, "L": L, "S": S})
        inputs = {n: x.numpy() for n, x in inputs.items()}
        exact, single = gradients(inputs, options, torch.float64), gradients(inputs, options, torch.float32)
        errors = {n: float(np.sqrt(np.mean((single[n] - x) ** 2) / np.mean(x**2))) for n, x in exact.items()}
        arrays |= {f"{name}/{n}": x for n, x in (inputs | exact).items()}
        about["cases"][name] = {"options": options, "float32_errors": errors}
    np.savez_compressed(HERE / "torch_vjp_attention.npz", about=json.dumps(about), **arrays)


if __name__ == "__main__":
    main()
