"""When an agent that is cut off ends containers: a table on a clock of its own, then the whole agent."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from pwm.api.v1.agent_pb2 import Assignment, Configure, SessionResponse
from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.workload_pb2 import WorkloadSpec
from pwm.nodeagent.drivers.driver import Runtime
from pwm.nodeagent.fence import LAST_CHANCE_MS, Fence, Fencing
from pwm.nodeagent.journal import Contact, Journal
from tests.patience import PATIENCE_S
from tests.unit.nodeagent.fakes import FakeController, FakeDriver, RunningAgent, order, until

FENCE_MS, LOST_MS = 90_000, 120_000
T0 = 1_000_000
MOVES = {"on_node_lost": WorkloadSpec.reschedule}


class Time:
    """Sleeping makes it later, and lets what was planned for then happen."""

    def __init__(self) -> None:
        self.now_ms = T0
        self.plans: list[tuple[int, Any]] = []

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)
        self.now_ms += max(1, round(seconds * 1000))
        for plan in [p for p in self.plans if p[0] <= self.now_ms]:
            self.plans.remove(plan)
            plan[1]()


class Fenced(Exception):
    """What the fence does, so that a test can wait for it."""


def end(fencing: Fencing) -> None:
    raise Fenced(fencing)


def fence_on(time: Time, journal: Journal, *, boot: str = "boot-1") -> Fence:
    return Fence(journal, boot_id=boot, clock_ms=lambda: time.now_ms, sleep=time.sleep)


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def journal(tmp_path: Path) -> Any:
    journal = Journal(tmp_path / "journal.db")
    yield journal
    journal.close()


async def fenced(fence: Fence) -> Fencing:
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(Fenced) as caught:
            await fence.run(end)
    fencing: Fencing = caught.value.args[0]
    return fencing


@pytest.mark.parametrize(
    ("self_fence_ms", "lost_after_ms", "grace_ms"),
    [(90_000, 120_000, 15_000), (7_500, 10_000, 1_000), (7_999, 10_000, 1_000), (60_000, 600_000, 270_000)],
)
async def test_it_falls_after_the_self_fence_and_leaves_half_of_the_margin(
    time: Time, journal: Journal, self_fence_ms: int, lost_after_ms: int, grace_ms: int
) -> None:
    fence = fence_on(time, journal)
    fence.configure(self_fence_ms=self_fence_ms, lost_after_ms=lost_after_ms)
    fence.heard(T0)
    fencing = await fenced(fence)
    assert self_fence_ms <= time.now_ms - T0 < self_fence_ms + 10
    assert fencing.grace_ms == grace_ms
    assert time.now_ms + fencing.grace_ms - T0 <= (self_fence_ms + lost_after_ms) / 2 < lost_after_ms
    assert fencing.reason.code == Reason.SELF_FENCED


async def test_it_counts_from_when_the_last_answered_message_was_sent(time: Time, journal: Journal) -> None:
    fence = fence_on(time, journal)
    fence.configure(self_fence_ms=FENCE_MS, lost_after_ms=LOST_MS)
    fence.heard(T0)
    for sent in range(T0 + 5_000, T0 + 300_000, 5_000):
        # Each answer takes four seconds; one that comes late does not undo a later one.
        time.plans.append((sent + 4_000, lambda sent=sent: fence.heard(sent)))
        time.plans.append((sent + 4_500, lambda sent=sent: fence.heard(sent - 5_000)))
    await fenced(fence)
    assert time.now_ms - (T0 + 295_000) in range(FENCE_MS, FENCE_MS + 10)


async def test_it_goes_on_counting_after_a_restart_but_not_after_a_boot(time: Time, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    fence = fence_on(time, journal)
    fence.configure(self_fence_ms=FENCE_MS, lost_after_ms=LOST_MS)
    fence.heard(T0)
    fence.heard(T0 + 1_000)  # too little to be worth writing down: it may only fall earlier for that
    journal.close()
    time.now_ms += 70_000
    journal = Journal(tmp_path / "journal.db")
    again = fence_on(time, journal)
    assert again.promised_ms == LOST_MS
    await fenced(again)
    assert time.now_ms - T0 in range(FENCE_MS, FENCE_MS + 10)
    booted = fence_on(time, journal, boot="boot-2")
    time.now_ms += 1_000_000
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await booted.run(end)
    journal.close()


async def test_it_falls_once_for_each_loss_of_contact(time: Time, journal: Journal) -> None:
    fence = fence_on(time, journal)
    fence.configure(self_fence_ms=FENCE_MS, lost_after_ms=LOST_MS)
    fence.heard(T0)
    fallen: list[int] = []
    twice = asyncio.Event()

    def end(fencing: Fencing) -> None:
        fallen.append(time.now_ms)
        # Heard again half a minute later, and then lost for good.
        asyncio.get_running_loop().call_soon(fence.heard, T0 + 120_000) if len(fallen) == 1 else twice.set()

    running = asyncio.ensure_future(fence.run(end))
    async with asyncio.timeout(PATIENCE_S):
        await twice.wait()
    running.cancel()
    assert [at - T0 for at in fallen] == [FENCE_MS, 120_000 + FENCE_MS]


@pytest.mark.parametrize("answer_after_ms", [0, LAST_CHANCE_MS - 500])
async def test_who_comes_too_late_tries_to_reach_a_controller_first(
    time: Time, journal: Journal, answer_after_ms: int
) -> None:
    fence = fence_on(time, journal)
    fence.configure(self_fence_ms=FENCE_MS, lost_after_ms=LOST_MS)
    fence.heard(T0)
    time.now_ms = woke = T0 + 3_600_000
    time.plans.append((woke + answer_after_ms, lambda: fence.heard(woke + 10)))
    await fenced(fence)
    assert time.now_ms >= woke + FENCE_MS, "it was welcomed in time"


async def test_who_comes_too_late_and_reaches_nobody_ends_at_once(time: Time, journal: Journal) -> None:
    fence = fence_on(time, journal)
    fence.configure(self_fence_ms=FENCE_MS, lost_after_ms=LOST_MS)
    fence.heard(T0)
    time.now_ms = woke = T0 + LOST_MS
    assert (await fenced(fence)).grace_ms == 0
    assert time.now_ms - woke in range(LAST_CHANCE_MS, LAST_CHANCE_MS + 200)


async def test_who_comes_just_in_time_has_no_time_to_try(time: Time, journal: Journal) -> None:
    fence = fence_on(time, journal)
    fence.configure(self_fence_ms=FENCE_MS, lost_after_ms=LOST_MS)
    fence.heard(T0)
    time.now_ms = woke = T0 + LOST_MS - 1
    assert (await fenced(fence)).grace_ms == 0
    assert time.now_ms == woke


async def test_without_being_asked_to_it_never_falls(time: Time, journal: Journal) -> None:
    fence = fence_on(time, journal)
    fence.heard(T0)
    time.now_ms += 10_000_000
    assert fence.promised_ms == 0
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await fence.run(end)


async def test_what_was_wanted_before_a_long_silence_counts_no_more_until_it_is_said_again(
    time: Time, journal: Journal
) -> None:
    fence = fence_on(time, journal)
    assert not fence.overdue
    fence.configure(self_fence_ms=FENCE_MS, lost_after_ms=LOST_MS)
    assert not fence.overdue, "there was no contact yet to count from"
    fence.heard(T0)
    time.now_ms = T0 + FENCE_MS - 1
    assert not fence.overdue
    time.now_ms += 1
    assert fence.overdue
    fence.heard(time.now_ms)
    assert fence.overdue, "it is heard, but has not been told anything yet"
    fence.ordered()
    assert not fence.overdue
    time.now_ms += FENCE_MS
    fence.ordered()
    assert fence.overdue, "what comes late may have been said long ago"


async def test_whoever_keeps_the_promise_meanwhile_is_told_of_all_that_changes_it(time: Time, journal: Journal) -> None:
    told: list[Contact] = []

    def fence_on_boot(boot: str) -> Fence:
        return Fence(journal, boot_id=boot, clock_ms=lambda: time.now_ms, sleep=time.sleep, tell=told.append)

    fence = fence_on_boot("boot-1")
    assert told == [], "one that stands is not taken back by who knows of none"
    fence.configure(self_fence_ms=FENCE_MS, lost_after_ms=LOST_MS)
    fence.heard(T0)
    assert told[-1] == Contact("boot-1", T0, FENCE_MS, LOST_MS)
    fence.heard(T0 + 10)
    assert told[-1].heard_ms == T0 + 10, "also what is not worth writing down"
    fence.configure(self_fence_ms=8_000, lost_after_ms=12_000)
    assert told[-1] == Contact("boot-1", T0 + 10, 8_000, 12_000)
    told.clear()
    fence.leave()
    assert told == [], "nobody knows yet"
    again = fence_on_boot("boot-1")
    assert told == [Contact("boot-1", T0 + 10, 8_000, 12_000)]
    again.left()
    assert told[-1].heard_ms == 0
    told.clear()
    fence_on_boot("boot-1")
    fence_on_boot("boot-2")
    assert told == []


# ---- the whole agent


@pytest.fixture
async def asked(controller: FakeController, monkeypatch: pytest.MonkeyPatch) -> FakeController:
    """A controller that asks agents to fence themselves."""
    monkeypatch.setattr("pwm.nodeagent.fence.TICK_S", 0.01)
    controller.self_fence_ms, controller.lost_after_ms = FENCE_MS, LOST_MS
    return controller


async def test_a_promise_is_told_with_the_inventory(asked: FakeController, agent: RunningAgent) -> None:
    assert asked.hellos[0].inventory.fenced_after_ms == 0, "nobody had asked for one"
    await until(lambda: [i.fenced_after_ms for i in asked.inventories] == [LOST_MS])
    await asked.say(SessionResponse(configure=Configure(self_fence_ms=8_000, lost_after_ms=12_000)))
    await until(lambda: [i.fenced_after_ms for i in asked.inventories] == [LOST_MS, 12_000])
    await agent.stop()
    await agent.start()
    assert asked.hellos[1].inventory.fenced_after_ms == 12_000


async def test_an_agent_that_is_cut_off_ends_what_may_start_elsewhere_and_nothing_else(
    asked: FakeController, agent: RunningAgent, driver: FakeDriver
) -> None:
    await asked.want(order("moves", **MOVES), order("waits"))
    await asked.reported("moves", "RUNNING")
    await asked.reported("waits", "RUNNING")
    port = int(asked.address.rpartition(":")[2])
    await asked.stop()
    agent.later_ms += FENCE_MS - 10_000
    reads = agent.clock_reads
    await until(lambda: agent.clock_reads > reads + 10)
    assert driver.count("stop", "moves") == 0, "it is not time yet"
    agent.later_ms += 10_000
    await until(lambda: driver.containers["moves"].runtime is Runtime.ENDED)
    assert driver.containers["waits"].runtime is Runtime.RUNNING
    await asked.start(port)
    end = await asked.reported("moves", "EXITED")
    assert (end.reason.code, end.exit_code) == (Reason.SELF_FENCED, 143)
    assert asked.phases("moves") == ["RUNNING", "EXITING", "EXITED"]
    assert driver.count("stop", "waits") == 0


async def test_one_that_has_not_started_yet_never_does(
    asked: FakeController, agent: RunningAgent, driver: FakeDriver
) -> None:
    driver.pull_may_end.clear()
    await asked.want(order("moves", image="pullable", **MOVES))
    await asked.reported("moves", "PULLING")
    port = int(asked.address.rpartition(":")[2])
    await asked.stop()
    agent.later_ms += FENCE_MS
    await until(lambda: any(r.reported.reason.code == Reason.SELF_FENCED for r in agent.journal.pending(after=0)))
    driver.pull_may_end.set()
    await asked.start(port)
    end = await asked.reported("moves", "EXITED")
    assert end.reason.code == Reason.SELF_FENCED
    assert driver.count("start", "moves") == 0


async def test_an_agent_that_was_frozen_starts_nothing_that_moves_before_it_is_told_again_what_is_wanted(
    asked: FakeController, agent: RunningAgent, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pwm.nodeagent.fence.LAST_CHANCE_MS", 1_000_000)
    driver.pull_may_end.clear()
    for order_ in (order("moves", image="pullable", **MOVES), order("stays", image="pullable")):
        await asked.want(order_)
        await asked.reported(order_.uid, "PULLING")
    port = int(asked.address.rpartition(":")[2])
    await asked.stop()
    agent.later_ms += 10 * LOST_MS
    driver.pull_may_end.set()
    await until(lambda: driver.count("create", "moves") and driver.count("start", "stays"))
    assert driver.count("start", "moves") == 0
    await asked.start(port)
    await asked.reported("moves", "RUNNING")


async def test_one_that_takes_its_time_to_stop_is_given_no_more_than_there_is(
    asked: FakeController, agent: RunningAgent, driver: FakeDriver
) -> None:
    await asked.want(order("moves", stop_grace_ms=3_600_000, **MOVES))
    await asked.reported("moves", "RUNNING")
    driver.containers["moves"].ignores_stop = True
    await asked.want(order("moves", desired=Assignment.STOP, stop_grace_ms=3_600_000, **MOVES))
    await asked.reported("moves", "EXITING")
    await asked.stop()
    agent.later_ms += LOST_MS - 1
    await until(lambda: driver.containers["moves"].runtime is Runtime.ENDED)
    assert driver.count("stop", "moves") == 2


async def test_an_agent_that_starts_while_it_is_cut_off_ends_them_too(
    asked: FakeController, agent: RunningAgent, driver: FakeDriver
) -> None:
    await asked.want(order("moves", **MOVES))
    await asked.reported("moves", "RUNNING")
    await agent.stop()
    await asked.stop()
    agent.later_ms += FENCE_MS
    await agent.start(connected=False)
    await until(lambda: driver.containers["moves"].runtime is Runtime.ENDED)


async def test_an_agent_that_was_away_for_long_touches_nothing_if_it_is_welcome(
    asked: FakeController, agent: RunningAgent, driver: FakeDriver
) -> None:
    await asked.want(order("moves", **MOVES))
    await asked.reported("moves", "RUNNING")
    await agent.stop()
    agent.later_ms += 10 * LOST_MS
    await agent.start()
    await until(lambda: asked.connected)
    numbers = len(asked.heard)
    await until(lambda: len(asked.heard) > numbers + 3)
    assert driver.containers["moves"].runtime is Runtime.RUNNING


async def test_an_agent_whose_heartbeats_are_not_acknowledged_tries_another_controller(
    asked: FakeController, agent: RunningAgent
) -> None:
    asked.hears = False
    agent.later_ms += FENCE_MS // 2
    sessions = asked.sessions
    await until(lambda: asked.sessions > sessions)


async def test_an_agent_that_is_stopped_in_good_order_takes_its_promise_back(
    asked: FakeController, agent: RunningAgent, driver: FakeDriver
) -> None:
    await asked.want(order("moves", **MOVES))
    await until(lambda: [i.fenced_after_ms for i in asked.inventories] == [LOST_MS])
    await agent.agent.leave()
    assert [i.fenced_after_ms for i in asked.inventories] == [LOST_MS, 0], "it has arrived when the agent goes"
    sessions = asked.sessions
    await agent.stop()
    assert asked.sessions == sessions, "it did not dial again"
    assert driver.containers["moves"].runtime is Runtime.RUNNING
    agent.later_ms += 10 * LOST_MS
    await agent.start()
    assert asked.hellos[-1].inventory.fenced_after_ms == 0, "it promises again once it is heard"
    await until(lambda: [i.fenced_after_ms for i in asked.inventories] == [LOST_MS, 0, LOST_MS])
    assert driver.containers["moves"].runtime is Runtime.RUNNING


async def test_an_agent_that_could_not_say_that_it_leaves_goes_on_counting(
    asked: FakeController, agent: RunningAgent
) -> None:
    await until(lambda: [i.fenced_after_ms for i in asked.inventories] == [LOST_MS])
    await asked.stop()
    await agent.agent.leave()
    assert agent.journal.contact.heard_ms > 0


async def test_an_agent_that_goes_down_with_its_machine_keeps_its_promise(
    asked: FakeController, agent: RunningAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def goes_down() -> bool:
        return True

    monkeypatch.setattr(agent._host, "goes_down", goes_down)
    await until(lambda: [i.fenced_after_ms for i in asked.inventories] == [LOST_MS])
    await agent.agent.leave()
    assert agent.agent._fence.promised_ms == LOST_MS
