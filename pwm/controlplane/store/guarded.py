"""The key-value store as the event store sees it: only as long as it is the same one (`lineage`).

Every answer is judged before it is passed on, every write waits for the proof that an interruption changed nothing,
and every transaction holds only if no replica is in doubt. While there is doubt reads go on and writes are refused.

`BesideKV` is the same store for what is no part of the log, who is here: that goes on while there is doubt, too, so
that replicas know each other and an admin can ask any of them.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from pwm.controlplane.store import errors
from pwm.controlplane.store.kv import (
    Compare,
    Delete,
    LeaseGrant,
    Page,
    Put,
    Read,
    Status,
    Target,
    TxnResult,
    WatchBatch,
)
from pwm.controlplane.store.lineage import Lineage

SETTLING_S = 1.0
"""How long who asks for a lease waits for a person's decision before it is told that there is none. Less than an append
may take: whoever wants a receipt must hear why there is none, and not of a store that does not answer."""


class GuardedKV:
    """The `KV` protocol."""

    def __init__(self, lineage: Lineage) -> None:
        self.no_space = asyncio.Event()
        """Set when the store refused something for want of space; cleared by whoever looks after that."""
        self._lineage = lineage
        self._kv = lineage.store

    @property
    def interruptions(self) -> int:
        return self._kv.interruptions

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
        lineage = self._lineage
        floor = lineage.seen
        page = await self._kv.range(
            key, end, limit=limit, revision=revision, keys_only=keys_only, min_mod_revision=min_mod_revision
        )
        await lineage.judge(page.revision, page.cluster, floor)
        return page

    async def pages(
        self, prefix: bytes, *, revision: int = 0, keys_only: bool = False, page_keys: int = 0
    ) -> AsyncGenerator[Page, None]:
        lineage = self._lineage
        floor, turns, first = lineage.seen, lineage.turns, not revision
        pages = self._kv.pages(prefix, revision=revision, keys_only=keys_only, page_keys=page_keys)
        async with aclosing(pages) as walk:
            async for page in walk:
                if first:  # all pages are of its revision
                    await lineage.judge(page.revision, page.cluster, floor)
                    first = False
                if turns != lineage.turns:
                    raise errors.LineageChanged("the store was restored while it was read")
                yield page

    async def put(self, key: bytes, value: bytes, *, lease: int = 0) -> int:
        return (await self.txn([], [Put(key, value, lease)])).revision

    async def delete(self, key: bytes, end: bytes = b"") -> int:
        lineage = self._lineage
        await lineage.prove()
        return await self._kv.delete(key, end)

    async def txn(
        self,
        compares: Sequence[Compare],
        then: Sequence[Put | Delete],
        otherwise: Sequence[Read] = (),
        *,
        timeout_s: float | None = None,
    ) -> TxnResult:
        lineage = self._lineage
        if lineage.unproved:
            try:
                async with asyncio.timeout(timeout_s):
                    await lineage.prove()
            except TimeoutError as error:
                raise errors.Unavailable("the store did not answer in time") from error
        lineage.refuse()
        floor, doubt = lineage.seen, lineage.keys.doubt
        try:
            result = await self._kv.txn(
                [*compares, Compare(doubt, Target.CREATE, 0)], then, [*otherwise, Read(doubt)], timeout_s=timeout_s
            )
        except errors.NoSpace:
            self.no_space.set()
            raise
        await lineage.judge(result.revision, result.cluster, floor)
        if not result.succeeded and result.reads.pop().kvs:
            await lineage.check()
            lineage.refuse()
            raise errors.Unavailable("the store was in doubt for a moment")
        return result

    async def watch(
        self, key: bytes, end: bytes = b"", *, start_revision: int, deletes: bool = True
    ) -> AsyncGenerator[WatchBatch, None]:
        lineage = self._lineage
        turns = lineage.turns
        batches = self._kv.watch(key, end, start_revision=start_revision, deletes=deletes)
        async with aclosing(batches) as source:
            async for batch in source:
                await lineage.prove_before_believing()
                if turns != lineage.turns:
                    lineage.refuse()
                    raise errors.LineageChanged("the store was restored, and that was accepted")
                lineage.note(batch)
                yield batch

    async def grant_lease(self, ttl_s: int) -> LeaseGrant:
        lineage = self._lineage
        if lineage.doubt is not None:
            try:
                async with asyncio.timeout(SETTLING_S):
                    await lineage.settled()
            except TimeoutError:
                lineage.refuse()
        await lineage.prove()
        try:
            return await self._kv.grant_lease(ttl_s)
        except errors.NoSpace:
            self.no_space.set()
            raise

    async def keep_alive(self, lease: int) -> int:
        lineage = self._lineage
        lineage.refuse()
        return await self._kv.keep_alive(lease)

    async def revoke_lease(self, lease: int) -> None:
        await self._kv.revoke_lease(lease)

    async def compact(self, revision: int) -> None:
        await self._kv.compact(revision)

    async def free_space(self) -> None:
        await self._kv.free_space()

    async def status(self) -> Status:
        return await self._kv.status()

    async def close(self) -> None:
        await self._kv.close()


class BesideKV(GuardedKV):
    """Writes and leases whether or not there is doubt."""

    async def txn(
        self,
        compares: Sequence[Compare],
        then: Sequence[Put | Delete],
        otherwise: Sequence[Read] = (),
        *,
        timeout_s: float | None = None,
    ) -> TxnResult:
        return await self._kv.txn(compares, then, otherwise, timeout_s=timeout_s)

    async def delete(self, key: bytes, end: bytes = b"") -> int:
        return await self._kv.delete(key, end)

    async def grant_lease(self, ttl_s: int) -> LeaseGrant:
        return await self._kv.grant_lease(ttl_s)

    async def keep_alive(self, lease: int) -> int:
        return await self._kv.keep_alive(lease)
