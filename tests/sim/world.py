"""A whole PWM in one process and virtual time: real controllers and dispatchers on the store in memory, scripted
agents, clients, and a seeded stream of faults. Everything random comes from the seed, so that a seed that
fails fails again.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import Any

from pwm.api.v1 import services_pb2 as api
from pwm.api.v1.common_pb2 import Actor
from pwm.api.v1.events_pb2 import TokenIssued
from pwm.api.v1.identity_pb2 import TokenSpec
from pwm.controlplane.plane import ControlPlane
from pwm.controlplane.auth import Principal, token_uid
from pwm.controlplane.bootstrap import Bootstrap
from pwm.controlplane.clock import Clock
from pwm.controlplane.context import CallContext
from pwm.controlplane.core.decide import Change
from pwm.controlplane.errors import ApiError
from pwm.controlplane.store import errors
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.kv import KV, WatchEvent
from pwm.controlplane.store.memory import MemoryKV
from pwm.controlplane.store.weather import CALM, Fault, Weather
from tests.sim.checker import Checker
from tests.sim.machines import Agent, Machine, Wire

KEYS = Keys(b"/sim/")
NODE_TOKEN = "pwm_sim_node"
# Virtual time of a run: faults and commands, then calm in which everything must settle.
STORM_S = 60.0
CALM_S = 150.0


class SimClock(Clock):
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def now_ms(self) -> int:
        return 1_700_000_000_000 + int(asyncio.get_running_loop().time() * 1000)

    def monotonic_s(self) -> float:
        return asyncio.get_running_loop().time()

    def new_id(self) -> str:
        return f"{self._rng.getrandbits(80):020x}"

    def seed(self) -> int:
        return self._rng.getrandbits(32)


class WatchedKV(MemoryKV):
    """The store, with the judge behind it."""

    def __init__(self, checker: Checker, rng: random.Random) -> None:
        super().__init__(forecast=self._weather)
        self._checker = checker
        self._rng = rng
        self.stormy = False

    def _grow(self, revision: int, events: list[WatchEvent]) -> None:
        self._checker.transaction(revision, events)
        super()._grow(revision, events)

    def _weather(self, operation: str) -> Weather:
        delay_s = self._rng.expovariate(1 / 0.001)
        if not self.stormy or self._rng.random() > 0.01:
            return Weather(delay_s) if self.stormy else CALM
        return Weather(delay_s, self._rng.choice(list(Fault)))


class Cord:
    """One replica's connection to the store. Once cut, nothing comes through any more: kill -9, or a partition."""

    def __init__(self, kv: KV) -> None:
        self._kv = kv
        self.cut = False

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self._kv, name)
        if name in ("watch", "pages"):

            async def stream(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
                async for item in operation(*args, **kwargs):
                    self._check()
                    yield item

            return stream

        async def call(*args: Any, **kwargs: Any) -> Any:
            self._check()
            result = await operation(*args, **kwargs)
            if self.cut:
                raise errors.Ambiguous("cut off before the answer came")
            return result

        return call

    def _check(self) -> None:
        if self.cut:
            raise errors.Unavailable("cut off from the store")


class World:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.checker = Checker(KEYS)
        self.kv = WatchedKV(self.checker, self.rng)
        self.clock = SimClock(self.rng)
        self.planes: list[tuple[ControlPlane, Cord, asyncio.Task[None]]] = []
        self.machines = [
            Machine(f"n{i}", gpus=self.rng.choice([0, 2, 4]), cpus=8, rng=self.rng, checker=self.checker)
            for i in range(3)
        ]
        self.agents: dict[str, asyncio.Task[None]] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self._generation = 0
        self.faults = 0

    # ---- a run

    async def run(self) -> None:
        await self._begin()
        self.kv.stormy = True
        storm = [asyncio.ensure_future(self._trouble()), *(asyncio.ensure_future(self._client()) for _ in range(2))]
        await asyncio.wait(storm, timeout=STORM_S, return_when=asyncio.FIRST_EXCEPTION)
        for task in storm:
            task.cancel()
        for outcome in await asyncio.gather(*storm, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome
        await self._calm_down()
        await self._sleep(CALM_S)
        self._judge()
        await self._end()

    async def _begin(self) -> None:
        for _ in range(2):
            self._start_plane()
        plane = self.planes[0][0]
        await plane.view.wait_for(0)
        await Bootstrap(view=plane.view, commands=plane.commands, clock=self.clock).run(
            admin_token_file=None, node_token_file=None
        )
        uid = token_uid(NODE_TOKEN)
        token = Change("Token", uid, uid, "", None, (TokenIssued(spec=TokenSpec(node="pwm.all")),))
        await plane.commands.run(lambda: [token], actor=Actor(name="sim"))
        for machine in self.machines:
            self._start_agent(machine)

    async def _calm_down(self) -> None:
        self.kv.stormy = False
        for _, cord, _ in self.planes:
            cord.cut = False
        while len(self.planes) < 2:
            self._start_plane()
        for machine in self.machines:
            if self.agents[machine.name].done():
                self._start_agent(machine)

    def _judge(self) -> None:
        for plane, _, task in self.planes:
            if task.done():
                task.result()
            self.checker.check_view(plane.view)
        plane = self.planes[0][0]
        self.checker.check_settled(plane.view, plane.cluster, now_ms=self.clock.now_ms())

    async def _end(self) -> None:
        tasks = [*self.agents.values(), *self._calls, *(task for _, _, task in self.planes)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for plane, _, _ in self.planes:
            await plane.store.close()
        await self.kv.close()

    # ---- parts

    def _start_plane(self) -> None:
        self._generation += 1
        cord = Cord(self.kv)
        plane = ControlPlane(
            kv=cord,  # type: ignore[arg-type]
            keys=KEYS, replica=f"r{self._generation}", address="", clock=self.clock,
        )  # fmt: skip
        self.planes.append((plane, cord, asyncio.ensure_future(plane.run())))

    def _start_agent(self, machine: Machine) -> None:
        self.agents[machine.name] = asyncio.ensure_future(Agent(machine, self._dial, NODE_TOKEN).run())

    def _dial(self, wire: Wire) -> asyncio.Task[None] | None:
        """An agent dials some replica; the replica's side of the call runs as a task."""
        reachable = [plane for plane, _, task in self.planes if not task.done()]
        if not reachable:
            return None
        plane = self.rng.choice(reachable)
        task = asyncio.ensure_future(self._serve(plane, wire))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        return task

    async def _serve(self, plane: ControlPlane, wire: Wire) -> None:
        try:
            # Without a view nobody can be authenticated; the real server opens its doors after that, too.
            await plane.view.wait_for(0)
            with suppress(Exception):
                await plane.dispatcher.Session(None, wire)
        finally:
            wire.cut()

    # ---- faults

    async def _trouble(self) -> None:
        kinds = (self._kill_plane, self._kill_agent, self._partition, self._compact)
        while True:
            await self._sleep(self.rng.expovariate(1 / 3.0))
            self.faults += 1
            await self.rng.choice(kinds)()

    async def _kill_plane(self) -> None:
        plane, cord, task = self.planes.pop(self.rng.randrange(len(self.planes)))
        cord.cut = True
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        plane.dispatcher.restart_sessions()
        await plane.store.close()
        await self._sleep(self.rng.uniform(0.0, 2.0))
        self._start_plane()

    async def _kill_agent(self) -> None:
        machine = self.rng.choice(self.machines)
        task = self.agents[machine.name]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await self._sleep(self.rng.uniform(0.0, 3.0))
        self._start_agent(machine)

    async def _partition(self) -> None:
        _, cord, _ = self.rng.choice(self.planes)
        cord.cut = True
        await self._sleep(self.rng.uniform(0.5, 8.0))
        cord.cut = False

    async def _compact(self) -> None:
        with suppress(errors.KVError):
            page = await self.kv.range(b"\0")
            await self.kv.compact(page.revision)

    # ---- clients

    async def _client(self) -> None:
        names = [f"w{i}" for i in range(5)]
        while True:
            await self._sleep(self.rng.expovariate(1 / 1.0))
            plane, _, task = self.rng.choice(self.planes)
            if task.done() or not plane.view.synced:
                continue
            try:
                async with asyncio.timeout(20):
                    await self._command(plane, self.rng.choice(names))
            except (ApiError, TimeoutError):
                continue

    async def _command(self, plane: ControlPlane, name: str) -> None:
        services = {descriptor.name: servicer for descriptor, servicer in plane.services()}
        user = plane.view.by_name("User", "admin")
        context = CallContext(principal=Principal(user=user))
        workloads, resources = services["WorkloadService"], services["ResourceService"]
        match self.rng.choice(["apply", "apply", "apply", "scale", "stop", "restart", "delete"]):
            case "scale":
                request = api.ScaleRequest(name=name, count=self.rng.randint(0, 4))
                answer = await workloads.Scale(request, context)  # type: ignore[attr-defined]
                self.checker.acknowledged(answer.revision, name, changed=answer.changed)
            case "stop":
                answer = await workloads.Stop(api.StopRequest(name=name), context)  # type: ignore[attr-defined]
                self.checker.acknowledged(answer.revision, name, changed=answer.changed)
            case "restart":
                answer = await workloads.Restart(api.RestartRequest(name=name), context)  # type: ignore[attr-defined]
                self.checker.acknowledged(answer.revision, name, changed=True)
            case "delete":
                await resources.Delete(api.DeleteRequest(kind="workload", name=name), context)  # type: ignore[attr-defined]
            case _:
                await self._apply(resources, context, name)

    async def _apply(self, resources: Any, context: CallContext, name: str) -> None:
        request = api.ApplyRequest()
        for document in self._documents(name):
            request.documents.add().update(document)
        answer = await resources.Apply(request, context)
        for result in answer.results:
            if result.outcome == api.ApplyResult.REFUSED:
                continue
            changed = result.outcome != api.ApplyResult.UNCHANGED
            if changed:
                found = any(
                    event.uid == result.uid
                    for revision, events in self.checker.commits.items()
                    if revision <= answer.revision
                    for event in events
                )
                assert found, f"I4: {result.name} was acknowledged and is not in the log"

    def _documents(self, name: str) -> Sequence[dict[str, Any]]:
        rng = self.rng
        selectors: dict[str, Any] = {"cpu": {"count": rng.choice([1, 2, "500m"])}}
        if rng.random() < 0.4:
            selectors["gpu"] = {"count": rng.randint(1, 2)}
        config = {
            "cmd": ["run", str(rng.randint(0, 2))],
            "memory": "1GiB",
            "restartPolicy": rng.choice(["Never", "OnFailure", "Always"]),
            "affinity": rng.choice(["Fill", "Distribute", "Random"]),
        }
        spec = {"image": "sim", "replica": {"count": rng.randint(1, 3)}, "selectors": selectors, "config": config}
        return [{"kind": "Workload", "apiVersion": "v1", "metadata": {"name": name}, "spec": spec}]

    async def _sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
