"""The books in step with the view: what has been settled, and what has run up since.

What is settled is in the log: streams of the kind Ledger, one for each week that says up to when, and a few with the
lines. Every replica notes from its view what has happened since the last closing, so that any of them can say at any
moment what somebody has spent, and the leader of the chores can close the books without reading anything.

A replica that has just started has its view from the heads of the streams, which do not tell what happened since the
last closing, or of what has ended and gone. So it is `exact` only once the books have been closed in its presence,
or after `read`, which reads those events from the store. Until then its figures lack a few minutes at most; nothing is
settled by them.
"""

from collections.abc import Iterable
from typing import Any

import structlog

from pwm.api.v1.credits_pb2 import Ledger
from pwm.api.v1.events_pb2 import Event
from pwm.controlplane.clock import Clock
from pwm.controlplane.core import ledger
from pwm.controlplane.core.credits import CreditPolicy, Week
from pwm.controlplane.core.evolve import STATE_TYPES, State, evolve, understood
from pwm.controlplane.core.ledger import Entry, Holding, Lines, Opening, Repricing, Turn
from pwm.controlplane.steady_time import SteadyTime
from pwm.controlplane.store.commits import StoredEvent, StoredHead
from pwm.controlplane.store.eventstore import EventStore
from pwm.controlplane.view import View, ViewChange

log = structlog.get_logger(__name__)

COUNTED = frozenset({"Container", "ResourceCredit"})
# Figures are worked out anew after so long, and a bit later when nothing has happened: with ten thousand containers it
# takes a tenth of a second, and they serve people, and decisions that are late by seconds anyway.
FIGURES_KEPT_MS = 500
QUIET_FIGURES_KEPT_MS = 2_000


def is_clock(uid: str) -> bool:
    """Whether a Ledger's stream is the one of a week that says up to when; the others have a part of the lines."""
    return "." not in uid


def part_uid(week: Week, part: int) -> str:
    return f"{week.name}.{part}"


class Books:
    def __init__(self, *, view: View, clock: Clock, policy: CreditPolicy) -> None:
        self.policy = policy
        self.opening = Opening()
        # Of the log since the opening.
        self.entries: list[Entry] = []
        self.exact = False
        self._view = view
        self._clock = clock
        self._time = SteadyTime(clock)
        # The view's revision when it was built; -1: not known before the first change.
        self._loaded_at = -1
        self._figures: tuple[int, Week, Lines] | None = None
        # How many entries they were worked out of.
        self._figured = 0
        view.observe(self.observe)

    def now_ms(self) -> int:
        """The time that counts for credits: without jumps of the wall clock."""
        return self._time.now_ms()

    def trust_clock(self) -> None:
        """Believe the wall clock as it is at this moment."""
        self._time, self._figures = SteadyTime(self._clock), None

    # ---- in step with the view

    def load(self) -> None:
        """The view was built anew."""
        self._loaded_at, self._figures, self.exact, self.entries = -1, None, False, []
        clocks = [book for book in self._view.all("Ledger") if is_clock(book.metadata.uid)]
        last = max(clocks, key=lambda book: book.spec.settled_until.ToMilliseconds(), default=None)
        running: dict[str, Holding] = {}
        settled = last.spec.settled_revision if last is not None else 0
        for container in self._view.all("Container"):
            holding = ledger.holding_of(container) if ledger.charged(container) else None
            if holding is None:
                continue
            head = self._view.entry("Container", holding.uid)
            if last is None or (head is not None and head.revision <= settled):
                running[holding.uid] = holding
            else:
                # When it began is known if nothing but its end has been said since.
                since_ms = container.status.since.ToMilliseconds()
                self.entries.append(Turn(settled + 1, since_ms, 0, holding.uid, holding))
        prices = {price.metadata.name: ledger.price_of(price) or 0 for price in self._view.all("ResourceCredit")}
        at_ms = last.spec.settled_until.ToMilliseconds() if last is not None else 0
        self.opening = Opening(at_ms, settled, running, prices)

    def observe(self, change: ViewChange) -> None:
        if self._loaded_at < 0:
            self._loaded_at = self._view.revision
        if change.kind in COUNTED:
            entry = ledger.entry_of(change.before, change.after, change.event, revision=change.revision)
            if entry is not None:
                self.entries.append(entry)
        elif change.kind == "Ledger" and isinstance(change.after, Ledger) and is_clock(change.uid):
            self._close(change.after)

    def _close(self, book: Ledger) -> None:
        until_ms, revision = book.spec.settled_until.ToMilliseconds(), book.spec.settled_revision
        if until_ms <= self.opening.at_ms:
            return
        settled = [entry for entry in self.entries if entry.revision <= revision]
        self.opening, _ = ledger.settle(self.opening, settled, until_ms=until_ms, revision=revision)
        self.entries = [entry for entry in self.entries if entry.revision > revision]
        self.exact = self.exact or revision >= self._loaded_at
        self._figures = None

    # ---- what was missed

    async def read(self, store: EventStore) -> None:
        """Make them exact. Raises KVError."""
        while not self.exact:
            begun = self.opening
            opening, entries, newest = await read_since(store, begun.at_ms, begun.revision)
            await self._view.wait_for(newest)
            if self.opening is not begun:
                continue
            if begun.at_ms:
                # Books that were never opened begin with what runs when they are.
                later = [entry for entry in self.entries if entry.revision > newest]
                self.opening, self.entries = opening, entries + later
            self.exact, self._figures = True, None

    # ---- figures

    def lines(self) -> tuple[Week, Lines]:
        """What was used in this week up to now, by whom; settled or not."""
        now_ms = self.now_ms()
        kept_ms = QUIET_FIGURES_KEPT_MS if self._figured == len(self.entries) else FIGURES_KEPT_MS
        if self._figures is not None and now_ms - self._figures[0] < kept_ms:
            return self._figures[1], self._figures[2]
        week = self.policy.week_of(max(now_ms, self.opening.at_ms))
        lines = ledger.merged(*self._settled(week), ledger.to_messages(self._unsettled(week, now_ms)))
        self._figures, self._figured = (now_ms, week, lines), len(self.entries)
        return week, lines

    def refresh(self) -> None:
        """Let the next figures have all that has happened: who has just stopped something wants to see it."""
        if self._figured != len(self.entries):
            self._figures = None

    def settled_lines(self, week: Week) -> Lines:
        return ledger.merged(*self._settled(week))

    def _settled(self, week: Week) -> Iterable[Any]:
        for part in range(ledger.PARTS):
            book: Ledger | None = self._view.get("Ledger", part_uid(week, part))
            if book is not None:
                yield book.spec.lines

    def _unsettled(self, week: Week, now_ms: int) -> Lines:
        opening, entries = self.opening, self.entries
        if not opening.at_ms:
            return {}
        if opening.at_ms < week.start_ms:
            before = [entry for entry in entries if entry.at_ms < week.start_ms]
            opening, _ = ledger.settle(opening, before, until_ms=week.start_ms, revision=opening.revision)
            entries = [entry for entry in entries if entry.at_ms >= week.start_ms]
        until_ms = max(now_ms, opening.at_ms)
        return ledger.add_up(ledger.settle(opening, entries, until_ms=until_ms, revision=opening.revision)[1])

    def prices(self) -> dict[str, int]:
        """Those that hold now."""
        prices = dict(self.opening.prices)
        for entry in self.entries:
            if isinstance(entry, Repricing):
                prices.pop(entry.name, None)
                if entry.hourly_micro is not None:
                    prices[entry.name] = entry.hourly_micro
        return prices

    def running(self) -> Opening:
        """What is charged at this moment, at which prices."""
        now_ms = max(self.now_ms(), self.opening.at_ms)
        return ledger.settle(self.opening, self.entries, until_ms=now_ms, revision=self.opening.revision)[0]


