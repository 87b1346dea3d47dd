"""Nodes that fall silent: phases, the brake, and what becomes of containers, as tables."""

from typing import Any

import pytest

from pwm.api.v1.agent_pb2 import Assignment
from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.node_pb2 import Node, NodeStatus
from pwm.api.v1.workload_pb2 import ContainerStatus, WorkloadSpec, WorkloadStatus
from pwm.controlplane.core.assignments import assignment
from pwm.controlplane.core.decide import confirm_dead, delete_workload
from pwm.controlplane.core.nodes import (
    DEFAULT_TIMES,
    Contact,
    NodeTimes,
    NodeTimesError,
    Sight,
    Silence,
    brake_is_on,
    left_behind,
    losses,
    silence_said,
    verdicts,
)
from tests.unit.core.builders import container, workload

READY, NOT_READY, LOST = NodeStatus.READY, NodeStatus.NOT_READY, NodeStatus.LOST
MAINTENANCE = NodeStatus.MAINTENANCE
HERE = Contact(connected=True)
CALM_MS = 1e12


def node(
    name: str = "n1", phase: Any = READY, *, joined: bool = True, promised_ms: int = 120_000, **reason: Any
) -> Node:
    made = Node(kind="Node")
    made.metadata.name = name
    made.status.phase = phase
    made.status.inventory.cpu_count = 8 if joined else 0
    made.status.inventory.fenced_after_ms = promised_ms
    made.status.reason.CopyFrom(Reason(**reason))
    return made


def away(seconds: float) -> Contact:
    return Contact(connected=False, silent_ms=int(seconds * 1000))


def judged(*sights: Sight, calm_ms: float = CALM_MS, times: NodeTimes = DEFAULT_TIMES) -> list[str]:
    """The new phase of each node, by name; `-`: it stays as it is."""
    found = {n.metadata.name: NodeStatus.Phase.Name(phase) for n, phase, _ in verdicts(sights, times, calm_ms=calm_ms)}
    return [found.get(n.metadata.name, "-") for n, _ in sights]


# ---- phases


@pytest.mark.parametrize(
    ("phase", "contact", "becomes"),
    [
        (READY, HERE, "READY"),
        (NOT_READY, HERE, "READY"),
        (LOST, HERE, "READY"),
        (READY, away(0), "-"),
        (READY, away(14.9), "-"),
        (MAINTENANCE, away(14.9), "-"),
        (READY, away(15), "NOT_READY"),
        (MAINTENANCE, away(15), "NOT_READY"),
        (NOT_READY, away(1), "NOT_READY"),
        (NOT_READY, away(119.9), "NOT_READY"),
        (NOT_READY, away(120), "LOST"),
        (READY, away(120), "LOST"),
        (LOST, away(1), "-"),
        (LOST, away(500), "-"),
    ],
)
def test_silence_makes_a_node_not_ready_then_lost_and_contact_ready(phase: Any, contact: Contact, becomes: str) -> None:
    others = [(node(f"other{i}"), HERE) for i in range(3)]
    assert judged((node(phase=phase), contact), *others)[0] == becomes


def test_a_node_that_never_joined_is_not_lost_and_does_not_count() -> None:
    strangers = [(node(f"s{i}", NOT_READY, joined=False), away(1000)) for i in range(5)]
    assert judged((node(phase=NOT_READY), away(120)), (node("n2"), HERE), *strangers) == [
        "LOST", "READY", *["NOT_READY"] * 5
    ]  # fmt: skip


def test_a_node_whose_agent_promised_less_is_waited_for_as_long_as_it_may_take() -> None:
    """Settings were shortened while it was cut off: it only knows the longer ones."""
    short = NodeTimes.of(lost_after_ms=10_000)
    slow, quick = node("slow", NOT_READY, promised_ms=120_000), node("quick", NOT_READY, promised_ms=10_000)
    others = [(node(f"other{i}"), HERE) for i in range(4)]
    assert judged((slow, away(119)), (quick, away(10)), *others, times=short)[:2] == ["NOT_READY", "LOST"]
    assert judged((slow, away(120)), *others, times=short)[0] == "LOST"


def test_a_node_that_is_not_connected_is_said_to_be_silent_while_it_is_still_ready() -> None:
    assert silence_said(node(), away(3)) == "its agent has been silent for 3s"
    assert silence_said(node(), HERE) == ""
    assert silence_said(node(phase=NOT_READY), away(20)) == "", "its own reason says it"


# ---- the brake


