"""The options of a call of `headwise.attention`, checked as far as they can be without the arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, SupportsIndex, TypeAlias

import numpy as np

from headwise._errors import ArgumentTypeError, ArgumentValueError
from headwise._pooling_arrays import Masks, positive, read, real
from headwise._pooling_local import PredictiveWindow, local_of
from headwise._pooling_score_layer import ScoreLayer
from headwise._pooling_weights import TopK, kind_of
from headwise._steps import Rng, key_of

Window: TypeAlias = tuple[SupportsIndex | None, SupportsIndex | None] | list[SupportsIndex | None]
Named: TypeAlias = Literal["dot", "scaled_dot", "cosine", "l2"]
Scoring: TypeAlias = Named | ScoreLayer | Callable[[Any, Any], Any]
Normalizing: TypeAlias = Literal["softmax", "hard", "sparsemax", "sigmoid"] | TopK
Local: TypeAlias = tuple[Literal["m"], SupportsIndex] | PredictiveWindow | None

NAMES = ("dot", "scaled_dot", "cosine", "l2")

_EXPECTED = 'score: expected "scaled_dot", "dot", "cosine", "l2", a Bilinear, an Additive or a callable'


class Call:
    """The options of a call, checked as far as they can be without the arrays."""

    def __init__(
        self,
        score: object,
        normalize: object,
        masks: Masks,
        softcap: float | None,
        scale: float | None,
        local: object,
        rng: Rng,
    ) -> None:
        if isinstance(score, str) and score not in NAMES:
            msg = f"{_EXPECTED}, got {score!r}"
            raise ArgumentValueError(msg)
        if isinstance(score, type) or not (isinstance(score, str) or callable(score)):
            what = f"the class {score.__name__}" if isinstance(score, type) else type(score).__name__
            msg = f"{_EXPECTED}, got {what}"
            raise ArgumentTypeError(msg)
        self.score: Any = score
        self.kind = kind_of(normalize)
        self.masks = masks
        self.softcap = None if softcap is None else positive("softcap", softcap)
        self.scale = None if scale is None else real("scale", scale)
        self.local = local_of(local)
        if isinstance(self.local, int):
            self.masks = _narrowed(masks, self.local)
        # A generator is advanced whatever the normalisation.
        self.key = None if rng is None else key_of(rng)

    @property
    def is_plain(self) -> bool:
        """Whether `scaled_dot_product_attention` is all that is asked for."""
        products = isinstance(self.score, str) and self.score in ("dot", "scaled_dot")
        return products and self.kind[0] == "softmax" and not isinstance(self.local, PredictiveWindow)

    def plain(self) -> dict[str, Any]:
        """Return its keywords."""
        scale = 1.0 if self.scale is None and self.score == "dot" else self.scale
        return {**vars(self.masks), "softcap": self.softcap, "scale": scale}

    def widths(self, query: object, key: object) -> tuple[int, int] | None:
        """Return the widths that the score wants of query and key; None = one, whichever."""
        if isinstance(self.score, ScoreLayer):
            return self.score.query_dim, self.score.key_dim
        if isinstance(self.score, str):
            return None
        shapes = (np.shape(read("query", query)), np.shape(read("key", key)))
        return tuple(shape[-1] if shape else 0 for shape in shapes)  # type: ignore[return-value]

    def factor(self, width: int) -> float:
        """Return the factor of the scores, for queries of `width` numbers."""
        if self.scale is not None:
            return self.scale
        if not isinstance(self.score, str):
            return 1.0
        return {"scaled_dot": 1.0 / float(np.sqrt(width)), "l2": 0.5}.get(self.score, 1.0)


def _narrowed(masks: Masks, width: int) -> Masks:
    """Return the masks with a window of `width` on both sides, besides theirs."""
    window = masks.window
    if window is None:
        window = (width, width)
    elif isinstance(window, (tuple, list)) and len(window) == 2:
        # What is no number is left to be refused where all windows are read.
        window = tuple(
            width if side is None else min(side, width) if isinstance(side, (int, np.integer)) else side
            for side in window
        )
    return Masks(**{**vars(masks), "window": window})
