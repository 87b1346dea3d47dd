"""All replicas, this one included: what each says of itself, and making one fail on purpose.

`peers` knows the others and `peer_door` answers for this one; who asks for everybody (the status, a drill) should
not have to tell them apart.
"""

from typing import Protocol

from pwm.api.v1.peer_pb2 import DescribeResponse, FailRequest
from pwm.controlplane.agentlink import AgentUnreachable
from pwm.controlplane.peers import Peers

# The answer to a request to fail gets out before the failure. Resigning has no need to wait.
FAIL_AFTER_S = 0.02


class NotLeading(Exception):
    """The role is led by another replica, or by none."""


class Door(Protocol):
    """What this replica says and does when it is asked as others are."""

    def describe(self) -> DescribeResponse: ...

    def fail(self, request: FailRequest) -> object:
        """Raises NotLeading."""
        ...


class CannotFail(Exception):
    """The replica could not be made to fail; the message is a sentence for the user."""


class Replicas:
    def __init__(self, *, replica: str, peers: Peers, door: Door) -> None:
        self._replica = replica
        self._peers = peers
        self._door = door

    async def describe(self) -> dict[str, DescribeResponse]:
        """By replica; one that does not answer is left out."""
        # First, so that its clock is read when the others' are: one that does not answer is waited for.
        here = self._door.describe()
        return {answer.replica: answer for answer in (here, *await self._peers.describe())}

    async def fail(self, replica: str, request: FailRequest) -> None:
        """Make it fail in a moment. Raises CannotFail."""
        try:
            if replica == self._replica:
                self._door.fail(request)
            else:
                await self._peers.fail(replica, request)
        except (NotLeading, AgentUnreachable) as error:
            raise CannotFail(str(error)) from error
