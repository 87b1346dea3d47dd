"""Real processes: limits, signals, output, and a life of their own when the agent dies."""

import asyncio
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from pwm.api.v1.agent_pb2 import STDERR, STDOUT, Assignment, ExecOutput, ReadLogs, StartExec, TerminalSize
from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.workload_pb2 import WorkloadSpec
from pwm.nodeagent.drivers.driver import ContainerMissing, ContainerNotRunning, DriverError, Ended, Runtime
from pwm.nodeagent.drivers.process import ProcessDriver
from pwm.nodeagent.drivers.process_cgroup import Cgroup, Limits
from pwm.nodeagent.logs import LogStore
from pwm.nodeagent.watchdog import Processes
from tests.patience import PATIENCE_S

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="changing users and limits by control group needs root")


def assignment(uid: str, *cmd: str, **fields: Any) -> Assignment:
    made = Assignment(uid=uid, name="job.0.1", group="users")
    made.spec.workload, made.spec.attempt = "job", 1
    made.spec.cmd.extend(cmd)
    made.spec.resources.memory_bytes = fields.pop("memory_bytes", 0)
    made.spec.resources.cpu_millis = fields.pop("cpu_millis", 0)
    made.spec.env.update(fields.pop("env", {}))
    made.spec.gpu_uuids.extend(fields.pop("gpus", []))
    if (uid_gid := fields.pop("user", None)) is not None:
        made.spec.user.uid, made.spec.user.gid = uid_gid
    for name, value in fields.items():
        setattr(made.spec, name, value)
    return made


