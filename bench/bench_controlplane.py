"""What the control plane's core costs: folding the log, starting from heads, taking reports.

- fold: a million events folded into states, against parsing the same bytes alone (to reach: 2x its time);
- start: a view loaded from 100,000 streams on a real etcd, against ranging the same keys with the same
  client (2x), and the memory a stream takes (6 KiB);
- reports: reports through one agent session over real gRPC into the dispatcher (200,000 a second, batched).

    python bench/bench_controlplane.py [--events 1000000] [--streams 100000] [--pairs 5]
"""

import argparse
import asyncio
import gc
import sys
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import grpc
import uvloop

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.paired import Ratio, paired, save, summary
from pwm.api.v1 import agent_pb2_grpc
from pwm.api.v1.agent_pb2 import Hello, Report, Reports, SessionRequest
from pwm.api.v1.common_pb2 import Actor
from pwm.api.v1.events_pb2 import ContainerPlaced, ContainerReported, Event
from pwm.api.v1.node_pb2 import Inventory
from pwm.api.v1.store_pb2 import Head
from pwm.api.v1.workload_pb2 import ContainerSpec, ContainerStatus
from pwm.controlplane.app import GRPC_OPTIONS
from pwm.controlplane.clock import Clock
from pwm.controlplane.commands import timestamp
from pwm.controlplane.core.evolve import fold_all
from pwm.controlplane.core.nodes import DEFAULT_TIMES
from pwm.controlplane.dispatcher.admittance import Admittance
from pwm.controlplane.dispatcher.dispatcher import Dispatcher
from pwm.controlplane.dispatcher.reports import ReportIntake
from pwm.controlplane.follower import Follower
from pwm.controlplane.store.commits import Guard, StreamId
from pwm.controlplane.store.etcd import EtcdKV
from pwm.controlplane.store.eventstore import EventStore
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.kv import Put
from pwm.controlplane.view import View
from pwm.etcd_process import EtcdProcess, free_port

KEYS = Keys(b"/bench/")
GIB = 1 << 30
PUTS_PER_TXN = 100
REPORTS_PER_MESSAGE = 200


def life_of(number: int) -> list[Event]:
    """The six events of an ordinary container."""
    uid, now = f"01m81keex0zvm4w9g347dgzmfr.{number}.1", 1_795_000_000_000 + number
    spec = ContainerSpec(
        workload_uid="01m81keex0zvm4w9g347dgzmfr", workload="train", replica=number, attempt=1,
        node=f"gpu{number % 500}",
        driver="pwm.docker", image="pytorch/pytorch:2.4", cmd=["python", "main.py", "--seed", str(number)],
        env={"SEED": str(number), "DATA": "/data"}, hostname="train", stop_grace_ms=10_000, generation=1,
        gpu_uuids=[f"GPU-{number:08x}-0000-4000-8000-{i:012x}" for i in range(2)],
    )  # fmt: skip
    spec.resources.cpu_millis, spec.resources.memory_bytes, spec.resources.gpus = 8000, 32 * GIB, 2
    reports = [
        ContainerReported(phase=ContainerStatus.PULLING),
        ContainerReported(phase=ContainerStatus.CREATING),
        ContainerReported(phase=ContainerStatus.RUNNING, runtime_id="3b59472b7383" * 5, started_at=timestamp(now)),
        ContainerReported(phase=ContainerStatus.RUNNING, pid=4242),
        ContainerReported(phase=ContainerStatus.EXITED, exit_code=0, finished_at=timestamp(now)),
    ]
    payloads: list[dict[str, Any]] = [
        {"container_placed": ContainerPlaced(spec=spec)},
        *({"container_reported": report} for report in reports),
    ]
    return [
        Event(
            kind="Container", uid=uid, version=version, name=f"train.{number}.1", group="vision", time=timestamp(now),
            actor=Actor(type=Actor.NODE, name=spec.node), **payload,
        )
        for version, payload in enumerate(payloads, start=1)
    ]  # fmt: skip


