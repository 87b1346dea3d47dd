"""Frames, and streams that are cut and continued."""

import os
import random
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from pwm.cli.client import Client
from pwm.cli.errors import NoServerError, ServerError
from pwm.cli.profiles import Profile
from pwm.cli.streams import Follower, FrameReader, Output, PrefixedLines, StreamError, write_all
from tests.unit.cli_streams.fake_server import END, FakeServer, cursor, frame

STDOUT, STDERR = 1, 2
LOGS = "/v1/workloads/train/logs"


class Files:
    """An output whose two ends are files that can be read back."""

    def __init__(self, directory: Path) -> None:
        self._paths = directory / "out", directory / "err"
        self._descriptors = [os.open(path, os.O_RDWR | os.O_CREAT) for path in self._paths]
        self.output = Output(*self._descriptors)

    def close(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)

    @property
    def out(self) -> bytes:
        return self._paths[0].read_bytes()

    @property
    def err(self) -> bytes:
        return self._paths[1].read_bytes()


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    made = Files(tmp_path)
    yield made
    made.close()


def join(pieces: Iterator[tuple[int, memoryview]]) -> list[tuple[int, bytes]]:
    """Neighbouring pieces of one channel put together."""
    joined: list[tuple[int, bytes]] = []
    for channel, piece in pieces:
        if joined and joined[-1][0] == channel and channel < 200:
            joined[-1] = (channel, joined[-1][1] + bytes(piece))
        else:
            joined.append((channel, bytes(piece)))
    return joined


# --- frames ---------------------------------------------------------------------------------------


@given(
    frames=st.lists(st.tuples(st.sampled_from([1, 2, 254]), st.binary(max_size=40)), max_size=12),
    cuts=st.lists(st.integers(min_value=0, max_value=700), max_size=20),
)
def test_frames_come_out_the_same_however_the_bytes_arrive(frames: list[tuple[int, bytes]], cuts: list[int]) -> None:
    data = b"".join(frame(channel, content) for channel, content in frames)
    reader = FrameReader()
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    arrived = [piece for start, stop in pairwise(edges) for piece in reader.feed(data[start:stop])]
    expected = join(iter((c, memoryview(d)) for c, d in frames if d or c >= 200))
    assert join((c, p) for c, p in arrived if len(p) or c >= 200) == expected


def test_data_is_handed_on_before_its_frame_is_complete() -> None:
    reader = FrameReader()
    start = frame(STDOUT, b"x" * 1000)[:100]
    assert join(reader.feed(start)) == [(STDOUT, b"x" * 95)]


def test_a_control_frame_of_absurd_length_is_refused() -> None:
    with pytest.raises(StreamError):
        list(FrameReader().feed(bytes([254]) + (1 << 30).to_bytes(4, "big")))


# --- writing --------------------------------------------------------------------------------------


def test_every_byte_is_written_to_a_pipe_that_does_not_block_and_is_read_slowly() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    data = random.Random(1).randbytes(1_000_000)
    arrived = bytearray()

    def read() -> None:
        while piece := os.read(reading, 10_000):
            arrived.extend(piece)

    reader = threading.Thread(target=read)
    reader.start()
    write_all(writing, [memoryview(data[:300_000]), memoryview(b""), memoryview(data[300_000:])])
    os.close(writing)
    reader.join()
    os.close(reading)
    assert bytes(arrived) == data


def test_output_and_error_stay_apart_and_in_order(files: Files) -> None:
    files.output.write([(STDOUT, memoryview(b"a")), (STDERR, memoryview(b"b")), (STDOUT, memoryview(b"c"))])
    assert (files.out, files.err) == (b"ac", b"b")


def test_more_pieces_than_one_system_call_takes_are_written(files: Files) -> None:
    files.output.write([(STDOUT, memoryview(b"%05d\n" % n)) for n in range(5000)])
    assert files.out == b"".join(b"%05d\n" % n for n in range(5000))


def test_lines_of_several_containers_are_whole_and_carry_their_names(files: Files) -> None:
    lock = threading.Lock()
    first, second = PrefixedLines(files.output, lock), PrefixedLines(files.output, lock)
    first.write([(STDOUT, memoryview(b"one\ntw"))])
    first.reached("a.0.1")
    second.write([(STDOUT, memoryview(b"un\n"))])
    second.reached("a.1.1")
    first.write([(STDOUT, memoryview(b"o\nthree"))])
    first.reached("a.0.1")
    first.finish()
    assert files.out == b"[a.0.1] one\n[a.1.1] un\n[a.0.1] two\n[a.0.1] three\n"


