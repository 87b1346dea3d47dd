"""Following the log: order, resuming, rebuilding, and the proof that nothing was missed."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest

from pwm.controlplane.store import errors
from pwm.controlplane.store.eventstore import EventStore
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.kv import KV, WatchBatch
from tests.contract.decisions import Seen, all_heads, birth, change, commit, following, head_of, stream
from tests.patience import PATIENCE_S

A, B = stream("a"), stream("b")


async def test_events_come_in_cluster_order(store: EventStore) -> None:
    start, _ = await all_heads(store)
    async with following(store, start) as seen:
        for i in range(5):
            await asyncio.gather(*(store.append(commit(birth(stream(f"{i}-{j}"), b"x", b"y"))) for j in range(10)))
        await seen.until(lambda: len(seen.events) == 100)
    places = [(e.revision, e.position) for e in seen.events]
    assert places == sorted(places)
    assert len(set(places)) == 100
    by_stream: dict[object, list[int]] = {}
    for event in seen.events:
        by_stream.setdefault(event.stream, []).append(event.version)
    assert set(map(tuple, by_stream.values())) == {(1, 2)}


async def test_heads_then_follow_leaves_no_gap(store: EventStore) -> None:
    """Every event is in the heads or is followed, never both, while writers go on."""
    names = [f"s{i}" for i in range(60)]

    some_written = asyncio.Event()

    async def write() -> None:
        for name in names:
            await store.append(commit(birth(stream(name))))
            if name == names[10]:
                some_written.set()

    async with asyncio.TaskGroup() as group:
        writing = group.create_task(write())
        await some_written.wait()
        revision, heads = await all_heads(store, page_keys=7)
        async with following(store, revision) as seen:
            await writing
            await seen.until(lambda: len(seen.events) + len(heads) >= len(names))
    followed = [event.stream for event in seen.events]
    assert sorted(s.uid for s in [*heads, *followed]) == sorted(names)


async def test_following_resumes_where_it_stopped(store: EventStore) -> None:
    start, _ = await all_heads(store)
    for i in range(3):
        await store.append(commit(birth(stream(f"s{i}"))))
    async with following(store, start) as first:
        await first.until(lambda: len(first.events) == 3)
    for i in range(3, 6):
        await store.append(commit(birth(stream(f"s{i}"))))
    async with following(store, first.revision) as second:
        await second.until(lambda: len(second.events) == 3)
    assert [e.stream.uid for e in [*first.events, *second.events]] == [f"s{i}" for i in range(6)]


async def test_following_from_before_compaction_needs_a_rebuild(store: EventStore, kv: KV) -> None:
    start, _ = await all_heads(store)
    for i in range(4):
        last = await store.append(commit(birth(stream(f"s{i}"))))
    await kv.compact(last)
    with pytest.raises(errors.RebuildNeeded):
        await Seen().take(store, start)
    revision, heads = await all_heads(store)
    assert len(heads) == 4
    async with following(store, revision) as seen:
        await store.append(commit(birth(A)))
        await seen.until(lambda: [e.stream for e in seen.events] == [A])


async def test_following_from_the_future_means_that_the_store_went_back(store: EventStore) -> None:
    revision = await store.append(commit(birth(A)))
    with pytest.raises(errors.RevisionWentBack) as refusal:
        await Seen().take(store, revision + 1000)
    assert refusal.value.seen == revision + 1000


class Forgetful:
    """A key-value store whose watch leaves out the events of one stream, as a faulty etcd would."""

    def __init__(self, kv: KV, forgotten: bytes) -> None:
        self._kv = kv
        self._forgotten = forgotten

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kv, name)

    async def watch(
        self, key: bytes, end: bytes = b"", *, start_revision: int, deletes: bool = True
    ) -> AsyncGenerator[WatchBatch, None]:
        async with aclosing(self._kv.watch(key, end, start_revision=start_revision, deletes=deletes)) as batches:
            async for batch in batches:
                batch.events = [e for e in batch.events if self._forgotten not in e.kv.key]
                yield batch


class Deaf(Forgetful):
    """A key-value store whose watch gives marks and nothing else."""

    async def watch(
        self, key: bytes, end: bytes = b"", *, start_revision: int, deletes: bool = True
    ) -> AsyncGenerator[WatchBatch, None]:
        while True:
            yield WatchBatch(start_revision - 1, [])


async def test_a_watch_that_loses_an_event_is_found_out(kv: KV, keys: Keys) -> None:
    forgetful: Any = Forgetful(kv, b"/ev/Workload/b/")
    async with EventStore(forgetful, keys=keys, proof_interval_s=0.0) as store:
        start, _ = await all_heads(store)
        await store.append(commit(birth(A)))
        seen = Seen()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(_expect_missed(store, seen, start))
            await seen.until(lambda: len(seen.events) == 1)
            await store.append(commit(birth(B)))
            await store.append(commit(birth(stream("c"))))
        assert task.result() == (B,)
        assert store.missed == 1


async def test_a_watch_that_goes_deaf_is_found_out(kv: KV, keys: Keys) -> None:
    """It only says that it is alive: what one proof saw coming must have come by the next."""
    deaf: Any = Deaf(kv, b"")
    async with EventStore(deaf, keys=keys, proof_interval_s=0.0) as store:
        start, _ = await all_heads(store)
        await store.append(commit(birth(B)))
        assert await _expect_missed(store, Seen(), start) == (B,)


async def _expect_missed(store: EventStore, seen: Seen, after_revision: int) -> tuple[object, ...]:
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(errors.Missed) as refusal:
            await seen.take(store, after_revision)
    return refusal.value.streams


async def test_a_sound_watch_is_never_suspected(kv: KV, keys: Keys) -> None:
    async with EventStore(kv, keys=keys, proof_interval_s=0.0) as store:
        start, _ = await all_heads(store)
        async with following(store, start) as seen:
            await asyncio.gather(*(_grow(store, f"s{i}") for i in range(8)))
            await seen.until(lambda: len(seen.events) == 8 * 20)
        assert store.missed == 0


async def _grow(store: EventStore, name: str) -> None:
    await store.append(commit(birth(stream(name))))
    for _ in range(19):
        await store.append(commit(change(await head_of(store, stream(name)))))


async def test_a_proof_moves_a_quiet_follower_on(kv: KV, keys: Keys) -> None:
    """Writes beside the log move the store's revision: a follower must not fall behind compaction by that."""
    async with EventStore(kv, keys=keys, proof_interval_s=0.0) as store:
        start, _ = await all_heads(store)
        async with following(store, start) as seen:
            beside = await kv.put(keys.presence("replica", "r1"), b"")
            await seen.until(lambda: seen.revision >= beside)
        assert seen.events == []
        assert seen.marks
