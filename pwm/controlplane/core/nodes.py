"""A node's phase, from what is known of its agent."""

from dataclasses import dataclass

from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.node_pb2 import Node, NodeStatus


@dataclass(frozen=True, slots=True)
class Contact:
    """What the leader knows of a node's session: connected, or silent since a time."""

    connected: bool
    silent_since_ms: int = 0


def node_phase(
    node: Node, contact: Contact, *, now_ms: int, grace_ms: int
) -> tuple[NodeStatus.Phase.ValueType, Reason] | None:
    """Phase and reason the node should have; None: leave it as it is (silent, within the grace period)."""
    if not contact.connected:
        if (
            node.status.phase in (NodeStatus.READY, NodeStatus.MAINTENANCE)
            and now_ms - contact.silent_since_ms < grace_ms
        ):
            return None
        return NodeStatus.NOT_READY, Reason(code=Reason.NODE_UNREACHABLE, message="its agent is not connected")
    drivers = node.status.inventory.drivers
    if drivers and not any(d.ready for d in drivers):
        said = "; ".join(f"{d.name}: {d.message}" for d in drivers if d.message) or "no driver is ready"
        return NodeStatus.NOT_READY, Reason(code=Reason.DRIVER_UNREACHABLE, message=said)
    if node.spec.maintenance:
        return NodeStatus.MAINTENANCE, Reason(
            code=Reason.NODE_IN_MAINTENANCE, message="in maintenance: takes nothing new"
        )
    return NodeStatus.READY, Reason()
