"""What runs in the simulated world: real controllers and real agents, wired as `app` wires them, and clients.

Each of them is a process (see `network`) that is started again and again on the same host; a new life knows
what the old one had written down and nothing else.
"""

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from pwm.api.v1 import agent_pb2_grpc, peer_pb2_grpc, services_pb2
from pwm.controlplane.auth import Principal
from pwm.controlplane.bootstrap import Bootstrap
from pwm.controlplane.clock import Clock
from pwm.controlplane.context import CallContext
from pwm.controlplane.core.nodes import NodeTimes
from pwm.controlplane.errors import ApiError
from pwm.controlplane.plane import ControlPlane
from pwm.controlplane.servicers import servicers
from pwm.controlplane.store import errors as store_errors
from pwm.controlplane.store.etcd import EtcdKV
from pwm.controlplane.store.etcd_channels import CHANNEL_OPTIONS as ETCD_OPTIONS
from pwm.controlplane.store.keys import Keys
from pwm.nodeagent.app import Agent
from pwm.nodeagent.config import AgentConfig
from pwm.nodeagent.session import CHANNEL_OPTIONS as AGENT_OPTIONS
from tests.sim.docker import Machine, SimDriver, SimHost
from tests.sim.loop import ProcessFailed
from tests.sim.network import Host, Network, Process
from tests.sim.rpc import Channel, Server

KEYS = Keys(b"/sim/")
NODE_TOKEN = "pwm_sim_node"
USERS_PORT, AGENTS_PORT = 4700, 4701
PEER_OPTIONS = (("grpc.keepalive_time_ms", 10_000), ("grpc.keepalive_timeout_ms", 5_000))
# A controller or agent that is told to stop and has not after this long is killed, as systemd would.
STOP_PATIENCE_S = 20.0
# What a caller of the API waits for one answer, and in all.
ATTEMPT_S = 5.0
PATIENCE_S = 30.0


class SimClock(Clock):
    """The host's wall clock, the process's own monotonic one, and ids that come from the seed."""

    def __init__(self, host: Host, process: Process, rng: random.Random) -> None:
        self._host = host
        self._process = process
        self._rng = rng

    def now_ms(self) -> int:
        return self._host.now_ms(self._process.network.universe)

    def monotonic_s(self) -> float:
        return self._process.loop.time()

    def new_id(self) -> str:
        return f"{self._rng.getrandbits(80):020x}"

    def seed(self) -> int:
        return self._rng.getrandbits(32)


