"""What replicas need next, as tables of situations."""

import pytest

from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.workload_pb2 import Config, ContainerStatus, WorkloadStatus
from pwm.controlplane.core.reconcile import (
    DEFAULT_MAX_ATTEMPTS,
    KEPT_ATTEMPTS,
    RETRY_MAX_DELAY_MS,
    RETRY_RESET_AFTER_MS,
    reconcile,
    retry_delay_ms,
)
from tests.unit.core.builders import T0, container, workload

RUNNING, EXITED, FAILED = ContainerStatus.RUNNING, ContainerStatus.EXITED, ContainerStatus.FAILED
NEVER, ON_FAILURE, ALWAYS = Config.Never, Config.OnFailure, Config.Always


def test_a_new_workload_needs_one_container_per_replica() -> None:
    gap = reconcile(workload(count=3), [], now_ms=T0)
    assert [(v.replica, v.attempt, v.not_before_ms) for v in gap.vacancies] == [(0, 1, 0), (1, 1, 0), (2, 1, 0)]
    assert not gap.stops


def test_nothing_is_needed_while_everything_runs() -> None:
    gap = reconcile(workload(count=2), [container(0), container(1)], now_ms=T0)
    assert (gap.vacancies, gap.stops, gap.removals, gap.wake_at_ms) == ([], [], [], 0)


@pytest.mark.parametrize(
    ("policy", "phase", "code", "again"),
    [
        (NEVER, EXITED, 0, False),
        (NEVER, EXITED, 1, False),
        (NEVER, FAILED, None, False),
        (ON_FAILURE, EXITED, 0, False),
        (ON_FAILURE, EXITED, 1, True),
        (ON_FAILURE, FAILED, None, True),
        (ALWAYS, EXITED, 0, True),
        (ALWAYS, EXITED, 1, True),
    ],
)
def test_the_restart_policy_says_whether_a_replica_starts_again(
    policy: int, phase: int, code: int | None, again: bool
) -> None:
    ended = container(phase=phase, exit_code=code)
    gap = reconcile(workload(restart_policy=policy), [ended], now_ms=T0)
    assert [(v.replica, v.attempt) for v in gap.vacancies] == ([(0, 2)] if again else [])


def test_failures_in_a_row_wait_longer_each_time_and_end_at_the_limit() -> None:
    made = workload(restart_policy=ON_FAILURE)
    delays = []
    for failures_before in range(DEFAULT_MAX_ATTEMPTS - 1):
        ended = container(attempt=failures_before + 1, phase=EXITED, exit_code=1, failures_before=failures_before)
        (vacancy,) = reconcile(made, [ended], now_ms=T0).vacancies
        assert vacancy.failures == failures_before + 1
        delays.append(vacancy.not_before_ms - T0)
    assert delays == [1000, 2000, 4000, 8000, 16000]
    last = container(attempt=6, phase=EXITED, exit_code=1, failures_before=DEFAULT_MAX_ATTEMPTS - 1)
    assert reconcile(made, [last], now_ms=T0).vacancies == []


def test_the_limit_holds_although_earlier_attempts_were_forgotten() -> None:
    last = container(attempt=40, phase=EXITED, exit_code=1, failures_before=5)
    assert reconcile(workload(restart_policy=ALWAYS), [last], now_ms=T0).vacancies == []


def test_a_container_that_ran_long_starts_the_count_anew() -> None:
    ran = container(
        attempt=6, phase=EXITED, exit_code=1, failures_before=5, started_ms=T0, ended_ms=T0 + RETRY_RESET_AFTER_MS
    )
    (vacancy,) = reconcile(workload(restart_policy=ALWAYS), [ran], now_ms=T0).vacancies
    assert vacancy.failures == 1


def test_delays_stop_growing_at_five_minutes() -> None:
    assert retry_delay_ms(1) == 1000
    assert retry_delay_ms(60) == RETRY_MAX_DELAY_MS


def test_a_replica_that_backs_off_is_looked_at_when_its_time_comes() -> None:
    ended = container(phase=EXITED, exit_code=1)
    gap = reconcile(workload(restart_policy=ON_FAILURE), [ended], now_ms=T0)
    assert gap.wake_at_ms == T0 + 1000


def test_stopping_stops_every_container_once() -> None:
    stopped = workload(count=2, desired=WorkloadStatus.STOP)
    first = reconcile(stopped, [container(0), container(1)], now_ms=T0)
    assert [(c.metadata.name, r.code) for c, r in first.stops] == [
        ("train.0.1", Reason.STOPPED_BY_USER),
        ("train.1.1", Reason.STOPPED_BY_USER),
    ]
    asked = [container(0, stop=Reason.STOPPED_BY_USER), container(1, stop=Reason.STOPPED_BY_USER)]
    assert reconcile(stopped, asked, now_ms=T0).stops == []
    assert first.vacancies == []


