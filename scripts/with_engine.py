"""Runs a command with a Docker engine: `with_engine.py COMMAND...`.

If the engine of this machine answers (DOCKER_HOST, or the default socket), the command simply runs. If
not, and this is root with `dockerd` installed, an engine is started in a place of its own (socket, data
and pid file in a scratch directory), the command gets its DOCKER_HOST, and the engine is stopped and
its data removed afterwards, however the command ends. The engine runs in a session of its own, so that a
Ctrl-C in the terminal reaches the command and not the engine under it.
"""

# ruff: noqa: T201  (it speaks to a person)

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

DEFAULT_SOCKET = "/var/run/docker.sock"
# dockerd answers after 1-3 s here; a slow disk at first start takes longer.
ENGINE_START_LIMIT_S = 60.0
ENGINE_STOP_LIMIT_S = 30.0
PING_LIMIT_S = 3.0


def main(command: list[str]) -> int:
    if not command:
        print("usage: with_engine.py COMMAND...", file=sys.stderr)
        return 2
    host = os.environ.get("DOCKER_HOST", "")
    if (host and not host.startswith("unix://")) or answers(host.removeprefix("unix://") or DEFAULT_SOCKET):
        return run(command, dict(os.environ))
    dockerd = shutil.which("dockerd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if dockerd is None or os.geteuid() != 0:
        print(refusal(dockerd), file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGHUP):  # until there is a command to pass them to
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="pwm-engine-", dir="/var/lib"))
    engine = start(dockerd, scratch)
    try:
        if not wait_until_it_answers(engine, scratch):
            print("The Docker engine does not start. The end of its log:", file=sys.stderr)
            print("\n".join((scratch / "log").read_text().splitlines()[-8:]), file=sys.stderr)
            return 1
        return run(command, {**os.environ, "DOCKER_HOST": f"unix://{scratch}/docker.sock"})
    finally:
        stop(engine)
        unmount_below(scratch)
        shutil.rmtree(scratch, ignore_errors=True)


def answers(path: str) -> bool:
    """Whether a Docker engine answers on the socket."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(PING_LIMIT_S)
            connection.connect(path)
            connection.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            return b" 200 " in connection.recv(64)
    except OSError:
        return False


def refusal(dockerd: str | None) -> str:
    if dockerd is None:
        return "No Docker engine is installed. Install one:  sudo apt-get install docker.io"
    if os.access(DEFAULT_SOCKET, os.F_OK) and not os.access(DEFAULT_SOCKET, os.W_OK):
        return 'You may not use the Docker engine. Allow it:  sudo usermod -aG docker "$USER"  (then log in again)'
    return "No Docker engine is running. Start it:  sudo systemctl start docker"


def start(dockerd: str, scratch: pathlib.Path) -> subprocess.Popen[bytes]:
    # Only one bridge per machine can be docker0; an engine that died leaves it behind, and dockerd reuses it.
    with (scratch / "log").open("wb") as log:
        return subprocess.Popen(
            [
                dockerd,
                f"--host=unix://{scratch}/docker.sock",
                f"--data-root={scratch}/data",
                f"--exec-root={scratch}/exec",
                f"--pidfile={scratch}/pid",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def wait_until_it_answers(engine: subprocess.Popen[bytes], scratch: pathlib.Path) -> bool:
    deadline = time.monotonic() + ENGINE_START_LIMIT_S
    while time.monotonic() < deadline and engine.poll() is None:
        if answers(f"{scratch}/docker.sock"):
            return True
        time.sleep(0.05)
    return False


def run(command: list[str], environment: dict[str, str]) -> int:
    """Runs the command, passes SIGTERM and SIGHUP on to it, and returns its exit code as a shell would."""
    # The terminal sends Ctrl-C to the command too; here it only must not end the wait.
    signal.signal(signal.SIGINT, lambda *_: None)
    child = subprocess.Popen(command, env=environment)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: child.send_signal(received))
    code = child.wait()
    return code if code >= 0 else 128 - code


def stop(engine: subprocess.Popen[bytes]) -> None:
    engine.terminate()
    try:
        engine.wait(ENGINE_STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        engine.kill()
        engine.wait()


def unmount_below(scratch: pathlib.Path) -> None:
    """What an engine that did not stop cleanly left mounted keeps its directory from being removed."""
    mounts = [line.split()[1] for line in pathlib.Path("/proc/mounts").read_text().splitlines()]
    for mount in reversed([m for m in mounts if m.startswith(f"{scratch}/")]):
        subprocess.run(["umount", "-l", mount], check=False)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
