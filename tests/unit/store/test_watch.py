"""The watch's traps, played by a scripted member of etcd in virtual time."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc.aio
import pytest

from pwm.api.etcd import kv_pb2
from pwm.api.etcd import rpc_pb2 as pb
from pwm.controlplane.store import errors
from pwm.controlplane.store.etcd_watch import QUIET_S, SILENT_S, watch
from tests.sim.virtual_time import run

Script = list[Any]


def answer(*revisions: int, fragment: bool = False) -> pb.WatchResponse:
    events = [kv_pb2.Event(kv=kv_pb2.KeyValue(key=b"k", value=b"%d" % r, mod_revision=r)) for r in revisions]
    return pb.WatchResponse(events=events, fragment=fragment, header=pb.ResponseHeader(revision=max(revisions)))


def created(revision: int) -> pb.WatchResponse:
    return pb.WatchResponse(created=True, header=pb.ResponseHeader(revision=revision))


def mark(revision: int, *, asked: bool) -> pb.WatchResponse:
    return pb.WatchResponse(watch_id=-1 if asked else 0, header=pb.ResponseHeader(revision=revision))


class Stream:
    """One watch stream: gives its script, then stays silent."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.written: list[pb.WatchRequest] = []

    async def write(self, request: pb.WatchRequest) -> None:
        self.written.append(request)

    async def read(self) -> Any:
        await asyncio.sleep(0)
        if not self._script:
            await asyncio.Event().wait()
        step = self._script.pop(0)
        if callable(step):
            return await step()
        return step

    def cancel(self) -> None:
        pass


class Members:
    """Stands for the endpoints; each new stream plays the next script."""

    address = "scripted"

    def __init__(self, *scripts: Script) -> None:
        self._scripts = list(scripts)
        self.streams: list[Stream] = []
        self.watch = self
        self.shunned = 0
        self.left = asyncio.Event()

    def pick(self) -> "Members":
        return self

    def shun(self, member: "Members") -> None:
        self.shunned += 1

    def Watch(self, *, metadata: object) -> Stream:
        self.streams.append(Stream(self._scripts.pop(0)))
        return self.streams[-1]

    @property
    def starts(self) -> list[int]:
        return [stream.written[0].create_request.start_revision for stream in self.streams]


def delivered(members: Members, count: int, *, start: int = 10) -> list[tuple[int, list[int]]]:
    """(revision, revisions of its events) of the first batches."""

    async def collect() -> list[tuple[int, list[int]]]:
        batches: list[tuple[int, list[int]]] = []
        source: Any = members
        async with aclosing(watch(source, b"k", b"", start_revision=start, deletes=True)) as stream:
            async for batch in stream:
                batches.append((batch.revision, [e.kv.mod_revision for e in batch.events]))
                if len(batches) == count:
                    break
        return batches

    return run(collect())


def test_after_a_break_the_watch_resumes_behind_the_last_delivered_revision() -> None:
    members = Members([created(50), answer(10, 12), grpc.aio.EOF], [created(60), answer(13)])
    assert delivered(members, 2) == [(12, [10, 12]), (13, [13])]
    assert members.starts == [10, 13]
    assert members.shunned == 1


def test_the_created_answer_says_nothing_of_what_was_delivered() -> None:
    members = Members([created(500), grpc.aio.EOF], [created(500), answer(11)])
    assert delivered(members, 1) == [(11, [11])]
    assert members.starts == [10, 10]


def test_fragments_count_only_when_they_are_whole() -> None:
    members = Members(
        [created(1), answer(10, fragment=True), grpc.aio.EOF],
        [created(1), answer(10, 10, fragment=True), answer(10, 11)],
    )
    assert delivered(members, 1) == [(11, [10, 10, 10, 11])]
    assert members.starts == [10, 10]


def test_revisions_that_come_again_are_dropped() -> None:
    members = Members([created(1), answer(10), answer(9, 10), answer(10, 11)])
    assert delivered(members, 2) == [(10, [10]), (11, [11])]


def test_a_mark_in_order_moves_the_watch_on_and_one_that_was_asked_for_does_not() -> None:
    members = Members([created(1), mark(30, asked=True), mark(20, asked=False), grpc.aio.EOF], [created(1), answer(40)])
    assert delivered(members, 3) == [(9, []), (20, []), (40, [40])]
    assert members.starts == [10, 21]


def test_a_silent_member_is_asked_and_then_left() -> None:
    async def scenario() -> float:
        silent, healthy = Members([created(1)], [created(1), answer(10)]), None
        source: Any = silent
        async with aclosing(watch(source, b"k", b"", start_revision=10, deletes=True)) as stream:
            await anext(stream)
        assert healthy is None
        assert silent.streams[0].written[1].HasField("progress_request")
        return asyncio.get_running_loop().time()

    assert run(scenario()) == pytest.approx(SILENT_S, abs=0.2)


def test_when_all_are_silent_each_is_given_more_time_until_something_comes() -> None:
    async def after_ten_seconds() -> pb.WatchResponse:
        await asyncio.sleep(10)
        return answer(10)

    slow: Script = [created(1), after_ten_seconds]
    members = Members([*slow], [*slow], [*slow], [created(1)], [created(1), answer(11)])

    async def scenario() -> float:
        source: Any = members
        async with aclosing(watch(source, b"k", b"", start_revision=10, deletes=True)) as stream:
            assert (await anext(stream)).revision == 10
            began = asyncio.get_running_loop().time()
            assert (await anext(stream)).revision == 11
        return asyncio.get_running_loop().time() - began

    # Once the third has brought something, it is given no more time than the first was.
    assert run(scenario()) == pytest.approx(SILENT_S + 2 * SILENT_S, abs=0.3)
    assert members.starts == [10, 10, 10, 11, 11]


def test_a_quiet_member_that_answers_is_kept() -> None:
    async def later() -> pb.WatchResponse:
        await asyncio.sleep((QUIET_S + SILENT_S) / 2)
        return mark(12, asked=True)

    steps: list[Callable[[], Awaitable[pb.WatchResponse]]] = [later] * 10
    members = Members([created(1), *steps])
    assert delivered(members, 10) == [(9, [])] * 10
    assert len(members.streams) == 1


def test_a_compacted_watch_is_told_apart_from_a_cancelled_one() -> None:
    compacted = pb.WatchResponse(canceled=True, compact_revision=77)
    cancelled = pb.WatchResponse(canceled=True, cancel_reason="leader changed")
    with pytest.raises(errors.Compacted) as refusal:
        delivered(Members([created(1), compacted]), 1)
    assert refusal.value.revision == 77
    assert delivered(Members([created(1), cancelled], [created(1), answer(10)]), 1) == [(10, [10])]
