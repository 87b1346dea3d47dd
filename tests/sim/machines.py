"""Simulated machines, and scripted agents on them.

A *machine* is the part that outlives its agent: containers that run and end by themselves. An *agent*
speaks the real protocol with the real dispatcher over a wire with delays, keeps a journal as the real one
does, and can be killed at any moment and started again on the same machine.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from pwm.api.v1.agent_pb2 import Assignment, Heartbeat, Hello, Report, Reports, SessionRequest, SessionResponse
from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.events_pb2 import ContainerReported
from pwm.api.v1.node_pb2 import DriverInfo, GPUDevice, Inventory
from pwm.api.v1.workload_pb2 import ContainerStatus
from pwm.controlplane.commands import timestamp
from tests.sim.checker import Checker

GIB = 1 << 30
HEARTBEAT_S = 5.0


class Aborted(Exception):
    """The server ended the call with an error."""


class Wire:
    """Both directions of one gRPC stream, and the server's `context` of it. `cut` breaks it for both."""

    def __init__(self, rng: random.Random, token: str) -> None:
        self._rng = rng
        self._token = token
        self._to_server: asyncio.Queue[Any] = asyncio.Queue()
        self._to_agent: asyncio.Queue[Any] = asyncio.Queue()
        self.broken = asyncio.Event()

    # the server's end

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self._token}"),)

    async def abort(self, code: grpc.StatusCode, message: str) -> None:
        self.cut()
        raise Aborted(f"{code.name}: {message}")

    async def read(self) -> Any:
        return await self._receive(self._to_server)

    async def write(self, message: SessionResponse) -> None:
        if self.broken.is_set():
            raise asyncio.InvalidStateError("the wire is cut")
        await asyncio.sleep(self._rng.expovariate(1 / 0.002))
        self._to_agent.put_nowait(message)

    # the agent's end

    async def send(self, message: SessionRequest) -> None:
        if self.broken.is_set():
            raise ConnectionError("the wire is cut")
        await asyncio.sleep(self._rng.expovariate(1 / 0.002))
        self._to_server.put_nowait(message)

    async def receive(self) -> Any:
        return await self._receive(self._to_agent)

    def cut(self) -> None:
        self.broken.set()

    async def _receive(self, queue: asyncio.Queue[Any]) -> Any:
        getter = asyncio.ensure_future(queue.get())
        breaker = asyncio.ensure_future(self.broken.wait())
        try:
            await asyncio.wait([getter, breaker], return_when=asyncio.FIRST_COMPLETED)
            return grpc.aio.EOF if self.broken.is_set() else getter.result()
        finally:
            getter.cancel()
            breaker.cancel()


@dataclass(slots=True)
class Box:
    """A container on a machine."""

    started: bool = False
    exit_code: int | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Machine:
    """Survives its agent: boxes and the journal are on its disk."""

    def __init__(self, name: str, *, gpus: int, cpus: int, rng: random.Random, checker: Checker) -> None:
        self.name = name
        self.rng = rng
        self.checker = checker
        self.boxes: dict[str, Box] = {}
        self.finished: set[str] = set()
        self.journal: deque[Report] = deque()
        self.sequence = 0
        self.epoch = 0
        self.inventory = Inventory(
            agent_version="sim", boot_id=name, cpu_product="Sim", cpu_count=cpus, memory_bytes=cpus * 4 * GIB,
            drivers=[DriverInfo(name="pwm.docker", version="sim", ready=True)],
            gpus=[
                GPUDevice(uuid=f"GPU-{name}-{i}", index=i, product_name="A100", memory_bytes=80 * GIB, healthy=True)
                for i in range(gpus)
            ],
        )  # fmt: skip

    def create(self, uid: str) -> Box:
        self.checker.container_created(uid)
        box = self.boxes[uid] = Box()
        return box

    def start(self, box: Box) -> None:
        box.started = True
        lifetime_s = self.rng.choice([0.05, 2.0, 20.0, 1e6])
        asyncio.get_running_loop().call_later(lifetime_s, self._end, box, self.rng.choice([0, 0, 0, 1]))

    def stop(self, uid: str) -> None:
        box = self.boxes[uid]
        if not box.ended.is_set():
            self.checker.container_stopped(uid)
            self._end(box, 143)

    def _end(self, box: Box, code: int) -> None:
        if not box.ended.is_set():
            box.exit_code = code
            box.ended.set()


