"""A command beside a real process: same user, limits, variables and working directory, its own pipes or terminal."""

import asyncio
import contextlib
import fcntl
import os
import signal
import struct
import subprocess
import termios
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from pwm.api.v1.agent_pb2 import ExecOutput, StartExec, TerminalSize

_CHUNK_BYTES = 64 << 10
# Output chunks that wait for a slow reader; then the command waits on its full pipe.
_QUEUED_CHUNKS = 16
# What a background child of the command still prints after the command has ended is not waited for longer.
_LAST_OUTPUT_S = 0.5


class ProcessExec:
    """Made by `ProcessDriver.exec`. `command` is the shim's, which becomes the user's command."""

    def __init__(self, command: list[str], request: StartExec, *, env: dict[str, str]) -> None:
        # Called once when it is over, for whoever keeps account of sessions.
        self.on_close: Callable[[], None] = lambda: None
        self._tty = request.tty
        self._env = env
        self._terminal = -1
        self._input = -1
        self._chunks: asyncio.Queue[ExecOutput | None] = asyncio.Queue(_QUEUED_CHUNKS)
        self._outputs: dict[int, bool] = {}
        if request.tty:
            self._process = self._start_with_terminal(command, request.size)
        else:
            self._process = self._start_with_pipes(command, stdin=request.stdin)

    async def output(self) -> AsyncIterator[ExecOutput]:
        """Chunks as they come, and last of all the exit code."""
        # No TaskGroup: its scope must not be left by way of a yield. This generator owns the tasks.
        pumps = [asyncio.ensure_future(self._pump(fd, stderr)) for fd, stderr in self._outputs.items()]
        end = asyncio.ensure_future(self._end(pumps))
        try:
            while (chunk := await self._chunks.get()) is not None:
                yield chunk
            await end
            code = self._process.returncode
            yield ExecOutput(exit_code=code if code >= 0 else 128 - code)
        finally:
            for task in (*pumps, end):
                task.cancel()
            await asyncio.wait([*pumps, end])

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view and self._input >= 0:
            try:
                view = view[os.write(self._input, view) :]
            except BlockingIOError:
                await _ready(self._input, write=True)
            except OSError:
                # The command has closed its input or ended.
                return

    async def close_stdin(self) -> None:
        if self._tty:
            # What a person would press.
            await self.write(b"\x04")
        elif self._input >= 0:
            os.close(self._input)
            self._input = -1

    async def resize(self, size: TerminalSize) -> None:
        if self._terminal >= 0:
            fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", size.rows, size.columns, 0, 0))

    async def close(self) -> None:
        """Ends the command and what it started."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGHUP)
                os.killpg(self._process.pid, signal.SIGKILL)
            await asyncio.to_thread(self._process.wait)
        for fd in {self._input, self._terminal, *self._outputs} - {-1}:
            os.close(fd)
        self._input = self._terminal = -1
        self._outputs.clear()
        self.on_close()

    def _start_with_terminal(self, command: list[str], size: TerminalSize) -> "subprocess.Popen[bytes]":
        self._terminal, slave = os.openpty()
        os.set_blocking(self._terminal, False)
        try:
            if size.rows and size.columns:
                fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", size.rows, size.columns, 0, 0))
            process = subprocess.Popen(
                command, stdin=slave, stdout=slave, stderr=slave, env=self._env, start_new_session=True
            )
        finally:
            os.close(slave)
        self._input = self._terminal
        self._outputs = {self._terminal: False}
        return process

    def _start_with_pipes(self, command: list[str], *, stdin: bool) -> "subprocess.Popen[bytes]":
        out, out_end = os.pipe2(os.O_CLOEXEC)
        err, err_end = os.pipe2(os.O_CLOEXEC)
        in_end, self._input = os.pipe2(os.O_CLOEXEC) if stdin else (subprocess.DEVNULL, -1)
        try:
            process = subprocess.Popen(
                command, stdin=in_end, stdout=out_end, stderr=err_end, env=self._env, start_new_session=True
            )
        finally:
            for fd in (out_end, err_end, *([in_end] if stdin else [])):
                os.close(fd)
        for fd in {out, err, self._input} - {-1}:
            os.set_blocking(fd, False)
        self._outputs = {out: False, err: True}
        return process

    async def _pump(self, fd: int, stderr: bool) -> None:
        while True:
            try:
                data = os.read(fd, _CHUNK_BYTES)
            except BlockingIOError:
                await _ready(fd, write=False)
                continue
            except OSError:
                # A terminal whose other side is closed.
                return
            if not data:
                return
            await self._chunks.put(ExecOutput(stderr=data) if stderr else ExecOutput(stdout=data))

    async def _end(self, pumps: "Sequence[asyncio.Future[None]]") -> None:
        await asyncio.to_thread(self._process.wait)
        _, unfinished = await asyncio.wait(pumps, timeout=_LAST_OUTPUT_S)
        for pump in unfinished:
            pump.cancel()
        await self._chunks.put(None)


def _ready_set(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


async def _ready(fd: int, *, write: bool) -> None:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    (loop.add_writer if write else loop.add_reader)(fd, _ready_set, future)
    try:
        await future
    finally:
        (loop.remove_writer if write else loop.remove_reader)(fd)


def shim_command(python: str, shim: Path, *arguments: str) -> list[str]:
    return [python, "-I", "-S", str(shim), *arguments]
