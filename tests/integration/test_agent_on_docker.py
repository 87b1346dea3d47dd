"""A real agent, as a process that can be killed, between a scripted controller and a real engine."""

import asyncio
import json
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pwm.api.v1.agent_pb2 import Assignment, InspectContainer, ReadLogs
from pwm.api.v1.common_pb2 import Reason
from pwm.nodeagent.drivers.docker import DockerDriver
from tests.docker_engine import DockerEngine
from tests.unit.nodeagent.fakes import TOKEN, FakeController, until
from tests.unit.nodeagent.fakes import order as plain_order

pytestmark = pytest.mark.docker

_AGENT = """
import json, sys
from pathlib import Path
from pwm.nodeagent.app import main
from pwm.nodeagent.config import AgentConfig
given = json.loads(sys.argv[1])
given["servers"] = tuple(given["servers"])
given["state_dir"] = Path(given["state_dir"])
sys.exit(main(AgentConfig(**given)))
"""
COUNT_FOREVER = ["sh", "-c", "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.005; done"]


class AgentProcess:
    def __init__(self, controller: FakeController, engine: DockerEngine, folder: Path) -> None:
        self.node = f"test-{uuid.uuid4().hex[:12]}"
        self._controller = controller
        self._log = folder / "agent.log"
        self._config = {
            "servers": [controller.address],
            "token": TOKEN,
            "node": self.node,
            "cluster": "tests",
            "state_dir": str(folder / "state"),
            "docker_host": engine.host,
            "plaintext": True,
        }
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        before = self._controller.sessions
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-W", "error", "-c", _AGENT, json.dumps(self._config), stdout=log, stderr=log
            )
        await until(lambda: self._controller.sessions > before)

    async def signal(self, number: signal.Signals) -> int:
        """Send it and wait for the end; the agent's exit code."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(number)
        return await self._process.wait()


@pytest.fixture
async def controller() -> AsyncIterator[FakeController]:
    controller = FakeController()
    await controller.start()
    yield controller
    await controller.stop()


@pytest.fixture
async def agent(controller: FakeController, docker_engine: DockerEngine, tmp_path: Path) -> AsyncIterator[AgentProcess]:
    agent = AgentProcess(controller, docker_engine, tmp_path)
    try:
        await agent.start()
        yield agent
    finally:
        await agent.signal(signal.SIGKILL)
        driver = DockerDriver(docker_engine.host.removeprefix("unix://"), node=agent.node, cluster="tests")
        for found in await driver.adopt():
            await driver.remove(found.uid)
        await driver.close()


@pytest.fixture
def prefix() -> str:
    return f"t{uuid.uuid4().hex[:8]}"


@pytest.fixture
def image(busybox_image: str) -> str:
    return busybox_image


def order(uid: str, image: str, *cmd: str, **spec: Any) -> Assignment:
    return plain_order(uid, driver="pwm.docker", image=image, cmd=cmd, **spec)


async def inspect(controller: FakeController, uid: str) -> Any:
    stream = await controller.ask(inspect=InspectContainer(container_uid=uid))
    (frame,) = await stream.all()
    assert frame.answer, frame
    return json.loads(frame.answer)


async def log_of(controller: FakeController, uid: str, *, follow: bool = False) -> bytes:
    stream = await controller.ask(logs=ReadLogs(container_uid=uid, follow=follow, tail=-1))
    return b"".join(frame.log.data for frame in await stream.all())


def since_it_runs(controller: FakeController, uid: str) -> list[str]:
    """Its phases. That it is created is told only where that takes long, as on a busy machine."""
    phases = controller.phases(uid)
    return phases[1:] if phases[0] == "CREATING" else phases


async def test_a_container_runs_prints_ends_and_its_output_stays(
    agent: AgentProcess, controller: FakeController, prefix: str, image: str
) -> None:
    uid = f"{prefix}a"
    await controller.want(order(uid, image, "sh", "-c", "echo out; echo err >&2; exit 3"))
    end = await controller.reported(uid, "EXITED")
    assert since_it_runs(controller, uid) == ["RUNNING", "EXITED"]
    assert (end.exit_code, end.reason.code) == (3, Reason.EXIT_CODE)
    assert 0 < end.started_at.ToNanoseconds() <= end.finished_at.ToNanoseconds()
    await controller.drop(uid)
    assert sorted(await log_of(controller, uid)) == sorted(b"out\nerr\n")


async def test_an_agent_killed_and_started_again_changes_nothing_for_its_containers(
    agent: AgentProcess, controller: FakeController, prefix: str, image: str
) -> None:
    uid = f"{prefix}a"
    await controller.want(order(uid, image, *COUNT_FOREVER))
    await controller.reported(uid, "RUNNING")
    before = (await inspect(controller, uid))["State"]
    for _ in range(3):
        await agent.signal(signal.SIGKILL)
        await asyncio.sleep(0.2)  # the container goes on printing while nobody listens
        await agent.start()
    after = (await inspect(controller, uid))["State"]
    assert (after["Pid"], after["StartedAt"]) == (before["Pid"], before["StartedAt"])
    await controller.want(order(uid, image, *COUNT_FOREVER, desired=Assignment.STOP, stop_grace_ms=1000))
    await controller.reported(uid, "EXITED")
    assert since_it_runs(controller, uid) == ["RUNNING", "EXITING", "EXITED"]
    lines = (await log_of(controller, uid)).splitlines()
    assert lines == [b"line %d" % n for n in range(1, len(lines) + 1)], "no line lost, none doubled"
    assert len(lines) > 20


async def test_an_agent_killed_while_it_starts_containers_doubles_none(
    agent: AgentProcess, controller: FakeController, docker_engine: DockerEngine, prefix: str, image: str
) -> None:
    uids = [f"{prefix}{n}" for n in range(8)]
    await controller.want(*(order(uid, image, *COUNT_FOREVER) for uid in uids))
    for _ in range(3):
        await asyncio.sleep(0.15)  # somewhere in the middle of it
        await agent.signal(signal.SIGKILL)
        await agent.start()
    for uid in uids:
        await controller.reported(uid, "RUNNING")
    driver = DockerDriver(docker_engine.host.removeprefix("unix://"), node=agent.node, cluster="tests")
    try:
        assert sorted(found.uid for found in await driver.adopt()) == sorted(uids)
    finally:
        await driver.close()
    assert {len([p for p in controller.phases(uid) if p == "FAILED"]) for uid in uids} == {0}


async def test_a_stopped_agent_says_goodbye_and_leaves_its_containers_running(
    agent: AgentProcess, controller: FakeController, prefix: str, image: str
) -> None:
    uid = f"{prefix}a"
    await controller.want(order(uid, image, *COUNT_FOREVER))
    await controller.reported(uid, "RUNNING")
    pid = (await inspect(controller, uid))["State"]["Pid"]
    assert await agent.signal(signal.SIGTERM) == 0
    assert Path(f"/proc/{pid}").exists()
    await agent.start()
    assert (await inspect(controller, uid))["State"]["Pid"] == pid


async def test_ends_that_the_user_did_not_want_are_explained(
    agent: AgentProcess, controller: FakeController, docker_engine: DockerEngine, prefix: str, image: str
) -> None:
    # Not at once: engines overlook what happens before they watch (containerd #8180).
    greedy = order(f"{prefix}m", image, "sh", "-c", "sleep 1; x=$(yes aaaaaaaa)", resources={"memory_bytes": 16 << 20})
    absent = order(f"{prefix}c", image, "no-such-program")
    taken = order(f"{prefix}t", image, *COUNT_FOREVER)
    crashed = order(f"{prefix}k", image, *COUNT_FOREVER)
    await controller.want(greedy, absent, taken, crashed)
    end = await controller.reported(greedy.uid, "EXITED")
    assert (end.reason.code, end.oom_killed) == (Reason.MEMORY_LIMIT, True)
    end = await controller.reported(absent.uid, "FAILED")
    assert (end.reason.code, end.exit_code) == (Reason.COMMAND_NOT_FOUND, 127)
    await controller.reported(taken.uid, "RUNNING")
    command = ["docker", "-H", docker_engine.host, "rm", "-f", f"pwm.lab.{taken.name}"]
    removing = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
    assert await removing.wait() == 0
    end = await controller.reported(taken.uid, "FAILED")
    assert end.reason.code == Reason.CONTAINER_DISAPPEARED
    await controller.reported(crashed.uid, "RUNNING")
    os.kill((await inspect(controller, crashed.uid))["State"]["Pid"], signal.SIGKILL)
    end = await controller.reported(crashed.uid, "EXITED")
    assert end.reason.code == Reason.KILLED_BY_SIGNAL


async def test_a_follower_gets_everything_to_the_last_line(
    agent: AgentProcess, controller: FakeController, prefix: str, image: str
) -> None:
    uid = f"{prefix}a"
    await controller.want(order(uid, image, "sh", "-c", "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo $i; done"))
    data = await log_of(controller, uid, follow=True)
    assert data == b"".join(b"%d\n" % n for n in range(1, 3001))
