"""A workload's phase is a table: each row here is containers in, phase and reason out."""

from collections.abc import Sequence
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from pwm.api.v1.common_pb2 import Actor, Reason
from pwm.api.v1.workload_pb2 import Config, Container, ContainerStatus, Workload, WorkloadStatus
from pwm.controlplane.core.status import PRECEDENCE, Situation, replica_states, workload_status

C = ContainerStatus
W = WorkloadStatus


def workload(
    *,
    count: int = 1,
    policy: Config.RestartPolicy.ValueType = Config.Never,
    desired: WorkloadStatus.Desired.ValueType = W.RUN,
    first_attempt: int = 1,
    max_attempts: int = 0,
    gpus: int = 0,
) -> Workload:
    made = Workload(kind="Workload")
    made.metadata.name = "train"
    made.metadata.created_at.FromSeconds(100)
    made.metadata.updated_at.FromSeconds(150)
    made.metadata.created_by.CopyFrom(Actor(type=Actor.USER, name="anna"))
    made.spec.replica.count = count
    made.spec.config.restart_policy = policy
    made.spec.config.max_attempts = max_attempts
    made.spec.selectors.gpu.count = gpus
    made.status.desired = desired
    made.status.first_attempt = first_attempt
    made.status.generation = 1
    made.status.desired_at.FromSeconds(120)
    made.status.desired_by.CopyFrom(Actor(type=Actor.USER, name="bruno"))
    return made


def container(
    phase: ContainerStatus.Phase.ValueType,
    *,
    replica: int = 0,
    attempt: int = 1,
    node: str = "n1",
    exit_code: int | None = None,
    since: int = 200,
    **fields: Any,
) -> Container:
    made = Container(kind="Container")
    made.spec.replica, made.spec.attempt, made.spec.node, made.spec.image = replica, attempt, node, "ubuntu"
    made.spec.resources.memory_bytes = 512 * 1024**2
    made.spec.failures_before = attempt - 1  # each attempt before it had failed
    made.status.phase = phase
    made.status.since.FromSeconds(since)
    if phase not in (C.ASSIGNED, C.PULLING, C.CREATING) and not fields.pop("never_ran", False):
        made.status.started_at.FromSeconds(since - 10)
    if exit_code is not None:
        made.status.exit_code = exit_code
    if "reason" in fields:
        made.status.reason.CopyFrom(fields.pop("reason"))
    if "stop" in fields:
        made.status.stop_requested.CopyFrom(Reason(code=fields.pop("stop")))
    made.status.oom_killed = fields.pop("oom_killed", False)
    made.spec.gpu_uuids.extend(fields.pop("gpus", ()))
    assert not fields
    return made


def status(
    of: Workload, *containers: Container, waiting: Reason | None = None, unreachable: Sequence[str] = ()
) -> WorkloadStatus:
    return workload_status(of, containers, waiting=waiting, nodes_unreachable=unreachable)


EXITED, FAILED, LOST, RUNNING = C.EXITED, C.FAILED, C.LOST, C.RUNNING
AWAY = "away"
NO_GPU = Reason(code=Reason.NO_GPU_FREE, message="no GPU is free")
ended = container(EXITED, exit_code=0)

