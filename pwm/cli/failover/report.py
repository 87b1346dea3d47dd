"""What a drill looks like: a line for each round, then a table of times and one of findings, or all of it as JSON."""

from __future__ import annotations

from collections.abc import Sequence

from pwm.cli.failover.evidence import Finding, median
from pwm.cli.failover.ledger import GROUP
from pwm.cli.failover.rounds import Plan, Round
from pwm.cli.failover.world import Standing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

GREEN, RED, BOLD, DIM, PLAIN = "\033[32m", "\033[31m", "\033[1m", "\033[2m", "\033[0m"
COLUMNS = 100
_DONE = {"KILL": "killed", "FREEZE": "frozen", "RESIGN": "resigned"}
_WHAT = {
    "KILL": "kills (SIGKILL) the controller that leads {role}",
    "FREEZE": "freezes (SIGSTOP) the controller that leads {role} for {freeze_s:g} s",
    "RESIGN": "has the controller that leads {role} hand it over",
}


def duration(seconds: float) -> str:
    """`14 ms`, `2.1 s`."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def announcement(plan: Plan, *, rounds: int, name: str, servers: int, running: int) -> str:
    """What will happen, before it is agreed to."""
    times = "once" if rounds == 1 else f"{rounds} times, each time when all is calm again"
    what = _WHAT[plan.failure].format(role=plan.role, freeze_s=plan.freeze_s)
    lines = [
        f"This {what}, {times}.",
        f"Meanwhile workloads without replicas ({name}-1 and so on, in group {GROUP}) are written to and read "
        f"without a pause, and {servers} client{'s' if servers > 1 else ''} "
        f"follow{'' if servers > 1 else 's'} all events.",
        f"{running:,} container{' runs' if running == 1 else 's run'} now, and none is to notice anything."
        if running
        else "No container runs now, so nothing will be proven about containers.",
    ]
    if plan.failure == "KILL":
        lines.insert(1, "Whoever runs the controllers has to start a killed one again: systemd, Kubernetes, `pwm up`.")
    return "\n".join(_wrapped(line) for line in lines)


class RoundTable:
    """A line for each round as it ends, in columns."""

    def __init__(self, plan: Plan, standing: Standing, *, colour: bool) -> None:
        """Columns are as wide as what there is now: replicas that come later have names of the same kind."""
        self._plan = plan
        self._colour = colour
        names = max(len("NEXT LEADER"), *(len(replica) for replica in standing.replicas))
        addresses = max(len(_short(replica.address)) for replica in standing.replicas.values())
        self._widths = (5, names, addresses, names, 9, 15, 10)

    def header(self) -> str:
        done = _DONE[self._plan.failure].upper()
        back = "" if self._plan.failure == "RESIGN" else "BACK AFTER"
        return _painted(
            self._line("ROUND", done, "AT", "NEXT LEADER", "LED AFTER", "A WRITE WAITED", back), BOLD, self._colour
        )

    def row(self, round_: Round) -> str:
        back = ""
        if self._plan.failure != "RESIGN":
            back = "not at all" if round_.back_s is None else duration(round_.back_s)
        waits = duration(round_.takeover_s), duration(round_.wait_s)
        return self._line(str(round_.number), round_.victim, _short(round_.address), round_.leader, *waits, back)

    def _line(self, *cells: str) -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(cells, self._widths, strict=True)).rstrip()


def times(rounds: Sequence[Round]) -> list[tuple[str, float, float, str]]:
    """(what, p50, max, how it was measured) in seconds."""
    rows = [
        ("next leader", [r.takeover_s for r in rounds], "from the failure until its key held the role"),
        (
            "longest wait of a write",
            [r.wait_s for r in rounds],
            f"by a client of the failed server; before: {duration(median([r.usual_s for r in rounds]))}",
        ),
    ]
    if back := [r.back_s for r in rounds if r.back_s is not None]:
        rows.append(("failed replica back", back, "here again, and up to date"))
    return [(what, median(values), max(values), how) for what, values, how in rows]


def text(rounds: Sequence[Round], findings: Sequence[Finding], *, colour: bool) -> str:
    """The two tables and the verdict."""
    lines = ["", _painted(f"  {'':<28}{'p50':>8}{'max':>10}", BOLD, colour)]
    for what, p50, most, how in times(rounds):
        lines.append(f"  {what:<28}{duration(p50):>8}{duration(most):>10}   {_painted(how, DIM, colour)}")
    lines.append("")
    for finding in findings:
        paint = GREEN if finding.good else RED
        count = _painted(f"{'-' if finding.empty else finding.count:>8}", paint, colour)
        first, *more = _wrapped(finding.rests_on, width=COLUMNS - 41).split("\n")
        lines.append(f"  {finding.what:<28}{count}   {_painted(first, DIM, colour)}")
        lines += [" " * 41 + _painted(line, DIM, colour) for line in more]
        lines += [_painted(f"      {shown}", RED, colour) for shown in finding.found[:10]]
        if finding.empty:
            lines.append(_painted("      there was nothing to judge: this proves nothing", RED, colour))
    lines.append("")
    good = all(finding.good for finding in findings)
    verdict = "Nobody noticed." if good else "Something went wrong: see above, and the controllers' logs."
    lines.append(_painted(verdict, GREEN if good else RED, colour))
    return "\n".join(lines)


def as_json(plan: Plan, rounds: Sequence[Round], findings: Sequence[Finding]) -> dict[str, Any]:
    """All of it for scripts; times in seconds."""
    return {
        "role": plan.role,
        "failure": plan.failure,
        "good": all(finding.good for finding in findings),
        "times": {
            what.replace(" ", "_"): {"p50": round(p50, 4), "max": round(most, 4)}
            for what, p50, most, _ in times(rounds)
        },
        "findings": [
            {
                "what": finding.what,
                "count": finding.count,
                "good": finding.good,
                "evidence": finding.rests_on,
                "found": finding.found,
            }
            for finding in findings
        ],
        "rounds": [
            {
                "round": r.number,
                "failed": r.victim,
                "address": r.address,
                "leader": r.leader,
                "takeover": round(r.takeover_s, 4),
                "longestWait": round(r.wait_s, 4),
                "usualWait": round(r.usual_s, 4),
                "back": None if r.back_s is None else round(r.back_s, 4),
                "acknowledged": len(r.pages.acks),
                "unresolved": r.pages.unresolved,
                "reads": r.pages.reads,
                "unansweredReads": r.pages.unanswered,
                "revisions": [ack.revision for ack in r.pages.acks],
            }
            for r in rounds
        ],
    }


def _short(address: str) -> str:
    return address.partition("://")[2] or address


def _wrapped(text: str, *, width: int = COLUMNS) -> str:
    from textwrap import fill

    return fill(text, width, break_long_words=False, break_on_hyphens=False)


def _painted(text: str, paint: str, colour: bool) -> str:
    return f"{paint}{text}{PLAIN}" if colour else text
