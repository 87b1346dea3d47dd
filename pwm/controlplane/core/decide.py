"""What a command changes: decisions on one resource's state, as events.

Each function takes the state (None: there is none), what was asked for, and what it needs to know, and
returns the payloads to append; an empty tuple means that nothing changes. Refusals raise `Refusal`, with
a sentence for the user. Versions, times, actors and ids are stamped on by the command layer: nothing here
knows when or by whom.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from google.protobuf.message import Message

from pwm import lifecycle
from pwm.api.v1 import events_pb2 as ev
from pwm.api.v1.common_pb2 import Cause, Reason
from pwm.api.v1.node_pb2 import Inventory, Node, NodeStatus
from pwm.api.v1.services_pb2 import ApplyResult
from pwm.api.v1.workload_pb2 import Container, ContainerSpec, ContainerStatus, Workload, WorkloadSpec, WorkloadStatus
from pwm.controlplane.core.evolve import State, fold
from pwm.controlplane.core.limits import OVER_CODES

Payload: TypeAlias = Message


class Refusal(Exception):
    """A command that cannot be done on this state. The message is a sentence for the user."""

    def __init__(self, message: str, *, next_step: str = "", conflict: bool = False) -> None:
        super().__init__(message)
        self.next_step = next_step
        self.conflict = conflict


@dataclass(frozen=True, slots=True)
class Change:
    """What to append to one stream: decided on `state`, the view's own message."""

    kind: str
    uid: str
    name: str
    group: str
    state: State | None
    payloads: tuple[Payload, ...]
    cause: Cause | None = field(default=None)
    # Kept beside the stream and not in the log; an encrypted value, or nothing with the stream's end.
    sealed: bytes | None = field(default=None, repr=False)
    # What else it was decided on, as the view has it: it is appended only while these are as they were.
    given: tuple[State, ...] = ()

    @property
    def removes(self) -> bool:
        return any(isinstance(p, ev.Removed) for p in self.payloads)


def change(state: State, *payloads: Payload, cause: State | None = None) -> Change:
    """A change of a stream that exists."""
    metadata = state.metadata
    return Change(
        state.kind, metadata.uid, metadata.name, metadata.group, state, payloads, cause_of(cause) if cause else None
    )


def cause_of(state: State) -> Cause:
    """`state`'s latest event, as the cause of what follows from it."""
    return Cause(kind=state.kind, uid=state.metadata.uid, version=state.metadata.version)


# ---- workloads


def container_uid(workload_uid: str, *, replica: int, attempt: int) -> str:
    """A container's identity says which attempt it is, so that no attempt can exist twice."""
    return f"{workload_uid}.{replica}.{attempt}"


def next_attempt(containers: Iterable[Container]) -> int:
    """First attempt number that no replica has used yet."""
    return max((c.spec.attempt for c in containers), default=0) + 1


def apply_workload(
    workload: Workload | None, wanted: Workload, containers: Iterable[Container]
) -> tuple[ApplyResult.Outcome.ValueType, tuple[Payload, ...]]:
    """Create or change a workload. Changing only the count scales; the containers that run go on."""
    labels = dict(wanted.metadata.labels)
    if workload is None:
        applied = ev.WorkloadApplied(labels=labels, spec=wanted.spec, generation=1, first_attempt=1)
        return ApplyResult.CREATED, (applied,)
    if workload.status.desired == WorkloadStatus.DELETE:
        raise Refusal(
            f"workload {workload.metadata.name} is being deleted",
            next_step="wait until it is gone (pwm get wk -w) and apply again",
            conflict=True,
        )
    payloads: list[Payload] = []
    outcome = ApplyResult.UNCHANGED
    same_labels = dict(workload.metadata.labels) == labels
    if workload.spec != wanted.spec or not same_labels:
        if same_labels and _without_count(workload.spec) == _without_count(wanted.spec):
            outcome = ApplyResult.SCALED
            payloads.append(ev.WorkloadScaled(count=replica_count(wanted.spec)))
        else:
            outcome = ApplyResult.CONFIGURED
            payloads.append(_reconfigure(workload, wanted, containers))
    if workload.status.desired in (WorkloadStatus.STOP, WorkloadStatus.PAUSE):
        outcome = outcome if payloads else ApplyResult.CONFIGURED
        payloads.append(ev.WorkloadDesired(desired=WorkloadStatus.RUN, first_attempt=next_attempt(containers)))
    return outcome, tuple(payloads)


