"""What is said of others in answers that name several things, in open streams, and who may use what is shared."""

import asyncio
from typing import Any

import aiohttp
import pytest

from pwm.api.v1 import events_pb2 as ev
from pwm.api.v1.agent_pb2 import NodeUsage
from pwm.api.v1.credits_pb2 import PeriodSettled
from pwm.api.v1.identity_pb2 import GroupSpec
from pwm.api.v1.node_pb2 import NodeStatus
from pwm.api.v1.workload_pb2 import WorkloadSpec
from pwm.controlplane.books import part_uid
from pwm.controlplane.core.decide import Change
from pwm.controlplane.core.ledger import part_of
from tests.patience import PATIENCE_S
from tests.unit.access.test_matrix import holds, of_nothing
from tests.unit.access.world import (
    ALL,
    CALLERS,
    HIDDEN,
    OTHER,
    OWN,
    STRANGERS,
    World,
    a_world,
    new_resource,
    user_spec,
)

HOLDER = f"{OTHER}/{HIDDEN['workload']}.0.1"


async def read_until(stream: aiohttp.ClientResponse, word: bytes) -> bytes:
    text = b""
    async with asyncio.timeout(PATIENCE_S):
        while word not in text:
            line = await stream.content.readline()
            assert line, f"the stream ended before {word!r}: {text!r}"
            text += line
    return text


async def set_memberships(world: World, caller: str, memberships: dict[str, Any]) -> None:
    state = world.plane.view.by_name("User", caller)
    assert state is not None
    applied = ev.UserApplied(spec=user_spec(memberships))
    await world.commit(Change("User", state.metadata.uid, caller, "", state, (applied,)))


@pytest.mark.parametrize(
    ("path", "begun"), [("/v1/watch/Workload", b"SYNCED"), ("/v1/watch/Event", b"SYNCED"), ("/v1/events", b"revision")]
)
async def test_who_is_taken_out_of_a_group_hears_no_more_of_it_in_open_streams(path: str, begun: bytes) -> None:
    async with a_world() as world:
        query = {"all_groups": "true", "follow": "true"} if path == "/v1/events" else {"all_groups": "true"}
        headers = {"Authorization": f"Bearer {world.tokens['reader']}"}
        async with world.session.get(world.url + path, params=query, headers=headers) as stream:
            await read_until(stream, begun)
            await world.commit(new_resource("Workload", "hush-first", ev.WorkloadApplied(), group=OTHER))
            await read_until(stream, b"hush-first")
            await set_memberships(world, "reader", {OWN: CALLERS["reader"][OWN]})
            await world.commit(
                new_resource("Workload", "hush-second", ev.WorkloadApplied(), group=OTHER),
                new_resource("Workload", "own-second", ev.WorkloadApplied(), group=OWN),
            )
            assert b"hush-second" not in await read_until(stream, b"own-second")


SEARCHES: list[tuple[str, dict[str, str]]] = [
    ("/v1/resources/Workload", {"names": HIDDEN["workload"]}),
    ("/v1/resources/Workload", {"names": HIDDEN["workload"], "group": OTHER}),
    ("/v1/resources/Workload", {"selector": "team=hushlab"}),
    ("/v1/resources/Container", {"workload": HIDDEN["workload"]}),
    ("/v1/resources/Volume", {"names": HIDDEN["volume"]}),
    ("/v1/resources/User", {"names": HIDDEN["user"]}),
    ("/v1/resources/Role", {"names": HIDDEN["role"]}),
    ("/v1/resources/Group", {"names": OTHER}),
    ("/v1/watch/Workload", {"names": HIDDEN["workload"]}),
    ("/v1/watch/Workload", {"after_revision": "3"}),
    ("/v1/watch/Event", {}),
    ("/v1/events", {"kind": "Workload", "name": HIDDEN["workload"], "group": OTHER}),
    ("/v1/events", {"kind": "User", "name": HIDDEN["user"]}),
    ("/v1/events", {"after_revision": "3"}),
]


