"""`headwise.attention`: attention pooling with any score and any normalisation.

    s_ij = c tanh(scale * score(q_i, k_j) / c) + mask_ij      (no soft cap: scale * score(q_i, k_j) + mask_ij)
    w_i  = normalize(s_i)                                     over the keys that query i may attend
    out_i = sum_j w_ij v_j

Products with a softmax are `scaled_dot_product_attention`, which never holds the L x S matrix. All else
builds it, step by step.
"""

from __future__ import annotations

from typing import Any, Literal, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

from headwise import _core
from headwise._errors import ArgumentTypeError
from headwise._pooling_arrays import Masks, hinted
from headwise._pooling_call import Call, Local, Normalizing, Scoring, Window
from headwise._pooling_steps import Pooled
from headwise._steps import Rng


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
