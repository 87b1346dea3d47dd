"""A controller and a driver that tests steer, and an agent between them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from pwm.api.v1 import agent_pb2_grpc
from pwm.api.v1.agent_pb2 import (
    Assignment,
    Assignments,
    Configure,
    ContainerSecrets,
    ContainerUsage,
    ExecOutput,
    Heard,
    Hello,
    OpenStream,
    PullProgress,
    RelayRequest,
    RelayResponse,
    Report,
    ReportsAcknowledged,
    SessionResponse,
    StartExec,
    TerminalSize,
    Welcome,
)
from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.node_pb2 import DriverInfo
from pwm.api.v1.workload_pb2 import ContainerSpec, ContainerStatus
from pwm.nodeagent.app import Agent
from pwm.nodeagent.config import AgentConfig
from pwm.nodeagent.drivers.driver import (
    NOTHING,
    Adopted,
    ContainerMissing,
    ContainerNotRunning,
    DriverError,
    Ended,
    EngineUnreachable,
    ImageMissing,
    LogFormat,
    LogSource,
    ProcessTable,
    Runtime,
    Started,
)
from pwm.nodeagent.host import Host
from pwm.nodeagent.journal import Journal
from pwm.nodeagent.logs.docker_local import encode
from tests.patience import PATIENCE_S

TOKEN = "pwm_test"


async def until(condition: Callable[[], Any]) -> Any:
    """The condition's value once it is true; fails the test when it never is."""
    async with asyncio.timeout(PATIENCE_S):
        # Conditions are of any kind, so there is no event to wait for.
        while not (value := condition()):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    return value


def order(uid: str, *, desired: Assignment.Desired.ValueType = Assignment.RUN, **spec: Any) -> Assignment:
    spec = {"workload": uid, "attempt": 1, "image": "busybox", "driver": "pwm.fake", **spec}
    return Assignment(uid=uid, name=f"{uid}.0.1", group="lab", desired=desired, spec=ContainerSpec(**spec))


# -- the driver


@dataclass
class FakeContainer:
    runtime_id: str
    runtime: Runtime = Runtime.CREATED
    ended: Ended | None = None
    gone: bool = False
    ignores_stop: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class FakeDriver:
    """Containers in memory. They survive the agent, as real ones do; `calls` tells what was asked."""

    name = "pwm.fake"

    def __init__(self) -> None:
        self.containers: dict[str, FakeContainer] = {}
        self.calls: list[tuple[str, str]] = []
        self.images = {"busybox"}
        self.pullable = {"pullable"}
        self.pull_may_end = asyncio.Event()
        self.start_may_end = asyncio.Event()
        self.start_may_end.set()
        self.pull_may_end.set()
        self.away = False
        # What the next create or start raises.
        self.create_error: DriverError | None = None
        self.start_error: DriverError | None = None
        self.output_dir: Path | None = None
        self._made = 0

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def close(self) -> None: ...

    async def probe(self) -> DriverInfo:
        return DriverInfo(
            name=self.name, version="1", ready=not self.away, message="the engine is away" if self.away else ""
        )

    def count(self, call: str, uid: str) -> int:
        return self.calls.count((call, uid))

    def _call(self, call: str, uid: str) -> None:
        self.calls.append((call, uid))
        if self.away:
            raise EngineUnreachable("the engine is away")

    async def prepare(
        self, assignment: Assignment, progress: Callable[[PullProgress], None], given: ContainerSecrets = NOTHING
    ) -> None:
        self._call("prepare", assignment.uid)
        progress(PullProgress(current_bytes=1, total_bytes=2, message="Downloading"))
        await self.pull_may_end.wait()
        if assignment.spec.image not in self.pullable | self.images:
            raise DriverError(Reason.IMAGE_NOT_PRESENT, "there is no such image anywhere")
        self.images.add(assignment.spec.image)

    async def create(self, assignment: Assignment, given: ContainerSecrets = NOTHING) -> str:
        uid = assignment.uid
        self._call("create", uid)
        if self.create_error:
            raise self.create_error
        if assignment.spec.image not in self.images:
            raise ImageMissing("not here")
        if uid not in self.containers:
            self._made += 1
            self.containers[uid] = FakeContainer(f"runtime-{self._made}")
            self.print(uid, b"")
        return self.containers[uid].runtime_id

    async def start(self, uid: str) -> Started:
        self._call("start", uid)
        await self.start_may_end.wait()
        if self.start_error:
            raise self.start_error
        container = self._get(uid)
        assert container.runtime is Runtime.CREATED, "a container is started once"
        container.runtime = Runtime.RUNNING
        return Started(started_at_ns=1_000_000_000)

    async def wait(self, uid: str) -> Ended:
        container = self._get(uid)
        while container.ended is None and not container.gone:
            container.changed.clear()
            await container.changed.wait()
        if container.gone or container.ended is None:
            raise ContainerMissing
        return container.ended

    async def stop(self, uid: str, *, grace_ms: int) -> None:
        self._call("stop", uid)
        container = self._get(uid)
        if container.ignores_stop:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_ms / 1000):
                    while container.ended is None:
                        container.changed.clear()
                        await container.changed.wait()
        self.end(uid, 137 if container.ignores_stop else 143)

    async def remove(self, uid: str) -> None:
        self._call("remove", uid)
        self.vanish(uid)

    async def adopt(self) -> list[Adopted]:
        self._call("adopt", "")
        return [
            Adopted(
                uid=uid,
                attempt=1,
                runtime=c.runtime,
                runtime_id=c.runtime_id,
                labels={"pwm.uid": uid, "pwm.attempt": "1"},
                started_at_ns=1_000_000_000,
                pid=42,
                ended=c.ended,
            )
            for uid, c in self.containers.items()
        ]

    async def exec(self, uid: str, request: StartExec) -> "FakeExec":
        if self._get(uid).runtime is not Runtime.RUNNING:
            raise ContainerNotRunning
        return FakeExec(request)

    async def inspect(self, uid: str) -> dict[str, Any]:
        return {"Id": self._get(uid).runtime_id}

    async def processes(self, uid: str) -> ProcessTable:
        return ProcessTable(titles=["PID"], rows=[["42"]])

    async def usage(self, uids: Collection[str]) -> list[ContainerUsage]:
        return [ContainerUsage(uid=uid, memory_bytes=7) for uid in uids]

    def output(self, uid: str) -> LogSource | None:
        if self.output_dir is None:
            return None
        return LogSource(LogFormat.DOCKER_LOCAL, self.output_dir / f"{uid}.log")

    def _get(self, uid: str) -> FakeContainer:
        if uid not in self.containers:
            raise ContainerMissing
        return self.containers[uid]

    # -- what tests do to containers

    def print(self, uid: str, data: bytes) -> None:
        if self.output_dir is not None:
            with (self.output_dir / f"{uid}.log").open("ab") as file:
                if data:
                    file.write(encode(stderr=False, time_ns=1_000_000_000, data=data))

    def end(self, uid: str, exit_code: int, *, oom_killed: bool = False) -> None:
        container = self._get(uid)
        if container.ended is None:
            container.runtime = Runtime.ENDED
            container.ended = Ended(exit_code=exit_code, finished_at_ns=2_000_000_000, oom_killed=oom_killed)
            container.changed.set()

    def vanish(self, uid: str) -> None:
        if container := self.containers.pop(uid, None):
            container.gone = True
            container.changed.set()


