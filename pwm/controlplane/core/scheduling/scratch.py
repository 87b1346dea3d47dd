"""A copy of what is free, to plan on.

A plan takes resources as it places, and may have to give them back when a gang turns out not to fit; the
cluster itself must not notice. A scratch copies the columns of numbers at once (microseconds) and keeps
which GPUs and cores it gave away only for the nodes that it touched. Cores need no count of their own: a core that
a container has for itself is a whole core of used CPU, so where enough CPU is free enough cores are.

Within a plan resources only shrink (what a gang gives back was free before it), so a demand that fits
nowhere once fits nowhere for the rest of the plan.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pwm.controlplane.core.scheduling.demand import CORE_MILLIS, Demand
from pwm.controlplane.core.scheduling.devices import pick_cores, pick_gpus
from pwm.controlplane.core.scheduling.nodes import GPUUnit
from pwm.controlplane.core.scheduling.shares import Ints
from pwm.controlplane.core.scheduling.table import Bools, Screen, Table, tightness


@dataclass(frozen=True, slots=True)
class Taken:
    """What one placement took, as needed to give it back."""

    row: int
    workload_uid: str
    cpu_millis: int
    memory_bytes: int
    gpus: tuple[GPUUnit, ...]
    cores: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reservation:
    """What is kept on a node for somebody who has waited long. `whom` is a clause for sentences."""

    whom: str
    cpu_millis: int
    memory_bytes: int
    gpus: int


class Scratch:
    """What is free, with what this plan took already taken away."""

    __slots__ = (
        "_cores_taken",
        "_gpus_taken",
        "_placed",
        "_spread",
        "free_cpu_millis",
        "free_gpus",
        "free_memory_bytes",
        "free_model_gpus",
        "reservations",
        "table",
        "tightness",
    )

    def __init__(self, table: Table, spread: Mapping[str, Mapping[str, int]]) -> None:
        self.table = table
        self._spread = spread
        self.free_cpu_millis = table.free_cpu_millis.copy()
        self.free_memory_bytes = table.free_memory_bytes.copy()
        self.free_gpus = table.free_gpus.copy()
        self.free_model_gpus = table.free_model_gpus.copy()
        self.tightness = table.tightness.copy()
        self.reservations: dict[int, Reservation] = {}
        self._placed: dict[str, dict[int, int]] = {}  # workload uid -> row -> replicas that this plan placed there
        self._gpus_taken: dict[int, set[str]] = {}
        self._cores_taken: dict[int, set[int]] = {}

    def free_gpus_for(self, screen: Screen) -> Ints:
        """Free GPUs of the models that will do, per row."""
        if screen.any_model:
            return self.free_gpus
        if len(screen.models) == 1:
            only: Ints = self.free_model_gpus[screen.models[0]]
            return only
        total: Ints = self.free_model_gpus[list(screen.models)].sum(axis=0)
        return total

    def fitting(self, demand: Demand, screen: Screen) -> Bools:
        """The rows where one replica fits now."""
        fits = screen.usable & (self.free_cpu_millis >= screen.cpu_millis)
        fits &= self.free_memory_bytes >= screen.memory_bytes
        if demand.gpus:
            fits &= self.free_gpus_for(screen) >= demand.gpus
        return fits

    def fits_at(self, row: int, demand: Demand, screen: Screen) -> bool:
        """Whether one replica fits on this row now."""
        return bool(
            screen.usable[row]
            and self.free_cpu_millis[row] >= screen.cpu_millis[row]
            and self.free_memory_bytes[row] >= screen.memory_bytes[row]
            and (not demand.gpus or self.free_gpus_for(screen)[row] >= demand.gpus)
        )

    def room(self, demand: Demand) -> Ints:
        """How many replicas fit on each row now."""
        screen = self.table.screen(demand)
        room = self.free_cpu_millis // np.maximum(screen.cpu_millis, 1)
        room = np.minimum(room, self.free_memory_bytes // np.maximum(screen.memory_bytes, 1))
        if demand.gpus:
            room = np.minimum(room, self.free_gpus_for(screen) // demand.gpus)
        return np.where(screen.usable, np.maximum(room, 0), 0)

    def capacity_for(self, demand: Demand) -> Ints:
        """How many replicas would fit on each row if it were ready and empty; selectors are not looked at."""
        table, screen = self.table, self.table.screen(demand)
        room = table.cores * CORE_MILLIS // np.maximum(screen.cpu_millis, 1)
        room = np.minimum(room, table.memory_bytes // np.maximum(screen.memory_bytes, 1))
        if demand.gpus:
            room = np.minimum(room, table.working_model_gpus[list(screen.models)].sum(axis=0) // demand.gpus)
        return room

    def fits(self, demand: Demand, *, replicas: int = 1) -> bool:
        """Whether so many replicas fit now, together."""
        return int(self.room(demand).sum()) >= replicas

    def replicas(self, workload_uid: str) -> dict[int, int]:
        """How many replicas of a workload each row has; rows without are left out."""
        there = {
            self.table.rows[node]: count
            for node, count in self._spread.get(workload_uid, {}).items()
            if node in self.table.rows
        }
        for row, count in self._placed.get(workload_uid, {}).items():
            there[row] = there.get(row, 0) + count
        return there

    def take(self, row: int, demand: Demand, *, workload_uid: str) -> Taken:
        """Give one replica what it needs on a row where it fits."""
        screen = self.table.screen(demand)
        cpu_millis = int(screen.cpu_millis[row])
        memory_bytes = int(screen.memory_bytes[row])
        gpus = self._take_gpus(row, demand, screen) if demand.gpus else ()
        cores = self._take_cores(row, cpu_millis // CORE_MILLIS, gpus) if demand.exclusive else ()
        taken = Taken(row, workload_uid, cpu_millis, memory_bytes, gpus, cores)
        self._move(taken, sign=-1)
        return taken

    def give_back(self, taken: Taken) -> None:
        """Undo a take."""
        self._move(taken, sign=1)
        if taken.gpus:
            self._gpus_taken[taken.row] -= {gpu.uuid for gpu in taken.gpus}
        if taken.cores:
            self._cores_taken[taken.row] -= set(taken.cores)

    def reserve(self, row: int, demand: Demand, *, whom: str) -> None:
        """Keep what one replica needs on a row for it, though it is not free yet.

        What is free goes below zero where it is short, so that nobody else gets any of that; of the rest others may
        still have what the replica leaves over.
        """
        screen = self.table.screen(demand)
        before = self.reservations.get(row)
        reservation = Reservation(
            whom,
            int(screen.cpu_millis[row]) + (before.cpu_millis if before else 0),
            int(screen.memory_bytes[row]) + (before.memory_bytes if before else 0),
            demand.gpus + (before.gpus if before else 0),
        )
        self.reservations[row] = reservation
        self.free_cpu_millis[row] -= screen.cpu_millis[row]
        self.free_memory_bytes[row] -= screen.memory_bytes[row]
        self.free_gpus[row] -= demand.gpus
        left = demand.gpus
        for model in screen.models[:-1]:
            kept = min(left, max(0, int(self.free_model_gpus[model, row])))
            self.free_model_gpus[model, row] -= kept
            left -= kept
        if screen.models:
            self.free_model_gpus[screen.models[-1], row] -= left

    def _take_gpus(self, row: int, demand: Demand, screen: Screen) -> tuple[GPUUnit, ...]:
        given = self._gpus_taken.setdefault(row, set())
        places = self.table.model_rows
        free = [
            gpu
            for gpu in self.table.states[row].free_gpus()
            if gpu.uuid not in given and (screen.any_model or places[gpu.model] in screen.models)
        ]
        picked = pick_gpus(free, demand.gpus)
        assert len(picked) == demand.gpus, "took GPUs where they are not free"
        given.update([gpu.uuid for gpu in picked])
        return picked

    def _take_cores(self, row: int, count: int, gpus: tuple[GPUUnit, ...]) -> tuple[int, ...]:
        state = self.table.states[row]
        given = self._cores_taken.setdefault(row, set())
        cores = pick_cores(
            count, cores=state.cores, taken=given | state.core_holders.keys(), gpus=gpus, node_gpus=len(state.gpus)
        )
        assert len(cores) == count, "took cores where they are not free"
        given.update(cores)
        return cores

    def _move(self, taken: Taken, *, sign: int) -> None:
        row = taken.row
        self.free_cpu_millis[row] += sign * taken.cpu_millis
        self.free_memory_bytes[row] += sign * taken.memory_bytes
        self.free_gpus[row] += sign * len(taken.gpus)
        for gpu in taken.gpus:
            self.free_model_gpus[self.table.model_rows[gpu.model], row] += sign
        self.tightness[row] = tightness(
            int(self.table.gpus[row]),
            int(self.free_gpus[row]),
            int(self.free_cpu_millis[row]),
            int(self.free_memory_bytes[row]),
        )
        placed = self._placed.setdefault(taken.workload_uid, {})
        placed[row] = placed.get(row, 0) - sign
