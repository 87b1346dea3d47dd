"""Services that answer from nothing, and a gateway over them, for the gateway's tests."""

import asyncio
import http.client
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from pwm.api.v1 import audit_pb2 as audit
from pwm.api.v1 import resource_pb2
from pwm.api.v1 import services_pb2 as s
from pwm.api.v1.access_pb2 import Access
from pwm.api.v1.agent_pb2 import STDERR, STDOUT, ExecOutput
from pwm.api.v1.credits_pb2 import (
    ExplainReportResponse,
    GetCreditsResponse,
    GetGroupCreditsResponse,
    GetReportResponse,
)
from pwm.api.v1.services_pb2_grpc import (
    AdminServiceServicer,
    CreditServiceServicer,
    EventServiceServicer,
    LimitServiceServicer,
    LoginServiceServicer,
    NoticeServiceServicer,
    ResourceServiceServicer,
    SystemServiceServicer,
    TokenServiceServicer,
    UsageServiceServicer,
    WorkloadServiceServicer,
)
from pwm.api.v1.workload_pb2 import Workload
from pwm.controlplane.context import CallContext
from pwm.controlplane.errors import ApiError, not_found
from pwm.controlplane.gateway import Gateway, HealthReport
from pwm.controlplane.gateway.doorkeeper import Doorkeeper
from tests.patience import PATIENCE_S

TOKEN = "pwm_ann"
OTHER_TOKEN = "pwm_bob"
NOWHERE = Path("/nonexistent")
NODE_TOKEN = "pwm_node"

ann = {"Authorization": f"Bearer {TOKEN}"}


@dataclass(frozen=True)
class Caller:
    name: str
    node: bool = False

    ending: str = ""

    @property
    def token_id(self) -> str:
        return f"token-of-{self.name}"


@dataclass
class World:
    """What the fake services have seen and how they should behave."""

    requests: list[Any] = field(default_factory=list)
    contexts: list[CallContext] = field(default_factory=list)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    # A shell's client was done.
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    tokens: dict[str, Caller] = field(
        default_factory=lambda: {
            TOKEN: Caller("user:ann"),
            OTHER_TOKEN: Caller("user:bob"),
            NODE_TOKEN: Caller("node:n1", node=True),
        }
    )
    health: HealthReport = field(default_factory=lambda: HealthReport(ready=True))
    watch: Callable[[s.WatchRequest], AsyncIterator[s.WatchResponse]] | None = None
    logs: Callable[[s.LogsRequest], AsyncIterator[s.LogsResponse]] | None = None
    text: str = ""

    def note(self, request: Any, context: CallContext) -> None:
        self.requests.append(request)
        self.contexts.append(context)

    def services(self) -> list[tuple[Any, Any]]:
        by_name = s.DESCRIPTOR.services_by_name
        return [
            (by_name["SystemService"], System(self)),
            (by_name["ResourceService"], Resources(self)),
            (by_name["WorkloadService"], Workloads(self)),
            (by_name["UsageService"], Usage()),
            (by_name["EventService"], Events()),
            (by_name["TokenService"], Tokens()),
            (by_name["LoginService"], Logins()),
            (by_name["CreditService"], Credits()),
            (by_name["LimitService"], Limits()),
            (by_name["NoticeService"], Notices()),
            (by_name["AdminService"], Admin()),
        ]

    async def authenticate(self, token: str | None, peer: str) -> Caller:
        if token is None:
            return Caller("")
        caller = self.tokens.get(token)
        if caller is None:
            raise ApiError(grpc.StatusCode.UNAUTHENTICATED, "log in first", next_step="pwm login")
        return caller

    def authorize(self, access: Access, method: str) -> Callable[[Caller, Any], None]:
        def check(principal: Caller, request: Any) -> None:
            if principal.name == "user:bob" and access.verb:
                raise ApiError(grpc.StatusCode.PERMISSION_DENIED, f"bob may not {access.verb}")
            if access.node and not principal.node:
                raise ApiError(grpc.StatusCode.PERMISSION_DENIED, "for nodes only")

        return check


