"""Nodes that fall silent: their phases, and what becomes of their containers.

    READY ── silent for `grace` ──▶ NOT_READY ── silent for `lost_after` ──▶ LOST
      ▲                                 │                                     │
      └──────────── the agent is back ──┴─────────────────────────────────────┘

What a lost node's containers do depends on their `onNodeLost`. With `reschedule` they are LOST and get
successors at once; that is safe because their agent, which counts for itself how long it has been cut off, has
ended them by then (see below). With `wait`, the default, they stay as they are: a fault of the network or of
the control plane must not touch the work of people who did not ask for it. Either way a container holds its
GPUs until its agent has reported how it ended, or an admin says that the machine is dead.

*Why the old container has ended before its successor may start.* The agent counts from the moment s at which
it sent the last heartbeat that was acknowledged. A replica acknowledges a heartbeat only after the store has
confirmed, later than the heartbeat came, that the replica's sessions stand: so at s the session stood, and
whoever observes the store sees its end at some moment e > s, never before. Silence is counted from e (or, where
the replica says how long it had heard nothing before it ended the session, from the last message that came,
which is not before s either). The agent begins to end containers at s + self_fence on its clock and is done
half the margin later; the node is lost at e + lost_after or later on the leader's. Both are clocks of elapsed
time, which nobody sets, and the other half of the margin is far more than they drift apart in two minutes.

*No wall clock takes part.* Each replica observes silence itself, leader or not, so a new leader goes on where
the old one was. Only a replica that has just started knows nothing from before and waits in full: when a node
became NOT_READY is in the log, but by a wall clock, and one that is set forward by an hour must not cost a
container its node.

*The brake.* When half of a zone's nodes are silent, the network between them and the control plane is the
suspect, not the nodes, and nothing more is lost until they are back. They do not come back all at the same time: once
it is off, the others have another grace to follow.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pwm import lifecycle
from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.events_pb2 import ContainerReported
from pwm.api.v1.node_pb2 import Node, NodeStatus
from pwm.api.v1.workload_pb2 import Container, ContainerStatus, Workload, WorkloadSpec, WorkloadStatus
from pwm.quantity import format_duration

DEFAULT_GRACE_MS = 15_000
DEFAULT_LOST_AFTER_MS = 120_000
# Below this, a busy machine is taken for a dead one.
LEAST_LOST_AFTER_MS = 10_000
LEAST_GRACE_MS = 3_000
# Between the fence and the loss: a second to end containers, and one for an engine that takes its time.
LEAST_MARGIN_MS = 2_000
HEARTBEAT_MS = 5_000
# So few silent nodes are no suspicion: one node of two may well be dead.
BRAKE_LEAST_SILENT = 2
# Without the numbers: it is in the log, which need not tell of each node that comes or goes.
_SUSPECT = "its agent is not connected, like half of the zone's nodes or more: nothing is rescheduled"


class NodeTimesError(ValueError):
    """Settings that cannot work together; the message is a sentence for the admin."""


@dataclass(frozen=True, slots=True)
class NodeTimes:
    """Since when a silent node is NOT_READY and LOST, and when its agent, cut off, has begun to end containers."""

    grace_ms: int = DEFAULT_GRACE_MS
    lost_after_ms: int = DEFAULT_LOST_AFTER_MS
    self_fence_ms: int = DEFAULT_LOST_AFTER_MS * 3 // 4

    @staticmethod
    def of(*, grace_ms: int = 0, lost_after_ms: int = 0, self_fence_ms: int = 0) -> "NodeTimes":
        """What is not given (0) follows from `lost_after_ms`. Raises NodeTimesError."""
        lost = lost_after_ms or DEFAULT_LOST_AFTER_MS
        made = NodeTimes(grace_ms or min(DEFAULT_GRACE_MS, lost * 2 // 5), lost, self_fence_ms or lost * 3 // 4)
        made.check()
        return made

    def check(self) -> None:
        """Raises NodeTimesError."""
        grace, lost, fence = map(format_duration, (self.grace_ms, self.lost_after_ms, self.self_fence_ms))
        if self.lost_after_ms < LEAST_LOST_AFTER_MS:
            raise NodeTimesError(f"a node cannot be lost after {lost}: at least {format_duration(LEAST_LOST_AFTER_MS)}")
        if self.grace_ms < LEAST_GRACE_MS:
            raise NodeTimesError(f"a node's grace cannot be {grace}: at least {format_duration(LEAST_GRACE_MS)}")
        if self.grace_ms >= self.lost_after_ms:
            raise NodeTimesError(f"a node's grace of {grace} must be shorter than the {lost} after which it is lost")
        if self.self_fence_ms < self.grace_ms:
            raise NodeTimesError(f"a self-fence of {fence} must not be shorter than a node's grace of {grace}")
        if self.self_fence_ms + LEAST_MARGIN_MS >= self.lost_after_ms:
            margin = format_duration(LEAST_MARGIN_MS)
            raise NodeTimesError(
                f"agents that fence themselves after {fence} need more than {margin} to end containers before "
                f"their node is lost after {lost}"
            )

    @property
    def heartbeat_ms(self) -> int:
        """Several fit into the shortest of the times, so that one that is late costs nothing."""
        return min(HEARTBEAT_MS, self.self_fence_ms // 6, self.grace_ms // 3)

    @property
    def session_silence_ms(self) -> int:
        """Silence that ends a session: longer than two heartbeats, and known in time for the grace to end."""
        return self.grace_ms * 4 // 5


DEFAULT_TIMES = NodeTimes()


@dataclass(frozen=True, slots=True)
class Contact:
    """What a replica knows of a node's session: some replica has one, or it has been silent for so long."""

    connected: bool
    # By a clock of elapsed time, and never longer than it really was.
    silent_ms: int = 0


