"""`headwise.attention`: attention pooling with any score and any normalisation, and its gradients.

    s_ij = c tanh(scale * score(q_i, k_j) / c) + mask_ij        (no soft cap: scale * score(q_i, k_j) +
    mask_ij) w_i  = normalize(s_i)                                       over the keys that query i may attend
    out_i = sum_j w_ij v_j

Products with a softmax are `scaled_dot_product_attention`, which never holds the L x S matrix. All else
builds it, step by step, in compiled kernels: exponentials, hyperbolic tangents and sums are theirs; what is
left here is done number by number, in which NumPy has no choice of bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, SupportsIndex, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headwise import _core
from headwise import _pooling_scores as scores_of
from headwise._errors import ArgumentTypeError, ArgumentValueError, ShapeError
from headwise._pooling_arrays import (
    Array,
    Masks,
    Operands,
    hinted,
    operands,
    positive,
    read,
    real,
    reduced,
    rounded,
)
from headwise._pooling_layers import ScoreLayer
from headwise._pooling_local import Gaussian, PredictiveWindow, local_of
from headwise._pooling_scores import Grads, Pull, Score
from headwise._pooling_weights import TopK, Weights, kind_of
from headwise._steps import Rng, key_of

Window: TypeAlias = tuple[SupportsIndex | None, SupportsIndex | None] | list[SupportsIndex | None]
Named: TypeAlias = Literal["dot", "scaled_dot", "cosine", "l2"]
Scoring: TypeAlias = Named | ScoreLayer | Callable[[Any, Any], Any]
Normalizing: TypeAlias = Literal["softmax", "hard", "sparsemax", "sigmoid"] | TopK
Local: TypeAlias = tuple[Literal["m"], SupportsIndex] | PredictiveWindow | None

_NAMED: dict[str, Score] = {
    "dot": scores_of.dot,
    "scaled_dot": scores_of.dot,
    "cosine": scores_of.cosine,
    "l2": scores_of.l2,
}

_EXPECTED = 'score: expected "scaled_dot", "dot", "cosine", "l2", a Bilinear, an Additive or a callable'


@hinted
def attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    score: Scoring = "scaled_dot",
    normalize: Normalizing = "softmax",
    attn_mask: ArrayLike | None = None,
    key_mask: ArrayLike | None = None,
    key_lengths: ArrayLike | None = None,
    is_causal: bool = False,
    causal_offset: SupportsIndex | ArrayLike | Literal["bottom_right"] = 0,
    window: Window | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    local: Local = None,
    return_weights: bool = False,
    rng: Rng = None,
) -> Any:  # noqa: ANN401 - an array, or two of them
    """Pool values by attention: a score for each query and key, normalised to weights of the values.

    ``out_i = sum_j w_ij v_j``, the weights of query i made of its scores over the keys that it may attend.
    Scores are multiplied by `scale`, capped, and a floating mask is added. With `score` "scaled_dot" or "dot"
    and `normalize` "softmax" this is `scaled_dot_product_attention`, to the bit; everything else builds the L
    x S matrix. A query without an allowed key has the result 0 and weights 0, whatever the normalisation.

    Parameters
    ----------
    query : array_like
        (B, H, L, E), with any number of batch axes B; (H, L, E), or (L, E) for one head. bool and integers
        count as float64; float16 and bfloat16 are computed in float32 and rounded once.
    key : array_like
        (B, Hk, S, E), H a multiple of Hk; batch axes broadcast. With `Bilinear`, `Additive` or a callable its
        width may differ from that of `query`.
    value : array_like
        (B, Hk, S, Ev).
    score : {"scaled_dot", "dot", "cosine", "l2"}, Bilinear, Additive or callable, default "scaled_dot"
        "scaled_dot" and "dot" are the product q . k, "cosine" is that of q and k of length 1, "l2" the
        squared distance of q and k times -1: with softmax the kernel regression of Nadaraya and Watson [1]_
        with a Gaussian, whose standard deviation is 1 / sqrt(2 `scale`). `Bilinear` [2]_ and `Additive` [3]_
        have parameters. A callable takes (query, key) and returns scores (..., L, S); it meets keys that some
        of the queries may not attend, while rows that take part in no pair are 0.
    normalize : {"softmax", "hard", "sparsemax", "sigmoid"} or TopK, default "softmax"
        "hard" is 1 at the greatest score, of equal ones at the smaller index; with `rng` a key is drawn from
        the softmax [4]_. "sparsemax" [5]_ is the nearest point of the simplex, "sigmoid" weighs each key by
        itself, ``TopK(k)`` is the softmax over the k greatest. Values that hard, sparsemax or top-k do not
        choose are not read.
    attn_mask : array_like, optional
        Rank 1 to n, broadcast to (B, H, L, S). Boolean: True may be attended. Floating: added to the scaled
        and capped scores; exactly ``-inf`` blocks.
    key_mask : array_like, optional
        (B, S), boolean or 0 and 1: True may be attended.
    key_lengths : array_like of int, optional
        (B,): keys from this place on are blocked.
    is_causal : bool, default False
        Whether key j is allowed only for j <= i + `causal_offset`.
    causal_offset : int, array_like of int or "bottom_right", default 0
        The place of query 0 for causality and windows, one or (B,). "bottom_right" is `key_lengths` - L where
        given, else S - L.
    window : tuple of (int or None, int or None), optional
        Keys allowed to the left and to the right of a query's place, causal or not; None is open.
    softcap : float, optional
        Cap c > 0: scores become c * tanh(score / c), before masks.
    scale : float, optional
        Factor of the scores. If absent 1 / sqrt(E) for "scaled_dot", 1 / 2 for "l2", else 1.
    local : tuple of ("m", int) or PredictiveWindow, optional
        ``("m", D)`` allows the keys up to D places from the query's own, as ``window=(D, D)`` does. A
        `PredictiveWindow` predicts each query's place and lets weights fall off with the distance [2]_; where
        it is given, weights do not sum to 1.
    return_weights : bool, default False
        Whether to return the weights, too.
    rng : None, int or numpy.random.Generator, optional
        With `normalize` "hard", draws the keys; a generator is advanced by one draw. None takes the greatest.

    Returns
    -------
    out : ndarray
        (B, H, L, Ev).
    weights : ndarray
        (B, H, L, S), with `return_weights`.

    Raises
    ------
    ValueError
        If shapes do not fit (`ShapeError`), a name is unknown or a number is out of its range.
    TypeError
        If an argument is of the wrong kind or dtype (`DTypeError`).

    See Also
    --------
    scaled_dot_product_attention : What this is by default.
    vjp.attention : The same with gradients.

    References
    ----------
    .. [1] E. A. Nadaraya, "On Estimating Regression", 1964; G. S. Watson, "Smooth Regression Analysis", 1964.
    .. [2] M.-T. Luong, H. Pham, C. D. Manning, "Effective Approaches to Attention-based Neural Machine
       Translation", 2015. https://arxiv.org/abs/1508.04025
    .. [3] D. Bahdanau, K. Cho, Y. Bengio, "Neural Machine Translation by Jointly Learning to Align and
       Translate", 2015. https://arxiv.org/abs/1409.0473
    .. [4] K. Xu et al., "Show, Attend and Tell", 2015. https://arxiv.org/abs/1502.03044
    .. [5] A. F. T. Martins, R. F. Astudillo, "From Softmax to Sparsemax", 2016.
       https://arxiv.org/abs/1602.02068

    Examples
    --------
    The salary of a newcomer of 30, from colleagues of 25, 31 and 60:

    >>> import headwise as hw
    >>> query, key, value = [[30.0]], [[25.0], [31.0], [60.0]], [[40.0], [50.0], [90.0]]
    >>> out, weights = hw.attention(query, key, value, score="l2", scale=0.02, return_weights=True)
    >>> out.round(2), weights.round(2)
    (array([[46.18]]), array([[0.38, 0.62, 0.  ]]))
    """
    masks = Masks(attn_mask, key_mask, key_lengths, is_causal, causal_offset, window)
    call = Call(score, normalize, masks, softcap, scale, local, rng)
    wanted: Any = return_weights
    if not isinstance(wanted, (bool, np.bool_)):
        msg = f"return_weights: expected a bool, got {wanted!r}"
        raise ArgumentTypeError(msg)
    if call.is_plain:
        options = {**call.plain(), "return_weights": bool(wanted)}
        return _core.scaled_dot_product_attention(query, key, value, **options)
    pooled = Pooled(call, query, key, value, gradient=False)
    return (pooled.out, pooled.weights) if return_weights else pooled.out


attention.__module__ = "headwise"


class Call:
    """The options of a call, checked as far as they can be without the arrays."""

    def __init__(
        self,
        score: object,
        normalize: object,
        masks: Masks,
        softcap: float | None,
        scale: float | None,
        local: object,
        rng: Rng,
    ) -> None:
        if isinstance(score, str) and score not in _NAMED:
            msg = f"{_EXPECTED}, got {score!r}"
            raise ArgumentValueError(msg)
        if isinstance(score, type) or not (isinstance(score, str) or callable(score)):
            what = f"the class {score.__name__}" if isinstance(score, type) else type(score).__name__
            msg = f"{_EXPECTED}, got {what}"
            raise ArgumentTypeError(msg)
        self.score: Any = score
        self.kind = kind_of(normalize)
        self.masks = masks
        self.softcap = None if softcap is None else positive("softcap", softcap)
        self.scale = None if scale is None else real("scale", scale)
        self.local = local_of(local)
        if isinstance(self.local, int):
            self.masks = _narrowed(masks, self.local)
        # A generator is advanced whatever the normalisation.
        self.key = None if rng is None else key_of(rng)

    @property
    def is_plain(self) -> bool:
        """Whether `scaled_dot_product_attention` is all that is asked for."""
        products = isinstance(self.score, str) and self.score in ("dot", "scaled_dot")
        return products and self.kind[0] == "softmax" and not isinstance(self.local, PredictiveWindow)

    def plain(self) -> dict[str, Any]:
        """Return its keywords."""
        scale = 1.0 if self.scale is None and self.score == "dot" else self.scale
        return {**vars(self.masks), "softcap": self.softcap, "scale": scale}

    def widths(self, query: object, key: object) -> tuple[int, int] | None:
        """Return the widths that the score wants of query and key; None = one, whichever."""
        if isinstance(self.score, ScoreLayer):
            return self.score.query_dim, self.score.key_dim
        if isinstance(self.score, str):
            return None
        shapes = (np.shape(read("query", query)), np.shape(read("key", key)))
        return tuple(shape[-1] if shape else 0 for shape in shapes)  # type: ignore[return-value]

    def factor(self, width: int) -> float:
        """Return the factor of the scores, for queries of `width` numbers."""
        if self.scale is not None:
            return self.scale
        if not isinstance(self.score, str):
            return 1.0
        return {"scaled_dot": 1.0 / float(np.sqrt(width)), "l2": 0.5}.get(self.score, 1.0)


def _narrowed(masks: Masks, width: int) -> Masks:
    """Return the masks with a window of `width` on both sides, besides theirs."""
    window = masks.window
    if window is None:
        window = (width, width)
    elif isinstance(window, (tuple, list)) and len(window) == 2:
        # What is no number is left to be refused where all windows are read.
        window = tuple(
            width if side is None else min(side, width) if isinstance(side, (int, np.integer)) else side
            for side in window
        )
    return Masks(**{**vars(masks), "window": window})


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
