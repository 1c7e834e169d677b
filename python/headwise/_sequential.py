"""Layers one after the other, as one layer.

``out = layer_n(... layer_1(layer_0(x)))``; gradients go the other way. All it adds is names (``"0.weight"``,
as torch has them), and the way of a call's keywords to the layers that take them.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias, overload

from numpy.typing import NDArray

from headwise._errors import ArgumentTypeError, ArgumentValueError
from headwise._parts import Parts, listed
from headwise._steps import Batch, Layer, Rng, key_of, key_of_place, keywords_of, refusal, step_of

_DType: TypeAlias = Any


class Sequential:
    """Layers one after the other: each takes what the one before it gave.

    Parameters
    ----------
    *layers : layer
        Named "0", "1", ... in their order. A layer is what has `state_dict` and can be called with one input;
        a `Sequential` is one too. The functions `relu`, `gelu`, `silu` and `softmax` may stand among them.
    **named : layer
        More layers, under their own names, after those without.

    Raises
    ------
    TypeError
        If one of them is no layer.
    ValueError
        If there is none, or a name is taken, empty or has a dot.

    Notes
    -----
    A keyword of a call goes to every layer whose signature has it (`key_mask` to each attention, `lengths`
    to each `Encoder`); one that no layer takes is an error. `training` and `rng` are known to every
    `Sequential`: in training one draw from `rng` gives each layer a key of its own, by its place, so that a
    seed repeats the run.

    Examples
    --------
    >>> import headwise as hw
    >>> model = hw.Sequential(
    ...     embed=hw.Embedding(100, 16, rng=0),
    ...     encoder=hw.Encoder(2, 16, 4, 32, rng=1),
    ...     head=hw.Linear(16, 3, rng=2),
    ... )
    >>> model([[5, 7, 0], [5, 2, 9]], lengths=[2, 3]).shape
    (2, 3, 3)
    >>> model["head"], len(model)
    (Linear(16, 3, dtype="float32"), 3)
    >>> small = hw.Sequential(hw.LayerNorm(4), hw.relu, hw.Linear(4, 2, rng=0))
    >>> list(small.state_dict())
    ['0.weight', '0.bias', '2.weight', '2.bias']
    """

    def __init__(self, /, *layers: Layer, **named: Layer) -> None:
        self._layers: dict[str, Layer] = {str(place): layer for place, layer in enumerate(layers)}
        for name, layer in named.items():
            if not name or "." in name or name in self._layers:
                msg = f"name of a layer: expected one that is free, not empty and without a dot, got {name!r}"
                raise ArgumentValueError(msg)
            self._layers[name] = layer
        if not self._layers:
            msg = "layers: expected at least one"
            raise ArgumentValueError(msg)
        # What is called: the layers themselves, and what makes one of a function.
        self._steps = {name: step_of(name, layer) for name, layer in self._layers.items()}
        self._parts = Parts(self._steps)

    def __call__(self, x: Batch, *, training: bool = False, rng: Rng = None, **keywords: object) -> Batch:
        """Take an input through all layers.

        Parameters
        ----------
        x : array_like or list of array_like
            What the first layer takes.
        training : bool, default False
            Whether dropout is at work.
        rng : int or numpy.random.Generator, optional
            Seed of dropout; in training a generator is advanced by one draw, whatever the layers are.
        **keywords : object
            Each goes to every layer whose signature has it.

        Returns
        -------
        object
            What the last layer gives.

        Raises
        ------
        TypeError
            If no layer takes a keyword, or a layer that is not the last gives more than one result.
        """
        for name, layer, own in self._plan(training, rng, keywords):
            x = layer(self._one(x, name), **own)
        return x

    def vjp(
        self, x: Batch, *, training: bool = False, rng: Rng = None, **keywords: object
    ) -> tuple[Batch, SequentialPullback]:
        """Take an input through all layers, and return what turns the gradient of the result into gradients.

        Parameters
        ----------
        x : array_like or list of array_like
            As in a call. It is held, not copied, and must not be changed before the pullback was called.
        training : bool, default False
            Whether dropout is at work; the pullback drops the same numbers.
        rng : int or numpy.random.Generator, optional
            Seed of dropout.
        **keywords : object
            Each goes to every layer whose signature has it.

        Returns
        -------
        out : object
            As of a call, the same bits.
        pullback : callable
            `pullback(d_out)` gives `(d_x, grads)`: the gradient of `x`, None where it is ids, and a dict of
            those of the parameters, named as in `state_dict`.

        Raises
        ------
        TypeError
            As of a call.
        """
        pullbacks = {}
        for name, layer, own in self._plan(training, rng, keywords):
            x, pullbacks[name] = layer.vjp(self._one(x, name), **own)
        return x, SequentialPullback(pullbacks)

    def _plan(
        self, training: bool, rng: Rng, keywords: dict[str, object]
    ) -> Iterator[tuple[str, Layer, dict[str, object]]]:
        """Yield each layer with its name and its keywords."""
        takes = {name: keywords_of(layer) for name, layer in self._steps.items()}
        for keyword in keywords:
            if not any(keyword in taken for taken in takes.values()):
                raise ArgumentTypeError(refusal(keyword))
        key = key_of(rng) if training else 0
        for place, (name, layer) in enumerate(self._steps.items()):
            own = {k: v for k, v in keywords.items() if k in takes[name]}
            if training and "training" in takes[name]:
                own["training"] = True
            if training and "rng" in takes[name]:
                own["rng"] = key_of_place(key, place)
            yield name, layer, own

    def _keywords(self) -> set[str]:
        """Return the keywords that a call takes."""
        return {"training", "rng"}.union(*map(keywords_of, self._steps.values()))

    @staticmethod
    def _one(x: Batch, name: str) -> Batch:
        """Return a layer's input, which must not be several results."""
        if isinstance(x, tuple):
            msg = (
                f"layer {name!r}: the layer before it gave {len(x)} results; ask it for its output alone "
                "(need_weights and the like suit the last layer)"
            )
            raise ArgumentTypeError(msg)
        return x

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return copies of the parameters, each under its layer's name, a dot and its own.

        Returns
        -------
        dict of str to ndarray
            Fresh arrays, in the order of the layers.
        """
        return self._parts.state_dict()

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Load parameters by name, with or without wrappers' prefixes.

        Layers are loaded one after the other: a call in another thread meanwhile may find some of them before
        it and some after, none in between.

        Parameters
        ----------
        state : mapping of str to array_like
            The parameters.
        strict : bool, default True
            Whether a missing or an unexpected name is an error.

        Raises
        ------
        ValueError
            If a parameter has another shape, or names do not fit; then nothing changes.
        """
        self._parts.load_state_dict(state, strict)

    def to(self, dtype: _DType) -> Sequential:
        """Return the same layers in another dtype.

        Parameters
        ----------
        dtype : {"float32", "float64"}
            What the new layers compute in.

        Returns
        -------
        Sequential
            With new layers, under the same names.
        """
        new = {
            name: layer.to(dtype) if hasattr(layer, "to") else layer for name, layer in self._layers.items()
        }
        return Sequential(**new)

    @property
    def num_parameters(self) -> int:
        """How many numbers the parameters have."""
        return self._parts.num_parameters

    @property
    def dtype(self) -> str:
        """NumPy's name of the dtype that the last layer answers in."""
        return next((str(layer.dtype) for layer in reversed(self) if hasattr(layer, "dtype")), "float64")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the layers, in their order."""
        return tuple(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self._layers.values())

    @overload
    def __getitem__(self, which: int | str) -> Layer: ...
    @overload
    def __getitem__(self, which: slice) -> Sequential: ...
    def __getitem__(self, which: int | str | slice) -> Layer:
        if isinstance(which, str):
            if which not in self._layers:
                msg = f"expected one of {', '.join(self._layers)}, got {which!r}"
                raise KeyError(msg)
            return self._layers[which]
        if isinstance(which, slice):
            return Sequential(**dict(list(self._layers.items())[which]))
        return list(self._layers.values())[operator.index(which)]

    def __repr__(self) -> str:
        return f"Sequential({listed(self._layers)})"


class SequentialPullback:
    """The second half of `Sequential.vjp`: the layers' pullbacks, from the last to the first."""

    def __init__(self, pullbacks: dict[str, Any]) -> None:
        self._pullbacks = pullbacks

    def __call__(self, d_out: Batch) -> tuple[Batch, dict[str, NDArray[Any]]]:
        """Return the gradient of the input, and those of the parameters by name."""
        parts = {}
        for name, pullback in reversed(self._pullbacks.items()):
            d_out, parts[name] = pullback(d_out)
        grads = {f"{name}.{own}": grad for name in self._pullbacks for own, grad in parts[name].items()}
        return d_out, grads

    def __repr__(self) -> str:
        return "<pullback of Sequential>"
