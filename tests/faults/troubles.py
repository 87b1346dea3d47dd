"""More faults: of nodes, disks, clocks, etcd's own, and of clients that behave badly."""

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import docker

from pwm.api.v1.node_pb2 import NodeStatus
from pwm.api.v1.workload_pb2 import ContainerStatus
from pwm.controlplane.store.etcd import EtcdKV
from tests.faults.cluster import FAKE_CLOCK, until
from tests.faults.judge import Seen
from tests.faults.network import Host
from tests.faults.scenarios import LIMIT_S, Figures, Scene, writes_go_on

DAY_S = 86_400
JUNK = b"/faults/junk"
JUNK_BYTES = 1 << 20
SPACE_LIMIT_S = 180.0
WATCHERS = 10_000
WATCHER_LIMIT_S = 120.0


# ---- nodes


async def node_lost(scene: Scene) -> Figures:
    """A node is cut off for good: seen, given up, replaced by a successor that never runs beside the old one."""
    name = await scene.begin_workload(
        command=["sleep", "100000"], cpu="100m", onNodeLost="reschedule", replica={"count": 1}
    )
    await scene.judge.running_after(name, 0.0, limit_s=LIMIT_S)
    node = scene.cluster.host_of(_placed_on(scene, name, attempt=1))
    began_s = scene.now_s()
    scene.cluster.network.isolate(node)
    figures = {
        "not_ready": await scene.judge.event_after(lambda s: _phase_of(s, node) == NodeStatus.NOT_READY, began_s),
        "lost": await scene.judge.event_after(lambda s: _phase_of(s, node) == NodeStatus.LOST, began_s),
        "successor_placed": await scene.judge.event_after(
            lambda s: s.event.name == f"{name}.0.2" and s.event.HasField("container_placed"), began_s
        ),
    }
    await scene.judge.event_after(
        lambda s: s.event.name == f"{name}.0.2" and s.event.container_reported.phase == ContainerStatus.RUNNING, began_s
    )
    old, new = (
        await asyncio.to_thread(_lives, scene, f"{name}.0.1"),
        await asyncio.to_thread(_lives, scene, f"{name}.0.2"),
    )
    assert old["FinishedAt"] < new["StartedAt"], (
        f"the lost container ended at {old['FinishedAt']}, its successor began before"
    )
    scene.cluster.network.mend()
    back_s = scene.now_s()
    figures["clean_again"] = await scene.judge.event_after(
        lambda s: (
            s.event.name == f"{name}.0.1"
            and s.event.container_reported.phase in (ContainerStatus.EXITED, ContainerStatus.FAILED)
        ),
        back_s,
    )
    await scene.remove_workload(name)
    await scene.settle()
    return figures


