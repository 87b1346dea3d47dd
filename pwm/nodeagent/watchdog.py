"""Ends what may start elsewhere when the agent itself is not there to do it.

    python -S -P -m pwm.nodeagent.watchdog SETTINGS     (JSON of `Settings`; `guard.py` starts it)

An agent that is killed, or frozen, cannot keep the promise of `fence.py` although its machine and its containers
live on. This process keeps it then. It is the agent's child, but in a session of its own, and outlives it; they
share nothing but a page of memory, the mapped file STATE/promise, where the agent notes when it was last heard.
Once the agent's own fence has had its chance and every grace is over, which leaves half of the margin, this one kills
whatever still runs and carries the label, and goes on looking for as long as nobody is heard.

*Numbers are read whole.* Each is one aligned word, stored at once. They are no snapshot together, and need not
be: times that are half the old and half the new ones are only found while the agent is heard, and then any of them
is far away.

*One is on duty.* A watchdog that has come up writes its mark into the file; the one before sees that and leaves. So
a new agent, or one whose watchdog died, is never without, and nobody is sent a signal who might be somebody else.
It also leaves when the promise was taken back, and, once everything has ended, when its agent is dead.

*Too late is too late.* If the node is lost already when this is first looked at, the machine slept, or nobody was
there; the agent then tries to reach a controller before it ends anything (`fence.py`), and is given the time for it.

What is killed is noted in STATE/killed first, so that an agent that comes back can say why. Runs without site-packages
in 13 MiB: standard library only, and no `http.client`, which would be 6 MiB more.
"""

import contextlib
import json
import mmap
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pwm.nodeagent.drivers import process_shim

# How long at most nothing is looked at: so long a predecessor stays, and something may start behind our back.
TICK_S = 1.0
# Between attempts while something lives on, or the engine does not answer.
RETRY_S = 0.2
# For an agent that woke up too late: its own last chance, and a second to notice and one to act.
LAST_CHANCE_MS = 7_000
# An engine that takes longer is asked again.
ANSWER_S = 5.0
# Kills at once, each a connection; descriptors are limited to 1,024.
KILLS_AT_ONCE = 256
# When memory runs out, the kernel takes nearly anything else first.
OOM_SCORE = "-900"
# As in specs, in the label `pwm.on-node-lost` of containers and in the configuration of shims.
RESCHEDULE = "reschedule"
LEAVE, WAIT, END = "leave", "wait", "end"
PROMISE, KILLED = "promise", "killed"

Note = Callable[[str], None]


# ---- what both sides know


class Promise(NamedTuple):
    """Since when the agent has not been heard, on the clock of elapsed time, and what follows; 0: nothing."""

    heard_ms: int = 0
    self_fence_ms: int = 0
    lost_after_ms: int = 0


class Settings(NamedTuple):
    # The state folder, and the agent's pid.
    state: str
    agent: int
    # The engine's socket, and the labels of what is to be ended.
    docker: str
    labels: list[str]
    # The process driver's folder; empty: it is not in use.
    processes: str


def graces_end_ms(self_fence_ms: int, lost_after_ms: int) -> int:
    """Silence after which every grace is over: half of the margin is left, for engines and for clocks that drift."""
    return (self_fence_ms + lost_after_ms) // 2


def elapsed_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


class PromiseFile:
    """What the agent and its watchdog share, in the state folder. Reading and writing costs no system call."""

    _ON_DUTY, _HEARD, _SELF_FENCE, _LOST_AFTER, _CELLS = range(5)

    def __init__(self, folder: Path) -> None:
        """Raises OSError."""
        self._path = folder / PROMISE
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # A disk that is full later must not fail a write to memory.
            os.posix_fallocate(descriptor, 0, self._CELLS * 8)
            mapped = mmap.mmap(descriptor, self._CELLS * 8)
            self._file = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        self._cells = memoryview(mapped).cast("Q")

    @property
    def promise(self) -> Promise:
        cells = self._cells
        return Promise(cells[self._HEARD], cells[self._SELF_FENCE], cells[self._LOST_AFTER])

    def keep(self, promise: Promise) -> None:
        """Obligations last, so that there are none before it is known since when."""
        cells = self._cells
        cells[self._HEARD] = promise.heard_ms
        cells[self._LOST_AFTER] = promise.lost_after_ms
        cells[self._SELF_FENCE] = promise.self_fence_ms

    def enter(self, mark: int) -> None:
        self._cells[self._ON_DUTY] = mark

    def is_on_duty(self, mark: int) -> bool:
        """Until somebody else enters, in this file or in one that has taken its place."""
        if self._cells[self._ON_DUTY] != mark:
            return False
        try:
            return os.path.samestat(self._path.stat(), self._file)
        except OSError:
            return True


