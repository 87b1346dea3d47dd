"""What a PWM on one machine stands on: a directory of its own, free ports, an etcd to run, an engine that answers.

Everything here is looked at before the first process is started, so that what cannot work is said at once, as
one sentence and what to do about it (`UpError`). Next: `localcluster.py`, which starts the processes.

Ports come in rows of four: gateway, agents' gRPC, etcd's clients, etcd's peers. A first controller and a first
etcd member use the first row (4700 to 4703), the second ones a row ten further (4710 to 4713), and so on.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pwm.etcd_process import EtcdProcessError, find_etcd

DEFAULT_PORT = 4700
LOOPBACK = "127.0.0.1"
# Gateway, agents' gRPC, etcd's clients, etcd's peers.
ROW_PORTS = 4
# So that the rows are easy to tell apart: 4700, 4710, 4720.
ROW_STEP = 10
LAST_PORT = 65535
# An `up` that was killed leaves its children a moment to end and free their ports.
PORTS_FREE_LIMIT_S = 3.0
DOCKER_PING_LIMIT_S = 3.0
# Which peer ports the members of an etcd of several know each other by. One member alone needs none.
PEERS_FILE = "etcd-peers"


class UpError(Exception):
    """Why it cannot start, as a sentence, and what to do about it."""

    def __init__(self, message: str, *, next_step: str = "") -> None:
        super().__init__(message)
        self.next_step = next_step


@dataclass(frozen=True, kw_only=True)
class Ports:
    """Where each controller and each etcd member listens; both are counted from 0."""

    first: int
    controllers: int = 1
    members: int = 1
    # Peer ports of an etcd that was made before: they are part of its data. Empty: those of the rows.
    peers: tuple[int, ...] = ()

    def gateway(self, controller: int) -> int:
        return self.first + ROW_STEP * controller

    def agents(self, controller: int) -> int:
        return self.gateway(controller) + 1

    def client(self, member: int) -> int:
        return self.first + ROW_STEP * member + 2

    def peer(self, member: int) -> int:
        return self.peers[member] if self.peers else self.first + ROW_STEP * member + 3

    def all(self) -> list[int]:
        controllers, members = range(self.controllers), range(self.members)
        return [
            *(self.gateway(c) for c in controllers),
            *(self.agents(c) for c in controllers),
            *(self.client(m) for m in members),
            *(self.peer(m) for m in members),
        ]


def last_port(first: int, rows: int) -> int:
    """The last port that so many rows need."""
    return first + ROW_STEP * (rows - 1) + ROW_PORTS - 1


# --- ports ----------------------------------------------------------------------------------------


def free_ports(controllers: int, members: int, peers: tuple[int, ...]) -> Ports:
    """Rows of ports that are free now."""
    while True:
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
            first = int(probe.getsockname()[1])
        ports = Ports(first=first, controllers=controllers, members=members, peers=peers)
        wanted = [port for port in ports.all() if port not in peers]
        if max(wanted) <= LAST_PORT and all(_is_free(port) for port in wanted):
            return ports


def demand_free(ports: Ports) -> None:
    """Raises UpError when a port stays taken for longer than children of a former `up` need to end."""
    deadline = time.monotonic() + PORTS_FREE_LIMIT_S
    while taken := [p for p in sorted(ports.all()) if not _is_free(p)]:
        if time.monotonic() > deadline:
            raise UpError(
                f"port {taken[0]} of {LOOPBACK} is taken by another program", next_step=_instead(ports, taken[0])
            )
        time.sleep(0.1)


def _instead(ports: Ports, taken: int) -> str:
    if taken in ports.peers:
        return "The members of this etcd know each other by that port: free it, or begin anew with another --state-dir."
    rows = max(ports.controllers, ports.members)
    if rows == 1:
        needed = f"PWM takes {ROW_PORTS} ports in a row"
    else:
        needed = f"PWM takes {ROW_PORTS * rows} ports from {ports.first} to {last_port(ports.first, rows)}"
    return f"{needed}; choose others, such as --port {ports.first + 100}, or --port 0."


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do it: a connection that is still closing does not hold the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


# --- the directory --------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(state_dir: Path) -> Iterator[Any]:
    """The directory, made if need be, for this process alone; yields the lock's file, to say in it where we are."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise UpError(
            f"{state_dir} cannot be made: {error.strerror}", next_step="Choose another with --state-dir DIR."
        ) from error
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


def known_peers(state_dir: Path, members: int) -> tuple[int, ...]:
    """Peer ports of the etcd in this directory; none of a single member, or when it is still to be made.

    Raises UpError when there is an etcd of another number of members: its data is for exactly those.
    """
    file = state_dir / PEERS_FILE
    peers: tuple[int, ...] = tuple(json.loads(file.read_text())) if file.exists() else ()
    there = len(peers) or (1 if (state_dir / "etcd" / "member").exists() else 0)
    if there not in (0, members):
        raise UpError(
            f"the etcd in {state_dir} has {there} member{'s' if there > 1 else ''}, not {members}",
            next_step=f"Start it with --etcd {there}, or make a new one of {members} with another --state-dir.",
        )
    return peers


def remember_peers(state_dir: Path, ports: Ports) -> None:
    """Writes down by which ports the members know each other, before the first of them starts."""
    if ports.members > 1:
        (state_dir / PEERS_FILE).write_text(json.dumps([ports.peer(member) for member in range(ports.members)]))


def running_at(lock: Any, url: str) -> None:
    """Says in the lock's file who holds it."""
    lock.seek(0)
    lock.truncate()
    lock.write(json.dumps({"pid": os.getpid(), "url": url}))
    lock.flush()


# --- programs -------------------------------------------------------------------------------------


def found_etcd() -> str:
    try:
        return find_etcd()
    except EtcdProcessError as error:
        raise UpError(str(error)) from error


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


# --- sharing the machine --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one of several agents offers of their machine."""

    cpus: int
    memory_bytes: int
    gpus: tuple[str, ...]


def deal(nodes: int, *, cpus: int, memory_bytes: int, gpus: Sequence[str]) -> list[Share]:
    """Everybody's part. A node without a CPU could run nothing, so with more nodes than CPUs each offers one.

    GPUs are dealt out in runs, since neighbours are the ones that are well connected.
    """
    per_node = [len(gpus) // nodes + (node < len(gpus) % nodes) for node in range(nodes)]
    return [
        Share(
            cpus=max(1, cpus // nodes + (node < cpus % nodes)),
            memory_bytes=memory_bytes // nodes,
            gpus=tuple(gpus[sum(per_node[:node]) : sum(per_node[: node + 1])]),
        )
        for node in range(nodes)
    ]