ROWS: list[tuple[str, Workload, list[Container], WorkloadStatus.Phase.ValueType, Reason.Code.ValueType]] = [
    ("nothing placed yet", workload(), [], W.QUEUED, Reason.WAITING_FOR_SCHEDULER),
    ("assigned", workload(), [container(C.ASSIGNED)], W.ASSIGNED, Reason.NONE),
    ("pulling", workload(), [container(C.PULLING)], W.PULLING, Reason.NONE),
    ("creating", workload(), [container(C.CREATING)], W.LAUNCHING, Reason.NONE),
    ("running", workload(), [container(RUNNING)], W.RUNNING, Reason.NONE),
    ("exiting by itself", workload(), [container(C.EXITING)], W.STOPPING, Reason.NONE),
    ("lost, before its successor", workload(), [container(LOST)], W.QUEUED, Reason.WAITING_FOR_SCHEDULER),
    ("out of reach", workload(), [container(RUNNING, node=AWAY)], W.UNKNOWN, Reason.NODE_UNREACHABLE),
    ("lost, with its successor", workload(), [container(LOST), container(RUNNING, attempt=2)], W.RUNNING, Reason.NONE),
    ("ended with 0", workload(), [ended], W.EXITED, Reason.COMPLETED),
    ("ended with 3", workload(), [container(EXITED, exit_code=3)], W.CRASHED, Reason.EXIT_CODE),
    ("failed with 3", workload(), [container(FAILED, exit_code=3)], W.CRASHED, Reason.EXIT_CODE),
    ("killed", workload(), [container(FAILED, exit_code=137)], W.CRASHED, Reason.KILLED_BY_SIGNAL),
    ("out of memory", workload(), [container(FAILED, exit_code=137, oom_killed=True)], W.CRASHED, Reason.MEMORY_LIMIT),
    (
        "never pulled",
        workload(),
        [container(FAILED, never_ran=True, reason=Reason(code=Reason.PULL_FAILED, message="no such tag"))],
        W.CRASHED,
        Reason.PULL_FAILED,
    ),
    (
        "time limit",
        workload(),
        [container(FAILED, exit_code=143, stop=Reason.TIME_LIMIT)],
        W.STOPPED,
        Reason.TIME_LIMIT,
    ),
    (
        "backing off",
        workload(policy=Config.OnFailure),
        [container(FAILED, exit_code=1)],
        W.QUEUED,
        Reason.BACK_OFF,
    ),
    ("OnFailure and ended with 0", workload(policy=Config.OnFailure), [ended], W.EXITED, Reason.COMPLETED),
    ("Always and ended with 0", workload(policy=Config.Always), [ended], W.QUEUED, Reason.BACK_OFF),
    (
        "no attempt left",
        workload(policy=Config.OnFailure, max_attempts=2),
        [container(FAILED, attempt=1, exit_code=1), container(FAILED, attempt=2, exit_code=1)],
        W.CRASHED,
        Reason.MAX_RETRY_REACHED,
    ),
    (
        "second attempt runs",
        workload(policy=Config.OnFailure),
        [container(FAILED, attempt=1, exit_code=1), container(RUNNING, attempt=2)],
        W.RUNNING,
        Reason.NONE,
    ),
    ("drained", workload(), [container(EXITED, exit_code=143, stop=Reason.NODE_DRAINED)], W.QUEUED,
     Reason.WAITING_FOR_SCHEDULER),
    ("being drained", workload(), [container(RUNNING, stop=Reason.NODE_DRAINED)], W.STOPPING, Reason.NODE_DRAINED),
    ("an earlier run still runs", workload(first_attempt=2), [container(RUNNING)], W.LAUNCHING, Reason.REPLACED),
    ("an earlier run has ended", workload(first_attempt=2), [ended], W.QUEUED, Reason.WAITING_FOR_SCHEDULER),
    ("one of two runs", workload(count=2), [container(RUNNING)], W.RUNNING, Reason.WAITING_FOR_SCHEDULER),
    (
        "one runs, one crashed",
        workload(count=2),
        [container(RUNNING), container(FAILED, replica=1, exit_code=1)],
        W.RUNNING,
        Reason.EXIT_CODE,
    ),
    (
        "one ended well, one crashed",
        workload(count=2),
        [ended, container(FAILED, replica=1, exit_code=1)],
        W.CRASHED,
        Reason.EXIT_CODE,
    ),
    ("one pulls, one waits", workload(count=2), [container(C.PULLING)], W.PULLING, Reason.NONE),
    ("scaled to 0", workload(count=0), [ended], W.STOPPED, Reason.SCALED_DOWN),
    ("being scaled to 0", workload(count=0), [container(RUNNING)], W.STOPPING, Reason.SCALED_DOWN),
    ("stopping", workload(desired=W.STOP), [container(RUNNING)], W.STOPPING, Reason.STOPPED_BY_USER),
    ("stopped", workload(desired=W.STOP), [container(EXITED, exit_code=143)], W.STOPPED, Reason.STOPPED_BY_USER),
    ("stopped before it was placed", workload(desired=W.STOP), [], W.STOPPED, Reason.STOPPED_BY_USER),
    ("pausing", workload(desired=W.PAUSE), [container(RUNNING)], W.PAUSING, Reason.STOPPED_BY_USER),
    ("paused", workload(desired=W.PAUSE), [ended], W.PAUSED, Reason.STOPPED_BY_USER),
    ("deleting", workload(desired=W.DELETE), [container(RUNNING)], W.STOPPING, Reason.DELETED_BY_USER),
    ("deleted", workload(desired=W.DELETE), [ended], W.DELETED, Reason.DELETED_BY_USER),
    ("stopped, and lost", workload(desired=W.STOP), [container(LOST)], W.STOPPED, Reason.STOPPED_BY_USER),
]  # fmt: skip


@pytest.mark.parametrize(("of", "containers", "phase", "reason"), [r[1:] for r in ROWS], ids=[r[0] for r in ROWS])
def test_the_phase_follows_from_the_containers(
    of: Workload,
    containers: list[Container],
    phase: WorkloadStatus.Phase.ValueType,
    reason: Reason.Code.ValueType,
) -> None:
    found = status(of, *containers, unreachable=[AWAY])
    assert W.Phase.Name(found.phase) == W.Phase.Name(phase)
    assert Reason.Code.Name(found.reason.code) == Reason.Code.Name(reason)
    assert found.since.seconds > 0
    assert found.by.name
    if found.phase != W.RUNNING:
        assert found.reason.message, "a status that is not RUNNING says why"


def test_every_situation_has_its_place_in_the_table() -> None:
    assert {situation for situation, _ in PRECEDENCE} == set(Situation)
    assert len(PRECEDENCE) == len(set(PRECEDENCE))


