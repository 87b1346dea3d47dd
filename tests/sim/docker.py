"""Simulated machines: a Docker engine whose containers outlive the agent, and the driver through which the real agent
uses it.

A *machine* keeps its containers ("boxes") and the agent's journal over deaths of the agent; a power cut ends all
boxes and loses what the disk had not yet been told to keep. The *engine* can be away, hang, or lose a container
to somebody's `docker rm`. What was asked of it happens although the agent that asked has died meanwhile.
The driver has the timing of the real one and keeps its promises (see pwm/nodeagent/drivers/driver.py).
"""

import asyncio
import random
import sqlite3
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from pwm.api.v1.agent_pb2 import Assignment, ContainerSecrets, ContainerUsage, NodeUsage, PullProgress
from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.node_pb2 import DriverInfo, GPUDevice, Inventory
from pwm.nodeagent.drivers.driver import (
    NOTHING,
    Adopted,
    ContainerMissing,
    DriverError,
    Ended,
    EngineUnreachable,
    ImageMissing,
    Runtime,
    Started,
)
from pwm.nodeagent.journal import Journal
from pwm.nodeagent.watchdog import Promise
from tests.sim.loop import Handle
from tests.sim.network import Host, Network, Process

DRIVER = "pwm.docker"
GIB = 1 << 30
NS = 1_000_000_000
# How long the driver waits for an engine that hangs.
ENGINE_TIMEOUT_S = 8.0
# The agent's journal is written to disk so often, and takes up to as long again to be safe from a power cut there.
DISK_SYNC_S = 4.0


class Box:
    """One container, as Docker keeps it."""

    def __init__(self, assignment: Assignment, number: int) -> None:
        self.uid = assignment.uid
        self.spec = assignment.spec
        self.group = assignment.group
        self.runtime_id = f"{assignment.uid}-{number}"
        self.runtime = Runtime.CREATED
        self.started_at_ns = 0
        self.ended: Ended | None = None
        self.deaf = False  # to SIGTERM
        self.timer: Handle | None = None
        self.waiting: list[tuple[Process, Callable[[], None]]] = []

    @property
    def replica(self) -> tuple[str, int]:
        return self.spec.workload_uid, self.spec.replica


class Witness:
    """Who is told what happens on machines; the judge, or nobody."""

    def created(self, machine: "Machine", box: Box) -> None: ...

    def started(self, machine: "Machine", box: Box) -> None: ...

    def stopped(self, machine: "Machine", box: Box) -> None: ...

    def ended(self, machine: "Machine", box: Box) -> None: ...