class FakeExec:
    """Echoes its input in capitals and ends with code 3."""

    def __init__(self, request: StartExec) -> None:
        self._input: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._request = request
        self.closed = False

    async def output(self) -> AsyncIterator[ExecOutput]:
        yield ExecOutput(stdout=" ".join(self._request.cmd).encode())
        while (data := await self._input.get()) is not None:
            yield ExecOutput(stdout=data.upper())
        yield ExecOutput(exit_code=3)

    async def write(self, data: bytes) -> None:
        self._input.put_nowait(data)

    async def close_stdin(self) -> None:
        self._input.put_nowait(None)

    async def resize(self, size: TerminalSize) -> None:
        self._input.put_nowait(f"{size.rows}x{size.columns}".encode())

    async def close(self) -> None:
        self.closed = True


# -- the controller


class FakeController(agent_pb2_grpc.AgentServiceServicer):
    """A control plane of one node: `want` and `drop` change assignments, `reports` is what came back."""

    def __init__(self) -> None:
        self.address = ""
        self.epoch = 0
        self.next_epoch: int | None = None
        self.heartbeat_ms = 50
        # What it asks of agents that are cut off; and whether it acknowledges heartbeats.
        self.self_fence_ms = self.lost_after_ms = 0
        self.hears = True
        self.heard: list[int] = []
        self.acknowledges = True
        self.wanted: dict[str, Assignment] = {}
        self.hellos: list[Hello] = []
        self.inventories: list[Any] = []
        self.usages: list[Any] = []
        self.received: list[Report] = []
        self.sessions = 0
        # The newest session has its full set.
        self.connected = False
        self._set = 0
        self._call: Any = None
        self._writing = asyncio.Lock()
        self._server: Any = None
        self._relays: dict[str, asyncio.Queue[Any]] = {}

    async def start(self, port: int = 0) -> None:
        self._server = grpc.aio.server(options=[("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000)])
        agent_pb2_grpc.add_AgentServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port(f'127.0.0.1:{port}')}"
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(0)

    # -- the rpcs

    async def Session(self, request_iterator: Any, context: Any) -> None:
        assert ("authorization", f"Bearer {TOKEN}") in tuple(context.invocation_metadata())
        hello = (await context.read()).hello
        self.connected = False
        self.hellos.append(hello)
        self.epoch = self.next_epoch if self.next_epoch is not None else self.epoch + 1
        self.next_epoch = None
        configure = Configure(
            heartbeat_ms=self.heartbeat_ms, self_fence_ms=self.self_fence_ms, lost_after_ms=self.lost_after_ms
        )
        await context.write(SessionResponse(welcome=Welcome(epoch=self.epoch, configure=configure)))
        self._set = 1
        await context.write(
            SessionResponse(assignments=Assignments(full=True, results_in=1, set=list(self.wanted.values())))
        )
        self._call = context
        self.connected = True
        self.sessions += 1
        while (message := await context.read()) is not grpc.aio.EOF:
            match message.WhichOneof("message"):
                case "heartbeat":
                    self.usages.append(message.heartbeat.usage)
                    if self.hears:
                        self.heard.append(message.heartbeat.number)
                        await self.say(SessionResponse(heard=Heard(number=message.heartbeat.number)))
                case "inventory":
                    self.inventories.append(message.inventory)
                case "reports":
                    self.received.extend(message.reports.reports)
                    if self.acknowledges:
                        await self.acknowledge(message.reports.reports[-1].sequence)

    async def Relay(self, request_iterator: Any, context: Any) -> None:
        stream_id = (await context.read()).stream_id
        frames = self._relays[stream_id]
        frames.put_nowait(context)
        while (frame := await context.read()) is not grpc.aio.EOF:
            frames.put_nowait(frame)
        frames.put_nowait(None)

    # -- what tests make it do

    async def want(self, *orders: Assignment) -> None:
        self.wanted.update({o.uid: o for o in orders})
        await self._change(Assignments(set=orders))

    async def drop(self, *uids: str) -> None:
        for uid in uids:
            self.wanted.pop(uid, None)
        await self._change(Assignments(removed_uids=uids))

    async def _change(self, change: Assignments) -> None:
        change.applies_to, change.results_in = self._set, self._set + 1
        self._set += 1
        await self.say(SessionResponse(assignments=change))

    async def say(self, message: SessionResponse) -> None:
        # gRPC takes one write at a time.
        async with self._writing:
            await self._call.write(message)

    async def acknowledge(self, sequence: int) -> None:
        await self.say(SessionResponse(acknowledged=ReportsAcknowledged(up_to_sequence=sequence)))

    async def ask(self, **request: Any) -> "FakeStream":
        stream_id = f"stream-{len(self._relays)}"
        frames: asyncio.Queue[Any] = asyncio.Queue()
        self._relays[stream_id] = frames
        await self.say(SessionResponse(open=OpenStream(stream_id=stream_id, **request)))
        async with asyncio.timeout(PATIENCE_S):
            return FakeStream(await frames.get(), frames)

    # -- what tests look at

    def phases(self, uid: str) -> list[str]:
        """Phases in the order reported, as words."""
        phases = [r.reported.phase for r in self.received if r.container_uid == uid]
        return [ContainerStatus.Phase.Name(phase) for phase in phases]

    def last(self, uid: str) -> Any:
        return [r.reported for r in self.received if r.container_uid == uid][-1]

    async def reported(self, uid: str, phase: str) -> Any:
        await until(lambda: phase in self.phases(uid))
        return self.last(uid)


class FakeStream:
    """The controller's end of a relay stream."""

    def __init__(self, context: Any, frames: "asyncio.Queue[Any]") -> None:
        self._context = context
        self._frames = frames

    async def next(self) -> RelayRequest | None:
        """The next frame; None at the end."""
        async with asyncio.timeout(PATIENCE_S):
            frame: RelayRequest | None = await self._frames.get()
            return frame

    async def all(self) -> list[RelayRequest]:
        frames = []
        while (frame := await self.next()) is not None and not frame.complete:
            frames.append(frame)
        return frames

    async def send(self, frame: RelayResponse) -> None:
        await self._context.write(frame)


# -- the agent


class RunningAgent:
    """An agent that tests start, stop and start again with the same state folder."""

    def __init__(self, controller: FakeController, driver: FakeDriver, folder: Path) -> None:
        self._controller = controller
        self._driver = driver
        self._folder = folder
        driver.output_dir = folder / "engine"
        driver.output_dir.mkdir()
        self._task: asyncio.Task[None] | None = None
        # How much later it is for the agent than it really is.
        self.later_ms = 0
        self.clock_reads = 0

    @property
    def journal(self) -> Journal:
        return self._host.journal

    @property
    def state_dir(self) -> Path:
        return self._folder / "state"

    async def start(self, *, connected: bool = True, servers: tuple[str, ...] = (), health: str = "") -> None:
        config = AgentConfig(
            servers=servers or (self._controller.address,),
            token=TOKEN,
            node="n1",
            labels={"rack": "r1"},
            state_dir=self.state_dir,
            health_address=health,
        )
        before = self._controller.sessions
        self._host = Host(config)
        real = self._host.uptime_ms

        def uptime_ms() -> int:
            self.clock_reads += 1
            return real() + self.later_ms

        self._host.uptime_ms = uptime_ms  # type: ignore[method-assign]
        self.agent = Agent(config, drivers=[self._driver], host=self._host)
        self._task = asyncio.ensure_future(self.agent.run())
        if connected:
            await until(lambda: self._controller.sessions > before or (self._task and self._task.done()))

    async def stop(self) -> None:
        """As SIGKILL does, but for open files; raises what went wrong in the agent."""
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