@pytest.mark.parametrize(
    ("silent", "nodes", "brake"),
    [(0, 0, False), (1, 1, False), (1, 2, False), (2, 2, True), (2, 3, True), (2, 4, True), (2, 5, False),
     (3, 6, True), (4, 8, True), (3, 8, False), (8, 8, True)],
)  # fmt: skip
def test_half_of_the_nodes_but_more_than_one_put_the_brake_on(silent: int, nodes: int, brake: bool) -> None:
    sights = [(node(f"n{i}", NOT_READY), away(500) if i < silent else HERE) for i in range(nodes)]
    assert Silence(silent, nodes).brake is brake
    assert brake_is_on(sights) is brake
    calm_ms = 0.0 if brake else CALM_MS
    assert judged(*sights, calm_ms=calm_ms)[:silent] == ["NOT_READY" if brake else "LOST"] * silent


def test_nodes_that_are_lost_already_do_not_count() -> None:
    gone = [(node(f"gone{i}", LOST), away(5000)) for i in range(5)]
    assert judged((node(phase=NOT_READY), away(120)), (node("n2"), HERE), (node("n3"), HERE), *gone)[0] == "LOST"


def test_whoever_is_gone_for_a_moment_holds_the_brake_but_is_not_talked_of() -> None:
    sights = [(node("n1", NOT_READY), away(120)), (node("n2"), away(1)), (node("n3"), HERE)]
    assert brake_is_on(sights)
    (_, phase, reason), *_ = verdicts(sights, DEFAULT_TIMES, calm_ms=0)
    assert (phase, reason.message) == (NOT_READY, "its agent is not connected")


def test_once_the_brake_is_off_the_slower_half_has_a_grace_to_come_back() -> None:
    back, slow = [(node(f"b{i}", NOT_READY), HERE) for i in range(5)], (node("slow", NOT_READY), away(300))
    assert judged(slow, *back, calm_ms=0)[0] == "NOT_READY"
    assert judged(slow, *back, calm_ms=14_999)[0] == "NOT_READY"
    assert judged(slow, *back, calm_ms=15_000)[0] == "LOST"


def test_a_new_leader_learns_of_the_brake_from_the_log() -> None:
    sights = [(node(f"n{i}", NOT_READY), away(120) if i else HERE) for i in range(3)]
    (_, _, said), *_ = [v for v in verdicts(sights, DEFAULT_TIMES, calm_ms=0) if v[1] == NOT_READY]
    told = node("n1", NOT_READY, code=said.code, message=said.message)
    assert brake_is_on([(told, away(120)), *[(node(f"n{i}"), HERE) for i in range(2, 9)]])
    assert not brake_is_on([(node("n1", NOT_READY), away(120)), *[(node(f"n{i}"), HERE) for i in range(2, 9)]])


# ---- settings


@pytest.mark.parametrize(
    ("given", "becomes"),
    [
        ({}, NodeTimes(15_000, 120_000, 90_000)),
        ({"lost_after_ms": 10_000}, NodeTimes(4_000, 10_000, 7_500)),
        ({"lost_after_ms": 600_000}, NodeTimes(15_000, 600_000, 450_000)),
        ({"lost_after_ms": 12_000, "grace_ms": 5_000, "self_fence_ms": 8_000}, NodeTimes(5_000, 12_000, 8_000)),
    ],
)
def test_what_is_not_set_follows_from_the_time_after_which_a_node_is_lost(given: Any, becomes: NodeTimes) -> None:
    assert NodeTimes.of(**given) == becomes


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lost_after_ms": 9_999}, "at least 10s"),
        ({"grace_ms": 2_000}, "at least 3s"),
        ({"grace_ms": 120_000}, "must be shorter than the 2m"),
        ({"self_fence_ms": 118_000}, "more than 2s to end containers"),
        ({"self_fence_ms": 10_000}, "must not be shorter than a node's grace"),
    ],
)
def test_settings_that_cannot_work_together_are_refused(given: Any, said: str) -> None:
    with pytest.raises(NodeTimesError, match=said):
        NodeTimes.of(**given)


@pytest.mark.parametrize(
    "times", [DEFAULT_TIMES, NodeTimes.of(lost_after_ms=10_000), NodeTimes.of(lost_after_ms=60_000)]
)
def test_several_heartbeats_fit_into_each_time(times: NodeTimes) -> None:
    assert 1_000 <= times.heartbeat_ms <= 5_000
    assert times.session_silence_ms > 2.2 * times.heartbeat_ms
    assert times.self_fence_ms >= 6 * times.heartbeat_ms
    assert times.session_silence_ms < times.grace_ms


