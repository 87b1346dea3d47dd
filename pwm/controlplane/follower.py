"""Keeps the view equal to the log: heads at a revision, then every event from there.

One task per replica. When the watch was compacted away, or an event does not follow what the view holds,
the view is built again from the heads; readers keep their old messages and subscribers start over. While
the store is out of reach the view stays readable, and says since when it may be old. The same goes for a store
that seems to have been restored from an older snapshot: what was there before it is kept until an admin decides.

An event that only a newer version of PWM understands is not folded: the state after it is in the stream's head.
"""

import asyncio
import gc
import heapq
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import structlog

from pwm.api.v1.events_pb2 import Event
from pwm.api.v1.store_pb2 import Doubt
from pwm.controlplane.clock import Clock
from pwm.controlplane.core.evolve import STATE_TYPES, understood
from pwm.controlplane.store import errors as store_errors
from pwm.controlplane.store.commits import StoredEvent, StoredHead
from pwm.controlplane.store.eventstore import EventStore
from pwm.controlplane.view import Entry, OutOfStep, View

log = structlog.get_logger(__name__)

# Pause before another try when the store does not answer.
RETRY_DELAY_S = 0.3
# Of how many streams it is noted that they changed last before the view was loaded.
NOTED_STREAMS = 1_000


class Custody(Protocol):
    """Who knows whether the store is still the one that was followed before: `store.lineage`."""

    @property
    def doubt(self) -> Doubt | None: ...

    async def settled(self) -> None: ...


class Follower:
    def __init__(
        self,
        *,
        store: EventStore,
        view: View,
        clock: Clock,
        on_loaded: Callable[[], None],
        custody: Custody | None = None,
    ) -> None:
        """`on_loaded` is called when the view was built anew, for whoever keeps something in step with it."""
        self._custody = custody
        self._store = store
        self._view = view
        self._clock = clock
        self._on_loaded = on_loaded
        self.stale_since_ms = 0
        self.rebuilds = 0
        self.changed_last: Sequence[StoredHead] = ()
        """Heads of the streams that changed last before the view was loaded, without their states."""

    async def run(self) -> None:
        """For ever; cancel to stop."""
        while True:
            try:
                if self._view.synced:
                    await self._until_settled()
                # One that has just been started has nothing better to show than what is there.
                await self._bootstrap()
                if await self._until_settled():
                    continue
                await self._follow()
            except (store_errors.RebuildNeeded, OutOfStep) as error:
                log.warning("view is rebuilt", why=str(error))
                self.rebuilds += 1
            except store_errors.StoreError as error:
                self.out_of_reach(str(error))
                await asyncio.sleep(RETRY_DELAY_S)

    async def _until_settled(self) -> bool:
        """Whether there was anything to wait for."""
        if self._custody is None or self._custody.doubt is None:
            return False
        self.out_of_reach(self._custody.doubt.why)
        await self._custody.settled()
        return True

    def out_of_reach(self, why: str) -> None:
        if not self.stale_since_ms:
            self.stale_since_ms = self._clock.now_ms()
            log.warning("the store is out of reach", why=why)

    def in_reach(self) -> None:
        if self.stale_since_ms:
            log.info("the store is back", away_ms=self._clock.now_ms() - self.stale_since_ms)
        self.stale_since_ms = 0

    async def _bootstrap(self) -> None:
        revision = 0
        fresh = False
        newest: list[tuple[int, int, StoredHead]] = []
        # Loading makes only objects that stay: looking for garbage among them took a third of the time.
        gc.disable()
        try:
            async for page in self._store.heads():
                if not fresh:
                    # Only now: as long as the store is out of reach, old answers are better than none.
                    self._view.clear()
                    fresh = True
                revision = page.revision
                for head in page.heads:
                    if not head.removed_at_ms:
                        self._view.load(head.stream.kind, head.stream.uid, state=head.state, revision=head.revision)
                    _note(newest, head)
        finally:
            gc.enable()
        # What was loaded is old from the start: later collections need not walk through it.
        gc.freeze()
        self._on_loaded()
        self._view.loaded(revision)
        self.changed_last = [head for *_, head in newest]
        self.in_reach()
        log.info("view loaded", revision=revision, streams=self._view.streams)

    async def _follow(self) -> None:
        async for changes in self._store.follow(self._view.revision):
            self.in_reach()
            for stored in changes.events:
                event = Event.FromString(stored.event)
                if understood(event, len(stored.event)):
                    self._view.apply(event, stored.revision)
                else:
                    await self._adopt(event, stored)
            self._view.advance(changes.revision)

    async def _adopt(self, event: Event, stored: StoredEvent) -> None:
        """Also other versions' heads keep what this one does not know, and give it back when they are rewritten."""
        log.info("written by a newer version", kind=event.kind, uid=event.uid, version=event.version)
        head = await self._store.head(stored.stream)
        state_type: Any = STATE_TYPES.get(event.kind)
        ended = state_type is None or head is None or head.removed_at_ms
        entry = None if ended or head is None else Entry(state_type.FromString(head.state), head.revision)
        self._view.adopt(event, stored.revision, head=entry)


def _note(newest: list[tuple[int, int, StoredHead]], head: StoredHead) -> None:
    """Keeps the heads that changed last in a heap."""
    if len(newest) == NOTED_STREAMS and head.revision < newest[0][0]:
        return
    # The second place decides between streams of one transaction.
    entry = (head.revision, id(head), replace(head, state=b""))
    if len(newest) < NOTED_STREAMS:
        heapq.heappush(newest, entry)
    else:
        heapq.heapreplace(newest, entry)
