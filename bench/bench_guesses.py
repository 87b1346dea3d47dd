"""A million guessed tokens: how many let somebody in (none), what is written down of them, and what that weighs.

Some come over HTTP, from one address, as an attacker would send them. All others are made here and go the same way from
the gateway on, past the journal of the door and the authenticator, from 500 addresses by turns, which takes a
minute instead of an hour. Beside them a user with a valid token at one of those addresses goes on working.

    python bench/bench_guesses.py [--guesses 1000000] [--over-http 5000]
"""

import argparse
import sys
import time
from pathlib import Path

import aiohttp
import uvloop
from prometheus_client import CollectorRegistry

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.bench_access import filled
from bench.bench_gateway import PATH, TOKEN
from bench.paired import save
from pwm import daemon_log
from pwm.api.v1.audit_pb2 import AuditEntry
from pwm.controlplane.auth import new_token
from pwm.controlplane.core.auditing import check_chains
from pwm.controlplane.core.door import DoorLimits
from pwm.controlplane.errors import ApiError
from pwm.controlplane.gateway import Gateway
from pwm.controlplane.gateway.doorkeeper import Doorkeeper
from pwm.controlplane.plane import ControlPlane
from pwm.controlplane.servicers import servicers

ADDRESSES = [f"10.0.{number // 250}.{number % 250 + 1}" for number in range(500)]
# Guesses between two looks at the queue, and two requests of the user.
PART = 5_000


async def guess(plane: ControlPlane, door: Doorkeeper, count: int) -> int:
    """How many of them let somebody in."""
    hits = 0
    for number in range(count):
        address = ADDRESSES[number % len(ADDRESSES)]
        try:
            await plane.authenticator.user(new_token(), address)
            hits += 1
        except ApiError as error:
            door.fail(address, error)
        if number % PART == 0:
            user = await plane.authenticator.user(TOKEN, ADDRESSES[0])
            door.visit(ADDRESSES[0], user)
            await plane.audit.write_down()
    return hits


async def guess_over_http(url: str, count: int) -> tuple[int, int]:
    """How many let somebody in, and how many were told that their address is banned."""
    hits = banned = 0
    async with aiohttp.ClientSession() as session:
        for _ in range(count):
            async with session.get(url, headers={"Authorization": f"Bearer {new_token()}"}) as answer:
                hits += answer.status not in (401, 429)
                banned += answer.status == 429
        async with session.get(url, headers={"Authorization": f"Bearer {TOKEN}"}) as answer:
            assert answer.status == 200, "a valid token must go on working"
    return hits, banned


async def run(guesses: int, over_http: int) -> dict[str, float]:
    plane = filled()
    door = Doorkeeper(DoorLimits(), journal=plane.audit)
    gateway = Gateway(
        services=servicers(plane),
        authenticate=plane.authenticator.user,
        recognize=plane.authenticator.recognize,
        authorize=plane.authorizer.check_of,
        health=plane.health,
        registry=CollectorRegistry(),
        title="PWM",
        version="0",
        door=door,
    )
    port = await gateway.start("127.0.0.1", 0)
    began = time.monotonic()
    http_hits, told = await guess_over_http(f"http://127.0.0.1:{port}{PATH}", over_http)
    hits = await guess(plane, door, guesses - over_http)
    seconds = time.monotonic() - began
    for entry in plane.audit._tally.due(0, all_of_it=True):
        plane.audit._put(entry)
    await plane.audit.write_down()
    batches = [batch async for batch in plane.audit_log.batches()]
    entries = [entry for batch in batches for entry in (batch.content or plane).entries]  # type: ignore[union-attr]
    failed = [entry for entry in entries if entry.action == AuditEntry.LOGIN_FAILED]
    counted = sum(entry.count or 1 for entry in failed)
    assert counted == guesses, f"{counted} of {guesses} are in the audit"
    assert check_chains(batches) == []
    await gateway.stop(1.0)
    await plane.kv.close()
    return {
        "guesses": guesses,
        "hits": hits + http_hits,
        "told_of_a_ban": told,
        "seconds": round(seconds, 1),
        "entries": len(entries),
        "bytes": sum(len(batch.value) for batch in batches),
    }


def main() -> None:
    daemon_log.configure(level="error", as_json=False)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guesses", type=int, default=1_000_000)
    parser.add_argument("--over-http", type=int, default=5_000)
    options = parser.parse_args()
    result = uvloop.run(run(options.guesses, options.over_http))
    print(
        f"{result['guesses']:,} guessed tokens in {result['seconds']:g} s: {result['hits']} hits,"
        f" {result['entries']} entries of the audit, {result['bytes']:,} bytes"
    )
    save("guesses", result)
    if result["hits"]:
        sys.exit("a guess let somebody in")


if __name__ == "__main__":
    main()
