"""Cutting the log: what goes, what stays, and who may do it, on each backend."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import aclosing

import pytest

from pwm.controlplane.store import errors, retention
from pwm.controlplane.store.eventstore import EventStore, Guard, StoredEvent, StreamId
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.kv import KV, prefix_end
from pwm.controlplane.store.retention import DAY_MS, Retention, RetentionPolicy
from tests.contract.decisions import all_heads, birth, change, commit, head_of, stream

A, B = stream("a"), stream("b")
POLICY = RetentionPolicy(kept_events=10, slack_events=5, removed_kept_ms=30 * DAY_MS, compaction_lag_ms=1000)


@pytest.fixture
async def fence(kv: KV, keys: Keys) -> Guard:
    key = keys.leader("chores")
    return Guard(key, create_revision=await kv.put(key, b"me"))


async def grow(store: EventStore, stream_id: StreamId, to_version: int) -> None:
    if await store.head(stream_id) is None:
        await store.append(commit(birth(stream_id, b"1")))
    head = await head_of(store, stream_id)
    events = [b"%d" % version for version in range(head.version + 1, to_version + 1)]
    await store.append(commit(change(head, *events)))


async def versions(store: EventStore, stream_id: StreamId) -> list[int]:
    return [event.version async for event in store.read_stream(stream_id)]


async def test_a_live_stream_keeps_its_last_events_and_its_head(kv: KV, store: EventStore, fence: Guard) -> None:
    await grow(store, A, 40)
    await grow(store, B, 14)
    before = await head_of(store, A)
    report = await Retention(kv, store, policy=POLICY).run(now_ms=0, fence=fence)
    assert (report.trimmed_streams, report.trimmed_events, report.dropped_streams) == (1, 30, 0)
    assert await versions(store, A) == list(range(31, 41))
    assert await versions(store, B) == list(range(1, 15)), "within the slack nothing is done"
    after = await head_of(store, A)
    assert (after.revision, after.first_version) == (before.revision, 31), "the head is not rewritten"
    _, heads = await all_heads(store)
    assert {s.uid: h.first_version for s, h in heads.items()} == {"a": 31, "b": 1}
    await store.append(commit(change(before, b"41")))


async def test_a_trimmed_stream_is_trimmed_again_from_where_it_begins(kv: KV, store: EventStore, fence: Guard) -> None:
    pruning = Retention(kv, store, policy=POLICY)
    await grow(store, A, 40)
    await pruning.run(now_ms=0, fence=fence)
    await grow(store, A, 44)
    assert (await pruning.run(now_ms=0, fence=fence)).trimmed_streams == 0
    await grow(store, A, 45)
    assert (await pruning.run(now_ms=0, fence=fence)).trimmed_events == 5
    assert await versions(store, A) == list(range(36, 46))


async def test_an_ended_stream_goes_whole_after_its_time(kv: KV, store: EventStore, fence: Guard) -> None:
    await store.append(commit(birth(A, removed_at_ms=DAY_MS)))
    await store.append(commit(birth(B)))
    pruning = Retention(kv, store, policy=POLICY)
    assert (await pruning.run(now_ms=31 * DAY_MS - 1, fence=fence)).dropped_streams == 0
    assert (await pruning.run(now_ms=31 * DAY_MS, fence=fence)).dropped_streams == 1
    assert await store.head(A) is None
    assert await versions(store, A) == []
    assert await store.head(B) is not None


async def test_neighbours_with_similar_names_are_left_alone(kv: KV, store: EventStore, fence: Guard) -> None:
    for name in ("a", "a0", "a/b".replace("/", "-"), "aa"):
        await store.append(commit(birth(stream(name), removed_at_ms=DAY_MS if name == "a" else 0)))
    await Retention(kv, store, policy=POLICY).run(now_ms=60 * DAY_MS, fence=fence)
    _, heads = await all_heads(store)
    assert sorted(s.uid for s in heads) == ["a-b", "a0", "aa"]
    assert [await versions(store, s) for s in heads] == [[1], [1], [1]]


async def test_many_streams_are_dropped_in_as_many_transactions_as_it_takes(
    kv: KV, store: EventStore, fence: Guard
) -> None:
    for start in range(0, 100, 50):
        await store.append(commit(*(birth(stream(f"s{i}"), removed_at_ms=1) for i in range(start, start + 50))))
    report = await Retention(kv, store, policy=POLICY).run(now_ms=60 * DAY_MS, fence=fence)
    assert report.dropped_streams == 100
    assert (await all_heads(store))[1] == {}


async def test_no_transaction_drops_more_events_than_the_store_bears(
    kv: KV, store: EventStore, fence: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "EVENTS_PER_TXN", 7)
    exported = defaultdict[StreamId, list[int]](list)

    async def export(stream_id: StreamId, events: Sequence[StoredEvent]) -> None:
        exported[stream_id] += [event.version for event in events]

    await grow(store, A, 40)
    await store.append(commit(birth(B, *[b"1"] * 20, removed_at_ms=1)))
    for n in range(5):
        await store.append(commit(birth(stream(f"s{n}"), b"1", b"2", removed_at_ms=1)))
    before = await store.revision()
    report = await Retention(kv, store, policy=POLICY, export=export).run(now_ms=60 * DAY_MS, fence=fence)
    assert (report.trimmed_streams, report.trimmed_events, report.dropped_streams) == (1, 30 + 20 + 10, 6)
    assert exported[A] == list(range(1, 31))
    assert exported[B] == list(range(1, 21))
    assert await versions(store, A) == list(range(31, 41))
    assert {s.uid for s in (await all_heads(store))[1]} == {"a"}
    dropped = Counter[int]()
    all_events = store.keys.all_events
    async with aclosing(kv.watch(all_events, prefix_end(all_events), start_revision=before + 1)) as batches:
        async for batch in batches:
            dropped.update(event.kv.mod_revision for event in batch.events if event.deleted)
            if dropped.total() == 60:
                break
    assert max(dropped.values()) <= 7


async def test_what_is_dropped_is_exported_first(kv: KV, store: EventStore, fence: Guard) -> None:
    exported: dict[StreamId, list[int]] = {}

    async def export(stream_id: StreamId, events: Sequence[StoredEvent]) -> None:
        assert await versions(store, stream_id), "nothing has been dropped yet"
        exported[stream_id] = [event.version for event in events]

    await grow(store, A, 20)
    await store.append(commit(birth(B, b"1", b"2", removed_at_ms=1)))
    await Retention(kv, store, policy=POLICY, export=export).run(now_ms=60 * DAY_MS, fence=fence)
    assert exported == {A: list(range(1, 11)), B: [1, 2]}


async def test_nothing_is_dropped_that_could_not_be_exported(kv: KV, store: EventStore, fence: Guard) -> None:
    async def export(stream_id: StreamId, events: Sequence[StoredEvent]) -> None:
        raise OSError("disk full")

    await grow(store, A, 20)
    with pytest.raises(OSError, match="disk full"):
        await Retention(kv, store, policy=POLICY, export=export).run(now_ms=0, fence=fence)
    assert await versions(store, A) == list(range(1, 21))


async def test_a_deposed_leader_drops_nothing(kv: KV, store: EventStore, fence: Guard) -> None:
    await grow(store, A, 40)
    await kv.delete(fence.key)
    await kv.put(fence.key, b"another")
    with pytest.raises(errors.FenceLost):
        await Retention(kv, store, policy=POLICY).run(now_ms=0, fence=fence)
    assert await versions(store, A) == list(range(1, 41))


async def test_compaction_follows_behind(kv: KV, store: EventStore, fence: Guard) -> None:
    pruning = Retention(kv, store, policy=POLICY)
    first = await store.append(commit(birth(A)))
    assert (await pruning.run(now_ms=10_000, fence=fence)).compacted_to == 0
    await grow(store, A, 2)
    assert (await pruning.run(now_ms=10_999, fence=fence)).compacted_to == 0, "too early"
    compacted_to = (await Retention(kv, store, policy=POLICY).run(now_ms=11_000, fence=fence)).compacted_to
    assert compacted_to == first, "where the store was at the first pass, known to any leader"
    with pytest.raises(errors.Compacted):
        await kv.range(store.keys.head(A), revision=first - 1)
    assert (await kv.range(store.keys.head(A), revision=first)).kvs
