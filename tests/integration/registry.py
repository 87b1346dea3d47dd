"""A registry for tests: one image that can be pulled, in as much of the protocol as Docker needs for it.

Engines trust registries on loopback without TLS. `layer_delay_s`, between its chunks, makes a pull last. Who wants the
image `private` has to log in.
"""

import asyncio
import base64
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

BUSYBOX = Path("/bin/busybox")
_CHUNK_BYTES = 32 * 1024


class Registry:
    def __init__(self, *, username: str = "nobody", password: str = "") -> None:
        """With a password whoever pulls has to log in."""
        login = base64.b64encode(f"{username}:{password}".encode()).decode()
        self._accepted = f"Basic {login}" if password else ""
        self.address = ""
        self.layer_delay_s = 0.0
        self.manifests_asked = 0
        self.downloading = asyncio.Event()
        # The engine hung up before it had the whole layer.
        self.abandoned = asyncio.Event()
        layer = _layer()
        config = json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {"Cmd": ["/bin/busybox", "true"]},
                "rootfs": {"type": "layers", "diff_ids": [_digest(gzip.decompress(layer))]},
            }
        ).encode()
        self._blobs = {_digest(blob): blob for blob in (layer, config)}
        self._manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
                "config": {
                    "mediaType": "application/vnd.docker.container.image.v1+json",
                    "size": len(config),
                    "digest": _digest(config),
                },
                "layers": [
                    {
                        "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
                        "size": len(layer),
                        "digest": _digest(layer),
                    }
                ],
            }
        ).encode()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["Registry"]:
        app = web.Application()
        app.router.add_get("/v2/", self._hello)
        app.router.add_route("*", "/v2/{name:.+}/manifests/{reference}", self._get_manifest)
        app.router.add_get("/v2/{name:.+}/blobs/{digest}", self._get_blob)
        runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.address = "{}:{}".format(*runner.addresses[0])
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _hello(self, request: web.Request) -> web.Response:
        """Engines learn here whether they have to log in."""
        return web.json_response({}) if self._lets_in(request) or not self._accepted else _log_in()

    def _lets_in(self, request: web.Request) -> bool:
        return bool(self._accepted) and request.headers.get("Authorization") == self._accepted

    async def _get_manifest(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name == "private" and not self._lets_in(request):
            return _log_in()
        known = request.match_info["reference"] in ("latest", _digest(self._manifest))
        if name not in ("public", "private") or not known:
            return _error(404, "MANIFEST_UNKNOWN", "manifest unknown")
        self.manifests_asked += request.method == "GET"
        return web.Response(
            body=self._manifest,
            content_type="application/vnd.docker.distribution.manifest.v2+json",
            headers={"Docker-Content-Digest": _digest(self._manifest)},
        )

    async def _get_blob(self, request: web.Request) -> web.StreamResponse:
        blob = self._blobs.get(request.match_info["digest"])
        if blob is None:
            return _error(404, "BLOB_UNKNOWN", "blob unknown")
        response = web.StreamResponse(headers={"Content-Length": str(len(blob))})
        await response.prepare(request)
        try:
            for start in range(0, len(blob), _CHUNK_BYTES):
                await response.write(blob[start : start + _CHUNK_BYTES])
                if len(blob) > _CHUNK_BYTES:
                    self.downloading.set()
                    await asyncio.sleep(self.layer_delay_s)
        except (asyncio.CancelledError, ConnectionError):
            self.abandoned.set()
            raise
        return response


def _layer() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(BUSYBOX.resolve(), "bin/busybox")
        # Each registry has an image of its own: what one test pulled must not be there for the next.
        unique = tarfile.TarInfo("unique")
        unique.size = 32
        tar.addfile(unique, io.BytesIO(hashlib.sha256(str(id(buffer)).encode()).digest()))
    return gzip.compress(buffer.getvalue())


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _log_in() -> web.Response:
    answer = _error(401, "UNAUTHORIZED", "authentication required")
    answer.headers["WWW-Authenticate"] = 'Basic realm="tests"'
    return answer


def _error(status: int, code: str, message: str) -> web.Response:
    return web.json_response({"errors": [{"code": code, "message": message}]}, status=status)
