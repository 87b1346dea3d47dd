"""The tables of `pwm top`: nodes, GPUs, workloads, containers, processes.

Each says once what its columns are, for the screen and for plain text alike; `columns.py` has the pieces
they are drawn with. The tables of things that have an age are made for a moment, the time of the beat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pwm.cli.topui.columns import Cell, Column, Table, cores, gauge, heat, pair, rate, short_size
from pwm.cli.topui.snapshot import ContainerRow, GpuRow, NodeRow, WorkloadRow
from pwm.quantity import format_duration

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


def _phase(phase: str) -> Cell:
    return [(phase, PHASE_ROLES.get(phase, "text"))]


def _share(used: float, total: float) -> float:
    return used / total if total > 0 else 0.0


def _percent(used: float, total: float) -> str:
    return f"{_share(used, total):.0%}"


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
