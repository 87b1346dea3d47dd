"""Follows the log for notices: a chore of the cluster's leader.

It goes through the events behind a mark in the store, which is moved on in the transactions that put notices
into the outbox. A new leader goes on from the mark: with the changes that its view remembers or, if it has been started
since, with what the store has of the streams that changed. An event may be gone through twice, never not at all; what
was told of a workload is remembered, so it is told once.

That a workload waits is no event. Those whose owners want to know are looked at every few seconds.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import Any

import structlog

from pwm.api.v1.events_pb2 import Event
from pwm.api.v1.identity_pb2 import User
from pwm.api.v1.store_pb2 import NoticesTold, PendingNotice
from pwm.api.v1.workload_pb2 import Container, Notify, Workload, WorkloadStatus
from pwm.controlplane.agentlink import AgentLink
from pwm.controlplane.clock import Clock
from pwm.controlplane.core import notices
from pwm.controlplane.core.evolve import STATE_TYPES
from pwm.controlplane.core.limits import owner_of
from pwm.controlplane.core.notices import Happened, Notice
from pwm.controlplane.core.targets import shown
from pwm.controlplane.delivery.courier import Courier
from pwm.controlplane.delivery.last_words import LastWords
from pwm.controlplane.delivery.outbox import Outbox, Write, without_repetition
from pwm.controlplane.delivery.post import Post, keep_writing
from pwm.controlplane.store import errors as store_errors
from pwm.controlplane.store.commits import StoredHead
from pwm.controlplane.store.eventstore import EventStore
from pwm.controlplane.view import Resync, Subscription, View, ViewChange

log = structlog.get_logger(__name__)

KINDS = frozenset({"Workload", "Container", "User", "Group"})
RETRY_DELAY_S = 1.0
LOOK_EVERY_S = 5.0
# In which more happens before it is told of: a long array whose containers end one after the other is gone through
# once for all of them.
GATHER_S = 0.5
# Workloads looked at before others have their turn.
LOOKED_AT_ONCE = 1_000
# The mark is moved on so often though there is nothing to tell: what a new leader goes through again at most.
MARK_EVERY_S = 30.0


class NoticeController:
    """Runs for one term of leading the chores."""

    def __init__(
        self,
        *,
        view: View,
        store: EventStore,
        outbox: Outbox,
        courier: Courier,
        clock: Clock,
        shown_as: Callable[[Workload], Workload],
        agents: AgentLink,
        may_read: Callable[[str, str], bool],
        given_up: Callable[[PendingNotice, str], Awaitable[None]],
    ) -> None:
        """`shown_as`: a workload with the status that people see. For the others see `LastWords` and `Post`."""
        self._view = view
        self._store = store
        self._outbox = outbox
        self._settings = courier.settings
        self._clock = clock
        self._shown_as = shown_as
        sender = LastWords(courier, agents=agents, may_read=may_read)
        self._post = Post(outbox=outbox, sender=sender, now_ms=clock.now_ms, given_up=given_up)
        self._told: dict[str, NoticesTold] = {}
        # What was decided later is written later.
        self._writing = asyncio.Lock()
        self._reached = 0
        self._marked, self._marked_at_s = 0, 0.0

    async def run(self) -> None:
        """Until cancelled. Raises FenceLost when another replica leads."""
        with self._view.subscribe(lambda change: change.kind in KINDS) as subscription:
            await self._begin()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow(subscription))
                group.create_task(self._look())
                group.create_task(self._post.run())

    async def _begin(self) -> None:
        while True:
            try:
                reached, self._told = await self._outbox.read_upto(), await self._outbox.told()
                self._post.take(await self._outbox.pending())
                break
            except store_errors.KVError as error:
                log.warning("notices wait", why=str(error))
                await asyncio.sleep(RETRY_DELAY_S)
        if reached is None:
            # Of what was before there were notices nobody is told.
            reached = self._view.revision
            await keep_writing(self._outbox, [self._outbox.reached(reached)])
        # A store that was restored has not had all that is marked.
        self._reached = self._marked = min(reached, self._view.revision)
        self._marked_at_s = self._clock.monotonic_s()

    # ---- following the log

    async def _follow(self, subscription: Subscription) -> None:
        await self._catch_up()
        while True:
            try:
                async with asyncio.timeout(MARK_EVERY_S):
                    changes = await subscription.batch()
                happened = [_happened(change) for change in changes if change.revision > self._reached]
                await self._tell(happened, upto=changes[-1].revision)
                await asyncio.sleep(GATHER_S)
            except TimeoutError:
                # Not the view's: moving the mark moves that on, too, and nothing would ever be quiet.
                await self._tell([], upto=self._reached)
            except Resync:
                await self._view.wait_for(0)
                await self._catch_up()

    async def _catch_up(self) -> None:
        """With everything between the mark and the view."""
        while True:
            upto = self._view.revision
            if self._reached >= self._view.recent_after:
                recent = [c for c in self._view.recent if c.kind in KINDS and c.revision > self._reached]
                await self._tell([_happened(change) for change in recent], upto=upto)
                return
            try:
                await self._tell(await self._stored(self._reached, upto), upto=upto)
            except store_errors.StoreError as error:
                log.warning("notices wait", why=str(error))
                await asyncio.sleep(RETRY_DELAY_S)

    async def _stored(self, after: int, upto: int) -> list[Happened]:
        """From the store, with each resource as it is now: what has become true is seen as well from that."""
        heads = [head async for page in self._store.heads() for head in page.heads if _changed(head, after)]
        found: list[tuple[tuple[int, int], Happened]] = []
        for head in heads:
            state: Any = STATE_TYPES[head.stream.kind].FromString(head.state)
            async for stored in self._store.read_stream(head.stream):
                if after < stored.revision <= upto:
                    place = stored.revision, stored.position
                    found.append((place, Happened(Event.FromString(stored.event), state)))
        found.sort(key=lambda item: item[0])
        return [happened for _, happened in found]

    # ---- telling

    async def _tell(self, happened: Sequence[Happened], *, upto: int) -> None:
        writes: list[Write] = []
        letters: list[PendingNotice] = []
        of_workloads: defaultdict[str, list[Happened]] = defaultdict(list)
        for one in happened:
            for notice in notices.of_event(one, self._view.all("User")):
                letters += self._letters(notice)
            if isinstance(one.state, Workload | Container):
                of_workloads[_workload_uid(one.state)].append(one)
        for uid, theirs in of_workloads.items():
            new, written = self._of_workload(uid, theirs)
            letters += new
            writes += written
        self._reached = max(self._reached, upto)
        await self._send(letters, writes, mark=self._reached)

    def _of_workload(self, uid: str, happened: Sequence[Happened]) -> tuple[list[PendingNotice], list[Write]]:
        there: Workload | None = self._view.get("Workload", uid)
        workload = there if there is not None else _last(happened, Workload)
        new = notices.news(happened)
        letters: list[PendingNotice] = []
        writes: list[Write] = []
        if workload is not None and self._wanted(workload, new):
            containers = {c.metadata.uid: c for c in _all(happened, Container)}
            containers.update((c.metadata.uid, c) for c in self._view.containers_of(uid))
            told = self._told_of(workload)
            found = notices.of_workload(workload, list(containers.values()), new=new, told=told)
            letters, writes = self._told_now(workload, found)
        if there is None and self._told.pop(uid, None) is not None:
            writes = [self._outbox.forget(uid)]
        return letters, writes

    def _wanted(self, workload: Workload, facts: Collection[str]) -> bool:
        """Whether there is anybody to tell any of these facts to, whatever kind of notice it comes to."""
        user, own = self._whose(workload)
        kinds = {kind for fact in facts for kind in notices.kinds_of(fact)}
        return any(notices.addresses(kind, user=user, own=own) for kind in kinds)

    def _told_of(self, workload: Workload) -> list[str]:
        told = self._told.get(workload.metadata.uid)
        return list(told.kinds) if told is not None and told.run == notices.run_of(workload) else []

    def _told_now(self, workload: Workload, found: Sequence[Notice]) -> tuple[list[PendingNotice], list[Write]]:
        """Letters for notices of a workload, and what is written so that nothing is told again."""
        wanted = [notice for notice in found if self._addresses(notice, workload)]
        if not wanted:
            return [], []
        uid, facts = workload.metadata.uid, [*self._told_of(workload), *(notice.fact for notice in wanted)]
        self._told[uid] = NoticesTold(run=notices.run_of(workload), kinds=facts)
        letters = [letter for notice in wanted for letter in self._letters(notice, workload)]
        return letters, [self._outbox.remember(uid, self._told[uid])]

    async def _send(self, letters: Sequence[PendingNotice], writes: Sequence[Write], *, mark: int) -> None:
        letters = without_repetition(letters)
        written: list[Write] = [*map(self._outbox.put, letters), *writes]
        now_s = self._clock.monotonic_s()
        if mark > self._marked and (written or now_s - self._marked_at_s >= MARK_EVERY_S):
            written.append(self._outbox.reached(mark))
            self._marked, self._marked_at_s = mark, now_s
        if written:
            async with self._writing:
                await keep_writing(self._outbox, written)
        if letters:
            self._post.take(letters)

    def _addresses(self, notice: Notice, workload: Workload | None) -> list[str]:
        if workload is None:
            return notices.addresses(notice.kind, user=self._view.by_name("User", notice.user))
        user, own = self._whose(workload)
        return notices.addresses(notice.kind, user=user, own=own)

    def _whose(self, workload: Workload) -> tuple[User | None, Notify | None]:
        own = workload.spec.notify if workload.spec.HasField("notify") else None
        return self._view.by_name("User", owner_of(workload)), own

    def _letters(self, notice: Notice, workload: Workload | None = None) -> list[PendingNotice]:
        letters = []
        for address in self._addresses(notice, workload):
            refusal = "too many are on their way" if self._post.full(notice.user) else self._settings.refusal(address)
            if refusal:
                log.warning("notice not sent", notice=notice.id, to=shown(address), user=notice.user, why=refusal)
            else:
                letters.append(notices.pending(notice, address, now_ms=self._clock.now_ms()))
        return letters

    # ---- those that wait

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            for number, workload in enumerate(list(self._view.all("Workload"))):
                if number % LOOKED_AT_ONCE == 0:
                    await asyncio.sleep(0)
                if workload.status.desired == WorkloadStatus.RUN and self._asks(workload):
                    await self._look_at(workload)

    def _asks(self, workload: Workload) -> bool:
        """Whether anybody may want to be told that it waits: nobody is who has not said so."""
        if workload.spec.HasField("notify"):
            return True
        user: User | None = self._view.by_name("User", owner_of(workload))
        return user is not None and user.spec.HasField("notify")

    async def _look_at(self, workload: Workload) -> None:
        told = self._told_of(workload)
        if self._view.get("Workload", workload.metadata.uid) is not workload or {"denied", "queued"} <= set(told):
            return
        status = self._shown_as(workload).status
        found = notices.waits(workload, status, told=told, now_ms=self._clock.now_ms())
        letters, writes = self._told_now(workload, found)
        if writes:
            await self._send(letters, writes, mark=self._marked)


def _happened(change: ViewChange) -> Happened:
    return Happened(change.event, change.after if change.after is not None else change.before)


def _changed(head: StoredHead, after: int) -> bool:
    return head.revision > after and head.stream.kind in KINDS


def _workload_uid(state: Workload | Container) -> str:
    return state.spec.workload_uid if isinstance(state, Container) else state.metadata.uid


def _all(happened: Iterable[Happened], kind: type[Any]) -> list[Any]:
    return [one.state for one in happened if isinstance(one.state, kind)]


def _last(happened: Iterable[Happened], kind: type[Any]) -> Any | None:
    found = _all(happened, kind)
    return found[-1] if found else None
