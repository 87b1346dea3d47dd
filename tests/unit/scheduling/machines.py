"""Small nodes, workloads and containers to schedule with."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from google.protobuf.json_format import ParseDict

from pwm.api.v1.node_pb2 import DriverInfo, GPUDevice, Node, NodeSpec, NodeStatus
from pwm.api.v1.workload_pb2 import Container, ContainerStatus, Workload
from pwm.controlplane.core.scheduling.cluster import Cluster
from pwm.controlplane.core.scheduling.plan import Placement, Plan, plan
from pwm.controlplane.core.scheduling.queue import Waiting
from pwm.controlplane.core.scheduling.spec import container_spec

GIB = 1024**3
A100, V100, T4 = "NVIDIA A100-SXM4-80GB", "Tesla V100-SXM2-16GB", "Tesla T4"
MEMORY_OF = {A100: 80 * GIB, V100: 16 * GIB, T4: 15 * GIB}


def node(
    name: str,
    *,
    cores: int = 16,
    memory: int = 64 * GIB,
    gpus: int | Sequence[str] = 0,
    broken: Iterable[int] = (),
    labels: Mapping[str, str] | None = None,
    phase: NodeStatus.Phase.ValueType = NodeStatus.READY,
    allow: Sequence[NodeSpec.Allow.ValueType] = (),
    drivers: Sequence[DriverInfo] = (DriverInfo(name="pwm.docker", ready=True),),
    cpu_product: str = "Intel(R) Xeon(R) Gold 6248 CPU @ 2.50GHz",
    zone: str = "",
) -> Node:
    """A node; `gpus` is a number of A100s or a list of models, `broken` the indices of those that do not work."""
    made = Node(spec=NodeSpec(zone=zone, labels=labels, allow=allow), status=NodeStatus(phase=phase))
    made.metadata.name = name
    inventory = made.status.inventory
    inventory.cpu_count, inventory.memory_bytes, inventory.cpu_product = cores, memory, cpu_product
    inventory.drivers.extend(drivers)
    models = [A100] * gpus if isinstance(gpus, int) else gpus
    bad = set(broken)
    inventory.gpus.extend(
        GPUDevice(
            uuid=f"{name}/{index}",
            index=index,
            product_name=model,
            memory_bytes=MEMORY_OF[model],
            numa_node=index * 2 // len(models),
            healthy=index not in bad,
        )
        for index, model in enumerate(models)
    )
    return made


def workload(
    name: str,
    *,
    gpus: int = 0,
    models: Sequence[str] = (),
    cpu: str = "",
    exclusive: bool = False,
    memory: str = "",
    affinity: str = "Fill",
    replicas: int = 1,
    gang: bool = False,
    **spec: Any,
) -> Workload:
    """A workload of the group `vision`; `spec` is merged in as it would be written."""
    made = Workload()
    made.metadata.name = made.metadata.uid = name
    made.metadata.group = "vision"
    made.spec.selectors.gpu.count = gpus
    made.spec.selectors.gpu.product_name.extend(models)
    made.spec.selectors.cpu.count = cpu
    made.spec.selectors.cpu.exclusive = exclusive
    made.spec.config.memory = memory
    made.spec.replica.count = replicas
    made.spec.gang = gang
    ParseDict({"config": {"affinity": affinity}}, made.spec)
    ParseDict(spec, made.spec)
    return made


def waiting_for(wanted: Workload, *, since_ms: int = 0, first: int = 0) -> list[Waiting]:
    """All replicas of a workload, or those from `first` on, waiting for their first container."""
    return [Waiting(wanted, replica, 1, since_ms) for replica in range(first, wanted.spec.replica.count)]


def container_of(
    placement: Placement, *, phase: ContainerStatus.Phase.ValueType = ContainerStatus.RUNNING
) -> Container:
    owner, item = placement.waiting.workload, placement.waiting
    made = Container(spec=container_spec(owner, placement, revision=7), status=ContainerStatus(phase=phase))
    made.metadata.group = owner.metadata.group
    made.metadata.name = made.metadata.uid = f"{owner.metadata.name}.{item.replica}.{item.attempt}"
    return made


def cluster_of(*nodes: Node) -> Cluster:
    made = Cluster()
    for machine in nodes:
        made.set_node(machine)
    return made


def planned(cluster: Cluster, *wanted: Workload, now_ms: int = 0, seed: int = 0) -> Plan:
    """A plan for all replicas of these, which changes nothing."""
    return plan(cluster, [item for w in wanted for item in waiting_for(w)], now_ms=now_ms, seed=seed)


def run(cluster: Cluster, *wanted: Workload) -> Plan:
    """Plan for all replicas of these and let them run."""
    made = planned(cluster, *wanted)
    for placement in made.placements:
        cluster.set_container(container_of(placement))
    return made


def nodes_of(made: Plan) -> list[str]:
    return [placement.node for placement in made.placements]
