"""The plan: which waiting replicas start where, now, and why the others do not.

One pass over the queue, first to last. Each replica that fits somewhere is placed at once on a scratch copy;
one that does not is passed over, and later ones may go around it (backfill). The cluster is not changed: the
caller writes the placements as events, and they come back through the view like everything else.

- A *gang* (all waiting replicas of a workload with `gang: true`) is placed whole or not at all, at the place of
  its first replica. Its replicas are alike, so placing them one by one finds room whenever there is room.
- *Who is passed over must not starve.* The first in the queue that waits for longer than `RESERVE_AFTER_MS` and
  could run on an empty node gets a reservation: what it needs is kept for it on the node that is short of the
  least (GPUs first, then CPU, then memory), on several nodes for a gang. Later ones still get what it would
  leave over. There is one reservation at a time, and it ends `RESERVE_FOR_MS` later, for a node whose
  containers never end must not stay half empty for ever.

Fair share between users, pre-emption and images that are already on a node are not weighed yet.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pwm.api.v1.common_pb2 import Resources
from pwm.api.v1.workload_pb2 import Config
from pwm.controlplane.core.limits import HeldBack
from pwm.controlplane.core.scheduling.accounts import Budget
from pwm.controlplane.core.scheduling.cluster import Cluster
from pwm.controlplane.core.scheduling.demand import Demand
from pwm.controlplane.core.scheduling.explain import explain_demand, explain_limit
from pwm.controlplane.core.scheduling.queue import Waiting, order
from pwm.controlplane.core.scheduling.scores import best_row
from pwm.controlplane.core.scheduling.scratch import Scratch, Taken
from pwm.controlplane.core.scheduling.verdicts import Explanation
from pwm.quantity import format_duration

# Recorded with each placement, so that a later reader knows by which rules it was decided.
POLICY_VERSION = 1
# Long enough that short jobs drain by themselves, short enough that somebody who watches sees it happen.
RESERVE_AFTER_MS = 10 * 60_000
# A node that did not come free within a day runs services; waiting longer only wastes what is free.
RESERVE_FOR_MS = 24 * 3_600_000


@dataclass(frozen=True, slots=True)
class Placement:
    """One replica on one node, with what it gets there."""

    waiting: Waiting
    node: str
    resources: Resources
    gpu_uuids: tuple[str, ...]
    cpu_ids: tuple[int, ...]


class Refusals(Mapping[str, Explanation]):
    """Why workloads were refused, by uid. Worked out when it is asked for, for a queue can be long and its
    readers few; once per kind of demand. It describes the state after the plan's placements, or the cluster's
    present state once that has changed."""

    def __init__(self, cluster: Cluster, scratch: Scratch) -> None:
        self._cluster = cluster
        self._scratch = scratch
        self._revision = cluster.revision
        self._demands: dict[str, tuple[Demand, int]] = {}
        # Those of them whom a limit keeps from starting, and those who may not use every node.
        self.held_back: dict[str, HeldBack] = {}
        self._ruled: dict[str, Demand] = {}
        self._known: dict[tuple[Demand, int], Explanation] = {}

    def add(self, workload_uid: str, demand: Demand, *, together: int = 1) -> None:
        self._demands.setdefault(workload_uid, (demand, together))
        if demand.rules:
            self._ruled[workload_uid] = demand

    def add_limit(self, workload_uid: str, held: HeldBack) -> None:
        self.held_back.setdefault(workload_uid, held)

    @property
    def without_node(self) -> list[str]:
        """Those for whom no node is left by what their accounts may use."""
        admitted = {demand: self._scratch.table.admits(demand) for demand in set(self._ruled.values())}
        return [uid for uid, demand in self._ruled.items() if not admitted[demand]]

    def __getitem__(self, workload_uid: str) -> Explanation:
        if workload_uid not in self._demands:
            return explain_limit(self.held_back[workload_uid])
        asked = self._demands[workload_uid]
        if self._cluster.revision != self._revision:
            self._scratch, self._revision = self._cluster.scratch(), self._cluster.revision
            self._known.clear()
        if asked not in self._known:
            self._known[asked] = explain_demand(self._scratch, asked[0], together=asked[1])
        return self._known[asked]

    def __iter__(self) -> Iterator[str]:
        return iter(self._demands | self.held_back)

    def __len__(self) -> int:
        return len(self._demands | self.held_back)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to start, in queue order, and why the rest waits."""

    placements: list[Placement]
    refusals: Refusals


def plan(cluster: Cluster, waiting: Sequence[Waiting], *, now_ms: int, seed: int) -> Plan:
    """Place what can start now. A gang must be handed over with all its waiting replicas."""
    return _Planning(cluster, now_ms=now_ms, seed=seed).run(order(waiting, now_ms))


