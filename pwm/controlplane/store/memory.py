"""The key-value store in memory: the same promises as etcd's, for tests and for the simulator.

It keeps every version of every key until it is compacted, so that reads of old revisions, watches from the
past and `Compacted` behave as on etcd; the contract suite runs on both. Time is the event loop's alone
(`loop.time()`, `asyncio.sleep`), nothing is random, and every container is ordered: under a virtual-time
loop the same run gives the same bytes.

A `weather.Forecast`, asked before each operation, makes it slow or makes it fail.
"""

import asyncio
from bisect import bisect_left, bisect_right, insort
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from pwm.controlplane.store import errors
from pwm.controlplane.store.kv import (
    PAGE_KEYS,
    Compare,
    Delete,
    KeyValue,
    LeaseGrant,
    Member,
    Page,
    Put,
    Read,
    Status,
    Target,
    TxnResult,
    WatchBatch,
    WatchEvent,
    prefix_end,
)
from pwm.controlplane.store.weather import CALM, Fault, Forecast

LEAST_LEASE_S = 2
"""etcd's own minimum with its default election time-out."""

OPERATIONS_LIMIT = 128
REQUEST_LIMIT_BYTES = 1536 * 1024
WATCH_BATCH_REVISIONS = 1000
"""As many revisions as etcd packs into one answer of a watch that catches up."""

MARK_S = 3.0
"""A quiet watch gives a mark this often."""

T = TypeVar("T")


@dataclass(slots=True)
class _Lease:
    ttl_s: int
    keys: dict[bytes, None]  # an ordered set
    timer: asyncio.TimerHandle


class _Versions:
    """One key's history: `revisions` ascending, None where it was deleted."""

    __slots__ = ("revisions", "values")

    def __init__(self) -> None:
        self.revisions: list[int] = []
        self.values: list[KeyValue | None] = []

    def current(self) -> KeyValue | None:
        return self.values[-1] if self.values else None

    def at(self, revision: int) -> KeyValue | None:
        i = bisect_right(self.revisions, revision)
        return self.values[i - 1] if i else None

    def forget_before(self, revision: int) -> None:
        """Keeps what is needed to read at `revision` and later."""
        keep = bisect_right(self.revisions, revision) - 1
        if keep >= 0 and self.values[keep] is None:
            keep += 1
        if keep > 0:
            del self.revisions[:keep], self.values[:keep]


