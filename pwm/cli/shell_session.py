"""A command in a container over several connections: what a person types arrives once, what it prints is shown once.

The agent keeps the command while we are away, and its output until we have it (proto: ExecSession); here are
kept the keys until the agent has them. A connection that breaks, or falls silent, is replaced by another, to whichever
server answers, and both sides go on at the byte where they were. The screen is left alone meanwhile; only
when it takes longer than `NOTICE_AFTER_S` a line says so, and then Ctrl-C gives up.

One thread and one `select` for everything: the socket, the keyboard, the screen, the window's size and the clock.

    keyboard ─▶ Typed ─▶ socket            socket ─▶ Screen ─▶ standard output and error
"""

from __future__ import annotations

import json
import os
import random
import select
import stat
import time

from pwm.cli import exit_codes
from pwm.cli.errors import RESOURCE_EXHAUSTED, UNAVAILABLE, CliError, NoServerError, ServerError, server_error
from pwm.cli.websocket import Lost, WebSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pwm.cli.client import Client

EXEC_PATH = "/v1/exec"
STDIN, STDOUT, STDERR = 0, 1, 2
# Input on its way that the agent has not confirmed; the protocol allows no more (agent.proto).
TYPED_LIMIT_BYTES = 256 * 1024
# One message of it.
PIECE_BYTES = 32 * 1024
# Output is acknowledged in steps, far below the 1 MiB at which the command would have to wait.
ACKNOWLEDGE_EVERY_BYTES = 128 * 1024
# A server that has said nothing for so long is asked for a sign of life, and left when none comes.
PING_AFTER_S, LOST_AFTER_S = 2.0, 5.0
# A server that is there has the agent's answer by then, or says that it cannot be reached.
ATTACH_LIMIT_S = 10.0
# Commands wait for their clients for a minute. One that has not begun is not worth as much patience.
RECONNECT_LIMIT_S, START_LIMIT_S = 60.0, 20.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0
NOTICE_AFTER_S = 2.0
CTRL_C = b"\x03"
# A pipe that is said to be writable takes so much without blocking.
PIPE_BYTES = 4096


