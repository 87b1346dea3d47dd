"""The WebSocket of `/v1/exec`: a command in a container, its bytes both ways.

Binary messages are one byte of channel (0 in, 1 out, 2 error) and data; text messages are JSON of
`ExecRequest` and `ExecResponse`: the start, window sizes, the end of input, the exit code, errors. The
connection is made by the client, which knows servers, TLS and token; the `websockets` library speaks the
protocol on it, with a thread of its own that reads.
"""

from __future__ import annotations

import json

from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from pwm.cli.client import Client
from pwm.cli.errors import CliError, NoServerError, server_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

STDIN, STDOUT, STDERR = 0, 1, 2
OPEN_TIMEOUT_S = 10.0
# For the closing handshake; the command has ended by then, and nobody wants to wait for politeness.
CLOSE_TIMEOUT_S = 1.0
# Keeps the path through NATs and proxies alive. No deadline for the answer: a terminal that was stopped with
# Ctrl-S stops us from reading too, and that is no reason to end the shell.
PING_INTERVAL_S = 20.0
# A shell's output comes in pieces far below this.
MESSAGE_LIMIT_BYTES = 4 * 1024 * 1024


class ExecSession:
    """One command in a container. `events` is for one thread, the `send_*` methods for another."""

    def __init__(self, client: Client, start: dict[str, Any]) -> None:
        self._socket = _open(client)
        self._socket.send(json.dumps({"start": start}))

    def close(self) -> None:
        self._socket.close()

    def send_stdin(self, data: bytes) -> None:
        self._send(bytes([STDIN]) + data)

    def end_stdin(self) -> None:
        self._send(json.dumps({"input": {"closeStdin": True}}))

    def send_size(self, *, rows: int, columns: int) -> None:
        self._send(json.dumps({"input": {"resize": {"rows": rows, "columns": columns}}}))

    def _send(self, message: str | bytes) -> None:
        try:
            self._socket.send(message)
        except ConnectionClosed:
            return  # `events` says why

    def events(self) -> Iterator[tuple[int, bytes] | int]:
        """(channel, data) as it comes, and last the exit code. Raises what went wrong instead of that."""
        try:
            for message in self._socket:
                if isinstance(message, bytes):
                    if message:
                        yield message[0], message[1:]
                    continue
                document = json.loads(message)
                if "error" in document:
                    raise server_error(document["error"])
                output = document.get("output", {})
                if "exitCode" in output:
                    yield int(output["exitCode"])
                    return
        except ConnectionClosed as error:
            raise NoServerError("the connection to the container was lost") from error
        raise NoServerError("the connection to the container was closed before the command ended")


def _open(client: Client) -> ClientConnection:
    connection, headers = client.connect()
    server = connection.server
    # The client keeps answers' time-outs on its sockets; a shell may be silent for hours.
    connection.socket.settimeout(None)
    try:
        return connect(
            # Never wss: the socket has its TLS already.
            f"ws://{server.authority}{server.prefix}/v1/exec",
            sock=connection.socket,
            additional_headers={name: value for name, value in headers.items() if name == "Authorization"},
            user_agent_header=headers.get("User-Agent"),
            open_timeout=OPEN_TIMEOUT_S,
            close_timeout=CLOSE_TIMEOUT_S,
            ping_interval=PING_INTERVAL_S,
            ping_timeout=None,
            max_size=MESSAGE_LIMIT_BYTES,
            compression=None,
            proxy=None,
        )
    except InvalidStatus as error:
        raise server_error(_body(error.response.body), http_status=error.response.status_code) from error
    except (WebSocketException, OSError, EOFError) as error:
        raise CliError(f"{server} does not let us open a shell: {error}") from error


def _body(body: bytes | bytearray | None) -> object:
    try:
        return json.loads(body or b"{}")
    except ValueError:
        return bytes(body or b"").decode(errors="replace")
