"""The view: every resource in memory, as the fold of the log up to one revision.

Each replica keeps the same view: it starts from the heads at a revision and follows the log from there,
one event at a time (`apply`). Reads, decisions and plans all work on it; nobody changes it but the
follower task in `app`. Messages in it are never changed in place: an event makes a new one. So a reader
may keep what it got, and two readers at the same revision see the same.

Two ways to hear of changes. *Observers* are called in step with the fold, for state that must be exactly as
new as the view (scheduling's accounting, indexes). *Subscriptions* are bounded queues for tasks: a
slow one is told to start over (`Resync`) instead of holding up the rest or growing for ever.
"""

import asyncio
import bisect
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import itemgetter
from typing import Any, NamedTuple

from pwm.api.v1.events_pb2 import Event
from pwm.api.v1.workload_pb2 import Container
from pwm.controlplane.core.evolve import STATE_TYPES, State, evolve

# Changes a subscriber may lag behind before it is told to start over.
SUBSCRIPTION_LIMIT = 10_000
# Newest changes kept for `pwm events`, and for those who come back from another replica; older ones are read from
# the store.
RECENT_CHANGES = 10_000
# Kinds that say who may do what.
RIGHTS = frozenset({"User", "Role", "Token"})
# Replica and attempt, of which a workload has each pair once.
_PLACE = itemgetter(0, 1)


class Entry(NamedTuple):
    """A resource and the revision of its last change. A tuple: 100,000 of them are made at a start."""

    state: State
    revision: int


class ViewChange(NamedTuple):
    kind: str
    uid: str
    before: State | None
    # None: the resource was removed.
    after: State | None
    event: Event
    revision: int


class Resync(Exception):
    """A subscriber fell too far behind, or the view was rebuilt: read everything again, then follow."""


Observer = Callable[[ViewChange], None]
Concern = Callable[[ViewChange], bool]


