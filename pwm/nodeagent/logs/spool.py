"""One container's output on the agent's own disk: exactly the bytes that it printed, in their order.

    <uid>/00000000000000000000.log   bytes, stdout and stderr as they came; the name is the offset of the first
    <uid>/00000000000000000000.idx   runs: 16 bytes each (offset, its top bit says stderr; ns since 1970)
    <uid>/position                   what is committed: end of the spool, and where its source stood then

Plain bytes beside an index make the common read (everything, or the end of it, in big chunks) a copy without
looking at lines; times and streams are there for those who ask. A log that outgrows its cap loses its oldest
segment.

*A crash loses nothing and doubles nothing.* An append writes bytes, then runs, then the position, which names
both the spool's end and the source's place. Whatever a killed agent wrote beyond the last position is cut off
when the spool is opened again, and taken from the source once more. Two slots are written in turn, each with a
checksum, so a torn one is noticed. If a power cut left fewer bytes than were committed, the log ends there for
good: what is kept is a prefix of what was printed, never something with a hole.

Writes come from one thread at a time; readers (`reader.py`) may run beside them, and see committed bytes only.
"""

import os
import struct
import zlib
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from pwm.nodeagent.logs.batch import START, Batch, Cursor, Runs

# A capped log loses one segment at a time: a sixteenth of the default cap.
SEGMENT_BYTES = 64 << 20
STDERR_BIT = np.uint64(1 << 63)
RUN_DTYPE = np.dtype([("offset", "<u8"), ("time", "<i8")])

# sequence, end of the spool, cursor (3), flags, checksum of what stands before it
_POSITION = struct.Struct("<QQQQQII")
_POSITION_FILE = "position"
_ENDED, _CUT = 1, 2


@dataclass(slots=True)
class Segment:
    """One pair of files. `start`: offset of its first byte in the whole log."""

    start: int
    size: int
    runs: int

    @property
    def end(self) -> int:
        return self.start + self.size


