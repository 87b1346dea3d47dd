"""One beat of `pwm top` as rows: what the server streams, added up for people.

The server's message (`TopResponse` as JSON) has containers with counters that only grow. A person wants
workloads, with rates: so containers of one workload are summed, and bytes per second come from the
difference to the beat before. Plain dictionaries are read instead of protobuf messages, because 2,000
containers a second cost 10 ms this way and 200 ms through json_format.

Pure: no clock, no terminal. `columns.py` says how a row looks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes per second, and the counters they were computed from."""

    receive: float = 0.0
    send: float = 0.0
    read: float = 0.0
    write: float = 0.0

    def __add__(self, other: Rates) -> Rates:
        return Rates(
            self.receive + other.receive, self.send + other.send, self.read + other.read, self.write + other.write
        )


@dataclass(frozen=True, slots=True)
class NodeRow:
    name: str
    phase: str
    cpu_used: float
    cpu_held: float
    cpu_total: float
    memory_used: int
    memory_held: int
    memory_total: int
    disk_used: int
    disk_total: int
    gpus_held: int
    gpus_total: int
    load: float
    containers: int


@dataclass(frozen=True, slots=True)
class GpuRow:
    node: str
    index: int
    product: str
    utilization: float
    memory_used: int
    memory_total: int
    temperature: int
    power: float
    power_limit: float
    # GROUP/CONTAINER that holds it; empty: free.
    holder: str
    # Processes on it that PWM did not start.
    strangers: int


@dataclass(frozen=True, slots=True)
class ContainerRow:
    uid: str
    name: str
    group: str
    workload: str
    node: str
    phase: str
    cpu_used: float
    cpu_held: float
    memory_used: int
    memory_limit: int
    gpus: int
    pids: int
    rates: Rates
    started: datetime | None
    # While the image is pulled: 0..1.
    pulled: float | None


@dataclass(frozen=True, slots=True)
class WorkloadRow:
    """The containers of one workload added up."""

    group: str
    name: str
    phase: str
    nodes: str
    containers: int
    cpu_used: float
    cpu_held: float
    memory_used: int
    memory_limit: int
    gpus: int
    pids: int
    rates: Rates
    started: datetime | None

    @property
    def key(self) -> str:
        return f"{self.group}/{self.name}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    time: datetime
    nodes: list[NodeRow] = field(default_factory=list)
    gpus: list[GpuRow] = field(default_factory=list)
    containers: list[ContainerRow] = field(default_factory=list)
    workloads: list[WorkloadRow] = field(default_factory=list)
    # Counters of each container (received, sent, read, written), for the next beat's rates.
    counters: dict[str, tuple[int, int, int, int]] = field(default_factory=dict)


def read(message: Json, before: Snapshot | None = None) -> Snapshot:
    """The rows of a `TopResponse`; rates need the beat before it."""
    time = _time(message.get("time")) or datetime.fromtimestamp(0, UTC)
    documents = message.get("containers", ())
    counters = {_uid(d): _counters(d.get("usage", {})) for d in documents}
    seconds = (time - before.time).total_seconds() if before else 0.0
    containers = [
        _container(d, _rates(counters[_uid(d)], before.counters.get(_uid(d)) if before else None, seconds))
        for d in documents
    ]
    per_node: dict[str, int] = {}
    for container in containers:
        per_node[container.node] = per_node.get(container.node, 0) + 1
    return Snapshot(
        time=time,
        nodes=[_node(d, per_node.get(d.get("name", ""), 0)) for d in message.get("nodes", ())],
        gpus=[_gpu(d) for d in message.get("gpus", ())],
        containers=containers,
        workloads=add_up(containers),
        counters=counters,
    )


def add_up(containers: Iterable[ContainerRow]) -> list[WorkloadRow]:
    """One row per workload."""
    by_workload: dict[tuple[str, str], list[ContainerRow]] = {}
    for container in containers:
        by_workload.setdefault((container.group, container.workload), []).append(container)
    return [_workload(group, name, members) for (group, name), members in by_workload.items()]


# Of a workload's containers, the state that says most about it comes first.
_TELLING = ("RUNNING", "EXITING", "CREATING", "PULLING", "ASSIGNED", "LOST")


