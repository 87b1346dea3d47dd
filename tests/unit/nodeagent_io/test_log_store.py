"""All logs of a node: taken while containers run, read by anybody, kept for a while."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pwm.api.v1.agent_pb2 import ReadLogs
from pwm.nodeagent.drivers.driver import LogFormat, LogSource
from pwm.nodeagent.logs import LogStore, UnknownLog
from pwm.nodeagent.logs.batch import Batch, Cursor
from pwm.nodeagent.logs.spool import Spool
from tests.patience import PATIENCE_S
from tests.unit.nodeagent_io.records import appender, line, rotate

Store = Callable[..., "asynccontextmanager[LogStore]"]


@asynccontextmanager
async def running(root: Path, **limits: int) -> AsyncIterator[LogStore]:
    store = LogStore(root, **limits)
    task = asyncio.create_task(store.run())
    try:
        yield store
    finally:
        task.cancel()
        await asyncio.wait([task])
        await store.close()


def source(path: Path) -> LogSource:
    return LogSource(LogFormat.DOCKER_LOCAL, path)


async def read(store: LogStore, uid: str, *, follow: bool = False, tail: int = -1) -> bytes:
    request = ReadLogs(container_uid=uid, follow=follow, tail=tail)
    return b"".join([chunk.data async for chunk in store.read(request)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "engine").mkdir()
    return tmp_path / "engine" / "container.log"


async def test_a_follower_sees_each_line_soon_and_ends_with_the_container(tmp_path: Path, path: Path) -> None:
    append = appender(path)
    append(line(b"first"))
    async with running(tmp_path / "logs") as store:
        store.follow("u1", source(path))
        chunks = store.read(ReadLogs(container_uid="u1", follow=True, tail=-1))
        assert (await anext(chunks)).data == b"first\n"
        for number in range(5):
            append(line(b"%d" % number))
            assert (await anext(chunks)).data == b"%d\n" % number
        append(line(b"last words"))
        await store.finish("u1")
        assert [chunk.data async for chunk in chunks] == [b"last words\n"]
        assert await read(store, "u1", follow=True) == b"first\n0\n1\n2\n3\n4\nlast words\n"


async def test_finish_waits_for_everything_that_was_printed(tmp_path: Path, path: Path) -> None:
    lines = [line(b"%06d" % n + b"x" * 100) for n in range(100_000)]
    path.write_bytes(b"".join(lines))
    async with running(tmp_path / "logs") as store:
        store.follow("u1", source(path))
        await store.finish("u1")
        taken = await read(store, "u1")
        assert len(taken) == 107 * 100_000
        assert taken.endswith(b"099999" + b"x" * 100 + b"\n")
        await store.finish("u1")


async def test_a_log_whose_file_appears_later_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "not yet" / "container.log"
    async with running(tmp_path / "logs") as store:
        store.follow("u1", source(path))
        chunks = store.read(ReadLogs(container_uid="u1", follow=True, tail=-1))
        first = asyncio.ensure_future(anext(chunks))
        await asyncio.sleep(0)
        path.parent.mkdir()
        path.write_bytes(line(b"here"))
        assert (await first).data == b"here\n"
        await store.finish("u1")
        assert [chunk async for chunk in chunks] == []


async def test_many_logs_grow_side_by_side_through_rotations(tmp_path: Path) -> None:
    paths = {f"u{n}": tmp_path / f"engine{n}" / "container.log" for n in range(8)}
    async with running(tmp_path / "logs") as store:
        readers = {}
        for uid, path in paths.items():
            path.parent.mkdir()
            store.follow(uid, source(path))
            readers[uid] = asyncio.ensure_future(read(store, uid, follow=True))
        for number in range(30):
            for uid, path in paths.items():
                with path.open("ab") as file:
                    file.write(line(f"{uid} {number}".encode()))
                if number % 7 == 6:
                    rotate(path)
            await asyncio.sleep(0)
        for uid, reader in readers.items():
            await store.finish(uid)
            assert await reader == "".join(f"{uid} {number}\n" for number in range(30)).encode()


async def test_after_a_restart_nothing_is_lost_or_repeated(tmp_path: Path, path: Path) -> None:
    append = appender(path)
    for number in range(5):
        append(line(b"while agent %d runs" % number))
        async with running(tmp_path / "logs") as store:
            store.follow("u1", source(path))
            chunks = store.read(ReadLogs(container_uid="u1", follow=True, tail=1))
            assert b"while agent" in (await anext(chunks)).data
        append(line(b"while no agent runs"))
        rotate(path)
    async with running(tmp_path / "logs") as store:
        store.follow("u1", source(path))
        await store.finish("u1")
        assert await read(store, "u1") == b"".join(
            b"while agent %d runs\nwhile no agent runs\n" % number for number in range(5)
        )


async def test_an_ended_log_is_readable_after_a_restart_and_is_not_taken_again(tmp_path: Path, path: Path) -> None:
    path.write_bytes(line(b"all there is"))
    async with running(tmp_path / "logs") as store:
        store.follow("u1", source(path))
        await store.finish("u1")
    path.unlink()
    async with running(tmp_path / "logs") as store:
        assert await read(store, "u1", follow=True) == b"all there is\n"
        store.follow("u1", source(path))
        await store.finish("u1")
        assert await read(store, "u1", follow=True) == b"all there is\n"


@pytest.mark.parametrize("uid", ["nobody", "", "..", "../../etc", "a/b", "/etc"])
async def test_a_log_that_is_not_kept_is_unknown(tmp_path: Path, uid: str) -> None:
    async with running(tmp_path / "logs") as store:
        with pytest.raises(UnknownLog):
            await read(store, uid)
        await store.forget([uid])
        await store.finish(uid)


async def test_a_forgotten_log_is_gone_also_for_those_who_read_it(tmp_path: Path, path: Path) -> None:
    path.write_bytes(line(b"x"))
    async with running(tmp_path / "logs") as store:
        store.follow("u1", source(path))
        chunks = store.read(ReadLogs(container_uid="u1", follow=True, tail=-1))
        assert (await anext(chunks)).data == b"x\n"
        await store.forget(["u1"])
        assert [chunk async for chunk in chunks] == []
        assert not (tmp_path / "logs" / "u1").exists()
        with pytest.raises(UnknownLog):
            await read(store, "u1")


async def test_a_full_disk_delays_a_log_and_loses_nothing(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pwm.nodeagent.logs.store._RETRY_S", 0.01)
    failures, append = iter([True, False, True, True]), Spool.append

    def sometimes_full(spool: Spool, batch: Batch, cursor: Cursor) -> None:
        if next(failures, False):
            raise OSError(28, "No space left on device")
        append(spool, batch, cursor)

    monkeypatch.setattr(Spool, "append", sometimes_full)
    path.write_bytes(line(b"one"))
    async with running(tmp_path / "logs") as store:
        store.follow("u1", source(path))
        chunks = store.read(ReadLogs(container_uid="u1", follow=True, tail=-1))
        assert (await anext(chunks)).data == b"one\n"
        appender(path)(line(b"two"))
        await store.finish("u1")
        assert await read(store, "u1") == b"one\ntwo\n"
    assert next(failures, None) is None


async def test_a_source_that_cannot_be_read_does_not_keep_the_end_secret(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pwm.nodeagent.logs.store._RETRY_S", 0.01)
    monkeypatch.setattr("pwm.nodeagent.logs.store._DRAIN_PATIENCE_S", 0.05)
    path.mkdir()
    async with running(tmp_path / "logs") as store:
        store.follow("u1", source(path))
        async with asyncio.timeout(PATIENCE_S):
            await store.finish("u1")
        assert await read(store, "u1", follow=True) == b""


async def _ended(store: LogStore, root: Path, uid: str, *, size: int, age_s: float) -> None:
    path = root / uid / "container.log"
    path.parent.mkdir(parents=True)
    path.write_bytes(line(b"x" * (size - 1)))
    store.follow(uid, source(path))
    await store.finish(uid)
    for file in (root / "logs" / uid).iterdir():
        os.utime(file, (time.time() - age_s,) * 2)


async def test_old_logs_go_and_the_oldest_make_room_for_newer_ones(tmp_path: Path) -> None:
    async with running(tmp_path / "logs", total_bytes=7_000, keep_s=1_000) as store:
        for uid, age_s in (("old", 1_001), ("older", 500), ("newer", 400), ("newest", 300)):
            await _ended(store, tmp_path, uid, size=3_000, age_s=age_s)
        await store.enforce_retention()
        assert sorted(folder.name for folder in (tmp_path / "logs").iterdir()) == ["newer", "newest"]


async def test_running_containers_keep_their_newest_output_when_room_is_short(tmp_path: Path, path: Path) -> None:
    append = appender(path)
    async with running(tmp_path / "logs", total_bytes=5_000, max_bytes=100_000, segment_bytes=1_000) as store:
        store.follow("u1", source(path))
        chunks = store.read(ReadLogs(container_uid="u1", follow=True, tail=-1))
        for number in range(20):
            append(line(b"%03d" % number + b"x" * 1_000))
            await anext(chunks)
        await store.enforce_retention()
        kept = await read(store, "u1")
        assert kept.endswith(b"019" + b"x" * 1_000 + b"\n")
        assert len(kept) <= 5_000
        append(line(b"goes on"))
        assert (await anext(chunks)).data == b"goes on\n"
