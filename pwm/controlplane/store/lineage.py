"""Noticing that the store is not the one it was: restored from an older snapshot, or exchanged for another.

What was acknowledged since the snapshot is gone then, although agents have acted on it, so nothing may go on
by itself. `Lineage` knows what was there; `guarded` asks it about every answer of the key-value store:

- the store's revision never goes back, and its own identity never changes;
- after every interruption (a restore is one) the newest event that was followed must still be there, before
  anything is written or believed; revisions alone would not tell once new writes have passed the old ones;
- agents are told how far the log has been read; one that was told more than there is proves it, too: so a
  replica that was started after the restore, and remembers nothing, hears of it when an agent says hello.

Whoever notices puts up a flag in the store, `lineage/doubt`, and takes every leader's key away. Each
transaction of each replica is conditional on there being no flag, so from that moment nobody changes anything.
A person decides (`accept`): what is there now is the truth from here on. That takes the flag down and raises the
*incarnation*, the upper bits of every epoch, so that agents take orders again although revisions are lower. Or a
newer snapshot is restored: who finds in it what was there before goes on by itself.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from pwm.api.v1.store_pb2 import Doubt, Position
from pwm.controlplane.store import errors
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.kv import KV, Compare, Delete, KeyValue, Page, Put, Read, Target, WatchBatch, prefix_end

INCARNATION_SHIFT = 40
"""An epoch is the incarnation and, below it, a revision: etcd would need a thousand writes a second for 35 years."""

ANCHOR_GOOD_FOR_S = 24 * 3600.0
"""Retention drops no event that is younger: only if a younger one is missing, the store went back."""

RETRY_PAUSE_S = 0.2

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Found:
    """What the store says of itself."""

    uid: str = ""
    incarnation: int = 0
    doubt: KeyValue | None = None


class Lineage:
    """What one replica knows of its store. `store` is the key-value store itself, for `guarded`."""

    def __init__(
        self,
        kv: KV,
        *,
        keys: Keys,
        replica: str,
        now_ms: Callable[[], int],
        new_id: Callable[[], str],
        on_turn: Callable[[], None] = lambda: None,
    ) -> None:
        """`new_id` names a store that has no name yet; `on_turn` is called when doubt arises and when it is settled."""
        self.uid = ""
        """Names this cluster's log, in whatever etcd it is kept; empty until the store was reached."""
        self.incarnation = 0
        """How often it was accepted that the store had been restored."""
        self.doubt: Doubt | None = None
        self.store = kv
        self.keys = keys
        self._replica = replica
        self._now_ms = now_ms
        self._new_id = new_id
        self._on_turn = on_turn
        self._seen = 0
        self._cluster = 0
        # Key and revision of the newest event that was followed, and when that was.
        self._anchor: tuple[bytes, int, float] | None = None
        # Interruptions up to here are known to have changed nothing; -1: the store was never reached.
        self._proved_at = -1
        # Whether the flag was in the store when it was last looked at.
        self._flagged = False
        self._under_way: asyncio.Future[None] | None = None
        self.turns = 0
        """Changes when doubt arises and when it is settled: what was read before belongs together no more."""
        self._settled = asyncio.Event()

    # ---- what it is for

    async def check(self) -> None:
        """Asks the store whether it is still the same one. What it finds is `doubt`. Raises Unavailable.

        Who comes while it is being asked waits for that answer.
        """
        if self._under_way is not None:
            await asyncio.shield(self._under_way)
            return
        answer = self._under_way = asyncio.get_running_loop().create_future()
        # Whoever waits for it gets it; if nobody does, it has still been dealt with.
        answer.add_done_callback(lambda done: done.exception())
        try:
            await self._check()
        except errors.StoreError as error:
            answer.set_exception(error)
            raise
        except BaseException:
            answer.set_exception(errors.Unavailable("whoever asked the store has given up"))
            raise
        else:
            answer.set_result(None)
        finally:
            self._under_way = None

    async def settled(self) -> None:
        """Until there is no doubt."""
        while self.doubt is not None:
            self._settled.clear()
            await self._settled.wait()

    @property
    def stands_still(self) -> bool:
        """Whether nobody at all can change anything, because the store itself says that it is in doubt."""
        return self.doubt is not None and self._flagged

    @property
    def seen(self) -> int:
        """The highest revision that this replica knows of."""
        return self._seen

    def epoch(self, revision: int) -> int:
        """Of a session that was announced at this revision; as a position, of a log that was read up to it."""
        return self.incarnation << INCARNATION_SHIFT | revision

    def testify(self, revision: int, position: Position) -> None:
        """Fill in how far the log has been read, for somebody to keep outside of the store."""
        position.position = self.epoch(revision)
        if self._anchor is not None:
            position.event, position.event_revision, _ = self._anchor

    async def witness(self, *, node: str, position: Position) -> None:
        """The node's agent was told of this position in the log. If the store does not have it, there is doubt."""
        if self.store.interruptions != self._proved_at or position.position > self.epoch(self._seen):
            # An answer that is on its way already may be older than what the agent was told.
            if (earlier := self._under_way) is not None:
                await asyncio.wait({earlier})
            await self.check()
        incarnation, revision = divmod(position.position, 1 << INCARNATION_SHIFT)
        if self.doubt is not None or incarnation < self.incarnation:
            return
        said = f"the agent of node {node} was told of revision {revision}"
        if position.position > self.epoch(self._seen):
            await self._stop(f"{said}, but etcd is only at {self._seen}", seen=revision)
        elif position.event and self._now_ms() - position.time.ToMilliseconds() < ANCHOR_GOOD_FOR_S * 1000:
            page = await self.store.range(position.event, keys_only=True)
            if not page.kvs or page.kvs[0].mod_revision != position.event_revision:
                why = f"{said}, but the event of revision {position.event_revision} is not in etcd any more"
                await self._stop(why, seen=revision)

    async def accept(self) -> int:
        """What is there now is the truth from here on. Returns the new incarnation. Raises NotInDoubt."""
        _, found = await self._look()
        if found.doubt is None:
            raise errors.NotInDoubt("there is nothing to decide: etcd has not gone back")
        incarnation = max(self.incarnation, found.incarnation) + 1
        keys = self.keys
        result = await self.store.txn(
            [Compare(keys.doubt, Target.MOD, found.doubt.mod_revision)],
            [
                Delete(keys.doubt),
                Put(keys.incarnation, b"%d" % incarnation),
                Put(keys.uid, (self.uid or found.uid or self._new_id()).encode()),
            ],
        )
        if not result.succeeded:
            raise errors.Unavailable("somebody else decided at the same moment")
        log.warning("the restored store was accepted", incarnation=incarnation, revision=result.revision)
        while self.incarnation < incarnation:
            await self.check()
        return incarnation

    # ---- looking

    async def _look(self) -> tuple[Page, _Found]:
        keys = self.keys
        page = await self.store.range(keys.lineage, prefix_end(keys.lineage))
        found = _Found()
        for kv in page.kvs:
            if kv.key == keys.uid:
                found.uid = kv.value.decode()
            elif kv.key == keys.incarnation:
                found.incarnation = int(kv.value)
            elif kv.key == keys.doubt:
                found.doubt = kv
        return page, found

    async def _check(self) -> None:
        interruptions, floor = self.store.interruptions, self._seen
        page, found = await self._look()
        self._flagged = found.doubt is not None
        if self._proved_at < 0 or found.incarnation > self.incarnation:
            self._adopt(page, found)
        elif self.doubt is not None:
            if found.doubt is None:
                if self._difference(page, found, floor) or await self._anchor_lost(-1):
                    await self._flag(self.doubt)
                else:
                    log.warning("what was there before is in etcd again: going on")
                    self._settle()
        elif why := self._difference(page, found, floor) or await self._anchor_lost(interruptions):
            await self._stop(why, seen=max(floor, self._anchor[1] if self._anchor else 0), now=page.revision)
        elif found.doubt is not None:
            self._take(Doubt.FromString(found.doubt.value))
        if self.doubt is None:
            self._seen = max(self._seen, page.revision)
            if not found.uid:
                await self._name_it()
        self._proved_at = interruptions

    def _adopt(self, page: Page, found: _Found) -> None:
        """At the start, and when it was accepted that the store had been restored."""
        first, self._proved_at = self._proved_at < 0, 0
        self.incarnation, self.uid = found.incarnation, found.uid or self.uid
        self._seen, self._cluster, self._anchor = page.revision, page.cluster, None
        if not first:
            log.warning("the store is a restored one, as was accepted", incarnation=self.incarnation)
        if found.doubt is not None:
            self._take(Doubt.FromString(found.doubt.value))
        elif not first:
            self._settle()

    def _settle(self) -> None:
        self.doubt = None
        self.turns += 1
        self._on_turn()
        self._settled.set()

    def _difference(self, page: Page, found: _Found, floor: int) -> str:
        if page.revision < floor:
            return f"etcd is at revision {page.revision}, but revision {floor} was read from it before"
        if self._foreign(page.cluster):
            return f"etcd answers as cluster {page.cluster:x}, but it was cluster {self._cluster:x} before"
        if found.incarnation < self.incarnation or found.uid != (self.uid or found.uid):
            return "etcd holds the log of another cluster, or one from before an earlier restore"
        return ""

    async def _anchor_lost(self, interruptions: int) -> str:
        """Looked at after interruptions only, as it takes a second question; -1: in any case."""
        if self._anchor is None or interruptions == self._proved_at:
            return ""
        key, revision, noted_at = self._anchor
        page = await self.store.range(key, keys_only=True)
        if page.kvs and page.kvs[0].mod_revision == revision:
            return ""
        if not page.kvs and asyncio.get_running_loop().time() - noted_at > ANCHOR_GOOD_FOR_S:
            return ""
        return f"the event of revision {revision} is not in etcd any more"

    async def _name_it(self) -> None:
        uid = self.uid or self._new_id()
        key = self.keys.uid
        result = await self.store.txn([Compare(key, Target.CREATE, 0)], [Put(key, uid.encode())], [Read(key)])
        self.uid = uid if result.succeeded else result.reads[0].kvs[0].value.decode()

    # ---- stopping

    async def _stop(self, why: str, *, seen: int, now: int = 0) -> None:
        doubt = Doubt(why=why, seen_revision=seen, found_revision=now or self._seen, noticed_by=self._replica)
        doubt.noticed_at.FromMilliseconds(self._now_ms())
        self._take(doubt)
        await self._flag(doubt)

    def _take(self, doubt: Doubt) -> None:
        if self.doubt is None:
            log.error("etcd was restored or exchanged: nothing is changed until an admin decides", why=doubt.why)
        self.doubt = doubt
        self.turns += 1
        self._on_turn()

    async def _flag(self, doubt: Doubt) -> None:
        """Puts the flag up, and with it every leader down. Where that fails the next check does it."""
        keys = self.keys
        try:
            await self.store.txn(
                [Compare(keys.doubt, Target.CREATE, 0)],
                [
                    Put(keys.doubt, doubt.SerializeToString()),
                    Delete(keys.all_leaders, prefix_end(keys.all_leaders)),
                ],
            )
        except errors.KVError as error:
            log.warning("others could not be told yet", why=str(error))
        else:
            self._flagged = True

    def refuse(self) -> None:
        """Raises StoreInDoubt while there is doubt."""
        if self.doubt is not None:
            raise errors.StoreInDoubt(self.doubt.why)

    @property
    def unproved(self) -> bool:
        """Whether something has happened since it was last known to be the same store."""
        return self.doubt is None and self.store.interruptions != self._proved_at

    async def prove(self) -> None:
        """Before anything is written or believed. Raises StoreInDoubt, Unavailable."""
        while self.unproved:
            await self.check()
        self.refuse()

    async def judge(self, revision: int, cluster: int, floor: int) -> None:
        """Of an answer to a question that was asked when the store had reached `floor`."""
        if self.doubt is not None:
            return
        if revision < floor or self._foreign(cluster):
            turns = self.turns
            await self.check()
            self.refuse()
            if turns != self.turns:
                raise errors.LineageChanged("the store was restored, and that was accepted")
            return
        self._cluster = self._cluster or cluster
        self._seen = max(self._seen, revision)

    def _foreign(self, cluster: int) -> bool:
        """Whether this is the identity of another store; 0 says nothing."""
        return bool(cluster and self._cluster) and cluster != self._cluster

    async def prove_before_believing(self) -> None:
        """As `prove`, for what a watch brought after an interruption: it may come from another store."""
        while self.unproved:
            try:
                await self.check()
            except errors.Unavailable:
                await asyncio.sleep(RETRY_PAUSE_S)

    def note(self, batch: WatchBatch) -> None:
        """What was followed: the newest event of it must be there from now on."""
        keys = self.keys
        for event in reversed(batch.events):
            key = event.kv.key
            if not event.deleted and key.startswith(keys.all_events) and not key.startswith(keys.all_marks):
                self._anchor = key, event.kv.mod_revision, asyncio.get_running_loop().time()
                return