class Killed:
    """Names of containers that were killed here, as empty files: a set that both sides see."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / KILLED

    def __contains__(self, uid: str) -> bool:
        return (self._folder / uid).exists()

    def add(self, uid: str) -> None:
        # Without a disk to note it on, it still has to be killed.
        with contextlib.suppress(OSError):
            self._folder.mkdir(mode=0o700, exist_ok=True)
            (self._folder / uid).touch()

    def discard(self, uid: str) -> None:
        with contextlib.suppress(OSError):
            (self._folder / uid).unlink()


# ---- the decision


class Watch:
    """What is to be done, from the promise and the time; remembers only since when it acts."""

    def __init__(self) -> None:
        self._overdue = -1
        self._acts_from_ms = 0

    def look(self, promise: Promise, *, on_duty: bool, now_ms: int) -> tuple[str, int]:
        """LEAVE, WAIT for so many milliseconds at most, or END what may have a successor."""
        heard_ms, self_fence_ms, lost_after_ms = promise
        if not on_duty or not heard_ms or not self_fence_ms:
            return LEAVE, 0
        left_ms = heard_ms + graces_end_ms(self_fence_ms, lost_after_ms) - now_ms
        if left_ms > 0:
            return WAIT, left_ms
        if self._overdue != heard_ms:
            self._overdue = heard_ms
            self._acts_from_ms = now_ms + LAST_CHANCE_MS if now_ms >= heard_ms + lost_after_ms else now_ms
        left_ms = self._acts_from_ms - now_ms
        return (WAIT, left_ms) if left_ms > 0 else (END, 0)


# ---- how things end


class EngineError(Exception):
    """The engine does not answer, or answers something strange."""


class Docker:
    """Containers with all of these labels. A kill reaches a paused one too: the engine lets it go on, into its end."""

    def __init__(self, path: str, labels: list[str]) -> None:
        self._path = path
        filters = json.dumps({"label": labels}).encode()
        self._list = "/containers/json?filters=" + "".join(f"%{byte:02x}" for byte in filters)

    def end(self, note: Note) -> bool:
        """Kill what runs; whether there was nothing. Raises EngineError."""
        alive = json.loads(_answer(self._asked("GET", self._list), wanted=(200,)))
        for first in range(0, len(alive), KILLS_AT_ONCE):
            self._kill(alive[first : first + KILLS_AT_ONCE], note)
        return not alive

    def _kill(self, containers: list[dict[str, Any]], note: Note) -> None:
        """All at the same time, as the engine takes as long for one as for many; none has to suffer for another."""
        asked: list[socket.socket] = []
        troubles: list[EngineError] = []
        for container in containers:
            note(container["Labels"].get("pwm.uid", container["Id"]))
        for container in containers:
            try:
                asked.append(self._asked("POST", f"/containers/{container['Id']}/kill"))
            except EngineError as error:
                troubles.append(error)
        for connection in asked:
            try:
                # 404, 409: it ended by itself.
                _answer(connection, wanted=(204, 404, 409))
            except EngineError as error:
                troubles.append(error)
        if troubles:
            raise troubles[0]

    def _asked(self, method: str, path: str) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(ANSWER_S)
        try:
            connection.connect(self._path)
            # With 1.0 the answer ends with the connection, in one piece.
            connection.sendall(f"{method} {path} HTTP/1.0\r\nHost: docker\r\nContent-Length: 0\r\n\r\n".encode())
        except OSError as error:
            connection.close()
            raise EngineError(f"the Docker engine cannot be reached: {error}") from error
        return connection


def _answer(connection: socket.socket, *, wanted: tuple[int, ...]) -> bytes:
    received = bytearray()
    try:
        with connection:
            while data := connection.recv(65536):
                received += data
        head, _, body = bytes(received).partition(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
    except (OSError, ValueError, IndexError) as error:
        raise EngineError(f"the Docker engine does not answer: {error}") from error
    if status not in wanted:
        raise EngineError(f"the Docker engine answers {status}: {body.decode(errors='replace').strip()}")
    return body


class Processes:
    """The process driver's, in their folders (`drivers/process.py`). Their shims kill what they leave behind."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def end(self, note: Note) -> bool:
        """Kill what runs; whether there was nothing."""
        alive = False
        if not self._folder.is_dir():
            # Somebody has removed the state folder.
            return True
        for folder in self._folder.iterdir():
            started = _started(folder)
            if started is not None and process_shim.watches(folder):
                alive = True
                note(folder.name)
                _kill(started["pid"], started["pid_started"])
        return not alive


