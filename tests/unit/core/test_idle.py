"""When a workload is warned and stopped for not using its GPUs, as tables and properties."""

from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pwm.api.v1 import events_pb2 as ev
from pwm.api.v1.agent_pb2 import ContainerActivity
from pwm.api.v1.common_pb2 import Actor, Reason
from pwm.api.v1.workload_pb2 import Container, ContainerStatus, GPUActivity, Workload, WorkloadStatus
from pwm.controlplane.core import idle
from pwm.controlplane.core.decide import Refusal
from pwm.controlplane.core.evolve import evolve
from pwm.controlplane.core.idle import HOUR_MS, MINUTE_MS, IdlePolicy, judge, keep, rule_for
from pwm.controlplane.core.status import workload_status
from tests.unit.core.builders import T0, container, workload

POLICY = IdlePolicy()
LATER = T0 + 2 * HOUR_MS
WARN_AT, STOP_AT = 10 * MINUTE_MS, 15 * MINUTE_MS


def gpu_workload(**own: str) -> Workload:
    made = workload()
    made.spec.selectors.gpu.count = 1
    for name, value in own.items():
        setattr(made.spec.idle, name, value)
    return made


def holder(replica: int = 0, *, gpus: Sequence[str] = ("GPU-0",), phase: Any = ContainerStatus.RUNNING) -> Container:
    made = container(replica, phase=phase)
    made.spec.gpu_uuids.extend(gpus)
    return made


def seen(*containers: Container, unused_ms: Iterable[int], used: bool = False) -> dict[str, ContainerActivity]:
    """A figure for each GPU, in the order of the containers."""
    figures = iter(unused_ms)
    return {
        c.metadata.uid: ContainerActivity(
            uid=c.metadata.uid,
            gpus=[
                GPUActivity(uuid=uuid, unused_ms=next(figures), seen_in_use=used, samples=10, utilization_max=0.01)
                for uuid in c.spec.gpu_uuids
            ],
        )
        for c in containers
    }


def after(state: Workload, payload: Any, *, at_ms: int = LATER) -> Workload:
    """The workload with this event."""
    event = ev.Event(kind="Workload", uid="w", version=2, actor=Actor(type=Actor.USER, name="ann"))
    event.time.FromMilliseconds(at_ms)
    fields = ev.Event.DESCRIPTOR.oneofs_by_name["payload"].fields
    field = next(f.name for f in fields if f.message_type == payload.DESCRIPTOR)
    getattr(event, field).CopyFrom(payload)
    evolved = evolve(state, event)
    assert isinstance(evolved, Workload)
    return evolved


def decided(
    state: Workload, unused_ms: int, *, used: bool = False, now_ms: int = LATER, policy: IdlePolicy = POLICY
) -> Any:
    held = holder()
    found = judge(state, [held], seen(held, unused_ms=[unused_ms], used=used), policy, now_ms=now_ms)
    return found[0] if found else None


def warned(unused_ms: int = WARN_AT) -> Workload:
    state = gpu_workload()
    return after(state, decided(state, unused_ms))


# ---- the rule


@pytest.mark.parametrize(
    ("own", "policy", "pause_ms", "warn_ms"),
    [
        ({}, POLICY, 15 * MINUTE_MS, 5 * MINUTE_MS),
        ({"pause_after": "6m"}, POLICY, 6 * MINUTE_MS, 2 * MINUTE_MS),
        ({"pause_after": "6m", "warn_before": "1m"}, POLICY, 6 * MINUTE_MS, MINUTE_MS),
        ({"pause_after": "5h"}, POLICY, 15 * MINUTE_MS, 5 * MINUTE_MS),
        ({"pause_after": "5m", "warn_before": "9m"}, POLICY, 5 * MINUTE_MS, 5 * MINUTE_MS),
        ({"pause_after": "5h", "warn_before": "4h"}, POLICY, 15 * MINUTE_MS, 5 * MINUTE_MS),
        ({"pause_after": "30m"}, IdlePolicy(pause_after_ms=0), 30 * MINUTE_MS, 5 * MINUTE_MS),
        ({}, IdlePolicy(pause_after_ms=3_000), 3_000, 1_000),
        ({}, IdlePolicy(warn_before_ms=MINUTE_MS), 15 * MINUTE_MS, MINUTE_MS),
    ],
)
def test_the_tighter_of_the_clusters_rule_and_the_workloads_own_holds(
    own: dict[str, str], policy: IdlePolicy, pause_ms: int, warn_ms: int
) -> None:
    rule = rule_for(gpu_workload(**own).spec, policy)
    assert rule is not None
    assert (rule.pause_after_ms, rule.warn_before_ms) == (pause_ms, warn_ms)


