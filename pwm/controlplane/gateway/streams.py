"""Server streams over HTTP: from a service's messages to bytes on the wire.

Four forms, chosen by the Accept header. JSON lines (`{"result": …}`, at the end perhaps `{"error": …}`) are the usual;
`text/event-stream` is the same for browsers. An rpc with the option `raw_stream` can also be read as frames
(application/vnd.pwm.frames) or as its data alone (text/plain), which copies bytes instead of making JSON of them.

A frame is a channel (1 byte), a length (4 bytes, big-endian) and data. Channels up to 253 are the stream's enum; 254
is a cursor, the JSON of the message without its data, sent behind the data; 255 is the end, `{}` or the error.

The service's generator runs in a task of its own that fills a small buffer, and the writer sends whatever waits: a slow
client stops the generator (back-pressure), a fast generator is sent in batches instead of line by line. An error
before the first byte becomes an ordinary error with its HTTP status.

A client that has several servers asks for beats with the header `Pwm-Beat: SECONDS`, and gets it back: when nothing
happened for so long it is sent an empty line (or frame), so that it can tell a silent stream from a frozen server.
"""

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol, cast

import orjson
import structlog
from aiohttp import web
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from pwm.api.v1 import access_pb2
from pwm.controlplane.errors import ApiError
from pwm.controlplane.gateway import failures
from pwm.controlplane.gateway.encoding import Encoder
from pwm.controlplane.gateway.open_streams import OpenStream

log = structlog.get_logger(__name__)

JSON_LINES = "application/x-ndjson"
EVENT_STREAM = "text/event-stream"
FRAMES = "application/vnd.pwm.frames"
TEXT = "text/plain"

# Bytes that wait for a client before its service has to wait as well. Two of the largest log chunks.
BUFFER_BYTES = 512 * 2**10
# A stream that has nothing to say yet sends its headers after so long, so that the client knows it is open.
HEADERS_AFTER_S = 0.25
# A client that reads nothing for so long, with data waiting, is cut off.
STALL_S = 60
# Transports ask writers to wait from 64 KiB on.
SHORT_BYTES = 32 * 2**10
# Proxies close connections that are silent for a minute.
SSE_BEAT_S = 15
# What clients may ask for; more often would cost more than it tells.
SHORTEST_BEAT_S, LONGEST_BEAT_S = 1, 60
BEAT_HEADER = "Pwm-Beat"

CURSOR_CHANNEL = 254
END_CHANNEL = 255
_FRAME = struct.Struct(">BI")


class Form(Protocol):
    """How a stream is written."""

    content_type: str
    # What is sent when nothing happened for a while; b"": nothing can be.
    beat: bytes
    # After how long, unless the client asks for something else; None: not at all.
    beat_s: float | None

    def message(self, message: Any) -> bytes: ...

    def end(self, error: ApiError | None) -> bytes | None:
        """The last bytes; None: the form cannot tell the error, so the connection is broken off."""
        ...


class JsonLines:
    content_type = JSON_LINES
    beat = b"\n"
    beat_s: float | None = None

    def __init__(self, encoder: Encoder) -> None:
        self._encode = encoder.encode

    def message(self, message: Any) -> bytes:
        return b'{"result":' + self._encode(message) + b"}\n"

    def end(self, error: ApiError | None) -> bytes | None:
        return b"" if error is None else b'{"error":' + failures.error_body(error) + b"}\n"


class EventStream:
    content_type = EVENT_STREAM
    beat = b":\n\n"
    beat_s: float | None = SSE_BEAT_S

    def __init__(self, encoder: Encoder, *, has_revision: bool) -> None:
        self._encode = encoder.encode
        self._has_revision = has_revision

    def message(self, message: Any) -> bytes:
        revision = message.revision if self._has_revision else 0
        head = b"id: %d\n" % revision if revision else b""
        return head + b"data: " + self._encode(message) + b"\n\n"

    def end(self, error: ApiError | None) -> bytes | None:
        if error is None:
            return b"event: end\ndata: {}\n\n"
        return b"event: error\ndata: " + failures.error_body(error) + b"\n\n"


class Frames:
    content_type = FRAMES
    beat = _FRAME.pack(CURSOR_CHANNEL, 2) + b"{}"
    beat_s: float | None = None

    def __init__(self, encoder: Encoder, response: type[Message], raw: access_pb2.RawStream) -> None:
        self._data = raw.data_field
        self._channel = raw.channel_field
        self._rest = encoder.selection(cast(Descriptor, response.DESCRIPTOR), without=(self._data, self._channel))

    def message(self, message: Any) -> bytes:
        data = getattr(message, self._data)
        cursor = self._rest(message)
        parts = []
        if data:
            parts += [_FRAME.pack(getattr(message, self._channel), len(data)), data]
        if cursor or not data:
            text = orjson.dumps(cursor)
            parts += [_FRAME.pack(CURSOR_CHANNEL, len(text)), text]
        return b"".join(parts)

    def end(self, error: ApiError | None) -> bytes | None:
        text = b"{}" if error is None else failures.error_body(error)
        return _FRAME.pack(END_CHANNEL, len(text)) + text


class PlainText:
    content_type = "text/plain; charset=utf-8"
    beat = b""
    beat_s: float | None = None

    def __init__(self, raw: access_pb2.RawStream) -> None:
        self._data = raw.data_field

    def message(self, message: Any) -> bytes:
        data: bytes = getattr(message, self._data)
        return data

    def end(self, error: ApiError | None) -> bytes | None:
        return b"" if error is None else None


