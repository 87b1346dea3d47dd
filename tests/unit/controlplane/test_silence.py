"""Who is silent, since when, and what follows: presence, heartbeats and the watch over nodes, on a store in memory."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from pwm.api.v1 import events_pb2 as ev
from pwm.api.v1 import services_pb2 as api
from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.node_pb2 import Inventory, NodeStatus
from pwm.api.v1.workload_pb2 import ContainerSpec, ContainerStatus, WorkloadSpec
from pwm.controlplane.auth import Authorizer
from pwm.controlplane.clock import Clock
from pwm.controlplane.context import CallContext
from pwm.controlplane.controllers.nodes import NodeController
from pwm.controlplane.core.decide import Change, place
from pwm.controlplane.core.nodes import DEFAULT_TIMES, Contact
from pwm.controlplane.dispatcher.heartbeats import Heartbeats
from pwm.controlplane.dispatcher.session import Session
from pwm.controlplane.errors import ApiError
from pwm.controlplane.presence import Presence
from pwm.controlplane.services.admin import AdminService
from pwm.controlplane.store import errors as store_errors
from pwm.controlplane.store.commits import Guard
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.memory import MemoryKV
from pwm.controlplane.store.registry import SESSIONS, Entries, Registry
from tests.patience import PATIENCE_S
from tests.unit.controlplane.conftest import ACTOR, Plane, add_user

KEYS = Keys(b"/test/")


class Time(Clock):
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.elapsed_s = 1000.0

    def monotonic_s(self) -> float:
        return self.elapsed_s


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@asynccontextmanager
async def replica(kv: MemoryKV, name: str, clock: Clock) -> AsyncIterator[Presence]:
    presence = Presence(registry=Registry(kv, keys=KEYS), replica=name, about={}, clock=clock, on_lost=lambda: None)
    running = asyncio.create_task(presence.run())
    await until(lambda: name in presence.replicas)
    try:
        yield presence
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


@pytest.fixture
async def kv() -> AsyncIterator[MemoryKV]:
    kv = MemoryKV()
    yield kv
    await kv.close()


@pytest.fixture
def time() -> Time:
    return Time()


# ---- presence


async def test_silence_counts_from_the_end_of_the_session_or_from_the_last_word_before_it(
    kv: MemoryKV, time: Time
) -> None:
    async with replica(kv, "r1", time) as one, replica(kv, "r2", time) as other:
        broke, hung = await one.announce("broke"), await one.announce("hung")
        await until(lambda: other.holder("broke") == other.holder("hung") == "r1")
        assert other.contact("hung").connected
        time.elapsed_s += 100
        await one.withdraw("broke", broke, silent_ms=0)
        await one.withdraw("hung", hung, silent_ms=12_000)
        await until(lambda: not other.contact("broke").connected and not other.contact("hung").connected)
        assert (other.contact("broke").silent_ms, other.contact("hung").silent_ms) == (0, 12_000)
        assert other.holder("hung") == ""
        time.elapsed_s += 5
        assert (other.contact("broke").silent_ms, one.contact("hung").silent_ms) == (5_000, 17_000)


async def test_a_replica_that_has_just_started_knows_nothing_from_before_but_what_marks_say(
    kv: MemoryKV, time: Time
) -> None:
    async with replica(kv, "r1", time) as one:
        await one.withdraw("hung", await one.announce("hung"), silent_ms=12_000)
        await until(lambda: one.contact("hung").silent_ms == 12_000)
        time.elapsed_s += 100
        async with replica(kv, "r2", time) as late:
            assert one.contact("hung").silent_ms == 112_000
            assert late.contact("hung").silent_ms == 12_000, "it may have been longer, never shorter"
            assert late.contact("never heard of").silent_ms == 0


async def test_a_session_that_came_and_went_unseen_is_seen(kv: MemoryKV) -> None:
    """A follower that is slow gets many changes as one batch: what lies between them must not be lost."""
    async with Registry(kv, keys=KEYS) as registry:
        follow = registry.follow(SESSIONS)
        first = await anext(follow)
        assert not first.unbroken
        for value in (b"1", b"2"):
            guard = await registry.put(SESSIONS, "n1", value)
            await registry.replace(SESSIONS, "n1", guard, b"gone")
        seen = [dict(await anext(follow)).get("n1") for _ in range(4)]
        assert seen == [b"1", b"gone", b"2", b"gone"]
        await follow.aclose()


def entries(unbroken: bool, **sessions: tuple[bytes, int]) -> Entries:
    return Entries(
        {node: value for node, (value, _) in sessions.items()},
        epochs={node: epoch for node, (_, epoch) in sessions.items()},
        unbroken=unbroken,
    )


async def test_after_a_gap_only_a_mark_proves_that_a_node_was_not_back(kv: MemoryKV, time: Time) -> None:
    presence = Presence(registry=Registry(kv, keys=KEYS), replica="r", about={}, clock=time, on_lost=lambda: None)
    mark = b"\0" + b"0"
    presence._sessions_are(entries(False))
    presence._sessions_are(entries(True, kept=(mark, 7), back=(mark, 8), died=(b"r2", 9)))
    presence._sessions_are(entries(True, kept=(mark, 7), back=(mark, 8)))
    time.elapsed_s += 50
    presence._sessions_are(entries(False, kept=(mark, 7), back=(mark, 12)))
    found = {node: presence.contact(node).silent_ms for node in ("kept", "back", "died")}
    assert found == {"kept": 50_000, "back": 0, "died": 0}


async def test_a_session_that_the_store_ended_does_not_stand_though_its_replica_does_not_know(kv: MemoryKV) -> None:
    time = Clock()
    async with replica(kv, "r1", time) as one, replica(kv, "r2", time) as other:
        await one.announce("n1")
        await one.announce("n2")
        assert await one.standing(["n1", "n2", "unknown"]) == {"n1", "n2"}
        assert await other.standing(["n1"]) == set()
        # As somebody does who takes the replica for dead.
        page = await kv.range(KEYS.presence(SESSIONS, "n1"))
        await kv.revoke_lease(page.kvs[0].lease)
        assert await one.standing(["n1"]) == set()


# ---- heartbeats


async def test_heartbeats_are_acknowledged_after_the_store_was_asked_and_only_if_the_session_stands(time: Time) -> None:
    asked: list[set[str]] = []
    answer = asyncio.Event()

    async def standing(nodes: Collection[str]) -> Collection[str]:
        asked.append(set(nodes))
        if len(asked) == 1:
            raise store_errors.Unavailable("for a moment")
        await answer.wait()
        return {"n1", "n2"} & set(nodes)

    heartbeats = Heartbeats(standing=standing, self_fence_ms=90_000, clock=time)
    n1, n2, n3 = (Session(node=node, epoch=1, agent_version="", now_ms=0) for node in ("n1", "n2", "n3"))
    running = asyncio.create_task(heartbeats.run())
    heartbeats.came(n1, 1)
    await until(lambda: len(asked) == 1)
    for session, number in ((n1, 2), (n2, 7), (n3, 4), (n1, 3)):
        heartbeats.came(session, number)
    await until(lambda: len(asked) == 2)
    heartbeats.came(n2, 8)
    answer.set()
    assert [m.heard.number for m in await n1.outgoing()] == [3]
    assert [m.heard.number for m in await n2.outgoing()] == [7], "what came later is not acknowledged by it"
    await until(lambda: len(asked) == 3)
    assert asked == [{"n1"}, {"n1", "n2", "n3"}, {"n2"}]
    heartbeats.came(n1, 4)
    time.elapsed_s += 9
    heartbeats.came(n1, 5)
    assert [m.heard.number for m in await n1.outgoing()] == [5], "often enough is enough"
    heartbeats.came(n3, 0)
    assert not n3._messages
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


# ---- the watch over nodes


@pytest.fixture
async def presence(plane: Plane, time: Time) -> AsyncIterator[Presence]:
    async with replica(plane.kv, "r1", time) as presence:
        yield presence


@pytest.fixture
async def controller(plane: Plane, time: Time, presence: Presence) -> AsyncIterator[NodeController]:
    controller = NodeController(
        zone="default", view=plane.view, commands=plane.commands, presence=presence, clock=time,
        fence=Guard(b"/test/leader/zone/default", create_revision=0), times=DEFAULT_TIMES,
    )  # fmt: skip
    running = asyncio.create_task(controller.run())
    yield controller
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def populate(plane: Plane, *nodes: str) -> None:
    """Nodes that have joined, and on the first a container that moves and one that waits."""
    joined = ev.NodeJoined(inventory=Inventory(cpu_count=8, fenced_after_ms=120_000))
    await plane.commands.run(lambda: [Change("Node", n, n, "", None, (joined,)) for n in nodes], actor=ACTOR)
    for name, policy in (("moves", WorkloadSpec.reschedule), ("waits", WorkloadSpec.wait)):
        applied = ev.WorkloadApplied(spec=WorkloadSpec(on_node_lost=policy), generation=1, first_attempt=1)
        await plane.commands.run(
            lambda name=name, applied=applied: [Change("Workload", name, name, "g", None, (applied,))], actor=ACTOR
        )
        spec = ContainerSpec(workload_uid=name, workload=name, attempt=1, node=nodes[0], on_node_lost=policy)
        await plane.commands.run(
            lambda name=name, spec=spec: [place(plane.view.get("Workload", name), spec)], actor=ACTOR
        )


def phase(plane: Plane, node: str) -> str:
    return NodeStatus.Phase.Name(plane.view.by_name("Node", node).status.phase)  # type: ignore[union-attr]


def container_phase(plane: Plane, workload: str) -> str:
    return ContainerStatus.Phase.Name(plane.view.get("Container", f"{workload}.0.1").status.phase)  # type: ignore[union-attr]


async def test_a_silent_node_is_lost_with_what_may_start_elsewhere(
    plane: Plane, time: Time, presence: Presence, controller: NodeController
) -> None:
    await populate(plane, "n1", "n2", "n3")
    guards = {node: await presence.announce(node) for node in ("n1", "n2", "n3")}
    await until(lambda: all(phase(plane, node) == "READY" for node in guards))
    await presence.withdraw("n1", guards["n1"], silent_ms=12_000)
    await until(lambda: not presence.contact("n1").connected)
    time.elapsed_s += 4
    await until(lambda: phase(plane, "n1") == "NOT_READY")
    time.elapsed_s += 104
    await until(lambda: phase(plane, "n1") == "LOST")
    await until(lambda: container_phase(plane, "moves") == "LOST")
    assert container_phase(plane, "waits") == "ASSIGNED"
    lost: Any = plane.view.get("Container", "moves.0.1")
    assert (lost.status.reason.code, lost.status.lost_at.seconds > 0) == (Reason.NODE_UNREACHABLE, True)
    assert [phase(plane, node) for node in ("n2", "n3")] == ["READY", "READY"]
    await presence.announce("n1")
    await until(lambda: phase(plane, "n1") == "READY")
    assert container_phase(plane, "moves") == "LOST", "until its agent says how it ended"


class Deaf:
    """The leader's sight of presence when its watch brings nothing any more: frozen at what it was."""

    def __init__(self, presence: Presence) -> None:
        self._epochs = {node: presence.still_silent(node) for node in ("n1", "n2", "n3")}
        self._connected = {node for node in self._epochs if presence.contact(node).connected}
        self.beats = self.news = 0

    def contact(self, node: str) -> Contact:
        return Contact(connected=node in self._connected, silent_ms=500_000)

    def still_silent(self, node: str) -> Guard:
        return self._epochs[node]

    async def wait_for_change(self, *, timeout_s: float) -> None:
        self.beats += 1
        await asyncio.sleep(0)