class Node:
    """A driver and a log store as an agent has them; `restart` is a new agent on the same state."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.folder = root / "processes"
        self.driver = self._new_driver()
        self.logs = LogStore(root / "logs")
        self._taking = asyncio.create_task(self.logs.run())

    def _new_driver(self) -> ProcessDriver:
        return ProcessDriver(self.folder, node="n1", cluster="test")

    def restart(self) -> None:
        self.driver = self._new_driver()

    async def start(self, made: Assignment) -> int:
        await self.driver.create(made)
        started = await self.driver.start(made.uid)
        source = self.driver.output(made.uid)
        assert source is not None
        self.logs.follow(made.uid, source)
        return started.pid

    async def run(self, made: Assignment) -> tuple[Ended, bytes]:
        await self.start(made)
        return await self.end(made.uid)

    async def end(self, uid: str) -> tuple[Ended, bytes]:
        async with asyncio.timeout(60):
            ended = await self.driver.wait(uid)
        await self.logs.finish(uid)
        return ended, await self.printed(uid)

    async def printed(self, uid: str, *, stream: int | None = None) -> bytes:
        request = ReadLogs(container_uid=uid, tail=-1)
        return b"".join([chunk.data async for chunk in self.logs.read(request) if stream in (None, chunk.stream)])

    async def printed_first(self, uid: str) -> bytes:
        """Whatever it prints first, as soon as that is there."""
        chunks = self.logs.read(ReadLogs(container_uid=uid, tail=-1, follow=True))
        try:
            async with asyncio.timeout(PATIENCE_S):
                return (await anext(chunks)).data
        finally:
            await chunks.aclose()  # type: ignore[attr-defined]

    async def close(self) -> None:
        self._taking.cancel()
        await asyncio.wait([self._taking])
        await self.logs.close()
        self.restart()
        for adopted in await self.driver.adopt():
            await self.driver.remove(adopted.uid)
        await self.driver.close()


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path)
    yield node
    await node.close()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - other processes' state
            await asyncio.sleep(0.01)


async def session(node: Node, uid: str, request: StartExec) -> list[ExecOutput]:
    running = await node.driver.exec(uid, request)
    try:
        return [chunk async for chunk in running.output()]
    finally:
        await running.close()


async def test_exit_code_output_and_streams_are_those_of_the_command(node: Node) -> None:
    ended, printed = await node.run(assignment("u1", "sh", "-c", "echo out; echo err >&2; printf '\\377\\000'; exit 7"))
    assert (ended.exit_code, ended.oom_killed) == (7, False)
    assert sorted(printed) == sorted(b"out\nerr\n\xff\0")
    assert await node.printed("u1", stream=STDOUT) == b"out\n\xff\0"
    assert await node.printed("u1", stream=STDERR) == b"err\n"


async def test_a_signal_is_128_plus_its_number(node: Node) -> None:
    ended, _ = await node.run(assignment("u1", "sh", "-c", "kill -SEGV $$"))
    assert ended.exit_code == 128 + signal.SIGSEGV


async def test_nothing_of_the_agents_environment_reaches_the_process(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PWM_TOKEN", "secret")
    made = assignment("u1", "env", env={"SEED": "1", "CUDA_VISIBLE_DEVICES": "all"}, gpus=["GPU-a", "GPU-b"])
    _, printed = await node.run(made)
    variables = dict(line.split("=", 1) for line in printed.decode().splitlines())
    assert variables.keys() == {
        "PATH", "LANG", "HOME", "USER", "LOGNAME", "SHELL", "SEED", "CUDA_VISIBLE_DEVICES",
    }  # fmt: skip
    assert variables["SEED"] == "1"
    assert variables["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"


async def test_a_process_without_gpus_sees_none(node: Node) -> None:
    _, printed = await node.run(assignment("u1", "sh", "-c", "echo [$CUDA_VISIBLE_DEVICES]"))
    assert printed == b"[]\n"


@pytest.mark.parametrize(
    ("made", "code", "exit_code", "words"),
    [
        (assignment("u1", "no-such-command"), Reason.COMMAND_NOT_FOUND, 127, "no command 'no-such-command'"),
        (assignment("u1", "/etc/passwd"), Reason.ERROR_STARTING_CONTAINER, 126, "Permission denied"),
        (assignment("u1", "true", working_dir="/no/such"), Reason.ERROR_STARTING_CONTAINER, None, "/no/such"),
    ],
    ids=["missing command", "no program", "missing folder"],
)
async def test_what_cannot_start_says_why(
    node: Node, made: Assignment, code: int, exit_code: int | None, words: str
) -> None:
    await node.driver.create(made)
    with pytest.raises(DriverError, match=words) as refused:
        await node.driver.start("u1")
    assert (refused.value.reason.code, refused.value.exit_code) == (code, exit_code)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (assignment("u1"), "needs a command"),
        (assignment("u1", "env", env={"LD_PRELOAD": "x"}), "LD_PRELOAD"),
        pytest.param(assignment("u1", "id", user=(0, 0)), "no processes as root", marks=needs_root),
        pytest.param(assignment("u1", "id", user=(1000, 0)), "no processes as root", marks=needs_root),
    ],
)
async def test_what_may_not_run_is_refused_before_anything_exists(node: Node, made: Assignment, words: str) -> None:
    with pytest.raises(DriverError, match=words) as refused:
        await node.driver.create(made)
    assert refused.value.reason.code == Reason.CONFIG_NOT_ALLOWED
    assert await node.driver.adopt() == []


@needs_root
@pytest.mark.parametrize(("user", "expected"), [(None, b"65534 65534 65534\n"), ((1234, 4321), b"1234 4321 4321\n")])
async def test_a_process_is_nobody_or_who_it_asked_to_be(
    node: Node, user: tuple[int, int] | None, expected: bytes
) -> None:
    _, printed = await node.run(assignment("u1", "sh", "-c", "echo $(id -u) $(id -g) $(id -G)", user=user))
    assert printed == expected


@needs_root
async def test_more_memory_than_the_limit_is_an_oom_kill(node: Node) -> None:
    if not _groups_work():
        pytest.skip("control groups cannot be made here")
    eater = "x=$(head -c 500000000 /dev/zero | tr '\\0' x)"
    ended, _ = await node.run(assignment("u1", "sh", "-c", eater, memory_bytes=50 << 20))
    assert (ended.exit_code, ended.oom_killed) == (137, True)


def _groups_work() -> bool:
    group = Cgroup("test.probe")
    try:
        return group.create(Limits(cpu_millis=0, memory_bytes=0))
    finally:
        group.remove()


async def test_usage_and_processes_are_those_of_the_whole_tree(node: Node) -> None:
    await node.start(assignment("u1", "sh", "-c", "(while :; do :; done) & echo ready; wait", memory_bytes=1 << 30))
    await node.printed_first("u1")
    (first,) = await node.driver.usage(["u1", "unknown"])
    await asyncio.sleep(0.3)
    (second,) = await node.driver.usage(["u1"])
    assert first.cpu_cores == 0
    assert 0.01 < second.cpu_cores < 1.5
    assert second.memory_bytes > 0
    assert second.memory_limit_bytes == 1 << 30
    assert second.pids == 2
    table = await node.driver.processes("u1")
    commands = [row[table.titles.index("CMD")] for row in table.rows]
    assert len(commands) == 2
    assert all("while :" in command for command in commands)


async def test_an_agent_without_privileges_has_weaker_limits_and_the_same_account(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() or 4242)
    node.restart()
    orphan = "setsid sleep 1000 & "
    await node.start(assignment("u1", "sh", "-c", f"{orphan} ulimit -d; sleep 60", memory_bytes=1 << 30))
    assert await node.printed_first("u1") == b"1048576\n"
    assert (await node.driver.inspect("u1"))["ControlGroups"] == []
    (usage,) = await node.driver.usage(["u1"])
    assert usage.pids == 3
    assert usage.memory_bytes > 0
    table = await node.driver.processes("u1")
    pids = [int(row[table.titles.index("PID")]) for row in table.rows]
    assert len(pids) == 3
    await node.driver.stop("u1", grace_ms=5_000)
    assert not any(alive(pid) for pid in pids)
    with pytest.raises(DriverError, match="as uid"):
        await node.driver.create(assignment("u2", "true", user=(1, 1)))


async def test_a_polite_process_ends_within_its_grace_and_a_stubborn_one_is_killed(node: Node) -> None:
    loop = "echo up; while :; do sleep 0.05; done"
    await node.start(assignment("polite", "sh", "-c", f"trap 'echo bye; exit 3' TERM; {loop}"))
    await node.start(assignment("stubborn", "sh", "-c", f"trap '' TERM; {loop}"))
    for uid in ("polite", "stubborn"):
        await node.printed_first(uid)
    await node.driver.stop("polite", grace_ms=20_000)
    ended, _ = await node.end("polite")
    assert (ended.exit_code, await node.printed("polite", stream=STDOUT)) == (3, b"up\nbye\n")
    asked_at = time.monotonic()
    await node.driver.stop("stubborn", grace_ms=300)
    assert time.monotonic() - asked_at >= 0.3
    assert (await node.end("stubborn"))[0].exit_code == 137
    # Harmless on one that has ended.
    await node.driver.stop("stubborn", grace_ms=300)


async def test_what_a_process_leaves_behind_dies_with_it(node: Node) -> None:
    script = (
        "setsid sh -c 'trap \"\" TERM HUP; echo $$; while :; do sleep 0.1; done' & read -r x < /dev/null; sleep 0.3"
    )
    await node.start(assignment("u1", "sh", "-c", script))
    left_behind = int(await node.printed_first("u1"))
    assert alive(left_behind)
    ended, _ = await node.end("u1")
    assert ended.exit_code == 0
    assert not alive(left_behind)


async def test_with_a_terminal_the_process_has_one(node: Node) -> None:
    _, printed = await node.run(
        assignment("u1", "sh", "-c", "test -t 0 && test -t 1 && echo yes; echo $TERM", tty=True)
    )
    assert printed == b"yes\r\nxterm\r\n"


async def test_a_command_beside_it_shares_user_and_variables_and_has_its_own_pipes(node: Node) -> None:
    await node.start(assignment("u1", "sleep", "60", env={"SEED": "1"}))
    got = await session(node, "u1", StartExec(cmd=["sh", "-c", "echo $SEED; id -u; pwd >&2; exit 3"]))
    expected_uid = NOBODY if os.geteuid() == 0 else os.geteuid()
    assert b"".join(chunk.stdout for chunk in got) == f"1\n{expected_uid}\n".encode()
    assert b"".join(chunk.stderr for chunk in got).startswith(b"/")
    assert got[-1].exit_code == 3
    missing = await session(node, "u1", StartExec(cmd=["no-such-command"]))
    assert missing[-1].exit_code == 127
    assert b"No such file" in b"".join(chunk.stderr for chunk in missing)


async def test_input_reaches_the_command_and_its_end_too(node: Node) -> None:
    await node.start(assignment("u1", "sleep", "60"))
    running = await node.driver.exec("u1", StartExec(cmd=["sha256sum"], stdin=True))
    data = os.urandom(1 << 20)

    async def feed() -> None:
        await running.write(data)
        await running.close_stdin()

    feeding = asyncio.create_task(feed())
    got = [chunk async for chunk in running.output()]
    await feeding
    await running.close()
    assert b"".join(chunk.stdout for chunk in got).split()[0].decode() == hashlib.sha256(data).hexdigest()


async def test_a_terminal_beside_it_can_be_resized_and_is_hung_up_on_close(node: Node) -> None:
    await node.start(assignment("u1", "sleep", "60"))
    request = StartExec(cmd=["sh"], tty=True, stdin=True, size=TerminalSize(rows=33, columns=99))
    running = await node.driver.exec("u1", request)
    output = running.output()

    async def answer_to(question: bytes, pattern: bytes) -> bytes:
        await running.write(question)
        seen = b""
        async with asyncio.timeout(PATIENCE_S):
            while (found := re.search(pattern, seen)) is None:
                seen += (await anext(output)).stdout
        return found[1]

    await answer_to(b"stty size\n", rb"(33 99)")
    await running.resize(TerminalSize(rows=44, columns=111))
    await answer_to(b"stty size\n", rb"(44 111)")
    # The terminal echoes the question; only the answer looks like this.
    shell = int(await answer_to(b"echo pid=$$.\n", rb"pid=(\d+)\."))
    assert alive(shell)
    await running.close()
    assert not alive(shell)
    await output.aclose()  # type: ignore[attr-defined]


async def test_commands_beside_it_end_with_the_process(node: Node) -> None:
    await node.start(assignment("u1", "sleep", "60"))
    running = await node.driver.exec("u1", StartExec(cmd=["sleep", "1000"]))
    reading = asyncio.create_task(_last(running.output()))
    waiting = asyncio.create_task(node.driver.wait("u1"))
    await node.driver.stop("u1", grace_ms=5_000)
    await waiting
    assert (await reading).exit_code == 128 + signal.SIGKILL or (await reading).exit_code == 128 + signal.SIGHUP
    with pytest.raises(ContainerNotRunning):
        await node.driver.exec("u1", StartExec(cmd=["true"]))


async def _last(output: AsyncIterator[ExecOutput]) -> ExecOutput:
    chunks = [chunk async for chunk in output]
    return chunks[-1]


async def test_a_restarted_agent_finds_what_runs_what_ended_and_what_never_ran(node: Node) -> None:
    pid = await node.start(assignment("runs", "sleep", "60"))
    await node.run(assignment("ended", "sh", "-c", "exit 9"))
    await node.driver.create(assignment("created", "true"))
    failed = assignment("failed", "no-such-command")
    await node.driver.create(failed)
    with pytest.raises(DriverError):
        await node.driver.start("failed")
    node.restart()
    found = {adopted.uid: adopted for adopted in await node.driver.adopt()}
    assert {uid: adopted.runtime for uid, adopted in found.items()} == {
        "runs": Runtime.RUNNING,
        "ended": Runtime.ENDED,
        "created": Runtime.CREATED,
        "failed": Runtime.ENDED,
    }
    assert (found["runs"].pid, found["runs"].attempt) == (pid, 1)
    assert found["runs"].labels["pwm.workload"] == "job"
    assert alive(pid)
    ended = found["ended"].ended
    assert ended is not None
    assert ended.exit_code == 9
    assert (await node.driver.wait("ended")).exit_code == 9
    failed_end = found["failed"].ended
    assert failed_end is not None
    assert (failed_end.exit_code, failed_end.message) == (127, "There is no command 'no-such-command' on this node")
    await node.driver.stop("runs", grace_ms=5_000)
    assert (await node.driver.wait("runs")).exit_code == 143


_AGENT = """
import asyncio, sys
from pathlib import Path
from pwm.api.v1.agent_pb2 import Assignment
from pwm.nodeagent.drivers.process import ProcessDriver

