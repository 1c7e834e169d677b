"""Optimisers, schedules of the learning rate, and clipping of gradients.

An optimiser takes the parameters of layers or plain arrays, and gradients as dicts of arrays under the same
names, as pullbacks of layers give them. Its formulas and defaults are torch's; its sums and roots have the
same bits for every number of threads and on every instruction set.
"""

from headwise.optim._adam import Adam, AdamW
from headwise.optim._clip import clip_by_norm
from headwise.optim._schedules import constant, warmup_cosine, warmup_linear
from headwise.optim._sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "clip_by_norm", "constant", "warmup_cosine", "warmup_linear"]

# Users know them by the package.
for _public in (SGD, Adam, AdamW, clip_by_norm, constant, warmup_cosine, warmup_linear):
    _public.__module__ = __name__
