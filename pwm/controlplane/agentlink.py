"""How services reach agents, without knowing which replica holds whose session.

`agents` implements this; `app` hands it to the services.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from pwm.api.v1.agent_pb2 import NodeUsage, OpenStream, RelayRequest, RelayResponse


class AgentUnreachable(Exception):
    """No replica has a session of the node that can be reached; the message is a sentence for the user."""


class AgentRefused(Exception):
    """The agent answered with an error: `code` is a RelayError.Code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class AgentInfo:
    node: str
    replica: str
    epoch: int
    version: str
    last_heard_ms: int


class RelayStream(Protocol):
    """Frames between a service and an agent, with back-pressure both ways."""

    def __aiter__(self) -> AsyncIterator[RelayRequest]: ...

    async def send(self, frame: RelayResponse) -> None: ...


class AgentLink(Protocol):
    def open(self, node: str, request: OpenStream) -> AbstractAsyncContextManager[RelayStream]:
        """A stream to the node's agent. Raises AgentUnreachable; iterating raises AgentRefused."""
        ...

    def usage(self, node: str) -> NodeUsage | None:
        """Latest usage the node sent, if its agent is connected."""
        ...

    async def refresh_usage(self) -> None:
        """Ask the other replicas once what their nodes use."""
        ...

    def watch_usage(self) -> AbstractContextManager[None]:
        """While it is entered, agents send their usage every second."""
        ...

    def agents(self) -> list[AgentInfo]:
        """Those connected to this replica."""
        ...
