"""Make the golden files of torch's gradients, for the layers and cases of make_torch_golden.py.

Run once with torch 2.15 (never a dependency of the tests):  python tests/golden/make_torch_gradients.py
Reads torch_mha.npz and torch_encoder.npz beside itself and writes torch_mha_gradients.npz and
torch_encoder_gradients.npz: for each case the gradient `d_out` of the output, 0 at padded queries, and in
float64 those of the inputs (`d_query`, ...) and of the parameters (`grad/name`). The array `about` holds
JSON: versions.
"""

import json
import platform
from pathlib import Path

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent


def read(name):
    """Return (about, {case: arrays}) of a golden file."""
    cases = {}
    with np.load(HERE / name, allow_pickle=False) as file:
        about = json.loads(str(file["about"]))
        for key in file.files:
            if "/" in key:
                case, _, rest = key.partition("/")
                cases.setdefault(case, {})[rest] = file[key]
    return about, cases


def tensor(array, *, leaf=False):
    """Return a float64 tensor, or the mask that a boolean array is."""
    if array is None or array.dtype == bool:
        return None if array is None else torch.from_numpy(array)
    return torch.from_numpy(array).double().requires_grad_(leaf)


def loaded(module, arrays):
    """Give a module the parameters of a case, in float64."""
    state = {k.removeprefix("state/"): tensor(v) for k, v in arrays.items() if k.startswith("state/")}
    module = module.double()
    module.load_state_dict(state)
    return module.eval()


def gradients(module, out, inputs, padded):
    """Return a random d_out, 0 in `padded` rows, and what it makes of inputs and parameters."""
    d_out = torch.randn(out.shape).float().double()
    if padded is not None:
        d_out[padded] = 0.0
    (out * d_out).sum().backward()
    arrays = {"d_out": d_out.float().numpy()}
    arrays |= {f"d_{name}": x.grad.numpy() for name, x in inputs.items()}
    return arrays | {f"grad/{name}": p.grad.numpy() for name, p in module.named_parameters()}


def mha_case(arrays, case):
    """Return the gradients of one case of nn.MultiheadAttention."""
    module = loaded(nn.MultiheadAttention(**{"batch_first": True, **case[0]}), arrays)
    inputs = {k: tensor(arrays[k], leaf=True) for k in ("query", "key", "value") if k in arrays}
    query = inputs["query"]
    padding = tensor(arrays.get("key_padding_mask"))
    out, _ = module(
        query,
        inputs.get("key", query),
        inputs.get("value", query),
        attn_mask=tensor(arrays.get("attn_mask")),
        key_padding_mask=padding,
        need_weights=False,
    )
    return gradients(module, out, inputs, padding if "key" not in inputs else None)


def encoder_case(arrays, case):
    """Return the gradients of one case of nn.TransformerEncoderLayer or nn.TransformerEncoder."""
    layer_options, stack, _, _ = case
    module = nn.TransformerEncoderLayer(**layer_options, dropout=0.0, batch_first=True)
    if stack is not None:
        norm = nn.LayerNorm(layer_options["d_model"]) if stack.get("norm") else None
        module = nn.TransformerEncoder(module, stack["num_layers"], norm=norm, enable_nested_tensor=False)
    module = loaded(module, arrays)
    x = tensor(arrays["x"], leaf=True)
    padding = tensor(arrays.get("key_padding_mask"))
    mask_name = "src_mask" if stack is None else "mask"
    out = module(x, **{mask_name: tensor(arrays.get("attn_mask"))}, src_key_padding_mask=padding)
    return gradients(module, out, {"x": x}, padding)


def write(name, make):
    """Compute the gradients of the cases of a golden file, and write one compressed file."""
    about, cases = read(f"{name}.npz")
    arrays = {}
    for number, (case, of_case) in enumerate(cases.items()):
        torch.manual_seed(2000 + number)
        arrays |= {f"{case}/{k}": v for k, v in make(of_case, about["cases"][case]).items()}
    about = dict(
        made_by="tests/golden/make_torch_gradients.py",
        torch=torch.__version__,
        numpy=np.__version__,
        python=platform.python_version(),
        machine=platform.machine(),
    )
    path = HERE / f"{name}_gradients.npz"
    np.savez_compressed(path, about=np.array(json.dumps(about)), **arrays)
    print(path.name, f"{path.stat().st_size / 1e6:.2f} MB,", len(cases), "cases")


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.backends.mha.set_fastpath_enabled(False)
    write("torch_mha", mha_case)
    write("torch_encoder", encoder_case)
