"""Who opens connections and says nothing takes them from himself, and from nobody else."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from pwm.controlplane.authority import new_issuer
from pwm.controlplane.core.antechamber import ConnectionLimits
from pwm.controlplane.credentials import _server_context, _use
from pwm.controlplane.gateway import arrivals
from pwm.controlplane.gateway.doorkeeper import Doorkeeper
from tests.patience import PATIENCE_S

# Few, so that a flood is quick.
LIMITS = ConnectionLimits(per_address=6, total=15)
REQUEST = b"GET /v1/whoami HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer pwm_ann\r\n\r\n"
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture(autouse=True)
def nobody_is_young(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "YOUNG_S", 0.0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def own_certificate() -> ssl.SSLContext:
    context, now_ms = _server_context(), int(time.time() * 1000)
    issuer = new_issuer(1, now_ms=now_ms)
    _use(context, issuer.for_controller("c", hosts=["127.0.0.1"], now_ms=now_ms, life_ms=3_600_000))
    return context


def doubting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@asynccontextmanager
async def limited(start: Any, limits: ConnectionLimits = LIMITS, **more: Any) -> AsyncIterator[Any]:
    async with start(connections=limits, **more) as gateway:
        yield gateway


async def flood(gateway: Any, number: int, *, says: bytes = b"", of: str = "127.0.0.2") -> list[Connection]:
    """So many connections from an address, one after the other."""
    made = []
    for _ in range(number):
        connection = await gateway.connect(local_addr=(of, 0))
        connection[1].write(says)
        made.append(connection)
    return made


async def served(connection: Connection) -> bool:
    """Whether a request with a valid token is answered."""
    reader, writer = connection
    writer.write(REQUEST)
    try:
        async with asyncio.timeout(PATIENCE_S):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
            await reader.readexactly(length)
    except (ConnectionError, asyncio.IncompleteReadError):
        return False
    return head.startswith(b"HTTP/1.1 200 ")


async def alive(connections: list[Connection]) -> int:
    """How many of them are still good for something."""
    return sum([await served(connection) for connection in connections])


@pytest.mark.parametrize("says", [b"", b"GET /v1/whoami HTTP/1.1\r\nHo", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"])
async def test_of_many_connections_that_show_no_token_the_newest_stay(start: Any, says: bytes) -> None:
    async with limited(start) as gateway:
        made = await flood(gateway, 40, says=says)
        await until(lambda: gateway.gateway.strangers == LIMITS.per_address)
        assert gateway.gateway.pushed_out == 34
        gone = [reader for reader, _ in made[:34]]
        async with asyncio.timeout(PATIENCE_S):
            for reader in gone:
                while await reader.read(1000):
                    pass


async def test_whoever_has_shown_a_token_stays_and_whoever_comes_gets_in(start: Any) -> None:
    async with limited(start) as gateway:
        known = await gateway.connect(local_addr=("127.0.0.2", 0))
        assert await served(known)
        for _ in range(10):
            await flood(gateway, 10)
            newcomer = await gateway.connect(local_addr=("127.0.0.2", 0))
            assert await served(newcomer), "also from the same address"
        assert await served(known)
        assert gateway.gateway.strangers < LIMITS.per_address, "who came last is no stranger any more"


async def test_a_flood_from_many_addresses_takes_nothing_from_the_quiet_ones(start: Any) -> None:
    async with limited(start) as gateway:
        quiet = await flood(gateway, 2, of="127.0.0.3")
        for number in range(40):
            await flood(gateway, 5, of=f"127.0.0.{number % 4 + 10}")
        await until(lambda: gateway.gateway.strangers == LIMITS.total)
        assert await alive(quiet) == 2


async def test_a_proxy_speaks_for_many_and_is_held_to_the_total_only(start: Any) -> None:
    async with limited(start, door=Doorkeeper(proxies=["127.0.0.2"])) as gateway:
        assert await alive(await flood(gateway, 12)) == 12
        await flood(gateway, 20)
        await until(lambda: gateway.gateway.strangers == LIMITS.total)


async def test_who_does_not_shake_hands_is_counted_from_the_first_moment(start: Any) -> None:
    async with limited(start, tls=own_certificate()) as gateway:
        await flood(gateway, 40)
        await until(lambda: gateway.gateway.strangers == LIMITS.per_address)
        for of in ("127.0.0.2", "127.0.0.3"):
            newcomer = await gateway.connect(local_addr=(of, 0), ssl=doubting())
            assert await served(newcomer)
            await flood(gateway, 10)
            assert await served(newcomer)


async def test_all_are_forgotten_when_they_go(start: Any) -> None:
    async with limited(start) as gateway:
        for _ in range(5):
            for _, writer in await flood(gateway, 5):
                writer.close()
        await until(lambda: gateway.gateway.strangers == 0)
        assert gateway.gateway.pushed_out == 0


async def test_a_crowd_that_comes_at_once_from_one_address_is_let_in(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "YOUNG_S", 60.0)
    async with limited(start, ConnectionLimits(per_address=6, total=0), tls=own_certificate()) as gateway:
        crowd = await asyncio.gather(*(gateway.connect(ssl=doubting()) for _ in range(30)))
        assert await alive(crowd) == 30
        assert gateway.gateway.pushed_out == 0
