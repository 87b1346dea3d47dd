"""The agent's core from end to end: a scripted controller on one side, containers in memory on the other."""

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from pwm.api.v1.agent_pb2 import (
    Assignment,
    Assignments,
    Configure,
    ExecInput,
    ForgetContainers,
    InspectContainer,
    ListProcesses,
    ReadLogs,
    RelayError,
    RelayResponse,
    SessionResponse,
    StartExec,
    TerminalSize,
)
from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.workload_pb2 import Image
from pwm.nodeagent.drivers.driver import DriverError, Runtime
from pwm.nodeagent.supervisor import STARTS_PER_CORE
from tests.unit.nodeagent.fakes import FakeController, FakeDriver, RunningAgent, order, until

# -- a container's life


async def test_an_assignment_is_created_started_and_reported(
    agent: RunningAgent, controller: FakeController, driver: FakeDriver
) -> None:
    await controller.want(order("a"))
    reported = await controller.reported("a", "RUNNING")
    assert controller.phases("a") == ["RUNNING"]
    assert reported.runtime_id == "runtime-1"
    assert reported.started_at.seconds == 1
    assert driver.count("prepare", "a") == 0, "an image that is present costs no question"


async def test_an_end_is_reported_with_its_code_then_removed_then_forgotten(
    agent: RunningAgent, controller: FakeController, driver: FakeDriver
) -> None:
    await controller.want(order("a"))
    await controller.reported("a", "RUNNING")
    driver.end("a", 3)
    end = await controller.reported("a", "EXITED")
    assert (end.exit_code, end.reason.code, end.finished_at.seconds) == (3, Reason.EXIT_CODE, 2)
    await until(lambda: "a" not in driver.containers)
    await controller.drop("a")
    await until(lambda: agent.agent.supervisor.find("a") is None)
    assert driver.count("start", "a") == 1


async def test_a_successor_on_the_same_machine_starts_when_the_one_before_it_has_ended(
    agent: RunningAgent, controller: FakeController, driver: FakeDriver
) -> None:
    await controller.want(order("w.0.1", stop_grace_ms=600_000))
    await controller.reported("w.0.1", "RUNNING")
    driver.containers["w.0.1"].ignores_stop = True
    # As after a time in which neither the agent nor its watchdog was there to end what may start elsewhere.
    await controller.want(order("w.0.1", desired=Assignment.STOP, stop_grace_ms=600_000), order("w.0.2", attempt=2))
    await until(lambda: driver.count("stop", "w.0.1") and driver.count("create", "w.0.2"))
    await controller.want(order("w.1.2", attempt=2), order("v.0.2", attempt=2))
    for bystander in ("w.1.2", "v.0.2"):
        await controller.reported(bystander, "RUNNING")
    assert driver.count("start", "w.0.2") == 0
    driver.end("w.0.1", 143)
    await controller.reported("w.0.2", "RUNNING")


async def test_nothing_is_removed_before_the_report_of_the_end_is_acknowledged(
    agent: RunningAgent, controller: FakeController, driver: FakeDriver
) -> None:
    controller.acknowledges = False
    await controller.want(order("a"))
    await controller.reported("a", "RUNNING")
    driver.end("a", 0)
    await controller.reported("a", "EXITED")
    assert driver.count("remove", "a") == 0
    await controller.acknowledge(controller.received[-1].sequence)
    await until(lambda: driver.count("remove", "a"))


@pytest.mark.parametrize(
    ("exit_code", "oom_killed", "code"),
    [
        (0, False, Reason.COMPLETED),
        (1, False, Reason.EXIT_CODE),
        (255, False, Reason.EXIT_CODE),
        (137, False, Reason.KILLED_BY_SIGNAL),
        (139, False, Reason.KILLED_BY_SIGNAL),
        (137, True, Reason.MEMORY_LIMIT),
    ],
)
async def test_an_end_has_a_reason(
    agent: RunningAgent,
    controller: FakeController,
    driver: FakeDriver,
    exit_code: int,
    oom_killed: bool,
    code: Reason.Code.ValueType,
) -> None:
    await controller.want(order("a", resources={"memory_bytes": 1 << 30}))
    await controller.reported("a", "RUNNING")
    driver.end("a", exit_code, oom_killed=oom_killed)
    end = await controller.reported("a", "EXITED")
    assert end.reason.code == code
    assert end.oom_killed is oom_killed
    assert "1GiB" in end.reason.message or not oom_killed


