"""A whole PWM on this machine: etcd, one controller, one agent, each a process of its own.

This is what `pwm up` runs. The parts are the real ones, started as anybody would start them on three
machines; only the numbers differ: everything listens on loopback, at four ports in a row. All state is
in one directory, which a lock keeps for one `up` at a time:

    lock  cluster  admin-token  node-token  cluster-key  etcd/  agent/  log/{etcd,controller,agent}.log

Stopping leaves containers running, as restarting a control plane always does here; the next `up` on
the same directory finds them again. Nothing of the control plane is imported: it is only run.
"""

import asyncio
import contextlib
import fcntl
import http.client
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pwm.etcd_process import EtcdProcess, EtcdProcessError, find_etcd
from pwm.supervise import Child, Program, StartError

DEFAULT_PORT = 4700
LOOPBACK = "127.0.0.1"
# Gateway, agents' gRPC, etcd's clients, etcd's peers.
PORTS = 4
# First start on a slow disk; usually each takes well under a second.
ETCD_LIMIT_S, CONTROLLER_LIMIT_S, NODE_LIMIT_S = 30.0, 60.0, 60.0
# An `up` that was killed leaves its children a moment to end and free their ports.
PORTS_FREE_LIMIT_S = 3.0
ANSWER_LIMIT_S = 2.0
DOCKER_PING_LIMIT_S = 3.0


class UpError(Exception):
    """Why it cannot start, as a sentence, and what to do about it."""

    def __init__(self, message: str, *, next_step: str = "") -> None:
        super().__init__(message)
        self.next_step = next_step


@dataclass(frozen=True, kw_only=True)
class Settings:
    state_dir: Path
    # The first of four ports; 0: any that are free.
    port: int = DEFAULT_PORT
    node: str = ""
    docker_host: str = "unix:///var/run/docker.sock"
    # Also offer the process driver: workloads as plain processes of this machine.
    allow_process: bool = False


def default_state_dir() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/pwm")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "pwm"


class LocalCluster:
    """Its parts while they run; `running` makes one."""

    def __init__(self, settings: Settings, *, port: int, etcd: str, say: Callable[[str], None]) -> None:
        self.settings = settings
        self.port = port
        self.etcd_version = ""
        self._say = say
        self._dir = settings.state_dir
        self._node = settings.node or socket.gethostname()
        self._etcd = Child(self._etcd_program(etcd), say=say)
        self._controller = Child(self._controller_program(), say=say)
        self._agent = Child(self._agent_program(), say=say)
        # In the order in which they are stopped.
        self._started: list[Child] = []

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def token(self) -> str:
        return (self._dir / "admin-token").read_text().strip()

    @property
    def log_dir(self) -> Path:
        return self._dir / "log"

    # --- parts ------------------------------------------------------------------------------------

    def _etcd_program(self, binary: str) -> Program:
        data = self._dir / "etcd"
        data.mkdir(exist_ok=True, mode=0o700)
        member = EtcdProcess(data, client_port=self.port + 2, peer_port=self.port + 3)
        return Program(name="etcd", command=member.command(binary), log=self.log_dir / "etcd.log")

    def _controller_program(self) -> Program:
        return Program(
            name="controller",
            command=[
                *_pwm("controller"),
                f"--http={LOOPBACK}:{self.port}",
                f"--agents={LOOPBACK}:{self.port + 1}",
                f"--etcd={LOOPBACK}:{self.port + 2}",
                f"--admin-token-file={self._dir / 'admin-token'}",
                f"--node-token-file={self._dir / 'node-token'}",
            ],
            log=self.log_dir / "controller.log",
        )

    def _agent_program(self) -> Program:
        settings = self.settings
        return Program(
            name="agent",
            command=[
                *_pwm("agent"),
                f"--controllers={LOOPBACK}:{self.port + 1}",
                f"--node-token-file={self._dir / 'node-token'}",
                f"--state-dir={self._dir / 'agent'}",
                f"--cluster={_cluster_name(self._dir)}",
                f"--docker-host={settings.docker_host}",
                f"--node={self._node}",
                *(["--allow-process"] if settings.allow_process else []),
            ],
            log=self.log_dir / "agent.log",
        )

    # --- life -------------------------------------------------------------------------------------

    async def start(self, group: asyncio.TaskGroup) -> AsyncIterator[tuple[str, str]]:
        """Starts part after part; yields each one's name and what there is to say of it once it is ready."""
        await self._launch(self._etcd, group)
        await self._etcd.until_ready(self._etcd_answers, limit_s=ETCD_LIMIT_S)
        yield "etcd", f"{self.etcd_version} at {LOOPBACK}:{self.port + 2}"
        await self._launch(self._controller, group)
        await self._controller.until_ready(self._controller_answers, limit_s=CONTROLLER_LIMIT_S)
        yield "controller", self.url
        await self._launch(self._agent, group)
        try:
            await self._agent.until_ready(self._node_is_ready, limit_s=NODE_LIMIT_S)
        except StartError as error:
            trouble = await asyncio.to_thread(self._node_trouble)
            raise StartError(f"{error}: {trouble}", log=error.log) from error
        yield "agent", self._describe_node()

    async def _launch(self, child: Child, group: asyncio.TaskGroup) -> None:
        await child.start()
        self._started.insert(0, child)
        group.create_task(child.watch(), name=child.program.name)

    async def stop(self) -> None:
        """Agent, controller, etcd: each can still tell the next one what it has to."""
        for child in self._started:
            await child.stop()

    # --- what they say ----------------------------------------------------------------------------

    def _etcd_answers(self) -> bool:
        health = _get(self.port + 2, "/health")
        if not health or str(health.get("health")).lower() != "true":
            return False
        self.etcd_version = str((_get(self.port + 2, "/version") or {}).get("etcdserver", ""))
        return True

    def _controller_answers(self) -> bool:
        return _get(self.port, "/readyz") is not None and (self._dir / "admin-token").exists()

    def _node_is_ready(self) -> bool:
        return self._node_trouble() == ""

    def _node_trouble(self) -> str:
        """What keeps the node from being READY; "" when it is, and connected to the controller that runs now.

        The phase alone may be from before: a node stays READY for a while after its agent has gone.
        """
        status = _get(self.port, "/v1/admin/status", token=self.token)
        if status is None:
            return "the controller does not answer"
        here = {replica.get("id") for replica in status.get("replicas", []) if replica.get("answering")}
        mine = next((agent for agent in status.get("agents", []) if agent.get("node") == self._node), None)
        if mine is None:
            return f"node {self._node} has not joined"
        if mine.get("replica") not in here:
            return f"node {self._node} is not connected"
        return "" if mine.get("phase") == "READY" else f"node {self._node} is {mine.get('phase')}"

    def _describe_node(self) -> str:
        from pwm.quantity import format_bytes

        answer = _get(self.port, f"/v1/resources/Node/{self._node}", token=self.token) or {}
        node = answer.get("resource", {})
        inventory = node.get("status", {}).get("inventory", {})
        parts = [f"{inventory.get('cpuCount', '?')} CPUs", format_bytes(int(inventory.get("memoryBytes", 0)))]
        if gpus := inventory.get("gpus"):
            parts.append(f"{len(gpus)} GPUs")
        parts += [f"{d.get('name')} {d.get('version', '')}".strip() for d in inventory.get("drivers", [])]
        return f"node {self._node}: {', '.join(parts)}"


