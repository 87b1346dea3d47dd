"""What is served beside the API: health, metrics, the OpenAPI document, the web app.

/healthz says that the process answers, /readyz that it can serve; both are open to everybody and tell a stranger
nothing more. Reasons and metrics are for those who may `get` the `Cluster`. The web app is a folder of built
files; without it `/` says what this server is. Its headers let pages load from here only and run no inline script.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import orjson
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from pwm.api.v1.access_pb2 import Access
from pwm.controlplane.gateway import failures, openapi, requests, responses
from pwm.controlplane.gateway.routes import Routes

Page = Callable[[web.BaseRequest, str], Awaitable[web.StreamResponse]]
# Lets the caller of a page in; ApiError if not.
Admit = Callable[[web.BaseRequest, Access, str], Awaitable[None]]

API_PREFIX = "/v1/"
# The build names these files after their content, so they never change.
IMMUTABLE_PREFIX = "/assets/"

READ_CLUSTER = Access(verb="get", kind="Cluster")

PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

PLACEHOLDER = b"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>PWM</title>
<h1>PWM</h1>
<p>The API of this PWM is here; <a href="/openapi.json">/openapi.json</a> describes it.
<p>The web app is not built into this copy. In a checkout <code>make webui</code> builds it;
the command line is <code>pwm</code>.
</html>
"""


@dataclass(frozen=True, slots=True)
class HealthReport:
    """Whether a replica can serve, and why not."""

    ready: bool
    reasons: tuple[str, ...] = ()


class Pages:
    def __init__(
        self,
        *,
        routes: Routes,
        title: str,
        version: str,
        health: Callable[[], HealthReport],
        registry: CollectorRegistry,
        webui: Path,
        admit: Admit,
    ) -> None:
        self._health = health
        self._registry = registry
        self._admit = admit
        self._webui = webui.resolve() if (webui / "index.html").is_file() else None
        self._describe_api = partial(openapi.document, routes, title=title, version=version)
        self._openapi = b""  # written when it is first asked for: it takes 50 ms
        self._pages: dict[str, Page] = {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/metrics": self._metrics,
            "/openapi.json": self._describe,
        }

    def find(self, path: str) -> Page | None:
        """The page at a path; None: it is the API's."""
        if path.startswith(API_PREFIX):
            return None
        return self._readable(self._pages.get(path, self._site))

    def _readable(self, page: Page) -> Page:
        async def answer(request: web.BaseRequest, request_id: str) -> web.StreamResponse:
            if request.method not in ("GET", "HEAD"):
                path = requests.target(request).partition("?")[0]
                raise failures.wrong_method(request.method, path, ["GET", "HEAD"])
            return await page(request, request_id)

        return answer

    async def _healthz(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        return await responses.json(request, b'{"alive":true}', request_id, close=False)

    async def _readyz(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        report = self._health()
        answer: dict[str, object] = {"ready": report.ready}
        if report.reasons and "Authorization" in request.headers:
            await self._admit(request, READ_CLUSTER, "readyz")
            answer["reasons"] = list(report.reasons)
        fields = {**responses.headers(request_id), "Content-Type": responses.JSON}
        return await responses.send(request, orjson.dumps(answer), fields, status=200 if report.ready else 503)

    async def _metrics(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        await self._admit(request, READ_CLUSTER, "metrics")
        fields = {**responses.headers(request_id), "Content-Type": CONTENT_TYPE_LATEST}
        return await responses.send(request, generate_latest(self._registry), fields)

    async def _describe(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        if not self._openapi:
            self._openapi = orjson.dumps(self._describe_api())
        return await responses.json(request, self._openapi, request_id, close=False)

    async def _site(self, request: web.BaseRequest, request_id: str) -> web.StreamResponse:
        raw = requests.target(request).partition("?")[0]
        if self._webui is None:
            if raw != "/":
                raise failures.no_route(raw)
            fields = {**PAGE_HEADERS, "Content-Type": "text/html; charset=utf-8", "Cache-Control": "no-cache"}
            return await responses.send(request, PLACEHOLDER, fields)
        file = await asyncio.get_running_loop().run_in_executor(None, find_file, self._webui, raw)
        if file is None and "text/html" in request.headers.get("Accept", ""):
            file = self._webui / "index.html"  # a page inside the app: its own router shows it
        if file is None:
            raise failures.no_route(raw)
        kept = "public, max-age=31536000, immutable" if raw.startswith(IMMUTABLE_PREFIX) else "no-cache"
        return web.FileResponse(file, headers={**PAGE_HEADERS, "Cache-Control": kept})


def find_file(folder: Path, raw_path: str) -> Path | None:
    """The file that a URL path names, if it is a regular file inside the folder."""
    try:
        name = unquote(raw_path, errors="strict").lstrip("/") or "index.html"
        file = (folder / name).resolve()
    except (ValueError, OSError):
        return None
    return file if file.is_relative_to(folder) and file.is_file() else None
