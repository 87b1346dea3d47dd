"""What it costs to know who calls and what they may see: `get` with all checks and without any.

Of one resource, of the list of a thousand as `pwm get` prints it, and of the same list as JSON.

The server is real: gateways, services, and a view with workloads in it. Behind one of its ports every token is taken
for a certain user's, nobody asks whether he may, and every item is shown; behind another one, besides, nobody counts
how often he asks, which is no part of the 5 % but shown. All are in one process, and driven in turns by the same load
generator: of two processes that do the same, one may be 4 % slower for as long as it lives. Each pair of neighbouring
runs gives one ratio, of requests per second of the server's processor time: what else the machine does touches that
less than the clock. There are several processes, one after the other.

    python bench/bench_access.py [--processes 5] [--rounds 40] [--connections 16]
"""

import argparse
import asyncio
import multiprocessing
import sys
from multiprocessing.connection import Connection
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
from pwm.controlplane.servicers import servicers
from pwm.controlplane.services import resources
from pwm.controlplane.sight import Sight, seen
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.memory import MemoryKV

WORKLOADS = 1_000
TARGET = 0.95
UNIT = "requests/s of CPU"
LIST = "/v1/resources/Workload?group=vision"
# With how long a run takes, a hundred answers or more, and of how many rounds it is one: longer runs are fewer.
PATHS = {
    "GET of one": (PATH, 0.1, 1),
    "list of 1,000, a table": (f"{LIST}&format=TABLE", 0.5, 4),
    "list of 1,000, JSON": (LIST, 0.5, 4),
}


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


def everything(authorizer: Any, principal: Any, kind: str, shown: Any) -> Any:
    return shown.message


class Everything:
    """A sight that hides nothing."""

    def __init__(self, *given: object) -> None:
        pass

    def through(self, kind: str) -> Any:
        return lambda shown: shown.message


class NoDoor(Doorkeeper):
    def address(self, request: Any) -> str:
        return "127.0.0.1"

    def visit(self, address: str, visitor: Any) -> None:
        pass


async def start(plane: ControlPlane, door: Doorkeeper, **given: Any) -> int:
    gateway = Gateway(
        services=servicers(plane),
        health=plane.health,
        registry=CollectorRegistry(),
        title="PWM",
        version="0",
        door=door,
        **given,
    )
    return await gateway.start("127.0.0.1", 0)


async def start_open(plane: ControlPlane, door: Doorkeeper) -> int:
    ann = Principal(user=plane.view.by_name("User", "ann"))

    async def authenticate(token: str | None, peer: str) -> Principal:
        raise AssertionError("everybody is recognized")

    return await start(
        plane,
        door,
        authenticate=authenticate,
        recognize=lambda *given: ann,
        authorize=lambda *given: lambda *given: None,
    )


def serve(pipe: Connection) -> None:
    """Tells the ports, then is told whether anything is to be hidden, until it is told None."""

    async def main() -> None:
        plane = filled()
        checked = await start(
            plane,
            counting(plane),
            authenticate=plane.authenticator.user,
            recognize=plane.authenticator.recognize,
            authorize=plane.authorizer.check_of,
        )
        pipe.send((checked, await start_open(plane, counting(plane)), await start_open(plane, NoDoor())))
        while (hides := await asyncio.get_running_loop().run_in_executor(None, pipe.recv)) is not None:
            resources.Sight = Sight if hides else Everything  # type: ignore[misc, assignment]
            resources.seen = seen if hides else everything
            pipe.send(None)

    uvloop.run(main())


class Switched(Server):
    """All three in one process; `load` meets the one that was chosen."""

    def __init__(self) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,))
        self._process.start()
        self.checked, self.unchecked, self.uncounted = self._pipe.recv()

    def choose(self, port: int) -> None:
        self.port = port
        self._pipe.send(port == self.checked)
        self._pipe.recv()


def measure(server: Switched, path: str, other: int, *, rounds: int, connections: int, seconds: float) -> list[Any]:
    """(rate with checks, rate of the other port) of each round."""

    def rate(port: int) -> float:
        server.choose(port)
        return uvloop.run(load(server, connections=connections, seconds=seconds, path=path))[1]

    measured = []
    for number in range(rounds + 1):
        # Each goes first in every second pair: whoever does is slower.
        first, second = (server.checked, other) if number % 2 else (other, server.checked)
        rates = {first: rate(first), second: rate(second)}
        measured.append((rates[server.checked], rates[other]))
    return measured[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--connections", type=int, default=16)
    options = parser.parse_args()
    counted = "GET of one, checked and counted"
    measured: dict[str, list[Any]] = {name: [] for name in (*PATHS, counted)}
    for _ in range(options.processes):
        server = Switched()
        try:
            for name in measured:
                path, seconds, one_of = PATHS.get(name, PATHS["GET of one"])
                measured[name] += measure(
                    server,
                    path,
                    server.uncounted if name == counted else server.unchecked,
                    rounds=options.rounds // one_of,
                    connections=options.connections,
                    seconds=seconds,
                )
        finally:
            server.stop()
    record = {}
    for name, pairs in measured.items():
        ratio: Ratio = summary(pairs)
        target = "(none)" if name == counted else f">= {TARGET}"
        print(ratio.line(name, target=target, unit=UNIT), flush=True)
        record[name] = ratio.record(target)
    save("access", record)


if __name__ == "__main__":
    main()
