"""How fast the event store appends, against bare puts through the same etcd client.

An append is a transaction that compares the stream's head and writes its events and a new head; a bare put
writes one event's bytes alone, so an append of one event writes two keys for the put's one. Rates and ratios
are of events; `keys_ratio` is of keys written. Each member of etcd is a process with fsync on. Runs alternate,
and neighbouring runs give one ratio, so that what else the machine does meets all alike.

`limit_ratio` is what a client that costs nothing would reach: the same transactions, made and serialised
beforehand, and no more of them on their way than the writers, who all wait for theirs, can fill. Where it is
below the target, as with one member on two cores shared with it (2.4 to 2.5), only less work for etcd would help.

    python bench/bench_store.py [--rounds 8] [--seconds 1.5] [--profile]
"""

import argparse
import asyncio
import cProfile
import itertools
import json
import os
import platform
import pstats
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc.aio
import uvloop

from pwm.controlplane.store.etcd import EtcdKV, txn_request
from pwm.controlplane.store.etcd_channels import CHANNEL_OPTIONS
from pwm.controlplane.store.eventstore import COMMIT_LIMIT_OPERATIONS, Commit, EventStore, StreamId, StreamWrite
from pwm.controlplane.store.groupcommit import IN_FLIGHT
from pwm.controlplane.store.kv import Compare, Delete, Put, Read, TxnResult
from pwm.controlplane.store.memory import MemoryKV
from pwm.etcd_process import EtcdProcess, free_port

RESULTS = Path(__file__).parent / "results" / "store.json"
EVENT = os.urandom(300)  # a container's report with its event around it
STATE = os.urandom(600)  # a container
# (writers, events of a commit) -> the ratio to reach
CASES = {(1, 1): 0.7, (64, 1): 3.0, (64, 8): 3.0}

_numbers = itertools.count()

# Does one operation of the writer again and again until the deadline; returns how often.
Writer = Callable[[int, float], Awaitable[int]]


def putting(kv: EtcdKV) -> Writer:
    async def write(writer: int, deadline: float) -> int:
        done = 0
        while time.perf_counter() < deadline:
            await kv.put(b"/bench/put/%d/%d" % (writer, next(_numbers)), EVENT)
            done += 1
        return done

    return write


def appending(store: EventStore, events: int) -> Writer:
    payload = (EVENT,) * events

    async def write(writer: int, deadline: float) -> int:
        stream = StreamId("Container", f"{writer}-{next(_numbers)}")
        version = revision = done = 0
        while time.perf_counter() < deadline:
            write = StreamWrite(stream, version, revision, payload, STATE)
            revision = await store.append(Commit(f"{next(_numbers):026}", (write,)))
            version += events
            done += events
        return done

    return write