HERE = Contact(connected=True)


class Silence(NamedTuple):
    """How many of a zone's nodes are silent; those that never joined and those already lost do not count."""

    silent: int
    nodes: int

    @property
    def brake(self) -> bool:
        return self.silent >= BRAKE_LEAST_SILENT and 2 * self.silent >= self.nodes

    def __str__(self) -> str:
        return (
            f"{self.silent} of {self.nodes} nodes are silent: the network is the suspect, so nothing is rescheduled; "
            "`pwm admin confirm-dead NODE` says of a node that it is dead"
        )


Sight = tuple[Node, Contact]
Verdict = tuple[Node, NodeStatus.Phase.ValueType, Reason]


def silence(sights: Iterable[Sight], *, least_ms: int) -> Silence:
    """Of nodes of one zone, how many have been silent for at least so long."""
    counted = [contact for node, contact in sights if has_joined(node) and node.status.phase != NodeStatus.LOST]
    silent = sum(not contact.connected and contact.silent_ms >= least_ms for contact in counted)
    return Silence(silent, len(counted))


def has_joined(node: Node) -> bool:
    """Its agent has said hello at least once."""
    return node.status.inventory.cpu_count > 0


def brake_is_on(sights: Sequence[Sight]) -> bool:
    """Whether so many nodes are silent at this moment, or were when it was last told in the log."""
    told = any(node.status.reason.message == _SUSPECT and node.status.phase != NodeStatus.LOST for node, _ in sights)
    return told or silence(sights, least_ms=0).brake


def verdicts(
    sights: Sequence[Sight], times: NodeTimes, *, calm_ms: float, of: Sequence[Sight] | None = None
) -> list[Verdict]:
    """Phase and reason that nodes of one zone should have; those that stay as they are may be among them.

    `calm_ms`: for how long the brake has been off. Who has gone for a moment puts it on already, but it is only told
    of when it lasts. `of`: those of the zone's that are to be judged; None: all.
    """
    may_lose = calm_ms >= times.grace_ms
    suspect = silence(sights, least_ms=times.grace_ms).brake
    judged = sights if of is None else of
    found = ((node, _verdict(node, contact, times, may_lose=may_lose, suspect=suspect)) for node, contact in judged)
    return [(node, *verdict) for node, verdict in found if verdict is not None]