def _started(folder: Path) -> dict[str, Any] | None:
    """The process of a folder, if it is to be ended; one that was removed just now, or never ran, is not."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        started: dict[str, Any] = json.loads((folder / "started").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return started if config.get("on_node_lost") == RESCHEDULE else None


def _kill(pid: int, started: int) -> None:
    """The process that started then, and no other that has its number now."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            if process_shim.start_ticks(pid) == started:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)


# ---- the process


class HeardAgain(Exception):
    """While an engine took its time to answer, the agent was heard: nothing is to be ended any more."""


class Watchdog:
    def __init__(self, settings: Settings) -> None:
        self._agent = settings.agent
        self._file = PromiseFile(Path(settings.state))
        self._killed = Killed(Path(settings.state))
        # First what nothing can hold up.
        self._engines: list[Processes | Docker] = [Processes(Path(settings.processes))] if settings.processes else []
        self._engines.append(Docker(settings.docker, settings.labels))
        self._said: set[str] = set()
        # The contact after which something is being ended.
        self._ends_after_ms = 0

    def run(self) -> None:
        mark = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._file.enter(mark)
        watch = Watch()
        while True:
            now_ms = elapsed_ms()
            promise = self._file.promise
            action, wait_ms = watch.look(promise, on_duty=self._file.is_on_duty(mark), now_ms=now_ms)
            if action == LEAVE:
                return
            if action == WAIT:
                self._said.clear()
                time.sleep(min(TICK_S, wait_ms / 1000))
                continue
            if not self._said:
                silent_s = (now_ms - promise.heard_ms) / 1000
                self._say(f"the agent was last heard {silent_s:.1f} s ago: ending what may start elsewhere")
            self._ends_after_ms = promise.heard_ms
            has_ended = self._end()
            if has_ended and os.getppid() != self._agent:
                self._say("nothing is left that may start elsewhere, nor an agent that could start it")
                return
            time.sleep(TICK_S if has_ended else RETRY_S)

    def _end(self) -> bool:
        has_ended = True
        for engine in self._engines:
            try:
                has_ended = engine.end(self._note) and has_ended
            except (EngineError, OSError) as error:
                self._say(f"{error}; trying again until it works")
                has_ended = False
            except HeardAgain:
                return False
        return has_ended

    def _note(self, uid: str) -> None:
        if self._file.promise.heard_ms != self._ends_after_ms:
            raise HeardAgain
        self._killed.add(uid)
        self._say(f"killing {uid}")

    def _say(self, message: str) -> None:
        """Once for each silence: what is tried again and again is not told again and again."""
        if message not in self._said:
            self._said.add(message)
            with contextlib.suppress(OSError):
                sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {message}\n")
                sys.stderr.flush()


def main(settings: str) -> None:
    # So that no file system is kept busy.
    os.chdir("/")
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE, "ascii")
    Watchdog(Settings(**json.loads(settings))).run()


if __name__ == "__main__":
    main(sys.argv[1])
