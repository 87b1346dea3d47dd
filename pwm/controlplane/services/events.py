"""`pwm events`: what happened, in cluster-wide order.

Who follows gets every event once: first those that there are, up to the revision that the view has, then the
view's changes. A client that comes back, perhaps to another replica, says after which revision; what happened since
then is in the view's memory, or in the store when this replica has only just started. When it is in neither (retention
has dropped it) the client is told so, instead of being left with a gap.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

import grpc

from pwm.api.v1 import services_pb2 as api
from pwm.api.v1.audit_pb2 import ListAuditRequest, ListAuditResponse, StreamAuditRequest, StreamAuditResponse
from pwm.api.v1.events_pb2 import Event
from pwm.controlplane.auth import Authorizer, canonical_kind
from pwm.controlplane.clock import Clock
from pwm.controlplane.context import CallContext
from pwm.controlplane.errors import ApiError, unavailable
from pwm.controlplane.services.audit import AuditReader
from pwm.controlplane.services.event_text import line
from pwm.controlplane.services.newest_events import NewestEvents, from_stored
from pwm.controlplane.services.pulse import Pulse
from pwm.controlplane.sight import Sight
from pwm.controlplane.store import errors as store_errors
from pwm.controlplane.store.commits import StoredEvent, StreamId
from pwm.controlplane.store.eventstore import EventStore
from pwm.controlplane.view import Resync, View

DEFAULT_LIMIT = 1_000


class EventService:
    def __init__(
        self,
        *,
        view: View,
        store: EventStore,
        authorizer: Authorizer,
        clock: Clock,
        stale_since_ms: Callable[[], int],
        audit: AuditReader,
        newest: NewestEvents,
    ) -> None:
        self._view = view
        self._newest_of_all = newest
        self._store = store
        self._authorizer = authorizer
        self._audit = audit
        self._pulse = Pulse(clock=clock, stale_since_ms=stale_since_ms)

    async def ListEvents(
        self, request: api.ListEventsRequest, context: CallContext
    ) -> AsyncIterator[api.ListEventsResponse]:
        sight = Sight(self._authorizer, context.principal)
        if request.follow:
            self._pulse.check()
        after = request.after_revision
        while True:
            with self._view.subscribe() as subscription:
                reached = self._view.revision
                past = self._since(after, reached) if after else self._newest(request, sight, reached)
                async with aclosing(past) as events:
                    async for event in events:
                        if self._wanted(event, request, sight):
                            yield _answer(sight.event(event))
                if not request.follow:
                    return
                yield api.ListEventsResponse(revision=reached)
                try:
                    async with aclosing(self._pulse.batches(subscription)) as batches:
                        async for changes in batches:
                            for change in changes:
                                if change.revision > reached and self._wanted(change.event, request, sight):
                                    yield _answer(sight.event(change.event))
                            reached = max(reached, changes[-1].revision if changes else self._view.revision)
                            if not changes:
                                yield api.ListEventsResponse(revision=reached)
                except Resync:
                    await self._view.wait_for(reached)
                    after = reached

    async def ListAudit(self, request: ListAuditRequest, context: CallContext) -> ListAuditResponse:
        return await self._audit.read(request, context)

    async def StreamAudit(
        self, request: StreamAuditRequest, context: CallContext
    ) -> AsyncIterator[StreamAuditResponse]:
        async with aclosing(self._audit.stream(request, context)) as batches:
            async for batch in batches:
                yield batch

    # ---- what has happened already

    async def _newest(self, request: api.ListEventsRequest, sight: Sight, upto: int) -> AsyncGenerator[Event, None]:
        """The newest events, oldest first: of one resource from the store, else those in memory and some before."""
        events = [e for e in await self._past(request, sight) if e.revision <= upto]
        wanted = [event for event in events if self._wanted(event, request, sight)]
        for event in wanted[-(request.limit or DEFAULT_LIMIT) :]:
            yield event

    async def _past(self, request: api.ListEventsRequest, sight: Sight) -> list[Event]:
        if not (request.kind and request.name):
            return await self._newest_of_all.read()
        kind = canonical_kind(request.kind)
        group = request.group or sight.default_group
        state = self._view.by_name(kind, request.name, group=group) or self._view.by_name(kind, request.name)
        if state is None:
            return await self._newest_of_all.read()
        streams = [StreamId(kind, state.metadata.uid)]
        if kind == "Workload":
            streams += [StreamId("Container", c.metadata.uid) for c in self._view.containers_of(state.metadata.uid)]
        events: list[StoredEvent] = []
        for stream in streams:
            async for stored in self._store.read_stream(stream):
                events.append(stored)
        events.sort(key=lambda stored: (stored.revision, stored.position))
        return [from_stored(stored) for stored in events]

    async def _since(self, after: int, upto: int) -> AsyncGenerator[Event, None]:
        """Every event after one revision, up to another. Raises ApiError OUT_OF_RANGE when some are not kept."""
        if after > upto and await self._never_was(after):
            raise ApiError(
                grpc.StatusCode.OUT_OF_RANGE,
                f"there is no revision {after}: the log was restored from an older snapshot",
                next_step=f"events after revision {self._view.recent_after} can be followed",
            )
        if after >= self._view.recent_after:
            for event in list(self._view.recent_events):
                if after < event.revision <= upto:
                    yield event
            return
        try:
            newest = min(upto, await self._store.newest_event(after_revision=after))
            if newest <= after:
                return
            reached = after
            try:
                async with aclosing(self._store.follow(after)) as followed:
                    async for changes in followed:
                        for stored in changes.events:
                            if stored.revision <= upto:
                                yield from_stored(stored)
                        reached = changes.revision
                        if reached >= newest:
                            return
            except store_errors.RebuildNeeded:
                # etcd has forgotten what changed when; the events themselves are kept for longer.
                for stored in await self._kept_since(reached):
                    if stored.revision <= upto:
                        yield from_stored(stored)
        except store_errors.StoreError as error:
            raise unavailable(f"the events cannot be read now: {error}") from error

    async def _kept_since(self, after: int) -> list[StoredEvent]:
        """The events after a revision, from the streams that have had some. Looks at all streams there are."""
        changed = [head async for page in self._store.heads() for head in page.heads if head.revision > after]
        found: list[StoredEvent] = []
        for head in changed:
            events = [stored async for stored in self._store.read_stream(head.stream)]
            if events and events[0].version > 1 and events[0].revision > after:
                raise ApiError(
                    grpc.StatusCode.OUT_OF_RANGE,
                    f"some events after revision {after} are no longer kept",
                    next_step=f"events after revision {self._view.recent_after} can be followed",
                )
            found += [stored for stored in events if stored.revision > after]
        return sorted(found, key=lambda stored: (stored.revision, stored.position))

    async def _never_was(self, revision: int) -> bool:
        try:
            return await self._store.revision() < revision
        except store_errors.StoreError:
            return False

    # ---- which of them

    def _wanted(self, event: Event, request: api.ListEventsRequest, sight: Sight) -> bool:
        if event.revision <= request.after_revision:
            return False
        if request.kind:
            kind = canonical_kind(request.kind)
            own = event.kind == kind and (not request.name or event.name == request.name)
            of_workload = kind == "Workload" and event.kind == "Container"
            if not own and not (of_workload and (not request.name or event.name.rsplit(".", 2)[0] == request.name)):
                return False
        group = request.group or sight.default_group
        if event.group and not request.all_groups and event.group != group:
            return False
        return sight.sees_event(event)


def _answer(event: Event) -> api.ListEventsResponse:
    return api.ListEventsResponse(event=event, text=line(event))
