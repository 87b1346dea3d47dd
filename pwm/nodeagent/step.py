"""What to do next with one container: a pure function from a situation to one operation.

The supervisor knows three things about a container: what the control plane wants (`Desired`), what this agent
has told it so far (`phase`, from the journal), and what the engine says (`Runtime`). `next_step` looks at all
three, whatever happened before, so the same rules serve a first start, a restart of the agent half-way
through an operation, and an engine that came back with surprises. It is asked again after every operation and
after every change, until it says NOTHING; then the container's task sleeps.

Two rules keep promises. A container that has ever started is never started again: an end is an end, and a
retry is the control plane's decision and another container. And nothing is removed before the control plane
has acknowledged how it ended.
"""

from dataclasses import dataclass
from enum import Enum, auto

from pwm.api.v1.workload_pb2 import ContainerStatus
from pwm.lifecycle import ENDED, Phase

P = ContainerStatus


class Desired(Enum):
    # Nothing heard since the agent started: watch, but begin nothing.
    UNKNOWN = auto()
    RUN = auto()
    STOP = auto()
    # A full set of assignments does not name it.
    GONE = auto()


class Seen(Enum):
    """What the engine has of it."""

    ABSENT = auto()
    CREATED = auto()
    RUNNING = auto()
    ENDED = auto()


class Operation(Enum):
    NOTHING = auto()
    PULL = auto()
    CREATE = auto()
    START = auto()
    # Say that it runs, as the engine does.
    REPORT_RUNNING = auto()
    # Follow its output and learn of its end.
    WATCH = auto()
    STOP = auto()
    # Wait until the spool holds all it printed.
    DRAIN = auto()
    REPORT_END = auto()
    # It ended or was stopped without ever having run.
    REPORT_NEVER_RAN = auto()
    REPORT_DISAPPEARED = auto()
    REMOVE = auto()
    FORGET = auto()


@dataclass(frozen=True, slots=True)
class Situation:
    desired: Desired
    seen: Seen
    # Last phase this agent reported, or the control plane's own memory where that is later; 0: none.
    phase: Phase.ValueType
    # The engine has had this container before, so ABSENT means that somebody removed it.
    created_before: bool = False
    must_pull: bool = False
    # A pull, or the watch for the end, is under way.
    pulling: bool = False
    watching: bool = False
    drained: bool = False
    end_acknowledged: bool = False


def next_step(now: Situation) -> Operation:
    """The one operation that brings the container closer to what is wanted."""
    if now.phase in ENDED:
        return _after_the_end(now)
    match now.seen:
        case Seen.ENDED:
            return Operation.REPORT_END if now.drained else Operation.DRAIN
        case Seen.RUNNING:
            return _running(now)
        case Seen.CREATED:
            return _created(now)
        case Seen.ABSENT:
            return _absent(now)


def _after_the_end(now: Situation) -> Operation:
    if not now.end_acknowledged:
        return Operation.NOTHING
    if now.seen is not Seen.ABSENT:
        return Operation.REMOVE
    return Operation.FORGET if now.desired is Desired.GONE else Operation.NOTHING


def _running(now: Situation) -> Operation:
    if not now.watching:
        return Operation.WATCH
    if now.phase < P.RUNNING:
        return Operation.REPORT_RUNNING
    if now.desired in (Desired.STOP, Desired.GONE):
        return Operation.STOP
    return Operation.NOTHING


def _created(now: Situation) -> Operation:
    if now.desired is Desired.UNKNOWN:
        return Operation.NOTHING
    if now.desired is Desired.RUN and now.phase < P.RUNNING:
        return Operation.START
    return Operation.REPORT_NEVER_RAN


def _absent(now: Situation) -> Operation:
    if now.created_before or now.phase >= P.RUNNING:
        return Operation.REPORT_DISAPPEARED
    match now.desired:
        case Desired.UNKNOWN:
            return Operation.NOTHING
        case Desired.RUN if now.pulling:
            return Operation.NOTHING
        case Desired.RUN:
            return Operation.PULL if now.must_pull else Operation.CREATE
        case Desired.GONE if not now.phase:
            return Operation.FORGET
        case _:
            return Operation.REPORT_NEVER_RAN
