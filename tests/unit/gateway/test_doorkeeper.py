"""At the door of the gateway: who is sent away, what he is told, and from which address a request counts."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from pwm.controlplane.core.addresses import neighbourhood, plain
from pwm.controlplane.core.door import DoorLimits
from pwm.controlplane.errors import LoginFailed
from pwm.controlplane.gateway.doorkeeper import Doorkeeper
from tests.unit.gateway import conftest

GET = "/v1/resources/workload/train"
BOB, WRONG, NOBODY = "Bearer pwm_bob", "Bearer pwm_guess", ""


@dataclass
class Journal:
    told: list[str] = field(default_factory=list)

    def visit_began(self, visitor: Any, address: str) -> None:
        self.told.append(f"visit of {visitor.name} from {address}")

    def login_failed(self, error: Any, address: str) -> None:
        self.told.append(f"{error.message} from {address}")

    def banned(self, address: str, seconds: float) -> None:
        self.told.append(f"{address} banned for {seconds:g} s")


@dataclass
class Now:
    s: float = 0.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
def journal() -> Journal:
    return Journal()


@pytest.fixture
async def guarded(world: Any, start: Any, now: Now, journal: Journal) -> AsyncIterator[Any]:
    limits = DoorLimits(requests_per_s=2, burst=4, failures=3, ban_s=120)
    door = Doorkeeper(limits, journal=journal, clock_s=now, unlimited=lambda visitor: visitor.name == "user:bob")
    async with start(world, door=door) as gateway:
        yield gateway


async def test_who_asks_too_much_is_told_when_to_come_back_and_is_served_then(guarded: Any, now: Now) -> None:
    answers = [await guarded.get(GET) for _ in range(5)]
    assert [answer.status for answer in answers] == [200] * 4 + [429]
    refused = answers[-1]
    assert refused.headers["Retry-After"] == "1"
    assert refused.json["code"] == 8
    assert refused.json["message"] == "too many requests: user:ann may make 2 a second from 127.0.0.1"
    assert refused.json["details"][0]["nextStep"].startswith("wait 1 s;")
    assert (await guarded.get("/healthz", Authorization=NOBODY)).status == 200
    assert (await guarded.get("/v1/version", Authorization=NOBODY)).status == 200
    now.s += 1
    assert (await guarded.get(GET)).status == 200


async def test_who_runs_the_cluster_is_not_held_to_a_rate(guarded: Any) -> None:
    assert {(await guarded.get("/v1/whoami", Authorization=BOB)).status for _ in range(20)} == {200}


@pytest.mark.parametrize("path", ["/v1/version", "/openapi.json", "/", "/nowhere", "/v1/nothing", GET])
async def test_who_shows_no_token_is_counted_by_address(guarded: Any, path: str) -> None:
    statuses = [(await guarded.get(path, Authorization=NOBODY)).status for _ in range(5)]
    assert 429 not in statuses[:4]
    assert statuses[4] == 429
    assert (await guarded.get(GET)).status == 200


async def test_three_wrong_tokens_ban_the_address_for_all_but_valid_tokens(
    guarded: Any, now: Now, journal: Journal
) -> None:
    assert [(await guarded.get(GET, Authorization=WRONG)).status for _ in range(5)] == [401, 401, 401, 429, 429]
    for path in (GET, "/v1/version", "/openapi.json", "/"):
        refused = await guarded.get(path, Authorization=NOBODY)
        assert (refused.status, refused.headers["Retry-After"]) == (429, "120")
        assert refused.json["message"] == "too many wrong tokens came from 127.0.0.1"
        assert refused.headers["Connection"] == "close"
    assert (await guarded.get(GET)).status == 200
    assert (await guarded.get("/healthz", Authorization=NOBODY)).status == 200
    assert journal.told[2:4] == ["log in first from 127.0.0.1", "127.0.0.1 banned for 120 s"]
    now.s += 120.1
    assert (await guarded.get(GET, Authorization=WRONG)).status == 401
    assert (await guarded.get("/v1/version", Authorization=NOBODY)).status == 200


async def test_what_is_open_to_everybody_and_asks_for_another_credential_is_no_way_around(
    world: Any, start: Any, now: Now, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def join(self: Any, request: Any, context: Any) -> Any:
        raise LoginFailed("this is no join token", next_step="ask for one")

    monkeypatch.setattr(conftest.System, "GetVersion", join)
    door = Doorkeeper(DoorLimits(failures=3), journal=journal, clock_s=now)
    async with start(world, door=door) as gateway:
        statuses = [(await gateway.get("/v1/version", Authorization=NOBODY)).status for _ in range(5)]
        assert (await gateway.get(GET)).status == 200
    assert statuses == [401, 401, 401, 429, 429]
    assert "127.0.0.1 banned for 120 s" in journal.told


async def test_a_visit_is_told_once(guarded: Any, journal: Journal) -> None:
    for _ in range(3):
        await guarded.get(GET)
    assert journal.told == ["visit of user:ann from 127.0.0.1"]


def request(remote: str, *forwarded: str) -> web.BaseRequest:
    made = make_mocked_request("GET", "/", headers=[("X-Forwarded-For", text) for text in forwarded])
    return made.clone(remote=remote)


@pytest.mark.parametrize(
    ("remote", "forwarded", "address"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        # Whoever is no proxy may write what he likes.
        ("192.0.2.1", ["198.51.100.7"], "192.0.2.1"),
        ("10.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["1.1.1.1, 198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["1.1.1.1, 198.51.100.7, 10.0.0.2"], "198.51.100.7"),
        ("10.0.0.1", ["1.1.1.1", "198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["nonsense"], "10.0.0.1"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("::ffff:10.0.0.1", ["2001:DB8::1"], "2001:db8::1"),
        ("::1", ["198.51.100.7"], "198.51.100.7"),
    ],
)
def test_a_request_comes_from_where_trusted_proxies_say(remote: str, forwarded: list[str], address: str) -> None:
    door = Doorkeeper(proxies=["10.0.0.0/8", "::1"])
    assert door.address(request(remote, *forwarded)) == address


def test_addresses_that_belong_together_count_as_one() -> None:
    assert plain("::ffff:192.0.2.1") == neighbourhood("192.0.2.1") == "192.0.2.1"
    assert plain("fe80::1%eth0") == "fe80::1"
    assert neighbourhood("2001:db8:0:1::1") == neighbourhood("2001:db8:0:1:ffff::2") != neighbourhood("2001:db8::1")


def test_what_is_no_network_is_no_proxy() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        Doorkeeper(proxies=["nonsense"])
