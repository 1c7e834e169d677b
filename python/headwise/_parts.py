"""Named layers as one: their states under one set of names, loaded as a whole or not at all.

``"encoder.norm.weight"`` is the parameter ``"norm.weight"`` of the layer ``"encoder"``. Names may be tied:
one array that several layers hold, saved once under the first name; its gradient is the sum of theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise._errors import ArgumentTypeError, ArgumentValueError, HeadwiseError
from headwise._steps import Layer, fits

# What wrappers of a model put before every name, as the compiled layers know it.
_PREFIXES = ("module.", "_orig_mod.", "bert.")


class Parts:
    """The layers of a composed layer, by name; `tied` lists the names of one shared parameter."""

    def __init__(self, layers: Mapping[str, Layer], tied: tuple[str, ...] = ()) -> None:
        self._layers = dict(layers)
        self._tied = tied
        # Names and shapes of each layer's parameters, once they were asked for: they never change.
        self._shapes: dict[str, dict[str, tuple[int, ...]]] = {}

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return copies of the parameters, each under its layer's name, a dot and its own."""
        return {
            f"{name}.{own}": array
            for name, layer in self._layers.items()
            for own, array in layer.state_dict().items()
            if f"{name}.{own}" not in self._tied[1:]
        }

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Load parameters by name, with or without wrappers' prefixes; what fails changes nothing."""
        parts, unexpected = self._split(state)
        if strict and unexpected:
            msg = f"state: unexpected {', '.join(unexpected)}; strict=False loads what fits"
            raise ArgumentValueError(msg)
        self._spread(parts)
        # A state just like the layers' own cannot fail: nothing need be remembered. Training loads often.
        sure = all(fits(parts[name], self._shapes_of(name)) for name in self._layers)
        undo = []
        for name, layer in self._layers.items():
            if not sure:
                undo.append((layer, layer.state_dict()))
            try:
                layer.load_state_dict(parts[name], strict)
            except BaseException as error:
                for earlier, before in undo:
                    earlier.load_state_dict(before)
                if isinstance(error, HeadwiseError):
                    raise type(error)(f"layer {name!r}: {error}") from error
                raise

    def gradients(self, parts: Mapping[str, Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
        """Return the layers' gradients under the names of `state_dict`; tied ones added in their order."""
        grads = {f"{name}.{own}": grad for name in self._layers for own, grad in parts[name].items()}
        for name in self._tied[1:]:
            # Two numbers are added at a time, in the order of the names: the bits have no choice.
            grads[self._tied[0]] = grads[self._tied[0]] + grads.pop(name)
        return grads

    @property
    def num_parameters(self) -> int:
        """How many numbers the parameters have; a shared one counts once."""
        count = 0
        for name, layer in self._layers.items():
            count += layer.num_parameters
            tied = (full.partition(".") for full in self._tied[1:])
            count -= sum(int(np.prod(self._shapes_of(name)[own])) for of, _, own in tied if of == name)
        return count

    def _split(self, state: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """Return each layer's part of a state, and the names that belong to none."""
        parts: dict[str, dict[str, Any]] = {name: {} for name in self._layers}
        unexpected = []
        if not hasattr(state, "items"):
            msg = f"state: expected a mapping of names to arrays, got {type(state).__name__}"
            raise ArgumentTypeError(msg)
        for full, array in state.items():
            name, _, own = full.partition(".")
            while name not in parts and full.startswith(_PREFIXES):
                full = own
                name, _, own = full.partition(".")
            if name in parts and own:
                parts[name][own] = array
            else:
                unexpected.append(full)
        return parts, unexpected

    def _spread(self, parts: dict[str, dict[str, Any]]) -> None:
        """Give a tied parameter to all its layers; if it is there under several names, they must agree."""
        places = [(name, own) for name, _, own in (full.partition(".") for full in self._tied)]
        found = [place for place in places if place[1] in parts[place[0]]]
        if not found:
            return
        array = parts[found[0][0]][found[0][1]]
        for name, own in found[1:]:
            other = parts[name][own]
            if other is not array and not np.array_equal(np.asarray(array), np.asarray(other)):
                msg = (
                    f"state: {'.'.join(found[0])} and {name}.{own} are tied, one parameter, but differ here; "
                    "load them into a model that does not tie them"
                )
                raise ArgumentValueError(msg)
        for name, own in places:
            parts[name][own] = array

    def _shapes_of(self, name: str) -> dict[str, tuple[int, ...]]:
        if name not in self._shapes:
            state = self._layers[name].state_dict()
            self._shapes[name] = {own: array.shape for own, array in state.items()}
        return self._shapes[name]


def listed(layers: Mapping[str, Layer]) -> str:
    """Return the layers' texts, each on lines of its own, for a `repr`."""
    lines = [f"({name}): {_text(layer)}" for name, layer in layers.items()]
    return "\n" + "".join(f"  {line}\n" for part in lines for line in part.split("\n"))


def _text(layer: Layer) -> str:
    return repr(layer) if hasattr(layer, "state_dict") else str(layer.__name__)