def test_without_a_rule_of_the_cluster_only_those_are_stopped_that_ask_for_it() -> None:
    assert rule_for(gpu_workload().spec, IdlePolicy(pause_after_ms=0)) is None
    assert decided(gpu_workload(), 100 * HOUR_MS, policy=IdlePolicy(pause_after_ms=0)) is None


@pytest.mark.parametrize(
    "wrong", [{"pause_after_ms": 10, "warn_before_ms": 11}, {"used_from_percent": 0}, {"used_from_percent": 101}]
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"not possible|counts as used"):
        IdlePolicy(**wrong)


# ---- warned, stopped, left alone


@pytest.mark.parametrize(
    ("unused_ms", "expected"), [(0, None), (WARN_AT - 1, None), (WARN_AT, "warned"), (5 * HOUR_MS, "warned")]
)
def test_it_is_warned_before_anything_else_however_long_it_was_unused(unused_ms: int, expected: str | None) -> None:
    verdict = decided(gpu_workload(), unused_ms)
    assert isinstance(verdict, ev.WorkloadIdleWarned) is (expected == "warned")
    if expected:
        left_ms = verdict.stop_at.ToMilliseconds() - LATER
        assert left_ms == max(STOP_AT - unused_ms, POLICY.warn_before_ms or 5 * MINUTE_MS)


def test_it_is_stopped_with_the_evidence_once_it_was_warned_for_long_enough() -> None:
    state = warned()
    assert decided(state, STOP_AT - 1) is None
    verdict = decided(state, STOP_AT)
    assert verdict.desired == WorkloadStatus.STOP
    assert verdict.reason.code == Reason.IDLE
    assert verdict.reason.message == "its GPU was not in use for 15m (busy 1 % at most, 0 % on average in 10 looks)"
    (gpu,) = verdict.idle.gpus
    assert (gpu.uuid, gpu.container, gpu.node, gpu.unused_ms) == ("GPU-0", "train.0.1", "n1", STOP_AT)
    stopped = after(state, verdict)
    assert stopped.status.desired_reason.code == Reason.IDLE
    assert "GPU-0 of train.0.1 on n1: not in use for 15m, 1 % at most" in idle.evidence_said(stopped)[0]


def test_one_that_was_warned_late_gets_the_whole_time_of_the_warning() -> None:
    state = warned(HOUR_MS)
    assert decided(state, HOUR_MS + 5 * MINUTE_MS - 1) is None
    assert isinstance(decided(state, HOUR_MS + 5 * MINUTE_MS), ev.WorkloadDesired)


@pytest.mark.parametrize("used", [True, False])
def test_use_takes_a_warning_back_and_so_does_a_watch_that_began_anew(used: bool) -> None:
    verdict = decided(warned(), 1_000, used=used)
    assert verdict == ev.WorkloadIdleOver(used=used)
    state = after(warned(), verdict)
    assert idle.warning(state) is None
    assert decided(state, STOP_AT - 6 * MINUTE_MS) is None


@pytest.mark.parametrize(
    "case",
    ["first hour", "starting", "ending", "lost node", "stopped", "unwatched", "unwatched gpu", "no gpu", "kept"],
)
def test_without_evidence_for_every_gpu_nothing_happens(case: str) -> None:
    for state in (gpu_workload(), warned()):
        held, now_ms = [holder(gpus=["GPU-0", "GPU-1"])], LATER
        activity = seen(*held, unused_ms=[HOUR_MS, HOUR_MS])
        assert judge(state, held, activity, POLICY, now_ms=now_ms), "else this proves nothing"
        match case:
            case "first hour":
                now_ms = T0 + HOUR_MS - 1
            case "starting":
                held.append(holder(1, gpus=["GPU-2"], phase=ContainerStatus.PULLING))
            case "ending":
                held[0].status.stop_requested.code = Reason.REPLACED
            case "lost node":
                held.append(holder(1, gpus=["GPU-2"]))
            case "stopped":
                state.status.desired = WorkloadStatus.STOP
            case "unwatched":
                activity = {}
            case "unwatched gpu":
                del activity["w.0.1"].gpus[1]
            case "no gpu":
                held = [container()]
            case "kept":
                state.status.idle.kept_until.FromMilliseconds(now_ms + 1)
        assert judge(state, held, activity, POLICY, now_ms=now_ms) == ()


def test_one_gpu_in_use_of_whichever_replica_is_use() -> None:
    held = [holder(0, gpus=["GPU-0", "GPU-1"]), holder(1, gpus=["GPU-2"])]
    for busy in range(3):
        unused = [HOUR_MS] * 3
        unused[busy] = 0
        assert judge(gpu_workload(), held, seen(*held, unused_ms=unused), POLICY, now_ms=LATER) == ()
    assert judge(gpu_workload(), held, seen(*held, unused_ms=[HOUR_MS] * 3), POLICY, now_ms=LATER)


