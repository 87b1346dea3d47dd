"""What a workload's replicas need next: the gap between what should be and what is, as a value.

`reconcile` looks at one workload and all its containers and says which replicas wait to be placed, which
containers to stop, and which to forget. It decides nothing about nodes (that is scheduling) and does
nothing itself (a controller does, while it leads). Calling it again on the same state gives the same
answer, so it may run after every change and after any loss of memory.

A *run* begins with the attempt number `first_attempt`; `restart`, a changed spec and `apply` after a stop
begin a new one. Containers of an earlier run are superseded. They are replaced one replica at a time, the
next only once the successor runs, so that a broken spec takes down one replica and not all.

A LOST container counts as ended for its replica, which gets the next attempt at once: losing its node is not
the workload's failure. For the node it does not: it holds what it has there, and its record stays, even when
its workload is deleted, until it is known to have ended. Whether containers of a lost node are LOST is decided
in `core.nodes`.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pwm import lifecycle
from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.workload_pb2 import Config, Container, ContainerStatus, Workload, WorkloadStatus
from pwm.controlplane.core.decide import replica_count

# Delay before the second attempt; doubled for each further one.
RETRY_FIRST_DELAY_MS = 1_000
RETRY_MAX_DELAY_MS = 300_000
# A container that ran this long was healthy: what fails after it counts from one again.
RETRY_RESET_AFTER_MS = 600_000
# Failures in a row before PWM gives up, unless the spec says otherwise.
DEFAULT_MAX_ATTEMPTS = 6
# Ended attempts kept per replica, for `logs --previous` and `why`.
KEPT_ATTEMPTS = 3
# Why a container ended that had to give way because its node was out of reach.
_OUT_OF_REACH = frozenset({Reason.SELF_FENCED, Reason.NODE_UNREACHABLE, Reason.NODE_CONFIRMED_DEAD})


@dataclass(frozen=True, slots=True)
class Vacancy:
    """A replica that has no container and should have one."""

    replica: int
    attempt: int
    # When it may be placed: later than now while it backs off.
    not_before_ms: int
    # Since when it waits, for the order of the queue.
    since_ms: int
    # The back-off itself: whoever sees the vacancy has to wait no longer than this, whatever clocks say.
    delay_ms: int = 0
    # Attempts in a row that have failed so far.
    failures: int = 0


@dataclass(slots=True)
class Gap:
    vacancies: list[Vacancy] = field(default_factory=list)
    stops: list[tuple[Container, Reason]] = field(default_factory=list)
    removals: list[Container] = field(default_factory=list)
    # The workload is being deleted and nothing of it is alive.
    workload_gone: bool = False
    # When to look again although nothing changed (a time limit, the end of a back-off); 0: never.
    wake_at_ms: int = 0

    def wake(self, at_ms: int) -> None:
        self.wake_at_ms = min(self.wake_at_ms, at_ms) if self.wake_at_ms else at_ms


def retry_delay_ms(failures: int) -> int:
    """Delay after so many failures in a row."""
    return min(RETRY_MAX_DELAY_MS, RETRY_FIRST_DELAY_MS << min(failures - 1, 20))


def reconcile(workload: Workload | None, containers: Iterable[Container], *, now_ms: int) -> Gap:
    """The gap of one workload. None: it is gone, and its containers are orphans."""
    gap = Gap()
    by_replica: dict[int, list[Container]] = defaultdict(list)
    for container in containers:
        by_replica[container.spec.replica].append(container)
    for attempts in by_replica.values():
        if len(attempts) > 1:
            attempts.sort(key=lambda c: c.spec.attempt)
    if workload is None or workload.status.desired == WorkloadStatus.DELETE:
        _end(gap, by_replica, Reason(code=Reason.DELETED_BY_USER, message="the workload was deleted"))
        gap.workload_gone = workload is not None and not gap.stops and not _any_live(by_replica)
        if workload is None or gap.workload_gone:
            gap.removals = [c for attempts in by_replica.values() for c in attempts if _ended(c)]
        return gap
    if workload.status.desired in (WorkloadStatus.STOP, WorkloadStatus.PAUSE):
        _end(gap, by_replica, _stopped_because(workload))
        return gap
    _run(gap, workload, by_replica, now_ms)
    _forget_old_attempts(gap, by_replica)
    return gap


def _run(gap: Gap, workload: Workload, by_replica: dict[int, list[Container]], now_ms: int) -> None:
    count = replica_count(workload.spec)
    first = workload.status.first_attempt
    superseded: list[Container] = []
    unsettled = False
    for replica in range(count):
        attempts = by_replica.get(replica, [])
        live = [c for c in attempts if not _given_up(c)]
        if live:
            for container in live:
                if container.spec.attempt < first:
                    superseded.append(container)
                else:
                    _watch_time_limit(gap, workload, container, now_ms)
            unsettled = unsettled or live[-1].status.phase != ContainerStatus.RUNNING
            continue
        run = [c for c in attempts if c.spec.attempt >= first]
        vacancy = _vacancy(workload, replica, attempts, run)
        if vacancy is not None:
            gap.vacancies.append(vacancy)
            unsettled = True
            if vacancy.not_before_ms > now_ms:
                gap.wake(vacancy.not_before_ms)
    if superseded and not unsettled:
        _stop(gap, superseded[0], Reason(code=Reason.REPLACED, message="a new version of the workload replaces it"))
    elif any(c.status.phase != ContainerStatus.RUNNING for c in superseded):
        # A replica that does not run anyway need not wait for its turn.
        for container in superseded:
            if container.status.phase != ContainerStatus.RUNNING:
                _stop(gap, container, Reason(code=Reason.REPLACED, message="a new version of the workload replaces it"))
    scaled = Reason(code=Reason.SCALED_DOWN, message=f"scaled down to {count}")
    for replica, attempts in by_replica.items():
        if replica >= count:
            for container in attempts:
                _stop(gap, container, scaled)


def _vacancy(
    workload: Workload, replica: int, attempts: Sequence[Container], run: Sequence[Container]
) -> Vacancy | None:
    # First what is true of most of a long array: nothing more is to come.
    if run and not started_over(run[-1]) and settled_end(workload, run):
        return None
    attempt = max([workload.status.first_attempt - 1, *(c.spec.attempt for c in attempts)]) + 1
    if not run:
        since = workload.status.desired_at.ToMilliseconds() or workload.metadata.created_at.ToMilliseconds()
        return Vacancy(replica, max(attempt, 1), not_before_ms=0, since_ms=since)
    ended_ms = run[-1].status.since.ToMilliseconds()
    if lost_its_node(run[-1]):
        failures = run[-1].spec.failures_before
        return Vacancy(replica, attempt, not_before_ms=0, since_ms=ended_ms, failures=failures)
    if started_over(run[-1]):
        return Vacancy(replica, attempt, not_before_ms=0, since_ms=ended_ms)
    failures = failures_in_a_row(run[-1])
    delay = retry_delay_ms(failures) if failures else RETRY_FIRST_DELAY_MS
    return Vacancy(
        replica, attempt, not_before_ms=ended_ms + delay, since_ms=ended_ms, delay_ms=delay, failures=failures
    )


def lost_its_node(container: Container) -> bool:
    """It is lost, or ended because its node was out of reach: neither by itself nor by anybody's wish.

    One that ended by itself while its node was out of reach has ended like any other, if it is still the newest.
    """
    status = container.status
    if status.stop_requested.code == Reason.TIME_LIMIT:
        return False
    if status.phase == ContainerStatus.LOST:
        return True
    return status.reason.code in _OUT_OF_REACH or (
        # The machine was started anew while it was out of reach.
        status.HasField("lost_at") and status.reason.code == Reason.CONTAINER_DISAPPEARED
    )


def started_over(container: Container) -> bool:
    """It ended because PWM stopped it for a reason that the workload has outlived, such as scaling down."""
    if lost_its_node(container):
        return True
    return container.status.HasField("stop_requested") and container.status.stop_requested.code in (
        Reason.SCALED_DOWN,
        Reason.REPLACED,
        Reason.STOPPED_BY_USER,
        Reason.IDLE,
        Reason.OUT_OF_CREDITS,
        Reason.NODE_DRAINED,
    )


def settled_end(workload: Workload, run: Sequence[Container]) -> bool:
    """Whether a replica whose last attempt ended gets no further one. `run`: its attempts, oldest first."""
    last, config = run[-1], workload.spec.config
    if last.status.stop_requested.code == Reason.TIME_LIMIT:
        return True
    policy = config.restart_policy
    if policy in (Config.Never, Config.RESTART_POLICY_UNSPECIFIED):
        return True
    if policy == Config.OnFailure and not failed(last):
        return True
    return failures_in_a_row(last) >= max_attempts(workload)


def max_attempts(workload: Workload) -> int:
    return workload.spec.config.max_attempts or DEFAULT_MAX_ATTEMPTS


def failed(container: Container) -> bool:
    status = container.status
    return status.phase == ContainerStatus.FAILED or status.exit_code != 0


def failures_in_a_row(container: Container) -> int:
    """Failed attempts up to this ended one, since the last that was well: it ended with 0, or ran long enough.

    Each container is placed with the count so far, so that it outlives attempts that were forgotten.
    """
    status = container.status
    if not failed(container):
        return 0
    if status.HasField("started_at") and status.HasField("finished_at"):
        ran_ms = status.finished_at.ToMilliseconds() - status.started_at.ToMilliseconds()
        if ran_ms >= RETRY_RESET_AFTER_MS:
            return 1
    return container.spec.failures_before + 1


def _watch_time_limit(gap: Gap, workload: Workload, container: Container, now_ms: int) -> None:
    limit_ms = container.spec.time_limit_ms
    if not limit_ms or not container.status.HasField("started_at"):
        return
    deadline = container.status.started_at.ToMilliseconds() + limit_ms
    if now_ms >= deadline:
        text = f"its time limit of {workload.spec.config.time_limit or f'{limit_ms} ms'} was reached"
        _stop(gap, container, Reason(code=Reason.TIME_LIMIT, message=text))
    else:
        gap.wake(deadline)


def _forget_old_attempts(gap: Gap, by_replica: dict[int, list[Container]]) -> None:
    for attempts in by_replica.values():
        if len(attempts) > KEPT_ATTEMPTS:
            ended = [c for c in attempts if _ended(c)]
            gap.removals += ended[: max(0, len(ended) - KEPT_ATTEMPTS)]


def _end(gap: Gap, by_replica: dict[int, list[Container]], reason: Reason) -> None:
    for attempts in by_replica.values():
        for container in attempts:
            _stop(gap, container, reason)


def _stop(gap: Gap, container: Container, reason: Reason) -> None:
    if not _given_up(container) and not container.status.HasField("stop_requested"):
        gap.stops.append((container, reason))


def _any_live(by_replica: dict[int, list[Container]]) -> bool:
    return any(not _given_up(c) for attempts in by_replica.values() for c in attempts)


def _ended(container: Container) -> bool:
    return container.status.phase in lifecycle.ENDED


def _given_up(container: Container) -> bool:
    return container.status.phase in lifecycle.GIVEN_UP


def _stopped_because(workload: Workload) -> Reason:
    """PWM itself says why; a user need not."""
    if workload.status.HasField("desired_reason"):
        return workload.status.desired_reason
    by = workload.status.desired_by.name
    return Reason(code=Reason.STOPPED_BY_USER, message=f"stopped by {by}" if by else "stopped")
