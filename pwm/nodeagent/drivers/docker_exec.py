"""A command inside a container: Docker's exec, with both directions of its connection in our hands.

Without a terminal the engine frames stdout and stderr (8 bytes: which, and how long); with one there is a
single raw stream. Docker leaves a command running when whoever started it goes away, and would collect
forgotten shells for ever: `close` hangs it up, as a terminal does.
"""

import asyncio
import contextlib
import os
import signal
import struct
from collections.abc import AsyncIterator
from pathlib import Path

from pwm.api.v1.agent_pb2 import ExecOutput, StartExec, TerminalSize
from pwm.nodeagent.drivers.docker_api import ApiError, DockerApi
from pwm.nodeagent.drivers.driver import ContainerMissing, ContainerNotRunning, DriverError

CHUNK_BYTES = 64 * 1024
_FRAME = struct.Struct(">BxxxL")
_STDERR = 2
# The stream may end a moment before the engine has noted the exit code.
EXIT_CODE_POLLS = 100
EXIT_CODE_POLL_S = 0.02
# A command that is not there, as the shell has it.
EXIT_UNKNOWN = 126


async def start(api: DockerApi, runtime_id: str, request: StartExec) -> "DockerExec":
    """Run the command; raises `ContainerNotRunning` or `ContainerMissing`."""
    body = {
        "AttachStdin": request.stdin,
        "AttachStdout": True,
        "AttachStderr": True,
        "Tty": request.tty,
        "Cmd": list(request.cmd),
    }
    try:
        exec_id = (await api.post(f"/containers/{runtime_id}/exec", body=body))["Id"]
        reader, writer = await api.hijack(f"/exec/{exec_id}/start", {"Detach": False, "Tty": request.tty})
    except ApiError as error:
        raise exec_error(error) from error
    session = DockerExec(api, runtime_id, exec_id, reader, writer, tty=request.tty)
    if request.tty and request.HasField("size"):
        await session.resize(request.size)
    return session


def exec_error(error: ApiError) -> DriverError:
    if error.status == 409:
        return ContainerNotRunning()
    if error.status == 404:
        return ContainerMissing("The container is no longer on its node")
    return ContainerNotRunning(f"Docker could not run the command: {error.message}")


class DockerExec:
    def __init__(
        self,
        api: DockerApi,
        runtime_id: str,
        exec_id: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        tty: bool,
    ) -> None:
        self._api = api
        self._runtime_id = runtime_id
        self._exec_id = exec_id
        self._reader = reader
        self._writer = writer
        self._tty = tty
        self._ended = False

    async def output(self) -> AsyncIterator[ExecOutput]:
        try:
            async for chunk in self._raw() if self._tty else self._framed():
                yield chunk
        except (asyncio.IncompleteReadError, OSError):
            # The engine cut the connection; its own record tells how the command stands.
            pass
        yield ExecOutput(exit_code=await self._exit_code())

    async def _raw(self) -> AsyncIterator[ExecOutput]:
        while data := await self._reader.read(CHUNK_BYTES):
            yield ExecOutput(stdout=data)

    async def _framed(self) -> AsyncIterator[ExecOutput]:
        while head := await self._reader.read(1):
            head += await self._reader.readexactly(_FRAME.size - 1)
            stream, left = _FRAME.unpack(head)
            while left:
                data = await self._reader.readexactly(min(left, CHUNK_BYTES))
                left -= len(data)
                yield ExecOutput(stderr=data) if stream == _STDERR else ExecOutput(stdout=data)

    async def _exit_code(self) -> int:
        for _ in range(EXIT_CODE_POLLS):
            state = await self._state()
            if state is None:
                break
            if not state["Running"] and state["ExitCode"] is not None:
                self._ended = True
                return int(state["ExitCode"])
            await asyncio.sleep(EXIT_CODE_POLL_S)
        self._ended = True
        return EXIT_UNKNOWN

    async def _state(self) -> dict[str, int] | None:
        try:
            found: dict[str, int] = await self._api.get(f"/exec/{self._exec_id}/json")
        except (ApiError, DriverError):
            # The container was removed, and its execs with it.
            return None
        return found

    async def write(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            self._writer.write(data)
            await self._writer.drain()

    async def close_stdin(self) -> None:
        with contextlib.suppress(OSError):
            self._writer.write_eof()

    async def resize(self, size: TerminalSize) -> None:
        # A command that ended in between has no size.
        with contextlib.suppress(ApiError, DriverError):
            await self._api.post(f"/exec/{self._exec_id}/resize", {"h": str(size.rows), "w": str(size.columns)})

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        if self._ended:
            return
        state = await self._state()
        if state and state["Running"] and belongs_to(state["Pid"], self._runtime_id):
            with contextlib.suppress(OSError):
                os.kill(state["Pid"], signal.SIGHUP)


def belongs_to(pid: int, runtime_id: str) -> bool:
    """Whether a process id means the same to us as to the engine: the process is in the container's cgroup."""
    if pid <= 0:
        return False
    try:
        return runtime_id in Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return False