@pytest.mark.parametrize("caller", ["member", "owner", "keeper", "stranger"])
async def test_searches_find_nothing_hidden_and_answer_as_if_it_was_not_there(caller: str) -> None:
    async with a_world() as world:
        labelled = ev.WorkloadApplied(labels={"team": "hushlab"})
        await world.commit(gone := new_resource("Workload", "hush-gone", labelled, group=OTHER))
        await world.commit(new_resource("Workload", "hush-here", labelled, group=OTHER))
        state = world.plane.view.get("Workload", gone.uid)
        await world.commit(Change("Workload", gone.uid, gone.name, OTHER, state, (ev.Removed(),)))
        for path, query in SEARCHES:
            found = await world.ask(caller, "GET", path, query={"all_groups": "true", **query})
            nothing = await world.ask(caller, "GET", path, query={"all_groups": "true", **of_nothing(query)})
            assert (found.status, of_nothing(found.body.decode())) == (nothing.status, nothing.body.decode())
            said = " ".join(query.values())
            assert [
                name for name in ("hush-", *HIDDEN.values()) if name in found.body.decode() and name not in said
            ] == []
            seen = await world.ask("admin", "GET", path, query={"all_groups": "true", **query})
            assert b"hush" in seen.body, "there is nothing to be found"


async def test_a_change_of_a_role_counts_at_once() -> None:
    async with a_world() as world:
        query = {"group": OTHER}
        assert (await world.ask("reader", "GET", "/v1/resources/Workload", query=query)).status == 200
        state = world.plane.view.by_name("Role", "watcher")
        assert state is not None
        await world.commit(Change("Role", state.metadata.uid, "watcher", "", state, (ev.RoleApplied(),)))
        assert (await world.ask("reader", "GET", "/v1/resources/Workload", query=query)).status == 403


async def test_another_user_of_the_same_name_has_nothing_of_the_first_ones() -> None:
    async with a_world() as world:
        path, query = "/v1/resources/Workload", {"group": OTHER}
        state = world.plane.view.by_name("User", "admin")
        assert state is not None
        await world.commit(
            Change("User", state.metadata.uid, "admin", "", state, (ev.Removed(),)),
            Change("User", "another", "admin", "", None, (ev.UserApplied(spec=user_spec(CALLERS["member"])),)),
        )
        assert (await world.ask("admin", "GET", path, query=query)).status in (401, 403)


@pytest.mark.parametrize("caller", [*CALLERS, *STRANGERS])
@pytest.mark.parametrize("hidden", [False, True])
async def test_a_shell_is_for_who_has_the_verb_in_the_group(caller: str, hidden: bool) -> None:
    group = OTHER if hidden else OWN
    async with a_world() as world:
        headers = {"Authorization": f"Bearer {world.tokens[caller]}"} if world.tokens[caller] else {}
        name = HIDDEN["workload"] if hidden else "ownwkl"
        if caller in STRANGERS:
            with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
                await world.session.ws_connect(f"{world.url}/v1/exec", headers=headers)
            return
        async with world.session.ws_connect(f"{world.url}/v1/exec", headers=headers) as socket:
            await socket.send_json({"start": {"name": name, "group": group}})
            error = (await socket.receive_json(timeout=PATIENCE_S))["error"]
        # Let in, it finds that no agent is there.
        assert error["code"] == (14 if holds(caller, "shell", "Workload", group) else 7), error


async def test_why_counts_the_containers_of_others_that_are_in_the_way() -> None:
    async with a_world() as world:
        await make_node_ready(world)
        spec = WorkloadSpec(driver="pwm.docker")
        spec.selectors.gpu.count = 3
        applied = ev.WorkloadApplied(spec=spec, generation=1, first_attempt=1)
        await world.commit(new_resource("Workload", "waits", applied, group=OWN))

        async def told(caller: str) -> str:
            answer = await world.ask(caller, "GET", "/v1/workloads/waits/why", query={"group": OWN})
            return "; ".join(answer.json["suggestions"])

        assert f"held by {HOLDER} and {OWN}/ownwkl.0.1 on n1" in await told("reader")
        assert f"held by {OWN}/ownwkl.0.1 and 1 container of others on n1" in await told("owner")
        assert "hush" not in await told("owner")


async def make_node_ready(world: World) -> None:
    state = world.plane.view.by_name("Node", "n1")
    assert state is not None
    ready = ev.NodePhaseChanged(phase=NodeStatus.READY)
    inventory = state.status.inventory
    joined = ev.NodeJoined()
    joined.inventory.CopyFrom(inventory)
    joined.inventory.drivers.add(name="pwm.docker", ready=True)
    await world.commit(Change("Node", state.metadata.uid, "n1", "", state, (joined, ready)))


