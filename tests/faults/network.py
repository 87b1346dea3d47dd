"""Hosts of a make-believe data centre: network namespaces on one bridge, and what can go wrong between them.

Everything lies in namespaces made here, the bridge too, so that nothing of the machine's own network is touched.
Links are cut by dropping packets as they arrive, which is what a partition looks like: no reset, no refusal, only
silence, and in one direction if wanted. Whoever drives the hosts sits on one of them (`enter`).
"""

import ctypes
import os
import secrets
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

CLONE_NEWNET = 0x40000000
Process: TypeAlias = "subprocess.Popen[bytes]"


@dataclass(frozen=True)
class Host:
    name: str
    namespace: str
    address: str


class Network:
    """`close` removes it all, in whatever state it is."""

    def __init__(self) -> None:
        self._outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        self._token = secrets.token_hex(3)
        self._switch = f"pf{self._token}-sw"
        self._count = 0
        self.hosts: dict[str, Host] = {}
        # Those with a link that is not as new: mending all would hold up who drives them for seconds.
        self._disturbed: set[Host] = set()
        _ip("netns", "add", self._switch)
        self._in(self._switch, "ip", "link", "add", "br0", "type", "bridge")
        self._in(self._switch, "ip", "link", "set", "br0", "up")

    def host(self, name: str) -> Host:
        """A new host with an address of its own."""
        self._count += 1
        made = Host(name, f"pf{self._token}-{name}", f"10.99.0.{self._count}")
        port, nic = f"p{self._count}", "eth0"
        _ip("netns", "add", made.namespace)
        self.hosts[name] = made
        _ip("-n", self._switch, "link", "add", port, "type", "veth", "peer", "name", nic, "netns", made.namespace)
        _ip("-n", self._switch, "link", "set", port, "master", "br0", "up")
        _ip("-n", made.namespace, "addr", "add", f"{made.address}/24", "dev", nic)
        _ip("-n", made.namespace, "link", "set", nic, "up")
        _ip("-n", made.namespace, "link", "set", "lo", "up")
        return made

    def start(
        self, host: Host, command: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None
    ) -> Process:
        """A process on the host, in a session of its own; what it prints goes to the log. Its pid is the program's."""

        # Not `ip netns exec`: that mounts another /sys, without the machine's control groups.
        inside = ["nsenter", f"--net=/run/netns/{host.namespace}", *command]
        with log.open("ab") as output:
            return subprocess.Popen(
                inside, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                env={**os.environ, **(environment or {})},
            )  # fmt: skip

    @contextmanager
    def enter(self, host: Host) -> Iterator[None]:
        """This thread's new sockets, and its children, are on the host meanwhile."""
        there = os.open(f"/run/netns/{host.namespace}", os.O_RDONLY)
        try:
            _setns(there)
            yield
        finally:
            _setns(self._outside)
            os.close(there)

    @contextmanager
    def leave(self) -> Iterator[None]:
        """This thread is where it was before it entered a host, meanwhile."""
        there = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            _setns(self._outside)
            yield
        finally:
            _setns(there)
            os.close(there)

    # ---- what goes wrong

    def cut(self, one: Host, other: Host, *, both_ways: bool = True) -> None:
        """Nothing that `one` sends arrives at `other`, nor the other way around unless told so."""
        self._rule("-A", other, one)
        if both_ways:
            self._rule("-A", one, other)

    def isolate(self, host: Host) -> None:
        """Nothing arrives at the host, and nothing that it sends arrives anywhere."""
        self._disturbed.add(host)
        self._in(host.namespace, "iptables", "-w", "-A", "INPUT", "!", "-i", "lo", "-j", "DROP")
        self._in(host.namespace, "iptables", "-w", "-A", "OUTPUT", "!", "-o", "lo", "-j", "DROP")

    def lose(self, host: Host, share: float) -> None:
        """This share of the packets that should arrive at the host is lost."""
        self._disturbed.add(host)
        self._in(
            host.namespace, "iptables", "-w", "-A", "INPUT", "!", "-i", "lo", "-m", "statistic", "--mode", "random",
            "--probability", f"{share:.3f}", "-j", "DROP",
        )  # fmt: skip

    def throttle(self, host: Host, rate: str) -> None:
        """The host sends no faster than this, such as `1mbit`; what waits is delayed."""
        self._disturbed.add(host)
        self._in(host.namespace, "tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "16kb",
                 "latency", "500ms")  # fmt: skip

    def mend(self) -> None:
        """All links are as new."""
        for host in self._disturbed:
            self._in(host.namespace, "iptables", "-w", "-F")
            subprocess.run(
                ["ip", "netns", "exec", host.namespace, "tc", "qdisc", "del", "dev", "eth0", "root"],
                capture_output=True, check=False,
            )  # fmt: skip
        self._disturbed.clear()

    def _rule(self, action: str, at: Host, source: Host) -> None:
        self._disturbed.add(at)
        self._in(at.namespace, "iptables", "-w", action, "INPUT", "-s", source.address, "-j", "DROP")

    def close(self) -> None:
        for namespace in [*(host.namespace for host in self.hosts.values()), self._switch]:
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)
        os.close(self._outside)

    def _in(self, namespace: str, *words: str) -> None:
        subprocess.run(["ip", "netns", "exec", namespace, *words], check=True, capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _setns(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