@contextlib.contextmanager
def prepared(settings: Settings, *, say: Callable[[str], None]) -> Iterator[LocalCluster]:
    """A cluster that could start: directory locked, ports free, etcd and Docker there. Raises UpError."""
    etcd = _found_etcd()
    if trouble := docker_trouble(settings.docker_host):
        if not settings.allow_process:
            raise trouble
        say(f"{trouble}; only the process driver can be used")
    try:
        settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise UpError(
            f"{settings.state_dir} cannot be made: {error.strerror}", next_step="Choose another with --state-dir DIR."
        ) from error
    with _locked(settings.state_dir) as lock:
        port = settings.port or _free_ports()
        _demand_free(port)
        lock.seek(0)
        lock.truncate()
        lock.write(json.dumps({"pid": os.getpid(), "url": f"http://{LOOPBACK}:{port}"}))
        lock.flush()
        yield LocalCluster(settings, port=port, etcd=etcd, say=say)


def _found_etcd() -> str:
    try:
        return find_etcd()
    except EtcdProcessError as error:
        raise UpError(str(error)) from error


@contextlib.contextmanager
def _locked(state_dir: Path) -> Iterator[Any]:
    with (state_dir / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            try:
                holder = json.loads(lock.read())
            except ValueError:
                holder = {"pid": "?", "url": "an address it has not said yet"}
            raise UpError(
                f"a PWM runs in {state_dir} already: process {holder['pid']}, {holder['url']}",
                next_step="Use that one (`pwm get node`), or give this one a --state-dir and a --port of its own.",
            ) from None
        yield lock


def _demand_free(port: int) -> None:
    deadline = time.monotonic() + PORTS_FREE_LIMIT_S
    while taken := [p for p in range(port, port + PORTS) if not _is_free(p)]:
        if time.monotonic() > deadline:
            raise UpError(
                f"port {taken[0]} of {LOOPBACK} is taken by another program",
                next_step=f"PWM takes {PORTS} ports in a row; choose others, such as --port {port + 100}, or --port 0.",
            )
        time.sleep(0.1)


def _free_ports() -> int:
    while True:
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
            first = int(probe.getsockname()[1])
        if first + PORTS < 65536 and all(_is_free(port) for port in range(first, first + PORTS)):
            return first


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do it: a connection that is still closing does not hold the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def docker_trouble(docker_host: str) -> UpError | None:
    """Why the Docker engine cannot be used; None when it answers."""
    path = docker_host.removeprefix("unix://")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(DOCKER_PING_LIMIT_S)
            connection.connect(path)
            connection.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            if b" 200 " in connection.recv(64):
                return None
        return UpError(f"the Docker engine at {path} does not answer as it should")
    except PermissionError:
        return UpError(
            f"you may not use the Docker engine at {path}",
            next_step='Allow it with: sudo usermod -aG docker "$USER", then log in again.',
        )
    except FileNotFoundError:
        return UpError(
            f"no Docker engine: there is no {path}",
            next_step="Install one with: sudo apt-get install docker.io. If it is elsewhere, set DOCKER_HOST.",
        )
    except OSError as error:
        return UpError(
            f"the Docker engine at {path} does not answer ({error.strerror or 'no answer in time'})",
            next_step="Start it with: sudo systemctl start docker",
        )


def _cluster_name(state_dir: Path) -> str:
    """Tells the containers of this cluster from those of another that uses the same engine."""
    file = state_dir / "cluster"
    if not file.exists():
        file.write_text(f"local-{secrets.token_hex(4)}\n")
    return file.read_text().strip()


def _pwm(command: str) -> list[str]:
    """This program's own daemon, run by the same interpreter."""
    return [sys.executable, "-m", "pwm", command]


def _get(port: int, path: str, *, token: str = "") -> dict[str, Any] | None:
    """JSON of a GET on loopback; None when there is no good answer. Blocks."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=ANSWER_LIMIT_S)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            return None
        document = json.loads(body) if body[:1] == b"{" else {}
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()
    return document if isinstance(document, dict) else {}
