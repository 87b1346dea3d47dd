"""From `pwm apply` to RUNNING, against `docker run -d`, Docker Swarm and the bare Docker API.

- one: `pwm apply` of a file until a watching client sees RUNNING, image present, against `docker run -d` of the
  same (to reach: 1.10x its time) and against Swarm's `docker service create` until its task runs (0.65x);
- many: 50 workloads applied at once until all run, against create and start of 50 containers through the
  Docker API with as many in flight as is best (0.95x its rate);
- logs: `pwm logs -f` of a container that prints 200 MB, against `docker logs -f` of the same (2.5x its rate).

Everything is real: etcd with fsync, controller, agent and CLI are processes, and one Docker engine serves all.

    python bench/bench_launch.py [--pairs 10] [--only one,swarm,many,logs]
"""

import argparse
import contextlib
import http.client
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import docker

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.paired import Ratio, paired, save
from pwm.images import ensure_busybox
from tests.pwm_cluster import PwmCluster, manifest

ENGINE = "unix:///var/run/docker.sock"
PROGRAM = str(Path(sys.executable).parent / "pwm")
MANY = 50
# Fifty fit on two cores. A limit as low as this slows down the start itself, so both sides have it.
MANY_CPU_MILLIS = 40
LOG_BYTES = 200_000_000
LINE = "step 000123 loss 0.4321 accuracy 0.8765 lr 0.0010 throughput 1234.5 samples/s and so on"
SLEEP = ["sleep", "3600"]
MEMORY = "32m"
LIMIT_S = 180.0
# Containers in flight through the API: the best of these is the rival.
CONCURRENCY = (4, 8, 16)


class Watcher:
    """A client that watches workloads and knows when each was first seen running."""

    def __init__(self, cluster: PwmCluster) -> None:
        self._seen: dict[str, float] = {}
        self._changed = threading.Condition()
        self._closing = False
        host, _, port = cluster.replicas[0].http.partition(":")
        self._connection = http.client.HTTPConnection(host, int(port))
        token = cluster.cli_environment["PWM_TOKEN"]
        self._connection.request("GET", "/v1/watch/workload", headers={"Authorization": f"Bearer {token}"})
        self._lines = self._connection.getresponse()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while not self._closing and (line := self._lines.readline()):
            resource = json.loads(line).get("result", {}).get("resource") or {}
            if resource.get("status", {}).get("phase") == "RUNNING":
                with self._changed:
                    self._seen.setdefault(resource["metadata"]["name"], time.perf_counter())
                    self._changed.notify_all()

    def running_at(self, *names: str) -> float:
        """When the last of them was seen running."""
        with self._changed:
            assert self._changed.wait_for(lambda: all(n in self._seen for n in names), LIMIT_S), "they do not run"
            return max(self._seen[n] for n in names)

    def close(self) -> None:
        """The next beat of the stream, or its end, ends the reader."""
        self._closing = True


class Bench:
    def __init__(self, cluster: PwmCluster, image: str, scratch: Path) -> None:
        self.cluster = cluster
        self.image = image
        self.scratch = scratch
        self.watcher = Watcher(cluster)
        self.api = docker.APIClient(base_url=ENGINE, version="auto", num_pools=64)
        self._number = 0
        # As somebody's shell would have it, with compiled modules kept.
        self._environment = {
            name: value for name, value in cluster.cli_environment.items() if name != "PYTHONDONTWRITEBYTECODE"
        }

    def name(self) -> str:
        self._number += 1
        return f"bench-{self._number}"

    # ---- one

    def pwm_apply(self) -> float:
        name = self.name()
        file = self.scratch / f"{name}.yaml"
        file.write_text(_workload(name, self.image))
        started = time.perf_counter()
        self._run(PROGRAM, "apply", "-f", str(file), env=self._environment)
        took = self.watcher.running_at(name) - started
        self._delete(name)
        return took

    def docker_run(self) -> float:
        name = self.name()
        started = time.perf_counter()
        self._run("docker", "run", "-d", "--name", name, "-m", MEMORY, "--cpus", "1", self.image, *SLEEP)
        took = time.perf_counter() - started
        self._run("docker", "rm", "-f", name)
        return took

    def swarm_create(self) -> float:
        name = self.name()
        started = time.perf_counter()
        self._run(
            "docker",
            "service",
            "create",
            "--detach",
            "--name",
            name,
            "--limit-memory",
            MEMORY,
            "--limit-cpu",
            "1",
            self.image,
            *SLEEP,
        )
        while not any(t["Status"]["State"] == "running" for t in self.api.tasks(filters={"service": name})):
            time.sleep(0.005)
        took = time.perf_counter() - started
        self._run("docker", "service", "rm", name)
        while self.api.containers(filters={"label": f"com.docker.swarm.service.name={name}"}):
            time.sleep(0.05)
        return took

    # ---- many

    def pwm_many(self) -> float:
        names = [self.name() for _ in range(MANY)]
        file = self.scratch / "many.yaml"
        file.write_text("".join(_workload(name, self.image, cpu=f"{MANY_CPU_MILLIS}m") for name in names))
        started = time.perf_counter()
        self._run(PROGRAM, "apply", "-f", str(file), env=self._environment)
        rate = MANY / (self.watcher.running_at(*names) - started)
        self._delete(*names)
        return rate

    def api_many(self, in_flight: int) -> float:
        names = [self.name() for _ in range(MANY)]
        limits = self.api.create_host_config(mem_limit=MEMORY, nano_cpus=MANY_CPU_MILLIS * 1_000_000)

        def start(name: str) -> None:
            self.api.create_container(self.image, SLEEP, name=name, host_config=limits)
            self.api.start(name)

        with ThreadPoolExecutor(in_flight) as pool:
            started = time.perf_counter()
            list(pool.map(start, names))
            rate = MANY / (time.perf_counter() - started)
            list(pool.map(lambda name: self.api.remove_container(name, force=True), names))
        return rate

    # ---- logs

    def pwm_logs(self) -> float:
        """Bytes a second of `pwm logs -f`, from the start of the container to the last byte."""
        name = self.name()
        file = self.scratch / f"{name}.yaml"
        file.write_text(manifest(name, _printer(), cpu="1", memory="64MiB", image=self.image))
        self._run(PROGRAM, "apply", "-f", str(file), env=self._environment)
        self.watcher.running_at(name)
        rate = _drain([PROGRAM, "logs", "wk", name, "-f"], self._environment)
        self._delete(name)
        return rate

    def docker_logs(self) -> float:
        name = self.name()
        self._run("docker", "run", "-d", "--name", name, "-m", "64m", "--cpus", "1", self.image, "sh", "-c", _printer())
        rate = _drain(["docker", "logs", "-f", name], None)
        self._run("docker", "rm", "-f", name)
        return rate

    # ----

    def _delete(self, *names: str) -> None:
        self.cluster.ok("delete", "wk", *names, "--wait", timeout_s=LIMIT_S)

    def _run(self, *command: str, env: dict[str, str] | None = None) -> None:
        subprocess.run(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True)


