"""What the table of each kind shows.

One function per kind turns a message into the cells of its row; a second one, where there is more to say,
into those of the wide row. `-` stands for nothing there; the last column may be empty. The second that
functions get is the present one, since the epoch.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

from pwm import lifecycle, quantity
from pwm.api.v1.common_pb2 import Actor, Reason
from pwm.api.v1.events_pb2 import Event
from pwm.api.v1.identity_pb2 import Group, ResourceCredit, Role, Secret, Token, User, Zone
from pwm.api.v1.node_pb2 import CPU, GPU, Node, NodeStatus
from pwm.api.v1.resource_pb2 import Bind
from pwm.api.v1.volume_pb2 import Storage, Volume
from pwm.api.v1.workload_pb2 import Container, Workload, WorkloadStatus
from pwm.controlplane.services.event_text import said
from pwm.enums import value_name

Cells: TypeAlias = tuple[str, ...]
CellsOf: TypeAlias = Callable[[Any, int], Cells]

NONE = "-"
# Names in one cell before the rest is only counted.
_NAMES_SHOWN = 2
_HASH_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Layout:
    titles: Cells
    cells: CellsOf
    wide_titles: Cells
    wide_cells: CellsOf
    grouped: bool = False
    group_of: Callable[[Any], str] = lambda item: str(item.metadata.group)


# Enum numbers to words, once: asking the enum for each row would cost more than the rest of the row.
_WORKLOAD_PHASE = {v.number: v.name for v in WorkloadStatus.Phase.DESCRIPTOR.values} | {0: "UNKNOWN"}
_CONTAINER_PHASE = {number: lifecycle.phase_word(number) for number in lifecycle.TRANSITIONS} | {0: "unknown"}
_NODE_PHASE = {v.number: v.name for v in NodeStatus.Phase.DESCRIPTOR.values} | {0: "NOT_READY"}
_REASON = {v.number: v.name for v in Reason.Code.DESCRIPTOR.values} | {0: ""}


@lru_cache(maxsize=8192)
def _duration_text(seconds: int) -> str:
    return quantity.format_duration(seconds * 1000)


def _duration(seconds: int) -> str:
    # Seconds are not shown from ten minutes on: so many ages are one text, made once.
    return _duration_text(seconds if seconds < 600 else seconds - seconds % 60)


@lru_cache(maxsize=1024)
def _size(amount: int) -> str:
    return quantity.format_bytes(amount) if amount else NONE


def _age(metadata: Any, now_s: int) -> str:
    created = metadata.created_at.seconds
    return _duration(now_s - created) if created else NONE


def _several(names: Iterable[str]) -> str:
    words = list(names)
    if len(words) > _NAMES_SHOWN + 1:
        return f"{','.join(words[:_NAMES_SHOWN])},+{len(words) - _NAMES_SHOWN}"
    return ",".join(words) or NONE


def _pairs(labels: Any) -> str:
    return ",".join(f"{key}={labels[key]}" for key in sorted(labels)) or NONE


def _why(reason: Reason) -> str:
    """The sentence of a reason, with its code first where it has one."""
    code = _REASON.get(reason.code, "")
    return f"{code}: {reason.message}" if code and reason.message else reason.message or code


def _share(used: str, total: str) -> str:
    return f"{used}/{total}"


# ---- Workload


def _workload(item: Workload, now_s: int) -> Cells:
    status = item.status
    return (
        item.metadata.name,
        _WORKLOAD_PHASE.get(status.phase, "UNKNOWN"),
        f"{status.running}/{status.replicas}",
        _several(status.nodes),
        _gpus_held(item, status),
        _age(item.metadata, now_s),
        _REASON.get(status.reason.code, ""),
    )


def _workload_wide(item: Workload, now_s: int) -> Cells:
    status, spec = item.status, item.spec
    image = spec.image
    return (
        item.metadata.name,
        _WORKLOAD_PHASE.get(status.phase, "UNKNOWN"),
        f"{status.running}/{status.replicas}",
        _several(status.nodes),
        _gpus_held(item, status),
        spec.selectors.cpu.count or NONE,
        spec.config.memory or NONE,
        str(status.restarts),
        _age(item.metadata, now_s),
        "/".join(part for part in (image.registry, image.repository, image.image) if part) or NONE,
        item.metadata.created_by.name or NONE,
        _why(status.reason),
    )


def _gpus_held(item: Workload, status: WorkloadStatus) -> str:
    """GPUs it has, of those it wants in all: `8`, or `4/8` while some are missing."""
    wanted = item.spec.selectors.gpu.count * status.replicas
    if not wanted and not status.gpus:
        return NONE
    return str(wanted) if status.gpus == wanted else f"{status.gpus}/{wanted}"


# ---- Container


def _container(item: Container, now_s: int) -> Cells:
    metadata, spec, status = item.metadata, item.spec, item.status
    gpus = len(spec.gpu_uuids)
    return (
        metadata.name,
        _CONTAINER_PHASE.get(status.phase, "unknown"),
        str(status.exit_code) if status.HasField("exit_code") else NONE,
        spec.node or NONE,
        str(gpus) if gpus else NONE,
        _age(metadata, now_s),
        _REASON.get(status.reason.code, ""),
    )


def _container_wide(item: Container, now_s: int) -> Cells:
    spec, status = item.spec, item.status
    stop = status.stop_requested
    return (
        *_container(item, now_s)[:-2],
        quantity.format_cpu(spec.resources.cpu_millis) if spec.resources.cpu_millis else NONE,
        _size(spec.resources.memory_bytes),
        _age(item.metadata, now_s),
        spec.image or NONE,
        status.runtime_id[:_HASH_SHOWN] or NONE,
        _why(status.reason) or (f"stopping: {_why(stop)}" if status.HasField("stop_requested") else ""),
    )


# ---- Node, GPU, CPU


def _node(item: Node, now_s: int) -> Cells:
    status = item.status
    inventory, used = status.inventory, status.used
    phase = _NODE_PHASE.get(status.phase, "NOT_READY")
    return (
        item.metadata.name,
        f"{phase} (disconnected)" if status.disconnected else phase,
        _share(str(used.gpus), str(len(inventory.gpus))) if inventory.gpus else NONE,
        _share(quantity.format_cpu(used.cpu_millis), str(inventory.cpu_count)),
        _share(_size(used.memory_bytes).replace(NONE, "0"), _size(inventory.memory_bytes)),
        str(status.containers),
        item.spec.zone or NONE,
        _age(item.metadata, now_s),
        _REASON.get(_node_reason(item).code, ""),
    )


def _node_reason(item: Node) -> Reason:
    """Its own, else that one of its drivers is away: the others keep it ready."""
    away = [driver for driver in item.status.inventory.drivers if not driver.ready]
    if item.status.reason.code or not away:
        return item.status.reason
    return Reason(code=Reason.DRIVER_UNREACHABLE, message="; ".join(f"{d.name}: {d.message}" for d in away))


def _node_wide(item: Node, now_s: int) -> Cells:
    inventory = item.status.inventory
    products = sorted({gpu.product_name for gpu in inventory.gpus})
    return (
        *_node(item, now_s)[:-1],
        inventory.address or _several(item.spec.address),
        inventory.agent_version or NONE,
        inventory.os or NONE,
        inventory.cpu_product or NONE,
        _several(products),
        _several(f"{driver.name}{'' if driver.ready else ' (not ready)'}" for driver in inventory.drivers),
        _pairs({**item.metadata.labels, **inventory.labels, **item.spec.labels}),
        _why(_node_reason(item)),
    )


def _gpu(item: GPU, now_s: int) -> Cells:
    device = item.device
    return (
        item.metadata.name,
        item.phase or "UNKNOWN",
        item.node or NONE,
        device.product_name or NONE,
        _size(device.memory_bytes),
        item.container,
    )


def _gpu_wide(item: GPU, now_s: int) -> Cells:
    device = item.device
    extra = (device.uuid or NONE, device.pci_bus_id or NONE, str(device.numa_node), device.message)
    return (*_gpu(item, now_s)[:-1], item.container or NONE, *extra)


def _cpu(item: CPU, now_s: int) -> Cells:
    used = quantity.format_cpu(item.used_millis)
    free = quantity.format_cpu(max(0, item.count * 1000 - item.used_millis))
    return (item.metadata.name, str(item.count), used, free, item.product_name)


# ---- people and permissions


def _zone(item: Zone, now_s: int) -> Cells:
    return (item.metadata.name, _age(item.metadata, now_s), _several(item.spec.endpoints))


def _group(item: Group, now_s: int) -> Cells:
    return (item.metadata.name, _age(item.metadata, now_s), item.spec.description)


def _user(item: User, now_s: int) -> Cells:
    spec = item.spec
    active = not spec.HasField("active") or spec.active
    return (
        item.metadata.name,
        "yes" if active else "no",
        _several(membership.name for membership in spec.groups),
        _age(item.metadata, now_s),
        spec.contact.email,
    )


def _user_wide(item: User, now_s: int) -> Cells:
    name, active, _, age, email = _user(item, now_s)
    return (name, active, age, email or NONE, " ".join(map(_membership, item.spec.groups)))


def _membership(membership: Any) -> str:
    parts = [membership.role] if membership.role else []
    return f"{membership.name}({','.join(parts + sorted(membership.policy))})"


def _role(item: Role, now_s: int) -> Cells:
    return (item.metadata.name, _age(item.metadata, now_s), _several(sorted(item.spec.permission)))


def _role_wide(item: Role, now_s: int) -> Cells:
    permission = item.spec.permission
    granted = " ".join(f"{kind}({','.join(permission[kind].verbs)})" for kind in sorted(permission))
    return (item.metadata.name, _age(item.metadata, now_s), granted)


def _token(item: Token, now_s: int) -> Cells:
    spec = item.spec
    owner = f"user/{spec.user}" if spec.user else f"node/{spec.node}"
    left = spec.expires_at.seconds - now_s
    expires = "never" if not spec.HasField("expires_at") else f"in {_duration(left)}" if left > 0 else "expired"
    state = "revoked" if spec.revoked else expires
    return (item.metadata.name[:_HASH_SHOWN], owner, state, _age(item.metadata, now_s), spec.description)


def _secret(item: Secret, now_s: int) -> Cells:
    keys = sorted(item.spec.data)
    if item.spec.registry.server:
        keys.append(f"login at {item.spec.registry.server}")
    return (item.metadata.name, _age(item.metadata, now_s), _several(keys))


def _resource_credit(item: ResourceCredit, now_s: int) -> Cells:
    return (item.metadata.name, f"{item.spec.credit.per.hour:g}", _age(item.metadata, now_s))


# ---- files


def _storage(item: Storage, now_s: int) -> Cells:
    spec = item.spec
    nfs, local = spec.nfs, spec.local
    where = f"{nfs.server}:{nfs.path}" if spec.kind == "nfs" else f"{local.node}:{local.path}"
    return (item.metadata.name, spec.kind or NONE, where, spec.capacity or NONE, _age(item.metadata, now_s))


def _volume(item: Volume, now_s: int) -> Cells:
    spec = item.spec
    return (
        item.metadata.name,
        spec.storage or NONE,
        spec.sub_path or NONE,
        spec.policy or "rw",
        spec.size or NONE,
        _age(item.metadata, now_s),
    )


# ---- relations and events


def _bind(item: Bind, now_s: int) -> Cells:
    since = _duration(now_s - item.since.seconds) if item.since.seconds else NONE
    return (f"{item.parent_kind.lower()}/{item.parent}", f"{item.child_kind.lower()}/{item.child}", since)


def _event(item: Event, now_s: int) -> Cells:
    return (
        _duration(now_s - item.time.seconds),
        item.kind,
        item.name,
        said(item),
        item.actor.name or value_name(Actor.Type.Name, item.actor.type).lower(),
    )


def _event_wide(item: Event, now_s: int) -> Cells:
    cause = item.cause
    because = f"{cause.kind} {cause.uid} version {cause.version}" if cause.kind else ""
    return (str(item.revision), item.time.ToJsonString(), *_event(item, now_s)[1:], str(item.version), because)


# ---- all of them


def _layout(titles: str, cells: CellsOf, wide_titles: str = "", wide_cells: CellsOf | None = None) -> Layout:
    """Titles in one text, two spaces or more between them."""
    short = _titles(titles)
    return Layout(short, cells, _titles(wide_titles) if wide_titles else short, wide_cells or cells)


def _grouped(layout: Layout, group_of: Callable[[Any], str] | None = None) -> Layout:
    return Layout(layout.titles, layout.cells, layout.wide_titles, layout.wide_cells, True, group_of or layout.group_of)


def _titles(text: str) -> Cells:
    return tuple(part.strip() for part in text.split("  ") if part.strip())


LAYOUTS: dict[str, Layout] = {
    "Workload": _grouped(
        _layout(
            "NAME  STATUS  READY  NODE  GPUS  AGE  REASON",
            _workload,
            "NAME  STATUS  READY  NODE  GPUS  CPU  MEMORY  RESTARTS  AGE  IMAGE  BY  REASON",
            _workload_wide,
        )
    ),
    "Container": _grouped(
        _layout(
            "NAME  STATUS  EXIT  NODE  GPUS  AGE  REASON",
            _container,
            "NAME  STATUS  EXIT  NODE  GPUS  CPU  MEMORY  AGE  IMAGE  ID  REASON",
            _container_wide,
        )
    ),
    "Node": _layout(
        "NAME  STATUS  GPUS  CPUS  MEMORY  CONTAINERS  ZONE  AGE  REASON",
        _node,
        "NAME  STATUS  GPUS  CPUS  MEMORY  CONTAINERS  ZONE  AGE  "
        "ADDRESS  AGENT  OS  CPU MODEL  GPU MODEL  DRIVERS  LABELS  REASON",
        _node_wide,
    ),
    "GPU": _layout(
        "NAME  STATUS  NODE  PRODUCT  MEMORY  CONTAINER",
        _gpu,
        "NAME  STATUS  NODE  PRODUCT  MEMORY  CONTAINER  UUID  PCI  NUMA  MESSAGE",
        _gpu_wide,
    ),
    "CPU": _layout("NODE  COUNT  USED  FREE  PRODUCT", _cpu),
    "Zone": _layout("NAME  AGE  ENDPOINTS", _zone),
    "Group": _layout("NAME  AGE  DESCRIPTION", _group),
    "User": _layout("NAME  ACTIVE  GROUPS  AGE  EMAIL", _user, "NAME  ACTIVE  AGE  EMAIL  PERMISSIONS", _user_wide),
    "Role": _layout("NAME  AGE  KINDS", _role, "NAME  AGE  PERMISSIONS", _role_wide),
    "Token": _layout("NAME  FOR  EXPIRES  AGE  DESCRIPTION", _token),
    "Secret": _grouped(_layout("NAME  AGE  KEYS", _secret)),
    "ResourceCredit": _layout("PRODUCT  PER HOUR  AGE", _resource_credit),
    "Storage": _layout("NAME  KIND  WHERE  CAPACITY  AGE", _storage),
    "Volume": _grouped(_layout("NAME  STORAGE  PATH  POLICY  SIZE  AGE", _volume)),
    "Bind": _grouped(_layout("PARENT  CHILD  SINCE", _bind)),
    "Event": _grouped(
        _layout(
            "AGE  KIND  NAME  EVENT  BY",
            _event,
            "REVISION  TIME  KIND  NAME  EVENT  BY  VERSION  CAUSE",
            _event_wide,
        ),
        lambda item: item.group or NONE,
    ),
}


def name_of(kind: str, item: Any) -> str:
    """`kind/name`, as commands take it."""
    if isinstance(item, Event):
        name: str | Sequence[str] = f"{item.kind}/{item.name}/{item.version}"
    else:
        name = item.metadata.name
    return f"{kind.lower()}/{name}" if str(name).isprintable() else f"{kind.lower()}/{ascii(name)[1:-1]}"
