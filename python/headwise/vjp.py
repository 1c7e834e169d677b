"""Functions that return their result and a pullback, from which gradients come.

``out, pullback = headwise.vjp.f(...)`` computes what ``headwise.f(...)`` computes, to the bit;
``pullback(d_out)`` turns the gradient of a number with respect to ``out`` into a tuple of its gradients with
respect to the arrays that were given, in their order. Arguments that are absent have no gradient and no place
in the tuple. A pullback may be called any number of times; it holds the arrays, it does not copy them: they
must not be changed meanwhile.

Gradients have the shapes of their arrays and the dtype of the result; what is computed in float32 for float16
or bfloat16 is rounded once. Their bits depend neither on threads nor on the instruction set.
"""

from collections.abc import Callable
from typing import Any, Literal, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headwise import _core, _pooling_steps
from headwise._core import Pullback
from headwise._pooling_arrays import Masks, hinted
from headwise._pooling_call import Call, Local, Normalizing, Scoring

__all__ = [
    "attention",
    "attention_varlen",
    "gelu",
    "layer_norm",
    "linear",
    "relu",
    "rms_norm",
    "rotary_embedding",
    "scaled_dot_product_attention",
    "silu",
    "softmax",
]


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
    window: tuple[SupportsIndex | None, SupportsIndex | None] | list[SupportsIndex | None] | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    local: Local = None,
    rng: SupportsIndex | np.random.Generator | None = None,
    mask_grad: bool = False,
) -> tuple[NDArray[Any], Callable[[Any], tuple[Any, ...]]]:
    """Return `headwise.attention` and its pullback.

    What is in blocked keys, values and queries never shows in a gradient, not even NaN. The greatest score of
    "hard" is a step: without `rng` the value has a gradient, query and key have the gradient 0. With `rng` a
    key a_i was drawn for each query i, and the pullback estimates the gradient of the expected loss by the
    score function [1]_: d_scores = A_i (1(j = a_i) - p_ij), p the softmax of the scores and A_i the
    advantage, what the draw has cost. Called with `d_out` alone, the pullback takes ``A_i = d_out_i .
    out_i``, the part of the loss that is linear in the result. Called with ``(d_out, advantage)``, it takes
    the numbers (B, H, L) that it is given: the loss of each draw, less a baseline, which changes no
    expectation and makes the estimate less noisy. The gradient of the value is that of the value that was
    drawn, in either case.

    Parameters
    ----------
    query : array_like
        (B, H, L, E), with any number of batch axes B; (H, L, E), or (L, E) for one head.
    key : array_like
        (B, Hk, S, E), H a multiple of Hk; batch axes broadcast.
    value : array_like
        (B, Hk, S, Ev).
    score : {"scaled_dot", "dot", "cosine", "l2"}, Bilinear, Additive or callable, default "scaled_dot"
        As for `headwise.attention`. A callable needs ``score.vjp(query, key) -> (scores, pullback)``, whose
        pullback turns the gradient of the scores into (d_query, d_key) or ((d_query, d_key), grads).
    normalize : {"softmax", "hard", "sparsemax", "sigmoid"} or TopK, default "softmax"
        As for `headwise.attention`.
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
        The place of query 0 for causality and windows, one or (B,).
    window : tuple of (int or None, int or None), optional
        Keys allowed to the left and to the right of a query's place, causal or not; None is open.
    softcap : float, optional
        Cap c > 0: scores become c * tanh(score / c), before masks.
    scale : float, optional
        Factor of the scores. If absent 1 / sqrt(E) for "scaled_dot", 1 / 2 for "l2", else 1.
    local : tuple of ("m", int) or PredictiveWindow, optional
        As for `headwise.attention`.
    rng : None, int or numpy.random.Generator, optional
        With `normalize` "hard", draws the keys.
    mask_grad : bool, default False
        Whether the pullback returns the gradient of a floating `attn_mask`, too.

    Returns
    -------
    out : ndarray
        (B, H, L, Ev).
    pullback : callable
        Returns ``(d_query, d_key, d_value)`` and, with `mask_grad`, ``d_attn_mask``. If score or local has
        parameters it returns ``(those, grads)``, as layers do: a dict of the parameters' gradients, named
        ``"score.weight"``, ``"local.v.weight"``, after `score` or `local` as in its `state_dict`.

    Raises
    ------
    ValueError
        If shapes do not fit (`ShapeError`), a name is unknown or a number is out of its range.
    TypeError
        If an argument is of the wrong kind or dtype (`DTypeError`), a callable has no `vjp`, or `mask_grad`
        is given without a floating mask.

    See Also
    --------
    headwise.attention : The function alone.

    References
    ----------
    .. [1] K. Xu et al., "Show, Attend and Tell", 2015. https://arxiv.org/abs/1502.03044

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> query, key = np.array([[1.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> out, pullback = hw.vjp.attention(query, key, np.eye(2), normalize="sparsemax", scale=0.5)
    >>> out
    array([[0.75, 0.25]])
    >>> d_query, d_key, d_value = pullback([[1.0, 0.0]])
    >>> d_query
    array([[ 0.25, -0.25]])

    Parameters of a score have their gradients in a dict:

    >>> score = hw.Bilinear(2, 2, dtype="float64", rng=0)
    >>> out, pullback = hw.vjp.attention(query, key, np.eye(2), score=score)
    >>> (d_query, d_key, d_value), grads = pullback([[1.0, 0.0]])
    >>> list(grads)
    ['score.weight']
    """
    masks = Masks(attn_mask, key_mask, key_lengths, is_causal, causal_offset, window)
    call = Call(score, normalize, masks, softcap, scale, local, rng)
    return _pooling_steps.vjp(query, key, value, call, mask_grad)


