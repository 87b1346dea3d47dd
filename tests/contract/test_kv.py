"""What every key-value store has to do, on each backend."""

import asyncio
from contextlib import aclosing

import pytest

from pwm.controlplane.store import errors
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.kv import KV, Compare, Delete, KeyValue, Put, Read, Target, WatchEvent, prefix_end
from tests.patience import PATIENCE_S


@pytest.fixture
def prefix(keys: Keys) -> bytes:
    return keys.prefix


def absent(key: bytes) -> Compare:
    return Compare(key, Target.CREATE, 0)


async def watched(kv: KV, prefix: bytes, start_revision: int, count: int, *, deletes: bool = True) -> list[WatchEvent]:
    """The first `count` events of a watch."""
    events: list[WatchEvent] = []
    watch = kv.watch(prefix, prefix_end(prefix), start_revision=start_revision, deletes=deletes)
    async with asyncio.timeout(PATIENCE_S), aclosing(watch) as batches:
        async for batch in batches:
            events += batch.events
            if len(events) >= count:
                return events
    raise AssertionError("a watch does not end by itself")


async def test_a_key_keeps_its_create_revision_and_counts_its_versions(kv: KV, prefix: bytes) -> None:
    first = await kv.put(prefix + b"a", b"1")
    second = await kv.put(prefix + b"a", b"2")
    (found,) = (await kv.range(prefix + b"a")).kvs
    assert (found.value, found.create_revision, found.mod_revision, found.version) == (b"2", first, second, 2)
    assert second == first + 1


async def test_an_old_revision_can_still_be_read(kv: KV, prefix: bytes) -> None:
    first = await kv.put(prefix + b"a", b"1")
    await kv.put(prefix + b"a", b"2")
    await kv.delete(prefix + b"a")
    assert [x.value for x in (await kv.range(prefix + b"a", revision=first)).kvs] == [b"1"]
    assert (await kv.range(prefix + b"a")).kvs == []


async def test_a_deleted_key_is_created_anew(kv: KV, prefix: bytes) -> None:
    await kv.put(prefix + b"a", b"1")
    assert await kv.delete(prefix + b"a") == 1
    again = await kv.put(prefix + b"a", b"2")
    (found,) = (await kv.range(prefix + b"a")).kvs
    assert (found.create_revision, found.version) == (again, 1)


async def test_deleting_nothing_makes_no_revision(kv: KV, prefix: bytes) -> None:
    before = await kv.put(prefix + b"other", b"")
    assert await kv.delete(prefix + b"a", prefix + b"b") == 0
    assert await kv.put(prefix + b"other", b"") == before + 1


async def test_pages_are_all_of_the_first_pages_revision(kv: KV, prefix: bytes) -> None:
    for i in range(7):
        await kv.put(prefix + b"%d" % i, b"old")
    values = []
    async with aclosing(kv.pages(prefix, page_keys=3)) as pages:
        async for page in pages:
            values += [x.value for x in page.kvs]
            await kv.put(prefix + b"6", b"new")
            await kv.put(prefix + b"7", b"new")
    assert values == [b"old"] * 7


async def test_a_walk_that_is_left_early_leaves_nothing_running(kv: KV, prefix: bytes) -> None:
    for i in range(7):
        await kv.put(prefix + b"%d" % i, b"")
    before = asyncio.all_tasks()
    async with aclosing(kv.pages(prefix, page_keys=2)) as pages:
        async for page in pages:
            assert [x.key for x in page.kvs] == [prefix + b"0", prefix + b"1"]
            break
    assert asyncio.all_tasks() == before


async def test_a_walk_that_compaction_overtakes_says_so(kv: KV, prefix: bytes) -> None:
    for i in range(7):
        await kv.put(prefix + b"%d" % i, b"")
    seen: list[KeyValue] = []

    async def walk() -> None:
        async with aclosing(kv.pages(prefix, page_keys=2)) as pages:
            async for page in pages:
                seen.extend(page.kvs)
                await kv.compact(await kv.put(prefix + b"0", b"new"))

    with pytest.raises(errors.Compacted):
        await walk()
    assert 0 < len(seen) < 7


