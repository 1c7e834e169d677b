"""A row of the table before it is measured, and the numbers that rows are made of."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]
Calls: TypeAlias = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Row:
    """One kind of work: what it is called, how much it is, and who does it (see `Result` for the fields)."""

    name: str
    operations: float
    contestants: Calls
    bytes_read: float = 0.0
    items: float | None = None
    unit: str = "GFLOP/s"


def numbers(*shape: int) -> Array:
    """Return normal numbers, the same in each run."""
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