async def most_nodes_cut_off(scene: Scene) -> Figures:
    """More than half of the nodes fall silent at once: the network is the suspect, nothing is rescheduled."""
    cut = scene.rng.sample(scene.cluster.nodes, len(scene.cluster.nodes) // 2 + 1)
    seen = len(scene.judge.events)
    for node in cut:
        scene.cluster.network.isolate(node)
    await asyncio.sleep(scene.cluster.lost_after_s + 3.0)
    lost = [s for s in scene.judge.events[seen:] if s.event.node_phase_changed.phase == NodeStatus.LOST]
    assert not lost, f"{[s.event.name for s in lost]} were given up although most nodes were silent"
    scene.cluster.network.mend()
    began_s = scene.now_s()
    await scene.settle()
    return {"back": scene.now_s() - began_s}


async def container_removed(scene: Scene) -> Figures:
    """A container is removed behind PWM's back: it is said, and the replica gets another."""
    name = await scene.begin_workload(command=["sleep", "100000"], cpu="100m", restartPolicy="Always")
    await scene.judge.running_after(name, 0.0, limit_s=LIMIT_S)
    began_s = scene.now_s()
    await asyncio.to_thread(_remove, scene, f"{name}.0.1")
    figures = {
        "noticed": await scene.judge.event_after(
            lambda s: s.event.name == f"{name}.0.1" and s.event.container_reported.phase == ContainerStatus.FAILED,
            began_s,
        ),
        "successor_runs": await scene.judge.event_after(
            lambda s: s.event.name == f"{name}.0.2" and s.event.container_reported.phase == ContainerStatus.RUNNING,
            began_s,
        ),
    }
    await scene.remove_workload(name)
    await scene.settle()
    return figures


async def docker_hung(scene: Scene) -> Figures:
    """SIGSTOP of dockerd for a while: the nodes say so, nothing else changes."""
    scene.cluster.docker.pause()
    try:
        await asyncio.sleep(8.0)
    finally:
        scene.cluster.docker.resume()
    began_s = scene.now_s()
    await scene.settle()
    return {"back": scene.now_s() - began_s}


async def disk_full(scene: Scene) -> Figures:
    """A node's disk is full where its agent keeps its journal and logs, while containers start and print."""
    node = scene.rng.choice(scene.cluster.nodes)
    state = scene.cluster.directory / node.name
    scene.cluster.kill(node.name)
    with _small_disk(state, megabytes=16):
        scene.cluster.start_part(node.name)
        await until(lambda: scene.cluster.node_is(node.name, "READY"), f"{node.name} is back", limit_s=LIMIT_S)
        filler = state / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(b"x" * 65536)
                file.flush()
        names = [await scene.begin_workload(command=["sh", "-c", "seq 1 20000"], cpu="50m") for _ in range(3)]
        await asyncio.sleep(3.0)
        filler.unlink()
        began_s = scene.now_s()
        for name in names:
            await scene.judge.ended_after(name, 0.0, limit_s=LIMIT_S)
        figures = {"all_ended": scene.now_s() - began_s}
        scene.cluster.kill(node.name)
    scene.cluster.start_part(node.name)
    await scene.settle()
    return figures


# ---- etcd


async def slow_fsync(scene: Scene) -> Figures:
    """Every fsync of etcd's leader takes 50 ms longer, for some seconds."""
    member = await scene.etcd_leader()
    began_s = scene.now_s()
    with _inject(scene.cluster.processes[member.name].pid, "fdatasync:delay_exit=50000"):
        await asyncio.sleep(5.0)
    figures = {"ledger_gap": scene.ledger.books.gap_s(began_s, scene.now_s())}
    await scene.settle()
    return figures


async def fsync_fails(scene: Scene) -> Figures:
    """The disk of one etcd member says EIO: the member ends itself, and is started again."""
    member = scene.rng.choice(scene.cluster.etcds)
    began_s = scene.now_s()
    process = scene.cluster.processes[member.name]
    with _inject(process.pid, "fdatasync:error=EIO"):
        await until(_ended(process), f"{member.name} gives up", limit_s=LIMIT_S)
    figures = {"ledger_gap": scene.ledger.books.gap_s(began_s, scene.now_s())}
    await scene.settle()
    return figures


async def compacted_at_the_head(scene: Scene) -> Figures:
    """History is compacted up to now while a controller is frozen: it has to build its view anew."""
    frozen = scene.rng.choice(scene.cluster.controllers)
    scene.cluster.freeze(frozen.name)
    await asyncio.sleep(1.0)
    # What the judge has not seen yet must not go.
    now = scene.judge.revision
    async with EtcdKV(scene.cluster.etcd_addresses) as kv:
        await kv.compact(now)
    scene.cluster.thaw(frozen.name)
    began_s = scene.now_s()
    await scene.settle()
    return {"back": scene.now_s() - began_s}


async def space_used_up(scene: Scene) -> Figures:
    """etcd is filled to its quota and the leading controller killed: no lease can be granted, nobody can lead."""
    async with EtcdKV(scene.cluster.etcd_addresses) as kv:
        with contextlib.suppress(Exception):
            while True:
                await kv.put(JUNK, os.urandom(JUNK_BYTES))
    full_s = scene.now_s()
    scene.cluster.kill(scene.leader().name)
    await writes_go_on(scene, full_s, limit_s=SPACE_LIMIT_S)
    figures = {"writes_back": scene.now_s() - full_s}
    await scene.settle()
    return figures


# ---- clocks


async def clock_jumps(scene: Scene) -> Figures:
    """The wall clock of the leading controller jumps by three days, there and back."""
    days = scene.rng.choice([-3, 3])
    leader, began_s = scene.leader(), scene.now_s()
    scene.cluster.set_clock(leader, days * DAY_S)
    name = await scene.begin_workload()
    figures = {"placed": await scene.judge.placed_after(name, began_s, limit_s=LIMIT_S)}
    await asyncio.sleep(2.0)
    scene.cluster.set_clock(leader, 0)
    await scene.settle()
    return figures


# ---- clients


async def many_watchers(scene: Scene) -> Figures:
    """10,000 watching clients, some of which never read: how long until the others have all been told."""
    name = "watched"
    await scene.ledger.apply_until_acknowledged(name, replica={"count": 0})
    told: list[float] = []
    connector = aiohttp.TCPConnector(limit=0)
    headers = {"Authorization": f"Bearer {scene.cluster.token}"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        ready = asyncio.Semaphore(0)

        async def watch(number: int) -> None:
            server = scene.cluster.servers[number % 3]
            url, timeout = f"{server}/v1/watch/workload?names={name}", aiohttp.ClientTimeout(total=None)
            async with session.get(url, timeout=timeout) as response:
                ready.release()
                if number % 100 == 0:
                    await asyncio.sleep(WATCHER_LIMIT_S * 2)
                async for line in response.content:
                    if b'"marked-' in line:
                        told.append(scene.now_s())
                        return

        tasks = [asyncio.ensure_future(watch(number)) for number in range(WATCHERS)]
        for _ in tasks:
            await ready.acquire()
        await asyncio.sleep(2.0)
        began_s = scene.now_s()
        await scene.ledger.apply_until_acknowledged(
            name, replica={"count": 0}, labels={"mark": f"marked-{began_s:.3f}"}
        )
        wanted = WATCHERS - len(range(0, WATCHERS, 100))

        async def all_told() -> bool:
            return len(told) >= wanted

        await until(all_told, "all watchers that read were told", limit_s=WATCHER_LIMIT_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    times = sorted(t - began_s for t in told)
    await scene.settle()
    return {"p99": times[int(len(times) * 0.99)], "all": times[-1]}


# ----


def _placed_on(scene: Scene, name: str, *, attempt: int) -> str:
    wanted = f"{name}.0.{attempt}"
    return next(
        s.event.container_placed.spec.node
        for s in scene.judge.events
        if s.event.name == wanted and s.event.HasField("container_placed")
    )


def _phase_of(seen: Seen, node: Host) -> int:
    return seen.event.node_phase_changed.phase if seen.event.name == node.name else 0


def _lives(scene: Scene, container: str) -> dict[str, str]:
    """StartedAt and FinishedAt of a container, as Docker says; they sort as text."""
    client = docker.DockerClient(base_url=scene.cluster.docker.host, version="auto", timeout=60)
    try:
        state = client.containers.get(f"pwm.users.{container}").attrs["State"]
    except docker.errors.NotFound:
        return {"StartedAt": "", "FinishedAt": ""}  # removed already: it ended before
    finally:
        client.close()
    for value in (state["StartedAt"], state["FinishedAt"]):
        datetime.fromisoformat(value[:19])
    return {key: state[key] for key in ("StartedAt", "FinishedAt")}


def _remove(scene: Scene, container: str) -> None:
    client = docker.DockerClient(base_url=scene.cluster.docker.host, version="auto", timeout=60)
    try:
        client.containers.get(f"pwm.users.{container}").remove(force=True)
    finally:
        client.close()


def _ended(process: "subprocess.Popen[bytes]") -> Any:
    async def ended() -> bool:
        return process.poll() is not None

    return ended


@contextlib.contextmanager
def _inject(pid: int, what: str) -> Iterator[None]:
    """System calls of a process are slowed down or failed while the block lasts."""
    tracer = subprocess.Popen(
        ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={what.partition(':')[0]}", "-e", f"inject={what}",
         "-p", str(pid)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
    finally:
        tracer.terminate()
        tracer.wait()


@contextlib.contextmanager
def _small_disk(directory: Path, *, megabytes: int) -> Iterator[None]:
    """The directory lies on a disk of its own of this size; afterwards it is as it was, with what has changed."""
    kept = directory.with_name(f"{directory.name}.kept")
    shutil.copytree(directory, kept)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(directory)], check=True)
    try:
        shutil.copytree(kept, directory, dirs_exist_ok=True)
        yield
        shutil.rmtree(kept)
        shutil.copytree(directory, kept)
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)
        shutil.copytree(kept, directory, dirs_exist_ok=True)
        shutil.rmtree(kept)


def why_not(name: str) -> str | None:
    """Why a scenario cannot run on this machine; None when it can."""
    if name in ("slow_fsync", "fsync_fails") and shutil.which("strace") is None:
        return "strace is not installed"
    if name == "clock_jumps" and FAKE_CLOCK is None:
        return "faketime is not installed"
    return None
