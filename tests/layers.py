"""Helpers for tests of layers: parameters that hide nothing, and padded batches."""

import numpy as np


def randomize(layer, rng):
    """Give every parameter random values: defaults of 0 and 1 in biases and norms would hide mistakes."""
    state = {}
    for name, array in layer.state_dict().items():
        drawn = rng.standard_normal(array.shape)
        if "norm" in name and name.endswith("weight"):
            drawn = 1.0 + 0.2 * drawn
        elif array.ndim == 1:
            drawn = 0.3 * drawn
        else:
            drawn = drawn * 1.2 / np.sqrt(array.shape[-1])
        state[name] = drawn.astype(array.dtype)
    layer.load_state_dict(state)
    return layer


def pad(sequences, lengths=None, fill=0.0, left=False):
    """Return (B, L, D) of a list of (L_i, D), padded with `fill`, and the boolean (B, L) of tokens."""
    lengths = [len(x) for x in sequences] if lengths is None else lengths
    wide = np.full((len(sequences), max(lengths), sequences[0].shape[-1]), fill, dtype=sequences[0].dtype)
    real = np.zeros(wide.shape[:2], dtype=bool)
    for b, x in enumerate(sequences):
        rows = slice(max(lengths) - len(x), None) if left else slice(0, len(x))
        wide[b, rows], real[b, rows] = x, True
    return wide, real
