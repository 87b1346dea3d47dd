"""HTTP/1.1 over one socket: as much of it as PWM's own gateway speaks, and nothing else.

Importing `http.client` costs three times as much as the rest of `pwm get` together, most of it for
parsing e-mail headers. A client that talks to one known server needs little: a request with a length,
an answer with a length, in chunks, or until the end. `Connection` is kept open between calls and
also handed out whole, for WebSockets. A server's URL is https unless it says http, and then `ssl` is loaded. Where one
side speaks TLS and the other does not, each sees no more than garbage or a closed connection; here it is said.

Errors: `Unreachable`, nothing was sent; `Broken`, the request may have arrived. Who calls decides
what is safe to repeat.
"""

from __future__ import annotations

import socket
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONNECT_TIMEOUT_S = 2.0
# For a look whether a server speaks TLS that did not answer to anything else.
PROBE_TIMEOUT_S = 1.0
# The gateway's headers are a few hundred bytes; whoever sends more is not our gateway.
HEADER_LIMIT_BYTES = 64 * 1024
# Large enough for a whole list in a few reads, small enough to keep a stream's memory flat.
READ_BYTES = 256 * 1024
DEFAULT_PORT = 4700
# How a refusal of a certificate begins.
NOT_BELIEVED = "it cannot be believed"


class TransportError(Exception):
    """Something between us and the server; the text says what, in a few words."""


class Unreachable(TransportError):
    """No connection: the request was not sent."""


class Broken(TransportError):
    """The connection ended in the middle: the request may have been carried out."""


class NoAnswer(Broken):
    """The server took the request and then said nothing for too long."""


class DeadlinePassed(TransportError):
    """The connection's deadline came while it waited for bytes."""


class Server:
    """A server's URL, taken apart. `https://host:4700/prefix`, `http://host:4700`, or `host:port`, which is https."""

    __slots__ = ("host", "port", "prefix", "tls", "url")

    def __init__(self, url: str) -> None:
        scheme, separator, rest = url.partition("://")
        if not separator:
            scheme, rest = "https", url
        if scheme not in ("http", "https"):
            raise ValueError(f"{url!r} is not a server's URL; write https://HOST:PORT, or http:// if it has no TLS")
        authority, slash, path = rest.partition("/")
        host, colon, port = authority.rpartition(":")
        if not colon or "]" in port:
            host, port = authority, ""
        self.host = host.strip("[]")
        if not self.host or (port and not (port.isdecimal() and 0 < int(port) < 65536)):
            raise ValueError(f"{url!r} is not a server's URL; write https://HOST:PORT, or http:// if it has no TLS")
        self.tls = scheme == "https"
        self.port = int(port) if port else DEFAULT_PORT if not separator else 443 if self.tls else 80
        self.prefix = (slash + path).rstrip("/")
        self.url = f"{scheme}://{authority if port else f'{authority}:{self.port}'}{self.prefix}"

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        return self.url


class Response:
    """Status and headers; the body is read with `read`, `lines` or `chunks`, once."""

    __slots__ = ("_buffer", "_chunked", "_connection", "_remaining", "headers", "status")

    def __init__(self, connection: Connection, status: int, headers: dict[str, str]) -> None:
        self.status = status
        self.headers = headers
        self._connection = connection
        self._chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        length = headers.get("content-length")
        # None: until the connection ends.
        self._remaining = 0 if status in (204, 304) else int(length) if length is not None else None
        if self._chunked:
            self._remaining = None

    def chunks(self) -> Iterator[bytes]:
        """Pieces of the body as they arrive."""
        connection = self._connection
        if self._chunked:
            yield from connection.read_chunks()
        elif self._remaining is not None:
            while self._remaining:
                data = connection.read_some(self._remaining)
                self._remaining -= len(data)
                yield data
        else:
            connection.keep = False
            while data := connection.read_some(READ_BYTES, end_allowed=True):
                yield data
        if self.headers.get("connection", "").lower() == "close":
            connection.keep = False
        connection.busy = False

    def read(self) -> bytes:
        """The whole body."""
        return b"".join(self.chunks())

    def lines(self) -> Iterator[bytes]:
        """Complete lines as they arrive, without their ends."""
        rest = b""
        for data in self.chunks():
            *complete, rest = (rest + data).split(b"\n") if rest else data.split(b"\n")
            yield from complete
        if rest:
            yield rest