# ---- containers


def placed(on_lost: Any, phase: Any = ContainerStatus.RUNNING) -> Any:
    made = container(phase=phase)
    made.spec.on_node_lost = on_lost
    return made


RUN, STOPPED = workload(), workload(desired=WorkloadStatus.STOP)
DELETED = workload(desired=WorkloadStatus.DELETE)
MOVES, WAITS, UNSAID = WorkloadSpec.reschedule, WorkloadSpec.wait, WorkloadSpec.ON_NODE_LOST_UNSPECIFIED


@pytest.mark.parametrize(
    ("on_lost", "of", "promised_ms", "is_lost"),
    [
        (MOVES, RUN, 120_000, True),
        (MOVES, STOPPED, 120_000, True),
        (MOVES, RUN, 0, False),  # an agent that never promised to end it
        (WAITS, RUN, 120_000, False),
        (UNSAID, RUN, 120_000, False),
        (WAITS, STOPPED, 120_000, False),
        (WAITS, DELETED, 120_000, True),
        (WAITS, None, 120_000, True),
        (MOVES, DELETED, 0, True),
    ],
)
def test_a_container_is_lost_with_its_node_if_it_may_have_a_successor_or_nobody_waits_for_it(
    on_lost: Any, of: Any, promised_ms: int, is_lost: bool
) -> None:
    there = node(phase=LOST, promised_ms=promised_ms)
    for phase in (ContainerStatus.ASSIGNED, ContainerStatus.PULLING, ContainerStatus.RUNNING, ContainerStatus.EXITING):
        found = losses(there, [placed(on_lost, phase)], lambda uid: of)
        assert [reported.phase for _, reported in found] == ([ContainerStatus.LOST] if is_lost else [])
    for phase in (ContainerStatus.EXITED, ContainerStatus.FAILED, ContainerStatus.LOST):
        assert losses(there, [placed(on_lost, phase)], lambda uid: of) == []


@pytest.mark.parametrize("phase", [READY, NOT_READY, MAINTENANCE])
def test_nothing_is_lost_before_its_node_is(phase: Any) -> None:
    assert losses(node(phase=phase), [placed(MOVES)], lambda uid: RUN) == []


def test_on_a_node_that_is_confirmed_dead_everything_has_failed() -> None:
    (said,) = confirm_dead(node(phase=NOT_READY))
    dead = node(phase=said.phase, code=said.reason.code, message=said.reason.message)
    assert (dead.status.phase, confirm_dead(dead)) == (LOST, ())
    there = [placed(WAITS), placed(MOVES, ContainerStatus.LOST), placed(WAITS, ContainerStatus.EXITED)]
    found = losses(dead, there, lambda uid: RUN)
    assert [(c.status.phase, r.phase, r.reason.code) for c, r in found] == [
        (ContainerStatus.RUNNING, ContainerStatus.FAILED, Reason.NODE_CONFIRMED_DEAD),
        (ContainerStatus.LOST, ContainerStatus.FAILED, Reason.NODE_CONFIRMED_DEAD),
    ]
    assert judged((dead, away(1))) == ["-"], "it stays so while it is silent"
    assert judged((dead, HERE)) == ["READY"], "and is believed when it speaks"


def test_the_agent_of_a_node_that_is_back_is_told_to_stop_what_was_lost() -> None:
    lost = placed(MOVES, ContainerStatus.LOST)
    lost.status.reason.code = Reason.NODE_UNREACHABLE
    order = assignment(lost)
    assert order is not None
    assert (order.desired, order.reason.code) == (Assignment.STOP, Reason.NODE_UNREACHABLE)


def test_a_workload_with_nothing_but_lost_containers_is_deleted_at_once() -> None:
    (removed,) = delete_workload(workload(), [placed(MOVES, ContainerStatus.LOST)])
    assert removed.DESCRIPTOR.name == "Removed"


def test_deleting_says_what_is_left_on_a_node_out_of_reach() -> None:
    there = {"n1": node(phase=LOST, code=Reason.NODE_UNREACHABLE)}
    (said,) = left_behind([placed(WAITS), placed(WAITS, ContainerStatus.EXITED)], there.get)
    assert said.startswith("train.0.1 may still run on node n1, which is out of reach")
    assert left_behind([placed(WAITS)], {"n1": node()}.get) == []
