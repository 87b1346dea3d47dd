"""The newest of all that happened, also before this replica began to follow the log.

The view only remembers what it was told since it was loaded. So that `pwm events` shows the same on a replica that
has just been started, the newest of what was before is read from the store when somebody first asks: of the
streams that changed last, which the follower noted while it paged through all heads.
"""

import asyncio
from collections.abc import Callable, Sequence

from pwm.api.v1.events_pb2 import Event
from pwm.controlplane.follower import NOTED_STREAMS
from pwm.controlplane.store import errors as store_errors
from pwm.controlplane.store.commits import StoredEvent, StoredHead
from pwm.controlplane.store.eventstore import EventStore
from pwm.controlplane.view import RECENT_CHANGES, View

# Of one stream; a resource that changed more often is not all that people want to see.
EVENTS_OF_A_STREAM = 100
READS_AT_ONCE = 16


class NewestEvents:
    def __init__(self, view: View, store: EventStore, changed_last: Callable[[], Sequence[StoredHead]]) -> None:
        """`changed_last`: the follower's; another list once the view was loaded anew."""
        self._view = view
        self._store = store
        self._changed_last = changed_last
        self._read_for: Sequence[StoredHead] = ()
        self._events: list[Event] = []
        self._reading = asyncio.Lock()

    async def read(self) -> list[Event]:
        """As many as a replica remembers that has run for long, oldest first."""
        recent = list(self._view.recent_events)
        try:
            return [*await self._earlier(RECENT_CHANGES - len(recent)), *recent]
        except store_errors.StoreError:
            # What is in memory is better than nothing while the store is out of reach.
            return recent

    async def _earlier(self, limit: int) -> list[Event]:
        if limit <= 0:
            return []
        async with self._reading:
            heads = self._changed_last()
            if heads is not self._read_for:
                self._events, self._read_for = await self._read(heads), heads
        return self._events[-limit:]

    async def _read(self, heads: Sequence[StoredHead]) -> list[Event]:
        found: list[StoredEvent] = []
        turns = asyncio.Semaphore(READS_AT_ONCE)

        async def read(head: StoredHead) -> None:
            first = max(head.first_version, head.version - EVENTS_OF_A_STREAM + 1)
            async with turns:
                # Those after the head's have been told to the view.
                found.extend(
                    [
                        event
                        async for event in self._store.read_stream(head.stream, from_version=first)
                        if event.version <= head.version
                    ]
                )

        await asyncio.gather(*map(read, heads))
        # Of what is older, some may be in streams that were not noted.
        oldest = min(head.revision for head in heads) if len(heads) >= NOTED_STREAMS else 0
        found.sort(key=lambda event: (event.revision, event.position))
        return [from_stored(event) for event in found if event.revision >= oldest]


def from_stored(stored: StoredEvent) -> Event:
    event = Event.FromString(stored.event)
    event.revision = stored.revision
    return event
