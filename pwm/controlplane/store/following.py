"""Following the log, and proving that nothing of it was missed.

Events come from one watch over all of them, in cluster order. Watches of some etcd versions are known to
lose events without a word, so a follower does not take the watch's word for it: every 30 seconds it asks
which heads have changed since the last proof. A head is rewritten in the transaction of its events, so each
head that changed up to the revision reached must have had an event delivered at exactly its revision. If
one had not, `Missed` is raised and the follower rebuilds from the heads, which heals it.

When no head has changed beyond what was delivered, the proof also says that everything up to the store's
present revision has been seen: it is passed on as empty `Changes`, which keeps a quiet follower from falling
behind compaction.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import structlog

from pwm.api.v1.store_pb2 import Record
from pwm.controlplane.store import errors
from pwm.controlplane.store.commits import Changes, StoredEvent, StreamId
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.kv import KV, WatchBatch, prefix_end

PROOF_INTERVAL_S = 30.0
"""How long a miss can stay unnoticed. A proof makes etcd look at every head: not to be done all the time."""

log = structlog.get_logger(__name__)


async def follow(kv: KV, keys: Keys, after_revision: int, *, proof_interval_s: float) -> AsyncGenerator[Changes, None]:
    """Every event after `after_revision`, each once and in cluster order. Raises RebuildNeeded, RevisionWentBack."""
    loop = asyncio.get_running_loop()
    proof = _Proof(kv, keys, after_revision)
    await proof.check_revision()
    watch = kv.watch(keys.all_events, prefix_end(keys.all_events), start_revision=after_revision + 1, deletes=False)
    due = loop.time() + proof_interval_s
    async with aclosing(watch) as batches:
        async for batch in batches:
            changes = Changes(max(batch.revision, proof.reached), decode(batch, keys))
            proof.note(changes)
            yield changes
            if loop.time() < due:
                continue
            due = loop.time() + proof_interval_s
            try:
                advanced = await proof.check(quiet=not batch.events)
            except errors.Unavailable as error:
                log.info("proof of completeness postponed", error=str(error))
                continue
            if advanced:
                yield Changes(proof.reached, [])


def decode(batch: WatchBatch, keys: Keys) -> list[StoredEvent]:
    events = []
    for happened in batch.events:
        kv = happened.kv
        if kv.key.startswith(keys.all_marks):
            continue  # it only says that everything before it has been delivered
        stream, version = keys.parse_event(kv.key)
        record = Record.FromString(kv.value)
        events.append(StoredEvent(stream, version, kv.mod_revision, record.position, record.event))
    if len(events) > 1:
        events.sort(key=_place)  # etcd keeps a transaction's order; this says so in our own terms
    return events


def _place(event: StoredEvent) -> tuple[int, int]:
    return event.revision, event.position


class _Proof:
    """What has been delivered since the last proof, held against the heads."""

    def __init__(self, kv: KV, keys: Keys, after_revision: int) -> None:
        self._kv = kv
        self._keys = keys
        self.reached = after_revision
        self._proved = after_revision
        # Head key -> last revision delivered, since the last proof.
        self._delivered: dict[StreamId, int] = {}
        # The newest change seen in the last proof that had not been delivered yet.
        self._owed = 0

    def note(self, changes: Changes) -> None:
        for event in changes.events:
            self._delivered[event.stream] = event.revision
        self.reached = changes.revision

    async def check_revision(self) -> None:
        """Raises RevisionWentBack when the store is older than what was read from it."""
        now = (await self._kv.range(self._keys.retention_mark, keys_only=True)).revision
        if now < self.reached:
            raise errors.RevisionWentBack(seen=self.reached, now=now)

    async def check(self, *, quiet: bool) -> bool:
        """Raises Missed. Returns whether `reached` could be moved on to the store's present revision.

        `quiet`: the watch has just said that it has nothing. Then what the last proof saw coming is overdue;
        while it is still delivering, it may simply be behind.
        """
        heads = self._keys.all_heads
        page = await self._kv.range(heads, prefix_end(heads), keys_only=True, min_mod_revision=self._proved + 1)
        if page.revision < self.reached:
            raise errors.RevisionWentBack(seen=self.reached, now=page.revision)
        due = max(self.reached, self._owed) if quiet else self.reached
        missed: list[StreamId] = []
        newest = 0
        for kv in page.kvs:
            newest = max(newest, kv.mod_revision)
            stream = self._keys.parse_stream(kv.key, section=heads)
            if kv.mod_revision <= due and self._delivered.get(stream, 0) < kv.mod_revision:
                missed.append(stream)
        if missed:
            raise errors.Missed(tuple(missed), revision=self.reached)
        self._delivered = {s: r for s, r in self._delivered.items() if r > self.reached}
        self._proved = self.reached
        self._owed = newest if newest > self.reached else 0
        if newest <= self.reached < page.revision:
            self.reached = self._proved = page.revision
            return True
        return False
