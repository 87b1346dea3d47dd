"""Five thousand agents on three controllers, and fifty clients that watch.

- agents: 5,000 agents with heartbeats, and arrays of short containers that make 500 reports a second, for ten
  minutes: CPU of the controllers together (to reach: one core), memory of each (400 MiB), and nodes that became
  NOT_READY by mistake (none);
- watch: from a change until 50 clients, watching through all three controllers, have all been told, against a put of
  as many bytes until 50 clients that watch etcd itself have been (p99: 2x). Beside it, the same with all 50 watches on
  one connection to etcd, as only a single client can have them.

    python bench/bench_scale.py [--agents 5000] [--minutes 10] [--changes 300] [--only watch,agents]
"""

import argparse
import asyncio
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
import orjson

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.paired import save, saved
from pwm.controlplane.store.etcd import EtcdKV
from tests.faults.cluster import until
from tests.pwm_cluster import PwmCluster

WATCHERS = 50
REPORTS_PER_S = 500
REPORTS_PER_CONTAINER = 3
ARRAY = 250
JOIN_LIMIT_S = 300.0
# Of a write, each of which may take the store's time limit of 3 s.
ATTEMPTS = 10
TICKS = os.sysconf("SC_CLK_TCK")


# ---- watching


async def watch(cluster: PwmCluster, changes: int) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {cluster.cli_environment['PWM_TOKEN']}"}
    servers = [f"http://{replica.http}" for replica in cluster.replicas]
    took: dict[str, list[float]] = {"ours": [], "etcd": [], "etcd_one_connection": []}
    connector = aiohttp.TCPConnector(limit=0)
    async with AsyncExitStack() as opened:
        session = await opened.enter_async_context(aiohttp.ClientSession(headers=headers, connector=connector))
        kv, *clients = [await opened.enter_async_context(EtcdKV([cluster.etcd.address])) for _ in range(1 + WATCHERS)]
        told, alone, shared = Told(), Told(), Told()
        tasks = [asyncio.ensure_future(_watch_pwm(session, servers[n % 3], told)) for n in range(WATCHERS)]
        revision = (await kv.range(b"/bench/x")).revision
        tasks += [asyncio.ensure_future(_watch_etcd(client, b"/bench/x", revision, alone)) for client in clients]
        tasks += [asyncio.ensure_future(_watch_etcd(kv, b"/bench/y", revision, shared)) for _ in range(WATCHERS)]
        await _apply(session, servers[0], "watched", 0)
        # As many bytes as a client of ours is told.
        filling = " " * len(await (await session.get(f"{servers[0]}/v1/resources/workload/watched")).read())
        for number in range(1, changes + 1):
            for key, name, watchers in ((b"/bench/x", "etcd", alone), (b"/bench/y", "etcd_one_connection", shared)):
                began = time.perf_counter()
                watchers.expect(str(number))
                await kv.put(key, f"{number}{filling}".encode())
                took[name].append(await watchers.all_told() - began)
            began = time.perf_counter()
            told.expect(str(number))
            await _apply(session, servers[number % 3], "watched", number)
            took["ours"].append(await told.all_told() - began)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    figures = {
        f"{side}_{name}_s": _share(values, share)
        for side, values in took.items()
        for name, share in (("p50", 0.5), ("p99", 0.99))
    }
    ratios = {
        f"{name}_ratio{side}": figures[f"ours_{name}_s"] / figures[f"etcd{side}_{name}_s"]
        for name in ("p50", "p99")
        for side in ("", "_one_connection")
    }
    return {**figures, **ratios}


class Told:
    """Counts the watchers that have been told of the expected change."""

    def __init__(self) -> None:
        self._expected = ""
        self._count = 0
        self._all = asyncio.Event()

    def expect(self, value: str) -> None:
        self._expected, self._count = value, 0
        self._all.clear()

    def hear(self, value: str) -> None:
        if value == self._expected:
            self._count += 1
            if self._count == WATCHERS:
                self._all.set()

    async def all_told(self) -> float:
        async with asyncio.timeout(30):
            await self._all.wait()
        return time.perf_counter()


async def _watch_pwm(session: aiohttp.ClientSession, server: str, told: Told) -> None:
    timeout = aiohttp.ClientTimeout(total=None)
    async with session.get(f"{server}/v1/watch/workload", timeout=timeout) as response:
        async for line in response.content:
            resource = orjson.loads(line).get("result", {}).get("resource") or {}
            told.hear(resource.get("metadata", {}).get("labels", {}).get("number", ""))


async def _watch_etcd(kv: EtcdKV, key: bytes, revision: int, told: Told) -> None:
    async for batch in kv.watch(key, start_revision=revision + 1):
        for event in batch.events:
            told.hear(event.kv.value.decode().rstrip())


