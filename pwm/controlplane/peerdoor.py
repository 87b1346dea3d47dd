"""What this replica does for the others: the server's side of peer.proto.

Streams to agents are passed on only to agents connected here: one hop at most, so that two replicas that
disagree on where an agent is never send a request around in circles.
"""

import asyncio
import hmac
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc
import structlog

from pwm.api.v1 import peer_pb2 as pb
from pwm.api.v1 import peer_pb2_grpc
from pwm.api.v1.agent_pb2 import RelayError, RelayRequest
from pwm.controlplane.agentlink import AgentRefused, AgentUnreachable
from pwm.controlplane.clock import Clock
from pwm.controlplane.commands import timestamp
from pwm.controlplane.dispatcher.dispatcher import Dispatcher
from pwm.controlplane.replicas import FAIL_AFTER_S, NotLeading
from pwm.controlplane.roles import Roles
from pwm.controlplane.view import View

log = structlog.get_logger(__name__)

USAGE_BEAT_S = 1.0


class PeerDoor(peer_pb2_grpc.PeerServiceServicer):
    def __init__(
        self,
        *,
        replica: str,
        token: str,
        view: View,
        dispatcher: Dispatcher,
        roles: Roles,
        clock: Clock,
        stale_since_ms: Callable[[], int],
        is_controller: Callable[[dict[str, Sequence[bytes]]], bool] | None = None,
    ) -> None:
        """`token` is what this replica announced: whoever knows it can read the store. With TLS, `is_controller` also
        wants to see a certificate.
        """
        self._replica = replica
        self._token = token
        self._view = view
        self._dispatcher = dispatcher
        self._roles = roles
        self._clock = clock
        self._stale_since_ms = stale_since_ms
        self._is_controller = is_controller
        self._leaving = asyncio.Event()

    def leave(self) -> None:
        """Tell everybody that this replica stops in good order."""
        self._leaving.set()

    async def _admit(self, context: Any) -> None:
        if self._is_controller is not None and not self._is_controller(context.auth_context()):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "this is not the certificate of a controller")
        metadata = dict(context.invocation_metadata())
        if not hmac.compare_digest(str(metadata.get("authorization", "")), f"Bearer {self._token}"):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "this is not the token that this replica announced")

    async def Attend(self, request: pb.AttendRequest, context: Any) -> AsyncIterator[pb.AttendResponse]:
        await self._admit(context)
        yield pb.AttendResponse(replica=self._replica)
        await self._leaving.wait()
        yield pb.AttendResponse(leaving=True)

    async def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.DescribeResponse:
        await self._admit(context)
        return self.describe()

    def describe(self) -> pb.DescribeResponse:
        answer = pb.DescribeResponse(replica=self._replica, revision=self._view.revision, roles=self._roles.led())
        answer.time.CopyFrom(timestamp(self._clock.now_ms()))
        if since_ms := self._stale_since_ms():
            answer.stale_since.CopyFrom(timestamp(since_ms))
        for node, containers in self._dispatcher.held().items():
            answer.held.add(node=node, containers=containers)
        for agent in self._dispatcher.agents():
            answer.agents.add(
                node=agent.node, epoch=agent.epoch, version=agent.version, last_heard=timestamp(agent.last_heard_ms)
            )
        return answer

    async def WatchUsage(self, request: pb.WatchUsageRequest, context: Any) -> AsyncIterator[pb.WatchUsageResponse]:
        await self._admit(context)
        with self._dispatcher.watch_usage():
            while True:
                yield pb.WatchUsageResponse(nodes=self._dispatcher.usage_of_all())
                await asyncio.sleep(USAGE_BEAT_S)

    async def Pass(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        await self._admit(context)
        first = await context.read()
        if first is grpc.aio.EOF or first.WhichOneof("message") != "target":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first message names the node")
        try:
            async with self._dispatcher.open(first.target.node, first.target.open) as stream:
                inward = asyncio.ensure_future(_pass_in(context, stream))
                try:
                    async for frame in stream:
                        await context.write(pb.PassResponse(frame=frame))
                    await context.write(pb.PassResponse(frame=RelayRequest(complete=True)))
                finally:
                    inward.cancel()
                    await asyncio.wait({inward})
        except AgentRefused as error:
            refusal = RelayError(code=error.code, message=str(error))  # type: ignore[arg-type]
            await context.write(pb.PassResponse(frame=RelayRequest(error=refusal)))
        except AgentUnreachable as error:
            await context.write(pb.PassResponse(unreachable=str(error)))

    async def Fail(self, request: pb.FailRequest, context: Any) -> pb.FailResponse:
        await self._admit(context)
        try:
            return self.fail(request)
        except NotLeading as error:
            return await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))  # type: ignore[no-any-return]

    def fail(self, request: pb.FailRequest) -> pb.FailResponse:
        """Fail in a moment. Raises NotLeading when the role is another's by now."""
        if request.role not in self._roles.led():
            raise NotLeading(f"replica {self._replica} does not lead {request.role}")
        log.warning("failing on purpose", role=request.role, failure=pb.Failure.Name(request.failure))
        loop, pid = asyncio.get_running_loop(), os.getpid()
        match request.failure:
            case pb.KILL:
                loop.call_later(FAIL_AFTER_S, os.kill, pid, signal.SIGKILL)
            case pb.FREEZE:
                seconds = request.freeze.ToMilliseconds() / 1000
                # Somebody else has to wake a process that is stopped.
                script = f"sleep {FAIL_AFTER_S}; kill -STOP {pid}; sleep {seconds}; kill -CONT {pid}"
                subprocess.Popen(["/bin/sh", "-c", script], start_new_session=True, stdin=subprocess.DEVNULL)
            case pb.RESIGN:
                self._roles.give_up(request.role)
        return pb.FailResponse(replica=self._replica)


async def _pass_in(context: Any, stream: Any) -> None:
    """What the caller sends to the agent, until the caller is done."""
    while (message := await context.read()) is not grpc.aio.EOF:
        if message.WhichOneof("message") == "frame":
            await stream.send(message.frame)