def attention_varlen(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    cu_seqlens_q: ArrayLike,
    cu_seqlens_k: ArrayLike | None = None,
    *,
    is_causal: bool = False,
    causal_offset: SupportsIndex | ArrayLike | Literal["bottom_right"] = 0,
    window: tuple[SupportsIndex | None, SupportsIndex | None] | list[SupportsIndex | None] | None = None,
    softcap: float | None = None,
    scale: float | None = None,
) -> tuple[NDArray[Any], Pullback]:
    """Return `headwise.attention_varlen` and its pullback.

    Parameters
    ----------
    query : array_like
        (Tq, H, E).
    key : array_like
        (Tk, Hk, E), H a multiple of Hk.
    value : array_like
        (Tk, Hk, Ev).
    cu_seqlens_q : array_like of int
        (N + 1,): 0, the ends of the sequences, the last of them Tq.
    cu_seqlens_k : array_like of int, optional
        The same for keys; `cu_seqlens_q` if absent.
    is_causal : bool, default False
        Whether key j of a sequence is allowed only for j <= i + `causal_offset`.
    causal_offset : int, array_like of int or "bottom_right", default 0
        The place of query 0 of each sequence, one or (N,). "bottom_right" puts the last query at the last
        key.
    window : tuple of (int or None, int or None), optional
        Keys allowed to the left and to the right of a query's place, causal or not; None is open.
    softcap : float, optional
        Cap c > 0: scores become c * tanh(score / c).
    scale : float, optional
        Factor of the products; 1 / sqrt(E) if absent.

    Returns
    -------
    out : ndarray
        (Tq, H, Ev).
    pullback : Pullback
        Returns ``(d_query, d_key, d_value)``, to the bit those of one call of
        `scaled_dot_product_attention` for each sequence.

    Raises
    ------
    ValueError
        If shapes or lists do not fit (`ShapeError`) or a number is out of its range.
    TypeError
        If an argument is of the wrong kind or dtype (`DTypeError`).

    See Also
    --------
    headwise.attention_varlen : The function alone.

    References
    ----------
    .. [1] T. Dao et al., "FlashAttention", 2022. https://arxiv.org/abs/2205.14135

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> x = np.ones((5, 2, 4), dtype=np.float32)
    >>> out, pullback = hw.vjp.attention_varlen(x, x, x, [0, 2, 5])
    >>> d_query, d_key, d_value = pullback(np.ones_like(out))
    >>> d_value.shape
    (5, 2, 4)
    """
    return _core.vjp_attention_varlen(
        query,
        key,
        value,
        cu_seqlens_q,
        cu_seqlens_k,
        is_causal=is_causal,
        causal_offset=causal_offset,
        window=window,
        softcap=softcap,
        scale=scale,
    )


def gelu(x: ArrayLike, approximate: Literal["none", "tanh"] = "none") -> tuple[NDArray[Any], Pullback]:
    """Return `headwise.gelu` and its pullback.

    The derivative is Phi(x) + x phi(x), phi the density of the standard normal distribution.

    Parameters
    ----------
    x : array_like
        Any shape.
    approximate : {"none", "tanh"}, default "none"
        As for `headwise.gelu`; the gradient is that of the approximation.

    Returns
    -------
    out : ndarray
        The shape of `x`.
    pullback : Pullback
        Returns ``(d_x,)``.

    Raises
    ------
    ValueError
        If `approximate` is another.
    TypeError
        If `x` is of a dtype that is not computed with (`DTypeError`).

    See Also
    --------
    headwise.gelu : The function alone.

    References
    ----------
    .. [1] D. Hendrycks, K. Gimpel, "Gaussian Error Linear Units", 2016. https://arxiv.org/abs/1606.08415

    Examples
    --------
    >>> import headwise as hw
    >>> out, pullback = hw.vjp.gelu([0.0, 10.0])
    >>> pullback([1.0, 1.0])
    (array([0.5, 1. ]),)
    """
    return _core.vjp_gelu(x, approximate)