async def test_top_shows_of_a_node_what_is_used_and_not_by_whom(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_world() as world:
        uids = {
            group: next(c.metadata.uid for c in world.plane.view.all("Container") if c.metadata.group == group)
            for group in (OWN, OTHER)
        }
        usage = NodeUsage(cpu=0.5)
        gpu = usage.gpus.add(uuid="GPU-1", utilization=0.7)
        for group, uid in uids.items():
            usage.containers.add(uid=uid, cpu_cores=1)
            gpu.processes.add(pid=1, container_uid=uid, command=f"command-of-{group}")
        gpu.processes.add(pid=2, command="a-stranger")
        gpu.processes.add(pid=3, container_uid="long-gone", command="of-somebody")
        monkeypatch.setattr(world.plane.agents, "usage", lambda node: usage)

        async def seen(caller: str) -> list[str]:
            (answer,) = [(await world.ask(caller, "GET", "/v1/top", query={"all_groups": "true"})).json["result"]]
            assert answer["nodes"][0]["usage"]["cpu"] == 0.5
            (shown,) = [g for g in answer["gpus"] if g.get("usage")]
            processes = answer["nodes"][0]["usage"]["gpus"][0].get("processes", [])
            assert "containers" not in answer["nodes"][0]["usage"]
            assert processes == shown["usage"].get("processes", [])
            return [p["command"] for p in processes]

        assert await seen("owner") == [f"command-of-{OWN}", "a-stranger"]
        assert await seen("reader") == [f"command-of-{OWN}", f"command-of-{OTHER}", "a-stranger"]
        assert await seen("stranger") == ["a-stranger"]
        assert len(usage.gpus[0].processes) == 4, "what the agent sent has been changed"


@pytest.mark.parametrize(
    ("memberships", "group", "refused"),
    [
        ({}, "pwm.resource", ""),
        ({"pwm.resource": {"Node": ["use"]}}, "pwm.resource", ""),
        ({"pwm.resource": {"Volume": ["get"]}}, "pwm.resource", "ann may not use Volume in group pwm.resource"),
        ({"pwm.resource": {"Node": ["get"]}}, "pwm.resource", "ann may not use Node"),
        ({}, OTHER, f"ann may not use Volume in group {OTHER}"),
        ({OTHER: {"Volume": ["use"]}}, OTHER, ""),
        ({ALL: {"Volume": ["use"]}}, OTHER, ""),
        ({}, OWN, f"ann may not use Volume in group {OWN}"),
    ],
)
async def test_what_a_workload_uses_its_owner_may_use(memberships: dict[str, Any], group: str, refused: str) -> None:
    async with a_world() as world:
        token = await world.add_user("ann", {OWN: {"Workload": ["apply"]}, **memberships})
        world.tokens["ann"] = token
        spec = {"image": "busybox", "volumes": [{"name": "any", "group": group, "target": "/data"}]}
        document = {"kind": "Workload", "metadata": {"name": "w", "group": OWN}, "spec": spec}
        (result,) = (await world.ask("ann", "POST", "/v1/apply", body={"documents": [document]})).json["results"]
        assert [p["message"] for p in result.get("problems", [])] == ([refused] if refused else [])


@pytest.mark.parametrize(
    ("memberships", "group", "refused"),
    [
        ({}, OWN, f"ann may not use Secret in group {OWN}"),
        ({OTHER: {"Secret": ["get", "apply"]}}, OTHER, f"ann may not use Secret in group {OTHER}"),
        ({}, "pwm.resource", "ann may not use Secret in group pwm.resource"),
        ({"pwm.resource": {"Secret": ["use"], "Node": ["use"]}}, "pwm.resource", ""),
        ({OTHER: {"Secret": ["use"]}}, OTHER, ""),
        ({ALL: {"Secret": ["use"]}}, OWN, ""),
    ],
)
@pytest.mark.parametrize("way", ["variable", "files", "login"])
async def test_a_secret_is_for_who_may_use_it(memberships: dict[str, Any], group: str, refused: str, way: str) -> None:
    async with a_world() as world:
        world.tokens["ann"] = await world.add_user("ann", {OWN: {"Workload": ["apply"]}, **memberships})
        config: dict[str, Any] = {
            "variable": {"env": {"A": {"secret": "s", "key": "k", "group": group}}},
            "files": {"secrets": [{"name": "s", "group": group}]},
        }.get(way, {})
        image = {"image": "busybox"} | ({"registrySecret": {"name": "s", "group": group}} if way == "login" else {})
        spec = {"image": image, "config": config}
        document = {"kind": "Workload", "metadata": {"name": "w", "group": OWN}, "spec": spec}
        (result,) = (await world.ask("ann", "POST", "/v1/apply", body={"documents": [document]})).json["results"]
        assert [p["message"] for p in result.get("problems", [])] == ([refused] if refused else [])


@pytest.mark.parametrize("what", ["restart", "scale"])
async def test_who_may_no_longer_use_nodes_starts_nothing_more(what: str) -> None:
    async with a_world() as world:
        memberships: dict[str, Any] = {OWN: {"Workload": ["apply", "stop"]}}
        world.tokens["ann"] = await world.add_user("ann", memberships)
        path, body = f"/v1/workloads/ownwkl/{what}", {"group": OWN, "count": 2} if what == "scale" else {"group": OWN}
        assert (await world.ask("ann", "POST", path, body=body)).status == 200
        await set_memberships(world, "ann", {**memberships, "pwm.resource": {"Node": ["get"]}})
        refused = await world.ask("ann", "POST", path, body=body)
        assert (refused.status, refused.json["message"]) == (403, "ann may not use Node")
        none = {"group": OWN, "count": 0}
        assert (await world.ask("ann", "POST", "/v1/workloads/ownwkl/scale", body=none)).status == 200
        assert (await world.ask("ann", "POST", "/v1/workloads/ownwkl/stop", body={"group": OWN})).status == 200


@pytest.mark.parametrize("path", ["/v1/resources/Event", "/v1/watch/Event", "/v1/events"])
async def test_no_events_of_tokens_are_told_which_name_their_hashes(path: str) -> None:
    async with a_world() as world:
        answer = (await world.ask("admin", "GET", path, query={"all_groups": "true"})).body
        assert b"userApplied" in answer
        assert b"Token" not in answer
        assert b"token" not in answer


async def test_the_groups_that_an_error_offers_are_those_one_may_see() -> None:
    async with a_world() as world:
        world.tokens["ann"] = await world.add_user("ann", {OWN: {}, "gone": {ALL: [ALL]}})
        document = {"kind": "Workload", "metadata": {"name": "w", "group": "gone"}, "spec": {"image": "busybox"}}
        (result,) = (await world.ask("ann", "POST", "/v1/apply", body={"documents": [document]})).json["results"]
        assert result["problems"][0]["nextStep"].startswith(f"use one of pwm.resource, {OWN}, or apply")


async def test_can_answers_as_the_call_would_be() -> None:
    async with a_world() as world:
        for caller in CALLERS:
            for verb, kind, path in (("get", "Workload", "Workload"), ("get", "User", "User/nobody")):
                for group in (OWN, OTHER):
                    query = {"user": caller, "verb": verb, "kind": kind, "group": group}
                    can = (await world.ask("admin", "GET", "/v1/admin/can", query=query)).json
                    done = await world.ask(caller, "GET", f"/v1/resources/{path}", query={"group": group})
                    assert can.get("allowed", False) is (done.status != 403), (caller, verb, kind, group, can)
        asked = await world.ask("member", "GET", "/v1/admin/can", query={"verb": "cancel", "kind": "workload"})
        assert asked.json == {
            "allowed": True, "rule": "the policy of the membership of vision grants CANCEL on Workload",
            "user": "member", "verb": "stop", "kind": "Workload", "group": OWN,
        }  # fmt: skip
        for query, said in (
            ({"verb": "fly", "kind": "Workload"}, "there is no verb 'fly'"),
            ({"verb": "get", "kind": "Plane"}, "there is no kind 'Plane'"),
        ):
            answer = await world.ask("member", "GET", "/v1/admin/can", query=query)
            assert (answer.status, answer.json["message"]) == (400, said)
        missing = await world.ask("admin", "GET", "/v1/admin/can", query={"user": "x", "verb": "get", "kind": "Node"})
        assert missing.status == 404


async def test_reports_are_of_oneself_and_of_groups_whose_figures_one_may_see() -> None:
    async with a_world() as world:
        week = world.plane.books.policy.week_of(world.plane.clock.now_ms())
        for owner, group in (("member", OWN), (HIDDEN["user"], OTHER), ("reader", OTHER)):
            settled = PeriodSettled()
            settled.lines.add(owner=owner, group=group, product_name="A100", hourly_micro=1, device_us=10**10)
            uid = part_uid(week, part_of(owner))
            state = world.plane.view.get("Ledger", uid)
            await world.commit(Change("Ledger", uid, uid, "", state, (settled,)))
        query = {"by": ["user", "group"]}
        seen = {}
        for caller in CALLERS:
            report = (await world.ask(caller, "GET", "/v1/report", query=query)).json
            seen[caller] = {(row["user"], row["group"]) for row in report.get("rows", [])}
            assert int(report.get("total", {}).get("deviceUs", 0)) == 10**10 * len(seen[caller])
            explained = await world.ask(caller, "GET", "/v1/report/explain", query={"user": HIDDEN["user"]})
            assert explained.status == 200
            may = caller == "admin"
            assert (int(explained.json.get("ledgerMicro", 0)) > 0) is may, "somebody reads what others have spent"
        everything = {("member", OWN), (HIDDEN["user"], OTHER), ("reader", OTHER)}
        assert seen == {
            "member": {("member", OWN)},
            "owner": {("member", OWN)},
            # Of the other group it may see workloads, but not what they cost, except its own.
            "reader": {("member", OWN), ("reader", OTHER)},
            "keeper": set(),
            "steward": set(),
            "admin": everything,
            "stranger": set(),
        }


@pytest.mark.parametrize("day", ["0001-01-01", "9999-12-31", "1970-01-01", "2026-02-30", "yesterday", "2026-1"])
async def test_a_report_of_no_week_is_refused(day: str) -> None:
    async with a_world() as world:
        answer = await world.ask("admin", "GET", "/v1/report/explain", query={"week": day})
        assert (answer.status, answer.json["details"][0]["nextStep"]) == (400, "write it as 2026-11-23")


async def test_limits_of_everybody_are_those_of_whom_one_may_see() -> None:
    async with a_world() as world:
        limited = GroupSpec()
        limited.limits.resources.gpus.total = 3
        for name in (OWN, OTHER):
            state = world.plane.view.by_name("Group", name)
            await world.commit(Change("Group", state.metadata.uid, name, "", state, (ev.GroupApplied(spec=limited),)))

        async def shown(caller: str, path: str = "/v1/limits", **query: str) -> list[str]:
            answer = await world.ask(caller, "GET", path, query=query)
            assert answer.status == 200, answer.body
            return [f"{a['kind']} {a['name']}" for a in answer.json["accounts"]]

        assert await shown("member", everybody="true") == [f"Group {OWN}"]
        assert await shown("member") == ["User member", f"Group {OWN}"]
        everybody = await shown("steward", everybody="true")
        assert {f"Group {OWN}", f"Group {OTHER}"} <= set(everybody)
        assert await shown("member", f"/v1/limits/groups/{OWN}") == [f"Group {OWN}", "User member"]
        members = await shown("admin", f"/v1/limits/groups/{OWN}")
        assert members[0] == f"Group {OWN}"
        assert {"User member", "User owner"} <= set(members)
        assert await shown("steward", user="member") == ["User member", f"Group {OWN}"]
        both = await world.ask("admin", "GET", "/v1/limits", query={"everybody": "true", "user": "member"})
        assert both.status == 400
        account = (await world.ask("member", "GET", "/v1/limits")).json["accounts"][1]
        assert account["limits"]["gpus"] == {"total": 3}
        assert account["workloads"] == 1


async def test_who_waits_for_a_secret_or_for_credits_is_told_of_that_and_not_of_nodes() -> None:
    async with a_world() as world:
        spec = WorkloadSpec(driver="pwm.docker")
        spec.config.secrets.add(name="nothing")
        await world.commit(new_resource("Workload", "waits", ev.WorkloadApplied(spec=spec, generation=1), group=OWN))

        async def why() -> dict[str, Any]:
            answer: dict[str, Any] = (
                await world.ask("owner", "GET", "/v1/workloads/waits/why", query={"group": OWN})
            ).json
            assert "refusals" not in answer
            assert "queueLength" not in answer
            return answer

        assert (await why())["suggestions"] == ["apply the secret; the workload starts by itself then"]
        limited = GroupSpec()
        limited.limits.credits.weekly = 0
        state = world.plane.view.by_name("Group", OWN)
        await world.commit(Change("Group", state.metadata.uid, OWN, "", state, (ev.GroupApplied(spec=limited),)))
        assert (await why())["suggestions"] == ["wait for the next week, or have spec.limits.credits.weekly raised"]