async def test_a_range_of_no_keys_tells_the_revision(kv: KV, prefix: bytes) -> None:
    revision = await kv.put(prefix + b"a", b"")
    async with aclosing(kv.pages(prefix + b"nothing/")) as walk:
        pages = [page async for page in walk]
    assert [(page.revision, page.kvs) for page in pages] == [(revision, [])]


async def test_min_mod_revision_leaves_out_what_is_older(kv: KV, prefix: bytes) -> None:
    await kv.put(prefix + b"a", b"1")
    since = await kv.put(prefix + b"b", b"2")
    await kv.put(prefix + b"c", b"3")
    page = await kv.range(prefix, prefix_end(prefix), min_mod_revision=since, keys_only=True)
    assert [(x.key, x.value) for x in page.kvs] == [(prefix + b"b", b""), (prefix + b"c", b"")]


async def test_a_transaction_is_one_revision(kv: KV, prefix: bytes) -> None:
    await kv.put(prefix + b"old", b"")
    result = await kv.txn(
        [absent(prefix + b"a")], [Put(prefix + b"a", b"1"), Put(prefix + b"b", b"2"), Delete(prefix + b"old")]
    )
    assert result.succeeded
    found = (await kv.range(prefix, prefix_end(prefix))).kvs
    assert [(x.key, x.mod_revision) for x in found] == [
        (prefix + b"a", result.revision),
        (prefix + b"b", result.revision),
    ]


async def test_a_failed_transaction_changes_nothing_and_answers_its_reads(kv: KV, prefix: bytes) -> None:
    at = await kv.put(prefix + b"a", b"1")
    result = await kv.txn(
        [absent(prefix + b"a"), absent(prefix + b"b")],
        [Put(prefix + b"b", b"2")],
        [Read(prefix + b"a"), Read(prefix + b"b"), Read(prefix + b"a", keys_only=True)],
    )
    assert not result.succeeded
    assert [[(x.value, x.mod_revision) for x in page.kvs] for page in result.reads] == [[(b"1", at)], [], [(b"", at)]]
    assert (await kv.range(prefix + b"b")).kvs == []


@pytest.mark.parametrize("target", list(Target))
async def test_compares_hold_for_the_exact_revision_only(kv: KV, prefix: bytes, target: Target) -> None:
    created = await kv.put(prefix + b"a", b"1")
    modified = await kv.put(prefix + b"a", b"2")
    right = created if target is Target.CREATE else modified
    for revision in (0, created, modified, modified + 1):
        result = await kv.txn([Compare(prefix + b"a", target, revision)], [])
        assert result.succeeded == (revision == right), revision


async def test_a_key_can_be_put_once_in_a_transaction(kv: KV, prefix: bytes) -> None:
    with pytest.raises(errors.BadRequest):
        await kv.txn([], [Put(prefix + b"a", b"1"), Put(prefix + b"a", b"2")])


async def test_too_many_operations_are_refused(kv: KV, prefix: bytes) -> None:
    puts = [Put(prefix + b"%d" % i, b"") for i in range(129)]
    with pytest.raises(errors.RequestTooLarge):
        await kv.txn([], puts)
    assert (await kv.txn([], puts[:128])).succeeded


async def test_a_request_over_the_size_limit_is_refused(kv: KV, prefix: bytes) -> None:
    with pytest.raises(errors.RequestTooLarge):
        await kv.txn([], [Put(prefix + b"a", bytes(1600 * 1024))])


async def test_a_watch_delivers_from_its_start_in_order(kv: KV, prefix: bytes) -> None:
    start = await kv.put(prefix + b"a", b"1")
    await kv.put(prefix + b"b", b"2")
    await kv.delete(prefix + b"a")
    events = await watched(kv, prefix, start, 3)
    assert [(e.kv.key[-1:], e.kv.value, e.deleted, e.kv.mod_revision - start) for e in events] == [
        (b"a", b"1", False, 0),
        (b"b", b"2", False, 1),
        (b"a", b"", True, 2),
    ]


