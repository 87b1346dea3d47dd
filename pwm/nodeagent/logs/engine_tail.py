"""Takes a container's output from the engine itself, where the agent may not read the engine's files.

An agent that is not root, but may talk to Docker, ends up here. It is the slower way (a fifth of the speed, the
engine's own reading is the limit), so files come first. The engine frames each line with its stream and puts its
time in front; the place to go on from is the last time and how many lines of exactly that time were taken, and
the engine is asked for everything since. Lines longer than 16 KiB do not come through quite whole: engines leave
out the newline at their end (seen with 20.10), and, for a container with a terminal, whose output they do not
frame, the times before their later parts stay in the text.
"""

import json
import socket
import struct
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import numpy as np

from pwm.nodeagent.logs.batch import NO_RUNS, START, Batch, Cursor, coalesce

# Spoken by every engine from 20.10 on.
_API = "/v1.41"
_READ_BYTES = 1 << 20
_CONNECT_S = 5.0
# After the container's end: how long the engine may take to send the next byte of the rest.
_REST_S = 10.0
# The engine closes at once for a container that was not started yet.
_RECONNECT_S = 0.25
_FRAME = struct.Struct(">BxxxL")
_STDERR = 2
_NOTHING = Batch(b"", NO_RUNS, 0)


class EngineTail:
    """Blocking, but only as long as the system takes; used by one thread at a time."""

    folder: Path | None = None

    def __init__(self, engine: str, runtime_id: str, *, cursor: Cursor = START) -> None:
        self._socket_path = engine.removeprefix("unix://")
        self._container = f"{_API}/containers/{runtime_id}"
        self._socket: socket.socket | None = None
        self._buffer = b""
        self._tty = False
        self._ended = False
        self._complete = False
        self._connected_at = float("-inf")
        self._skip = 0
        _, self._time_ns, self._taken = cursor

    @property
    def cursor(self) -> Cursor:
        return 0, self._time_ns, self._taken

    def ended(self) -> None:
        """The container has ended: from now on an empty batch means the end of its output."""
        self._ended = True
        # What an open connection still holds comes again on a new one that the engine closes at the end.
        self._disconnect()
        self._connected_at = float("-inf")

    def read(self) -> Batch:
        """The next batch; an empty one when there is nothing at the moment. OSError: the engine is away."""
        while not self._complete:
            if self._socket is None and not self._connect():
                return _NOTHING
            if (batch := self._take()).data:
                return batch
            if not self._receive():
                return _NOTHING
        return _NOTHING

    def _receive(self) -> bool:
        """Whether there is more to look at."""
        assert self._socket is not None
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._disconnect()
            self._complete = self._ended
            return False
        self._buffer += data
        return True

    def rewind(self, cursor: Cursor) -> None:
        """Reads again from there."""
        self._disconnect()
        self._complete = False
        self._connected_at = float("-inf")
        _, self._time_ns, self._taken = cursor

    def close(self) -> None:
        self._disconnect()

    def _connect(self) -> bool:
        """False: not now."""
        now = time.monotonic()
        if now - self._connected_at < _RECONNECT_S:
            return False
        self._connected_at = now
        status, body = self._get("/json")
        if status == 404:
            self._complete = self._ended
            return False
        if status != 200:
            raise OSError(f"the engine answered {status} for container {self._container}")
        self._tty = bool(json.loads(body)["Config"]["Tty"])
        since = f"{self._time_ns // 10**9}.{self._time_ns % 10**9:09d}"
        follow = 0 if self._ended else 1
        self._socket = self._ask(f"/logs?stdout=1&stderr=1&timestamps=1&follow={follow}&since={since}")
        self._skip = self._taken
        status, self._buffer = _read_head(self._socket)
        if status != 200:
            self._disconnect()
            raise OSError(f"the engine answered {status} for the output of {self._container}")
        self._socket.settimeout(_REST_S if self._ended else 0)
        return True

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._buffer = b""

    def _get(self, path: str) -> tuple[int, bytes]:
        with self._ask(path) as connection:
            status, body = _read_head(connection)
            while data := connection.recv(_READ_BYTES):
                body += data
        return status, body

    def _ask(self, path: str) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(_CONNECT_S)
        try:
            connection.connect(self._socket_path)
            # HTTP/1.0: the body is the plain bytes until the engine closes.
            connection.sendall(f"GET {self._container}{path} HTTP/1.0\r\nHost: docker\r\n\r\n".encode())
        except OSError:
            connection.close()
            raise
        return connection

    def _take(self) -> Batch:
        """What is whole in the buffer, but for what was taken before a reconnect."""
        parts: list[bytes] = []
        starts: list[int] = []
        times: list[int] = []
        stderr: list[bool] = []
        size = consumed = 0
        for is_stderr, message, end in self._lines() if self._tty else self._frames():
            consumed = end
            stamp, _, text = message.partition(b" ")
            time_ns = _nanoseconds(stamp.decode())
            if time_ns < self._time_ns or (time_ns == self._time_ns and self._skip > 0):
                self._skip -= time_ns == self._time_ns
                continue
            self._taken = self._taken + 1 if time_ns == self._time_ns else 1
            self._time_ns, self._skip = time_ns, 0
            starts.append(size)
            times.append(time_ns)
            stderr.append(is_stderr)
            parts.append(text)
            size += len(text)
        self._buffer = self._buffer[consumed:]
        runs = coalesce(np.array(starts, np.int64), np.array(times, np.int64), np.array(stderr, np.bool_))
        return Batch(b"".join(parts), runs, consumed)

    def _frames(self) -> Iterator[tuple[bool, bytes, int]]:
        """(is stderr, time and text, end in the buffer)"""
        buffer, at = self._buffer, 0
        while at + _FRAME.size <= len(buffer):
            stream, length = _FRAME.unpack_from(buffer, at)
            end = at + _FRAME.size + length
            if end > len(buffer):
                return
            yield stream == _STDERR, buffer[at + _FRAME.size : end], end
            at = end

    def _lines(self) -> Iterator[tuple[bool, bytes, int]]:
        buffer, at = self._buffer, 0
        while (newline := buffer.find(b"\n", at)) >= 0:
            yield False, buffer[at : newline + 1], newline + 1
            at = newline + 1


def _read_head(connection: socket.socket) -> tuple[int, bytes]:
    """(status, first bytes of the body)"""
    head = b""
    while b"\r\n\r\n" not in head:
        data = connection.recv(4096)
        if not data:
            raise OSError("the engine closed the connection without an answer")
        head += data
    head, _, body = head.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), body


def _nanoseconds(stamp: str) -> int:
    """Of `2026-01-02T03:04:05.000000006Z`, or with an offset from UTC in place of the Z."""
    whole = datetime.fromisoformat(stamp[:19] + (stamp[29:] or "Z"))
    return int(whole.timestamp()) * 10**9 + int(stamp[20:29])
