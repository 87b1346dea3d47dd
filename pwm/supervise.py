"""Child processes that are kept running: what `pwm up` does with etcd, controllers and agents.

A child has a log file and a watcher. When it dies it is started again, with longer pauses the more often
it died lately; one that never comes up at all is given up, with the end of its log. Each child leads a
session of its own, so that a Ctrl-C in the terminal reaches only us and we stop them in order; and each
asks the kernel to be told when we die, so that a kill -9 of ours leaves nobody behind.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# Pauses before a dead child is started again. A child that has lived for STEADY_S begins with the first.
PAUSES_S = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
STEADY_S = 5.0
# A child that dies so often before it was ever ready has a fault that a further start does not mend.
STARTS_BEFORE_READY = 3
POLL_S = 0.03
LOG_TAIL_LINES = 12
# Of an older log so much is kept beside the new one.
LOG_KEPT_BYTES = 8 * 1024 * 1024
PR_SET_PDEATHSIG = 1
# Found before any fork: between fork and exec as little as possible may happen.
_LIBC = ctypes.CDLL(None)


class StartError(Exception):
    """A child did not come up. `log_tail` is the end of what it wrote."""

    def __init__(self, message: str, *, log: Path) -> None:
        super().__init__(message)
        self.log = log
        self.log_tail = _tail(log)


@dataclass(frozen=True, kw_only=True)
class Program:
    """What to run, and where its output goes."""

    name: str
    command: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    # After SIGTERM; then SIGKILL.
    stop_limit_s: float = 10.0


class Child:
    """One program, kept running between `start` and `stop`."""

    def __init__(self, program: Program, *, say: Callable[[str], None]) -> None:
        self.program = program
        self._say = say
        self._process: asyncio.subprocess.Process | None = None
        self._ready = False
        self._stopping = asyncio.Event()
        self._deaths = 0

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self) -> None:
        """Starts the program; the file of its log is begun anew when it has grown large."""
        log = self.program.log
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.exists() and log.stat().st_size > LOG_KEPT_BYTES:
            log.replace(log.with_suffix(".log.1"))
        with log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *self.program.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **self.program.environment},
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )

    async def watch(self) -> None:
        """Starts it again whenever it ends, until it is stopped. Raises StartError when that is hopeless."""
        while self._process is not None:
            began = time.monotonic()
            code = await self._process.wait()
            if self._stopping.is_set():
                return
            self._deaths = 0 if time.monotonic() - began > STEADY_S else self._deaths
            self._deaths += 1
            ended = f"{self.program.name} ended by itself ({_in_words(code)})"
            if not self._ready and self._deaths >= STARTS_BEFORE_READY:
                raise StartError(f"{ended}, {self._deaths} times", log=self.program.log)
            pause_s = PAUSES_S[min(self._deaths, len(PAUSES_S)) - 1]
            if self._ready:
                self._say(f"{ended}; starting it again in {pause_s:g} s (its log: {self.program.log})")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()
                    return
            await self.start()

    async def until_ready(self, check: Callable[[], bool], *, limit_s: float) -> None:
        """Waits until `check`, which may block, says yes; StartError after `limit_s`."""
        deadline = time.monotonic() + limit_s
        while not await asyncio.to_thread(check):
            if time.monotonic() > deadline:
                raise StartError(f"{self.program.name} is not ready after {limit_s:g} s", log=self.program.log)
            await asyncio.sleep(POLL_S)
        self._ready = True

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL when that does not help in time."""
        self._stopping.set()
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
            # One that is frozen hears it only when it goes on.
            process.send_signal(signal.SIGCONT)
            try:
                async with asyncio.timeout(self.program.stop_limit_s):
                    await process.wait()
            except TimeoutError:
                self._say(f"{self.program.name} does not stop; killing it")
                process.kill()
                await process.wait()


def _die_with_parent() -> None:
    """In the child, before exec: SIGTERM for it when its parent ends in whatever way."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _in_words(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def _tail(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-LOG_TAIL_LINES:])
