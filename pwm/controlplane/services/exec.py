"""`pwm shell`: a command in a running container, its bytes passed between the caller and the agent.

Nothing of a shell is kept here: with a session (agent.proto, ExecSession) the agent holds the command and its output,
and the client its input, until the other side has them. So any replica can take a connection over, and one
that dies costs its clients a new connection.
"""

import asyncio
import re
from collections.abc import AsyncIterator

import grpc

from pwm.api.v1 import services_pb2 as api
from pwm.api.v1.agent_pb2 import ExecSession, OpenStream, RelayError, RelayResponse, StartExec
from pwm.api.v1.workload_pb2 import Container, ContainerStatus, Workload
from pwm.controlplane.agentlink import AgentLink, AgentRefused, AgentUnreachable, RelayStream
from pwm.controlplane.audit import Audit
from pwm.controlplane.auth import Authorizer
from pwm.controlplane.context import CallContext
from pwm.controlplane.errors import ApiError, invalid, not_found, unavailable
from pwm.controlplane.view import View

_SESSION_ID = re.compile("[0-9a-f]{32}")
_CODES: dict[int, grpc.StatusCode] = {
    RelayError.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    RelayError.NOT_RUNNING: grpc.StatusCode.FAILED_PRECONDITION,
    RelayError.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    RelayError.SUPERSEDED: grpc.StatusCode.ABORTED,
}
_FIND_SHELL = "for s in bash zsh ash; do command -v $s >/dev/null 2>&1 && exec $s; done; exec sh"


class ExecBridge:
    def __init__(self, *, view: View, agents: AgentLink, authorizer: Authorizer, audit: Audit) -> None:
        self._view = view
        self._agents = agents
        self._authorizer = authorizer
        self._audit = audit

    async def run(
        self, requests: AsyncIterator[api.ExecRequest], context: CallContext
    ) -> AsyncIterator[api.ExecResponse]:
        first = await anext(requests, None)
        if first is None or first.WhichOneof("message") != "start":
            raise invalid("the first message of a shell is `start`")
        start = first.start
        group = start.group or context.principal.default_group
        self._authorizer.require(context.principal, verb="shell", kind="Workload", group=group)
        container = self._container(start, group)
        question = StartExec(
            container_uid=container.metadata.uid,
            cmd=list(start.cmd) or ["sh", "-c", _FIND_SHELL],
            tty=start.tty,
            stdin=start.stdin,
            user=context.principal.name,
        )
        if start.HasField("size"):
            question.size.CopyFrom(start.size)
        if start.HasField("session"):
            question.session.CopyFrom(_checked(start.session))
        try:
            async with self._agents.open(container.spec.node, OpenStream(exec=question)) as stream:
                pump = asyncio.ensure_future(_pump(requests, stream))
                self._audit.shell(context, group=group, container=container.metadata.name)
                ended = "left"
                try:
                    async for frame in stream:
                        output = frame.exec
                        if output.HasField("attached"):
                            output.attached.container = container.metadata.name
                        if output.HasField("exit_code"):
                            ended = f"exit code {output.exit_code}"
                        yield api.ExecResponse(output=output)
                        if output.HasField("exit_code") and not start.HasField("session"):
                            return
                finally:
                    self._audit.shell(context, group=group, container=container.metadata.name, ended=ended)
                    pump.cancel()
                    await asyncio.gather(pump, return_exceptions=True)
        except AgentUnreachable as error:
            raise unavailable(f"{container.metadata.name} cannot be reached: {error}") from error
        except AgentRefused as error:
            raise ApiError(_CODES.get(error.code, grpc.StatusCode.INTERNAL), str(error)) from error

    def _container(self, start: api.ExecStart, group: str) -> Container:
        workload: Workload | None = self._view.by_name("Workload", start.name, group=group)
        if workload is None:
            raise not_found(
                f"there is no workload {start.name} in group {group}", next_step="pwm get wk -A lists what there is"
            )
        containers = self._view.containers_of(workload.metadata.uid)
        if start.session.resume and start.container:
            # Whatever became of it: its agent may still have what the command printed last.
            for container in containers:
                if container.metadata.name == start.container:
                    return container
            raise not_found(f"the container {start.container} is not there any more")
        running = [
            c
            for c in containers
            if c.status.phase == ContainerStatus.RUNNING
            and (not start.HasField("replica") or c.spec.replica == start.replica)
        ]
        if not running:
            which = f"replica {start.replica} of " if start.HasField("replica") else ""
            raise ApiError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"{which}workload {start.name} is not running",
                next_step=f"pwm why wk {start.name} says why",
            )
        return running[0]


def _checked(session: ExecSession) -> ExecSession:
    if not _SESSION_ID.fullmatch(session.id):
        raise invalid("start.session.id is 32 lower-case hex digits, drawn at random")
    if not session.connection or session.received < 0:
        raise invalid("start.session.connection counts from 1, and start.session.received is a number of bytes")
    return session


async def _pump(requests: AsyncIterator[api.ExecRequest], stream: RelayStream) -> None:
    """The caller's bytes and window sizes to the agent, until the caller is done."""
    async for request in requests:
        if request.WhichOneof("message") == "input":
            await stream.send(RelayResponse(exec=request.input))