def workload(name: str = "train") -> Workload:
    made = Workload(api_version="v1", kind="Workload")
    made.metadata.name = name
    made.metadata.group = "vision"
    made.metadata.version = 7
    made.metadata.created_at.seconds = 1_700_000_000
    made.spec.image.image = "busybox"
    return made


class System(SystemServiceServicer):
    def __init__(self, world: World) -> None:
        self.world = world

    async def GetVersion(self, request: Any, context: Any) -> s.GetVersionResponse:
        self.world.note(request, context)
        return s.GetVersionResponse(version="3.0.0", api_version="v1", oldest_client="3.0.0")

    async def WhoAmI(self, request: Any, context: Any) -> s.WhoAmIResponse:
        self.world.note(request, context)
        return s.WhoAmIResponse(user=context.principal.name, groups=["vision"])

    async def GetAuthorities(self, request: Any, context: Any) -> s.GetAuthoritiesResponse:
        return s.GetAuthoritiesResponse()

    async def Join(self, request: Any, context: Any) -> s.JoinResponse:
        return s.JoinResponse()


class Resources(ResourceServiceServicer):
    def __init__(self, world: World) -> None:
        self.world = world

    async def Apply(self, request: s.ApplyRequest, context: Any) -> s.ApplyResponse:
        self.world.note(request, context)
        return s.ApplyResponse(results=[s.ApplyResult(outcome=s.ApplyResult.CREATED) for _ in request.documents])

    async def Get(self, request: s.GetRequest, context: Any) -> s.GetResponse:
        self.world.note(request, context)
        if request.name == "absent":
            raise not_found("there is no workload absent", next_step="pwm get wk lists those there are")
        if request.name == "broken":
            raise RuntimeError("a secret that no caller may read")
        if request.name == "slow":
            self.world.started.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.world.cancelled.set()
        if request.name == "held":
            self.world.started.set()
            await self.world.go_on.wait()
        return s.GetResponse(resource=resource_pb2.Resource(workload=workload(request.name)), revision=42)

    async def List(self, request: s.ListRequest, context: Any) -> s.ListResponse:
        self.world.note(request, context)
        return s.ListResponse(text=self.world.text, revision=42, count=3)

    async def Watch(self, request: s.WatchRequest, context: Any) -> AsyncIterator[s.WatchResponse]:
        self.world.note(request, context)
        if self.world.watch is not None:
            async for message in self.world.watch(request):
                yield message
            return
        for revision in (1, 2, 3):
            yield s.WatchResponse(
                type=s.WatchResponse.ADDED, resource=resource_pb2.Resource(workload=workload()), revision=revision
            )

    async def Delete(self, request: s.DeleteRequest, context: Any) -> s.DeleteResponse:
        self.world.note(request, context)
        return s.DeleteResponse(revision=1)