class _Planning:
    """The state of one pass over the queue."""

    def __init__(self, cluster: Cluster, *, now_ms: int, seed: int) -> None:
        self.accounts = cluster.accounts
        self.budget = Budget(cluster.accounts)
        self.scratch = cluster.scratch()
        self.refusals = Refusals(cluster, self.scratch)
        self.placements: list[Placement] = []
        self.now_ms = now_ms
        self.seed = seed
        self._full: set[Demand] = set()  # fits nowhere any more
        self._last: tuple[Demand, int] | None = None  # what was placed last, and on which row
        self._reserved = False
        self._held: HeldBack | None = None  # why the nodes that have room for the last one are too much for it

    def run(self, queue: list[Waiting]) -> Plan:
        gangs: dict[str, list[Waiting]] = {}
        for item in queue:
            if item.workload.spec.gang:
                gangs.setdefault(item.workload.metadata.uid, []).append(item)
        for item in queue:
            if item.workload.spec.gang:
                self._start(gangs.pop(item.workload.metadata.uid, []))
            else:
                self._start([item])
        return Plan(self.placements, self.refusals)

    def _start(self, together: list[Waiting]) -> None:
        """Place these, all or none."""
        if not together:
            return
        workload = together[0].workload
        demand = self.accounts.demand_of(workload)
        held = self.budget.held_back(self.scratch, demand, workload, together=len(together))
        if held is not None:
            self.refusals.add_limit(workload.metadata.uid, held)
            return
        placed: list[tuple[Placement, Taken]] = []
        for item in together:
            row = self._row_for(demand, item)
            if row is None:
                for _, taken in reversed(placed):
                    self.scratch.give_back(taken)
                    self.budget.give_back(workload, taken)
                self._refuse(demand, together)
                return
            placed.append(self._take(demand, item, row))
        self.placements += [placement for placement, _ in placed]

    def _row_for(self, demand: Demand, item: Waiting) -> int | None:
        if demand in self._full:
            return None
        screen = self.scratch.table.screen(demand)
        affordable = self.budget.affordable(self.scratch, demand, item.workload)
        # The node that was filled last is still the fullest that could do, unless it does no more.
        if self._last is not None and demand is self._last[0] and demand.affinity == Config.Fill:
            row = self._last[1]
            if self.scratch.fits_at(row, demand, screen) and (affordable is None or affordable[row]):
                return row
        fits = self.scratch.fitting(demand, screen)
        if affordable is not None:
            affordable &= fits
            if fits.any() and not affordable.any():
                self._held = self.budget.held_back_where_it_fits(self.scratch, demand, item.workload, fits=fits)
            fits = affordable
        return best_row(self.scratch, fits, demand=demand, waiting=item, seed=self.seed)

    def _take(self, demand: Demand, item: Waiting, row: int) -> tuple[Placement, Taken]:
        taken = self.scratch.take(row, demand, workload_uid=item.workload.metadata.uid)
        self.budget.take(item.workload, taken)
        self._last = (demand, row)
        resources = Resources(cpu_millis=taken.cpu_millis, memory_bytes=taken.memory_bytes, gpus=len(taken.gpus))
        gpu_uuids = tuple(gpu.uuid for gpu in taken.gpus)
        return Placement(item, self.scratch.table.names[row], resources, gpu_uuids, taken.cores), taken

    def _refuse(self, demand: Demand, together: list[Waiting]) -> None:
        self._last = None
        if self._held is not None:  # it would fit, but on nodes where its share is more than it may have
            self.refusals.add_limit(together[0].workload.metadata.uid, self._held)
            self._held = None
            return
        if len(together) == 1:
            self._full.add(demand)
        self.refusals.add(together[0].workload.metadata.uid, demand, together=len(together))
        waited_ms = self.now_ms - together[0].since_ms
        if not self._reserved and RESERVE_AFTER_MS <= waited_ms < RESERVE_AFTER_MS + RESERVE_FOR_MS:
            metadata = together[0].workload.metadata
            whom = f"{metadata.group}/{metadata.name}, which has waited for {format_duration(waited_ms)}"
            self._reserved = self._reserve(demand, len(together), whom)

    def _reserve(self, demand: Demand, replicas: int, whom: str) -> bool:
        """Keep room for these on the nodes that are short of the least; whether they could run there at all."""
        scratch = self.scratch
        screen = scratch.table.screen(demand)
        room = np.where(screen.usable, scratch.capacity_for(demand), 0)
        if int(room.sum()) < replicas:
            return False
        short_gpus = np.maximum(demand.gpus - scratch.free_gpus_for(screen), 0)
        short_cpu = np.maximum(screen.cpu_millis - scratch.free_cpu_millis, 0)
        short_memory = np.maximum(screen.memory_bytes - scratch.free_memory_bytes, 0)
        for row in np.lexsort((short_memory, short_cpu, short_gpus)).tolist():
            for _ in range(min(replicas, int(room[row]))):
                scratch.reserve(row, demand, whom=whom)
                replicas -= 1
        return True