async def read_since(
    store: EventStore, at_ms: int, after_revision: int, *, owner: str = ""
) -> tuple[Opening, list[Entry], int]:
    """The books as they were after a revision, what happened since in the order of the log, and the newest revision.

    `owner`: only what that user pays for, and prices. Raises KVError.
    """
    running: dict[str, Holding] = {}
    prices: dict[str, int] = {}
    placed: list[tuple[tuple[int, int, int], Entry]] = []
    newest = 0
    async for page in store.heads():
        for head in page.heads:
            newest = max(newest, head.revision)
            if head.stream.kind not in COUNTED:
                continue
            state: Any = STATE_TYPES[head.stream.kind].FromString(head.state)
            if owner and head.stream.kind == "Container" and state.spec.owner != owner:
                continue
            if head.revision > after_revision:
                state, entries = await _history(store, head, after_revision, page.revision)
                placed += entries
            elif head.removed_at_ms:
                continue
            if state is None:
                continue
            if head.stream.kind == "ResourceCredit":
                prices[state.metadata.name] = ledger.price_of(state) or 0
            elif ledger.charged(state) and (holding := ledger.holding_of(state)) is not None:
                running[holding.uid] = holding
    placed.sort(key=lambda item: item[0])
    return Opening(at_ms, after_revision, running, prices), [entry for _, entry in placed], newest


async def _history(
    store: EventStore, head: StoredHead, after_revision: int, through: int
) -> tuple[State | None, list[tuple[tuple[int, int, int], Entry]]]:
    """A stream as it was after a revision (None: it was not), and what happened since."""
    at_opening: State | None = None
    state: State | None = None
    entries: list[tuple[tuple[int, int, int], Entry]] = []
    async for stored in store.read_stream(head.stream):
        if stored.revision > through:
            break
        event = Event.FromString(stored.event)
        if not understood(event, len(stored.event)):
            log.warning("not charged: written by a newer version", kind=event.kind, uid=event.uid)
            break
        before = state
        state = None if event.WhichOneof("payload") == "removed" else evolve(state, event)
        if stored.revision <= after_revision:
            at_opening = state
            continue
        entry = ledger.entry_of(before, state, event, revision=stored.revision)
        if entry is not None:
            entries.append((_place(stored), entry))
    return at_opening, entries


def _place(stored: StoredEvent) -> tuple[int, int, int]:
    return stored.revision, stored.position, stored.version
