"""A lease's own clock, in virtual time: over for its holder before it is over for the store."""

import asyncio
from typing import Any

import pytest

from pwm.controlplane.store import errors
from pwm.controlplane.store.leases import Lease
from pwm.controlplane.store.memory import MemoryKV
from pwm.controlplane.store.weather import CALM, Fault, Weather
from tests.sim.virtual_time import run


def now() -> float:
    return asyncio.get_running_loop().time()


def test_a_kept_lease_lasts_for_hours() -> None:
    async def scenario() -> None:
        async with Lease(MemoryKV(), ttl_s=3) as lease:
            await asyncio.sleep(8 * 3600)
            assert not lease.lost.is_set()

    run(scenario())


def test_a_lease_that_cannot_be_renewed_is_lost_at_its_local_deadline() -> None:
    """Counted from the sending of the last renewal that was answered: before the store lets go of it."""

    async def scenario() -> None:
        cut_off = False

        def forecast(operation: str) -> Weather:
            if cut_off and operation == "keep_alive":
                return Weather(fault=Fault.UNAVAILABLE)
            return Weather(delay_s=0.5) if operation == "keep_alive" else CALM

        kv = MemoryKV(forecast=forecast)
        async with Lease(kv, ttl_s=3) as lease:
            await kv.put(b"mine", b"", lease=lease.id)
            await asyncio.sleep(1.6)  # a renewal was sent at 1.0 and answered at 1.5
            cut_off = True
            await lease.lost.wait()
            assert now() == pytest.approx(4.0)
            assert (await kv.range(b"mine")).kvs, "the store still holds it"
            await asyncio.sleep(0.6)
            assert (await kv.range(b"mine")).kvs == []

    run(scenario())


def test_one_failed_renewal_loses_nothing() -> None:
    async def scenario() -> None:
        failures = iter([None, Fault.UNAVAILABLE, None, Fault.UNAVAILABLE, *[None] * 1000])

        def forecast(operation: str) -> Weather:
            return Weather(fault=next(failures)) if operation == "keep_alive" else CALM

        async with Lease(MemoryKV(forecast=forecast), ttl_s=3) as lease:
            await asyncio.sleep(60)
            assert not lease.lost.is_set()

    run(scenario())


def test_a_renewal_that_hangs_does_not_delay_the_deadline() -> None:
    async def scenario() -> None:
        def forecast(operation: str) -> Weather:
            return Weather(delay_s=1000) if operation == "keep_alive" else CALM

        async with Lease(MemoryKV(forecast=forecast), ttl_s=3) as lease:
            await lease.lost.wait()
            assert now() == pytest.approx(3.0)

    run(scenario())


def test_a_lost_lease_stays_lost() -> None:
    async def scenario() -> None:
        kv = MemoryKV()
        async with Lease(kv, ttl_s=3) as lease:
            await kv.revoke_lease(lease.id)
            await lease.lost.wait()
            await asyncio.sleep(100)
            assert lease.lost.is_set()

    run(scenario())


def test_leaving_a_lease_when_the_store_is_away_does_not_fail() -> None:
    async def scenario() -> None:
        def forecast(operation: str) -> Weather:
            return Weather(fault=Fault.UNAVAILABLE) if operation == "revoke_lease" else CALM

        async with Lease(MemoryKV(forecast=forecast), ttl_s=3) as lease:
            pass
        assert lease.lost.is_set()

    run(scenario())


def test_a_lease_that_is_not_granted_is_an_error() -> None:
    async def scenario() -> None:
        kv: Any = MemoryKV(forecast=lambda _: Weather(fault=Fault.UNAVAILABLE))
        with pytest.raises(errors.Unavailable):
            await Lease(kv, ttl_s=3).open()

    run(scenario())
