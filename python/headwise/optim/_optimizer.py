"""What all optimisers share: the walk over the parameters, the learning rate, and the state."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from headwise.optim._parameters import Given, Parameters, flatten, gradient

LearningRate: TypeAlias = float | Callable[[int], float]
"""A number, or a function of the number of steps taken before."""

Moments: TypeAlias = dict[str, NDArray[Any]]


class Optimizer(ABC):
    """The base of all optimisers."""

    _moments: ClassVar[tuple[str, ...]]
    """Names of the arrays that are kept for each parameter, all of them 0 at first."""

    _hyper_parameters: dict[str, Any]

    def __init__(
        self, parameters: Given, lr: LearningRate, lr_factors: Mapping[str, float] | None = None
    ) -> None:
        self._parameters = Parameters(parameters)
        self.lr = lr
        self._lr_factors = {n: number("lr_factors", f) for n, f in dict(lr_factors or {}).items()}
        if unknown := sorted(self._lr_factors.keys() - self._parameters.read().keys()):
            msg = f"lr_factors: expected names of parameters, got {unknown[0]!r}"
            raise ValueError(msg)
        self._step = 0
        # For each parameter, the steps that it took part in, and its moments.
        self._state: dict[str, tuple[int, Moments]] = {}

    @property
    def lr(self) -> float:
        """The learning rate of the next step; a number or a schedule may be assigned."""
        lr = self._lr(self._step) if callable(self._lr) else self._lr
        return number("lr", lr)

    @lr.setter
    def lr(self, lr: LearningRate) -> None:
        self._lr = lr if callable(lr) else number("lr", lr)

    @property
    def steps(self) -> int:
        """How many steps were taken."""
        return self._step

    def step(self, grads: Mapping[str, Any]) -> None:
        """Update the parameters by their gradients.

        Parameters
        ----------
        grads : dict of str to array_like
            A gradient for each parameter that is to move, under the parameter's name; a dict in it stands for
            names with its key and a dot in front. Parameters that are not named stay as they are, and so do
            their moments.

        Raises
        ------
        ValueError
            If a name is none of a parameter, or a gradient has another shape (`ShapeError`). Nothing is
            changed then.
        TypeError
            If a gradient is no array of numbers (`DTypeError`).
        """
        lr = self.lr
        parameters = self._parameters.read()
        gradients = {name: gradient(name, value, parameters) for name, value in flatten(grads, "").items()}
        states = {name: self._state_of(name, parameters[name]) for name in gradients}
        for name, d in gradients.items():
            steps, moments = states[name]
            parameter = parameters[name]
            rate = lr * self._lr_factors.get(name, 1.0)
            flags = parameter.flags
            if flags.c_contiguous and flags.aligned and parameter.dtype.isnative:
                self._update(parameter, d, moments, steps + 1, rate)
            else:
                dense = parameter.astype(parameter.dtype.newbyteorder("="), order="C")
                self._update(dense, d, moments, steps + 1, rate)
                parameter[...] = dense
            self._state[name] = steps + 1, moments
        self._parameters.write(parameters, gradients)
        self._step += 1

    def state_dict(self) -> dict[str, Any]:
        """Return what a training needs to be resumed: arrays are copies.

        Returns
        -------
        dict
            "algorithm", the name of the class; "step"; "hyper_parameters", numbers ("lr" only where it is no
            schedule); and "state", for each parameter its "step" and its moments.
        """
        hyper_parameters: dict[str, Any] = dict(self._hyper_parameters)
        if not callable(self._lr):
            hyper_parameters["lr"] = self._lr
        state = {
            name: {"step": steps, **{key: value.copy() for key, value in moments.items()}}
            for name, (steps, moments) in self._state.items()
        }
        return {
            "algorithm": type(self).__name__,
            "step": self._step,
            "hyper_parameters": hyper_parameters,
            "state": state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take what `state_dict` gave: moments, steps and hyper-parameters.

        A schedule is no part of a state: an optimiser that was made with one keeps it.

        Parameters
        ----------
        state : dict
            The state of an optimiser of the same class, for parameters of the same names and shapes.

        Raises
        ------
        ValueError
            If the state is that of another class or of other parameters. Nothing is changed then.
        """
        try:
            algorithm, step = state["algorithm"], int(state["step"])
            given, states = dict(state["hyper_parameters"]), dict(state["state"])
        except (KeyError, TypeError, ValueError) as error:
            msg = f"state: expected what state_dict() of an optimiser gives, got {type(state).__name__}"
            raise ValueError(msg) from error
        if algorithm != type(self).__name__:
            msg = f"state: expected that of {type(self).__name__}, got that of {algorithm}"
            raise ValueError(msg)
        known = {*self._hyper_parameters, "lr"}
        if given.keys() - {"lr"} != known - {"lr"}:
            msg = f"state: expected the hyper-parameters {sorted(known)}, got {sorted(given)}"
            raise ValueError(msg)
        lr = given.pop("lr", None)
        parameters = self._parameters.read()
        hyper_parameters = self._checked(given)
        names = self._names(hyper_parameters)
        loaded = {name: self._loaded(name, value, parameters, names) for name, value in states.items()}
        if lr is not None and not callable(self._lr):
            self._lr = number("lr", lr)
        self._hyper_parameters = hyper_parameters
        self._step, self._state = step, loaded

    def __repr__(self) -> str:
        numbers = ", ".join(f"{name}={value}" for name, value in self._hyper_parameters.items())
        return f"{type(self).__name__}(lr={self._lr!r}, {numbers}), {self._step} steps taken"

    @abstractmethod
    def _update(
        self, parameter: NDArray[Any], gradient: NDArray[Any], moments: Moments, step: int, lr: float
    ) -> None:
        """Change a parameter and its moments; `step` counts from 1."""

    @abstractmethod
    def _checked(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return hyper-parameters, or fail where one is out of range."""

    def _state_of(self, name: str, parameter: NDArray[Any]) -> tuple[int, Moments]:
        """Return the steps and moments of a parameter, which must have kept its shape."""
        found = self._state.get(name)
        if found is None:
            dtype = parameter.dtype.newbyteorder("=")
            return 0, {key: np.zeros(parameter.shape, dtype) for key in self._names(self._hyper_parameters)}
        for moment in found[1].values():
            if (moment.shape, moment.dtype) != (parameter.shape, parameter.dtype.newbyteorder("=")):
                msg = (
                    f"parameters: {name!r} was {moment.shape} of {moment.dtype} in earlier steps and is "
                    f"{parameter.shape} of {parameter.dtype} now"
                )
                raise ValueError(msg)
        return found

    def _loaded(
        self,
        name: str,
        value: Any,  # noqa: ANN401 - what a file held
        parameters: Mapping[str, NDArray[Any]],
        keys: tuple[str, ...],
    ) -> tuple[int, Moments]:
        """Return the steps and moments of one parameter of a state."""
        if name not in parameters or not isinstance(value, Mapping) or {*value} != {"step", *keys}:
            msg = f"state: {name!r} is no parameter of this optimiser, or not as state_dict() gives it"
            raise ValueError(msg)
        dtype = parameters[name].dtype.newbyteorder("=")
        moments = {key: np.array(value[key], dtype=dtype, order="C") for key in keys}
        for key, moment in moments.items():
            if moment.shape != parameters[name].shape:
                msg = (
                    f"state: expected shape {parameters[name].shape} of {key} of {name!r}, got {moment.shape}"
                )
                raise ValueError(msg)
        return int(value["step"]), moments

    def _names(self, hyper_parameters: Mapping[str, Any]) -> tuple[str, ...]:
        """Name the moments that are kept with these hyper-parameters."""
        return self._moments


def number(name: str, value: Any, *, below: float = math.inf) -> float:  # noqa: ANN401 - what a user passes
    """Return a number from 0 on, below a bound, or fail."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        msg = f"{name}: expected a number, got {value!r}"
        raise TypeError(msg) from None
    if not 0.0 <= found < below:
        bound = "" if below == math.inf else f", below {below}"
        msg = f"{name}: expected a finite number from 0 on{bound}, got {value!r}"
        raise ValueError(msg)
    return found
