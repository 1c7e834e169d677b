"""Checkpoints of a training: a training that was interrupted goes on to the same bits.

Parameters, the optimiser's moments, the generator and whatever else belongs to it stand in one safetensors
file. Arrays are tensors of the file, under readable names (``model.encoder.linear1.weight``,
``optimizer.state...``); what is no array is JSON in the file's metadata. Nothing in a file is ever run: a
stranger's file can be opened.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headwise import _tensor_file
from headwise._errors import ModelFormatError
from headwise.optim._parameters import Parameters

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from headwise.optim._optimizer import Optimizer
    from headwise.optim._parameters import Given

_KEY = "headwise.training"
"""The entry of the file's metadata that holds the tree of plain values."""

_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")
"""NumPy's bit generators."""


@dataclass(frozen=True)
class TrainingCheckpoint:
    """What `load_checkpoint` found in a file.

    Parameters
    ----------
    model : dict of str to ndarray or None
        The parameters, named as in the model's `state_dict`.
    optimizer : dict or None
        The optimiser's `state_dict`.
    rng : numpy.random.Generator or None
        A generator that goes on where the one that was saved had stopped.
    step : int or None
        The number that was saved as `step`.
    extra : dict
        What else was saved, under its keywords.
    """

    model: dict[str, NDArray[Any]] | None = None
    optimizer: dict[str, Any] | None = None
    rng: np.random.Generator | None = None
    step: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    path: str | os.PathLike[str],
    *,
    model: Given | None = None,
    optimizer: Optimizer | None = None,
    rng: np.random.Generator | None = None,
    step: int | None = None,
    **extra: Any,  # noqa: ANN401 - whatever a user keeps
) -> None:
    """Write what a training needs to go on, to one safetensors file.

    The file is written beside its place and then moved there: an interruption leaves the checkpoint before.

    Parameters
    ----------
    path : str or path
        The file; its folder must be there.
    model : layer or dict of str to layer or ndarray, optional
        The parameters.
    optimizer : Optimizer, optional
        An optimiser of `headwise.optim`.
    rng : numpy.random.Generator, optional
        The generator that batches and dropout are drawn with.
    step : int, optional
        How far the training is.
    **extra : object
        Whatever else is to come back: numbers, strings, None, arrays, and lists, tuples and dicts of these.

    Raises
    ------
    TypeError
        If something cannot be written.
    OSError
        If the file cannot be written.

    See Also
    --------
    load_checkpoint : Read it, and put everything back.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> import headwise as hw
    >>> parameters, rng = {"w": np.arange(3.0)}, np.random.default_rng(0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "last.safetensors"
    ...     hw.save_checkpoint(path, model=parameters, rng=rng, step=100, losses=[0.5, 0.25])
    ...     checkpoint = hw.load_checkpoint(path)
    >>> checkpoint.model, checkpoint.step, checkpoint.extra
    ({'w': array([0., 1., 2.])}, 100, {'losses': [0.5, 0.25]})
    """
    generator: object = rng
    if generator is not None and not isinstance(generator, np.random.Generator):
        msg = f"rng: expected a numpy.random.Generator, got {type(rng).__name__}"
        raise TypeError(msg)
    parts = {
        "model": None if model is None else Parameters(model, "model").read(),
        "optimizer": None if optimizer is None else optimizer.state_dict(),
        "rng": None if rng is None else rng.bit_generator.state,
        "step": step,
        "extra": extra,
    }
    arrays: dict[str, NDArray[Any]] = {}
    tree = {name: _encode(value, name, arrays) for name, value in parts.items()}
    _tensor_file.write(Path(path), arrays, {"format": "np", _KEY: json.dumps(tree)})


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    model: Given | None = None,
    optimizer: Optimizer | None = None,
    rng: np.random.Generator | None = None,
) -> TrainingCheckpoint:
    """Read a checkpoint of a training, and put its parts back where they are asked for.

    Parameters
    ----------
    path : str or path
        A file that `save_checkpoint` wrote.
    model : layer or dict of str to layer or ndarray, optional
        Takes the parameters; arrays of a dict are overwritten.
    optimizer : Optimizer, optional
        Takes its state.
    rng : numpy.random.Generator, optional
        Goes on where the saved generator had stopped; of the same kind as that.

    Returns
    -------
    TrainingCheckpoint
        All that is in the file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged or no checkpoint of a training (`ModelFormatError`), or does not hold what is
        asked for, or does not fit the model, the optimiser or the generator. Nothing is changed then.

    See Also
    --------
    save_checkpoint : Write it.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> import headwise as hw
    >>> parameters = {"w": np.ones(2)}
    >>> optimizer = hw.optim.AdamW(parameters)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "last.safetensors"
    ...     hw.save_checkpoint(path, model=parameters, optimizer=optimizer, step=7)
    ...     parameters["w"][:] = 0.0
    ...     step = hw.load_checkpoint(path, model=parameters, optimizer=optimizer).step
    >>> parameters["w"], step
    (array([1., 1.]), 7)
    """
    path = Path(path)
    arrays, metadata = _tensor_file.read(path)
    try:
        tree = json.loads(metadata[_KEY])
        parts = {name: _decode(tree[name], arrays) for name in ("model", "optimizer", "rng", "step", "extra")}
        found = _checkpoint(**parts)
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError, AttributeError) as error:
        msg = f"{path}: no checkpoint of a training, or a damaged one ({type(error).__name__}: {error})"
        raise ModelFormatError(msg) from error

    # Everything that may fail comes before the first change.
    for name, wanted in (("model", model), ("optimizer", optimizer), ("rng", rng)):
        if wanted is not None and getattr(found, name) is None:
            msg = f"{name}: {path} holds none"
            raise ValueError(msg)
    parameters = None
    if model is not None and found.model is not None:
        parameters = Parameters(model, "model")
        parameters.check(found.model)
    if rng is not None and found.rng is not None:
        ours, theirs = (type(generator.bit_generator).__name__ for generator in (rng, found.rng))
        if ours != theirs:
            msg = f"rng: expected a generator of kind {theirs}, as {path} holds it, got {ours}"
            raise ValueError(msg)
    if optimizer is not None and found.optimizer is not None:
        optimizer.load_state_dict(found.optimizer)
    if parameters is not None and found.model is not None:
        parameters.load(found.model)
    if rng is not None and found.rng is not None:
        rng.bit_generator.state = found.rng.bit_generator.state
    return found


