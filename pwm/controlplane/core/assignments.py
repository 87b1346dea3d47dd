"""What a node should run, derived from the containers placed on it."""

from pwm import lifecycle
from pwm.api.v1.agent_pb2 import Assignment
from pwm.api.v1.workload_pb2 import Container


def assignment(container: Container) -> Assignment | None:
    """The agent's order for a container; None once it has ended."""
    status = container.status
    if status.phase in lifecycle.ENDED:
        return None
    stopping = status.HasField("stop_requested")
    return Assignment(
        uid=container.metadata.uid,
        name=container.metadata.name,
        group=container.metadata.group,
        spec=container.spec,
        desired=Assignment.STOP if stopping else Assignment.RUN,
        reason=status.stop_requested if stopping else None,
        started=status.HasField("started_at"),
    )
