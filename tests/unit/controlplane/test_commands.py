"""The one door for writes."""

import asyncio

import grpc
import pytest

from pwm.api.v1 import events_pb2 as ev
from pwm.api.v1.workload_pb2 import Container, ContainerSpec, ContainerStatus, Workload
from pwm.controlplane import commands as commands_module
from pwm.controlplane.clock import Clock
from pwm.controlplane.commands import Commands, NameInUse
from pwm.controlplane.core.decide import Change, change, replica_count, scale_workload
from pwm.controlplane.errors import ApiError
from pwm.controlplane.store import errors
from pwm.controlplane.store.commits import Guard
from tests.unit.controlplane.conftest import ACTOR, Plane


def new(name: str, *, kind: str = "Workload", uid: str = "", payload: object = None) -> Change:
    payload = payload or ev.WorkloadApplied(generation=1, first_attempt=1)
    return Change(kind, uid or f"uid-{name}", name, "g", None, (payload,))  # type: ignore[arg-type]


async def test_what_was_written_can_be_read_at_once(plane: Plane) -> None:
    outcome = await plane.commands.run(lambda: [new("a")], actor=ACTOR)
    assert plane.view.revision >= outcome.revision
    stored = plane.view.by_name("Workload", "a", group="g")
    assert isinstance(stored, Workload)
    assert stored.metadata.created_by.name == "ann"
    assert stored.metadata.version == 1


async def test_a_command_that_changes_nothing_writes_nothing(plane: Plane) -> None:
    before = (await plane.kv.range(b"\0")).revision
    outcome = await plane.commands.run(list, actor=ACTOR)
    assert not outcome.changes
    assert (await plane.kv.range(b"\0")).revision == before


async def test_writers_of_one_stream_take_turns_and_none_is_lost(plane: Plane) -> None:
    await plane.commands.run(lambda: [new("a")], actor=ACTOR)

    async def add_one() -> None:
        def decide() -> list[Change]:
            state = plane.view.by_name("Workload", "a", group="g")
            assert isinstance(state, Workload)
            return [change(state, *scale_workload(state, replica_count(state.spec) + 1))]

        await plane.commands.run(decide, actor=ACTOR)

    await asyncio.gather(*(add_one() for _ in range(8)))
    state = plane.view.by_name("Workload", "a", group="g")
    assert isinstance(state, Workload)
    assert state.spec.replica.count == 9
    assert state.metadata.version == 9


async def test_two_who_create_the_same_name_end_up_with_one_resource(plane: Plane) -> None:
    async def create(uid: str) -> str:
        def decide() -> list[Change]:
            state = plane.view.by_name("Workload", "a", group="g")
            return [] if state is not None else [new("a", uid=uid)]

        outcome = await plane.commands.run(decide, actor=ACTOR)
        return "created" if outcome.changes else "found"

    outcomes = await asyncio.gather(*(create(f"u{n}") for n in range(4)))
    assert sorted(outcomes) == ["created", "found", "found", "found"]
    assert plane.view.count("Workload") == 1


async def test_a_name_belongs_to_one_kind_of_its_group(plane: Plane) -> None:
    await plane.commands.run(lambda: [new("home")], actor=ACTOR)
    volume = new("home", kind="Volume", uid="v", payload=ev.VolumeApplied())
    with pytest.raises(NameInUse, match="taken by a Workload"):
        await plane.commands.run(lambda: [volume], actor=ACTOR)


async def test_a_removed_name_can_be_used_again(plane: Plane) -> None:
    await plane.commands.run(lambda: [new("a", uid="first")], actor=ACTOR)
    state = plane.view.by_name("Workload", "a", group="g")
    assert state is not None
    await plane.commands.run(lambda: [change(state, ev.Removed())], actor=ACTOR)
    assert plane.view.by_name("Workload", "a", group="g") is None
    await plane.commands.run(lambda: [new("a", uid="second")], actor=ACTOR)
    again = plane.view.by_name("Workload", "a", group="g")
    assert again is not None
    assert again.metadata.uid == "second"


