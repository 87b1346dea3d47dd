"""Reading a request: who says so, what is asked, within limits.

The order matters. A caller is known before a byte of the body is read, so that a stranger can make the server do no
more than compare a token. Then the body is read up to a limit and in a bounded time, and only JSON is taken: a browser
sends no cross-site JSON without asking first.
"""

import asyncio
import itertools
import re
import secrets
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import web
from google.protobuf.message import Message

from pwm.controlplane.gateway.decoding import Decoder, parse_json
from pwm.controlplane.gateway.failures import Code, HttpError
from pwm.controlplane.gateway.query import QueryReader
from pwm.controlplane.gateway.routes import Route
from pwm.controlplane.gateway.scalars import BadInput

MAX_BODY_BYTES = 16 * 2**20
# Time for a whole body: 16 MiB at 2 Mbit/s.
BODY_TIMEOUT_S = 64
# Larger bodies are parsed in a thread, so that other callers wait 5 ms for the interpreter and not for all of it.
THREAD_BYTES = 256 * 2**10

MAX_IDEMPOTENCY_KEY_CHARS = 128
# Of a query that has a ticket in it.
MAX_TICKET_FIELDS = 8
LONGEST_TIMEOUT_S = 24 * 3600

# Request ids: one part that differs between runs of the server, and a count.
_RUN = secrets.token_hex(5)
_numbers = itertools.count(1)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")
_TIMEOUT_UNITS_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


def target(request: web.BaseRequest) -> str:
    """Path and query as they were sent, without the scheme and host that a proxy may put in front."""
    sent = request.raw_path
    return sent if sent.startswith("/") else request.rel_url.raw_path_qs


def request_id(request: web.BaseRequest) -> str:
    """The caller's X-Request-Id if it is usable, else a new one."""
    given = request.headers.get("X-Request-Id")
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given
    return f"{_RUN}{next(_numbers):x}"


def bearer_token(request: web.BaseRequest) -> str | None:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    token = token.strip()
    return token if scheme.lower() == "bearer" and token and token.isascii() else None


def ticket(query: str) -> str:
    """What a browser shows instead of a token; "" for none."""
    try:
        found = [value for key, value in parse_qsl(query, max_num_fields=MAX_TICKET_FIELDS) if key == "ticket"]
    except ValueError:
        return ""
    return found[0] if len(found) == 1 and found[0].isascii() else ""


def idempotency_key(request: web.BaseRequest) -> str:
    key = request.headers.get("Idempotency-Key", "")
    if len(key) > MAX_IDEMPOTENCY_KEY_CHARS or not key.isascii() or not key.isprintable():
        raise BadInput("Idempotency-Key", f"at most {MAX_IDEMPOTENCY_KEY_CHARS} printable ASCII characters, please")
    return key


def deadline(request: web.BaseRequest) -> float | None:
    """Loop time at which the caller stops waiting, from gRPC's own header: `Grpc-Timeout: 5S`."""
    text = request.headers.get("Grpc-Timeout")
    if text is None:
        return None
    match = _TIMEOUT.fullmatch(text)
    if match is None:
        raise BadInput("Grpc-Timeout", "a number with H, M, S, m, u or n behind it is expected, such as 5S")
    seconds = int(match[1]) * _TIMEOUT_UNITS_S[match[2]]
    return asyncio.get_running_loop().time() + min(seconds, LONGEST_TIMEOUT_S)


class RequestReader:
    """Builds the request message of one route."""

    def __init__(self, route: Route, decoder: Decoder) -> None:
        self._route = route
        self._new = route.rpc.request_class
        self._decoder = decoder
        self._fill = decoder.compile(route.rpc.descriptor.input_type)
        taken = (*route.variable_fields, route.body) if route.body else route.variable_fields
        self._query = QueryReader(route.rpc.descriptor.input_type, taken=taken)

    async def read(self, request: web.BaseRequest, values: list[str], query: str) -> Message:
        route = self._route
        message = self._new()
        if route.body:
            body = await read_body(request)
            if body:
                check_content_type(request)
                await self._read_body(body, message)
        elif request.body_exists:
            raise BadInput("", f"{route.method} {route.template} takes no body")
        if query:
            if route.body == "*":
                raise BadInput("", f"{route.method} {route.template} takes no query; everything goes into the body")
            self._query.read(query, message)
        self._set_variables(message, values)
        return message

    def _set_variables(self, message: Message, values: list[str]) -> None:
        for setter, text in zip(self._route.variables, values, strict=True):
            if self._route.body == "*":
                before = setter.get(message)
                setter.set(message, text)
                if before and before != setter.get(message):
                    raise BadInput(setter.name, "the body and the path do not name the same")
            else:
                setter.set(message, text)

    async def _read_body(self, body: bytes, message: Message) -> None:
        if len(body) > THREAD_BYTES:
            await asyncio.get_running_loop().run_in_executor(None, self._decode, body, message)
        else:
            self._decode(body, message)

    def _decode(self, body: bytes, message: Any) -> None:
        value = parse_json(body)
        if self._route.body == "*":
            self._fill(message, value, "", 0)
            return
        part = getattr(message, self._route.body)
        part.SetInParent()
        self._decoder.decode(value, part)


def check_content_type(request: web.BaseRequest) -> None:
    given = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if given != "application/json":
        sent = f"{given[:60]} was sent" if given.isprintable() and given else "none was sent"
        raise HttpError(
            Code.INVALID_ARGUMENT, f"the body's Content-Type has to be application/json; {sent}", status=415
        )
    encoding = request.headers.get("Content-Encoding", "identity").lower()
    if encoding != "identity":
        raise HttpError(
            Code.INVALID_ARGUMENT, "the body must not be compressed; leave Content-Encoding out", status=415
        )


async def read_body(request: web.BaseRequest) -> bytes:
    """The whole body; HttpError when it is too long or takes too long."""
    announced = request.content_length
    if announced is not None and announced > MAX_BODY_BYTES:
        raise _too_long()
    if not request.body_exists:
        return b""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    parts: list[bytes] = []
    size_bytes = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while not request.content.at_eof():
                part = await request.content.readany()
                size_bytes += len(part)
                if size_bytes > MAX_BODY_BYTES:
                    raise _too_long()
                parts.append(part)
    except TimeoutError as error:
        raise HttpError(
            Code.DEADLINE_EXCEEDED, f"the body did not arrive within {BODY_TIMEOUT_S} s", status=408
        ) from error
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_long() -> HttpError:
    return HttpError(
        Code.OUT_OF_RANGE,
        f"the request's body is longer than {MAX_BODY_BYTES // 2**20} MiB; send fewer documents at a time",
        status=413,
    )
