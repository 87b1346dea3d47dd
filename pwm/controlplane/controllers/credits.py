"""The chore of keeping the books: closing them, giving notice, and stopping what nobody can pay for.

The leader of the cluster's chores runs it, with its fence in every commit, so a period is closed once: the commit that
closes it moves the week's clock on from where it was when the lines were worked out. A new leader goes on from the
last closing that the log has.

What is closed is decided by the leader's time, and this must not jump as clocks do: it is the wall clock when the
term begins, and from then on a steady time (`steady_time`), so that nothing is charged to anybody because of a jump.
"""

import asyncio
from collections import defaultdict

import structlog

from pwm import lifecycle
from pwm.api.v1 import events_pb2 as ev
from pwm.api.v1.common_pb2 import Actor, Reason
from pwm.api.v1.credits_pb2 import CreditNotice, LedgerLine, PeriodSettled
from pwm.api.v1.identity_pb2 import User
from pwm.api.v1.workload_pb2 import Workload, WorkloadStatus
from pwm.controlplane.books import Books, part_uid
from pwm.controlplane.commands import Commands, timestamp
from pwm.controlplane.core import credits, ledger
from pwm.controlplane.core.credits import Balance, Week
from pwm.controlplane.core.decide import Change, Payload, change
from pwm.controlplane.core.ledger import Lines
from pwm.controlplane.core.limits import GROUP, Account, accounts_of, owner_of
from pwm.controlplane.errors import ApiError
from pwm.controlplane.store import errors as store_errors
from pwm.controlplane.store.commits import Guard
from pwm.controlplane.store.eventstore import EventStore
from pwm.controlplane.treasury import Treasury
from pwm.controlplane.view import View

log = structlog.get_logger(__name__)

ACTOR = Actor(type=Actor.CONTROLLER, name="credits")
BEAT_S = 2.0
# Between two closings: what a clock that is wrong can misplace at most, and little enough that the 1,000 events that
# retention keeps of a stream are all of a week.
PERIOD_MS = 10 * 60_000
# When nothing was used there is nothing to write down.
IDLE_PERIOD_MS = 60 * 60_000
# So many starts and ends close them as well: every replica adds them up again for each new figure, in 20 ms.
MOST_ENTRIES = 5_000
# How long the books of a week are kept.
KEPT_WEEKS = 60