async def test_a_watch_keeps_the_order_of_a_transaction(kv: KV, prefix: bytes) -> None:
    names = [b"%02d" % (i * 37 % 100) for i in range(100)]
    result = await kv.txn([], [Put(prefix + name, b"") for name in names])
    events = await watched(kv, prefix, result.revision, 100)
    assert [e.kv.key[len(prefix) :] for e in events] == names


async def test_a_watch_can_leave_deletions_out(kv: KV, prefix: bytes) -> None:
    start = await kv.put(prefix + b"a", b"1")
    await kv.delete(prefix + b"a")
    await kv.put(prefix + b"b", b"2")
    events = await watched(kv, prefix, start, 2, deletes=False)
    assert [e.kv.key[-1:] for e in events] == [b"a", b"b"]


async def test_a_watch_of_the_future_waits_for_it(kv: KV, prefix: bytes) -> None:
    now = await kv.put(prefix + b"a", b"1")
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(watched(kv, prefix, now + 1, 1))
        group.create_task(kv.put(prefix + b"a", b"2"))
    assert [e.kv.value for e in waiting.result()] == [b"2"]


async def test_a_quiet_watch_gives_marks_that_do_not_run_ahead(kv: KV, prefix: bytes) -> None:
    now = await kv.put(prefix + b"a", b"1")
    watch = kv.watch(prefix, prefix_end(prefix), start_revision=now + 1)
    async with asyncio.timeout(PATIENCE_S), aclosing(watch) as batches:
        batch = await anext(batches)
    assert (batch.events, batch.revision) == ([], now)


async def test_what_is_compacted_cannot_be_read_or_watched(kv: KV, prefix: bytes) -> None:
    first = await kv.put(prefix + b"a", b"1")
    for i in range(3):
        last = await kv.put(prefix + b"a", b"%d" % i)
    await kv.compact(last)
    await kv.compact(last)
    with pytest.raises(errors.Compacted):
        await kv.range(prefix + b"a", revision=first)
    with pytest.raises(errors.Compacted):
        await watched(kv, prefix, first, 1)
    assert [x.value for x in (await kv.range(prefix + b"a", revision=last)).kvs] == [b"2"]


async def test_a_leases_keys_go_with_it(kv: KV, prefix: bytes) -> None:
    lease = await kv.grant_lease(30)
    await kv.put(prefix + b"a", b"1", lease=lease.id)
    await kv.put(prefix + b"b", b"1", lease=lease.id)
    put = await kv.put(prefix + b"b", b"2")  # not leased any more
    assert await kv.keep_alive(lease.id) == 30
    await kv.revoke_lease(lease.id)
    await kv.revoke_lease(lease.id)
    assert [x.key[-1:] for x in (await kv.range(prefix, prefix_end(prefix))).kvs] == [b"b"]
    (event,) = await watched(kv, prefix, put + 1, 1)
    assert (event.kv.key[-1:], event.deleted) == (b"a", True)
    with pytest.raises(errors.LeaseLost):
        await kv.keep_alive(lease.id)
    with pytest.raises(errors.LeaseLost):
        await kv.put(prefix + b"c", b"", lease=lease.id)


async def test_a_lease_that_is_not_renewed_ends(kv: KV, prefix: bytes) -> None:
    lease = await kv.grant_lease(1)
    assert lease.ttl_s == 2, "etcd's least"
    put = await kv.put(prefix + b"a", b"1", lease=lease.id)
    (event,) = await watched(kv, prefix, put + 1, 1)
    assert event.deleted


async def test_the_status_names_a_leader_and_no_alarm(kv: KV, prefix: bytes) -> None:
    revision = await kv.put(prefix + b"a", b"")
    status = await kv.status()
    assert status.revision >= revision
    assert [member.leader for member in status.members] == [True]
    assert status.alarms == ()