class Program(ABC):
    """Something on a host that can be started, stopped, killed and frozen. `life` counts its starts."""

    def __init__(self, network: Network, host: Host, name: str) -> None:
        self.network = network
        self.host = host
        self.name = name
        self.life = 0
        self.process = Process(network, host, name)
        self.process.loop.kill()
        self._stopping: asyncio.Event | None = None
        self._main: Any = None
        self._start_again = False

    @property
    def running(self) -> bool:
        return self.process.running

    def start(self) -> None:
        if self.process.alive or not self.host.up:
            # One that is still stopping is waited for.
            self._start_again = self.process.alive and self._stopping is not None and self._stopping.is_set()
            return
        self._start_again = False
        self.life += 1
        self.process = Process(self.network, self.host, f"{self.name}-{self.life}")
        self.process.loop.call_soon(self._begin)

    def _begin(self) -> None:
        process = self.process
        self._stopping = asyncio.Event()
        self._main = process.loop.create_task(self._run(self._stopping))

        def over(task: Any) -> None:
            if not task.cancelled() and task.exception() is not None:
                failure = ProcessFailed(f"{process.name} ended with {task.exception()!r}")
                failure.__cause__ = task.exception()
                self.network.universe.failures.append(failure)
            self._over(process)

        self._main.add_done_callback(over)

    @abstractmethod
    async def _run(self, stop: asyncio.Event) -> None: ...

    async def _until(self, stop: asyncio.Event, *work: Coroutine[Any, Any, None]) -> None:
        """Do the work until told to stop."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(w) for w in (*work, _wait(stop))]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()

    def stop(self) -> None:
        """SIGTERM; SIGKILL for who does not listen."""
        process, stopping = self.process, self._stopping
        if process.alive and stopping is not None:
            stopping.set()
            self.network.universe.later(STOP_PATIENCE_S, self._over, process)

    def _over(self, process: Process) -> None:
        if process.alive:
            process.kill()
            if self._start_again:
                self.start()

    def kill(self, *, power_cut: bool = False) -> None:
        self.process.kill(power_cut=power_cut)


async def _wait(stop: asyncio.Event) -> None:
    await stop.wait()


class Controller(Program):
    """A replica of the control plane."""

    def __init__(
        self, network: Network, host: Host, *, etcd: list[str], seed: int, times: NodeTimes, judge: Any
    ) -> None:
        super().__init__(network, host, host.name)
        self._times = times
        self._judge = judge
        self.plane: ControlPlane | None = None
        self.serving = False
        self._etcd = etcd
        self._rng = random.Random(f"{seed} controller {host.name}")

    @property
    def users_address(self) -> str:
        return f"{self.host.name}:{USERS_PORT}"

    @property
    def agents_address(self) -> str:
        return f"{self.host.name}:{AGENTS_PORT}"

    async def _run(self, stop: asyncio.Event) -> None:
        network, process = self.network, self.process
        self.serving = False
        kv = EtcdKV(self._etcd, dial=lambda a: Channel(network, process, a, ETCD_OPTIONS))  # type: ignore[arg-type,return-value]
        plane = self.plane = ControlPlane(
            kv=kv,
            keys=KEYS,
            replica=process.name,
            address=f"http://{self.users_address}",
            clock=SimClock(self.host, process, self._rng),
            times=self._times,
            peer_address=self.agents_address,
            peer_token=f"token of {process.name}",
            dial_peer=lambda address: Channel(network, process, address, PEER_OPTIONS),
            peer_refuses=self._refuses,
        )
        async with kv, plane.store:
            await self._until(stop, plane.run(), self._serve(plane, kv))

    async def _serve(self, plane: ControlPlane, kv: EtcdKV) -> None:
        while True:
            try:
                await kv.check_versions()
                break
            except store_errors.Unavailable:
                await asyncio.sleep(1.0)
        await plane.view.wait_for(0)
        while True:
            try:
                await Bootstrap(view=plane.view, commands=plane.commands, clock=plane.clock).run(
                    admin_token_file=None, node_token_file=None
                )
                break
            except ApiError:  # the real one ends here and is started again
                await asyncio.sleep(1.0)
        process = self.process
        server = Server(process, heard=lambda agent: self._judge.heard(agent.host.name, process.name))
        agent_pb2_grpc.add_AgentServiceServicer_to_server(plane.dispatcher, server)
        peer_pb2_grpc.add_PeerServiceServicer_to_server(plane.peer_door, server)
        self.process.listen(self.agents_address, server)
        self.process.listen(self.users_address, _users_door(self.process, plane))
        self.serving = True
        try:
            await asyncio.Event().wait()
        finally:
            plane.peer_door.leave()
            self.process.stop_listening()

    async def _refuses(self, address: str) -> bool:
        """Whether a connection is refused; False while nothing at all comes back."""
        network, here = self.network, self.host
        there = network.hosts[address.partition(":")[0]]
        await asyncio.sleep(network.link(here, there).delay_s() * 2)
        if not there.up or not network.reachable(here, there):
            await asyncio.sleep(0.5)
            return False
        return address not in network.listeners


def _users_door(process: Process, plane: ControlPlane) -> Server:
    """Where users' calls come in: what the gateway does, without HTTP."""
    server = Server(process)
    for descriptor, servicer in servicers(plane):
        handlers = {}
        for method in descriptor.methods:
            asked = getattr(services_pb2, method.input_type.name, None)
            if asked is None or method.client_streaming or method.output_type.name not in dir(services_pb2):
                continue
            answered = getattr(services_pb2, method.output_type.name)
            shape = (
                grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
            )
            serve = _stream if method.server_streaming else _answer
            handlers[method.name] = shape(
                serve(plane, getattr(servicer, method.name, None)), asked.FromString, answered.SerializeToString
            )
        server.add_registered_method_handlers(descriptor.full_name, handlers)
    return server


def _call_context(plane: ControlPlane, context: Any) -> CallContext:
    metadata = dict(context.invocation_metadata())
    user = plane.view.by_name("User", "admin")
    return CallContext(principal=Principal(user=user), idempotency_key=metadata.get("idempotency-key", ""))


def _answer(plane: ControlPlane, method: Any) -> Any:
    async def call(request: Any, context: Any) -> Any:
        try:
            return await method(request, _call_context(plane, context))
        except ApiError as error:
            await context.abort(error.code, error.message)

    return call


