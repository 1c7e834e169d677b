"""The context manager ``num_threads``."""

from collections.abc import Iterator
from contextlib import contextmanager

from headwise import _core


@contextmanager
def num_threads(n: int) -> Iterator[None]:
    """
    Use at most ``n`` threads for the calls of this thread inside the ``with`` block.

    Other Python threads keep their count. Usable as a decorator too. The results are the same bits
    whatever the count.

    Parameters
    ----------
    n : int
        How many threads, the calling one included; 1 to 4096.

    Yields
    ------
    None
        Nothing; the count is put back at the end of the block.

    See Also
    --------
    set_num_threads : Set the count for the whole process.

    Examples
    --------
    >>> import headwise as hw
    >>> with hw.num_threads(1):
    ...     hw.get_num_threads()
    1
    """
    before = _core._override_num_threads(n)
    try:
        yield
    finally:
        _core._override_num_threads(before)
