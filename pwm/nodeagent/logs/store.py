"""Every container's output on this node: taken from its source while it runs, read by whoever asks.

The loop decides and threads do the work. Each log that is followed has one task here, which sleeps until its
file grows, then lets a thread take what is there (`tail.py` → `spool.py`), a few megabytes a turn so that a
noisy container takes turns with the quiet ones; then it wakes those who follow the log. numpy and the kernel do
most of that work without holding the interpreter, so the agent's loop goes on beside 100 MB/s of output.

A log outlives its container: it is kept until it is forgotten, too old, or in the way of newer ones.

The supervisor calls `follow` when a container starts (or was found running), `finish` when it has ended, and
reports its end after that, so whoever sees the end can read the whole log. The relay calls `read`.
"""

import asyncio
import re
import shutil
import time
from collections.abc import AsyncIterator, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

import structlog

from pwm.api.v1.agent_pb2 import LogData, ReadLogs
from pwm.nodeagent.drivers.driver import LogSource
from pwm.nodeagent.logs.reader import SpoolReader
from pwm.nodeagent.logs.source import Source, open_source
from pwm.nodeagent.logs.spool import SEGMENT_BYTES, Spool
from pwm.nodeagent.logs.wake import Waker

GIB = 1 << 30
DAY_S = 86_400

# Threads that take output or read for somebody; more would only wait for each other on the interpreter.
_THREADS = 4
# What one turn of a log takes at most, some 30 ms of work.
_TURN_BYTES = 4 << 20
# After a turn that took little, more is let gather: bounds wake-ups to 200 a second and adds 5 ms at most.
_GATHER_S = 0.005
# A disk that is full may get room again.
_RETRY_S = 1.0
# A source that fails while its container's end waits to be reported: then the log stays as it is.
_DRAIN_PATIENCE_S = 10.0
_RETENTION_S = 60.0
# Uids become names of folders.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")

P = ParamSpec("P")
R = TypeVar("R")

_log = structlog.get_logger(__name__)


class UnknownLog(Exception):
    """Nothing is kept of such a container."""


@dataclass(slots=True)
class _Log:
    spool: Spool
    source: Source | None = None
    # Set when the source has grown or the container has ended.
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    # Set and replaced whenever the spool grew.
    grown: asyncio.Event = field(default_factory=asyncio.Event)
    ending: bool = False
    forgotten: bool = False
    # Nothing more will be taken.
    done: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def followed(self) -> bool:
        return self.source is not None and not self.done.is_set()

    def tell_followers(self) -> None:
        self.grown.set()
        self.grown = asyncio.Event()


