"""Helpers for tests of recurrent layers: makers by cell, and states that are one array or two."""

import headwise as hw

CELLS = ["tanh", "relu", "lstm", "gru"]


def make(cell, *sizes, **options):
    """Return the layer of a cell."""
    if cell in ("tanh", "relu"):
        return hw.RNN(*sizes, nonlinearity=cell, **options)
    return {"lstm": hw.LSTM, "gru": hw.GRU}[cell](*sizes, **options)


def parts(state):
    """Return the arrays of a state: (h,) or (h, c)."""
    return state if isinstance(state, tuple) else (state,)


def joined(arrays):
    """Return a state of (h,) or (h, c), as a layer takes it; None of nothing."""
    return None if not arrays else arrays[0] if len(arrays) == 1 else tuple(arrays)


def drawn_state(cell, layer, rng, *batch):
    """Return random first states for a batch."""
    shape = (layer.num_layers * (2 if layer.bidirectional else 1), *batch, layer.hidden_size)
    count = 2 if cell == "lstm" else 1
    return joined([0.7 * rng.standard_normal(shape).astype(layer.dtype) for _ in range(count)])
