"""Credits: weeks, what is spent and left, and what follows from it, as decisions on values.

An *account* is a user or a group. What it may spend in a week is `spec.limits.credits.weekly`; without one it may spend
anything. What it has spent is the cost of its lines in the books (`core.ledger`): of all that the user's containers
had, or all that was had in the group. A week begins on a configured weekday at 00:00 UTC, and with it everybody has
all of it again.

    spent      what follows
    80 %       a notice, once a week
    all of it  a notice; nothing new starts (DENIED, OUT_OF_CREDITS); after a grace, what runs is stopped

A notice is an event of the user or the group, and is known to have been given by their state. It holds for the week and
the limit it was given for: who is given a higher limit and spends that, too, gets another notice and another grace.
Whether something is stopped is decided by what is spent at that moment, not by what was said before.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.credits_pb2 import CreditNotice
from pwm.controlplane.core.ledger import UNITS_PER_MICRO, micro
from pwm.controlplane.core.limits import Account
from pwm.quantity import format_credits

DAY_MS = 86_400_000
WEEK_MS = 7 * DAY_MS
# The epoch began on a Thursday.
_EPOCH_WEEKDAY = 3
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
DEFAULT_STOP_GRACE_MS = 10 * 60_000
# A notice comes when so much is spent.
LOW_PERCENT = 80


class CreditSettingsError(ValueError):
    """A setting that cannot be; the message is a sentence for the admin."""


@dataclass(frozen=True, slots=True)
class CreditPolicy:
    """The cluster's settings: when weeks begin, and how long what runs may go on without credits."""

    reset_day: str = WEEKDAYS[0]
    stop_grace_ms: int = DEFAULT_STOP_GRACE_MS

    def check(self) -> None:
        """Raises CreditSettingsError."""
        if self.reset_day not in WEEKDAYS:
            raise CreditSettingsError(f"{self.reset_day!r} is no day of the week: write one of {', '.join(WEEKDAYS)}")

    def week_of(self, at_ms: int) -> "Week":
        """The week that a moment is in."""
        day = at_ms // DAY_MS
        start = day - (day + _EPOCH_WEEKDAY - WEEKDAYS.index(self.reset_day)) % 7
        return Week(start * DAY_MS)


DEFAULT_POLICY = CreditPolicy()


@dataclass(frozen=True, slots=True, order=True)
class Week:
    start_ms: int

    @property
    def end_ms(self) -> int:
        return self.start_ms + WEEK_MS

    @property
    def name(self) -> str:
        """Its first day: 2026-11-16."""
        return _date(self.start_ms).strftime("%Y-%m-%d")


def _date(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms // 1000, UTC)


@dataclass(frozen=True, slots=True)
class Balance:
    """What an account has spent this week. `weekly_micro` None: it may spend anything."""

    account: Account
    spent_units: int
    weekly_micro: int | None
    week: Week

    @property
    def spent_micro(self) -> int:
        return self.spent_units // UNITS_PER_MICRO

    @property
    def level(self) -> CreditNotice.Level.ValueType:
        if self.weekly_micro is None:
            return CreditNotice.LEVEL_UNSPECIFIED
        limit_units = self.weekly_micro * UNITS_PER_MICRO
        if self.spent_units >= limit_units:
            return CreditNotice.OUT
        return (
            CreditNotice.LOW if self.spent_units * 100 >= limit_units * LOW_PERCENT else CreditNotice.LEVEL_UNSPECIFIED
        )

    def __str__(self) -> str:
        """`user ann has spent 8 of 10 credits this week; the next begins on Monday 2026-11-23, 00:00 UTC`."""
        spent, weekly = format_credits(self.spent_micro), format_credits(self.weekly_micro or 0)
        again = _date(self.week.end_ms).strftime("%A %Y-%m-%d")
        return f"{self.account} has spent {spent} of {weekly} credits this week; the next begins on {again}, 00:00 UTC"


def weekly_micro(holder: Any) -> int | None:
    """The limit of a User or a Group; None: there is none."""
    limits = holder.spec.limits
    return micro(limits.credits.weekly) if limits.credits.HasField("weekly") else None


def denial(balances: Iterable[Balance]) -> Reason | None:
    """Why something that these accounts pay for may not start."""
    for balance in balances:
        if balance.level == CreditNotice.OUT:
            return Reason(code=Reason.OUT_OF_CREDITS, message=str(balance))
    return None


def due_notice(holder: Any, balance: Balance, *, now_ms: int, policy: CreditPolicy) -> CreditNotice | None:
    """What a User or a Group is to be told now, if it has not been told yet."""
    level = balance.level
    if level == CreditNotice.LEVEL_UNSPECIFIED:
        return None
    told = told_level(holder, balance)
    if told >= level:
        return None
    notice = CreditNotice(
        level=level, week_starts_at=_timestamp(balance.week.start_ms), spent_micro=balance.spent_micro,
        weekly_micro=balance.weekly_micro or 0,
    )  # fmt: skip
    if level == CreditNotice.OUT:
        notice.stop_at.CopyFrom(_timestamp(now_ms + policy.stop_grace_ms))
    return notice


def told_level(holder: Any, balance: Balance) -> CreditNotice.Level.ValueType:
    """What it has been told of this week and of the limit that it has now."""
    told: CreditNotice = holder.status.credits
    same = told.week_starts_at.ToMilliseconds() == balance.week.start_ms and told.weekly_micro == balance.weekly_micro
    return told.level if same else CreditNotice.LEVEL_UNSPECIFIED


def stop_at_ms(holder: Any, balance: Balance) -> int:
    """When what runs is to be stopped; 0: it is not, or the notice has not been given yet."""
    if balance.level != CreditNotice.OUT or told_level(holder, balance) != CreditNotice.OUT:
        return 0
    return int(holder.status.credits.stop_at.ToMilliseconds())


def notice_said(notice: CreditNotice) -> str:
    """A notice as a sentence without its subject."""
    spent, weekly = format_credits(notice.spent_micro), format_credits(notice.weekly_micro)
    if notice.level != CreditNotice.OUT:
        return f"has spent {spent} of {weekly} credits this week"
    at = _date(notice.stop_at.ToMilliseconds()).strftime("%Y-%m-%d %H:%M:%S")
    return f"has spent all of {weekly} credits ({spent}): nothing new starts, and what runs is stopped at {at} UTC"


def _timestamp(at_ms: int) -> Timestamp:
    return Timestamp(seconds=at_ms // 1000, nanos=at_ms % 1000 * 1_000_000)