class MemoryKV:
    """The `KV` protocol in one process. Any number of event stores may share one instance."""

    def __init__(self, *, forecast: Forecast | None = None) -> None:
        self._forecast = forecast
        self._revision = 1  # etcd's first
        self._compacted = 0
        self._keys: list[bytes] = []
        self._versions: dict[bytes, _Versions] = {}
        # One entry a revision, from revision _history_start on: what watches deliver.
        self._history: list[list[WatchEvent]] = []
        self._history_start = 2
        self._leases: dict[int, _Lease] = {}
        self._last_lease = 0
        self._grown = asyncio.Event()  # replaced by a new one whenever the store grows

    @property
    def interruptions(self) -> int:
        return 0

    async def close(self) -> None:
        for lease in self._leases.values():
            lease.timer.cancel()
        self._leases.clear()

    # ---- reading

    async def range(
        self,
        key: bytes,
        end: bytes = b"",
        *,
        limit: int = 0,
        revision: int = 0,
        keys_only: bool = False,
        min_mod_revision: int = 0,
    ) -> Page:
        await self._enter("range")
        return self._range(
            key, end, limit=limit, revision=revision, keys_only=keys_only, min_mod_revision=min_mod_revision
        )

    async def pages(
        self, prefix: bytes, *, revision: int = 0, keys_only: bool = False, page_keys: int = 0
    ) -> AsyncGenerator[Page, None]:
        key, end = prefix, prefix_end(prefix)
        while True:
            page = await self.range(key, end, limit=page_keys or PAGE_KEYS, revision=revision, keys_only=keys_only)
            page.revision = revision = revision or page.revision
            yield page
            if not page.more:
                return
            key = page.kvs[-1].key + b"\0"

    def _range(
        self, key: bytes, end: bytes, *, limit: int, revision: int, keys_only: bool, min_mod_revision: int
    ) -> Page:
        if revision > self._revision:
            raise errors.Unavailable("required revision is a future revision")
        if revision and revision < self._compacted:
            raise errors.Compacted(self._compacted)
        found: list[KeyValue] = []
        for name in self._span(key, end):
            kv = self._versions[name].at(revision) if revision else self._versions[name].current()
            if kv is None or kv.mod_revision < min_mod_revision:
                continue
            if limit and len(found) == limit:
                return Page(self._revision, found, more=True)
            found.append(_copy(kv, keys_only=keys_only))
        return Page(self._revision, found)

    def _span(self, key: bytes, end: bytes) -> Sequence[bytes]:
        """The keys of a range, those included that hold nothing at present."""
        if not end:
            return (key,) if key in self._versions else ()
        start = bisect_left(self._keys, key)
        stop = len(self._keys) if end == b"\0" else bisect_left(self._keys, end)
        return self._keys[start:stop]

    # ---- writing

    async def put(self, key: bytes, value: bytes, *, lease: int = 0) -> int:
        result = await self._write("put", lambda: self._txn((), (Put(key, value, lease),), ()))
        return result.revision

    async def delete(self, key: bytes, end: bytes = b"") -> int:
        def apply() -> int:
            doomed = sum(self._versions[k].current() is not None for k in self._span(key, end))
            self._txn((), (Delete(key, end),), ())
            return doomed

        return await self._write("delete", apply)

    async def txn(
        self,
        compares: Sequence[Compare],
        then: Sequence[Put | Delete],
        otherwise: Sequence[Read] = (),
        *,
        timeout_s: float | None = None,
    ) -> TxnResult:
        _check_request(compares, then, otherwise)
        return await self._write("txn", lambda: self._txn(compares, then, otherwise), timeout_s=timeout_s)

    def _txn(self, compares: Sequence[Compare], then: Sequence[Put | Delete], otherwise: Sequence[Read]) -> TxnResult:
        if not all(self._holds(compare) for compare in compares):
            reads = [
                self._range(r.key, b"", limit=0, revision=0, keys_only=r.keys_only, min_mod_revision=0)
                for r in otherwise
            ]
            return TxnResult(False, self._revision, reads)
        for operation in then:
            if isinstance(operation, Put) and operation.lease and operation.lease not in self._leases:
                raise errors.LeaseLost(f"lease {operation.lease:x} has ended")
        revision, events = self._revision + 1, list[WatchEvent]()
        for operation in then:
            if isinstance(operation, Put):
                events.append(self._put(operation, revision))
            else:
                events += self._delete(operation, revision)
        if events:
            self._grow(revision, events)
        return TxnResult(True, self._revision, [])

    def _holds(self, compare: Compare) -> bool:
        versions = self._versions.get(compare.key)
        kv = versions.current() if versions else None
        if kv is None:
            return compare.revision == 0
        actual = kv.mod_revision if compare.target is Target.MOD else kv.create_revision
        return actual == compare.revision

    def _put(self, put: Put, revision: int) -> WatchEvent:
        versions = self._versions.get(put.key)
        if versions is None:
            versions = self._versions[put.key] = _Versions()
            insort(self._keys, put.key)
        before = versions.current()
        created, version = (before.create_revision, before.version + 1) if before else (revision, 1)
        kv = KeyValue(put.key, put.value, created, revision, version, put.lease)
        versions.revisions.append(revision)
        versions.values.append(kv)
        if before and before.lease and before.lease in self._leases:
            self._leases[before.lease].keys.pop(put.key, None)
        if put.lease:
            self._leases[put.lease].keys[put.key] = None
        return WatchEvent(kv, deleted=False)

    def _delete(self, delete: Delete, revision: int) -> list[WatchEvent]:
        events = []
        for key in self._span(delete.key, delete.end):
            versions = self._versions[key]
            before = versions.current()
            if before is None:
                continue
            versions.revisions.append(revision)
            versions.values.append(None)
            if before.lease in self._leases:
                self._leases[before.lease].keys.pop(key, None)
            events.append(WatchEvent(KeyValue(key, b"", 0, revision, 0, 0), deleted=True))
        return events

    def _grow(self, revision: int, events: list[WatchEvent]) -> None:
        self._revision = revision
        self._history.append(events)
        self._grown.set()
        self._grown = asyncio.Event()

    # ---- watching

    async def watch(
        self, key: bytes, end: bytes = b"", *, start_revision: int, deletes: bool = True
    ) -> AsyncGenerator[WatchBatch, None]:
        assert start_revision > 0, "a watch starts at a known revision"
        following = start_revision
        while True:
            if following <= self._compacted:
                raise errors.Compacted(self._compacted)
            if following > self._revision:
                grown = self._grown
                try:
                    async with asyncio.timeout(MARK_S):
                        await grown.wait()
                except TimeoutError:
                    yield WatchBatch(following - 1, [])
                    continue
            await self._enter("watch", can_fail=False)
            batch = self._batch(key, end, following, deletes=deletes)
            if batch is not None:
                following = batch.revision + 1
                if batch.events:
                    yield batch

    def _batch(self, key: bytes, end: bytes, following: int, *, deletes: bool) -> WatchBatch | None:
        """What happened from revision `following` on; None when it was compacted or has not happened."""
        start = following - self._history_start
        if start < 0 or following > self._revision:
            return None
        span = self._history[start : start + WATCH_BATCH_REVISIONS]
        events = [
            WatchEvent(_copy(e.kv, keys_only=False), e.deleted)
            for happened in span
            for e in happened
            if _within(e.kv.key, key, end) and (deletes or not e.deleted)
        ]
        return WatchBatch(following + len(span) - 1, events)

    # ---- leases

    async def grant_lease(self, ttl_s: int) -> LeaseGrant:
        def apply() -> LeaseGrant:
            self._last_lease += 1
            granted = max(ttl_s, LEAST_LEASE_S)
            self._leases[self._last_lease] = _Lease(granted, {}, self._expire_at(self._last_lease, granted))
            return LeaseGrant(self._last_lease, granted)

        return await self._repeatable("grant_lease", apply)

    async def keep_alive(self, lease: int) -> int:
        await self._enter("keep_alive")
        held = self._leases.get(lease)
        if held is None:
            raise errors.LeaseLost(f"lease {lease:x} has ended")
        held.timer.cancel()
        held.timer = self._expire_at(lease, held.ttl_s)
        return held.ttl_s

    async def revoke_lease(self, lease: int) -> None:
        await self._repeatable("revoke_lease", lambda: self._end_lease(lease))

    def _expire_at(self, lease: int, ttl_s: int) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(ttl_s, self._end_lease, lease)

    def _end_lease(self, lease: int) -> None:
        held = self._leases.pop(lease, None)
        if held is not None:
            held.timer.cancel()
            self._txn((), [Delete(key) for key in held.keys], ())

    # ---- care of the store

    async def compact(self, revision: int) -> None:
        await self._enter("compact")
        if revision > self._revision:
            raise errors.Unavailable("required revision is a future revision")
        if revision <= self._compacted:
            return
        self._compacted = revision
        del self._history[: max(revision + 1 - self._history_start, 0)]
        self._history_start = max(self._history_start, revision + 1)
        for versions in self._versions.values():
            versions.forget_before(revision)
        self._keys = [key for key in self._keys if self._versions[key].values]
        self._versions = {key: self._versions[key] for key in self._keys}

    async def free_space(self) -> None:
        return None

    async def status(self) -> Status:
        return Status(self._revision, (Member("memory", "memory", leader=True),), ())

    # ---- weather

    async def _enter(self, operation: str, *, can_fail: bool = True) -> None:
        """Time passes before every operation, if only one turn of the event loop."""
        weather = self._forecast(operation) if self._forecast else CALM
        await asyncio.sleep(weather.delay_s)
        if weather.fault is not None and can_fail:
            raise errors.Unavailable(f"simulated: {operation} failed")

    async def _write(self, operation: str, apply: Callable[[], T], *, timeout_s: float | None = None) -> T:
        """Half of the time passes on the way there, half on the way back. A write that takes longer than its
        caller waits is ambiguous and still happens, as with a request that is on the wire."""
        weather = self._forecast(operation) if self._forecast else CALM
        if weather.fault is Fault.AMBIGUOUS_BEFORE or weather.fault is Fault.UNAVAILABLE:
            await asyncio.sleep(weather.delay_s)
            unknown = weather.fault is Fault.AMBIGUOUS_BEFORE
            raise (errors.Ambiguous if unknown else errors.Unavailable)(f"simulated: {operation} failed")
        if timeout_s is not None and weather.delay_s > timeout_s:
            asyncio.get_running_loop().call_later(weather.delay_s / 2, _apply_unseen, apply)
            await asyncio.sleep(timeout_s)
            raise errors.Ambiguous(f"simulated: {operation} timed out")
        await asyncio.sleep(weather.delay_s / 2)
        result = apply()
        await asyncio.sleep(weather.delay_s / 2)
        if weather.fault is Fault.AMBIGUOUS_AFTER:
            raise errors.Ambiguous(f"simulated: the answer to {operation} was lost")
        return result

    async def _repeatable(self, operation: str, apply: Callable[[], T]) -> T:
        """For what may be done twice: nobody needs to know whether it was applied."""
        try:
            return await self._write(operation, apply)
        except errors.Ambiguous as error:
            raise errors.Unavailable(str(error)) from error