@pytest.mark.parametrize("is_heard", [True, False])
async def test_a_node_that_is_heard_elsewhere_is_not_lost_although_nobody_has_told_the_leader(
    plane: Plane, time: Time, presence: Presence, is_heard: bool
) -> None:
    await populate(plane, "n1", "n2", "n3")
    guards = {node: await presence.announce(node) for node in ("n1", "n2", "n3")}
    await presence.withdraw("n1", guards["n1"], silent_ms=0)
    await until(lambda: not presence.contact("n1").connected and presence.contact("n3").connected)
    deaf: Any = Deaf(presence)
    async with Registry(plane.kv, keys=KEYS) as elsewhere:
        if is_heard:
            await elsewhere.put(SESSIONS, "n1", b"r2")
        controller = NodeController(
            zone="default", view=plane.view, commands=plane.commands, presence=deaf, clock=time,
            fence=Guard(b"/test/leader/zone/default", create_revision=0), times=DEFAULT_TIMES,
        )  # fmt: skip
        running = asyncio.create_task(controller.run())
        await until(lambda: deaf.beats > 5)
        assert (phase(plane, "n1"), container_phase(plane, "moves")) == (
            ("NOT_READY", "ASSIGNED") if is_heard else ("LOST", "LOST")
        )
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_an_admin_can_call_a_node_dead_unless_it_is_connected(
    plane: Plane, time: Time, presence: Presence, controller: NodeController
) -> None:
    await populate(plane, "n1", "n2")
    guard = await presence.announce("n1")
    await until(lambda: phase(plane, "n1") == "READY")
    unused: Any = None
    service = AdminService(
        view=plane.view, store=plane.store, commands=plane.commands, clock=time, presence=presence, status=unused,
        drill=unused, restore=unused, authorizer=Authorizer(plane.view), joining=unused, audit_log=unused,
    )  # fmt: skip
    context = CallContext(principal=await add_user(plane, "ann", {"g": {"Workload": ["get"]}}))
    request = api.ConfirmDeadRequest(node="n1")
    with pytest.raises(ApiError, match="its agent is connected"):
        await service.ConfirmDead(request, context)
    with pytest.raises(ApiError, match="there is no Node n9"):
        await service.ConfirmDead(api.ConfirmDeadRequest(node="n9"), context)
    await presence.withdraw("n1", guard, silent_ms=0)
    await until(lambda: not presence.contact("n1").connected)
    answer = await service.ConfirmDead(request, context)
    assert list(answer.containers) == ["g/moves.0.1", "g/waits.0.1"]
    await until(lambda: {container_phase(plane, name) for name in ("moves", "waits")} == {"FAILED"})
    assert phase(plane, "n1") == "LOST"
    assert (await service.ConfirmDead(request, context)).containers == []


async def test_that_reports_are_in_the_log_is_told_at_once_when_something_ended_and_else_with_what_comes_next() -> None:
    session = Session(node="n1", epoch=1, agent_version="3.0.0", now_ms=0)
    session.acknowledge(3, soon=False)
    waiting = asyncio.ensure_future(session.outgoing())
    await asyncio.sleep(0)
    assert not waiting.done()
    session.heard(7, now_s=1.0)
    assert [m.WhichOneof("message") for m in await waiting] == ["heard", "acknowledged"]
    session.acknowledge(5, soon=True)
    session.acknowledge(6, soon=False)
    (told,) = await session.outgoing()
    assert told.acknowledged.up_to_sequence == 6
    session.heard(8, now_s=2.0)
    assert [m.WhichOneof("message") for m in await session.outgoing()] == ["heard"], "nothing is told twice"
