"""Adam, and Adam with decoupled weight decay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from headwise import _core
from headwise.optim._optimizer import LearningRate, Moments, Optimizer, number

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from headwise.optim._parameters import Given


class Adam(Optimizer):
    """Adam: steps along the mean gradient, divided by the root of the mean of its squares.

    With g the gradient plus `weight_decay` times the parameter p, and t the number of steps of p:
    m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g**2, and
    p = p - lr (m / (1 - b1**t)) / (sqrt(v / (1 - b2**t)) + eps).

    Parameters
    ----------
    parameters : layer or dict of str to layer or ndarray
        What is updated: a layer (anything with `state_dict` and `load_state_dict`), or a dict, whose layers
        have their names after the key and a dot, and whose arrays are changed in place.
    lr : float or callable, default 0.001
        The learning rate, or a function of the number of steps taken before.
    betas : tuple of float, default (0.9, 0.999)
        The numbers b1 and b2, from 0 on and below 1.
    eps : float, default 1e-8
        Added to the root.
    weight_decay : float, default 0.0
        The factor of the penalty, half the squared norm.
    lr_factors : dict of str to float, optional
        Factors of `lr` for some parameters, by name, as torch's groups of parameters have rates of their own.
        As a schedule, they are no part of `state_dict`.

    Raises
    ------
    ValueError
        If a number is out of range, two parameters have one name, or a name of `lr_factors` is none of them.
    TypeError
        If `parameters` is of another kind, or an array neither float32 nor float64 (`DTypeError`).

    References
    ----------
    .. [1] D. P. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", 2015.
       https://arxiv.org/abs/1412.6980

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> parameters = {"w": np.ones(2)}
    >>> hw.optim.Adam(parameters, lr=0.1).step({"w": [1.0, -5.0]})
    >>> parameters["w"].round(6)
    array([0.9, 1.1])
    """

    _moments = ("exp_avg", "exp_avg_sq")
    _decoupled: ClassVar[bool] = False

    def __init__(
        self,
        parameters: Given,
        lr: LearningRate = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        lr_factors: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(parameters, lr, lr_factors)
        self._hyper_parameters = self._checked({"betas": betas, "eps": eps, "weight_decay": weight_decay})

    def _checked(self, given: Mapping[str, Any]) -> dict[str, Any]:
        try:
            first, second = given["betas"]
        except (TypeError, ValueError):
            msg = f"betas: expected two numbers, got {given['betas']!r}"
            raise ValueError(msg) from None
        return {
            "betas": (number("betas", first, below=1.0), number("betas", second, below=1.0)),
            "eps": number("eps", given["eps"]),
            "weight_decay": number("weight_decay", given["weight_decay"]),
        }

    def _update(
        self, parameter: NDArray[Any], gradient: NDArray[Any], moments: Moments, step: int, lr: float
    ) -> None:
        _core._adam_step(
            parameter,
            gradient,
            moments["exp_avg"],
            moments["exp_avg_sq"],
            step=step,
            lr=lr,
            decoupled=self._decoupled,
            **self._hyper_parameters,
        )


class AdamW(Adam):
    """Adam with decoupled weight decay: p = p - lr weight_decay p, then Adam's step without a penalty.

    Parameters
    ----------
    parameters : layer or dict of str to layer or ndarray
        What is updated: a layer (anything with `state_dict` and `load_state_dict`), or a dict, whose layers
        have their names after the key and a dot, and whose arrays are changed in place.
    lr : float or callable, default 0.001
        The learning rate, or a function of the number of steps taken before.
    betas : tuple of float, default (0.9, 0.999)
        The numbers b1 and b2 of `Adam`, from 0 on and below 1.
    eps : float, default 1e-8
        Added to the root.
    weight_decay : float, default 0.01
        The part of each parameter that a step takes away, times `lr`.
    lr_factors : dict of str to float, optional
        Factors of `lr` for some parameters, by name, as torch's groups of parameters have rates of their own.
        As a schedule, they are no part of `state_dict`.

    Raises
    ------
    ValueError
        If a number is out of range, two parameters have one name, or a name of `lr_factors` is none of them.
    TypeError
        If `parameters` is of another kind, or an array neither float32 nor float64 (`DTypeError`).

    References
    ----------
    .. [1] I. Loshchilov, F. Hutter, "Decoupled Weight Decay Regularization", 2019.
       https://arxiv.org/abs/1711.05101

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> parameters = {"w": np.ones(2)}
    >>> hw.optim.AdamW(parameters, lr=0.1, weight_decay=0.5).step({"w": [1.0, -5.0]})
    >>> parameters["w"].round(6)
    array([0.85, 1.05])
    """

    _decoupled = True

    def __init__(
        self,
        parameters: Given,
        lr: LearningRate = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        lr_factors: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(
            parameters, lr, betas=betas, eps=eps, weight_decay=weight_decay, lr_factors=lr_factors
        )
