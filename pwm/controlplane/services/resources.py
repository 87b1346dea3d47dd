"""Apply, get, list, watch and delete, for every kind."""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from pwm import lifecycle
from pwm.api.v1 import events_pb2 as ev
from pwm.api.v1 import services_pb2 as api
from pwm.api.v1.common_pb2 import Reason
from pwm.controlplane.auth import Authorizer, Principal, canonical_kind
from pwm.controlplane.clock import Clock
from pwm.controlplane.commands import GROUPED_KINDS, MAX_STREAMS_PER_COMMIT, Commands, timestamp
from pwm.controlplane.context import CallContext
from pwm.controlplane.core.authz import CLUSTER_KINDS
from pwm.controlplane.core.decide import Change, Refusal, change, delete_workload
from pwm.controlplane.core.joining import tokens_of
from pwm.controlplane.core.nodes import left_behind
from pwm.controlplane.core.selectors import SelectorError, parse_selector
from pwm.controlplane.core.tokens import end_with, shown_name
from pwm.controlplane.errors import ApiError, conflict, invalid, not_found
from pwm.controlplane.presence import ContactObserver
from pwm.controlplane.queries import OBSERVED_KINDS, Queries, Shown, wrap
from pwm.controlplane.services.applying import Applier
from pwm.controlplane.services.newest_events import NewestEvents
from pwm.controlplane.services.pulse import Pulse
from pwm.controlplane.services.tables import render
from pwm.controlplane.services.watched import TEXT_FORMATS, Filter, Watched, in_order
from pwm.controlplane.sight import Sight, seen
from pwm.controlplane.store import errors as store_errors
from pwm.controlplane.store.commits import ReceiptWrite
from pwm.controlplane.store.errors import AlreadyAnswered
from pwm.controlplane.view import Resync, Subscription, View, ViewChange

# How long a read waits for the revision it asked for.
MIN_REVISION_TIMEOUT_S = 5.0


