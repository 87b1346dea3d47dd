"""What the ledger, the watchers and the containers prove, judged against the log. Pure: figures in, findings out.

Each finding has a number that should be zero, the sentence that says what it rests on, and, when it is not zero,
what exactly was found. A finding that rests on nothing (no write was acknowledged, nobody watched) is no success.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from pwm.cli.failover.ledger import Ack, Pages
from pwm.cli.failover.watch import Watcher
from pwm.cli.failover.world import Container

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Of what was found, so much is shown.
MOST_SHOWN = 5
# A container that nobody asked to stop and that ended like this was killed.
KILLED_CODES = (128 + 9, 128 + 15)


@dataclass
class Finding:
    """`count` should be zero; `rests_on` says on what evidence it is."""

    what: str
    count: int
    rests_on: str
    found: list[str] = field(default_factory=list)
    # There was nothing to judge, so zero means nothing.
    empty: bool = False

    @property
    def good(self) -> bool:
        return self.count == 0 and not self.empty


def restarts(uid: str, history: Iterable[Mapping[str, Any]]) -> list[int]:
    """Revisions of the ledger's writes in the log, in order."""
    return [int(event["revision"]) for event in history if event.get("uid") == uid and "workloadRestarted" in event]


def versions(uid: str, history: Iterable[Mapping[str, Any]]) -> list[int]:
    return [int(event["version"]) for event in history if event.get("uid") == uid]


# --- the ledger -----------------------------------------------------------------------------------


def lost(rounds: Sequence[tuple[Pages, Sequence[Mapping[str, Any]]]]) -> Finding:
    """Acknowledged, and not in the log."""
    found = []
    for pages, history in rounds:
        there = set(restarts(pages.uid, history))
        found += [
            f"{pages.name}: nothing at revision {ack.revision}" for ack in pages.acks if ack.revision not in there
        ]
    acknowledged = sum(len(pages.acks) for pages, _ in rounds)
    return Finding(
        "acknowledged writes lost",
        len(found),
        f"{acknowledged:,} acknowledged" + ("" if found else ", each in the log at its revision"),
        found,
        empty=not acknowledged,
    )


def doubled(rounds: Sequence[tuple[Pages, Sequence[Mapping[str, Any]]]]) -> Finding:
    """In the log, and not what was acknowledged once; or versions that are not 1, 2, 3 and so on."""
    found: list[str] = []
    count = writes = 0
    for pages, history in rounds:
        there = restarts(pages.uid, history)
        writes += len(there)
        acknowledged = Counter(ack.revision for ack in pages.acks)
        spare = [revision for revision in there if not acknowledged[revision]]
        # What was under way when the writing ended may be in the log or not.
        if len(spare) > pages.unresolved:
            count += len(spare) - pages.unresolved
            found.append(f"{pages.name}: nobody was told of {_few(spare)}")
        if twice := [revision for revision, times in acknowledged.items() if times > 1]:
            count += len(twice)
            found.append(f"{pages.name}: two writes were told the same revision {_few(twice)}")
        seen = versions(pages.uid, history)
        if seen != list(range(1, len(seen) + 1)):
            count += 1
            found.append(f"{pages.name}: versions are {_few(seen)}, not 1 to {len(seen)}")
    return Finding(
        "writes done twice",
        count,
        f"{writes:,} in the log" + ("" if found else ", each acknowledged once; no hole in their versions"),
        found,
        empty=not writes,
    )


def stale(rounds: Sequence[Pages], *, servers: int) -> Finding:
    """Read, and older than what had been acknowledged before."""
    found = [sentence for pages in rounds for sentence in pages.stale]
    reads = sum(pages.reads for pages in rounds)
    return Finding(
        "stale reads",
        len(found),
        f"{reads:,} reads from {servers} server{'s' if servers > 1 else ''}"
        + ("" if found else ", each with the write before it"),
        found,
        empty=not reads,
    )


def missed(watchers: Sequence[Watcher], rounds: Sequence[tuple[Pages, Sequence[Mapping[str, Any]]]]) -> Finding:
    """In the log, and not seen by a watcher exactly once and in order."""
    found: list[str] = []
    count = events = 0
    for watcher in watchers:
        if watcher.trouble:
            count += 1
            found.append(f"the watcher of {watcher.server} gave up: {watcher.trouble}")
        for pages, history in rounds:
            logged, seen = versions(pages.uid, history), watcher.versions_of(pages.uid)
            events += len(logged)
            # The end of the ledger comes after its history was read.
            seen = [version for version in seen if version <= max(logged, default=0)]
            if seen != logged:
                wrong = sorted((Counter(logged) - Counter(seen)) | (Counter(seen) - Counter(logged))) or seen
                count += len(wrong)
                found.append(f"the watcher of {watcher.server}, of {pages.name}: versions {_few(wrong)}")
    each = events // len(watchers) if watchers else 0
    watching = f"{len(watchers)} watcher{'' if len(watchers) == 1 else 's'}"
    return Finding(
        "watch events missed",
        count,
        f"{watching} and {each:,} events" + ("" if found else ": each saw all, once and in order"),
        found,
        empty=not events,
    )