def _workload(group: str, name: str, members: list[ContainerRow]) -> WorkloadRow:
    phases = {member.phase for member in members}
    nodes = sorted({member.node for member in members})
    started = [member.started for member in members if member.started]
    rates = Rates()
    for member in members:
        rates = rates + member.rates
    return WorkloadRow(
        group=group,
        name=name,
        phase=next((phase for phase in _TELLING if phase in phases), min(phases)),
        nodes=nodes[0] if len(nodes) == 1 else f"{nodes[0]} +{len(nodes) - 1}",
        containers=len(members),
        cpu_used=sum(m.cpu_used for m in members),
        cpu_held=sum(m.cpu_held for m in members),
        memory_used=sum(m.memory_used for m in members),
        memory_limit=sum(m.memory_limit for m in members),
        gpus=sum(m.gpus for m in members),
        pids=sum(m.pids for m in members),
        rates=rates,
        started=min(started) if started else None,
    )


def _node(document: Json, containers: int) -> NodeRow:
    capacity, held = document.get("capacity", {}), document.get("allocated", {})
    usage = document.get("usage", {})
    cpus = _int(capacity, "cpuMillis") / 1000
    return NodeRow(
        name=document.get("name", ""),
        phase=document.get("phase", ""),
        cpu_used=float(usage.get("cpu", 0)) * cpus,
        cpu_held=_int(held, "cpuMillis") / 1000,
        cpu_total=cpus,
        memory_used=_int(usage, "memoryUsedBytes"),
        memory_held=_int(held, "memoryBytes"),
        memory_total=_int(capacity, "memoryBytes") or _int(usage, "memoryTotalBytes"),
        disk_used=_int(usage, "diskUsedBytes"),
        disk_total=_int(usage, "diskTotalBytes"),
        gpus_held=_int(held, "gpus"),
        gpus_total=_int(capacity, "gpus"),
        load=float(usage.get("load1", 0)),
        containers=containers,
    )


def _gpu(document: Json) -> GpuRow:
    usage = document.get("usage", {})
    return GpuRow(
        node=document.get("node", ""),
        index=_int(document, "index"),
        # Every one of them is; the model is what tells them apart.
        product=str(document.get("product_name", "")).removeprefix("NVIDIA "),
        utilization=float(usage.get("utilization", 0)),
        memory_used=_int(usage, "memoryUsedBytes"),
        memory_total=_int(usage, "memoryTotalBytes"),
        temperature=_int(usage, "temperatureC"),
        power=float(usage.get("powerW", 0)),
        power_limit=float(usage.get("powerLimitW", 0)),
        holder=document.get("container", ""),
        strangers=sum(1 for process in usage.get("processes", ()) if not process.get("containerUid")),
    )


def _container(document: Json, rates: Rates) -> ContainerRow:
    usage, held = document.get("usage", {}), document.get("allocated", {})
    pull = usage.get("pull")
    return ContainerRow(
        uid=_uid(document),
        name=document.get("name", ""),
        group=document.get("group", ""),
        workload=document.get("workload", ""),
        node=document.get("node", ""),
        phase=str(document.get("phase", "")).upper(),
        cpu_used=float(usage.get("cpuCores", 0)),
        cpu_held=_int(held, "cpuMillis") / 1000,
        memory_used=_int(usage, "memoryBytes"),
        memory_limit=_int(usage, "memoryLimitBytes") or _int(held, "memoryBytes"),
        gpus=_int(held, "gpus"),
        pids=_int(usage, "pids"),
        rates=rates,
        started=_time(document.get("startedAt")),
        pulled=_int(pull, "currentBytes") / max(1, _int(pull, "totalBytes")) if pull else None,
    )


def _uid(document: Json) -> str:
    return str(document.get("usage", {}).get("uid") or f"{document.get('group')}/{document.get('name')}")


def _counters(usage: Json) -> tuple[int, int, int, int]:
    names = ("netRxBytes", "netTxBytes", "blockReadBytes", "blockWriteBytes")
    received, sent, read_, written = (_int(usage, name) for name in names)
    return received, sent, read_, written


def _rates(now: tuple[int, int, int, int], before: tuple[int, int, int, int] | None, seconds: float) -> Rates:
    if before is None or seconds <= 0:
        return Rates()
    # A counter that went back began anew: nothing is known of this beat.
    return Rates(*(max(0.0, (a - b) / seconds) for a, b in zip(now, before, strict=True)))


def _int(document: Json, name: str) -> int:
    """A number as proto3 JSON writes it: int64 as text, zero as nothing."""
    return int(document.get(name) or 0)


def _time(text: object) -> datetime | None:
    if not isinstance(text, str) or not text:
        return None
    whole, _, fraction = text.removesuffix("Z").partition(".")
    return datetime.fromisoformat(f"{whole}.{fraction[:6]:0<6}+00:00" if fraction else f"{whole}+00:00")
