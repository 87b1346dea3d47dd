"""A whole PWM on this machine: etcd, controllers and agents, each a process of its own.

This is what `pwm up` runs: one of each, or as many as are asked for, to try what happens when some of them
die. The parts are the real ones, started as anybody would start them on as many machines; only the numbers
differ: everything listens on loopback, at ports in a row. All state is in one directory, which a lock keeps for
one `up` at a time:

    lock  cluster  cluster-key  admin-token  ca.pem  etcd/  agent/  log/{etcd,controller,agent}.log

Of several, each has its number: etcd-1/, agent-2/, log/controller-3.log. Several agents share the machine's
Docker engine, and each offers its part of the CPUs, memory and GPUs.

Stopping leaves containers running, as restarting a control plane always does here; the next `up` on
the same directory finds them again. Nothing of the control plane is imported: it is only run.
"""

import asyncio
import contextlib
import http.client
import json
import os
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pwm.etcd_process import EtcdProcess
from pwm.localground import (
    DEFAULT_PORT,
    LOOPBACK,
    Ports,
    Share,
    deal,
    demand_free,
    docker_trouble,
    found_etcd,
    free_ports,
    known_peers,
    locked,
    remember_peers,
    running_at,
)
from pwm.quantity import format_bytes
from pwm.supervise import Child, Program, StartError

# First start on a slow disk; usually each takes well under a second.
ETCD_LIMIT_S, CONTROLLER_LIMIT_S, NODE_LIMIT_S = 30.0, 60.0, 60.0
ANSWER_LIMIT_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    state_dir: Path
    # The first port; 0: any that are free.
    port: int = DEFAULT_PORT
    # How many of each. More than one only ever makes sense to try out what happens when they fail.
    controllers: int = 1
    etcd: int = 1
    nodes: int = 1
    # Of several nodes each has a number after it.
    node: str = ""
    docker_host: str = "unix:///var/run/docker.sock"
    # Also offer the process driver: workloads as plain processes of this machine.
    allow_process: bool = False
    # More flags of `pwm controller`.
    controller_options: tuple[str, ...] = ()


def default_state_dir() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/pwm")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "pwm"


