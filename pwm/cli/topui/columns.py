"""What a table of `pwm top` is made of: columns with title, width, order and look, for screen and text.

A cell is a list of (text, role) pieces; the role names a colour that the screen's style sheet gives and
plain text ignores. Columns that matter least leave first when the screen is narrow (`priority`), so that
80 columns show what one looks for and 200 show everything.

A bar tells three things: heavy line = in use, dashed = promised to containers but not in use, thin = free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Row = TypeVar("Row")
Piece = tuple[str, str]
Cell = list[Piece]

# Share of a thing in use from which it is drawn in the warning colour, and in the alarming one.
WARM, HOT = 0.7, 0.9


@dataclass(frozen=True)
class Column(Generic[Row]):
    key: str
    title: str
    width: int
    cell: Callable[[Row, int], Cell]
    # What rows are sorted by; big numbers come first, words in order.
    order: Callable[[Row], Any]
    right: bool = False
    # Lower leaves first; 9 never leaves.
    priority: int = 5
    # Takes a part of the width that is left over, in proportion.
    flex: int = 0
    # As plain text, when the cell is a drawing.
    plain: Callable[[Row], str] | None = None


@dataclass(frozen=True)
class Table(Generic[Row]):
    """Columns of one kind of row, how to tell rows apart, and what a filter looks in."""

    title: str
    columns: Sequence[Column[Row]]
    identity: Callable[[Row], str]
    words: Callable[[Row], str]
    sort: str
    descending: bool

    def column(self, key: str) -> Column[Row]:
        return next(column for column in self.columns if column.key == key)

    def arrange(self, rows: Sequence[Row], *, sort: str, descending: bool, text: str) -> list[Row]:
        """Rows that contain the text, sorted; equal ones stay in the order of their identity."""
        wanted = text.lower()
        chosen = [row for row in rows if wanted in self.words(row).lower()] if wanted else list(rows)
        chosen.sort(key=self.identity)
        chosen.sort(key=self.column(sort).order, reverse=descending)
        return chosen


# Command lines are other people's text, and a terminal obeys what is not printable.
_CONTROL = dict.fromkeys((*range(32), *range(127, 160)), "�")


def printable(text: str) -> str:
    """The text without anything that could steer a terminal."""
    return text.translate(_CONTROL)


# --- pieces of cells --------------------------------------------------------------------------------


def heat(share: float) -> str:
    return "hot" if share >= HOT else "warm" if share >= WARM else "cool"


def bar(used: float, held: float, total: float, *, width: int) -> Cell:
    """A line of `width` characters: in use, promised, free."""
    if width <= 0:
        return []
    if total <= 0:
        return [("─" * width, "track")]
    share = min(1.0, max(0.0, used / total))
    halves = round(share * width * 2)
    if halves == 0 and share > 0.005:
        halves = 1
    full, half = divmod(halves, 2)
    promised = max(0, min(width, round(held / total * width)) - full - half)
    free = width - full - half - promised
    pieces = [("━" * full + "╸" * half, heat(share)), ("╍" * promised, "held"), ("─" * free, "track")]
    return [piece for piece in pieces if piece[0]]


def gauge(used: float, held: float, total: float, *, label: str, width: int, label_width: int) -> Cell:
    """A bar with its figure to the right."""
    drawn = bar(used, held, total, width=max(0, width - label_width - 1))
    role = heat(used / total) if total > 0 else "dim"
    return [*drawn, (f" {label:>{label_width}}", "text" if role == "cool" else role)]


def short_size(value: float) -> str:
    """Four or five characters: 812M, 1.4G."""
    amount = float(value)
    for unit in ("B", "K", "M", "G", "T"):
        if abs(amount) < 1000 or unit == "T":
            break
        amount /= 1024
    return f"{amount:.1f}{unit}" if unit not in "BK" and amount < 10 else f"{amount:.0f}{unit}"


def pair(used: float, total: float) -> str:
    return f"{short_size(used)}/{short_size(total)}" if total else short_size(used)


def cores(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def rate(value: float) -> str:
    return f"{short_size(value)}/s" if value >= 1 else "0"