def test_containers_that_have_ended_do_not_matter() -> None:
    held, gone = holder(), holder(1, gpus=["GPU-9"], phase=ContainerStatus.EXITED)
    assert judge(gpu_workload(), [held, gone], seen(held, unused_ms=[HOUR_MS]), POLICY, now_ms=LATER)


def test_a_warning_is_about_one_run() -> None:
    state = warned()
    state.status.first_attempt += 1
    assert idle.warning(state) is None
    assert isinstance(decided(state, STOP_AT), ev.WorkloadIdleWarned)


def test_the_evidence_of_thousands_of_gpus_fits_into_an_event() -> None:
    held = [holder(n, gpus=[f"GPU-{n:032}-{m}" for m in range(8)]) for n in range(500)]
    activity = seen(*held, unused_ms=[HOUR_MS + n for n in range(4_000)])
    (verdict,) = judge(gpu_workload(), held, activity, POLICY, now_ms=LATER)
    assert isinstance(verdict, ev.WorkloadIdleWarned)
    assert verdict.ByteSize() < 4_096
    assert (verdict.evidence.gpu_count, verdict.evidence.unused_ms) == (4_000, HOUR_MS)
    assert [gpu.unused_ms for gpu in verdict.evidence.gpus] == [HOUR_MS + n for n in range(idle.MAX_GPUS_SHOWN)]
    assert "none of its 4000 GPUs was in use" in idle.warned_said(verdict)


@given(st.lists(st.integers(0, 120), min_size=1, max_size=30))
def test_whatever_the_agent_reports_nothing_is_stopped_without_a_warning_and_its_time(minutes: list[int]) -> None:
    """Reports of times without use, in any order, as from agents that start anew and GPUs that are used again."""
    state, warned_at_unused = gpu_workload(), None
    for number, minute in enumerate(minutes):
        verdict = decided(state, minute * MINUTE_MS, now_ms=LATER + number)
        if isinstance(verdict, ev.WorkloadIdleWarned):
            assert warned_at_unused is None
            warned_at_unused = minute
        elif isinstance(verdict, ev.WorkloadIdleOver):
            assert warned_at_unused is not None
            assert minute < warned_at_unused
            warned_at_unused = None
        elif verdict is not None:
            assert warned_at_unused is not None
            assert minute >= max(15, warned_at_unused + 5)
            return
        if verdict is not None:
            state = after(state, verdict, at_ms=LATER + number)


# ---- keeping


def test_who_is_kept_is_neither_warned_nor_stopped_until_the_time_is_over() -> None:
    (payload,) = keep(warned(), [holder()], time_ms=HOUR_MS, now_ms=LATER)
    state = after(warned(), payload)
    assert idle.warning(state) is None
    assert decided(state, 9 * HOUR_MS, now_ms=LATER + HOUR_MS - 1) is None
    assert isinstance(decided(state, 9 * HOUR_MS, now_ms=LATER + HOUR_MS), ev.WorkloadIdleWarned)


@pytest.mark.parametrize(
    ("state", "said"),
    [(workload(), "has no GPUs"), (workload(desired=WorkloadStatus.STOP), "does not run any more")],
)
def test_what_cannot_be_kept_is_refused_with_a_sentence(state: Workload, said: str) -> None:
    with pytest.raises(Refusal, match=said) as refused:
        keep(state, [container()], time_ms=HOUR_MS, now_ms=LATER)
    assert refused.value.next_step


# ---- what is shown


@pytest.mark.parametrize(
    ("state", "code", "said"),
    [
        (gpu_workload(), Reason.NONE, ""),
        (warned(), Reason.IDLE, "its GPU was not in use since 1970-01-01 02:06:40 UTC; it is stopped at 1970-01-01"),
        (
            after(warned(), ev.WorkloadKept(until={"seconds": LATER // 1000 + 60})),
            Reason.NONE,
            "kept until 1970-01-01 02:17:40 UTC by ann",
        ),
    ],
)
def test_a_status_says_that_a_workload_was_warned_or_is_kept(state: Workload, code: int, said: str) -> None:
    status = workload_status(
        state, [holder()], waiting=None, nodes_unreachable=[], remark=idle.remark(state, now_ms=LATER + 1_000)
    )
    assert status.phase == WorkloadStatus.RUNNING
    assert status.reason.code == code
    assert status.reason.message.startswith(said)
    assert bool(status.reason.message) is bool(said)
    assert status.by.name == ("" if said else "n1"), "a node does not say such things"
