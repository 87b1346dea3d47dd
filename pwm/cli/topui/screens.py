"""The screens of `pwm top`: everything, one workload, and the help.

A screen gets each beat through `show` and decides what to draw of it; it never asks the server itself,
but for one workload's processes. Heights are worked out from what there is to show: the workloads,
which one looks at most, get at least half.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.screen import ModalScreen, Screen
from textual.widgets import Input, Static

from pwm.cli.target import Target
from pwm.cli.topui import tables
from pwm.cli.topui.feed import ProcessFeed
from pwm.cli.topui.gauges import Gauges, cluster_measures, workload_measures
from pwm.cli.topui.layout import pane_heights
from pwm.cli.topui.rows import Rows
from pwm.cli.topui.snapshot import Snapshot, WorkloadRow
from pwm.cli.topui.tables import ProcessRow

if TYPE_CHECKING:
    from pwm.cli.topui.app import TopApp

HELP = """\
[b]Moving[/b]
  [b]↑ ↓ PgUp PgDn Home End[/b]  the cursor     [b]Enter[/b]  open a workload
  [b]Tab[/b]  next table                        [b]Esc[/b]    back, or drop the filter

[b]Ordering[/b]
  [b]s S[/b]  by the next, previous column      [b]r[/b]  the other way round
  [b]/[/b]    only rows with this text          or click a title

[b]View[/b]
  [b]z[/b]    this table alone, and back        [b]?[/b]  this help    [b]q[/b]  quit

[b]Bars[/b]
  [$success]━━━[/][$secondary]╍╍╍[/][$panel-lighten-2]───[/]    in use, promised but not in use, free
  [$success]━━━[/] [$warning]━━━[/] [$error]━━━[/]  in use: little, from 70 %, from 90 %
"""
KEYS = "[b]q[/b] quit  [b]Tab[/b] table  [b]s[/b] sort  [b]r[/b] reverse  [b]/[/b] filter  [b]z[/b] zoom  [b]?[/b] help"


class HelpScreen(ModalScreen[None]):
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,question_mark,enter", "app.pop_screen", show=False)]
    DEFAULT_CSS = """
    HelpScreen { align: center middle; }
    HelpScreen Static { width: 78; height: auto; border: round $accent; padding: 0 1; background: $surface; }
    """

    def compose(self) -> ComposeResult:
        box = Static(HELP)
        box.border_title = "pwm top"
        yield box


class TablesScreen(Screen[None]):
    """A head line, gauges, tables above each other, and a line of keys that becomes the filter's input.

    A screen says which tables there are (`tables`), what goes into them (`fill`), and what it shows (`place`).
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "app.quit", show=False),
        Binding("slash", "filter", show=False),
        Binding("escape", "back", show=False),
        Binding("z", "zoom", show=False),
        Binding("question_mark,h,f1", "help", show=False),
    ]
    DEFAULT_CSS = """
    TablesScreen {
        background: $background;
        #head { height: 1; padding: 0 2; background: $panel; }
        #head Static { height: 1; width: auto; }
        #head #place { width: 1fr; }
        #keys { height: 1; padding: 0 2; color: $text-muted; }
        #filter { height: 1; border: none; padding: 0 2; display: none; background: $panel; }
        Rows { display: none; }
        Rows.shown { display: block; }
    }
    """
    # Ids of the tables from top to bottom, and the one that the cursor starts in.
    TABLES: ClassVar[tuple[str, ...]] = ()
    FIRST: ClassVar[str] = ""

    def __init__(self) -> None:
        super().__init__()
        self._zoomed = ""
        self._filtering = False
        self._last: Snapshot | None = None

    @property
    def top(self) -> TopApp:
        return cast("TopApp", self.app)

    @property
    def is_drawn(self) -> bool:
        """Its parts are there: not yet when it has just been pushed, no more when the application ends."""
        return self.is_mounted and bool(self.query("#gauges"))

    def compose(self) -> ComposeResult:
        with Horizontal(id="head"):
            yield Static("", id="place")
            yield Static("", id="state")
        yield Gauges(id="gauges")
        yield from self.tables()
        yield Input(placeholder="only rows with this text; Enter keeps it, Esc drops it", id="filter", compact=True)
        yield Static(KEYS, id="keys")

    def tables(self) -> ComposeResult:
        yield from ()

    def on_mount(self) -> None:
        self.rows(self.FIRST).focus()
        if self.top.snapshot is not None:
            self.show(self.top.snapshot)
        self.show_state()

    def rows(self, name: str) -> Rows:
        return self.query_one(f"#{name}", Rows)

    # --- what comes in ----------------------------------------------------------------------------

    def show(self, snapshot: Snapshot) -> None:
        """Draws a beat."""
        self._last = snapshot
        self.fill(snapshot)
        self.share_out()
        self.show_state()

    def fill(self, snapshot: Snapshot) -> None:
        """Draws what is the screen's own."""

    def place(self) -> str:
        """What stands at the left of the head line, as markup-free text."""
        return f"pwm top · {self.top.place}"

    def show_state(self) -> None:
        trouble = self.top.trouble
        state = f"[$error]○ {_escaped(trouble)}[/]" if trouble else "[$success]●[/] live"
        if not trouble and self._last is None:
            state = "waiting for the first figures"
        clock = f"  {self._last.time.astimezone():%H:%M:%S}" if self._last else ""
        self.query_one("#place", Static).update(_escaped(self.place()))
        self.query_one("#state", Static).update(f"{state}{clock}")

    def share_out(self) -> None:
        """Gives each table its height; those without rows, but for the last, are not shown."""
        tables = [self.rows(name) for name in self.TABLES]
        gauges = self.query_one(Gauges)
        available = self.size.height - 2 - int(gauges.styles.height.value if gauges.styles.height else 0)
        if self._zoomed:
            heights = [available if table.id == self._zoomed else 0 for table in tables]
        else:
            heights = pane_heights(available, [table.count for table in tables])
        for table, height in zip(tables, heights, strict=True):
            table.set_class(height > 0, "shown")
            if height > 0:
                table.styles.height = height
        if not self._filtering and not any(t.has_focus and t.has_class("shown") for t in tables):
            self.rows(self._zoomed or self.FIRST).focus()

    def on_resize(self) -> None:
        self.share_out()

    # --- keys -------------------------------------------------------------------------------------

    def _focused(self) -> Rows:
        return self.focused if isinstance(self.focused, Rows) else self.rows(self.FIRST)

    def action_zoom(self) -> None:
        self._zoomed = "" if self._zoomed else str(self._focused().id)
        self.share_out()

    def action_help(self) -> None:
        self.app.push_screen(HelpScreen())

    def action_filter(self) -> None:
        field = self.query_one("#filter", Input)
        self._show_field(True)
        self._filtered = self._focused()
        field.value = self._filtered.filter
        # Not `field.focus()`, which takes effect later: what is typed right behind the key belongs to the field.
        self.set_focus(field)

    def on_input_changed(self, event: Input.Changed) -> None:
        self._filtered.filter = event.value

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self._close_filter()

    def _show_field(self, shown: bool) -> None:
        # Set directly, not by a class of the style sheet: only what is displayed already can take the focus.
        self._filtering = shown
        self.query_one("#filter", Input).display = shown
        self.query_one("#keys").display = not shown

    def _close_filter(self) -> None:
        self._show_field(False)
        self.set_focus(self._filtered)

    def action_back(self) -> None:
        if self._filtering:
            self._filtered.filter = ""
            self._close_filter()
        elif self._focused().filter:
            self._focused().filter = ""
        elif self._zoomed:
            self.action_zoom()
        elif len(self.app.screen_stack) > self.top.base_screens:
            self.app.pop_screen()


