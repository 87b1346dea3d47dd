"""The controller's part of a log-in at a provider: who gets a token, what is written down, what nobody makes it do."""

import asyncio
import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import web

from pwm.api.v1 import events_pb2 as ev
from pwm.api.v1.peer_pb2 import BegunLogin
from pwm.controlplane.cluster_key import ClusterKey
from pwm.controlplane.commands import timestamp
from pwm.controlplane.core.decide import change
from pwm.controlplane.core.door import DoorLimits
from pwm.controlplane.core.logins import MOST_TOKENS_PER_HOST
from pwm.controlplane.oidc.provider import MOST_AT_ONCE, Provider
from pwm.controlplane.oidc.settings import OidcSettings
from pwm.controlplane.services import logins
from pwm.controlplane.services.logins import HANDLE_PREFIX, SEALED_FOR
from tests.unit.access.world import OWN, Answer, World, a_world
from tests.unit.oidc.signing import private_key, signed
from tests.unit.oidc.stand_in import StandIn, a_stand_in, never

SECRET = "a secret of the client"
NOT_BELIEVED = "the provider's ID token is not believed:"
BEGIN, COMPLETE = "/v1/login/begin", "/v1/login/complete"


@dataclass
class Place:
    """A control plane with a provider."""

    world: World
    idp: StandIn
    provider: Provider

    async def ask(self, path: str, body: Any) -> Answer:
        return await self.world.ask("anonymous", "POST", path, body=body)

    async def begin(self) -> str:
        answer = await self.ask(BEGIN, {})
        assert answer.status == 200, answer.body
        return str(answer.json["handle"])

    async def complete(self, handle: str, host: str = "box") -> Answer:
        return await self.ask(COMPLETE, {"handle": handle, "host": host})

    async def log_in(self, host: str = "box") -> Answer:
        """Begun and completed, as whoever the provider says. Each with a code of its own."""
        self.idp.answers["/device"] = {
            "device_code": f"D{len(self.idp.asked)}", "user_code": "C", "verification_uri": f"{self.idp.url}/code",
            "expires_in": 600,
        }  # fmt: skip
        return await self.complete(await self.begin(), host)

    async def set_user(self, name: str, *, email: str = "", active: bool = True) -> None:
        user = self.world.plane.view.by_name("User", name)
        spec = type(user.spec)()
        spec.CopyFrom(user.spec)
        spec.contact.email, spec.active = email, active
        await self.world.commit(change(user, ev.UserApplied(spec=spec)))

    async def audit(self) -> list[tuple[str, str, str]]:
        await self.world.plane.audit.write_down()
        found = (await self.world.ask("admin", "GET", "/v1/audit")).json["entries"]
        return [(e["action"], e.get("user", ""), e.get("what", "")) for e in found]


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    async with (
        a_stand_in() as idp,
        Provider(OidcSettings(idp.url, "pwm", SECRET, token_life_ms=3_600_000)) as provider,
        a_world(DoorLimits(requests_per_s=0), provider=provider) as world,
    ):
        made = Place(world, idp, provider)
        await made.set_user("member", email="ann@example.org")
        yield made


async def test_who_the_provider_says_gets_a_token_of_their_own(place: Place) -> None:
    place.idp.confirm()
    answer = await place.log_in("gpu7")
    assert answer.status == 200
    made = answer.json
    assert (made["state"], made["entry"]["user"], made["entry"]["name"]) == ("DONE", "member", "oidc-gpu7")
    assert made["entry"]["description"] == f"log-in at {place.idp.url}"
    assert made["entry"]["createdBy"] == {"type": "USER", "name": "member"}
    place.world.tokens["ann"] = made["token"]
    who = (await place.world.ask("ann", "GET", "/v1/whoami")).json
    assert (who["user"], who["defaultGroup"]) == ("member", OWN)
    assert ("LOGIN", "member", f"at {place.idp.url}") in await place.audit()
    assert ("CHANGE", "member", "token_issued") in await place.audit()
    stored = b"".join([kv.key + kv.value async for page in place.world.plane.kv.pages(b"/") for kv in page.kvs])
    for hidden in (made["token"], SECRET, "ACCESS", place.idp.answers["/token"]["id_token"]):
        assert hidden.encode() not in stored


async def test_the_provider_is_named_to_whoever_asks(place: Place) -> None:
    assert (await place.world.ask("anonymous", "GET", "/v1/login/provider")).json == {"issuer": place.idp.url}


