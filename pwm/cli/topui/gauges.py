"""The head of `pwm top`: what the cluster has, uses and promised, each a line with its recent past."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip
from textual.widget import Widget

from pwm.cli.topui.columns import Cell, bar, heat, short_size
from pwm.cli.topui.layout import cell_length, placed, sparkline
from pwm.cli.topui.rows import ROLES
from pwm.cli.topui.snapshot import ContainerRow, Snapshot

# At a beat of two seconds, four minutes; wider than the line that shows it ever is.
HISTORY_BEATS = 120
LABEL_COLUMNS = 5
SPARK_COLUMNS = 40
# On a narrower screen the past gives way to the present.
LEAST_BAR_COLUMNS = 20


@dataclass(frozen=True, slots=True)
class Measure:
    """One line: what is used and promised of a total, and how to say so."""

    label: str
    used: float
    held: float
    total: float
    figure: str

    @property
    def share(self) -> float:
        return self.used / self.total if self.total > 0 else 0.0


def cluster_measures(snapshot: Snapshot) -> list[Measure]:
    """CPU, memory and GPUs of all nodes."""
    nodes = snapshot.nodes
    cpu = sum(n.cpu_used for n in nodes), sum(n.cpu_held for n in nodes), sum(n.cpu_total for n in nodes)
    memory = sum(n.memory_used for n in nodes), sum(n.memory_held for n in nodes), sum(n.memory_total for n in nodes)
    measures = [
        Measure("CPU", *cpu, f"{cpu[0]:.1f} of {cpu[2]:.4g} cores, {cpu[1]:.4g} held"),
        Measure("MEM", *memory, f"{short_size(memory[0])} of {short_size(memory[2])}, {short_size(memory[1])} held"),
    ]
    if snapshot.gpus:
        busy = sum(gpu.utilization for gpu in snapshot.gpus)
        held = sum(1 for gpu in snapshot.gpus if gpu.holder)
        measures.append(
            Measure("GPU", busy, held, len(snapshot.gpus), f"{busy:.1f} of {len(snapshot.gpus)} busy, {held} held")
        )
    return measures


def workload_measures(containers: Sequence[ContainerRow], snapshot: Snapshot) -> list[Measure]:
    """CPU and memory of one workload against what it was promised, and its GPUs."""
    used, held = sum(c.cpu_used for c in containers), sum(c.cpu_held for c in containers)
    memory, limit = sum(c.memory_used for c in containers), sum(c.memory_limit for c in containers)
    measures = [
        Measure("CPU", used, 0, held, f"{used:.2f} of {held:.4g} cores"),
        Measure("MEM", memory, 0, limit, f"{short_size(memory)} of {short_size(limit)}"),
    ]
    names = {f"{c.group}/{c.name}" for c in containers}
    gpus = [gpu for gpu in snapshot.gpus if gpu.holder in names]
    if gpus:
        busy = sum(gpu.utilization for gpu in gpus)
        measures.append(Measure("GPU", busy, 0, len(gpus), f"{busy:.1f} of {len(gpus)} busy"))
    return measures


class Gauges(Widget):
    """A line per measure: label, bar, figures, and the share over the last beats."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {f"gauges--{role}" for role in (*ROLES, "past")}
    DEFAULT_CSS = """
    Gauges {
        height: 2; padding: 0 2;
        .gauges--text { color: $foreground; }
        .gauges--dim { color: $text-muted; }
        .gauges--name { color: $accent; text-style: bold; }
        .gauges--cool { color: $success; }
        .gauges--warm { color: $warning; }
        .gauges--hot { color: $error; text-style: bold; }
        .gauges--held { color: $secondary; }
        .gauges--track { color: $panel-lighten-2; }
        .gauges--past { color: $accent 70%; }
    }
    """

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self._measures: list[Measure] = []
        self._past: dict[str, deque[float]] = {}
        self._styles: dict[str, Style] = {}

    def show(self, measures: list[Measure]) -> None:
        for measure in measures:
            past = self._past.setdefault(measure.label, deque(maxlen=HISTORY_BEATS))
            past.append(measure.share)
        if len(measures) != len(self._measures):
            self.styles.height = max(1, len(measures))
        self._measures = measures
        self.refresh()

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._styles = {}

    def render_line(self, y: int) -> Strip:
        width = self.content_size.width
        if y >= len(self._measures):
            return Strip.blank(width, self.rich_style)
        measure = self._measures[y]
        figures = max(len(measure.figure) for measure in self._measures)
        cell = gauge_line(measure, self._past[measure.label], width=width, figure_columns=figures)
        segments = [Segment(text, self._style(role or "text")) for text, role in cell]
        return Strip(segments).adjust_cell_length(width, self.rich_style)

    def _style(self, role: str) -> Style:
        if role not in self._styles:
            self._styles[role] = self.get_component_rich_style(f"gauges--{role}")
        return self._styles[role]


def gauge_line(measure: Measure, past: Iterable[float], *, width: int, figure_columns: int) -> Cell:
    """The line as pieces, fitted to the width; figures of several lines stand below each other."""
    label = placed([(measure.label, "name")], width=LABEL_COLUMNS, right=False)
    percent: Cell = [(f" {measure.share:>4.0%}  ", heat(measure.share))]
    figure = placed([(measure.figure, "text")], width=figure_columns, right=False)
    room = width - LABEL_COLUMNS - cell_length(percent) - figure_columns
    sparks = min(SPARK_COLUMNS, max(0, room - LEAST_BAR_COLUMNS - 2) // 2)
    line = bar(measure.used, measure.held, measure.total, width=max(0, room - (sparks + 2 if sparks else 0)))
    cell = [*label, *line, *percent, *figure]
    if sparks:
        cell += [("  ", ""), (sparkline(past, sparks), "past")]
    return cell