def _reconfigure(workload: Workload, wanted: Workload, containers: Iterable[Container]) -> ev.WorkloadApplied:
    applied = ev.WorkloadApplied(
        labels=dict(wanted.metadata.labels), spec=wanted.spec, generation=workload.status.generation
    )
    if _what_containers_see(workload.spec) != _what_containers_see(wanted.spec):
        applied.generation += 1
        applied.first_attempt = next_attempt(containers)
    return applied


def _without_count(spec: WorkloadSpec) -> WorkloadSpec:
    copy = WorkloadSpec()
    copy.CopyFrom(spec)
    copy.ClearField("replica")
    return copy


def _what_containers_see(spec: WorkloadSpec) -> WorkloadSpec:
    """The part of a spec that a running container would have to be replaced for."""
    copy = _without_count(spec)
    for name in ("priority", "gang", "on_node_lost", "idle", "notify"):
        copy.ClearField(name)
    for name in ("restart_policy", "max_attempts", "affinity", "stop_grace", "time_limit"):
        copy.config.ClearField(name)  # type: ignore[arg-type]
    return copy


def replica_count(spec: WorkloadSpec) -> int:
    return spec.replica.count if spec.replica.HasField("count") else 1


def stop_workload(workload: Workload) -> tuple[Payload, ...]:
    if workload.status.desired == WorkloadStatus.DELETE:
        raise Refusal(f"workload {workload.metadata.name} is being deleted", conflict=True)
    if workload.status.desired == WorkloadStatus.STOP:
        return ()
    return (ev.WorkloadDesired(desired=WorkloadStatus.STOP),)


def scale_workload(workload: Workload, count: int) -> tuple[Payload, ...]:
    if workload.status.desired == WorkloadStatus.DELETE:
        raise Refusal(f"workload {workload.metadata.name} is being deleted", conflict=True)
    return () if replica_count(workload.spec) == count else (ev.WorkloadScaled(count=count),)


def restart_workload(workload: Workload, containers: Iterable[Container]) -> tuple[Payload, ...]:
    if workload.status.desired == WorkloadStatus.DELETE:
        raise Refusal(f"workload {workload.metadata.name} is being deleted", conflict=True)
    return (ev.WorkloadRestarted(first_attempt=next_attempt(containers)),)


def delete_workload(workload: Workload, containers: Iterable[Container]) -> tuple[Payload, ...]:
    """A workload without a live container ends at once; another is stopped first. Lost containers outlive it."""
    if all(c.status.phase in lifecycle.GIVEN_UP for c in containers):
        return (ev.Removed(reason=Reason(code=Reason.DELETED_BY_USER)),)
    if workload.status.desired == WorkloadStatus.DELETE:
        return ()
    return (ev.WorkloadDesired(desired=WorkloadStatus.DELETE),)


def hold_back(workload: Workload, reason: Reason) -> tuple[Payload, ...]:
    """A limit keeps it from starting. Told once, not with every figure: what is so now is worked out when asked for."""
    told = workload.status.held_back.code
    if told and (told in OVER_CODES) == (reason.code in OVER_CODES):
        return ()
    return (ev.WorkloadHeldBack(reason=reason),)


# ---- containers


