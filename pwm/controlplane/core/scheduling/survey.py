"""How far each node got with one demand: the filters again, told node by node.

`scratch.py` asks the same questions over all nodes at once and only learns yes or no; this is for people. What is
free is counted as it is, without reservations; a node that is only kept for somebody else says so.
"""

from collections.abc import Iterator

import numpy as np

from pwm.api.v1.common_pb2 import Reason
from pwm.controlplane.core.scheduling.demand import CORE_MILLIS, Demand
from pwm.controlplane.core.scheduling.filters import readiness_refusal, selector_refusal
from pwm.controlplane.core.scheduling.scratch import Scratch
from pwm.controlplane.core.scheduling.shares import Ints
from pwm.controlplane.core.scheduling.verdicts import Refusal, Stage, counted, listed
from pwm.quantity import format_bytes, format_cpu

FITS = Refusal(Stage.FITS, Reason.WAITING_FOR_SCHEDULER, "fits")


class Survey:
    """`rows` are the nodes that were asked, `verdicts` what they said."""

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
        self._known: dict[tuple[Stage, int, int, int, int], Refusal] = {}
        self.rows = [self.table.rows[demand.node]] if demand.node else list(range(len(self.table.names)))
        self.verdicts = dict(zip(self.rows, self._verdicts(), strict=True))

    @property
    def furthest(self) -> Stage:
        """The stage that the best node came to."""
        return max(verdict.stage for verdict in self.verdicts.values())

    def at(self, stage: Stage) -> list[int]:
        """The rows that came to this stage."""
        return [row for row, verdict in self.verdicts.items() if verdict.stage == stage]

    def closest(self, rows: list[int]) -> int:
        """The row that is short of the least: GPUs first, then CPU, then memory."""
        return min(rows, key=self.short)

    def short(self, row: int) -> tuple[int, int, int]:
        """How many GPUs, thousandths of cores and bytes the row lacks right now."""
        return (
            max(0, self.demand.gpus - int(self.free_gpus[row])),
            max(0, int(self.screen.cpu_millis[row] - self.free_cpu_millis[row])),
            max(0, int(self.screen.memory_bytes[row] - self.free_memory_bytes[row])),
        )

    def _verdicts(self) -> Iterator[Refusal]:
        kinds = self.table.kinds
        selector = [selector_refusal(self.demand, kind) for kind in kinds]
        readiness = [readiness_refusal(self.demand, kind) for kind in kinds]
        fits = self.scratch.fitting(self.demand, self.screen)
        for row in self.rows:
            place = int(self.table.kind[row])
            if fits[row]:
                yield FITS
                continue
            yield (
                selector[place]
                or (self._capacity(row) if kinds[place].joined else None)
                or readiness[place]
                or self._free(row)
                or self._kept(row)
            )

    def _capacity(self, row: int) -> Refusal | None:
        """More than the node has, whatever is free."""
        gpus, cores, memory = int(self.model_gpus[row]), int(self.table.cores[row]), int(self.table.memory_bytes[row])
        need_cpu, need_memory = int(self.screen.cpu_millis[row]), int(self.screen.memory_bytes[row])
        if gpus < self.demand.gpus:
            return self._refusal(Stage.GPU_CAPACITY, self.demand.gpus, gpus)
        if cores * CORE_MILLIS < need_cpu:
            return self._refusal(Stage.CPU_CAPACITY, need_cpu, cores * CORE_MILLIS)
        if memory < need_memory:
            return self._refusal(Stage.MEMORY_CAPACITY, need_memory, memory)
        return None

    def _free(self, row: int) -> Refusal | None:
        """More than is free on the node."""
        gpus, cpu, memory = self.short(row)
        need_cpu, total_cpu = int(self.screen.cpu_millis[row]), int(self.table.cores[row]) * CORE_MILLIS
        if gpus:
            total, working = int(self.model_gpus[row]), int(self.working_gpus[row])
            return self._refusal(Stage.GPU_FREE, self.demand.gpus, int(self.free_gpus[row]), total, total - working)
        if cpu:
            return self._refusal(Stage.CPU_FREE, need_cpu, int(self.free_cpu_millis[row]), total_cpu)
        free_cores = int(self.scratch.free_cores[row]) * CORE_MILLIS
        if self.demand.exclusive and free_cores < need_cpu and row not in self.scratch.reservations:
            return self._refusal(Stage.CPU_FREE, need_cpu, free_cores, total_cpu)
        if memory:
            free, total = int(self.free_memory_bytes[row]), int(self.table.memory_bytes[row])
            return self._refusal(Stage.MEMORY_FREE, int(self.screen.memory_bytes[row]), free, total)
        return None

    def _kept(self, row: int) -> Refusal:
        code = Reason.NO_GPU_FREE if self.demand.gpus else Reason.NO_CPU_FREE
        return Refusal(Stage.RESERVED, code, f"is kept for {self.scratch.reservations[row].whom}")

    def _refusal(self, stage: Stage, need: int, has: int, of: int = 0, broken: int = 0) -> Refusal:
        key = (stage, need, has, of, broken)
        if key not in self._known:
            self._known[key] = self._word(*key)
        return self._known[key]

    def _word(self, stage: Stage, need: int, has: int, of: int, broken: int) -> Refusal:
        needs = f"needs {self.amount(stage, need)}"
        has = max(has, 0)
        if stage == Stage.GPU_CAPACITY:
            return Refusal(stage, Reason.EMPTY_GPU_SELECTOR, f"{needs}, has {has}")
        if stage == Stage.CPU_CAPACITY:
            return Refusal(stage, Reason.EMPTY_CPU_SELECTOR, f"{needs}, has {format_cpu(has)}")
        if stage == Stage.MEMORY_CAPACITY:
            return Refusal(stage, Reason.NO_MEMORY_FREE, f"{needs}, has {format_bytes(has)} for containers")
        if stage == Stage.GPU_FREE:
            why = f" ({broken} broken or in use by others)" if broken else ""
            return Refusal(stage, Reason.NO_GPU_FREE, f"{needs}, {has} free of {of}{why}")
        if stage == Stage.CPU_FREE:
            return Refusal(stage, Reason.NO_CPU_FREE, f"{needs}, {format_cpu(has)} free of {format_cpu(of)}")
        return Refusal(stage, Reason.NO_MEMORY_FREE, f"{needs}, {format_bytes(has)} free of {format_bytes(of)}")

    def amount(self, stage: Stage, need: int) -> str:
        """`4 GPUs A100`, `8 CPUs`, `32GiB of memory`."""
        if stage in (Stage.GPU_CAPACITY, Stage.GPU_FREE):
            models = listed(self.demand.gpu_products, word="or")
            return " ".join(part for part in (counted(need, "GPU"), models) if part)
        if stage in (Stage.CPU_CAPACITY, Stage.CPU_FREE):
            unit = "CPU" if need == CORE_MILLIS else "CPUs"
            return f"{format_cpu(need)} {'whole ' if self.demand.exclusive else ''}{unit}"
        return f"{format_bytes(need)} of memory"
