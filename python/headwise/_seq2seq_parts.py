"""What a `Seq2Seq` is made of: its layers with their first tables, the masks of its calls, the way back."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

from numpy.typing import ArrayLike, NDArray

from headwise import _core, init
from headwise._errors import ArgumentValueError
from headwise._steps import Batch, Layer, key_of_place
from headwise._token_batch import TokenBatch
from headwise._transformer import Transformer

if TYPE_CHECKING:
    from headwise._seq2seq import Seq2Seq
    from headwise._transformer import TransformerPullback

Array = NDArray[Any]
Tied: TypeAlias = Literal[True, False, "all"]

TIED: dict[Tied, tuple[str, ...]] = {
    False: (),
    True: ("target_embedding.weight", "output_projection.weight"),
    "all": ("source_embedding.weight", "target_embedding.weight", "output_projection.weight"),
}
"""The names of one shared table; the first is the one that is saved."""


class SourceSideMasks(TypedDict, total=False):
    """Masks of `Seq2Seq.begin`."""

    source_key_mask: ArrayLike | None
    source_lengths: ArrayLike | None
    window: Any


class SidesMasks(SourceSideMasks, total=False):
    """Masks of a call."""

    target_key_mask: ArrayLike | None
    target_lengths: ArrayLike | None


def make_layers(
    sizes: tuple[int, int],
    widths: tuple[int, int, int, int, int],
    tied: Tied,
    output_bias: bool,
    key: int,
    options: dict[str, Any],
) -> tuple[dict[str, Layer], dict[str, Array]]:
    """Return the layers by name, and the first tables: normal numbers of standard deviation 1 / sqrt(D)."""
    if tied not in (True, False, "all"):
        msg = f'tied: expected True, False or "all", got {tied!r}'
        raise ArgumentValueError(msg)
    if tied == "all" and sizes[0] != sizes[1]:
        msg = (
            f'tied: "all" needs one vocabulary, got {sizes[0]} ids of the source and {sizes[1]} of the target'
        )
        raise ArgumentValueError(msg)
    d_model, dtype = widths[0], options["dtype"]
    transformer = Transformer(*widths, rng=key_of_place(key, 0), **options)
    source, target = (_core.Embedding(size, d_model, dtype=dtype, rng=0) for size in sizes)
    layers: dict[str, Layer] = {
        "source_embedding": source,
        "target_embedding": target,
        "transformer": transformer,
        "output_projection": _core.Linear(
            d_model, sizes[1], bias=output_bias, dtype=dtype, rng=key_of_place(key, 3)
        ),
    }
    tables = {
        f"{side}_embedding.weight": init.normal(
            (size, d_model), std=1 / math.sqrt(d_model), rng=key_of_place(key, place), dtype=transformer.dtype
        )
        for place, side, size in ((1, "source", sizes[0]), (2, "target", sizes[1]))
        if f"{side}_embedding.weight" not in TIED[tied][1:]
    }
    return layers, tables


class Seq2SeqPullback:
    """The second half of `Seq2Seq.vjp`: the pullbacks of its parts, from the last to the first."""

    def __init__(
        self, model: Seq2Seq, target: TokenBatch, pullbacks: tuple[Layer, Layer, TransformerPullback, Layer]
    ) -> None:
        self._model, self._target, self._pullbacks = model, target, pullbacks

    def __call__(self, d_logits: Batch) -> tuple[tuple[None, None], dict[str, Array]]:
        """Return no gradients of the ids, and those of the parameters by name."""
        model, target = self._model, self._target
        through_source, through_target, through_transformer, through_projection = self._pullbacks
        d_rows = target.rows_of("d_logits", d_logits, model.num_target_tokens, model.dtype)
        d_out, of_projection = through_projection(d_rows)
        (d_x, d_y), of_transformer = through_transformer(target.ragged(d_out))
        _, of_source = through_source(model._joined(d_x) * model._factor)
        _, of_target = through_target(model._joined(d_y) * model._factor)
        grads = model._parts.gradients(
            {
                "source_embedding": of_source,
                "target_embedding": of_target,
                "transformer": of_transformer,
                "output_projection": of_projection,
            }
        )
        return (None, None), grads

    def __repr__(self) -> str:
        return "<pullback of Seq2Seq>"
