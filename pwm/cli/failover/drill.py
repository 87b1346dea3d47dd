"""The whole drill: look whether it makes sense, say what will happen, play the rounds, judge, clean up.

Whatever happens in between, Ctrl-C included, the ledgers are deleted at the end. The last of them ends the
watchers: its removal is the last event that each of them should see.
"""

from __future__ import annotations

import time
from os import urandom

from pwm.cli import exit_codes
from pwm.cli.client import quote
from pwm.cli.errors import NOT_FOUND, CliError, ServerError, UsageError
from pwm.cli.failover import evidence, report
from pwm.cli.failover.ledger import GROUP
from pwm.cli.failover.rounds import LeaderMoved, Plan, Round, play, until_calm
from pwm.cli.failover.watch import Watcher, start_watchers
from pwm.cli.failover.world import Container, Standing, World
from pwm.cli.invocation import wants_colour
from pwm.cli.progress import StatusLine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pwm.cli.invocation import Invocation

NAME = "pwm-drill"
# A watcher that lost its server looks for another, and then has all to read that it missed.
WATCHERS_LIMIT_S = 30.0
POLL_S = 0.05
VERIFY_S = 600.0


def drill(invocation: Invocation, plan: Plan, *, rounds: int, yes: bool, output: str | None) -> int:
    """Returns the exit code: DONE only if every finding is zero and rests on something."""
    world = World(invocation.profile)
    try:
        with StatusLine(invocation.err) as line:
            return _Drill(invocation, plan, world, line).run(rounds, yes=yes, output=output)
    finally:
        world.close()


class _Drill:
    def __init__(self, invocation: Invocation, plan: Plan, world: World, line: StatusLine) -> None:
        self._invocation = invocation
        self._plan = plan
        self._world = world
        self._line = line
        self._name = f"{NAME}-{urandom(2).hex()}"
        self._ledgers: list[str] = []
        self._rounds: list[Round] = []
        # The ledger whose removal ends the watchers; known when it has been removed.
        self._last = ""

    def run(self, rounds: int, *, yes: bool, output: str | None) -> int:
        profile = self._invocation.profile
        start = self._ground()
        before = self._world.containers()
        running = sum(container.phase == "RUNNING" for container in before.values())
        servers = len(profile.servers)
        self._line.note(
            report.announcement(self._plan, rounds=rounds, name=self._name, servers=servers, running=running)
        )
        self._ask(yes)
        watchers = start_watchers(profile, after_revision=start.revision, last=self._is_last)
        try:
            self._play(rounds, start)
        finally:
            self._clean_up()
        if not self._rounds:
            return exit_codes.FAILED
        findings = self._judge(before, watchers)
        self._line.clear()
        if output == "json":
            from pwm.cli.render import to_json

            self._invocation.say(to_json(report.as_json(self._plan, self._rounds, findings)))
        else:
            self._invocation.say(report.text(self._rounds, findings, colour=self._invocation.colour))
        return exit_codes.DONE if all(finding.good for finding in findings) else exit_codes.FAILED

    # --- before -----------------------------------------------------------------------------------

    def _ground(self) -> Standing:
        """The cluster, if it is fit for a drill. Raises CliError."""
        standing = self._world.standing()
        if len(standing.replicas) < 2:
            raise CliError(
                "there is one controller only, and nobody to take over",
                next_step="Start others (`pwm controller`); `pwm up --controllers 3 --etcd 3` has three to try it on.",
            )
        if self._plan.role not in standing.leaders:
            roles = ", ".join(sorted(standing.leaders)) or "nobody leads anything"
            raise UsageError(f"there is no leader of {self._plan.role}", next_step=f"Roles with a leader: {roles}")
        if len(self._invocation.profile.servers) < 2:
            self._invocation.warn(
                "this profile knows one server only: while that one is away, its clients wait. Others are: "
                + ", ".join(replica.address for replica in standing.replicas.values())
            )
        return until_calm(self._world, self._plan.role, replicas=len(standing.replicas), say=self._line.say)

    def _ask(self, yes: bool) -> None:
        self._line.clear()
        if yes:
            return
        import sys

        if not (sys.stdin.isatty() and self._invocation.err.isatty()):
            raise UsageError("nobody is here to agree to this", next_step="Say --yes to go on without a question.")
        self._invocation.err.write("Go on? [y/N] ")
        self._invocation.err.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise CliError("nothing was done")

    # --- rounds -----------------------------------------------------------------------------------

    def _play(self, rounds: int, start: Standing) -> None:
        replicas = len(start.replicas)
        table = report.RoundTable(self._plan, start, colour=wants_colour(self._invocation.err))
        self._line.note("\n" + table.header())
        while len(self._rounds) < rounds:
            number = len(self._rounds) + 1
            calm = until_calm(self._world, self._plan.role, replicas=replicas, say=self._line.say)
            name = f"{self._name}-{len(self._ledgers) + 1}"
            self._ledgers.append(name)
            try:
                round_ = play(
                    number, self._plan, world=self._world, profile=self._invocation.profile, name=name, before=calm,
                    say=self._line.say,
                )  # fmt: skip
            except LeaderMoved as moved:
                self._line.say(f"{moved.message}; once more")
                continue
            self._rounds.append(round_)
            self._line.note(table.row(round_))
            if round_.back_s is None and self._plan.failure != "RESIGN":
                replicas -= 1
                if replicas < 2 and number < rounds:
                    self._line.note("nobody starts controllers again here, and one is left: no further round")
                    return

    def _clean_up(self) -> None:
        """Deletes the ledgers, the last one last."""
        self._line.say("removing what the drill made")
        for name in self._ledgers:
            if name == self._ledgers[-1]:
                self._last = name
            try:
                self._world.ask("DELETE", f"/v1/resources/Workload/{quote(name)}?group={GROUP}")
            except CliError as error:
                if not isinstance(error, ServerError) or error.status != NOT_FOUND:
                    self._line.note(f"{name} could not be removed ({error.message}): pwm delete wk {name} -g {GROUP}")

    # --- after ------------------------------------------------------------------------------------

    def _judge(self, before: dict[str, Container], watchers: list[Watcher]) -> list[evidence.Finding]:
        self._line.say("waiting until the watchers have seen everything")
        deadline = time.monotonic() + WATCHERS_LIMIT_S
        while not all(w.trouble or (w.events and self._is_last(w.events[-1])) for w in watchers):
            if time.monotonic() > deadline:
                break
            time.sleep(POLL_S)
        self._line.say("folding the log once more")
        after = self._world.containers()
        verified = self._world.ask("POST", "/v1/admin/verify", body={}, answer_s=VERIFY_S)
        ledgers = [(round_.pages, round_.history) for round_ in self._rounds]
        seen = max((watcher.events for watcher in watchers), key=len)
        return [
            evidence.lost(ledgers),
            evidence.doubled(ledgers),
            evidence.stale([pages for pages, _ in ledgers], servers=len(watchers)),
            evidence.missed(watchers, ledgers),
            evidence.placed_twice(after, seen),
            evidence.touched(before, after),
            evidence.verified(verified),
        ]

    def _is_last(self, event: dict[str, Any]) -> bool:
        return bool(self._last) and "removed" in event and event.get("name") == self._last
