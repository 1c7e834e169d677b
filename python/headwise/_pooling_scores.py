"""Scores of queries (N, L, Eq) and keys (N, S, Ek), and what turns the gradient of the scores into theirs.

All sums run in the compiled kernels over the pairs that are kept; a blocked pair is not read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from headwise import _core
from headwise._errors import ArgumentTypeError, ShapeError
from headwise._pooling_arrays import Array, Shape, some

Flags: TypeAlias = NDArray[np.bool_]
Grads: TypeAlias = dict[str, Array]
Pull: TypeAlias = Callable[[Array], tuple[Array, Array, Grads]]
Score: TypeAlias = Callable[[Array, Array, Flags], tuple[Array, Pull]]


def dot(query: Array, key: Array, keep: Flags) -> tuple[Array, Pull]:
    """Return q . k."""

    def pull(d: Array) -> tuple[Array, Array, Grads]:
        return *products_back(d, query, key, keep), {}

    return _core._pooling_scores("dot", query, key), pull


def products_back(d: Array, query: Array, key: Array, keep: Flags) -> tuple[Array, Array]:
    """Return the gradients of query and key of products with the gradient `d`."""
    d_query = _core._pooling_sums("other", "keys", d, keep, key)
    return d_query, _core._pooling_sums("other", "queries", d, keep, query)


def cosine(query: Array, key: Array, keep: Flags) -> tuple[Array, Pull]:
    """Return q . k / (|q| |k|), a length below 1e-12 counted as that."""
    of_query, of_key = _core._pooling_unit(query), _core._pooling_unit(key)

    def pull(d: Array) -> tuple[Array, Array, Grads]:
        d_query, d_key = products_back(d, of_query[0], of_key[0], keep)
        d_query = _core._pooling_unit_backward(*of_query, d_query)
        return d_query, _core._pooling_unit_backward(*of_key, d_key), {}

    return _core._pooling_scores("dot", of_query[0], of_key[0]), pull


def l2(query: Array, key: Array, keep: Flags) -> tuple[Array, Pull]:
    """Return -|q - k|^2; the gradient of q is 2 (k - q), that of k 2 (q - k)."""

    def pull(d: Array) -> tuple[Array, Array, Grads]:
        d_query = _core._pooling_sums("difference", "keys", d, keep, key, query)
        d_key = _core._pooling_sums("difference", "queries", d, keep, query, key)
        return d_query + d_query, d_key + d_key, {}

    return _core._pooling_scores("l2", query, key), pull


def additive(query: Array, key: Array, v: Array, keep: Flags) -> tuple[Array, Pull]:
    """Return v . tanh(q + k); the gradient of v, (W,), stands in the dict as "v"."""

    def pull(d: Array) -> tuple[Array, Array, Grads]:
        d_query = _core._pooling_sums("slope", "keys", d, keep, key, query, v)
        d_key = _core._pooling_sums("slope", "queries", d, keep, query, key, v)
        of_rows = _core._pooling_sums("tanh", "keys", d, keep, key, query)
        return d_query, d_key, {"v": row_sum(of_rows[some(keep, 2)])}

    return _core._pooling_scores("additive", query, key, v), pull


def row_sum(rows: Array) -> Array:
    """Return the sum (W,) of rows (R, W), in ascending order in blocks of 256."""
    ones = np.ones((1, len(rows), 1), rows.dtype)
    sums = _core._pooling_sums("other", "queries", ones, ones.astype(bool), rows[None])
    return np.asarray(sums[0, 0])


def projected(
    layer: _core.Linear, x: Array, used: Flags, gradient: bool = True
) -> tuple[Array, Callable[[Array], tuple[Array, Grads]]]:
    """Return a layer's rows (N, L, W) of x (N, L, E) and its pullback; rows that are not used are left out.

    Were they there, the blocks in which the gradient of the weight is summed would depend on padding.
    """
    rows = x[used].astype(layer.dtype, copy=False)
    if gradient:
        out_rows, back = layer.vjp(rows)
    else:
        out_rows = layer(rows)
    out = np.zeros((*x.shape[:-1], layer.out_features), out_rows.dtype)
    out[used] = out_rows

    def pull(d: Array) -> tuple[Array, Grads]:
        d_rows, grads = back(d[used])
        d_x = np.zeros(x.shape, d_rows.dtype)
        d_x[used] = d_rows
        return d_x, grads

    return out, pull


def of_callable(score: Callable[..., Any], lead: Shape, gradient: bool) -> Score:
    """Return a user's score(query, key) -> (..., L, S) in the form of those here."""

    def scores(query: Array, key: Array, keep: Flags) -> tuple[Array, Pull]:
        arrays = [x.reshape(lead + x.shape[1:]) for x in (query, key)]
        back = None
        if gradient:
            if not callable(getattr(score, "vjp", None)):
                msg = (
                    "score: gradients of a callable need its own score.vjp(query, key) -> (scores, pullback) "
                    f"with pullback(d_scores) -> (d_query, d_key); {score!r} has none"
                )
                raise ArgumentTypeError(msg)
            out, back = getattr(score, "vjp")(*arrays)  # noqa: B009 - no part of a callable's type
        else:
            out = score(*arrays)
        out = np.asarray(out)
        if out.shape != lead + keep.shape[1:]:
            msg = f"score: expected scores (B, H, L, S) = {lead + keep.shape[1:]}, got {out.shape}"
            raise ShapeError(msg)

        def pull(d: Array) -> tuple[Array, Array, Grads]:
            assert back is not None
            (d_query, d_key), grads = _gradients(back(d.reshape(lead + d.shape[1:])))
            places = (("query", d_query, query, some(keep, 2)), ("key", d_key, key, some(keep, 1)))
            d_query, d_key = (_placed(*place) for place in places)
            return d_query, d_key, grads

        return np.ascontiguousarray(out.reshape(keep.shape), dtype=query.dtype), pull

    return scores


def _gradients(given: Any) -> tuple[tuple[Any, Any], Grads]:  # noqa: ANN401 - what a user's pullback gives
    """Take ``(d_query, d_key)`` or ``((d_query, d_key), grads)`` apart."""
    if isinstance(given, (tuple, list)) and len(given) == 2:
        if isinstance(given[1], Mapping) and isinstance(given[0], (tuple, list)) and len(given[0]) == 2:
            return (given[0][0], given[0][1]), dict(given[1])
        if not isinstance(given[1], Mapping):
            return (given[0], given[1]), {}
    msg = (
        "score: its pullback is expected to return (d_query, d_key), or ((d_query, d_key), grads) with a "
        f"dict of gradients, got {type(given).__name__}"
    )
    raise ArgumentTypeError(msg)


def _placed(name: str, d: object, like: Array, used: Flags) -> Array:
    """Return a user's gradient as an array like the one that was given; 0 where nothing was used."""
    array = np.asarray(d)
    if array.size != like.size:
        msg = f"score: its pullback gave a gradient of {name} of shape {array.shape}, expected that of {name}"
        raise ShapeError(msg)
    return np.where(used[..., None], array.reshape(like.shape), 0).astype(like.dtype)