async def main():
    driver = ProcessDriver(Path(sys.argv[1]), node="n1", cluster="test")
    made = Assignment(uid="u1", name="job.0.1", group="users")
    loop = "i=0; while [ $i -lt 30 ]; do i=$((i+1)); echo line $i; sleep 0.05; done; exit 5"
    made.spec.cmd.extend(["sh", "-c", loop])
    await driver.create(made)
    started = await driver.start("u1")
    print(started.pid, flush=True)
    await driver.wait("u1")

asyncio.run(main())
"""


async def test_a_process_outlives_a_killed_agent_with_its_output_and_exit_code(tmp_path: Path, node: Node) -> None:
    agent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _AGENT, str(tmp_path / "processes"), stdout=subprocess.PIPE
    )
    assert agent.stdout is not None
    pid = int(await agent.stdout.readline())
    agent.kill()
    await agent.wait()
    assert alive(pid)
    (found,) = await node.driver.adopt()
    assert (found.runtime, found.pid) == (Runtime.RUNNING, pid)
    source = node.driver.output("u1")
    assert source is not None
    node.logs.follow("u1", source)
    ended, printed = await node.end("u1")
    assert ended.exit_code == 5
    assert printed == "".join(f"line {number}\n" for number in range(1, 31)).encode()


async def test_a_process_dies_with_its_shim_and_the_end_is_known(node: Node) -> None:
    pid = await node.start(assignment("u1", "sleep", "60"))
    started = (await node.driver.inspect("u1"))["Started"]
    os.kill(started["shim"], signal.SIGKILL)
    ended = await node.driver.wait("u1")
    assert ended.exit_code == 137
    assert "supervisor is gone" in ended.message
    await until(lambda: not alive(pid))


async def test_removing_kills_and_leaves_nothing(tmp_path: Path, node: Node) -> None:
    pid = await node.start(assignment("u1", "sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done"))
    await node.printed_first("u1")
    groups = [Path(folder) for folder in (await node.driver.inspect("u1"))["ControlGroups"]]
    await node.driver.remove("u1")
    assert not alive(pid)
    assert list((tmp_path / "processes").iterdir()) == []
    assert not any(group.exists() for group in groups)
    await node.driver.remove("u1")
    with pytest.raises(ContainerMissing):
        await node.driver.wait("u1")


async def test_a_process_is_started_once_only(node: Node) -> None:
    await node.run(assignment("u1", "true"))
    with pytest.raises(DriverError, match="started before"):
        await node.driver.start("u1")


async def test_output_that_outgrows_its_files_goes_on(node: Node) -> None:
    """More than fits one file of the shim's: the spool follows the rotation."""
    ended, printed = await node.run(assignment("u1", "sh", "-c", "yes 0123456789abcde | head -c 80000000"))
    assert ended.exit_code == 0
    assert len(printed) == 80_000_000
    assert printed == b"0123456789abcde\n" * 5_000_000


async def test_the_watchdog_ends_what_may_start_elsewhere_and_all_that_it_started(node: Node) -> None:
    family = "setsid sleep 1000 & echo $!; trap '' TERM; while :; do sleep 0.1; done"
    pids = {}
    for uid, on_node_lost in (("moves", WorkloadSpec.reschedule), ("waits", WorkloadSpec.wait)):
        pid = await node.start(assignment(uid, "sh", "-c", family, on_node_lost=on_node_lost))
        pids[uid] = [pid, int(await node.printed_first(uid))]
    await node.driver.create(assignment("made", "true", on_node_lost=WorkloadSpec.reschedule))
    processes, noted = Processes(node.folder), []

    async with asyncio.timeout(PATIENCE_S):
        while not processes.end(noted.append):  # noqa: ASYNC110 - it is a process of its own
            await asyncio.sleep(0.01)
    assert set(noted) == {"moves"}
    assert [alive(pid) for pid in pids["moves"]] == [False, False]
    assert [alive(pid) for pid in pids["waits"]] == [True, True]
    ended, _ = await node.end("moves")
    assert ended.exit_code == 137
    noted.clear()
    assert processes.end(noted.append)
    assert not noted
