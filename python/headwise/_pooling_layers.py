"""Scores with parameters, as layers: `Bilinear` (Luong's "general") and `Additive` (Bahdanau's).

    bilinear(q, k) = k . W q
    additive(q, k) = v . tanh(W_q q + W_k k + b)

`headwise.attention` takes them as its `score`; called by themselves they give the scores of every pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, SupportsIndex, TypeAlias

from numpy.typing import NDArray

from headwise import _core
from headwise._pooling_arrays import Array, some
from headwise._pooling_score_layer import ScoreLayer
from headwise._pooling_scores import Flags, Grads, Pull, additive, dot, projected
from headwise._steps import Rng, key_of, key_of_place

_DType: TypeAlias = Any


class Bilinear(ScoreLayer):
    """The score k . W q of a query and a key, which may be of different widths: Luong's "general".

    A number added to all scores of a query changes no weight that is divided by a sum, so there is no bias.

    Parameters
    ----------
    query_dim : int
        Width of a query.
    key_dim : int
        Width of a key.
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
    attention : Takes this layer as its `score`.

    Notes
    -----
    The parameter is ``weight`` (key_dim, query_dim), as that of ``torch.nn.Linear(query_dim, key_dim)``.

    References
    ----------
    .. [1] M.-T. Luong, H. Pham, C. D. Manning, "Effective Approaches to Attention-based Neural Machine
       Translation", 2015. https://arxiv.org/abs/1508.04025

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> score = hw.Bilinear(3, 2, dtype="float64", rng=0)
    >>> query, key, value = np.ones((4, 3)), np.eye(2), np.eye(2)
    >>> hw.attention(query, key, value, score=score).shape
    (4, 2)
    """

    def __init__(
        self, query_dim: SupportsIndex, key_dim: SupportsIndex, *, dtype: _DType = "float32", rng: Rng = None
    ) -> None:
        proj = _core.Linear(query_dim, key_dim, bias=False, dtype=dtype, rng=rng)
        super().__init__(proj.in_features, proj.out_features, {"proj": proj})

    def _scores(self, query: Array, key: Array, keep: Flags, gradient: bool) -> tuple[Array, Pull]:
        turned, through = projected(self._layers["proj"], query, some(keep, 2), gradient)
        scores, pull_dot = dot(turned, key.astype(turned.dtype, copy=False), keep)

        def pull(d: Array) -> tuple[Array, Array, Grads]:
            d_turned, d_key, _ = pull_dot(d.astype(turned.dtype, copy=False))
            d_query, grads = through(d_turned)
            return d_query, d_key, grads

        return scores, pull

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Return a copy of the parameter.

        Returns
        -------
        dict of str to ndarray
            ``weight``, a fresh array.
        """
        return self._layers["proj"].state_dict()

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Load the parameter by name.

        Parameters
        ----------
        state : mapping of str to array_like
            The parameter.
        strict : bool, default True
            Whether a missing or an unexpected name is an error.

        Raises
        ------
        ValueError
            If the parameter has another shape, or names do not fit; then nothing changes.
        """
        self._layers["proj"].load_state_dict(state, strict)

    def to(self, dtype: _DType) -> Bilinear:
        """Return the same layer in another dtype.

        Parameters
        ----------
        dtype : {"float32", "float64"}
            What the new one computes in.

        Returns
        -------
        Bilinear
            With its own parameter.
        """
        new: Bilinear = self._with({"proj": self._layers["proj"].to(dtype)})
        return new

    def __repr__(self) -> str:
        return f'Bilinear({self._query_dim}, {self._key_dim}, dtype="{self.dtype}")'


class Additive(ScoreLayer):
    """The score v . tanh(W_q q + W_k k + b) of a query and a key: Bahdanau's.

    Parameters
    ----------
    query_dim : int
        Width of a query.
    key_dim : int
        Width of a key.
    hidden_size : int
        Width of v: into it query and key are projected.
    bias : bool, default True
        Whether there is b.
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
    attention : Takes this layer as its `score`.

    Notes
    -----
    The parameters are ``query_proj.weight`` (hidden_size, query_dim), ``key_proj.weight``
    (hidden_size, key_dim), ``key_proj.bias`` (hidden_size,), which is b, and ``v.weight`` (1, hidden_size):
    those of three ``torch.nn.Linear`` under these names.

    References
    ----------
    .. [1] D. Bahdanau, K. Cho, Y. Bengio, "Neural Machine Translation by Jointly Learning to Align and
       Translate", 2015. https://arxiv.org/abs/1409.0473

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> score = hw.Additive(3, 2, 8, rng=0)
    >>> score(np.ones((4, 3)), np.ones((5, 2))).shape
    (4, 5)
    >>> list(score.state_dict())
    ['query_proj.weight', 'key_proj.weight', 'key_proj.bias', 'v.weight']
    """

    def __init__(
        self,
        query_dim: SupportsIndex,
        key_dim: SupportsIndex,
        hidden_size: SupportsIndex,
        *,
        bias: bool = True,
        dtype: _DType = "float32",
        rng: Rng = None,
    ) -> None:
        key = key_of(rng)

        def linear(place: int, n: SupportsIndex, m: SupportsIndex, has_bias: bool = False) -> _core.Linear:
            return _core.Linear(n, m, bias=has_bias, dtype=dtype, rng=key_of_place(key, place))

        parts = {
            "query_proj": linear(0, query_dim, hidden_size),
            "key_proj": linear(1, key_dim, hidden_size, bias),
            "v": linear(2, hidden_size, 1),
        }
        super().__init__(parts["query_proj"].in_features, parts["key_proj"].in_features, parts)

    def _scores(self, query: Array, key: Array, keep: Flags, gradient: bool) -> tuple[Array, Pull]:
        q, of_query = projected(self._layers["query_proj"], query, some(keep, 2), gradient)
        k, of_key = projected(self._layers["key_proj"], key, some(keep, 1), gradient)
        scores, pull_sum = additive(q, k, self._layers["v"].state_dict()["weight"][0], keep)

        def pull(d: Array) -> tuple[Array, Array, Grads]:
            d_q, d_k, of_v = pull_sum(d.astype(q.dtype, copy=False))
            parts: dict[str, Mapping[str, Array]] = {"v": {"weight": of_v["v"][None]}}
            d_query, parts["query_proj"] = of_query(d_q)
            d_key, parts["key_proj"] = of_key(d_k)
            return d_query, d_key, self._parts.gradients(parts)

        return scores, pull

    @property
    def hidden_size(self) -> int:
        """Width of v."""
        return self._layers["query_proj"].out_features

    def to(self, dtype: _DType) -> Additive:
        """Return the same layer in another dtype.

        Parameters
        ----------
        dtype : {"float32", "float64"}
            What the new one computes in.

        Returns
        -------
        Additive
            With its own parameters.
        """
        new: Additive = self._with({name: layer.to(dtype) for name, layer in self._layers.items()})
        return new

    def __repr__(self) -> str:
        bias = "" if "bias" in self._layers["key_proj"].state_dict() else ", bias=False"
        widths = f"{self._query_dim}, {self._key_dim}, {self.hidden_size}"
        return f'Additive({widths}{bias}, dtype="{self.dtype}")'
