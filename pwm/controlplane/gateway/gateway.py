"""The gateway: HTTP/JSON in front of the services, in the same process.

A request goes through the same few steps whatever it asks: find its rpc in the descriptors' routes, find out who calls,
read the message, ask whether this caller may, call the servicer's method as a plain coroutine, write what it
returns. There is no gRPC hop in between, and nothing here knows what a workload is: a new rpc in the proto files is
served without a line of new code.

    routes ─ which rpc     requests, query, decoding ─ the message      encoding ─ its JSON
    streams ─ NDJSON, SSE, frames      websocket ─ Exec      failures ─ errors      openapi, site ─ the rest

An rpc whose proto has no `access` option is denied to everybody.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import structlog
from aiohttp import web
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from prometheus_client import CollectorRegistry

import pwm
from pwm.api.v1.access_pb2 import Access
from pwm.controlplane.context import CALL, CallContext
from pwm.controlplane.core.antechamber import NO_LIMITS, ConnectionLimits
from pwm.controlplane.errors import ApiError, LoginFailed
from pwm.controlplane.gateway import failures, requests, responses, streams, websocket
from pwm.controlplane.gateway.decoding import Decoder
from pwm.controlplane.gateway.doorkeeper import Doorkeeper
from pwm.controlplane.gateway.encoding import Encoder
from pwm.controlplane.gateway.failures import Code
from pwm.controlplane.gateway.metrics import Metrics, RpcMetrics
from pwm.controlplane.gateway.open_streams import MAX_STREAMS_PER_PRINCIPAL, OpenStreams
from pwm.controlplane.gateway.routes import Route, Routes, Rpc
from pwm.controlplane.gateway.scalars import BadInput
from pwm.controlplane.gateway.server import HttpServer, somebody_is_known
from pwm.controlplane.gateway.site import HealthReport, Pages

log = structlog.get_logger(__name__)


class Principal(Protocol):
    """Who calls. The gateway reads the name, to count open streams, and with the token's id requests.

    `ending`: when the token ends, if it is soon; what clients are told.
    """

    @property
    def name(self) -> str: ...

    @property
    def token_id(self) -> str: ...

    @property
    def ending(self) -> str: ...


class Admission(Protocol):
    """Somebody let in by a ticket."""

    @property
    def principal(self) -> Principal: ...

    async def again(self) -> Principal:
        """Who it is now; ApiError if nobody any more."""
        ...

    def check(self, first: Any) -> None:
        """ApiError unless the first message asks for what the ticket is for."""
        ...


# Who a token from an address speaks for; ApiError if for nobody. None: the anonymous caller of a public rpc.
Authenticate = Callable[[str | None, str], Awaitable[Principal]]
# The same of a header Authorization, if it is known already and nothing has changed; None: it has to be authenticated.
Recognize = Callable[[str, str], Principal | None]
# Who a ticket from an address speaks for, instead of a token, and what for; ApiError if for nobody.
Redeem = Callable[[str, str], Awaitable[Admission]]
# Whether a caller may make this request of an rpc; ApiError if not.
Check = Callable[[Any, Message], None]
# The check of an rpc, by its access rule and its name (`ResourceService.Get`).
Authorize = Callable[[Access, str], Check]


# What load balancers ask again and again, from an address that others come from, too; and what asks for a token itself.
OPEN_PAGES = frozenset({"/healthz", "/readyz", "/metrics"})

# Where `make webui` leaves the built files, in a checkout and in a wheel.
WEBUI = Path(pwm.__file__).parent / "webui" / "static"


@dataclass(frozen=True, eq=False)
class _Endpoint:
    """A route with all that is worked out once and used at each request."""

    route: Route
    rpc: Rpc
    reader: requests.RequestReader
    metrics: RpcMetrics
    # None: it is public, or for nobody.
    check: Check | None


class Gateway:
    """
    services:     the servicers by their descriptors
    authenticate: see Authenticate
    recognize:    see Recognize; without it each request is authenticated
    authorize:    see Authorize; not asked for public rpcs
    redeem:       see Redeem; without it nobody comes with a ticket
    health:       whether this replica can serve, for /readyz
    registry:     what /metrics shows
    door:         who is sent away for asking too much; without it nobody is
    connections:  how many of those over which no valid token came are kept
    tls:          None: plain HTTP
    webui:        folder of the built web app; may be missing
    """

    def __init__(
        self,
        *,
        services: Iterable[tuple[ServiceDescriptor, Any]],
        authenticate: Authenticate,
        authorize: Authorize,
        health: Callable[[], HealthReport],
        registry: CollectorRegistry,
        title: str,
        version: str,
        recognize: Recognize = lambda authorization, peer: None,
        redeem: Redeem | None = None,
        door: Doorkeeper | None = None,
        connections: ConnectionLimits = NO_LIMITS,
        tls: ssl.SSLContext | None = None,
        webui: Path = WEBUI,
        most_streams: int = MAX_STREAMS_PER_PRINCIPAL,
    ) -> None:
        self._authenticate = authenticate
        self._recognize = recognize
        self._authorize = authorize
        self._redeem = redeem
        self._door = door or Doorkeeper()
        self._encoder, decoder = Encoder(), Decoder()
        self._routes = Routes(services)
        metrics = Metrics(registry)
        by_rpc = {route.rpc.name: metrics.rpc(route.rpc.name) for route in self._routes.all}
        self._unrouted = metrics.rpc("")
        self._endpoints: dict[Route, _Endpoint] = {
            route: _Endpoint(
                route,
                route.rpc,
                requests.RequestReader(route, decoder),
                by_rpc[route.rpc.name],
                authorize(route.rpc.access, route.rpc.name)
                if route.rpc.access and not route.rpc.access.public
                else None,
            )
            for route in self._routes.all
        }
        for route in self._routes.all:
            self._encoder.compile(route.rpc.descriptor.output_type)
        self._sockets = websocket.ExecSocket(self._encoder, decoder)
        self._pages = Pages(
            routes=self._routes, title=title, version=version, health=health, registry=registry, webui=webui,
            admit=self._admit_page,
        )  # fmt: skip
        self._streams = OpenStreams(most_streams)
        self._server = HttpServer(self._handle, tls=tls, limits=connections, many=self._door.is_proxy)
        self._rechecking: asyncio.Task[None] | None = None
        self._running = 0
        self._stopping = False
        self._idle = asyncio.Event()

    async def start(self, host: str, port: int) -> int:
        """Listens; returns the bound port."""
        bound = await self._server.start(host, port)
        self._rechecking = asyncio.get_running_loop().create_task(self._streams.recheck_for_ever())
        return bound

    def recheck_soon(self) -> None:
        """Checks the callers of all open streams again: something has changed about who may do what."""
        self._streams.recheck_soon()

    @property
    def strangers(self) -> int:
        """Open connections over which no valid token came."""
        return self._server.arrivals.strangers

    @property
    def pushed_out(self) -> int:
        """How many of them had to go for newer ones."""
        return self._server.arrivals.pushed_out

    async def stop(self, grace_s: float) -> None:
        """Ends open streams with UNAVAILABLE, lets running calls end for `grace_s`, then closes everything."""
        self._stopping = True
        self._server.stop_listening()
        self._streams.end_all(failures.shutting_down())
        try:
            async with asyncio.timeout(grace_s):
                if self._running:
                    await self._idle.wait()
        except TimeoutError:
            log.warning("calls did not end in time and are cut off", calls=self._running, grace_s=grace_s)
        await self._server.stop()
        if self._rechecking is not None:
            self._rechecking.cancel()
            await asyncio.gather(self._rechecking, return_exceptions=True)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self._running += 1
        try:
            return await self._answer(request)
        finally:
            self._running -= 1
            if self._stopping and not self._running:
                self._idle.set()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answers a request; every error becomes an answer here."""
        request_id = requests.request_id(request)
        metrics = self._unrouted
        try:
            path, _, query = requests.target(request).partition("?")
            page = self._pages.find(path)
            if page is not None:
                if path not in OPEN_PAGES:
                    self._door.knock(self._door.address(request))
                return await page(request, request_id)
            endpoint, values = self._find(request, path)
            metrics = endpoint.metrics
            return await self._call(endpoint, request, values, query, request_id)
        except ApiError as error:
            return self._refusal(error, request_id, metrics)
        except BadInput as error:
            return self._refusal(failures.from_bad_input(error), request_id, metrics)
        except asyncio.CancelledError:
            metrics.count(Code.CANCELLED)
            raise
        except ConnectionError:
            metrics.count(Code.CANCELLED)
            raise
        except Exception:
            log.exception("a call failed", request_id=request_id, method=request.method, path=request.raw_path[:200])
            return self._refusal(failures.internal(request_id), request_id, metrics)

    def _refusal(self, error: ApiError, request_id: str, metrics: RpcMetrics) -> web.Response:
        metrics.count(error.code)
        return responses.error(error, request_id, close=self._stopping)

    def _find(self, request: web.BaseRequest, path: str) -> tuple[_Endpoint, list[str]]:
        method = request.method
        routes, values = self._routes.find(path)
        route = routes.get(method)
        if route is None:
            self._door.knock(self._door.address(request))
            raise failures.wrong_method(method, path, sorted(routes)) if routes else failures.no_route(path)
        return self._endpoints[route], values

    async def _call(
        self, endpoint: _Endpoint, request: web.BaseRequest, values: list[str], query: str, request_id: str
    ) -> web.StreamResponse:
        rpc, access, peer = endpoint.rpc, endpoint.rpc.access, self._door.address(request)
        if access is None:
            raise ApiError(Code.PERMISSION_DENIED, f"{rpc.name} may be called by nobody: it has no access rule")
        admission = await self._admission(request, query, peer) if rpc.bidirectional else None
        if access.public:
            self._door.knock(peer)
            principal = await self._authenticate(None, peer)
        elif admission is not None:
            principal = admission.principal
        else:
            principal = await self._identify(request, peer)
        context = CallContext(
            principal=principal,
            peer=peer,
            idempotency_key=requests.idempotency_key(request),
            request_id=request_id,
            deadline=requests.deadline(request),
        )
        CALL.set(context)
        if rpc.call is None:
            raise ApiError(Code.UNIMPLEMENTED, f"{rpc.name} is not offered by this controller")
        if rpc.bidirectional:
            return await self._exec(endpoint, request, context, admission)
        message = await endpoint.reader.read(request, values, query)
        if endpoint.check is not None:
            endpoint.check(principal, message)
        if rpc.streams:
            return await self._stream(endpoint, request, message, context)
        try:
            return await self._unary(endpoint, request, message, context)
        except LoginFailed as error:
            # What is open to everybody may ask for a credential of another kind.
            self._let_nobody_in(error, peer)

    async def _admission(self, request: web.BaseRequest, query: str, peer: str) -> Admission | None:
        """What a ticket in the query stands for; None where there is none, or a token. Raises ApiError."""
        ticket = requests.ticket(query) if query and requests.bearer_token(request) is None else ""
        if not ticket or self._redeem is None:
            return None
        try:
            admission = await self._redeem(ticket, peer)
        except ApiError as error:
            if error.code is not Code.UNAUTHENTICATED:
                raise
            self._let_nobody_in(error, peer)
        self._door.visit(peer, admission.principal)
        somebody_is_known(request)
        return admission

    async def _identify(self, request: web.BaseRequest, peer: str) -> Principal:
        """Who shows a token, and that he may ask for more. Raises ApiError."""
        principal = self._recognize(request.headers.get("Authorization", ""), peer)
        if principal is None:
            principal = await self._look_at(requests.bearer_token(request), peer)
        self._door.visit(peer, principal)
        somebody_is_known(request)
        return principal

    async def _look_at(self, token: str | None, peer: str) -> Principal:
        if token is None:
            self._door.knock(peer)
            raise failures.no_token()
        try:
            return await self._authenticate(token, peer)
        except ApiError as error:
            if error.code is not Code.UNAUTHENTICATED:
                raise
            self._let_nobody_in(error, peer)

    def _let_nobody_in(self, error: ApiError, peer: str) -> NoReturn:
        answer = self._door.fail(peer, error)
        if answer is error:
            raise error
        raise answer from error

    async def _unary(
        self, endpoint: _Endpoint, request: web.BaseRequest, message: Message, context: CallContext
    ) -> web.StreamResponse:
        call = endpoint.rpc.call
        assert call is not None
        loop = asyncio.get_running_loop()
        started = loop.time()
        if context.deadline is None:
            answer = await call(message, context)
        else:
            try:
                async with asyncio.timeout_at(context.deadline) as limit:
                    answer = await call(message, context)
            except TimeoutError as error:
                if not limit.expired():
                    raise
                raise failures.deadline_exceeded() from error
        body = self._encoder.encode(answer)
        endpoint.metrics.took(loop.time() - started)
        endpoint.metrics.count(Code.OK)
        ending = context.principal.ending
        return await responses.json(request, body, context.request_id, close=self._stopping, ending=ending)

    async def _stream(
        self, endpoint: _Endpoint, request: web.BaseRequest, message: Message, context: CallContext
    ) -> web.StreamResponse:
        rpc = endpoint.rpc
        assert rpc.call is not None
        form = streams.choose_form(request.headers.get("Accept", ""), rpc.response_class, rpc.raw_stream, self._encoder)
        recheck = self._recheck(endpoint, requests.bearer_token(request), context.peer, message)
        with (
            self._streams.open(_owner(context), recheck, deadline=context.deadline) as stream,
            endpoint.metrics.streaming(),
        ):
            response, error = await streams.send(
                request,
                rpc.call(message, context),
                form=form,
                stream=stream,
                headers=responses.headers(context.request_id, ending=context.principal.ending),
                request_id=context.request_id,
            )
        endpoint.metrics.count(error.code if error else Code.OK)
        return response

    async def _exec(
        self, endpoint: _Endpoint, request: web.BaseRequest, context: CallContext, admission: Admission | None
    ) -> web.StreamResponse:
        rpc = endpoint.rpc

        async def admit(first: Message) -> Callable[[], Awaitable[None]]:
            recheck = self._recheck(endpoint, requests.bearer_token(request), context.peer, first, admission)
            if admission is not None:
                admission.check(first)
            if endpoint.check is not None:
                endpoint.check(context.principal, first)
            return recheck

        with (
            self._streams.open(_owner(context), _nothing, deadline=context.deadline) as stream,
            endpoint.metrics.streaming(),
        ):
            response, error = await self._sockets.serve(request, rpc, context, stream=stream, admit=admit)
        endpoint.metrics.count(error.code if error else Code.OK)
        return response

    def _recheck(
        self, endpoint: _Endpoint, token: str | None, peer: str, message: Message, admission: Admission | None = None
    ) -> Callable[[], Awaitable[None]]:
        async def recheck() -> None:
            if endpoint.check is not None:
                principal = await (admission.again() if admission is not None else self._authenticate(token, peer))
                endpoint.check(principal, message)

        return recheck

    async def _admit_page(self, request: web.BaseRequest, access: Access, name: str) -> None:
        """Lets a caller see a page that is no rpc; ApiError if not."""
        peer = self._door.address(request)
        principal = await self._identify(request, peer)
        CALL.set(CallContext(principal=principal, peer=peer))
        self._authorize(access, name)(principal, access)


def _owner(context: CallContext) -> str:
    """Whose streams are counted together: a caller's, or an address's where the rpc is public."""
    return str(context.principal.name) or context.peer


async def _nothing() -> None:
    """A socket that has not said what it wants yet has nothing to be checked for."""
