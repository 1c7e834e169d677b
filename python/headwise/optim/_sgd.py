"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from headwise import _core
from headwise.optim._optimizer import LearningRate, Moments, Optimizer, number

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from headwise.optim._parameters import Given


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum if wanted.

    With g the gradient plus `weight_decay` times the parameter p, v = momentum v + g and p = p - lr v;
    with `nesterov`, p = p - lr (g + momentum v).

    Parameters
    ----------
    parameters : layer or dict of str to layer or ndarray
        What is updated: a layer (anything with `state_dict` and `load_state_dict`), or a dict, whose layers
        have their names after the key and a dot, and whose arrays are changed in place.
    lr : float or callable
        The learning rate, or a function of the number of steps taken before.
    momentum : float, default 0.0
        The part of the velocity v that is kept.
    nesterov : bool, default False
        Look ahead along the velocity.
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
    .. [1] I. Sutskever, J. Martens, G. Dahl, G. Hinton, "On the importance of initialization and momentum in
       deep learning", 2013. https://proceedings.mlr.press/v28/sutskever13.html

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> parameters = {"w": np.ones(2)}
    >>> hw.optim.SGD(parameters, lr=0.5).step({"w": [1.0, -1.0]})
    >>> parameters["w"]
    array([0.5, 1.5])
    """

    _moments = ("momentum_buffer",)

    def __init__(
        self,
        parameters: Given,
        lr: LearningRate,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        lr_factors: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(parameters, lr, lr_factors)
        given = {"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        self._hyper_parameters = self._checked(given)

    def _checked(self, given: Mapping[str, Any]) -> dict[str, Any]:
        momentum, nesterov = number("momentum", given["momentum"]), bool(given["nesterov"])
        if nesterov and momentum == 0.0:
            msg = "nesterov: expected a momentum above 0 with it, got 0"
            raise ValueError(msg)
        decay = number("weight_decay", given["weight_decay"])
        return {"momentum": momentum, "nesterov": nesterov, "weight_decay": decay}

    def _names(self, hyper_parameters: Mapping[str, Any]) -> tuple[str, ...]:
        return self._moments if hyper_parameters["momentum"] else ()

    def _update(
        self, parameter: NDArray[Any], gradient: NDArray[Any], moments: Moments, step: int, lr: float
    ) -> None:
        _core._sgd_step(parameter, gradient, moments.get("momentum_buffer"), lr=lr, **self._hyper_parameters)
