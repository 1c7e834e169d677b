"""Functions that return their result and a pullback, from which gradients come.

``out, pullback = headwise.vjp.f(...)`` computes what ``headwise.f(...)`` computes, to the bit;
``pullback(d_out)`` turns the gradient of a number with respect to ``out`` into a tuple of its gradients with
respect to the arrays that were given, in their order. Arguments that are absent have no gradient and no place in
the tuple. A pullback may be called any number of times; it holds the arrays, it does not copy them: they must not
be changed meanwhile.

Gradients have the shapes of their arrays and the dtype of the result; what is computed in float32 for float16
or bfloat16 is rounded once. Their bits depend neither on threads nor on the instruction set.
"""

from typing import Any, Literal, SupportsIndex

from numpy.typing import ArrayLike, NDArray

from headwise import _core
from headwise._core import Pullback

__all__ = [
    "gelu",
    "layer_norm",
    "linear",
    "relu",
    "rms_norm",
    "rotary_embedding",
    "silu",
    "softmax",
]


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
        Returns ``(d_x, d_weight, d_bias)``, without those of arrays that were not given. Sums over rows run in ascending
        order, in blocks of 256.

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
        Returns ``(d_x, d_weight, d_bias)``, without `d_bias` if there is no bias. The sum over rows in `d_weight` has the
        order of every product: ascending, in blocks of 192; that in `d_bias` has blocks of 256.

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
        Returns ``(d_x, d_weight)``, without `d_weight` if there is no weight. Its sum over rows runs in ascending order, in
        blocks of 256.

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
    .. [1] B. Zhang, R. Sennrich, "Root Mean Square Layer Normalization", 2019. https://arxiv.org/abs/1910.07467

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