# --- following ------------------------------------------------------------------------------------


class Log:
    """A container's log behind a server that hangs up after so many bytes of each answer."""

    def __init__(self, content: bytes, *, cuts: list[int]) -> None:
        self.content = content
        self.cuts = cuts
        self.offsets: list[int] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        offset = int(request.query.get("offset", 0))
        self.offsets.append(offset)
        data = bytearray()
        while offset < len(self.content):
            piece = self.content[offset : offset + 100]
            offset += len(piece)
            channel = STDERR if (offset // 100) % 3 == 0 else STDOUT
            data += frame(channel, piece) + cursor("train.0.1", offset)
        data += END
        response = web.StreamResponse()
        await response.prepare(request)
        if self.cuts:
            await response.write(bytes(data[: self.cuts.pop(0)]))
            assert request.transport is not None
            request.transport.close()
            return response
        await response.write(bytes(data))
        return response


def follow(server: FakeServer, files: Files, notes: list[str], **more: Any) -> None:
    """Runs a follower to its end."""
    client = Client(Profile("test", servers=[server.url], token="pwm_secret"), warn=notes.append)

    def resume(query: dict[str, Any], cursor: dict[str, Any]) -> dict[str, Any]:
        return {**query, "container": cursor["container"], "offset": cursor["nextOffset"]}

    more = {"sleep": lambda seconds: None, **more}
    with closing(client):
        Follower(
            client, LOGS, query={"follow": True}, resume=resume, output=files.output, note=notes.append, **more
        ).run()


def test_a_stream_cut_anywhere_goes_on_without_gap_or_repeat(server: FakeServer, files: Files) -> None:
    content = random.Random(2).randbytes(5_000)
    # In the middle of a header, of data, of a cursor, and right behind one; also before the first byte.
    log = Log(content, cuts=[0, 3, 50, 130, 163, 700, 1501, 777, 2000])
    server.on("GET", LOGS, log.handle)
    notes: list[str] = []
    follow(server, files, notes)
    whole = [content[at : at + 100] for at in range(0, len(content), 100)]
    assert files.out == b"".join(p for n, p in enumerate(whole, 1) if n % 3)
    assert files.err == b"".join(p for n, p in enumerate(whole, 1) if not n % 3)
    assert len(log.offsets) == 10
    assert log.offsets == sorted(log.offsets)
    assert not notes, "what is mended at once is nobody's concern"


def test_an_error_at_the_end_of_a_stream_is_raised_after_its_output(server: FakeServer, files: Files) -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        return web.Response(body=frame(STDOUT, b"half") + frame(255, b'{"code":7,"message":"no more"}'))

    server.on("GET", LOGS, handle)
    with pytest.raises(ServerError, match="no more"):
        follow(server, files, [])
    assert files.out == b"half"


def test_a_server_that_cannot_be_reached_at_first_is_said_at_once(files: Files) -> None:
    absent = FakeServer()
    absent.url = "http://127.0.0.1:9"
    slept: list[float] = []
    with pytest.raises(NoServerError):
        follow(absent, files, [], sleep=slept.append)
    assert slept == []


def test_a_server_that_stays_away_is_given_up(server: FakeServer, files: Files) -> None:
    away: Callable[[web.Request], Awaitable[web.StreamResponse]]

    async def away(request: web.Request) -> web.StreamResponse:
        return web.json_response({"code": 14, "message": "etcd is away"}, status=503)

    async def once(request: web.Request) -> web.StreamResponse:
        server.on("GET", LOGS, away)
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(frame(STDOUT, b"first"))
        assert request.transport is not None
        request.transport.close()
        return response

    server.on("GET", LOGS, once)
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    notes: list[str] = []
    with pytest.raises(ServerError, match="etcd is away"):
        follow(server, files, notes, sleep=sleep, clock=lambda: now[0])
    assert 60 <= now[0] < 70
    assert notes == ["etcd is away; trying to go on"]
    assert files.out == b"first"