class LocalCluster:
    """Its parts while they run; `prepared` makes one."""

    def __init__(self, settings: Settings, *, ports: Ports, etcd: str, say: Callable[[str], None]) -> None:
        self.settings = settings
        self.ports = ports
        self._say = say
        self._dir = settings.state_dir
        self._etcd_binary = etcd
        self._nodes = _numbered(settings.node or socket.gethostname(), settings.nodes)
        self._etcd = [Child(program, say=say) for program in self._etcd_programs()]
        self._controllers = [Child(self._controller_program(number), say=say) for number in range(settings.controllers)]
        # Made when it is known what each is to offer.
        self._agents: list[Child] = []

    @property
    def urls(self) -> list[str]:
        """Of every controller."""
        return [f"https://{LOOPBACK}:{self.ports.gateway(number)}" for number in range(self.settings.controllers)]

    @property
    def token(self) -> str:
        return (self._dir / "admin-token").read_text().strip()

    @property
    def authorities(self) -> str:
        """PEM of whom to believe."""
        return (self._dir / "ca.pem").read_text()

    @property
    def log_dir(self) -> Path:
        return self._dir / "log"

    # --- parts ------------------------------------------------------------------------------------

    def _etcd_programs(self) -> list[Program]:
        count, ports = self.settings.etcd, self.ports
        names = _numbered("pwm", count)
        members = {name: f"http://{LOOPBACK}:{ports.peer(number)}" for number, name in enumerate(names)}
        programs = []
        for number, part in enumerate(_numbered("etcd", count)):
            (data := self._dir / part).mkdir(exist_ok=True, mode=0o700)
            member = EtcdProcess(
                data,
                name=names[number],
                client_port=ports.client(number),
                peer_port=ports.peer(number),
                cluster=members,
                cluster_token=_cluster_name(self._dir) if count > 1 else "",
            )
            log = self.log_dir / f"{part}.log"
            programs.append(Program(name=part, command=member.command(self._etcd_binary), log=log))
        return programs

    def _controller_program(self, number: int) -> Program:
        part = _numbered("controller", self.settings.controllers)[number]
        return Program(
            name=part,
            command=[
                *_pwm("controller"),
                f"--http={LOOPBACK}:{self.ports.gateway(number)}",
                f"--agents={LOOPBACK}:{self.ports.agents(number)}",
                *(f"--etcd={LOOPBACK}:{self.ports.client(member)}" for member in range(self.settings.etcd)),
                f"--admin-token-file={self._dir / 'admin-token'}",
                f"--cluster-key-file={self._dir / 'cluster-key'}",
                f"--ca-file={self._dir / 'ca.pem'}",
                *self.settings.controller_options,
            ],
            log=self.log_dir / f"{part}.log",
        )

    def _agent_program(self, number: int, share: Share | None) -> Program:
        settings = self.settings
        part = _numbered("agent", settings.nodes)[number]
        # Each begins with another controller, so that not all of them hang on the first.
        controllers = [self.ports.agents((number + k) % settings.controllers) for k in range(settings.controllers)]
        return Program(
            name=part,
            command=[
                *_pwm("agent"),
                *(f"--controllers={LOOPBACK}:{port}" for port in controllers),
                *(f"--join={url}" for url in self.urls),
                f"--join-token-file={self._join_token_file(number)}",
                f"--state-dir={self._dir / part}",
                f"--cluster={_cluster_name(self._dir)}",
                f"--docker-host={settings.docker_host}",
                f"--node={self._nodes[number]}",
                *(["--allow-process"] if settings.allow_process else []),
                *(_share_options(share) if share else []),
            ],
            log=self.log_dir / f"{part}.log",
        )

    # --- life -------------------------------------------------------------------------------------

    async def start(self, group: asyncio.TaskGroup) -> AsyncIterator[tuple[str, str]]:
        """Starts part after part; yields each one's name and what there is to say of it once it is ready."""
        # All at once: of several members none serves before most of them run.
        await self._launch(self._etcd, group)
        for number, child in enumerate(self._etcd):
            port = self.ports.client(number)
            await child.until_ready(partial(_etcd_answers, port), limit_s=ETCD_LIMIT_S)
            yield child.program.name, f"{_etcd_version(port)} at {LOOPBACK}:{port}"
        # The first alone: on an empty etcd it makes the tokens that the others only read.
        for children in (self._controllers[:1], self._controllers[1:]):
            await self._launch(children, group)
            for child in children:
                number = self._controllers.index(child)
                await child.until_ready(partial(self._controller_answers, number), limit_s=CONTROLLER_LIMIT_S)
                yield child.program.name, self.urls[number]
        async for name, about in self._start_agents(group):
            yield name, about

    async def _start_agents(self, group: asyncio.TaskGroup) -> AsyncIterator[tuple[str, str]]:
        shares: list[Share] = []
        if self.settings.nodes > 1:
            machine = await _machine(self.settings.docker_host)
            shares = deal(self.settings.nodes, **machine)
            yield "machine", _dealt(self.settings.nodes, **machine)
        self._agents = [
            Child(self._agent_program(number, shares[number] if shares else None), say=self._say)
            for number in range(self.settings.nodes)
        ]
        for number, node in enumerate(self._nodes):
            await asyncio.to_thread(self._make_join_token, number, node)
        await self._launch(self._agents, group)
        for node, child in zip(self._nodes, self._agents, strict=True):
            try:
                await child.until_ready(partial(self._node_is_ready, node), limit_s=NODE_LIMIT_S)
            except StartError as error:
                trouble = await asyncio.to_thread(self._node_trouble, node)
                raise StartError(f"{error}: {trouble}", log=error.log) from error
            yield child.program.name, await asyncio.to_thread(self._describe_node, node)

    def _join_token_file(self, number: int) -> Path:
        return self._dir / f"{_numbered('agent', self.settings.nodes)[number]}-join-token"

    def _make_join_token(self, number: int, node: str) -> None:
        """An agent that has a good certificate leaves it alone; it ends by itself."""
        answer = self._ask(0, "/v1/admin/join-tokens", {"node": node})
        if answer is None:
            raise StartError(f"node {node} gets no token to join with", log=self.log_dir / "controller.log")
        file = self._join_token_file(number)
        file.touch(mode=0o600)
        file.write_text(f"{answer['token']}\n")

    async def _launch(self, children: Sequence[Child], group: asyncio.TaskGroup) -> None:
        for child in children:
            await child.start()
            group.create_task(child.watch(), name=child.program.name)

    async def stop(self) -> None:
        """Agents, controllers, etcd: each can still tell the next one what it has to."""
        for children in (self._agents, self._controllers, self._etcd):
            await asyncio.gather(*(child.stop() for child in children))

    # --- what they say ----------------------------------------------------------------------------

    def _controller_answers(self, number: int) -> bool:
        return (self._dir / "admin-token").exists() and self._ask(number, "/readyz") is not None

    def _node_is_ready(self, node: str) -> bool:
        return self._node_trouble(node) == ""

    def _node_trouble(self, node: str) -> str:
        """What keeps the node from being READY; "" when it is, and connected to a controller that runs now.

        The phase alone may be from before: a node stays READY for a while after its agent has gone.
        """
        here: set[str] = set()
        agents: list[dict[str, Any]] = []
        for number in range(self.settings.controllers):
            status = self._ask(number, "/v1/admin/status") or {}
            here.update(replica["id"] for replica in status.get("replicas", []) if replica.get("answering"))
            agents += [agent for agent in status.get("agents", []) if agent.get("node") == node]
        if not here:
            return "no controller answers"
        if not agents:
            return f"node {node} has not joined"
        mine = next((agent for agent in agents if agent.get("replica") in here), None)
        if mine is None:
            return f"node {node} is not connected"
        return "" if mine.get("phase") == "READY" else f"node {node} is {mine.get('phase')}"

    def _ask(self, number: int, path: str, body: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """What a controller answers the admin; None when there is no good answer. Blocks."""
        from pwm.trust import TrustError, ask, pinned

        headers = {"Authorization": f"Bearer {self.token}"}
        try:
            context = pinned(self.authorities)
            method = "GET" if body is None else "POST"
            return ask(
                LOOPBACK, self.ports.gateway(number), method, path,
                context=context, body=body, headers=headers, limit_s=ANSWER_LIMIT_S,
            )  # fmt: skip
        except (OSError, TrustError):
            return None

    def _describe_node(self, node: str) -> str:
        answer = self._ask(0, f"/v1/resources/Node/{node}") or {}
        inventory = answer.get("resource", {}).get("status", {}).get("inventory", {})
        parts = [_cpus(inventory.get("cpuCount", 0)), format_bytes(int(inventory.get("memoryBytes", 0)))]
        if gpus := inventory.get("gpus"):
            parts.append(_count(len(gpus), "GPU"))
        parts += [f"{d.get('name')} {d.get('version', '')}".strip() for d in inventory.get("drivers", [])]
        return f"node {node}: {', '.join(parts)}"


@contextlib.contextmanager
def prepared(settings: Settings, *, say: Callable[[str], None]) -> Iterator[LocalCluster]:
    """A cluster that could start: directory locked, ports free, etcd and Docker there. Raises UpError."""
    etcd = found_etcd()
    if trouble := docker_trouble(settings.docker_host):
        if not settings.allow_process:
            raise trouble
        say(f"{trouble}; only the process driver can be used")
    with locked(settings.state_dir) as lock:
        peers = known_peers(settings.state_dir, settings.etcd)
        if settings.port:
            ports = Ports(first=settings.port, controllers=settings.controllers, members=settings.etcd, peers=peers)
        else:
            ports = free_ports(settings.controllers, settings.etcd, peers)
        demand_free(ports)
        remember_peers(settings.state_dir, ports)
        _say_who_is_missing(settings, say)
        cluster = LocalCluster(settings, ports=ports, etcd=etcd, say=say)
        running_at(lock, cluster.urls[0])
        yield cluster


def _say_who_is_missing(settings: Settings, say: Callable[[str], None]) -> None:
    """Agents that an earlier start on this directory had, and this one has not: their containers run on alone."""
    before = {path.name for path in settings.state_dir.glob("agent*") if path.is_dir()}
    if missing := sorted(before - set(_numbered("agent", settings.nodes))):
        say(f"not started: {', '.join(missing)} of an earlier `pwm up` here; what runs there waits for its return")


def _cluster_name(state_dir: Path) -> str:
    """Tells the containers of this cluster from those of another that uses the same engine."""
    file = state_dir / "cluster"
    if not file.exists():
        file.write_text(f"local-{secrets.token_hex(4)}\n")
    return file.read_text().strip()


def _numbered(name: str, count: int) -> list[str]:
    """The name alone for one; name-1, name-2 and so on for several."""
    return [name] if count == 1 else [f"{name}-{number}" for number in range(1, count + 1)]


def _share_options(share: Share) -> list[str]:
    gpus = [f"--gpus={uuid}" for uuid in share.gpus] or ["--gpus=none"]
    return [f"--cpus={share.cpus}", f"--memory={share.memory_bytes}", *gpus]


async def _machine(docker_host: str) -> dict[str, Any]:
    """What there is to deal out, as an agent on this machine would tell it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pwm.nodeagent.inventory",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "DOCKER_HOST": docker_host},
    )  # fmt: skip
    told, _ = await process.communicate()
    inventory = json.loads(told or b"{}")
    return {
        "cpus": int(inventory.get("cpuCount", 1)),
        "memory_bytes": int(inventory.get("memoryBytes", 0)),
        "gpus": [gpu["uuid"] for gpu in inventory.get("gpus", [])],
    }


def _dealt(nodes: int, *, cpus: int, memory_bytes: int, gpus: Sequence[str]) -> str:
    cores = _cpus(cpus) + (", of which each offers one" if nodes > cpus else "")
    devices = f", {_count(len(gpus), 'GPU')}" if gpus else ""
    return f"{cores}, {format_bytes(memory_bytes)}{devices}: shared by {nodes} nodes"


def _cpus(count: int) -> str:
    return _count(count, "CPU")


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _pwm(command: str) -> list[str]:
    """This program's own daemon, run by the same interpreter."""
    return [sys.executable, "-m", "pwm", command]


def _etcd_answers(port: int) -> bool:
    health = _get(port, "/health")
    return bool(health) and str((health or {}).get("health")).lower() == "true"


def _etcd_version(port: int) -> str:
    return str((_get(port, "/version") or {}).get("etcdserver", ""))


def _get(port: int, path: str) -> dict[str, Any] | None:
    """JSON of a GET from etcd; None when there is no good answer. Blocks."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=ANSWER_LIMIT_S)
    try:
        connection.request("GET", path)
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