class CreditController:
    """Runs for one term of leading the chores."""

    def __init__(self, *, treasury: Treasury, view: View, commands: Commands, store: EventStore, fence: Guard) -> None:
        self._treasury = treasury
        self._books: Books = treasury.books
        self._view = view
        self._commands = commands
        self._store = store
        self._fence = fence
        self._books.trust_clock()

    async def run(self) -> None:
        """Until cancelled. Raises FenceLost when another replica leads."""
        while True:
            try:
                await self.turn()
            except (ApiError, store_errors.KVError) as error:
                if isinstance(error, store_errors.FenceLost):
                    raise
                log.warning("the books wait", why=str(error))
            await asyncio.sleep(BEAT_S)

    async def turn(self) -> None:
        """Once. Raises ApiError, KVError."""
        if not self._books.exact:
            await self._books.read(self._store)
        now_ms = self._books.now_ms()
        while await self._settle(now_ms):
            pass
        await self._give_notice(now_ms)
        await self._stop(now_ms)
        await self._forget(now_ms)

    # ---- closing the books

    async def _settle(self, now_ms: int) -> bool:
        """Close the books if it is time. True: they may have to be closed again, as a week has ended before."""
        opening = self._books.opening
        if not opening.at_ms:
            return await self._close(self._books.policy.week_of(now_ms), now_ms, {}, self._view.revision)
        week = self._books.policy.week_of(opening.at_ms)
        until_ms = min(now_ms, week.end_ms)
        full = len(self._books.entries) >= MOST_ENTRIES and until_ms > opening.at_ms
        if until_ms < week.end_ms and until_ms - opening.at_ms < PERIOD_MS and not full:
            return False
        revision = self._view.revision
        entries = [entry for entry in self._books.entries if entry.revision <= revision]
        closed, stretches = ledger.settle(opening, entries, until_ms=until_ms, revision=revision)
        if not stretches and until_ms < week.end_ms and until_ms - opening.at_ms < IDLE_PERIOD_MS:
            return False
        return await self._close(week, closed.at_ms, ledger.add_up(stretches), revision)

    async def _close(self, week: Week, until_ms: int, lines: Lines, revision: int) -> bool:
        opening = self._books.opening
        settled = PeriodSettled(
            starts_at=timestamp(week.start_ms), ends_at=timestamp(week.end_ms), until=timestamp(until_ms),
            revision=revision,
        )  # fmt: skip
        parts: dict[int, list[LedgerLine]] = defaultdict(list)
        for line in ledger.to_messages(lines):
            parts[ledger.part_of(line.owner)].append(line)

        def decide() -> list[Change]:
            if self._books.opening is not opening:
                return []
            changes = [self._entry(week.name, settled)]
            for part, of_part in sorted(parts.items()):
                payload = PeriodSettled()
                payload.CopyFrom(settled)
                payload.lines.extend(of_part)
                changes.append(self._entry(part_uid(week, part), payload))
            return changes

        done = await self._commands.run(decide, actor=ACTOR, guards=(self._fence,))
        return bool(done.changes) and until_ms == week.end_ms

    def _entry(self, uid: str, payload: PeriodSettled) -> Change:
        return Change("Ledger", uid, uid, "", self._view.get("Ledger", uid), (payload,))

    async def _forget(self, now_ms: int) -> None:
        """Books of weeks long gone."""
        before = now_ms - KEPT_WEEKS * credits.WEEK_MS
        old = [book for book in self._view.all("Ledger") if book.spec.ends_at.ToMilliseconds() < before]
        if old:
            await self._commands.run_in_parts(
                [change(book, ev.Removed()) for book in old], actor=ACTOR, guards=(self._fence,)
            )

    # ---- what follows

    async def _give_notice(self, now_ms: int) -> None:
        changes: list[Change] = []
        for holder, balance in self._treasury.limited():
            notice = credits.due_notice(holder, balance, now_ms=now_ms, policy=self._books.policy)
            if notice is not None:
                changes.append(change(holder, notice))
                level = "out" if notice.level == CreditNotice.OUT else "low"
                log.info("credits", of=str(balance.account), level=level, spent_micro=balance.spent_micro)
        if changes:
            await self._commands.run_in_parts(changes, actor=ACTOR, guards=(self._fence,))

    async def _stop(self, now_ms: int) -> None:
        """What runs, once the grace is over, of those who are out of credits at this moment."""
        out: dict[Account, tuple[User, Balance]] = {}
        for holder, balance in self._treasury.limited():
            if 0 < credits.stop_at_ms(holder, balance) <= now_ms:
                out[balance.account] = holder, balance
        if not out:
            return
        changes = []
        for workload in self._view.all("Workload"):
            for account in accounts_of(owner_of(workload), workload.metadata.group):
                if account in out and self._runs(workload):
                    holder, balance = out[account]
                    changes.append(change(workload, *_stopped(balance), cause=holder))
                    break
        if changes:
            await self._commands.run_in_parts(changes, actor=ACTOR, guards=(self._fence,))
            log.warning("stopped for want of credits", workloads=len(changes))

    def _runs(self, workload: Workload) -> bool:
        containers = self._view.containers_of(workload.metadata.uid)
        return workload.status.desired == WorkloadStatus.RUN and any(
            container.status.phase not in lifecycle.GIVEN_UP for container in containers
        )


def _stopped(balance: Balance) -> tuple[Payload, ...]:
    whose = "" if balance.account.kind != GROUP else "its group: "
    reason = Reason(code=Reason.OUT_OF_CREDITS, message=f"stopped: {whose}{balance}")
    return (ev.WorkloadDesired(desired=WorkloadStatus.STOP, reason=reason),)
