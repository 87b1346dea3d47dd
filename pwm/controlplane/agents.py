"""Agents, wherever they are connected: here (the dispatcher) or to another replica (through `peers`)."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from pwm.api.v1.agent_pb2 import NodeUsage, OpenStream
from pwm.controlplane.agentlink import AgentInfo, AgentUnreachable, RelayStream
from pwm.controlplane.dispatcher.dispatcher import Dispatcher
from pwm.controlplane.peers import Peers
from pwm.controlplane.presence import Presence


class Agents:
    """The `AgentLink` of a replica."""

    def __init__(self, *, replica: str, dispatcher: Dispatcher, peers: Peers, presence: Presence) -> None:
        self._replica = replica
        self._dispatcher = dispatcher
        self._peers = peers
        self._presence = presence

    @asynccontextmanager
    async def open(self, node: str, request: OpenStream) -> AsyncIterator[RelayStream]:
        """A stream to the node's agent. Raises AgentUnreachable; iterating raises AgentRefused."""
        holder = self._presence.holder(node)
        if self._dispatcher.holds(node):
            async with self._dispatcher.open(node, request) as stream:
                yield stream
        elif holder and holder != self._replica:
            async with self._peers.open(holder, node, request) as passed:
                moving = asyncio.ensure_future(self._presence.moved(node, holder))
                moving.add_done_callback(lambda done: None if done.cancelled() else passed.moved())
                try:
                    yield passed
                finally:
                    moving.cancel()
        else:
            raise AgentUnreachable(f"the agent of node {node} is not connected")

    def usage(self, node: str) -> NodeUsage | None:
        """Latest usage of a node. Of one connected elsewhere it is known while somebody watches."""
        return self._dispatcher.usage(node) or self._peers.usage(node)

    async def refresh_usage(self) -> None:
        await self._peers.refresh_usage()

    @contextmanager
    def watch_usage(self) -> Iterator[None]:
        with self._dispatcher.watch_usage(), self._peers.watch_usage():
            yield

    def agents(self) -> list[AgentInfo]:
        """Those connected here."""
        return self._dispatcher.agents()
