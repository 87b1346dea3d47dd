"""A WebSocket for a thread that has other things to wait for as well.

The connection is made by the client, which knows servers, TLS and token. The `websockets` library turns messages into
bytes and back and does no I/O; reading and writing are here and never block after the handshake, so that one
`select` can wait for the socket, the keyboard and the screen together.

`Lost` says that the connection is of no use any more. `close` tells the server that we are done, `abort` tells it
nothing: from the server's side that is an accident.
"""

from __future__ import annotations

import json
import select
import socket
import time

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from pwm.cli.errors import CliError, server_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pwm.cli.http1 import Connection

# A server that takes the connection and does not answer is frozen, or its machine is.
HANDSHAKE_TIMEOUT_S = 2.0
# For the last bytes, among them the good-bye; nobody wants to wait for politeness.
CLOSE_TIMEOUT_S = 1.0
READ_BYTES = 256 * 1024
# A shell's output comes in pieces far below this.
MESSAGE_LIMIT_BYTES = 4 * 1024 * 1024


class Lost(Exception):
    """The connection broke, or the server ended it without a reason of its own."""


class WebSocket:
    """`path` of the server that `connection` leads to. Raises Lost, or what the server answered instead."""

    def __init__(self, connection: Connection, headers: dict[str, str], path: str) -> None:
        self.server = connection.server
        self._socket = connection.socket
        self._out = bytearray()
        self._parts: list[Frame] = []
        # When something came last (monotonic).
        self.heard_at = time.monotonic()
        uri = parse_uri(f"ws://{self.server.authority}{self.server.prefix}{path}")
        self._protocol = ClientProtocol(uri, max_size=MESSAGE_LIMIT_BYTES)
        try:
            self._shake_hands({name: headers[name] for name in ("Authorization", "User-Agent") if name in headers})
        except BaseException:
            self.abort()
            raise
        self._socket.setblocking(False)

    def _shake_hands(self, headers: dict[str, str]) -> None:
        protocol = self._protocol
        request = protocol.connect()
        for name, value in headers.items():
            request.headers[name] = value
        protocol.send_request(request)
        deadline = time.monotonic() + HANDSHAKE_TIMEOUT_S
        try:
            self._socket.settimeout(HANDSHAKE_TIMEOUT_S)
            self._socket.sendall(b"".join(protocol.data_to_send()))
            while protocol.state is State.CONNECTING and protocol.handshake_exc is None:
                self._socket.settimeout(max(0.001, deadline - time.monotonic()))
                self._take(self._socket.recv(READ_BYTES))
        except OSError as error:
            raise Lost("it does not answer" if isinstance(error, TimeoutError) else "the connection broke") from error
        refused = protocol.handshake_exc
        if isinstance(refused, InvalidStatus):
            response = refused.response
            raise server_error(_document(response.body), http_status=response.status_code) from refused
        if refused is not None and (isinstance(refused, EOFError) or isinstance(refused.__cause__, EOFError)):
            raise Lost("the connection broke") from refused
        if refused is not None:
            raise CliError(f"{self.server} does not let us open a shell: {refused}") from refused
        protocol.events_received()  # the answer itself

    # -- waiting

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def wants_to_write(self) -> bool:
        return bool(self._out)

    @property
    def waiting_to_send(self) -> int:
        """Bytes that the server has not taken yet."""
        return len(self._out)

    @property
    def has_more(self) -> bool:
        """There are bytes that `select` does not see, because TLS has them already."""
        pending = getattr(self._socket, "pending", None)
        return bool(pending is not None and pending())

    # -- out

    def send(self, message: bytes | str) -> None:
        if isinstance(message, str):
            self._protocol.send_text(message.encode())
        else:
            self._protocol.send_binary(message)
        self.flush()

    def ping(self) -> None:
        self._protocol.send_ping(b"")
        self.flush()

    def flush(self) -> None:
        """Writes as much as the connection takes. One that broke is found out by reading."""
        self._out += b"".join(self._protocol.data_to_send())
        try:
            while self._out:
                del self._out[: self._socket.send(self._out)]
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            if not _would_block(error):
                self._out.clear()

    # -- in

    def receive(self) -> list[bytes | str]:
        """Messages that have come. Raises Lost at the end of the connection, after the messages before it."""
        try:
            data = self._socket.recv(READ_BYTES)
        except OSError as error:
            if isinstance(error, (BlockingIOError, InterruptedError)) or _would_block(error):
                return []
            raise Lost("the connection broke") from error
        self._take(data)
        messages = [message for event in self._protocol.events_received() for message in self._message(event)]
        self.flush()  # answers to pings
        if not messages and self._protocol.state is not State.OPEN:
            raise Lost("the server closed the connection")
        return messages

    def _take(self, data: bytes) -> None:
        self.heard_at = time.monotonic()
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()

    def _message(self, frame: object) -> list[bytes | str]:
        """The message that a frame completes, if it does."""
        if not isinstance(frame, Frame) or frame.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            return []
        self._parts.append(frame)
        if not frame.fin:
            return []
        whole, kind = b"".join(bytes(part.data) for part in self._parts), self._parts[0].opcode
        self._parts.clear()
        return [whole.decode(errors="replace") if kind is Opcode.TEXT else whole]

    # -- the end

    def close(self) -> None:
        """We are done: the server may forget us."""
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        try:
            if self._protocol.state is State.OPEN:
                self._protocol.send_close(1000)
            self.flush()
            while self._out and time.monotonic() < deadline:
                select.select([], [self], [], max(0.0, deadline - time.monotonic()))
                self.flush()
            # Unread bytes would make our end a reset, which may overtake the good-bye on its way.
            self._socket.shutdown(socket.SHUT_WR)
            while time.monotonic() < deadline and select.select([self], [], [], deadline - time.monotonic())[0]:
                if not self._socket.recv(READ_BYTES):
                    break
        except (OSError, WebSocketException):
            pass
        finally:
            self.abort()

    def abort(self) -> None:
        self._socket.close()


def _would_block(error: OSError) -> bool:
    """TLS has its own names for it."""
    return type(error).__name__ in ("SSLWantReadError", "SSLWantWriteError")


def _document(body: bytes | bytearray | None) -> object:
    try:
        return json.loads(body or b"{}")
    except ValueError:
        return bytes(body or b"").decode(errors="replace")