class Machine(Host):
    """A node: host, engine, disk."""

    def __init__(
        self,
        network: Network,
        name: str,
        *,
        gpus: int,
        cpus: int,
        seed: int,
        rate: float,
        wall_ms: int,
        witness: Witness,
    ) -> None:
        super().__init__(name, rate=rate, wall_ms=wall_ms)
        self.network = network
        self.universe = network.universe
        self.rng = random.Random(f"{seed} machine {name}")
        self.boxes: dict[str, Box] = {}
        self.images = {"sim"}
        self.away = 0
        self.hangs = 0
        self.boots = 0
        self.agent: Any = None
        # Its watchdogs that live; what they share with the agent, as files: who is on duty, and what was killed.
        self.watchdogs: list[Any] = []
        self.watchdogs_made = 0
        self.on_duty = 0
        self.promise = Promise()
        self.killed: set[str] = set()
        # The agent was stopped in good order, and the control plane knows that it promises nothing.
        self.has_left = False
        self._was_kept = False
        self._unkept_s = 0.0
        self.booted_s = -100.0
        self._seed = seed
        self._witness = witness
        self._made = 0
        self._shape = (gpus, cpus)
        self._disk = sqlite3.connect(self._journal_name(), uri=True, isolation_level=None)
        self._synced: list[tuple[float, bytes]] = []
        # What happens once the engine is back: as a process, or as the engine itself.
        self._on_back: list[tuple[Process | None, Callable[[], None]]] = []
        self.universe.later(DISK_SYNC_S, self._keep_disk)

    def inventory(self) -> Inventory:
        _, cpus = self._shape
        return Inventory(
            agent_version="sim", boot_id=f"{self.name}-{self.boots}", cpu_product="Sim", cpu_count=cpus,
            memory_bytes=cpus * 4 * GIB,
        )  # fmt: skip

    def gpus(self) -> list[GPUDevice]:
        return [
            GPUDevice(uuid=f"GPU-{self.name}-{i}", index=i, product_name="A100", memory_bytes=80 * GIB, healthy=True)
            for i in range(self._shape[0])
        ]

    def now_ns(self) -> int:
        return self.now_ms(self.universe) * 1_000_000

    def uptime_ms(self) -> int:
        return int((self.universe.now_s - self.booted_s) * self.rate * 1000) + 1

    # ---- the disk

    def _journal_name(self) -> str:
        return f"file:sim-{self.name}-{self.boots}?mode=memory&cache=shared"

    def journal(self) -> Journal:
        return Journal(
            Path("journal.db"),
            connect=lambda _: sqlite3.connect(self._journal_name(), uri=True, isolation_level=None),
            clock_ms=lambda: self.now_ms(self.universe),
        )

    def _keep_disk(self) -> None:
        """Remember what would survive a power cut some seconds from now."""
        if self.up:
            kept = self.universe.now_s + DISK_SYNC_S * self.rng.random(), self._disk.serialize()
            self._synced = [*self._synced[-2:], kept]
        self.universe.later(DISK_SYNC_S, self._keep_disk)

    def _is_kept(self) -> bool:
        """Whether anybody is there who can do what was promised: an engine, and the agent or its watchdog."""
        engine = self.up and not self.away and not self.hangs
        return engine and (self.agent.running or any(watchdog.running for watchdog in self.watchdogs))

    def disturbed(self) -> None:
        if self.agent is None:
            return
        is_kept = self._is_kept()
        if not is_kept or not self._was_kept:
            self._unkept_s = self.universe.now_s
        self._was_kept = is_kept

    def kept_for_s(self) -> float:
        """For how long somebody has been there, without a break."""
        return self.universe.now_s - self._unkept_s if self._is_kept() else 0.0

    # ---- the engine's own doings

    def create(self, assignment: Assignment) -> Box:
        self._made += 1
        box = Box(assignment, self._made)
        self.boxes[box.uid] = box
        self._witness.created(self, box)
        return box

    def start(self, box: Box) -> None:
        box.runtime = Runtime.RUNNING
        box.started_at_ns = self.now_ns()
        self._witness.started(self, box)
        luck = random.Random(f"{self._seed} box {box.uid}")
        box.deaf = luck.random() < 0.1
        life_s = luck.choice([0.0, 0.3, 3.0, 20.0, 1e6, 1e6])
        code = luck.choice([0, 0, 0, 1, 137])
        box.timer = self.universe.later(life_s, self._end, box, code)

    def signal(self, box: Box, *, kill: bool) -> None:
        if box.runtime is Runtime.RUNNING:
            self._witness.stopped(self, box)
            if kill:
                self._end(box, 137)
            elif not box.deaf:
                if box.timer is not None:
                    box.timer.cancel()
                box.timer = self.universe.later(self.rng.choice([0.01, 0.5, 2.0]), self._end, box, 143)

    def crash(self, box: Box, *, oom: bool) -> None:
        """It dies, and PWM has nothing to do with it."""
        self._end(box, 137, oom=oom)

    def _end(self, box: Box, code: int, *, oom: bool = False) -> None:
        if box.runtime is Runtime.RUNNING:
            box.runtime = Runtime.ENDED
            box.ended = Ended(
                exit_code=code, finished_at_ns=self.now_ns(), oom_killed=oom, started_at_ns=box.started_at_ns
            )
            if box.timer is not None:
                box.timer.cancel()
            self._witness.ended(self, box)
            self._tell(box)

    def remove(self, box: Box) -> None:
        if self.boxes.get(box.uid) is box:
            self._end(box, 137)
            del self.boxes[box.uid]
            self._tell(box)

    def _tell(self, box: Box) -> None:
        """The engine's event, to whoever waits; an engine that is away tells when it is back."""
        if self.away or self.hangs:
            self._on_back.append((None, lambda: self._tell(box)))
            return
        waiting, box.waiting = box.waiting, []
        for process, wake in waiting:
            self.universe.at(self.universe.now_s + 0.002 * self.rng.random(), process.loop, wake)

    def running(self) -> list[Box]:
        return [box for box in self.boxes.values() if box.runtime is Runtime.RUNNING]

    # ---- faults

    def trouble(self, kind: str, begin: bool) -> None:
        setattr(self, kind, getattr(self, kind) + (1 if begin else -1))
        self.disturbed()
        if not self.away and not self.hangs:
            back, self._on_back = self._on_back, []
            for process, wake in back:
                if process is None:
                    wake()
                else:
                    self.universe.at(self.universe.now_s, process.loop, wake)

    def when_back(self, process: Process | None, wake: Callable[[], None]) -> None:
        self._on_back.append((process, wake))

    def power_cut(self) -> None:
        """Every box ends with the machine; the journal goes back to what the disk surely had."""
        self.up = False
        for watchdog in self.watchdogs:
            watchdog.kill(power_cut=True)
        for box in list(self.boxes.values()):
            self._end(box, 255)
            box.waiting.clear()
        safe = [data for at_s, data in self._synced if at_s <= self.universe.now_s]
        self._synced.clear()
        self.boots += 1
        self.booted_s = self.universe.now_s
        before, self._disk = self._disk, sqlite3.connect(self._journal_name(), uri=True, isolation_level=None)
        if safe:
            kept = sqlite3.connect(":memory:")
            kept.deserialize(safe[-1])
            kept.backup(self._disk)
            kept.close()
        before.close()


