"""How far each node got with one demand: the filters again, told node by node.

`scratch.py` asks the same questions and only wants yes or no; this is for people. What is free is counted as
it is, without reservations; a node that is only kept for somebody else says so. It works on columns too, for
on a large cluster a queue has many demands to explain: `said` holds for each row a place in `refusals`.
"""

import numpy as np

from pwm.api.v1.common_pb2 import Reason
from pwm.controlplane.core.scheduling.demand import CORE_MILLIS, Demand
from pwm.controlplane.core.scheduling.filters import READINESS, SELECTORS
from pwm.controlplane.core.scheduling.scratch import Scratch
from pwm.controlplane.core.scheduling.shares import Ints
from pwm.controlplane.core.scheduling.table import PASSES, Bools
from pwm.controlplane.core.scheduling.verdicts import Refusal, Stage, counted, listed
from pwm.quantity import format_bytes, format_cpu

_FITS = Refusal(Stage.FITS, Reason.WAITING_FOR_SCHEDULER, "fits")


class Survey:
    """`rows` are the nodes that were asked: all, or the one that the demand names."""

    def __init__(self, scratch: Scratch, demand: Demand) -> None:
        self.scratch, self.demand, self.table = scratch, demand, scratch.table
        self.screen = self.table.screen(demand)
        self.free_cpu_millis = scratch.free_cpu_millis.copy()
        self.free_memory_bytes = scratch.free_memory_bytes.copy()
        self.free_gpus: Ints = np.array(scratch.free_gpus_for(self.screen), np.int64)
        for row, kept in scratch.reservations.items():
            self.free_cpu_millis[row] += kept.cpu_millis
            self.free_memory_bytes[row] += kept.memory_bytes
            self.free_gpus[row] += kept.gpus
        models = list(self.screen.models)
        self.model_gpus: Ints = self.table.model_gpus[models].sum(axis=0)
        self.working_gpus: Ints = self.table.working_model_gpus[models].sum(axis=0)
        self.rows: Ints = np.arange(len(self.table.names))
        if demand.node:
            self.rows = np.array([self.table.rows[demand.node]])
        self._selected = [self.table.admitted(demand.rules)] if demand.rules else []
        self._selected += [self.table.answers(selector, demand) for selector in SELECTORS]
        self._ready = self.table.answers(READINESS, demand)
        self.refusals = [*self.table.refusals]  # all that those answers point at; more is added here
        self.said: Ints = np.full(len(self.table.names), PASSES)
        self._ask()
        stages = np.array([refusal.stage for refusal in self.refusals])
        self.stages: Ints = stages[self.said]
        self.furthest = Stage(int(self.stages[self.rows].max()))

    def refusal(self, row: int) -> Refusal:
        """What a row said."""
        return self.refusals[int(self.said[row])]

    def at(self, stage: Stage) -> list[int]:
        """The rows that came to this stage."""
        there: list[int] = self.rows[self.stages[self.rows] == stage].tolist()
        return there

    def not_joined(self) -> list[int]:
        """Rows that are asked for, and of which nobody knows yet what they have."""
        return [row for row in self.at(Stage.READY) if not self.table.cores[row]]

    def closest(self, stage: Stage) -> int:
        """Of the rows that came to this stage the one that is short of the least: GPUs first, then CPU, then memory."""
        rows = np.array(self.at(stage))
        short_gpus = np.maximum(self.demand.gpus - self.free_gpus[rows], 0)
        short_cpu = np.maximum(self.screen.cpu_millis[rows] - self.free_cpu_millis[rows], 0)
        short_memory = np.maximum(self.screen.memory_bytes[rows] - self.free_memory_bytes[rows], 0)
        return int(rows[np.lexsort((short_memory, short_cpu, short_gpus))[0]])

    def short(self, row: int) -> tuple[int, int, int]:
        """How many GPUs, thousandths of cores and bytes the row lacks right now."""
        return (
            max(0, self.demand.gpus - int(self.free_gpus[row])),
            max(0, int(self.screen.cpu_millis[row] - self.free_cpu_millis[row])),
            max(0, int(self.screen.memory_bytes[row] - self.free_memory_bytes[row])),
        )

    def _ask(self) -> None:
        """The filters in the order of the stages; the first no of a row stands."""
        table, demand, need_cpu, need_memory = self.table, self.demand, self.screen.cpu_millis, self.screen.memory_bytes
        fits = self.scratch.fitting(demand, self.screen)
        self._answer(fits, np.full_like(self.said, self._place(_FITS)))
        for answers in self._selected:
            self._answer(self.said == PASSES, answers)
        joined: Bools = np.array([kind.joined for kind in table.kinds], np.bool_)[table.kind]
        node_cpu = table.cores * CORE_MILLIS
        self._refuse(Stage.GPU_CAPACITY, joined & (self.model_gpus < demand.gpus), self.model_gpus)
        self._refuse(Stage.CPU_CAPACITY, joined & (node_cpu < need_cpu), need_cpu, node_cpu)
        too_small = joined & (table.memory_bytes < need_memory)
        self._refuse(Stage.MEMORY_CAPACITY, too_small, need_memory, table.memory_bytes)
        self._answer(self.said == PASSES, self._ready)
        broken = self.model_gpus - self.working_gpus
        if demand.gpus:
            self._refuse(Stage.GPU_FREE, self.free_gpus < demand.gpus, self.free_gpus, self.model_gpus, broken)
        self._refuse(Stage.CPU_FREE, self.free_cpu_millis < need_cpu, need_cpu, self.free_cpu_millis, node_cpu)
        short = self.free_memory_bytes < need_memory
        self._refuse(Stage.MEMORY_FREE, short, need_memory, self.free_memory_bytes, table.memory_bytes)
        for row in self.rows[self.said[self.rows] == PASSES].tolist():
            self.said[row] = self._place(self._kept(row))

    def _answer(self, which: Bools, answers: Ints) -> None:
        np.copyto(self.said, answers, where=which)

    def _refuse(self, stage: Stage, which: Bools, *numbers: Ints) -> None:
        """Give the rows that nobody refused yet a sentence with their numbers; rows with equal numbers share it."""
        rows = np.flatnonzero(which & (self.said == PASSES))
        if not rows.size:
            return
        known: dict[tuple[int, ...], int] = {}
        places: list[int] = []
        for key in zip(*(column[rows].tolist() for column in numbers), strict=True):
            place = known.get(key)
            if place is None:
                place = known[key] = self._place(self._word(stage, *key))
            places.append(place)
        self.said[rows] = places

    def _place(self, refusal: Refusal) -> int:
        self.refusals.append(refusal)
        return len(self.refusals) - 1

    def _kept(self, row: int) -> Refusal:
        code = Reason.NO_GPU_FREE if self.demand.gpus else Reason.NO_CPU_FREE
        return Refusal(Stage.RESERVED, code, f"is kept for {self.scratch.reservations[row].whom}")

    def _word(self, stage: Stage, *numbers: int) -> Refusal:
        if stage == Stage.GPU_CAPACITY:
            needs = self.amount(stage, self.demand.gpus)
            return Refusal(stage, Reason.EMPTY_GPU_SELECTOR, f"needs {needs}, has {numbers[0]}")
        if stage == Stage.GPU_FREE:
            free, total, broken = numbers
            why = f" ({broken} broken or in use by others)" if broken else ""
            needs = self.amount(stage, self.demand.gpus)
            return Refusal(stage, Reason.NO_GPU_FREE, f"needs {needs}, {max(free, 0)} free of {total}{why}")
        needs, has = f"needs {self.amount(stage, numbers[0])}", max(numbers[1], 0)
        if stage == Stage.CPU_CAPACITY:
            return Refusal(stage, Reason.EMPTY_CPU_SELECTOR, f"{needs}, has {format_cpu(has)}")
        if stage == Stage.MEMORY_CAPACITY:
            return Refusal(stage, Reason.NO_MEMORY_FREE, f"{needs}, has {format_bytes(has)} for containers")
        if stage == Stage.CPU_FREE:
            return Refusal(stage, Reason.NO_CPU_FREE, f"{needs}, {format_cpu(has)} free of {format_cpu(numbers[2])}")
        free_of = f"{format_bytes(has)} free of {format_bytes(numbers[2])}"
        return Refusal(stage, Reason.NO_MEMORY_FREE, f"{needs}, {free_of}")

    def amount(self, stage: Stage, need: int) -> str:
        """`4 GPUs A100`, `8 CPUs`, `32GiB of memory`."""
        if stage in (Stage.GPU_CAPACITY, Stage.GPU_FREE):
            models = listed(self.demand.gpu_products, word="or")
            return " ".join(part for part in (counted(need, "GPU"), models) if part)
        if stage in (Stage.CPU_CAPACITY, Stage.CPU_FREE):
            unit = "CPU" if need == CORE_MILLIS else "CPUs"
            return f"{format_cpu(need)} {'whole ' if self.demand.exclusive else ''}{unit}"
        return f"{format_bytes(need)} of memory"