def bench_fold(events: int, pairs: int) -> Ratio:
    lives = [[e.SerializeToString() for e in life_of(n)] for n in range(2000)]
    rounds = max(1, events // (len(lives) * len(lives[0])))
    parse = Event.FromString

    def folded() -> float:
        started = time.perf_counter()
        for _ in range(rounds):
            for life in lives:
                fold_all(map(parse, life))
        return time.perf_counter() - started

    def parsed() -> float:
        started = time.perf_counter()
        for _ in range(rounds):
            for life in lives:
                for data in life:
                    parse(data)
        return time.perf_counter() - started

    return paired(folded, parsed, pairs=pairs)


async def bench_start(streams: int, pairs: int) -> tuple[Ratio, float]:
    with tempfile.TemporaryDirectory() as scratch:
        etcd = EtcdProcess(Path(scratch), client_port=free_port(), peer_port=free_port(), unsafe_no_fsync=True)
        etcd.start()
        try:
            async with EtcdKV([etcd.address]) as kv:
                await fill(kv, streams)
                measured, memory = [], []
                for number in range(pairs + 1):
                    ranged = await range_keys(kv)
                    started, used = await start_view(kv, streams)
                    if number:
                        measured.append((started, ranged))
                        memory.append(used)
                return summary(measured), min(memory) / streams
        finally:
            etcd.stop()


async def fill(kv: EtcdKV, streams: int) -> None:
    puts = []
    for number in range(streams):
        life = life_of(number)
        state = fold_all(life)
        assert state is not None
        head = Head(version=len(life), state=state.SerializeToString(), commit_id=b"01m81keex0zvm4w9g347dgzmfr")
        puts.append(Put(KEYS.head(StreamId("Container", life[0].uid)), head.SerializeToString()))
    for first in range(0, len(puts), PUTS_PER_TXN):
        await kv.txn([], puts[first : first + PUTS_PER_TXN])


async def range_keys(kv: EtcdKV) -> float:
    started = time.perf_counter()
    count = 0
    async for page in kv.pages(KEYS.all_heads):
        count += len(page.kvs)
    assert count
    return time.perf_counter() - started


async def start_view(kv: EtcdKV, streams: int) -> tuple[float, int]:
    gc.collect()
    before = resident_bytes()
    view = View()
    async with EventStore(kv, keys=KEYS) as store:
        started = time.perf_counter()
        follower = Follower(store=store, view=view, clock=Clock(), on_loaded=lambda: None)
        following = asyncio.create_task(follower.run())
        await view.wait_for(0)
        took = time.perf_counter() - started
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    assert view.streams == streams
    gc.collect()
    return took, resident_bytes() - before


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def bench_reports(seconds: float) -> float:
    """Reports a second through one session, from the agent's socket to the dispatcher's intake."""
    taken = 0

    class Counting(ReportIntake):
        def offer(self, reports: Any) -> None:
            nonlocal taken
            super().offer(reports)
            taken += len(reports)

        async def run(self) -> None:
            while True:  # the log is another benchmark: drop what was taken in
                await asyncio.sleep(0.05)
                self._pending.clear()

    from pwm.controlplane.dispatcher import dispatcher as module

    module.ReportIntake = Counting  # type: ignore[misc]
    view = View()
    view.loaded(1)
    dispatcher = Dispatcher(
        replica="r", view=view, commands=_NoCommands(), clock=Clock(), presence=_NoPresence(),  # type: ignore[arg-type]
        admittance=Admittance(view=view, clock=Clock(), authenticate=_anybody, node_revision=_no_revision),
        times=DEFAULT_TIMES,
    )  # fmt: skip
    server = grpc.aio.server(options=GRPC_OPTIONS)
    agent_pb2_grpc.add_AgentServiceServicer_to_server(dispatcher, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    reports = Reports(
        reports=[
            Report(
                sequence=n, container_uid=f"01m81keex0zvm4w9g347dgzmfr.{n}.1", attempt=1, time=timestamp(n),
                reported=ContainerReported(phase=ContainerStatus.RUNNING, started_at=timestamp(n)),
            )
            for n in range(REPORTS_PER_MESSAGE)
        ]
    )  # fmt: skip
    message = SessionRequest(reports=reports)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = agent_pb2_grpc.AgentServiceStub(channel).Session(metadata=(("authorization", "Bearer x"),))
        await call.write(SessionRequest(hello=Hello(node="n1", inventory=Inventory())))
        await call.read()
        await call.read()
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            await call.write(message)
        took = time.perf_counter() - started
        rate = taken / took
        call.cancel()
    await server.stop(0)
    return rate


class _NoCommands:
    async def run(self, decide: Any, **_: Any) -> None:
        decide()


class _NoPresence:
    async def announce(self, node: str) -> Guard:
        return Guard(b"k", mod_revision=1)

    async def withdraw(self, node: str, guard: Guard, *, silent_ms: int) -> None:
        return

    async def standing(self, nodes: Collection[str]) -> Collection[str]:
        return nodes


async def _anybody(token: str) -> str:
    return ""


async def _no_revision(node: str) -> int:
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--streams", type=int, default=100_000)
    parser.add_argument("--pairs", type=int, default=5)
    given = parser.parse_args()
    folding = bench_fold(given.events, given.pairs)
    print(folding.line(f"fold of {given.events:,} events / parsing them", target="<= 2", unit="s"), flush=True)
    starting, memory = uvloop.run(bench_start(given.streams, given.pairs))
    print(starting.line(f"start with {given.streams:,} streams / ranging them", target="<= 2", unit="s"), flush=True)
    print(f"{'memory of a stream':<52} {memory / 1024:6.2f} KiB   to reach <= 6", flush=True)
    rates = [uvloop.run(bench_reports(2.0)) for _ in range(given.pairs)]
    print(f"{'reports through one session':<52} {min(rates):,.0f} to {max(rates):,.0f} a second   to reach >= 200,000")
    save(
        "controlplane",
        {
            "fold": folding.record("<= 2"),
            "start": starting.record("<= 2"),
            "memory_kib_per_stream": round(memory / 1024, 2),
            "reports_per_s": [round(rate) for rate in rates],
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