def _stream(plane: ControlPlane, method: Any) -> Any:
    async def call(request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            async for message in method(request, _call_context(plane, context)):
                yield message
        except ApiError as error:
            await context.abort(error.code, error.message)

    return call


class NodeAgent(Program):
    """The agent of a machine; the judge is told what it accepts, and when it knows to be heard."""

    def __init__(
        self,
        network: Network,
        machine: Machine,
        *,
        servers: list[str],
        guard: Callable[[Machine, Process], Any],
        judge: Any,
    ) -> None:
        super().__init__(network, machine, machine.name)
        self.machine = machine
        self._guard = guard
        machine.agent = self
        self.agent: Agent | None = None
        self._servers = servers
        self._judge = judge

    async def _run(self, stop: asyncio.Event) -> None:
        network, process, machine = self.network, self.process, self.machine
        order = self._servers[self.life % len(self._servers) :] + self._servers[: self.life % len(self._servers)]
        config = AgentConfig(servers=tuple(order), token=NODE_TOKEN, node=machine.name, state_dir=Path("unused"))
        machine.has_left = False
        agent = self.agent = Agent(
            config,
            drivers=[SimDriver(machine, process)],  # type: ignore[list-item]
            dial=lambda address: Channel(network, process, address, AGENT_OPTIONS),  # type: ignore[arg-type,return-value]
            host=SimHost(machine),  # type: ignore[arg-type]
            guard=self._guard(machine, process),  # type: ignore[arg-type]
        )
        self._listen_in(agent)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(agent.run()), group.create_task(_wait(stop))]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                await agent.leave()
            for task in tasks:
                task.cancel()

    def _listen_in(self, agent: Agent) -> None:
        sessions, fence, machine, judge = agent.sessions, agent._fence, self.machine, self._judge
        accept, assign, heard, left = sessions.accept, sessions._callbacks.assign, fence.heard, fence.left
        epoch = 0

        def accepted(welcome: Any) -> None:
            nonlocal epoch
            accept(welcome)
            epoch = welcome.epoch
            judge.epoch(machine, epoch)

        def assigned(assignments: Any) -> None:
            judge.orders(machine, epoch)
            assign(assignments)

        def answered(sent_ms: int) -> None:
            judge.answered(machine, sent_ms)
            heard(sent_ms)

        def has_left() -> None:
            machine.has_left = True
            left()

        end = agent.supervisor.fence

        def fenced(fencing: Any) -> None:
            judge.fencing(machine)
            end(fencing)

        agent.supervisor.fence = fenced  # type: ignore[method-assign]
        sessions.accept = accepted  # type: ignore[method-assign]
        sessions._callbacks = replace(sessions._callbacks, assign=assigned)
        fence.heard = answered  # type: ignore[method-assign]
        fence.left = has_left  # type: ignore[method-assign]


# ---- clients


@dataclass(frozen=True, slots=True)
class Command:
    """What a client does: `at_s` the earliest time, `number` its name in the ledger."""

    number: int
    at_s: float
    verb: str
    name: str
    value: int = 0


@dataclass(slots=True)
class Answer:
    revision: int
    changed: bool


class Refused(Exception):
    """The control plane said no."""


class GaveUp(Exception):
    """No answer for so long that nobody knows what became of the command."""