def test_containers_are_told_why_pwm_itself_stops_their_workload() -> None:
    idle = Reason(code=Reason.IDLE, message="its GPU was not in use for 15m")
    stopped = workload(desired=WorkloadStatus.STOP)
    stopped.status.desired_reason.CopyFrom(idle)
    assert [reason for _, reason in reconcile(stopped, [container(0)], now_ms=T0).stops] == [idle]


def test_a_stopped_workload_is_not_started_again_by_its_policy() -> None:
    ended = container(phase=EXITED, exit_code=143, stop=Reason.STOPPED_BY_USER)
    assert reconcile(workload(desired=WorkloadStatus.STOP, restart_policy=ALWAYS), [ended], now_ms=T0).vacancies == []


def test_deleting_waits_for_the_end_and_then_forgets_everything() -> None:
    deleting = workload(desired=WorkloadStatus.DELETE)
    gap = reconcile(deleting, [container(stop=Reason.DELETED_BY_USER)], now_ms=T0)
    assert not gap.workload_gone
    assert gap.removals == []
    gap = reconcile(deleting, [container(phase=EXITED, exit_code=0)], now_ms=T0)
    assert gap.workload_gone
    assert len(gap.removals) == 1


def test_containers_without_a_workload_are_stopped_then_forgotten() -> None:
    assert len(reconcile(None, [container()], now_ms=T0).stops) == 1
    assert len(reconcile(None, [container(phase=EXITED, exit_code=0)], now_ms=T0).removals) == 1


def test_scaling_down_stops_the_highest_replicas() -> None:
    gap = reconcile(workload(count=1), [container(0), container(1), container(2)], now_ms=T0)
    assert [c.metadata.name for c, _ in gap.stops] == ["train.1.1", "train.2.1"]


def test_a_replica_that_was_scaled_away_starts_again_when_scaled_up() -> None:
    gone = container(1, phase=EXITED, exit_code=143, stop=Reason.SCALED_DOWN)
    gap = reconcile(workload(count=2), [container(0), gone], now_ms=T0)
    assert [(v.replica, v.attempt) for v in gap.vacancies] == [(1, 2)]


def test_a_new_version_replaces_one_replica_at_a_time() -> None:
    changed = workload(count=3, first_attempt=2)
    old = [container(0), container(1), container(2)]
    assert [c.metadata.name for c, _ in reconcile(changed, old, now_ms=T0).stops] == ["train.0.1"]
    stopping = [container(0, stop=Reason.REPLACED, phase=ContainerStatus.EXITING), container(1), container(2)]
    assert reconcile(changed, stopping, now_ms=T0).stops == []
    ended = [container(0, stop=Reason.REPLACED, phase=EXITED, exit_code=0), container(1), container(2)]
    gap = reconcile(changed, ended, now_ms=T0)
    assert [(v.replica, v.attempt) for v in gap.vacancies] == [(0, 2)]
    assert gap.stops == []
    starting = [container(0, 2, ContainerStatus.PULLING), container(1), container(2)]
    assert reconcile(changed, starting, now_ms=T0).stops == []
    running = [container(0, 2), container(1), container(2)]
    assert [c.metadata.name for c, _ in reconcile(changed, running, now_ms=T0).stops] == ["train.1.1"]


def test_a_broken_new_version_takes_down_one_replica_only() -> None:
    changed = workload(count=2, first_attempt=2, restart_policy=ON_FAILURE)
    crashing = [
        container(0, 1, EXITED, exit_code=0, stop=Reason.REPLACED),
        container(0, 2, FAILED),
        container(1),
    ]
    assert reconcile(changed, crashing, now_ms=T0).stops == []


def test_a_time_limit_stops_the_container_and_it_stays_ended() -> None:
    limited = container(time_limit_ms=5000)
    assert reconcile(workload(), [limited], now_ms=T0).wake_at_ms == T0 + 5000
    ((_, reason),) = reconcile(workload(), [limited], now_ms=T0 + 5000).stops
    assert reason.code == Reason.TIME_LIMIT
    ended = container(phase=EXITED, exit_code=143, stop=Reason.TIME_LIMIT)
    assert reconcile(workload(restart_policy=ALWAYS), [ended], now_ms=T0 + 6000).vacancies == []