class LogStore:
    """`run` must be running for anything to be taken; reading works without."""

    def __init__(
        self,
        root: Path,
        *,
        max_bytes: int = 1 * GIB,
        total_bytes: int = 20 * GIB,
        keep_s: float = 7 * DAY_S,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self._root = root
        self._max_bytes = max(max_bytes, segment_bytes)
        self._total_bytes = total_bytes
        self._keep_s = keep_s
        self._segment_bytes = segment_bytes
        self._logs: dict[str, _Log] = {}
        self._new: asyncio.Queue[str] = asyncio.Queue()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="logs")
        root.mkdir(parents=True, exist_ok=True, mode=0o700)

    async def run(self) -> None:
        """Takes output and enforces retention until cancelled; owned by the agent's task group."""
        waker = Waker()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._retain())
                while True:
                    uid = await self._new.get()
                    tasks.create_task(self._take(uid, waker))
        finally:
            waker.close()

    def follow(self, uid: str, source: LogSource) -> None:
        """Takes the container's output from now on, and what it printed before; asked twice it does nothing."""
        log = self._open(uid)
        if log.source is not None or log.done.is_set():
            return
        log.source = open_source(source, log.spool.cursor)
        self._new.put_nowait(uid)

    async def finish(self, uid: str) -> None:
        """The container has ended: returns when all it printed is in the spool. Harmless when nothing is followed."""
        log = self._logs.get(uid)
        if log is None or log.source is None:
            return
        log.ending = True
        log.wake.set()
        await log.done.wait()

    async def read(self, request: ReadLogs) -> AsyncIterator[LogData]:
        """What is kept, as asked for; with `follow` until the container has ended. Raises UnknownLog."""
        log = self._known(request.container_uid)
        reader = await self._call(SpoolReader, log.spool, request)
        try:
            while True:
                # Asked before reading: what comes while a thread reads is found by another look.
                grown, followed = log.grown, log.followed
                chunks = await self._call(reader.read)
                for chunk in chunks:
                    yield chunk
                if chunks:
                    continue
                if not (followed and request.follow):
                    return
                await grown.wait()
        finally:
            reader.close()

    async def forget(self, uids: Collection[str]) -> None:
        """Deletes what is kept of these containers."""
        for uid in uids:
            if _NAME.fullmatch(uid):
                await self._forget(uid)

    async def close(self) -> None:
        """After `run` was cancelled."""
        self._threads.shutdown(wait=True)
        for log in self._logs.values():
            if log.source is not None:
                log.source.close()
            log.spool.close()

    def _open(self, uid: str) -> _Log:
        log = self._logs.get(uid)
        if log is None:
            assert _NAME.fullmatch(uid), f"{uid!r} is no name of a container"
            spool = Spool(self._root / uid, max_bytes=self._max_bytes, segment_bytes=self._segment_bytes)
            log = self._logs[uid] = _Log(spool)
            if spool.ended or spool.cut:
                log.done.set()
        return log

    def _known(self, uid: str) -> _Log:
        if uid in self._logs or (_NAME.fullmatch(uid) and (self._root / uid).is_dir()):
            return self._open(uid)
        raise UnknownLog(f"No output of container {uid} is kept on this node")

    async def _call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(function, *args, **kwargs))

    async def _take(self, uid: str, waker: Waker) -> None:
        """The life of one followed log."""
        log = self._logs[uid]
        source = log.source
        assert source is not None
        try:
            await self._pump(uid, log, source, waker)
            if not log.forgotten:
                await self._call(log.spool.finish)
        except Exception:
            # One log that cannot be read must not stop the others, nor the end of its container.
            _log.exception("log_given_up", container=uid)
        # Not when cancelled: a thread may be at work yet, and `close` waits for it.
        source.close()
        log.spool.close()
        log.done.set()
        log.tell_followers()

    async def _pump(self, uid: str, log: _Log, source: Source, waker: Waker) -> None:
        """Takes what comes until the container has ended and everything was taken."""
        failing_since: float | None = None
        told = False
        while not log.forgotten:
            # In this order: what happens after a look wakes the wait for the next.
            log.wake.clear()
            armed = source.folder is not None and waker.arm(source.folder, log.wake)
            ending = log.ending
            try:
                if ending and not told:
                    await self._call(source.ended)
                    told = True
                taken, more = await self._call(_turn, source, log.spool)
                failing_since = None
            except OSError as error:
                failing_since = failing_since or time.monotonic()
                if ending and time.monotonic() - failing_since > _DRAIN_PATIENCE_S:
                    raise
                _log.warning("log_not_taken", container=uid, error=str(error))
                await asyncio.sleep(_RETRY_S)
                continue
            if taken:
                log.tell_followers()
            if more:
                continue
            if ending:
                return
            if taken:
                await asyncio.sleep(_GATHER_S)
            await waker.wait(log.wake, armed=armed)

    async def _forget(self, uid: str) -> None:
        log = self._logs.get(uid)
        if log is not None:
            log.forgotten = True
            log.wake.set()
            if log.followed:
                await log.done.wait()
            log.done.set()
            log.tell_followers()
            log.spool.discard()
            del self._logs[uid]
        await self._call(shutil.rmtree, self._root / uid, ignore_errors=True)

    async def _retain(self) -> None:
        while True:
            await self.enforce_retention()
            await asyncio.sleep(_RETENTION_S)

    async def enforce_retention(self) -> None:
        """Deletes what is too old, then the oldest of what is too much; running containers lose their oldest part."""
        kept = await self._call(_survey, self._root)
        total = sum(entry.size for entry in kept)
        for entry in sorted(kept, key=lambda entry: entry.changed_s):
            log = self._logs.get(entry.uid)
            too_old = time.time() - entry.changed_s > self._keep_s
            if (too_old or total > self._total_bytes) and not (log is not None and log.followed):
                await self._forget(entry.uid)
                total -= entry.size
        live = sorted((log for log in self._logs.values() if log.followed), key=lambda log: -log.spool.size)
        for log in live:
            while total > self._total_bytes and (freed := await self._call(log.spool.drop_oldest)):
                total -= freed


@dataclass(frozen=True, slots=True)
class _Kept:
    uid: str
    size: int
    changed_s: float


def _survey(root: Path) -> list[_Kept]:
    kept = []
    for folder in root.iterdir():
        try:
            files = [file.stat() for file in folder.iterdir()]
        except OSError:
            # Being deleted at this moment.
            continue
        changed_s = max((file.st_mtime for file in files), default=folder.stat().st_mtime)
        kept.append(_Kept(folder.name, sum(file.st_size for file in files), changed_s))
    return kept


def _turn(source: Source, spool: Spool) -> tuple[int, bool]:
    """Takes a few megabytes at most; returns how much, and whether there may be more."""
    taken = 0
    while taken < _TURN_BYTES:
        batch = source.read()
        if not batch.consumed:
            return taken, False
        try:
            spool.append(batch, source.cursor)
        except OSError:
            source.rewind(spool.cursor)
            raise
        taken += len(batch.data)
    return taken, True
