"""A checked call of `TextEncoder.encode`, and how it is carried out: window by window."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from headwise._precision import quantize
from headwise._progress import progress
from headwise._text_inputs import WATCHED_WINDOW, WINDOW, windows, with_prompt

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from headwise._core import TextEncoder as CoreEncoder

# What `TextEncoder.encode` can give.
OUTPUT_VALUES = ("sentence_embedding", "token_embeddings", None)


class Call(NamedTuple):
    """What is wanted of texts; every value has been checked."""

    core: CoreEncoder
    prompt: str
    # Tokens of the prompt that the pooling leaves out.
    skip: int
    output_value: str | None
    precision: str
    ranges: ArrayLike | None
    normalize: bool
    truncate_dim: int | None
    show_progress: bool


class Found(NamedTuple):
    """What came of a list of texts."""

    # (B, D), or a list of B arrays or dicts.
    values: Any
    # Tokens that were computed with, and whether there were more, (B,) each.
    used: NDArray[np.int64]
    cut: NDArray[np.bool_]


def run(call: Call, texts: list[object]) -> Found:
    """Carry out a call."""
    if len(texts) <= 1:
        return _window(call, texts)
    parts = list(_in_windows(call, texts))
    return parts[0] if len(parts) == 1 else _joined(call, parts)


def stream(call: Call, texts: Iterable[object], ahead: int) -> Iterator[Found]:
    """Carry out a call for texts as they come, at most `ahead` of them at once."""
    for window in windows(texts, ahead):
        yield _window(call, window)


def token_counts(call: Call, texts: list[object], found: Found) -> NDArray[np.int64]:
    """Give the tokens of each text before it was cut."""
    counts = found.used.copy()
    places = found.cut.nonzero()[0]
    if len(places):
        counts[places] = call.core.lengths(with_prompt(call.prompt, [texts[i] for i in places]))
    return counts


def _in_windows(call: Call, texts: list[object]) -> Iterator[Found]:
    """Carry out a call window by window, which bounds memory, and tell how far it is."""
    bar = progress(call.show_progress, len(texts))
    try:
        for window in windows(texts, WATCHED_WINDOW if call.show_progress else WINDOW):
            yield _window(call, window)
            bar.update(len(window))
    finally:
        bar.close()


def _window(call: Call, texts: list[object]) -> Found:
    texts = with_prompt(call.prompt, texts)
    if call.output_value == "sentence_embedding":
        rows, used, cut = call.core.encode(texts, call.skip, call.truncate_dim, call.normalize)
        return Found(quantize(rows, call.precision, call.ranges), used, cut)
    states, used, cut = call.core.states(texts, call.skip)
    if call.output_value == "token_embeddings":
        return Found([quantize(rows, call.precision, call.ranges) for _, _, rows, _ in states], used, cut)
    return Found([_features(call, *state) for state in states], used, cut)


def _features(
    call: Call,
    ids: NDArray[np.int64],
    type_ids: NDArray[np.int64],
    states: NDArray[Any],
    embedding: NDArray[Any],
) -> dict[str, Any]:
    """Give everything about one text under the names that sentence-transformers has for it."""
    features: dict[str, Any] = {
        "input_ids": ids,
        "token_type_ids": type_ids,
        "attention_mask": np.ones_like(ids),
        "modality": "text",
    }
    if call.prompt:
        features["prompt_length"] = call.core.prompt_length(call.prompt)
    features["token_embeddings"] = states
    features["sentence_embedding"] = embedding[: call.truncate_dim]
    return features


def _joined(call: Call, parts: list[Found]) -> Found:
    used = np.concatenate([part.used for part in parts])
    cut = np.concatenate([part.cut for part in parts])
    if call.output_value != "sentence_embedding":
        return Found([value for part in parts for value in part.values], used, cut)
    return Found(np.concatenate([part.values for part in parts]), used, cut)
