"""Docker engines for tests: the one that runs on this machine, or engines of the tests' own.

`docker_engine` is what most tests want: the machine's engine (DOCKER_HOST or the default socket); where none
answers and the tests run as root with `dockerd` installed, an engine of their own is started and stopped with
the session; else the test is skipped and says why.

`isolated_dockerd` makes engines that a test may kill, restart and configure: own data root, exec root, socket,
bridge and containerd namespaces, so nothing that happens to them touches the machine's engine.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import docker
import pytest

# dockerd starts a containerd of its own first; on two busy cores that took up to 6 s.
START_TIMEOUT_S = 60.0
# SIGTERM lets dockerd stop its containers (10 s grace each, in parallel) before it ends.
STOP_TIMEOUT_S = 30.0
_POLL_S = 0.05
_PING_S = 5.0
NVIDIA_HOOK_DIR = Path(__file__).parent / "fakenvml" / "hook"


@dataclass(frozen=True)
class DockerEngine:
    """A running engine: what to put in DOCKER_HOST."""

    host: str

    def client(self) -> docker.DockerClient:
        return docker.DockerClient(base_url=self.host, version="auto", timeout=60)


class IsolatedDockerd:
    """A dockerd that a test owns: start, kill -9, stop and start again as the test likes."""

    def __init__(self, *, live_restore: bool = False, gpu_hook: bool = False, args: Sequence[str] = ()) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="pwm-dockerd-"))
        self.host = f"unix://{self.root}/docker.sock"
        self.hook_log = self.root / "hook.log"
        self._bridge = f"pwm{secrets.token_hex(4)}"
        self._live_restore = live_restore
        self._gpu_hook = gpu_hook
        self._args = tuple(args)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "dockerd was not started"
        return self._process.pid

    @property
    def engine(self) -> DockerEngine:
        return DockerEngine(self.host)

    def client(self) -> docker.DockerClient:
        return self.engine.client()

    def start(self) -> None:
        """Starts dockerd and waits until it answers."""
        assert self._process is None, "dockerd runs already"
        self._ensure_bridge()
        for stale in ("docker.pid", "docker.sock"):
            (self.root / stale).unlink(missing_ok=True)
        with (self.root / "dockerd.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment()
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not answers(self.host):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"dockerd did not start:\n{self._log_tail()}")
            time.sleep(_POLL_S)

    def kill(self) -> None:
        """kill -9; containers live on only with `live_restore`."""
        assert self._process is not None, "dockerd does not run"
        self._process.kill()
        self._process.wait()
        self._process = None
        self._wait_for_containerd_to_die()

    def stop(self) -> None:
        """SIGTERM, then SIGKILL when it takes too long."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def pause(self) -> None:
        """Hangs dockerd (SIGSTOP); `resume` lets it go on."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """Removes containers, engine, mounts, bridge and files; safe in any state."""
        try:
            if self._process is None or self._process.poll() is not None:
                self._process = None
                self.start()
            self.resume()
            self._remove_containers()
        finally:
            self.stop()
            subprocess.run(["ip", "link", "del", self._bridge], capture_output=True, check=False)
            _unmount_below(self.root)
            shutil.rmtree(self.root, ignore_errors=True)

    def _remove_containers(self) -> None:
        client = self.client()
        try:
            for container in client.containers.list(all=True, ignore_removed=True):
                container.remove(force=True, v=True)
        finally:
            client.close()

    def _wait_for_containerd_to_die(self) -> None:
        """Its own containerd dies with dockerd; a new dockerd that still sees it would wait for it in vain."""
        pid_file = self.root / "exec" / "containerd" / "containerd.pid"
        if not pid_file.exists():
            return
        process = Path("/proc") / pid_file.read_text().strip()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while process.exists() and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def _command(self) -> list[str]:
        command = [
            "dockerd",
            f"--host={self.host}",
            f"--data-root={self.root}/data",
            f"--exec-root={self.root}/exec",
            f"--pidfile={self.root}/docker.pid",
            f"--containerd-namespace={self._bridge}",
            f"--containerd-plugins-namespace={self._bridge}-plugins",
            f"--bridge={self._bridge}",
            # No rules of its own: the machine's engine owns the tables.
            "--iptables=false",
            "--ip-masq=false",
            "--ip-forward=false",
        ]
        if self._live_restore:
            command.append("--live-restore")
        return [*command, *self._args]

    def _environment(self) -> Mapping[str, str]:
        environment = dict(os.environ)
        if self._gpu_hook:
            # dockerd registers its GPU driver when it finds the hook on its PATH at start.
            environment["PATH"] = f"{NVIDIA_HOOK_DIR}:{environment.get('PATH', '')}"
            environment["FAKE_NVIDIA_HOOK_LOG"] = str(self.hook_log)
        return environment

    def _ensure_bridge(self) -> None:
        # Asked of the network namespace that this runs in, which /sys may not be of.
        if subprocess.run(["ip", "link", "show", self._bridge], capture_output=True, check=False).returncode == 0:
            return
        # Room for 4,000 containers at once, somewhere that two engines hardly ever share.
        second, third = 128 + secrets.randbelow(128), secrets.randbelow(16) * 16
        subprocess.run(["ip", "link", "add", self._bridge, "type", "bridge"], check=True)
        subprocess.run(["ip", "addr", "add", f"10.{second}.{third}.1/20", "dev", self._bridge], check=True)
        subprocess.run(["ip", "link", "set", self._bridge, "up"], check=True)

    def _log_tail(self) -> str:
        return (self.root / "dockerd.log").read_text(errors="replace")[-4000:]


def answers(host: str) -> bool:
    """Whether an engine answers a ping there."""
    address = urlsplit(host)
    family = socket.AF_UNIX if address.scheme == "unix" else socket.AF_INET
    with socket.socket(family) as connection:
        connection.settimeout(_PING_S)
        try:
            connection.connect(address.path if address.scheme == "unix" else (address.hostname, address.port or 2375))
            connection.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            return b" 200 " in connection.recv(64)
        except OSError:
            return False


def why_no_dockerd() -> str | None:
    """Why this machine cannot start an engine of the tests' own; None when it can."""
    if os.geteuid() != 0:
        return "needs root to start a dockerd of its own"
    missing = [program for program in ("dockerd", "containerd", "runc", "ip") if shutil.which(program) is None]
    return f"needs {', '.join(missing)} (apt install docker.io iproute2)" if missing else None


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[DockerEngine]:
    """The machine's engine, else one of the tests' own, else a skip that says why."""
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if answers(host):
        yield DockerEngine(host)
        return
    reason = why_no_dockerd()
    if reason:
        pytest.skip(f"no Docker engine answers at {host}, and this test run {reason}")
    own = IsolatedDockerd()
    try:
        own.start()
        yield own.engine
    finally:
        own.close()


IsolatedDockerdFactory = Callable[..., IsolatedDockerd]


@pytest.fixture
def isolated_dockerd() -> Iterator[IsolatedDockerdFactory]:
    """`isolated_dockerd(live_restore=…, gpu_hook=…, args=…)` starts an engine that the test may kill."""
    reason = why_no_dockerd()
    if reason:
        pytest.skip(f"an isolated Docker engine {reason}")
    engines: list[IsolatedDockerd] = []

    def make(*, live_restore: bool = False, gpu_hook: bool = False, args: Sequence[str] = ()) -> IsolatedDockerd:
        engine = IsolatedDockerd(live_restore=live_restore, gpu_hook=gpu_hook, args=args)
        engines.append(engine)
        engine.start()
        return engine

    yield make
    for engine in engines:
        engine.close()


def _unmount_below(root: Path) -> None:
    """dockerd killed with -9 leaves overlay and namespace mounts behind."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in sorted((m for m in mounts if m.startswith(f"{root}/")), reverse=True):
        subprocess.run(["umount", "-l", mount], capture_output=True, check=False)