class ResourceService:
    def __init__(
        self,
        *,
        view: View,
        queries: Queries,
        commands: Commands,
        applier: Applier,
        authorizer: Authorizer,
        clock: Clock,
        stale_since_ms: Callable[[], int],
        store_revision: Callable[[], Awaitable[int]],
        observe_contact: Callable[[ContactObserver], None],
        newest_events: NewestEvents,
    ) -> None:
        """`store_revision` asks the store how far it is; it may raise StoreError."""
        self._newest_events = newest_events
        self._store_revision = store_revision
        observe_contact(self._contact_changed)
        # Of watches of nodes, whose contact is shown but is no event.
        self._node_watches: set[Subscription] = set()
        self._view = view
        self._queries = queries
        self._commands = commands
        self._applier = applier
        self._authorizer = authorizer
        self._clock = clock
        self._stale_since_ms = stale_since_ms
        self._pulse = Pulse(clock=clock, stale_since_ms=stale_since_ms)

    async def Apply(self, request: api.ApplyRequest, context: CallContext) -> api.ApplyResponse:
        return await self._applier.apply(request, context)

    async def Get(self, request: api.GetRequest, context: CallContext) -> api.GetResponse:
        await self._reach(request.min_revision)
        kind = canonical_kind(request.kind)
        group = "" if kind in CLUSTER_KINDS else request.group or context.principal.default_group
        found = self._find(kind, request.name, group, context.principal)
        return api.GetResponse(
            resource=wrap(kind, found), revision=self._view.revision, stale_since=self._stale_since()
        )

    def _find(self, kind: str, name: str, group: str, viewer: Principal) -> Any:
        """The resource, as the viewer may see it. Raises ApiError NOT_FOUND, whether it is not there or hidden."""
        found = self._queries.find(kind, name, group)
        shown = seen(self._authorizer, viewer, kind, found) if found is not None else None
        if shown is None:
            raise _missing(kind, name, group)
        return shown

    async def List(self, request: api.ListRequest, context: CallContext) -> api.ListResponse:
        await self._reach(request.min_revision)
        kind = canonical_kind(request.kind)
        wanted = self._filter(kind, request, context.principal)
        there = map(Shown.of, await self._newest_events.read()) if kind == "Event" else self._queries.all(kind)
        items = [item for item in map(wanted, there) if item is not None]
        if kind != "Event":
            items.sort(key=in_order)
        if request.names:
            self._all_there(kind, request, items)
        answer = api.ListResponse(revision=self._view.revision, count=len(items), stale_since=self._stale_since())
        if request.format in TEXT_FORMATS:
            answer.text = render(
                kind, items, format=request.format, now_ms=self._clock.now_ms(), with_group=request.all_groups
            )
        else:
            answer.items.extend(wrap(kind, item) for item in items)
        return answer

    def _all_there(self, kind: str, request: api.ListRequest, items: Sequence[Any]) -> None:
        missing = set(request.names) - {item.metadata.name for item in items}
        if missing:
            raise not_found(
                f"there is no {kind} {', '.join(sorted(missing))}",
                next_step=f"pwm get {kind.lower()} lists what there is",
            )

    async def Watch(self, request: api.WatchRequest, context: CallContext) -> AsyncIterator[api.WatchResponse]:
        self._pulse.check()
        await self._reach(max(request.min_revision, request.after_revision))
        kind = canonical_kind(request.kind)
        watched = Watched(
            kind,
            request,
            wanted=self._filter(kind, request, context.principal),
            view=self._view,
            queries=self._queries,
            clock=self._clock,
        )
        with self._subscription(kind, watched) as subscription:
            answers = watched.since(request.after_revision) if request.after_revision else watched.everything()
            while True:
                try:
                    for answer in answers:
                        yield answer
                    async with aclosing(self._pulse.batches(subscription)) as batches:
                        async for changes in batches:
                            for answer in watched.changed(changes) if changes else [watched.beat()]:
                                yield answer
                except Resync:
                    await self._view.wait_for(0)
                    answers = watched.everything()

    @contextmanager
    def _subscription(self, kind: str, watched: Watched) -> Iterator[Subscription]:
        with self._view.subscribe(watched.concerns) as subscription:
            if kind == "Node":
                self._node_watches.add(subscription)
            try:
                yield subscription
            finally:
                self._node_watches.discard(subscription)

    def _contact_changed(self, names: Collection[str]) -> None:
        if not self._node_watches:
            return
        for node in filter(None, (self._view.by_name("Node", name) for name in names)):
            change = ViewChange("Node", node.metadata.uid, node, node, ev.Event(), self._view.revision)
            for subscription in self._node_watches:
                subscription.offer(change)

    async def Delete(self, request: api.DeleteRequest, context: CallContext) -> api.DeleteResponse:
        kind = canonical_kind(request.kind)
        if kind in OBSERVED_KINDS or kind == "Container":
            raise invalid(f"a {kind} is observed, it cannot be deleted", next_step="delete the workload it belongs to")
        group = "" if kind in CLUSTER_KINDS else request.group or context.principal.default_group
        cascade: list[str] = []
        notes: list[str] = []

        def decide() -> list[Change]:
            state: Any = self._view.by_name(kind, request.name, group=group)
            if state is None:
                raise _missing(kind, request.name, group)
            cascade.clear()
            if kind == "Workload":
                containers = self._view.containers_of(state.metadata.uid)
                notes[:] = left_behind(containers, lambda name: self._view.by_name("Node", name))
                cascade.extend(f"Container {c.metadata.group}/{c.metadata.name}" for c in containers)
                return [change(state, *delete_workload(state, containers))]
            self._check_unused(kind, state, Sight(self._authorizer, context.principal))
            gone = [change(state, ev.Removed(reason=Reason(code=Reason.DELETED_BY_USER)))]
            if kind == "User":
                of_user = [token for token in self._view.all("Token") if token.spec.user == request.name]
                room = MAX_STREAMS_PER_COMMIT - len(gone)
                gone += end_with(state, of_user, at_most=room, now_ms=self._clock.now_ms())
                cascade.extend(f"Token {ended.name}" for ended in gone[1:])
            elif kind == "Node":
                # Its certificates end with it. Whoever has a token for the name could bring it back.
                of_node = tokens_of(request.name, self._view.all("Token"), now_ms=self._clock.now_ms())
                del of_node[MAX_STREAMS_PER_COMMIT - len(gone) :]
                gone += [change(token, ev.TokenRevoked()) for token in of_node]
                cascade.extend(f"Token {shown_name(token)}" for token in of_node)
            return gone

        key, name = context.idempotency_key, context.principal.name
        try:
            outcome = await self._commands.run(
                decide,
                actor=context.principal.actor,
                receipt=ReceiptWrite(name, key, b"") if key else None,
                answer=lambda: api.DeleteResponse(cascade=cascade, notes=notes).SerializeToString(),
            )
        except Refusal as error:
            raise conflict(str(error), next_step=error.next_step) from error
        except AlreadyAnswered as error:
            answer = api.DeleteResponse.FromString(error.answer)
            answer.revision = error.revision
            return answer
        return api.DeleteResponse(cascade=cascade, revision=outcome.revision, notes=notes)

    def _check_unused(self, kind: str, state: Any, sight: Sight) -> None:
        """Deleting must not pull the ground from under what is there."""
        name, users = state.metadata.name, []
        if kind == "Group":
            users = [(k, s) for k in sorted(GROUPED_KINDS) for s in self._view.all(k) if s.metadata.group == name]
            users += [("User", u) for u in self._view.all("User") if any(m.name == name for m in u.spec.groups)]
        elif kind == "Node":
            alive = (c for c in self._view.containers_on(name) if c.status.phase in lifecycle.LIVE)
            users = [("Container", c) for c in alive]
        elif kind == "Storage":
            users = [("Volume", v) for v in self._view.all("Volume") if v.spec.storage == name]
        elif kind == "Role":
            users = [("User", u) for u in self._view.all("User") if any(m.role == name for m in u.spec.groups)]
        if users:
            shown = sight.named((k, s.metadata.group, s.metadata.name) for k, s in users)
            raise ApiError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"{kind} {name} is in use by {shown}",
                next_step=f"delete or move those first; if the machine is gone for good, pwm admin confirm-dead {name}"
                if kind == "Node"
                else "delete or move those first",
            )

    # ---- shared

    def _filter(self, kind: str, request: Any, principal: Principal) -> Filter:
        try:
            selector = parse_selector(request.selector)
        except SelectorError as error:
            raise invalid(str(error)) from error
        one_group = kind not in CLUSTER_KINDS and not request.all_groups
        group = request.group or principal.default_group
        names = frozenset(request.names)
        sees = Sight(self._authorizer, principal).through(kind)

        def wanted(shown: Shown) -> Any | None:
            if one_group and shown.group != group:
                return None
            item = shown.message
            if names and (item if kind == "Event" else item.metadata).name not in names:
                return None
            if request.workload and kind == "Container" and item.spec.workload != request.workload:
                return None
            if request.zone and hasattr(item, "spec") and getattr(item.spec, "zone", "") not in (request.zone, ""):
                return None
            if kind != "Event" and request.selector and not selector(item.metadata.labels):
                return None
            return sees(shown)

        return wanted

    def _stale_since(self) -> Timestamp | None:
        since = self._stale_since_ms()
        return timestamp(since) if since else None

    async def _never_was(self, revision: int) -> bool:
        """Whether a client knows this revision from before the store was restored."""
        try:
            return self._view.synced and await self._store_revision() < revision
        except store_errors.StoreError:
            return False

    async def _reach(self, revision: int) -> None:
        try:
            await self._view.wait_for(revision, timeout_s=MIN_REVISION_TIMEOUT_S)
        except TimeoutError as error:
            if await self._never_was(revision):
                return
            raise ApiError(
                grpc.StatusCode.UNAVAILABLE,
                f"this replica has not seen revision {revision} yet",
                next_step="try again, or ask another replica",
            ) from error


def _missing(kind: str, name: str, group: str) -> ApiError:
    where = f" in group {group}" if group else ""
    return not_found(
        f"there is no {kind} {name}{where}",
        next_step=f"pwm get {kind.lower()}{' -A' if group else ''} lists what there is",
    )
