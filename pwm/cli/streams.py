"""Byte streams from the server to the terminal, as fast as the pipe takes them, without gap or repeat.

A raw stream (`Accept: application/vnd.pwm.frames`) is a sequence of frames: one byte that names the
channel, four bytes of length, the data. Channels 1 and 2 are standard output and error and are handed
on in the pieces in which they arrive, before a frame is complete; nothing here looks at lines. Two
channels are for us: 254 is a cursor, the place in the container's log that all bytes before it lead
to, and 255 is the end.

`Follower` counts the bytes since the last cursor. When the connection breaks it asks for the stream
from that cursor on and drops as many bytes as it had written: what the log holds does not change, so
what comes next continues exactly where the output stopped. A stream that ends without its end frame
was cut.

Used by `pwm logs` and `pwm run`; `workloads.py` beside it knows when there is something to stream.
"""

from __future__ import annotations

import json
import os
import select
import time
from contextlib import AbstractContextManager
from typing import Protocol

from pwm.cli.client import NOTICE_AFTER_S, BackOff
from pwm.cli.errors import UNAVAILABLE, CliError, NoServerError, ServerError, server_error
from pwm.cli.http1 import TransportError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from pwm.cli.client import Client

FRAMES = "application/vnd.pwm.frames"
STDOUT, STDERR = 1, 2
CURSOR, END = 254, 255
# Channels from here on are control: their frames are read whole.
FIRST_CONTROL_CHANNEL = 200
HEADER_BYTES = 5
# A cursor or an error is a few hundred bytes of JSON.
CONTROL_LIMIT_BYTES = 1024 * 1024
# A line that goes on for so long is printed in parts.
LINE_LIMIT_BYTES = 1024 * 1024
# Linux takes at most 1,024 pieces in one writev.
PIECES_AT_ONCE = 1024

# A broken stream is resumed for this long without a server; longer than any fail-over of the control plane.
RESUME_LIMIT_S = 60.0


class StreamError(CliError):
    """The stream is not what the server promises."""


class FrameReader:
    """Takes bytes as they come, gives (channel, piece): data in parts, control frames whole."""

    def __init__(self) -> None:
        self._header = b""
        self._channel = 0
        self._missing = 0
        self._control = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, memoryview]]:
        view = memoryview(data)
        at, end = 0, len(data)
        while at < end:
            if not self._missing:
                wanted = HEADER_BYTES - len(self._header)
                self._header += data[at : at + wanted]
                at = min(end, at + wanted)
                if len(self._header) < HEADER_BYTES:
                    return
                self._channel = self._header[0]
                self._missing = int.from_bytes(self._header[1:], "big")
                self._header = b""
                if self._channel >= FIRST_CONTROL_CHANNEL:
                    self._start_control()
                    if not self._missing:
                        yield self._channel, memoryview(b"")
                continue
            stop = min(end, at + self._missing)
            piece, at = view[at:stop], stop
            self._missing -= len(piece)
            if self._channel < FIRST_CONTROL_CHANNEL:
                yield self._channel, piece
                continue
            self._control += piece
            if not self._missing:
                yield self._channel, memoryview(bytes(self._control))

    def _start_control(self) -> None:
        self._control = bytearray()
        if self._missing > CONTROL_LIMIT_BYTES:
            raise StreamError(
                "the server's answer is garbled", next_step="Do client and server fit? See `pwm version`."
            )


class Sink(Protocol):
    """Where a `Follower` puts what it reads."""

    def write(self, pieces: Iterable[tuple[int, memoryview]]) -> None:
        """Takes (channel, data) pairs, in their order. The data may be gone after the call."""

    def reached(self, container: str) -> None:
        """Everything written since the last call was this container's."""


class Output:
    """File descriptors of standard output and error; what is written to them is written whole."""

    def __init__(self, stdout: int = 1, stderr: int = 2) -> None:
        self._of_channel = {STDOUT: stdout, STDERR: stderr}

    def write(self, pieces: Iterable[tuple[int, memoryview]]) -> None:
        """Writes (channel, data) pairs in their order, neighbours of one channel together."""
        run: list[memoryview] = []
        descriptor = -1
        for channel, piece in pieces:
            target = self._of_channel.get(channel, self._of_channel[STDOUT])
            if target != descriptor or len(run) == PIECES_AT_ONCE:
                write_all(descriptor, run)
                run, descriptor = [], target
            run.append(piece)
        write_all(descriptor, run)

    def reached(self, container: str) -> None:
        """Bytes look the same whoever printed them."""