async def test_without_a_provider_there_is_nothing_to_begin() -> None:
    async with a_world() as world:
        assert (await world.ask("anonymous", "GET", "/v1/login/provider")).json.get("issuer", "") == ""
        for path, body in ((BEGIN, {}), (COMPLETE, {"handle": "pwmlogin.AAAA"})):
            answer = await world.ask("anonymous", "POST", path, body=body)
            assert (answer.status, answer.json["message"]) == (400, "this PWM has no provider to log in at")


async def test_a_log_in_that_is_not_confirmed_waits(place: Place) -> None:
    handle = await place.begin()
    assert (await place.complete(handle)).json == {"state": "PENDING"}
    asked = len(place.idp.asked)
    for _ in range(5):
        assert (await place.complete(handle)).json == {"state": "SLOW_DOWN"}
    assert len(place.idp.asked) == asked, "nobody makes us ask the provider more often than it wants"


@pytest.mark.parametrize(
    ("claims", "why", "next_step"),
    [
        ({"email": "eve@evil.org"}, "no user here has the e-mail address eve@evil.org", "ask an admin for it"),
        ({"email_verified": False}, "the provider has not verified that ann@example.org is your", "have it verified"),
        ({"email_verified": None}, "the provider has not verified that ann@example.org is your", "have it verified"),
        ({"email": None}, "the provider does not say the email of who has logged in", "an admin chooses"),
        ({"aud": "another"}, f"{NOT_BELIEVED} it is for another client", "an admin looks"),
        ({"iss": "https://other"}, f"{NOT_BELIEVED} it is from another provider", "an admin looks"),
        ({"exp": 1}, f"{NOT_BELIEVED} it has expired", "an admin looks"),
    ],
)
async def test_nobody_else_gets_one_and_is_told_why_and_what_to_do(
    place: Place, claims: dict[str, Any], why: str, next_step: str
) -> None:
    place.idp.confirm(**claims)
    tokens = place.world.plane.view.count("Token")
    answer = await place.log_in()
    assert answer.status == 401
    assert answer.json["message"].startswith(why)
    assert answer.json["details"][0]["nextStep"].startswith(next_step)
    assert place.world.plane.view.count("Token") == tokens
    ((action, user, what),) = [entry for entry in await place.audit() if entry[0] == "LOGIN_FAILED"]
    assert (action, user) == ("LOGIN_FAILED", "")
    assert what.startswith(why)


async def test_tokens_that_others_have_signed_let_nobody_in(place: Place) -> None:
    content = place.idp.claims()
    header = base64.urlsafe_b64encode(b'{"alg":"none"}').decode().rstrip("=")
    unsigned = f"{header}.{signed(content).split('.')[1]}."
    for token in (unsigned, signed(content, key=private_key("RS256", "eve")), signed(content, kid="no such")):
        place.idp.confirm(token)
        answer = await place.log_in()
        assert (answer.status, "is not believed" in answer.json["message"]) == (401, True)


async def test_who_is_deactivated_stays_out_and_comes_back(place: Place) -> None:
    place.idp.confirm()
    await place.set_user("member", email="ann@example.org", active=False)
    answer = await place.log_in()
    assert (answer.status, answer.json["message"]) == (401, "user member is deactivated")
    assert ("LOGIN_FAILED", "member", "user member is deactivated") in await place.audit()
    await place.set_user("member", email="ann@example.org")
    assert (await place.log_in()).status == 200


async def test_what_somebody_got_ends_with_being_deactivated(place: Place) -> None:
    place.idp.confirm()
    place.world.tokens["ann"] = (await place.log_in()).json["token"]
    await place.set_user("member", email="ann@example.org", active=False)
    assert (await place.world.ask("ann", "GET", "/v1/whoami")).status == 401


async def test_who_comes_with_one_that_has_ended_is_told_how_to_get_another(place: Place) -> None:
    place.idp.confirm()
    place.world.tokens["ann"] = (await place.log_in()).json["token"]
    await place.world.ask("ann", "POST", "/v1/tokens/revoke", body={"names": ["oidc-box"]})
    answer = await place.world.ask("ann", "GET", "/v1/whoami")
    assert (answer.status, answer.json["details"][0]["nextStep"]) == (401, "pwm login --oidc gets another")


async def test_who_logs_in_often_has_a_few_tokens_and_never_too_many(place: Place) -> None:
    place.idp.confirm()
    names = [(await place.log_in()).json["entry"]["name"] for _ in range(MOST_TOKENS_PER_HOST + 2)]
    assert names == ["oidc-box", "oidc-box-2", "oidc-box-3", "oidc-box-4", "oidc-box-5", "oidc-box", "oidc-box-2"]


