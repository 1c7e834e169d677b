"""Which kernels became slower: a record and a measurement compared, as a table and as an exit status."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

RENEW = "make bench-check BENCH_CHECK=write"
"""Makes the record anew."""


@dataclass(frozen=True)
class Verdict:
    """One kernel, then and now; a value is None where the kernel was not there."""

    name: str
    recorded: float | None
    now: float | None
    word: str
    """One of: same, SLOWER, faster, new, GONE; shown, where there is nothing to compare with."""

    @property
    def bad(self) -> bool:
        """Whether this fails the check."""
        return self.word in {"SLOWER", "GONE"}


def compare(
    recorded: Mapping[str, float], now: Mapping[str, float], allowed: float, *, less_is_better: bool
) -> list[Verdict]:
    """Return a verdict for each kernel; `allowed` is relative, and the same in both directions."""
    verdicts = []
    for name in dict.fromkeys([*recorded, *now]):
        then, this = recorded.get(name), now.get(name)
        if this is None:
            word = "GONE"
        elif then is None:
            word = "new"
        elif abs(this - then) <= allowed * then:
            word = "same"
        else:
            word = "faster" if (this < then) == less_is_better else "SLOWER"
        verdicts.append(Verdict(name, then, this, word))
    return verdicts


def table(title: str, verdicts: Sequence[Verdict], form: str) -> str:
    """Return the verdicts as text, in aligned columns; `form` is how a value is written."""
    rows: list[tuple[str, ...]] = [(title, "recorded", "now", "change", "")]
    for v in verdicts:
        values = ["" if x is None else format(x, form) for x in (v.recorded, v.now)]
        change = "" if v.recorded is None or v.now is None else f"{v.now / v.recorded - 1:+.1%}"
        rows.append((v.name, *values, change, "" if v.word in {"same", "shown"} else v.word))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *values, word in rows:
        numbers = [f"{value:>{width}}" for value, width in zip(values, widths[1:], strict=False)]
        lines.append("  ".join([f"{name:<{widths[0]}}", *numbers, word]).rstrip())
    return "\n".join(lines)


def conclusion(verdicts: Sequence[Verdict]) -> tuple[str, int]:
    """Return what to tell at the end, and the exit status."""
    bad = [v.name for v in verdicts if v.bad]
    better = [v.name for v in verdicts if v.word in {"faster", "new"}]
    lines = []
    if bad:
        lines.append(f"Slower than recorded, or gone: {'; '.join(bad)}.")
        lines.append(f"If that is meant, say why in the commit that renews the record: {RENEW}")
    if better:
        lines.append(f"Faster than recorded, or new: {'; '.join(better)}.")
        if not bad:
            lines.append(f"That the next change may not lose it, renew the record: {RENEW}")
    return "\n".join(lines or ["No kernel is slower than recorded."]), 1 if bad else 0
