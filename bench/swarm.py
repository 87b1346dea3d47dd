"""A Docker Swarm of three managers, each a Docker engine of its own on a make-believe host: the rival of failover."""

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from pwm.images import ensure_busybox
from tests.docker_engine import answers
from tests.faults.network import Host, Network, Process

START_LIMIT_S = 60.0
RUN_LIMIT_S = 120.0
POLL_S = 0.05
# After a manager is back: until it follows the others again.
SETTLE_S = 12.0


class Swarm:
    """`close` removes containers, engines, mounts and files."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._root = Path(tempfile.mkdtemp(prefix="pwm-swarm-"))
        self._hosts = [network.host(f"manager-{n}") for n in (1, 2, 3)]
        self._engines: dict[Host, Process] = {}
        self._image = ""
        self._services = 0

    def start(self) -> None:
        for host in self._hosts:
            (self._root / host.name).mkdir()
            self._launch(host)
        for host in self._hosts:
            self._until_answers(host)
            self._image = ensure_busybox(self._socket(host))
        first, *others = self._hosts
        self._docker(first, "swarm", "init", "--advertise-addr", first.address)
        token = self._docker(first, "swarm", "join-token", "-q", "manager").strip()
        for host in others:
            self._docker(host, "swarm", "join", "--token", token, "--advertise-addr", host.address, first.address)
        time.sleep(SETTLE_S)

    def leader_killed(self) -> float:
        """Seconds from kill -9 of the leading manager until a service created at that moment runs."""
        leader = next(host for host in self._hosts if self._leads(host))
        other = next(host for host in self._hosts if host is not leader)
        self._services += 1
        name = f"probe-{self._services}"
        began = time.monotonic()
        self._kill(leader)
        while not self._creates(other, name):
            time.sleep(POLL_S)
        while "Running" not in self._docker(other, "service", "ps", name, "--format", "{{.CurrentState}}"):
            if time.monotonic() - began > RUN_LIMIT_S:
                raise AssertionError("the service does not run")
            time.sleep(POLL_S)
        took = time.monotonic() - began
        self._launch(leader)
        self._until_answers(leader)
        self._docker(other, "service", "rm", name)
        time.sleep(SETTLE_S)
        return took

    def close(self) -> None:
        for host, engine in self._engines.items():
            containers = self._run(host, "ps", "-aq").stdout.split()
            if containers:
                self._run(host, "rm", "-f", *containers)
            engine.terminate()
        for engine in self._engines.values():
            try:
                engine.wait(30)
            except subprocess.TimeoutExpired:
                engine.kill()
                engine.wait()
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for mount in sorted((m for m in mounts if m.startswith(str(self._root))), reverse=True):
            subprocess.run(["umount", "-l", mount], capture_output=True, check=False)
        shutil.rmtree(self._root, ignore_errors=True)

    def _launch(self, host: Host) -> None:
        root = self._root / host.name
        for stale in ("docker.pid", "docker.sock"):
            (root / stale).unlink(missing_ok=True)
        command = [
            "dockerd", f"--host={self._socket(host)}", f"--data-root={root}/data", f"--exec-root={root}/exec",
            f"--pidfile={root}/docker.pid", f"--containerd-namespace={host.namespace}",
            f"--containerd-plugins-namespace={host.namespace}-plugins",
        ]  # fmt: skip
        self._engines[host] = self._network.start(host, command, log=root / "dockerd.log")

    def _kill(self, host: Host) -> None:
        engine = self._engines.pop(host)
        engine.kill()
        engine.wait()

    def _until_answers(self, host: Host) -> None:
        ends = time.monotonic() + START_LIMIT_S
        while not answers(self._socket(host)):
            if time.monotonic() > ends:
                raise AssertionError(f"the engine of {host.name} does not answer")
            time.sleep(POLL_S)

    def _socket(self, host: Host) -> str:
        return f"unix://{self._root / host.name}/docker.sock"

    def _leads(self, host: Host) -> bool:
        return self._docker(host, "node", "inspect", "self", "--format", "{{.ManagerStatus.Leader}}").strip() == "true"

    def _creates(self, host: Host, name: str) -> bool:
        words = ("service", "create", "--detach", "--no-resolve-image", "--name", name, self._image, "sleep", "3600")
        return self._run(host, *words).returncode == 0

    def _docker(self, host: Host, *words: str) -> str:
        result = self._run(host, *words)
        if result.returncode:
            raise AssertionError(f"docker {' '.join(words)}: {result.stderr}")
        return result.stdout

    def _run(self, host: Host, *words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(["docker", "-H", self._socket(host), *words], capture_output=True, text=True, check=False)
