"""Stands between the agent and one real process, so that the process outlives the agent.

    python -I -S process_shim.py run FOLDER   starts what FOLDER/config.json says and watches it to its end
    python -I -S process_shim.py exec FILE    becomes another command in surroundings such as FILE says; deletes it

`run` goes into the background, starts the process in a session of its own, writes FOLDER/started, and only then
lets its caller go on. It turns what the process prints into log records, and when the process has ended it kills
what that left behind and writes FOLDER/exit. It holds a lock on FOLDER/lock while it lives, so an agent that comes
back knows which of these files still mean something. It dies with SIGKILL only; then the kernel takes the process
with it, for what nobody watches must not go on using a GPU.

Runs without site-packages in a few megabytes: standard library only, nothing of pwm.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import resource
import select
import signal
import struct
import sys
import termios
import time
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38
# As much as a pipe holds; each read becomes one record.
_READ_BYTES = 64 << 10
# A process that hands its output to a survivor of the final kill (there is none but in other namespaces).
_LAST_OUTPUT_S = 1.0
_KILL_ROUNDS = 100
_KILL_PAUSE_S = 0.01
# What a shell says when a command cannot be run, or cannot be found.
CANNOT_RUN, NOT_FOUND = 126, 127


def encode(*, stderr: bool, time_ns: int, data: bytes) -> bytes:
    """A record as Docker's `local` log driver writes it, of bytes as they came (partial: without a newline to add)."""
    message = b"\n\x06stderr\x10" if stderr else b"\n\x06stdout\x10"
    message += _varint(time_ns) + b"\x1a" + _varint(len(data)) + data + b"\x20\x01"
    length = struct.pack(">I", len(message))
    return length + message + length


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class RotatingLog:
    """PATH, PATH.1, ... as Docker rotates them; loses the oldest, never blocks the process for ever."""

    def __init__(self, path: str, *, max_bytes: int, max_files: int) -> None:
        self._path, self._max_bytes, self._max_files = path, max_bytes, max_files
        self._open()

    def write(self, *, stderr: bool, data: bytes) -> None:
        record = encode(stderr=stderr, time_ns=time.time_ns(), data=data)
        if self._size + len(record) > self._max_bytes:
            self._rotate()
        view = memoryview(record)
        while view:
            try:
                written = os.write(self._fd, view)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                # The process waits on its full pipe meanwhile, as it would for a slow terminal.
                time.sleep(0.2)
                continue
            view = view[written:]
        self._size += len(record)

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._fd).st_size

    def _rotate(self) -> None:
        os.close(self._fd)
        for number in range(self._max_files - 1, 0, -1):
            newer = Path(f"{self._path}.{number - 1}" if number > 1 else self._path)
            if newer.exists():
                newer.rename(f"{self._path}.{number}")
        self._open()


def run(folder: Path) -> NoReturn:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    ready, tell = os.pipe2(os.O_CLOEXEC)
    if os.fork():
        # The agent's child ends here, as soon as the process runs or cannot.
        os.close(tell)
        os._exit(0 if os.read(ready, 1) == b"1" else 1)
    os.close(ready)
    os.setsid()
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    pid, outputs = _start(config, folder, libc)
    if pid:
        started = {"pid": pid, "pid_started": start_ticks(pid), "shim": os.getpid(), "at": time.time_ns()}
        _write(folder, "started", started)
        os.write(tell, b"1")
    os.close(tell)
    if not pid:
        os._exit(1)
    code = _watch(pid, outputs, RotatingLog(config["log"], **config["log_limits"]), config["cgroups"])
    _write(folder, "exit", {"code": code, "at": time.time_ns()})
    os._exit(0)


def _start(config: dict[str, Any], folder: Path, libc: ctypes.CDLL) -> tuple[int, dict[int, bool]]:
    """(pid, {descriptor: is it stderr}); pid 0 when it could not be started and FOLDER/error says why."""
    failed, fail = os.pipe2(os.O_CLOEXEC)
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    if config["tty"]:
        master, slave = os.openpty()
        os.set_inheritable(master, False)
        descriptors, outputs, ours = (slave, slave, slave), {master: False}, [slave]
    else:
        out, out_end = os.pipe2(os.O_CLOEXEC)
        err, err_end = os.pipe2(os.O_CLOEXEC)
        descriptors, outputs, ours = (null, out_end, err_end), {out: False, err: True}, [out_end, err_end]
    pid = os.fork()
    if not pid:
        try:
            os.setsid()
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            for target, source in enumerate(descriptors):
                os.dup2(source, target)
            become(config, libc)
        except OSError as error:
            os.write(fail, json.dumps({"errno": error.errno, "file": str(error.filename or "")}).encode())
        finally:
            os._exit(CANNOT_RUN)
    for descriptor in (fail, null, *ours):
        os.close(descriptor)
    reason = os.read(failed, 4096)
    os.close(failed)
    if reason:
        os.waitpid(pid, 0)
        _write(folder, "error", json.loads(reason))
        return 0, {}
    return pid, outputs


