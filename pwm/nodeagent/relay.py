"""Serves byte streams and questions: logs, shells, inspect, processes.

The controller asks through the session; the agent dials a `Relay` stream for each, so that a slow reader holds
up this one stream only: a chunk is taken from its source when gRPC has room for it. A question is
answered even when the answer is an error, said in a sentence; what breaks here never ends the session.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Coroutine
from contextlib import aclosing
from typing import Any, Protocol, cast

import grpc
import structlog

from pwm.api.v1.agent_pb2 import (
    ForgetContainers,
    LogData,
    OpenStream,
    ReadLogs,
    RelayError,
    RelayRequest,
    StartExec,
)
from pwm.api.v1.agent_pb2_grpc import AgentServiceStub
from pwm.nodeagent.container import Container
from pwm.nodeagent.drivers.driver import ContainerNotRunning, Driver, DriverError, EngineUnreachable, ExecSession
from pwm.nodeagent.logs.store import UnknownLog
from pwm.nodeagent.shells import Attachment, ShellGone, Shells, Superseded, TooManyShells

log = structlog.get_logger(__name__)

# A question may overtake the assignment it is about; they come in the same batch.
UNKNOWN_PATIENCE_S = 2.0
UNKNOWN_POLL_S = 0.05
# An agent that has just started lists its containers first.
ENGINE_PATIENCE_S = 5.0


class Logs(Protocol):
    def read(self, request: ReadLogs) -> AsyncIterator[LogData]:
        """What is kept; with `follow` until the container has ended. Raises UnknownLog."""
        ...

    async def forget(self, uids: Collection[str]) -> None: ...


class _Refused(Exception):
    def __init__(self, code: RelayError.Code.ValueType, message: str) -> None:
        super().__init__(message)
        self.code = code


class Relays:
    def __init__(self, *, token: str, logs: Logs, shells: Shells, find: Callable[[str], Container | None]) -> None:
        """`find`: the container of a uid, if this node has it."""
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._logs = logs
        self._shells = shells
        self._find = find

    async def serve(self, channel: grpc.aio.Channel, request: OpenStream) -> None:
        """One stream from its opening to its end; raises nothing."""
        kind = request.WhichOneof("request")
        if kind == "forget":
            await self._forget(request.forget)
            return
        call: Any = AgentServiceStub(channel).Relay(metadata=self._metadata)
        try:
            await call.write(RelayRequest(stream_id=request.stream_id))
            if kind == "exec":
                await self._serve_exec(call, request.exec)
            else:
                await _conclude(call, self._answer(call, request))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError):
            # Whoever asked went away.
            log.debug("relay stream broke", kind=kind, stream=request.stream_id)
        except Exception:
            log.exception("relay stream failed", kind=kind, stream=request.stream_id)
        finally:
            call.cancel()

    async def _answer(self, call: Any, request: OpenStream) -> None:
        match request.WhichOneof("request"):
            case "logs":
                await _unless_gone(call, self._copy_logs(call, request.logs))
            case "inspect":
                driver = await self._driver(request.inspect.container_uid)
                document = await driver.inspect(request.inspect.container_uid)
                await call.write(RelayRequest(answer=json.dumps(document).encode()))
            case "processes":
                driver = await self._driver(request.processes.container_uid)
                table = await driver.processes(request.processes.container_uid)
                answer = json.dumps({"titles": table.titles, "rows": table.rows})
                await call.write(RelayRequest(answer=answer.encode()))
            case other:
                raise _Refused(RelayError.INTERNAL, f"this agent does not know the question {other!r}; update it")

    async def _forget(self, request: ForgetContainers) -> None:
        try:
            await self._logs.forget(request.container_uids)
        except OSError as error:
            log.warning("logs could not be deleted", error=str(error))

    async def _copy_logs(self, call: Any, request: ReadLogs) -> None:
        uid = request.container_uid
        while True:
            try:
                # An async generator, whatever it is called: what it holds open is closed with it.
                async with aclosing(cast(AsyncGenerator[LogData, None], self._logs.read(request))) as chunks:
                    async for chunk in chunks:
                        await call.write(RelayRequest(log=chunk))
                return
            except UnknownLog:
                container = await self._look_up(uid) if request.follow else self._find(uid)
                if container is None:
                    message = "it never printed anything on this node, or its output is no longer kept"
                    raise _Refused(RelayError.NOT_FOUND, message) from None
                if not request.follow or not await container.has_output():
                    return

    # -- shells

    async def _serve_exec(self, call: Any, request: StartExec) -> None:
        attached: asyncio.Future[Attachment] = asyncio.get_running_loop().create_future()
        pump = asyncio.ensure_future(_pump_input(call, attached))
        try:
            await _conclude(call, _unless_gone(call, self._copy_output(call, request, attached)))
        finally:
            # Not before the call has ended: cancelling its read cancels the call, and with it what has been written
            # and not yet been sent, such as the exit code.
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)

    async def _copy_output(self, call: Any, request: StartExec, attached: "asyncio.Future[Attachment]") -> None:
        async def begin() -> ExecSession:
            driver = await self._driver(request.container_uid)
            return await driver.exec(request.container_uid, request)

        shell = await self._shells.open(request, begin)
        with shell.attach(request) as attachment:
            attached.set_result(attachment)
            async for output in attachment.outputs():
                await call.write(RelayRequest(exec=output))

    # -- finding

    async def _driver(self, uid: str) -> Driver:
        container = await self._look_up(uid)
        if container is None or container.driver is None:
            raise _Refused(RelayError.NOT_FOUND, "the container is not on its node any more")
        try:
            async with asyncio.timeout(ENGINE_PATIENCE_S):
                await container.adopted()
        except TimeoutError:
            raise _Refused(RelayError.UNAVAILABLE, "the node's engine does not answer") from None
        return container.driver

    async def _look_up(self, uid: str) -> Container | None:
        for _ in range(int(UNKNOWN_PATIENCE_S / UNKNOWN_POLL_S)):
            if container := self._find(uid):
                return container
            await asyncio.sleep(UNKNOWN_POLL_S)
        return self._find(uid)


async def _conclude(call: Any, work: Coroutine[Any, Any, None]) -> None:
    """Do the work, say how it ended, and wait until whoever asked has heard it."""
    try:
        await work
        last = RelayRequest(complete=True)
    except (ShellGone, Superseded, TooManyShells) as error:
        last = RelayRequest(error=RelayError(code=_SHELL_CODES[type(error)], message=str(error)))
    except _Refused as error:
        last = RelayRequest(error=RelayError(code=error.code, message=str(error)))
    except DriverError as error:
        last = RelayRequest(error=RelayError(code=_code(error), message=str(error)))
    await call.write(last)
    await call.done_writing()
    await call.code()


async def _pump_input(call: Any, attached: "asyncio.Future[Attachment]") -> None:
    attachment = await attached
    while (frame := await call.read()) is not grpc.aio.EOF:
        await attachment.give(frame.exec)


async def _unless_gone(call: Any, work: Coroutine[Any, Any, None]) -> None:
    """Do the work, but drop it when whoever asked hangs up: a silent log or shell would not notice by writing."""
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(call.code())
    try:
        await asyncio.wait([working, gone], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.wait([working, gone])
    if not working.cancelled():
        working.result()


_SHELL_CODES = {
    ShellGone: RelayError.NOT_FOUND,
    Superseded: RelayError.SUPERSEDED,
    TooManyShells: RelayError.UNAVAILABLE,
}


def _code(error: DriverError) -> RelayError.Code.ValueType:
    if isinstance(error, ContainerNotRunning):
        return RelayError.NOT_RUNNING
    if isinstance(error, EngineUnreachable):
        return RelayError.UNAVAILABLE
    return RelayError.NOT_FOUND
