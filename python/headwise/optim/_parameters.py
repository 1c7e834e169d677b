"""What an optimiser updates: layers, or plain arrays, under one set of names.

A layer stays the only truth: its state is read before a step and loaded back after it, so whatever was loaded
in between counts. Arrays of a dict are changed in place, and a dict is read anew at each step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from headwise._errors import DTypeError, ShapeError


@runtime_checkable
class Layer(Protocol):
    """Anything with a state."""

    def state_dict(self) -> Mapping[str, NDArray[Any]]:
        """Return copies of the parameters."""

    def load_state_dict(self, state: Mapping[str, NDArray[Any]]) -> object:
        """Take the parameters."""


Given: TypeAlias = Layer | Mapping[str, Layer | NDArray[Any]]
"""What users pass: a layer, or a dict of layers and arrays."""


class Parameters:
    """The arrays of a layer, or of a dict of layers and arrays: ``key.name`` and ``key``."""

    def __init__(self, given: Given, argument: str = "parameters") -> None:
        # What a user passes may be of any kind.
        self._given: Any = given
        self._argument = argument
        self.read()

    def read(self) -> dict[str, NDArray[Any]]:
        """Return copies of layers' parameters, and the plain arrays themselves."""
        arrays: dict[str, NDArray[Any]] = {}
        for key, part in self._parts():
            found = {key: part} if isinstance(part, np.ndarray) else _named(key, part.state_dict())
            for name, array in found.items():
                if name in arrays:
                    self._fail(f"two parameters have the name {name!r}")
                if array.dtype not in (np.float32, np.float64):
                    msg = (
                        f"{self._argument}: expected float32 or float64, got {name!r} of dtype {array.dtype}"
                    )
                    raise DTypeError(msg)
                arrays[name] = array
        return arrays

    def write(self, arrays: Mapping[str, NDArray[Any]], changed: Iterable[str]) -> None:
        """Load what `read` gave back into the layers that have a changed parameter."""
        changed = set(changed)
        for key, part in self._parts():
            if not isinstance(part, np.ndarray):
                names = list(_named(key, part.state_dict())) if key else list(arrays)
                if not changed.isdisjoint(names):
                    part.load_state_dict({name[len(key) + 1 if key else 0 :]: arrays[name] for name in names})

    def check(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Fail where `state` cannot be loaded: all names must be there, with the right shapes."""
        own = self.read()
        if own.keys() != state.keys():
            missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
            self._fail(f"the state lacks {missing[:5]} and has unknown {unknown[:5]}")
        for name, array in state.items():
            if array.shape != own[name].shape:
                expected = f"expected shape {own[name].shape} of {name!r}"
                msg = f"{self._argument}: {expected}, got {array.shape} in the state"
                raise ShapeError(msg)
            if not own[name].flags.writeable:
                self._fail(f"the array {name!r} is read-only")

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take a whole state that `check` has seen."""
        for key, part in self._parts():
            if isinstance(part, np.ndarray):
                part[...] = state[key]
            else:
                start = f"{key}." if key else ""
                part.load_state_dict(
                    {name[len(start) :]: array for name, array in state.items() if name.startswith(start)}
                )

    def _parts(self) -> Iterator[tuple[str, Layer | NDArray[Any]]]:
        """Yield the layers and arrays with their keys; a single layer has an empty one."""
        given = self._given
        if isinstance(given, Layer):
            yield "", given
            return
        if not isinstance(given, Mapping):
            came = type(given).__name__
            msg = f"{self._argument}: expected a layer, or a dict of layers and arrays, got {came}"
            raise TypeError(msg)
        seen: set[int] = set()
        for key, part in given.items():
            if not isinstance(key, str) or not isinstance(part, (Layer, np.ndarray)):
                came = f"{type(part).__name__} at {key!r}"
                msg = f"{self._argument}: expected a dict of str to layers or arrays, got {came}"
                raise TypeError(msg)
            if id(part) in seen:
                self._fail(f"{key!r} is there under another key already")
            seen.add(id(part))
            yield key, part

    def _fail(self, what: str) -> None:
        msg = f"{self._argument}: {what}"
        raise ValueError(msg)


def _named(key: str, state: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {f"{key}.{name}" if key else name: array for name, array in state.items()}


def flatten(grads: Any, start: str = "") -> dict[str, Any]:  # noqa: ANN401 - what a user passes
    """Return ``{"a": {"b": array}}`` as ``{"a.b": array}``, in the order of the dicts."""
    if not isinstance(grads, Mapping):
        msg = f"grads: expected a dict of arrays, as a layer's pullback gives it, got {type(grads).__name__}"
        raise TypeError(msg)
    flat: dict[str, Any] = {}
    for name, value in grads.items():
        flat |= flatten(value, f"{start}{name}.") if isinstance(value, Mapping) else {f"{start}{name}": value}
    return flat


def gradient(name: str, value: object, parameters: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """Return a gradient as an array of its parameter's dtype, or fail."""
    if name not in parameters:
        known = ", ".join([*parameters][:5]) + (", ..." if len(parameters) > 5 else "")
        msg = f"grads: expected names of parameters ({known}), got {name!r}"
        raise ValueError(msg)
    parameter, array = parameters[name], np.asarray(value)
    if array.shape != parameter.shape:
        msg = f"grads: expected shape {parameter.shape} of {name!r}, that of the parameter, got {array.shape}"
        raise ShapeError(msg)
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        msg = f"grads: expected floating numbers, got {name!r} of dtype {array.dtype}"
        raise DTypeError(msg)
    if not parameter.flags.writeable:
        msg = f"parameters: expected arrays that can be written, but {name!r} is read-only"
        raise ValueError(msg)
    array = array.astype(parameter.dtype.newbyteorder("="), copy=False)
    return array.copy() if np.may_share_memory(array, parameter) else array
