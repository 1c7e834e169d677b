"""Compare a pullback with central differences in float64.

For a random gradient d of the result, the number <d, f(x)> has the gradient ``pullback(d)``. Each number of an input is
moved up and down by a step, and what the results differ by, times d, is its gradient to within the square of the step.
The difference of the results is taken before the product with d: results that a number does not reach cancel exactly.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwise._errors import DTypeError, GradientError

FULL = 1000
"""Numbers of an input up to which each is moved alone."""

DIRECTIONS = 32
"""Random directions that a larger input is moved along."""

SMALL = 1e-3
"""Gradients below this part of the norm of d count as zero: rounding blurs their differences."""

Arrays = list[NDArray[np.float64]]
"""An input or a result: its arrays, several of a ragged batch."""


def gradcheck(
    f: Callable[..., Any],
    inputs: Sequence[Any],
    *,
    step: float = 1e-5,
    tolerance: float = 1e-7,
    seed: int = 0,
    **keywords: Any,
) -> float:
    """Check that a pullback gives the gradients of its function, by differences.

    ``f(*inputs, **keywords)`` returns a result and its pullback: a function of `headwise.vjp`, the ``vjp`` of a layer, or a
    composition of your own. For a random gradient of the result, what the pullback returns is compared with central
    differences.

    Parameters
    ----------
    f : callable
        Returns ``(out, pullback)``. The pullback returns a tuple of gradients, or ``(d_inputs, grads)`` as layers do. If `f`
        is the bound method of an object with ``state_dict`` and ``load_state_dict``, every parameter is checked as well, on a
        copy of the object.
    inputs : sequence of array_like
        Arrays of float64, or ragged lists of them. Arrays of integers or bool, and None, are held constant.
    step : float, default 1e-5
        How far a number is moved, times its magnitude where that is above 1.
    tolerance : float, default 1e-7
        The greatest error allowed: norm of the difference, relative to the larger norm of the two gradients. Where both are
        below a thousandth of the norm of the result's gradient, relative to that: differences cannot resolve them.
    seed : int, default 0
        Seed of the result's gradient and of the directions.
    **keywords
        Passed on to `f`. A `numpy.random.Generator` among them is copied for every call, so that each draws the same.

    Returns
    -------
    float
        The greatest error found.

    Raises
    ------
    GradientError
        If an error is above `tolerance`, or a gradient has another shape than its input; the text names the input.
    TypeError
        If an input or a parameter is of another float type (`DTypeError`), or `inputs` is a single array.

    Notes
    -----
    Up to 1000 numbers of an input are moved one by one; a larger input is moved along 32 random directions. Where a function
    has a kink (relu at 0, ties of a maximum) differences across it are wrong: keep inputs away from there.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> x = np.linspace(-1.0, 1.0, 12).reshape(3, 4)
    >>> hw.gradcheck(hw.vjp.layer_norm, [x, np.ones(4), np.zeros(4)]) < 1e-7
    True

    A composition of your own:

    >>> def norm_of_gelu(x):
    ...     y, back_gelu = hw.vjp.gelu(x)
    ...     z, back_norm = hw.vjp.rms_norm(y)
    ...     return z, lambda dz: back_gelu(back_norm(dz)[0])
    >>> hw.gradcheck(norm_of_gelu, [x]) < 1e-7
    True
    """
    if isinstance(inputs, np.ndarray):
        msg = "inputs: expected a sequence of arrays, got an array; write [x] for a function of one input"
        raise TypeError(msg)
    given = [_read(f"inputs[{i}]", value) for i, value in enumerate(inputs)]
    rng = np.random.default_rng(seed)

    def call(values: Sequence[Any], f: Callable[..., Any] = f, **other: Any) -> tuple[Any, Any]:
        fresh = {
            name: copy.deepcopy(value) if isinstance(value, np.random.Generator) else value
            for name, value in {**keywords, **other}.items()
        }
        out, pullback = f(*values, **fresh)
        return out, pullback

    out, pullback = call(given)
    d_out = [rng.standard_normal(part.shape) for part in _leaves(out)]
    answer = pullback(d_out if isinstance(out, list) else d_out[0])
    d_inputs, grads = _split(answer)
    check = _Check(d_out, step, tolerance, rng)

    for i, gradient in _pair(given, d_inputs):

        def moved(value: Any, i: int = i) -> Any:
            return call([*given[:i], value, *given[i + 1 :]])[0]

        check(f"inputs[{i}]", given[i], gradient, moved)

    owner = getattr(f, "__self__", None)
    if grads is not None and hasattr(owner, "state_dict") and hasattr(owner, "load_state_dict"):
        for name, value, gradient, parameter in _parameters(f, owner, grads, keywords, call, given):
            check(name, value, gradient, parameter)
    return check.worst


class _Check:
    """Compare gradients one input after another, and keep the greatest error."""

    def __init__(self, d_out: Arrays, step: float, tolerance: float, rng: np.random.Generator) -> None:
        self.d_out, self.step, self.tolerance, self.rng = d_out, step, tolerance, rng
        self.least = SMALL * _norm(d_out)
        self.worst = 0.0

    def __call__(self, name: str, value: Any, gradient: Any, function: Callable[[Any], Any]) -> None:
        """Check the gradient of `function` at `value`, both arrays or ragged lists."""
        at, got = _leaves(value), _leaves(gradient)
        if [part.shape for part in at] != [part.shape for part in got]:
            shapes = [part.shape for part in got], [part.shape for part in at]
            came, expected = (s if isinstance(value, list) else s[0] for s in shapes)
            msg = f"{name}: expected a gradient of shape {expected}, that of the input, got {came}"
            raise GradientError(msg)

        def slope(move: Arrays) -> float:
            """Return <d_out, f(value + move) - f(value - move)> / 2."""
            ends = []
            for sign in (1.0, -1.0):
                parts = [part + sign * by for part, by in zip(at, move, strict=True)]
                ends.append(_leaves(function(parts if isinstance(value, list) else parts[0])))
            up, down = ends
            return sum(
                float(np.sum(d * (a - b))) / 2 for d, a, b in zip(self.d_out, up, down, strict=True)
            )

        if sum(part.size for part in at) <= FULL:
            numeric = [np.zeros(part.shape) for part in at]
            for which, part in enumerate(at):
                for place in np.ndindex(part.shape):
                    by = self.step * max(1.0, abs(part[place]))
                    move = [np.zeros(other.shape) for other in at]
                    move[which][place] = by
                    numeric[which][place] = slope(move) / by
            off = _norm([a - b for a, b in zip(got, numeric, strict=True)])
            size = max(_norm(got), _norm(numeric))
        else:
            # The mean square of <error, v> over normal directions v is the squared norm of the error.
            off, size = 0.0, _norm(got)
            for _ in range(DIRECTIONS):
                v = [self.rng.standard_normal(part.shape) for part in at]
                along = sum(float(np.sum(a * b)) for a, b in zip(got, v, strict=True))
                off += (slope([self.step * part for part in v]) / self.step - along) ** 2 / DIRECTIONS
            off = float(np.sqrt(off))
        error = 0.0 if off == 0.0 else float(off / max(size, self.least))
        if not error <= self.tolerance:
            msg = f"{name}: the gradient is off by {error:.3g}, norm-relative; allowed are {self.tolerance:.3g}"
            raise GradientError(msg)
        self.worst = max(self.worst, error)


def _read(name: str, value: Any) -> Any:
    """Return an input as it is handed to the function: float64 is copied, the rest stays."""
    if value is None:
        return None
    if type(value) is list and value and all(getattr(part, "ndim", None) == 2 for part in value):
        return [_read(f"{name}[{i}]", part) for i, part in enumerate(value)]
    array = np.asarray(value)
    if array.dtype == np.float64:
        return np.array(array, dtype=np.float64)
    if array.dtype.kind in "iub":
        return value
    msg = f"{name}: expected float64, in which differences are taken, or integers, held constant; got {array.dtype}"
    raise DTypeError(msg)


def _leaves(value: Any) -> Arrays:
    """Return the arrays of an input or result."""
    if isinstance(value, list):
        return [np.asarray(part) for part in value]
    return [np.asarray(value)]


def _norm(parts: Arrays) -> float:
    return float(np.sqrt(sum(np.sum(part * part) for part in parts)))


def _is_checked(value: Any) -> bool:
    """Tell whether an input is moved."""
    if isinstance(value, list):
        return any(_is_checked(part) for part in value)
    return isinstance(value, np.ndarray) and value.dtype == np.float64


def _split(answer: Any) -> tuple[tuple[Any, ...], Mapping[str, Any] | None]:
    """Return the gradients of the inputs, and those of parameters where there are any."""
    if isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], Mapping):
        d_inputs, grads = answer
        return (d_inputs if isinstance(d_inputs, tuple) else (d_inputs,)), grads
    return (answer if isinstance(answer, tuple) else (answer,)), None


def _pair(given: list[Any], gradients: tuple[Any, ...]) -> Iterator[tuple[int, Any]]:
    """Yield the place of each input that is moved, with its gradient."""
    present = [i for i, value in enumerate(given) if value is not None]
    floats = [i for i in present if _is_checked(given[i])]
    # Functions that count integers as float64 return gradients for them, too.
    for places in (present, floats):
        if len(places) == len(gradients):
            yield from ((i, g) for i, g in zip(places, gradients, strict=True) if i in floats)
            return
    msg = (
        f"expected a gradient for each of {len(present)} inputs or {len(floats)} of float64, got {len(gradients)}; "
        "what has no gradient goes into keywords"
    )
    raise GradientError(msg)


def _parameters(
    f: Callable[..., Any],
    owner: Any,
    grads: Mapping[str, Any],
    keywords: Mapping[str, Any],
    call: Callable[..., tuple[Any, Any]],
    given: list[Any],
) -> Iterator[tuple[str, Any, Any, Callable[[Any], Any]]]:
    """Yield name, value, gradient and function of each parameter, and of keywords that have a gradient."""
    moved = copy.deepcopy(owner)
    state = {name: np.array(value) for name, value in owner.state_dict().items()}
    for name in sorted({*state, *grads}):
        if name in state and name not in grads:
            msg = f"{name}: expected a gradient of this parameter, got {sorted(grads)}"
            raise GradientError(msg)
        if name in state:

            def parameter(value: Any, name: str = name) -> Any:
                moved.load_state_dict({**state, name: value})
                return call(given, getattr(moved, f.__name__))[0]

            yield name, _read(name, state[name]), grads[name], parameter
        elif name in keywords:

            def keyword(value: Any, name: str = name) -> Any:
                return call(given, **{name: value})[0]

            yield name, _read(name, keywords[name]), grads[name], keyword
        else:
            msg = f"{name}: a gradient of something that is neither a parameter nor a keyword"
            raise GradientError(msg)
