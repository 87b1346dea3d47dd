"""The tables of `pwm top` as text, once: for pipes, scripts and `--once`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from pwm.cli.topui import tables
from pwm.cli.topui.columns import Column, Table
from pwm.cli.topui.snapshot import Snapshot
from pwm.cli.topui.tables import ProcessRow

Row = TypeVar("Row")
GAP = "   "


def overview(snapshot: Snapshot) -> str:
    """Nodes, GPUs and workloads."""
    parts = [text(tables.NODES, snapshot.nodes)]
    if snapshot.gpus:
        parts.append(text(tables.GPUS, snapshot.gpus))
    parts.append(text(tables.workloads(snapshot.time), snapshot.workloads))
    return "\n".join(parts)


def one_workload(snapshot: Snapshot, titles: Sequence[str], processes: Sequence[ProcessRow]) -> str:
    """Containers and processes of one workload."""
    parts = [text(tables.containers(snapshot.time), snapshot.containers)]
    if titles:
        parts.append(text(tables.processes(titles), processes))
    return "\n".join(parts)


def text(table: Table[Row], rows: Sequence[Row]) -> str:
    """A table in its own order, every column as wide as what stands in it."""
    arranged = table.arrange(rows, sort=table.sort, descending=table.descending, text="")
    cells = [[_plain(column, row) for column in table.columns] for row in arranged]
    titles = [column.title for column in table.columns]
    widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
    lines = [
        GAP.join(
            value.rjust(width) if column.right else value.ljust(width)
            for column, value, width in zip(table.columns, line, widths, strict=True)
        ).rstrip()
        for line in (titles, *cells)
    ]
    if not arranged:
        lines.append(f"(no {table.title.lower()})")
    return "\n".join(lines) + "\n"


def _plain(column: Column[Any], row: Any) -> str:
    if column.plain is not None:
        return column.plain(row)
    return "".join(piece for piece, _ in column.cell(row, column.width)) or "-"
