"""`pwm events`: what happened, in cluster-wide order."""

from collections.abc import AsyncIterator

from pwm.api.v1 import services_pb2 as api
from pwm.api.v1.events_pb2 import Event
from pwm.controlplane.auth import Authorizer, Principal, canonical_kind
from pwm.controlplane.context import CallContext
from pwm.controlplane.services.event_text import line
from pwm.controlplane.store.commits import StreamId
from pwm.controlplane.store.eventstore import EventStore
from pwm.controlplane.view import Resync, View

DEFAULT_LIMIT = 1_000


class EventService:
    def __init__(self, *, view: View, store: EventStore, authorizer: Authorizer) -> None:
        self._view = view
        self._store = store
        self._authorizer = authorizer

    async def ListEvents(
        self, request: api.ListEventsRequest, context: CallContext
    ) -> AsyncIterator[api.ListEventsResponse]:
        principal = context.principal
        with self._view.subscribe() as subscription:
            past = [e for e in await self._past(request, principal) if self._wanted(e, request, principal)]
            last = max((event.revision for event in past), default=0)
            for event in past[-(request.limit or DEFAULT_LIMIT) :]:
                yield _answer(event)
            while request.follow:
                try:
                    changes = await subscription.batch()
                except Resync:
                    changes = []
                    for event in self._view.recent_events:
                        if event.revision > last and self._wanted(event, request, principal):
                            yield _answer(event)
                for change in changes:
                    if change.revision >= last and self._wanted(change.event, request, principal):
                        if change.revision > last or change.event not in past:
                            yield _answer(change.event)
                        last = max(last, change.revision)

    async def _past(self, request: api.ListEventsRequest, principal: Principal) -> list[Event]:
        """Events so far, oldest first: of one resource from the store, else the newest that are in memory."""
        if not (request.kind and request.name):
            return list(self._view.recent_events)
        kind = canonical_kind(request.kind)
        group = request.group or principal.default_group
        state = self._view.by_name(kind, request.name, group=group) or self._view.by_name(kind, request.name)
        if state is None:
            return list(self._view.recent_events)
        streams = [StreamId(kind, state.metadata.uid)]
        if kind == "Workload":
            streams += [StreamId("Container", c.metadata.uid) for c in self._view.containers_of(state.metadata.uid)]
        events = []
        for stream in streams:
            async for stored in self._store.read_stream(stream):
                event = Event.FromString(stored.event)
                event.revision = stored.revision
                events.append((stored.revision, stored.position, event))
        events.sort(key=lambda item: item[:2])
        return [event for _, _, event in events]

    def _wanted(self, event: Event, request: api.ListEventsRequest, principal: Principal) -> bool:
        if event.kind == "Token" or event.revision <= request.after_revision:
            return False
        if request.kind:
            kind = canonical_kind(request.kind)
            own = event.kind == kind and (not request.name or event.name == request.name)
            of_workload = kind == "Workload" and event.kind == "Container"
            if not own and not (of_workload and (not request.name or event.name.rsplit(".", 2)[0] == request.name)):
                return False
        group = request.group or principal.default_group
        if event.group and not request.all_groups and event.group != group:
            return False
        return self._authorizer.may(principal, verb="get", kind=event.kind, group=event.group)


def _answer(event: Event) -> api.ListEventsResponse:
    return api.ListEventsResponse(event=event, text=line(event))
