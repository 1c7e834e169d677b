"""The chart of a run: a line for each kind of work, a mark for each contestant at its share of the limit.

Written as SVG by hand, since it is a few dozen shapes. It brings its own background and follows the reader's
light or dark setting, so that it can be read on any page. Colours are told apart by people who confuse red
and green (Okabe and Ito's), and every contestant has a shape of its own as well.
"""

from collections.abc import Sequence
from html import escape

from benchmarks.report import threads_of
from benchmarks.results import OURS, Result, contestants

WIDTH, LABELS, RIGHT = 900, 330, 30
"""Of the whole, of the names of the work on the left, and of what is free on the right."""
LINE, TOP, BOTTOM = 26, 78, 44
"""Height of a row, of title and legend, of the axis."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#7f7f7f", "#56b4e9")
"""Of headwise and its peers in the order of appearance; then they repeat."""
SHAPES = (
    "M-7 0A7 7 0 1 0 7 0A7 7 0 1 0-7 0Z",  # disc
    "M-5-5H5V5H-5Z",  # square
    "M0-6L6 5H-6Z",  # triangle
    "M0-7L6 0L0 7L-6 0Z",  # diamond
    "M0 6L6-5H-6Z",  # triangle, standing on its tip
    "M-5.5-3L-3-5.5L0-2.5L3-5.5L5.5-3L2.5 0L5.5 3L3 5.5L0 2.5L-3 5.5L-5.5 3L-2.5 0Z",  # cross
    "M-6-3H6V3H-6Z",  # bar
)
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f; }
.title { font-size: 15px; font-weight: 600; }
.page { fill: #ffffff; stroke: #d0d7de; }
.grid { stroke: #d8dee4; }
.ours { font-weight: 600; }
.mark { stroke: #ffffff; stroke-width: 1; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .page { fill: #161b22; stroke: #30363d; }
  .grid { stroke: #343b43; }
  .mark { stroke: #161b22; }
}
"""


def position(share: float) -> float:
    """Return the x of a share of the limit; beyond 105 % (a busy machine) a mark stays at the edge."""
    return LABELS + (WIDTH - LABELS - RIGHT) * min(share, 1.05) / 1.05


def svg(results: Sequence[Result], threads: int) -> str:
    """Return the chart of a run."""
    everybody = contestants(results)
    bottom = TOP + LINE * len(results)
    title = f"Share of the machine's limit, float32, {threads_of(threads)}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + BOTTOM}" role="img" '
        f'aria-label="{escape(title)}">',
        f"<style>{STYLE}</style>",
        f'<rect class="page" x="0.5" y="0.5" width="{WIDTH - 1}" height="{bottom + BOTTOM - 1}" rx="8"/>',
        f'<text class="title" x="20" y="28">{escape(title)}</text>',
        *_legend(everybody),
    ]
    for percent in range(0, 101, 20):
        x = position(percent / 100)
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 22}" text-anchor="middle">{percent}%</text>')
    for i, result in enumerate(results):
        parts += _row(result, everybody, TOP + LINE * (i + 0.5))
    return "\n".join([*parts, "</svg>\n"])


def _legend(everybody: Sequence[str]) -> list[str]:
    x, parts = 28.0, []
    for name in everybody:
        css = ' class="ours"' if name == OURS else ""
        parts += [
            _mark(everybody, name, x, 52),
            f'<text{css} x="{x + 13:.1f}" y="56.5">{escape(name)}</text>',
        ]
        x += 46 + 7.4 * len(name)
    return parts


def _row(result: Result, everybody: Sequence[str], y: float) -> list[str]:
    shares = {name: result.share(name) for name in result.seconds}
    ends = [position(share) for share in (min(shares.values()), max(shares.values()))]
    parts = [
        f'<text x="{LABELS - 14}" y="{y + 4.5:.1f}" text-anchor="end">{escape(result.name)}</text>',
        f'<path class="grid" stroke-width="2" d="M{ends[0]:.1f} {y:.1f}H{ends[1]:.1f}"/>',
    ]
    # headwise comes last, on top of the others.
    for name in sorted(shares, key=lambda name: name == OURS):
        rate = f"{result.rate(name):.1f} {result.unit}"
        tip = f"{result.name}: {name} {rate}, {100 * shares[name]:.0f}% of the limit"
        parts.append(_mark(everybody, name, position(shares[name]), y, tip))
    return parts


def _mark(everybody: Sequence[str], name: str, x: float, y: float, tip: str = "") -> str:
    i = everybody.index(name)
    inner = f"<title>{escape(tip)}</title>" if tip else ""
    return (
        f'<path class="mark" fill="{COLOURS[i % len(COLOURS)]}" d="{SHAPES[i % len(SHAPES)]}" '
        f'transform="translate({x:.1f} {y:.1f})">{inner}</path>'
    )
