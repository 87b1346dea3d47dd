"""Who is here: leased entries that go away with whoever made them.

Two sections: `replica/{id}` holds the address of a control plane replica, `session/{node}` which replica
holds a node's session. The revision of a put is the entry's *epoch*: a later session of the same node has a
higher one, which is how an agent tells an order of its present session from one of the past. `put` returns it
as a guard, and a commit that carries the guard is refused once the node has a newer session or none.

All entries of one registry hang on one lease. When that is lost (a replica that was paused or cut off for
too long) its entries are gone for good: `lost` returns, and whoever put them puts them again.
"""

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import aclosing
from types import TracebackType

import structlog

from pwm.controlplane.store import errors
from pwm.controlplane.store.commits import Guard
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.kv import KV, Compare, Delete, Put, Target, prefix_end
from pwm.controlplane.store.leases import Lease

REPLICAS = "replica"
SESSIONS = "session"

PRESENCE_LEASE_S = 10
"""Longer than etcd needs to elect a leader of its own, shorter than the grace period of a node."""

RETRY_PAUSE_S = 0.1

log = structlog.get_logger(__name__)


class Entries(dict[str, bytes]):
    """Everybody in a section at one moment, by id.

    `epochs` are the revisions that the entries were last put at; in the section of sessions also those of entries that
    are gone, as far back as anybody remembers. `unbroken`: since the answer before this one, each entry
    has changed once at most; else (at first, and after a gap) there is no telling what has come and gone meanwhile.
    """

    def __init__(self, values: Mapping[str, bytes], *, epochs: Mapping[str, int], unbroken: bool) -> None:
        super().__init__(values)
        self.epochs = dict(epochs)
        self.unbroken = unbroken


