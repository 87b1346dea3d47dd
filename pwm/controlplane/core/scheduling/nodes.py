"""One node: what it is, what it has, and who holds it.

`NodeKind` is what the filters look at. Nodes of one purchase are of one kind, so a filter is asked once per
kind and not once per node. `NodeState` adds the numbers: capacity from the inventory, and what live
containers hold, kept by adding and taking away as containers come and go.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from pwm.api.v1.common_pb2 import Resources
from pwm.api.v1.node_pb2 import Node, NodeSpec, NodeStatus
from pwm.api.v1.workload_pb2 import Container
from pwm.controlplane.core.scheduling.demand import CORE_MILLIS, zone_of

_MIB = 1024**2
# Memory that is never promised to containers: the kernel, dockerd and the agent live on it. 2 % suits common
# machines; a small one still needs a quarter of a GiB, and a huge one has no use for more than 8 GiB.
RESERVE_MIN_BYTES = 256 * _MIB
RESERVE_SHARE_PERCENT = 2
RESERVE_MAX_BYTES = 8192 * _MIB


class GPUModel(NamedTuple):
    product: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class GPUUnit:
    """One GPU. `usable` is false when it is broken or a process that PWM did not start is on it."""

    uuid: str
    index: int
    model: GPUModel
    numa: int
    usable: bool


class DriverState(NamedTuple):
    name: str
    ready: bool
    message: str


@dataclass(frozen=True, slots=True)
class NodeKind:
    """What filters look at. `allowed` is empty where every driver that the agent offers may be used."""

    zone: str
    labels: frozenset[tuple[str, str]]
    cpu_workloads: bool
    gpu_workloads: bool
    allowed: frozenset[str]
    drivers: tuple[DriverState, ...]
    cpu_product: str
    gpu_models: tuple[GPUModel, ...]
    phase: NodeStatus.Phase.ValueType
    maintenance: bool
    # Whether an agent ever reported; before that nothing is known about the machine.
    joined: bool


@dataclass(frozen=True, slots=True)
class Holding:
    """What one live container takes from its node."""

    uid: str
    name: str
    workload_uid: str
    node: str
    cpu_millis: int
    memory_bytes: int
    gpu_uuids: tuple[str, ...]
    cpu_ids: tuple[int, ...]


def holding_of(container: Container) -> Holding:
    spec = container.spec
    return Holding(
        uid=container.metadata.uid,
        name=f"{container.metadata.group}/{container.metadata.name}",
        workload_uid=spec.workload_uid,
        node=spec.node,
        # A core of its own is a whole core of CPU, whatever the resources say; `scratch.py` relies on it.
        cpu_millis=max(spec.resources.cpu_millis, len(spec.cpu_ids) * CORE_MILLIS),
        memory_bytes=spec.resources.memory_bytes,
        gpu_uuids=tuple(spec.gpu_uuids),
        cpu_ids=tuple(spec.cpu_ids),
    )


def kind_of(node: Node) -> NodeKind:
    spec, inventory = node.spec, node.status.inventory
    allow = set(spec.allow) - {NodeSpec.ALLOW_UNSPECIFIED}
    labels = {**inventory.labels, **spec.labels}  # what an admin says stands over what the agent says
    return NodeKind(
        zone=zone_of(spec.zone),
        labels=frozenset(labels.items()),
        cpu_workloads=not allow or NodeSpec.CPUWorkload in allow,
        gpu_workloads=not allow or NodeSpec.GPUWorkload in allow,
        allowed=frozenset(spec.drivers),
        drivers=tuple(sorted(DriverState(d.name, d.ready, d.message) for d in inventory.drivers)),
        cpu_product=inventory.cpu_product,
        gpu_models=tuple(sorted({GPUModel(g.product_name, g.memory_bytes) for g in inventory.gpus})),
        phase=node.status.phase,
        maintenance=spec.maintenance,
        joined=inventory.cpu_count > 0,
    )


def allocatable_memory(memory_bytes: int) -> int:
    """Bytes of a machine's memory that containers may have."""
    reserve = min(max(RESERVE_MIN_BYTES, memory_bytes * RESERVE_SHARE_PERCENT // 100), RESERVE_MAX_BYTES)
    return memory_bytes - min(reserve, memory_bytes // 2)


@dataclass(slots=True)
class NodeState:
    """A node's capacity and what is taken of it. Only `Cluster` changes it; everybody may read."""

    name: str
    kind: NodeKind
    cores: int
    memory_bytes: int
    gpus: tuple[GPUUnit, ...]
    used_cpu_millis: int = 0
    used_memory_bytes: int = 0
    holdings: dict[str, Holding] = field(default_factory=dict)
    gpu_holders: dict[str, str] = field(default_factory=dict)  # GPU uuid -> container uid
    core_holders: dict[int, str] = field(default_factory=dict)  # exclusive core -> container uid

    @staticmethod
    def of(node: Node, holdings: Iterable[Holding] = ()) -> "NodeState":
        """The state of a node that holds these containers."""
        inventory = node.status.inventory
        state = NodeState(
            name=node.metadata.name,
            kind=kind_of(node),
            cores=inventory.cpu_count,
            memory_bytes=allocatable_memory(inventory.memory_bytes),
            gpus=tuple(
                GPUUnit(g.uuid, g.index, GPUModel(g.product_name, g.memory_bytes), g.numa_node, g.healthy)
                for g in sorted(inventory.gpus, key=lambda g: (g.index, g.uuid))
            ),
        )
        for holding in holdings:
            state.hold(holding)
        return state

    @property
    def capacity(self) -> Resources:
        """All that containers may have, memory without the reserve."""
        return Resources(cpu_millis=self.cores * CORE_MILLIS, memory_bytes=self.memory_bytes, gpus=len(self.gpus))

    @property
    def used(self) -> Resources:
        """What live containers hold."""
        return Resources(
            cpu_millis=self.used_cpu_millis, memory_bytes=self.used_memory_bytes, gpus=len(self.gpu_holders)
        )

    def free_gpus(self) -> list[GPUUnit]:
        """GPUs that work and that no container has, by index."""
        return [gpu for gpu in self.gpus if gpu.usable and gpu.uuid not in self.gpu_holders]

    def hold(self, holding: Holding) -> None:
        self.holdings[holding.uid] = holding
        self.used_cpu_millis += holding.cpu_millis
        self.used_memory_bytes += holding.memory_bytes
        self.gpu_holders.update(dict.fromkeys(holding.gpu_uuids, holding.uid))
        self.core_holders.update(dict.fromkeys(holding.cpu_ids, holding.uid))

    def release(self, uid: str) -> None:
        holding = self.holdings.pop(uid)
        self.used_cpu_millis -= holding.cpu_millis
        self.used_memory_bytes -= holding.memory_bytes
        for uuid in holding.gpu_uuids:
            if self.gpu_holders.get(uuid) == uid:
                del self.gpu_holders[uuid]
        for core in holding.cpu_ids:
            if self.core_holders.get(core) == uid:
                del self.core_holders[core]
