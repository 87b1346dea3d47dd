"""What it costs to know who calls and what they may see: `get` with all checks and without any.

Of one resource, of the list of a thousand as `pwm get` prints it, and of the same list as JSON.

All servers are real: gateway, services, and a view with workloads in it. In one of them every token is taken for a
certain user's, nobody asks whether he may, and every item is shown; in another one, besides, nobody counts how often
he asks, which is no part of the 5 % but shown. As in bench_gateway.py the
servers run in processes of their own, the same load generator drives them in turns, and each pair of neighbouring runs
gives one ratio, of requests per second of the server's processor time: what else the machine does touches that less
than the clock.

    python bench/bench_access.py [--rounds 30] [--seconds 0.5] [--connections 16]
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import uvloop
from prometheus_client import CollectorRegistry

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.bench_gateway import PATH, TOKEN, Server, load, workload
from bench.paired import Ratio, save, summary
from pwm.api.v1.identity_pb2 import Token, User
from pwm.controlplane.auth import Principal, token_uid
from pwm.controlplane.clock import Clock
from pwm.controlplane.core.door import DoorLimits
from pwm.controlplane.gateway import Gateway
from pwm.controlplane.gateway.doorkeeper import Doorkeeper
from pwm.controlplane.plane import ControlPlane
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.memory import MemoryKV

WORKLOADS = 1_000
TARGET = 0.95
UNIT = "requests/s of CPU"
LIST = "/v1/resources/Workload?group=vision"
PATHS = {"GET of one": PATH, "list of 1,000, a table": f"{LIST}&format=TABLE", "list of 1,000, JSON": LIST}


def filled() -> ControlPlane:
    """A user with a token, and workloads in his group."""
    plane = ControlPlane(kv=MemoryKV(), keys=Keys(b"/b/"), replica="bench", address="http://127.0.0.1", clock=Clock())
    user = User()
    user.metadata.name, user.metadata.uid = "ann", "u"
    user.spec.groups.add(name="users").policy["Workload"].verbs.append("logs")
    user.spec.groups.add(name="vision").policy["Workload"].verbs.extend(["apply", "get"])
    token = Token()
    token.metadata.uid = token.metadata.name = token_uid(TOKEN)
    token.spec.user = "ann"
    plane.view.load("User", "u", state=user.SerializeToString(), revision=1)
    plane.view.load("Token", token.metadata.uid, state=token.SerializeToString(), revision=1)
    for number in range(WORKLOADS):
        made = workload(number)
        made.metadata.uid = f"w{number}"
        plane.view.load("Workload", made.metadata.uid, state=made.SerializeToString(), revision=1)
    plane.view.loaded(1)
    return plane


def counting(plane: ControlPlane) -> Doorkeeper:
    """As ever, and never too many."""
    limits = DoorLimits(requests_per_s=1e9, burst=1_000_000_000)
    return Doorkeeper(limits, journal=plane.audit, unlimited=plane.authorizer.runs_the_cluster)


async def start_checked(body: bytes) -> int:
    plane = filled()
    return await start(
        plane,
        plane.authenticator.user,
        plane.authorizer.check_call,
        counting(plane),
        recognize=plane.authenticator.recognize,
    )


async def start_unchecked(body: bytes) -> int:
    plane = filled()
    return await start_open(plane, counting(plane))


async def start_uncounted(body: bytes) -> int:
    class NoDoor(Doorkeeper):
        def address(self, request: Any) -> str:
            return "127.0.0.1"

        def visit(self, address: str, visitor: Any) -> None:
            pass

    return await start_open(filled(), NoDoor())


async def start_open(plane: ControlPlane, door: Doorkeeper) -> int:
    ann = Principal(user=plane.view.by_name("User", "ann"))

    async def authenticate(token: str | None, peer: str) -> Principal:
        raise AssertionError("everybody is recognized")

    class Everything:
        def __init__(self, *given: object) -> None:
            pass

        def of(self, kind: str, item: Any) -> Any:
            return item

        def through(self, kind: str) -> Any:
            return lambda item, metadata: item

    sys.modules["pwm.controlplane.services.resources"].Sight = Everything  # type: ignore[attr-defined]

    return await start(plane, authenticate, lambda *given: None, door, recognize=lambda *given: ann)


async def start(plane: ControlPlane, authenticate: Any, authorize: Any, door: Doorkeeper, **given: Any) -> int:
    gateway = Gateway(
        services=plane.services(),
        authenticate=authenticate,
        authorize=authorize,
        health=plane.health,
        registry=CollectorRegistry(),
        title="PWM",
        version="0",
        door=door,
        **given,
    )
    return await gateway.start("127.0.0.1", 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--connections", type=int, default=16)
    options = parser.parse_args()
    checked, unchecked, uncounted = servers = [
        Server(start_checked),
        Server(start_unchecked),
        Server(start_uncounted),
    ]
    try:

        def rate(server: Server, path: str) -> float:
            return uvloop.run(load(server, connections=options.connections, seconds=options.seconds, path=path))[1]

        def compared(path: str, other: Server) -> Ratio:
            measured = []
            for number in range(options.rounds + 1):
                # Each goes first in every second pair: whoever does is slower.
                first, second = (checked, other) if number % 2 else (other, checked)
                rates = {first: rate(first, path), second: rate(second, path)}
                measured.append((rates[checked], rates[other]))
            return summary(measured[1:])

        ratios = {}
        for name, path in PATHS.items():
            ratios[name] = compared(path, unchecked)
            print(ratios[name].line(f"{name}, checked against unchecked", target=f">= {TARGET}", unit=UNIT), flush=True)
        counted = compared(PATH, uncounted)
        print(counted.line("GET of one, checked and counted against neither", target="(none)", unit=UNIT), flush=True)
    finally:
        for server in servers:
            server.stop()
    record = {name: ratio.record(f">= {TARGET}") for name, ratio in ratios.items()}
    save("access", {**record, "GET of one, checked and counted": counted.record("(none)")})


if __name__ == "__main__":
    main()
