"""Retention: dropping old events, then telling etcd to forget.

State never depends on old events, since the head is a snapshot; so the log may be cut. A live stream keeps
its last events, a stream that has ended goes whole, head included, after 30 days. Heads are never
rewritten by this: their revision is what decisions are compared with. Where a stream's kept history begins
is noted under `trimmed/` instead.

What is dropped can be exported first. Compaction follows behind: a pass compacts to where the store was when
an earlier pass ended, at least an hour before, so that followers that were away for a moment find their place
again. That place is kept in the store, because the leader whose job this is may change at any time. Every
write carries the leader's fence.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import structlog

from pwm.controlplane.store import errors
from pwm.controlplane.store.commits import Guard, StoredEvent, StoredHead, StreamId
from pwm.controlplane.store.eventstore import EventStore
from pwm.controlplane.store.kv import KV, Compare, Delete, Put, Read, Target, prefix_end

DAY_MS = 24 * 3600 * 1000

TRIM_STREAMS_PER_TXN = 40
"""Three operations a stream at most, and the fence: below etcd's 128 operations a transaction."""

EVENTS_PER_TXN = 1_000
"""A transaction holds up all others, and etcd cuts a large revision into fragments in quadratic time: a watch was
silent for 39 s over one that deleted 35,000 keys."""

log = structlog.get_logger(__name__)

Export = Callable[[StreamId, Sequence[StoredEvent]], Awaitable[None]]
"""Is given what is about to be dropped, in order; dropping waits for it, and does not happen if it raises."""


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """How much history is kept. A stream is trimmed when it has `slack_events` more than it should keep."""

    kept_events: int = 1000
    slack_events: int = 200
    removed_kept_ms: int = 30 * DAY_MS
    compaction_lag_ms: int = 3600 * 1000


@dataclass(slots=True)
class RetentionReport:
    """What one pass did."""

    trimmed_streams: int = 0
    trimmed_events: int = 0
    dropped_streams: int = 0
    compacted_to: int = 0


@dataclass(frozen=True, slots=True)
class _Doomed:
    """Events of one stream from one version to another, or all that is left of it, with its head."""

    head: StoredHead
    first_version: int
    last_version: int
    whole: bool

    @property
    def events(self) -> int:
        return self.last_version - self.first_version + 1


class Retention:
    """The job of the leader for cluster-wide chores; `run` is one pass."""

    def __init__(
        self, kv: KV, store: EventStore, *, policy: RetentionPolicy | None = None, export: Export | None = None
    ) -> None:
        self._kv = kv
        self._store = store
        self._policy = policy or RetentionPolicy()
        self._export = export

    async def run(self, *, now_ms: int, fence: Guard) -> RetentionReport:
        """Drops what is due and compacts. Raises FenceLost, Unavailable, Compacted; a pass can be repeated any time."""
        report = RetentionReport()
        doomed: list[_Doomed] = []
        async with aclosing(self._store.heads()) as pages:
            async for page in pages:
                doomed += [d for head in page.heads if (d := self._judge(head, now_ms)) is not None]
        for batch in _batches(doomed):
            if self._export is not None:
                for one in batch:
                    await self._export_one(one, self._export)
            await self._drop(batch, fence, report)
        report.dropped_streams = sum(one.whole for one in doomed)
        report.trimmed_streams = len(doomed) - report.dropped_streams
        report.compacted_to = await self._compact(now_ms, fence)
        if doomed or report.compacted_to:
            log.info(
                "retention",
                trimmed_streams=report.trimmed_streams,
                trimmed_events=report.trimmed_events,
                dropped_streams=report.dropped_streams,
                compacted_to=report.compacted_to,
            )
        return report

    def _judge(self, head: StoredHead, now_ms: int) -> _Doomed | None:
        if head.removed_at_ms and head.removed_at_ms + self._policy.removed_kept_ms <= now_ms:
            return _Doomed(head, head.first_version, head.version, whole=True)
        kept = head.version - head.first_version + 1
        if kept >= self._policy.kept_events + self._policy.slack_events:
            return _Doomed(head, head.first_version, head.version - self._policy.kept_events, whole=False)
        return None

    async def _export_one(self, doomed: _Doomed, export: Export) -> None:
        events = [
            event
            async for event in self._store.read_stream(doomed.head.stream, from_version=doomed.first_version)
            if event.version <= doomed.last_version
        ]
        await export(doomed.head.stream, events)

    async def _drop(self, batch: Sequence[_Doomed], fence: Guard, report: RetentionReport) -> None:
        """One transaction. A stream dropped whole must still be as it was judged; events are immutable anyway."""
        keys = self._store.keys
        compares = [_fence_compare(fence)]
        operations: list[Put | Delete] = []
        for one in batch:
            stream = one.head.stream
            if one.whole:
                compares.append(Compare(keys.head(stream), Target.MOD, one.head.revision))
                operations.append(Delete(keys.events(stream), prefix_end(keys.events(stream))))
                operations += [Delete(keys.head(stream)), Delete(keys.trimmed(stream))]
            else:
                first_kept = one.last_version + 1
                operations.append(Delete(keys.events(stream), keys.event(stream, first_kept)))
                operations.append(Put(keys.trimmed(stream), b"%d" % first_kept))
        await self._fenced(compares, operations, fence)
        report.trimmed_events += sum(one.events for one in batch)

    async def _compact(self, now_ms: int, fence: Guard) -> int:
        """Compacts to the mark once it is old enough, and sets a new one. Returns the revision, 0 if not yet."""
        mark_key = self._store.keys.retention_mark
        page = await self._kv.range(mark_key)
        revision, marked_ms = map(int, page.kvs[0].value.split()) if page.kvs else (0, 0)
        if revision and now_ms - marked_ms < self._policy.compaction_lag_ms:
            return 0
        await self._fenced([_fence_compare(fence)], [Put(mark_key, b"%d %d" % (page.revision, now_ms))], fence)
        if revision:
            await self._kv.compact(revision)
        return revision

    async def _fenced(self, compares: list[Compare], operations: list[Put | Delete], fence: Guard) -> None:
        result = await self._kv.txn(compares, operations, [Read(fence.key, keys_only=True)])
        if result.succeeded:
            return
        held = result.reads[0].kvs
        if not held or held[0].create_revision != fence.create_revision:
            raise errors.FenceLost(fence.key)
        raise errors.GuardFailed(compares[-1].key)  # an ended stream was written again: the next pass judges anew


def _batches(doomed: Sequence[_Doomed]) -> Iterator[list[_Doomed]]:
    """What goes in one transaction each, in an order that may end after any of them."""
    batch: list[_Doomed] = []
    for piece in (piece for one in doomed for piece in _pieces(one)):
        if len(batch) == TRIM_STREAMS_PER_TXN or sum(one.events for one in batch) + piece.events > EVENTS_PER_TXN:
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


def _pieces(doomed: _Doomed) -> Iterator[_Doomed]:
    """The oldest events first; what is to go whole goes with the last."""
    first = doomed.first_version
    while doomed.last_version - first >= EVENTS_PER_TXN:
        yield _Doomed(doomed.head, first, first + EVENTS_PER_TXN - 1, whole=False)
        first += EVENTS_PER_TXN
    yield _Doomed(doomed.head, first, doomed.last_version, whole=doomed.whole)


def _fence_compare(fence: Guard) -> Compare:
    assert fence.create_revision is not None, "a fence is the create revision of a leader's key"
    return Compare(fence.key, Target.CREATE, fence.create_revision)
