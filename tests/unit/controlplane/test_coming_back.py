"""Who follows events or a list goes on at another replica where it was: nothing twice, nothing left out."""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
import pytest

from pwm.api.v1 import events_pb2 as ev
from pwm.api.v1 import services_pb2 as api
from pwm.api.v1.common_pb2 import Actor
from pwm.api.v1.identity_pb2 import User
from pwm.api.v1.workload_pb2 import Notify, WorkloadSpec
from pwm.controlplane import view as views
from pwm.controlplane.auth import Authorizer, Principal
from pwm.controlplane.clock import Clock
from pwm.controlplane.context import CallContext
from pwm.controlplane.core.decide import Change
from pwm.controlplane.core.nodes import Contact
from pwm.controlplane.core.scheduling.cluster import Cluster
from pwm.controlplane.errors import ApiError
from pwm.controlplane.follower import Follower
from pwm.controlplane.queries import Queries
from pwm.controlplane.services import pulse
from pwm.controlplane.services.events import EventService
from pwm.controlplane.services.newest_events import NewestEvents
from pwm.controlplane.services.resources import ResourceService
from pwm.controlplane.store.commits import StreamId
from pwm.controlplane.store.kv import Delete
from pwm.controlplane.view import View
from tests.patience import PATIENCE_S
from tests.unit.controlplane.conftest import ACTOR, Plane, add_user

GROUP = "vision"


class Replica:
    """The services of one replica; `stale_s` makes it seem cut off from the store for so long."""

    def __init__(self, plane: Plane, view: View, follower: Follower) -> None:
        self.view = view
        newest = NewestEvents(view, plane.store, lambda: follower.changed_last)
        self.stale_s = 0.0
        self._clock = Clock()
        unused: Any = None
        shared: dict[str, Any] = {"view": view, "authorizer": Authorizer(view), "clock": self._clock}
        self.events = EventService(
            **shared, store=plane.store, stale_since_ms=self._stale_since_ms, newest=newest, audit=unused
        )
        queries = Queries(view=view, cluster=Cluster(), clock=self._clock, contact=lambda node: Contact(connected=True))
        self.resources = ResourceService(
            **shared,
            queries=queries,
            commands=plane.commands,
            applier=unused,
            stale_since_ms=self._stale_since_ms,
            store_revision=plane.store.revision,
            observe_contact=lambda observer: None,
            newest_events=newest,
        )

    def _stale_since_ms(self) -> int:
        return self._clock.now_ms() - int(self.stale_s * 1000) if self.stale_s else 0

    def follow(self, after: int = 0, **more: Any) -> AsyncGenerator[api.ListEventsResponse, None]:
        request = api.ListEventsRequest(**{"kind": "Workload"} | more, group=GROUP, follow=True, after_revision=after)
        return self.events.ListEvents(request, context())  # type: ignore[return-value]

    def watch(self, after: int = 0) -> AsyncGenerator[api.WatchResponse, None]:
        request = api.WatchRequest(kind="Workload", group=GROUP, identify=True, after_revision=after)
        return self.resources.Watch(request, context())  # type: ignore[return-value]


@pytest.fixture(autouse=True)
async def ann(plane: Plane) -> None:
    await add_user(plane, "ann", {GROUP: {"pwm.all": ["pwm.all"]}})


def context() -> CallContext:
    user = User()
    user.metadata.name, user.metadata.uid = "ann", "uid-ann"
    return CallContext(principal=Principal(user=user))


def first_replica(plane: Plane) -> Replica:
    return Replica(plane, plane.view, plane.follower)


