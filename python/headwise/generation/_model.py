"""A model as the searches see it: a step that gives sound logits, or an error that says what it gave.

Models are foreign code. What they return is checked at every step, as far as that costs nothing beside
the vocabulary: shapes and dtypes, and of the values the maximum of each row, which is NaN, +inf or -inf
exactly if a row cannot be normalised.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headwise._errors import ArgumentTypeError, ArgumentValueError, DTypeError, ShapeError
from headwise.generation._protocol import GenerationState, GenerativeModel


class Step(NamedTuple):
    """What a model said of each row: logits (N, V), their maximum (N,), and weights (N, layers, H, S)."""

    logits: NDArray[Any]
    row_max: NDArray[Any]
    weights: NDArray[Any] | None


class Stepper:
    """A model with its state, after it has read the source."""

    def __init__(
        self,
        model: GenerativeModel[Any],
        source: Any,  # noqa: ANN401 - whatever the model takes
        keywords: Mapping[str, Any],
        *,
        ids: Mapping[str, int],
        need_weights: bool,
    ) -> None:
        for method in ("begin", "next"):
            if not callable(getattr(model, method, None)):
                msg = (
                    "model: expected an object with the methods begin and next "
                    f"(headwise.generation.GenerativeModel), got {type(model).__name__} without {method}"
                )
                raise ArgumentTypeError(msg)
        self._model, self._need_weights = model, need_weights
        self._state = model.begin(source, **keywords)
        if not isinstance(self._state, GenerationState):
            msg = (
                "model: expected begin to return a state with reorder and __len__ "
                f"(headwise.generation.GenerationState), got {type(self._state).__name__}"
            )
            raise ArgumentTypeError(msg)
        # Token ids by the name of the argument that they came from, until a vocabulary is seen.
        self._ids = ids
        self._vocabulary: int | None = None
        self._weights_shape: tuple[int, ...] | None = None
        self._steps = 0

    def __len__(self) -> int:
        return len(self._state)

    def reorder(self, indices: NDArray[np.intp]) -> None:
        """Keep these rows of the state, in this order."""
        if len(indices) != len(self._state) or not np.array_equal(indices, np.arange(len(indices))):
            self._state.reorder(indices)

    def next(self, tokens: NDArray[np.int64]) -> Step:
        """Give each row its last token, and return what may follow."""
        answer: object = self._model.next(tokens, self._state, need_weights=self._need_weights)
        if not isinstance(answer, tuple) or len(answer) != 2:
            msg = f"model: expected next to return (logits, weights), got {_what(answer)}"
            raise ArgumentTypeError(msg)
        logits, weights = answer
        logits = self._logits(logits, len(tokens))
        row_max = logits.max(axis=1)
        if not np.isfinite(row_max).all():
            self._refuse(row_max)
        kept = self._weights(weights, len(tokens)) if self._need_weights else None
        self._steps += 1
        return Step(logits, row_max, kept)

    def _logits(self, given: object, rows: int) -> NDArray[Any]:
        """Return (N, V) in float32 or float64."""
        logits = np.asarray(given)
        if logits.shape != (rows, self._vocabulary):
            wanted = "V" if self._vocabulary is None else self._vocabulary
            sound = logits.ndim == 2 and logits.shape[0] == rows and logits.shape[1] > 0
            if self._vocabulary is not None or not sound:
                msg = (
                    f"model: expected logits (N, V) = ({rows}, {wanted}) from next, got shape {logits.shape}"
                )
                raise ShapeError(msg)
            self._see(logits.shape[1])
        dtype = logits.dtype
        if dtype.type not in (np.float32, np.float64) or not dtype.isnative:
            logits = logits.astype(_computed(dtype))
        return np.ascontiguousarray(logits)

    def _see(self, vocabulary: int) -> None:
        """Learn the vocabulary's size from the first logits, and hold the arguments to it."""
        for name, token in self._ids.items():
            if token >= vocabulary:
                msg = f"{name}: expected ids from 0 to V - 1 = {vocabulary - 1}, got {token}"
                raise ArgumentValueError(msg)
        self._vocabulary = vocabulary

    def _weights(self, given: object, rows: int) -> NDArray[Any]:
        """Return a copy: the model may use its own array again."""
        if given is None:
            msg = "model: expected weights (N, layers, H, S) from next for return_alignments, got None"
            raise ArgumentTypeError(msg)
        weights = np.array(given)
        shape = self._weights_shape
        if weights.ndim != 4 or len(weights) != rows or (shape is not None and weights.shape[1:] != shape):
            wanted = "layers, H, S" if shape is None else ", ".join(map(str, shape))
            msg = f"model: expected weights ({rows}, {wanted}) from next, got shape {weights.shape}"
            raise ShapeError(msg)
        self._weights_shape = weights.shape[1:]
        return weights

    def _refuse(self, row_max: NDArray[Any]) -> None:
        row = int(np.flatnonzero(~np.isfinite(row_max))[0])
        what = {np.inf: "+inf", -np.inf: "-inf for every token"}.get(float(row_max[row]), "NaN")
        msg = (
            f"model: expected finite logits from next, or some that are -inf, got {what} in row {row} "
            f"of step {self._steps}"
        )
        raise ArgumentValueError(msg)


def _what(value: object) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ + (f" of shape {shape}" if shape is not None else "")


def _computed(dtype: np.dtype[Any]) -> type[np.floating[Any]]:
    """Return what logits of this dtype are widened to, exactly; bfloat16 is no kind of NumPy's own."""
    if dtype.kind in "biu" or (dtype.kind == "f" and dtype.itemsize == 8):
        return np.float64
    if dtype.name in ("float16", "bfloat16", "float32"):
        return np.float32
    msg = f"model: expected logits of a floating dtype from next, got {dtype}"
    raise DTypeError(msg)
