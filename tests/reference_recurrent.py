"""RNN, LSTM and GRU from their formulas, in float64, one sequence and one step at a time.

Written to be checked by eye: no batch, no packing, no gradient. Parameters have torch's names; gates stand in
torch's order, and GRU's reset gate follows its product.
"""

import numpy as np


def sigmoid(x):
    """Return 1 / (1 + e^-x)."""
    return 1.0 / (1.0 + np.exp(-x))


def step(cell, x, h, c, w):
    """Return (h, c) after a step; `w` holds weight_ih, weight_hh, bias_ih and bias_hh."""
    of_x = w["weight_ih"] @ x + w.get("bias_ih", 0.0)
    of_h = w["weight_hh"] @ h + w.get("bias_hh", 0.0)
    if cell in ("tanh", "relu"):
        return (np.tanh(of_x + of_h) if cell == "tanh" else np.maximum(of_x + of_h, 0.0)), c
    if cell == "lstm":
        i, f, g, o = np.split(of_x + of_h, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c
    x_r, x_z, x_n = np.split(of_x, 3)
    h_r, h_z, h_n = np.split(of_h, 3)
    z, n = sigmoid(x_z + h_z), np.tanh(x_n + sigmoid(x_r + h_r) * h_n)
    return (1.0 - z) * n + z * h, c


def recurrent_reference(cell, state, x, h=None, c=None, *, num_layers=1, bidirectional=False):
    """Take one sequence x (L, D) through all layers; return out (L, directions H), h and c (states, H)."""
    directions = 2 if bidirectional else 1
    width = state["weight_hh_l0"].shape[1]
    x = np.asarray(x, dtype=np.float64)
    h = np.zeros((num_layers * directions, width)) if h is None else np.array(h, dtype=np.float64)
    c = np.zeros_like(h) if c is None else np.array(c, dtype=np.float64)
    for layer in range(num_layers):
        out = np.zeros((len(x), directions * width))
        for d in range(directions):
            ending = f"_l{layer}" + ("_reverse" if d else "")
            w = {k.removesuffix(ending): np.float64(v) for k, v in state.items() if k.endswith(ending)}
            i = layer * directions + d
            for t in range(len(x))[:: -1 if d else 1]:
                h[i], c[i] = step(cell, x[t], h[i], c[i], w)
                out[t, d * width : (d + 1) * width] = h[i]
        x = out
    return x, h, c
