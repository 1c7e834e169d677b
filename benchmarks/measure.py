"""Time contestants in turn, in one process, so that the ratios hold even where the clock does not.

A turn is a burst of calls of one contestant. Thread pools differ in how long their idle workers keep spinning
before they sleep (OpenMP and ONNX Runtime for milliseconds), and a spinning worker of one library takes the
core that the next one needs. To switch spinning off would handicap its owner, whose own next call finds the
workers awake. So it stays on: between turns of several threads there is a pause in which idle workers fall
asleep, and the first call of a burst, which pays for waking one's own, is not counted (unless it is the only
one, of a burst's length). The peak loop and the read loop have their turns among the contestants.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeAlias

import numpy as np

from benchmarks.results import OURS, Result
from benchmarks.row import Row
from headwise._core import _peak_gflops

BURST = 0.1
"""Seconds of a turn, where one call does not take longer."""
PAUSE = 0.05
"""Seconds between turns when several threads compute: longer than any peer's workers spin."""
TOLERANCE = 1e-4
"""How far a peer's result may be from headwise's, in absolute terms: results are of the order of 1."""

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


class UnequalError(RuntimeError):
    """A peer computes something else than headwise does: to compare the times would mean nothing."""


@dataclass(frozen=True)
class Plan:
    """How long to measure, and with how many threads."""

    threads: int = 1
    seconds: float = 2.0
    """How long each contestant of a row computes at least, if `turns` allow."""
    turns: int = 3
    """The least number of turns of each contestant."""


def check_equal(row: str, peer: str, ours: Array, theirs: Array) -> None:
    """Raise `UnequalError` unless a peer's result is the same as ours, up to rounding."""
    if ours.shape != theirs.shape:
        raise UnequalError(f"{row}: {OURS} gives shape {ours.shape}, {peer} {theirs.shape}")
    difference = float(np.abs(ours - theirs).max(initial=0.0))
    if not difference <= TOLERANCE:  # so that NaN is unequal too
        raise UnequalError(
            f"{row}: {peer} differs from {OURS} by {difference:.1e}, more than {TOLERANCE:.0e}"
        )


def burst(call: Callable[[], object], seconds: float) -> list[float]:
    """Return the times of calls that fill `seconds`; the first is left out unless it fills them alone."""
    end = time.perf_counter() + seconds
    times: list[float] = []
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times[1:] or times


def measure(row: Row, plan: Plan) -> Result:
    """Check that all contestants of a row agree, then time them in turn and return the medians."""
    expected = np.asarray(row.contestants[OURS]())
    for name, call in row.contestants.items():
        check_equal(row.name, name, expected, np.asarray(call()))
    del expected

    times: dict[str, list[float]] = {name: [] for name in row.contestants}
    peaks: list[float] = []
    bandwidths: list[float] = []
    while len(peaks) < plan.turns or min(sum(taken) for taken in times.values()) < plan.seconds:
        peaks.append(_peak_gflops("float32", plan.threads))
        if row.bytes_read:
            bandwidths.append(bandwidth(plan.threads))
        for name, call in row.contestants.items():
            if plan.threads > 1:
                time.sleep(PAUSE)
            times[name] += burst(call, BURST)
    return Result(
        name=row.name,
        operations=row.operations,
        peak=statistics.median(peaks),
        seconds={name: statistics.median(taken) for name, taken in times.items()},
        bytes_read=row.bytes_read,
        bandwidth=statistics.median(bandwidths) if bandwidths else None,
        items=row.items,
        unit=row.unit,
    )


def bandwidth(threads: int) -> float:
    """Return the GB/s at which threads read memory, each its part of an array that no cache holds.

    `np.max` is the read loop: for float32 it is one vector instruction for each load, unrolled, so that it
    waits for memory and for nothing else; it releases the GIL.
    """
    array, pool = _long_array(), _readers(threads)
    parts: Sequence[Array] = np.array_split(array, threads)
    start = time.perf_counter()
    list(pool.map(np.max, parts)) if threads > 1 else np.max(array)
    return array.nbytes / (time.perf_counter() - start) / 1e9


@cache
def _long_array() -> Array:
    return np.ones(1 << 26, np.float32)  # 256 MB


_readers = cache(partial(ThreadPoolExecutor, thread_name_prefix="read"))
