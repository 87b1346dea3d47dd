"""How fast output gets from a printing container to a follower: the agent's spool against `docker logs -f`.

Each round starts two containers one after the other that print the same bytes, lines as a training job prints them:
one as Docker logs by default, followed by `docker logs -f`, and one as PWM's driver starts it, taken by a LogStore and
followed through it (what the relay then sends on). Both are timed from the start of the container to the last byte
at the follower, and both must have every byte. Taking a finished log and reading it again are timed on their own, for
they bound what the rest of the way could ever give.

    python bench/bench_logs_spool.py [--rounds 5] [--mb 200]
"""

import argparse
import asyncio
import hashlib
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import docker
import uvloop

from pwm.api.v1.agent_pb2 import ReadLogs
from pwm.images import ensure_busybox
from pwm.nodeagent.drivers import docker_spec
from pwm.nodeagent.drivers.driver import LogFormat, LogSource
from pwm.nodeagent.logs import LogStore

RESULTS = Path(__file__).parent / "results" / "logs_spool.json"
LINE = "step 000123 loss=0.12345 lr=3.0e-4 tokens/s=123456.7 gpu_mem=40312MiB epoch 3/10 batch 77/1000"
TARGET_RATIO = 2.5
MB = 10**6
# How long the agent's loop was away from other work, at most, while it took the output.
LAG_LOOK_S = 0.005


class Containers:
    def __init__(self, size: int) -> None:
        self.client = docker.from_env()
        self.image = ensure_busybox()
        self.root = Path(self.client.info()["DockerRootDir"])
        self.size = size
        self.digest = hashlib.sha256()
        text = (LINE + "\n").encode()
        block = text * 10_000
        for _ in range(size // len(block)):
            self.digest.update(block)
        self.digest.update(block[: size % len(block)])

    @asynccontextmanager
    async def printing(self, **options: Any) -> AsyncIterator[Any]:
        """A container that will print when it is started."""
        script = f"yes '{LINE}' | head -c {self.size}"
        container = await asyncio.to_thread(
            self.client.containers.create, self.image, ["sh", "-c", script], network_mode="none", **options
        )
        try:
            yield container
        finally:
            await asyncio.to_thread(container.remove, force=True)

    def check(self, digest: str, what: str) -> None:
        if digest != self.digest.hexdigest():
            raise SystemExit(f"{what} did not deliver what the container printed")


async def docker_logs(containers: Containers) -> float:
    """Seconds of `docker logs -f` of a container that prints meanwhile."""
    async with containers.printing() as container:
        began = time.perf_counter()
        await asyncio.to_thread(container.start)
        follower = await asyncio.create_subprocess_exec(
            "docker", "logs", "-f", container.id, stdout=subprocess.PIPE, limit=1 << 20
        )
        assert follower.stdout is not None
        digest = hashlib.sha256()
        while data := await follower.stdout.read(1 << 20):
            digest.update(data)
        await follower.wait()
        took = time.perf_counter() - began
    containers.check(digest.hexdigest(), "docker logs -f")
    return took


async def spool(containers: Containers, folder: Path, figures: dict[str, list[float]]) -> float:
    """Seconds of the same through the agent's spool."""
    config = docker.types.LogConfig(
        type=docker_spec.LOG_DRIVER,
        config={"max-size": docker_spec.LOG_MAX_SIZE, "max-file": docker_spec.LOG_MAX_FILES, "compress": "false"},
    )
    store = LogStore(folder)
    taking = asyncio.create_task(store.run())
    lag = asyncio.create_task(_worst_lag())
    try:
        async with containers.printing(log_config=config) as container:
            path = containers.root / "containers" / container.id / "local-logs" / "container.log"
            began, cpu = time.perf_counter(), time.process_time()
            await asyncio.to_thread(container.start)
            store.follow(container.id, LogSource(LogFormat.DOCKER_LOCAL, path))
            follower = asyncio.create_task(_read(store, container.id))
            await asyncio.to_thread(container.wait)
            await store.finish(container.id)
            digest = await follower
            took = time.perf_counter() - began
            figures["live_cpu_s"].append(time.process_time() - cpu)
            lag.cancel()
            figures["loop_lag_ms"].append(await lag * 1000)
            containers.check(digest, "the spool")
            began = time.perf_counter()
            count = 0
            async for chunk in store.read(ReadLogs(container_uid=container.id, tail=-1)):
                count += len(chunk.data)
            figures["read_mb_s"].append(count / MB / (time.perf_counter() - began))
            began = time.perf_counter()
            store.follow("again", LogSource(LogFormat.DOCKER_LOCAL, path))
            await store.finish("again")
            figures["take_mb_s"].append(count / MB / (time.perf_counter() - began))
            await store.forget([container.id, "again"])
    finally:
        taking.cancel()
        await asyncio.wait([taking])
        await store.close()
    return took


async def _read(store: LogStore, uid: str) -> str:
    digest = hashlib.sha256()
    async for chunk in store.read(ReadLogs(container_uid=uid, tail=-1, follow=True)):
        digest.update(chunk.data)
    return digest.hexdigest()


async def _worst_lag() -> float:
    worst = 0.0
    try:
        while True:
            asked = time.perf_counter()
            await asyncio.sleep(LAG_LOOK_S)
            worst = max(worst, time.perf_counter() - asked - LAG_LOOK_S)
    except asyncio.CancelledError:
        return worst


async def measure(rounds: int, size: int) -> dict[str, Any]:
    containers = await asyncio.to_thread(Containers, size)
    theirs: list[float] = []
    ours: list[float] = []
    figures: dict[str, list[float]] = {"take_mb_s": [], "read_mb_s": [], "live_cpu_s": [], "loop_lag_ms": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for which in ("docker", "spool") if number % 2 else ("spool", "docker"):
                if which == "docker":
                    theirs.append(await docker_logs(containers))
                else:
                    ours.append(await spool(containers, Path(folder), figures))
    ratios = sorted(their / our for their, our in zip(theirs, ours, strict=True))
    return {
        "bytes": size,
        "rounds": rounds,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "engine": containers.client.version()["Version"],
        "spool_mb_s": round(size / MB / statistics.median(ours), 1),
        "docker_logs_mb_s": round(size / MB / statistics.median(theirs), 1),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_spread": [round(ratios[0], 2), round(ratios[-1], 2)],
        "target_ratio": TARGET_RATIO,
        **{name: round(statistics.median(values), 1) for name, values in figures.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mb", type=int, default=200)
    options = parser.parse_args()
    result = uvloop.run(measure(options.rounds, options.mb * MB))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    low, high = result["ratio_spread"]
    print(
        f"spool, followed live {result['spool_mb_s']} MB/s, docker logs -f {result['docker_logs_mb_s']} MB/s: "
        f"{result['ratio']}x ({low}-{high}), target >= {TARGET_RATIO}x"
    )
    print(
        f"taken after the end {result['take_mb_s']} MB/s, read again {result['read_mb_s']} MB/s; live: "
        f"{result['live_cpu_s']} s of processor time, loop away for {result['loop_lag_ms']} ms at most"
    )


if __name__ == "__main__":
    main()
