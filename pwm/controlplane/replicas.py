"""All replicas, this one included: what each says of itself, and making one fail on purpose.

`peers` knows the others and `peer_door` answers for this one; who asks for everybody (the status, a drill) should
not have to tell them apart.
"""

from pwm.api.v1.peer_pb2 import DescribeResponse, FailRequest
from pwm.controlplane.agentlink import AgentUnreachable
from pwm.controlplane.peerdoor import NotLeading, PeerDoor
from pwm.controlplane.peers import Peers


class CannotFail(Exception):
    """The replica could not be made to fail; the message is a sentence for the user."""


class Replicas:
    def __init__(self, *, replica: str, peers: Peers, door: PeerDoor) -> None:
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