async def test_a_stop_is_reported_twice_and_gives_the_reason_it_was_asked_for(
    agent: RunningAgent, controller: FakeController, driver: FakeDriver
) -> None:
    await controller.want(order("a"))
    await controller.reported("a", "RUNNING")
    stop = order("a", desired=Assignment.STOP)
    stop.reason.code = Reason.STOPPED_BY_USER
    await controller.want(stop)
    end = await controller.reported("a", "EXITED")
    assert controller.phases("a") == ["RUNNING", "EXITING", "EXITED"]
    assert (end.reason.code, end.exit_code) == (Reason.STOPPED_BY_USER, 143)


async def test_a_container_stopped_before_it_ran_never_starts(
    agent: RunningAgent, controller: FakeController, driver: FakeDriver
) -> None:
    driver.pull_may_end.clear()
    await controller.want(order("a", image="pullable"))
    await controller.reported("a", "PULLING")
    await controller.want(order("a", image="pullable", desired=Assignment.STOP))
    end = await controller.reported("a", "EXITED")
    assert not end.HasField("exit_code")
    assert driver.count("start", "a") == 0


async def test_a_start_that_takes_its_time_is_told_on_the_way(
    agent: RunningAgent, controller: FakeController, driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pwm.nodeagent.container.START_WITHOUT_WORD_S", 0.01)
    driver.start_may_end.clear()
    await controller.want(order("a"))
    await controller.reported("a", "CREATING")
    driver.start_may_end.set()
    await controller.reported("a", "RUNNING")
    assert controller.phases("a") == ["CREATING", "RUNNING"]


async def test_a_missing_image_is_pulled_with_progress(
    agent: RunningAgent, controller: FakeController, driver: FakeDriver
) -> None:
    driver.pull_may_end.clear()
    await controller.want(order("a", image="pullable"))
    await until(lambda: any(c.pull.total_bytes == 2 for u in controller.usages for c in u.containers))
    driver.pull_may_end.set()
    await controller.reported("a", "RUNNING")
    assert controller.phases("a") == ["PULLING", "RUNNING"]
    assert driver.count("prepare", "a") == 1


async def test_pull_policy_always_pulls_what_is_there(
    agent: RunningAgent, controller: FakeController, driver: FakeDriver
) -> None:
    await controller.want(order("a", pull_policy=Image.Always))
    await controller.reported("a", "RUNNING")
    assert controller.phases("a") == ["PULLING", "RUNNING"]
    assert driver.calls.index(("prepare", "a")) < driver.calls.index(("create", "a"))


async def test_an_image_that_is_nowhere_fails_the_attempt_once(
    agent: RunningAgent, controller: FakeController, driver: FakeDriver
) -> None:
    await controller.want(order("a", image="nowhere"))
    end = await controller.reported("a", "FAILED")
    assert end.reason.code == Reason.IMAGE_NOT_PRESENT
    assert driver.count("prepare", "a") == 1


async def test_a_start_that_fails_is_reported_and_what_was_created_is_removed(
    agent: RunningAgent, controller: FakeController, driver: FakeDriver
) -> None:
    driver.start_error = DriverError(Reason.COMMAND_NOT_FOUND, "there is no such command", exit_code=127)
    await controller.want(order("a"))
    end = await controller.reported("a", "FAILED")
    assert (end.reason.code, end.exit_code) == (Reason.COMMAND_NOT_FOUND, 127)
    await until(lambda: "a" not in driver.containers)
    assert driver.count("start", "a") == 1


async def test_an_unknown_driver_is_refused_with_a_reason(agent: RunningAgent, controller: FakeController) -> None:
    await controller.want(order("a", driver="pwm.process"))
    end = await controller.reported("a", "FAILED")
    assert end.reason.code == Reason.DRIVER_NOT_ALLOWED
    await controller.drop("a")
    await until(lambda: agent.agent.supervisor.find("a") is None)


async def test_a_container_removed_behind_our_back_is_reported_and_not_made_again(
    agent: RunningAgent, controller: FakeController, driver: FakeDriver
) -> None:
    await controller.want(order("a"))
    await controller.reported("a", "RUNNING")
    driver.vanish("a")
    end = await controller.reported("a", "FAILED")
    assert end.reason.code == Reason.CONTAINER_DISAPPEARED
    assert driver.count("create", "a") == 1


async def test_fifty_containers_start_within_the_limit_of_starts_at_once(
    agent: RunningAgent, controller: FakeController, driver: FakeDriver
) -> None:
    at_once, most = 0, 0
    start = driver.start

    async def counted(uid: str) -> object:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.002)
        at_once -= 1
        return await start(uid)

    driver.start = counted  # type: ignore[method-assign,assignment]
    await controller.want(*(order(f"c{n}") for n in range(50)))
    await until(lambda: all("RUNNING" in controller.phases(f"c{n}") for n in range(50)))
    assert 1 < most <= STARTS_PER_CORE * (os.cpu_count() or 1)