def layer_norm(
    x: ArrayLike, weight: ArrayLike | None = None, bias: ArrayLike | None = None, *, eps: float = 1e-5
) -> tuple[NDArray[Any], Pullback]:
    """Return `headwise.layer_norm` and its pullback.

    Parameters
    ----------
    x : array_like
        (..., D).
    weight : array_like, optional
        (D,), a factor for each column.
    bias : array_like, optional
        (D,), added last.
    eps : float, default 1e-5
        Added to the variance.

    Returns
    -------
    out : ndarray
        The shape of `x`.
    pullback : Pullback
        Returns ``(d_x, d_weight, d_bias)``, without those of arrays that were not given. Sums over rows run
        in ascending order, in blocks of 256.

    Raises
    ------
    ValueError
        If shapes do not fit (`ShapeError`) or `eps` is negative.
    TypeError
        If an array is of a dtype that is not computed with (`DTypeError`).

    See Also
    --------
    headwise.layer_norm : The function alone.

    References
    ----------
    .. [1] J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer Normalization", 2016. https://arxiv.org/abs/1607.06450

    Examples
    --------
    >>> import headwise as hw
    >>> out, pullback = hw.vjp.layer_norm([1.0, 2.0, 3.0], bias=[0.0, 0.0, 0.0], eps=0.0)
    >>> d_x, d_bias = pullback([1.0, 1.0, 1.0])
    >>> d_x, d_bias
    (array([0., 0., 0.]), array([1., 1., 1.]))
    """
    return _core.vjp_layer_norm(x, weight, bias, eps=eps)


def linear(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    activation: Literal["relu", "gelu", "gelu_tanh", "silu"] | None = None,
) -> tuple[NDArray[Any], Pullback]:
    """Return `headwise.linear` and its pullback.

    With an activation the pullback keeps the sums before it, as many numbers as the result has.

    Parameters
    ----------
    x : array_like
        (..., K).
    weight : array_like
        (N, K), as torch keeps it.
    bias : array_like, optional
        (N,), added to the sum.
    activation : {"relu", "gelu", "gelu_tanh", "silu"}, optional
        Applied to the biased sum; the gradient of relu at 0 is 0.

    Returns
    -------
    out : ndarray
        (..., N).
    pullback : Pullback
        Returns ``(d_x, d_weight, d_bias)``, without `d_bias` if there is no bias. The sum over rows in
        `d_weight` has the order of every product: ascending, in blocks of 192; that in `d_bias` has blocks
        of 256.

    Raises
    ------
    ValueError
        If shapes do not fit (`ShapeError`) or the activation is unknown.
    TypeError
        If an array is of a dtype that is not computed with (`DTypeError`).

    See Also
    --------
    headwise.linear : The function alone.

    Examples
    --------
    >>> import headwise as hw
    >>> out, pullback = hw.vjp.linear([[1.0, 2.0]], [[3.0, 4.0]])
    >>> pullback([[1.0]])
    (array([[3., 4.]]), array([[1., 2.]]))
    """
    return _core.vjp_linear(x, weight, bias, activation=activation)


def relu(x: ArrayLike) -> tuple[NDArray[Any], Pullback]:
    """Return `headwise.relu` and its pullback.

    The derivative at 0 is 0. Where `x` is not above 0 the gradient is exactly 0, whatever came in.

    Parameters
    ----------
    x : array_like
        Any shape.

    Returns
    -------
    out : ndarray
        The shape of `x`.
    pullback : Pullback
        Returns ``(d_x,)``.

    Raises
    ------
    TypeError
        If `x` is of a dtype that is not computed with (`DTypeError`).

    See Also
    --------
    headwise.relu : The function alone.

    Examples
    --------
    >>> import headwise as hw
    >>> out, pullback = hw.vjp.relu([-1.0, 0.0, 2.0])
    >>> pullback([5.0, 5.0, 5.0])
    (array([0., 0., 5.]),)
    """
    return _core.vjp_relu(x)


