"""The way back through a `RecurrentSeq2Seq`: the pullbacks of its parts, from the last to the first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headwise._recurrent_parts import Calls, items_of, padded, sums, through_tanh
from headwise._steps import Batch
from headwise._token_batch import TokenBatch, joined

if TYPE_CHECKING:
    from headwise._recurrent_seq2seq import RecurrentSeq2Seq

Array = NDArray[Any]


class RecurrentSeq2SeqPullback:
    """The second half of `RecurrentSeq2Seq.vjp`: the pullbacks of its parts, from the last to the first."""

    def __init__(
        self,
        model: RecurrentSeq2Seq,
        batches: tuple[TokenBatch, TokenBatch],
        calls: Calls,
        kept: dict[str, Array],
    ) -> None:
        self._model, self._batches, self._calls, self._kept = model, batches, calls, kept

    def __call__(self, d_logits: Batch) -> tuple[tuple[None, None], dict[str, Array]]:
        """Return no gradients of the ids, and those of the parameters by name."""
        model, kept, back = self._model, self._kept, self._calls.pullbacks
        source, target = self._batches
        width, grads = model.hidden_size, dict[str, dict[str, Array]]()
        tokens = model._layers["output_projection"].out_features
        d_rows = target.rows_of("d_logits", d_logits, tokens, model.dtype)
        d_hidden, grads["output_projection"] = back["output_projection"](d_rows)
        d_read, grads["readout"] = back["readout"](through_tanh(d_hidden, kept["hidden"]))
        d_states = target.ragged(np.ascontiguousarray(d_read[:, :width]))
        d_memory, d_summary = None, np.zeros((len(source), model._of_memory), dtype=model.dtype)
        if model._context == "attention":
            d_context = padded(target.ragged(d_read[:, width:]), model._of_memory, model.dtype)
            (d_query, d_keys), grads["score"] = back["attention"](d_context)
            d_states = [d + more for d, more in zip(d_states, items_of(d_query, target.lengths), strict=True)]
            d_memory = items_of(d_keys, source.lengths)
        elif model._context == "every_step":
            d_summary += sums(d_read[:, width:], target.lengths)
        (d_y, d_first), grads["decoder"] = back["decoder"](d_states)
        of_summary = model._of_memory if model._context == "every_step" else 0
        d_inputs = joined(d_y, model.d_model + of_summary, model.dtype)
        if of_summary:
            d_summary += sums(d_inputs[:, model.d_model :], target.lengths)
            d_inputs = np.ascontiguousarray(d_inputs[:, : model.d_model])
        _, grads["target_embedding"] = back["target_embedding"](d_inputs)
        d_h = d_first[0] if model._cell == "lstm" else d_first
        d_rows = np.ascontiguousarray(np.moveaxis(d_h, 0, 1)).reshape(len(source), -1)
        d_more, grads["bridge"] = back["bridge"](through_tanh(d_rows, kept["first"]))
        d_last = model._d_last(d_summary + d_more)
        if d_memory is None:
            d_memory = source.ragged(np.zeros((len(source.ids), model._of_memory), dtype=model.dtype))
        (d_x, _), grads["encoder"] = back["encoder"]((d_memory, d_last))
        _, grads["source_embedding"] = back["source_embedding"](joined(d_x, model.d_model, model.dtype))
        if "score" not in model._layers:
            grads.pop("score", None)
        return (None, None), model._parts.gradients(grads)

    def __repr__(self) -> str:
        return "<pullback of RecurrentSeq2Seq>"