class Workloads(WorkloadServiceServicer):
    """Inspect and Processes are left to the generated class, which answers UNIMPLEMENTED."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def Stop(self, request: s.StopRequest, context: Any) -> s.StopResponse:
        self.world.note(request, context)
        return s.StopResponse(revision=2**53 + 1, changed=True)

    async def Keep(self, request: s.KeepRequest, context: Any) -> s.KeepResponse:
        self.world.note(request, context)
        return s.KeepResponse(revision=1)

    async def Scale(self, request: s.ScaleRequest, context: Any) -> s.ScaleResponse:
        self.world.note(request, context)
        return s.ScaleResponse(revision=1)

    async def Restart(self, request: s.RestartRequest, context: Any) -> s.RestartResponse:
        self.world.note(request, context)
        return s.RestartResponse(revision=1)

    async def Why(self, request: s.WhyRequest, context: Any) -> s.WhyResponse:
        self.world.note(request, context)
        return s.WhyResponse(queue_position=1)

    async def Logs(self, request: s.LogsRequest, context: Any) -> AsyncIterator[s.LogsResponse]:
        self.world.note(request, context)
        if self.world.logs is not None:
            async for message in self.world.logs(request):
                yield message
            return
        yield s.LogsResponse(stream=STDOUT, data=b"one\n", container="train.0.1", next_offset=4)
        yield s.LogsResponse(stream=STDERR, data=b"two\xff\n", container="train.0.1", next_offset=9)
        yield s.LogsResponse(container="train.0.1", next_offset=9)

    async def CreateExecTicket(self, request: Any, context: Any) -> s.CreateExecTicketResponse:
        return s.CreateExecTicketResponse(ticket="pwmticket_secret")

    async def Exec(self, requests: AsyncIterator[s.ExecRequest], context: Any) -> AsyncIterator[s.ExecResponse]:
        """Echoes input on stdout, says sizes on stderr, ends with code 3 when the input is closed."""
        try:
            async for request in requests:
                self.world.note(request, context)
                self.world.started.set()
                kind = request.input.WhichOneof("input")
                if request.HasField("start"):
                    if request.start.name == "absent":
                        raise not_found("there is no workload absent")
                elif kind == "stdin":
                    yield s.ExecResponse(output=ExecOutput(stdout=request.input.stdin))
                elif kind == "resize":
                    size = f"{request.input.resize.columns}x{request.input.resize.rows}"
                    yield s.ExecResponse(output=ExecOutput(stderr=size.encode()))
                elif kind == "close_stdin":
                    yield s.ExecResponse(output=ExecOutput(exit_code=3))
                    return
                elif kind == "hang_up":
                    self.world.hung_up.set()
                    return
        finally:
            self.world.cancelled.set()


class Usage(UsageServiceServicer):
    async def Top(self, request: Any, context: Any) -> AsyncIterator[s.TopResponse]:
        yield s.TopResponse(nodes=[s.NodeTop(name="n1")])


class Events(EventServiceServicer):
    async def ListEvents(self, request: Any, context: Any) -> AsyncIterator[s.ListEventsResponse]:
        yield s.ListEventsResponse(text="something happened")

    async def ListAudit(self, request: Any, context: Any) -> audit.ListAuditResponse:
        return audit.ListAuditResponse()

    async def StreamAudit(self, request: Any, context: Any) -> AsyncIterator[audit.StreamAuditResponse]:
        yield audit.StreamAuditResponse(text="somebody did something")


class Tokens(TokenServiceServicer):
    async def CreateToken(self, request: Any, context: Any) -> s.CreateTokenResponse:
        return s.CreateTokenResponse(token="pwm_secret")

    async def ListTokens(self, request: Any, context: Any) -> s.ListTokensResponse:
        return s.ListTokensResponse(tokens=[s.TokenEntry(name="laptop")])

    async def RevokeTokens(self, request: Any, context: Any) -> s.RevokeTokensResponse:
        return s.RevokeTokensResponse()


class Logins(LoginServiceServicer):
    async def GetProvider(self, request: Any, context: Any) -> s.GetProviderResponse:
        return s.GetProviderResponse()

    async def BeginLogin(self, request: Any, context: Any) -> s.BeginLoginResponse:
        return s.BeginLoginResponse(user_code="ABCD-EFGH")

    async def CompleteLogin(self, request: Any, context: Any) -> s.CompleteLoginResponse:
        return s.CompleteLoginResponse(state=s.CompleteLoginResponse.PENDING)


class Credits(CreditServiceServicer):
    async def GetCredits(self, request: Any, context: Any) -> GetCreditsResponse:
        return GetCreditsResponse()

    async def GetGroupCredits(self, request: Any, context: Any) -> GetGroupCreditsResponse:
        return GetGroupCreditsResponse()

    async def GetReport(self, request: Any, context: Any) -> GetReportResponse:
        return GetReportResponse()

    async def ExplainReport(self, request: Any, context: Any) -> ExplainReportResponse:
        return ExplainReportResponse()


class Limits(LimitServiceServicer):
    async def GetLimits(self, request: Any, context: Any) -> s.GetLimitsResponse:
        return s.GetLimitsResponse(accounts=[s.Account(kind="User", name=request.user)])

    async def GetGroupLimits(self, request: Any, context: Any) -> s.GetGroupLimitsResponse:
        return s.GetGroupLimitsResponse(accounts=[s.Account(kind="Group", name=request.group)])


class Notices(NoticeServiceServicer):
    async def GetNotices(self, request: Any, context: Any) -> s.GetNoticesResponse:
        return s.GetNoticesResponse(email="ann@example.org")

    async def SetNotices(self, request: Any, context: Any) -> s.SetNoticesResponse:
        return s.SetNoticesResponse(notify=request.notify)


class Admin(AdminServiceServicer):
    async def Can(self, request: Any, context: Any) -> s.CanResponse:
        return s.CanResponse(allowed=True)

    async def GetStatus(self, request: Any, context: Any) -> s.GetStatusResponse:
        return s.GetStatusResponse(revision=1)

    async def Verify(self, request: Any, context: Any) -> s.VerifyResponse:
        return s.VerifyResponse(streams=1)

    async def CreateJoinToken(self, request: Any, context: Any) -> s.CreateJoinTokenResponse:
        return s.CreateJoinTokenResponse(token="pwmjoin_secret")

    async def RotateAuthority(self, request: Any, context: Any) -> s.RotateAuthorityResponse:
        return s.RotateAuthorityResponse()

    async def CreateNodeToken(self, request: Any, context: Any) -> s.CreateNodeTokenResponse:
        return s.CreateNodeTokenResponse(token="pwm_secret")

    async def ListNodeCredentials(self, request: Any, context: Any) -> s.ListNodeCredentialsResponse:
        return s.ListNodeCredentialsResponse()

    async def RevokeNodeCredentials(self, request: Any, context: Any) -> s.RevokeNodeCredentialsResponse:
        return s.RevokeNodeCredentialsResponse()

    async def ConfirmDead(self, request: Any, context: Any) -> s.ConfirmDeadResponse:
        return s.ConfirmDeadResponse()

    async def Drill(self, request: Any, context: Any) -> s.DrillResponse:
        return s.DrillResponse()

    async def AcceptRestore(self, request: Any, context: Any) -> s.AcceptRestoreResponse:
        return s.AcceptRestoreResponse()


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.body.splitlines()]


@dataclass
class Running:
    """A gateway that listens, and a client for it from the standard library."""

    gateway: Gateway
    world: World
    port: int
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def connect(self, **settings: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A bare connection, closed with the gateway at the latest."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, **settings)
        self.writers.append(writer)
        return reader, writer

    async def disconnect(self) -> None:
        for writer in self.writers:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        return await asyncio.to_thread(self._ask, method, path, body, {**ann, **(headers or {})})

    async def get(self, path: str, **headers: str) -> Answer:
        return await self.ask("GET", path, headers={key.replace("_", "-"): value for key, value in headers.items()})

    def _ask(self, method: str, path: str, body: Any, headers: dict[str, str]) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            if body is not None and not isinstance(body, bytes):
                body = json.dumps(body).encode()
            if body is not None:
                headers = {"Content-Type": "application/json", **headers}
            connection.request(method, path, body, {k: v for k, v in headers.items() if v})
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()


@asynccontextmanager
async def running(
    world: World | None = None, *, webui: Path = NOWHERE, door: Doorkeeper | None = None, **more: Any
) -> AsyncIterator[Running]:
    world = world or World()
    gateway = Gateway(
        services=world.services(),
        authenticate=world.authenticate,
        authorize=world.authorize,
        health=lambda: world.health,
        registry=CollectorRegistry(),
        title="PWM",
        version="3.0.0",
        webui=webui,
        door=door,
        **more,
    )
    port = await gateway.start("127.0.0.1", 0)
    started = Running(gateway, world, port)
    try:
        yield started
    finally:
        await started.disconnect()
        await gateway.stop(0.2)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def gateway(world: World) -> AsyncIterator[Running]:
    async with running(world) as started:
        yield started


@pytest.fixture
def start() -> Any:
    """Starts a gateway with other settings: `async with start(world, webui=folder) as gateway`."""
    return running