def _verdict(
    node: Node, contact: Contact, times: NodeTimes, *, may_lose: bool, suspect: bool
) -> tuple[NodeStatus.Phase.ValueType, Reason] | None:
    if contact.connected:
        return _connected(node)
    phase = node.status.phase
    if phase == NodeStatus.LOST:
        return None
    if phase in (NodeStatus.READY, NodeStatus.MAINTENANCE) and contact.silent_ms < times.grace_ms:
        return None
    if not has_joined(node):
        return NodeStatus.NOT_READY, _unreachable("its agent has not joined")
    if contact.silent_ms >= lost_after_ms(node, times) and may_lose:
        said = f"its agent has been silent for more than {format_duration(lost_after_ms(node, times))}"
        if not node.status.inventory.fenced_after_ms:
            # It was stopped in good order, or is of an older version.
            said += ", and did not say that it would end what may start elsewhere: what runs there is left alone"
        return NodeStatus.LOST, _unreachable(said)
    if suspect:
        return NodeStatus.NOT_READY, _unreachable(_SUSPECT)
    return NodeStatus.NOT_READY, _unreachable("its agent is not connected")


def _connected(node: Node) -> tuple[NodeStatus.Phase.ValueType, Reason]:
    drivers = node.status.inventory.drivers
    if drivers and not any(d.ready for d in drivers):
        said = "; ".join(f"{d.name}: {d.message}" for d in drivers if d.message) or "no driver is ready"
        return NodeStatus.NOT_READY, Reason(code=Reason.DRIVER_UNREACHABLE, message=said)
    if node.spec.maintenance:
        return NodeStatus.MAINTENANCE, Reason(
            code=Reason.NODE_IN_MAINTENANCE, message="in maintenance: takes nothing new"
        )
    return NodeStatus.READY, Reason()


def _unreachable(message: str) -> Reason:
    return Reason(code=Reason.NODE_UNREACHABLE, message=message)


def lost_after_ms(node: Node, times: NodeTimes) -> int:
    """Silence after which the node is lost: its agent may be held by longer times that it was told before."""
    return max(times.lost_after_ms, node.status.inventory.fenced_after_ms)


def silence_said(node: Node, contact: Contact) -> str:
    """What is to be said of a node that is not connected at this moment and may still be READY; else nothing."""
    if contact.connected or node.status.phase not in (NodeStatus.READY, NodeStatus.MAINTENANCE):
        return ""
    return f"its agent has been silent for {format_duration(contact.silent_ms)}"


# ---- what becomes of containers


def losses(
    node: Node, containers: Iterable[Container], workload_of: Callable[[str], Workload | None]
) -> list[tuple[Container, ContainerReported]]:
    """What is to be said of a lost node's containers, in place of an agent that cannot.

    On a machine that an admin calls dead every container has failed. Else those are LOST that may have a
    successor, and those that nobody waits for any more, as their workload is being deleted.
    """
    if node.status.phase != NodeStatus.LOST:
        return []
    name = node.metadata.name
    alive = [c for c in containers if c.status.phase not in lifecycle.ENDED]
    if node.status.reason.code == Reason.NODE_CONFIRMED_DEAD:
        reason = Reason(code=Reason.NODE_CONFIRMED_DEAD, message=f"node {name} was confirmed dead")
        return [(c, ContainerReported(phase=ContainerStatus.FAILED, reason=reason)) for c in alive]
    lost = ContainerReported(phase=ContainerStatus.LOST, reason=_unreachable(f"node {name} was lost"))
    return [
        (c, lost)
        for c in alive
        if c.status.phase != ContainerStatus.LOST
        and (_is_fenced(node, c) or _is_unwanted(workload_of(c.spec.workload_uid)))
    ]


def _is_fenced(node: Node, container: Container) -> bool:
    """Its agent knows that it must have ended it by now."""
    return container.spec.on_node_lost == WorkloadSpec.reschedule and node.status.inventory.fenced_after_ms > 0


def _is_unwanted(workload: Workload | None) -> bool:
    return workload is None or workload.status.desired == WorkloadStatus.DELETE


def left_behind(containers: Iterable[Container], node_of: Callable[[str], Node | None]) -> list[str]:
    """Of a workload that is deleted: what stays for a while, because nobody can stop it, in sentences."""
    said = []
    for container in containers:
        node = node_of(container.spec.node)
        if container.status.phase in lifecycle.ENDED or node is None:
            continue
        if container.status.phase == ContainerStatus.LOST or node.status.reason.code == Reason.NODE_UNREACHABLE:
            said.append(
                f"{container.metadata.name} may still run on node {node.metadata.name}, which is out of reach: it ends "
                f"when the node is back, or when an admin says that the node is dead "
                f"(pwm admin confirm-dead {node.metadata.name})"
            )
    return said
