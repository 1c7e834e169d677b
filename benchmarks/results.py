"""One measured row, and what follows from it: rates, the machine's limit, shares, ratios."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

OURS = "headwise"


@dataclass(frozen=True)
class Result:
    """The median times of all contestants for one kind of work, and the machine's limits in the same run."""

    name: str
    operations: float
    """Floating-point operations of one call: two per multiply-add, real tokens and allowed pairs only."""
    peak: float
    """GFLOP/s of a loop of independent fused multiply-adds."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Median seconds of a call, by contestant; headwise is always there."""
    bytes_read: float = 0.0
    """What one call must read from memory because no cache holds it; 0 where that is no limit."""
    bandwidth: float | None = None
    """GB/s of a plain read loop; measured only where `bytes_read` is not 0."""
    items: float | None = None
    """How many things one call gets done, where operations are not what people count."""
    unit: str = "GFLOP/s"

    def __post_init__(self) -> None:
        if OURS not in self.seconds:
            raise ValueError(f"{self.name}: {OURS} was not measured, only {sorted(self.seconds)}")

    @property
    def _amount(self) -> float:
        return self.operations / 1e9 if self.items is None else self.items

    def rate(self, contestant: str) -> float:
        """Return how much of `unit` a contestant gets done."""
        return self._amount / self.seconds[contestant]

    @property
    def limit(self) -> float:
        """The lower of two rates: if only the arithmetic took time, and if only the reading did."""
        least = self.operations / 1e9 / self.peak
        if self.bandwidth:
            least = max(least, self.bytes_read / 1e9 / self.bandwidth)
        return self._amount / least

    def share(self, contestant: str) -> float:
        """Return a contestant's rate as a part of the machine's limit."""
        return self.rate(contestant) / self.limit

    @property
    def peers(self) -> list[str]:
        """Everybody but headwise, in the order of measuring."""
        return [name for name in self.seconds if name != OURS]

    @property
    def best_peer(self) -> str | None:
        """The fastest of the peers, if there is one."""
        return min(self.peers, key=self.seconds.__getitem__, default=None)

    @property
    def ratio(self) -> float | None:
        """How many times as fast as the best peer headwise is."""
        best = self.best_peer
        return None if best is None else self.seconds[best] / self.seconds[OURS]


def contestants(results: Iterable[Result]) -> list[str]:
    """Return everybody who takes part in some row: headwise, then the peers in the order of appearance."""
    return list(dict.fromkeys([OURS, *(name for result in results for name in result.seconds)]))


def save(results: Sequence[Result], path: Path) -> None:
    """Write results as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")


def load(path: Path) -> list[Result]:
    """Read what `save` wrote."""
    return [Result(**entry) for entry in json.loads(path.read_text())]
