"""Reads a spool for somebody: from where, how far, and in which form.

A reader keeps its own place and its own open file, so any number of them read beside the writer, and one that
reads slowly holds up nobody. A segment that was dropped under a reader is skipped: the reader goes on with the
oldest byte there still is. Chunks are of one stream each; without timestamps they are cut from the file as they
are, with them each line gets the time of its run in front, as `docker logs -t` shows it.
"""

import os
from datetime import UTC, datetime
from threading import Lock

import numpy as np

from pwm.api.v1.agent_pb2 import STDERR, STDOUT, LogData, ReadLogs
from pwm.nodeagent.logs.batch import RUN_NS, Runs
from pwm.nodeagent.logs.spool import Segment, Spool, read_runs, segment_file

# What one message carries. Measured through gRPC: bigger gains nothing, smaller costs messages.
CHUNK_BYTES = 256 << 10
# Read at once: a few chunks, so that a thread's hop is paid once for all of them.
READ_BYTES = 1 << 20
# With timestamps an empty line grows from one byte to 32, so that much less is read at once.
_TIMESTAMPED_READ_BYTES = 32 << 10
_SCAN_BYTES = 1 << 20
# Each run is a short Python step at most; more of them in one read are left for the next.
_RUNS_AT_ONCE = 1 << 14


class SpoolReader:
    """Blocking. `close` may come from another thread than `read`, for whoever reads may go away at any time."""

    def __init__(self, spool: Spool, request: ReadLogs) -> None:
        self._lock = Lock()
        self._closed = False
        self._spool = spool
        self._timestamps = request.timestamps
        self._segment_start = -1
        self._log = -1
        # Number of the run that holds the byte at `offset`.
        self._run = 0
        self.offset = _first_offset(spool, request)
        self._at_line_start = {False: True, True: True}
        if request.timestamps and self.offset:
            in_line = _byte_before(spool, self.offset) not in (b"", b"\n")
            self._at_line_start = {False: not in_line, True: not in_line}

    def read(self) -> list[LogData]:
        """The next chunks; none when everything committed was read."""
        with self._lock:
            return [] if self._closed else self._read()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._close_log()

    def _read(self) -> list[LogData]:
        while True:
            segment = self._spool.segment_at(self.offset)
            if segment is None or self.offset >= segment.end:
                return []
            self.offset = max(self.offset, segment.start)
            try:
                return self._read_from(segment)
            except FileNotFoundError:
                # It was dropped just now; the next one is the oldest.
                continue

    def _close_log(self) -> None:
        if self._log >= 0:
            os.close(self._log)
            self._log = -1

    def _read_from(self, segment: Segment) -> list[LogData]:
        if self._log < 0 or self._segment_start != segment.start:
            self._open(segment)
        limit = _TIMESTAMPED_READ_BYTES if self._timestamps else READ_BYTES
        data = os.pread(self._log, min(limit, segment.end - self.offset), self.offset - segment.start)
        runs, end = self._runs_within(segment, self.offset, self.offset + len(data))
        data = data[: end - self.offset]
        return self._stamped(data, runs) if self._timestamps else self._plain(data, runs)

    def _open(self, segment: Segment) -> None:
        log = os.open(segment_file(self._spool.path, segment.start, "log"), os.O_RDONLY | os.O_CLOEXEC)
        self._close_log()
        self._log, self._segment_start, self._run = log, segment.start, 0
        if self.offset > segment.start:
            starts = read_runs(self._spool.path, segment).starts
            self._run = max(0, int(np.searchsorted(starts, self.offset, side="right")) - 1)

    def _runs_within(self, segment: Segment, begin: int, end: int) -> tuple[Runs, int]:
        """Runs that cover [begin, end), the first one's start moved to `begin`; an earlier end if they are many."""
        runs = read_runs(self._spool.path, segment, first=self._run, count=_RUNS_AT_ONCE)
        if len(runs) == 0:
            # A power cut may have taken the index and left the bytes.
            return Runs(np.array([begin]), np.array([0]), np.array([False])), end
        if len(runs) == _RUNS_AT_ONCE:
            end = min(end, int(runs.starts[-1]))
        first = max(0, int(np.searchsorted(runs.starts, begin, side="right")) - 1)
        last = int(np.searchsorted(runs.starts, end))
        starts = runs.starts[first:last].copy()
        starts[0] = begin
        self._run += last - 1
        return Runs(starts, runs.times[first:last], runs.stderr[first:last]), end

    def _plain(self, data: bytes, runs: Runs) -> list[LogData]:
        """Chunks cut where the stream changes, and at the chunk's size."""
        base = self.offset
        changes = np.flatnonzero(runs.stderr[1:] != runs.stderr[:-1]) + 1
        edges = [0, *(runs.starts[changes] - base).tolist(), len(data)]
        stderr = [bool(runs.stderr[0]), *runs.stderr[changes].tolist()]
        chunks = []
        for i, is_stderr in enumerate(stderr):
            for at in range(edges[i], edges[i + 1], CHUNK_BYTES):
                end = min(at + CHUNK_BYTES, edges[i + 1])
                stream = STDERR if is_stderr else STDOUT
                chunks.append(LogData(stream=stream, data=data[at:end], next_offset=base + end))
        self.offset = base + len(data)
        return chunks

    def _stamped(self, data: bytes, runs: Runs) -> list[LogData]:
        """Runs with their time in front of each line; neighbours of one stream in one chunk."""
        base = self.offset
        edges = [*(runs.starts - base).tolist(), len(data)]
        chunks: list[LogData] = []
        parts: list[bytes] = []
        stderr: list[bool] = runs.stderr.tolist()
        for i, (time_ns, is_stderr) in enumerate(zip(runs.times.tolist(), stderr, strict=True)):
            parts.append(self._stamp(data[edges[i] : edges[i + 1]], format_time(time_ns), is_stderr))
            if i + 1 == len(stderr) or stderr[i + 1] != is_stderr:
                stream = STDERR if is_stderr else STDOUT
                chunks.append(LogData(stream=stream, data=b"".join(parts), next_offset=base + edges[i + 1]))
                parts.clear()
        self.offset = base + len(data)
        return chunks

    def _stamp(self, text: bytes, stamp: bytes, is_stderr: bool) -> bytes:
        if not text:
            return b""
        whole = text.endswith(b"\n")
        inner = text[:-1] if whole else text
        lines = inner.replace(b"\n", b"\n" + stamp)
        front = stamp if self._at_line_start[is_stderr] else b""
        self._at_line_start[is_stderr] = whole
        return front + lines + (b"\n" if whole else b"")


