"""The view: the fold of the log, and how others hear of it."""

import asyncio

import pytest

from pwm.api.v1 import events_pb2 as ev
from pwm.api.v1.common_pb2 import Metadata
from pwm.api.v1.identity_pb2 import Group
from pwm.controlplane.audit import AuditLog
from pwm.controlplane.core.decide import Change, change
from pwm.controlplane.core.evolve import understood
from pwm.controlplane.store.commits import Commit, StreamId, StreamWrite
from pwm.controlplane.verify import verify
from pwm.controlplane.view import SUBSCRIPTION_LIMIT, Entry, OutOfStep, Resync, View
from tests.patience import PATIENCE_S
from tests.unit.controlplane.conftest import ACTOR, Plane


def applied(version: int, uid: str = "u") -> ev.Event:
    return ev.Event(kind="Group", uid=uid, name=uid, version=version, group_applied=ev.GroupApplied())


def loaded_view() -> View:
    view = View()
    view.loaded(1)
    return view


def test_an_event_that_is_known_already_is_passed_over() -> None:
    view = loaded_view()
    view.apply(applied(1), 2)
    view.apply(applied(1), 2)
    assert view.get("Group", "u").metadata.version == 1  # type: ignore[union-attr]


def test_a_hole_in_a_stream_is_noticed() -> None:
    view = loaded_view()
    view.apply(applied(1), 2)
    with pytest.raises(OutOfStep, match="version 3 after 1"):
        view.apply(applied(3), 4)


async def test_waiting_for_a_revision_ends_when_it_is_folded() -> None:
    view = loaded_view()
    waiting = asyncio.create_task(view.wait_for(5, timeout_s=PATIENCE_S))
    await asyncio.sleep(0)
    view.advance(4)
    await asyncio.sleep(0)
    assert not waiting.done()
    view.advance(5)
    await waiting


async def test_waiting_for_a_revision_that_does_not_come_times_out() -> None:
    with pytest.raises(TimeoutError):
        await loaded_view().wait_for(5, timeout_s=0.01)


async def test_a_subscriber_gets_every_change_in_order() -> None:
    view = loaded_view()
    with view.subscribe() as subscription:
        for version in (1, 2, 3):
            view.apply(applied(version), version + 1)
        assert [c.event.version for c in await subscription.batch()] == [1, 2, 3]


async def test_a_subscriber_that_falls_behind_is_told_to_start_over() -> None:
    view = loaded_view()
    with view.subscribe() as subscription:
        for number in range(SUBSCRIPTION_LIMIT + 1):
            view.apply(applied(1, f"u{number}"), number + 2)
        with pytest.raises(Resync):
            await subscription.batch()
        view.apply(applied(1, "next"), 99_999)
        assert [c.uid for c in await subscription.batch()] == ["next"]


async def test_a_rebuilt_view_holds_the_same_and_followers_start_over(plane: Plane) -> None:
    for name in ("a", "b"):
        new = Change("Group", name, name, "", None, (ev.GroupApplied(),))
        await plane.commands.run(lambda new=new: [new], actor=ACTOR)  # type: ignore[misc]
    removed = plane.view.get("Group", "a")
    assert removed is not None
    await plane.commands.run(lambda: [change(removed, ev.Removed())], actor=ACTOR)
    fresh = View()
    async for page in plane.store.heads():
        for head in page.heads:
            if not head.removed_at_ms:
                fresh.load(head.stream.kind, head.stream.uid, state=head.state, revision=head.revision)
    assert [g.metadata.name for g in fresh.all("Group")] == ["b"]
    assert fresh.entry("Group", "b") == plane.view.entry("Group", "b")


async def test_a_container_is_found_by_its_name(plane: Plane) -> None:
    workload = Change("Workload", "w1", "a.b", "g", None, (ev.WorkloadApplied(),))
    container = Change("Container", "w1.3.2", "a.b.3.2", "g", None, (ev.ContainerPlaced(),))
    await plane.commands.run(lambda: [workload, container], actor=ACTOR)
    found = plane.view.by_name("Container", "a.b.3.2", group="g")
    assert found is plane.view.get("Container", "w1.3.2")
    assert plane.view.by_name("Container", "a.b.3.9", group="g") is None
    assert plane.view.by_name("Container", "nonsense", group="g") is None