@asynccontextmanager
async def another_replica(plane: Plane) -> AsyncIterator[Replica]:
    """One that has just started: it knows the heads, and nothing of what was before."""
    view = View()
    follower = Follower(store=plane.store, view=view, clock=Clock(), on_loaded=lambda: None)
    following = asyncio.ensure_future(follower.run())
    try:
        await view.wait_for(plane.view.revision)
        yield Replica(plane, view, follower)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def put(plane: Plane, name: str, *, labels: int = 0) -> None:
    """Create the workload, or change it. One that is made anew is another one."""
    new_uid = f"uid-{name}" if not has_been(plane, name) else f"uid-{name}-{plane.view.revision}"

    def decide() -> list[Change]:
        applied = ev.WorkloadApplied()
        applied.labels["n"] = str(labels)
        state = plane.view.by_name("Workload", name, group=GROUP)
        return [Change("Workload", state.metadata.uid if state else new_uid, name, GROUP, state, (applied,))]

    await plane.commands.run(decide, actor=ACTOR)


def has_been(plane: Plane, name: str) -> bool:
    return any(event.name == name for event in plane.view.recent_events)


async def remove(plane: Plane, name: str) -> None:
    state = plane.view.by_name("Workload", name, group=GROUP)
    assert state is not None
    gone = Change("Workload", state.metadata.uid, name, GROUP, state, (ev.Removed(),))
    await plane.commands.run(lambda: [gone], actor=ACTOR)


async def take(stream: AsyncGenerator[Any, None], count: int) -> list[Any]:
    async with asyncio.timeout(PATIENCE_S):
        return [await anext(stream) for _ in range(count)]


def told(answers: list[api.ListEventsResponse]) -> list[tuple[str, int]]:
    return [(answer.event.name, answer.event.version) for answer in answers if answer.HasField("event")]


# --- events ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["memory", "history", "events"])
async def test_events_go_on_at_another_replica_after_the_revision_that_was_reached(plane: Plane, source: str) -> None:
    for n in range(3):
        await put(plane, "a", labels=n)
    async with aclosing(first_replica(plane).follow()) as stream:
        begun = await take(stream, 4)
    assert told(begun) == [("a", 1), ("a", 2), ("a", 3)]
    assert begun[-1].revision == plane.view.revision, "everything there was has been sent"
    async with another_replica(plane) as early:
        for n in range(3, 6):
            await put(plane, "a", labels=n)
        async with another_replica(plane) as late:
            replica = early if source == "memory" else late
            await replica.view.wait_for(plane.view.revision)
            assert (replica.view.recent_after <= begun[-1].revision) == (source == "memory")
            if source == "events":
                # etcd forgets when what happened, and keeps what there is.
                await plane.kv.compact(plane.view.revision)
            async with aclosing(replica.follow(begun[-1].revision)) as stream:
                assert told(await take(stream, 4)) == [("a", 4), ("a", 5), ("a", 6)]
                await put(plane, "b")
                assert told(await take(stream, 1)) == [("b", 1)]


async def test_a_replica_that_has_just_started_shows_what_happened_before(plane: Plane) -> None:
    for n in range(3):
        await put(plane, "a", labels=n)
    await put(plane, "b")
    await remove(plane, "b")
    request = api.ListEventsRequest(kind="Workload", group=GROUP)
    async with another_replica(plane) as late:
        await put(plane, "a", labels=9)
        await late.view.wait_for(plane.view.revision)
        shown = [
            [answer async for answer in r.events.ListEvents(request, context())] for r in (late, first_replica(plane))
        ]
        listed = await late.resources.List(api.ListRequest(kind="Event", group=GROUP), context())
    assert [(item.event.name, item.event.version) for item in listed.items] == told(shown[0])
    assert told(shown[0]) == told(shown[1]) == [("a", 1), ("a", 2), ("a", 3), ("b", 1), ("b", 2), ("a", 4)]


async def test_who_comes_back_after_the_newest_event_gets_only_new_ones_from_a_replica_that_has_just_started(
    plane: Plane,
) -> None:
    await put(plane, "a")
    revision = plane.view.revision
    await plane.kv.txn([], [])  # the store's revision goes on without events
    async with another_replica(plane) as late, aclosing(late.follow(revision)) as stream:
        (progress,) = await take(stream, 1)
        assert not progress.HasField("event")
        await put(plane, "b")
        assert told(await take(stream, 1)) == [("b", 1)]