async def test_a_mistake_of_the_agents_own_costs_only_that_container(
    agent: RunningAgent, controller: FakeController, driver: FakeDriver
) -> None:
    driver.create_error = ZeroDivisionError()  # type: ignore[assignment]
    await controller.want(order("a"))
    end = await controller.reported("a", "FAILED")
    assert "mistake" in end.reason.message
    driver.create_error = None
    await controller.want(order("b"))
    await controller.reported("b", "RUNNING")


# -- the engine


async def test_an_engine_that_is_away_ends_nothing_and_is_said(
    agent: RunningAgent, controller: FakeController, driver: FakeDriver
) -> None:
    await controller.want(order("a"))
    await controller.reported("a", "RUNNING")
    driver.away = True
    await controller.want(order("b"))
    await until(lambda: controller.inventories and not controller.inventories[-1].drivers[0].ready)
    assert controller.inventories[-1].drivers[0].message == "the engine is away"
    driver.away = False
    await controller.reported("b", "RUNNING")
    await until(lambda: controller.inventories[-1].drivers[0].ready)
    assert controller.phases("a") == ["RUNNING"]


async def test_an_agent_that_starts_without_its_engine_touches_nothing_until_it_is_back(
    controller: FakeController, driver: FakeDriver, tmp_path: Path
) -> None:
    agent = RunningAgent(controller, driver, tmp_path)
    await agent.start()
    await controller.want(order("a"))
    await controller.reported("a", "RUNNING")
    await agent.stop()
    driver.away = True
    await agent.start()
    try:
        await until(lambda: agent.agent.supervisor.find("a"))
        driver.away = False
        driver.end("a", 0)
        await controller.reported("a", "EXITED")
        assert driver.count("create", "a") == 1
    finally:
        await agent.stop()


# -- restarts


async def test_a_restarted_agent_adopts_what_runs_and_reports_nothing_twice(
    agent: RunningAgent, controller: FakeController, driver: FakeDriver
) -> None:
    await controller.want(order("a"))
    await controller.reported("a", "RUNNING")
    await until(lambda: not list(agent.journal.pending(after=0)))
    await agent.stop()
    assert driver.containers["a"].runtime is Runtime.RUNNING, "a stop of the agent stops no container"
    await agent.start()
    await until(lambda: (found := agent.agent.supervisor.find("a")) and found.is_running)
    driver.end("a", 0)
    await controller.reported("a", "EXITED")
    assert controller.phases("a") == ["RUNNING", "EXITED"]
    assert (driver.count("create", "a"), driver.count("start", "a")) == (1, 1)


async def test_an_end_that_came_while_the_agent_was_away_is_reported_after_it(
    agent: RunningAgent, controller: FakeController, driver: FakeDriver
) -> None:
    await controller.want(order("a"))
    await controller.reported("a", "RUNNING")
    await agent.stop()
    driver.end("a", 9)
    await agent.start()
    assert (await controller.reported("a", "EXITED")).exit_code == 9


async def test_an_agent_without_a_journal_finds_its_containers_by_their_labels(
    agent: RunningAgent, controller: FakeController, driver: FakeDriver
) -> None:
    await controller.want(order("a"))
    await controller.reported("a", "RUNNING")
    await agent.stop()
    (agent.state_dir / "journal.db").write_bytes(b"spoilt" * 1000)
    for suffix in ("-wal", "-shm"):
        (agent.state_dir / f"journal.db{suffix}").unlink(missing_ok=True)
    controller.received.clear()
    await agent.start()
    reported = await controller.reported("a", "RUNNING")
    assert reported.pid == 42
    assert driver.count("create", "a") == 1


async def test_a_container_that_ran_and_left_no_trace_is_not_run_again(
    agent: RunningAgent, controller: FakeController, driver: FakeDriver
) -> None:
    known = order("a")
    known.started = True
    await controller.want(known)
    end = await controller.reported("a", "FAILED")
    assert end.reason.code == Reason.CONTAINER_DISAPPEARED
    assert driver.count("create", "a") == 0


