"""Leaders, fences, leases and the registry, on each backend."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest

from pwm.controlplane.store import errors
from pwm.controlplane.store.election import Election, Leadership, leaders
from pwm.controlplane.store.eventstore import EventStore
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.kv import KV
from pwm.controlplane.store.leases import Lease
from pwm.controlplane.store.registry import REPLICAS, SESSIONS, Registry
from tests.contract.decisions import birth, commit, stream
from tests.patience import PATIENCE_S

A, B = stream("a"), stream("b")


@asynccontextmanager
async def campaigning(kv: KV, keys: Keys, replica: str) -> AsyncIterator["asyncio.Task[Leadership]"]:
    """A candidate; whatever comes of it is given up at the end."""
    election = Election(kv, "zone", replica, value=replica.encode, keys=keys, lease_s=6)
    task = asyncio.get_running_loop().create_task(election.campaign())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            await task.result().resign()


async def test_one_of_many_candidates_leads(kv: KV, keys: Keys) -> None:
    async with campaigning(kv, keys, "r1") as first, campaigning(kv, keys, "r2") as second:
        done, waiting = await asyncio.wait({first, second}, return_when=asyncio.FIRST_COMPLETED)
        assert (len(done), len(waiting)) == (1, 1)
        leader = (await leaders(kv, keys))["zone"]
        assert leader.replica_id == ("r1" if first in done else "r2")
        assert leader.value == leader.replica_id.encode()
        assert leader.create_revision == done.pop().result().fence.create_revision


async def test_the_next_candidate_leads_once_the_leader_resigns(kv: KV, keys: Keys) -> None:
    async with campaigning(kv, keys, "r1") as first:
        old = await first
        async with campaigning(kv, keys, "r2") as second:
            done, _ = await asyncio.wait({second}, timeout=0.3)
            assert not done
            await old.resign()
            async with asyncio.timeout(5):  # at once, not when a lease ends
                new = await second
            assert old.lost.is_set()
            assert new.fence.create_revision != old.fence.create_revision
            assert new.revision >= old.revision


async def test_a_deposed_leaders_write_is_refused_and_the_new_leaders_is_not(
    kv: KV, keys: Keys, store: EventStore
) -> None:
    """The old leader is not told: it still believes that it leads when it writes."""
    async with campaigning(kv, keys, "r1") as first:
        old = await first
        async with campaigning(kv, keys, "r2") as second:
            await store.append(commit(birth(A), guards=(old.fence,)))
            (held,) = (await kv.range(keys.leader("zone"))).kvs
            await kv.revoke_lease(held.lease)
            new = await second
            with pytest.raises(errors.FenceLost):
                await store.append(commit(birth(B), guards=(old.fence,)))
            assert await store.head(B) is None
            await store.append(commit(birth(B), guards=(new.fence,)))
            async with asyncio.timeout(PATIENCE_S):
                await old.lost.wait()


async def test_roles_have_leaders_of_their_own(kv: KV, keys: Keys) -> None:
    async with asyncio.timeout(PATIENCE_S):
        won = [await Election(kv, role, "r", keys=keys).campaign() for role in ("zone-a", "chores")]
        assert set(await leaders(kv, keys)) == {"zone-a", "chores"}
    for leadership in won:
        await leadership.resign()


async def test_a_lease_outlives_its_time_while_it_is_kept(kv: KV, keys: Keys) -> None:
    async with Lease(kv, ttl_s=4) as lease:
        await kv.put(keys.presence("replica", "x"), b"", lease=lease.id)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5.5):
                await lease.lost.wait()
        assert (await kv.range(keys.presence("replica", "x"))).kvs
    assert lease.lost.is_set()
    assert (await kv.range(keys.presence("replica", "x"))).kvs == []


async def test_a_lease_notices_that_it_was_revoked(kv: KV) -> None:
    async with Lease(kv, ttl_s=2) as lease:
        await kv.revoke_lease(lease.id)
        async with asyncio.timeout(PATIENCE_S):
            await lease.lost.wait()


async def test_sessions_have_growing_epochs_and_the_old_one_is_fenced(kv: KV, keys: Keys, store: EventStore) -> None:
    async with Registry(kv, keys=keys) as one, Registry(kv, keys=keys) as other:
        old = await one.put(SESSIONS, "node-1", b"replica 1")
        await store.append(commit(birth(A), guards=(old,)))
        new = await other.put(SESSIONS, "node-1", b"replica 2")
        assert old.mod_revision is not None
        assert new.mod_revision is not None
        assert new.mod_revision > old.mod_revision
        with pytest.raises(errors.GuardFailed):
            await store.append(commit(birth(B), guards=(old,)))
        await one.remove(SESSIONS, "node-1", old)
        assert await other.entries(SESSIONS) == {"node-1": b"replica 2"}, "an old session cannot remove the new one"
        await other.remove(SESSIONS, "node-1", new)
        assert await one.entries(SESSIONS) == {}


async def test_a_session_that_came_and_went_unseen_is_no_silence(kv: KV, keys: Keys, store: EventStore) -> None:
    async with (
        Registry(kv, keys=keys) as observer,
        asyncio.timeout(PATIENCE_S),
        aclosing(observer.follow(SESSIONS)) as sights,
    ):
        async with Registry(kv, keys=keys) as holder:
            await holder.put(SESSIONS, "n1", b"r1")
            while "n1" not in await anext(sights):
                pass
        sight = await anext(sights)
        assert "n1" not in sight
        never, since = observer.unheard_since("n2", 0), observer.unheard_since("n1", sight.epochs["n1"])
        await store.append(commit(birth(A), guards=(never, since)))
        async with Registry(kv, keys=keys) as holder:
            await holder.put(SESSIONS, "n1", b"r2")
            await holder.put(SESSIONS, "n2", b"r2")
        for heard in (never, since):
            with pytest.raises(errors.GuardFailed):
                await store.append(commit(birth(B), guards=(heard,)))
    async with Registry(kv, keys=keys) as late, asyncio.timeout(PATIENCE_S), aclosing(late.follow(SESSIONS)) as sights:
        sight = await anext(sights)
        assert (dict(sight), sorted(sight.epochs)) == ({}, ["n1", "n2"]), "also who came later knows since when"
        known = [late.unheard_since(node, sight.epochs[node]) for node in ("n1", "n2")]
        await store.append(commit(birth(B), guards=known))


async def test_observers_see_who_comes_and_who_goes(kv: KV, keys: Keys) -> None:
    async with Registry(kv, keys=keys) as mine, asyncio.timeout(PATIENCE_S):
        await mine.put(REPLICAS, "r1", b"address 1")
        async with aclosing(mine.follow(REPLICAS)) as sights:
            assert await anext(sights) == {"r1": b"address 1"}
            async with Registry(kv, keys=keys) as theirs:
                await theirs.put(SESSIONS, "r2", b"another section")
                await theirs.put(REPLICAS, "r2", b"address 2")
                assert await anext(sights) == {"r1": b"address 1", "r2": b"address 2"}
            assert await anext(sights) == {"r1": b"address 1"}, "who leaves is gone at once"


async def test_a_lost_registry_says_so_and_can_be_filled_again(kv: KV, keys: Keys) -> None:
    async with Registry(kv, keys=keys, lease_s=2) as registry, asyncio.timeout(PATIENCE_S):
        await registry.put(REPLICAS, "r1", b"first")
        (held,) = (await kv.range(keys.presence(REPLICAS, "r1"))).kvs
        await kv.revoke_lease(held.lease)
        await registry.lost()
        await registry.put(REPLICAS, "r1", b"second")
        assert await registry.entries(REPLICAS) == {"r1": b"second"}


async def test_an_observer_survives_compaction(kv: KV, keys: Keys) -> None:
    async with (
        Registry(kv, keys=keys) as registry,
        asyncio.timeout(PATIENCE_S),
        aclosing(registry.follow(REPLICAS)) as sights,
    ):
        assert await anext(sights) == {}
        await registry.put(REPLICAS, "r1", b"")
        await kv.delete(keys.presence(REPLICAS, "r1"))
        await kv.compact(await kv.put(keys.prefix + b"x", b""))
        guard = await registry.put(REPLICAS, "r2", b"")
        assert guard.mod_revision
        while (sight := await anext(sights)) != {"r2": b""}:
            assert sight in ({}, {"r1": b""})
