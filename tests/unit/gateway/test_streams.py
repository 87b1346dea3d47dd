"""Server streams over a real server: four forms, errors early and late, slow clients, and every way a stream ends."""

import asyncio
import json
import random
import struct
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import structlog

from pwm.api.v1 import services_pb2 as s
from pwm.api.v1.agent_pb2 import STDERR, STDOUT
from pwm.controlplane.errors import ApiError
from pwm.controlplane.gateway import open_streams, streams
from tests.patience import PATIENCE_S

FRAMES = {"Accept": "application/vnd.pwm.frames"}
HEAD = b"HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer pwm_ann\r\n"


def frames(body: bytes) -> list[tuple[int, bytes]]:
    found, at = [], 0
    while at < len(body):
        channel, length = struct.unpack_from(">BI", body, at)
        at += 5 + length
        assert at <= len(body)
        found.append((channel, body[at - length : at]))
    return found


class Stream:
    """A client that reads a stream line by line while it is open."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, gateway: Any, path: str, headers: bytes = b"") -> "Stream":
        reader, writer = await gateway.connect(limit=2**16)
        writer.write(b"GET " + path.encode() + b" " + HEAD + headers + b"\r\n")
        return cls(reader, writer)

    async def head(self) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await self._reader.readuntil(b"\r\n\r\n")

    async def chunk(self) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            size = int(await self._reader.readline(), 16)
            return (await self._reader.readexactly(size + 2))[:-2]

    def close(self) -> None:
        self._writer.close()


async def test_json_lines_are_the_usual_form(gateway: Any) -> None:
    answer = await gateway.get("/v1/watch/Workload")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/x-ndjson")
    assert [line["result"]["revision"] for line in answer.lines] == ["1", "2", "3"]
    assert answer.lines[0]["result"]["resource"]["kind"] == "Workload"


async def test_events_carry_the_revision_as_their_id(gateway: Any) -> None:
    answer = await gateway.get("/v1/watch/Workload", Accept="text/event-stream")
    assert answer.headers["Content-Type"] == "text/event-stream"
    events = answer.body.decode().split("\n\n")
    assert events[0].startswith('id: 1\ndata: {"type":"ADDED"')
    assert events[3:] == ["event: end\ndata: {}", ""]


async def test_frames_carry_bytes_a_cursor_and_the_end(gateway: Any) -> None:
    answer = await gateway.ask("GET", "/v1/workloads/train/logs", headers=FRAMES)
    assert answer.headers["Content-Type"] == "application/vnd.pwm.frames"
    assert [(channel, data if channel < 254 else json.loads(data)) for channel, data in frames(answer.body)] == [
        (STDOUT, b"one\n"),
        (254, {"container": "train.0.1", "nextOffset": "4"}),
        (STDERR, b"two\xff\n"),
        (254, {"container": "train.0.1", "nextOffset": "9"}),
        (254, {"container": "train.0.1", "nextOffset": "9"}),
        (255, {}),
    ]


async def test_plain_text_is_the_data_alone(gateway: Any) -> None:
    answer = await gateway.get("/v1/workloads/train/logs", Accept="text/plain")
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.body == b"one\ntwo\xff\n"


async def test_only_raw_streams_can_be_read_raw(gateway: Any) -> None:
    for accept in ("text/plain", "application/vnd.pwm.frames", "*/*", "text/plain, text/event-stream;q=0.5"):
        answer = await gateway.get("/v1/watch/Workload", Accept=accept)
        assert answer.headers["Content-Type"] in ("application/x-ndjson", "text/event-stream")
    logs = await gateway.get("/v1/workloads/train/logs")
    assert logs.lines[0] == {
        "result": {"stream": "STDOUT", "data": "b25lCg==", "container": "train.0.1", "nextOffset": "4"}
    }


async def failing(after: int, error: Exception) -> AsyncIterator[Any]:
    for number in range(after):
        yield s.WatchResponse(revision=number + 1)
    raise error


GONE = ApiError(grpc.StatusCode.NOT_FOUND, "it is gone", next_step="look elsewhere")


async def test_an_error_before_the_first_message_has_its_http_status(gateway: Any, world: Any) -> None:
    world.watch = lambda request: failing(0, GONE)
    for accept in ("", "text/event-stream"):
        answer = await gateway.get("/v1/watch/Workload", Accept=accept)
        assert (answer.status, answer.json["message"]) == (404, "it is gone")
        assert answer.json["details"][0]["nextStep"] == "look elsewhere"


async def test_an_error_after_the_first_message_is_the_last_line(gateway: Any, world: Any) -> None:
    world.watch = lambda request: failing(2, GONE)
    answer = await gateway.get("/v1/watch/Workload")
    assert answer.status == 200
    assert [list(line) for line in answer.lines] == [["result"], ["result"], ["error"]]
    assert answer.lines[-1]["error"]["code"] == 5
    answer = await gateway.get("/v1/watch/Workload", Accept="text/event-stream")
    assert answer.body.decode().split("\n\n")[2].startswith('event: error\ndata: {"code":5,')


async def test_a_fault_of_ours_is_told_without_its_reason(gateway: Any, world: Any) -> None:
    with structlog.testing.capture_logs() as logged:
        world.watch = lambda request: failing(1, RuntimeError("a secret"))
        answer = await gateway.get("/v1/watch/Workload")
    assert answer.lines[-1]["error"]["code"] == 13
    assert b"secret" not in answer.body
    assert [entry["event"] for entry in logged] == ["a stream failed"]


async def test_a_raw_stream_tells_its_error_in_the_last_frame(gateway: Any, world: Any) -> None:
    async def logs(request: s.LogsRequest) -> AsyncIterator[s.LogsResponse]:
        yield s.LogsResponse(stream=STDOUT, data=b"x")
        raise GONE

    world.logs = logs
    answer = await gateway.ask("GET", "/v1/workloads/train/logs", headers=FRAMES)
    (_, data), (channel, error) = frames(answer.body)
    assert (data, channel, json.loads(error)["code"]) == (b"x", 255, 5)


async def test_plain_text_that_ends_in_an_error_does_not_look_complete(gateway: Any, world: Any) -> None:
    async def logs(request: s.LogsRequest) -> AsyncIterator[s.LogsResponse]:
        yield s.LogsResponse(stream=STDOUT, data=b"half a")
        await world.go_on.wait()
        raise GONE

    world.logs = logs
    stream = await Stream.open(gateway, "/v1/workloads/train/logs", b"Accept: text/plain\r\n")
    await stream.head()
    assert await stream.chunk() == b"half a"
    world.go_on.set()
    with pytest.raises((ConnectionResetError, ValueError, asyncio.IncompleteReadError)):
        await stream.chunk()
    stream.close()


async def test_a_quiet_stream_opens_at_once(gateway: Any, world: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(streams, "HEADERS_AFTER_S", 0.01)

    async def quiet(request: s.WatchRequest) -> AsyncIterator[s.WatchResponse]:
        await world.go_on.wait()
        yield s.WatchResponse(revision=1)

    world.watch = quiet
    stream = await Stream.open(gateway, "/v1/watch/Workload")
    assert b" 200 " in await stream.head()
    world.go_on.set()
    assert json.loads(await stream.chunk()) == {"result": {"revision": "1"}}
    assert await stream.chunk() == b""
    stream.close()


async def test_each_message_is_sent_when_it_is_there(gateway: Any, world: Any) -> None:
    queue: asyncio.Queue[int] = asyncio.Queue()

    async def one_by_one(request: s.WatchRequest) -> AsyncIterator[s.WatchResponse]:
        while True:
            yield s.WatchResponse(revision=await queue.get())

    world.watch = one_by_one
    queue.put_nowait(1)
    stream = await Stream.open(gateway, "/v1/watch/Workload")
    await stream.head()
    for revision in range(1, 5):
        assert json.loads(await stream.chunk())["result"] == {"revision": str(revision)}
        queue.put_nowait(revision + 1)
    stream.close()


async def endless(world: Any) -> AsyncIterator[s.WatchResponse]:
    try:
        yield s.WatchResponse(revision=1)
        world.started.set()
        await asyncio.Event().wait()
    finally:
        world.cancelled.set()


async def test_a_client_that_leaves_ends_its_stream(gateway: Any, world: Any) -> None:
    world.watch = lambda request: endless(world)
    stream = await Stream.open(gateway, "/v1/watch/Workload")
    await stream.head()
    async with asyncio.timeout(PATIENCE_S):
        await world.started.wait()
        stream.close()
        await world.cancelled.wait()


async def test_a_server_that_stops_ends_its_streams_politely(world: Any, start: Any) -> None:
    world.watch = lambda request: endless(world)
    async with start(world) as gateway, asyncio.TaskGroup() as group:
        reading = group.create_task(gateway.get("/v1/watch/Workload"))
        async with asyncio.timeout(PATIENCE_S):
            await world.started.wait()
            await gateway.gateway.stop(5)
        answer = await reading
    assert world.cancelled.is_set()
    assert answer.lines[-1]["error"]["code"] == grpc.StatusCode.UNAVAILABLE.value[0]
    assert answer.lines[-1]["error"]["message"] == "this controller is stopping"


async def test_a_stream_ends_at_its_deadline(gateway: Any, world: Any) -> None:
    world.watch = lambda request: endless(world)
    answer = await gateway.get("/v1/watch/Workload", Grpc_Timeout="100m")
    assert answer.lines[-1]["error"]["code"] == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    assert world.cancelled.is_set()


async def test_a_revoked_token_ends_the_streams_it_opened(gateway: Any, world: Any) -> None:
    world.watch = lambda request: endless(world)
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(gateway.get("/v1/watch/Workload"))
        async with asyncio.timeout(PATIENCE_S):
            await world.started.wait()
            await gateway.gateway._streams.recheck()
            assert not world.cancelled.is_set()
            del world.tokens["pwm_ann"]
            await gateway.gateway._streams.recheck()
        answer = await reading
    assert answer.lines[-1]["error"]["code"] == grpc.StatusCode.UNAUTHENTICATED.value[0]
    assert world.cancelled.is_set()


async def test_a_change_of_who_may_do_what_ends_streams_at_once_and_spares_the_others(
    gateway: Any, world: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(open_streams, "CHECKS_AT_ONCE", 2)
    world.tokens["pwm_second"] = world.tokens["pwm_ann"]
    world.watch = lambda request: endless(world)
    kept = [await Stream.open(gateway, "/v1/watch/Workload") for _ in range(3)]
    for stream in kept:
        await stream.head()
    ended = [gateway.get("/v1/watch/Workload", Authorization="Bearer pwm_second") for _ in range(3)]
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        reading = [group.create_task(one) for one in ended]
        while len(gateway.gateway._streams._streams) < 6:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        del world.tokens["pwm_second"]
        gateway.gateway.recheck_soon()
    for task in reading:
        assert task.result().lines[-1]["error"]["message"] == "log in first"
    assert len(gateway.gateway._streams._streams) == 3
    for stream in kept:
        stream.close()


async def test_callers_are_checked_again_within_a_minute() -> None:
    assert open_streams.RECHECK_S <= 55


async def test_a_stream_outlives_a_check_that_could_not_be_made(gateway: Any, world: Any, monkeypatch: Any) -> None:
    world.watch = lambda request: endless(world)

    async def away(token: str | None, peer: str) -> Any:
        raise ApiError(grpc.StatusCode.UNAVAILABLE, "etcd is away")

    stream = await Stream.open(gateway, "/v1/watch/Workload")
    await stream.head()
    monkeypatch.setattr(gateway.gateway, "_authenticate", away)
    await gateway.gateway._streams.recheck()
    assert not world.cancelled.is_set()
    stream.close()


async def test_one_caller_can_keep_only_so_many_streams_open(gateway: Any, world: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(gateway.gateway._streams, "_most_per_owner", 2)
    world.watch = lambda request: endless(world)
    held = [await Stream.open(gateway, "/v1/watch/Workload") for _ in range(2)]
    for stream in held:
        assert b" 200 " in await stream.head()
    answer = await gateway.get("/v1/watch/Workload")
    assert (answer.status, answer.json["code"]) == (429, 8)
    assert answer.json["message"] == "user:ann has 2 streams open, which is the most one caller may have"
    assert (await gateway.get("/v1/top", Authorization="Bearer pwm_bob")).status == 200
    for stream in held:
        stream.close()
    world.watch = None
    async with asyncio.timeout(PATIENCE_S):
        while (await gateway.get("/v1/watch/Workload")).status == 429:
            pass  # until the server has seen that they are gone
    assert (await gateway.get("/v1/watch/Workload")).status == 200


async def test_a_client_that_does_not_read_stops_the_service_and_not_the_memory(gateway: Any, world: Any) -> None:
    sent_bytes = 0

    async def flood(request: s.LogsRequest) -> AsyncIterator[s.LogsResponse]:
        nonlocal sent_bytes
        chunk = b"x" * 2**16
        while True:
            yield s.LogsResponse(stream=STDOUT, data=chunk)
            sent_bytes += len(chunk)

    world.logs = flood
    stream = await Stream.open(gateway, "/v1/workloads/train/logs", b"Accept: text/plain\r\n")
    await stream.head()
    before = -1
    async with asyncio.timeout(PATIENCE_S):
        while sent_bytes != before:
            before = sent_bytes
            await asyncio.sleep(0.05)
    # The two sockets' buffers hold some megabytes; what is beyond them is ours.
    assert sent_bytes < 32 * 2**20
    assert (await gateway.get("/v1/version")).status == 200
    stream.close()


async def test_a_client_that_never_reads_is_cut_off(gateway: Any, world: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(streams, "STALL_S", 0.1)

    async def flood(request: s.LogsRequest) -> AsyncIterator[s.LogsResponse]:
        try:
            while True:
                yield s.LogsResponse(stream=STDOUT, data=b"x" * 2**16)
        finally:
            world.cancelled.set()

    world.logs = flood
    stream = await Stream.open(gateway, "/v1/workloads/train/logs", b"Accept: text/plain\r\n")
    async with asyncio.timeout(PATIENCE_S):
        await world.cancelled.wait()
    stream.close()


async def test_a_silent_event_stream_beats(gateway: Any, world: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(streams.EventStream, "beat_s", 0.01)
    world.watch = lambda request: endless(world)
    stream = await Stream.open(gateway, "/v1/watch/Workload", b"Accept: text/event-stream\r\n")
    await stream.head()
    assert (await stream.chunk()).startswith(b"id: 1\n")
    assert await stream.chunk() == b":\n\n"
    stream.close()


async def test_no_byte_of_fifty_megabytes_is_lost(gateway: Any, world: Any) -> None:
    size_bytes = 50 * 2**20
    sent = random.Random(0).randbytes(size_bytes)

    async def logs(request: s.LogsRequest) -> AsyncIterator[s.LogsResponse]:
        for start in range(0, size_bytes, 2**16):
            yield s.LogsResponse(stream=STDOUT, data=sent[start : start + 2**16], next_offset=start)

    world.logs = logs
    answer = await gateway.ask("GET", "/v1/workloads/train/logs", headers=FRAMES)
    assert b"".join(data for channel, data in frames(answer.body) if channel == STDOUT) == sent


async def test_many_small_messages_all_come_in_order(gateway: Any, world: Any) -> None:
    async def many(request: s.WatchRequest) -> AsyncIterator[s.WatchResponse]:
        for revision in range(20_000):
            yield s.WatchResponse(revision=revision + 1)

    world.watch = many
    answer = await gateway.get("/v1/watch/Workload")
    assert [int(line["result"]["revision"]) for line in answer.lines] == list(range(1, 20_001))
