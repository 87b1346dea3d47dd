"""Totals hold although several decide at the same moment: two leaders, of a zone each, and one account."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from pwm.api.v1 import events_pb2 as ev
from pwm.api.v1.common_pb2 import Actor, Reason
from pwm.api.v1.identity_pb2 import GroupSpec, ResourceLimits, UserSpec
from pwm.api.v1.node_pb2 import GPUDevice, Inventory, NodeSpec, NodeStatus
from pwm.api.v1.workload_pb2 import ContainerStatus, WorkloadSpec
from pwm.controlplane.clock import Clock
from pwm.controlplane.controllers.workloads import WorkloadController
from pwm.controlplane.core.decide import Change, change
from pwm.controlplane.core.limits import GROUP, USER, Account, Use
from pwm.controlplane.plane import ControlPlane
from pwm.controlplane.services.event_text import said
from pwm.controlplane.store.commits import Guard
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.memory import MemoryKV
from pwm.controlplane.turns import Turns
from pwm.controlplane.view import ViewChange
from tests.patience import PATIENCE_S

ANN, VISION = Account(USER, "ann"), Account(GROUP, "vision")
ACTOR = Actor(type=Actor.USER, name="ann")
ZONES = ("default", "spare")
# A key that nobody writes: the fence of a leader who leads for ever.
FENCE = Guard(b"/t/leader/never", create_revision=0)


class Zones:
    """A control plane with a node of 8 GPUs per zone; each plans on a view of its own."""

    def __init__(self, planes: dict[str, ControlPlane]) -> None:
        self.planes = planes
        self.first = planes[ZONES[0]]
        self._following: dict[str, asyncio.Task[None]] = {}
        # Most that an account has had at any moment, as the log has it.
        self.most: dict[Account, Use] = {}
        self.first.view.observe(self._note)

    def _note(self, change: ViewChange) -> None:
        for account in (ANN, VISION):
            now, most = self.first.cluster.accounts.use(account), self.most.get(account, Use())
            self.most[account] = Use(max(now.workloads, most.workloads), max(now.gpus, most.gpus))

    def resume(self, zone: str) -> None:
        """Its replica hears of what happens."""
        self._following[zone] = asyncio.create_task(self.planes[zone].follower.run())

    async def stall(self, zone: str) -> None:
        """Its replica hears of nothing any more."""
        self._following[zone].cancel()
        await asyncio.gather(self._following[zone], return_exceptions=True)

    async def commit(self, *changes: Change) -> None:
        for each in changes:
            await self.first.commands.run(lambda each=each: [each], actor=ACTOR)  # type: ignore[misc]

    async def apply(self, count: int, *, gpus: int = 1) -> None:
        """So many workloads, in the zones by turns."""
        for number in range(count):
            zone = ZONES[number % len(ZONES)]
            spec = WorkloadSpec(driver="pwm.docker", zone=zone)
            spec.selectors.gpu.count = gpus
            spec.selectors.cpu.count, spec.config.memory = "100m", "16MiB"
            applied = ev.WorkloadApplied(spec=spec, generation=1, first_attempt=1)
            await self.commit(Change("Workload", f"uid-w{number}", f"w{number}", "vision", None, (applied,)))

    async def limit(self, account: Account, *, deny: tuple[str, ...] = (), **gpus: int) -> None:
        limits = ResourceLimits()
        limits.nodes.deny.extend(deny)
        for name, value in gpus.items():
            if name == "workloads":
                limits.workloads.concurrently = value
            else:
                limits.gpus.total = value
        state = self.first.view.by_name(*account)
        if account.kind == USER:
            user = UserSpec()
            user.limits.resources.CopyFrom(limits)
            payload: ev.UserApplied | ev.GroupApplied = ev.UserApplied(spec=user)
        else:
            group = GroupSpec()
            group.limits.resources.CopyFrom(limits)
            payload = ev.GroupApplied(spec=group)
        await self.commit(Change(account.kind, f"uid-{account.name}", account.name, "", state, (payload,)))

    async def end_one(self) -> None:
        """A container that runs ends well."""
        container = next(c for c in self.first.view.all("Container") if c.status.phase < ContainerStatus.EXITED)
        await self.commit(change(container, ev.ContainerReported(phase=ContainerStatus.EXITED, exit_code=0)))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            with self.first.view.subscribe() as subscription:
                while not condition():
                    await subscription.batch()

    def told(self) -> list[Reason.Code.ValueType]:
        """Codes of the limits that workloads were said to wait for."""
        events = (event for event in self.first.view.recent_events if event.HasField("workload_held_back"))
        return [event.workload_held_back.reason.code for event in events]

    def has(self, account: Account) -> Use:
        return self.first.cluster.accounts.use(account)


@asynccontextmanager
async def two_zones() -> AsyncIterator[Zones]:
    """Nobody plans yet: see `leading`."""
    kv, clock = MemoryKV(), Clock()
    planes = {
        zone: ControlPlane(kv=kv, keys=Keys(b"/t/"), replica=zone, address="http://127.0.0.1", clock=clock)
        for zone in ZONES
    }
    zones = Zones(planes)
    try:
        for zone in ZONES:
            zones.resume(zone)
        for plane in planes.values():
            await plane.view.wait_for(0)
        for zone in ZONES:
            await zones.commit(
                Change("Zone", f"uid-{zone}", zone, "", None, (ev.ZoneApplied(),)),
                Change("Node", f"uid-n-{zone}", f"n-{zone}", "", None, node_events(zone)),
            )
        yield zones
    finally:
        for zone in ZONES:
            await zones.stall(zone)
        for plane in planes.values():
            await plane.store.close()
        await kv.close()


def node_events(zone: str) -> tuple[ev.NodeApplied, ev.NodeJoined, ev.NodePhaseChanged]:
    inventory = Inventory(cpu_count=64, memory_bytes=64 * 1024**3)
    inventory.drivers.add(name="pwm.docker", ready=True)
    inventory.gpus.extend(GPUDevice(uuid=f"{zone}-{n}", index=n, product_name="T4", healthy=True) for n in range(8))
    return (
        ev.NodeApplied(spec=NodeSpec(zone=zone)),
        ev.NodeJoined(inventory=inventory),
        ev.NodePhaseChanged(phase=NodeStatus.READY),
    )


@asynccontextmanager
async def leading(zones: Zones, *which: str) -> AsyncIterator[None]:
    """Each of these zones, or of all, has a leader, on a replica of its own."""
    tasks = [
        asyncio.create_task(
            WorkloadController(
                zone=zone,
                view=plane.view,
                commands=plane.commands,
                cluster=plane.cluster,
                clock=plane.clock,
                fence=FENCE,
            ).run()
        )
        for zone, plane in zones.planes.items()
        if zone in (which or ZONES)
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("account", [ANN, VISION])
async def test_two_zones_never_exceed_a_total_together(account: Account) -> None:
    async with two_zones() as zones:
        await zones.limit(account, total=5)
        await zones.apply(14)
        async with leading(zones):
            for ended in range(6):
                await zones.until(lambda: zones.has(account).gpus == 5)
                assert zones.first.view.count("Container") == 5 + ended
                await zones.end_one()
        assert zones.most[account].gpus == 5


async def test_two_zones_never_run_more_workloads_at_once_than_a_user_may() -> None:
    async with two_zones() as zones:
        await zones.limit(ANN, workloads=3)
        await zones.apply(10)
        async with leading(zones):
            for _ in range(4):
                await zones.until(lambda: zones.has(ANN).workloads == 3)
                await zones.end_one()
        assert zones.most[ANN].workloads == 3


async def test_a_raised_limit_lets_who_waits_start_and_a_lowered_one_ends_nothing() -> None:
    async with two_zones() as zones:
        await zones.limit(ANN, total=1)
        await zones.apply(6)
        async with leading(zones):
            await zones.until(lambda: zones.has(ANN).gpus == 1)
            await zones.limit(ANN, total=4)
            await zones.until(lambda: zones.has(ANN).gpus == 4)
            await zones.limit(ANN, total=2)
            for left in (3, 2):
                await zones.end_one()
                await zones.until(lambda left=left: zones.has(ANN).gpus == left)  # type: ignore[misc]
            assert zones.first.view.count("Container") == 4
            await zones.limit(ANN)
            await zones.until(lambda: zones.has(ANN).gpus == 4)
        assert zones.most[ANN].gpus == 4


async def test_whom_a_limit_keeps_from_starting_is_in_the_log_once_for_each_run() -> None:
    async with two_zones() as zones:
        await zones.limit(ANN, total=1)
        await zones.apply(2)
        async with leading(zones):
            told = [Reason.TOO_MANY_GPUS]
            await zones.until(lambda: zones.told() == told)
            await zones.end_one()
            await zones.until(lambda: zones.first.view.count("Container") == 2)
            await zones.limit(ANN, total=0)
            restarted = zones.first.view.by_name("Workload", "w0", group="vision")
            await zones.commit(change(restarted, ev.WorkloadRestarted(first_attempt=2)))
            told.append(Reason.OVER_GPU_LIMIT)
            await zones.until(lambda: zones.told() == told)
            await zones.limit(ANN, total=1)
            told.append(Reason.TOO_MANY_GPUS)
            await zones.until(lambda: zones.told() == told)
            await zones.limit(ANN, total=2)
            await zones.until(lambda: zones.first.view.count("Container") == 3)
        assert zones.told() == told


async def test_that_no_node_is_left_for_somebody_is_in_the_log_as_any_other_limit() -> None:
    async with two_zones() as zones:
        await zones.limit(ANN, deny=("n-default", "n-spare"))
        await zones.apply(1)
        async with leading(zones):
            await zones.until(lambda: zones.told() == [Reason.NODE_NOT_ALLOWED])
            (event,) = (e for e in zones.first.view.recent_events if e.HasField("workload_held_back"))
            assert said(event) == "denied: no node is open to user ann"
            await zones.limit(ANN, deny=("n-spare",))
            await zones.until(lambda: zones.first.view.count("Container") == 1)
        assert zones.told() == [Reason.NODE_NOT_ALLOWED]


async def test_what_was_decided_under_a_limit_is_not_written_once_that_has_changed() -> None:
    async with two_zones() as zones:
        await zones.limit(ANN, total=1)
        plane = zones.planes["spare"]
        await plane.view.wait_for(zones.first.view.revision)
        user = plane.view.by_name(*ANN)
        new = Change("Container", "uid-w0.0.1", "w0.0.1", "vision", None, (ev.ContainerPlaced(),), given=(user,))
        await zones.stall("spare")
        await zones.limit(ANN, total=0)
        placing = asyncio.create_task(plane.commands.run_in_parts([new], actor=ACTOR))
        zones.resume("spare")
        assert await placing == [new]
        assert plane.view.get("Container", new.uid) is None
        renewed = replace(new, given=(plane.view.by_name(*ANN),))
        assert await plane.commands.run_in_parts([renewed], actor=ACTOR) == []


async def test_who_takes_a_turn_waits_until_all_that_was_taken_before_is_known() -> None:
    async with two_zones() as zones:
        await zones.limit(ANN, total=1)
        await zones.apply(1)
        plane = zones.planes["spare"]
        await zones.stall("spare")
        async with leading(zones, "default"):
            await zones.until(lambda: zones.has(ANN).gpus == 1)
        assert plane.cluster.accounts.use(ANN).gpus == 0
        turns = Turns(commands=plane.commands, view=plane.view)
        learning = asyncio.create_task(turns.learn(lambda: {ANN}))
        zones.resume("spare")
        await learning
        assert plane.cluster.accounts.use(ANN).gpus == 1
