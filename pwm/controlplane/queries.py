"""Resources as users see them: the stored state, and what follows from other resources.

A workload's phase follows from its containers, a node's use from what is placed on it, GPUs and CPUs from
their node, binds from everybody's references. Nothing of this is stored. Messages of the view are not
changed: what is computed goes into copies, and a copy is given again as long as nothing it depends on has
changed, so that those who encode or compare it need not do it twice.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from pwm import lifecycle
from pwm.api.v1.common_pb2 import Metadata, Reason, Resources
from pwm.api.v1.events_pb2 import Event
from pwm.api.v1.node_pb2 import CPU, GPU, Node
from pwm.api.v1.resource_pb2 import Bind, Resource
from pwm.api.v1.workload_pb2 import Container, Workload
from pwm.controlplane.clock import Clock
from pwm.controlplane.core.idle import remark
from pwm.controlplane.core.nodes import Contact, silence_said
from pwm.controlplane.core.reconcile import reconcile
from pwm.controlplane.core.scheduling.cluster import Cluster
from pwm.controlplane.core.scheduling.explain import explain
from pwm.controlplane.core.secrets import missing
from pwm.controlplane.core.status import workload_status
from pwm.controlplane.core.targets import has_addresses
from pwm.controlplane.view import View, ViewChange

# kind -> field of Resource that holds it
RESOURCE_FIELDS = {
    field.message_type.name: field.name
    for field in Resource.DESCRIPTOR.oneofs_by_name["resource"].fields
    if field.message_type
}
# A status says nothing that changes by itself faster than this.
MOMENT_MS = 500
OBSERVED_KINDS = frozenset({"GPU", "CPU", "Bind", "Event"})


class Shown(NamedTuple):
    """A resource as users see it, and what of it is asked for whenever somebody wants to.

    `plain`: it has been looked at, and nothing in it is hidden from anybody who may get it (`core.targets`).
    """

    message: Any
    group: str
    plain: bool = False

    @classmethod
    def of(cls, message: Any) -> "Shown":
        return cls(message, message.group if isinstance(message, Event) else message.metadata.group)


class Queries:
    def __init__(
        self,
        *,
        view: View,
        cluster: Cluster,
        clock: Clock,
        contact: Callable[[str], Contact],
        denial: Callable[[Workload], Reason | None] = lambda workload: None,
    ) -> None:
        """`contact`: whether a node is connected at this moment. `denial`: why nothing of a workload may start."""
        self._view = view
        self._cluster = cluster
        self._clock = clock
        self._contact = contact
        self._denial = denial
        self._workloads: dict[str, tuple[tuple[object, ...], Workload]] = {}
        self._nodes: dict[str, tuple[tuple[object, ...], Node]] = {}
        self._lately: dict[str, tuple[Workload, tuple[int, int, int], Shown]] = {}
        view.observe(self._forget)

    def _forget(self, change: ViewChange) -> None:
        if change.after is None:
            (self._workloads if change.kind == "Workload" else self._nodes).pop(change.uid, None)
            self._lately.pop(change.uid, None)

    # ---- one resource

    def workload(self, workload: Workload) -> Workload:
        """`workload` with its computed status."""
        return self._shown(workload).message  # type: ignore[no-any-return]

    def _shown(self, workload: Workload) -> Shown:
        uid = workload.metadata.uid
        # Thousands who watch the same workload ask at the same moment.
        moment = (self._view.revision, self._cluster.revision, self._clock.now_ms() // MOMENT_MS)
        lately = self._lately.get(uid)
        if lately is not None and lately[0] is workload and lately[1] == moment:
            return lately[2]
        message = self._workload(uid, workload)
        # Here and not where it is asked for, which is a thousand times as often: reading it is half of the question.
        shown = Shown(message, message.metadata.group, plain=not has_addresses(message))
        self._lately[uid] = (workload, moment, shown)
        return shown

    def _workload(self, uid: str, workload: Workload) -> Workload:
        containers = self._view.containers_of(uid)
        unreachable = [c.spec.node for c in containers if self._is_unreachable(c)]
        waiting = self._waiting_reason(workload, containers)
        idle = remark(workload, self._clock.now_ms())
        said = idle.message if idle is not None else ""
        key = (workload, *containers, *unreachable, waiting.code, waiting.message, said)
        cached = self._workloads.get(uid)
        if cached is not None and len(cached[0]) == len(key) and all(map(_same, cached[0], key)):
            return cached[1]
        shown = Workload()
        shown.CopyFrom(workload)
        shown.status.CopyFrom(
            workload_status(
                workload,
                containers,
                waiting=waiting if waiting.code else None,
                nodes_unreachable=unreachable,
                remark=idle,
            )
        )
        self._workloads[uid] = (key, shown)
        return shown

    def _is_unreachable(self, container: Container) -> bool:
        if container.status.phase in lifecycle.ENDED:
            return False
        node = self._view.by_name("Node", container.spec.node)
        return node is None or node.status.reason.code == Reason.NODE_UNREACHABLE

    def _waiting_reason(self, workload: Workload, containers: list[Container]) -> Reason:
        """Why its next replica cannot be placed now; an empty reason when none waits."""
        now_ms = self._clock.now_ms()
        gap = reconcile(workload, containers, now_ms=now_ms)
        if not any(v.not_before_ms <= now_ms for v in gap.vacancies):
            return Reason()
        denied = self._denial(workload)
        if denied is not None:
            return denied
        absent = missing(workload, lambda group, name: self._view.by_name("Secret", name, group=group))
        if absent is not None:
            return absent.reason
        return explain(self._cluster, workload).reason

    def node(self, node: Node) -> Node:
        """`node` with what its live containers hold, and whether its agent is connected at this moment."""
        uid = node.metadata.uid
        live = self._live_on(node)
        used = Resources(
            cpu_millis=sum(c.spec.resources.cpu_millis for c in live),
            memory_bytes=sum(c.spec.resources.memory_bytes for c in live),
            gpus=sum(len(c.spec.gpu_uuids) for c in live),
        )
        silent = silence_said(node, self._contact(node.metadata.name))
        key = (node, used.cpu_millis, used.memory_bytes, used.gpus, len(live), silent)
        cached = self._nodes.get(uid)
        if cached is not None and all(map(_same, cached[0], key)):
            return cached[1]
        shown = Node()
        shown.CopyFrom(node)
        shown.status.used.CopyFrom(used)
        shown.status.containers = len(live)
        if silent:
            shown.status.disconnected = True
            shown.status.reason.CopyFrom(Reason(code=Reason.NODE_UNREACHABLE, message=silent))
        self._nodes[uid] = (key, shown)
        return shown

    def _live_on(self, node: Node) -> list[Container]:
        return [c for c in self._view.containers_on(node.metadata.name) if c.status.phase in lifecycle.LIVE]

    def _present(self, kind: str, state: Any) -> Shown:
        if kind == "Workload":
            return self._shown(state)
        return Shown.of(self.node(state) if kind == "Node" else state)

    # ---- many

    def all(self, kind: str) -> Iterator[Shown]:
        """Every resource of a kind."""
        match kind:
            case "GPU":
                for node in self._view.all("Node"):
                    yield from map(Shown.of, self.gpus(node))
            case "CPU":
                yield from map(Shown.of, map(self.cpu, self._view.all("Node")))
            case "Bind":
                yield from map(Shown.of, self.binds())
            case "Event":
                yield from map(Shown.of, self._view.recent_events)
            case _:
                for state in self._view.all(kind):
                    yield self._present(kind, state)

    def find(self, kind: str, name: str, group: str) -> Shown | None:
        if kind == "Event":
            return None
        if kind in OBSERVED_KINDS:
            return next((shown for shown in self.all(kind) if shown.message.metadata.name == name), None)
        state = self._view.by_name(kind, name, group=group)
        return self._present(kind, state) if state is not None else None

    def gpus(self, node: Node) -> Iterator[GPU]:
        holders = {uuid: container for container in self._live_on(node) for uuid in container.spec.gpu_uuids}
        for device in node.status.inventory.gpus:
            holder = holders.get(device.uuid)
            phase = "UNKNOWN" if not device.healthy else "BOOKED" if holder is not None else "FREE"
            yield GPU(
                api_version="v1",
                kind="GPU",
                metadata=Metadata(name=f"{node.metadata.name}-{device.index}", uid=device.uuid),
                node=node.metadata.name,
                device=device,
                container=f"{holder.metadata.group}/{holder.metadata.name}" if holder is not None else "",
                phase=phase,
            )

    def cpu(self, node: Node) -> CPU:
        inventory = node.status.inventory
        return CPU(
            api_version="v1",
            kind="CPU",
            metadata=Metadata(name=node.metadata.name),
            node=node.metadata.name,
            product_name=inventory.cpu_product,
            count=inventory.cpu_count,
            used_millis=sum(c.spec.resources.cpu_millis for c in self._live_on(node)),
        )

    def binds(self) -> Iterator[Bind]:
        """Every parent-child relation."""
        for workload in self._view.all("Workload"):
            metadata = workload.metadata
            yield _bind("Group", metadata.group, "Workload", metadata.name, metadata)
            for mount in workload.spec.volumes:
                yield _bind(
                    "Volume", f"{mount.group or metadata.group}/{mount.name}", "Workload", metadata.name, metadata
                )
        for volume in self._view.all("Volume"):
            yield _bind("Storage", volume.spec.storage, "Volume", volume.metadata.name, volume.metadata)
        for container in self._view.all("Container"):
            if container.status.phase in lifecycle.ENDED:
                continue
            metadata, spec = container.metadata, container.spec
            yield _bind("Workload", f"{metadata.group}/{spec.workload}", "Container", metadata.name, metadata)
            yield _bind("Node", spec.node, "Container", metadata.name, metadata)
            for uuid in spec.gpu_uuids:
                yield _bind("GPU", uuid, "Container", metadata.name, metadata)

    def affected(self, kind: str, change: ViewChange) -> list[tuple[str, Shown | None]]:
        """Resources of `kind` that a change of the view concerns, as (uid, resource or None when gone)."""
        if kind == change.kind:
            return [(change.uid, self._present(kind, change.after) if change.after is not None else None)]
        if kind == "Event":
            return [(f"{change.uid}/{change.event.version}", Shown.of(change.event))]
        if change.kind == "Container":
            container: Any = change.after or change.before
            if kind == "Workload":
                workload = self._view.get("Workload", container.spec.workload_uid)
                return [(workload.metadata.uid, self._shown(workload))] if workload is not None else []
            node = self._view.by_name("Node", container.spec.node)
            return self._of_node(kind, node) if node is not None else []
        if change.kind == "Node" and change.after is not None:
            return self._of_node(kind, change.after)
        return []

    def _of_node(self, kind: str, node: Any) -> list[tuple[str, Shown | None]]:
        match kind:
            case "Node":
                return [(node.metadata.uid, Shown.of(self.node(node)))]
            case "GPU":
                return [(gpu.metadata.uid, Shown.of(gpu)) for gpu in self.gpus(node)]
            case "CPU":
                return [(node.metadata.uid, Shown.of(self.cpu(node)))]
        return []


def wrap(kind: str, message: Any) -> Resource:
    """A message as a Resource. Its field refers to a copy, as protobuf has no other way."""
    return Resource(**{RESOURCE_FIELDS[kind]: message})


def _same(a: object, b: object) -> bool:
    return a is b or (isinstance(a, str | int) and a == b)


def _bind(parent_kind: str, parent: str, child_kind: str, child: str, metadata: Metadata) -> Bind:
    return Bind(
        api_version="v1",
        kind="Bind",
        metadata=Metadata(name=f"{parent_kind}:{parent}:{child_kind}:{child}", group=metadata.group),
        parent_kind=parent_kind,
        parent=parent,
        child_kind=child_kind,
        child=child,
        since=metadata.created_at,
    )
