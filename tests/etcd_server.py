"""etcd for tests: one member shared by the whole session, and clusters of three for tests that break them.

Every test gets a key prefix of its own, so tests share the single member without seeing each other.
Where no etcd is installed the tests that need one are skipped by name, saying so.
"""

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pwm.controlplane.store.keys import Keys
from pwm.etcd_process import EtcdProcess, EtcdProcessError, find_etcd, free_port

_prefixes = itertools.count(1)


@dataclass(slots=True)
class Etcd:
    """A running etcd: `address` for a client, `keys` under a prefix that no other test uses."""

    address: str
    keys: Keys


@dataclass(slots=True)
class EtcdCluster:
    """Three members that a test may kill, freeze and restart, each by its name."""

    members: dict[str, EtcdProcess]
    keys: Keys
    frozen: set[str] = field(default_factory=set)

    @property
    def addresses(self) -> list[str]:
        return [member.address for member in self.members.values()]

    def kill(self, name: str) -> None:
        """kill -9, by process id."""
        self.members[name].kill()

    def restart(self, name: str) -> None:
        self.members[name].start()

    def freeze(self, name: str) -> None:
        os.kill(self.members[name].pid, signal.SIGSTOP)
        self.frozen.add(name)

    def thaw(self, name: str) -> None:
        os.kill(self.members[name].pid, signal.SIGCONT)
        self.frozen.discard(name)

    def start(self) -> None:
        for member in self.members.values():
            member.start(wait=False)
        for member in self.members.values():
            member.wait_until_healthy()

    def stop(self) -> None:
        for name in list(self.frozen):
            self.thaw(name)
        for member in self.members.values():
            member.kill()


def require_etcd() -> None:
    try:
        find_etcd()
    except EtcdProcessError as error:
        pytest.skip(f"needs etcd: {error}")


def make_cluster(directory: Path, *, unsafe_no_fsync: bool) -> EtcdCluster:
    """Three members on free ports, not started."""
    names = ["a", "b", "c"]
    ports = {name: (free_port(), free_port()) for name in names}
    peers = {name: f"http://127.0.0.1:{peer}" for name, (_, peer) in ports.items()}
    members = {
        name: EtcdProcess(
            directory / name,
            name=name,
            client_port=client,
            peer_port=peer,
            cluster=peers,
            unsafe_no_fsync=unsafe_no_fsync,
        )
        for name, (client, peer) in ports.items()
    }
    return EtcdCluster(members, Keys(b"/test/"))


@pytest.fixture(scope="session")
def etcd_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdProcess]:
    """The member that all tests share."""
    require_etcd()
    member = EtcdProcess(
        tmp_path_factory.mktemp("etcd"), client_port=free_port(), peer_port=free_port(), unsafe_no_fsync=True
    )
    try:
        member.start()
        yield member
    finally:
        member.kill()


@pytest.fixture
def etcd(etcd_process: EtcdProcess) -> Etcd:
    """The shared member, under a prefix of this test's own."""
    return Etcd(etcd_process.address, Keys(b"/test/%d/" % next(_prefixes)))


@pytest.fixture
def etcd_cluster(tmp_path: Path) -> Iterator[EtcdCluster]:
    """Three members of this test's own, on the disk as in production."""
    require_etcd()
    cluster = make_cluster(tmp_path, unsafe_no_fsync=False)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[Callable[..., EtcdProcess]]:
    """Starts single members with options of their own, for tests that fill or stop them."""
    require_etcd()
    started: list[EtcdProcess] = []

    def start(*, quota_bytes: int = 0) -> EtcdProcess:
        member = EtcdProcess(
            tmp_path / f"etcd-{len(started)}",
            client_port=free_port(),
            peer_port=free_port(),
            quota_bytes=quota_bytes,
            unsafe_no_fsync=True,
        )
        started.append(member)
        member.start()
        return member

    try:
        yield start
    finally:
        for member in started:
            member.kill()