class Overview(TablesScreen):
    """Nodes, GPUs, workloads."""

    TABLES = ("nodes", "gpus", "workloads")
    FIRST = "workloads"

    def tables(self) -> ComposeResult:
        yield Rows(tables.NODES, id="nodes")
        yield Rows(tables.GPUS, id="gpus")
        yield Rows(tables.workloads(None), id="workloads")

    def place(self) -> str:
        parts = [super().place()]
        if self._last:
            ready = sum(node.phase == "READY" for node in self._last.nodes)
            parts.append(f"{ready} of {len(self._last.nodes)} nodes ready")
            parts.append(f"{len(self._last.containers)} containers")
        return " · ".join(parts)

    def fill(self, snapshot: Snapshot) -> None:
        self.query_one(Gauges).show(cluster_measures(snapshot))
        self.rows("nodes").show(tables.NODES, snapshot.nodes)
        self.rows("gpus").show(tables.GPUS, snapshot.gpus)
        self.rows("workloads").show(tables.workloads(snapshot.time), snapshot.workloads)

    def on_rows_opened(self, event: Rows.Opened) -> None:
        if isinstance(event.row, WorkloadRow):
            self.app.push_screen(OneWorkload(Target(event.row.name, group=event.row.group)))


class OneWorkload(TablesScreen):
    """One workload: its containers, its GPUs, its processes."""

    TABLES = ("containers", "gpus", "processes")
    FIRST = "processes"

    def __init__(self, target: Target) -> None:
        super().__init__()
        self._target = target
        self._processes: ProcessFeed | None = None
        self._titles: list[str] = []

    def tables(self) -> ComposeResult:
        yield Rows(tables.containers(None), id="containers")
        yield Rows(tables.GPUS, id="gpus")
        yield Rows(tables.processes(()), id="processes")

    def on_mount(self) -> None:
        super().on_mount()
        self._processes = ProcessFeed(self.top.profile, self._target, listed=self._listed_elsewhere)
        self._processes.start()

    def on_unmount(self) -> None:
        if self._processes is not None:
            self._processes.stop()

    def _listed_elsewhere(self, titles: list[str], rows: list[ProcessRow], trouble: str) -> None:
        """From the feed's thread."""
        self.top.from_thread(lambda: self._listed(titles, rows, trouble))

    def _listed(self, titles: list[str], rows: list[ProcessRow], trouble: str) -> None:
        if not self.is_mounted:
            return
        self._titles = titles or self._titles
        self.rows("processes").show(tables.processes(self._titles), rows, note=trouble)
        self.share_out()

    def place(self) -> str:
        group = f"{self._target.group}/" if self._target.group else ""
        return f"{super().place()} · {group}{self._target.name}"

    def fill(self, snapshot: Snapshot) -> None:
        mine = [
            container
            for container in snapshot.containers
            if container.workload == self._target.name and self._target.group in ("", container.group)
        ]
        names = {f"{container.group}/{container.name}" for container in mine}
        self.query_one(Gauges).show(workload_measures(mine, snapshot))
        note = "" if mine else "nothing runs; `pwm why` says why"
        self.rows("containers").show(tables.containers(snapshot.time), mine, note=note)
        self.rows("gpus").show(tables.GPUS, [gpu for gpu in snapshot.gpus if gpu.holder in names])


def _escaped(text: Any) -> str:
    """Text that is no markup."""
    return str(text).replace("[", "\\[")
