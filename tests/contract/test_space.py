"""etcd out of space: refused with its own error, and recovered without a leader."""

from collections.abc import Callable

import pytest

from pwm.controlplane.store import errors
from pwm.controlplane.store.etcd import EtcdKV
from pwm.controlplane.store.etcd_quota import Quotas
from pwm.controlplane.store.eventstore import EventStore
from pwm.controlplane.store.leases import Lease
from pwm.controlplane.store.space import look_after_space
from pwm.etcd_process import EtcdProcess
from tests.contract.decisions import birth, change, commit, head_of, stream

pytestmark = [pytest.mark.etcd, pytest.mark.slow]

QUOTA_BYTES = 8 * 1024 * 1024
A = stream("a")


async def rewrite_for_ever(store: EventStore) -> None:
    """Fills the store with old versions of one head."""
    while True:
        await store.append(commit(change(await head_of(store, A), state=bytes(60_000))))


async def test_a_full_store_refuses_writes_until_it_is_looked_after(own_etcd: Callable[..., EtcdProcess]) -> None:
    member = own_etcd(quota_bytes=QUOTA_BYTES)
    async with EtcdKV([member.address], quota_of=Quotas()) as kv, EventStore(kv) as store:
        await store.append(commit(birth(A)))
        assert not (await look_after_space(kv)).scarce
        with pytest.raises(errors.NoSpace):
            await rewrite_for_ever(store)
        with pytest.raises(errors.NoSpace):
            await Lease(kv, ttl_s=3).open()
        before = await head_of(store, A)

        found = await look_after_space(kv, history_revisions=1)
        assert found.refusing_writes
        await store.append(commit(change(before, b"again")))
        after = await look_after_space(kv)
        assert not after.scarce
        assert after.used_bytes < found.used_bytes