class Registry:
    """One replica's entries, and its sight of everybody's. `close` removes its own at once."""

    def __init__(self, kv: KV, *, keys: Keys | None = None, lease_s: int = PRESENCE_LEASE_S) -> None:
        self._kv = kv
        self._keys = keys or Keys()
        self._lease_s = lease_s
        self._lease: Lease | None = None
        self._leasing = asyncio.Lock()
        # The lease that each of the own entries hangs on.
        self._hung_on: dict[bytes, int] = {}
        # The replica's own one, which nobody else ever replaces.
        self._witness = b""

    async def __aenter__(self) -> "Registry":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        async with self._leasing:
            lease, self._lease = self._lease, None
            if lease is not None:
                await lease.close()

    async def put(self, section: str, id: str, value: bytes) -> Guard:
        """Makes or replaces an entry. The guard's mod_revision is its epoch. Raises Unavailable, NoSpace, LeaseLost.

        A session also leaves a mark among the events, so that a follower can tell when it knows all that was
        written before. It stays when the session is gone, and its revision tells when there was one.
        """
        key = self._keys.presence(section, id)
        marks = self._marks(section, id)
        lease = await self._current_lease()
        while True:
            try:
                result = await self._kv.txn([], [Put(key, value, lease.id), *marks])
            except errors.Ambiguous:
                if lease.lost.is_set():
                    raise
                await asyncio.sleep(RETRY_PAUSE_S)  # once more is harmless: the epoch only grows
            else:
                self._hung_on[key] = lease.id
                if section == REPLICAS:
                    self._witness = key
                return Guard(key, mod_revision=result.revision)

    async def replace(self, section: str, id: str, guard: Guard, value: bytes) -> None:
        """Puts another value in the place of the entry that `put` answered with this guard, unless it is gone."""
        assert guard.mod_revision is not None
        key = self._keys.presence(section, id)
        lease_id = self._hung_on.get(key)
        if lease_id is not None:
            puts = [Put(key, value, lease_id), *self._marks(section, id)]
            await self._kv.txn([Compare(key, Target.MOD, guard.mod_revision)], puts)

    def unheard_since(self, id: str, epoch: int) -> Guard:
        """The session that was put at this epoch, gone or not, was the last; 0: there never was one.

        That there is none now would prove nothing: one may have come and gone.
        """
        return Guard(self._keys.mark(f"{SESSIONS}/{id}"), mod_revision=epoch)

    def _marks(self, section: str, id: str) -> list[Put]:
        return [Put(self._keys.mark(f"{section}/{id}"), b"")] if section == SESSIONS else []

    async def standing(self, section: str, ids: Collection[str]) -> set[str]:
        """Those of the own entries that still stood, or were replaced by others, at some time after this was called.

        It asks the store, whatever the local clock says: a replica that was stopped for a while, or whose lease was
        revoked, does not know it yet. None stand before this replica's own entry does. Raises Unavailable.
        """
        lease, witness = self._lease, self._witness
        if lease is None or self._hung_on.get(witness) != lease.id:
            return set()
        held = {id for id in ids if self._hung_on.get(self._keys.presence(section, id)) == lease.id}
        if held:
            # A read that etcd's majority answers for; renewing the lease is none, an etcd leader that was just deposed
            # may still do that.
            page = await self._kv.range(witness)
            if [kv.lease for kv in page.kvs] != [lease.id]:
                return set()
        return held

    async def remove(self, section: str, id: str, guard: Guard) -> None:
        """Removes the entry that `put` answered with this guard; a newer one stays."""
        assert guard.mod_revision is not None
        key = self._keys.presence(section, id)
        await self._kv.txn([Compare(key, Target.MOD, guard.mod_revision)], [Delete(key)])

    async def lost(self) -> None:
        """Returns when the lease is lost that entries hang on at this moment, and with it all of them."""
        lease = await self._current_lease()
        await lease.lost.wait()

    async def entries(self, section: str) -> dict[str, bytes]:
        """Everybody in the section now."""
        entries, _, _ = await self._snapshot(section)
        return entries

    async def follow(self, section: str) -> AsyncGenerator[Entries, None]:
        """The section now, and again after every change, for ever. Each answer is fresh and complete."""
        prefix = self._keys.presence(section)
        while True:
            try:
                known, epochs, revision = await self._snapshot(section)
                yield Entries(known, epochs=epochs, unbroken=False)
                watch = self._kv.watch(prefix, prefix_end(prefix), start_revision=revision + 1)
                async with aclosing(watch) as batches:
                    async for batch in batches:
                        changed: set[str] = set()
                        for event in batch.events:
                            id = event.kv.key[len(prefix) :].decode()
                            if id in changed:
                                # What came and went within a batch is seen, too.
                                yield Entries(known, epochs=epochs, unbroken=True)
                                changed.clear()
                            changed.add(id)
                            if event.deleted:
                                known.pop(id, None)
                            else:
                                known[id], epochs[id] = event.kv.value, event.kv.mod_revision
                        if changed:
                            yield Entries(known, epochs=epochs, unbroken=True)
            except errors.Compacted:
                continue  # quiet for so long that its place in history is gone: look at everything again
            except errors.Unavailable as error:
                log.debug("the registry cannot be read now", section=section, error=str(error))
                await asyncio.sleep(RETRY_PAUSE_S)

    async def _snapshot(self, section: str) -> tuple[dict[str, bytes], dict[str, int], int]:
        prefix = self._keys.presence(section)
        entries: dict[str, bytes] = {}
        epochs: dict[str, int] = {}
        revision = 0
        async with aclosing(self._kv.pages(prefix)) as pages:
            async for page in pages:
                revision = page.revision
                entries.update((kv.key[len(prefix) :].decode(), kv.value) for kv in page.kvs)
                epochs.update((kv.key[len(prefix) :].decode(), kv.mod_revision) for kv in page.kvs)
        if section == SESSIONS:
            marks = self._keys.mark(f"{section}/")
            async with aclosing(self._kv.pages(marks, revision=revision, keys_only=True)) as pages:
                async for page in pages:
                    epochs |= {kv.key[len(marks) :].decode(): kv.mod_revision for kv in page.kvs}
        return entries, epochs, revision

    async def _current_lease(self) -> Lease:
        async with self._leasing:
            if self._lease is not None and self._lease.lost.is_set():
                await self._lease.close()
                self._lease = None
            if self._lease is None:
                lease = Lease(self._kv, ttl_s=self._lease_s)
                await lease.open()
                self._lease = lease
            return self._lease
