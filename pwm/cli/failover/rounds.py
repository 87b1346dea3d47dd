"""One round of a drill: wait until all is calm, make the leader fail, see who leads next, wait until all is calm.

Times are taken where they are exact. How long a write waited: by our own clock, between two acknowledgements. When
the next leader had won: by the key with which it holds the role, less the moment of the failure as the server
told it, both corrected by what the replicas' clocks differ.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from pwm.cli.errors import FAILED_PRECONDITION, CliError, ServerError
from pwm.cli.failover.evidence import longest_wait_s
from pwm.cli.failover.ledger import GROUP, Ledger, Pages
from pwm.cli.failover.world import Standing, World, seconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pwm.cli.profiles import Profile

CALM_LIMIT_S = 60.0
# Twice the longest lease that a frozen leader may have left, and the time to ask about it.
TAKEOVER_LIMIT_S = 20.0
# For whoever runs the replicas to start one again.
BACK_LIMIT_S = 30.0
POLL_S = 0.05
# Writing before the failure, to see what is usual; and after all is calm again, to see that it stays so.
BEFORE_S, AFTER_S = 1.0, 0.5
# Writing while the failed one is away: it comes back in seconds or not at all.
MOST_AWAY_S = 8.0


class LeaderMoved(CliError):
    """The leader changed before it was made to fail: the round has to be played anew."""


@dataclass(frozen=True)
class Plan:
    """What is to fail, and how."""

    role: str
    # KILL, FREEZE or RESIGN.
    failure: str
    freeze_s: float


@dataclass
class Round:
    number: int
    victim: str
    address: str
    pages: Pages
    history: list[dict[str, Any]] = field(default_factory=list)
    leader: str = ""
    takeover_s: float = 0.0
    usual_s: float = 0.0
    wait_s: float = 0.0
    # None: it was not gone, or nobody started it again.
    back_s: float | None = None


def until_calm(world: World, role: str, *, replicas: int, say: Callable[[str], None]) -> Standing:
    """Raises CliError when it takes too long."""
    deadline = time.monotonic() + CALM_LIMIT_S
    while unrest := (standing := world.standing()).unrest(role, replicas=replicas):
        if time.monotonic() > deadline:
            raise CliError(f"not calm after {CALM_LIMIT_S:g} s: {unrest}", next_step="`pwm admin status` says more.")
        say(f"waiting until all is calm: {unrest}")
        time.sleep(POLL_S)
    return standing


def play(
    number: int, plan: Plan, *, world: World, profile: Profile, name: str, before: Standing, say: Callable[[str], None]
) -> Round:
    """One round, from calm on; `name` is that of its ledger. The ledger is left, for its history to be read."""
    victim = before.replicas[before.leaders[plan.role].replica]
    # Writes go to the one that fails, questions to another.
    world.away_from(victim.address)
    with Ledger(profile, name=name, first=victim.address) as ledger:
        round_ = Round(number, victim.id, victim.address, ledger.pages)
        say(f"round {number}: writing to {victim.id}, which leads {plan.role}")
        began_s = time.monotonic()
        ledger.wait(BEFORE_S)
        failed_s, failed_at_s = _fail(world, plan, victim.id)
        round_.usual_s = longest_wait_s(ledger.pages.acks, from_s=began_s, to_s=failed_s)
        say(f"round {number}: {victim.id} fails")
        _see_takeover(world, plan, round_, failed_at_s=failed_at_s, ledger=ledger)
        if plan.failure != "RESIGN":
            _see_return(world, plan, round_, failed_s=failed_s, replicas=len(before.replicas), ledger=ledger, say=say)
        ledger.wait(AFTER_S)
        ended_s = ledger.written_until_s or time.monotonic()
    round_.wait_s = longest_wait_s(ledger.pages.acks, from_s=failed_s, to_s=ended_s)
    round_.history = world.history(GROUP, name, upto=ledger.pages.acks[-1].revision if ledger.pages.acks else 0)
    return round_


def _fail(world: World, plan: Plan, victim: str) -> tuple[float, float]:
    """When it fails: by our clock, which only goes forward, and by that of the server that was asked."""
    body: dict[str, Any] = {"role": plan.role, "failure": plan.failure, "replica": victim}
    if plan.failure == "FREEZE":
        body["freeze"] = f"{plan.freeze_s:g}s"
    deadline = time.monotonic() + CALM_LIMIT_S
    while True:
        asked_s = time.monotonic()
        try:
            answer = world.ask("POST", "/v1/admin/drill", body=body)
        except ServerError as error:
            # A busy cluster may have stirred in this moment; whatever else is wrong stays wrong.
            if error.status != FAILED_PRECONDITION or time.monotonic() > deadline:
                raise
            if world.standing().leaders[plan.role].replica != victim:
                raise LeaderMoved(f"{victim} has just handed {plan.role} over by itself") from error
            time.sleep(POLL_S)
            continue
        return asked_s, seconds(answer["time"])


def _see_takeover(world: World, plan: Plan, round_: Round, *, failed_at_s: float, ledger: Ledger) -> None:
    deadline = time.monotonic() + TAKEOVER_LIMIT_S + plan.freeze_s
    while True:
        now = world.standing()
        leader = now.leaders.get(plan.role)
        if leader is not None and leader.replica != round_.victim and leader.at_work:
            ahead_s = now.replicas[leader.replica].clock_ahead_s
            round_.leader, round_.takeover_s = leader.replica, max(0.0, leader.since_s - ahead_s - failed_at_s)
            return
        if time.monotonic() > deadline:
            raise CliError(
                f"nobody else leads {plan.role} {TAKEOVER_LIMIT_S:g} s after {round_.victim} failed",
                next_step="`pwm admin status` says how things are.",
            )
        ledger.wait(POLL_S)


def _see_return(
    world: World,
    plan: Plan,
    round_: Round,
    *,
    failed_s: float,
    replicas: int,
    ledger: Ledger,
    say: Callable[[str], None],
) -> None:
    """Until as many replicas are here, and well, as before."""
    limit_s = BACK_LIMIT_S + plan.freeze_s
    while time.monotonic() - failed_s < limit_s:
        now = world.standing()
        if not now.unrest(plan.role, replicas=replicas):
            round_.back_s = time.monotonic() - failed_s
            return
        say(f"round {round_.number}: {round_.leader} leads; waiting for {round_.victim} to be back")
        if time.monotonic() - failed_s > MOST_AWAY_S + plan.freeze_s:
            ledger.pause()
        ledger.wait(POLL_S)
