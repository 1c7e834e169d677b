"""The account of a call's time: what the arithmetic needs at the machine's peak, and what takes the rest.

Times are thread-seconds: a call that takes one second on two threads has two of them to account for. The
clock is read by a build of headwise that differs in nothing else (`Measured.stages`); what the readings
themselves cost is taken out by their number. Shares are of the time of the ordinary build, so that what
the account fails to explain is a number of its own, the last.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from benchmarks.report import markdown_row

ITEMS = {
    "product": "products with weights, beside the peak, when everything is in the caches",
    "memory": "the same products in the model, where weights and rows have to be fetched",
    "attention": "both products of attention, beside the peak, and its quotients",
    "packing": "keys and values, fetched, turned and packed",
    "softmax": "scores, maxima, exponentials, sums",
    "activation": "behind the first product of the feed-forward part",
    "residual": "added behind the last products",
    "norm": "layer norm",
    "embedding": "rows of three tables, added",
    "threads": "tasks dealt out, threads that wait for one another or have nothing to do",
    "boundary": "from Python into the crate and back",
    "other": "the rest inside the call: buffers, lists of tasks and sequences",
    "unaccounted": "what is left",
}
"""The columns of the account, and what they are."""

PARTS = {
    "packing": ("packing",),
    "softmax": ("softmax",),
    "activation": ("activation",),
    "residual": ("residual",),
    "norm": ("norm",),
    "embedding": ("embedding", "pooling"),
    "other": ("other",),
}
"""Items that are stages of the crate as they come."""


@dataclass(frozen=True)
class Spent:
    """One call, the mean over a burst of them, in seconds."""

    seconds: float
    """From Python's call to its return."""
    calls: float = 0.0
    """Of these inside the crate."""
    stages: tuple[float, ...] = ()
    """By stage, over all threads, in the order that the crate names them."""
    spans: tuple[float, ...] = ()
    """How often the clock was read, by stage."""

    @staticmethod
    def mean(bursts: Sequence["Spent"]) -> "Spent":
        """Return the mean; being one, its parts add up as those of each burst do."""
        columns = [[getattr(burst, field.name) for burst in bursts] for field in fields(Spent)]
        seconds, calls, stages, spans = columns
        return Spent(_mean(seconds), _mean(calls), _means(stages), _means(spans))


def middle(bursts: Sequence[Spent]) -> Spent:
    """Return the mean of bursts without the quickest and the slowest quarter, which others disturbed."""
    ordered = sorted(bursts, key=lambda burst: burst.seconds)
    cut = len(ordered) // 4
    return Spent.mean(ordered[cut : len(ordered) - cut])


@dataclass(frozen=True)
class Measured:
    """What was measured of one kind of work with one number of threads."""

    name: str
    threads: int
    product_operations: float
    attention_operations: float
    peak: float
    """GFLOP/s of the peak loop on all threads."""
    ordinary: float
    """Seconds of a call of the ordinary build."""
    names: tuple[str, ...]
    """Names of the stages."""
    accounted: Spent
    """A call of the build that reads the clock."""
    mark: float
    """Seconds that reading the clock takes."""
    alone: float
    """Thread-seconds of the products when each is called alone, again and again."""

    @property
    def operations(self) -> float:
        """Floating-point operations of a call."""
        return self.product_operations + self.attention_operations

    @property
    def rate(self) -> float:
        """GFLOP/s of the ordinary build."""
        return self.operations / self.ordinary / 1e9

    @property
    def reached(self) -> float:
        """The rate as a part of the peak."""
        return self.rate / self.peak

    @property
    def clock(self) -> float:
        """What reading the clock added to the time, as a part of it; no item has it."""
        return self.mark * sum(self.accounted.spans) / (self.threads * self.ordinary)

    def items(self) -> dict[str, float]:
        """Return each item of `ITEMS` as a part of the ordinary build's time; with `reached` they make 1."""
        spent = self.accounted
        spans = dict(zip(self.names, spent.spans, strict=True))
        read = dict(zip(self.names, spent.stages, strict=True))
        stages = {name: seconds - self.mark * spans[name] for name, seconds in read.items()}
        # A thread that has no task is at no stage, or waits at "threads".
        busy = sum(seconds for name, seconds in read.items() if name != "threads")
        idle = self.threads * spent.calls - busy - self.mark * spans["threads"]
        at_peak = self.threads / self.peak / 1e9
        taken = {item: sum(stages[name] for name in names) for item, names in PARTS.items()}
        taken |= {
            "product": self.alone - self.product_operations * at_peak,
            "memory": stages["product"] - self.alone,
            "attention": stages["attention product"]
            + stages["attention"]
            - self.attention_operations * at_peak,
            "threads": idle,
            "boundary": self.threads * (spent.seconds - spent.calls),
        }
        total = self.threads * self.ordinary
        shares = {item: taken[item] / total for item in ITEMS if item in taken}
        return shares | {"unaccounted": 1.0 - self.reached - sum(shares.values())}


def table(rows: Sequence[Measured]) -> str:
    """Return the account of some kinds of work in Markdown, in percent of their time."""
    titles = ["work", "GFLOP/s", "at peak", *ITEMS, "(clock)"]
    lines = [markdown_row(titles), markdown_row(["---", *["---:"] * (len(titles) - 1)])]
    for row in rows:
        shares = [row.reached, *row.items().values(), row.clock]
        cells = [row.name, f"{row.rate:.0f}", *(f"{100 * share:.1f}" for share in shares)]
        lines.append(markdown_row(["0.0" if cell == "-0.0" else cell for cell in cells]))
    return "\n".join(lines)


def legend() -> str:
    """Return what the columns are, as a list."""
    return "\n".join(f"- *{item}*: {meaning}" for item, meaning in ITEMS.items())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _means(rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(map(_mean, zip(*rows, strict=True)))
