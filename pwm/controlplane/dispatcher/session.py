"""One agent's session: orders out as a chain of changes, reports in, liveness.

The first set of assignments is full; after it only changes go out, each naming the set it applies to and
the set it results in, so that the agent can prove it missed none. Changes that happen while one message
is on its way are sent together in the next.
"""

import asyncio
from collections import deque

from pwm.api.v1.agent_pb2 import (
    Assignment,
    Assignments,
    Configure,
    ContainerSecrets,
    Heard,
    NodeUsage,
    OpenStream,
    ReportsAcknowledged,
    SessionResponse,
)
from pwm.api.v1.workload_pb2 import Container
from pwm.controlplane.core.assignments import assignment


class Session:
    """State of a session of `node`; `epoch` fences it against older ones."""

    def __init__(self, *, node: str, epoch: int, agent_version: str, now_ms: int) -> None:
        self.node = node
        self.epoch = epoch
        self.agent_version = agent_version
        self.last_heard_ms = now_ms
        # When a heartbeat was last acknowledged, on the clock of elapsed time.
        self.acknowledged_s = float("-inf")
        self.usage: NodeUsage | None = None
        self.superseded = asyncio.Event()
        # Uids of containers whose secrets the agent has asked for.
        self.secrets_wanted: asyncio.Queue[str] = asyncio.Queue()
        self._known: dict[str, Assignment] = {}
        self._set_number = 0
        self._dirty: dict[str, Container | None] = {}
        self._messages: deque[SessionResponse] = deque()
        # The newest of its reports that is in the log, and that the agent knows to be there.
        self._logged = self._known_logged = 0
        self._wake = asyncio.Event()

    # ---- what goes out

    def changed(self, uid: str, container: Container | None) -> None:
        """A container of this node changed; None: it was removed."""
        self._dirty[uid] = container
        self._wake.set()

    def acknowledge(self, sequence: int, *, soon: bool) -> None:
        """Reports up to there are in the log. Unless somebody waits for it, that is told with what is sent next."""
        self._logged = sequence
        if soon:
            self._wake.set()

    def heard(self, number: int, *, now_s: float) -> None:
        """The heartbeat of this number is acknowledged."""
        self.acknowledged_s = now_s
        self._send(SessionResponse(heard=Heard(number=number)))

    def open(self, request: OpenStream) -> None:
        self._send(SessionResponse(open=request))

    def give(self, secrets: ContainerSecrets) -> None:
        self._send(SessionResponse(secrets=secrets))

    def configure(self, configure: Configure) -> None:
        self._send(SessionResponse(configure=configure))

    def _send(self, message: SessionResponse) -> None:
        self._messages.append(message)
        self._wake.set()

    def full(self, containers: list[Container]) -> SessionResponse:
        """The first set: everything the node should run."""
        self._dirty.clear()
        orders = [order for order in map(assignment, containers) if order is not None]
        self._known = {order.uid: order for order in orders}
        self._set_number = 1
        return SessionResponse(assignments=Assignments(full=True, results_in=1, set=orders))

    async def outgoing(self) -> list[SessionResponse]:
        """Everything that waits to be sent; waits until there is something."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            messages = list(self._messages)
            self._messages.clear()
            delta = self._delta()
            if delta is not None:
                messages.append(delta)
            if self._logged > self._known_logged:
                self._known_logged = self._logged
                messages.append(SessionResponse(acknowledged=ReportsAcknowledged(up_to_sequence=self._logged)))
            if messages:
                return messages

    def _delta(self) -> SessionResponse | None:
        orders: list[Assignment] = []
        removed: list[str] = []
        for uid, container in self._dirty.items():
            order = assignment(container) if container is not None else None
            if order is None:
                if self._known.pop(uid, None) is not None:
                    removed.append(uid)
            elif self._known.get(uid) != order:
                self._known[uid] = order
                orders.append(order)
        self._dirty.clear()
        if not orders and not removed:
            return None
        base = self._set_number
        self._set_number += 1
        return SessionResponse(
            assignments=Assignments(applies_to=base, results_in=self._set_number, set=orders, removed_uids=removed)
        )
