"""Pairs byte streams: who asked for one, and the agent that dials in to serve it.

The session only carries the request; the bytes have a gRPC stream of their own, so that a reader who
is slow slows down just this stream: frames are taken from gRPC one at a time, as fast as they are used.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from pwm.api.v1.agent_pb2 import RelayRequest, RelayResponse
from pwm.controlplane.agentlink import AgentRefused, AgentUnreachable

# An agent that is connected answers at once; one that does not is as good as away.
DIAL_TIMEOUT_S = 10.0
# It sends the first message with the call.
FIRST_MESSAGE_S = 10.0


async def first_message(context: Any) -> Any:
    """What a call begins with. Ends a call that says nothing: each that is open takes room here."""
    try:
        async with asyncio.timeout(FIRST_MESSAGE_S):
            return await context.read()
    except TimeoutError:
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"nothing came within {FIRST_MESSAGE_S:g} s")


class Relays:
    """Streams that were asked for and not yet served, by id."""

    def __init__(self) -> None:
        self._expected: dict[str, tuple[str, asyncio.Future[AgentStream]]] = {}

    async def expect(self, stream_id: str, node: str) -> "AgentStream":
        """The stream, once the agent of `node` has dialled in for it."""
        future: asyncio.Future[AgentStream] = asyncio.get_running_loop().create_future()
        self._expected[stream_id] = (node, future)
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                return await future
        except TimeoutError as error:
            raise AgentUnreachable(f"the agent of node {node} does not answer") from error
        finally:
            self._expected.pop(stream_id, None)

    async def serve(self, node: str | None, context: Any) -> None:
        """One Relay rpc, from its first frame until whoever asked is done. `node`: whose credential it is."""
        first = await first_message(context)
        if first is grpc.aio.EOF or first.WhichOneof("frame") != "stream_id":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first frame names the stream")
        wanted_node, future = self._expected.pop(first.stream_id, (None, None))
        if future is None or future.done() or (node and node != wanted_node):
            await context.abort(grpc.StatusCode.NOT_FOUND, "nobody waits for this stream")
            return
        stream = AgentStream(context)
        future.set_result(stream)
        await stream.closed.wait()


class AgentStream:
    """The controller's end of a relay stream."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self.closed = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[RelayRequest]:
        while True:
            try:
                frame = await self._context.read()
            except (grpc.RpcError, grpc.aio.UsageError, asyncio.InvalidStateError) as error:
                raise AgentUnreachable("the connection to the agent broke") from error
            if frame is grpc.aio.EOF:
                # Also how the death of an agent looks.
                raise AgentUnreachable("the connection to the agent broke")
            match frame.WhichOneof("frame"):
                case None:
                    continue  # from a newer agent
                case "complete":
                    return
                case "error":
                    raise AgentRefused(frame.error.code, frame.error.message)
            yield frame

    async def send(self, frame: RelayResponse) -> None:
        try:
            await self._context.write(frame)
        except (grpc.RpcError, grpc.aio.UsageError, asyncio.InvalidStateError) as error:
            raise AgentUnreachable("the connection to the agent broke") from error
