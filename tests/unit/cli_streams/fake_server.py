"""A stand-in for the gateway on loopback: scripted answers, real HTTP and WebSocket.

It runs in a thread with an event loop of its own, because the command line is synchronous. A test sets
handlers by path; every request's path, query and body are kept in `requests`.
"""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from tests.patience import PATIENCE_S

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def frame(channel: int, data: bytes) -> bytes:
    return bytes([channel]) + len(data).to_bytes(4, "big") + data


def cursor(container: str, offset: int) -> bytes:
    return frame(254, json.dumps({"container": container, "nextOffset": str(offset)}).encode())


END = frame(255, b"{}")


class FakeServer:
    def __init__(self) -> None:
        self.handlers: dict[tuple[str, str], Handler] = {}
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        self.url = ""

    def on(self, method: str, path: str, handler: Handler) -> None:
        self.handlers[method, path] = handler

    def answer(self, method: str, path: str, document: object, *, status: int = 200) -> None:
        async def handle(request: web.Request) -> web.StreamResponse:
            return web.json_response(document, status=status)

        self.on(method, path, handle)

    def json_lines(self, path: str, messages: list[dict[str, Any]], *, hold_open: bool = False) -> None:
        """A stream of results; with `hold_open` it goes on silently until the client leaves."""

        async def handle(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            for message in messages:
                await response.write(json.dumps({"result": message}).encode() + b"\n")
            if hold_open:
                await asyncio.Event().wait()
            return response

        self.on("GET", path, handle)

    async def _dispatch(self, request: web.Request) -> web.StreamResponse:
        body = await request.json() if request.body_exists and request.method != "GET" else None
        self.requests.append((request.method, request.path, dict(request.query), body))
        handler = self.handlers.get((request.method, request.path))
        if handler is None:
            message = f"no handler for {request.method} {request.path}"
            return web.json_response({"code": 5, "message": message}, status=404)
        return await handler(request)


@contextmanager
def serving() -> Iterator[FakeServer]:
    """A server that listens while the block runs."""
    server = FakeServer()
    loop = asyncio.new_event_loop()
    ready, over = threading.Event(), asyncio.Event()

    async def serve() -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", server._dispatch)
        runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready.set()
        await over.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), name="fake-server")
    thread.start()
    try:
        assert ready.wait(PATIENCE_S)
        yield server
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(PATIENCE_S)
        loop.close()
        assert not thread.is_alive()
