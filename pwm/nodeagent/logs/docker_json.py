"""Reads the lines of Docker's json-file log driver: {"log": "...\\n", "stream": "stdout", "time": "..."}.

PWM's own containers are not logged this way (`docker_local.py` says why); this is for engines that were told to
log no other way. The driver has already replaced bytes that are not UTF-8, so those cannot be had back.
"""

import json
from datetime import UTC, datetime
from typing import Any

import numpy as np

from pwm.nodeagent.logs.batch import NO_RUNS, Batch, Runs

# "2026-01-02T03:04:05.123": what lines must share, with their stream, to share a run.
_MILLISECOND = 23


def parse(block: bytes) -> Batch:
    """The whole lines at the front of a block."""
    consumed = block.rfind(b"\n") + 1
    if not consumed:
        return Batch(b"", NO_RUNS, 0)
    lines = block[: consumed - 1].split(b"\n")
    parts: list[bytes] = []
    starts: list[int] = []
    times: list[int] = []
    stderr: list[bool] = []
    size, run = 0, ("", "")
    for entry in _entries(lines):
        text = entry["log"].encode()
        if not text:
            continue
        if (key := (entry["time"][:_MILLISECOND], entry["stream"])) != run:
            run = key
            starts.append(size)
            times.append(_nanoseconds(entry["time"]))
            stderr.append(entry["stream"] == "stderr")
        parts.append(text)
        size += len(text)
    runs = Runs(np.array(starts, np.int64), np.array(times, np.int64), np.array(stderr, np.bool_))
    return Batch(b"".join(parts), runs, consumed)


def _entries(lines: list[bytes]) -> list[dict[str, Any]]:
    """All lines at once; one by one when the engine died within a line."""
    try:
        entries = json.loads(b"[" + b",".join(lines) + b"]")
    except ValueError:
        entries = [entry for line in lines if (entry := _entry(line)) is not None]
    return [e for e in entries if isinstance(e, dict) and {"log", "stream", "time"} <= e.keys()]


def _entry(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _nanoseconds(text: str) -> int:
    """Of RFC 3339 in UTC with up to nine digits of a second's fraction."""
    seconds, _, fraction = text.rstrip("Z").partition(".")
    whole = int(datetime.fromisoformat(seconds).replace(tzinfo=UTC).timestamp())
    return whole * 1_000_000_000 + int(fraction.ljust(9, "0") or 0)
