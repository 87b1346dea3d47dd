"""Answers that are one body: their headers, and gzip for those worth it."""

import asyncio
import gzip

from aiohttp import web

from pwm.controlplane.errors import ApiError
from pwm.controlplane.gateway import failures

# Shorter bodies cost more to compress than to send.
GZIP_FROM_BYTES = 16 * 2**10
# Larger ones are compressed in a thread.
GZIP_THREAD_BYTES = 64 * 2**10
# Fast: 100 MB/s at a third of the size, where the default level makes 30 MB/s at a quarter.
GZIP_LEVEL = 1
# A body that a client does not read is given up.
STALL_S = 60

JSON = "application/json"


def headers(request_id: str) -> dict[str, str]:
    """What every answer of the API carries."""
    return {
        "X-Request-Id": request_id,
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }


async def json(request: web.BaseRequest, body: bytes, request_id: str, *, close: bool) -> web.StreamResponse:
    """A JSON body with status 200."""
    return await send(request, body, {**headers(request_id), "Content-Type": JSON}, close=close)


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
    if close:
        response.force_close()
    return response