async def test_more_events_than_the_usual_limit_are_all_sent_to_who_comes_back(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pwm.controlplane.services.events.DEFAULT_LIMIT", 2)
    await put(plane, "a")
    revision = plane.view.revision
    for n in range(5):
        await put(plane, "a", labels=n + 1)
    async with aclosing(first_replica(plane).follow(revision)) as stream:
        assert len(told(await take(stream, 5))) == 5


async def test_a_past_that_is_no_longer_kept_is_refused_and_not_skipped(plane: Plane) -> None:
    await put(plane, "a")
    revision = plane.view.revision
    for n in range(3):
        await put(plane, "a", labels=n + 1)
    await plane.kv.compact(plane.view.revision)
    # As retention does.
    oldest = plane.store.keys.events(StreamId("Workload", "uid-a"))
    await plane.kv.txn([], [Delete(oldest, plane.store.keys.event(StreamId("Workload", "uid-a"), 3))])
    async with another_replica(plane) as late, aclosing(late.follow(revision)) as stream:
        with pytest.raises(ApiError) as caught:
            await take(stream, 1)
    assert caught.value.code is grpc.StatusCode.OUT_OF_RANGE
    assert f"after revision {revision} are no longer kept" in caught.value.message


async def test_a_follower_that_is_too_slow_still_gets_every_event(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "SUBSCRIPTION_LIMIT", 4)
    async with aclosing(first_replica(plane).follow()) as stream:
        await take(stream, 1)
        for n in range(20):
            await put(plane, "a", labels=n)
        seen: list[tuple[str, int]] = []
        while len(seen) < 20:
            seen += told(await take(stream, 1))
    assert seen == [("a", n + 1) for n in range(20)]


async def test_a_replica_that_is_cut_off_lets_its_followers_go(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "LOOK_S", 0.01)
    replica = first_replica(plane)
    async with aclosing(replica.follow()) as events, aclosing(replica.watch()) as watch:
        await take(events, 1)
        await take(watch, 1)
        replica.stale_s = pulse.STALE_LIMIT_S + 1
        for stream in (events, watch):
            with pytest.raises(ApiError, match="no changes to follow") as caught:
                await take(stream, 1)
            assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    async with aclosing(replica.watch()) as watch:
        with pytest.raises(ApiError, match="no changes to follow"):
            await take(watch, 1)


async def test_a_quiet_stream_says_how_far_it_has_come(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "BEAT_S", 0.02)
    replica = first_replica(plane)
    async with aclosing(replica.follow(name="other", kind="Workload")) as events, aclosing(replica.watch()) as watch:
        await take(events, 1)
        await take(watch, 1)
        await put(plane, "a")
        (beat,) = await take(events, 1)
        assert beat.revision == plane.view.revision
        assert not beat.HasField("event")
        answers = await take(watch, 2)
        assert [answer.type for answer in answers] == [api.WatchResponse.ADDED, api.WatchResponse.BEAT]


# --- lists ----------------------------------------------------------------------------------------


async def until_synced(stream: AsyncGenerator[Any, None]) -> list[api.WatchResponse]:
    answers = await take(stream, 1)
    while answers[-1].type != api.WatchResponse.SYNCED:
        answers += await take(stream, 1)
    return answers


async def test_a_list_goes_on_with_what_has_changed_since(plane: Plane) -> None:
    for name in ("kept", "changed", "gone"):
        await put(plane, name)
    async with aclosing(first_replica(plane).watch()) as stream:
        begun = await until_synced(stream)
    assert [answer.revision for answer in begun] == [0, 0, 0, plane.view.revision], "only the end says how far it is"
    async with another_replica(plane) as other:
        await put(plane, "changed", labels=1)
        await remove(plane, "gone")
        await put(plane, "new")
        await put(plane, "passing")
        await remove(plane, "passing")
        await other.view.wait_for(plane.view.revision)
        async with aclosing(other.watch(begun[-1].revision)) as stream:
            answers = await until_synced(stream)
            assert answers[-1].resumed
            shown = {answer.uid: api.WatchResponse.Type.Name(answer.type) for answer in answers[:-1]}
            assert shown == {
                "uid-changed": "MODIFIED", "uid-gone": "DELETED", "uid-new": "MODIFIED", "uid-passing": "DELETED",
            }  # fmt: skip
            await put(plane, "kept", labels=2)
            (answer,) = await take(stream, 1)
            assert (answer.uid, answer.type) == ("uid-kept", api.WatchResponse.MODIFIED)
            assert answer.revision == plane.view.revision


async def test_a_replica_that_does_not_know_the_past_sends_everything_with_the_same_digests(plane: Plane) -> None:
    for name in ("a", "b"):
        await put(plane, name)
    async with aclosing(first_replica(plane).watch()) as stream:
        begun = await until_synced(stream)
    await put(plane, "b", labels=1)
    async with another_replica(plane) as late, aclosing(late.watch(begun[-1].revision)) as stream:
        again = await until_synced(stream)
    assert not again[-1].resumed
    before, after = ({answer.uid: answer.digest for answer in answers[:-1]} for answers in (begun, again))
    assert before["uid-a"] == after["uid-a"]
    assert before["uid-b"] != after["uid-b"]


class Screen:
    """What a client that follows a list has shown, by uid, and up to which revision it was told of everything."""

    def __init__(self) -> None:
        self.shown: dict[str, int] = {}
        self.reached = 0

    def take(self, answers: list[api.WatchResponse]) -> None:
        """What came on one connection."""
        told_of = set()
        for answer in answers:
            self.reached = answer.revision or self.reached
            if answer.type == api.WatchResponse.SYNCED:
                if not answer.resumed:
                    self.shown = {uid: digest for uid, digest in self.shown.items() if uid in told_of}
            elif answer.type == api.WatchResponse.DELETED:
                self.shown.pop(answer.uid, None)
            else:
                told_of.add(answer.uid)
                self.shown[answer.uid] = answer.digest


async def listed(replica: Replica, after: int = 0) -> list[api.WatchResponse]:
    async with aclosing(replica.watch(after)) as stream:
        return await until_synced(stream)


@pytest.mark.parametrize("seed", range(20))
async def test_a_client_that_is_cut_anywhere_ends_with_the_list_as_it_is(plane: Plane, seed: int) -> None:
    """It goes from replica to replica, of which some know no past, and is cut after any number of messages."""
    chance, screen = random.Random(seed), Screen()
    first = first_replica(plane)
    async with another_replica(plane) as second:
        for _ in range(12):
            for _ in range(chance.randrange(6)):
                name = chance.choice("abcd")
                there = plane.view.by_name("Workload", name, group=GROUP) is not None
                if there and chance.random() < 0.3:
                    await remove(plane, name)
                else:
                    await put(plane, name, labels=chance.randrange(1_000_000))
            async with another_replica(plane) as fresh:
                answers = await listed(chance.choice([first, second, fresh]), screen.reached)
            screen.take(answers[: chance.randrange(len(answers) + 1)])
        screen.take(await listed(second, screen.reached))
        there_is = Screen()
        there_is.take(await listed(second))
    assert screen.shown == there_is.shown


async def test_what_is_hidden_of_a_workload_stays_hidden_when_who_comes_back_is_told_that_it_is_gone(
    plane: Plane,
) -> None:
    address = "tgram://123456/7890"
    spec = WorkloadSpec(notify=Notify(to=[address]))
    new = Change("Workload", "w", "a", GROUP, None, (ev.WorkloadApplied(spec=spec, generation=1, first_attempt=1),))
    await plane.commands.run(lambda: [new], actor=Actor(type=Actor.USER, name="eve"))
    reached = plane.view.revision
    await remove(plane, "a")
    async with aclosing(first_replica(plane).watch(after=reached)) as stream:
        gone = await anext(stream)
    assert gone.type == api.WatchResponse.DELETED
    assert list(gone.resource.workload.spec.notify.to) == ["tgram://***"]