class Client(Program):
    """Carries out its commands one after the other, each until it is answered, at whichever replica answers."""

    def __init__(
        self, network: Network, host: Host, *, servers: list[str], commands: list[Command], ledger: Any
    ) -> None:
        super().__init__(network, host, host.name)
        self.done = False
        self._servers = servers
        self._commands = commands
        self._ledger = ledger
        self._channels: dict[str, Channel] = {}
        self._first = 0

    async def _run(self, stop: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        for command in self._commands:
            await asyncio.sleep(max(0.0, command.at_s - (loop.time() - begun_s)))
            self._ledger.asked(self.name, command)
            try:
                answer = await self._carry_out(command)
            except Refused as error:
                self._ledger.refused(self.name, command, str(error))
            except GaveUp:
                self._ledger.unknown(self.name, command)
            else:
                self._ledger.acknowledged(self.name, command, answer)
                if answer.revision:
                    await self._read_back(command, answer)
        self.done = True
        await stop.wait()

    async def call(self, service: str, method: str, request: Any, *, key: str = "") -> Any:
        """The answer of the first replica that gives one. Raises Refused and GaveUp."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE_S
        metadata = (("idempotency-key", key),) if key else ()
        while loop.time() < deadline:
            channel = self._channel(self._servers[self._first])
            answered = getattr(services_pb2, request.DESCRIPTOR.name.replace("Request", "Response"))
            start = channel.unary_unary(
                f"/pwm.v1.{service}/{method}", type(request).SerializeToString, answered.FromString
            )
            try:
                return await start(request, timeout=ATTEMPT_S, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise Refused(f"{error.code().name}: {error.details()}") from error
                self._first = (self._first + 1) % len(self._servers)
                await asyncio.sleep(0.2)
        raise GaveUp

    def _channel(self, address: str) -> Channel:
        if address not in self._channels:
            self._channels[address] = Channel(self.network, self.process, address, PEER_OPTIONS)
        return self._channels[address]

    async def _carry_out(self, command: Command) -> Answer:
        api, name = services_pb2, command.name
        key = f"{self.name}-{command.number}"
        match command.verb:
            case "scale":
                scaled = await self.call(
                    "WorkloadService", "Scale", api.ScaleRequest(name=name, count=command.value), key=key
                )
                return Answer(scaled.revision, scaled.changed)
            case "stop":
                stopped = await self.call("WorkloadService", "Stop", api.StopRequest(name=name), key=key)
                return Answer(stopped.revision, stopped.changed)
            case "restart":
                restarted = await self.call("WorkloadService", "Restart", api.RestartRequest(name=name), key=key)
                return Answer(restarted.revision, True)
            case "delete":
                deleted = await self.call(
                    "ResourceService", "Delete", api.DeleteRequest(kind="workload", name=name), key=key
                )
                return Answer(deleted.revision, False)
            case "note":
                return await self._apply(note(name, command.value), key)
            case _:
                return await self._apply(document(name, command.value), key)

    async def _apply(self, manifest: dict[str, Any], key: str) -> Answer:
        request = services_pb2.ApplyRequest()
        request.documents.add().update(manifest)
        answer = await self.call("ResourceService", "Apply", request, key=key)
        (result,) = answer.results
        if result.outcome == services_pb2.ApplyResult.REFUSED:
            raise Refused("; ".join(p.message for p in result.problems))
        return Answer(answer.revision, result.outcome != services_pb2.ApplyResult.UNCHANGED)

    async def _read_back(self, command: Command, answer: Answer) -> None:
        """Another replica, told the revision, must know of the change."""
        self._first = (self._first + 1) % len(self._servers)
        request = services_pb2.GetRequest(kind="workload", name=command.name, min_revision=answer.revision)
        try:
            got = await self.call("ResourceService", "Get", request)
        except (Refused, GaveUp):
            return
        self._ledger.read(self.name, command, answer, got)


def document(name: str, luck: int) -> dict[str, Any]:
    """A workload, as a user would write it; the same luck gives the same one."""
    rng = random.Random(luck)
    selectors: dict[str, Any] = {"cpu": {"count": rng.choice([1, 2, "500m"])}}
    if rng.random() < 0.5:
        selectors["gpu"] = {"count": rng.randint(1, 2)}
    config = {
        "cmd": ["run", str(rng.randint(0, 2))],
        "memory": "1GiB",
        "restartPolicy": rng.choice(["Never", "OnFailure", "OnFailure", "Always"]),
        "affinity": rng.choice(["Fill", "Distribute", "Random"]),
        "stopGrace": rng.choice(["1s", "3s"]),
    }
    image = rng.choice(["sim", "sim", "sim", "other", "other", "nowhere", "broken"])
    spec = {
        "image": image,
        "replica": {"count": rng.randint(1, 3)},
        "selectors": selectors,
        "config": config,
        "onNodeLost": rng.choice(["wait", "reschedule", "reschedule"]),
    }
    return {"kind": "Workload", "apiVersion": "v1", "metadata": {"name": name}, "spec": spec}


def note(name: str, value: int) -> dict[str, Any]:
    """A page of a ledger: a workload without replicas that remembers a number."""
    config = {"cmd": ["run"], "env": {"NOTE": str(value)}}
    spec = {"image": "sim", "replica": {"count": 0}, "selectors": {"cpu": {"count": 1}}, "config": config}
    return {"kind": "Workload", "apiVersion": "v1", "metadata": {"name": name}, "spec": spec}
