"""State is the fold of events: `evolve(state, event)`.

One function per payload, each setting just what that fact changes. A state is the resource's own
message, so nothing is mapped. Two ways in: `evolve` leaves the given state alone and returns a new one
(a message that came from the view is never changed); `fold` changes the state it owns, for rebuilding
from many events without a copy per step. Both are the same handlers.

Payloads are only ever added; what a payload does to a state never changes, because recorded histories
must fold to the same bytes for ever.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from pwm.api.v1 import events_pb2 as ev
from pwm.api.v1 import identity_pb2 as identity
from pwm.api.v1.credits_pb2 import Ledger
from pwm.api.v1.node_pb2 import Node, NodeStatus
from pwm.api.v1.volume_pb2 import Storage, Volume
from pwm.api.v1.workload_pb2 import Container, ContainerStatus, IdleStatus, Workload, WorkloadStatus
from pwm.controlplane.core.ledger import merged, to_messages

State: TypeAlias = (
    Workload
    | Container
    | Node
    | Storage
    | Volume
    | identity.Zone
    | identity.Group
    | identity.User
    | identity.Role
    | identity.Token
    | identity.Secret
    | identity.ResourceCredit
    | Ledger
)

# Of each node: those that live at the same time are two, the old one and the new one; more are of an agent that has
# trouble. The rest counts all the same, until it ends.
CERTIFICATES_KEPT = 8

STATE_TYPES: dict[str, type[State]] = {
    "Workload": Workload,
    "Container": Container,
    "Node": Node,
    "Storage": Storage,
    "Volume": Volume,
    "Zone": identity.Zone,
    "Group": identity.Group,
    "User": identity.User,
    "Role": identity.Role,
    "Token": identity.Token,
    "Secret": identity.Secret,
    "ResourceCredit": identity.ResourceCredit,
    "Ledger": Ledger,
}


def evolve(state: State | None, event: ev.Event) -> State:
    """The state after `event`; `state` itself stays as it is. None: the stream begins."""
    if state is None:
        return fold(None, event)
    successor = type(state)()
    successor.CopyFrom(state)  # type: ignore[arg-type]
    return fold(successor, event)


def fold(state: State | None, event: ev.Event) -> State:
    """As `evolve`, but changes and returns the given state, which the caller must own."""
    if state is None:
        state = _begin(event)
    _handle(state, event)
    _stamp(state, event)
    return state


def fold_all(events: Iterable[ev.Event]) -> State | None:
    """The state after all events of a stream, from its first; None when there are none.

    As `fold` one by one, but the stamp, which each event overwrites, is set once: a fifth faster.
    """
    state: State | None = None
    for event in events:
        if state is None:
            state = _begin(event)
        _handle(state, event)
    if state is not None:
        _stamp(state, event)
    return state


def _handle(state: State, event: ev.Event) -> None:
    payload = event.WhichOneof("payload")
    if payload is None:
        raise ValueError(f"{event.kind}/{event.uid} version {event.version} has no payload this version knows")
    _HANDLERS[payload](state, event)


def understood(event: ev.Event, size_bytes: int) -> bool:
    """Whether this version knows everything that the event says; `size_bytes` is what it was read from.

    A newer one may have written a payload, or a field, that is unknown here. It is dropped from `event`: the state
    after it is only in the head of its stream.
    """
    if event.WhichOneof("payload") is None:
        return False
    event.DiscardUnknownFields()
    return event.ByteSize() == size_bytes


def _stamp(state: State, event: ev.Event) -> None:
    metadata = state.metadata
    metadata.version = event.version
    metadata.updated_at.CopyFrom(event.time)


def _begin(event: ev.Event) -> State:
    state = STATE_TYPES[event.kind]()
    state.api_version = "v1"
    state.kind = event.kind
    metadata = state.metadata
    metadata.uid, metadata.name, metadata.group = event.uid, event.name, event.group
    metadata.created_at.CopyFrom(event.time)
    metadata.created_by.CopyFrom(event.actor)
    return state


def _workload_applied(state: Any, event: ev.Event) -> None:
    applied, status = event.workload_applied, state.status
    _set_labels(state, applied.labels)
    state.spec.CopyFrom(applied.spec)
    if event.version == 1:
        _set_desired(status, WorkloadStatus.RUN, event)
    status.generation = applied.generation
    status.ClearField("held_back")
    if applied.first_attempt:
        status.first_attempt = applied.first_attempt


def _workload_scaled(state: Any, event: ev.Event) -> None:
    state.spec.replica.count = event.workload_scaled.count
    state.status.ClearField("held_back")


def _workload_desired(state: Any, event: ev.Event) -> None:
    _set_desired(state.status, event.workload_desired.desired, event)
    state.status.ClearField("held_back")
    if event.workload_desired.first_attempt:
        state.status.first_attempt = event.workload_desired.first_attempt
    if event.workload_desired.HasField("idle"):
        state.status.idle.evidence.CopyFrom(event.workload_desired.idle)
        state.status.idle.ClearField("stop_at")


def _workload_idle_warned(state: Any, event: ev.Event) -> None:
    warned, idle = event.workload_idle_warned, state.status.idle
    idle.first_attempt = state.status.first_attempt
    idle.warned_at.CopyFrom(event.time)
    idle.stop_at.CopyFrom(warned.stop_at)
    idle.evidence.CopyFrom(warned.evidence)


def _workload_kept(state: Any, event: ev.Event) -> None:
    _forget_warning(state.status.idle)
    state.status.idle.kept_until.CopyFrom(event.workload_kept.until)
    state.status.idle.kept_by.CopyFrom(event.actor)


def _workload_idle_over(state: Any, event: ev.Event) -> None:
    _forget_warning(state.status.idle)


def _forget_warning(idle: IdleStatus) -> None:
    for field in ("first_attempt", "warned_at", "stop_at", "evidence"):
        idle.ClearField(field)


def _workload_restarted(state: Any, event: ev.Event) -> None:
    state.status.first_attempt = event.workload_restarted.first_attempt
    state.status.ClearField("held_back")
    _set_desired(state.status, WorkloadStatus.RUN, event)


def _workload_held_back(state: Any, event: ev.Event) -> None:
    state.status.held_back.CopyFrom(event.workload_held_back.reason)


def _set_desired(status: WorkloadStatus, desired: WorkloadStatus.Desired.ValueType, event: ev.Event) -> None:
    status.desired = desired
    status.desired_at.CopyFrom(event.time)
    status.desired_by.CopyFrom(event.actor)
    if event.workload_desired.HasField("reason"):
        status.desired_reason.CopyFrom(event.workload_desired.reason)
    else:
        status.ClearField("desired_reason")


def _container_placed(state: Any, event: ev.Event) -> None:
    state.spec.CopyFrom(event.container_placed.spec)
    state.status.phase = ContainerStatus.ASSIGNED
    state.status.since.CopyFrom(event.time)


def _container_reported(state: Any, event: ev.Event) -> None:
    report, status = event.container_reported, state.status
    if report.phase != status.phase:
        status.phase = report.phase
        status.since.CopyFrom(event.time)
        if report.phase == ContainerStatus.LOST:
            status.lost_at.CopyFrom(event.time)
    if report.HasField("reason"):
        status.reason.CopyFrom(report.reason)
    if report.HasField("started_at"):
        status.started_at.CopyFrom(report.started_at)
    if report.HasField("finished_at"):
        status.finished_at.CopyFrom(report.finished_at)
    if report.HasField("exit_code"):
        status.exit_code = report.exit_code
    if report.oom_killed:
        status.oom_killed = True
    if report.runtime_id:
        status.runtime_id = report.runtime_id
    if report.pid:
        status.pid = report.pid
    if report.image_id:
        status.image_id = report.image_id


def _container_stop_requested(state: Any, event: ev.Event) -> None:
    state.status.stop_requested.CopyFrom(event.container_stop_requested.reason)
    state.status.stop_requested_by.CopyFrom(event.actor)


def _node_applied(state: Any, event: ev.Event) -> None:
    _set_labels(state, event.node_applied.labels)
    state.spec.CopyFrom(event.node_applied.spec)
    if not state.status.phase:
        _set_node_phase(state.status, NodeStatus.NOT_READY, event)


def _node_joined(state: Any, event: ev.Event) -> None:
    state.status.inventory.CopyFrom(event.node_joined.inventory)
    if not state.status.phase:
        _set_node_phase(state.status, NodeStatus.NOT_READY, event)


def _node_phase_changed(state: Any, event: ev.Event) -> None:
    _set_node_phase(state.status, event.node_phase_changed.phase, event)
    state.status.reason.CopyFrom(event.node_phase_changed.reason)


def _node_admitted(state: Any, event: ev.Event) -> None:
    admitted, credentials = event.node_admitted, state.status.credentials
    credentials.Clear()
    credentials.membership = admitted.membership
    credentials.since.CopyFrom(event.time)
    credentials.certificates.append(admitted.certificate)


def _node_certified(state: Any, event: ev.Event) -> None:
    credentials, now_ms = state.status.credentials, event.time.ToMilliseconds()
    alive = [c for c in credentials.certificates if c.expires_at.ToMilliseconds() > now_ms]
    del credentials.certificates[:]
    credentials.certificates.extend([*alive, event.node_certified.certificate][-CERTIFICATES_KEPT:])


def _node_credentials_revoked(state: Any, event: ev.Event) -> None:
    credentials = state.status.credentials
    credentials.Clear()
    credentials.revoked_at.CopyFrom(event.time)
    credentials.revoked_by.CopyFrom(event.actor)


def _set_node_phase(status: NodeStatus, phase: NodeStatus.Phase.ValueType, event: ev.Event) -> None:
    if status.phase != phase:
        status.phase = phase
        status.since.CopyFrom(event.time)


def _applied(payload: str) -> Callable[[Any, ev.Event], None]:
    """Kinds whose only event, besides their end, is that they were applied."""

    def handler(state: Any, event: ev.Event) -> None:
        applied = getattr(event, payload)
        _set_labels(state, applied.labels)
        state.spec.CopyFrom(applied.spec)

    return handler


def _secret_applied(state: Any, event: ev.Event) -> None:
    _set_labels(state, event.secret_applied.labels)
    state.spec.data.clear()
    for key in event.secret_applied.keys:
        state.spec.data[key] = ""
    state.spec.ClearField("registry")
    if event.secret_applied.registry:
        state.spec.registry.server = event.secret_applied.registry


def _token_issued(state: Any, event: ev.Event) -> None:
    state.spec.CopyFrom(event.token_issued.spec)


def _token_revoked(state: Any, event: ev.Event) -> None:
    state.spec.revoked = True


def _period_settled(state: Any, event: ev.Event) -> None:
    settled, spec = event.period_settled, state.spec
    spec.starts_at.CopyFrom(settled.starts_at)
    spec.ends_at.CopyFrom(settled.ends_at)
    spec.settled_until.CopyFrom(settled.until)
    spec.settled_revision = settled.revision
    if settled.lines:
        lines = to_messages(merged(spec.lines, settled.lines))
        del spec.lines[:]
        spec.lines.extend(lines)


def _credit_notice(state: Any, event: ev.Event) -> None:
    state.status.credits.CopyFrom(event.credit_notice)


def _nothing(state: Any, event: ev.Event) -> None:
    """It is told, and changes nothing."""


def _removed(state: Any, event: ev.Event) -> None:
    """The stream ends. The last state stays as it was, for `describe` of what is gone."""
    if isinstance(state, Container):
        state.status.phase = ContainerStatus.DELETED
        state.status.since.CopyFrom(event.time)


def _set_labels(state: Any, labels: Any) -> None:
    state.metadata.labels.clear()
    state.metadata.labels.update(labels)


_HANDLERS: dict[str, Callable[[Any, ev.Event], None]] = {
    "workload_applied": _workload_applied,
    "workload_scaled": _workload_scaled,
    "workload_desired": _workload_desired,
    "workload_restarted": _workload_restarted,
    "workload_idle_warned": _workload_idle_warned,
    "workload_kept": _workload_kept,
    "workload_idle_over": _workload_idle_over,
    "workload_held_back": _workload_held_back,
    "container_placed": _container_placed,
    "container_reported": _container_reported,
    "container_stop_requested": _container_stop_requested,
    "node_applied": _node_applied,
    "node_joined": _node_joined,
    "node_phase_changed": _node_phase_changed,
    "node_admitted": _node_admitted,
    "node_certified": _node_certified,
    "node_credentials_revoked": _node_credentials_revoked,
    **{
        name: _applied(name)
        for name in (
            "zone_applied",
            "group_applied",
            "user_applied",
            "role_applied",
            "storage_applied",
            "volume_applied",
            "resource_credit_applied",
        )
    },
    "secret_applied": _secret_applied,
    "token_issued": _token_issued,
    "token_revoked": _token_revoked,
    "period_settled": _period_settled,
    "credit_notice": _credit_notice,
    "notice_given_up": _nothing,
    "removed": _removed,
}
