"""The texts of a call: one or many, pairs, prompts before them, and windows that bound memory."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    Pair: TypeAlias = tuple[str, str] | list[str]
    Texts: TypeAlias = str | Sequence[str] | Sequence[Pair] | npt.NDArray[np.str_] | npt.NDArray[np.object_]

# Texts that are tokenized and computed at once: some 25,000 tokens of short sentences, a dozen batches of
# the model, so that cutting costs nothing and memory does not grow with the list.
WINDOW = 1024
# Where somebody watches, a window should end about every second.
WATCHED_WINDOW = 128
# Copying so many characters out of Python takes a millisecond or two, with the interpreter's lock held.
MOST_CHARACTERS = 1 << 22


def texts_of(inputs: object) -> tuple[list[object], bool]:
    """Give the texts of `inputs` as a list, and whether it was one text alone; items are not looked at."""
    if isinstance(inputs, str):
        return [inputs], True
    if isinstance(inputs, list):
        return inputs, False
    if isinstance(inputs, np.ndarray):
        texts = inputs.tolist()
        return (texts, False) if inputs.ndim else ([texts], True)
    # A dict or set would be iterated too, but in an order that nobody meant.
    if isinstance(inputs, Iterable) and not isinstance(inputs, (bytes, bytearray, Mapping, AbstractSet)):
        return list(inputs), False
    msg = f"inputs: expected a text or a list of texts, got {type(inputs).__name__}"
    raise TypeError(msg)


def windows(texts: Iterable[object], most: int) -> Iterator[list[object]]:
    """Cut texts into lists of at most `most` of them, fewer where they are long; reads no further ahead."""
    window: list[object] = []
    characters = 0
    for text in texts:
        window.append(text)
        characters += _characters(text)
        if len(window) == most or characters >= MOST_CHARACTERS:
            yield window
            window, characters = [], 0
    if window:
        yield window


def _characters(text: object) -> int:
    if isinstance(text, str):
        return len(text)
    return sum(map(_characters, text)) if isinstance(text, (list, tuple)) else 0


def resolve_prompt(
    prompt: str | None, prompt_name: str | None, prompts: Mapping[str, str], default: str | None
) -> str:
    """Give what is put before each text, as sentence-transformers decides it; "" for nothing."""
    if prompt is not None:
        if prompt_name is not None:
            import logging

            text = "prompt and prompt_name were both given: prompt_name %r is ignored"
            logging.getLogger("headwise").warning(text, prompt_name)
        return prompt
    if prompt_name is not None:
        if prompt_name not in prompts:
            msg = f"prompt_name: expected one of {list(prompts)}, got {prompt_name!r}"
            raise ValueError(msg)
        return prompts[prompt_name]
    return prompts.get(default, "") if default is not None else ""


def with_prompt(prompt: object, texts: list[object]) -> list[object]:
    """Put a prompt before each text, and before the first of each pair."""
    if not isinstance(prompt, str):
        msg = f"prompt: expected a text, got {type(prompt).__name__}"
        raise TypeError(msg)
    return [_prepend(prompt, text) for text in texts] if prompt else texts


def _prepend(prompt: str, text: object) -> object:
    if isinstance(text, str):
        return prompt + text
    if isinstance(text, (list, tuple)) and text and isinstance(text[0], str):
        return (prompt + text[0], *text[1:])
    return text  # what is no text is refused where texts are read


def logs_progress() -> bool:
    """Tell whether the logger "headwise" is set to INFO or DEBUG, which shows progress bars."""
    # Where logging was never imported, nobody has set a level.
    logging = sys.modules.get("logging")
    if logging is None:
        return False
    return logging.getLogger("headwise").getEffectiveLevel() in (logging.INFO, logging.DEBUG)