async def test_containers_that_no_assignment_names_are_stopped_and_removed(
    agent: RunningAgent, controller: FakeController, driver: FakeDriver
) -> None:
    await controller.want(order("a"), order("b"))
    await controller.reported("a", "RUNNING")
    await controller.reported("b", "RUNNING")
    await agent.stop()
    del controller.wanted["a"]
    await agent.start()
    await until(lambda: "a" not in driver.containers and agent.agent.supervisor.find("a") is None)
    assert driver.containers["b"].runtime is Runtime.RUNNING


async def test_while_no_controller_answers_running_containers_are_left_alone(
    controller: FakeController, driver: FakeDriver, tmp_path: Path
) -> None:
    agent = RunningAgent(controller, driver, tmp_path)
    await agent.start()
    await controller.want(order("a"), order("b"))
    await controller.reported("a", "RUNNING")
    await controller.reported("b", "RUNNING")
    await agent.stop()
    await controller.stop()
    await agent.start(connected=False)
    try:
        await until(lambda: (found := agent.agent.supervisor.find("a")) and found.is_running)
        driver.end("b", 5)
        port = int(controller.address.rpartition(":")[2])
        await controller.start(port)
        assert (await controller.reported("b", "EXITED")).exit_code == 5
        assert driver.containers["a"].runtime is Runtime.RUNNING
    finally:
        await agent.stop()


# -- the session


async def test_hello_tells_who_and_what_the_node_is(agent: RunningAgent, controller: FakeController) -> None:
    (hello,) = controller.hellos
    assert hello.node == "n1"
    assert hello.inventory.labels == {"rack": "r1"}
    assert hello.inventory.cpu_count == os.cpu_count()
    assert hello.inventory.memory_bytes > 0
    assert hello.inventory.boot_id
    assert [(d.name, d.ready) for d in hello.inventory.drivers] == [("pwm.fake", True)]


async def test_heartbeats_carry_usage_at_the_configured_interval(
    agent: RunningAgent, controller: FakeController
) -> None:
    await controller.want(order("a"))
    await until(lambda: controller.usages and any(c.memory_bytes == 7 for c in controller.usages[-1].containers))
    await controller.say(SessionResponse(configure=Configure(heartbeat_ms=3_600_000)))
    await controller.say(SessionResponse(configure=Configure(heartbeat_ms=20)))
    seen = len(controller.usages)
    await until(lambda: len(controller.usages) > seen + 3)


async def test_unacknowledged_reports_are_sent_again_in_order_by_the_next_session(
    agent: RunningAgent, controller: FakeController, driver: FakeDriver
) -> None:
    controller.acknowledges = False
    await controller.want(order("a"))
    await controller.reported("a", "RUNNING")
    before = [r.sequence for r in controller.received]
    controller.received.clear()
    await controller.stop()
    port = int(controller.address.rpartition(":")[2])
    driver.end("a", 0)
    await controller.start(port)
    await controller.reported("a", "EXITED")
    assert [r.sequence for r in controller.received] == [*before, before[-1] + 1]
    assert driver.count("create", "a") == 1


async def test_a_gap_in_the_chain_of_changes_makes_the_agent_ask_for_everything(
    agent: RunningAgent, controller: FakeController
) -> None:
    controller.wanted["missed"] = order("missed")
    gap = Assignments(applies_to=77, results_in=78, set=[order("b")])
    await controller.say(SessionResponse(assignments=gap))
    await until(lambda: controller.sessions == 2)
    await controller.reported("missed", "RUNNING")
    assert controller.phases("b") == []


async def test_an_older_epoch_is_not_obeyed(
    agent: RunningAgent, controller: FakeController, driver: FakeDriver
) -> None:
    await controller.want(order("a"))
    await controller.reported("a", "RUNNING")
    stale = order("stale")
    controller.wanted = {"stale": stale}
    controller.next_epoch = controller.epoch
    # A gap makes it dial again: first it meets the old epoch with other wishes, then a new one.
    held = controller.epoch
    await controller.say(SessionResponse(assignments=Assignments(applies_to=99, results_in=100)))
    await until(lambda: controller.next_epoch is None)
    controller.wanted = {"a": order("a")}
    await until(lambda: controller.epoch > held and controller.connected)
    await controller.want(order("b"))
    await controller.reported("b", "RUNNING")
    assert driver.count("create", "stale") == 0
    assert driver.containers["a"].runtime is Runtime.RUNNING


async def test_the_next_server_is_tried_when_one_is_away(
    controller: FakeController, driver: FakeDriver, tmp_path: Path
) -> None:
    alone = controller.address
    controller.address = "127.0.0.1:1"
    agent = RunningAgent(controller, driver, tmp_path)
    agent_config_servers = ("127.0.0.1:1", alone)
    await agent.start(connected=False, servers=agent_config_servers)
    try:
        await until(lambda: agent.agent.sessions.connected_to == alone)
    finally:
        await agent.stop()


