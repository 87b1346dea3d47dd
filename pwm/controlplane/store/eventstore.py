"""The event store: append decisions, read streams, page all heads, follow the log.

A commit is appended whole or not at all, in one transaction of the key-value store: if every head it
rewrites is still the one the decision was made on, its names are free, its idempotency key is unused and its
guards hold, then its events, heads, names and receipt are written. The head next to the events is a
snapshot that is never stale, so that a start reads heads only and old events can be dropped (`retention`).

Where next: `commits` has the values that go in and out and the limits, `prepared` turns a commit into
compares and writes, `groupcommit` sends them and finds out what became of them, `following` delivers the log
and proves it complete, `keys` says where everything lies.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from types import TracebackType

import structlog

from pwm.api.v1.store_pb2 import Head, Receipt, Record
from pwm.controlplane.store import errors
from pwm.controlplane.store.commits import (
    COMMIT_LIMIT_BYTES,
    COMMIT_LIMIT_OPERATIONS,
    EVENT_LIMIT_BYTES,
    STATE_LIMIT_BYTES,
    Changes,
    Commit,
    Guard,
    HeadPage,
    ReceiptWrite,
    StoredEvent,
    StoredHead,
    StoredReceipt,
    StreamId,
    StreamWrite,
    Turn,
)
from pwm.controlplane.store.following import PROOF_INTERVAL_S, follow
from pwm.controlplane.store.groupcommit import APPEND_TIMEOUT_S, GroupCommit
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.kv import KV, PAGE_KEYS, Compare, KeyValue, Put, Target, prefix_end
from pwm.controlplane.store.prepared import Prepared, prepare

__all__ = [
    "COMMIT_LIMIT_BYTES",
    "COMMIT_LIMIT_OPERATIONS",
    "EVENT_LIMIT_BYTES",
    "STATE_LIMIT_BYTES",
    "Changes",
    "Commit",
    "EventStore",
    "Guard",
    "HeadPage",
    "ReceiptWrite",
    "StoredEvent",
    "StoredHead",
    "StoredReceipt",
    "StreamId",
    "StreamWrite",
    "Turn",
]

RECEIPT_KEPT_S = 24 * 3600
"""How long a repeated request gets its first answer. Clients give up long before."""

RECEIPT_LEASE_USED_S = 3600
"""Receipts of an hour share one lease: a lease each would cost etcd more than the receipts."""

HEADS_AT_ONCE = 500
"""Heads are handed out in parts, a few milliseconds each: in between the loop sends for the next page of the
walk, and renews leases and answers calls that cannot wait for all of them."""

log = structlog.get_logger(__name__)


class EventStore:
    """One per replica. Any number of them, in any processes, may work on the same keys."""

    def __init__(self, kv: KV, *, keys: Keys | None = None, proof_interval_s: float = PROOF_INTERVAL_S) -> None:
        self.keys = keys or Keys()
        self.missed = 0
        """How often the proof found that the watch had lost something, for the metrics."""
        self._kv = kv
        self._proof_interval_s = proof_interval_s
        self._group = GroupCommit(kv, keys=self.keys)
        self._receipts = _ReceiptLease(kv)

    async def __aenter__(self) -> "EventStore":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Waits for what is on its way. The key-value store stays open: it is not ours."""
        await self._group.close()

    # ---- writing

    async def append(self, commit: Commit) -> int:
        """Appends one decision and returns the revision it made.

        Raises Conflict, NameTaken, AlreadyAnswered, GuardFailed, FenceLost or TooLarge when it was not appended;
        Unavailable when the store did not answer and it surely was not; Ambiguous when nobody knows.
        """
        deadline = asyncio.get_running_loop().time() + APPEND_TIMEOUT_S
        if commit.receipt is None:
            return await self._group.submit(self._prepare(commit, 0, deadline))
        lease = await self._receipts.current(deadline)
        try:
            return await self._group.submit(self._prepare(commit, lease, deadline))
        except errors.LeaseLost:  # only a store restored from a snapshot forgets a lease of a day
            self._receipts.forget(lease)
            return await self._group.submit(self._prepare(commit, await self._receipts.current(deadline), deadline))

    def _prepare(self, commit: Commit, receipt_lease: int, deadline: float) -> Prepared:
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        return prepare(commit, answer, keys=self.keys, receipt_lease=receipt_lease, deadline=deadline)

    # ---- reading

    async def heads(self, *, page_keys: int = 0) -> AsyncGenerator[HeadPage, None]:
        """Every head as of one revision, that of the first page: follow from there. Removed streams are included.

        At least one page comes, if only to tell the revision. Raises Compacted if the walk takes too long.
        """
        pages = self._kv.pages(self.keys.all_heads, page_keys=page_keys)
        first_versions: dict[StreamId, int] | None = None
        async with aclosing(pages) as walk:
            async for page in walk:
                if first_versions is None:
                    first_versions = await self.first_versions(revision=page.revision)
                for first in range(0, max(1, len(page.kvs)), HEADS_AT_ONCE):
                    await asyncio.sleep(0)
                    part = page.kvs[first : first + HEADS_AT_ONCE]
                    yield HeadPage(page.revision, [self._stored_head(kv, first_versions) for kv in part])

    async def newest_event(self, *, after_revision: int) -> int:
        """Revision of the newest event there is now; `after_revision` when nothing happened since.

        The store's own revision is no measure of it: leases and leaders move that on without any event.
        """
        start = self.keys.all_heads
        page = await self._kv.range(start, prefix_end(start), keys_only=True, min_mod_revision=after_revision + 1)
        return max([after_revision, *(kv.mod_revision for kv in page.kvs)])

    async def revision(self) -> int:
        """The store's own revision now: none above it was ever given out. Raises Unavailable."""
        return (await self._kv.range(self.keys.retention_mark, keys_only=True)).revision

    async def first_versions(self, *, revision: int = 0) -> dict[StreamId, int]:
        """The first version still kept of every stream of which events have been dropped."""
        trimmed: dict[StreamId, int] = {}
        pages = self._kv.pages(self.keys.all_trimmed, revision=revision)
        async with aclosing(pages) as walk:
            async for page in walk:
                for kv in page.kvs:
                    trimmed[self.keys.parse_stream(kv.key, section=self.keys.all_trimmed)] = int(kv.value)
        return trimmed

    async def head(self, stream: StreamId) -> StoredHead | None:
        """The stream's head now, None if there is no such stream (any more)."""
        page = await self._kv.range(self.keys.head(stream))
        if not page.kvs:
            return None
        trimmed = await self._kv.range(self.keys.trimmed(stream))
        first_version = int(trimmed.kvs[0].value) if trimmed.kvs else 1
        return self._stored_head(page.kvs[0], {stream: first_version})

    def _stored_head(self, kv: KeyValue, first_versions: dict[StreamId, int]) -> StoredHead:
        stream = self.keys.parse_stream(kv.key, section=self.keys.all_heads)
        head = Head.FromString(kv.value)
        removed_at_ms = head.removed_at.ToMilliseconds() if head.HasField("removed_at") else 0
        return StoredHead(
            stream,
            head.version,
            kv.mod_revision,
            head.state,
            removed_at_ms,
            first_versions.get(stream, 1) if first_versions else 1,
        )

    async def read_stream(self, stream: StreamId, *, from_version: int = 1) -> AsyncGenerator[StoredEvent, None]:
        """The stream's events as far as they are kept, in order, as of one moment."""
        start, end = self.keys.event(stream, from_version), self.keys.events(stream)[:-1] + b"0"
        revision = 0
        while True:
            page = await self._kv.range(start, end, limit=PAGE_KEYS, revision=revision)
            revision = revision or page.revision
            for kv in page.kvs:
                record = Record.FromString(kv.value)
                _, version = self.keys.parse_event(kv.key)
                yield StoredEvent(stream, version, kv.mod_revision, record.position, record.event, record.origin)
            if not page.more:
                return
            start = page.kvs[-1].key + b"\0"

    async def follow(self, after_revision: int) -> AsyncGenerator[Changes, None]:
        """Every event after `after_revision`, in cluster order, over failures of the store's members.

        Empty changes say that everything up to their revision has been seen. Raises Compacted or Missed
        (both RebuildNeeded: page the heads and follow from there), RevisionWentBack when a person must decide.
        """
        changes = follow(self._kv, self.keys, after_revision, proof_interval_s=self._proof_interval_s)
        async with aclosing(changes) as source:
            try:
                async for change in source:
                    yield change
            except errors.Missed as error:
                self.missed += 1
                log.error("the watch lost events", streams=len(error.streams), revision=error.revision)
                raise

    async def receipt(self, principal: str, key: str) -> StoredReceipt | None:
        """The answer already given for this principal's idempotency key."""
        page = await self._kv.range(self.keys.receipt(principal, key))
        if not page.kvs:
            return None
        return StoredReceipt(Receipt.FromString(page.kvs[0].value).answer, page.kvs[0].mod_revision)

    async def turns(self, keys: Iterable[bytes]) -> dict[bytes, Turn]:
        """Keys of turns as they are now. Raises KVError."""
        wanted = list(keys)
        pages = await asyncio.gather(*(self._kv.range(key, keys_only=True) for key in wanted))
        found = zip(wanted, pages, strict=True)
        return {key: Turn(key, page.kvs[0].mod_revision if page.kvs else 0) for key, page in found}

    async def sealed(self, stream: StreamId) -> bytes | None:
        """What is kept beside the stream, as it was written with one of its versions. Raises KVError."""
        page = await self._kv.range(self.keys.sealed(stream))
        return page.kvs[0].value if page.kvs else None

    async def replace_sealed(self, stream: StreamId, *, old: bytes, new: bytes) -> bool:
        """Write what is kept beside a stream in another form, unless somebody has changed it meanwhile.

        Raises KVError.
        """
        key = self.keys.sealed(stream)
        page = await self._kv.range(key)
        if not page.kvs or page.kvs[0].value != old:
            return False
        same = Compare(key, Target.MOD, page.kvs[0].mod_revision)
        return (await self._kv.txn([same], [Put(key, new)])).succeeded

    async def lookup_name(self, scope: str, group: str, name: str) -> StreamId | None:
        """Who holds a name."""
        page = await self._kv.range(self.keys.name(f"{scope}/{group}/{name}"))
        if not page.kvs:
            return None
        kind, _, uid = page.kvs[0].value.decode().partition("/")
        return StreamId(kind, uid)


class _ReceiptLease:
    """The lease that receipts of the present hour hang on. It is never renewed, so they end by themselves."""

    def __init__(self, kv: KV) -> None:
        self._kv = kv
        self._id = 0
        self._replace_at = 0.0
        self._granting = asyncio.Lock()

    async def current(self, deadline: float) -> int:
        """Raises Unavailable when there is none by then (loop time), NoSpace."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(deadline), self._granting:
                if not self._id or loop.time() >= self._replace_at:
                    granted = await self._kv.grant_lease(RECEIPT_KEPT_S + RECEIPT_LEASE_USED_S)
                    self._id, self._replace_at = granted.id, loop.time() + RECEIPT_LEASE_USED_S
                return self._id
        except TimeoutError as error:
            raise errors.Unavailable("the store did not answer in time") from error

    def forget(self, lease: int) -> None:
        if self._id == lease:
            self._id = 0
