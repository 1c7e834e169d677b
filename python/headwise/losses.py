"""Loss functions: each gives the loss, a number, and its gradient with respect to what was predicted.

There is no graph to walk back: the gradient comes with the loss and goes into a pullback. Sums have one
order, so that loss and gradients have the same bits for every number of threads and on every instruction set;
the exponential and the logarithm are headwise's own. What a mask leaves out may hold anything, NaN too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np

from headwise import _core
from headwise._errors import DTypeError, ShapeError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Loss", "contrastive", "cross_entropy", "mean_squared_error"]

GradientT = TypeVar("GradientT")


class Loss(NamedTuple, Generic[GradientT]):
    """A loss and its gradient: ``loss, gradient = ...`` unpacks it.

    Parameters
    ----------
    value : float
        The loss.
    gradient : ndarray or tuple of ndarray
        Its gradient, of the shape and dtype of what was predicted; of `contrastive`, one for the queries and
        one for the documents.
    """

    value: float
    gradient: GradientT


for _field, _text in {
    "value": "The loss.",
    "gradient": "The gradient of the loss with respect to what was predicted.",
}.items():
    getattr(Loss, _field).__doc__ = _text


def cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    label_smoothing: float = 0.0,
    mask: ArrayLike | None = None,
    ignore_index: int | None = None,
    class_weight: ArrayLike | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> Loss[NDArray[Any]]:
    """Cross-entropy of softmax(logits) and classes or probabilities.

    With p the target (1 at the class, or the probabilities), e the label smoothing and w the class weights, a
    row costs sum_c w_c ((1 - e) p_c + e / C) (log sum_j exp(x_j) - x_c). The values are those of
    ``torch.nn.functional.cross_entropy``, but for the classes in the last axis.

    Parameters
    ----------
    logits : array_like
        (..., C), before the softmax. float16 and bfloat16 are computed in float32 and rounded once.
    targets : array_like
        Integers (...,), the class of each row from 0 to C - 1; or floating numbers (..., C), a probability
        for each class.
    label_smoothing : float, default 0.0
        The part of the target that is spread over all classes, from 0 to 1.
    mask : array_like of bool, optional
        Broadcast to (...,). True = the row counts; others may hold NaN, and their targets anything.
    ignore_index : int, optional
        Rows with this class do not count.
    class_weight : array_like, optional
        (C,), a factor for each class.
    reduction : {"mean", "sum"}, default "mean"
        The mean divides by the number of rows that count; with class weights and classes, by the sum of the
        weights of their classes. The mean over nothing is 0, and its gradient exactly 0.

    Returns
    -------
    Loss
        The loss, and its gradient (..., C) with respect to `logits`; exactly 0 in rows that do not count.

    Raises
    ------
    ValueError
        If shapes do not fit (`ShapeError`), or a class or `label_smoothing` is out of range.
    TypeError
        If an array is of a dtype that is not computed with (`DTypeError`).

    Notes
    -----
    Rows are added in ascending order, in blocks of 256, in float64. A class with probability 0 costs nothing,
    even where its logit is -inf.

    References
    ----------
    .. [1] C. Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (label smoothing),
       2016. https://arxiv.org/abs/1512.00567

    Examples
    --------
    >>> import headwise as hw
    >>> loss, gradient = hw.losses.cross_entropy([[2.0, 0.0], [0.0, 0.0]], [0, 1])
    >>> round(loss, 4)
    0.41
    >>> gradient.round(4)
    array([[-0.0596,  0.0596],
           [ 0.25  , -0.25  ]])
    """
    targets = np.asarray(targets)
    if targets.size == 0 and targets.ndim < np.ndim(logits):
        targets = targets.astype(np.int64)
    classes = targets.dtype.kind in "iu"
    counted = None
    if mask is not None:
        counted = _counted(mask, targets.shape if classes else targets.shape[:-1])
    if ignore_index is not None:
        if not classes:
            msg = f"ignore_index: expected classes as targets, got targets of dtype {targets.dtype}"
            raise ValueError(msg)
        kept = targets != ignore_index
        counted = kept if counted is None else counted & kept
    value, gradient = _core._cross_entropy(
        logits,
        targets,
        class_weight=class_weight,
        counted=counted,
        label_smoothing=label_smoothing,
        mean=_is_mean(reduction),
    )
    return Loss(value, gradient)


def mean_squared_error(
    prediction: ArrayLike,
    target: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> Loss[NDArray[Any]]:
    """Mean of (prediction - target)**2 over all numbers that count.

    Parameters
    ----------
    prediction : array_like
        Any shape. float16 and bfloat16 are computed in float32 and rounded once.
    target : array_like
        The shape of `prediction`.
    mask : array_like of bool, optional
        Broadcast to the shape of `prediction`. True = the number counts; others may be NaN.
    reduction : {"mean", "sum"}, default "mean"
        The mean over nothing is 0, and its gradient exactly 0.

    Returns
    -------
    Loss
        The loss, and its gradient with respect to `prediction`, whose shape and dtype it has.

    Raises
    ------
    ValueError
        If shapes do not fit (`ShapeError`).
    TypeError
        If an array is of a dtype that is not computed with (`DTypeError`).

    Examples
    --------
    >>> import headwise as hw
    >>> hw.losses.mean_squared_error([1.0, 2.0], [0.0, 4.0])
    Loss(value=2.5, gradient=array([ 1., -2.]))
    """
    counted = None if mask is None else _counted(mask, np.shape(prediction))
    value, gradient = _core._squared_error(prediction, target, counted=counted, mean=_is_mean(reduction))
    return Loss(value, gradient)


def contrastive(
    queries: ArrayLike, documents: ArrayLike, *, temperature: float = 0.05, symmetric: bool = False
) -> Loss[tuple[NDArray[Any], NDArray[Any]]]:
    """Contrastive loss of pairs within a batch (InfoNCE): all other documents are negatives of a query.

    Query i belongs to document i. The scores are cosine similarities divided by `temperature`; the loss is the mean cross-entropy of each
    query's scores with its own document.

    Parameters
    ----------
    queries : array_like
        (B, D).
    documents : array_like
        (N, D) with N at least B: what comes after the first B are negatives of all queries.
    temperature : float, default 0.05
        Above 0. The smaller, the more the hardest negatives count.
    symmetric : bool, default False
        Take the mean of this loss and of that of the documents' scores with the queries; N is B then.

    Returns
    -------
    Loss
        The loss, and a tuple of its gradients: (B, D) for the queries and (N, D) for the documents.

    Raises
    ------
    ValueError
        If shapes do not fit (`ShapeError`) or `temperature` is not above 0.
    TypeError
        If an array is of a dtype that is not computed with (`DTypeError`).

    References
    ----------
    .. [1] A. van den Oord, Y. Li, O. Vinyals, "Representation Learning with Contrastive Predictive Coding",
       2018. https://arxiv.org/abs/1807.03748

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> loss, (d_queries, d_documents) = hw.losses.contrastive(np.eye(3), np.eye(3), temperature=1.0)
    >>> round(loss, 4), d_queries.shape, d_documents.shape
    (0.5514, (3, 3), (3, 3))
    """
    value, d_queries, d_documents = _core._contrastive(
        queries, documents, temperature=temperature, symmetric=symmetric
    )
    return Loss(value, (d_queries, d_documents))


def _counted(mask: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return the mask as booleans of `shape`; 0 and 1 count as such."""
    given = np.asarray(mask)
    if given.dtype.kind in "iu" and ((given == 0) | (given == 1)).all():
        given = given.astype(bool)
    if given.dtype != bool:
        msg = f"mask: expected booleans, where True means that a row counts, got dtype {given.dtype}"
        raise DTypeError(msg)
    try:
        return np.broadcast_to(given, shape)
    except ValueError:
        msg = f"mask: expected a shape that broadcasts to {shape}, got {given.shape}"
        raise ShapeError(msg) from None


def _is_mean(reduction: str) -> bool:
    if reduction not in ("mean", "sum"):
        msg = f'reduction: expected "mean" or "sum", got {reduction!r}'
        raise ValueError(msg)
    return reduction == "mean"