class SimDriver:
    """The agent's way to its engine."""

    name = DRIVER

    def __init__(self, machine: Machine, process: Process) -> None:
        self._machine = machine
        self._process = process
        self._rng = machine.rng

    async def run(self) -> None:
        await asyncio.Event().wait()

    async def close(self) -> None: ...

    async def _ask(self, mean_s: float = 0.004) -> None:
        """Half of a request's way; raises when the engine is away, and waits as long as it hangs."""
        machine = self._machine
        await asyncio.sleep(mean_s * self._rng.random())
        if machine.hangs:
            back = asyncio.Event()
            machine.when_back(self._process, back.set)
            try:
                async with asyncio.timeout(ENGINE_TIMEOUT_S):
                    await back.wait()
            except TimeoutError:
                raise EngineUnreachable("the engine hangs") from None
        if machine.away:
            raise EngineUnreachable("the engine is away")

    async def probe(self) -> DriverInfo:
        try:
            await self._ask()
        except EngineUnreachable as error:
            return DriverInfo(name=self.name, version="sim", ready=False, message=str(error))
        return DriverInfo(name=self.name, version="sim", ready=True)

    async def prepare(
        self, assignment: Assignment, progress: Callable[[PullProgress], None], given: ContainerSecrets = NOTHING
    ) -> None:
        await self._ask()
        progress(PullProgress(message="Downloading"))
        await asyncio.sleep(self._rng.choice([0.05, 0.5, 3.0]))
        await self._ask()
        image = _image(assignment)
        if image == "nowhere":
            raise DriverError(Reason.IMAGE_NOT_PRESENT, "there is no such image anywhere")
        self._machine.images.add(image)

    async def create(self, assignment: Assignment, given: ContainerSecrets = NOTHING) -> str:
        await self._ask()
        machine = self._machine
        box = machine.boxes.get(assignment.uid)
        if box is None:
            if _image(assignment) not in machine.images:
                raise ImageMissing("not here")
            box = machine.create(assignment)
        await self._ask()
        return box.runtime_id

    async def start(self, uid: str) -> Started:
        if self._box(uid).runtime is Runtime.CREATED:
            await self._let_start(uid)
        await self._ask()
        return Started(started_at_ns=self._machine.now_ns())

    async def _let_start(self, uid: str) -> None:
        """The engine takes its time, and does it although whoever has asked is frozen or dead by then."""
        machine, box, done = self._machine, self._box(uid), asyncio.Event()
        troubles: list[DriverError] = []

        def start() -> None:
            if machine.hangs:
                machine.when_back(None, start)
                return
            if machine.away or not machine.up:
                troubles.append(EngineUnreachable("the engine is away"))
            elif machine.boxes.get(uid) is not box:
                troubles.append(ContainerMissing())
            elif box.spec.image.startswith("broken"):
                said = "no such command in the image"
                troubles.append(DriverError(Reason.ERROR_STARTING_CONTAINER, said, exit_code=127))
            elif box.runtime is Runtime.CREATED:
                machine.start(box)
            machine.universe.at(machine.universe.now_s, self._process.loop, done.set)

        machine.universe.later(self._rng.random() * self._rng.choice([0.01, 0.3, 2.0]), start)
        try:
            async with asyncio.timeout(ENGINE_TIMEOUT_S):
                await done.wait()
        except TimeoutError:
            raise EngineUnreachable("the engine hangs") from None
        if troubles:
            raise troubles[0]

    async def wait(self, uid: str) -> Ended:
        while True:
            box = self._box(uid)
            if box.ended is not None and not self._machine.away and not self._machine.hangs:
                return box.ended
            changed = asyncio.Event()
            if box.ended is not None:
                self._machine.when_back(self._process, changed.set)
            else:
                box.waiting.append((self._process, changed.set))
            await changed.wait()

    async def stop(self, uid: str, *, grace_ms: int) -> None:
        await self._ask()
        box = self._box(uid)
        self._machine.signal(box, kill=False)
        try:
            async with asyncio.timeout(grace_ms / 1000):
                await self._until_ended(box)
        except TimeoutError:
            await self._ask()
            self._machine.signal(box, kill=True)
        await self._ask()

    async def _until_ended(self, box: Box) -> None:
        while box.ended is None and self._machine.boxes.get(box.uid) is box:
            changed = asyncio.Event()
            box.waiting.append((self._process, changed.set))
            await changed.wait()

    async def remove(self, uid: str) -> None:
        await self._ask()
        box = self._machine.boxes.get(uid)
        if box is not None:
            if box.runtime is Runtime.RUNNING:
                self._machine.signal(box, kill=True)
            self._machine.remove(box)
        await self._ask()

    async def adopt(self) -> list[Adopted]:
        await self._ask()
        return [
            Adopted(
                uid=box.uid, attempt=box.spec.attempt, runtime=box.runtime, runtime_id=box.runtime_id,
                labels={
                    "pwm.uid": box.uid, "pwm.attempt": str(box.spec.attempt), "pwm.group": box.group,
                    "pwm.workload": box.spec.workload, "pwm.replica": str(box.spec.replica),
                },
                started_at_ns=box.started_at_ns, pid=1, ended=box.ended,
            )
            for box in self._machine.boxes.values()
        ]  # fmt: skip

    async def usage(self, uids: Collection[str]) -> list[ContainerUsage]:
        return []

    def output(self, uid: str) -> None:
        return None

    def _box(self, uid: str) -> Box:
        box = self._machine.boxes.get(uid)
        if box is None:
            raise ContainerMissing
        return box


def _image(assignment: Assignment) -> str:
    return assignment.spec.image.partition(":")[0]


class SimHost:
    """What the agent asks of its machine besides containers (pwm/nodeagent/host.py)."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.inventory = machine.inventory()
        self.journal = machine.journal()
        self.logs = _NoLogs()
        self.now_ns = machine.now_ns
        self.uptime_ms = machine.uptime_ms

    async def goes_down(self) -> bool:
        return False

    def devices(self, containers: Any) -> "_Devices":
        return _Devices(self._machine)

    async def close(self) -> None:
        self.journal.close()


class _NoLogs:
    """Output is not simulated."""

    async def run(self) -> None:
        await asyncio.Event().wait()

    def follow(self, uid: str, source: Any) -> None:
        raise AssertionError("the simulated driver has no output")

    async def finish(self, uid: str) -> None:
        """Everything was kept."""


class _Devices:
    nvidia_driver = "sim"

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    async def gpus(self) -> list[GPUDevice]:
        return self._machine.gpus()

    async def usage(self) -> NodeUsage:
        return NodeUsage(cpu=0.1)

    def close(self) -> None: ...