# -- streams


async def test_logs_are_followed_to_the_end_of_the_container(
    agent: RunningAgent, controller: FakeController, driver: FakeDriver
) -> None:
    await controller.want(order("a"))
    await controller.reported("a", "RUNNING")
    driver.print("a", b"first\n")
    stream = await controller.ask(logs=ReadLogs(container_uid="a", follow=True, tail=-1))
    frame = await stream.next()
    assert frame is not None
    assert frame.log.data == b"first\n"
    driver.print("a", b"last\n")
    driver.end("a", 0)
    rest = b"".join(f.log.data for f in await stream.all())
    assert rest == b"last\n"
    await controller.reported("a", "EXITED")


async def test_logs_may_be_asked_for_before_there_is_a_container(
    agent: RunningAgent, controller: FakeController, driver: FakeDriver
) -> None:
    driver.pull_may_end.clear()
    await controller.want(order("a", image="pullable"))
    stream = await controller.ask(logs=ReadLogs(container_uid="a", follow=True, tail=-1))
    await controller.reported("a", "PULLING")
    driver.pull_may_end.set()
    await controller.reported("a", "RUNNING")
    driver.print("a", b"hello\n")
    driver.end("a", 0)
    assert b"".join(f.log.data for f in await stream.all()) == b"hello\n"


async def test_logs_are_kept_after_the_container_until_they_are_forgotten(
    agent: RunningAgent, controller: FakeController, driver: FakeDriver
) -> None:
    await controller.want(order("a"))
    await controller.reported("a", "RUNNING")
    driver.print("a", b"kept\n")
    driver.end("a", 0)
    await controller.reported("a", "EXITED")
    await controller.drop("a")
    await until(lambda: agent.agent.supervisor.find("a") is None)
    stream = await controller.ask(logs=ReadLogs(container_uid="a", tail=-1))
    assert b"".join(f.log.data for f in await stream.all()) == b"kept\n"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.2):
            await controller.ask(forget=ForgetContainers(container_uids=["a"]))
    stream = await controller.ask(logs=ReadLogs(container_uid="a", tail=-1))
    (refusal,) = await stream.all()
    assert refusal.error.code == RelayError.NOT_FOUND


async def test_a_shell_passes_bytes_sizes_and_the_exit_code(agent: RunningAgent, controller: FakeController) -> None:
    await controller.want(order("a"))
    await controller.reported("a", "RUNNING")
    stream = await controller.ask(exec=StartExec(container_uid="a", cmd=["sh", "-i"], tty=True, stdin=True))
    for given in (
        ExecInput(stdin=b"abc"),
        ExecInput(resize=TerminalSize(rows=3, columns=4)),
        ExecInput(close_stdin=True),
    ):
        await stream.send(RelayResponse(exec=given))
    frames = await stream.all()
    assert b"".join(f.exec.stdout for f in frames) == b"sh -iABC3X4"
    assert frames[-1].exec.exit_code == 3


async def test_a_shell_needs_a_running_container(
    agent: RunningAgent, controller: FakeController, driver: FakeDriver
) -> None:
    controller.acknowledges = False
    await controller.want(order("a"))
    await controller.reported("a", "RUNNING")
    driver.end("a", 0)
    await controller.reported("a", "EXITED")
    stream = await controller.ask(exec=StartExec(container_uid="a", cmd=["sh"]))
    (refusal,) = await stream.all()
    assert refusal.error.code == RelayError.NOT_RUNNING


async def test_questions_are_answered_in_json(agent: RunningAgent, controller: FakeController) -> None:
    await controller.want(order("a"))
    await controller.reported("a", "RUNNING")
    stream = await controller.ask(inspect=InspectContainer(container_uid="a"))
    (answer,) = await stream.all()
    assert answer.answer == b'{"Id": "runtime-1"}'
    stream = await controller.ask(processes=ListProcesses(container_uid="a"))
    (answer,) = await stream.all()
    assert answer.answer == b'{"titles": ["PID"], "rows": [["42"]]}'


async def test_a_question_about_an_unknown_container_is_refused(
    agent: RunningAgent, controller: FakeController
) -> None:
    stream = await controller.ask(inspect=InspectContainer(container_uid="nobody"))
    (refusal,) = await stream.all()
    assert refusal.error.code == RelayError.NOT_FOUND