def _workload(name: str, image: str, *, cpu: str = "1") -> str:
    """A manifest as a user would write it."""
    return f"""\
apiVersion: v1
kind: Workload
metadata:
  name: {name}
spec:
  image: {image}
  selectors:
    cpu:
      count: {cpu}
  config:
    cmd: [{", ".join(map(json.dumps, SLEEP))}]
    memory: 32MiB
    stopGrace: 1s
---
"""


def _printer() -> str:
    return f"yes '{LINE}' | head -c {LOG_BYTES}"


def _drain(command: list[str], env: dict[str, str] | None) -> float:
    started = time.perf_counter()
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    got = 0
    while block := process.stdout.read1(1 << 20):  # type: ignore[attr-defined]
        got += len(block)
    process.wait()
    assert got == LOG_BYTES, f"{command[0]} gave {got:,} of {LOG_BYTES:,} bytes"
    return got / (time.perf_counter() - started)


@contextlib.contextmanager
def swarm() -> Iterator[None]:
    """The engine as a swarm of one; left again if it was none before."""
    state = subprocess.run(
        ["docker", "info", "--format", "{{.Swarm.LocalNodeState}}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if state != "active":
        subprocess.run(
            ["docker", "swarm", "init", "--advertise-addr", "127.0.0.1"], stdout=subprocess.DEVNULL, check=True
        )
    try:
        yield
    finally:
        if state != "active":
            subprocess.run(["docker", "swarm", "leave", "--force"], stdout=subprocess.DEVNULL, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--only", default="one,swarm,many,logs")
    given = parser.parse_args()
    wanted = given.only.split(",")
    results: dict[str, Any] = {}

    def report(name: str, ratio: Ratio, what: str, target: str, unit: str) -> None:
        print(ratio.line(what, target=target, unit=unit), flush=True)
        results[name] = ratio.record(target)

    with tempfile.TemporaryDirectory(prefix="pwm-bench-") as scratch:
        cluster = PwmCluster(Path(scratch), ENGINE, fsync=True)
        try:
            bench = Bench(cluster.start(), ensure_busybox(ENGINE), Path(scratch))
            if "one" in wanted:
                ratio = paired(bench.pwm_apply, bench.docker_run, pairs=given.pairs)
                report("apply_to_running", ratio, "apply -> RUNNING / docker run -d", "<= 1.10", "s")
            if "swarm" in wanted:
                with swarm():
                    ratio = paired(bench.pwm_apply, bench.swarm_create, pairs=given.pairs)
                report("apply_to_running_swarm", ratio, "apply -> RUNNING / swarm service create", "<= 0.65", "s")
            if "many" in wanted:
                rates = {n: bench.api_many(n) for n in CONCURRENCY}
                best = max(rates, key=lambda n: rates[n])
                ratio = paired(bench.pwm_many, lambda: bench.api_many(best), pairs=max(3, given.pairs // 3))
                report("fifty_at_once", ratio, f"50 at once / Docker API, {best} in flight", ">= 0.95", "a second")
            if "logs" in wanted:
                ratio = paired(bench.pwm_logs, bench.docker_logs, pairs=max(3, given.pairs // 3), warm_up=0)
                report("logs_follow", ratio, "logs -f of 200 MB / docker logs -f", ">= 2.5", "bytes/s")
            bench.watcher.close()
        finally:
            cluster.close()
    save("launch", results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