class PrefixedLines:
    """Several replicas on one output: whole lines only, each with its container's name in front.

    Each replica has one of these; `lock` is theirs together.
    """

    def __init__(self, output: Output, lock: AbstractContextManager[Any]) -> None:
        self._output = output
        self._lock = lock
        # What came since the last cursor, and the beginnings of lines, by channel.
        self._new: dict[int, bytearray] = {}
        self._begun: dict[int, bytes] = {}
        self._container = ""

    def write(self, pieces: Iterable[tuple[int, memoryview]]) -> None:
        for channel, piece in pieces:
            self._new.setdefault(channel, bytearray()).extend(piece)

    def reached(self, container: str) -> None:
        if container != self._container:
            self.finish()
            self._container = container
        for channel, data in self._new.items():
            *lines, begun = (self._begun.pop(channel, b"") + bytes(data)).split(b"\n")
            if len(begun) > LINE_LIMIT_BYTES:
                lines.append(begun)
            elif begun:
                self._begun[channel] = begun
            self._print(channel, lines)
        self._new.clear()

    def finish(self) -> None:
        """Prints lines that will not be ended any more."""
        for channel, begun in self._begun.items():
            self._print(channel, [begun])
        self._begun.clear()

    def _print(self, channel: int, lines: list[bytes]) -> None:
        if lines:
            prefix = f"[{self._container}] ".encode()
            text = b"".join(prefix + line + b"\n" for line in lines)
            with self._lock:
                self._output.write([(channel, memoryview(text))])


def write_all(descriptor: int, pieces: list[memoryview]) -> None:
    """Writes every byte, waiting where the other side is slow; also for descriptors that do not block."""
    while pieces:
        try:
            written = os.writev(descriptor, pieces)
        except BlockingIOError:
            select.select([], [descriptor], [])
            continue
        while pieces and written >= len(pieces[0]):
            written -= len(pieces[0])
            del pieces[0]
        if written:
            pieces[0] = pieces[0][written:]


class Follower:
    """One raw stream, resumed until it has ended.

    `query` is the request's; `resume(query, cursor)` gives the one that continues at a cursor. `note` tells
    the person that the connection was lost.
    """

    def __init__(
        self,
        client: Client,
        path: str,
        *,
        query: dict[str, Any],
        resume: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]],
        output: Sink,
        note: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client = client
        self._path = path
        self._query = query
        self._resume = resume
        self._output = output
        self._note = note
        self._clock = clock
        self._sleep = sleep
        self._cursor: dict[str, Any] | None = None
        # Bytes written since the cursor, and of those how many the resumed stream has still to repeat.
        self._since_cursor = 0
        self._repeated = 0
        # Names of the containers whose output came, in order.
        self.containers: list[str] = []
        # Whether the attempt that runs has got an answer.
        self._connected = False

    def run(self) -> None:
        """Writes the stream until its end; raises what the server says went wrong, or `NoServerError`."""
        broken_at: float | None = None
        said, pauses = False, BackOff()
        while True:
            self._connected = False
            try:
                if self._attempt():
                    return
                trouble: CliError = NoServerError("the connection was cut")
            except TransportError as error:
                trouble = NoServerError(f"the connection was lost: {error}")
                self._client.leave(error)
            except NoServerError as error:
                trouble = error
            except ServerError as error:
                if error.status != UNAVAILABLE:
                    raise
                trouble = error
            self._client.close()
            if self._connected:
                broken_at, said = self._clock(), False
                pauses.reset()
            elif broken_at is None or self._clock() - broken_at > RESUME_LIMIT_S:
                raise trouble
            elif not said and self._clock() - broken_at > NOTICE_AFTER_S:
                self._note(f"{trouble.message}; trying to go on")
                said = True
            self._sleep(pauses.next_s())

    def _attempt(self) -> bool:
        """One connection; True when the stream has ended, False when it was cut."""
        query = self._query if self._cursor is None else self._resume(self._query, self._cursor)
        self._repeated = self._since_cursor
        frames = FrameReader()
        response = self._client.raw(self._path, query=query, accept=FRAMES)
        self._connected = True
        ended = False
        for chunk in response.chunks():
            pieces: list[tuple[int, memoryview]] = []
            for channel, piece in frames.feed(chunk):
                if channel == CURSOR:
                    self._output.write(pieces)
                    pieces = []
                    self._advance(json.loads(bytes(piece)))
                elif channel == END:
                    self._output.write(pieces)
                    _raise_error(bytes(piece))
                    ended, pieces = True, []
                elif (new := self._not_yet_written(piece)) is not None:
                    pieces.append((channel, new))
            self._output.write(pieces)
        return ended

    def _advance(self, cursor: dict[str, Any]) -> None:
        if "nextOffset" in cursor:
            self._cursor = cursor
            self._since_cursor = self._repeated = 0
            container = cursor.get("container", "")
            if container not in self.containers:
                self.containers.append(container)
            self._output.reached(container)

    def _not_yet_written(self, piece: memoryview) -> memoryview | None:
        if self._repeated:
            known = min(self._repeated, len(piece))
            self._repeated -= known
            piece = piece[known:]
        if not piece:
            return None
        self._since_cursor += len(piece)
        return piece


def _raise_error(end: bytes) -> None:
    document = json.loads(end or b"{}")
    error = document.get("error", document)
    if error.get("code") or error.get("message"):
        raise server_error(error)
