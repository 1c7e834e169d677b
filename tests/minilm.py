"""Where the tests find all-MiniLM-L6-v2: in the cache that `headwise fetch minilm` fills.

No test fetches anything.
"""

from pathlib import Path

from headwise import _fetch


def minilm_folder() -> Path:
    """Return the model's folder; that it is missing is a failure, not a reason to skip."""
    folder = _fetch.fetched("minilm")
    if folder is None:
        raise FileNotFoundError("all-MiniLM-L6-v2 is not here: run `headwise fetch minilm`")
    return folder
