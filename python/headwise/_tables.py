"""Tables of words and weights: plain text for terminals, HTML for notebooks.

Both show the same cells, a row for each head or layer. Text is escaped, and clipped by the columns that it
takes on a terminal, not by its characters. Colours are translucent blue over whatever lies below, and the
text keeps the colour that it inherits: readable on light and on dark pages.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

WORD_COLUMNS = 12
"""Terminal columns that a word takes at most."""
TABLE_COLUMNS = 100
"""Terminal columns that a table takes at most; one that is wider is continued below."""
MAX_ROWS, MAX_COLUMNS = 16, 12
"""Rows and columns of a bounded table, enough for every head of the usual models."""


class Cell(NamedTuple):
    """What stands in a cell, and the weight in 0 to 1 that colours it."""

    text: str
    weight: float


def shown(word: str, columns: int = WORD_COLUMNS) -> str:
    """Give a word as it is printed: without control characters, and clipped.

    Parameters
    ----------
    word : str
        Any text.
    columns : int
        Terminal columns that it may take.

    Returns
    -------
    str
        The word; one that was clipped ends in an ellipsis.
    """
    # Format characters (directions, joiners) would disturb the table; the others could command a terminal.
    plain = "".join(
        char if char.isprintable() else "\ufffd" for char in word if unicodedata.category(char) != "Cf"
    )
    if width(plain) <= columns:
        return plain
    end, room = 0, columns - 1
    while (room := room - _columns(plain[end])) >= 0:
        end += 1
    return plain[:end] + "…"


def width(text: str) -> int:
    """Tell how many columns of a terminal a text takes.

    Parameters
    ----------
    text : str
        Printable text.

    Returns
    -------
    int
        Two for each wide character, none for each combining mark, one for any other.
    """
    return sum(map(_columns, text))


def _columns(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def text_table(
    rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[Cell]], *, bounded: bool = False
) -> str:
    """Lay out a table as plain text.

    Parameters
    ----------
    rows : sequence of str
        A label for each row.
    columns : sequence of str
        A label for each column; all empty: no line for them.
    cells : sequence of sequence of Cell
        The cells of each row.
    bounded : bool
        Leave out what is beyond `MAX_ROWS` and `MAX_COLUMNS`, and say so.

    Returns
    -------
    str
        Lines without an end of line after the last; tables that are too wide are continued below.
    """
    kept_rows, kept_columns = _kept(rows, columns, bounded)
    texts = [[cell.text for cell in row[:kept_columns]] for row in cells[:kept_rows]]
    first = max((width(label) for label in rows[:kept_rows]), default=0)
    widths = [
        max(width(text) for text in (columns[at], *(row[at] for row in texts))) for at in range(kept_columns)
    ]
    blocks = []
    for start, end in _blocks(first, widths):
        lines = [] if not any(columns) else [("", columns[start:end])]
        lines += [(label, row[start:end]) for label, row in zip(rows, texts, strict=False)]
        blocks.append("\n".join(_line(first, widths[start:end], label, line) for label, line in lines))
    blocks.extend(_left_out(rows, columns, kept_rows, kept_columns))
    return "\n\n".join(blocks)


def html_table(
    caption: str,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[Sequence[Cell]],
) -> str:
    """Lay out a table as HTML, bounded in size.

    Parameters
    ----------
    caption : str
        What stands above it.
    rows, columns : sequence of str
        Their labels.
    cells : sequence of sequence of Cell
        The cells of each row.

    Returns
    -------
    str
        A ``div`` with all of its style in attributes: notebooks and their viewers strip style sheets.
    """
    kept_rows, kept_columns = _kept(rows, columns, True)
    plain = "text-align:left;padding:2px 8px;white-space:nowrap"
    head = "".join(f'<th style="{plain}">{html.escape(label)}</th>' for label in columns[:kept_columns])
    body = "".join(
        f'<tr><th style="{plain}">{html.escape(label)}</th>'
        + "".join(_html_cell(cell, plain) for cell in row[:kept_columns])
        + "</tr>"
        for label, row in zip(rows[:kept_rows], cells, strict=False)
    )
    notes = "".join(
        f"<div>{html.escape(note)}</div>" for note in _left_out(rows, columns, kept_rows, kept_columns)
    )
    return (
        '<div style="overflow-x:auto;color:inherit">'
        f'<div style="padding:2px 8px">{html.escape(caption)}</div>'
        '<table style="border-collapse:collapse;background:none;color:inherit">'
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>{notes}</div>"
    )


def _html_cell(cell: Cell, style: str) -> str:
    # Half opaque at most, so that the page's own colour of text stays readable; NaN shows no colour.
    strength = 0.5 * min(max(cell.weight, 0.0), 1.0) if cell.weight == cell.weight else 0.0
    return f'<td style="{style};background:rgba(40,120,240,{strength:.2f})">{html.escape(cell.text)}</td>'


def _kept(rows: Sequence[str], columns: Sequence[str], bounded: bool) -> tuple[int, int]:
    if not bounded:
        return len(rows), len(columns)
    return min(len(rows), MAX_ROWS), min(len(columns), MAX_COLUMNS)


def _left_out(rows: Sequence[str], columns: Sequence[str], kept_rows: int, kept_columns: int) -> list[str]:
    if (kept_rows, kept_columns) == (len(rows), len(columns)):
        return []
    return [f"({kept_rows} of {len(rows)} rows, {kept_columns} of {len(columns)} columns shown)"]


def _blocks(first: int, widths: Sequence[int]) -> list[tuple[int, int]]:
    """Cut the columns into blocks that are narrow enough; each holds at least one."""
    blocks, start, taken = [], 0, first
    for at, column in enumerate(widths):
        if at > start and taken + 2 + column > TABLE_COLUMNS:
            blocks.append((start, at))
            start, taken = at, first
        taken += 2 + column
    return [*blocks, (start, len(widths))]


def _line(first: int, widths: Sequence[int], label: str, texts: Sequence[str]) -> str:
    padded = [text + " " * (column - width(text)) for text, column in zip(texts, widths, strict=True)]
    return "  ".join([label + " " * (first - width(label)), *padded]).rstrip()
