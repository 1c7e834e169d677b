"""Attention pooling step by step, and its gradients.

Exponentials, hyperbolic tangents and sums are those of compiled kernels; what is done here is done number by
number, in which NumPy has no choice of bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headwise import _core
from headwise import _pooling_scores as scores_of
from headwise._errors import ArgumentTypeError, ShapeError
from headwise._pooling_arrays import Array, Operands, operands, read, reduced, rounded
from headwise._pooling_call import Call
from headwise._pooling_local import Gaussian, PredictiveWindow
from headwise._pooling_score_layer import ScoreLayer
from headwise._pooling_scores import Grads, Pull, Score
from headwise._pooling_weights import Weights

_NAMED: dict[str, Score] = {
    "dot": scores_of.dot,
    "scaled_dot": scores_of.dot,
    "cosine": scores_of.cosine,
    "l2": scores_of.l2,
}


class Pooled:
    """A call that was computed step by step, and with `gradient` what its pullback needs."""

    def __init__(self, call: Call, query: object, key: object, value: object, gradient: bool) -> None:
        given = operands(query, key, value, call.masks, call.widths(query, key))
        self._given, self._softcap = given, call.softcap
        self._scale = call.factor(given.query.shape[2])
        self._gaussian: Gaussian | None = None
        self._keep = given.keep
        with np.errstate(all="ignore"):
            if isinstance(call.local, PredictiveWindow):
                _expect_width(call.local, given)
                self._gaussian = Gaussian(call.local, given.query, given.keys, given.keep, gradient)
                self._keep = self._gaussian.keep
            raw, self._pull = _scores(call, given, gradient)
            scores = raw.astype(given.query.dtype, copy=False) * self._scale
            if self._softcap is not None:
                self._capped = _core._pooling_map("tanh", scores / self._softcap)
                scores = self._softcap * self._capped
            if given.bias is not None:
                scores = scores + given.bias
            self._made = Weights(call.kind, scores, self._keep, call.key)
            self._mixed = self._made.weights
            if self._gaussian is not None:
                self._mixed = np.where(self._keep, self._mixed * self._gaussian.factor, 0)
            self._support = self._made.support
            out = _core._pooling_sums("other", "keys", self._mixed, self._support, given.value)
        self.out = given.formed(out)

    @property
    def weights(self) -> Array:
        """The weights (*B, H, L, S) of the values."""
        return self._given.formed(self._mixed)

    @property
    def drawn(self) -> bool:
        """Whether keys were drawn."""
        return self._made.drawn

    @property
    def mask_shape(self) -> tuple[int, ...] | None:
        """The shape of a floating mask."""
        return self._given.mask_shape

    def backward(self, d_out: Array, advantage: Array | None) -> tuple[list[Array], Array, dict[str, Grads]]:
        """Return the gradients of query, key and value, of the masked scores, and of parameters."""
        given = self._given
        dtype = given.query.dtype
        d = rounded(d_out.reshape(given.query.shape[:2] + d_out.shape[-1:]), dtype)
        if advantage is not None:
            advantage = rounded(advantage.reshape(given.query.shape[:2]), dtype)
        grads: dict[str, Grads] = {}
        with np.errstate(all="ignore"):
            d_value = _core._pooling_sums("other", "queries", self._mixed, self._support, d)
            d_weights = _core._pooling_scores("dot", d, given.value)
            d_local: Array | float = 0.0
            if self._gaussian is not None:
                d_factor = np.where(self._support, d_weights * self._made.weights, 0)
                d_local, grads["local"] = self._gaussian.backward(d_factor)
                d_weights = d_weights * self._gaussian.factor
            d_masked = self._made.backward(d_weights, advantage)
            d_scores = d_masked
            if self._softcap is not None:
                d_scores = d_scores * (1 - self._capped * self._capped)
            d_scores = np.where(self._keep, d_scores * self._scale, 0).astype(dtype, copy=False)
            d_query, d_key, of_score = self._pull(d_scores)
            if self._gaussian is not None:
                d_query = d_query + d_local
        if of_score:
            grads["score"] = of_score
        operands_of = zip((d_query, d_key, d_value), given.given, strict=True)
        return [given.gradient(x, shape) for x, shape in operands_of], d_masked, grads

    def mask_gradient(self, d_masked: Array) -> Array:
        """Return the gradient of the floating mask, given that of the masked scores."""
        given = self._given
        assert given.mask_shape is not None
        d = d_masked.reshape(given.lead + d_masked.shape[1:])
        return rounded(reduced(d, given.mask_shape), given.dtype)


def _expect_width(window: PredictiveWindow, given: Operands) -> None:
    if given.query.shape[2] != window.query_dim:
        msg = (
            f"query: expected (B, H, L, E) with E = {window.query_dim}, the query_dim of local, got "
            f"{given.given[0]}"
        )
        raise ShapeError(msg)


def _scores(call: Call, given: Operands, gradient: bool) -> tuple[Array, Pull]:
    """Return the scores (N, L, S), before they are scaled, and their pullback."""
    score, keep = call.score, given.keep
    if isinstance(score, str):
        return _NAMED[score](given.query, given.key, keep)
    if not isinstance(score, ScoreLayer):
        return scores_of.of_callable(score, given.lead, gradient)(given.query, given.key, keep)
    return score._scores(given.query, given.key, keep, gradient)


class AttentionPullback:
    """The second half of `headwise.vjp.attention`."""

    def __init__(self, pooled: Pooled, mask_grad: bool) -> None:
        self._pooled, self._mask_grad = pooled, mask_grad

    def __call__(self, d_out: Any) -> tuple[Any, ...]:  # noqa: ANN401 - an array, or with an advantage a tuple
        """Return the gradients of query, key, value and mask, and beside them those of parameters."""
        advantage = None
        if isinstance(d_out, tuple):
            if not self._pooled.drawn or len(d_out) != 2:
                msg = "d_out: expected an array; (d_out, advantage) is for keys that were drawn, with rng"
                raise ArgumentTypeError(msg)
            d_out, advantage = d_out[0], read("advantage", d_out[1])
            expected = self._pooled.out.shape[:-1]
            if advantage.shape != expected:
                msg = f"advantage: expected (B, H, L) = {expected}, got {advantage.shape}"
                raise ShapeError(msg)
        d = read("d_out", d_out)
        if d.shape != self._pooled.out.shape:
            msg = f"d_out: expected {self._pooled.out.shape}, the shape of the result, got {d.shape}"
            raise ShapeError(msg)
        gradients, d_masked, grads = self._pooled.backward(d, advantage)
        if self._mask_grad:
            gradients.append(self._pooled.mask_gradient(d_masked))
        named = {
            f"{of}.{name}": grad for of in ("score", "local") for name, grad in grads.get(of, {}).items()
        }
        return (tuple(gradients), named) if named else tuple(gradients)

    def __repr__(self) -> str:
        return "<pullback of attention>"


def vjp(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, call: Call, mask_grad: bool
) -> tuple[NDArray[Any], Any]:
    """Return the result of a call and its pullback."""
    if call.is_plain:
        return _core.vjp_scaled_dot_product_attention(query, key, value, **call.plain(), mask_grad=mask_grad)
    pooled = Pooled(call, query, key, value, gradient=True)
    if mask_grad and pooled.mask_shape is None:
        msg = "mask_grad: True, but there is no floating attn_mask"
        raise ArgumentTypeError(msg)
    return pooled.out, AttentionPullback(pooled, mask_grad)
