"""All nodes as columns of numbers, one row per node, sorted by name.

A placement has to look at every node. Over objects that takes milliseconds with thousands of nodes; over
columns it takes microseconds, and on three nodes it costs no more than a loop would. The cluster writes a
row when something on its node changes; plans copy the columns that they change (`scratch.py`).

What a demand means for each row, its `Screen`, depends only on what nodes are, so it is kept until a node
changes in kind or size. Containers that come and go leave it alone.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pwm.api.v1.common_pb2 import Reason
from pwm.controlplane.core.limits import NodeRule, node_refusal
from pwm.controlplane.core.scheduling.demand import CORE_MILLIS, Demand
from pwm.controlplane.core.scheduling.filters import READINESS, SELECTORS, Filter, model_matches
from pwm.controlplane.core.scheduling.nodes import GPUModel, NodeKind, NodeState
from pwm.controlplane.core.scheduling.shares import Ints, needs
from pwm.controlplane.core.scheduling.verdicts import Refusal, Stage

Bools = npt.NDArray[np.bool_]

# How many screens, answers of filters and amounts are kept, each, before they are worked out again (microseconds for
# each). With 5,000 nodes a screen takes 5 KB, an answer 40 KB and amounts that differ by node 80 KB.
_KEPT = 1_024
# In `answers`: the row has nothing against it.
PASSES = -1


@dataclass(frozen=True, slots=True)
class Screen:
    """What one demand means for each row: who may run it at all, and what it would take there."""

    usable: Bools  # selectors match and the node is ready
    cpu_millis: Ints
    memory_bytes: Ints
    models: tuple[int, ...]  # GPU models that will do, as rows of `model_gpus`
    any_model: bool  # every model will do


class Table:
    """The columns. Capacities and what is free; `kind` is the place of a row's kind in `kinds`."""

    def __init__(self, states: Sequence[NodeState]) -> None:
        ordered = sorted(states, key=lambda state: state.name)
        rows = len(ordered)
        self.states = ordered
        self.names = [state.name for state in ordered]
        self.refusals: list[Refusal] = []  # what nodes of some kind said to some filter, each once
        self._refusal_places: dict[Refusal, int] = {}
        self.rows = {name: row for row, name in enumerate(self.names)}
        self.models = sorted({gpu.model for state in ordered for gpu in state.gpus})
        self.model_rows: dict[GPUModel, int] = {model: at for at, model in enumerate(self.models)}
        self.kinds: list[NodeKind] = []
        self._kind_places: dict[NodeKind, int] = {}
        self._screens: dict[Demand, Screen] = {}
        self._answers: dict[tuple[Filter, Hashable], Ints] = {}
        self._admitted: dict[tuple[NodeRule, ...], Ints] = {}
        self._amounts: dict[Hashable, tuple[Ints, Ints]] = {}

        self.kind = np.zeros(rows, np.int64)
        self.cores = np.zeros(rows, np.int64)
        self.memory_bytes = np.zeros(rows, np.int64)
        self.gpus = np.zeros(rows, np.int64)
        self.model_gpus = np.zeros((len(self.models), rows), np.int64)
        self.working_model_gpus = np.zeros((len(self.models), rows), np.int64)
        self.free_cpu_millis = np.zeros(rows, np.int64)
        self.free_memory_bytes = np.zeros(rows, np.int64)
        self.free_gpus = np.zeros(rows, np.int64)
        self.free_model_gpus = np.zeros((len(self.models), rows), np.int64)
        self.tightness = np.zeros(rows, np.int64)
        for row, state in enumerate(ordered):
            self._write_capacity(row, state)
            self._write_free(row, state)

    def takes(self, state: NodeState) -> bool:
        """Whether the node can be written in place: it has a row, and no GPU model that no column is for."""
        return state.name in self.rows and all(gpu.model in self.model_rows for gpu in state.gpus)

    def write_node(self, state: NodeState) -> None:
        """The node itself changed."""
        row = self.rows[state.name]
        self.states[row] = state
        self._write_capacity(row, state)
        self._write_free(row, state)
        self._forget(beyond=0)

    def write_use(self, state: NodeState) -> None:
        """Containers on the node came or went."""
        self._write_free(self.rows[state.name], state)

    def _write_capacity(self, row: int, state: NodeState) -> None:
        place = self._kind_places.get(state.kind)
        if place is None:
            place = self._kind_places[state.kind] = len(self.kinds)
            self.kinds.append(state.kind)
        self.kind[row] = place
        self.cores[row] = state.cores
        self.memory_bytes[row] = state.memory_bytes
        self.gpus[row] = len(state.gpus)
        self.model_gpus[:, row] = self.working_model_gpus[:, row] = 0
        for gpu in state.gpus:
            self.model_gpus[self.model_rows[gpu.model], row] += 1
            self.working_model_gpus[self.model_rows[gpu.model], row] += gpu.usable

    def _write_free(self, row: int, state: NodeState) -> None:
        free_gpus = state.free_gpus()
        self.free_cpu_millis[row] = state.cores * CORE_MILLIS - state.used_cpu_millis
        self.free_memory_bytes[row] = state.memory_bytes - state.used_memory_bytes
        self.free_gpus[row] = len(free_gpus)
        self.free_model_gpus[:, row] = 0
        for gpu in free_gpus:
            self.free_model_gpus[self.model_rows[gpu.model], row] += 1
        self.tightness[row] = tightness(
            len(state.gpus),
            len(free_gpus),
            state.cores * CORE_MILLIS - state.used_cpu_millis,
            state.memory_bytes - state.used_memory_bytes,
        )

    def screen(self, demand: Demand) -> Screen:
        """What the demand means for each row."""
        screen = self._screens.get(demand)
        if screen is None:
            self._forget(beyond=_KEPT)
            screen = self._screens[demand] = self._make_screen(demand)
        return screen

    def _make_screen(self, demand: Demand) -> Screen:
        usable = self.answers(READINESS, demand) == PASSES
        for selector in SELECTORS:
            usable &= self.answers(selector, demand) == PASSES
        if demand.invalid or demand.volumes:
            usable[:] = False
        if demand.rules:
            usable &= self.admitted(demand.rules) == PASSES
        if demand.node:
            row = self.rows.get(demand.node)
            found = row is not None and bool(usable[row])
            usable[:] = False
            if row is not None:
                usable[row] = found
        cpu, memory = self._needs(demand)
        models = tuple(at for at, model in enumerate(self.models) if model_matches(demand, model))
        return Screen(usable, cpu, memory, models, len(models) == len(self.models))

    def answers(self, selector: Filter, demand: Demand) -> Ints:
        """What each row says to one filter: a place in `refusals`, or PASSES."""
        key = (selector, selector.asks(demand))
        answers = self._answers.get(key)
        if answers is None:
            said = [self.place_of(selector.refuse(demand, kind)) for kind in self.kinds]
            answers = self._answers[key] = np.array(said, np.int64)[self.kind]
        return answers

    def admitted(self, rules: tuple[NodeRule, ...]) -> Ints:
        """What each row says to who may use some nodes only: a place in `refusals`, or PASSES."""
        answers = self._admitted.get(rules)
        if answers is None:
            said = (node_refusal(rules, name) for name in self.names)
            refused = [Refusal(Stage.ADMITTED, Reason.NODE_NOT_ALLOWED, why) if why else None for why in said]
            answers = self._admitted[rules] = np.array([self.place_of(refusal) for refusal in refused], np.int64)
        return answers

    def admits(self, demand: Demand) -> bool:
        """Whether any node that it could be meant for is one that it may use."""
        passed = self.admitted(demand.rules) == PASSES
        if not demand.node:
            return bool(passed.any())
        # A node that is not there is denied to nobody.
        row = self.rows.get(demand.node)
        return row is None or bool(passed[row])

    def place_of(self, refusal: Refusal | None) -> int:
        """The place of a refusal in `refusals`."""
        if refusal is None:
            return PASSES
        place = self._refusal_places.get(refusal)
        if place is None:
            place = self._refusal_places[refusal] = len(self.refusals)
            self.refusals.append(refusal)
        return place

    def _needs(self, demand: Demand) -> tuple[Ints, Ints]:
        """CPU and memory on each row, shared by the demands that ask for the same amounts."""
        key = (demand.gpus, demand.cpu_millis, demand.memory_bytes, demand.exclusive)
        known = self._amounts.get(key)
        if known is None:
            known = needs(demand, cores=self.cores, memory_bytes=self.memory_bytes, gpus=self.gpus)
            self._amounts[key] = known
        return known

    def _forget(self, *, beyond: int) -> None:
        """Drop what was worked out, where it is more than this."""
        if len(self._screens) >= beyond:
            self._screens.clear()
        if len(self._amounts) >= beyond:
            self._amounts.clear()
        if len(self._answers) + len(self._admitted) >= beyond:  # with the refusals that they point at
            self._answers.clear()
            self._admitted.clear()
            self.refusals.clear()
            self._refusal_places.clear()


# Widths of the parts of a tightness, in bits: GPUs 0..1023, thousandths of cores up to 16,000 cores, MiB up to 128 TiB.
_GPU_BITS, _CPU_BITS, _MEMORY_BITS = 10, 24, 27
_MIB_SHIFT = 20


def tightness(gpus: int, free_gpus: int, free_cpu_millis: int, free_memory_bytes: int) -> int:
    """Rank of a node for filling up, the lowest first, as one number so that the best of all is one `argmin`.

    First nodes without GPUs (of no meaning for a GPU workload, for all its nodes have some), then those with the
    fewest free GPUs, so that nodes with all their GPUs free stay so; then the least free CPU, then memory.
    """
    rank = 1 if gpus else 0
    rank = rank << _GPU_BITS | _clip(free_gpus, _GPU_BITS)
    rank = rank << _CPU_BITS | _clip(free_cpu_millis, _CPU_BITS)
    return rank << _MEMORY_BITS | _clip(free_memory_bytes >> _MIB_SHIFT, _MEMORY_BITS)


def _clip(value: int, bits: int) -> int:
    return min(max(value, 0), (1 << bits) - 1)
