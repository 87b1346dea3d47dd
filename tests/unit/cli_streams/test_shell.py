"""`pwm shell` on a pseudo-terminal and without one, against a fake command in a fake container."""

import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fcntl import ioctl
from typing import Any

import pytest
from aiohttp import WSMsgType, web

from tests.unit.cli_streams.conftest import Pwm
from tests.unit.cli_streams.fake_server import FakeServer

STDIN, STDOUT, STDERR = b"\0", b"\1", b"\2"
WAIT_S = 20.0


class FakeExec:
    """Echoes input in upper case; `exit N` ends it, `fail` is an error of the server, `cut` drops the connection."""

    def __init__(self, server: FakeServer) -> None:
        self.start: dict[str, Any] = {}
        self.sizes: list[dict[str, int]] = []
        self.authorization = ""
        self.stdin_closed = False
        self.received = 0
        server.on("GET", "/v1/exec", self.handle)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.authorization = request.headers.get("Authorization", "")
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.start = json.loads(await socket.receive_str())["start"]
        if self.start["name"] == "absent":
            error = {"code": 9, "message": "workload absent is not running"}
            await socket.send_str(json.dumps({"error": error}))
            return socket
        await socket.send_bytes(STDOUT + b"ready\r\n")
        await socket.send_bytes(STDERR + b"on stderr\n")
        async for message in socket:
            if message.type is WSMsgType.BINARY:
                if not await self._input(socket, request, message.data[1:]):
                    break
            elif message.type is WSMsgType.TEXT and not await self._control(socket, json.loads(message.data)):
                break
        return socket

    async def _input(self, socket: web.WebSocketResponse, request: web.Request, data: bytes) -> bool:
        self.received += len(data)
        if data.startswith(b"exit"):
            await socket.send_str(json.dumps({"output": {"exitCode": int(data[5:].strip())}}))
            return False
        if data.startswith(b"cut"):
            assert request.transport is not None
            request.transport.abort()
            return False
        await socket.send_bytes(STDOUT + data.upper().replace(b"\3", b"^C"))
        return True

    async def _control(self, socket: web.WebSocketResponse, document: dict[str, Any]) -> bool:
        sent = document["input"]
        if "resize" in sent:
            self.sizes.append(sent["resize"])
            await socket.send_bytes(STDOUT + b"resized\r\n")
        if sent.get("closeStdin"):
            self.stdin_closed = True
            await socket.send_str(json.dumps({"output": {"exitCode": 0}}))
            return False
        return True


class Terminal:
    """A person at a pseudo-terminal."""

    def __init__(self, process: "subprocess.Popen[bytes]", master: int) -> None:
        self.process = process
        self.master = master
        self.screen = b""

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def resize(self, *, rows: int, columns: int) -> None:
        set_size(self.master, rows=rows, columns=columns)
        self.process.send_signal(signal.SIGWINCH)

    def wait_for(self, text: bytes) -> None:
        deadline = time.monotonic() + WAIT_S
        while text not in self.screen:
            assert time.monotonic() < deadline, f"{text!r} did not come; the screen has {self.screen!r}"
            try:
                self.screen += os.read(self.master, 4096)
            except OSError:
                pytest.fail(f"the program ended without {text!r}; the screen has {self.screen!r}")


def set_size(terminal: int, *, rows: int, columns: int) -> None:
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


Open = Callable[..., Any]


@pytest.fixture
def terminal(environment: dict[str, str]) -> Open:
    @contextmanager
    def open_terminal(*words: str) -> Iterator[Terminal]:
        master, slave = pty.openpty()
        set_size(slave, rows=30, columns=100)
        before = termios.tcgetattr(slave)
        process = subprocess.Popen(
            [sys.executable, "-m", "pwm", *words],
            stdin=slave, stdout=slave, stderr=slave, env={**environment, "TERM": "xterm"}, start_new_session=True,
        )  # fmt: skip
        try:
            yield Terminal(process, master)
            assert process.wait(WAIT_S) is not None
            assert termios.tcgetattr(slave) == before, "the terminal did not get its settings back"
        finally:
            process.kill()
            process.wait()
            os.close(slave)
            os.close(master)

    return open_terminal


def test_a_terminal_on_both_sides_passes_keys_raw_and_ends_with_the_exit_code(
    server: FakeServer, terminal: Open
) -> None:
    fake = FakeExec(server)
    with terminal("shell", "wk", "train", "--replica", "1", "--", "bash", "-l") as person:
        person.wait_for(b"ready")
        # Ctrl-C reaches the command; here it would have ended us.
        person.type(b"hello\3")
        person.wait_for(b"HELLO^C")
        person.type(b"exit 5")
        assert person.process.wait(WAIT_S) == 5
    assert fake.start == {
        "name": "train", "group": "", "cmd": ["bash", "-l"], "replica": 1, "tty": True, "stdin": True,
        "size": {"rows": 30, "columns": 100},
    }  # fmt: skip
    assert fake.authorization == "Bearer pwm_secret"


def test_the_containers_window_follows_ours(server: FakeServer, terminal: Open) -> None:
    fake = FakeExec(server)
    with terminal("shell", "train") as person:
        person.wait_for(b"ready")
        person.resize(rows=50, columns=132)
        person.wait_for(b"resized")
        person.type(b"exit 0")
    assert fake.sizes == [{"rows": 50, "columns": 132}]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_restored_when_the_program_is_told_to_stop(
    server: FakeServer, terminal: Open, number: signal.Signals
) -> None:
    FakeExec(server)
    with terminal("shell", "wk", "train") as person:
        person.wait_for(b"ready")
        person.process.send_signal(number)
        assert person.process.wait(WAIT_S) == 128 + number


def test_the_terminal_is_restored_when_the_connection_is_lost(server: FakeServer, terminal: Open) -> None:
    FakeExec(server)
    with terminal("shell", "wk", "train") as person:
        person.wait_for(b"ready")
        person.type(b"cut")
        person.wait_for(b"the connection to the container was lost")
        assert person.process.wait(WAIT_S) == 6


def test_pipes_pass_input_and_keep_output_and_error_apart(server: FakeServer, pwm: Pwm) -> None:
    fake = FakeExec(server)
    data = b"line of input\n" * 50_000
    result = pwm("shell", "wk", "train", "--", "cat", stdin=data)
    assert result.returncode == 0
    assert result.stdout == b"ready\r\n" + data.upper()
    assert result.stderr == b"on stderr\n"
    assert fake.stdin_closed
    assert fake.start["tty"] is False


def test_a_command_that_could_not_be_started_ends_with_125(server: FakeServer, pwm: Pwm) -> None:
    FakeExec(server)
    result = pwm("shell", "wk", "absent")
    assert (result.returncode, result.stderr) == (125, b"error: workload absent is not running\n")


def test_a_refused_connection_ends_with_125_and_the_servers_words(server: FakeServer, pwm: Pwm) -> None:
    server.answer("GET", "/v1/exec", {"code": 16, "message": "this token is not valid"}, status=401)
    result = pwm("shell", "wk", "train")
    assert result.returncode == 125
    assert b"error: this token is not valid" in result.stderr
