"""Who is here: leased entries that go away with whoever made them.

Two sections: `replica/{id}` holds the address of a control plane replica, `session/{node}` which replica
holds a node's session. The revision of a put is the entry's *epoch*: a later session of the same node has a
higher one, which is how an agent tells an order of its present session from one of the past, and a commit
that carries the `guard` of its epoch is refused once the node has a newer session.

An entry lives as long as the lease it hangs on; whoever loses the lease announces itself again with a new one.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass

from pwm.controlplane.store import errors
from pwm.controlplane.store.commits import Guard
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.kv import KV, Compare, Delete, KeyValue, Target, prefix_end
from pwm.controlplane.store.leases import Lease

REPLICAS = "replica"
SESSIONS = "session"

RETRY_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True)
class Entry:
    """Someone who is here. `value` is theirs, `epoch` grows with each announcement of the same id."""

    id: str
    value: bytes
    epoch: int


@dataclass(frozen=True, slots=True)
class Registered:
    """All entries of the section as of `revision`, and which ids differ from the snapshot before."""

    revision: int
    entries: Mapping[str, Entry]
    changed: frozenset[str]


class Registry:
    """One section of the registry: `Registry(kv, REPLICAS)` or `Registry(kv, SESSIONS)`."""

    def __init__(self, kv: KV, section: str, *, keys: Keys | None = None) -> None:
        self._kv = kv
        self._section = section
        self._keys = keys or Keys()
        self._prefix = self._keys.presence(section)

    async def announce(self, id: str, value: bytes, *, lease: Lease) -> int:
        """Makes or replaces the entry and returns its epoch. Raises LeaseLost, Unavailable."""
        while True:
            try:
                return await self._kv.put(self._keys.presence(self._section, id), value, lease=lease.id)
            except errors.Ambiguous:
                if lease.lost.is_set():
                    raise
                await asyncio.sleep(RETRY_PAUSE_S)  # once more is harmless: the epoch only grows

    async def withdraw(self, id: str, *, epoch: int) -> None:
        """Removes the entry, unless it has been announced anew since."""
        key = self._keys.presence(self._section, id)
        await self._kv.txn([Compare(key, Target.MOD, epoch)], [Delete(key)])

    def guard(self, id: str, *, epoch: int) -> Guard:
        """Makes a commit fail once the entry is gone or has a newer epoch."""
        return Guard(self._keys.presence(self._section, id), mod_revision=epoch)

    async def entries(self) -> Registered:
        """Everybody who is here now."""
        entries: dict[str, Entry] = {}
        revision = 0
        async with aclosing(self._kv.pages(self._prefix)) as pages:
            async for page in pages:
                revision = page.revision
                entries.update((entry.id, entry) for entry in map(self._entry, page.kvs))
        return Registered(revision, entries, frozenset(entries))

    async def follow(self) -> AsyncGenerator[Registered, None]:
        """The section now, and again after every change, for ever."""
        known: dict[str, Entry] = {}
        while True:
            try:
                snapshot = await self.entries()
                changed = {id for id in known.keys() | snapshot.entries if known.get(id) != snapshot.entries.get(id)}
                known = dict(snapshot.entries)
                yield Registered(snapshot.revision, dict(known), frozenset(changed))
                async for registered in self._changes(known, snapshot.revision):
                    yield registered
            except errors.Compacted:
                continue  # quiet for so long that its place in history is gone: look at everything again
            except errors.Unavailable:
                await asyncio.sleep(RETRY_PAUSE_S)

    async def _changes(self, known: dict[str, Entry], revision: int) -> AsyncGenerator[Registered, None]:
        watch = self._kv.watch(self._prefix, prefix_end(self._prefix), start_revision=revision + 1)
        async with aclosing(watch) as batches:
            async for batch in batches:
                if not batch.events:
                    continue
                for event in batch.events:
                    entry = self._entry(event.kv)
                    if event.deleted:
                        known.pop(entry.id, None)
                    else:
                        known[entry.id] = entry
                changed = frozenset(self._entry(event.kv).id for event in batch.events)
                yield Registered(batch.revision, dict(known), changed)

    def _entry(self, kv: KeyValue) -> Entry:
        return Entry(kv.key[len(self._prefix) :].decode(), kv.value, kv.mod_revision)