def test_only_the_latest_attempts_are_kept() -> None:
    attempts = [container(attempt=n, phase=EXITED, exit_code=1) for n in range(1, 7)]
    gap = reconcile(workload(restart_policy=NEVER), attempts, now_ms=T0)
    assert [c.spec.attempt for c in gap.removals] == [1, 2, 3]
    assert len(attempts) - len(gap.removals) == KEPT_ATTEMPTS


# ---- lost nodes

LOST = ContainerStatus.LOST
OUT_OF_REACH = (Reason.SELF_FENCED, Reason.NODE_UNREACHABLE, Reason.NODE_CONFIRMED_DEAD)


@pytest.mark.parametrize("policy", [NEVER, ON_FAILURE, ALWAYS])
def test_a_lost_container_has_a_successor_at_once_whatever_the_restart_policy(policy: int) -> None:
    lost = container(attempt=3, phase=LOST, failures_before=2)
    gap = reconcile(workload(restart_policy=policy), [lost], now_ms=T0)
    (vacancy,) = gap.vacancies
    assert (vacancy.attempt, vacancy.not_before_ms) == (4, 0)
    assert vacancy.failures == 2, "losing a node is not the workload's failure, and does not make up for others"
    assert (gap.stops, gap.removals) == ([], [])


def test_there_is_one_successor_only() -> None:
    gap = reconcile(workload(), [container(phase=LOST), container(attempt=2)], now_ms=T0)
    assert (gap.vacancies, gap.stops) == ([], [])
    gap = reconcile(workload(), [container(phase=LOST), container(attempt=2, phase=LOST)], now_ms=T0)
    assert [v.attempt for v in gap.vacancies] == [3]


@pytest.mark.parametrize("code", OUT_OF_REACH)
@pytest.mark.parametrize("phase", [EXITED, FAILED])
def test_one_that_ended_because_its_node_was_out_of_reach_has_a_successor_too(phase: int, code: int) -> None:
    ended = container(phase=phase, exit_code=137)
    ended.status.reason.code = code
    (vacancy,) = reconcile(workload(), [ended], now_ms=T0).vacancies
    assert (vacancy.attempt, vacancy.not_before_ms, vacancy.failures) == (2, 0, 0)


@pytest.mark.parametrize(("was_lost", "attempts"), [(True, [2]), (False, [])])
def test_one_that_vanished_has_a_successor_if_it_was_lost_before(was_lost: bool, attempts: list[int]) -> None:
    gone = container(phase=FAILED)
    gone.status.reason.code = Reason.CONTAINER_DISAPPEARED
    if was_lost:
        gone.status.lost_at.FromMilliseconds(T0)
    assert [v.attempt for v in reconcile(workload(), [gone], now_ms=T0).vacancies] == attempts


def test_one_that_ended_by_itself_while_it_was_lost_has_ended() -> None:
    done = container(phase=EXITED, exit_code=0)
    done.status.lost_at.FromMilliseconds(T0)
    done.status.reason.code = Reason.COMPLETED
    assert reconcile(workload(), [done], now_ms=T0).vacancies == []


def test_one_that_had_reached_its_time_limit_when_it_was_lost_is_not_started_again() -> None:
    lost = container(phase=LOST, stop=Reason.TIME_LIMIT)
    assert reconcile(workload(restart_policy=ALWAYS), [lost], now_ms=T0).vacancies == []


def test_a_workload_can_be_deleted_while_a_container_is_lost_which_stays_until_it_has_ended() -> None:
    deleting = workload(count=2, desired=WorkloadStatus.DELETE)
    gap = reconcile(deleting, [container(0, phase=LOST), container(1, phase=EXITED, exit_code=0)], now_ms=T0)
    assert gap.workload_gone
    assert [c.metadata.name for c in gap.removals] == ["train.1.1"]
    assert reconcile(None, [container(phase=LOST)], now_ms=T0).removals == []
    assert len(reconcile(None, [container(phase=EXITED, exit_code=137)], now_ms=T0).removals) == 1


def test_a_lost_container_is_never_forgotten_however_many_attempts_follow() -> None:
    later = [container(attempt=n, phase=EXITED, exit_code=1) for n in range(2, 9)]
    gap = reconcile(workload(), [container(attempt=1, phase=LOST), *later], now_ms=T0)
    assert [c.spec.attempt for c in gap.removals] == [2, 3, 4, 5]


def test_a_new_version_does_not_wait_for_what_is_lost() -> None:
    gap = reconcile(workload(first_attempt=2), [container(attempt=1, phase=LOST)], now_ms=T0)
    assert ([v.attempt for v in gap.vacancies], gap.stops) == ([2], [])