async def _apply(session: aiohttp.ClientSession, server: str, name: str, number: int, count: int = 0) -> None:
    document = {
        "apiVersion": "v1", "kind": "Workload", "metadata": {"name": name, "labels": {"number": str(number)}},
        "spec": {"image": "sim", "replica": {"count": count}, "selectors": {"cpu": {"count": "100m"}},
                 "config": {"cmd": ["run"], "memory": "64MiB", "affinity": "Distribute"}},
    }  # fmt: skip
    headers = {"Idempotency-Key": secrets.token_hex(8)}
    for attempt in range(ATTEMPTS):
        async with session.post(f"{server}/v1/apply", json={"documents": [document]}, headers=headers) as response:
            answer = await response.json()
        if response.status != HTTPStatus.SERVICE_UNAVAILABLE:
            break
        # As every client of PWM does. How often is printed: a healthy cluster has no need of it.
        print(f"attempt {attempt + 1} at {name}: {answer['message']}", file=sys.stderr, flush=True)
    assert response.ok, answer
    assert answer["results"][0]["outcome"] != "REFUSED", answer


# ---- agents


async def agents(cluster: PwmCluster, count: int, minutes: float) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {cluster.cli_environment['PWM_TOKEN']}"}
    servers = [f"http://{replica.http}" for replica in cluster.replicas]
    generator = await asyncio.create_subprocess_exec(
        sys.executable, str(Path(__file__).parent / "agents.py"), f"--count={count}",
        f"--controllers={','.join(replica.agents for replica in cluster.replicas)}",
        f"--token-file={cluster.directory}/node-token", stdout=subprocess.PIPE,
    )  # fmt: skip
    latest: dict[str, int] = {}
    reading = asyncio.ensure_future(_read_counts(generator, latest))
    try:
        await until(_is(lambda: latest.get("connected", 0) >= count), "all agents are here", limit_s=JOIN_LIMIT_S)
        async with aiohttp.ClientSession(headers=headers) as session:
            await asyncio.sleep(10.0)
            return await _measure(cluster, session, servers, latest, minutes)
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        with suppress(ProcessLookupError):
            generator.kill()
        await generator.wait()


def _is(condition: Callable[[], bool]) -> Callable[[], Awaitable[bool]]:
    async def asked() -> bool:
        return condition()

    return asked


async def _measure(
    cluster: PwmCluster, session: aiohttp.ClientSession, servers: list[str], latest: dict[str, int], minutes: float
) -> dict[str, Any]:
    pids = [cluster.pid(replica.part) for replica in cluster.replicas]
    before, began = dict(latest), time.monotonic()
    cpu_before = [_cpu_s(pid) for pid in pids]
    etcd_before = _cpu_s(cluster.etcd.pid)
    not_ready: set[str] = set()
    number, memory = 0, [0] * len(pids)
    pause_s = ARRAY * REPORTS_PER_CONTAINER / REPORTS_PER_S
    while time.monotonic() - began < minutes * 60:
        number += 1
        due = began + number * pause_s
        await _apply(session, servers[number % 3], f"array-{number}", number, count=ARRAY)
        if number > 20:
            async with session.delete(f"{servers[number % 3]}/v1/resources/workload/array-{number - 20}") as response:
                await response.read()
        if number % 10 == 0:
            not_ready |= await _not_ready(session, servers[number % 3])
            memory = [max(most, _resident_mib(pid)) for most, pid in zip(memory, pids, strict=True)]
        await asyncio.sleep(max(0.0, due - time.monotonic()))
    took = time.monotonic() - began
    cpu = [(after - before) / took for after, before in zip((_cpu_s(p) for p in pids), cpu_before, strict=True)]
    return {
        "agents": latest["connected"], "minutes": round(took / 60, 2),
        "heartbeats_per_s": round((latest["heartbeats"] - before["heartbeats"]) / took),
        "reports_per_s": round((latest["reports"] - before["reports"]) / took),
        "controllers_cores": round(sum(cpu), 3), "controller_cores_each": [round(c, 3) for c in cpu],
        "etcd_cores": round((_cpu_s(cluster.etcd.pid) - etcd_before) / took, 3),
        "memory_mib_each": memory, "not_ready": sorted(not_ready),
        "broken_sessions": latest["broken"] - before["broken"],
    }  # fmt: skip


async def _read_counts(generator: asyncio.subprocess.Process, latest: dict[str, int]) -> None:
    assert generator.stdout is not None
    async for line in generator.stdout:
        latest.update(json.loads(line))


async def _not_ready(session: aiohttp.ClientSession, server: str) -> set[str]:
    async with session.get(f"{server}/v1/resources/node") as response:
        answer = await response.json()
    nodes = [item.get("node") or item for item in answer["items"]]
    return {n["metadata"]["name"] for n in nodes if n["status"].get("phase") != "READY"}


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _resident_mib(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 >> 20


def _share(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agents", type=int, default=5000)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--changes", type=int, default=300)
    parser.add_argument("--only", default="watch,agents")
    given = parser.parse_args()
    # What is not measured now stays as it was.
    results = saved("scale")
    with tempfile.TemporaryDirectory(prefix="pwm-bench-") as scratch:
        cluster = PwmCluster(Path(scratch), "unix:///var/run/docker.sock", controllers=3, fsync=True)
        try:
            cluster.etcd.start()
            for replica in cluster.replicas:
                cluster.start_controller(replica.part)
            if "watch" in given.only:
                results["watch"] = asyncio.run(watch(cluster, given.changes))
                print(json.dumps(results["watch"], indent=2), flush=True)
            if "agents" in given.only:
                results["agents"] = asyncio.run(agents(cluster, given.agents, given.minutes))
                print(json.dumps(results["agents"], indent=2), flush=True)
        finally:
            cluster.close()
    save("scale", results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