async def test_what_was_completed_is_over(place: Place) -> None:
    place.idp.answers["/token"] = (400, {"error": "invalid_grant"})
    answer = await place.complete(await place.begin())
    assert (answer.status, "has been completed already" in answer.json["message"]) == (401, True)
    place.idp.answers["/token"] = (400, {"error": "access_denied"})
    answer = await place.log_in()
    assert (answer.status, answer.json["message"]) == (401, "the log-in was refused at the provider")


# ---- handles


def a_handle(key: ClusterKey, place: Place, *, context: str = SEALED_FOR, **changed: Any) -> str:
    now_ms = place.world.plane.clock.now_ms()
    content = BegunLogin(
        **{
            "issuer": place.idp.url, "client_id": "pwm", "device_code": "DEVICE",
            "expires_at": timestamp(now_ms + 60_000), **changed,
        }
    )  # fmt: skip
    return HANDLE_PREFIX + base64.urlsafe_b64encode(key.encrypt(content.SerializeToString(), context)).decode()


def own_key(place: Place) -> ClusterKey:
    key = place.world.plane.cluster_key
    assert key is not None
    return key


async def test_a_handle_of_another_cluster_is_a_guess(place: Place) -> None:
    place.idp.confirm()
    handle = await place.begin()
    assert "DEVICE" not in base64.urlsafe_b64decode(handle.removeprefix(HANDLE_PREFIX) + "==").decode("latin-1")
    for bad in (
        a_handle(ClusterKey.generate(), place),
        a_handle(own_key(place), place, context="secret/x/1"),
        handle[:-4],
        handle[:60] + ("A" if handle[60] != "A" else "B") + handle[61:],
        handle.removeprefix(HANDLE_PREFIX),
        "", HANDLE_PREFIX, HANDLE_PREFIX + "!", HANDLE_PREFIX + "é", HANDLE_PREFIX + "A" * 10_000,
    ):  # fmt: skip
        answer = await place.complete(bad)
        banned = answer.status == 429
        assert banned or (answer.status, answer.json["message"]) == (
            401, "this is no log-in that was begun at this cluster",
        )  # fmt: skip
    assert "/token" not in place.idp.paths(), "the provider hears nothing of it"
    said = await place.audit()
    assert ("LOGIN_FAILED", "", "no log-in of this cluster") in said
    assert [entry for entry in said if entry[0] == "BANNED"]


async def test_an_old_handle_and_one_of_other_settings_are_over_and_no_guesses(place: Place) -> None:
    place.idp.confirm()
    key = own_key(place)
    for changed, why in (
        ({"expires_at": timestamp(1)}, "the code was not confirmed in time"),
        ({"issuer": "https://other.example.org"}, "this log-in was begun at another provider"),
        ({"client_id": "other"}, "this log-in was begun at another provider"),
    ):
        for _ in range(3):
            answer = await place.complete(a_handle(key, place, **changed))
            assert (answer.status, answer.json["message"]) == (401, why)
    assert (await place.complete(a_handle(key, place))).status == 200, "and nobody is banned for it"


# ---- a provider in trouble, and callers who ask for too much


async def test_a_provider_that_is_away_or_unfit_is_said(place: Place) -> None:
    handle = await place.begin()
    for answer, status in (((503, {}), 503), ((401, {"error": "invalid_client"}), 400), (b"", 400)):
        place.idp.answers["/token"] = place.idp.answers["/device"] = answer
        for told in (await place.ask(BEGIN, {}), await place.complete(handle)):
            assert told.status == status
            assert told.json["details"][0]["nextStep"]
        handle = a_handle(own_key(place), place, device_code=f"D{status}{len(place.idp.asked)}")


async def test_a_provider_that_says_nothing_holds_up_nobody_else(place: Place) -> None:
    all_wait = asyncio.Event()

    async def silence(request: web.Request) -> web.StreamResponse:
        if place.idp.paths().count("/device") == MOST_AT_ONCE:
            all_wait.set()
        return await never(request)

    place.idp.answers["/device"] = silence
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(place.ask(BEGIN, {})) for _ in range(20)]
        await all_wait.wait()
        for _ in range(20):
            assert (await place.world.ask("member", "GET", "/v1/whoami")).status == 200
        assert not any(task.done() for task in waiting)
        for task in waiting:
            task.cancel()


async def test_one_address_begins_so_many_log_ins_and_no_more(place: Place) -> None:
    answers = [(await place.ask(BEGIN, {})).status for _ in range(logins.BEGINNINGS.burst + 3)]
    assert answers.count(200) >= logins.BEGINNINGS.burst
    assert 429 in answers


async def test_what_is_remembered_of_log_ins_is_bounded(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logins, "MOST_ASKED", 4)
    key = own_key(place)
    for number in range(20):
        answer = await place.complete(a_handle(key, place, device_code=f"D{number}"))
        assert answer.json == {"state": "PENDING"}
