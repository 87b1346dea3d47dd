"""Credits for people: what is spent and left, reports, and what a spending is made of.

Everybody sees his own. What others have spent in a group is for those who have `get` on `Credit` there, which is
among what `pwm.all` grants; a user's own account is for those who may get that user. Lines that one may not see are
left out, and so not added up either.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from pwm.api.v1 import credits_pb2 as api
from pwm.api.v1.events_pb2 import Event
from pwm.controlplane.auth import Authorizer
from pwm.controlplane.books import read_since
from pwm.controlplane.commands import timestamp
from pwm.controlplane.context import CallContext
from pwm.controlplane.core import ledger
from pwm.controlplane.core.credits import Week
from pwm.controlplane.core.ledger import Lines, Opening, Stretch
from pwm.controlplane.core.limits import GROUP, USER, Account
from pwm.controlplane.errors import invalid, not_found, unavailable
from pwm.controlplane.sight import Sight
from pwm.controlplane.store import errors as store_errors
from pwm.controlplane.store.commits import StreamId
from pwm.controlplane.store.eventstore import EventStore
from pwm.controlplane.treasury import Treasury
from pwm.controlplane.view import View

# As many as the books are kept.
MAX_WEEKS = 60
DIMENSIONS = ("user", "group", "device", "week")


class Closing(NamedTuple):
    until_ms: int
    revision: int


class CreditService:
    def __init__(
        self,
        *,
        treasury: Treasury,
        view: View,
        store: EventStore,
        authorizer: Authorizer,
        stale_since_ms: Callable[[], int],
    ) -> None:
        self._treasury = treasury
        self._books = treasury.books
        self._view = view
        self._store = store
        self._authorizer = authorizer
        self._stale_since_ms = stale_since_ms

    # ---- the rpcs

    async def GetCredits(self, request: api.GetCreditsRequest, context: CallContext) -> api.GetCreditsResponse:
        self._books.refresh()
        principal = context.principal
        name = request.user or principal.name
        self._authorizer.require(principal, verb="get", kind="User", name=name)
        if self._view.by_name("User", name) is None:
            raise not_found(f"there is no user {name}")
        accounts = (
            self._treasury.of_user(principal.user) if not request.user else [self._treasury.shown(Account(USER, name))]
        )
        return api.GetCreditsResponse(accounts=accounts, **self._common())

    async def GetGroupCredits(
        self, request: api.GetGroupCreditsRequest, context: CallContext
    ) -> api.GetGroupCreditsResponse:
        self._books.refresh()
        if self._view.by_name("Group", request.group) is None:
            raise not_found(f"there is no group {request.group}")
        return api.GetGroupCreditsResponse(
            account=self._treasury.shown(Account(GROUP, request.group)), **self._common()
        )

    async def GetReport(self, request: api.GetReportRequest, context: CallContext) -> api.GetReportResponse:
        by = list(request.by) or ["user", "device"]
        for word in by:
            if word not in DIMENSIONS:
                raise invalid(f"a report is not by {word!r}", next_step=f"choose of {', '.join(DIMENSIONS)}")
        if not 0 <= request.weeks <= MAX_WEEKS:
            raise invalid(f"a report is about 1 to {MAX_WEEKS} weeks")
        self._books.refresh()
        sight = Sight(self._authorizer, context.principal)
        rows: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0, 0])
        for week, lines in self._weeks(max(1, request.weeks)):
            for key, device_us in _seen(lines, sight, context.principal.name).items():
                if request.user not in ("", key.owner) or request.group not in ("", key.group):
                    continue
                about = {"user": key.owner, "group": key.group, "device": key.product, "week": week.name}
                row = rows[tuple(about[word] if word in by else "" for word in DIMENSIONS)]
                row[0] += device_us
                row[1] += device_us * key.hourly_micro
        since_ms = self._stale_since_ms()
        return api.GetReportResponse(
            rows=[_row(key, *sums) for key, sums in sorted(rows.items())],
            total=_row(("", "", "", ""), sum(us for us, _ in rows.values()), sum(units for _, units in rows.values())),
            revision=self._view.revision,
            stale_since=timestamp(since_ms) if since_ms else None,
        )

    async def ExplainReport(self, request: api.ExplainReportRequest, context: CallContext) -> api.ExplainReportResponse:
        user = request.user or context.principal.name
        week = self._week(request.week)
        sight = Sight(self._authorizer, context.principal)
        try:
            settled, since, remarks = await self._computed(user, week)
        except store_errors.KVError as error:
            raise unavailable(f"the events cannot be read: {error}", next_step="try again in a moment") from error
        own = user == context.principal.name
        seen = [s for s in ledger.joined([*settled, *since]) if own or sight.may("Credit", group=s.holding.group)]
        lines = {key: us for key, us in self._books.settled_lines(week).items() if key.owner == user}
        ledger_units = ledger.cost_units(_seen(lines, sight, context.principal.name))
        computed_units = ledger.cost_units(_seen(ledger.add_up(settled), sight, context.principal.name))
        since_units = ledger.cost_units(_seen(ledger.add_up(since), sight, context.principal.name))
        if computed_units != ledger_units and not remarks:
            remarks.append("the ledger has more or less than what these events say: some are no longer kept")
        since_ms = self._stale_since_ms()
        return api.ExplainReportResponse(
            uses=[_use(stretch) for stretch in seen],
            spent_micro=(computed_units + since_units) // ledger.UNITS_PER_MICRO,
            ledger_micro=(ledger_units + since_units) // ledger.UNITS_PER_MICRO,
            revision=self._view.revision,
            stale_since=timestamp(since_ms) if since_ms else None,
            remarks=remarks,
        )

    # ---- accounts

    def _common(self) -> dict[str, Any]:
        """What does not depend on whose credits they are."""
        week = self._books.policy.week_of(self._books.now_ms())
        since_ms = self._stale_since_ms()
        return {
            "prices": [
                api.Price(product_name=price.metadata.name, hourly_micro=ledger.price_of(price) or 0)
                for price in sorted(self._view.all("ResourceCredit"), key=lambda price: price.metadata.name)
            ],
            "starts_at": timestamp(week.start_ms),
            "resets_at": timestamp(week.end_ms),
            "revision": self._view.revision,
            "stale_since": timestamp(since_ms) if since_ms else None,
        }

    # ---- weeks

    def _weeks(self, count: int) -> Iterable[tuple[Week, Lines]]:
        """The latest first."""
        week, lines = self._books.lines()
        yield week, lines
        for _ in range(count - 1):
            week = self._books.policy.week_of(week.start_ms - 1)
            yield week, self._books.settled_lines(week)

    def _week(self, day: str) -> Week:
        """The week with that day in it. Raises ApiError INVALID_ARGUMENT."""
        if not day:
            return self._books.policy.week_of(self._books.now_ms())
        try:
            at = datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC)
            if not 1970 < at.year < 9999:
                raise ValueError("no books reach so far")
        except ValueError as error:
            raise invalid(f"{day[:40]!r} is no day", next_step="write it as 2026-11-23") from error
        return self._books.policy.week_of(int(at.timestamp()) * 1000)

    # ---- computing anew

    async def _computed(self, user: str, week: Week) -> tuple[list[Stretch], list[Stretch], list[str]]:
        """What a user had in a week by its events: what is settled, what is not yet, and remarks. Raises KVError."""
        before = await self._closings(self._books.policy.week_of(week.start_ms - 1))
        closings = [*before[-1:], *await self._closings(week)]
        if not closings:
            return [], [], []
        remarks = []
        if not before and closings[0].until_ms > week.start_ms:
            first = datetime.fromtimestamp(closings[0].until_ms // 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
            remarks.append(f"computed from {first} UTC on: nothing was counted before, or it is no longer kept")
        begun = closings[0]
        opening, entries, _ = await read_since(self._store, begun.until_ms, begun.revision, owner=user)
        settled: list[Stretch] = []
        for closing in closings[1:]:
            due = [entry for entry in entries if entry.revision <= closing.revision]
            entries = entries[len(due) :]
            opening, stretches = ledger.settle(opening, due, until_ms=closing.until_ms, revision=closing.revision)
            settled += stretches
        now_ms = self._books.now_ms()
        if not opening.at_ms < now_ms < week.end_ms:
            return settled, [], remarks
        return settled, self._since(opening, entries, now_ms), remarks

    def _since(self, opening: Opening, entries: Sequence[ledger.Entry], now_ms: int) -> list[Stretch]:
        return ledger.settle(opening, entries, until_ms=now_ms, revision=self._view.revision)[1]

    async def _closings(self, week: Week) -> list[Closing]:
        """Of a week, as far as they are kept."""
        closings = []
        async for stored in self._store.read_stream(StreamId("Ledger", week.name)):
            payload = Event.FromString(stored.event).period_settled
            closings.append(Closing(payload.until.ToMilliseconds(), payload.revision))
        return closings


def _seen(lines: Lines, sight: Sight, name: str) -> Lines:
    return {key: us for key, us in lines.items() if key.owner == name or sight.may("Credit", group=key.group)}


def _row(key: Sequence[str], device_us: int, units: int) -> api.ReportRow:
    user, group, product, week = key
    return api.ReportRow(
        user=user, group=group, product_name=product, week=week, device_us=device_us,
        spent_micro=units // ledger.UNITS_PER_MICRO,
    )  # fmt: skip


def _use(stretch: Stretch) -> api.ChargedUse:
    holding = stretch.holding
    return api.ChargedUse(
        container=holding.name,
        group=holding.group,
        product_name=stretch.product,
        millis=stretch.millis,
        since=timestamp(stretch.from_ms),
        until=timestamp(stretch.until_ms),
        hourly_micro=stretch.hourly_micro,
        device_us=stretch.device_us,
        spent_micro=stretch.device_us * stretch.hourly_micro // ledger.UNITS_PER_MICRO,
        begun_by=stretch.begun_by,
        ended_by=stretch.ended_by,
    )