class View:
    def __init__(self) -> None:
        self.revision = 0
        self.synced = False
        # Grows when somebody may do more or less than before, or everything is forgotten or has been read anew.
        self.rights = 0
        # Grows when a node is another one than before, or everything has been read anew.
        self.nodes = 0
        self.recent: deque[ViewChange] = deque()
        # All changes after this revision are in `recent`.
        self.recent_after = 0
        self._kinds: dict[str, dict[str, Entry]] = {kind: {} for kind in STATE_TYPES}
        self._names: dict[tuple[str, str, str], str] = {}
        # With replica and attempt, which say the order.
        self._by_workload: defaultdict[str, dict[str, tuple[int, int, Container]]] = defaultdict(dict)
        self._by_node: defaultdict[str, dict[str, Container]] = defaultdict(dict)
        self._observers: list[Observer] = []
        self._subscriptions: list[Subscription] = []
        self._waiters: list[tuple[int, int, asyncio.Future[None]]] = []
        self._waiter_count = 0

    # ---- reading

    @property
    def recent_events(self) -> Iterator[Event]:
        return (change.event for change in self.recent)

    def get(self, kind: str, uid: str) -> Any | None:
        """The resource's message, or None."""
        entry = self._kinds[kind].get(uid)
        return entry.state if entry else None

    def entry(self, kind: str, uid: str) -> Entry | None:
        return self._kinds[kind].get(uid)

    def by_name(self, kind: str, name: str, *, group: str = "") -> Any | None:
        if kind == "Container":
            # Name and uid say the same of it: which workload, replica and attempt.
            workload, *attempt = name.rsplit(".", 2)
            owner = self._names.get(("Workload", group, workload))
            return self.get(kind, ".".join([owner, *attempt])) if owner else None
        uid = self._names.get((kind, group, name))
        return self.get(kind, uid) if uid else None

    def all(self, kind: str) -> Iterator[Any]:
        return (entry.state for entry in self._kinds[kind].values())

    def count(self, kind: str) -> int:
        return len(self._kinds[kind])

    @property
    def streams(self) -> int:
        return sum(len(entries) for entries in self._kinds.values())

    def containers_of(self, workload_uid: str) -> list[Container]:
        """Containers of a workload, by replica and attempt."""
        found = self._by_workload.get(workload_uid)
        return [container for *_, container in sorted(found.values(), key=_PLACE)] if found else []

    def containers_on(self, node: str) -> list[Container]:
        found = self._by_node.get(node)
        return list(found.values()) if found else []

    def workload_uids_with_containers(self) -> list[str]:
        return list(self._by_workload)

    # ---- writing: the follower only

    def load(self, kind: str, uid: str, *, state: bytes, revision: int) -> None:
        """One head, at bootstrap. Kinds that only a newer version knows are left out."""
        if kind not in STATE_TYPES:
            return
        message: Any = STATE_TYPES[kind].FromString(state)
        self._kinds[kind][uid] = Entry(message, revision)
        if kind == "Container":
            spec = message.spec
            self._by_workload[spec.workload_uid][uid] = (spec.replica, spec.attempt, message)
            self._by_node[spec.node][uid] = message
        else:
            metadata = message.metadata
            self._names[kind, metadata.group, metadata.name] = uid

    def clear(self) -> None:
        """Forget everything before a rebuild; who follows is told to start over."""
        for entries in self._kinds.values():
            entries.clear()
        self._names.clear()
        self._by_workload.clear()
        self._by_node.clear()
        self.recent.clear()
        self.synced = False
        self.rights += 1
        for subscription in list(self._subscriptions):
            subscription.resync()

    def distrust(self) -> None:
        """What it holds belongs to another log: whoever waits for a revision waits until it has been built anew."""
        self.synced = False
        self.rights += 1

    def loaded(self, revision: int) -> None:
        """All heads of `revision` are in: the view may be read."""
        self.revision = self.recent_after = revision
        self.synced = True
        self.rights += 1
        self.nodes += 1
        self._wake()

    def apply(self, event: Event, revision: int) -> None:
        """Fold one event, in cluster order. An event that the heads already held is passed over."""
        entries = self._kinds.get(event.kind)
        if entries is None:
            return
        entry = entries.get(event.uid)
        before = entry.state if entry else None
        if before is not None and event.version <= before.metadata.version:
            if revision > self.revision:
                # The state came from a head that was newer: what happened is told all the same.
                self._tell(ViewChange(event.kind, event.uid, before, before, event, revision))
            return
        expected = before.metadata.version + 1 if before is not None else 1
        if event.version != expected and not (before is None and event.WhichOneof("payload") == "removed"):
            raise OutOfStep(f"{event.kind}/{event.uid}: version {event.version} after {expected - 1}")
        removed = event.WhichOneof("payload") == "removed"
        after = None if removed else evolve(before, event)
        self._put(event, revision, Entry(after, revision) if after is not None else None)

    def adopt(self, event: Event, revision: int, *, head: Entry | None) -> None:
        """An event that this version cannot fold: its stream is as its head says, which may be newer than the event.

        `head` is None when the stream has ended.
        """
        entries = self._kinds.get(event.kind)
        entry = entries.get(event.uid) if entries is not None else None
        if entries is None or (entry is not None and event.version <= entry.state.metadata.version):
            return
        self._put(event, revision, head)

    def _put(self, event: Event, revision: int, entry: Entry | None) -> None:
        entries = self._kinds[event.kind]
        held = entries.pop(event.uid, None) if entry is None else entries.get(event.uid)
        if entry is not None:
            entries[event.uid] = entry
        before = held.state if held is not None else None
        after = entry.state if entry is not None else None
        self._index(event.kind, event.uid, before, after)
        if event.kind in RIGHTS:
            self.rights += 1
        elif event.kind == "Node":
            self.nodes += 1
        self._tell(ViewChange(event.kind, event.uid, before, after, event, revision))

    def _tell(self, change: ViewChange) -> None:
        change.event.revision = change.revision
        self.recent.append(change)
        if len(self.recent) > RECENT_CHANGES:
            self.recent_after = max(self.recent_after, self.recent.popleft().revision)
        for observer in self._observers:
            observer(change)
        for subscription in self._subscriptions:
            subscription.offer(change)

    def advance(self, revision: int) -> None:
        """Everything up to `revision` has been folded."""
        if revision > self.revision:
            self.revision = revision
            self._wake()

    def _index(self, kind: str, uid: str, before: State | None, after: State | None) -> None:
        state = after if after is not None else before
        if isinstance(state, Container):
            spec = state.spec
            if isinstance(after, Container):
                self._by_workload[spec.workload_uid][uid] = (spec.replica, spec.attempt, after)
                self._by_node[spec.node][uid] = after
            else:
                _forget(self._by_workload, spec.workload_uid, uid)
                _forget(self._by_node, spec.node, uid)
        elif state is not None:
            key = (kind, state.metadata.group, state.metadata.name)
            if after is not None:
                self._names[key] = uid
            elif self._names.get(key) == uid:
                del self._names[key]

    # ---- following

    def observe(self, observer: Observer) -> None:
        self._observers.append(observer)

    @contextmanager
    def subscribe(self, concerns: Concern | None = None) -> "Iterator[Subscription]":
        """Changes from now on; read the view right after entering and nothing is missed.

        `concerns`: quickly says which changes are of interest, so that thousands of subscribers who each care for
        one resource are not all woken by every change. It may say yes too often.
        """
        subscription = Subscription(concerns)
        self._subscriptions.append(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.remove(subscription)

    async def wait_for(self, revision: int, *, timeout_s: float | None = None) -> None:
        """Until the view has folded `revision`. Raises TimeoutError."""
        if self.revision >= revision and self.synced:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiter_count += 1
        item = (revision, self._waiter_count, future)
        bisect.insort(self._waiters, item)
        try:
            async with asyncio.timeout(timeout_s):
                await future
        finally:
            if item in self._waiters:
                self._waiters.remove(item)

    def _wake(self) -> None:
        if not self.synced:
            return
        while self._waiters and self._waiters[0][0] <= self.revision:
            future = self._waiters.pop(0)[2]
            if not future.done():
                future.set_result(None)


def _forget(index: dict[str, dict[str, Any]], name: str, uid: str) -> None:
    index[name].pop(uid, None)
    if not index[name]:
        del index[name]


class OutOfStep(Exception):
    """An event does not follow the state that the view holds: the view must be rebuilt."""


class Subscription:
    """A bounded queue of changes; what waits is taken as one batch."""

    def __init__(self, concerns: Concern | None = None) -> None:
        self._concerns = concerns
        self._queue: deque[ViewChange] = deque()
        self._ready = asyncio.Event()
        self._lost = False

    def offer(self, change: ViewChange) -> None:
        if self._concerns is not None and not self._concerns(change):
            return
        if len(self._queue) >= SUBSCRIPTION_LIMIT:
            self.resync()
        elif not self._lost:
            self._queue.append(change)
            self._ready.set()

    def resync(self) -> None:
        self._queue.clear()
        self._lost = True
        self._ready.set()

    def nudge(self) -> None:
        """Let who waits for changes look at something else."""
        self._ready.set()

    async def batch(self) -> list[ViewChange]:
        """Everything that waits: at least one change, or none after a nudge. Raises Resync."""
        await self._ready.wait()
        self._ready.clear()
        if self._lost:
            self._lost = False
            raise Resync
        changes = list(self._queue)
        self._queue.clear()
        return changes
