"""GPUs that nobody uses come back: when a workload is warned and when it is stopped, as decisions.

A GPU workload that is past its first hour and has not used its GPUs for a while is warned, and stopped when it goes on
like that. The rule is the cluster's (`IdlePolicy`); a workload can make it tighter for itself, not looser. It is about
the workload as a whole: one GPU in use, of whichever replica, is use.

What a decision rests on are the times that agents measured while they watched the GPUs (`GPUActivity`), on clocks of
elapsed time; no wall clocks of different machines are compared. No evidence, no action: a GPU that was not watched, a
replica that is only starting, a node that is silent, each of them is enough for nothing to happen. A stop takes as much
unused time after the warning as the rule promises, and a watch that began anew meanwhile takes the warning back.

`nodeagent.gpu.activity` measures, `controllers.idle` asks and appends.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeAlias

from google.protobuf.timestamp_pb2 import Timestamp

from pwm import lifecycle
from pwm.api.v1.agent_pb2 import ContainerActivity
from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.events_pb2 import WorkloadDesired, WorkloadIdleOver, WorkloadIdleWarned, WorkloadKept
from pwm.api.v1.workload_pb2 import (
    Container,
    ContainerStatus,
    GPUActivity,
    IdleEvidence,
    IdleStatus,
    Workload,
    WorkloadSpec,
    WorkloadStatus,
)
from pwm.controlplane.core.decide import Payload, Refusal
from pwm.quantity import format_bytes, format_duration, parse_duration

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
# Of a GPU: a desktop or a monitoring tool takes a few percent now and then, work takes more.
USED_FROM_PERCENT = 5
# A third of the time is warning enough where somebody has chosen a short one.
WARN_SHARE = 3
# How often it is looked at: often enough for the shortest of the times, and no more often than agents report.
SLOWEST_BEAT_MS, FASTEST_BEAT_MS = 15_000, 500
BEATS_PER_STEP = 4
# A morning's meeting, or a night's sleep is more than enough to be asked again.
DEFAULT_KEEP_MS = 4 * HOUR_MS
SHORTEST_KEEP_MS, LONGEST_KEEP_MS = 1_000, 7 * 24 * HOUR_MS
# GPUs that an event tells of: a workload of thousands must not outgrow it.
MAX_GPUS_SHOWN = 16

Decided: TypeAlias = WorkloadIdleWarned | WorkloadIdleOver | WorkloadDesired


@dataclass(frozen=True, slots=True)
class IdlePolicy:
    """The cluster's rule. `pause_after_ms` 0: only workloads that ask for it themselves are stopped."""

    pause_after_ms: int = 15 * MINUTE_MS
    # Before the end of that time; None: 5 minutes, or a third of it where that is less.
    warn_before_ms: int | None = None
    # How long a workload may run before the rule is about it.
    spared_ms: int = HOUR_MS
    used_from_percent: int = USED_FROM_PERCENT

    def __post_init__(self) -> None:
        if self.warn_before_ms is not None and self.warn_before_ms > self.pause_after_ms > 0:
            raise ValueError(
                f"a warning {format_duration(self.warn_before_ms)} before the end of"
                f" {format_duration(self.pause_after_ms)} without use is not possible"
            )
        if not 1 <= self.used_from_percent <= 100:
            raise ValueError("a GPU counts as used from 1 to 100 percent on")

    @property
    def beat_ms(self) -> int:
        """How often to look."""
        warn_ms = self.warn_before_ms or 0
        steps = (self.pause_after_ms, warn_ms, self.pause_after_ms - warn_ms, self.spared_ms)
        return max(FASTEST_BEAT_MS, min([SLOWEST_BEAT_MS, *(ms // BEATS_PER_STEP for ms in steps if ms > 0)]))


DEFAULT_POLICY = IdlePolicy()


@dataclass(frozen=True, slots=True)
class Rule:
    """What holds for one workload."""

    pause_after_ms: int
    warn_before_ms: int


def rule_for(spec: WorkloadSpec, policy: IdlePolicy) -> Rule | None:
    """The tighter of the cluster's rule and the workload's own; None: there is neither."""
    own_ms = parse_duration(spec.idle.pause_after) if spec.idle.pause_after else 0
    pause_ms = min((ms for ms in (own_ms, policy.pause_after_ms) if ms), default=0)
    if not pause_ms:
        return None
    if spec.idle.warn_before and pause_ms == own_ms:
        warn_ms = min(parse_duration(spec.idle.warn_before), pause_ms)
    elif policy.warn_before_ms is not None and pause_ms == policy.pause_after_ms:
        warn_ms = policy.warn_before_ms
    else:
        warn_ms = min(5 * MINUTE_MS, pause_ms // WARN_SHARE)
    return Rule(pause_ms, warn_ms)


# ---- what is known


def warning(workload: Workload) -> IdleStatus | None:
    """The warning that stands; one of an earlier run does not."""
    idle = workload.status.idle
    stands = idle.HasField("warned_at") and idle.first_attempt == workload.status.first_attempt
    return idle if stands and workload.status.desired == WorkloadStatus.RUN else None


def kept_until_ms(workload: Workload, now_ms: int) -> int:
    """Until when somebody holds it; 0: nobody does."""
    until_ms = workload.status.idle.kept_until.ToMilliseconds()
    return until_ms if until_ms > now_ms else 0


def subject(
    workload: Workload, containers: Iterable[Container], policy: IdlePolicy, *, now_ms: int
) -> list[Container] | None:
    """Its containers with GPUs, if it is one that the rule is about now: it runs, and none of them is only starting,
    ending, or in its first hour. None: it is left alone."""
    if workload.status.desired != WorkloadStatus.RUN or rule_for(workload.spec, policy) is None:
        return None
    holders = [c for c in containers if c.spec.gpu_uuids and c.status.phase not in lifecycle.GIVEN_UP]
    settled = all(
        c.status.phase == ContainerStatus.RUNNING
        and not c.status.HasField("stop_requested")
        and now_ms - c.status.since.ToMilliseconds() >= policy.spared_ms
        for c in holders
    )
    return holders if holders and settled else None


def gather(holders: Iterable[Container], activity: Mapping[str, ContainerActivity]) -> list[GPUActivity] | None:
    """What is known of every GPU of these containers; None as soon as one of them was not watched.

    `activity`: what agents report, by the container's uid.
    """
    found: list[GPUActivity] = []
    for container in holders:
        reported = activity.get(container.metadata.uid)
        watched = {gpu.uuid: gpu for gpu in reported.gpus} if reported is not None else {}
        for uuid in container.spec.gpu_uuids:
            if uuid not in watched:
                return None
            gpu = GPUActivity()
            gpu.CopyFrom(watched[uuid])
            gpu.container, gpu.node = container.metadata.name, container.spec.node
            found.append(gpu)
    return found


# ---- decisions


def judge(
    workload: Workload,
    containers: Iterable[Container],
    activity: Mapping[str, ContainerActivity],
    policy: IdlePolicy,
    *,
    now_ms: int,
) -> tuple[Decided, ...]:
    """Warn it, take the warning back, stop it, or nothing."""
    holders = subject(workload, containers, policy, now_ms=now_ms)
    rule = rule_for(workload.spec, policy)
    if holders is None or rule is None or kept_until_ms(workload, now_ms):
        return ()
    gpus = gather(holders, activity)
    if not gpus:
        return ()
    unused_ms = min(gpu.unused_ms for gpu in gpus)
    warned = warning(workload)
    if warned is None:
        if unused_ms < rule.pause_after_ms - rule.warn_before_ms:
            return ()
        left_ms = max(rule.pause_after_ms - unused_ms, rule.warn_before_ms)
        return (WorkloadIdleWarned(evidence=_evidence(gpus, rule, policy), stop_at=_timestamp(now_ms + left_ms)),)
    warned_ms = warned.evidence.unused_ms
    if unused_ms < warned_ms:
        return (WorkloadIdleOver(used=any(gpu.seen_in_use for gpu in gpus if gpu.unused_ms < warned_ms)),)
    if unused_ms < max(rule.pause_after_ms, warned_ms + rule.warn_before_ms):
        return ()
    evidence = _evidence(gpus, rule, policy)
    reason = Reason(code=Reason.IDLE, message=_stopped_said(evidence))
    return (WorkloadDesired(desired=WorkloadStatus.STOP, reason=reason, idle=evidence),)


def keep(workload: Workload, containers: Iterable[Container], *, time_ms: int, now_ms: int) -> tuple[Payload, ...]:
    """Leave it alone for so long. Raises Refusal."""
    name = workload.metadata.name
    if workload.status.desired != WorkloadStatus.RUN:
        raise Refusal(
            f"workload {name} does not run any more, so there is nothing to keep",
            next_step=f"pwm restart wk {name} starts it again",
            conflict=True,
        )
    if not workload.spec.selectors.gpu.count and not any(c.spec.gpu_uuids for c in containers):
        raise Refusal(
            f"workload {name} has no GPUs, and only for those of a workload it matters whether they are used",
            next_step="there is nothing to be done",
        )
    return (WorkloadKept(until=_timestamp(now_ms + time_ms)),)


def _evidence(gpus: Sequence[GPUActivity], rule: Rule, policy: IdlePolicy) -> IdleEvidence:
    """With the GPUs that came closest to being used."""
    ranked = sorted(gpus, key=lambda gpu: (gpu.unused_ms, -gpu.utilization_max, gpu.container, gpu.uuid))
    return IdleEvidence(
        gpus=ranked[:MAX_GPUS_SHOWN],
        gpu_count=len(gpus),
        unused_ms=ranked[0].unused_ms,
        pause_after_ms=rule.pause_after_ms,
        used_from_percent=policy.used_from_percent,
    )


def _timestamp(ms: int) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMilliseconds(ms)
    return stamp


# ---- words


def remark(workload: Workload, now_ms: int) -> Reason | None:
    """What is to be said of a workload that runs: that it was warned, or that it is kept."""
    until_ms = kept_until_ms(workload, now_ms)
    if until_ms:
        by = workload.status.idle.kept_by.name
        return Reason(
            message=f"kept until {_moment(until_ms)}{f' by {by}' if by else ''}, whether it uses its GPUs or not"
        )
    warned = warning(workload)
    if warned is None:
        return None
    since_ms = warned.warned_at.ToMilliseconds() - warned.evidence.unused_ms
    said = (
        f"{_subject_said(warned.evidence)} in use since {_moment(since_ms)}; it is stopped at"
        f" {_moment(warned.stop_at.ToMilliseconds())} if that goes on (pwm keep wk {workload.metadata.name} holds it)"
    )
    return Reason(code=Reason.IDLE, message=said)


def warned_said(event: WorkloadIdleWarned) -> str:
    """What the warning says, as an event."""
    unused = format_duration(event.evidence.unused_ms)
    at = f"to be stopped at {_moment(event.stop_at.ToMilliseconds())}"
    return f"idle, {at}: {_subject_said(event.evidence)} in use for {unused}{_looks_said(event.evidence)}"


def kept_said(event: WorkloadKept) -> str:
    return f"kept until {_moment(event.until.ToMilliseconds())}"


def over_said(event: WorkloadIdleOver) -> str:
    if event.used:
        return "no longer idle: a GPU of it is in use"
    return "no longer known to be idle: its GPUs were not watched for a while"


def evidence_said(workload: Workload) -> list[str]:
    """A sentence for each GPU that there is evidence of: of the warning that stands, or of the stop."""
    status = workload.status
    stopped = status.desired == WorkloadStatus.STOP and status.desired_reason.code == Reason.IDLE
    if not stopped and warning(workload) is None:
        return []
    evidence = status.idle.evidence
    lines = [_gpu_said(gpu) for gpu in evidence.gpus]
    if evidence.gpu_count > len(evidence.gpus):
        lines.append(f"and {evidence.gpu_count - len(evidence.gpus)} more GPUs, which were used no more than these")
    if lines:
        lines.append(f"a GPU counts as used from {evidence.used_from_percent} % on")
    return lines


def _gpu_said(gpu: GPUActivity) -> str:
    memory = f", {format_bytes(gpu.memory_used_bytes)} of its memory taken" if gpu.memory_used_bytes else ""
    return (
        f"{gpu.uuid} of {gpu.container} on {gpu.node}: not in use for {format_duration(gpu.unused_ms)},"
        f" {_percent(gpu.utilization_max)} at most and {_percent(gpu.utilization_mean)} on average"
        f" in {_looks(gpu.samples)}{memory}"
    )


def _stopped_said(evidence: IdleEvidence) -> str:
    unused = format_duration(evidence.unused_ms)
    return f"{_subject_said(evidence)} in use for {unused}{_looks_said(evidence)}"


def _subject_said(evidence: IdleEvidence) -> str:
    return "its GPU was not" if evidence.gpu_count == 1 else f"none of its {evidence.gpu_count} GPUs was"


def _looks_said(evidence: IdleEvidence) -> str:
    looks = sum(gpu.samples for gpu in evidence.gpus)
    if not looks:
        return ""
    most = max(gpu.utilization_max for gpu in evidence.gpus)
    mean = sum(gpu.utilization_mean * gpu.samples for gpu in evidence.gpus) / looks
    return f" (busy {_percent(most)} at most, {_percent(mean)} on average in {_looks(looks)})"


def _looks(count: int) -> str:
    return f"{count} look{'' if count == 1 else 's'}"


def _percent(share: float) -> str:
    return f"{share * 100:.1f}".removesuffix(".0") + " %"


def _moment(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
