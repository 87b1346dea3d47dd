"""The view: the fold of the log, and how others hear of it."""

import asyncio

import pytest

from pwm.api.v1 import events_pb2 as ev
from pwm.controlplane.core.decide import Change, change
from pwm.controlplane.view import SUBSCRIPTION_LIMIT, OutOfStep, Resync, View
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
    waiting = asyncio.create_task(view.wait_for(5, timeout_s=5))
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