def test_the_table_of_the_tests_reaches_every_situation() -> None:
    reached = {
        state.situation
        for _, of, containers, *_ in ROWS
        for state in replica_states(of, containers, nodes_unreachable=[AWAY])
    }
    assert reached == set(Situation)


def test_waiting_says_what_the_scheduler_says() -> None:
    found = status(workload(), waiting=NO_GPU)
    assert found.phase == W.QUEUED
    assert found.reason == NO_GPU


def test_a_wait_that_waiting_cannot_end_is_a_denial() -> None:
    reason = Reason(code=Reason.OUT_OF_CREDITS, message="the week's credits are spent")
    found = status(workload(), waiting=reason)
    assert found.phase == W.DENIED
    assert found.reason == reason


def test_a_container_on_a_node_out_of_reach_may_still_run() -> None:
    found = status(workload(), container(RUNNING, node="far"), unreachable=["far"])
    assert found.phase == W.UNKNOWN
    assert found.running == 0
    assert found.reason.message == "node is out of reach: far; its container may still run there"


def test_an_ended_container_does_not_care_for_its_node() -> None:
    assert status(workload(), ended, unreachable=["n1"]).phase == W.EXITED


def test_a_workload_that_is_stopped_while_out_of_reach_is_not_called_stopped() -> None:
    found = status(workload(desired=W.STOP), container(RUNNING, node="far"), unreachable=["far"])
    assert (found.phase, found.reason.code) == (W.STOPPING, Reason.NODE_UNREACHABLE)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (container(FAILED, exit_code=137, oom_killed=True), "exited with code 137: out of memory (limit 512MiB)"),
        (container(FAILED, exit_code=137), "exited with code 137 (SIGKILL)"),
        (container(FAILED, exit_code=3), "exited with code 3"),
        (container(FAILED), "ended without an exit code"),
        (
            container(FAILED, never_ran=True, reason=Reason(code=Reason.IMAGE_NOT_PRESENT, message="no image x")),
            "did not start: no image x",
        ),
    ],
)
def test_a_crash_is_told_in_one_sentence(made: Container, words: str) -> None:
    assert status(workload(), made).reason.message == words
    made.spec.replica = 1
    assert status(workload(count=2), ended, made).reason.message == f"replica 1 {words}"


def test_the_last_of_several_attempts_says_how_many_there_were() -> None:
    attempts = [container(FAILED, attempt=n, exit_code=2) for n in (1, 2, 3)]
    found = status(workload(policy=Config.OnFailure, max_attempts=3), *attempts)
    assert found.reason.message == "exited with code 2, and so 3 times in a row"
    assert (found.exit_code, found.restarts, found.ended) == (2, 2, 1)


def test_counts_nodes_and_gpus_are_those_of_the_present_run() -> None:
    found = status(
        workload(count=3, gpus=2),
        container(RUNNING, replica=0, node="b", gpus=["1", "2"]),
        container(RUNNING, replica=1, node="a", gpus=["3", "4"]),
        container(FAILED, replica=2, exit_code=1, node="c"),
    )
    assert (found.replicas, found.running, found.ended, found.gpus) == (3, 2, 1, 4)
    assert list(found.nodes) == ["a", "b"]
    assert found.exit_code == 1


def test_a_workload_that_ended_keeps_its_nodes() -> None:
    assert list(status(workload(), ended).nodes) == ["n1"]


def test_restarts_are_counted_from_the_first_attempt_of_the_run() -> None:
    assert status(workload(first_attempt=5), container(RUNNING, attempt=7)).restarts == 2
    assert status(workload(first_attempt=5), container(RUNNING, attempt=5)).restarts == 0


def test_a_phase_is_dated_by_what_brought_it_about() -> None:
    assert status(workload()).since == Timestamp(seconds=120)
    assert status(
        workload(count=2), container(RUNNING, since=300), container(RUNNING, replica=1, since=200)
    ).since == Timestamp(seconds=200)
    assert status(workload(count=2), ended, container(EXITED, replica=1, exit_code=0, since=400)).since.seconds == 400
    assert status(workload(desired=W.STOP), container(RUNNING)).since.seconds == 120
    assert status(workload(desired=W.STOP), container(EXITED, exit_code=143, since=130)).since.seconds == 130


def test_a_phase_names_who_brought_it_about() -> None:
    assert status(workload()).by.name == "bruno"
    assert status(workload(desired=W.STOP), container(RUNNING)).by.name == "bruno"
    assert status(workload(), container(RUNNING, node="n7")).by == Actor(type=Actor.NODE, name="n7")


def test_what_is_stored_stays_and_the_given_messages_are_not_touched() -> None:
    of, one = workload(desired=W.STOP, first_attempt=4), container(RUNNING, attempt=4)
    before = (of.SerializeToString(), one.SerializeToString())
    found = status(of, one)
    assert (found.desired, found.first_attempt, found.generation) == (W.STOP, 4, 1)
    assert (of.SerializeToString(), one.SerializeToString()) == before
