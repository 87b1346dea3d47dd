"""A store that is exchanged for an older one under a running control plane is noticed, by everybody, and stops all."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from itertools import count
from typing import Any

import pytest

from pwm.api.v1.store_pb2 import Position
from pwm.controlplane.store import errors
from pwm.controlplane.store.commits import Guard
from pwm.controlplane.store.election import Election
from pwm.controlplane.store.eventstore import EventStore
from pwm.controlplane.store.guarded import GuardedKV
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.kv import KV, Page, Put
from pwm.controlplane.store.lineage import Lineage
from pwm.controlplane.store.memory import MemoryKV
from tests.contract.decisions import birth, change, commit, following, head_of, stream
from tests.patience import PATIENCE_S

KEYS = Keys(b"/test/")
A, B = stream("a"), stream("b")


class Exchangeable:
    """A store that can be exchanged for another, as a restore does it: with an interruption."""

    def __init__(self) -> None:
        self.store: KV = MemoryKV()
        self.interruptions = 0
        self.cluster = 7

    def exchange(self, other: KV) -> None:
        self.store = other
        self.interruptions += 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    async def range(self, *arguments: Any, **options: Any) -> Page:
        page = await self.store.range(*arguments, **options)
        page.cluster = self.cluster
        return page


@pytest.fixture
async def kv() -> AsyncIterator[Exchangeable]:
    kv = Exchangeable()
    first = kv.store
    yield kv
    await first.close()
    await kv.store.close()


def lineage_of(kv: KV, replica: str) -> Lineage:
    numbers = count(1)
    return Lineage(kv, keys=KEYS, replica=replica, now_ms=lambda: 1000, new_id=lambda: f"{replica}-{next(numbers)}")


@pytest.fixture
def lineage(kv: Exchangeable) -> Lineage:
    return lineage_of(kv, "r1")


async def snapshot_of(kv: KV) -> MemoryKV:
    """Another store with what is in this one: the same keys at the same revisions."""
    copy = MemoryKV()
    revision = (await kv.range(b"\0")).revision
    history = {}
    page = await kv.range(b"\0", b"\0")
    for found in page.kvs:
        for mod_revision in {found.create_revision, found.mod_revision}:
            old = (await kv.range(found.key, revision=mod_revision)).kvs[0]
            history.setdefault(mod_revision, []).append(Put(found.key, old.value))
    for now in range(2, revision + 1):
        await copy.txn([], history.get(now, [Put(b"padding", b"")]))
    return copy


async def write(lineage: Lineage, times: int = 3) -> None:
    async with EventStore(GuardedKV(lineage), keys=KEYS) as store:
        if await store.head(A) is None:
            await store.append(commit(birth(A)))
        for _ in range(times):
            await store.append(commit(change(await head_of(store, A))))


async def refused(lineage: Lineage) -> str:
    """Why a write is refused now."""
    async with EventStore(GuardedKV(lineage), keys=KEYS) as store:
        with pytest.raises(errors.StoreInDoubt) as refusal:
            await store.append(commit(birth(B)))
    return str(refusal.value)


async def test_as_long_as_nothing_happens_it_is_as_if_it_were_not_there(kv: Exchangeable, lineage: Lineage) -> None:
    await write(lineage)
    kv.interruptions += 1
    await write(lineage)
    await lineage.check()
    assert lineage.doubt is None
    assert (lineage.uid, lineage.incarnation) == ("r1-1", 0)
    assert lineage.epoch(5) == 5
    other = lineage_of(kv, "r2")
    await write(other)
    assert other.uid == "r1-1", "the store is named once"
    with pytest.raises(errors.NotInDoubt):
        await lineage.accept()


async def test_a_revision_that_went_back_stops_every_replica_before_it_writes(
    kv: Exchangeable, lineage: Lineage
) -> None:
    await write(lineage)
    old = await snapshot_of(kv.store)
    await write(lineage)
    kv.exchange(old)
    before = (await old.range(b"\0")).revision
    assert "revision" in await refused(lineage)
    assert [page.revision - before for page in [await old.range(b"\0")]] == [1], "only the flag was written"
    fresh = lineage_of(kv, "r2")
    assert await refused(fresh), "one that was started after it and knows nothing is stopped by the flag"
    assert lineage.stands_still
    assert fresh.stands_still


async def test_a_store_that_went_back_is_noticed_although_new_writes_have_passed_the_old_ones(
    kv: Exchangeable, lineage: Lineage
) -> None:
    await write(lineage)
    old = await snapshot_of(kv.store)
    async with EventStore(GuardedKV(lineage), keys=KEYS) as store:
        async with following(store, (await old.range(b"\0")).revision) as seen:
            revision = await store.append(commit(birth(B)))
            await seen.until(lambda: seen.revision >= revision)
        fresh = lineage_of(old, "r2")
        await write(fresh, times=10)
        kv.exchange(old)
        assert "not in etcd any more" in await refused(lineage)
        assert await refused(fresh)


async def test_another_etcd_is_noticed_whatever_its_revision(kv: Exchangeable, lineage: Lineage) -> None:
    await write(lineage)
    kv.cluster = 8
    with pytest.raises(errors.StoreInDoubt, match="cluster 8"):
        await GuardedKV(lineage).range(b"x")
    assert await refused(lineage)


async def test_a_leader_is_taken_down_with_the_flag_and_nobody_else_is_elected(
    kv: Exchangeable, lineage: Lineage
) -> None:
    await write(lineage)
    old = await snapshot_of(kv.store)
    await write(lineage)
    fresh = lineage_of(old, "r2")
    term = await Election(GuardedKV(fresh), "role", "r2", keys=KEYS).campaign()
    kv.exchange(old)
    await refused(lineage)
    async with EventStore(GuardedKV(fresh), keys=KEYS) as store:
        with pytest.raises(errors.StoreInDoubt):
            await store.append(commit(birth(B), guards=(term.fence,)))
    with pytest.raises(errors.StoreInDoubt):
        async with asyncio.timeout(PATIENCE_S):
            await GuardedKV(fresh).grant_lease(3)
    assert (await old.range(KEYS.leader("role"))).kvs == []
    await term.resign()


async def test_what_was_accepted_is_the_truth_for_every_replica_and_epochs_go_on_growing(
    kv: Exchangeable, lineage: Lineage
) -> None:
    await write(lineage)
    asleep = lineage_of(kv, "r3")
    await write(asleep, times=0)
    old = await snapshot_of(kv.store)
    await write(lineage)
    epoch = lineage.epoch((await kv.range(b"\0")).revision)
    other = lineage_of(kv, "r2")
    await other.check()
    kv.exchange(old)
    await refused(lineage)
    await other.check()
    assert other.doubt is not None
    waiting = asyncio.create_task(other.settled())
    assert await lineage.accept() == 1
    await write(lineage)
    await other.check()
    await asyncio.wait_for(waiting, 1)
    await write(other)
    # This one has slept through all of it.
    await write(asleep)
    assert {x.incarnation for x in (lineage, other, asleep)} == {1}
    assert {x.uid for x in (lineage, other, asleep)} == {"r1-1"}
    assert lineage.epoch(3) > epoch


async def test_when_what_was_there_before_is_back_it_goes_on_by_itself(kv: Exchangeable, lineage: Lineage) -> None:
    await write(lineage)
    right, old = kv.store, await snapshot_of(kv.store)
    await write(lineage)
    kv.exchange(old)
    await refused(lineage)
    fresh = lineage_of(kv, "r2")
    await refused(fresh)
    kv.exchange(right)
    for one in (lineage, fresh):
        await one.check()
        assert one.doubt is None
        assert one.incarnation == 0
        await write(one)
    await old.close()


async def test_who_follows_is_told_to_begin_anew(kv: Exchangeable, lineage: Lineage) -> None:
    await write(lineage)
    old = await snapshot_of(kv.store)
    await write(lineage)
    revision = (await GuardedKV(lineage).range(b"\0")).revision
    batches = GuardedKV(lineage).watch(KEYS.all_events, KEYS.all_heads, start_revision=revision + 1)
    async with aclosing(batches):
        reading = asyncio.create_task(anext(batches))
        await asyncio.sleep(0)
        kv.exchange(old)
        with pytest.raises(errors.StoreInDoubt):
            await GuardedKV(lineage).range(b"x")
        with pytest.raises(errors.StoreInDoubt):
            await asyncio.wait_for(reading, 10)
    batches = GuardedKV(lineage).watch(KEYS.all_events, KEYS.all_heads, start_revision=revision + 1)
    async with aclosing(batches):
        reading = asyncio.create_task(anext(batches))
        await lineage.accept()
        with pytest.raises(errors.RebuildNeeded):
            await asyncio.wait_for(reading, 10)


async def test_an_agent_that_was_told_of_more_than_there_is_is_believed(kv: Exchangeable, lineage: Lineage) -> None:
    await write(lineage)
    now = (await kv.range(b"\0")).revision
    await lineage.witness(node="n1", position=Position(position=now))
    assert lineage.doubt is None
    other = lineage_of(kv, "r2")
    await write(other)
    await lineage.witness(node="n1", position=Position(position=now + 1))
    assert lineage.doubt is None, "given out by another replica in the meantime"
    await lineage.witness(node="n1", position=Position(position=now + 100))
    assert "n1" in await refused(lineage)
    await lineage.accept()
    await lineage.witness(node="n1", position=Position(position=now + 100))
    assert lineage.doubt is None, "whoever obeyed before the restore obeys again"
    assert lineage.epoch(now) > now + 100


async def test_an_agent_that_was_told_of_an_event_that_is_not_there_is_believed(
    kv: Exchangeable, lineage: Lineage
) -> None:
    await write(lineage)
    old = await snapshot_of(kv.store)
    told = Position()
    async with (
        EventStore(GuardedKV(lineage), keys=KEYS) as store,
        following(store, (await old.range(b"\0")).revision) as seen,
    ):
        revision = await store.append(commit(birth(B)))
        await seen.until(lambda: seen.revision >= revision)
        lineage.testify(revision, told)
    await lineage.witness(node="n1", position=told)
    assert lineage.doubt is None
    fresh = lineage_of(old, "r2")
    await write(fresh, times=10)
    assert (await old.range(b"\0")).revision > revision
    told.time.FromMilliseconds(1000 - 25 * 3600 * 1000)
    await fresh.witness(node="n1", position=told)
    assert fresh.doubt is None, "too long ago: it may have been dropped"
    told.time.FromMilliseconds(900)
    await fresh.witness(node="n1", position=told)
    assert "n1" in await refused(fresh)


async def test_every_transaction_depends_on_there_being_no_doubt_even_if_nobody_looked(
    kv: Exchangeable, lineage: Lineage
) -> None:
    await write(lineage)
    other = lineage_of(kv, "r2")
    await write(other)
    await lineage.witness(node="n1", position=Position(position=1 << 30))
    assert other.doubt is None
    assert await refused(other)


async def test_a_guard_that_fails_is_still_told_as_such(lineage: Lineage) -> None:
    async with EventStore(GuardedKV(lineage), keys=KEYS) as store:
        with pytest.raises(errors.FenceLost):
            await store.append(commit(birth(A), guards=(Guard(KEYS.leader("role"), create_revision=5),)))
