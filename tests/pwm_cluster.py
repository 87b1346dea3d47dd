"""A real PWM for tests: etcd, controllers and agent as processes on free ports, driven by the real `pwm`.

Each part can be killed by its pid, frozen and started again. Whatever happens in a test, `close` ends the
processes, the watchdogs of agents too, and removes the cluster's containers.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from pwm.etcd_process import EtcdProcess, free_port
from pwm.nodeagent.secret_files import usual_places
from tests.docker_engine import DockerEngine
from tests.etcd_server import require_etcd
from tests.patience import PATIENCE_S
from tests.watchdogs import end_watchdogs

T = TypeVar("T")
START_LIMIT_S = 30.0
POLL_S = 0.05


@dataclass
class Result:
    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Replica:
    """A controller's part name, and where it listens for clients and for agents."""

    part: str
    http: str
    agents: str


@dataclass
class PwmCluster:
    directory: Path
    docker_host: str
    environment: dict[str, str] = field(default_factory=dict)
    fsync: bool = False
    # Their parts are controller, controller-2, controller-3, ...
    controllers: int = 1
    # With TLS: how long certificates live.
    certificate_life: str = ""

    def __post_init__(self) -> None:
        self.name = f"test-{secrets.token_hex(4)}"
        self.replicas = [
            Replica(part, f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}")
            for part in ("controller", *(f"controller-{n}" for n in range(2, self.controllers + 1)))
        ]
        client, peer = free_port(), free_port()
        self.etcd = EtcdProcess(
            self.directory / "etcd", client_port=client, peer_port=peer, unsafe_no_fsync=not self.fsync
        )
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    # ---- processes

    def start(self) -> "PwmCluster":
        self.etcd.start()
        for replica in self.replicas:
            self.start_controller(replica.part)
        self.start_agent()
        return self

    def start_controller(self, part: str = "controller") -> None:
        replica = self.replica(part)
        self._spawn(
            part,
            "controller",
            f"--etcd={self.etcd.address}",
            f"--http={replica.http}",
            f"--agents={replica.agents}",
            f"--admin-token-file={self.directory}/admin-token",
            f"--cluster-key-file={self.directory}/cluster-key",
            *self._controller_security(),
            "--log-level=debug",
        )
        server = f"--server={self.scheme}://{replica.http}"
        eventually(lambda: self.pwm("get", "node", server).code == 0, f"{part} answers", limit_s=START_LIMIT_S)

    @property
    def scheme(self) -> str:
        return "https" if self.certificate_life else "http"

    def _controller_security(self) -> list[str]:
        if self.certificate_life:
            return [f"--ca-file={self.directory}/ca.pem", f"--certificate-life={self.certificate_life}"]
        return ["--plaintext", f"--node-token-file={self.directory}/node-token"]

    def _agent_security(self) -> list[str]:
        if not self.certificate_life:
            return ["--plaintext", f"--node-token-file={self.directory}/node-token"]
        file = self.directory / "join-token"
        joins = [f"--join=https://{replica.http}" for replica in self.replicas]
        if not file.exists():
            file.write_text(self.ok("admin", "join-token", "n1"))
            return [f"--join-token-file={file}", *joins]
        return joins

    def replica(self, part: str) -> Replica:
        return next(replica for replica in self.replicas if replica.part == part)

    def start_agent(self, *, wait: bool = True) -> None:
        self._spawn(
            "agent",
            "agent",
            f"--controllers={','.join(replica.agents for replica in self.replicas)}",
            *self._agent_security(),
            f"--state-dir={self.directory}/agent",
            f"--cluster={self.name}",
            f"--docker-host={self.docker_host}",
            "--node=n1",
            "--allow-process",
        )
        if wait:
            eventually(
                lambda: self.node()["status"].get("phase") == "READY", "the node is READY", limit_s=START_LIMIT_S
            )

    def _spawn(self, part: str, *words: str) -> None:
        log = (self.directory / f"{part}.log").open("ab")
        environment = {**os.environ, **self.environment}
        self._processes[part] = subprocess.Popen(
            [sys.executable, "-m", "pwm", *words],
            stdout=log,
            stderr=log,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
        log.close()

    def kill(self, part: str) -> None:
        """kill -9, by pid."""
        process = self._processes.pop(part)
        process.kill()
        process.wait()

    def freeze(self, part: str) -> None:
        """SIGSTOP: its sockets stay open, and nothing comes out of them."""
        self._processes[part].send_signal(signal.SIGSTOP)

    def thaw(self, part: str) -> None:
        self._processes[part].send_signal(signal.SIGCONT)

    def pid(self, part: str) -> int:
        return self._processes[part].pid

    def stop(self, part: str) -> None:
        process = self._processes.pop(part)
        process.terminate()
        process.wait(PATIENCE_S)

    def mend(self) -> None:
        """Start whatever does not run, so that the next test finds a whole cluster."""
        if not self.etcd.pid:
            self.etcd.start()
        for replica in self.replicas:
            if replica.part not in self._processes:
                self.start_controller(replica.part)
            self.thaw(replica.part)
        if "agent" not in self._processes:
            self.start_agent()

    def close(self) -> None:
        for part in list(self._processes):
            self.kill(part)
        end_watchdogs(self.directory)
        self.etcd.kill()
        remove_containers(self.docker_host, self.name)
        # What an agent that is killed keeps in memory for its containers.
        for place in usual_places():
            for left in place.glob(f"{self.name}.*"):
                shutil.rmtree(left, ignore_errors=True)

    def log(self, part: str) -> str:
        return (self.directory / f"{part}.log").read_text(errors="replace")

    # ---- the command line

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "pwm", *arguments]

    @property
    def cli_environment(self) -> dict[str, str]:
        token_file = self.directory / "admin-token"
        token = token_file.read_text().strip() if token_file.exists() else "none"
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PWM_")}
        servers = ",".join(f"{self.scheme}://{replica.http}" for replica in self.replicas)
        authorities = {"PWM_CA": f"{self.directory}/ca.pem"} if self.certificate_life else {}
        return {**kept, "HOME": str(self.directory), "PWM_SERVER": servers, "PWM_TOKEN": token, **authorities}

    def pwm(self, *arguments: str, input: str | bytes | None = None, timeout_s: float = 60) -> Result:
        """Run `pwm` to its end."""
        done = subprocess.run(
            self.command(*arguments),
            input=input.encode() if isinstance(input, str) else input,
            capture_output=True, env=self.cli_environment, timeout=timeout_s, check=False,
        )  # fmt: skip
        return Result(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))

    def ok(self, *arguments: str, input: str | bytes | None = None, timeout_s: float = 60) -> str:
        """As `pwm`, and it must succeed."""
        result = self.pwm(*arguments, input=input, timeout_s=timeout_s)
        assert result.code == 0, f"pwm {' '.join(arguments)}: {result.code}\n{result.out}{result.err}"
        return result.out

    # ---- what it says

    def node(self) -> dict[str, Any]:
        result = self.pwm("get", "node", "n1", "-o", "json")
        return json.loads(result.out) if result.code == 0 else {"status": {}}  # type: ignore[no-any-return]

    def workload(self, name: str) -> dict[str, Any]:
        return json.loads(self.ok("get", "wk", name, "-o", "json"))  # type: ignore[no-any-return]

    def phase(self, name: str) -> str:
        result = self.pwm("get", "wk", name, "-o", "json")
        return str(json.loads(result.out)["status"].get("phase", "")) if result.code == 0 else "GONE"

    def containers(self, workload: str) -> list[dict[str, Any]]:
        listed = json.loads(self.ok("get", "c", "-o", "json"))
        return [c for c in listed if c["spec"]["workload"] == workload]

    def until(self, name: str, phase: str, *, limit_s: float = PATIENCE_S) -> None:
        eventually(
            lambda: self.phase(name) == phase,
            lambda: f"{name} is {phase}: {self.pwm('why', 'wk', name).out}",
            limit_s=limit_s,
        )

    def apply(self, name: str, script: str, **config: Any) -> None:
        self.ok("apply", "-f", "-", input=manifest(name, script, **config))


