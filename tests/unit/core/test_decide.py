"""Decisions of commands on one resource."""

import pytest

from pwm import lifecycle
from pwm.api.v1 import events_pb2 as ev
from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.node_pb2 import Inventory, Node
from pwm.api.v1.services_pb2 import ApplyResult
from pwm.api.v1.workload_pb2 import Container, ContainerStatus, Workload, WorkloadStatus
from pwm.controlplane.core.decide import (
    Refusal,
    apply_workload,
    delete_workload,
    join_node,
    report_all,
    report_container,
    request_stop,
    restart_workload,
    scale_workload,
    stop_workload,
)
from tests.unit.core.builders import container, workload

P = ContainerStatus


def changed(made: Workload, **config: object) -> Workload:
    copy = Workload()
    copy.CopyFrom(made)
    for name, value in config.items():
        setattr(copy.spec.config, name, value)
    return copy


def test_the_same_document_again_changes_nothing() -> None:
    made = workload()
    assert apply_workload(made, changed(made), []) == (ApplyResult.UNCHANGED, ())


def test_a_changed_count_scales_and_keeps_the_containers() -> None:
    made, wanted = workload(count=1), workload(count=3)
    outcome, payloads = apply_workload(made, wanted, [container()])
    assert outcome == ApplyResult.SCALED
    assert payloads == (ev.WorkloadScaled(count=3),)


def test_a_changed_command_begins_a_new_generation_after_all_attempts() -> None:
    made = workload()
    made.status.generation = 4
    outcome, (applied,) = apply_workload(made, changed(made, working_dir="/new"), [container(attempt=7)])
    assert outcome == ApplyResult.CONFIGURED
    assert isinstance(applied, ev.WorkloadApplied)
    assert (applied.generation, applied.first_attempt) == (5, 8)


def test_a_changed_restart_policy_disturbs_no_container() -> None:
    made = workload()
    _, (applied,) = apply_workload(made, changed(made, restart_policy=2), [container()])
    assert isinstance(applied, ev.WorkloadApplied)
    assert applied.first_attempt == 0


def test_applying_a_stopped_workload_starts_it() -> None:
    made = workload(desired=WorkloadStatus.STOP)
    outcome, (payload,) = apply_workload(made, changed(made), [container(attempt=2)])
    assert outcome == ApplyResult.CONFIGURED
    assert payload == ev.WorkloadDesired(desired=WorkloadStatus.RUN, first_attempt=3)


@pytest.mark.parametrize(
    "command",
    [
        lambda w: apply_workload(w, w, []),
        stop_workload,
        lambda w: scale_workload(w, 2),
        lambda w: restart_workload(w, []),
    ],
)
def test_a_workload_that_is_being_deleted_takes_no_orders(command: object) -> None:
    with pytest.raises(Refusal, match="being deleted"):
        command(workload(desired=WorkloadStatus.DELETE))  # type: ignore[operator]


def test_stopping_twice_says_so_once() -> None:
    assert stop_workload(workload()) == (ev.WorkloadDesired(desired=WorkloadStatus.STOP),)
    assert stop_workload(workload(desired=WorkloadStatus.STOP)) == ()


def test_a_workload_with_nothing_alive_is_removed_at_once() -> None:
    ended = container(phase=P.EXITED, exit_code=0)
    (payload,) = delete_workload(workload(), [ended])
    assert isinstance(payload, ev.Removed)
    assert delete_workload(workload(), [container()]) == (ev.WorkloadDesired(desired=WorkloadStatus.DELETE),)


@pytest.mark.parametrize("before", list(P.Phase.values())[1:])
@pytest.mark.parametrize("after", list(P.Phase.values())[1:])
def test_a_report_moves_a_container_only_as_the_lifecycle_says(before: int, after: int) -> None:
    accepted = report_container(container(phase=before), ev.ContainerReported(phase=after))
    allowed = lifecycle.may_move(before, after, owner=lifecycle.Owner.AGENT)
    assert bool(accepted) == allowed


def test_every_phase_can_reach_an_end_and_an_end_is_left_only_by_deleting() -> None:
    for phase in lifecycle.LIVE:
        assert lifecycle.TRANSITIONS[phase].keys() & {P.EXITED, P.FAILED}, P.Phase.Name(phase)
    for phase in lifecycle.ENDED - {P.DELETED}:
        assert set(lifecycle.TRANSITIONS[phase]) == {P.DELETED}


def test_several_reports_are_judged_one_after_the_other() -> None:
    reports = [ev.ContainerReported(phase=p) for p in (P.CREATING, P.PULLING, P.RUNNING, P.RUNNING, P.EXITED)]
    accepted = report_all(container(phase=P.ASSIGNED), reports)
    assert [r.phase for r in accepted if isinstance(r, ev.ContainerReported)] == [P.CREATING, P.RUNNING, P.EXITED]


def test_a_pid_that_comes_later_is_taken_without_moving_the_phase() -> None:
    running = container(phase=P.RUNNING)
    assert report_container(running, ev.ContainerReported(phase=P.RUNNING, pid=42))
    running.status.pid = 42
    assert not report_container(running, ev.ContainerReported(phase=P.RUNNING, pid=42))


def test_a_container_is_asked_to_stop_once() -> None:
    reason = Reason(code=Reason.STOPPED_BY_USER)
    assert request_stop(container(), reason)
    assert not request_stop(container(stop=Reason.STOPPED_BY_USER), reason)
    assert not request_stop(Container(status=ContainerStatus(phase=P.EXITED)), reason)


def test_an_agent_that_says_nothing_new_makes_no_event() -> None:
    inventory = Inventory(boot_id="b", cpu_count=2)
    assert join_node(None, inventory)
    node = Node()
    node.status.inventory.CopyFrom(inventory)
    assert not join_node(node, Inventory(boot_id="b", cpu_count=2))
    assert join_node(node, Inventory(boot_id="c", cpu_count=2))