def rms_norm(
    x: ArrayLike, weight: ArrayLike | None = None, *, eps: float = 1e-5
) -> tuple[NDArray[Any], Pullback]:
    """Return `headwise.rms_norm` and its pullback.

    Parameters
    ----------
    x : array_like
        (..., D).
    weight : array_like, optional
        (D,), a factor for each column.
    eps : float, default 1e-5
        Added to the mean square.

    Returns
    -------
    out : ndarray
        The shape of `x`.
    pullback : Pullback
        Returns ``(d_x, d_weight)``, without `d_weight` if there is no weight. Its sum over rows runs in
        ascending order, in blocks of 256.

    Raises
    ------
    ValueError
        If shapes do not fit (`ShapeError`) or `eps` is negative.
    TypeError
        If an array is of a dtype that is not computed with (`DTypeError`).

    See Also
    --------
    headwise.rms_norm : The function alone.

    References
    ----------
    .. [1] B. Zhang, R. Sennrich, "Root Mean Square Layer Normalization", 2019.
       https://arxiv.org/abs/1910.07467

    Examples
    --------
    >>> import headwise as hw
    >>> out, pullback = hw.vjp.rms_norm([2.0, -2.0], [1.0, 1.0], eps=0.0)
    >>> pullback([1.0, 0.0])
    (array([0.25, 0.25]), array([1., 0.]))
    """
    return _core.vjp_rms_norm(x, weight, eps=eps)


def rotary_embedding(
    x: ArrayLike,
    positions: ArrayLike | None = None,
    *,
    theta: float = 10000.0,
    interleaved: bool = False,
    rotary_dim: SupportsIndex | None = None,
) -> tuple[NDArray[Any], Pullback]:
    """Return `headwise.rotary_embedding` and its pullback.

    Turning keeps lengths, so the pullback turns by the same angles the other way.

    Parameters
    ----------
    x : array_like
        (..., L, E), E even unless `rotary_dim` is given.
    positions : array_like, optional
        (L,), or (B, L) where `x` is (B, ..., L, E); 0, 1, 2... if absent. Held constant.
    theta : float, default 10000.0
        Base of the angles.
    interleaved : bool, default False
        Whether pairs are neighbours, as in the paper, or i and i + R / 2, as in most checkpoints.
    rotary_dim : int, optional
        R, even: only the first R numbers of a row are turned.

    Returns
    -------
    out : ndarray
        The shape of `x`.
    pullback : Pullback
        Returns ``(d_x,)``.

    Raises
    ------
    ValueError
        If shapes do not fit (`ShapeError`), or `rotary_dim` or `theta` is out of its range.
    TypeError
        If an array is of a dtype that is not computed with (`DTypeError`).

    See Also
    --------
    headwise.rotary_embedding : The function alone.

    References
    ----------
    .. [1] J. Su et al., "RoFormer", 2021. https://arxiv.org/abs/2104.09864

    Examples
    --------
    >>> import headwise as hw
    >>> out, pullback = hw.vjp.rotary_embedding([[1.0, 0.0]], positions=[1])
    >>> (d_x,) = pullback(out)
    >>> d_x.round(15)
    array([[1., 0.]])
    """
    return _core.vjp_rotary_embedding(
        x, positions, theta=theta, interleaved=interleaved, rotary_dim=rotary_dim
    )


