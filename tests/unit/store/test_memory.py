"""The store in memory under bad weather and in virtual time."""

import asyncio
import random
from typing import Any

import pytest

from pwm.controlplane.store import errors
from pwm.controlplane.store.election import Election
from pwm.controlplane.store.eventstore import Commit, EventStore, StreamId, StreamWrite
from pwm.controlplane.store.kv import Put
from pwm.controlplane.store.memory import MemoryKV
from pwm.controlplane.store.weather import CALM, Fault, Weather
from tests.sim.virtual_time import run


@pytest.mark.parametrize(
    ("fault", "raised", "applied"),
    [
        (Fault.UNAVAILABLE, errors.Unavailable, False),
        (Fault.AMBIGUOUS_BEFORE, errors.Ambiguous, False),
        (Fault.AMBIGUOUS_AFTER, errors.Ambiguous, True),
    ],
)
def test_a_fault_does_what_it_says(fault: Fault, raised: type[errors.KVError], applied: bool) -> None:
    async def scenario() -> None:
        kv = MemoryKV(forecast=lambda operation: Weather(fault=fault) if operation == "txn" else CALM)
        with pytest.raises(raised):
            await kv.txn([], [Put(b"a", b"1")])
        assert bool((await kv.range(b"a")).kvs) == applied

    run(scenario())


def test_a_write_slower_than_its_caller_waits_is_applied_unseen() -> None:
    async def scenario() -> None:
        kv = MemoryKV(forecast=lambda operation: Weather(delay_s=4.0) if operation == "txn" else CALM)
        with pytest.raises(errors.Ambiguous):
            await kv.txn([], [Put(b"a", b"1")], timeout_s=1.0)
        assert asyncio.get_running_loop().time() == 1.0
        assert (await kv.range(b"a")).kvs == []
        await asyncio.sleep(1.0)
        assert [x.value for x in (await kv.range(b"a")).kvs] == [b"1"]

    run(scenario())


def test_leases_end_in_virtual_time() -> None:
    async def scenario() -> None:
        kv = MemoryKV()
        lease = await kv.grant_lease(60)
        await kv.put(b"a", b"", lease=lease.id)
        await asyncio.sleep(59)
        assert (await kv.range(b"a")).kvs
        await asyncio.sleep(1.1)
        assert (await kv.range(b"a")).kvs == []
        await kv.close()

    run(scenario())


class HungClient:
    """One client of a store, whose renewals do not get through while it hangs."""

    def __init__(self, kv: MemoryKV) -> None:
        self._kv = kv
        self.hangs = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kv, name)

    async def keep_alive(self, lease: int) -> int:
        if self.hangs:
            await asyncio.sleep(1e6)
        return await self._kv.keep_alive(lease)


def test_a_hung_leader_is_replaced_when_its_lease_ends() -> None:
    async def scenario() -> None:
        kv = MemoryKV()
        hung: Any = HungClient(kv)
        first = await Election(hung, "zone", "r1").campaign()
        await asyncio.sleep(10)
        async with asyncio.TaskGroup() as group:
            second = group.create_task(Election(kv, "zone", "r2").campaign())
            await asyncio.sleep(5)
            assert not second.done()
            hung.hangs = True
            at = asyncio.get_running_loop().time()
            new = await second
        assert asyncio.get_running_loop().time() - at <= 4.0
        assert first.lost.is_set()
        hung.hangs = False
        await first.resign()
        await new.resign()

    run(scenario())


def history(seed: int) -> list[tuple[int, bytes, bytes]]:
    """Everything that writers under bad weather have written, in order."""
    rng = random.Random(seed)

    def forecast(operation: str) -> Weather:
        fault = rng.choice([None, None, None, *Fault]) if operation == "txn" else None
        return Weather(rng.random() * 0.2, fault)

    async def scenario() -> list[tuple[int, bytes, bytes]]:
        kv = MemoryKV(forecast=forecast)
        async with EventStore(kv) as store:
            await asyncio.gather(*(write(store, f"w{i}") for i in range(6)))
        page = await kv.range(b"/", b"0")
        return [(x.mod_revision, x.key, x.value) for x in page.kvs]

    async def write(store: EventStore, name: str) -> None:
        stream = StreamId("Workload", name)
        for number in range(8):
            try:
                head = await store.head(stream)
                version, revision = (head.version, head.revision) if head else (0, 0)
                write = StreamWrite(stream, version, revision, (b"%d" % number,), b"")
                await store.append(Commit(f"{name}-{number}", (write,)))
            except (errors.KVError, errors.Conflict):
                continue

    return run(scenario())


def test_the_same_weather_gives_the_same_bytes() -> None:
    first = history(7)
    assert first == history(7)
    assert first != history(8)
    assert len(first) > 20


@pytest.mark.parametrize("seed", range(20))
def test_no_weather_doubles_an_event(seed: int) -> None:
    events = [(key.rsplit(b"/", 1)[0], value) for _, key, value in history(seed) if key.startswith(b"/pwm/v1/ev/")]
    stripped = [(stream, value[: value.index(b"\x10")] if b"\x10" in value else value) for stream, value in events]
    assert len(stripped) == len(set(stripped))
