"""What a node should run, derived from the containers placed on it."""

from pwm import lifecycle
from pwm.api.v1.agent_pb2 import Assignment
from pwm.api.v1.workload_pb2 import Container, ContainerStatus


def assignment(container: Container) -> Assignment | None:
    """The agent's order for a container; None once it has ended.

    A lost one is to be stopped: its replica may have a successor, and only the agent can say that it has ended.
    """
    status = container.status
    if status.phase in lifecycle.ENDED:
        return None
    lost = status.phase == ContainerStatus.LOST
    stopping = lost or status.HasField("stop_requested")
    return Assignment(
        uid=container.metadata.uid,
        name=container.metadata.name,
        group=container.metadata.group,
        spec=container.spec,
        desired=Assignment.STOP if stopping else Assignment.RUN,
        reason=status.reason if lost else status.stop_requested if stopping else None,
        started=status.HasField("started_at") or bool(status.runtime_id),
    )
