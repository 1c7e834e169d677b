"""What `Sequential` needs to know of its steps: their keywords, keys for dropout, and functions as layers."""

from __future__ import annotations

import functools
import importlib
import inspect
import operator
import os
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from headwise import _core
from headwise._errors import ArgumentTypeError, ArgumentValueError

Layer: TypeAlias = Any
"""What has `state_dict` and can be called with one input: compiled classes share no base."""

Batch: TypeAlias = Any
"""An array, what NumPy makes one of, or a list of arrays; of a last layer, whatever it gives."""

Rng: TypeAlias = Any
"""None, an int or a NumPy generator; anything else is refused when it is used."""

FUNCTIONS = frozenset({"gelu", "relu", "silu", "softmax"})
"""Functions of headwise that stand in a `Sequential` as they are."""


class Function:
    """A function of one array as a layer without parameters; a list is taken item by item."""

    num_parameters = 0

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, x: Batch) -> Batch:
        """Apply the function."""
        function: Callable[[Any], Any] = getattr(_core, self._name)
        return [function(item) for item in x] if _is_ragged(x) else function(x)

    def vjp(self, x: Batch) -> tuple[Batch, Callable[[Batch], tuple[Batch, dict[str, Any]]]]:
        """Apply the function, and return its pullback in the form of a layer's."""
        function = getattr(importlib.import_module("headwise.vjp"), self._name)
        if not _is_ragged(x):
            out, pullback = function(x)
            return out, lambda d_out: (pullback(d_out)[0], {})
        pairs = [function(item) for item in x]

        def pull(d_out: Batch) -> tuple[Batch, dict[str, Any]]:
            return [back(d)[0] for (_, back), d in zip(pairs, d_out, strict=True)], {}

        return [out for out, _ in pairs], pull

    def state_dict(self) -> dict[str, Any]:
        """Return no parameters."""
        return {}

    def load_state_dict(self, state: dict[str, Any], strict: bool = True) -> None:
        """Load nothing."""
        if state and strict:
            msg = f"state: unexpected {', '.join(state)}; strict=False loads what fits"
            raise ArgumentValueError(msg)


def step_of(name: str, layer: Layer) -> Layer:
    """Return what a `Sequential` calls for one of its arguments, which it checks."""
    if not isinstance(layer, type) and callable(layer):
        if hasattr(layer, "state_dict"):
            return layer
        known = getattr(layer, "__name__", "")
        if known in FUNCTIONS and layer is getattr(_core, known):
            return Function(known)
    msg = (
        f"layer {name!r}: expected what has state_dict and can be called, or one of the functions "
        f"{', '.join(sorted(FUNCTIONS))} of headwise, got {layer!r}"
    )
    raise ArgumentTypeError(msg)


def _is_ragged(x: Batch) -> bool:
    return type(x) is list and all(isinstance(item, np.ndarray) for item in x)


def keywords_of(layer: Layer) -> frozenset[str]:
    """Return the keywords that a layer's call takes."""
    if hasattr(layer, "_keywords"):
        return frozenset(layer._keywords())
    cls: Layer = type(layer)
    return _keywords_of_class(cls)


@functools.cache
def _keywords_of_class(cls: Layer) -> frozenset[str]:
    parameters = inspect.signature(cls.__call__).parameters.values()
    return frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def refusal(keyword: str) -> str:
    text = f"Sequential() got an unexpected keyword argument {keyword!r}: no layer takes it"
    if keyword.endswith("key_padding_mask"):
        text += f"; pass key_mask=~{keyword}, True where a key may be attended"
    return text


def key_of(rng: Rng) -> int:
    """Return the 64-bit key of a call, as the compiled layers read `rng`."""
    if rng is None:
        return int.from_bytes(os.urandom(8), "little")
    if isinstance(rng, np.random.Generator):
        return int(rng.integers(0, 2**64 - 1, dtype=np.uint64, endpoint=True))
    if isinstance(rng, bool) or not hasattr(rng, "__index__"):
        msg = f"rng: expected None, an int or a numpy.random.Generator, got {type(rng).__name__}"
        raise ArgumentTypeError(msg)
    key = operator.index(rng)
    if not 0 <= key < 2**64:
        msg = f"rng: expected a seed from 0 to 2**64 - 1, got {key}"
        raise ArgumentValueError(msg)
    return key


def key_of_place(key: int, place: int) -> int:
    """Return the key of one step of a call."""
    return int(np.random.SeedSequence(key, spawn_key=(place,)).generate_state(1, np.uint64)[0])


def fits(part: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> bool:
    """Tell whether a state is float32 and float64 arrays of just these names and shapes."""
    return len(part) == len(shapes) and all(
        isinstance(array, np.ndarray) and array.dtype.char in "fd" and array.shape == shapes.get(name)
        for name, array in part.items()
    )
