"""Electing one leader per role, and the fence that makes a deposed one harmless.

The leader holds the key `leader/{role}` on a lease. The key's create_revision is the *fence*: every
transaction that a leader writes compares it, so a leader that was paused, cut off or deposed cannot change
anything any more, whatever it believes. (A lease alone does not fence: between looking at the clock and
writing any amount of time can pass.) Candidates wait for the key to be deleted and then all try at once; the
store lets one through.

Winning says nothing about what the winner knows: it has to read up to `Leadership.revision` before it decides
anything. So that a follower of the log reaches that revision at once, the transaction that wins also writes a
mark among the events, where the follower's watch delivers it in its place.

Candidates may hold back when the role becomes vacant, so that another whom it is meant for goes first.
"""

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

import structlog

from pwm.controlplane.store import errors
from pwm.controlplane.store.commits import Guard
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.kv import KV, Compare, KeyValue, Put, Read, Target, prefix_end
from pwm.controlplane.store.leases import Lease

LEADER_LEASE_S = 3
"""How long a leader that hangs keeps its role. Shorter ones are lost whenever etcd changes its own leader."""

RETRY_PAUSE_S = 0.2

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Leader:
    """Who leads, as everybody can see it."""

    replica_id: str
    value: bytes
    create_revision: int
    lease: int


class Leadership:
    """A role that is held. Every commit made in it carries `fence`; `lost` is set when it may be another's."""

    def __init__(self, lease: Lease, *, role: str, key: bytes, create_revision: int) -> None:
        self.role = role
        self.fence = Guard(key, create_revision=create_revision)
        self.revision = create_revision
        """The store's revision at the moment of winning: the leader has to know everything up to here."""
        self._lease = lease

    @property
    def lost(self) -> asyncio.Event:
        return self._lease.lost

    async def resign(self) -> None:
        """Gives the role up at once, so that another need not wait for the lease to end."""
        await self._lease.close()


class Election:
    """One replica's candidacy for one role."""

    def __init__(
        self,
        kv: KV,
        role: str,
        replica_id: str,
        *,
        value: Callable[[], bytes] = bytes,
        hold_back_s: Callable[[str], float] = lambda _: 0.0,
        keys: Keys | None = None,
        lease_s: int = LEADER_LEASE_S,
    ) -> None:
        """`value` makes what others should know of the leader, when it wins; `hold_back_s` says how long to leave
        a vacant role to others, given the id of the replica that led before.
        """
        assert "\n" not in replica_id
        self._kv = kv
        self._role = role
        self._replica_id = replica_id
        self._value = value
        self._hold_back_s = hold_back_s
        self._key = (keys or Keys()).leader(role)
        self._mark = (keys or Keys()).mark(role)
        self._lease_s = lease_s

    async def campaign(self) -> Leadership:
        """Waits until this replica leads, for as long as it takes. Cancel it to stand down."""
        while True:
            lease = Lease(self._kv, ttl_s=self._lease_s)
            try:
                await lease.open()
                leadership = await self._campaign_with(lease)
            except errors.KVError as error:
                log.info("campaign interrupted", role=self._role, error=str(error))
                await lease.close()
                await asyncio.sleep(RETRY_PAUSE_S)
            except BaseException:
                await lease.close()
                raise
            else:
                log.info("leading", role=self._role, replica=self._replica_id, fence=leadership.fence.create_revision)
                return leadership

    async def _campaign_with(self, lease: Lease) -> Leadership:
        absent = Compare(self._key, Target.CREATE, 0)
        while True:
            puts = [Put(self._key, self._replica_id.encode() + b"\n" + self._value(), lease.id), Put(self._mark, b"")]
            try:
                result = await self._kv.txn([absent], puts, [Read(self._key)])
            except errors.Ambiguous:
                await asyncio.sleep(RETRY_PAUSE_S)
                continue  # if it was applied, the next attempt finds the key on our own lease
            if result.succeeded:
                return self._won(lease, result.revision)
            found = result.reads[0].kvs
            if found and found[0].lease == lease.id:
                return self._won(lease, found[0].create_revision)
            previous = _leader(found[0]).replica_id if found else ""
            if found and previous == self._replica_id:
                # An earlier term of this very process, lost while the store was away: nobody else is waited for.
                await self._kv.revoke_lease(found[0].lease)
                continue
            await self._until_vacant(lease, after_revision=result.revision)
            await asyncio.sleep(self._hold_back_s(previous))

    def _won(self, lease: Lease, create_revision: int) -> Leadership:
        if lease.lost.is_set():
            raise errors.LeaseLost("the lease ended while the election was won")
        return Leadership(lease, role=self._role, key=self._key, create_revision=create_revision)

    async def _until_vacant(self, lease: Lease, *, after_revision: int) -> None:
        """Waits for the leader's key to go. Raises LeaseLost when our own lease ends first."""
        broken: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as waiting:
                gone = waiting.create_task(self._gone(after_revision))
                lost = waiting.create_task(lease.lost.wait())
                await asyncio.wait({gone, lost}, return_when=asyncio.FIRST_COMPLETED)
                gone.cancel()
                lost.cancel()
        except* errors.KVError as group:
            broken = group.exceptions[0]
        if broken is not None:
            raise broken
        if lease.lost.is_set():
            raise errors.LeaseLost("the lease ended while waiting for the leader to go")

    async def _gone(self, after_revision: int) -> None:
        try:
            async with aclosing(self._kv.watch(self._key, start_revision=after_revision + 1)) as batches:
                async for batch in batches:
                    if any(event.deleted for event in batch.events):
                        return
        except errors.Compacted:
            return  # long ago: trying again tells


async def leaders(kv: KV, keys: Keys) -> dict[str, Leader]:
    """Who leads what at this moment, by role."""
    page = await kv.range(keys.all_leaders, prefix_end(keys.all_leaders))
    return {found.key[len(keys.all_leaders) :].decode(): _leader(found) for found in page.kvs}


def _leader(kv: KeyValue) -> Leader:
    replica_id, _, value = kv.value.partition(b"\n")
    return Leader(replica_id.decode(), value, kv.create_revision, kv.lease)