class Spool:
    """The writing side. `ended`: the container has ended and all it printed is here."""

    def __init__(self, path: Path, *, max_bytes: int, segment_bytes: int = SEGMENT_BYTES) -> None:
        assert max_bytes >= segment_bytes > 0
        self.path = path
        self._max_bytes = max_bytes
        self._segment_bytes = segment_bytes
        self._lock = Lock()
        self._log = -1
        self._index = -1
        self._sequence = 0
        self._end = 0
        self._flags = 0
        self.cursor: Cursor = START
        self._position = -1
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._read_position()
        self._segments = self._recover()

    @property
    def end(self) -> int:
        """Offset behind the last committed byte."""
        return self._end

    @property
    def ended(self) -> bool:
        return bool(self._flags & _ENDED)

    @property
    def cut(self) -> bool:
        """A power cut took committed bytes; nothing may be added behind them."""
        return bool(self._flags & _CUT)

    @property
    def size(self) -> int:
        """Bytes kept on disk, without the index."""
        with self._lock:
            return sum(segment.size for segment in self._segments)

    def segments(self) -> list[Segment]:
        """A snapshot for readers, oldest first; none when nothing was printed."""
        with self._lock:
            return [Segment(s.start, s.size, s.runs) for s in self._segments]

    def segment_at(self, offset: int) -> Segment | None:
        """The segment that holds the byte at `offset`, or the oldest one when that byte was dropped."""
        with self._lock:
            if not self._segments:
                return None
            at = bisect_right(self._segments, offset, key=lambda s: s.start) - 1
            segment = self._segments[max(0, at)]
            return Segment(segment.start, segment.size, segment.runs)

    def append(self, batch: Batch, cursor: Cursor) -> None:
        """Adds a batch and commits it together with the place of its source. OSError: nothing was added."""
        assert not self.ended, "an ended log does not grow"
        if batch.data:
            segment = self._open_segment()
            try:
                _write_all(self._log, batch.data, segment.size)
                _write_all(self._index, self._encode_runs(batch), segment.runs * RUN_DTYPE.itemsize)
            except OSError:
                # The disk is full: give back what was taken, try again later.
                os.ftruncate(self._log, segment.size)
                os.ftruncate(self._index, segment.runs * RUN_DTYPE.itemsize)
                raise
        self._commit(self._end + len(batch.data), cursor)
        if batch.data:
            with self._lock:
                segment.size += len(batch.data)
                segment.runs += len(batch.runs)
            self._drop_beyond(self._max_bytes)

    def finish(self) -> None:
        """The container has ended and all it printed was appended."""
        self._flags |= _ENDED
        self._commit(self._end, self.cursor)
        self.close()

    def drop_oldest(self) -> int:
        """Drops the oldest segment but never the one being written; returns how many bytes that freed."""
        with self._lock:
            if len(self._segments) < 2:
                return 0
            segment = self._segments.pop(0)
        for suffix in ("log", "idx"):
            segment_file(self.path, segment.start, suffix).unlink(missing_ok=True)
        return segment.size

    def discard(self) -> None:
        """Forgets everything; the caller deletes the files. Readers see an empty log."""
        self.close()
        with self._lock:
            self._segments.clear()

    def close(self) -> None:
        """Closes files; an append opens them again."""
        for fd in (self._log, self._index, self._position):
            if fd >= 0:
                os.close(fd)
        self._log = self._index = self._position = -1

    def _encode_runs(self, batch: Batch) -> bytes:
        runs: NDArray[np.void] = np.empty(len(batch.runs), RUN_DTYPE)
        offsets = (batch.runs.starts + self._end).astype(np.uint64)
        runs["offset"] = np.where(batch.runs.stderr, offsets | STDERR_BIT, offsets)
        runs["time"] = batch.runs.times
        return runs.tobytes()

    def _open_segment(self) -> Segment:
        """The segment to append to, its files open; a new one when the last is full."""
        if not self._segments or self._segments[-1].size >= self._segment_bytes:
            self._close_segment()
            with self._lock:
                self._segments.append(Segment(self._end, 0, 0))
        segment = self._segments[-1]
        if self._log < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
            self._log = os.open(segment_file(self.path, segment.start, "log"), flags, 0o600)
            self._index = os.open(segment_file(self.path, segment.start, "idx"), flags, 0o600)
        return segment

    def _close_segment(self) -> None:
        if self._log >= 0:
            os.close(self._log)
            os.close(self._index)
            self._log = self._index = -1

    def _drop_beyond(self, max_bytes: int) -> None:
        while self.size > max_bytes and self.drop_oldest():
            pass

    def _commit(self, end: int, cursor: Cursor) -> None:
        self._sequence += 1
        record = _POSITION.pack(self._sequence, end, *cursor, self._flags, 0)[:-4]
        record += zlib.crc32(record).to_bytes(4, "little")
        if self._position < 0:
            self._position = os.open(self.path / _POSITION_FILE, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.pwrite(self._position, record, self._sequence % 2 * _POSITION.size)
        self._end, self.cursor = end, cursor

    def _read_position(self) -> None:
        try:
            slots = (self.path / _POSITION_FILE).read_bytes()
        except FileNotFoundError:
            return
        for slot in range(2):
            record = slots[slot * _POSITION.size : (slot + 1) * _POSITION.size]
            if len(record) < _POSITION.size or zlib.crc32(record[:-4]).to_bytes(4, "little") != record[-4:]:
                continue
            sequence, end, *cursor, flags, _ = _POSITION.unpack(record)
            if sequence > self._sequence:
                self._sequence, self._end, self._flags = sequence, end, flags
                self.cursor = (cursor[0], cursor[1], cursor[2])

    def _recover(self) -> list[Segment]:
        """Cuts off what was written but not committed."""
        segments: list[Segment] = []
        starts = sorted(int(file.stem) for file in self.path.glob("*.log"))
        for start, after in zip(starts, [*starts[1:], self._end], strict=False):
            log, index = segment_file(self.path, start, "log"), segment_file(self.path, start, "idx")
            if start >= self._end or self.cut:
                log.unlink()
                index.unlink(missing_ok=True)
                continue
            size = min(log.stat().st_size, min(after, self._end) - start)
            os.truncate(log, size)
            # The index of an earlier segment is whole too, and reading it would only take time.
            whole = start + size == after < self._end and index.exists()
            runs = index.stat().st_size // RUN_DTYPE.itemsize if whole else _cut_index(index, start + size)
            segments.append(Segment(start, size, runs))
            if start + size < min(after, self._end):
                self._flags |= _CUT
                self._end = start + size
        return segments


def segment_file(path: Path, start: int, suffix: str) -> Path:
    """Path of one of the two files of the segment that begins at `start`."""
    return path / f"{start:020d}.{suffix}"


def read_runs(path: Path, segment: Segment, *, first: int = 0, count: int | None = None) -> Runs:
    """A segment's committed runs from number `first` on, with offsets in the whole log."""
    available = max(0, segment.runs - first)
    wanted = available if count is None else min(count, available)
    file = segment_file(path, segment.start, "idx")
    runs = np.fromfile(file, RUN_DTYPE, count=wanted, offset=first * RUN_DTYPE.itemsize)
    return Runs(
        (runs["offset"] & ~STDERR_BIT).astype(np.int64),
        runs["time"].astype(np.int64),
        (runs["offset"] & STDERR_BIT) != 0,
    )


def _cut_index(index: Path, end: int) -> int:
    """Drops runs that begin at or behind `end`; returns how many are left."""
    index.touch(mode=0o600)
    runs = np.fromfile(index, RUN_DTYPE)
    offsets = (runs["offset"] & ~STDERR_BIT).astype(np.int64)
    kept = int(np.searchsorted(offsets, end))
    os.truncate(index, kept * RUN_DTYPE.itemsize)
    return kept


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written