class Agent:
    """One life of the agent process on a machine."""

    def __init__(self, machine: Machine, dial: "Callable[[Wire], asyncio.Task[None] | None]", token: str) -> None:
        self._machine = machine
        self._dial = dial
        self._token = token
        self._rng = machine.rng
        self._orders: dict[str, Assignment] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stops: dict[str, asyncio.Event] = {}
        self._unsent = asyncio.Event()

    async def run(self) -> None:
        """For ever; cancelling is kill -9: boxes live on."""
        try:
            while True:
                wire = Wire(self._rng, self._token)
                serving = self._dial(wire)
                if serving is not None:
                    try:
                        await self._session(wire)
                    except ConnectionError:
                        pass
                    finally:
                        wire.cut()
                await asyncio.sleep(self._rng.uniform(0.1, 1.0))
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _session(self, wire: Wire) -> None:
        machine = self._machine
        await wire.send(SessionRequest(hello=Hello(node=machine.name, inventory=machine.inventory)))
        welcome = await wire.receive()
        if welcome is grpc.aio.EOF or welcome.welcome.epoch < machine.epoch:
            return
        machine.epoch = welcome.welcome.epoch
        receiver = asyncio.ensure_future(self._receive(wire))
        sender = asyncio.ensure_future(self._send(wire))
        beats = asyncio.ensure_future(self._beat(wire))
        tasks = [receiver, sender, beats]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _receive(self, wire: Wire) -> None:
        known = 0
        while (message := await wire.receive()) is not grpc.aio.EOF:
            kind = message.WhichOneof("message")
            if kind == "acknowledged":
                up_to = message.acknowledged.up_to_sequence
                while self._machine.journal and self._machine.journal[0].sequence <= up_to:
                    self._machine.journal.popleft()
            elif kind == "assignments":
                change = message.assignments
                assert change.full or change.applies_to == known, "a change was missed"
                known = change.results_in
                if change.full:
                    self._orders.clear()
                self._orders.update((order.uid, order) for order in change.set)
                for uid in change.removed_uids:
                    self._orders.pop(uid, None)
                self._obey(full=change.full)

    async def _send(self, wire: Wire) -> None:
        sent = 0
        while True:
            reports = [r for r in self._machine.journal if r.sequence > sent]
            if reports:
                batch = reports[: self._rng.randint(1, 5)]
                await wire.send(SessionRequest(reports=Reports(reports=batch)))
                sent = batch[-1].sequence
            else:
                self._unsent.clear()
                await self._unsent.wait()

    async def _beat(self, wire: Wire) -> None:
        while True:
            await wire.send(SessionRequest(heartbeat=Heartbeat()))
            await asyncio.sleep(HEARTBEAT_S)

    # ---- orders

    def _obey(self, *, full: bool) -> None:
        for uid, order in self._orders.items():
            if order.desired == Assignment.STOP:
                self._stops.setdefault(uid, asyncio.Event()).set()
            if uid not in self._tasks and uid not in self._machine.finished:
                self._stops.setdefault(uid, asyncio.Event())
                self._tasks[uid] = asyncio.ensure_future(self._drive(uid))
        if full:
            for uid, box in self._machine.boxes.items():
                if uid not in self._orders and uid not in self._machine.finished and not box.ended.is_set():
                    self._machine.stop(uid)

    async def _drive(self, uid: str) -> None:
        """One container from wherever it is to its end."""
        stop = self._stops[uid]
        box = self._machine.boxes.get(uid)
        if box is None:
            if not await self._begin(uid, stop):
                return
            box = self._machine.create(uid)
        if not box.started:
            await asyncio.sleep(self._rng.uniform(0, 0.5))
            self._machine.start(box)
        self._report(uid, ContainerReported(phase=ContainerStatus.RUNNING, runtime_id=uid, started_at=self._now()))
        ended = asyncio.ensure_future(box.ended.wait())
        stopped = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait([ended, stopped], return_when=asyncio.FIRST_COMPLETED)
            if not box.ended.is_set():
                self._report(uid, ContainerReported(phase=ContainerStatus.EXITING))
                await asyncio.sleep(self._rng.uniform(0, 1.0))
                self._machine.stop(uid)
        finally:
            ended.cancel()
            stopped.cancel()
        self._report(
            uid, ContainerReported(phase=ContainerStatus.EXITED, exit_code=box.exit_code, finished_at=self._now())
        )
        self._machine.finished.add(uid)

    async def _begin(self, uid: str, stop: asyncio.Event) -> bool:
        """Pull; False when it was stopped or failed before it was created."""
        self._report(uid, ContainerReported(phase=ContainerStatus.PULLING))
        await asyncio.sleep(self._rng.uniform(0, 2.0))
        if stop.is_set() or self._rng.random() < 0.05:
            reason = Reason(code=Reason.PULL_FAILED, message="simulated")
            self._report(uid, ContainerReported(phase=ContainerStatus.FAILED, reason=reason, finished_at=self._now()))
            self._machine.finished.add(uid)
            return False
        self._report(uid, ContainerReported(phase=ContainerStatus.CREATING))
        return True

    def _now(self) -> Any:
        return timestamp(int(asyncio.get_running_loop().time() * 1000))

    def _report(self, uid: str, reported: ContainerReported) -> None:
        machine = self._machine
        machine.sequence += 1
        machine.journal.append(Report(sequence=machine.sequence, container_uid=uid, attempt=1, reported=reported))
        self._unsent.set()
