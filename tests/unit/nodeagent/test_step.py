"""next_step: the table of situations, and what must hold in every one of them."""

from itertools import product

import pytest

from pwm.api.v1.workload_pb2 import ContainerStatus as P
from pwm.lifecycle import ENDED, Phase
from pwm.nodeagent.step import Desired, Operation, Seen, Situation, next_step

O = Operation  # noqa: E741
RUN, STOP, GONE, UNKNOWN = Desired.RUN, Desired.STOP, Desired.GONE, Desired.UNKNOWN
NEW = P.PHASE_UNSPECIFIED


@pytest.mark.parametrize(
    ("situation", "operation"),
    [
        # From nothing to running.
        (Situation(RUN, Seen.ABSENT, NEW), O.CREATE),
        (Situation(RUN, Seen.ABSENT, NEW, must_pull=True), O.PULL),
        (Situation(RUN, Seen.ABSENT, P.PULLING, must_pull=True, pulling=True), O.NOTHING),
        (Situation(RUN, Seen.CREATED, P.CREATING, created_before=True), O.START),
        (Situation(RUN, Seen.RUNNING, P.RUNNING, created_before=True), O.WATCH),
        (Situation(RUN, Seen.RUNNING, P.RUNNING, created_before=True, watching=True), O.NOTHING),
        # The agent was killed between the start and its report.
        (Situation(RUN, Seen.RUNNING, P.CREATING, created_before=True, watching=True), O.REPORT_RUNNING),
        # The end.
        (Situation(RUN, Seen.ENDED, P.RUNNING, created_before=True), O.DRAIN),
        (Situation(RUN, Seen.ENDED, P.RUNNING, created_before=True, drained=True), O.REPORT_END),
        (Situation(RUN, Seen.ENDED, P.EXITED, created_before=True, drained=True), O.NOTHING),
        (Situation(RUN, Seen.ENDED, P.EXITED, created_before=True, end_acknowledged=True), O.REMOVE),
        (Situation(GONE, Seen.ENDED, P.EXITED, created_before=True, end_acknowledged=True), O.REMOVE),
        (Situation(RUN, Seen.ABSENT, P.EXITED, created_before=True, end_acknowledged=True), O.NOTHING),
        (Situation(GONE, Seen.ABSENT, P.EXITED, created_before=True, end_acknowledged=True), O.FORGET),
        (Situation(GONE, Seen.ABSENT, P.EXITED, created_before=True), O.NOTHING),
        # Stopping.
        (Situation(STOP, Seen.RUNNING, P.RUNNING, created_before=True, watching=True), O.STOP),
        (Situation(GONE, Seen.RUNNING, P.RUNNING, created_before=True, watching=True), O.STOP),
        (Situation(STOP, Seen.CREATED, P.CREATING, created_before=True), O.REPORT_NEVER_RAN),
        (Situation(STOP, Seen.ABSENT, P.PULLING), O.REPORT_NEVER_RAN),
        (Situation(STOP, Seen.ABSENT, NEW), O.REPORT_NEVER_RAN),
        (Situation(GONE, Seen.ABSENT, NEW), O.FORGET),
        # Behind our back.
        (Situation(RUN, Seen.ABSENT, P.RUNNING, created_before=True), O.REPORT_DISAPPEARED),
        (Situation(RUN, Seen.ABSENT, NEW, created_before=True), O.REPORT_DISAPPEARED),
        # Nobody has said anything yet.
        (Situation(UNKNOWN, Seen.ABSENT, NEW), O.NOTHING),
        (Situation(UNKNOWN, Seen.CREATED, P.CREATING, created_before=True), O.NOTHING),
        (Situation(UNKNOWN, Seen.RUNNING, P.RUNNING, created_before=True), O.WATCH),
    ],
)
def test_the_next_operation_of_a_situation(situation: Situation, operation: Operation) -> None:
    assert next_step(situation) is operation


def every_situation() -> list[Situation]:
    flags = list(product((False, True), repeat=6))
    return [
        Situation(desired, seen, phase, *some)
        for desired in Desired
        for seen in Seen
        for phase in (NEW, P.PULLING, P.CREATING, P.RUNNING, P.EXITING, P.EXITED, P.FAILED)
        for some in flags
    ]


EVERY = every_situation()


def operations(*wanted: Operation) -> list[Situation]:
    found = [s for s in EVERY if next_step(s) in wanted]
    assert found
    return found


def test_a_container_that_has_run_is_never_created_or_started_again() -> None:
    began: tuple[Phase.ValueType, ...] = (P.RUNNING, P.EXITING, P.EXITED, P.FAILED)
    assert not [s for s in operations(O.CREATE, O.START, O.PULL) if s.phase in began]


def test_a_container_is_created_only_when_it_is_wanted_and_was_never_there() -> None:
    assert all(s.desired is RUN and not s.created_before for s in operations(O.CREATE, O.PULL))


def test_nothing_is_stopped_unless_the_control_plane_said_so() -> None:
    assert all(s.desired in (STOP, GONE) for s in operations(O.STOP))


def test_nothing_is_removed_before_its_end_was_acknowledged() -> None:
    assert all(s.end_acknowledged and s.phase in ENDED for s in operations(O.REMOVE))


def test_reports_only_move_forward() -> None:
    for s in operations(O.REPORT_END, O.REPORT_NEVER_RAN, O.REPORT_DISAPPEARED):
        assert s.phase not in ENDED
    assert all(s.phase < P.RUNNING for s in operations(O.REPORT_RUNNING))


def test_an_end_is_reported_only_when_all_output_is_kept() -> None:
    assert all(s.drained for s in operations(O.REPORT_END))


def test_an_agent_that_has_heard_nothing_changes_nothing() -> None:
    changing = (O.CREATE, O.PULL, O.START, O.STOP, O.FORGET, O.REPORT_NEVER_RAN)
    assert not [s for s in operations(*changing) if s.desired is UNKNOWN]


def test_what_is_gone_or_stopped_always_comes_to_an_end() -> None:
    """Each operation's effect, applied over and over, ends in silence after an end was reported."""
    for situation in EVERY:
        if situation.desired in (RUN, UNKNOWN):
            continue
        now = situation
        for _ in range(10):
            operation = next_step(now)
            if operation in (O.NOTHING, O.FORGET):
                break
            now = applied(now, operation)
        assert operation is O.FORGET or now.phase in ENDED, situation


def applied(now: Situation, operation: Operation) -> Situation:
    from dataclasses import replace

    match operation:
        case O.WATCH:
            return replace(now, watching=True)
        case O.REPORT_RUNNING:
            return replace(now, phase=P.RUNNING)
        case O.STOP:
            return replace(now, seen=Seen.ENDED, phase=max(now.phase, P.EXITING))
        case O.DRAIN:
            return replace(now, drained=True)
        case O.REPORT_END | O.REPORT_NEVER_RAN:
            return replace(now, phase=P.EXITED)
        case O.REPORT_DISAPPEARED:
            return replace(now, phase=P.FAILED)
        case O.REMOVE:
            return replace(now, seen=Seen.ABSENT)
        case _:
            raise AssertionError(f"{operation} for {now}")
