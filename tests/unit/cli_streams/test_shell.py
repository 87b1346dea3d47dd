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

from tests.patience import PATIENCE_S
from tests.unit.cli_streams.conftest import Pwm
from tests.unit.cli_streams.fake_server import FakeServer

STDIN, STDOUT, STDERR = b"\0", b"\1", b"\2"


class FakeExec:
    """Echoes input in upper case; `exit N` ends it, `cut` drops the connection, whose session is there or gone then.

    A session that is there goes on where it was: output and input are counted from its start.
    """

    def __init__(self, server: FakeServer, *, keeps_session: bool = True, cut_before_attached: int = 0) -> None:
        self.start: dict[str, Any] = {}
        self.starts: list[dict[str, Any]] = []
        self._keeps_session = keeps_session
        self._cut_before_attached = cut_before_attached
        self._printed = b""
        self.acknowledged = 0
        self.closed_with: int | None = None
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
        self.starts.append({name: self.start.pop(name) for name in ("session", "container") if name in self.start})
        if self.start["name"] == "absent":
            error = {"code": 9, "message": "workload absent is not running"}
            await socket.send_str(json.dumps({"error": error}))
            return socket
        if self._cut_before_attached:
            self._cut_before_attached -= 1
            assert request.transport is not None
            request.transport.abort()
            return socket
        session = self.starts[-1]["session"]
        if session.get("resume") and not self._keeps_session:
            await socket.send_str(json.dumps({"error": {"code": 5, "message": "the session is over"}}))
            return socket
        attached = {"container": "train.0.1", "inputTaken": str(self.received)}
        await socket.send_str(json.dumps({"output": {"attached": attached}}))
        if session.get("resume"):
            await socket.send_bytes(STDOUT + self._printed[int(session["received"]) :])
        else:
            await self._print(socket, b"ready\r\n")
            await self._print(socket, b"on stderr\n", channel=STDERR)
        async for message in socket:
            if message.type is WSMsgType.BINARY:
                if not await self._input(socket, request, message.data[1:]):
                    break
            elif message.type is WSMsgType.TEXT and not await self._control(socket, json.loads(message.data)):
                break
        self.closed_with = socket.close_code
        return socket

    async def _print(self, socket: web.WebSocketResponse, data: bytes, *, channel: bytes = STDOUT) -> None:
        self._printed += data
        await socket.send_bytes(channel + data)

    async def _input(self, socket: web.WebSocketResponse, request: web.Request, data: bytes) -> bool:
        self.received += len(data)
        await socket.send_str(json.dumps({"output": {"inputTaken": str(self.received)}}))
        if data.startswith(b"exit"):
            await socket.send_str(json.dumps({"output": {"exitCode": int(data[5:].strip())}}))
            return False
        if data.startswith(b"cut"):
            assert request.transport is not None
            self._printed += b"printed meanwhile\r\n"
            request.transport.abort()
            return False
        await self._print(socket, data.upper().replace(b"\3", b"^C"))
        return True

    async def _control(self, socket: web.WebSocketResponse, document: dict[str, Any]) -> bool:
        sent = document["input"]
        if "resize" in sent:
            self.sizes.append(sent["resize"])
            await self._print(socket, b"resized\r\n")
        self.acknowledged = int(sent.get("acknowledged", self.acknowledged))
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
        deadline = time.monotonic() + PATIENCE_S
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
            assert process.wait(PATIENCE_S) is not None
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
        assert person.process.wait(PATIENCE_S) == 5
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
        assert person.process.wait(PATIENCE_S) == 128 + number


def test_a_lost_connection_is_replaced_and_both_sides_go_on_where_they_were(server: FakeServer, terminal: Open) -> None:
    fake = FakeExec(server)
    with terminal("shell", "wk", "train") as person:
        person.wait_for(b"ready")
        person.type(b"cut")
        person.wait_for(b"printed meanwhile")
        person.type(b"more")
        person.wait_for(b"MORE")
        person.type(b"exit 3")
        assert person.process.wait(PATIENCE_S) == 3
    assert b"connection" not in person.screen
    first, second = (start["session"] for start in fake.starts)
    assert len(first["id"]) == 32
    assert first == {"id": second["id"], "connection": 1}
    printed = len(b"ready\r\non stderr\n")
    assert second == {"id": first["id"], "connection": 2, "resume": True, "received": str(printed)}
    assert fake.starts[1]["container"] == "train.0.1"


def test_a_connection_that_is_lost_before_the_command_began_asks_for_the_same_session(
    server: FakeServer, pwm: Pwm
) -> None:
    fake = FakeExec(server, cut_before_attached=2)
    assert pwm("shell", "wk", "train", stdin=b"exit 4").returncode == 4
    ids, connections, resumed = zip(
        *((s["session"]["id"], s["session"]["connection"], "resume" in s["session"]) for s in fake.starts), strict=True
    )
    assert len(set(ids)) == 1
    assert connections == (1, 2, 3)
    assert not any(resumed)


def test_a_session_that_is_gone_ends_with_255_and_restores_the_terminal(server: FakeServer, terminal: Open) -> None:
    FakeExec(server, keeps_session=False)
    with terminal("shell", "wk", "train") as person:
        person.wait_for(b"ready")
        person.type(b"cut")
        person.wait_for(b"error: the session is over")
        assert person.process.wait(PATIENCE_S) == 255


def test_the_server_is_told_that_a_client_is_done(server: FakeServer, terminal: Open) -> None:
    fake = FakeExec(server)
    with terminal("shell", "wk", "train") as person:
        person.wait_for(b"ready")
        person.process.send_signal(signal.SIGHUP)
        assert person.process.wait(PATIENCE_S) == 128 + signal.SIGHUP
    assert fake.closed_with == 1000


def test_pipes_pass_input_and_keep_output_and_error_apart(server: FakeServer, pwm: Pwm) -> None:
    fake = FakeExec(server)
    data = b"line of input\n" * 50_000
    result = pwm("shell", "wk", "train", "--", "cat", stdin=data)
    assert result.returncode == 0
    assert result.stdout == b"ready\r\n" + data.upper()
    assert result.stderr == b"on stderr\n"
    assert fake.stdin_closed
    assert fake.start["tty"] is False
    assert fake.acknowledged > len(data) // 4, "the agent need not keep what was printed"


def test_a_command_that_could_not_be_started_ends_with_125(server: FakeServer, pwm: Pwm) -> None:
    FakeExec(server)
    result = pwm("shell", "wk", "absent")
    assert (result.returncode, result.stderr) == (125, b"error: workload absent is not running\n")


def test_a_refused_connection_ends_with_125_and_the_servers_words(server: FakeServer, pwm: Pwm) -> None:
    server.answer("GET", "/v1/exec", {"code": 16, "message": "this token is not valid"}, status=401)
    result = pwm("shell", "wk", "train")
    assert result.returncode == 125
    assert b"error: this token is not valid" in result.stderr
