"""A table that draws only the rows in sight, so that two thousand cost no more than twenty.

Rows are replaced as a whole at each beat; the cursor stays on the row it was on, by identity, wherever
that has moved to. Sorting and filtering are the table's (`columns.py`); here is only what they look like.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from pwm.cli.topui.columns import Cell, Column, Table
from pwm.cli.topui.layout import GAP, fit, placed

ROLES = ("text", "dim", "name", "cool", "warm", "hot", "good", "busy", "held", "track")


class Rows(ScrollView, can_focus=True):
    """One table with a title line, a cursor, an order and a filter."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "rows--title",
        "rows--sorted",
        "rows--cursor",
        *(f"rows--{role}" for role in ROLES),
    }
    DEFAULT_CSS = """
    Rows {
        border: round $panel-lighten-2; border-title-color: $text-muted; padding: 0 1;
        border-title-style: bold; scrollbar-size-vertical: 1; overflow-x: hidden;
        &:focus { border: round $accent; border-title-color: $accent; }
        .rows--title { color: $text-muted; text-style: bold; }
        .rows--sorted { color: $accent; text-style: bold; }
        .rows--cursor { background: $panel-lighten-1; text-style: bold; }
        .rows--text { color: $foreground; }
        .rows--dim { color: $text-muted; }
        .rows--name { color: $foreground; text-style: bold; }
        .rows--cool { color: $success; }
        .rows--warm { color: $warning; }
        .rows--hot { color: $error; text-style: bold; }
        .rows--good { color: $success; }
        .rows--busy { color: $accent; }
        .rows--held { color: $secondary; }
        .rows--track { color: $panel-lighten-2; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", show=False),
        Binding("down,j", "move(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown", "page(1)", show=False),
        Binding("home,g", "move_to(0)", show=False),
        Binding("end,G", "move_to(-1)", show=False),
        Binding("s,greater_than_sign", "sort(1)", show=False),
        Binding("S,less_than_sign", "sort(-1)", show=False),
        Binding("r", "reverse", show=False),
        Binding("enter", "open", show=False),
    ]

    class Opened(Message):
        """Enter, or a second click, on a row."""

        def __init__(self, rows: Rows, row: Any) -> None:
            super().__init__()
            self.rows = rows
            self.row = row

    def __init__(self, table: Table[Any], *, id: str) -> None:
        super().__init__(id=id)
        self._table = table
        self._all: Sequence[Any] = ()
        self._rows: list[Any] = []
        self._sort = table.sort
        self._descending = table.descending
        self._filter = ""
        self._note = ""
        self._cursor = 0
        self._columns: list[tuple[Column[Any], int]] = []
        self._styles: dict[str, Style] = {}

    # --- what is shown ----------------------------------------------------------------------------

    def show(self, table: Table[Any], rows: Sequence[Any], *, note: str = "") -> None:
        """Shows these rows from now on; `note` stands in the title."""
        self._table, self._all, self._note = table, rows, note
        if self._sort not in {column.key for column in table.columns}:
            self._sort, self._descending = table.sort, table.descending
        self._arrange()

    @property
    def filter(self) -> str:
        return self._filter

    @filter.setter
    def filter(self, text: str) -> None:
        self._filter = text
        self._arrange()

    @property
    def count(self) -> int:
        """Rows there are, filtered out or not."""
        return len(self._all)

    @property
    def selected(self) -> Any:
        """The row under the cursor; None when there is none."""
        return self._rows[self._cursor] if self._rows else None

    def _arrange(self) -> None:
        at = self._table.identity(self.selected) if self._rows else ""
        self._rows = self._table.arrange(self._all, sort=self._sort, descending=self._descending, text=self._filter)
        found = next((i for i, row in enumerate(self._rows) if self._table.identity(row) == at), self._cursor)
        self._cursor = max(0, min(found, len(self._rows) - 1))
        self._measure()
        self.border_title = self._title()
        self.refresh()

    def _title(self) -> str:
        shown = f"{len(self._rows)} of {len(self._all)}" if self._filter else str(len(self._all))
        parts = [f"{self._table.title} {shown}"]
        if self._filter:
            parts.append(f"/{self._filter}")
        if self._note:
            parts.append(self._note)
        # Text of users and servers is never markup.
        return " · ".join(parts).replace("[", "\\[")

    def _measure(self) -> None:
        width = max(1, self.scrollable_content_region.width)
        self._columns = fit(self._table.columns, width)
        self.virtual_size = Size(width, len(self._rows) + 1)

    def on_resize(self) -> None:
        self._measure()
        self._keep_in_sight()

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._styles = {}

    # --- drawing ----------------------------------------------------------------------------------

    def render_line(self, y: int) -> Strip:
        width = self.scrollable_content_region.width
        index = y - 1 + self.scroll_offset.y
        if y == 0:
            segments = self._title_segments()
        elif index < len(self._rows):
            segments = self._row_segments(self._rows[index], under_cursor=index == self._cursor and self.has_focus)
        else:
            segments = [Segment(" " * width, self.rich_style)]
        return Strip(segments).adjust_cell_length(width, self.rich_style).crop(0, width)

    def _title_segments(self) -> list[Segment]:
        segments = []
        for column, width in self._columns:
            sorted_by = column.key == self._sort
            mark = ("↓" if self._descending else "↑") if sorted_by else ""
            cell: Cell = [(f"{column.title}{mark}"[:width] if len(column.title) < width else column.title, "")]
            style = self._style("sorted" if sorted_by else "title")
            segments += [Segment(text, style) for text, _ in placed(cell, width=width, right=column.right)]
            segments.append(Segment(" " * GAP, style))
        return segments

    def _row_segments(self, row: Any, *, under_cursor: bool) -> list[Segment]:
        highlight = self._style("cursor") if under_cursor else Style.null()
        segments = []
        for column, width in self._columns:
            for text, role in placed(column.cell(row, width), width=width, right=column.right):
                segments.append(Segment(text, self._style(role or "text") + highlight))
            segments.append(Segment(" " * GAP, self._style("text") + highlight))
        return segments

    def _style(self, role: str) -> Style:
        style = self._styles.get(role)
        if style is None:
            partial = role in ("cursor",)
            style = self._styles[role] = self.get_component_rich_style(f"rows--{role}", partial=partial)
        return style

    # --- moving and ordering ----------------------------------------------------------------------

    def action_move(self, by: int) -> None:
        self._move_to(self._cursor + by)

    def action_page(self, by: int) -> None:
        self._move_to(self._cursor + by * max(1, self.scrollable_content_region.height - 2))

    def action_move_to(self, index: int) -> None:
        self._move_to(index if index >= 0 else len(self._rows) - 1)

    def _move_to(self, index: int) -> None:
        self._cursor = max(0, min(index, len(self._rows) - 1))
        self._keep_in_sight()
        self.refresh()

    def _keep_in_sight(self) -> None:
        """Scrolls as little as needed; the title line covers the first line of the window."""
        height = self.scrollable_content_region.height - 1
        if height < 1:
            return
        top = self.scroll_offset.y
        if self._cursor < top:
            self.scroll_to(y=self._cursor, animate=False)
        elif self._cursor >= top + height:
            self.scroll_to(y=self._cursor - height + 1, animate=False)

    def action_sort(self, by: int) -> None:
        shown = [column for column, _ in self._columns]
        keys = [column.key for column in shown]
        at = keys.index(self._sort) if self._sort in keys else -by
        self._sort_by(shown[(at + by) % len(shown)])

    def _sort_by(self, column: Column[Any]) -> None:
        """Figures from the largest, words from A."""
        self._sort = column.key
        self._descending = bool(self._rows) and not isinstance(column.order(self._rows[0]), (str, tuple))
        self._arrange()

    def action_reverse(self) -> None:
        self._descending = not self._descending
        self._arrange()

    def action_open(self) -> None:
        if self._rows:
            self.post_message(self.Opened(self, self.selected))

    def on_click(self, event: events.Click) -> None:
        offset = event.get_content_offset(self)
        if offset is None:
            return
        if offset.y == 0:
            self._click_title(offset.x)
            return
        index = offset.y - 1 + self.scroll_offset.y
        if index < len(self._rows):
            again = index == self._cursor
            self._move_to(index)
            if again and event.chain > 1:
                self.action_open()

    def _click_title(self, x: int) -> None:
        at = 0
        for column, width in self._columns:
            if at <= x < at + width + GAP:
                if column.key == self._sort:
                    self.action_reverse()
                else:
                    self._sort_by(column)
                return
            at += width + GAP

    def watch_has_focus(self, value: bool) -> None:
        super().watch_has_focus(value)
        self.refresh(Region(0, 0, *self.size))
