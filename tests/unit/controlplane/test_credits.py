"""The books on a store: closed, read by who comes later, and what follows from them."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from pwm.api.v1 import events_pb2 as ev
from pwm.api.v1.common_pb2 import Actor, Reason
from pwm.api.v1.credits_pb2 import CreditNotice
from pwm.api.v1.identity_pb2 import ResourceCreditSpec, UserSpec
from pwm.api.v1.workload_pb2 import ContainerSpec, ContainerStatus, Workload, WorkloadSpec, WorkloadStatus
from pwm.controlplane.books import Books, read_since
from pwm.controlplane.clock import Clock
from pwm.controlplane.commands import Commands
from pwm.controlplane.controllers import credits as credits_controller
from pwm.controlplane.controllers.credits import IDLE_PERIOD_MS, PERIOD_MS, CreditController
from pwm.controlplane.core import ledger
from pwm.controlplane.core.credits import DAY_MS, WEEK_MS, CreditPolicy
from pwm.controlplane.core.decide import Change
from pwm.controlplane.core.ledger import LineKey
from pwm.controlplane.core.limits import Account
from pwm.controlplane.follower import Follower
from pwm.controlplane.steady_time import SteadyTime
from pwm.controlplane.store import errors as store_errors
from pwm.controlplane.store.commits import Guard
from pwm.controlplane.store.eventstore import EventStore
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.kv import Put
from pwm.controlplane.store.memory import MemoryKV
from pwm.controlplane.treasury import Treasury
from pwm.controlplane.view import View

ANN = Actor(type=Actor.USER, name="ann")
KEYS = Keys(b"/test/")
# A Tuesday.
BEGIN_MS = 1_795_478_400_000
A100, HOUR_MS = "NVIDIA A100", 3_600_000


class SetClock(Clock):
    """Stands still until it is moved; the wall may be set, too."""

    def __init__(self) -> None:
        self.wall_ms = BEGIN_MS
        self.elapsed_ms = 0

    def now_ms(self) -> int:
        return self.wall_ms

    def monotonic_s(self) -> float:
        return self.elapsed_ms / 1000

    def move(self, ms: int) -> None:
        self.wall_ms += ms
        self.elapsed_ms += ms


class Replica:
    """A view that follows, the books, and what the leader of the chores does."""

    def __init__(self, kv: MemoryKV, store: EventStore, clock: SetClock) -> None:
        self.store, self.view = store, View()
        self.books = Books(view=self.view, clock=clock, policy=CreditPolicy(stop_grace_ms=60_000))
        self.treasury = Treasury(books=self.books, view=self.view)
        self.commands = Commands(store=store, view=self.view, clock=clock)
        self.follower = Follower(store=store, view=self.view, clock=clock, on_loaded=self.books.load)
        self.following = asyncio.create_task(self.follower.run())
        self.clock = clock

    def leader(self, fence: Guard) -> CreditController:
        return CreditController(
            treasury=self.treasury, view=self.view, commands=self.commands, store=self.store, fence=fence,
        )  # fmt: skip

    def units(self, account: str = "ann") -> int:
        return self.treasury.balance(Account("User", account)).spent_units

    async def stop(self) -> None:
        self.following.cancel()
        await asyncio.gather(self.following, return_exceptions=True)


@dataclass
class Room:
    """One store and one replica that leads; `another` makes more."""

    kv: MemoryKV
    store: EventStore
    clock: SetClock
    first: Replica
    replicas: list[Replica]
    terms: int = 0

    async def another(self) -> Replica:
        made = Replica(self.kv, self.store, self.clock)
        self.replicas.append(made)
        await made.view.wait_for(await self.store.newest_event(after_revision=0))
        return made

    async def fence(self) -> Guard:
        """Of a new term, which ends the one before."""
        self.terms += 1
        key = KEYS.leader(f"term-{self.terms}")
        done = await self.kv.txn([], [Put(key, b"")])
        return Guard(key, create_revision=done.revision)

    async def commit(self, *changes: Change) -> None:
        done = await self.first.commands.run(lambda: list(changes), actor=ANN)
        for replica in self.replicas:
            await replica.view.wait_for(done.revision)

    async def new(self, kind: str, name: str, payload: object, *, group: str = "") -> None:
        await self.commit(Change(kind, f"uid-{name}", name, group, None, (payload,)))  # type: ignore[arg-type]

    async def price(self, hour: float) -> None:
        spec = ResourceCreditSpec()
        spec.credit.per.hour = hour
        state = self.first.view.by_name("ResourceCredit", "A100")
        await self.commit(
            Change("ResourceCredit", "uid-A100", "A100", "", state, (ev.ResourceCreditApplied(spec=spec),))
        )

    async def user(self, weekly: float) -> None:
        spec = UserSpec()
        spec.limits.credits.weekly = weekly
        state = self.first.view.by_name("User", "ann")
        await self.commit(Change("User", "uid-ann", "ann", "", state, (ev.UserApplied(spec=spec),)))

    async def run(self, name: str, gpu: str = "GPU-0") -> None:
        applied = ev.WorkloadApplied(spec=WorkloadSpec(), generation=1, first_attempt=1)
        await self.new("Workload", name, applied, group="vision")
        spec = ContainerSpec(workload=name, workload_uid=f"uid-{name}", attempt=1, owner="ann", gpu_uuids=[gpu])
        spec.devices.add(product_name=A100, millis=1000)
        running = ev.ContainerReported(phase=ContainerStatus.RUNNING)
        uid = f"uid-{name}.0.1"
        await self.commit(Change("Container", uid, f"{name}.0.1", "vision", None, (ev.ContainerPlaced(spec=spec),)))
        await self.report(name, running)

    async def report(self, name: str, payload: object) -> None:
        state = self.first.view.get("Container", f"uid-{name}.0.1")
        assert state is not None
        await self.commit(
            Change("Container", f"uid-{name}.0.1", f"{name}.0.1", "vision", state, (payload,))  # type: ignore[arg-type]
        )

    async def end(self, name: str) -> None:
        await self.report(name, ev.ContainerReported(phase=ContainerStatus.EXITED))

    def workload(self, name: str) -> Workload:
        found: Workload | None = self.first.view.by_name("Workload", name, group="vision")
        assert found is not None
        return found

    def notice(self, kind: str, name: str) -> CreditNotice:
        holder = self.first.view.by_name(kind, name)
        assert holder is not None
        told: CreditNotice = holder.status.credits
        return told

    async def seen_by_all(self) -> None:
        newest = max(replica.view.revision for replica in self.replicas)
        for replica in self.replicas:
            await replica.view.wait_for(newest)


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    kv, clock = MemoryKV(), SetClock()
    async with EventStore(kv, keys=KEYS) as store:
        first = Replica(kv, store, clock)
        made = Room(kv, store, clock, first, [first])
        await first.view.wait_for(0)
        yield made
        for replica in made.replicas:
            await replica.stop()
    await kv.close()


def units(ms: int, hourly: float) -> int:
    """What one device costs for so long."""
    return ms * 1000 * int(hourly * 1_000_000)


async def test_what_runs_up_is_known_at_once_and_settled_once_by_every_leader(room: Room) -> None:
    await room.price(2)
    leader = room.first.leader(await room.fence())
    await leader.turn()
    assert room.first.books.opening.at_ms == BEGIN_MS
    await room.run("train")
    room.clock.move(60_000)
    assert room.first.units() == units(60_000, 2)
    room.clock.move(PERIOD_MS)
    await leader.turn()
    await leader.turn()
    closed_ms = room.first.books.opening.at_ms
    assert closed_ms == room.clock.now_ms()
    assert room.first.books.settled_lines(room.first.books.lines()[0]) == {
        LineKey("ann", "vision", A100, 2_000_000): (PERIOD_MS + 60_000) * 1000
    }
    room.clock.move(5_000)
    await room.price(4)
    room.clock.move(5_000)
    await room.end("train")
    room.clock.move(PERIOD_MS)
    total = units(PERIOD_MS + 65_000, 2) + units(5_000, 4)
    assert room.first.units() == total

    second = await room.another()
    assert not second.books.exact
    await second.leader(await room.fence()).turn()
    await room.seen_by_all()
    assert second.books.opening == room.first.books.opening
    assert second.books.opening.at_ms > closed_ms
    assert (second.units(), room.first.units()) == (total, total)


async def test_many_short_containers_close_the_books_before_their_time(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credits_controller, "MOST_ENTRIES", 4)
    await room.price(1)
    leader = room.first.leader(await room.fence())
    await leader.turn()
    for number in range(2):
        await room.run(f"short{number}", "GPU-1")
        room.clock.move(7_000)
        await leader.turn()
        assert room.first.books.opening.at_ms == BEGIN_MS, "not yet"
        await room.end(f"short{number}")
    await leader.turn()
    assert room.first.books.opening.at_ms == BEGIN_MS + 14_000
    assert room.first.books.entries == []
    assert room.first.units() == units(14_000, 1)


async def test_what_ended_and_is_gone_while_nobody_led_is_charged_by_who_comes(room: Room) -> None:
    await room.price(1)
    await room.first.leader(await room.fence()).turn()
    room.clock.move(1_000)
    await room.run("short", "GPU-1")
    room.clock.move(7_000)
    await room.end("short")
    await room.report("short", ev.Removed())
    room.clock.move(2_000)
    await room.run("long")
    room.clock.move(30_000)

    late = await room.another()
    assert late.units() == units(30_000, 1), "what has gone is not in its view"
    await late.leader(await room.fence()).turn()
    assert late.books.exact
    assert late.units() == room.first.units() == units(37_000, 1)
    assert (late.books.opening, late.books.entries) == (room.first.books.opening, room.first.books.entries)


async def test_nobody_pays_for_a_wall_clock_that_is_set(room: Room) -> None:
    await room.price(1)
    await room.user(10)
    await room.run("train")
    leader = room.first.leader(await room.fence())
    await leader.turn()
    room.clock.wall_ms += 3 * DAY_MS
    room.clock.move(PERIOD_MS)
    await leader.turn()
    room.clock.wall_ms -= 6 * DAY_MS
    room.clock.move(PERIOD_MS)
    await leader.turn()
    assert room.first.books.opening.at_ms == BEGIN_MS + 2 * PERIOD_MS
    assert room.first.units() == units(2 * PERIOD_MS, 1)
    assert room.notice("User", "ann").level == CreditNotice.LEVEL_UNSPECIFIED
    week = room.first.books.policy.week_of(BEGIN_MS)
    assert ledger.cost_units(room.first.books.settled_lines(week)) == units(2 * PERIOD_MS, 1)


def test_small_corrections_of_the_wall_clock_are_followed_and_time_never_goes_back() -> None:
    clock = SetClock()
    steady = SteadyTime(clock)
    clock.move(1_000)
    clock.wall_ms += 3_000
    assert steady.now_ms() == BEGIN_MS + 4_000
    clock.wall_ms -= 2_000
    assert steady.now_ms() == BEGIN_MS + 4_000
    clock.move(10_000)
    assert steady.now_ms() == BEGIN_MS + 12_000
    clock.wall_ms -= DAY_MS
    clock.move(1_000)
    assert steady.now_ms() == BEGIN_MS + 13_000


async def test_a_week_ends_on_time_and_everybody_has_all_credits_again(room: Room) -> None:
    await room.price(1)
    await room.user(1)
    await room.run("train")
    leader = room.first.leader(await room.fence())
    await leader.turn()
    week = room.first.books.policy.week_of(BEGIN_MS)
    room.clock.move(week.end_ms - BEGIN_MS + 1_000)
    assert room.first.units() == units(1_000, 1), "before the books are closed, too"
    await leader.turn()
    assert ledger.cost_units(room.first.books.settled_lines(week)) == units(week.end_ms - BEGIN_MS, 1)
    assert room.first.units() == units(1_000, 1)
    assert room.first.treasury.denial(room.workload("train")) is None
    room.clock.move(2 * WEEK_MS)
    await leader.turn()
    assert room.first.books.opening.at_ms == room.clock.now_ms() - 1_000, "weeks are closed one by one"


async def test_who_is_out_of_credits_is_told_denied_and_after_a_grace_stopped(room: Room) -> None:
    await room.price(1)
    await room.user(1)
    await room.run("train")
    leader = room.first.leader(await room.fence())
    await leader.turn()

    room.clock.move(HOUR_MS * 8 // 10)
    await leader.turn()
    low = room.notice("User", "ann")
    assert (low.level, low.spent_micro, low.weekly_micro) == (CreditNotice.LOW, 800_000, 1_000_000)
    room.clock.move(HOUR_MS * 2 // 10)
    await leader.turn()
    assert room.notice("User", "ann").level == CreditNotice.OUT
    assert room.notice("User", "ann").stop_at.ToMilliseconds() == room.clock.now_ms() + 60_000
    denied = room.first.treasury.denial(room.workload("train"))
    assert denied is not None
    assert denied.code == Reason.OUT_OF_CREDITS
    assert "user ann has spent 1 of 1 credits this week" in denied.message
    room.clock.move(59_000)
    await leader.turn()
    assert room.workload("train").status.desired == WorkloadStatus.RUN
    room.clock.move(2_000)
    await leader.turn()
    assert room.workload("train").status.desired == WorkloadStatus.STOP
    assert room.workload("train").status.desired_reason.code == Reason.OUT_OF_CREDITS
    assert room.workload("train").status.desired_by.name == "credits"
    await room.user(5)
    assert room.first.treasury.denial(room.workload("train")) is None


async def test_who_has_no_limit_is_never_denied_and_a_group_has_one_of_its_own(room: Room) -> None:
    await room.price(1)
    await room.run("train")
    leader = room.first.leader(await room.fence())
    await leader.turn()
    train = room.workload("train")
    room.clock.move(HOUR_MS)
    assert room.first.treasury.denial(train) is None
    applied = ev.GroupApplied()
    applied.spec.limits.credits.weekly = 0.5
    await room.new("Group", "vision", applied)
    denied = room.first.treasury.denial(train)
    assert denied is not None
    assert denied.message.startswith("group vision has spent 1 of 0.5 credits")
    await leader.turn()
    assert room.notice("Group", "vision").level == CreditNotice.OUT


async def test_a_leader_whose_term_is_over_writes_nothing(room: Room) -> None:
    await room.price(1)
    fence = await room.fence()
    leader = room.first.leader(Guard(fence.key, create_revision=fence.create_revision + 1))  # type: ignore[operator]
    with pytest.raises(store_errors.FenceLost):
        await leader.turn()
    assert room.first.books.opening.at_ms == 0


async def test_nothing_is_written_down_while_nothing_is_used(room: Room) -> None:
    leader = room.first.leader(await room.fence())
    await leader.turn()
    room.clock.move(IDLE_PERIOD_MS - 1)
    await leader.turn()
    assert room.first.books.opening.at_ms == BEGIN_MS
    room.clock.move(1)
    await leader.turn()
    assert room.first.books.opening.at_ms == BEGIN_MS + IDLE_PERIOD_MS


async def test_only_what_one_user_had_is_read_when_that_is_asked_for(room: Room) -> None:
    await room.price(1)
    await room.run("train")
    opening, entries, _ = await read_since(room.store, 0, 0, owner="bob")
    assert not opening.running
    assert [type(entry) for entry in entries] == [ledger.Repricing]
    _, entries, _ = await read_since(room.store, 0, 0, owner="ann")
    assert len(entries) == 2