def scaled_dot_product_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    attn_mask: ArrayLike | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool | None = None,
    key_mask: ArrayLike | None = None,
    key_lengths: ArrayLike | None = None,
    causal_offset: SupportsIndex | ArrayLike | Literal["bottom_right"] = 0,
    window: tuple[SupportsIndex | None, SupportsIndex | None] | list[SupportsIndex | None] | None = None,
    softcap: float | None = None,
    rng: SupportsIndex | np.random.Generator | None = None,
    mask_grad: bool = False,
) -> tuple[NDArray[Any], Pullback]:
    """Return `headwise.scaled_dot_product_attention` and its pullback.

    The weights are not kept: the pullback computes them again, tile by tile, from the logarithm of each row's
    sum, so that memory grows with L and not with L x S [1]_. It holds a copy of the result, which may be
    changed. What is in blocked keys, values and queries never shows in a gradient, not even NaN; gradients
    of queries without an allowed key, and of keys that nobody may attend, are exactly 0.

    Parameters
    ----------
    query : array_like
        (B, H, L, E), with any number of batch axes B; (H, L, E), or (L, E) for one head.
    key : array_like
        (B, Hk, S, E), H a multiple of Hk; batch axes broadcast.
    value : array_like
        (B, Hk, S, Ev).
    attn_mask : array_like, optional
        Rank 1 to n, broadcast to (B, H, L, S). Boolean: True may be attended. Floating: added to the scaled
        and capped scores; exactly ``-inf`` blocks.
    dropout_p : float, default 0.0
        Probability with which each weight is dropped; the pullback drops the same ones.
    is_causal : bool, default False
        Whether key j is allowed only for j <= i + `causal_offset`.
    scale : float, optional
        Factor of the products; 1 / sqrt(E) if absent.
    enable_gqa : bool, optional
        False refuses fewer key heads than query heads.
    key_mask : array_like, optional
        (B, S), boolean or 0 and 1: True may be attended.
    key_lengths : array_like of int, optional
        (B,): keys from this place on are blocked.
    causal_offset : int, array_like of int or "bottom_right", default 0
        The place of query 0 for causality and the window, one or (B,).
    window : tuple of (int or None, int or None), optional
        Keys allowed to the left and to the right of a query's place, causal or not; None is open.
    softcap : float, optional
        Cap c > 0: scores become c * tanh(score / c), before masks.
    rng : None, int or numpy.random.Generator, optional
        Where dropout's key comes from; a generator is advanced by one draw.
    mask_grad : bool, default False
        Whether the pullback returns the gradient of a floating `attn_mask`, too.

    Returns
    -------
    out : ndarray
        (B, H, L, Ev).
    pullback : Pullback
        Returns ``(d_query, d_key, d_value)`` and, with `mask_grad`, ``d_attn_mask``. Where an array was
        repeated along an axis, its gradient is the sum over it, in ascending order.

    Raises
    ------
    ValueError
        If shapes do not fit (`ShapeError`) or a number is out of its range.
    TypeError
        If an argument is of the wrong kind or dtype (`DTypeError`), or `mask_grad` without a floating mask.

    See Also
    --------
    headwise.scaled_dot_product_attention : The function alone.

    References
    ----------
    .. [1] T. Dao et al., "FlashAttention", 2022. https://arxiv.org/abs/2205.14135

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> query, key = np.zeros((1, 2)), np.zeros((2, 2))
    >>> out, pullback = hw.vjp.scaled_dot_product_attention(query, key, np.eye(2))
    >>> d_query, d_key, d_value = pullback([[1.0, 0.0]])
    >>> d_value
    array([[0.5, 0. ],
           [0.5, 0. ]])
    """
    return _core.vjp_scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask,
        dropout_p,
        is_causal,
        scale=scale,
        enable_gqa=enable_gqa,
        key_mask=key_mask,
        key_lengths=key_lengths,
        causal_offset=causal_offset,
        window=window,
        softcap=softcap,
        rng=rng,
        mask_grad=mask_grad,
    )


def silu(x: ArrayLike) -> tuple[NDArray[Any], Pullback]:
    """Return `headwise.silu` and its pullback.

    The derivative is s(x) + x s(x) s(-x), s the sigmoid.

    Parameters
    ----------
    x : array_like
        Any shape.

    Returns
    -------
    out : ndarray
        The shape of `x`.
    pullback : Pullback
        Returns ``(d_x,)``.

    Raises
    ------
    TypeError
        If `x` is of a dtype that is not computed with (`DTypeError`).

    See Also
    --------
    headwise.silu : The function alone.

    Examples
    --------
    >>> import headwise as hw
    >>> out, pullback = hw.vjp.silu([0.0, 100.0])
    >>> pullback([1.0, 1.0])
    (array([0.5, 1. ]),)
    """
    return _core.vjp_silu(x)


def softmax(x: ArrayLike, axis: int = -1) -> tuple[NDArray[Any], Pullback]:
    """Return `headwise.softmax` and its pullback.

    With p the result, the gradient is p (d - sum(d p)) along the axis; p is computed again.

    Parameters
    ----------
    x : array_like
        Any shape of at least one axis.
    axis : int, default -1
        The axis whose sums are 1.

    Returns
    -------
    out : ndarray
        The shape of `x`.
    pullback : Pullback
        Returns ``(d_x,)``.

    Raises
    ------
    ValueError
        If there is no such axis.
    TypeError
        If `x` is of a dtype that is not computed with (`DTypeError`).

    See Also
    --------
    headwise.softmax : The function alone.

    Examples
    --------
    >>> import headwise as hw
    >>> out, pullback = hw.vjp.softmax([0.0, 0.0])
    >>> pullback([1.0, 0.0])
    (array([ 0.25, -0.25]),)
    """
    return _core.vjp_softmax(x, axis)
