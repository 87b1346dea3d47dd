"""A whole PWM on make-believe hosts: three etcd members, three controllers, some nodes, one Docker engine.

Every part is the real program as a process of its own. Parts are killed, stopped, frozen and started by name:
etcd-1, controller-2, node-3, docker. The Docker engine is one of the test's own with live-restore, shared by all
nodes, so that it may be killed too.
"""

import asyncio
import json
import os
import secrets
import signal
import sys
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from pwm.etcd_process import find_etcd
from pwm.images import ensure_busybox
from tests.docker_engine import IsolatedDockerd
from tests.faults.network import Host, Network, Process
from tests.watchdogs import end_watchdogs

T = TypeVar("T")

ETCD_PORT, PEER_PORT, HTTP_PORT, AGENT_PORT = 2379, 2380, 4700, 4701
START_LIMIT_S = 120.0
# Shorter than the defaults, so that a loss can be waited for; longer than any cut that is to be survived.
NODE_GRACE_S, LOST_AFTER_S = 5.0, 15.0
QUOTA_BYTES = 256 << 20
POLL_S = 0.02
# Debian's package faketime; without it clocks are left alone.
FAKE_CLOCK = next(iter(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)
# Not by any proxy that the environment may name.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class FaultCluster:
    def __init__(self, directory: Path, network: Network, *, nodes: int) -> None:
        self.directory = directory
        self.network = network
        self.name = f"faults-{secrets.token_hex(3)}"
        self.docker = IsolatedDockerd(live_restore=True)
        self.image = ""
        self.lost_after_s = LOST_AFTER_S
        self.etcds = [network.host(f"etcd-{n}") for n in (1, 2, 3)]
        self.controllers = [network.host(f"controller-{n}") for n in (1, 2, 3)]
        self.nodes = [network.host(f"node-{n}") for n in range(1, nodes + 1)]
        self.processes: dict[str, Process] = {}

    # ---- addresses

    @property
    def etcd_addresses(self) -> list[str]:
        return [f"{host.address}:{ETCD_PORT}" for host in self.etcds]

    @property
    def servers(self) -> list[str]:
        return [self.server(host) for host in self.controllers]

    def server(self, host: Host) -> str:
        return f"http://{host.address}:{HTTP_PORT}"

    @property
    def token(self) -> str:
        return (self.directory / "admin-token").read_text().strip()

    @property
    def cli_environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PWM_")}
        return {**kept, "HOME": str(self.directory), "PWM_SERVER": ",".join(self.servers), "PWM_TOKEN": self.token}

    def host_of(self, part: str) -> Host:
        return self.network.hosts[part]

    # ---- life

    async def start(self) -> None:
        await asyncio.to_thread(self.start_docker)
        self.image = await asyncio.to_thread(ensure_busybox, self.docker.host)
        for host in self.etcds:
            self.start_part(host.name)
        await until(self._etcd_serves, "etcd serves")
        for host in self.controllers:
            self.start_part(host.name)
        for host in self.controllers:
            await until(lambda host=host: self.ready(host), f"{host.name} is ready")
        for host in self.nodes:
            self.start_part(host.name)
        for host in self.nodes:
            await until(lambda host=host: self.node_is(host.name, "READY"), f"{host.name} is READY")

    def start_part(self, part: str) -> None:
        """Starts it, and does not wait."""
        kind = part.partition("-")[0]
        host = self.host_of(part)
        command = {"etcd": self._etcd, "controller": self._controller, "node": self._node}[kind](host)
        environment = self._fake_clock(host) if kind == "controller" else None
        self.processes[part] = self.network.start(
            host, command, log=self.directory / f"{part}.log", environment=environment
        )

    def _fake_clock(self, host: Host) -> dict[str, str]:
        """A wall clock that `set_clock` can move; the monotonic one is left alone."""
        if FAKE_CLOCK is None:
            return {}
        self.set_clock(host, 0)
        return {
            "LD_PRELOAD": str(FAKE_CLOCK), "FAKETIME_TIMESTAMP_FILE": str(self._clock_file(host)),
            "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_DONT_RESET": "1",
        }  # fmt: skip

    def _clock_file(self, host: Host) -> Path:
        return self.directory / f"{host.name}.clock"

    def set_clock(self, host: Host, offset_s: int) -> None:
        """Moves a controller's wall clock, now."""
        self._clock_file(host).write_text(f"{offset_s:+d}\n")

    def _etcd(self, host: Host) -> list[str]:
        client, peer = f"http://{host.address}:{ETCD_PORT}", f"http://{host.address}:{PEER_PORT}"
        members = ",".join(f"{member.name}=http://{member.address}:{PEER_PORT}" for member in self.etcds)
        return [
            find_etcd(), f"--name={host.name}", f"--data-dir={self.directory / host.name}",
            f"--listen-client-urls={client}", f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster={members}", "--initial-cluster-state=new", "--auto-compaction-retention=0",
            "--logger=zap", "--log-level=warn", f"--quota-backend-bytes={QUOTA_BYTES}",
        ]  # fmt: skip

    def _controller(self, host: Host) -> list[str]:
        return [
            sys.executable, "-m", "pwm", "controller", f"--etcd={','.join(self.etcd_addresses)}",
            f"--http={host.address}:{HTTP_PORT}", f"--agents={host.address}:{AGENT_PORT}", f"--replica={host.name}",
            f"--admin-token-file={self.directory}/admin-token", f"--node-token-file={self.directory}/node-token",
            # All watchers of a scenario are one user, at one address, and come back at once.
            "--streams-per-user=20000", "--strangers-per-address=0", "--strangers=0",
            f"--node-grace={NODE_GRACE_S:g}s", f"--node-lost-after={LOST_AFTER_S:g}s",
        ]  # fmt: skip

    def _node(self, host: Host) -> list[str]:
        return [
            sys.executable, "-m", "pwm", "agent", f"--node={host.name}",
            f"--controllers={','.join(f'{c.address}:{AGENT_PORT}' for c in self.controllers)}",
            f"--node-token-file={self.directory}/node-token", f"--state-dir={self.directory / host.name}",
            f"--cluster={self.name}", f"--docker-host={self.docker.host}",
        ]  # fmt: skip

    def start_docker(self) -> None:
        # An engine looks for its networks in /sys, which shows those of the machine.
        with self.network.leave():
            self.docker.start()

    def kill(self, part: str) -> None:
        """kill -9."""
        process = self.processes.pop(part)
        process.kill()
        process.wait()

    def stop(self, part: str) -> None:
        """SIGTERM; does not wait."""
        self.processes[part].terminate()

    def freeze(self, part: str) -> None:
        self.processes[part].send_signal(signal.SIGSTOP)

    def thaw(self, part: str) -> None:
        self.processes[part].send_signal(signal.SIGCONT)

    async def revive(self) -> None:
        """Everything runs and every link is whole; returns when all is ready again."""
        self.network.mend()
        for part, process in list(self.processes.items()):
            self.thaw(part)
            if process.poll() is not None:
                del self.processes[part]
        for host in (*self.etcds, *self.controllers, *self.nodes):
            if host.name not in self.processes:
                self.start_part(host.name)
        await until(self._etcd_serves, "etcd serves again")
        for host in self.controllers:
            await until(lambda host=host: self.ready(host), f"{host.name} is ready again")
        for host in self.nodes:
            await until(lambda host=host: self.node_is(host.name, "READY"), f"{host.name} is READY again")

    def close(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGCONT)
            process.kill()
        for process in self.processes.values():
            process.wait()
        end_watchdogs(self.directory)
        self.docker.close()

    # ---- what it says

    async def _etcd_serves(self) -> bool:
        answers = [await get(f"http://{address}/health") for address in self.etcd_addresses]
        return all(answer is not None and answer.get("health") == "true" for answer in answers)

    async def ready(self, host: Host) -> bool:
        return await get(f"{self.server(host)}/readyz") is not None

    async def ask(self, path: str) -> dict[str, Any] | None:
        """A GET, at whichever controller answers; None when none does."""
        for server in self.servers:
            answer = await get(f"{server}{path}", token=self.token)
            if answer is not None:
                return answer
        return None

    async def node_is(self, name: str, phase: str) -> bool:
        """Whether the log says so of the node and some controller holds its session."""
        connected = False
        for server in self.servers:
            status = await get(f"{server}/v1/admin/status", token=self.token) or {}
            agent = next((agent for agent in status.get("agents", []) if agent["node"] == name), {})
            if agent and agent.get("phase") != phase:
                return False
            connected = connected or bool(agent.get("replica"))
        return connected


async def get(url: str, *, token: str = "", timeout_s: float = 10.0) -> dict[str, Any] | None:
    """JSON of a GET; None when there is no good answer."""

    def fetch() -> dict[str, Any] | None:
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
        try:
            with _OPENER.open(request, timeout=timeout_s) as answer:
                body = answer.read()
        except OSError:
            return None
        return json.loads(body) if body[:1] == b"{" else {}

    return await asyncio.to_thread(fetch)


async def until(condition: Callable[[], Awaitable[T]], what: str, *, limit_s: float = START_LIMIT_S) -> T:
    """Waits until the condition holds; AssertionError names what was waited for."""
    ends = asyncio.get_running_loop().time() + limit_s
    while not (result := await condition()):
        if asyncio.get_running_loop().time() > ends:
            raise AssertionError(f"not within {limit_s:.0f} s: {what}")
        await asyncio.sleep(POLL_S)
    return result
