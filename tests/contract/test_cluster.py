"""Three members of etcd, one of them killed, frozen or alone: nothing acknowledged is lost, nothing doubled."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from pwm.controlplane.store import errors
from pwm.controlplane.store.etcd import EtcdKV
from pwm.controlplane.store.eventstore import EventStore, StreamId
from pwm.controlplane.store.leases import Lease
from tests.contract.decisions import all_heads, birth, change, commit, following, head_of, stream
from tests.etcd_server import EtcdCluster
from tests.patience import PATIENCE_S

pytestmark = [pytest.mark.etcd, pytest.mark.slow]

WRITERS = 8


@pytest.fixture
async def kv(etcd_cluster: EtcdCluster) -> AsyncIterator[EtcdKV]:
    async with EtcdKV(etcd_cluster.addresses) as kv:
        yield kv


@pytest.fixture
async def store(kv: EtcdKV, etcd_cluster: EtcdCluster) -> AsyncIterator[EventStore]:
    async with EventStore(kv, keys=etcd_cluster.keys) as store:
        yield store


@dataclass(slots=True)
class Ledger:
    """What one writer knows: which events were acknowledged, and which it never got an answer for."""

    stream: StreamId
    acknowledged: dict[bytes, int] = field(default_factory=dict)
    unknown: set[bytes] = field(default_factory=set)


async def write_until(stop: asyncio.Event, store: EventStore, ledger: Ledger) -> None:
    """Appends one numbered event after the other, and notes every answer."""
    number = 0
    while not stop.is_set():
        event = b"%s %d" % (ledger.stream.uid.encode(), number)
        try:
            head = await store.head(ledger.stream)
            write = birth(ledger.stream, event) if head is None else change(head, event)
            ledger.acknowledged[event] = await store.append(commit(write))
        except errors.Ambiguous:
            ledger.unknown.add(event)
        except (errors.Unavailable, errors.Conflict):
            continue  # surely not applied (a conflict: the head was read before an unknown write of ours landed)
        number += 1


async def check_ledgers(store: EventStore, ledgers: list[Ledger], followed: Counter[bytes]) -> None:
    for ledger in ledgers:
        events = [event async for event in store.read_stream(ledger.stream)]
        assert [e.version for e in events] == list(range(1, len(events) + 1))
        stored = Counter(e.event for e in events)
        assert max(stored.values()) == 1, "no event twice"
        assert ledger.acknowledged.keys() <= stored.keys(), "no acknowledged event lost"
        assert stored.keys() <= ledger.acknowledged.keys() | ledger.unknown, "no event that nobody wrote"
        at = {e.event: e.revision for e in events}
        assert {e: at[e] for e in ledger.acknowledged} == ledger.acknowledged, "acknowledged with its true revision"
        assert all(followed[event] == 1 for event in stored), "a follower sees each exactly once"
    assert sum(followed.values()) == sum([len([e async for e in store.read_stream(x.stream)]) for x in ledgers])


async def leader_of(kv: EtcdKV, cluster: EtcdCluster) -> str:
    status = await kv.status()
    (leader,) = (member.address for member in status.members if member.leader)
    return next(name for name, member in cluster.members.items() if member.address == leader)


@pytest.mark.parametrize("fault", ["kill the leader", "kill a follower", "freeze the leader"])
async def test_a_fault_of_one_member_loses_and_doubles_nothing(
    fault: str, kv: EtcdKV, store: EventStore, etcd_cluster: EtcdCluster
) -> None:
    start, _ = await all_heads(store)
    leader = await leader_of(kv, etcd_cluster)
    victim = leader if "leader" in fault else next(name for name in etcd_cluster.members if name != leader)
    ledgers = [Ledger(stream(f"w{i}")) for i in range(WRITERS)]
    stop = asyncio.Event()

    def written() -> int:
        return sum(len(ledger.acknowledged) for ledger in ledgers)

    async with following(store, start) as seen:
        async with asyncio.TaskGroup() as writers:
            for ledger in ledgers:
                writers.create_task(write_until(stop, store, ledger))
            await seen.until(lambda: written() > 200)
            if "kill" in fault:
                etcd_cluster.kill(victim)
            else:
                etcd_cluster.freeze(victim)
            before = written()
            await seen.until(lambda: written() > before + 400)
            if "kill" in fault:
                await asyncio.to_thread(etcd_cluster.restart, victim)
            else:
                etcd_cluster.thaw(victim)
            before = written()
            await seen.until(lambda: written() > before + 200)
            stop.set()
        last = max(max(ledger.acknowledged.values()) for ledger in ledgers)
        # One more event tells that everything before it has been delivered.
        end = await store.append(commit(birth(stream("end"), b"end")))
        await seen.until(lambda: seen.revision >= max(last, end))
    followed = Counter(event.event for event in seen.events)
    assert followed.pop(b"end") == 1
    places = [(e.revision, e.position) for e in seen.events]
    assert places == sorted(places)
    await check_ledgers(store, ledgers, followed)


async def test_without_a_quorum_a_write_is_refused_in_time_and_works_again_after_it(
    store: EventStore, etcd_cluster: EtcdCluster
) -> None:
    await store.append(commit(birth(stream("before"))))
    for name in ("a", "b"):
        etcd_cluster.kill(name)
    loop = asyncio.get_running_loop()
    asked = loop.time()
    with pytest.raises(errors.KVError) as refusal:
        await store.append(commit(birth(stream("during"))))
    assert isinstance(refusal.value, errors.Unavailable | errors.Ambiguous)
    assert loop.time() - asked < 4.5
    await asyncio.gather(*(asyncio.to_thread(etcd_cluster.restart, name) for name in ("a", "b")))
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await store.append(commit(birth(stream("after"))))
                break
            except errors.Unavailable:
                continue
            except (errors.Ambiguous, errors.Conflict):
                await head_of(store, stream("after"))
                break
    assert (await head_of(store, stream("before"))).version == 1


async def test_a_lease_survives_the_loss_of_the_member_it_was_granted_by(kv: EtcdKV, etcd_cluster: EtcdCluster) -> None:
    async with Lease(kv, ttl_s=6) as lease:
        etcd_cluster.kill(await leader_of(kv, etcd_cluster))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(8):
                await lease.lost.wait()


async def test_the_status_tells_which_member_is_gone(kv: EtcdKV, etcd_cluster: EtcdCluster) -> None:
    assert not any(member.trouble for member in (await kv.status()).members)
    etcd_cluster.kill("b")
    troubled = [member.address for member in (await kv.status()).members if member.trouble]
    assert troubled == [etcd_cluster.members["b"].address]
