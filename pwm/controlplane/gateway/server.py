"""The HTTP server below the gateway: aiohttp's low-level one, told to be strict.

aiohttp's application layer (router, middlewares, signals) is left out: the gateway has its own routes, and a plain
handler answers a third more requests a second. What is changed here is what a server on a network owes its
operators: limits on everything that a client may send before it is known, errors in the API's own JSON, and no
banner that tells which software answers.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

from pwm.controlplane.core.antechamber import NO_LIMITS, ConnectionLimits
from pwm.controlplane.errors import ApiError
from pwm.controlplane.gateway.arrivals import Arrival, Arrivals
from pwm.controlplane.gateway.failures import Code, HttpError, error_body

# Bytes of a request line, of one header, and headers of a request. A bearer token takes 50 bytes; `names` of
# a list may take a few thousand.
MAX_LINE_BYTES = 32 * 2**10
MAX_HEADER_BYTES = 8 * 2**10
MAX_HEADERS = 64
# A connection without a complete request for so long is closed: idle ones, and headers that come a byte at a time.
IDLE_S = 60
# How long the rest of a refused body is read and dropped, so that the client gets to read why.
LINGER_S = 5
# Connections that the kernel may hold until they are accepted; 10,000 clients may come back at once after a fail-over.
BACKLOG = 4096

# Time for an answer that is being written when the server closes.
FLUSH_S = 1

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class HttpServer:
    """Listens, and gives each request to one handler. A client that goes away cancels its handler."""

    def __init__(
        self,
        handler: Handler,
        *,
        tls: ssl.SSLContext | None = None,
        limits: ConnectionLimits = NO_LIMITS,
        many: Callable[[str], bool] = lambda address: False,
    ) -> None:
        """`limits`, `many`: see `arrivals`."""
        self._handler = handler
        self._connections: _Server | None = None
        self.arrivals = Arrivals(self._connected, limits=limits, tls=tls, many=many)

    def _connected(self, arrival: Arrival) -> RequestHandler:
        assert self._connections is not None, "started"
        return _Connection(self._connections, arrival=arrival)

    async def start(self, host: str, port: int) -> int:
        """Listens; the port that was bound (0 asks for any)."""
        self._connections = _Server(
            self._handler,
            request_factory=_request,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=IDLE_S,
            lingering_time=LINGER_S,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            max_headers=MAX_HEADERS,
        )
        return await self.arrivals.start(host, port, backlog=BACKLOG)

    def stop_listening(self) -> None:
        """No new connections; those that are open stay, and their requests still arrive."""
        self.arrivals.stop()

    async def stop(self) -> None:
        """Closes all connections; an answer on its way has FLUSH_S."""
        self.stop_listening()
        if self._connections is not None:
            await self._connections.shutdown(FLUSH_S)
        await self.arrivals.wait_stopped()


class _Server(web.Server):
    def __init__(self, handler: Handler, **settings: Any) -> None:
        super().__init__(handler, **settings)
        self.settings = {
            key: value for key, value in settings.items() if key not in ("request_factory", "handler_cancellation")
        }


class _Connection(RequestHandler):
    __slots__ = ("arrival",)

    def __init__(self, server: _Server, *, arrival: Arrival) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **server.settings)
        self.arrival = arrival

    def connection_lost(self, exc: BaseException | None) -> None:
        self.arrival.is_over()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is no HTTP. (The gateway's handler lets no exception through.)"""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun: the connection can only be closed") from exc
        if status >= 500:
            self.log_exception("the gateway's handler failed", exc_info=exc)
            error: ApiError = HttpError(Code.INTERNAL, "PWM failed at this request", status=status)
        else:
            said = (message or "").splitlines()
            detail = f": {said[0][:200].rstrip(':')}" if said else ""
            error = HttpError(Code.INVALID_ARGUMENT, f"this is no valid HTTP request{detail}", status=status)
        response = web.Response(status=status, body=error_body(error), content_type="application/json")
        response.force_close()
        return response


def somebody_is_known(request: web.BaseRequest) -> None:
    """A valid token came over the request's connection."""
    arrival: Arrival = request.protocol.arrival  # type: ignore[attr-defined]  # a _Connection
    if arrival.is_stranger:
        arrival.is_known()


class _Request(web.BaseRequest):
    @property
    def remote(self) -> str:
        """From where its connection comes, which is worked out once for each connection."""
        arrival: Arrival = self.protocol.arrival  # type: ignore[attr-defined]  # a _Connection
        return arrival.peer

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        response.headers.pop("Server", None)


def _request(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: RequestHandler,
    writer: AbstractStreamWriter,
    task: "asyncio.Task[None]",
) -> web.BaseRequest:
    return _Request(message, payload, protocol, writer, task, asyncio.get_running_loop())
