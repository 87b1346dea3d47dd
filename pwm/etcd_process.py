"""An etcd of our own: found, started as a child process, watched until it is healthy, stopped.

`pwm up` runs one member for a single machine, the tests start members by the dozen, and both want the same
things: the binary named by PWM_ETCD_BIN or the one on PATH, loopback only, no automatic compaction (the
control plane compacts behind its own retention), and an end that leaves no process behind. A bigger
installation runs its own etcd and gives its addresses. Standard library only, so that the command line stays
quick to start.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

BINARY_VARIABLE = "PWM_ETCD_BIN"
CLIENT_PORT = 4702
PEER_PORT = 4703
HEALTHY_WITHIN_S = 20.0
"""A start with a few gigabytes of data takes some seconds; a start that fails ends at once."""

STOP_GRACE_S = 10.0
# Below Linux's ephemeral ports, which begin at 32768.
FREE_PORTS = (15_000, 32_000)
_given_out: set[int] = set()
POLL_S = 0.05


class EtcdProcessError(Exception):
    """etcd could not be found or started. The text is a sentence for the user."""


@dataclass(slots=True)
class EtcdProcess:
    """One member. `data_dir` keeps its data and its log, `etcd.log`.

    `cluster` maps the names of all members to their peer addresses; a single member needs none. Members of one
    cluster have a `cluster_token` in common, so that others on ports that were theirs are never taken for them.
    `unsafe_no_fsync` is for tests only: a crash of the machine loses data.
    """

    data_dir: Path
    name: str = "pwm"
    client_port: int = CLIENT_PORT
    peer_port: int = PEER_PORT
    cluster: dict[str, str] = field(default_factory=dict)
    cluster_token: str = ""
    quota_bytes: int = 0
    unsafe_no_fsync: bool = False
    _child: "subprocess.Popen[bytes] | None" = None

    @property
    def address(self) -> str:
        """Where clients reach it, as host:port."""
        return f"127.0.0.1:{self.client_port}"

    @property
    def peer_url(self) -> str:
        return f"http://127.0.0.1:{self.peer_port}"

    @property
    def pid(self) -> int:
        """The process id, 0 when it does not run."""
        return self._child.pid if self._child and self._child.poll() is None else 0

    def start(self, *, wait: bool = True) -> None:
        """Starts the member and by default waits until it serves. Raises EtcdProcessError."""
        binary = find_etcd()
        self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.data_dir / "etcd.log").open("ab") as log:
            # A session of its own: Ctrl-C in the terminal ends the controller first, then etcd by `stop`.
            self._child = subprocess.Popen(
                self.command(binary), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        if wait:
            self.wait_until_healthy()

    def command(self, binary: str) -> list[str]:
        """The command line, for whoever runs the process differently (`pwm up` keeps it running)."""
        client_url = f"http://{self.address}"
        cluster = self.cluster or {self.name: self.peer_url}
        command = [
            binary,
            f"--name={self.name}",
            f"--data-dir={self.data_dir / 'member'}",
            f"--listen-client-urls={client_url}",
            f"--advertise-client-urls={client_url}",
            f"--listen-peer-urls={self.peer_url}",
            f"--initial-advertise-peer-urls={self.peer_url}",
            "--initial-cluster=" + ",".join(f"{name}={url}" for name, url in cluster.items()),
            "--initial-cluster-state=new",
            "--auto-compaction-retention=0",
            "--logger=zap",
            "--log-level=warn",
        ]
        if self.cluster_token:
            command.append(f"--initial-cluster-token={self.cluster_token}")
        if self.quota_bytes:
            command.append(f"--quota-backend-bytes={self.quota_bytes}")
        if self.unsafe_no_fsync:
            command.append("--unsafe-no-fsync")
        return command

    def wait_until_healthy(self, within_s: float = HEALTHY_WITHIN_S) -> None:
        """Returns when the member serves with a leader. Raises EtcdProcessError with the log's last line."""
        deadline = time.monotonic() + within_s
        while not self.healthy():
            if self._child is None or self._child.poll() is not None:
                raise EtcdProcessError(f"etcd stopped right after its start: {self._last_words()}")
            if time.monotonic() > deadline:
                raise EtcdProcessError(f"etcd was not healthy within {within_s:.0f} s: {self._last_words()}")
            time.sleep(POLL_S)

    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.address}/health", timeout=1.0) as answer:
                return bool(json.load(answer).get("health") == "true")
        except (OSError, ValueError):
            return False

    def stop(self) -> None:
        """Ends the member and waits for it, by force after a grace."""
        child, self._child = self._child, None
        if child is None:
            return
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def kill(self) -> None:
        """Ends the member without any warning, as a crash would."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()

    def _last_words(self) -> str:
        try:
            lines = (self.data_dir / "etcd.log").read_text(errors="replace").strip().splitlines()
        except OSError:
            return "it left no log"
        return lines[-1][:500] if lines else "it left no log"


def find_etcd() -> str:
    """The etcd to run. Raises EtcdProcessError saying how to get one."""
    named = os.environ.get(BINARY_VARIABLE)
    found = shutil.which(named or "etcd")
    if found is None:
        where = f"{BINARY_VARIABLE} names {named}, which is no program" if named else "there is no etcd on PATH"
        raise EtcdProcessError(f"{where}: install the package etcd-server, or set {BINARY_VARIABLE}")
    return found


def free_port() -> int:
    """A port of the loopback interface that nothing uses at the moment, and that is given out only once.

    Not one of those from which the kernel takes the near ends of connections: it might be taken in a moment.
    """
    while True:
        port = random.randrange(*FREE_PORTS)
        if port in _given_out:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given_out.add(port)
        return port