def _checkpoint(model: Any, optimizer: Any, rng: Any, step: Any, extra: Any) -> TrainingCheckpoint:  # noqa: ANN401
    """Make sure of the kinds of the parts of a file."""
    if not (
        (
            model is None
            or (isinstance(model, dict) and all(isinstance(v, np.ndarray) for v in model.values()))
        )
        and (optimizer is None or isinstance(optimizer, dict))
        and (step is None or type(step) is int)
        and isinstance(extra, dict)
    ):
        msg = "parts of other kinds than a training has"
        raise ValueError(msg)
    return TrainingCheckpoint(model, optimizer, None if rng is None else _generator(rng), step, extra)


def _generator(state: dict[str, Any]) -> np.random.Generator:
    kind = state["bit_generator"]
    if kind not in _GENERATORS:
        msg = f"a generator of kind {kind!r}"
        raise ValueError(msg)
    # The seed is of no matter: the state replaces it.
    bits = getattr(np.random, kind)(0)
    bits.state = state
    return np.random.Generator(bits)


def _encode(value: Any, name: str, arrays: dict[str, NDArray[Any]]) -> Any:  # noqa: ANN401 - any plain value
    """Return `value` as JSON has it; arrays go to `arrays`, under a name that tells where they were.

    Dicts, tuples, arrays and NumPy's numbers become dicts of one entry that says what they are.
    """
    if value is None or (isinstance(value, (bool, int, float, str)) and not isinstance(value, np.generic)):
        return value
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            wrong = next(key for key in value if not isinstance(key, str))
            msg = f"{name}: expected a dict with strings as keys, got the key {wrong!r}"
            raise TypeError(msg)
        return {"dict": {key: _encode(item, f"{name}.{key}", arrays) for key, item in value.items()}}
    if isinstance(value, (list, tuple)):
        items = [_encode(item, f"{name}.{i}", arrays) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, (np.ndarray, np.generic)):
        free = name
        while free in arrays:
            free += "_"
        arrays[free] = np.asarray(value)
        return {"array" if isinstance(value, np.ndarray) else "number": free}
    came = type(value).__name__
    msg = f"{name}: expected numbers, strings, None, arrays, or lists, tuples and dicts of these, got {came}"
    raise TypeError(msg)


def _decode(value: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:  # noqa: ANN401 - any plain value
    """Return what `_encode` was given."""
    if isinstance(value, list):
        return [_decode(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "dict":
        return {key: _decode(item, arrays) for key, item in content.items()}
    if kind == "tuple":
        return tuple(_decode(item, arrays) for item in content)
    if kind == "array":
        return arrays[content]
    if kind == "number":
        return arrays[content][()]
    msg = f"a value of kind {kind!r}"
    raise ValueError(msg)
