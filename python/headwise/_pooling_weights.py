"""From scores to weights: the normalisations of `headwise.attention`, `TopK`, and keys that are drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headwise import _core
from headwise._errors import ArgumentTypeError, ArgumentValueError
from headwise._pooling_arrays import Array, count_of
from headwise._pooling_scores import Flags

NAMES = ("softmax", "hard", "sparsemax", "sigmoid")


@dataclass(frozen=True)
class TopK:
    """The softmax over a query's k greatest scores; all other weights are exactly 0.

    Of equal scores the smaller index is taken. Where fewer than k keys are allowed it is the softmax over all
    of them; ``TopK(1)`` has the weights of ``"hard"``. The gradient of the scores is that of the softmax over
    the chosen keys.

    Parameters
    ----------
    k : int
        How many keys have a weight, from 1 on.

    Raises
    ------
    ValueError
        If `k` is less than 1.
    TypeError
        If `k` is no int.

    See Also
    --------
    attention : Takes it as `normalize`.

    References
    ----------
    .. [1] A. Gupta et al., "Memory-efficient Transformers via Top-k Attention", 2021.
       https://arxiv.org/abs/2106.06899

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> query, key = np.zeros((1, 2)), np.zeros((3, 2))
    >>> hw.attention(query, key, np.eye(3), normalize=hw.TopK(2))
    array([[0.5, 0.5, 0. ]])
    """

    k: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", count_of("k", self.k, 1))


def kind_of(normalize: object) -> tuple[str, int]:
    """Return the kernel's name of a normalisation, and its k."""
    if isinstance(normalize, TopK):
        return "top_k", normalize.k
    expected = 'normalize: expected "softmax", "hard", "sparsemax", "sigmoid" or a TopK(k)'
    if not isinstance(normalize, str):
        hint = "; TopK wants its k" if normalize is TopK else ""
        msg = f"{expected}, got {type(normalize).__name__}{hint}"
        raise ArgumentTypeError(msg)
    if normalize not in NAMES:
        msg = f"{expected}, got {normalize!r}"
        raise ArgumentValueError(msg)
    return normalize, 0


class Weights:
    """The weights (N, L, S) of scores, and the gradient of the scores.

    With a key for the generator, hard attention draws one of the keys from the softmax of the scores. A step
    has no derivative; what is estimated is that of the expected loss, by the score function [1]_:

        d E[loss] / d s_j = E[loss (1(j drawn) - p_j)]

    .. [1] R. J. Williams, "Simple Statistical Gradient-Following Algorithms", 1992.
    """

    def __init__(self, kind: tuple[str, int], scores: Array, keep: Flags, key: int | None) -> None:
        (self._kind, self._k), self._keep = kind, keep
        self.drawn = self._kind == "hard" and key is not None
        if self.drawn:
            self._p = _core._pooling_weights("softmax", scores, keep)
            self.weights: Array = _core._pooling_draw(self._p, keep, key)
        else:
            self.weights = _core._pooling_weights(self._kind, scores, keep, self._k)

    @property
    def support(self) -> Flags:
        """The pairs that a mixture reads: values that are not chosen are left out, not multiplied by 0."""
        if self._kind in ("softmax", "sigmoid"):
            return self._keep
        return np.asarray(self._keep & (self.weights != 0))

    def backward(self, d: Array, advantage: Array | None) -> Array:
        """Return the gradient of the scores, given that of the weights.

        Of drawn keys `advantage` (N, L) is what each query's draw has cost: the loss, less a baseline.
        Absent, it is the part of the loss that is linear in the query's result, d_out . out, which is `d` at
        the drawn key.
        """
        if not self.drawn:
            scores: Array = _core._pooling_weights_backward(self._kind, self.weights, self._keep, d, self._k)
            return scores
        chosen = self._keep & (self.weights == 1)
        if advantage is None:
            # One number a row: adding zeros to it changes nothing.
            advantage = np.where(chosen, d, 0).sum(axis=2, dtype=d.dtype)
        surprise = self.weights - self._p
        return np.where(self._keep, advantage[..., None] * surprise, 0).astype(d.dtype, copy=False)