async def test_a_writer_whose_guard_no_longer_holds_is_refused(plane: Plane) -> None:
    with pytest.raises(errors.GuardFailed):
        await plane.commands.run(lambda: [new("a")], actor=ACTOR, guards=[Guard(b"/test/session/n1", mod_revision=7)])
    assert plane.view.by_name("Workload", "a", group="g") is None


def placed(number: int) -> Change:
    payload = ev.ContainerPlaced(spec=ContainerSpec(workload_uid="w", replica=number, attempt=1, node="n1"))
    return Change("Container", f"w.{number}.1", f"a.{number}.1", "g", None, (payload,))


async def test_many_changes_go_out_in_parts_and_those_that_moved_on_are_skipped(plane: Plane) -> None:
    assert await plane.commands.run_in_parts([placed(n) for n in range(100)], actor=ACTOR) == []
    assert plane.view.count("Container") == 100
    containers = [c for c in plane.view.all("Container") if isinstance(c, Container)]
    reports = [change(c, ev.ContainerReported(phase=ContainerStatus.RUNNING)) for c in containers]
    stale = reports[3]
    await plane.commands.run(lambda: [change(containers[3], ev.ContainerStopRequested())], actor=ACTOR)
    skipped = await plane.commands.run_in_parts(reports, actor=ACTOR)
    assert skipped == [stale]
    running = [c for c in plane.view.all("Container") if c.status.phase == ContainerStatus.RUNNING]
    assert len(running) == 99


async def test_placing_the_same_attempt_twice_places_it_once(plane: Plane) -> None:
    await asyncio.gather(*(plane.commands.run_in_parts([placed(0)], actor=ACTOR) for _ in range(3)))
    assert plane.view.count("Container") == 1
    assert plane.view.get("Container", "w.0.1").metadata.version == 1  # type: ignore[union-attr]


async def test_a_store_that_is_away_is_said_in_a_sentence(plane: Plane) -> None:
    async def away(*_: object, **__: object) -> None:
        raise errors.Unavailable("nobody answers")

    plane.store.append = away  # type: ignore[method-assign, assignment]
    with pytest.raises(ApiError, match="out of reach"):
        await plane.commands.run(lambda: [new("a")], actor=ACTOR)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.Unavailable("no leader"), "was not saved"),
        (errors.Ambiguous("timed out"), "may or may not have been saved"),
        (errors.NoSpace("full"), "out of space"),
        (errors.StoreInDoubt("etcd is at revision 3"), "until an admin decides"),
    ],
)
async def test_each_trouble_of_the_store_has_its_sentence_and_a_next_step(
    plane: Plane, monkeypatch: pytest.MonkeyPatch, error: errors.KVError, words: str
) -> None:
    async def fail(commit: object) -> int:
        raise error

    monkeypatch.setattr(plane.store, "append", fail)
    with pytest.raises(ApiError, match=words) as refusal:
        await plane.commands.run(lambda: [Change("Group", "g", "g", "", None, (ev.GroupApplied(),))], actor=ACTOR)
    assert refusal.value.code is grpc.StatusCode.UNAVAILABLE
    assert refusal.value.problems[0].next_step
    unsure = refusal.value.problems[0].code == grpc.StatusCode.UNKNOWN.value[0]
    assert unsure == isinstance(error, errors.Ambiguous)


async def test_what_an_older_replica_would_not_heed_is_not_written_while_one_is_here(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(commands_module._SINCE, "GroupApplied", "3.1.0")
    here = ["3.1.0", "3.0.9"]
    commands = Commands(store=plane.store, view=plane.view, clock=Clock(), versions=lambda: here)
    new = Change("Group", "g", "g", "", None, (ev.GroupApplied(),))
    with pytest.raises(ApiError, match=r"needs PWM 3\.1\.0, but a controller of version 3\.0\.9"):
        await commands.run(lambda: [new], actor=ACTOR)
    await commands.run(lambda: [Change("Zone", "z", "z", "", None, (ev.ZoneApplied(),))], actor=ACTOR)
    here[1] = "3.10.0"
    await commands.run(lambda: [new], actor=ACTOR)
    assert plane.view.by_name("Group", "g") is not None