def manifest(
    name: str,
    script: str,
    *,
    count: int = 1,
    cpu: str = "50m",
    memory: str = "32MiB",
    image: str = "pwm-demo/busybox",
    **config: Any,
) -> str:
    """A workload that runs a shell script, as YAML (JSON is YAML)."""
    document = {
        "apiVersion": "v1",
        "kind": "Workload",
        "metadata": {"name": name},
        "spec": {
            "image": image,
            "replica": {"count": count},
            "selectors": {"cpu": {"count": cpu}},
            "config": {"cmd": ["sh", "-c", script], "memory": memory, "stopGrace": "1s", **config},
        },
    }
    return json.dumps(document) + "\n---\n"


def eventually(condition: Callable[[], T], what: "str | Callable[[], str]", *, limit_s: float = PATIENCE_S) -> T:
    """Wait until `condition` holds; fail with `what` was waited for."""
    deadline = time.monotonic() + limit_s
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            pytest.fail(f"not within {limit_s:.0f} s: {what if isinstance(what, str) else what()}")
        time.sleep(POLL_S)


def remove_containers(docker_host: str, cluster: str) -> None:
    """Remove every container of a test's cluster."""
    found = subprocess.run(
        ["docker", "-H", docker_host, "ps", "-aq", "--filter", f"label=pwm.cluster={cluster}"],
        capture_output=True, text=True, check=False,
    ).stdout.split()  # fmt: skip
    if found:
        subprocess.run(["docker", "-H", docker_host, "rm", "-f", *found], capture_output=True, check=False)


@pytest.fixture(scope="module")
def cluster_of_three(
    docker_engine: DockerEngine, busybox_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PwmCluster]:
    """The same with three controllers, which the agent and `pwm` all know."""
    require_etcd()
    made = PwmCluster(tmp_path_factory.mktemp("pwm"), docker_engine.host, controllers=3)
    try:
        yield made.start()
    finally:
        made.close()


@pytest.fixture(scope="module")
def cluster(
    docker_engine: DockerEngine, busybox_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PwmCluster]:
    """One real PWM for all tests of a module."""
    require_etcd()
    made = PwmCluster(tmp_path_factory.mktemp("pwm"), docker_engine.host)
    try:
        yield made.start()
    finally:
        made.close()
