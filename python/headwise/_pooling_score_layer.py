"""What layers that score queries and keys share: calls for all pairs, parameters by name, pullbacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headwise import _core
from headwise._errors import ShapeError
from headwise._parts import Parts
from headwise._pooling_arrays import Array, Shape, read, reduced
from headwise._pooling_scores import Flags, Grads, Pull


class ScoreLayer:
    """What the two layers share: calls for all pairs of (..., L, Dq) and (..., S, Dk)."""

    def __init__(self, query_dim: int, key_dim: int, parts: dict[str, _core.Linear]) -> None:
        self._query_dim, self._key_dim = query_dim, key_dim
        self._layers = parts
        self._parts = Parts(parts)

    def _scores(self, query: Array, key: Array, keep: Flags, gradient: bool) -> tuple[Array, Pull]:
        """Return scores (N, L, S) of the pairs that are kept, in the layer's dtype, and their pullback."""
        raise NotImplementedError

    def __call__(self, query: ArrayLike, key: ArrayLike) -> NDArray[Any]:
        """Return the score of every query and key.

        Parameters
        ----------
        query : array_like
            (..., L, query_dim).
        key : array_like
            (..., S, key_dim); the axes in front broadcast.

        Returns
        -------
        ndarray
            (..., L, S), in the layer's dtype.

        Raises
        ------
        ValueError
            If shapes do not fit (`ShapeError`).
        """
        q, k, lead = self._pairs(query, key)
        keep = np.ones((len(q), q.shape[1], k.shape[1]), bool)
        return self._scores(q, k, keep, False)[0].reshape(lead + keep.shape[1:])

    def vjp(self, query: ArrayLike, key: ArrayLike) -> tuple[NDArray[Any], ScorePullback]:
        """Return the scores, and what turns their gradient into gradients.

        Parameters
        ----------
        query : array_like
            (..., L, query_dim).
        key : array_like
            (..., S, key_dim).

        Returns
        -------
        scores : ndarray
            (..., L, S).
        pullback : callable
            `pullback(d_scores)` gives `((d_query, d_key), grads)`, grads named as in `state_dict`.

        Raises
        ------
        ValueError
            If shapes do not fit (`ShapeError`).
        """
        q, k, lead = self._pairs(query, key)
        keep = np.ones((len(q), q.shape[1], k.shape[1]), bool)
        scores, pull = self._scores(q, k, keep, True)
        shapes = (np.shape(query), np.shape(key))
        return scores.reshape(lead + keep.shape[1:]), ScorePullback(self, pull, lead, shapes, keep.shape)

    def _pairs(self, query: ArrayLike, key: ArrayLike) -> tuple[Array, Array, Shape]:
        """Return query and key as (N, L, Dq) and (N, S, Dk), and the axes that N stands for."""
        q, k = read("query", query), read("key", key)
        for name, x, rows, width in (("query", q, "L", self._query_dim), ("key", k, "S", self._key_dim)):
            if x.ndim < 2 or x.shape[-1] != width:
                msg = f"{name}: expected (..., {rows}, {name}_dim) with {name}_dim = {width}, got {x.shape}"
                raise ShapeError(msg)
        try:
            lead = np.broadcast_shapes(q.shape[:-2], k.shape[:-2])
        except ValueError:
            msg = f"key: expected axes in front that broadcast with those of query {q.shape}, got {k.shape}"
            raise ShapeError(msg) from None
        n = int(np.prod(lead, dtype=np.int64))

        def flat(x: Array) -> Array:
            whole = np.broadcast_to(x, lead + x.shape[-2:]).reshape(n, *x.shape[-2:])
            return np.ascontiguousarray(whole, dtype=self.dtype)

        return flat(q), flat(k), lead

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

    def _with(self, parts: dict[str, _core.Linear]) -> Any:  # noqa: ANN401 - of the same class
        new = object.__new__(type(self))
        ScoreLayer.__init__(new, self._query_dim, self._key_dim, parts)
        return new

    @property
    def query_dim(self) -> int:
        """Width of a query."""
        return self._query_dim

    @property
    def key_dim(self) -> int:
        """Width of a key."""
        return self._key_dim

    @property
    def num_parameters(self) -> int:
        """How many numbers the parameters have."""
        return self._parts.num_parameters

    @property
    def dtype(self) -> str:
        """NumPy's name of the dtype that it computes and answers in."""
        return str(next(iter(self._layers.values())).dtype)


class ScorePullback:
    """The second half of the `vjp` of a score's layer."""

    def __init__(
        self, layer: ScoreLayer, pull: Pull, lead: Shape, given: tuple[Shape, Shape], shape: Shape
    ) -> None:
        self._layer, self._pull = layer, pull
        self._lead, self._given, self._shape = lead, given, shape

    def __call__(self, d_scores: ArrayLike) -> tuple[tuple[Array, Array], Grads]:
        """Return ``((d_query, d_key), grads)``."""
        d = read("d_out", d_scores)
        if d.shape != self._lead + self._shape[1:]:
            msg = f"d_out: expected {self._lead + self._shape[1:]}, the shape of the scores, got {d.shape}"
            raise ShapeError(msg)
        d_query, d_key, grads = self._pull(
            np.ascontiguousarray(d.reshape(self._shape), dtype=self._layer.dtype)
        )
        d_query, d_key = (
            reduced(x.reshape(self._lead + x.shape[1:]), shape)
            for x, shape in zip((d_query, d_key), self._given, strict=True)
        )
        return (d_query, d_key), grads

    def __repr__(self) -> str:
        return f"<pullback of {type(self._layer).__name__}>"