def become(config: dict[str, Any], libc: ctypes.CDLL) -> NoReturn:
    """Turns this process into the command: limits, surroundings and user first. Raises OSError."""
    for procs in config["cgroups"]:
        Path(procs).write_text("0", "ascii")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if config["data_bytes"]:
        resource.setrlimit(resource.RLIMIT_DATA, (config["data_bytes"], config["data_bytes"]))
    if config["cpu_ids"]:
        os.sched_setaffinity(0, config["cpu_ids"])
    if config["tty"]:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    if config["uid"] is not None:
        os.setgroups([])
        os.setgid(config["gid"])
        os.setuid(config["uid"])
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if config["die_with_parent"]:
        # After the change of user, which clears it.
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    os.umask(0o022)
    os.chdir(config["cwd"])
    # Those that are in no file come by the way of this process's own.
    env = config["env"] | {name: os.environ[name] for name in config["secret_env"]}
    os.execvpe(config["argv"][0], config["argv"], env)


def _watch(pid: int, outputs: dict[int, bool], log: RotatingLog, cgroups: list[str]) -> int:
    """Logs what is printed until the process has ended; returns its exit code as a shell gives it."""
    pidfd = os.pidfd_open(pid)
    poll = select.poll()
    for descriptor in (pidfd, *outputs):
        poll.register(descriptor, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        _log_ready(ready & outputs.keys(), outputs, poll, log)
        if pidfd in ready:
            break
    poll.unregister(pidfd)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    _kill_rest(cgroups)
    deadline = time.monotonic() + _LAST_OUTPUT_S
    while outputs and time.monotonic() < deadline:
        ready = {descriptor for descriptor, _ in poll.poll(100)}
        _log_ready(ready, outputs, poll, log)
    return code if code >= 0 else 128 - code


def _log_ready(ready: set[int], outputs: dict[int, bool], poll: select.poll, log: RotatingLog) -> None:
    for descriptor in ready:
        try:
            data = os.read(descriptor, _READ_BYTES)
        except OSError:
            # A terminal whose other side is closed.
            data = b""
        if data:
            log.write(stderr=outputs[descriptor], data=data)
        else:
            poll.unregister(descriptor)
            os.close(descriptor)
            del outputs[descriptor]


def _kill_rest(cgroups: list[str]) -> None:
    """Everything the process left behind: orphans come to this subreaper, whatever session they went to."""
    for _ in range(_KILL_ROUNDS):
        rest = set(children(os.getpid()))
        for procs in cgroups:
            rest.update(int(line) for line in Path(procs).read_text("ascii").split())
        rest.discard(os.getpid())
        for pid in rest:
            _signal(pid)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            if not rest:
                return
        time.sleep(_KILL_PAUSE_S)


def _signal(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()]
    except FileNotFoundError:
        return []


def start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since boot: with the pid it names a process for ever."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace")
        return int(stat.rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def watches(folder: Path) -> bool:
    """Whether the shim of this folder lives."""
    try:
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _write(folder: Path, name: str, content: dict[str, Any]) -> None:
    """Whole or not at all."""
    new = folder / f"{name}.new"
    new.write_text(json.dumps(content), "utf-8")
    new.rename(folder / name)


def execute(file: Path) -> NoReturn:
    config = json.loads(file.read_text("utf-8"))
    file.unlink()
    try:
        become(config, ctypes.CDLL(None, use_errno=True))
    except OSError as error:
        sys.stderr.write(f"{error.strerror}: {error.filename or config['argv'][0]}\n")
        sys.stderr.flush()
        os._exit(NOT_FOUND if error.errno == errno.ENOENT else CANNOT_RUN)


if __name__ == "__main__":
    if sys.argv[1] == "run":
        run(Path(sys.argv[2]))
    else:
        execute(Path(sys.argv[2]))
