"""What is written down of who did what, who may read it, and what tampering with it `verify` finds."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from pwm.api.v1 import events_pb2 as ev
from pwm.api.v1.audit_pb2 import AuditBatch, SealedBatch
from pwm.api.v1.events_pb2 import Event
from pwm.api.v1.identity_pb2 import Group
from pwm.api.v1.store_pb2 import Head, Record
from pwm.controlplane import audit as audit_module
from pwm.controlplane.auth import new_token, token_uid
from pwm.controlplane.context import CallContext
from pwm.controlplane.controllers import chores
from pwm.controlplane.controllers.chores import drop_old_audit
from pwm.controlplane.core.auditing import seal
from pwm.controlplane.core.decide import Change
from pwm.controlplane.core.door import DoorLimits
from pwm.controlplane.core.evolve import fold_all
from pwm.controlplane.store.commits import Guard, StreamId
from pwm.controlplane.store.errors import FenceLost, Unavailable
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.kv import prefix_end
from tests.patience import PATIENCE_S
from tests.unit.access.world import EVERYTHING, OTHER, OWN, World, a_world, user_spec

KEYS = Keys(b"/t/")
BUSYBOX = {"image": {"image": "busybox"}}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with a_world(DoorLimits(requests_per_s=0)) as made:
        yield made


async def entries(world: World, caller: str = "admin", **query: Any) -> list[dict[str, Any]]:
    await world.plane.audit.write_down()
    answer = await world.ask(caller, "GET", "/v1/audit", query=query)
    assert answer.status == 200, answer.body
    found: list[dict[str, Any]] = answer.json.get("entries", [])
    assert len(answer.json.get("text", "").splitlines()) == len(found)
    return found


def short(entry: dict[str, Any]) -> tuple[str, ...]:
    about = " ".join(entry[key] for key in ("what", "kind", "group", "name") if key in entry)
    return entry["action"], entry.get("user", ""), about


async def apply(world: World, caller: str, name: str, *, group: str = OWN) -> None:
    document = {"kind": "Workload", "metadata": {"name": name, "group": group}, "spec": BUSYBOX}
    await world.ask(caller, "POST", "/v1/apply", body={"documents": [document]})


async def test_a_change_is_written_down_with_who_from_where_and_which_token(world: World) -> None:
    await apply(world, "owner", "mine")
    found = await entries(world)
    login, change = found[0], found[1]
    assert short(login) == ("LOGIN", "owner", "")
    assert short(change) == ("CHANGE", "owner", f"workload_applied Workload {OWN} mine")
    assert change["address"] == "127.0.0.1"
    assert change["token"] == token_uid(world.tokens["owner"])[:12]
    assert change["replica"] == "r"
    assert change["version"] == "1"
    (event,) = [e async for e in world.plane.store.read_stream(StreamId("Workload", change["uid"]))]
    assert event.origin, "what is lost with a controller must be in the commit"
    assert b"127.0.0.1" not in event.event


async def test_a_change_says_what_is_desired_and_whose_a_token_is(world: World) -> None:
    await apply(world, "owner", "mine")
    await world.ask("owner", "POST", "/v1/workloads/mine/stop", body={"group": OWN})
    await world.ask("admin", "POST", "/v1/tokens", body={"user": "member", "name": "laptop"})
    changes = [short(entry) for entry in await entries(world) if entry["action"] == "CHANGE"]
    assert ("CHANGE", "owner", f"workload_desired stop Workload {OWN} mine") in changes
    assert ("CHANGE", "admin", "token_issued Token laptop of member") in changes


async def test_what_others_may_see_of_a_change_does_not_say_from_where(world: World) -> None:
    await apply(world, "owner", "mine")
    for path in ("/v1/events", "/v1/resources/Event", "/v1/resources/Workload"):
        answer = (await world.ask("member", "GET", path, query={"group": OWN})).body
        assert b"mine" in answer
        assert b"127.0.0.1" not in answer
        assert token_uid(world.tokens["owner"])[:12].encode() not in answer


async def test_denials_are_written_down_also_those_of_single_documents(world: World) -> None:
    await world.ask("member", "DELETE", "/v1/resources/Workload/ownwkl", query={"group": OWN})
    await apply(world, "member", "mine", group=OTHER)
    await world.ask("member", "GET", "/v1/admin/status")
    await world.ask("member", "GET", "/metrics")
    assert [short(e) for e in await entries(world, actions="DENIED") if e["user"] == "member"] == [
        ("DENIED", "member", f"delete Workload {OWN} ownwkl"),
        ("DENIED", "member", f"apply Workload {OTHER} mine"),
        ("DENIED", "member", "get Cluster"),
    ]  # fmt: skip


async def test_questions_and_lists_are_no_denials(world: World) -> None:
    await world.ask("member", "GET", "/v1/admin/can", query={"verb": "apply", "kind": "Cluster"})
    await world.ask("member", "GET", "/v1/resources/Workload", query={"all_groups": "true"})
    assert {entry["action"] for entry in await entries(world)} == {"LOGIN"}


async def test_guesses_hit_nothing_and_are_a_few_entries(world: World) -> None:
    """A million are sent by `python bench/bench_guesses.py`."""
    for _ in range(100):
        world.tokens["guess"] = new_token()
        assert (await world.ask("guess", "GET", "/v1/whoami")).status in (401, 429)
    found = [e for e in await entries(world) if e["action"] in ("LOGIN_FAILED", "BANNED")]
    assert [short(e) for e in found] == [("LOGIN_FAILED", "", "wrong token"), ("BANNED", "", "for 120 s")]
    (counted,) = world.plane.audit._tally.due(0, all_of_it=True)
    assert counted.count == 99
    assert (await world.ask("admin", "GET", "/v1/whoami")).status == 200


async def test_a_token_that_has_ended_is_named_with_whose_it_was(world: World) -> None:
    await world.ask("revoked", "GET", "/v1/whoami")
    (found,) = [e for e in await entries(world) if e["action"] == "LOGIN_FAILED"]
    assert (found["user"], found["token"]) == ("admin", token_uid(world.tokens["revoked"])[:12])


async def test_shells_are_written_down_and_not_what_is_done_in_them(world: World) -> None:
    call = CallContext(principal=await world.plane.authenticator.user(world.tokens["owner"], ""), peer="10.0.0.1")
    world.plane.audit.shell(call, group=OWN, container="ownwkl.0.1")
    world.plane.audit.shell(call, group=OWN, container="ownwkl.0.1", ended="exit code 0")
    began, ended = [e for e in await entries(world) if e["action"].startswith("SHELL")]
    assert short(began) == ("SHELL_BEGAN", "owner", f"Container {OWN} ownwkl.0.1")
    assert short(ended) == ("SHELL_ENDED", "owner", f"exit code 0 Container {OWN} ownwkl.0.1")


async def test_everybody_sees_their_own_and_who_runs_the_cluster_sees_all(world: World) -> None:
    await apply(world, "owner", "mine")
    await apply(world, "reader", "yours")
    for caller in ("owner", "reader", "stranger"):
        await entries(world, caller)
        assert {entry["user"] for entry in await entries(world, caller)} == {caller}
    for caller in ("admin", "steward"):
        assert {entry["user"] for entry in await entries(world, caller)} >= {"owner", "reader"}


async def test_who_is_given_the_name_of_another_does_not_see_what_that_one_did(world: World) -> None:
    await apply(world, "owner", "mine")
    assert any(entry["action"] == "CHANGE" for entry in await entries(world, "owner"))
    state = world.plane.view.by_name("User", "owner")
    assert state is not None
    await world.ask("admin", "DELETE", "/v1/resources/User/owner")
    await world.commit(Change("User", "another", "owner", "", None, (ev.UserApplied(spec=state.spec),)))
    made = await world.ask("admin", "POST", "/v1/tokens", body={"user": "owner"})
    world.tokens["owner"] = made.json["token"]
    assert {e["action"] for e in await entries(world, "owner")} <= {"LOGIN"}


async def test_the_audit_can_be_asked_for_parts(world: World) -> None:
    for number in range(5):
        await apply(world, "owner", f"w{number}")
    await apply(world, "reader", "yours")
    assert [e["name"] for e in await entries(world, user="owner", actions="CHANGE", limit=2)] == ["w3", "w4"]
    assert len(await entries(world, actions="CHANGE", since="60s")) == 6
    assert await entries(world, address="10.0.0.1") == []
    assert (await world.ask("admin", "GET", "/v1/audit", query={"limit": "-1"})).status == 400


# ---- the store, away and tampered with


async def verified(world: World) -> dict[str, Any]:
    await world.plane.audit.write_down()
    answer = await world.ask("admin", "POST", "/v1/admin/verify", body={})
    assert answer.status == 200
    found: dict[str, Any] = answer.json
    return found


async def test_a_whole_audit_is_followed_and_found_to_be_whole(world: World) -> None:
    for number in range(3):
        await apply(world, "owner", f"w{number}")
        await world.plane.audit.write_down()
    report = await verified(world)
    assert "differences" not in report
    assert int(report["audited"]) >= 4


async def test_a_batch_that_was_removed_or_changed_is_named(world: World) -> None:
    for number in range(4):
        await apply(world, "owner", f"w{number}")
        await world.plane.audit.write_down()
        # Batches are told apart by their times.
        await asyncio.sleep(0.002)
    kvs = (await world.plane.kv.range(KEYS.all_audit, KEYS.all_audit + b"\xff")).kvs
    assert len(kvs) == 4
    await world.plane.kv.delete(kvs[1].key)
    (removed,) = (await verified(world))["differences"]
    assert "batch 2 is missing" in removed
    batch = AuditBatch.FromString(SealedBatch.FromString(kvs[1].value).batch)
    batch.entries[0].user = "somebody else"
    await world.plane.kv.put(kvs[1].key, seal(batch).SerializeToString())
    (replaced,) = (await verified(world))["differences"]
    assert "batch 2 or 3 has been replaced" in replaced


async def test_an_event_that_was_rewritten_together_with_its_head_is_found(world: World) -> None:
    document = {"kind": "Group", "metadata": {"name": "gone"}}
    await world.ask("admin", "POST", "/v1/apply", body={"documents": [document]})
    state = world.plane.view.by_name("Group", "gone")
    assert isinstance(state, Group)
    stream = StreamId("Group", state.metadata.uid)
    key = KEYS.event(stream, 1)
    record = Record.FromString((await world.plane.kv.range(key)).kvs[0].value)
    event = Event.FromString(record.event)
    event.actor.name = "somebody else"
    record.event = event.SerializeToString(deterministic=True)
    head = Head.FromString((await world.plane.kv.range(KEYS.head(stream))).kvs[0].value)
    rewritten = fold_all([event])
    assert rewritten is not None
    head.state = rewritten.SerializeToString(deterministic=True)
    assert "differences" not in await verified(world)
    await world.plane.kv.put(KEYS.head(stream), head.SerializeToString())
    await world.plane.kv.put(key, record.SerializeToString())
    (found,) = (await verified(world))["differences"]
    assert found.startswith(f"Group/{stream.uid}: event 1 is not the one that the audit has")


async def test_changes_whose_controller_was_killed_are_counted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await apply(world, "owner", "lost")
    world.plane.audit._waiting.clear()
    await apply(world, "owner", "kept")
    monkeypatch.setattr("pwm.controlplane.verify.AUDITED_AFTER_MS", -60_000)
    report = await verified(world)
    assert int(report["unaudited"]) == 1
    assert "differences" not in report


async def test_what_waits_while_the_store_is_away_is_written_once_and_what_does_not_fit_is_counted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = world.plane.audit
    call = CallContext(principal=await world.plane.authenticator.user(world.tokens["owner"], ""), peer="10.0.0.1")
    await audit.write_down()
    put = audit._kv.put

    async def away(key: bytes, value: bytes, **more: Any) -> int:
        await put(key, value, **more)  # it came through, and nobody knows
        raise Unavailable("no answer")

    monkeypatch.setattr(audit_module, "MOST_WAITING", 5)
    monkeypatch.setattr(audit._kv, "put", away)
    audit.shell(call, group=OWN, container="c0")
    await audit.write_down()
    for number in range(1, 10):
        audit.shell(call, group=OWN, container=f"c{number}")
        await audit.write_down()
    monkeypatch.setattr(audit._kv, "put", put)
    found = [e for e in await entries(world) if e["action"] in ("SHELL_BEGAN", "LOST")]
    assert [e.get("name") for e in found if e["action"] == "SHELL_BEGAN"] == ["c0", "c1", "c2", "c3", "c4", "c5"]
    assert [e["count"] for e in found if e["action"] == "LOST"] == ["4"]
    assert "differences" not in await verified(world)


async def test_a_restored_store_begins_new_chains_and_lacks_only_what_was_done_in_between(world: World) -> None:
    audit, kv = world.plane.audit, world.plane.kv
    call = CallContext(principal=await world.plane.authenticator.user(world.tokens["owner"], ""), peer="10.0.0.1")
    await apply(world, "owner", "before")
    await audit.write_down()
    kept = {kv.key for kv in (await kv.range(KEYS.all_audit, KEYS.all_audit + b"\xff")).kvs}
    audit.shell(call, group=OWN, container="gone")
    await audit.write_down()
    for batch in (await kv.range(KEYS.all_audit, KEYS.all_audit + b"\xff")).kvs:
        if batch.key not in kept:
            await kv.delete(batch.key)
    await apply(world, "owner", "waits")
    audit.shell(call, group=OWN, container="late")
    audit.begin_anew()
    audit.shell(call, group=OWN, container="after")
    found = await entries(world)
    assert [e["name"] for e in found if e["action"] == "SHELL_BEGAN"] == ["late", "after"]
    assert [e["name"] for e in found if e["action"] == "CHANGE"] == ["before"]
    assert [e["count"] for e in found if e["action"] == "LOST"] == ["1"]
    assert "differences" not in await verified(world)


async def test_what_is_too_old_is_dropped_by_the_leader_and_is_not_missing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chores, "EVENTS_PER_TXN", 2)
    for number in range(6):
        await apply(world, "owner", f"w{number}")
        await world.plane.audit.write_down()
        # Batches are told apart by their times.
        await asyncio.sleep(0.002)
    kvs = (await world.plane.kv.range(KEYS.all_audit, KEYS.all_audit + b"\xff")).kvs
    before_ms = KEYS.parse_audit(kvs[-2].key)[0] + 1
    leader = KEYS.leader("cluster")
    await world.plane.kv.put(leader, b"r")
    fence = Guard(leader, create_revision=(await world.plane.kv.range(leader)).kvs[0].create_revision)
    stale = Guard(leader, create_revision=1)
    with pytest.raises(FenceLost):
        await drop_old_audit(world.plane.kv, keys=KEYS, fence=stale, before_ms=before_ms)
    await drop_old_audit(world.plane.kv, keys=KEYS, fence=fence, before_ms=before_ms)
    assert [e["name"] for e in await entries(world, actions="CHANGE")] == ["w5"]
    assert "differences" not in await verified(world)


# ---- following


@asynccontextmanager
async def following(
    world: World, caller: str = "admin", **query: Any
) -> AsyncIterator[Callable[[], Awaitable[dict[str, Any]]]]:
    """Gives the next message of a stream of the audit that has changes in it; the first one in any case."""
    headers = {"Authorization": f"Bearer {world.tokens[caller]}"}
    params = {"follow": "true", **query}
    async with world.session.get(f"{world.url}/v1/audit/stream", params=params, headers=headers) as stream:
        began = False

        async def message() -> dict[str, Any]:
            nonlocal began
            while True:
                async with asyncio.timeout(PATIENCE_S):
                    line = await stream.content.readline()
                assert line, "the stream ended"
                found: dict[str, Any] = json.loads(line)
                if not began or told(found):
                    began = True
                    return found

        yield message


def told(message: dict[str, Any]) -> list[str]:
    entries = message["result"].get("entries", [])
    assert len(message["result"].get("text", "").splitlines()) == len(entries)
    return [f"{entry['user']} {entry.get('name', '')}" for entry in entries if entry["action"] == "CHANGE"]


async def test_who_follows_the_audit_hears_of_everything_once_and_goes_on_where_it_broke_off(world: World) -> None:
    await apply(world, "owner", "first")
    await world.plane.audit.write_down()
    async with following(world) as next_one:
        assert told(await next_one()) == ["owner first"]
        await apply(world, "owner", "second")
        await world.plane.audit.write_down()
        reached = await next_one()
        assert told(reached) == ["owner second"]
    for name in ("third", "fourth"):
        await apply(world, "owner", name)
        await world.plane.audit.write_down()
    async with following(world, after_revision=reached["result"]["revision"]) as next_one:
        heard: list[str] = []
        while len(heard) < 2:
            heard += told(await next_one())
        assert heard == ["owner third", "owner fourth"]
        # One that was not known to have been written is written again.
        (newest,) = (await world.plane.kv.range(KEYS.all_audit, prefix_end(KEYS.all_audit))).kvs[-1:]
        await world.plane.kv.put(newest.key, newest.value)
        await apply(world, "owner", "fifth")
        await world.plane.audit.write_down()
        assert told(await next_one()) == ["owner fifth"]


async def test_who_follows_the_audit_hears_only_what_he_may_see_at_that_moment(world: World) -> None:
    token = await world.add_user("boss", {"admin": EVERYTHING})
    world.tokens["boss"] = token
    async with following(world, "member") as own, following(world, "boss") as all_of_it:
        await own()
        assert "owner a" not in told(await all_of_it())
        await apply(world, "owner", "a")
        await world.plane.audit.write_down()
        assert told(await all_of_it()) == ["owner a"]
        state = world.plane.view.by_name("User", "boss")
        spec = user_spec({OWN: EVERYTHING})
        await world.commit(Change("User", state.metadata.uid, "boss", "", state, (ev.UserApplied(spec=spec),)))
        await apply(world, "owner", "b")
        await world.plane.audit.write_down()
        for caller, stream in (("member", own), ("boss", all_of_it)):
            await apply(world, caller, f"of-{caller}")
            await world.plane.audit.write_down()
            assert told(await stream()) == [f"{caller} of-{caller}"]


@pytest.mark.parametrize("after", ["1", "999999"])
async def test_who_asks_for_what_is_not_kept_or_never_was_is_told_so(world: World, after: str) -> None:
    await apply(world, "owner", "mine")
    await world.plane.kv.compact(await world.plane.audit_log.revision())
    async with following(world, after_revision=after) as next_one:
        assert (await next_one())["code"] == 11