class Recorder(MemoryKV):
    """Says yes to every transaction, and keeps how many commits are in it and its bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[int, bytes]] = []

    async def txn(
        self,
        compares: Sequence[Compare],
        then: Sequence[Put | Delete],
        otherwise: Sequence[Read] = (),
        *,
        timeout_s: float | None = None,
    ) -> TxnResult:
        # A commit of one stream has one compare.
        self.made.append((len(compares), txn_request(compares, then, otherwise).SerializeToString()))
        return TxnResult(True, len(self.made), [])


async def ready_made(*, writers: int, events: int, count: int) -> list[tuple[int, bytes]]:
    """Transactions of at least `count` new events, grouped as those of so many writers are."""
    recorder = Recorder()

    async def write(store: EventStore) -> None:
        for _ in range(count // (writers * events) + 1):
            stream = StreamId("Container", f"made-{next(_numbers)}")
            write = StreamWrite(stream, 0, 0, (EVENT,) * events, STATE)
            await store.append(Commit(f"{next(_numbers):026}", (write,)))

    async with EventStore(recorder) as store:
        await asyncio.gather(*(write(store) for _ in range(writers)))
    return recorder.made


async def rate_ready_made(address: str, *, writers: int, events: int, count: int, seconds: float) -> float:
    """Rate of events over `seconds`, or less if the `count` of them that are made do not last so long."""
    made = iter(await ready_made(writers=writers, events=events, count=count))
    filled = -(-writers * (events + 1) // COMMIT_LIMIT_OPERATIONS)
    async with grpc.aio.insecure_channel(address, CHANNEL_OPTIONS) as channel:
        await channel.channel_ready()
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/etcdserverpb.KV/Txn")

        async def send(_: int, deadline: float) -> int:
            done = 0
            for commits, request in made:
                await call(request)
                done += commits * events
                if time.perf_counter() > deadline:
                    break
            return done

        return await rate(send, writers=min(IN_FLIGHT, filled), seconds=seconds)


async def rate(write: Writer, *, writers: int, seconds: float) -> float:
    started = time.perf_counter()
    counts = await asyncio.gather(*(write(i, started + seconds) for i in range(writers)))
    return sum(counts) / (time.perf_counter() - started)


async def compare(address: list[str], *, writers: int, events: int, rounds: int, seconds: float) -> dict[str, Any]:
    async with EtcdKV(address) as kv, EventStore(kv) as store:
        puts, appends = putting(kv), appending(store, events)
        for write in (puts, appends):
            await rate(write, writers=writers, seconds=seconds / 2)
        pairs, limits = [], []
        for number in range(rounds):
            order = [puts, appends] if number % 2 == 0 else [appends, puts]
            rates = {write: await rate(write, writers=writers, seconds=seconds) for write in order}
            pairs.append((rates[puts], rates[appends]))
            enough = int(rates[puts] * seconds * (4 + events))
            limit = await rate_ready_made(address[0], writers=writers, events=events, count=enough, seconds=seconds)
            limits.append(limit / rates[puts])
    ratios = sorted(append / put for put, append in pairs)
    return {
        "ratio": statistics.median(ratios),
        "ratio_spread": [ratios[0], ratios[-1]],
        "limit_ratio": statistics.median(limits),
        "keys_ratio": statistics.median(ratios) * (events + 1) / events,
        "events_per_s": statistics.median(append for _, append in pairs),
        "puts_per_s": statistics.median(put for put, _ in pairs),
        "rounds": rounds,
    }


async def profile(address: list[str], *, seconds: float) -> None:
    """Where this process spends its time while 64 writers append."""
    async with EtcdKV(address) as kv, EventStore(kv) as store:
        profiler = cProfile.Profile()
        profiler.enable()
        await rate(appending(store, 1), writers=64, seconds=seconds)
        profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


def cluster(directory: Path, count: int) -> list[EtcdProcess]:
    ports = {f"m{i}": (free_port(), free_port()) for i in range(count)}
    peers = {name: f"http://127.0.0.1:{peer}" for name, (_, peer) in ports.items()}
    return [
        EtcdProcess(directory / name, name=name, client_port=client, peer_port=peer, cluster=peers)
        for name, (client, peer) in ports.items()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    for members in (1, 3):
        with tempfile.TemporaryDirectory(prefix="pwm-bench-") as directory:
            started = cluster(Path(directory), members)
            try:
                for member in started:
                    member.start(wait=False)
                for member in started:
                    member.wait_until_healthy()
                addresses = [member.address for member in started]
                if options.profile:
                    uvloop.run(profile(addresses, seconds=options.seconds))
                    continue
                for (writers, events), target in CASES.items():
                    result = uvloop.run(
                        compare(
                            addresses, writers=writers, events=events, rounds=options.rounds, seconds=options.seconds
                        )
                    )
                    name = f"{writers} writers, {events} events a commit, {members} members"
                    results[name] = {**result, "target": target}
                    show(name, results[name])
            finally:
                for member in started:
                    member.stop()
    if options.profile:
        return 0
    RESULTS.parent.mkdir(exist_ok=True)
    machine = {"python": platform.python_version(), "cores": os.cpu_count()}
    RESULTS.write_text(json.dumps({"machine": machine, "append": results}, indent=2) + "\n")
    return 0


def show(name: str, result: dict[str, Any]) -> None:
    low, high = result["ratio_spread"]
    missed = "" if result["ratio"] >= result["target"] else "  NOT REACHED"
    print(
        f"{name:43}: {result['events_per_s']:7,.0f} events/s against {result['puts_per_s']:7,.0f} puts/s: "
        f"{result['ratio']:.2f}x ({low:.2f}..{high:.2f}), of keys {result['keys_ratio']:.2f}x; "
        f"to reach {result['target']}x, with a client that costs nothing {result['limit_ratio']:.2f}x{missed}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
