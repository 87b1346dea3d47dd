"""How wide columns are and how high panes are: pure arithmetic, so that it can be tested without a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pwm.cli.topui.columns import Cell, Column

GAP = 2
# A flexible column grows to no more than so many times its own width; wider is only emptier.
GROWTH = 3
# Border above and below, and the line of titles.
PANE_FRAME = 3
# Fewer rows than this say nothing.
LEAST_ROWS = 2
SPARKS = "▁▂▃▄▅▆▇█"


def fit(columns: Sequence[Column[Any]], width: int) -> list[tuple[Column[Any], int]]:
    """The columns that have room in `width`, in order, with the width of each.

    Those of low priority leave first; what is then left over goes to flexible ones.
    """
    kept = list(columns)
    while len(kept) > 1 and _needed(kept) > width:
        # Of equal ones the last leaves.
        kept.remove(min(reversed(kept), key=lambda column: column.priority))
    widths = {column.key: column.width for column in kept}
    spare = width - _needed(kept)
    while spare > 0:
        growing = [c for c in kept if c.flex and widths[c.key] < c.width * GROWTH]
        if not growing:
            break
        total = sum(c.flex for c in growing)
        for column in growing:
            share = min(max(1, spare * column.flex // total), column.width * GROWTH - widths[column.key], spare)
            widths[column.key] += share
            spare -= share
            total -= column.flex
            if spare <= 0 or total <= 0:
                break
    return [(column, widths[column.key]) for column in kept]


def _needed(columns: Sequence[Column[Any]]) -> int:
    return sum(column.width for column in columns) + GAP * (len(columns) - 1)


def pane_heights(available: int, rows: Sequence[int]) -> list[int]:
    """Heights of panes above each other for so many rows each; the last takes what is left over.

    Each gets what it needs while there is room; the last one is promised half, the others share the rest.
    """
    *upper, _ = rows
    room = max(0, available - max(available // 2, PANE_FRAME + LEAST_ROWS))
    heights = []
    for position, count in enumerate(upper):
        share = room // (len(upper) - position)
        height = min(count + PANE_FRAME, max(share, 0)) if count else 0
        if height < PANE_FRAME + min(LEAST_ROWS, count):
            height = 0
        heights.append(height)
        room -= height
    return [*heights, available - sum(heights)]


def trim(cell: Cell, width: int) -> Cell:
    """The cell cut to `width` characters, with an ellipsis where it was longer."""
    length = cell_length(cell)
    if length <= width:
        return cell
    pieces, left = [], width - 1
    role = ""
    for text, role in cell:
        if len(text) > left:
            pieces.append((text[:left] + "…", role))
            return pieces
        pieces.append((text, role))
        left -= len(text)
    return [*pieces, ("…", role)]


def cell_length(cell: Cell) -> int:
    return sum(len(text) for text, _ in cell)


def placed(cell: Cell, *, width: int, right: bool) -> Cell:
    """The cell trimmed and filled to exactly `width` characters."""
    cell = trim(cell, width)
    filling = (" " * (width - cell_length(cell)), "")
    if not filling[0]:
        return cell
    return [filling, *cell] if right else [*cell, filling]


def sparkline(values: Iterable[float], width: int) -> str:
    """The last `width` values (0..1) as a line of little bars, right-aligned."""
    last = list(values)[-width:] if width > 0 else []
    drawn = "".join(SPARKS[min(len(SPARKS) - 1, int(max(0.0, v) * len(SPARKS)))] for v in last)
    return drawn.rjust(width)
