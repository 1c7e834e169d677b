"""Make the golden file of torch's recurrent layers: weights, inputs, outputs, states and gradients.

Run once with torch 2.15 (never a dependency of the tests):  python tests/golden/make_torch_recurrent.py
Writes torch_recurrent.npz beside itself: nn.RNN, nn.LSTM and nn.GRU. Parameters and inputs are drawn in
float32 and used exactly in both runs, float64 (`out64`, `h64`, `c64`: the truth) and float32 (`out32`...:
what torch itself reaches). Gradients are those of a random `d_out`, 0 at padded rows, `d_h` and `d_c`, in
both types: `d_x64`, `d_h0_64`, `d_c0_64`, `grad64`. Lengths that differ go through torch's packed
sequences. Array names are `case/thing`; the array `about` holds JSON: versions, the options of each case,
and names and shapes of its parameters, whose values stand one after the other in `state` and in `grad`.
"""

import json
import platform
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

HERE = Path(__file__).parent
CELLS = {"tanh": nn.RNN, "relu": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
TWO = dict(num_layers=2)
BOTH = dict(bidirectional=True)

# name: (cell, options of the layer, shape of the call; `state` tells whether first states are given)
CASES = {
    f"{cell}_{name}": (cell, options, call)
    for cell in CELLS
    for name, options, call in [
        ("plain", dict(D=5, H=7), dict(B=3, L=6)),
        ("two_state", dict(D=4, H=17, **TWO), dict(B=2, L=5, state=True)),
        ("both_packed", dict(D=6, H=9, **BOTH), dict(B=4, L=8, lengths=[5, 8, 1, 5], state=True)),
        ("two_both_packed", dict(D=3, H=8, **TWO, **BOTH), dict(B=3, L=9, lengths=[9, 2, 6])),
    ]
} | {
    "lstm_no_bias": ("lstm", dict(D=5, H=6, bias=False), dict(B=2, L=7, state=True)),
    "gru_no_bias": ("gru", dict(D=5, H=6, bias=False, **BOTH), dict(B=2, L=7)),
    "tanh_no_bias": ("tanh", dict(D=2, H=3, bias=False), dict(B=2, L=4)),
    "lstm_unbatched": ("lstm", dict(D=3, H=5, **TWO, **BOTH), dict(B=None, L=4, state=True)),
    "gru_unbatched": ("gru", dict(D=3, H=5), dict(B=None, L=4)),
    "lstm_long": ("lstm", dict(D=2, H=4), dict(B=1, L=130)),
    "gru_wide": ("gru", dict(D=19, H=33), dict(B=9, L=3, state=True)),
}  # fmt: skip


def build(cell, options):
    """Return the layer of a case, its parameters drawn in float32."""
    options = dict(options)
    sizes = options.pop("D"), options.pop("H")
    if CELLS[cell] is nn.RNN:
        options["nonlinearity"] = cell
    layer = CELLS[cell](*sizes, batch_first=True, **options)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(*p.shape) * (0.3 if p.ndim == 1 else 0.9 / p.shape[-1] ** 0.5))
    return layer


def run(layer, x, states, lengths):
    """Return (out, the last states) of a batch, by packed sequences where lengths are given."""
    is_lstm = isinstance(layer, nn.LSTM)
    first = None if not states else tuple(states) if is_lstm else states[0]
    if lengths is None:
        out, last = layer(x, first)
    else:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out, last = layer(packed, first)
        out, _ = pad_packed_sequence(out, batch_first=True, total_length=x.shape[1])
    return out, last if is_lstm else (last,)


def arrays_of(cell, options, call):
    """Return the arrays of one case, and the shapes of its parameters."""
    layer = build(cell, options)
    batch = () if call["B"] is None else (call["B"],)
    directions = 2 if options.get("bidirectional") else 1
    counts = (options.get("num_layers", 1) * directions, *batch, options["H"])
    parts = ["h", "c"] if cell == "lstm" else ["h"]
    x = torch.randn(*batch, call["L"], options["D"])
    states = [0.7 * torch.randn(*counts) for _ in parts] if call.get("state") else []
    d_out = torch.randn(*batch, call["L"], directions * options["H"])
    for b, length in enumerate(call.get("lengths", [])):
        d_out[b, length:] = 0.0
    d_last = [torch.randn(*counts) for _ in parts]
    arrays = {"x": x, "d_out": d_out, "state": torch.cat([p.detach().flatten() for p in layer.parameters()])}
    arrays |= {f"{part}0": s for part, s in zip(parts, states, strict=False)}
    arrays |= {f"d_{part}": d for part, d in zip(parts, d_last, strict=True)}
    for dtype, tag in ((torch.float32, "32"), (torch.float64, "64")):
        layer = layer.to(dtype)
        layer.zero_grad()
        inputs = [v.detach().to(dtype).requires_grad_() for v in (x, *states)]
        out, last = run(layer, inputs[0], inputs[1:], call.get("lengths"))
        loss = (out * d_out.to(dtype)).sum()
        loss = loss + sum((s * d.to(dtype)).sum() for s, d in zip(last, d_last, strict=True))
        loss.backward()
        arrays[f"out{tag}"] = out
        arrays |= {f"{part}{tag}": s for part, s in zip(parts, last, strict=True)}
        arrays[f"d_x{tag}"] = inputs[0].grad
        arrays |= {f"d_{part}0_{tag}": s.grad for part, s in zip(parts, inputs[1:], strict=False)}
        arrays[f"grad{tag}"] = torch.cat([p.grad.flatten() for p in layer.parameters()])
    shapes = {k: list(p.shape) for k, p in layer.named_parameters()}
    return {k: v.detach().numpy().copy() for k, v in arrays.items()}, shapes


if __name__ == "__main__":
    torch.set_num_threads(1)
    arrays, parameters = {}, {}
    for number, (case, arguments) in enumerate(CASES.items()):
        torch.manual_seed(7000 + number)
        of_case, parameters[case] = arrays_of(*arguments)
        arrays |= {f"{case}/{k}": v for k, v in of_case.items()}
    about = dict(
        made_by="tests/golden/make_torch_recurrent.py",
        torch=torch.__version__,
        numpy=np.__version__,
        python=platform.python_version(),
        machine=platform.machine(),
        cases=CASES,
        parameters=parameters,
    )
    path = HERE / "torch_recurrent.npz"
    np.savez_compressed(path, about=np.array(json.dumps(about)), **arrays)
    print(path.name, f"{path.stat().st_size / 1e6:.2f} MB,", len(CASES), "cases")
