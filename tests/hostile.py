"""Registry of hostile folders: functions that spoil one thing in a small valid model.

hostile_weights.py and hostile_configs.py fill it, test_hostile.py runs it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import headwise as hw

FORMAT, TOKENIZER, UNSUPPORTED = hw.ModelFormatError, hw.TokenizerError, hw.UnsupportedModelError
WORDS = "embeddings.word_embeddings.weight"

Spoil = Callable[[Path], object]


class Case(NamedTuple):
    """A way to spoil a folder, and the error that loading it must end in."""

    spoil: Spoil
    error: type[hw.HeadwiseError]
    # What the error's text holds, and the end of the file's name in it.
    match: str
    file: str


CASES: dict[str, Case] = {}


def case(
    error: type[hw.HeadwiseError], match: str, file: str = "model.safetensors"
) -> Callable[[Spoil], Spoil]:
    """Register a function under its own name."""

    def register(spoil: Spoil) -> Spoil:
        CASES[spoil.__name__] = Case(spoil, error, match, file)
        return spoil

    return register
