"""Tables of results, for the terminal and docs/performance.md, and the generated blocks of that page."""

import re
from collections.abc import Mapping, Sequence

from benchmarks.results import OURS, Result, contestants

FIXED = ("limit", OURS, "% of limit")
LAST = "ratio to the best"
BEYOND = 1.05
"""A share above which the limit must have been measured while others used the core. Calls that read may come
a little above 1, from what a cache still holds."""


def header(peers: Sequence[str]) -> list[str]:
    """Return the names of the columns."""
    return ["work", *FIXED, *peers, LAST]


def cells(result: Result, peers: Sequence[str]) -> list[str]:
    """Return one row; a peer that does not take part has an empty cell."""
    theirs = [_number(result.rate(peer)) if peer in result.seconds else "" for peer in peers]
    ratio = "" if result.ratio is None else f"{result.ratio:.2f}"
    share = f"{100 * result.share(OURS):.0f}%"
    return [result.name, _number(result.limit), _number(result.rate(OURS)), share, *theirs, ratio]


def text_table(results: Sequence[Result]) -> str:
    """Return a table for the terminal, every column as wide as its widest cell."""
    peers = contestants(results)[1:]
    rows = [header(peers), *(cells(result, peers) for result in results)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        numbers = (f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True))
        lines.append("  ".join([f"{first:<{widths[0]}}", *numbers]).rstrip())
    return "\n".join(lines)


def progress(result: Result) -> str:
    """Return one line that says how a row came out."""
    rates = ", ".join(f"{name} {_number(result.rate(name))}" for name in result.seconds)
    return f"{result.name}: {rates} {result.unit}; {100 * result.share(OURS):.0f}% of {_number(result.limit)}"


def disturbed(results: Sequence[Result]) -> str:
    """Return a warning that names the rows whose limit cannot be right, or nothing."""
    rows = [result.name for result in results if max(map(result.share, result.seconds)) > BEYOND]
    if not rows:
        return ""
    return f"The machine was busy: somebody is faster than the measured limit in {'; '.join(rows)}."


def markdown_table(results: Sequence[Result]) -> str:
    """Return a table for the documentation; the fastest contestant of each row is bold."""
    peers = contestants(results)[1:]
    titles = header(peers)
    lines = [markdown_row(titles), markdown_row(["---", *["---:"] * (len(titles) - 1)])]
    for result in results:
        row = cells(result, peers)
        fastest = min(result.seconds, key=result.seconds.__getitem__)
        row[titles.index(fastest)] = f"**{row[titles.index(fastest)]}**"
        lines.append(markdown_row(row))
    return "\n".join(lines)


def speed_section(results: Sequence[Result], facts: Mapping[str, str], chart: str) -> str:
    """Return the generated part about speed: the machine, the chart and the table."""
    threads = threads_of(int(facts["threads"]))
    title = f"## Speed, {threads}"
    return "\n\n".join(
        [title, facts_list(facts), f"![{chart_alt(threads)}]({chart})", markdown_table(results)]
    )


def chart_alt(threads: str) -> str:
    """Return what a reader who cannot see the chart is told."""
    return f"Share of the machine's limit that each library reaches ({threads}), as in the table"


def threads_of(threads: int) -> str:
    """Return the number of threads in words."""
    return f"{threads} thread{'' if threads == 1 else 's'}"


def facts_list(facts: Mapping[str, str]) -> str:
    """Return facts as a list."""
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def replace_block(page: str, name: str, body: str, writer: str = "make bench") -> str:
    """Return the page with the generated block of this name replaced, or added at the end.

    A block stands between ``<!-- begin NAME ... -->`` and ``<!-- end NAME -->``.
    """
    begin, end = f"<!-- begin {name}: written by `{writer}` -->", f"<!-- end {name} -->"
    block = f"{begin}\n\n{body.strip()}\n\n{end}"
    pattern = re.compile(rf"<!-- begin {re.escape(name)}\b[^\n]*-->\n.*?{re.escape(end)}", re.DOTALL)
    replaced, count = pattern.subn(lambda _: block, page)
    if count > 1:
        raise ValueError(f"the page has {count} blocks named {name!r}, expected one at most")
    return replaced if count else f"{page.rstrip()}\n\n{block}\n"


def markdown_row(row: Sequence[str]) -> str:
    """Return one line of a table."""
    return "| " + " | ".join(row) + " |"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"