def format_time(time_ns: int) -> bytes:
    """As Docker writes it: `2026-01-02T03:04:05.000000006Z `, always nine digits."""
    seconds, fraction = divmod(time_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{fraction:09d}Z ".encode()


def _first_offset(spool: Spool, request: ReadLogs) -> int:
    segments = spool.segments()
    if not segments:
        return 0
    oldest, end = segments[0].start, segments[-1].end
    if request.offset > 0:
        return min(max(request.offset, oldest), end)
    offset = oldest
    if request.HasField("since"):
        offset = max(offset, _offset_since(spool, segments, request.since.ToNanoseconds()))
    if request.tail >= 0:
        offset = max(offset, _offset_of_tail(spool, segments, request.tail))
    return offset


def _offset_since(spool: Spool, segments: list[Segment], since_ns: int) -> int:
    """First byte of the first run of `since` or later; runs are exact to a millisecond."""
    bound = since_ns // RUN_NS * RUN_NS
    for segment in segments:
        try:
            runs = read_runs(spool.path, segment)
        except FileNotFoundError:
            continue
        later = np.flatnonzero(runs.times >= bound)
        if len(later):
            return int(runs.starts[later[0]])
    return segments[-1].end


def _offset_of_tail(spool: Spool, segments: list[Segment], lines: int) -> int:
    """First byte of the last so many lines; a last line without its newline counts."""
    end = segments[-1].end
    if lines == 0:
        return end
    wanted = lines if _byte_before(spool, end) != b"\n" else lines + 1
    for segment in reversed(segments):
        try:
            with segment_file(spool.path, segment.start, "log").open("rb") as log:
                at = segment.size
                while at > 0:
                    begin = max(0, at - _SCAN_BYTES)
                    block = os.pread(log.fileno(), at - begin, begin)
                    if (count := block.count(b"\n")) >= wanted:
                        return segment.start + begin + _nth_newline_from_end(block, wanted) + 1
                    wanted -= count
                    at = begin
        except FileNotFoundError:
            return segment.end
    return segments[0].start


def _nth_newline_from_end(block: bytes, number: int) -> int:
    newlines = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
    return int(newlines[-number])


def _byte_before(spool: Spool, offset: int) -> bytes:
    segment = spool.segment_at(offset - 1)
    if segment is None or not segment.start < offset <= segment.end:
        return b""
    try:
        with segment_file(spool.path, segment.start, "log").open("rb") as log:
            return os.pread(log.fileno(), 1, offset - 1 - segment.start)
    except FileNotFoundError:
        return b""
