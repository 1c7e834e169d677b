"""Toy models for the tests of `generate`: what follows is a table, or a function of the whole history."""

import numpy as np


class Rows:
    """A state of arrays or lists with one entry for each row."""

    def __init__(self, sources):
        self.sources = list(sources)
        self.histories = [()] * len(self.sources)
        self.reorders = []

    def __len__(self):
        return len(self.sources)

    def reorder(self, indices):
        assert indices.ndim == 1
        assert indices.dtype == np.intp
        self.reorders.append(indices.copy())
        self.sources = [self.sources[i] for i in indices]
        self.histories = [self.histories[i] for i in indices]


class Toy:
    """A model whose logits are `logits(source, history)`, the history being all tokens that were fed.

    A state whose rows were picked wrongly gives other logits from then on. With `weights(source, history)` it
    gives weights, too.
    """

    def __init__(self, logits, weights=None, dtype=np.float64):
        self.logits, self.weights, self.dtype = logits, weights, dtype
        self.rows_of_step = []

    def begin(self, source):
        self.rows_of_step = []
        return Rows(source)

    def next(self, tokens, state, *, need_weights=False):
        assert tokens.shape == (len(state),)
        assert tokens.dtype == np.int64
        self.rows_of_step.append(len(tokens))
        state.histories = [(*h, int(t)) for h, t in zip(state.histories, tokens, strict=True)]
        seen = list(zip(state.sources, state.histories, strict=True))
        logits = np.array([self.logits(*row) for row in seen], self.dtype)
        return logits, np.array([self.weights(*row) for row in seen]) if need_weights else None


def chain(table, dtype=np.float64):
    """Return a model that looks at the last token alone: row c of the table (V, V) follows token c."""
    table = np.asarray(table)
    return Toy(lambda source, history: table[history[-1]], dtype=dtype)


def chaotic(vocabulary, *, scale=2.0, end=None, toward_end=0.0, dtype=np.float64):
    """Return a model whose logits are random numbers, drawn anew for each source and each history."""

    def logits(source, history):
        row = np.random.default_rng([source, *history]).standard_normal(vocabulary) * scale
        if end is not None:
            row[end] += toward_end
        return row

    def weights(source, history):
        return np.random.default_rng([source, *history, 99]).random((2, 3, 5))

    return Toy(logits, weights, dtype)


def log_softmax(row):
    """Return the log-probabilities of one row of logits, in float64."""
    row = np.asarray(row, np.float64)
    return row - np.logaddexp.reduce(row)
