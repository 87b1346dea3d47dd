"""What a workload is doing, in one word, computed from its containers.

Stored are only the decisions about a workload (desired state, generation, first attempt of the run); all
the rest is worked out when somebody looks, so it can never disagree with the containers. Only containers
of the present run count, those with an attempt number from `first_attempt` on.

Each replica is in one `Situation`, given by its newest container of the run:

    newest container                                           situation
    none, or ended because PWM stopped it to start it anew     WAITING
    lost, or ended because its node was out of reach           WAITING
    none, but one of an earlier run is still alive             REPLACING
    alive, but on a node that is out of reach                  UNREACHABLE
    alive, and told to stop or exiting                         STOPPING
    assigned / pulling / creating / running                    ASSIGNED / PULLING / LAUNCHING / RUNNING
    ended, and the restart policy has a further attempt        BACKING_OFF
    ended for good: with 0 / at its time limit / otherwise     DONE / OUT_OF_TIME / FAILED

The workload's phase is the first line that applies:

    desired   replicas                          phase
    STOP      any container alive               STOPPING        (PAUSE: PAUSING, DELETE: STOPPING)
    STOP      none                              STOPPED         (PAUSE: PAUSED,  DELETE: DELETED)
    RUN       scaled to 0                       STOPPING while any is alive, then STOPPED
    RUN       any RUNNING                       RUNNING
    RUN       any UNREACHABLE                   UNKNOWN
    RUN       any LAUNCHING or REPLACING        LAUNCHING
    RUN       any PULLING, ASSIGNED, STOPPING   that
    RUN       any WAITING or BACKING_OFF        QUEUED, or DENIED when waiting cannot help
    RUN       any FAILED                        CRASHED
    RUN       any OUT_OF_TIME                   STOPPED
    RUN       all DONE                          EXITED

`core.reconcile` decides what is done about it; both use its rules of when a replica has ended for good.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from enum import Enum, auto
from typing import NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp

from pwm import lifecycle, quantity
from pwm.api.v1.common_pb2 import Actor, Reason
from pwm.api.v1.workload_pb2 import Config, Container, ContainerStatus, Workload, WorkloadStatus
from pwm.controlplane.core import reconcile
from pwm.controlplane.core.decide import replica_count
from pwm.controlplane.core.limits import OVER_CODES
from pwm.enums import value_name


class Situation(Enum):
    WAITING = auto()
    REPLACING = auto()
    ASSIGNED = auto()
    PULLING = auto()
    LAUNCHING = auto()
    RUNNING = auto()
    UNREACHABLE = auto()
    STOPPING = auto()
    BACKING_OFF = auto()
    DONE = auto()
    OUT_OF_TIME = auto()
    FAILED = auto()


S = Situation

_BY_PHASE = {
    ContainerStatus.ASSIGNED: S.ASSIGNED,
    ContainerStatus.PULLING: S.PULLING,
    ContainerStatus.CREATING: S.LAUNCHING,
    ContainerStatus.RUNNING: S.RUNNING,
    ContainerStatus.EXITING: S.STOPPING,
}
# Situation -> phase of a workload that should run, in the order in which they are looked for.
PRECEDENCE: tuple[tuple[Situation, WorkloadStatus.Phase.ValueType], ...] = (
    (S.RUNNING, WorkloadStatus.RUNNING),
    (S.UNREACHABLE, WorkloadStatus.UNKNOWN),
    (S.LAUNCHING, WorkloadStatus.LAUNCHING),
    (S.REPLACING, WorkloadStatus.LAUNCHING),
    (S.PULLING, WorkloadStatus.PULLING),
    (S.ASSIGNED, WorkloadStatus.ASSIGNED),
    (S.STOPPING, WorkloadStatus.STOPPING),
    (S.WAITING, WorkloadStatus.QUEUED),
    (S.BACKING_OFF, WorkloadStatus.QUEUED),
    (S.FAILED, WorkloadStatus.CRASHED),
    (S.OUT_OF_TIME, WorkloadStatus.STOPPED),
    (S.DONE, WorkloadStatus.EXITED),
)
_SETTLED = frozenset({S.DONE, S.OUT_OF_TIME, S.FAILED})
# While some replicas run, the worst that can be said of the others, worst first.
_REMARKS = (S.FAILED, S.UNREACHABLE, S.BACKING_OFF, S.OUT_OF_TIME, S.WAITING)
# Reasons for which waiting does not help: somebody must change something first.
_DENIALS = OVER_CODES | {Reason.OUT_OF_CREDITS, Reason.GROUP_NOT_ALLOWED}
# Wanted end -> phase on the way there, and phase when nothing is alive.
_ENDINGS = {
    WorkloadStatus.STOP: (WorkloadStatus.STOPPING, WorkloadStatus.STOPPED),
    WorkloadStatus.PAUSE: (WorkloadStatus.PAUSING, WorkloadStatus.PAUSED),
    WorkloadStatus.DELETE: (WorkloadStatus.STOPPING, WorkloadStatus.DELETED),
}
_SIGNALS = {2: "SIGINT", 6: "SIGABRT", 9: "SIGKILL", 11: "SIGSEGV", 13: "SIGPIPE", 15: "SIGTERM"}


class ReplicaState(NamedTuple):
    """One replica: its situation, and the container that it follows from (None: there is none)."""

    replica: int
    situation: Situation
    container: Container | None
    attempts: int


def workload_status(
    workload: Workload,
    containers: Iterable[Container],
    *,
    waiting: Reason | None,
    nodes_unreachable: Collection[str],
    remark: Reason | None = None,
) -> WorkloadStatus:
    """The whole status: what is stored, and what follows from the containers.

    `containers`: all of the workload's, in any order. `waiting`: why its replicas are not placed, as far as
    the scheduler has said. `nodes_unreachable`: names of nodes that nothing is heard from. `remark`: what else is to
    be said of it while it runs and all is well.
    """
    everything = list(containers)
    states = replica_states(workload, everything, nodes_unreachable=nodes_unreachable)
    alive = [c for c in everything if c.status.phase not in lifecycle.GIVEN_UP]
    status = WorkloadStatus()
    status.CopyFrom(workload.status)
    status.replicas = replica_count(workload.spec)
    status.running = sum(state.situation is S.RUNNING for state in states)
    status.ended = sum(state.situation in _SETTLED for state in states)
    status.restarts = sum(max(0, state.attempts - 1) for state in states)
    status.gpus = sum(len(c.spec.gpu_uuids) for c in alive)
    shown = alive or [state.container for state in states if state.container is not None]
    status.nodes.extend(sorted({c.spec.node for c in shown}))
    status.exit_code = _exit_code(states)
    if workload.status.desired in _ENDINGS:
        _ending(status, workload, everything, alive, nodes_unreachable)
    elif not status.replicas:
        _scaled_to_nothing(status, workload, everything, alive)
    else:
        _running(status, workload, states, waiting)
    if status.phase == WorkloadStatus.RUNNING and remark is not None and not status.reason.ByteSize():
        status.reason.CopyFrom(remark)
        # It runs because of a node, but that is not who is behind the remark.
        status.ClearField("by")
    return status


def replica_states(
    workload: Workload, containers: Iterable[Container], *, nodes_unreachable: Collection[str]
) -> list[ReplicaState]:
    """The situation of each replica of the present run, by replica."""
    by_replica: dict[int, list[Container]] = defaultdict(list)
    for container in containers:
        by_replica[container.spec.replica].append(container)
    return [
        _replica_state(workload, replica, by_replica.get(replica, ()), nodes_unreachable)
        for replica in range(replica_count(workload.spec))
    ]


def _replica_state(
    workload: Workload, replica: int, containers: Sequence[Container], nodes_unreachable: Collection[str]
) -> ReplicaState:
    first = workload.status.first_attempt
    run = [c for c in containers if c.spec.attempt >= first]
    if not run:
        old = next((c for c in containers if c.status.phase not in lifecycle.GIVEN_UP), None)
        return ReplicaState(replica, S.REPLACING if old is not None else S.WAITING, old, 0)
    if len(run) > 1:
        run.sort(key=lambda c: c.spec.attempt)
    newest = run[-1]
    attempts = newest.spec.attempt - max(first, 1) + 1
    return ReplicaState(replica, _situation(workload, run, newest, nodes_unreachable), newest, attempts)


def _situation(
    workload: Workload, run: Sequence[Container], newest: Container, nodes_unreachable: Collection[str]
) -> Situation:
    status = newest.status
    if status.phase not in lifecycle.GIVEN_UP:
        if nodes_unreachable and newest.spec.node in nodes_unreachable:
            return S.UNREACHABLE
        return S.STOPPING if status.HasField("stop_requested") else _BY_PHASE[status.phase]
    if reconcile.started_over(newest):
        return S.WAITING
    if not reconcile.settled_end(workload, run):
        return S.BACKING_OFF
    if status.stop_requested.code == Reason.TIME_LIMIT:
        return S.OUT_OF_TIME
    return S.FAILED if reconcile.failed(newest) else S.DONE


# ---- the phase, with its reason, time and author


def _running(
    status: WorkloadStatus, workload: Workload, states: Sequence[ReplicaState], waiting: Reason | None
) -> None:
    present = {state.situation for state in states}
    situation, phase = next(pair for pair in PRECEDENCE if pair[0] in present)
    deciding = [state for state in states if state.situation is situation]
    status.phase = phase
    status.reason.CopyFrom(_reason(workload, deciding, waiting, several=len(states) > 1))
    if situation is S.RUNNING:
        for remark in _REMARKS:
            if remark in present:
                others = [state for state in states if state.situation is remark]
                status.reason.CopyFrom(_reason(workload, others, waiting, several=True))
                break
    if phase == WorkloadStatus.QUEUED and status.reason.code in _DENIALS:
        status.phase = WorkloadStatus.DENIED
    times = [state.container.status.since for state in deciding if state.container is not None]
    if situation is S.REPLACING or not times:
        status.since.CopyFrom(_asked_at(workload))
        status.by.CopyFrom(_asked_by(workload))
        return
    pick = min if situation is S.RUNNING else max
    status.since.CopyFrom(pick(times, key=_order))
    node = next(state.container.spec.node for state in deciding if state.container is not None)
    status.by.CopyFrom(Actor(type=Actor.NODE, name=node))


def _ending(
    status: WorkloadStatus,
    workload: Workload,
    everything: Sequence[Container],
    alive: Sequence[Container],
    nodes_unreachable: Collection[str],
) -> None:
    """Stopped, paused or deleted by somebody."""
    desired = workload.status.desired
    by = workload.status.desired_by.name
    code, word = {
        WorkloadStatus.PAUSE: (Reason.STOPPED_BY_USER, "paused"),
        WorkloadStatus.DELETE: (Reason.DELETED_BY_USER, "deleted"),
    }.get(desired, (Reason.STOPPED_BY_USER, "stopped"))
    status.reason.CopyFrom(Reason(code=code, message=f"{word} by {by}" if by else word))
    if workload.status.HasField("desired_reason"):
        status.reason.CopyFrom(workload.status.desired_reason)
    status.by.CopyFrom(workload.status.desired_by)
    status.since.CopyFrom(_asked_at(workload))
    status.phase = _ENDINGS[desired][0 if alive else 1]
    away = [c for c in alive if c.spec.node in nodes_unreachable]
    if away:
        status.reason.CopyFrom(_out_of_reach(away))
    if not alive:
        _since_last_end(status, everything)


def _scaled_to_nothing(
    status: WorkloadStatus, workload: Workload, everything: Sequence[Container], alive: Sequence[Container]
) -> None:
    status.phase = WorkloadStatus.STOPPING if alive else WorkloadStatus.STOPPED
    status.reason.CopyFrom(Reason(code=Reason.SCALED_DOWN, message="scaled to 0 replicas"))
    status.by.CopyFrom(_asked_by(workload))
    status.since.CopyFrom(_asked_at(workload))
    if not alive:
        _since_last_end(status, everything)


def _since_last_end(status: WorkloadStatus, containers: Iterable[Container]) -> None:
    last = max((c.status.since for c in containers), key=_order, default=None)
    if last is not None and _order(last) > _order(status.since):
        status.since.CopyFrom(last)


def _asked_at(workload: Workload) -> Timestamp:
    """When the present run was asked for: the last decision, or a later change of the spec."""
    if workload.status.first_attempt > 1 and workload.status.desired == WorkloadStatus.RUN:
        return max(workload.status.desired_at, workload.metadata.updated_at, key=_order)
    return workload.status.desired_at if workload.status.HasField("desired_at") else workload.metadata.created_at


def _asked_by(workload: Workload) -> Actor:
    return workload.status.desired_by if workload.status.HasField("desired_by") else workload.metadata.created_by


def _order(time: Timestamp) -> tuple[int, int]:
    return time.seconds, time.nanos


# ---- reasons


def _reason(workload: Workload, states: Sequence[ReplicaState], waiting: Reason | None, *, several: bool) -> Reason:
    """Why replicas are in the situation they share, told of the first of them."""
    first = states[0]
    container = first.container
    prefix = f"replica {first.replica} " if several else ""
    match first.situation:
        case S.WAITING:
            lost = container is not None and container.status.phase == ContainerStatus.LOST
            said = f"{prefix}was lost with node {container.spec.node}, " if container is not None and lost else ""
            return waiting or Reason(code=Reason.WAITING_FOR_SCHEDULER, message=f"{said}waiting to be placed")
        case S.UNREACHABLE:
            return _out_of_reach([state.container for state in states if state.container is not None])
        case S.DONE:
            return Reason(
                code=Reason.COMPLETED, message="every replica ended with code 0" if several else "ended with code 0"
            )
        case S.RUNNING:
            return Reason()
    if container is None:
        return Reason()
    match first.situation:
        case S.REPLACING:
            said = f"{prefix or 'it '}still runs as it was before the change, on {container.spec.node}"
            return Reason(code=Reason.REPLACED, message=said)
        case S.PULLING:
            return Reason(message=f"pulling {container.spec.image} on {container.spec.node}")
        case S.ASSIGNED:
            return Reason(message=f"placed on {container.spec.node}")
        case S.LAUNCHING:
            return Reason(message=f"creating the container on {container.spec.node}")
        case S.STOPPING:
            stop = container.status.stop_requested
            return Reason(code=stop.code, message=prefix + (stop.message or f"is ending on {container.spec.node}"))
        case S.BACKING_OFF:
            said = f"{prefix}{ending(container).message}; attempt {first.attempts + 1} follows"
            return Reason(code=Reason.BACK_OFF, message=said)
        case S.OUT_OF_TIME:
            said = container.status.stop_requested.message or "its time limit was reached"
            return Reason(code=Reason.TIME_LIMIT, message=f"{prefix}was stopped: {said}")
    return _failure(workload, container, first, prefix)


def _failure(workload: Workload, container: Container, state: ReplicaState, prefix: str) -> Reason:
    end = ending(container)
    retried = workload.spec.config.restart_policy in (Config.OnFailure, Config.Always) and state.attempts > 1
    if not retried:
        return Reason(code=end.code, message=prefix + end.message)
    said = f"{prefix}{end.message}, and so {reconcile.max_attempts(workload)} times in a row"
    return Reason(code=Reason.MAX_RETRY_REACHED, message=said)


def ending(container: Container) -> Reason:
    """How a container ended, as a sentence without a subject: `exited with code 3`."""
    status = container.status
    code = status.exit_code
    if status.oom_killed or status.reason.code == Reason.MEMORY_LIMIT:
        limit = container.spec.resources.memory_bytes
        size = f" (limit {quantity.format_bytes(limit)})" if limit else ""
        return Reason(code=Reason.MEMORY_LIMIT, message=f"exited with code {code}: out of memory{size}")
    if status.reason.code not in (Reason.NONE, Reason.EXIT_CODE, Reason.COMPLETED, Reason.KILLED_BY_SIGNAL):
        said = status.reason.message or value_name(Reason.Code.Name, status.reason.code).replace("_", " ").lower()
        return Reason(code=status.reason.code, message=f"did not start: {said}" if _never_ran(container) else said)
    if not status.HasField("exit_code"):
        return Reason(code=status.reason.code, message=status.reason.message or "ended without an exit code")
    signal = _SIGNALS.get(code - 128, f"signal {code - 128}") if 128 < code < 192 else ""
    if signal:
        return Reason(code=Reason.KILLED_BY_SIGNAL, message=f"exited with code {code} ({signal})")
    if not code:
        return Reason(code=Reason.COMPLETED, message="exited with code 0")
    return Reason(code=Reason.EXIT_CODE, message=f"exited with code {code}")


def _never_ran(container: Container) -> bool:
    return not container.status.HasField("started_at")


def _out_of_reach(containers: Sequence[Container]) -> Reason:
    nodes = sorted({c.spec.node for c in containers})
    names = ", ".join(nodes[:3]) + (f" and {len(nodes) - 3} more" if len(nodes) > 3 else "")
    what = "its container" if len(containers) == 1 else f"{len(containers)} containers"
    plural = "node is" if len(nodes) == 1 else "nodes are"
    return Reason(code=Reason.NODE_UNREACHABLE, message=f"{plural} out of reach: {names}; {what} may still run there")


def _exit_code(states: Sequence[ReplicaState]) -> int:
    """The code of the first replica that failed for good; 0 while none has."""
    for state in states:
        if state.situation is S.FAILED and state.container is not None:
            return state.container.status.exit_code or 1
    return 0
