"""What is told of texts that were too long: `EncodeInfo` to who asks, `TruncationWarning` to others."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class TruncationWarning(UserWarning):
    """Texts were longer than the model reads, and were cut.

    ``warnings.filterwarnings("ignore", category=headwise.TruncationWarning)`` turns it off.
    """


class EncodeInfo(NamedTuple):
    """What `TextEncoder.encode` tells of its texts with ``return_info=True``.

    Parameters
    ----------
    token_counts : ndarray of int64, shape (B,)
        Tokens of each text, special ones and a prompt's included, before it was cut.
    used_counts : ndarray of int64, shape (B,)
        Tokens that were computed with: at most `max_seq_length`.
    """

    token_counts: NDArray[np.int64]
    used_counts: NDArray[np.int64]

    @property
    def cut(self) -> NDArray[np.int64]:
        """The places of the texts that were cut."""
        return (self.token_counts > self.used_counts).nonzero()[0]


EncodeInfo.token_counts.__doc__ = "Tokens of each text before it was cut."
EncodeInfo.used_counts.__doc__ = "Tokens of each text that were computed with."


def warn_of_cut_texts(cut: int, texts: int, longest: int) -> None:
    """Say how many texts were cut, once for a call, in the name of the line that called headwise."""
    be, was = ("is", "was") if cut == 1 else ("are", "were")
    level = 2  # the caller of this function
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("headwise."):
        frame = frame.f_back
        level += 1
    warnings.warn(
        f"{cut} of {texts} texts {be} longer than {longest} tokens and {was} cut",
        TruncationWarning,
        stacklevel=level,
    )
