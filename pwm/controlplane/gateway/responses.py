"""Answers that are one body: their headers, and gzip for those worth it."""

import asyncio
import gzip
import time
from email.utils import formatdate

from aiohttp import HttpVersion11, web

from pwm.controlplane.errors import ApiError
from pwm.controlplane.gateway import failures
from pwm.version import OLDEST_CLIENT, VERSION

# Shorter bodies cost more to compress than to send.
GZIP_FROM_BYTES = 16 * 2**10
# Larger ones are compressed in a thread.
GZIP_THREAD_BYTES = 64 * 2**10
# Fast: 100 MB/s at a third of the size, where the default level makes 30 MB/s at a quarter.
GZIP_LEVEL = 1
# A body that a client does not read is given up.
STALL_S = 60

JSON = "application/json"
ENDING_HEADER = "Pwm-Token-Ends"


# What every answer of the API carries, besides its request id.
FIXED = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    # A client that does not fit this server warns its user.
    "Pwm-Version": VERSION,
    "Pwm-Oldest-Client": OLDEST_CLIENT,
}


def headers(request_id: str, *, ending: str = "") -> dict[str, str]:
    """`ending`: when the caller's token ends, if that is soon."""
    return {"X-Request-Id": request_id, **FIXED, **({ENDING_HEADER: ending} if ending else {})}


async def json(
    request: web.BaseRequest, body: bytes, request_id: str, *, close: bool, ending: str = ""
) -> web.StreamResponse:
    """A JSON body with status 200. `ending`: as for `headers`."""
    usual = request.version == HttpVersion11 and request.keep_alive and request.method != "HEAD"
    if usual and not close and not ending and len(body) < GZIP_FROM_BYTES:
        return ShortAnswer(body, request_id)
    return await send(request, body, {**headers(request_id, ending=ending), "Content-Type": JSON}, close=close)


class ShortAnswer(web.StreamResponse):
    """A short JSON body, sent together with its head in one piece.

    Most answers are like this, and their heads differ in three places only. aiohttp's Response fills a
    case-insensitive dictionary and writes it out again for each, which took a fifth of a request's time. So this takes
    the place of its `prepare` and `write_eof` and of nothing else. What is unusual (HTTP/1.0, closing, HEAD, gzip) goes
    aiohttp's way.
    """

    # The usual constructor makes the dictionary that is not wanted here.
    def __init__(self, body: bytes, request_id: str) -> None:
        self._content = body
        self._request_id = request_id
        self._keep_alive = True

    def __repr__(self) -> str:
        return f"<ShortAnswer {len(self._content)} bytes>"

    async def prepare(self, request: web.BaseRequest) -> None:
        if request.transport is None or request.transport.is_closing():
            raise ConnectionResetError("the client went away")
        head = f"{_HEAD}{_date()}\r\nX-Request-Id: {self._request_id}\r\nContent-Length: {len(self._content)}\r\n\r\n"
        request.transport.write(head.encode() + self._content)
        request.writer.output_size += len(self._content)
        await request.writer.drain()

    async def write_eof(self, data: bytes = b"") -> None:
        """The body is on its way already."""


_HEAD = "".join(
    [
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n",
        *(f"{name}: {value}\r\n" for name, value in FIXED.items()),
        "Date: ",
    ]
)
_dated = (0, "")


def _date() -> str:
    """The time as HTTP writes it, made once a second."""
    global _dated
    now = int(time.time())
    if _dated[0] != now:
        _dated = (now, formatdate(now, usegmt=True))
    return _dated[1]


async def send(
    request: web.BaseRequest, body: bytes, fields: dict[str, str], *, status: int = 200, close: bool = False
) -> web.StreamResponse:
    if len(body) < GZIP_FROM_BYTES:
        response = web.Response(body=body, status=status, headers=fields)
        if close:
            response.force_close()
        return response
    if accepts_gzip(request):
        body = await _compressed(body)
        fields["Content-Encoding"] = "gzip"
    response = web.Response(body=body, status=status, headers={**fields, "Vary": "Accept-Encoding"})
    if close:
        response.force_close()
    await response.prepare(request)
    try:
        async with asyncio.timeout(STALL_S):
            await response.write_eof()
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
    return response


def accepts_gzip(request: web.BaseRequest) -> bool:
    for part in request.headers.get("Accept-Encoding", "").split(","):
        coding, _, quality = part.partition(";")
        if coding.strip().lower() == "gzip":
            return quality.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


async def _compressed(body: bytes) -> bytes:
    if len(body) < GZIP_THREAD_BYTES:
        return gzip.compress(body, GZIP_LEVEL, mtime=0)
    return await asyncio.get_running_loop().run_in_executor(None, lambda: gzip.compress(body, GZIP_LEVEL, mtime=0))


def error(problem: ApiError, request_id: str, *, close: bool) -> web.Response:
    """An error with its HTTP status."""
    response = web.Response(
        body=failures.error_body(problem),
        status=failures.http_status(problem),
        headers={**headers(request_id), **failures.http_headers(problem), "Content-Type": JSON},
    )
    if close or response.headers.get("Connection") == "close":
        response.force_close()
    return response
