"""Exec over a WebSocket: a command in a container, with its terminal.

The first message is text, the JSON of an ExecRequest with `start`. Then bytes go as binary messages with the channel in
front (0 stdin, 1 stdout, 2 stderr), because JSON would cost three times their size, and the rest (resize, closeStdin,
exitCode) as text. An error is the text `{"error": …}`, and the socket closes.

How a client goes tells what becomes of its command. One that closes the socket is done: the service is told to hang up.
One whose connection breaks is not told of anything: with a session it may come back, here or at another replica.

A browser sends the address of its page along; one from elsewhere is refused. Pings go out on a timer of our own:
aiohttp's heartbeat wants its pong in time, and a client whose input waits for a command that does not read cannot send
one. A client that is gone is found by TCP, which gives up on a ping that nobody acknowledges.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any
from urllib.parse import urlsplit

import orjson
import structlog
from aiohttp import WSCloseCode, WSMsgType, web
from google.protobuf.message import Message

from pwm.api.v1.agent_pb2 import ExecInput
from pwm.api.v1.services_pb2 import ExecRequest
from pwm.controlplane.context import CallContext
from pwm.controlplane.errors import ApiError
from pwm.controlplane.gateway import failures
from pwm.controlplane.gateway.decoding import Decoder, parse_json
from pwm.controlplane.gateway.encoding import Encoder
from pwm.controlplane.gateway.failures import Code, HttpError
from pwm.controlplane.gateway.open_streams import OpenStream
from pwm.controlplane.gateway.routes import Rpc
from pwm.controlplane.gateway.scalars import BadInput
from pwm.controlplane.gateway.streams import STALL_S, close

log = structlog.get_logger(__name__)

STDIN, STDOUT, STDERR = 0, 1, 2

# One message; clients cut their input into 64 KiB at most.
MAX_MESSAGE_BYTES = 1 * 2**20
# Messages that wait for the command to read. TCP holds up the client behind them.
MAX_WAITING = 16
# A socket that does not say what it wants is closed.
FIRST_MESSAGE_S = 10
PING_S = 20
# Time until TCP gives up on a peer that acknowledges nothing.
TCP_GIVE_UP_MS = 60_000
CLOSE_S = 5
# For a client's good-bye to reach the agent. An agent that is away hangs up by itself.
HANG_UP_S = 2
# Codes of a close frame that say that the client is done: normal, going away (a browser's tab), and none at all.
DONE_CODES = (0, 1000, 1001, 1005)

Recheck = Callable[[], Awaitable[None]]
# Lets the caller of a first message in; ApiError if not. Gives what checks it again.
Admit = Callable[[Message], Awaitable[Recheck]]


class ExecSocket:
    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        self._encoder = encoder
        self._decoder = decoder

    async def serve(
        self, request: web.BaseRequest, rpc: Rpc, context: CallContext, *, stream: OpenStream, admit: Admit
    ) -> tuple[web.StreamResponse, ApiError | None]:
        """Runs the whole session; returns the error that ended it, if one did."""
        check_origin(request)
        ws = web.WebSocketResponse(max_msg_size=MAX_MESSAGE_BYTES, compress=False, timeout=CLOSE_S)
        if not ws.can_prepare(request):
            raise HttpError(
                Code.INVALID_ARGUMENT, f"{rpc.name} is a WebSocket", status=426, headers={"Upgrade": "websocket"}
            )
        ws.headers["X-Request-Id"] = context.request_id
        await ws.prepare(request)
        _give_up_on_silence(request)
        error = await _to_its_end(self._session(ws, rpc, context, stream, admit))
        try:
            async with asyncio.timeout(CLOSE_S):
                if error is not None and not ws.closed:
                    await ws.send_str(orjson.dumps({"error": failures.error_value(error)}).decode())
                await ws.close(code=WSCloseCode.INTERNAL_ERROR if error is not None else WSCloseCode.OK)
        except (ConnectionError, TimeoutError):
            log.info("a client left before its session was closed", request_id=context.request_id)
        return ws, error

    async def _session(
        self, ws: web.WebSocketResponse, rpc: Rpc, context: CallContext, stream: OpenStream, admit: Admit
    ) -> ApiError | None:
        try:
            first = await self._first(ws)
            if first is None:
                return None
            stream.recheck = await admit(first)
            return await self._run(ws, rpc, context, stream, first)
        except ApiError as error:
            return error
        except BadInput as error:
            return failures.from_bad_input(error)
        except ConnectionError:
            return ApiError(Code.CANCELLED, "the client went away")
        except Exception:
            log.exception("a session failed", request_id=context.request_id)
            return failures.internal(context.request_id)

    async def _first(self, ws: web.WebSocketResponse) -> ExecRequest | None:
        try:
            async with asyncio.timeout(FIRST_MESSAGE_S):
                first = await self._receive(ws)
        except TimeoutError as error:
            raise ApiError(Code.DEADLINE_EXCEEDED, f"no first message came within {FIRST_MESSAGE_S} s") from error
        if first is not None and not first.HasField("start"):
            raise BadInput("start", "the first message says what to run")
        return first

    async def _run(
        self, ws: web.WebSocketResponse, rpc: Rpc, context: CallContext, stream: OpenStream, first: ExecRequest
    ) -> ApiError | None:
        assert rpc.call is not None
        inbox: asyncio.Queue[ExecRequest] = asyncio.Queue(MAX_WAITING)
        source = rpc.call(_requests(first, inbox), context)
        loop = asyncio.get_running_loop()
        reading = loop.create_task(self._read(ws, inbox))
        calling = loop.create_task(self._write(ws, source))
        pinging = loop.create_task(_ping(ws))
        try:
            waited: set[asyncio.Future[Any]] = {reading, calling, stream.ended}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if calling.done():
                calling.result()
                return None
            ended = stream.ended.result() if stream.ended.done() else None
            lost = isinstance(reading.exception(), ConnectionError) if reading.done() else False
            # A replica that stops is no reason to end a command, which its client finds again through another.
            if not lost and (ended is None or ended.code is not Code.UNAVAILABLE):
                await _hang_up(inbox, calling)
            if ended is None:
                reading.result()
            return ended
        finally:
            tasks = (reading, calling, pinging)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await close(source)

    async def _read(self, ws: web.WebSocketResponse, inbox: "asyncio.Queue[ExecRequest]") -> None:
        """Passes messages on until the client is done; ConnectionError when the connection broke."""
        while True:
            message = await self._receive(ws)
            if message is None:
                return
            if message.HasField("start"):
                raise BadInput("start", "is the first message and no other")
            await inbox.put(message)

    async def _receive(self, ws: web.WebSocketResponse) -> ExecRequest | None:
        """The next message; None when the client is done. ConnectionError when the connection broke."""
        received = await ws.receive()
        if received.type is WSMsgType.BINARY:
            if received.data[:1] != bytes([STDIN]):
                raise BadInput("", f"a binary message begins with the byte {STDIN} for stdin")
            return ExecRequest(input=ExecInput(stdin=received.data[1:]))
        if received.type is WSMsgType.TEXT:
            message = ExecRequest()
            self._decoder.decode(parse_json(received.data.encode()), message)
            return message
        if received.type is WSMsgType.CLOSE and received.data in DONE_CODES:
            return None
        raise ConnectionResetError("the connection to the client broke")

    async def _write(self, ws: web.WebSocketResponse, source: AsyncIterator[Any]) -> None:
        gone = False
        try:
            async for response in source:
                async with asyncio.timeout(STALL_S) as stalled:
                    try:
                        if not gone:
                            await self._send(ws, response)
                    except ConnectionError:
                        # Whoever reads finds out how the client went, and the service may still have to hear of it.
                        gone = True
        except TimeoutError as error:
            if not stalled.expired():
                raise
            raise ConnectionResetError("the client stopped reading") from error

    async def _send(self, ws: web.WebSocketResponse, response: Any) -> None:
        output = response.output
        match output.WhichOneof("output"):
            case "stdout":
                await ws.send_bytes(bytes([STDOUT]) + output.stdout)
            case "stderr":
                await ws.send_bytes(bytes([STDERR]) + output.stderr)
            case _:
                await ws.send_str(self._encoder.encode(response).decode())


async def _requests(first: ExecRequest, inbox: "asyncio.Queue[ExecRequest]") -> AsyncIterator[ExecRequest]:
    yield first
    while True:
        yield await inbox.get()


async def _to_its_end(session: Coroutine[Any, Any, ApiError | None]) -> ApiError | None:
    """Runs a session. aiohttp cancels who serves a connection that has gone; the session notices that by itself, and
    may have read a good-bye before that has to be passed on."""
    running = asyncio.ensure_future(session)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running}, timeout=CLOSE_S)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        raise


async def _hang_up(inbox: "asyncio.Queue[ExecRequest]", calling: "asyncio.Task[None]") -> None:
    """Tells the service that the client is done, ahead of input that waits, and lets it end."""
    while not inbox.empty():
        inbox.get_nowait()
    inbox.put_nowait(ExecRequest(input=ExecInput(hang_up=True)))
    await asyncio.wait({calling}, timeout=HANG_UP_S)


async def _ping(ws: web.WebSocketResponse) -> None:
    while True:
        await asyncio.sleep(PING_S)
        await ws.ping()


def check_origin(request: web.BaseRequest) -> None:
    """Refuses a browser whose page is from another host."""
    origin = request.headers.get("Origin")
    if origin is None:
        return  # no browser
    try:
        page = urlsplit(origin).netloc.lower()
    except ValueError:
        page = ""
    if not page or page != request.headers.get("Host", "").lower():
        raise ApiError(Code.PERMISSION_DENIED, "a page from another address may not open a session here")


def _give_up_on_silence(request: web.BaseRequest) -> None:
    peer = request.transport.get_extra_info("socket") if request.transport is not None else None
    if peer is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, TCP_GIVE_UP_MS)
