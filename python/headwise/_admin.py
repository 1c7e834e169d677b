"""Admin: first values for deep post-norm encoders, from the variances of what their sublayers add.

The sublayers f_1, f_2, ... of a post-norm encoder (attention, feed-forward, attention, ...) are computed as

    x_i = norm(omega_i x_(i-1) + f_i(x_(i-1)))

with omega_1 = 1 and omega_i^2 = Var[x_0] + sum over j < i of Var[f_j(x_(j-1))]: what came before weighs as
much as it would in a stack without norms, so a layer deep down changes little at first. The variances are
those of a sample, with every omega at 1.

The encoder's kernels know no omega, and need none: a norm does not see the scale of its input, so

    norm(omega x + f(x)) = norm(x + f(x) / omega)

and f / omega is the same sublayer with the weight and the bias of its last map divided by omega. Adam's steps
do not shrink with the parameter: for the paper's way from there on, these maps learn at a
rate divided by omega.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headwise import _core
from headwise._errors import ArgumentTypeError, ArgumentValueError, ShapeError

if TYPE_CHECKING:
    from typing import SupportsIndex

Array = NDArray[Any]

LAST_MAPS = ("self_attn.out_proj.", "linear2.")
"""The last maps of a layer's two sublayers."""


def admin(
    encoder: _core.Encoder,
    sample: ArrayLike | list[Any],
    *,
    lengths: ArrayLike | None = None,
    is_causal: bool = False,
    window: tuple[SupportsIndex | None, SupportsIndex | None] | None = None,
) -> tuple[NDArray[np.float64], dict[str, float]]:
    """Start a post-norm encoder with Admin: sublayers count less, the more was added before them.

    Parameters
    ----------
    encoder : Encoder
        With ``norm_first=False``, as it was made: parameters of a usual start. They are changed.
    sample : array_like or list of array_like
        What the encoder will be given, some sequences of it: (B, L, D), (L, D), or a list of (L_i, D).
    lengths : array_like of int, optional
        (B,): tokens of each sequence of an array; what follows is padding.
    is_causal : bool, default False
        Whether a token will see only itself and those before it.
    window : tuple of (int or None, int or None), optional
        Tokens that will be seen to the left and to the right.

    Returns
    -------
    omega : ndarray
        (num_layers, 2), float64: of each layer's attention and of its feed-forward part.
    lr_factors : dict of str to float
        1 / omega of each parameter that was divided by it, for the `lr_factors` of `optim.Adam`: with
        them it goes the paper's way. Where the encoder is a part of a model, put its name before theirs.

    Raises
    ------
    ValueError
        If the encoder is pre-norm, or `sample` has no token, does not fit, does not vary, or is not finite
        (or what a sublayer makes of it is not); then nothing changes.
    TypeError
        If `encoder` is no `Encoder`.

    Notes
    -----
    The sublayers x_i = norm(omega_i x_(i-1) + f_i(x_(i-1))) get omega_1 = 1 and omega_i^2 = Var[x_0] + sum
    over j < i of Var[f_j(x_(j-1))], over all numbers of the sample, with every omega at 1. The encoder has no
    such factor: the weight and the bias of `out_proj` and `linear2` are divided by omega, which is the same
    function, since a norm does not see the scale of its input (but for `layer_norm_eps`, which counts for
    omega^2 times as much).

    A step of Adam moves a parameter by about the learning rate, whatever its scale: `out_proj` and `linear2`,
    omega times smaller than in the paper, would learn omega times faster. At a rate divided by omega they
    move as there, with omega held fixed (up to Adam's `eps`, and the norm by which gradients are clipped).
    The paper's implementation learns omega besides, one number for each of the D features; an encoder's other
    parameters can learn the same functions.

    The bits of the result depend on encoder and sample only, as everywhere.

    References
    ----------
    .. [1] L. Liu, X. Liu, J. Gao, W. Chen, J. Han, "Understanding the Difficulty of Training Transformers",
       2020. https://arxiv.org/abs/2004.08249

    Examples
    --------
    >>> import headwise as hw
    >>> encoder = hw.Encoder(6, 16, 4, 32, rng=0)
    >>> sample = hw.init.normal((8, 10, 16), rng=1)
    >>> omega, factors = hw.init.admin(encoder, sample)
    >>> omega.shape, bool((omega.ravel()[1:] > omega.ravel()[:-1]).all())
    ((6, 2), True)
    >>> optimizer = hw.optim.Adam(encoder, lr=1e-3, lr_factors=factors)
    """
    given: Any = encoder
    if not isinstance(given, _core.Encoder):
        msg = f"encoder: expected an Encoder, got {type(given).__name__}"
        raise ArgumentTypeError(msg)
    made, state = encoder.__reduce__()[1][1], encoder.state_dict()
    if made["norm_first"]:
        msg = "encoder: expected norm_first=False (Admin scales what a norm follows), got a pre-norm encoder"
        raise ArgumentValueError(msg)
    layers = [_Layer(state, number, made) for number in range(made["num_layers"])]
    moments = [_Moments() for _ in range(2 * len(layers) + 1)]  # of x_0, f_1, f_2, ...
    for x in _sequences(sample, lengths, made["d_model"]):
        # A row depends on its own sequence only: one at a time gives what all would, in the memory of one.
        seen: Any = encoder(
            x, is_causal=is_causal, window=window, output_hidden_states=True, need_weights=True
        )
        moments[0].add(seen.hidden_states[0])
        for number, layer in enumerate(layers):
            parts = layer.sublayers(seen.hidden_states[number], seen.weights[number])
            for place, part in enumerate(parts):
                moments[2 * number + place + 1].add(part)
    variances = [found.variance() for found in moments]
    if not all(map(math.isfinite, variances)) or not variances[0] > 0:
        what = (
            "do not vary"
            if all(map(math.isfinite, variances))
            else "are not, or do not stay so in every sublayer"
        )
        msg = f"sample: expected numbers that are finite and vary, got some that {what}"
        raise ArgumentValueError(msg)
    before = [1.0] + [math.fsum(variances[:place]) for place in range(2, len(variances))]
    omega: NDArray[np.float64] = np.sqrt(np.array(before)).reshape(-1, 2)
    lr_factors: dict[str, float] = {}
    for number, factors in enumerate(omega):
        for last, factor in zip(LAST_MAPS, factors, strict=True):
            for name in ("weight", "bias"):
                key = f"layers.{number}.{last}{name}"
                if key in state:
                    state[key] = (state[key].astype(np.float64) / factor).astype(state[key].dtype)
                    lr_factors[key] = 1.0 / float(factor)
    encoder.load_state_dict(state)
    return omega, lr_factors