class Connection:
    """One connection to one server. One request at a time."""

    def __init__(
        self,
        server: Server,
        *,
        ca_file: str = "",
        pinned: bool = False,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> None:
        """`ca_file`: whom to believe, instead of the system's authorities; `pinned`: a PWM's own, and only them."""
        self.server = server
        self.keep = True
        self.busy = False
        self._buffer = b""
        self._has_answered = False
        # Silence between bytes that is taken for a dead server, and the moment (monotonic) to stop waiting at.
        self.timeout_s: float | None = None
        self.deadline: float | None = None
        # After so much silence `is_alive` is asked whether waiting makes sense; 0: it is not asked.
        self.doubt_after_s = 0.0
        self.is_alive: Callable[[], bool] | None = None
        try:
            # As bytes, an ordinary name spares Python the tables for international ones, which take it 5 ms to read.
            host = server.host.encode() if server.host.isascii() else server.host
            self.socket = socket.create_connection(
                (host, server.port),  # type: ignore[arg-type]  # bytes are fine, typeshed forgot
                timeout=connect_timeout_s,
            )
            _tune(self.socket)
            if server.tls:
                self.socket = _with_tls(self.socket, server.host, ca_file, pinned=pinned)
        except (OSError, UnicodeError) as error:
            if server.tls and getattr(error, "reason", "") in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
                raise Unreachable(
                    f"it does not speak TLS; if that is how it should be, say http://{server.authority}"
                ) from error
            raise Unreachable(_in_words(error)) from error

    def close(self) -> None:
        self.keep = False
        self.socket.close()

    def request(
        self, method: str, target: str, *, headers: dict[str, str], body: bytes = b"", timeout_s: float | None
    ) -> Response:
        """Sends a request and reads the answer's headers. `timeout_s` is between bytes; None: for ever."""
        assert not self.busy, "the answer before has not been read to its end"
        lines = [f"{method} {self.server.prefix}{target} HTTP/1.1", f"Host: {self.server.authority}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body or method in ("POST", "PUT", "PATCH"):
            lines.append(f"Content-Length: {len(body)}")
        head = "\r\n".join(lines) + "\r\n\r\n"
        self.busy, self.timeout_s = True, timeout_s
        self.socket.settimeout(timeout_s)
        try:
            self.socket.sendall(head.encode("latin-1") + body)
        except OSError as error:
            # A server that refuses a large body answers and hangs up: its answer says more than our error.
            try:
                return self._read_head()
            except Unreachable:
                raise
            except TransportError:
                raise Broken(_in_words(error)) from error
        return self._read_head()

    def _read_head(self) -> Response:
        while True:
            while b"\r\n\r\n" not in self._buffer:
                if len(self._buffer) > HEADER_LIMIT_BYTES:
                    raise Broken("it does not speak HTTP as PWM does")
                try:
                    self._receive()
                except NoAnswer:
                    raise
                except Broken as error:
                    # Only what has never said anything can be something else than we think.
                    if not self._has_answered and not self.server.tls and _speaks_tls(self.server):
                        raise Unreachable(f"it speaks TLS; say https://{self.server.authority}") from error
                    raise
            self._has_answered = True
            head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
            status_line, *lines = head.decode("latin-1").split("\r\n")
            parts = status_line.split(" ", 2)
            if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or not parts[1].isdecimal():
                raise Broken("it does not speak HTTP")
            status = int(parts[1])
            if status == 101 or status >= 200:
                pairs = (line.partition(":") for line in lines)
                return Response(self, status, {name.strip().lower(): value.strip() for name, _, value in pairs})

    def read_some(self, limit: int, *, end_allowed: bool = False) -> bytes:
        """At least one byte, at most `limit`; with `end_allowed`, b"" at the end."""
        if not self._buffer:
            try:
                self._receive()
            except Broken:
                if end_allowed:
                    return b""
                raise
        data, self._buffer = self._buffer[:limit], self._buffer[limit:]
        return data

    def read_chunks(self) -> Iterator[bytes]:
        """The pieces of a chunked body, as the server cut them or smaller."""
        while True:
            size = int(self._line().split(b";")[0] or b"x", 16)
            if size == 0:
                while self._line():
                    pass
                return
            while size:
                data = self.read_some(size)
                size -= len(data)
                yield data
            if self._line():
                raise Broken("the answer is garbled")

    def _line(self) -> bytes:
        while b"\r\n" not in self._buffer:
            if len(self._buffer) > HEADER_LIMIT_BYTES:
                raise Broken("the answer is garbled")
            self._receive()
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def _receive(self) -> None:
        began = time.monotonic() if self.timeout_s is not None and self.doubt_after_s else 0.0
        while True:
            try:
                self.socket.settimeout(self._patience_s(began))
                data = self.socket.recv(READ_BYTES)
                break
            except TimeoutError as error:
                if self.deadline is not None and time.monotonic() >= self.deadline:
                    self.keep = False
                    raise DeadlinePassed("the time is up") from error
                in_time = began and self.timeout_s is not None and time.monotonic() - began < self.timeout_s
                if not in_time or self.is_alive is None or not self.is_alive():
                    self.keep = False
                    raise NoAnswer(_in_words(error)) from error
            except OSError as error:
                self.keep = False
                raise Broken(_in_words(error)) from error
        if not data:
            self.keep = False
            raise Broken("the connection was closed")
        self._buffer = self._buffer + data if self._buffer else data

    def _patience_s(self, began: float) -> float | None:
        """How long to wait for the next byte; `began`: when the silence did, if it may be doubted."""
        limit_s = self.timeout_s
        if began and limit_s is not None:
            limit_s = min(self.doubt_after_s, max(0.001, began + limit_s - time.monotonic()))
        if self.deadline is not None:
            left_s = self.deadline - time.monotonic()
            if left_s <= 0:
                raise DeadlinePassed("the time is up")
            limit_s = left_s if limit_s is None else min(left_s, limit_s)
        return limit_s


def _tune(connected: socket.socket) -> None:
    """No waiting for more to send; and a machine that has gone is noticed within 30 s, on silent streams too."""
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):  # not everywhere under these names
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _with_tls(plain: socket.socket, host: str, ca_file: str, *, pinned: bool) -> socket.socket:
    import ssl

    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if ca_file:
            context.load_verify_locations(ca_file)
        else:
            context.load_default_certs()
        if pinned:
            from pwm.trust import SERVER_NAME

            host = SERVER_NAME
        return context.wrap_socket(plain, server_hostname=host)
    except FileNotFoundError as error:
        raise OSError(error.errno, f"there is no {ca_file}, which has the authorities to believe") from error
    except BaseException:
        plain.close()
        raise


def _speaks_tls(server: Server) -> bool:
    """Asked of one that has closed a connection without a word. Nobody is believed, and nothing is said."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with socket.create_connection((server.host, server.port), timeout=PROBE_TIMEOUT_S) as plain:
            context.wrap_socket(plain, server_hostname=server.host).close()
    except (OSError, ValueError):
        return False
    return True


def _in_words(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, socket.gaierror):
        return "no such host"
    if isinstance(error, ConnectionError):
        return "the connection was closed"
    if message := getattr(error, "verify_message", ""):
        return f"{NOT_BELIEVED}: {message}"
    reason = getattr(error, "strerror", "") or str(error)
    return str(reason)[:1].lower() + str(reason)[1:]