# ---- events of a newer version


def of_tomorrow(version: int, uid: str = "u") -> ev.Event:
    """Its payload has a number that no payload has today."""
    today = ev.Event(kind="Group", uid=uid, name=uid, version=version)
    return ev.Event.FromString(today.SerializeToString() + b"\xfa\x3f\x02\x0a\x00")


def group(version: int, uid: str = "u", **labels: str) -> Group:
    return Group(kind="Group", metadata=Metadata(uid=uid, name=uid, version=version, labels=labels))


def test_what_cannot_be_folded_is_taken_from_the_head_and_what_the_head_holds_is_not_folded_again() -> None:
    view = loaded_view()
    view.apply(applied(1), 2)
    with view.subscribe() as subscription:
        view.adopt(of_tomorrow(2), 3, head=Entry(group(3, colour="red"), 4))
        assert view.get("Group", "u").metadata.labels == {"colour": "red"}
        view.apply(applied(3), 4)
        assert view.get("Group", "u").metadata.labels == {"colour": "red"}, "the head was newer"
        view.advance(4)
        view.apply(applied(4), 5)
        assert view.get("Group", "u").metadata.version == 4
        assert [e.version for e in view.recent_events] == [1, 2, 3, 4]
    assert subscription is not None


def test_a_stream_that_has_ended_under_an_event_of_tomorrow_is_gone() -> None:
    view = loaded_view()
    view.apply(applied(1), 2)
    view.adopt(of_tomorrow(2), 3, head=None)
    assert view.get("Group", "u") is None
    assert view.by_name("Group", "u") is None
    view.apply(ev.Event(kind="Group", uid="u", name="u", version=3, removed=ev.Removed()), 4)
    assert view.get("Group", "u") is None


def test_a_kind_that_only_a_newer_version_knows_is_left_out() -> None:
    view = loaded_view()
    view.load("Dream", "d", state=b"", revision=1)
    view.apply(ev.Event(kind="Dream", uid="d", version=1), 2)
    view.adopt(ev.Event(kind="Dream", uid="d", version=2), 3, head=None)
    assert view.streams == 0


def test_an_event_is_understood_only_if_every_field_of_it_is_known() -> None:
    known = applied(1).SerializeToString()
    assert understood(ev.Event.FromString(known), len(known))
    payload = of_tomorrow(1).SerializeToString()
    assert not understood(ev.Event.FromString(payload), len(payload))
    inside = ev.Event(kind="Group", uid="u", version=1)
    inside.group_applied.MergeFromString(b"\xfa\x3f\x01A")
    field = inside.SerializeToString()
    assert not understood(ev.Event.FromString(field), len(field))


async def test_a_follower_goes_on_over_events_of_a_newer_version_and_keeps_what_it_does_not_know(plane: Plane) -> None:
    await plane.commands.run(lambda: [Change("Group", "g", "g", "", None, (ev.GroupApplied(),))], actor=ACTOR)
    head = await plane.store.head(StreamId("Group", "g"))
    assert head is not None
    state = head.state + b"\xfa\x3f\x01A"
    tomorrow = of_tomorrow(2, "g").SerializeToString()
    after = Group.FromString(state)
    after.metadata.version = 2
    write = StreamWrite(head.stream, 1, head.revision, (tomorrow,), after.SerializeToString())
    revision = await plane.store.append(Commit(id="c", writes=(write,)))
    await plane.view.wait_for(revision, timeout_s=PATIENCE_S)
    held = plane.view.get("Group", "g")
    assert held == after
    await plane.commands.run(lambda: [change(held, ev.GroupApplied(labels={"a": "b"}))], actor=ACTOR)
    kept = await plane.store.head(StreamId("Group", "g"))
    assert kept is not None
    assert kept.version == 3
    assert b"\xfa\x3f\x01A" in kept.state, "a newer replica finds what it wrote"
    answer = await verify(plane.store, plane.view, AuditLog(plane.kv, keys=plane.store.keys))
    assert (list(answer.differences), answer.newer) == ([], 1)