def _sequences(sample: ArrayLike | list[Any], lengths: ArrayLike | None, d_model: int) -> Iterable[Array]:
    """Return the sequences (L, D) that have a token."""
    if isinstance(sample, list) and all(getattr(x, "ndim", None) == 2 for x in sample):
        if lengths is not None:
            msg = "lengths: expected None where sample is a list, got lengths as well"
            raise ArgumentValueError(msg)
        sequences = [np.asarray(x) for x in sample]
    else:
        wide = np.asarray(sample)
        if wide.ndim not in (2, 3):
            msg = f"sample: expected (B, L, D), (L, D) or a list of (L, D), got shape {wide.shape}"
            raise ArgumentValueError(msg)
        wide = wide if wide.ndim == 3 else wide[None]
        ends = np.full(len(wide), wide.shape[1]) if lengths is None else np.atleast_1d(np.asarray(lengths))
        if (
            ends.shape != (len(wide),)
            or ends.dtype.kind not in "iu"
            or not np.all((ends >= 0) & (ends <= wide.shape[1]))
        ):
            msg = f"lengths: expected ({len(wide)},) integers from 0 to {wide.shape[1]}, got {lengths!r}"
            raise ArgumentValueError(msg)
        sequences = [x[:end] for x, end in zip(wide, ends, strict=True)]
    for x in sequences:
        if x.shape[1] != d_model:
            msg = f"sample: expected rows of D = {d_model} numbers, got {x.shape[1]}"
            raise ShapeError(msg)
    sequences = [x for x in sequences if len(x)]
    if not sequences:
        msg = "sample: expected at least one token, got none"
        raise ArgumentValueError(msg)
    return sequences


class _Layer:
    """One encoder layer, taken apart: what its sublayers add."""

    def __init__(self, state: dict[str, Array], number: int, made: dict[str, Any]) -> None:
        start = f"layers.{number}."
        self._state = {name[len(start) :]: array for name, array in state.items() if name.startswith(start)}
        self._made = made
        feed = {name: made[name] for name in ("d_model", "activation", "ffn", "bias", "dtype")}
        width = len(self._state["linear1.weight"])
        self._feed_forward = _core.FeedForward(d_ff=width, rng=0, **feed)
        self._feed_forward.load_state_dict(
            {name: array for name, array in self._state.items() if name.startswith("linear")}
        )

    def sublayers(self, x: Array, weights: Array) -> Iterator[Array]:
        """Yield what attention and the feed-forward part add (L, D) to an input with weights (H, L, L)."""
        attended = self._attend(x, weights)
        yield attended
        yield self._feed_forward(self._norm(x + attended))

    def _attend(self, x: Array, weights: Array) -> Array:
        # The weights say everything of masks and positions; only the values are left to be mixed.
        state, width = self._state, self._made["head_dim"]
        if "self_attn.in_proj_weight" in state:
            weight, bias = (
                np.split(state["self_attn.in_proj_weight"], 3)[2],
                state.get("self_attn.in_proj_bias"),
            )
            bias = None if bias is None else np.split(bias, 3)[2]
        else:
            weight, bias = state["self_attn.v_proj.weight"], state.get("self_attn.v_proj.bias")
        values = _core.linear(x, weight, bias).reshape(len(x), -1, width)  # (L, Hk, E)
        group = len(weights) // values.shape[1]
        mixed = [_core.linear(w, values[:, h // group].T) for h, w in enumerate(weights)]  # H of (L, E)
        last = state["self_attn.out_proj.weight"], state.get("self_attn.out_proj.bias")
        return _core.linear(np.concatenate(mixed, axis=-1), *last)

    def _norm(self, x: Array) -> Array:
        weight, eps = self._state["norm1.weight"], self._made["layer_norm_eps"]
        if self._made["norm"] == "rms":
            return _core.rms_norm(x, weight, eps=eps)
        return _core.layer_norm(x, weight, self._state.get("norm1.bias"), eps=eps)


class _Moments:
    """The variance of numbers that come in parts: sums that are rounded once, so that no machine differs."""

    def __init__(self) -> None:
        self._count, self._sums, self._squares = 0, list[float](), list[float]()

    def add(self, part: Array) -> None:
        """Count the numbers of an array."""
        numbers = part.astype(np.float64).ravel()
        self._count += numbers.size
        self._sums.append(_sum(numbers))
        self._squares.append(_sum(numbers * numbers))

    def variance(self) -> float:
        """Return the variance of all numbers so far."""
        mean = _sum(self._sums) / self._count
        return _sum(self._squares) / self._count - mean * mean


def _sum(numbers: Iterable[float]) -> float:
    """Return the correctly rounded sum; NaN where it is not finite."""
    try:
        return math.fsum(numbers)
    except (OverflowError, ValueError):
        return math.nan
