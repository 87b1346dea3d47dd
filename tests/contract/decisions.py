"""Short ways to write commits down in tests, and to read what a follower has seen."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

from pwm.controlplane.store.eventstore import (
    Commit,
    EventStore,
    StoredEvent,
    StoredHead,
    StreamId,
    StreamWrite,
)
from tests.patience import PATIENCE_S

_commit_numbers = itertools.count(1)


def stream(name: str, *, kind: str = "Workload") -> StreamId:
    return StreamId(kind, name)


def birth(stream_id: StreamId, *events: bytes, state: bytes = b"born", removed_at_ms: int = 0) -> StreamWrite:
    """The first events of a stream."""
    return StreamWrite(stream_id, 0, 0, events or (b"born",), state, removed_at_ms)


def change(head: StoredHead, *events: bytes, state: bytes = b"changed", removed_at_ms: int = 0) -> StreamWrite:
    """The next events of a stream whose head was read before."""
    return StreamWrite(head.stream, head.version, head.revision, events or (b"changed",), state, removed_at_ms)


def commit(*writes: StreamWrite, **parts: object) -> Commit:
    return Commit(id=f"commit-{next(_commit_numbers)}", writes=writes, **parts)  # type: ignore[arg-type]


async def head_of(store: EventStore, stream_id: StreamId) -> StoredHead:
    head = await store.head(stream_id)
    assert head is not None, f"{stream_id} has no head"
    return head


async def all_heads(store: EventStore, *, page_keys: int = 500) -> tuple[int, dict[StreamId, StoredHead]]:
    heads: dict[StreamId, StoredHead] = {}
    revisions = set()
    async with aclosing(store.heads(page_keys=page_keys)) as pages:
        async for page in pages:
            revisions.add(page.revision)
            heads.update((head.stream, head) for head in page.heads)
    assert len(revisions) == 1, "all pages are of one revision"
    return revisions.pop(), heads


class Seen:
    """What a follower has been given so far."""

    def __init__(self) -> None:
        self.events: list[StoredEvent] = []
        self.revision = 0
        self.marks = 0
        self._grown = asyncio.Condition()

    async def take(self, store: EventStore, after_revision: int) -> None:
        async with aclosing(store.follow(after_revision)) as changes:
            async for change_set in changes:
                async with self._grown:
                    assert change_set.revision >= self.revision, "a follower never goes back"
                    self.events += change_set.events
                    self.revision = change_set.revision
                    self.marks += not change_set.events
                    self._grown.notify_all()

    async def until(self, condition: Callable[[], bool], *, within_s: float = PATIENCE_S) -> None:
        async with asyncio.timeout(within_s), self._grown:
            await self._grown.wait_for(condition)


@asynccontextmanager
async def following(store: EventStore, after_revision: int) -> AsyncIterator[Seen]:
    """A follower at work in the background; what it raises is raised here."""
    seen = Seen()
    task = asyncio.get_running_loop().create_task(seen.take(store, after_revision))
    try:
        yield seen
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.wait({task})