def _apply_unseen(apply: Callable[[], object]) -> None:
    """A write whose caller has given up: whatever it is refused for, nobody is there to hear it."""
    with suppress(errors.KVError):
        apply()


def _within(key: bytes, start: bytes, end: bytes) -> bool:
    if not end:
        return key == start
    return key >= start and (end == b"\0" or key < end)


def _copy(kv: KeyValue, *, keys_only: bool) -> KeyValue:
    value = b"" if keys_only else kv.value
    return KeyValue(kv.key, value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


def _check_request(compares: Sequence[Compare], then: Sequence[Put | Delete], otherwise: Sequence[Read]) -> None:
    """Refuses what etcd refuses, so that a mistake shows in the fastest tests."""
    operations = max(len(compares), len(then), len(otherwise))
    if operations > OPERATIONS_LIMIT:
        raise errors.RequestTooLarge(f"{operations} operations in one transaction")
    size = sum(len(o.key) + (len(o.value) if isinstance(o, Put) else 0) for o in then)
    if size > REQUEST_LIMIT_BYTES:
        raise errors.RequestTooLarge(f"{size} bytes in one transaction")
    puts = [o.key for o in then if isinstance(o, Put)]
    if len(set(puts)) != len(puts):
        raise errors.BadRequest("duplicate key given in txn request")