def place(workload: Workload, spec: ContainerSpec, *, given: tuple[State, ...] = ()) -> Change:
    return Change(
        kind="Container",
        uid=container_uid(workload.metadata.uid, replica=spec.replica, attempt=spec.attempt),
        name=f"{workload.metadata.name}.{spec.replica}.{spec.attempt}",
        group=workload.metadata.group,
        state=None,
        payloads=(ev.ContainerPlaced(spec=spec),),
        cause=cause_of(workload),
        given=given,
    )


def report_container(
    container: Container, reported: ev.ContainerReported, *, owner: lifecycle.Owner = lifecycle.Owner.AGENT
) -> tuple[Payload, ...]:
    """A report moves the phase forward or says more about the same phase; anything else is dropped."""
    phase = container.status.phase
    if reported.phase == phase:
        return (reported,) if phase not in lifecycle.ENDED and _says_more(container.status, reported) else ()
    return (reported,) if lifecycle.may_move(phase, reported.phase, owner=owner) else ()


def report_all(container: Container, reports: Iterable[ev.ContainerReported]) -> tuple[Payload, ...]:
    """Several reports of one container, in order; each is judged on the state that the one before left."""
    state = Container()
    state.CopyFrom(container)
    payloads: list[Payload] = []
    for reported in reports:
        accepted = report_container(state, reported)
        if accepted:
            payloads += accepted
            fold(state, ev.Event(version=state.metadata.version + 1, container_reported=reported))
    return tuple(payloads)


def _says_more(status: ContainerStatus, reported: ev.ContainerReported) -> bool:
    return (
        (reported.pid != 0 and reported.pid != status.pid)
        or (reported.runtime_id != "" and reported.runtime_id != status.runtime_id)
        or (reported.image_id != "" and reported.image_id != status.image_id)
        or (reported.HasField("started_at") and reported.started_at != status.started_at)
        or (reported.HasField("reason") and reported.reason != status.reason)
    )


def request_stop(container: Container, reason: Reason) -> tuple[Payload, ...]:
    if container.status.HasField("stop_requested") or container.status.phase in lifecycle.GIVEN_UP:
        return ()
    return (ev.ContainerStopRequested(reason=reason),)


# ---- nodes


def join_node(node: Node | None, inventory: Inventory) -> tuple[Payload, ...]:
    """An agent said hello; an event only if it has something new to tell."""
    if node is not None and node.status.inventory == inventory:
        return ()
    return (ev.NodeJoined(inventory=inventory),)


def change_node_phase(node: Node, phase: NodeStatus.Phase.ValueType, reason: Reason) -> tuple[Payload, ...]:
    if node.status.phase == phase and node.status.reason == reason:
        return ()
    return (ev.NodePhaseChanged(phase=phase, reason=reason),)


def confirm_dead(node: Node) -> tuple[Payload, ...]:
    """The machine runs nothing any more. Whether its agent is connected is for the caller to know."""
    said = "an admin has confirmed that the machine is dead"
    return change_node_phase(node, NodeStatus.LOST, Reason(code=Reason.NODE_CONFIRMED_DEAD, message=said))


# ---- everything else that is applied

_APPLIED: dict[str, type[Any]] = {
    "Node": ev.NodeApplied,
    "Zone": ev.ZoneApplied,
    "Group": ev.GroupApplied,
    "User": ev.UserApplied,
    "Role": ev.RoleApplied,
    "Storage": ev.StorageApplied,
    "Volume": ev.VolumeApplied,
    "ResourceCredit": ev.ResourceCreditApplied,
}


def apply_resource(state: Any, wanted: Any) -> tuple[ApplyResult.Outcome.ValueType, tuple[Payload, ...]]:
    """Create or change a resource whose spec is all there is to it."""
    labels = dict(wanted.metadata.labels)
    payload = _APPLIED[wanted.kind](labels=labels, spec=wanted.spec)
    if state is None:
        return ApplyResult.CREATED, (payload,)
    if state.spec == wanted.spec and dict(state.metadata.labels) == labels:
        return ApplyResult.UNCHANGED, ()
    return ApplyResult.CONFIGURED, (payload,)
