"""Follows a log file of the engine through its rotations, without losing or doubling a byte.

The engine writes PATH; when that is full it becomes PATH.1, PATH.1 becomes PATH.2, and so on until the oldest is
deleted. An open file keeps its content whatever its name, so a tail that has reached the end of its file looks
whether PATH is still that file; if not, it reads what was added in between, and goes on with the file that came
next, however many rotations there were. Only if the agent was away so long that its file is gone does it go on
with the oldest one left, and says so.

The place in the source is (inode, offset, fingerprint). Inodes are used again soon after a file is deleted, so
the fingerprint, a checksum of the first bytes (which hold a time in nanoseconds), tells one file from another.
"""

import os
import zlib
from collections.abc import Callable
from pathlib import Path

import structlog

from pwm.nodeagent.drivers.driver import LogFormat
from pwm.nodeagent.logs import docker_json, docker_local
from pwm.nodeagent.logs.batch import NO_RUNS, START, Batch, Cursor

# Big enough that numpy's cost per call vanishes, small enough to stay in the processor's cache.
BLOCK_BYTES = 1 << 20
# A block without one whole record is doubled up to this size.
MAX_BLOCK_BYTES = 16 << 20
# What a fingerprint covers; a first record's time is within it.
_FINGERPRINT_BYTES = 64
# Looking at a chain of files that is being rotated is repeated; each rotation takes the engine well under 1 ms, unless
# it loses the processor meanwhile: then there is a next time.
_CHAIN_ATTEMPTS = 20

_NOTHING = Batch(b"", NO_RUNS, 0)
_PARSERS: dict[LogFormat, Callable[[bytes], Batch]] = {
    LogFormat.DOCKER_LOCAL: docker_local.parse,
    LogFormat.DOCKER_JSON: docker_json.parse,
}
_log = structlog.get_logger(__name__)


class FileTail:
    """Blocking; used by one thread at a time."""

    def __init__(self, path: Path, format: LogFormat, *, cursor: Cursor = START) -> None:
        self._path = path
        self._parse = _PARSERS[format]
        self._cursor = cursor
        self._fd = -1
        self._inode = 0
        self._offset = 0
        self._last_look = False

    @property
    def folder(self) -> Path | None:
        return self._path.parent

    @property
    def cursor(self) -> Cursor:
        """Where to go on after everything that `read` returned."""
        if self._fd < 0:
            return self._cursor
        length, checksum = _fingerprint(self._fd)
        return self._inode, self._offset, length << 32 | checksum

    def read(self) -> Batch:
        """The next batch; an empty one when there is nothing at the moment. OSError as the system gives it."""
        while self._fd >= 0 or self._open_first():
            batch = self._read_block()
            if batch.consumed:
                self._offset += batch.consumed
                self._last_look = False
                if batch.data:
                    return batch
            elif not self._rotated():
                return _NOTHING
        return _NOTHING

    def ended(self) -> None:
        """An engine that says so has written everything before."""

    def rewind(self, cursor: Cursor) -> None:
        """Reads again from there."""
        self.close()
        self._cursor = cursor
        self._last_look = False

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read_block(self) -> Batch:
        size = BLOCK_BYTES
        while True:
            block = os.pread(self._fd, size, self._offset)
            batch = self._parse(block) if block else _NOTHING
            if batch.consumed or len(block) < size or size >= MAX_BLOCK_BYTES:
                return batch
            size *= 2

    def _open_first(self) -> bool:
        """Finds the file to go on with; False while there is none."""
        inode, offset, mark = self._cursor
        for _ in range(_CHAIN_ATTEMPTS):
            chain = self._chain()
            known = next((file for file in chain if inode and file[1] == inode and _is_marked(file[0], mark)), None)
            if not chain or self._open(known or chain[-1], chain):
                break
        if self._fd < 0:
            return False
        if known:
            self._offset = offset
        elif inode:
            _log.warning("log_source_rotated_away", path=str(self._path))
        return True

    def _rotated(self) -> bool:
        """Whether there is more to read after the end of the open file: of itself, or the one that came next."""
        if _inode(self._path) in (0, self._inode):
            # PATH is missing for a moment while the engine rotates, and for good when the container was removed.
            # With `max-file=1` the engine starts the same file anew.
            if os.fstat(self._fd).st_size >= self._offset:
                return False
            self._offset = 0
            return True
        if not self._last_look:
            # What was written between the last read and the rotation.
            self._last_look = True
            return True
        for _ in range(_CHAIN_ATTEMPTS):
            chain = self._chain()
            place = next((i for i, (_, inode) in enumerate(chain) if inode == self._inode), len(chain))
            if place == 0 or not chain:
                return False
            if self._open(chain[place - 1], chain):
                self._last_look = False
                if place == len(chain):
                    _log.warning("log_source_rotated_away", path=str(self._path))
                return True
        return False

    def _chain(self) -> list[tuple[Path, int]]:
        """Existing files with their inodes, the newest first.

        The engine renames the oldest first, so while it rotates one number is missing, with older files behind it.
        """
        chain = [(self._path, inode)] if (inode := _inode(self._path)) else []
        number, missing = 1, 0
        while missing < 2:
            older = self._path.with_name(f"{self._path.name}.{number}")
            if inode := _inode(older):
                chain.append((older, inode))
            missing = 0 if inode else missing + 1
            number += 1
        return chain

    def _open(self, file: tuple[Path, int], chain: list[tuple[Path, int]]) -> bool:
        """Opens a file of the chain, unless names moved on since it was looked at."""
        path, inode = file
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        if os.fstat(fd).st_ino != inode or self._chain() != chain:
            os.close(fd)
            return False
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._inode, self._offset = fd, inode, 0
        return True


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0


def _fingerprint(fd: int) -> tuple[int, int]:
    head = os.pread(fd, _FINGERPRINT_BYTES, 0)
    return len(head), zlib.crc32(head)


def _is_marked(path: Path, mark: int) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(mark >> 32)
    except FileNotFoundError:
        return False
    return len(head) == mark >> 32 and zlib.crc32(head) == mark & 0xFFFFFFFF
