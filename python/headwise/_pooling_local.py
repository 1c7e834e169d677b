"""Local attention (Luong, Pham, Manning 2015): a window around one place among the keys, for each query.

``("m", D)``, monotonic: the place is the query's own, i + causal_offset; the window is a mask like `window`.

`PredictiveWindow`, "local-p": the place is predicted from the query h, and weights fall off with the
distance,

    p = S sigmoid(v . tanh(W h)),   weight_s = align_s exp(-(s - p)^2 / (2 sigma^2)),   sigma = D / 2

align the normalised scores of the keys s with |s - p| <= D. Places are counted from 0 among the keys that
`key_mask` and `key_lengths` leave, and S is their number: padding on either side changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, SupportsIndex, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headwise import _core
from headwise._errors import ArgumentTypeError, ArgumentValueError, ShapeError
from headwise._parts import Parts
from headwise._pooling_arrays import Array, count_of, positive, read, some
from headwise._pooling_scores import Flags, Grads, additive, projected
from headwise._steps import Rng, key_of, key_of_place

_DType: TypeAlias = Any
Pull: TypeAlias = Callable[[Array], tuple[Array, Grads]]


class PredictiveWindow:
    """A window of keys whose place is predicted from the query: "local-p".

    The place is p = S sigmoid(v . tanh(W h)), h the query and S the number of keys. Keys farther than `width`
    from p are blocked, the weights of the others are multiplied by exp(-2 (s - p)**2 / width**2), a Gaussian
    whose standard deviation is half the width. The products are not divided by their sum.

    Parameters
    ----------
    query_dim : int
        Width of a query.
    hidden_size : int
        Width of v.
    width : float
        How far from p a key may be, D, above 0.
    dtype : {"float32", "float64"}, default "float32"
        What the layer computes and answers in.
    rng : int or numpy.random.Generator, optional
        From which the first parameters are drawn, as those of `Linear`.

    Raises
    ------
    ValueError
        If a width is 0.

    See Also
    --------
    attention : Takes this layer as `local`.

    Notes
    -----
    In `attention`, places are counted from 0 among the keys that `key_mask` and `key_lengths` leave, and S is
    their number: padding on either side moves nothing. The place has a gradient through the Gaussian; the
    edges of the window, where a key comes or goes, have none.

    The parameters are ``proj.weight`` (hidden_size, query_dim), which is W, and ``v.weight`` (1,
    hidden_size).

    References
    ----------
    .. [1] M.-T. Luong, H. Pham, C. D. Manning, "Effective Approaches to Attention-based Neural Machine
       Translation", 2015. https://arxiv.org/abs/1508.04025

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> window = hw.PredictiveWindow(3, 8, width=2, rng=0)
    >>> window(np.zeros((4, 3)), 10)
    array([5., 5., 5., 5.], dtype=float32)
    """

    def __init__(
        self,
        query_dim: SupportsIndex,
        hidden_size: SupportsIndex,
        width: float,
        *,
        dtype: _DType = "float32",
        rng: Rng = None,
    ) -> None:
        key = key_of(rng)
        proj = _core.Linear(query_dim, hidden_size, bias=False, dtype=dtype, rng=key_of_place(key, 0))
        v = _core.Linear(hidden_size, 1, bias=False, dtype=dtype, rng=key_of_place(key, 1))
        self._set(proj, v, positive("width", width))

    def _set(self, proj: _core.Linear, v: _core.Linear, width: float) -> PredictiveWindow:
        self._proj, self._v, self._width = proj, v, width
        self._parts = Parts({"proj": proj, "v": v})
        return self

    def _places(self, query: Array, counts: Array, used: Flags, gradient: bool) -> tuple[Array, Pull]:
        """Return p (N, L) of queries (N, L, E) and numbers of keys (N,), in the layer's dtype."""
        h, through = projected(self._proj, query, used, gradient)
        # tanh(W h) is tanh(W h + k) for one key that is 0.
        none = np.zeros((len(h), 1, h.shape[2]), h.dtype)
        z, pull_z = additive(h, none, self._v.state_dict()["weight"][0], used[..., None])
        share = _core._pooling_map("sigmoid", z)[..., 0]
        lengths = counts.astype(h.dtype)[:, None]

        def pull(d: Array) -> tuple[Array, Grads]:
            d_z = d.astype(h.dtype, copy=False) * lengths * (share * (1 - share))
            d_h, _, of_v = pull_z(np.ascontiguousarray(d_z[..., None]))
            d_query, grads = through(d_h)
            return d_query, self._parts.gradients({"proj": grads, "v": {"weight": of_v["v"][None]}})

        return lengths * share, pull

    def __call__(self, query: ArrayLike, length: ArrayLike) -> NDArray[Any]:
        """Return the place that each query predicts.

        Parameters
        ----------
        query : array_like
            (..., L, query_dim).
        length : int or array_like of int
            The number of keys, one or one for each element of the axes in front.

        Returns
        -------
        ndarray
            (..., L), numbers from 0 to `length`.

        Raises
        ------
        ValueError
            If shapes do not fit (`ShapeError`).
        """
        q, counts = self._flat(query, length)
        used = np.ones(q.shape[:2], bool)
        return self._places(q, counts, used, False)[0].reshape(np.shape(query)[:-1])

    def vjp(
        self, query: ArrayLike, length: ArrayLike
    ) -> tuple[NDArray[Any], Callable[[ArrayLike], tuple[Array, Grads]]]:
        """Return the places, and what turns their gradient into gradients.

        Parameters
        ----------
        query : array_like
            (..., L, query_dim).
        length : int or array_like of int
            The number of keys.

        Returns
        -------
        places : ndarray
            (..., L).
        pullback : callable
            `pullback(d_places)` gives `(d_query, grads)`, grads named as in `state_dict`.

        Raises
        ------
        ValueError
            If shapes do not fit (`ShapeError`).
        """
        shape = np.shape(query)
        q, counts = self._flat(query, length)
        places, pull = self._places(q, counts, np.ones(q.shape[:2], bool), True)

        def pullback(d_places: ArrayLike) -> tuple[Array, Grads]:
            d = read("d_out", d_places)
            if d.shape != shape[:-1]:
                msg = f"d_out: expected {shape[:-1]}, the shape of the places, got {d.shape}"
                raise ShapeError(msg)
            d_query, grads = pull(d.reshape(places.shape))
            return d_query.reshape(shape), grads

        return places.reshape(shape[:-1]), pullback

    def _flat(self, query: ArrayLike, length: ArrayLike) -> tuple[Array, Array]:
        q = read("query", query)
        if q.ndim < 2 or q.shape[-1] != self.query_dim:
            msg = f"query: expected (..., L, query_dim) with query_dim = {self.query_dim}, got {q.shape}"
            raise ShapeError(msg)
        lead = q.shape[:-2]
        try:
            counts = np.broadcast_to(np.asarray(length), lead)
        except ValueError:
            msg = f"length: expected one number or a shape that broadcasts to {lead}, got {np.shape(length)}"
            raise ShapeError(msg) from None
        flat = q.reshape(int(np.prod(lead, dtype=np.int64)), *q.shape[-2:])
        return np.ascontiguousarray(flat, self.dtype), counts.reshape(-1)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return copies of the parameters.

        Returns
        -------
        dict of str to ndarray
            Fresh arrays.
        """
        return self._parts.state_dict()

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Load parameters by name.

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

    def to(self, dtype: _DType) -> PredictiveWindow:
        """Return the same layer in another dtype.

        Parameters
        ----------
        dtype : {"float32", "float64"}
            What the new one computes in.

        Returns
        -------
        PredictiveWindow
            With its own parameters.
        """
        new = PredictiveWindow.__new__(PredictiveWindow)
        return new._set(self._proj.to(dtype), self._v.to(dtype), self._width)

    @property
    def query_dim(self) -> int:
        """Width of a query."""
        return self._proj.in_features

    @property
    def hidden_size(self) -> int:
        """Width of v."""
        return self._proj.out_features

    @property
    def width(self) -> float:
        """How far from the place a key may be."""
        return self._width

    @property
    def num_parameters(self) -> int:
        """How many numbers the parameters have."""
        return self._parts.num_parameters

    @property
    def dtype(self) -> str:
        """NumPy's name of the dtype that it computes and answers in."""
        return str(self._proj.dtype)

    def __repr__(self) -> str:
        widths = f"{self.query_dim}, {self.hidden_size}, width={self._width:g}"
        return f'PredictiveWindow({widths}, dtype="{self.dtype}")'


