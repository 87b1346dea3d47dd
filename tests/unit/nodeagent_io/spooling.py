"""Batches and reads in few words, for tests of the spool."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pwm.api.v1.agent_pb2 import STDERR, LogData, ReadLogs
from pwm.nodeagent.logs.batch import Batch, Runs
from pwm.nodeagent.logs.reader import SpoolReader
from pwm.nodeagent.logs.spool import Spool
from tests.unit.nodeagent_io.records import START_NS

MS_NS = 1_000_000


def batch(*runs: tuple[bytes, int, bool]) -> Batch:
    """Of (bytes, milliseconds after the start, stderr)."""
    data = b"".join(text for text, _, _ in runs)
    starts = np.cumsum([0, *(len(text) for text, _, _ in runs)])[:-1]
    times = np.array([START_NS + ms * MS_NS for _, ms, _ in runs], np.int64)
    return Batch(data, Runs(starts.astype(np.int64), times, np.array([e for _, _, e in runs], np.bool_)), len(data))


def spool_of(path: Path, batches: Iterable[Batch], *, max_bytes: int = 1 << 30, segment_bytes: int = 1 << 20) -> Spool:
    spool = Spool(path, max_bytes=max_bytes, segment_bytes=segment_bytes)
    for number, one in enumerate(batches, 1):
        spool.append(one, (1, number, 1))
    return spool


def chunks(spool: Spool, request: ReadLogs) -> list[LogData]:
    reader = SpoolReader(spool, request)
    found: list[LogData] = []
    try:
        while some := reader.read():
            found.extend(some)
    finally:
        reader.close()
    return found


def text(spool: Spool, *, stream: int | None = None, **request: object) -> bytes:
    """What a reader gets; `tail` is everything unless it is given."""
    asked = ReadLogs(**{"tail": -1, **request})  # type: ignore[arg-type]
    return b"".join(chunk.data for chunk in chunks(spool, asked) if stream in (None, chunk.stream))


def is_stderr(chunk: LogData) -> bool:
    return chunk.stream == STDERR
