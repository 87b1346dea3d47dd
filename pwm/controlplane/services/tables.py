"""Lists as text: the tables of `pwm get`, made by the server.

A client that draws tables from JSON pays seconds for 10,000 rows; rows of text made here cost
microseconds each, so the CLI only has to print. A kind's table is a `Layout`: titles, and a function that
turns a message into cells. Each message's fields are read once, widths are measured by column, and ages
come from whole seconds, because at this number of rows every look into a message counts.

`columns` holds the layouts, kind by kind.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from pwm.api.v1 import services_pb2 as api
from pwm.controlplane.services.columns import LAYOUTS, Cells, name_of

GAP = "  "


def render(kind: str, items: Iterable[Any], *, format: api.Format.ValueType, now_ms: int, with_group: bool) -> str:
    """The whole list: a header and a line for each item, or a name a line. "" without items."""
    table = Table(kind, format, with_group)
    if table.names_only:
        return "".join(f"{name_of(kind, item)}\n" for item in items)
    rows = table.cells(items, now_ms=now_ms)
    if not rows:
        return ""
    lines = [table.titles, *rows]
    template = _template([max(map(len, column)) for column in zip(*lines, strict=True)])
    return "\n".join([(template % line).rstrip() for line in lines]) + "\n"


class Table:
    """A table that grows line by line: widths are remembered, so that lines of a watch stay aligned."""

    def __init__(self, kind: str, format: api.Format.ValueType, with_group: bool) -> None:
        self._kind = kind
        self._layout = LAYOUTS[kind]
        self._wide = format == api.WIDE
        self._with_group = self._layout.grouped and (with_group or self._wide)
        self._header_shown = False
        self.names_only = format == api.NAME
        titles = self._layout.wide_titles if self._wide else self._layout.titles
        self.titles: Cells = ("GROUP", *titles) if self._with_group else titles
        self._widths = [len(title) for title in self.titles]

    def cells(self, items: Iterable[Any], *, now_ms: int) -> list[Cells]:
        """A row for each item, harmless on a terminal."""
        now_s = now_ms // 1000
        cells_of = self._layout.wide_cells if self._wide else self._layout.cells
        if self._with_group:
            rows = [(self._layout.group_of(item), *cells_of(item, now_s)) for item in items]
        else:
            rows = [cells_of(item, now_s) for item in items]
        return [row if "".join(row).isprintable() else tuple(map(harmless, row)) for row in rows]

    def measure(self, items: Iterable[Any], *, now_ms: int) -> None:
        """Make the columns wide enough for these items."""
        if not self.names_only:
            self._grow(self.cells(items, now_ms=now_ms))

    def row(self, item: Any, *, now_ms: int, gone: bool = False) -> str:
        """One line, without a line end; the first has the header above it. `gone`: the item was deleted."""
        if self.names_only:
            name = name_of(self._kind, item)
            return f"{name} deleted" if gone else name
        rows = self.cells([item], now_ms=now_ms)
        if gone:
            rows = [self._as_gone(rows[0])]
        self._grow(rows)
        lines = rows if self._header_shown else [self.titles, *rows]
        self._header_shown = True
        template = _template(self._widths)
        return "\n".join([(template % line).rstrip() for line in lines])

    def _as_gone(self, row: Cells) -> Cells:
        """The status of what is gone is that; a kind without statuses says it in its last column."""
        column = self.titles.index("STATUS") if "STATUS" in self.titles else len(row) - 1
        return (*row[:column], "DELETED", *row[column + 1 :])

    def _grow(self, rows: Sequence[Cells]) -> None:
        for column in range(len(self._widths)):
            self._widths[column] = max([self._widths[column], *(len(row[column]) for row in rows)])


def harmless(text: str) -> str:
    """Text whose control characters are spelled out, so that a name cannot steer somebody's terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _template(widths: Sequence[int]) -> str:
    """A %-template of the row; the last column is not padded."""
    return GAP.join([*(f"%-{width}s" for width in widths[:-1]), "%s"])
