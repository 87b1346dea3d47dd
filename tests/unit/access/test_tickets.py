"""A ticket opens one shell, in one workload, once; and no more than the token behind it may."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from pwm.controlplane.core.door import DoorLimits
from tests.patience import PATIENCE_S
from tests.unit.access.world import HIDDEN, OTHER, OWN, World, a_world

UNAVAILABLE, DENIED = 14, 7
# No agent is there: whoever is let in hears that.
LET_IN = {"code": UNAVAILABLE}


async def a_ticket(world: World, caller: str = "owner", workload: str = "ownwkl", group: str = OWN) -> str:
    answer = await world.ask(caller, "POST", f"/v1/workloads/{workload}/exec-ticket", body={"group": group})
    assert answer.status == 200, answer.body
    assert answer.json["lifetime"] == "30s"
    return str(answer.json["ticket"])


async def shell(
    world: World, ticket: str, workload: str = "ownwkl", group: str = OWN, **headers: str
) -> tuple[int, dict[str, Any]]:
    """HTTP status, and the error that a socket which is open ends with."""
    try:
        async with (
            asyncio.timeout(PATIENCE_S),
            world.session.ws_connect(f"{world.url}/v1/exec?ticket={ticket}", headers=headers) as socket,
        ):
            await socket.send_str(json.dumps({"start": {"name": workload, "group": group, "cmd": ["id"]}}))
            error: dict[str, Any] = json.loads(await socket.receive_str())["error"]
            return 101, error
    except aiohttp.WSServerHandshakeError as error:
        return error.status, {}


async def test_a_ticket_opens_a_shell_once() -> None:
    async with a_world() as world:
        ticket = await a_ticket(world)
        status, error = await shell(world, ticket)
        assert (status, error["code"]) == (101, UNAVAILABLE), "let in, and no agent is there"
        assert "cannot be reached" in error["message"]
        assert await shell(world, ticket) == (401, {})
        both = [await a_ticket(world)] * 8
        statuses = [status for status, _ in await asyncio.gather(*(shell(world, ticket) for ticket in both))]
        assert sorted(statuses) == [101, *[401] * 7]


async def test_it_is_for_the_workload_that_it_was_asked_for_and_for_nothing_but_shells() -> None:
    async with a_world() as world:
        status, error = await shell(world, await a_ticket(world, "admin"), HIDDEN["workload"], OTHER)
        assert (status, error["code"]) == (101, DENIED)
        assert error["message"] == f"this ticket is for a shell in {OWN}/ownwkl"
        ticket = await a_ticket(world)
        assert (await world.ask("anonymous", "GET", "/v1/whoami", query={"ticket": ticket})).status == 401
        world.tokens["ticket"] = ticket
        assert (await world.ask("ticket", "GET", "/v1/whoami")).status == 401
        assert (await world.ask("anonymous", "GET", "/v1/exec")).status == 401
        status, _ = await shell(world, ticket)
        assert status == 101, "nothing of that used it up"


async def test_who_may_open_no_shell_gets_no_ticket() -> None:
    async with a_world() as world:
        for caller, expected in (("member", 403), ("stranger", 403), ("anonymous", 401), ("revoked", 401)):
            answer = await world.ask(caller, "POST", "/v1/workloads/ownwkl/exec-ticket", body={"group": OWN})
            assert answer.status == expected, caller
        absent = await world.ask("owner", "POST", "/v1/workloads/absent/exec-ticket", body={"group": OWN})
        assert absent.status == 404


async def test_it_ends_with_the_token_that_it_was_given_for_and_after_a_while() -> None:
    async with a_world() as world:
        kept = await a_ticket(world)
        gone = await a_ticket(world)
        key = world.plane.tickets._key(gone)
        found = (await world.plane.kv.range(key)).kvs[0]
        assert gone.encode() not in found.value
        assert found.lease > 0
        await world.plane.kv.revoke_lease(found.lease)
        assert await shell(world, gone) == (401, {})
        listed = await world.ask("owner", "GET", "/v1/tokens")
        names = [token["id"] for token in listed.json["tokens"]]
        revoked = await world.ask("owner", "POST", "/v1/tokens/revoke", body={"names": names})
        assert revoked.status == 200, revoked.body
        assert await shell(world, kept) == (401, {})


async def test_a_page_from_elsewhere_opens_nothing_with_it() -> None:
    async with a_world() as world:
        assert await shell(world, await a_ticket(world), Origin="https://evil.example") == (403, {})
        assert (await shell(world, await a_ticket(world), Origin=world.url))[0] == 101


@pytest.mark.parametrize("query", ["ticket=", "ticket=a&ticket=b", "&".join(["a=b"] * 20), "ticket=%ff"])
async def test_what_is_no_ticket_is_no_ticket(query: str) -> None:
    async with a_world() as world, world.session.get(f"{world.url}/v1/exec?{query}") as answer:
        assert answer.status == 401


async def test_invented_tickets_count_as_wrong_tokens_and_used_ones_do_not() -> None:
    async with a_world(DoorLimits(failures=3)) as world:
        ticket = await a_ticket(world)
        statuses = [(await shell(world, ticket))[0] for _ in range(5)]
        assert statuses == [101, 401, 401, 401, 401]
        statuses = [(await shell(world, f"pwmticket_{number}"))[0] for number in range(5)]
        assert statuses == [401, 401, 401, 429, 429]