class Typed:
    """Input from the first byte on, as far as the agent has not confirmed it."""

    def __init__(self, limit_bytes: int = TYPED_LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._kept = bytearray()
        # Offsets of the first byte that is kept, and of the first one that this connection has not sent.
        self._start = 0
        self._next = 0
        self.ended = False

    @property
    def room(self) -> int:
        return 0 if self.ended else self._limit_bytes - len(self._kept)

    def add(self, data: bytes) -> None:
        self._kept += data

    def confirmed(self, offset: int) -> None:
        """The agent has the bytes before `offset`."""
        if not self._start <= offset <= self._start + len(self._kept):
            raise CliError("the server confirms input that was not sent", next_step="See `pwm version`.")
        del self._kept[: offset - self._start]
        self._start = offset
        self._next = max(self._next, offset)

    def go_on_at(self, offset: int) -> None:
        """A new connection: the agent has the bytes before `offset`, and what comes after is sent again."""
        self.confirmed(offset)
        self._next = offset

    @property
    def all_sent(self) -> bool:
        return self._next == self._start + len(self._kept)

    def unsent(self) -> bytes:
        """A piece to send now; b"" when there is none."""
        at = self._next - self._start
        piece = bytes(self._kept[at : at + PIECE_BYTES])
        self._next += len(piece)
        return piece


class Screen:
    """Output on its way to our standard output and error, in its order, written as they take it."""

    def __init__(self, stdout: int = 1, stderr: int = 2) -> None:
        self._descriptors = {STDOUT: stdout, STDERR: stderr}
        self._waiting: list[tuple[int, memoryview]] = []
        self._whole = {fd for fd in (stdout, stderr) if stat.S_ISREG(os.fstat(fd).st_mode)}
        # Bytes that came, and of those how many have been written.
        self.received = 0
        self.written = 0

    def add(self, channel: int, data: bytes) -> None:
        self._waiting.append((self._descriptors.get(channel, self._descriptors[STDOUT]), memoryview(data)))
        self.received += len(data)

    @property
    def descriptor(self) -> int:
        """What the next bytes are for; -1: there are none."""
        return self._waiting[0][0] if self._waiting else -1

    def write(self) -> None:
        """Writes without blocking for long: as much as is taken at once."""
        while self._waiting:
            descriptor, data = self._waiting[0]
            if not select.select([], [descriptor], [], 0)[1]:
                return
            try:
                count = os.write(descriptor, data if descriptor in self._whole else data[:PIPE_BYTES])
            except BlockingIOError:
                return
            self.written += count
            if count < len(data):
                self._waiting[0] = descriptor, data[count:]
            else:
                del self._waiting[0]


class ShellSession:
    """One command. `start` is ExecStart as JSON; `note` shows a line beside the output."""

    def __init__(
        self,
        client: Client,
        start: dict[str, Any],
        *,
        screen: Screen,
        keyboard: int,
        note: Callable[[str], None],
        window: Callable[[], dict[str, int]] | None = None,
        wake: int = -1,
    ) -> None:
        """`window` gives the size of the terminal, if there is one; `wake` is readable when it has changed."""
        self._client = client
        self._start = {**start, "stdin": True, "tty": window is not None}
        self._screen = screen
        self._keyboard = keyboard
        self._note = note
        self._window = window
        self._wake = wake
        self._typed = Typed()
        self._id = os.urandom(16).hex()
        self._connections = 0
        self._container = ""
        self._socket: WebSocket | None = None
        # The agent has answered: on this connection, and ever.
        self._attached = False
        self.begun = False
        self._input_end_sent = False
        self._acknowledged = 0
        self._pinged_at = 0.0
        self._connected_at = 0.0
        self._exit_code: int | None = None
        # While there is no connection: since when, when to try again, what went wrong last, whether it was said.
        self._away_since = time.monotonic()
        self._try_at = self._away_since
        self._pause_s = FIRST_PAUSE_S
        self._trouble: CliError = NoServerError("the connection was lost")
        self._noticed = False

    def run(self) -> int:
        """Until the command has ended; its exit code. Raises CliError."""
        try:
            while self._exit_code is None or self._screen.descriptor >= 0:
                self._keep_connected()
                self._wait()
        except BaseException:
            if self._socket is not None:
                self._socket.close()
            raise
        if self._socket is not None:
            self._socket.close()
        return self._exit_code

    # -- one turn

    def _wait(self) -> None:
        """Until something happens, and deals with it."""
        connected = self._socket
        sources: list[Any] = [connected] if connected is not None else []
        if self._typed.room and self._exit_code is None:
            sources.append(self._keyboard)
        if self._wake >= 0:
            sources.append(self._wake)
        sinks: list[Any] = [connected] if connected is not None and connected.wants_to_write else []
        if self._screen.descriptor >= 0:
            sinks.append(self._screen.descriptor)
        more = connected is not None and connected.has_more
        readable, writable, _ = select.select(sources, sinks, [], 0.0 if more else self._patience_s())
        if self._wake in readable:
            os.read(self._wake, 64)
            self._say_size()
        if self._keyboard in readable:
            self._read_keys()
        if self._screen.descriptor in writable:
            self._screen.write()
        if connected is not None:
            if connected in writable:
                connected.flush()
            self._listen(connected, heard=connected in readable or more)
        self._send()

    def _patience_s(self) -> float:
        """Time until the clock matters."""
        now = time.monotonic()
        if self._exit_code is not None:
            return 1.0
        if self._socket is None:
            return max(0.0, self._try_at - now)
        heard_at = self._socket.heard_at
        return max(0.05, min(max(heard_at, self._pinged_at) + PING_AFTER_S, heard_at + LOST_AFTER_S) - now)

    def _read_keys(self) -> None:
        try:
            data = os.read(self._keyboard, min(PIECE_BYTES, self._typed.room))
        except OSError:  # the terminal has gone
            data = b""
        if self._noticed and self._window is not None and CTRL_C in data:
            raise CliError("given up; the connection was lost", exit_code=exit_codes.INTERRUPTED)
        if data:
            self._typed.add(data)
        else:
            self._typed.ended = True

    def _listen(self, connected: WebSocket, *, heard: bool) -> None:
        try:
            if heard:
                for message in connected.receive():
                    self._handle(message)
                return
            now = time.monotonic()
            if self._exit_code is not None:
                return
            if now - connected.heard_at > LOST_AFTER_S:
                self._client.avoid(connected.server)
                raise Lost("the server is silent")
            if not self._attached and now - self._connected_at > ATTACH_LIMIT_S:
                raise Lost("the node does not answer")
            if now - max(connected.heard_at, self._pinged_at) >= PING_AFTER_S:
                connected.ping()
                self._pinged_at = now
        except Lost as error:
            self._lose(NoServerError(f"the connection to the container was lost: {error}"))
        except ServerError as error:
            if not self._passing(error):
                raise
            self._client.avoid(connected.server, for_s=LONGEST_PAUSE_S)
            self._lose(error)

    def _handle(self, message: bytes | str) -> None:
        if isinstance(message, bytes):
            if message:
                self._screen.add(message[0], message[1:])
                self._screen.write()
            return
        document = json.loads(message)
        if "error" in document:
            raise server_error(document["error"])
        output = document.get("output", {})
        if "attached" in output:
            self._attach(output["attached"])
        elif "inputTaken" in output:
            self._typed.confirmed(int(output["inputTaken"]))
        elif "exitCode" in output:
            self._exit_code = int(output["exitCode"])

    def _send(self) -> None:
        """What the agent should have: keys, the end of them, and how far its output is on our side."""
        connected = self._socket
        if connected is None or not self._attached or self._exit_code is not None:
            return
        while connected.waiting_to_send < PIECE_BYTES and (piece := self._typed.unsent()):
            connected.send(bytes([STDIN]) + piece)
        if self._typed.ended and self._typed.all_sent and not self._input_end_sent:
            self._say({"closeStdin": True})
            self._input_end_sent = True
        if self._screen.written - self._acknowledged >= ACKNOWLEDGE_EVERY_BYTES:
            self._acknowledged = self._screen.written
            self._say({"acknowledged": str(self._acknowledged)})

    def _say_size(self) -> None:
        if self._window is not None and self._attached:
            self._say({"resize": self._window()})

    def _say(self, given: dict[str, Any]) -> None:
        if self._socket is not None:
            self._socket.send(json.dumps({"input": given}))

    # -- connections

    def _attach(self, attached: dict[str, Any]) -> None:
        self._typed.go_on_at(int(attached.get("inputTaken") or 0))
        self._container = str(attached.get("container") or "")
        returned, self._attached, self.begun = self.begun, True, True
        self._input_end_sent = False
        self._pause_s = FIRST_PAUSE_S
        if returned:
            # It may have changed meanwhile.
            self._say_size()
        if self._noticed:
            self._note("connected again" if returned else "connected")
            self._noticed = False

    def _keep_connected(self) -> None:
        """Dials when it is time to. Raises what cannot be mended by trying again."""
        now = time.monotonic()
        if self._attached or self._exit_code is not None:
            return
        if now - self._away_since > (RECONNECT_LIMIT_S if self.begun else START_LIMIT_S):
            raise self._trouble
        if now - self._away_since > NOTICE_AFTER_S and not self._noticed:
            what = "connection lost, reconnecting" if self.begun else f"{self._trouble.message}; trying again"
            self._note(what + ("; Ctrl-C gives up" if self._window is not None else ""))
            self._noticed = True
        if self._socket is None and now >= self._try_at:
            self._dial()

    def _dial(self) -> None:
        try:
            connection, headers = self._client.connect()
        except NoServerError as error:
            if not self.begun:
                raise
            self._lose(error)
            return
        try:
            self._socket = WebSocket(connection, headers, EXEC_PATH)
        except Lost as error:
            self._client.avoid(connection.server)
            self._lose(NoServerError(f"the connection was lost: {error}"))
            return
        except ServerError as error:
            if not self._passing(error):
                raise
            self._client.avoid(connection.server, for_s=LONGEST_PAUSE_S)
            self._lose(error)
            return
        self._connected_at = self._pinged_at = time.monotonic()
        self._connections += 1
        session: dict[str, Any] = {"id": self._id, "connection": self._connections}
        if self.begun:
            session |= {"resume": True, "received": str(self._screen.received)}
        start = {**self._start, "session": session}
        if self._container:
            start["container"] = self._container
        if self._window is not None:
            start["size"] = self._window()
        self._socket.send(json.dumps({"start": start}))

    def _passing(self, error: ServerError) -> bool:
        return error.status == UNAVAILABLE or (self.begun and error.status == RESOURCE_EXHAUSTED)

    def _lose(self, trouble: CliError) -> None:
        now = time.monotonic()
        if self._attached:
            self._away_since = now
        if self._socket is not None:
            self._socket.abort()
        self._socket, self._attached, self._trouble = None, False, trouble
        # At different moments, so that a thousand clients of a dead server do not come to the next one at once.
        self._try_at = now + self._pause_s * random.uniform(0.2, 1.0)
        self._pause_s = min(LONGEST_PAUSE_S, self._pause_s * 2)