def choose_form(accept: str, response: type[Message], raw: access_pb2.RawStream | None, encoder: Encoder) -> Form:
    """The form that an Accept header asks for; JSON lines when it asks for nothing in particular."""
    wanted = {part.split(";")[0].strip().lower() for part in accept.split(",")}
    if raw is not None and FRAMES in wanted:
        return Frames(encoder, response, raw)
    if raw is not None and TEXT in wanted:
        return PlainText(raw)
    if EVENT_STREAM in wanted:
        return EventStream(encoder, has_revision="revision" in response.DESCRIPTOR.fields_by_name)
    return JsonLines(encoder)


class _Buffer:
    """Bytes between the service's generator and the client."""

    def __init__(self) -> None:
        # Set once the answer has begun: sends something if nobody has to wait for that; False: it has to be buffered.
        self.pass_on: Callable[[bytes], Awaitable[bool]] | None = None
        # Whether something was passed on in this turn of the loop: what comes besides is sent as one.
        self._passed_on = False
        self._parts: list[bytes] = []
        self._size_bytes = 0
        self.done = False
        self.error: ApiError | None = None
        self.filled = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    async def fill(self, source: AsyncIterator[Any], form: Form, request_id: str) -> None:
        """Runs the generator to its end."""
        try:
            async for message in source:
                data = form.message(message)
                if await self._pass_on(data):
                    continue
                self._parts.append(data)
                self._size_bytes += len(data)
                self.filled.set()
                if self._size_bytes >= BUFFER_BYTES:
                    self._room.clear()
                    await self._room.wait()
        except ApiError as error:
            self.error = error
        except Exception:
            log.exception("a stream failed", request_id=request_id)
            self.error = failures.internal(request_id)
        finally:
            await close(source)
            self.done = True
            self.filled.set()

    async def _pass_on(self, data: bytes) -> bool:
        """Past the writer, which sleeps: to wake it for each message would take a tenth of telling a change."""
        if self.pass_on is None or self._parts or self._passed_on or not await self.pass_on(data):
            return False
        self._passed_on = True
        asyncio.get_running_loop().call_soon(self._next_turn)
        return True

    def _next_turn(self) -> None:
        self._passed_on = False

    def finish(self, error: ApiError) -> None:
        """Ends the stream after what waits already."""
        self.error = error
        self.done = True
        self.filled.set()

    def __bool__(self) -> bool:
        return bool(self._parts)

    def take(self) -> bytes:
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._size_bytes = 0
        if not self.done:
            self.filled.clear()
        self._room.set()
        return data


async def close(source: Any) -> None:
    """Runs a generator's `finally` blocks now, not when it is collected."""
    aclose: Callable[[], Awaitable[None]] | None = getattr(source, "aclose", None)
    if aclose is not None:
        await aclose()


async def send(
    request: web.BaseRequest,
    source: AsyncIterator[Any],
    *,
    form: Form,
    stream: OpenStream,
    headers: dict[str, str],
    request_id: str,
) -> tuple[web.StreamResponse, ApiError | None]:
    """Sends a whole stream. Raises the error that came before the first byte; returns the one that came later."""
    buffer = _Buffer()
    filling = asyncio.get_running_loop().create_task(buffer.fill(source, form, request_id))

    def ended(future: "asyncio.Future[ApiError]") -> None:
        if not future.cancelled():
            buffer.finish(future.result())
            filling.cancel()

    stream.ended.add_done_callback(ended)
    try:
        await _filled(buffer, HEADERS_AFTER_S)
        if buffer.error is not None and not buffer:
            raise buffer.error
        beat_s = _wanted_beat_s(request, form)
        response = web.StreamResponse(headers={**headers, "Content-Type": form.content_type})
        if beat_s is not None:
            response.headers[BEAT_HEADER] = f"{beat_s:g}"
        await response.prepare(request)
        await _write(request, response, buffer, form, beat_s=beat_s or form.beat_s)
        return response, buffer.error
    finally:
        stream.ended.cancel()
        filling.cancel()
        await asyncio.gather(filling, return_exceptions=True)


async def _filled(buffer: _Buffer, timeout_s: float | None) -> bool:
    """Waits for something to send or for the end; False: neither came in time."""
    if timeout_s is None or buffer.filled.is_set():
        await buffer.filled.wait()
        return True
    try:
        async with asyncio.timeout(timeout_s):
            await buffer.filled.wait()
    except TimeoutError:
        return False
    return True


def _wanted_beat_s(request: web.BaseRequest, form: Form) -> float | None:
    """The seconds between beats that the client asks for; None when it does not, or the form has none."""
    wanted = request.headers.get(BEAT_HEADER, "")
    if not form.beat or not (wanted.isascii() and wanted.isdecimal() and len(wanted) < 4):
        return None
    return float(min(max(int(wanted), SHORTEST_BEAT_S), LONGEST_BEAT_S))


async def _write(
    request: web.BaseRequest, response: web.StreamResponse, buffer: _Buffer, form: Form, *, beat_s: float | None
) -> None:
    transport = request.transport

    async def at_once(data: bytes) -> bool:
        """Into the kernel, or into an empty buffer: nobody waits, so no time limit is needed."""
        if transport is None or len(data) > SHORT_BYTES or transport.get_write_buffer_size():
            return False
        try:
            await response.write(data)
        except ConnectionError:
            return False  # whoever waits for it meets the same
        return True

    buffer.pass_on = at_once
    try:
        while True:
            happened = await _filled(buffer, beat_s)
            if happened and not buffer:
                break
            data = buffer.take() if happened else form.beat
            if not await at_once(data):
                async with asyncio.timeout(STALL_S):
                    await response.write(data)
        last = form.end(buffer.error)
        if last is not None:
            async with asyncio.timeout(STALL_S):
                await response.write_eof(last)
            return
    except TimeoutError:
        log.info("a client stopped reading its stream", peer=request.remote)
    if request.transport is not None:
        request.transport.abort()