# --- containers -----------------------------------------------------------------------------------


def placed_twice(after: Mapping[str, Container], events: Iterable[Mapping[str, Any]]) -> Finding:
    """One replica with two live containers, or one attempt that was placed twice."""
    placed = Counter(
        (spec.get("workloadUid"), spec.get("replica", 0), spec.get("attempt"))
        for event in events
        if (spec := (event.get("containerPlaced") or {}).get("spec"))
    )
    live = Counter((c.workload_uid, c.replica) for c in after.values() if c.live)
    names = {(c.workload_uid, c.replica): f"{c.group}/{c.workload}.{c.replica}" for c in after.values()}
    found = [f"{names[key]} has {count} live containers" for key, count in live.items() if count > 1]
    found += [
        f"attempt {key[2]} of {names.get(key[:2], key[:2])} was placed {n} times" for key, n in placed.items() if n > 1
    ]
    return Finding(
        "placements doubled",
        len(found),
        f"{sum(placed.values()):,} placed meanwhile" + ("" if found else f"; {len(live):,} replicas live once each"),
        found,
    )


def touched(before: Mapping[str, Container], after: Mapping[str, Container]) -> Finding:
    """Ran before, and is not the same process any more, for no reason of its own or of its user's."""
    ran = [container for container in before.values() if container.phase == "RUNNING"]
    found = []
    ended = by_driver = 0
    for then in ran:
        why = _touch(then, after.get(then.uid))
        if why is None:
            ended += 1
        elif why:
            found.append(f"{then.group}/{then.name} on {then.node}: {why}")
        elif then.by_driver:
            by_driver += 1
    same = len(ran) - ended - len(found)
    rests_on = f"{same:,} of {len(ran) - ended:,} are the processes they were" if ran else "no container ran"
    if by_driver:
        rests_on += f", {by_driver:,} by their drivers' word"
    if ended:
        rests_on += f"; {ended:,} ended by themselves or were stopped by users"
    return Finding("containers touched", len(found), rests_on, found)


def _touch(then: Container, now: Container | None) -> str | None:
    """What happened to it that should not have; "" when nothing, None when it went for reasons of its own."""
    if now is None:
        return None  # deleted with its workload, which is a user's doing
    if now.phase == "RUNNING":
        if (now.node, now.reported) != (then.node, then.reported):
            return f"reported as process {now.reported[0]} since {now.reported[1]}, before {then.reported[0]}"
        if then.by_driver and now.by_driver and then.by_driver != now.by_driver:
            return f"its driver has process {now.by_driver[0]}, before {then.by_driver[0]}"
        return ""
    if now.stopped_by:
        return f"the control plane stopped it: {now.phase}" if now.stopped_by == "CONTROLLER" else None
    if now.phase in ("EXITED", "FAILED") and now.exit_code is not None and now.exit_code not in KILLED_CODES:
        return None
    return f"it is {now.phase}" + ("" if now.exit_code is None else f", exit code {now.exit_code}")


def verified(answer: Mapping[str, Any]) -> Finding:
    """The log, folded once more, is not what is stored and shown."""
    differences = [str(difference) for difference in answer.get("differences", [])]
    events, streams = int(answer.get("events") or 0), int(answer.get("streams") or 0)
    return Finding(
        "resources unlike their log",
        len(differences),
        f"{events:,} events of {streams:,} resources folded once more",
        differences,
        empty=not events,
    )


# --- times ----------------------------------------------------------------------------------------


def longest_wait_s(acks: Sequence[Ack], *, from_s: float, to_s: float) -> float:
    """The longest time between two acknowledgements one after the other, of which any part is in the interval."""
    waits = [b.at_s - a.at_s for a, b in pairwise(acks) if b.at_s >= from_s and a.at_s <= to_s]
    # From the last acknowledgement on, none came until the end.
    if acks and acks[-1].at_s < to_s:
        waits.append(to_s - acks[-1].at_s)
    return max(waits, default=0.0)


def median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _few(values: Sequence[int]) -> str:
    shown = ", ".join(str(value) for value in values[:MOST_SHOWN])
    return shown + (f" and {len(values) - MOST_SHOWN} more" if len(values) > MOST_SHOWN else "")
