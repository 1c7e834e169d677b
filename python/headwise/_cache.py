"""The cache of a decoder: keys and values of the tokens so far, and those of the memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from headwise._errors import ArgumentTypeError, ArgumentValueError, ShapeError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

TILE = 64
"""Keys leave in whole tiles of so many: tiles begin at the first key, and their sums decide the bits."""


class DecoderCache:
    """Keys and values of the tokens so far, which `Decoder.step` extends, and those of the memory.

    It is made by `Decoder.new_cache`. Its arrays can be looked at while it is in use. Room is made by
    doubling, so that a step copies its own tokens only; what a window no longer reaches is let go.

    Attributes
    ----------
    window : int or None
        Tokens seen to the left by self-attention; None for all.

    See Also
    --------
    Decoder.new_cache : Make a cache.
    Decoder.step : Take new tokens through the decoder.

    Examples
    --------
    >>> import numpy as np
    >>> import headwise as hw
    >>> decoder = hw.Decoder(2, 16, 4, 32, positions="sinusoidal", rng=0)
    >>> memory = np.random.default_rng(0).standard_normal((3, 7, 16), dtype=np.float32)
    >>> cache = decoder.new_cache(memory)
    >>> decoder.step(np.zeros((3, 1, 16), dtype=np.float32), cache).shape
    (3, 1, 16)
    >>> cache.lengths, cache.keys[0].shape, cache.memory_keys[0].shape
    (array([1, 1, 1]), (3, 4, 1, 4), (3, 4, 7, 4))
    """

    window: int | None
    _busy: threading.Lock
    _mark: int
    _held: NDArray[np.int64]
    _gone: int
    _own: list[tuple[NDArray[Any], NDArray[Any]]]
    _memory: list[tuple[NDArray[Any], NDArray[Any]]]
    _memory_rows: NDArray[np.int64]
    _memory_key_mask: NDArray[np.bool_] | None

    def __init__(self) -> None:
        raise ArgumentTypeError("DecoderCache: made by Decoder.new_cache(memory), not by itself")

    @classmethod
    def _new(
        cls,
        mark: int,
        batch: int,
        num_kv_heads: list[int],
        head_dim: int,
        dtype: str,
        memory: list[tuple[NDArray[Any], NDArray[Any]]],
        memory_key_mask: NDArray[np.bool_] | None,
        window: int | None,
    ) -> Self:
        cache = cls.__new__(cls)
        cache._mark = mark
        cache.window = window
        cache._busy = threading.Lock()
        cache._held = np.zeros(batch, dtype=np.int64)
        cache._gone = 0
        cache._own = [_pair((batch, groups, 0, head_dim), dtype) for groups in num_kv_heads]
        cache._memory = memory
        cache._memory_rows = np.arange(batch, dtype=np.int64)
        cache._memory_key_mask = memory_key_mask
        if memory_key_mask is not None:
            memory_key_mask.setflags(write=False)
        return cache

    def __getstate__(self) -> dict[str, Any]:
        """Return what a pickle holds: everything but the lock."""
        return {name: value for name, value in self.__dict__.items() if name != "_busy"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over what a pickle held."""
        self.__dict__.update(state, _busy=threading.Lock())

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self._held)

    def __repr__(self) -> str:
        """Return its extents."""
        lengths = np.unique(self.lengths)
        told = (
            str(lengths[0])
            if len(lengths) == 1
            else f"{lengths.min()} to {lengths.max()}"
            if len(lengths)
            else "0"
        )
        window = "" if self.window is None else f", window={self.window}"
        return f"DecoderCache({len(self)} sequences, {len(self._own)} layers, {told} tokens{window})"

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sequence so far, (B,), those that have left the cache included."""
        return self._held + self._gone

    @property
    def first(self) -> int:
        """How many tokens at the beginning have left the cache: the place of the first one in `keys`."""
        return self._gone

    @property
    def keys(self) -> list[NDArray[Any]]:
        """Keys of self-attention, of each layer (B, Hk, S, E): views.

        A sequence of fewer tokens than the longest has arbitrary rows at its end.
        """
        return [keys[:, :, : self._most()] for keys, _ in self._own]

    @property
    def values(self) -> list[NDArray[Any]]:
        """Values of self-attention, like `keys`."""
        return [values[:, :, : self._most()] for _, values in self._own]

    @property
    def memory_keys(self) -> list[NDArray[Any]]:
        """Keys of the memories, of each layer (M, Hk, S, E); `memory_rows` says which one is whose."""
        return [keys for keys, _ in self._memory]

    @property
    def memory_values(self) -> list[NDArray[Any]]:
        """Values of the memories, like `memory_keys`."""
        return [values for _, values in self._memory]

    @property
    def memory_rows(self) -> NDArray[np.int64]:
        """The memory of each sequence, (B,): reordering repeats and drops these numbers, not the memories."""
        return self._memory_rows.copy()

    @property
    def memory_key_mask(self) -> NDArray[np.bool_] | None:
        """Which keys of each memory may be attended, (M, S); None for all."""
        return self._memory_key_mask

    @property
    def nbytes(self) -> int:
        """Bytes of all its arrays, room for tokens to come included."""
        return sum(array.nbytes for pair in (*self._own, *self._memory) for array in pair)

    def reorder(self, indices: ArrayLike) -> None:
        """Put other sequences in the place of these: some of them, in any order, repeated or left out.

        Parameters
        ----------
        indices : array_like of int
            (B',): for each new sequence the one whose tokens and memory it takes over.

        Raises
        ------
        ValueError
            If an index is outside 0 to B - 1.
        TypeError
            If `indices` are no integers.
        """
        index = np.asarray(indices)
        if index.size == 0:
            index = index.astype(np.intp)
        if index.dtype.kind not in "iu":
            raise ArgumentTypeError(f"indices: expected integers (B',), got dtype {index.dtype}")
        if index.ndim != 1:
            raise ShapeError(f"indices: expected integers (B',), got shape {index.shape}")
        if index.size and not (index.min() >= 0 and index.max() < len(self)):
            raise ArgumentValueError(
                f"indices: expected numbers from 0 to {len(self) - 1}, got {index.min()} to {index.max()}"
            )
        if len(index) == len(self) and bool((index == np.arange(len(self))).all()):
            return
        with self._alone():
            self._take(index)

    def _take(self, index: NDArray[Any]) -> None:
        most = int(self._held[index].max(initial=0))
        room = self._own[0][0].shape[2] if self._own else 0
        self._own = [tuple(_taken(array, index, most, room) for array in pair) for pair in self._own]  # type: ignore[misc]
        self._held = self._held[index]
        self._memory_rows = self._memory_rows[index]

    def copy(self) -> DecoderCache:
        """Return a cache of the same tokens that goes its own way.

        Returns
        -------
        DecoderCache
            With arrays of its own, but for the memories, which no step changes.
        """
        other = DecoderCache.__new__(DecoderCache)
        with self._alone():
            other.__setstate__(self.__getstate__())
            other._own = [(keys.copy(), values.copy()) for keys, values in self._own]
        return other

    def crop(self, lengths: ArrayLike) -> None:
        """Forget the tokens after the first ones.

        Parameters
        ----------
        lengths : int or array_like of int
            How many tokens stay, of all sequences or of each, (B,).

        Raises
        ------
        ValueError
            If a sequence has fewer tokens, or a window has let go of some that would be needed again.
        """
        with self._alone():
            self._held = self._cropped(np.asarray(lengths)) - self._gone

    def _cropped(self, wanted: NDArray[Any]) -> NDArray[np.int64]:
        """Return the tokens of each sequence that are to stay, if they can."""
        if wanted.size == 0:
            wanted = wanted.astype(np.int64)
        if wanted.dtype.kind not in "iu" or wanted.shape not in {(), (len(self),)}:
            raise ShapeError(
                f"lengths: expected an int or integers (B,) = ({len(self)},), "
                f"got {wanted.dtype} {wanted.shape}"
            )
        wanted = np.broadcast_to(wanted, self._held.shape).astype(np.int64)
        if bool((wanted > self.lengths).any() or (wanted < 0).any()):
            raise ArgumentValueError(
                f"lengths: expected numbers from 0 to {self.lengths.tolist()}, got {wanted.tolist()}"
            )
        if self._gone and bool((wanted - (self.window or 0) < self._gone).any()):
            raise ArgumentValueError(
                f"lengths: the window of {self.window} has let go of the first {self._gone} tokens, "
                f"got {wanted.tolist()}"
            )
        return wanted

    def _enter(self) -> None:
        """Begin to use the cache, or refuse it while another thread does."""
        if not self._busy.acquire(blocking=False):
            raise ArgumentValueError("cache: another thread is using it")

    def _leave(self) -> None:
        """End what `_enter` began."""
        self._busy.release()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._enter()
        try:
            yield
        finally:
            self._leave()

    def _most(self) -> int:
        """Return the rows of the longest sequence."""
        return int(self._held.max(initial=0))

    def _make_room(self, new: int) -> None:
        """Make room for `new` more tokens of each sequence."""
        most = self._most()
        room = self._own[0][0].shape[2] if self._own else most + new
        if most + new <= room:
            return
        unreached = 0
        if self.window is not None and len(self):
            unreached = max(int(self._held.min()) - self.window, 0) // TILE * TILE
        # Letting go pays where what moves is no more than what goes; else there is more room.
        moves = unreached > 0 and most - unreached <= unreached
        if moves:
            room = max(room, most - unreached + new)
        else:
            unreached = 0
            room = max(2 * room, -(-(most + new) // TILE) * TILE)
        self._own = [tuple(_moved(array, unreached, most, room) for array in pair) for pair in self._own]  # type: ignore[misc]
        self._held = self._held - unreached
        self._gone += unreached

    def _advance(self, new: NDArray[np.int64]) -> None:
        """Count the tokens that a step has added."""
        self._held = self._held + new


def _pair(shape: tuple[int, ...], dtype: str) -> tuple[NDArray[Any], NDArray[Any]]:
    return np.zeros(shape, dtype), np.zeros(shape, dtype)


def _taken(array: NDArray[Any], index: NDArray[Any], most: int, room: int) -> NDArray[Any]:
    """Return the sequences of the index, with as much room; rows that nobody has are not copied."""
    taken = np.empty((len(index), array.shape[1], room, array.shape[3]), array.dtype)
    taken[:, :, :most] = array[index, :, :most]
    return taken


def _moved(array: NDArray[Any], first: int, most: int, room: int) -> NDArray[Any]:
    """Return the rows from `first` to `most` at the beginning of an array with room for `room`."""
    moved = np.empty((*array.shape[:2], room, array.shape[3]), array.dtype)
    moved[:, :, : most - first] = array[:, :, first:most]
    return moved
