"""What the tables of `pwm top` show: each column's title, width, order and look, for screen and text.

A cell is a list of (text, role) pieces; the role names a colour that the screen's style sheet gives and
plain text ignores. Columns that matter least leave first when the screen is narrow (`priority`), so that
80 columns show what one looks for and 200 show everything.

A bar tells three things: heavy line = in use, dashed = promised to containers but not in use, thin = free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from pwm.cli.topui.snapshot import ContainerRow, GpuRow, NodeRow, WorkloadRow
from pwm.quantity import format_duration

Row = TypeVar("Row")
Piece = tuple[str, str]
Cell = list[Piece]

# Share of a thing in use from which it is drawn in the warning colour, and in the alarming one.
WARM, HOT = 0.7, 0.9
# From these temperatures on a GPU is drawn warm and hot; data-centre GPUs throttle from about 85 °C.
WARM_C, HOT_C = 70, 82

PHASE_ROLES = {
    "READY": "good",
    "RUNNING": "good",
    "PULLING": "busy",
    "CREATING": "busy",
    "ASSIGNED": "busy",
    "EXITING": "warm",
    "MAINTENANCE": "warm",
    "DRAINING": "warm",
    "NOT_READY": "hot",
    "LOST": "hot",
}


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


def _phase(phase: str) -> Cell:
    return [(phase, PHASE_ROLES.get(phase, "text"))]


def _share(used: float, total: float) -> float:
    return used / total if total > 0 else 0.0


def _percent(used: float, total: float) -> str:
    return f"{_share(used, total):.0%}"


# --- the tables -------------------------------------------------------------------------------------

NODES: Table[NodeRow] = Table(
    title="Nodes",
    columns=(
        Column("name", "NODE", 14, lambda r, w: [(r.name, "name")], lambda r: r.name, priority=9, flex=1),
        Column("phase", "STATE", 11, lambda r, w: _phase(r.phase), lambda r: r.phase, priority=8),
        Column(
            "cpu",
            "CPU",
            18,
            lambda r, w: gauge(
                r.cpu_used, r.cpu_held, r.cpu_total, label=_percent(r.cpu_used, r.cpu_total), width=w, label_width=4
            ),
            lambda r: _share(r.cpu_used, r.cpu_total),
            priority=9,
            flex=2,
            plain=lambda r: _percent(r.cpu_used, r.cpu_total),
        ),
        Column(
            "held",
            "CPU HELD",
            10,
            lambda r, w: [(f"{r.cpu_held:.4g}/{r.cpu_total:.4g}", "text")],
            lambda r: r.cpu_held,
            right=True,
            priority=4,
        ),
        Column(
            "memory",
            "MEMORY",
            22,
            lambda r, w: gauge(
                r.memory_used,
                r.memory_held,
                r.memory_total,
                label=pair(r.memory_used, r.memory_total),
                width=w,
                label_width=10,
            ),
            lambda r: _share(r.memory_used, r.memory_total),
            priority=9,
            flex=2,
            plain=lambda r: pair(r.memory_used, r.memory_total),
        ),
        Column(
            "memory_held",
            "MEM HELD",
            8,
            lambda r, w: [(short_size(r.memory_held), "text")],
            lambda r: r.memory_held,
            right=True,
            priority=3,
        ),
        Column(
            "gpus",
            "GPU",
            5,
            lambda r, w: [
                (f"{r.gpus_held}/{r.gpus_total}" if r.gpus_total else "-", "text" if r.gpus_total else "dim")
            ],
            lambda r: r.gpus_held,
            right=True,
            priority=7,
        ),
        Column(
            "disk",
            "DISK",
            6,
            lambda r, w: [(_percent(r.disk_used, r.disk_total), heat(_share(r.disk_used, r.disk_total)))],
            lambda r: _share(r.disk_used, r.disk_total),
            right=True,
            priority=2,
        ),
        Column("load", "LOAD", 6, lambda r, w: [(f"{r.load:.2f}", "text")], lambda r: r.load, right=True, priority=3),
        Column(
            "containers",
            "CONT",
            5,
            lambda r, w: [(str(r.containers), "text")],
            lambda r: r.containers,
            right=True,
            priority=5,
        ),
    ),
    identity=lambda r: r.name,
    words=lambda r: f"{r.name} {r.phase}",
    sort="name",
    descending=False,
)

GPUS: Table[GpuRow] = Table(
    title="GPUs",
    columns=(
        Column("node", "NODE", 12, lambda r, w: [(r.node, "name")], lambda r: r.node, priority=9, flex=1),
        Column(
            "index", "#", 2, lambda r, w: [(str(r.index), "text")], lambda r: (r.node, r.index), right=True, priority=9
        ),
        Column("product", "MODEL", 12, lambda r, w: [(r.product, "text")], lambda r: r.product, priority=4, flex=1),
        Column(
            "utilization",
            "USE",
            14,
            lambda r, w: gauge(r.utilization, 0, 1, label=f"{r.utilization:.0%}", width=w, label_width=4),
            lambda r: r.utilization,
            priority=9,
            flex=2,
            plain=lambda r: f"{r.utilization:.0%}",
        ),
        Column(
            "memory",
            "MEMORY",
            19,
            lambda r, w: gauge(
                r.memory_used, 0, r.memory_total, label=pair(r.memory_used, r.memory_total), width=w, label_width=10
            ),
            lambda r: r.memory_used,
            priority=8,
            flex=2,
            plain=lambda r: pair(r.memory_used, r.memory_total),
        ),
        Column(
            "temperature",
            "TEMP",
            5,
            lambda r, w: [
                (
                    f"{r.temperature}°C",
                    "hot" if r.temperature >= HOT_C else "warm" if r.temperature >= WARM_C else "text",
                )
            ],
            lambda r: r.temperature,
            right=True,
            priority=6,
        ),
        Column(
            "power",
            "POWER",
            9,
            lambda r, w: [(f"{r.power:.0f}/{r.power_limit:.0f}W", heat(_share(r.power, r.power_limit)))],
            lambda r: r.power,
            right=True,
            priority=5,
        ),
        Column("holder", "HELD BY", 16, lambda r, w: _holder(r), lambda r: r.holder or "~", priority=7, flex=1),
    ),
    identity=lambda r: f"{r.node} {r.index:03d}",
    words=lambda r: f"{r.node} {r.product} {r.holder}",
    sort="index",
    descending=False,
)


def _holder(row: GpuRow) -> Cell:
    if row.holder:
        return [(row.holder, "name")]
    return [("not PWM's process", "hot")] if row.strangers else [("free", "dim")]


def _usage_columns() -> tuple[Column[Any], ...]:
    """What a container and a workload have in common."""
    return (
        Column(
            "cpu",
            "CPU",
            12,
            lambda r, w: gauge(r.cpu_used, 0, r.cpu_held, label=cores(r.cpu_used), width=w, label_width=5),
            lambda r: r.cpu_used,
            priority=9,
            flex=1,
            plain=lambda r: cores(r.cpu_used),
        ),
        Column(
            "memory",
            "MEMORY",
            17,
            lambda r, w: gauge(
                r.memory_used, 0, r.memory_limit, label=pair(r.memory_used, r.memory_limit), width=w, label_width=10
            ),
            lambda r: r.memory_used,
            priority=9,
            flex=1,
            plain=lambda r: pair(r.memory_used, r.memory_limit),
        ),
        Column(
            "gpus",
            "GPU",
            3,
            lambda r, w: [(str(r.gpus) if r.gpus else "-", "text" if r.gpus else "dim")],
            lambda r: r.gpus,
            right=True,
            priority=7,
        ),
        Column("pids", "PIDS", 5, lambda r, w: [(str(r.pids), "text")], lambda r: r.pids, right=True, priority=2),
        Column(
            "receive",
            "NET IN",
            8,
            lambda r, w: [(rate(r.rates.receive), "text")],
            lambda r: r.rates.receive,
            right=True,
            priority=3,
        ),
        Column(
            "send",
            "NET OUT",
            8,
            lambda r, w: [(rate(r.rates.send), "text")],
            lambda r: r.rates.send,
            right=True,
            priority=3,
        ),
        Column(
            "read",
            "READ",
            8,
            lambda r, w: [(rate(r.rates.read), "text")],
            lambda r: r.rates.read,
            right=True,
            priority=1,
        ),
        Column(
            "write",
            "WRITE",
            8,
            lambda r, w: [(rate(r.rates.write), "text")],
            lambda r: r.rates.write,
            right=True,
            priority=1,
        ),
    )


def _age(row: Any, now: datetime | None) -> str:
    if row.started is None or now is None:
        return "-"
    return format_duration(int((now - row.started).total_seconds() * 1000))


def workloads(now: datetime | None) -> Table[WorkloadRow]:
    """The table of workloads; ages are counted up to `now`, the time of the beat."""
    return Table(
        title="Workloads",
        columns=(
            Column("name", "WORKLOAD", 14, lambda r, w: [(r.name, "name")], lambda r: r.name, priority=9, flex=2),
            Column("group", "GROUP", 8, lambda r, w: [(r.group, "dim")], lambda r: r.group, priority=4, flex=1),
            Column("phase", "STATE", 9, lambda r, w: _phase(r.phase), lambda r: r.phase, priority=7),
            Column("node", "NODE", 10, lambda r, w: [(r.nodes, "text")], lambda r: r.nodes, priority=5, flex=1),
            Column(
                "containers",
                "CONT",
                4,
                lambda r, w: [(str(r.containers), "text")],
                lambda r: r.containers,
                right=True,
                priority=5,
            ),
            *_usage_columns(),
            _age_column(now),
        ),
        identity=lambda r: r.key,
        words=lambda r: f"{r.group}/{r.name} {r.nodes} {r.phase}",
        sort="cpu",
        descending=True,
    )


def containers(now: datetime | None) -> Table[ContainerRow]:
    return Table(
        title="Containers",
        columns=(
            Column("name", "CONTAINER", 16, lambda r, w: [(r.name, "name")], lambda r: r.name, priority=9, flex=2),
            Column("phase", "STATE", 9, _container_phase, lambda r: r.phase, priority=8),
            Column("node", "NODE", 10, lambda r, w: [(r.node, "text")], lambda r: r.node, priority=6, flex=1),
            *_usage_columns(),
            _age_column(now),
        ),
        identity=lambda r: f"{r.group}/{r.name}",
        words=lambda r: f"{r.group}/{r.name} {r.node} {r.phase}",
        sort="name",
        descending=False,
    )


def _container_phase(row: ContainerRow, width: int) -> Cell:
    return [(f"PULL {row.pulled:.0%}", "busy")] if row.pulled is not None else _phase(row.phase)


def _age_column(now: datetime | None) -> Column[Any]:
    return Column(
        "age",
        "UP",
        7,
        lambda r, w: [(_age(r, now), "text")],
        lambda r: -r.started.timestamp() if r.started else 0.0,
        right=True,
        priority=6,
    )


@dataclass(frozen=True, slots=True)
class ProcessRow:
    container: str
    cells: tuple[str, ...]


def processes(titles: Sequence[str]) -> Table[ProcessRow]:
    """Processes with the columns that the driver gives; the last one, the command, takes the rest."""
    last = len(titles) - 1

    def column(position: int, title: str) -> Column[ProcessRow]:
        numeric = title.upper() in {"PID", "PPID", "%CPU", "%MEM", "C", "RSS", "VSZ"}
        return Column(
            f"{position}",
            title.upper(),
            max(len(title), 24 if position == last else 8),
            lambda r, w: [(r.cells[position], "name" if position == last else "text")],
            lambda r: _number_or_word(r.cells[position]),
            right=numeric,
            priority=9 if position == last else 8 if numeric else 5,
            flex=1 if position == last else 0,
        )

    container: Column[ProcessRow] = Column(
        "container", "CONTAINER", 14, lambda r, w: [(r.container, "dim")], lambda r: r.container, priority=6
    )
    return Table(
        title="Processes",
        columns=(container, *(column(position, title) for position, title in enumerate(titles))),
        identity=lambda r: f"{r.container} {' '.join(r.cells)}",
        words=lambda r: f"{r.container} {' '.join(r.cells)}",
        sort="container",
        descending=False,
    )


def _number_or_word(text: str) -> tuple[int, float, str]:
    """Numbers by size, before words in order."""
    try:
        return 0, float(text.rstrip("%")), ""
    except ValueError:
        return 1, 0.0, text
