"""A provider that answers what a test wants it to, right or wrong, on this machine and without TLS.

For what no real provider does; that all works with one is shown in `tests/integration/test_oidc.py`.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import web

from tests.unit.oidc.signing import claims, jwk, private_key, signed

Answer = Any  # a dict: JSON; (status, dict); bytes; or what makes a response of a request

BEGUN = {"device_code": "DEVICE", "user_code": "ABCD-EFGH", "expires_in": 600, "interval": 5}
PENDING = (400, {"error": "authorization_pending"})


@dataclass
class StandIn:
    url: str = ""
    # By path, what is answered instead of what would be right.
    answers: dict[str, Answer] = field(default_factory=dict)
    # What was asked: path, fields of the form, headers.
    asked: list[tuple[str, dict[str, str], dict[str, str]]] = field(default_factory=list)
    # The keys it signs with now, and shows.
    keys: list[dict[str, Any]] = field(default_factory=lambda: [jwk(private_key("RS256"), "RS256")])

    @property
    def about(self) -> dict[str, Any]:
        places = {
            "device_authorization_endpoint": "/device", "token_endpoint": "/token", "jwks_uri": "/keys",
            "userinfo_endpoint": "/userinfo",
        }  # fmt: skip
        return {"issuer": self.url, **{name: self.url + path for name, path in places.items()}}

    def claims(self, **changed: Any) -> dict[str, Any]:
        """Of ann, from here."""
        return claims(**{"iss": self.url, "email": "ann@example.org", "email_verified": True, **changed})

    def confirm(self, token: str | None = None, **changed: Any) -> None:
        """From now on the code counts as confirmed. `token`: another ID token than the right one."""
        self.answers["/token"] = {"id_token": token or signed(self.claims(**changed)), "access_token": "ACCESS"}

    def paths(self) -> list[str]:
        return [path for path, _, _ in self.asked]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        form = dict(parse_qsl((await request.read()).decode(), keep_blank_values=True))
        self.asked.append((request.path, form, dict(request.headers)))
        usual: dict[str, Answer] = {
            "/.well-known/openid-configuration": self.about,
            "/device": {**BEGUN, "verification_uri": f"{self.url}/code"},
            "/token": PENDING,
            "/keys": {"keys": self.keys},
            "/userinfo": {"sub": self.claims()["sub"]},
        }
        answer = self.answers.get(request.path, usual.get(request.path, (404, {})))
        if callable(answer):
            made: web.StreamResponse = await answer(request)
            return made
        if isinstance(answer, bytes):
            return web.Response(body=answer)
        status, content = answer if isinstance(answer, tuple) else (200, answer)
        return web.json_response(content, status=status)


async def never(request: web.Request) -> web.StreamResponse:
    """Listens and says nothing."""
    await asyncio.Event().wait()
    raise AssertionError


def drips(part: bytes, pause_s: float) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Answers without an end, part by part."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(part)
            await asyncio.sleep(pause_s)

    return answer


@asynccontextmanager
async def a_stand_in() -> AsyncIterator[StandIn]:
    made = StandIn()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        made.url = f"http://{host}:{port}"
        yield made
    finally:
        await runner.cleanup()