class Gaussian:
    """What a `PredictiveWindow` means for a call: the pairs that it leaves, and a factor for each."""

    def __init__(
        self, window: PredictiveWindow, query: Array, keys: Flags, keep: Flags, gradient: bool
    ) -> None:
        dtype = query.dtype
        places, self._pull = window._places(query, keys.sum(axis=1), some(keep, 2), gradient)
        at = (np.cumsum(keys, axis=1) - 1).astype(dtype)[:, None, :]
        self._apart = at - places.astype(dtype)[..., None]  # (N, L, S)
        self.keep: Flags = keep & (np.abs(self._apart) <= window.width)
        self._sigma2 = (window.width / 2) ** 2
        self.factor: Array = _core._pooling_map("exp", self._apart * self._apart / (-2 * self._sigma2))

    def backward(self, d_factor: Array) -> tuple[Array, Grads]:
        """Return the gradients of the queries and of the parameters."""
        d_places = np.where(self.keep, d_factor * self.factor * self._apart / self._sigma2, 0)
        ones = np.ones((len(self.keep), self.keep.shape[2], 1), d_places.dtype)
        sums = _core._pooling_sums("other", "keys", d_places, self.keep, ones)
        return self._pull(sums[..., 0])


def local_of(local: object) -> int | PredictiveWindow | None:
    """Return the argument `local` checked: a width of the monotonic window, a layer, or nothing."""
    if local is None or isinstance(local, PredictiveWindow):
        return local
    expected = (
        'local: expected None, ("m", D) with a width D, or a PredictiveWindow(query_dim, hidden_size, D)'
    )
    if local == "m":
        msg = f'{expected}; "m" wants its width: local=("m", D)'
        raise ArgumentValueError(msg)
    if local == "p" or (isinstance(local, (tuple, list)) and len(local) > 0 and local[0] == "p"):
        msg = f'{expected}; "p" has parameters and is given as a PredictiveWindow'
        raise ArgumentValueError(msg)
    if isinstance(local, (tuple, list)) and len(local) == 2 and local[0] == "m":
        return count_of("local: the width D", local[1], 0)
    msg = f"{expected}, got {local!r}"
    raise ArgumentTypeError(msg)
