"""When the watchdog waits, ends and leaves: a table; how it ends things, on an engine made here; then real ones."""

import asyncio
import json
import os
import signal
import socketserver
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from pwm.api.v1.agent_pb2 import Assignment
from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.workload_pb2 import ContainerSpec, WorkloadSpec
from pwm.nodeagent.config import AgentConfig
from pwm.nodeagent.drivers.docker_spec import own_labels
from pwm.nodeagent.guard import Guard
from pwm.nodeagent.journal import Contact
from pwm.nodeagent.watchdog import (
    END,
    LAST_CHANCE_MS,
    LEAVE,
    WAIT,
    Docker,
    EngineError,
    Killed,
    Promise,
    PromiseFile,
    Settings,
    Watch,
    Watchdog,
    elapsed_ms,
)
from tests.unit.nodeagent.fakes import FakeController, FakeDriver, RunningAgent, order, until
from tests.watchdogs import end_watchdogs, watchdogs

FENCE_MS, LOST_MS, DUE_MS = 90_000, 120_000, 105_000
T0 = 1_000_000
PROMISED = Promise(T0, FENCE_MS, LOST_MS)


# ---- the decision


@pytest.mark.parametrize(
    ("promise", "on_duty", "now_ms", "step"),
    [
        (PROMISED, True, T0, (WAIT, DUE_MS)),
        (PROMISED, True, T0 + FENCE_MS, (WAIT, 15_000)),
        (PROMISED, True, T0 + DUE_MS - 1, (WAIT, 1)),
        (PROMISED, True, T0 + DUE_MS, (END, 0)),
        (PROMISED, True, T0 + LOST_MS - 1, (END, 0)),
        (PROMISED, True, T0 + LOST_MS, (WAIT, LAST_CHANCE_MS)),
        (PROMISED, False, T0, (LEAVE, 0)),
        (PROMISED, False, T0 + DUE_MS, (LEAVE, 0)),
        (Promise(0, FENCE_MS, LOST_MS), True, T0, (LEAVE, 0)),
        (Promise(T0, 0, LOST_MS), True, T0 + DUE_MS, (LEAVE, 0)),
        (Promise(T0, 7_999, 10_000), True, T0 + 8_998, (WAIT, 1)),
        (Promise(T0, 7_999, 10_000), True, T0 + 8_999, (END, 0)),
    ],
)
def test_what_is_to_be_done(promise: Promise, on_duty: bool, now_ms: int, step: tuple[str, int]) -> None:
    assert Watch().look(promise, on_duty=on_duty, now_ms=now_ms) == step


def test_it_goes_on_ending_for_as_long_as_nobody_is_heard() -> None:
    watch = Watch()
    for now_ms in (T0 + DUE_MS, T0 + LOST_MS, T0 + 10 * LOST_MS):
        assert watch.look(PROMISED, on_duty=True, now_ms=now_ms) == (END, 0)
    heard = PROMISED._replace(heard_ms=T0 + 10 * LOST_MS)
    assert watch.look(heard, on_duty=True, now_ms=T0 + 10 * LOST_MS) == (WAIT, DUE_MS)


def test_one_that_is_too_late_leaves_the_agent_the_time_to_be_heard() -> None:
    watch, woke = Watch(), T0 + LOST_MS + 3_600_000
    assert watch.look(PROMISED, on_duty=True, now_ms=woke) == (WAIT, LAST_CHANCE_MS)
    assert watch.look(PROMISED, on_duty=True, now_ms=woke + LAST_CHANCE_MS - 1) == (WAIT, 1)
    assert watch.look(PROMISED, on_duty=True, now_ms=woke + LAST_CHANCE_MS) == (END, 0)
    assert watch.look(PROMISED._replace(heard_ms=woke), on_duty=True, now_ms=woke + 8_000) == (WAIT, DUE_MS - 8_000)


# ---- what is shared


def test_both_sides_see_the_same_promise_and_who_is_on_duty(tmp_path: Path) -> None:
    agent, watchdog = PromiseFile(tmp_path), PromiseFile(tmp_path)
    assert watchdog.promise == Promise(0, 0, 0)
    agent.keep(PROMISED)
    assert watchdog.promise == PROMISED
    watchdog.enter(7)
    assert watchdog.is_on_duty(7)
    PromiseFile(tmp_path).enter(8)
    assert not watchdog.is_on_duty(7)
    assert PromiseFile(tmp_path).promise == PROMISED, "who comes later finds it"


def test_who_watches_a_file_that_was_replaced_is_not_on_duty(tmp_path: Path) -> None:
    watchdog = PromiseFile(tmp_path)
    watchdog.enter(7)
    (tmp_path / "promise").unlink()
    assert watchdog.is_on_duty(7), "the promise stands, whatever became of the file"
    PromiseFile(tmp_path)
    assert not watchdog.is_on_duty(7), "there is another agent now"


# ---- the engine


class FakeEngine(socketserver.ThreadingUnixStreamServer):
    """Docker's API, as far as the watchdog uses it. Kills take a moment, and `answers` says how they end."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, path: Path) -> None:
        self.running: dict[str, dict[str, str]] = {}
        self.answers: dict[str, int] = {}
        self.together = threading.Barrier(1)
        self.on_listing: Callable[[], None] = lambda: None
        super().__init__(str(path), _Answer)


class _Answer(socketserver.StreamRequestHandler):
    server: FakeEngine

    def handle(self) -> None:
        method, target, version = self.rfile.readline().decode().split()
        assert version == "HTTP/1.0"
        url = urlsplit(target)
        status, body = 200, b""
        if (method, url.path) == ("GET", "/containers/json"):
            wanted = dict(label.split("=") for label in json.loads(parse_qs(url.query)["filters"][0])["label"])
            running = self.server.running.items()
            found = [{"Id": name, "Labels": labels} for name, labels in running if wanted.items() <= labels.items()]
            body = json.dumps(found).encode()
            self.server.on_listing()
        else:
            name = url.path.removeprefix("/containers/").removesuffix("/kill")
            assert (method, url.path) == ("POST", f"/containers/{name}/kill")
            self.server.together.wait(10)
            status = self.server.answers.get(name, 204)
            if status != 500:
                del self.server.running[name]
        self.wfile.write(f"HTTP/1.0 {status} Whatever\r\nContent-Type: any\r\n\r\n".encode() + body)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[FakeEngine]:
    with FakeEngine(tmp_path / "docker.sock") as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        yield server
        server.shutdown()
        serving.join()


LABELS = {"pwm.node": "n1", "pwm.cluster": "c", "pwm.on-node-lost": "reschedule"}


def docker(engine: FakeEngine) -> Docker:
    return Docker(str(engine.server_address), [f"{name}={value}" for name, value in LABELS.items()])


def test_it_kills_what_has_the_labels_and_all_of_it_at_once(engine: FakeEngine) -> None:
    engine.running = {f"id{n}": {**LABELS, "pwm.uid": f"u{n}"} for n in range(20)}
    engine.running["other"] = {**LABELS, "pwm.node": "n2"}
    engine.running["waits"] = {name: value for name, value in LABELS.items() if name != "pwm.on-node-lost"}
    engine.together = threading.Barrier(20)
    noted: list[str] = []
    assert docker(engine).end(noted.append) is False, "it looks again before it believes it"
    assert sorted(noted) == sorted(f"u{n}" for n in range(20))
    assert set(engine.running) == {"other", "waits"}
    assert docker(engine).end(noted.append) is True
    assert len(noted) == 20


def test_what_ended_by_itself_is_no_error_and_what_lives_on_is_told(engine: FakeEngine) -> None:
    engine.running = {name: {**LABELS, "pwm.uid": name} for name in ("a", "b", "c", "d")}
    engine.answers = {"a": 500, "b": 404, "c": 409}
    with pytest.raises(EngineError, match="the Docker engine answers 500"):
        docker(engine).end(lambda uid: None)
    assert set(engine.running) == {"a"}
    engine.answers = {}
    assert docker(engine).end(lambda uid: None) is False
    assert docker(engine).end(lambda uid: None) is True


def test_an_engine_that_is_away_or_hangs_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match="cannot be reached"):
        Docker(str(tmp_path / "none"), []).end(lambda uid: None)
    monkeypatch.setattr("pwm.nodeagent.watchdog.ANSWER_S", 0.05)
    # It listens, and nobody accepts.
    with FakeEngine(tmp_path / "hangs"), pytest.raises(EngineError, match="does not answer"):
        Docker(str(tmp_path / "hangs"), []).end(lambda uid: None)


@pytest.mark.parametrize("heard", [True, False])
def test_an_agent_that_is_heard_while_the_engine_takes_its_time_loses_nothing(
    engine: FakeEngine, tmp_path: Path, heard: bool
) -> None:
    engine.running = {"id1": {**LABELS, "pwm.uid": "u1"}}
    labels = [f"{name}={value}" for name, value in LABELS.items()]
    agent = PromiseFile(tmp_path)
    agent.keep(Promise(elapsed_ms() - DUE_MS, FENCE_MS, LOST_MS))

    def listing() -> None:
        if heard:
            agent.keep(Promise(elapsed_ms(), FENCE_MS, LOST_MS))
        # Another is on duty: this one leaves when it looks again.
        agent.enter(0)

    engine.on_listing = listing
    Watchdog(Settings(str(tmp_path), os.getppid(), str(engine.server_address), labels, "")).run()
    assert ("id1" in engine.running, "u1" in Killed(tmp_path)) == (heard, not heard)


def test_containers_carry_the_label_by_which_they_are_found() -> None:
    def labels(on_node_lost: WorkloadSpec.OnNodeLost.ValueType) -> dict[str, str]:
        spec = ContainerSpec(on_node_lost=on_node_lost)
        return own_labels(Assignment(uid="u", spec=spec), node="n1", cluster="c")

    assert LABELS.items() <= labels(WorkloadSpec.reschedule).items()
    assert "pwm.on-node-lost" not in labels(WorkloadSpec.wait)


# ---- what the agent says afterwards


@pytest.mark.parametrize("killed", [True, False])
async def test_the_end_of_what_it_killed_is_told_as_such(
    controller: FakeController, agent: RunningAgent, driver: FakeDriver, killed: bool
) -> None:
    notes: set[str] = agent.agent.supervisor._killed
    await controller.want(order("moves", on_node_lost=WorkloadSpec.reschedule))
    await controller.reported("moves", "RUNNING")
    if killed:
        notes.add("moves")
    driver.end("moves", 137)
    end = await controller.reported("moves", "EXITED")
    assert end.reason.code == (Reason.SELF_FENCED if killed else Reason.KILLED_BY_SIGNAL)
    await controller.drop("moves")
    await until(lambda: not agent.agent.supervisor.held())
    assert not notes


def test_both_sides_see_what_was_killed(tmp_path: Path) -> None:
    agent, watchdog = Killed(tmp_path), Killed(tmp_path)
    watchdog.add("u1")
    watchdog.add("u1")
    assert "u1" in agent
    assert "u2" not in agent
    agent.discard("u1")
    agent.discard("u1")
    assert "u1" not in watchdog
    (tmp_path / "killed").rmdir()
    (tmp_path / "killed").touch()
    watchdog.add("u1")
    assert "u1" not in agent, "a disk that cannot be written is no reason to stop"


# ---- real ones


CONTACT = Contact(boot_id="b", heard_ms=0, self_fence_ms=FENCE_MS, lost_after_ms=LOST_MS)


def heard_now() -> Contact:
    return Contact(boot_id="b", heard_ms=elapsed_ms(), self_fence_ms=FENCE_MS, lost_after_ms=LOST_MS)


class Guarded:
    """Guards as agents have them, on one state folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._guards: list[Guard] = []
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> Guard:
        config = AgentConfig(servers=("s",), token="t", state_dir=self.folder, docker_host=f"unix://{self.folder}/d")
        guard = Guard(config)
        self._guards.append(guard)
        self._tasks.append(asyncio.create_task(guard.run()))
        return guard

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    def close(self) -> None:
        end_watchdogs(self.folder)
        for guard in self._guards:
            if guard._watchdog is not None:
                guard._watchdog.wait()

    async def one(self, *, besides: tuple[int, ...] = ()) -> int:
        """The only watchdog there is, once it is on duty."""
        found = await until(lambda: len(now := watchdogs(self.folder)) == 1 and now[0] not in besides and now)
        return int(found[0])


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Guarded]:
    made = Guarded(tmp_path)
    yield made
    await made.stop()
    made.close()


async def test_there_is_one_while_something_is_promised(guarded: Guarded) -> None:
    guard = guarded.start()
    guard.tell(CONTACT)
    await asyncio.sleep(0)
    assert not watchdogs(guarded.folder), "nobody was heard yet"
    guard.tell(heard_now())
    first = await guarded.one()
    assert os.getsid(first) == first, "Ctrl-C does not reach it"
    os.kill(first, signal.SIGKILL)
    second = await guarded.one(besides=(first,))
    guard.tell(CONTACT)
    await until(lambda: not watchdogs(guarded.folder))
    guard.tell(heard_now())
    await guarded.one(besides=(first, second))


async def test_it_outlives_its_agent_and_leaves_when_the_next_one_brings_another(guarded: Guarded) -> None:
    guarded.start().tell(heard_now())
    first = await guarded.one()
    await guarded.stop()
    assert watchdogs(guarded.folder) == [first]
    guarded.start().tell(heard_now())
    assert await guarded.one(besides=(first,)) != first


async def test_it_takes_little_memory_and_nothing_of_the_agents(guarded: Guarded) -> None:
    with (guarded.folder / "secret").open("w") as secret:
        os.set_inheritable(secret.fileno(), True)
        guarded.start().tell(heard_now())
        pid = await guarded.one()
        file = PromiseFile(guarded.folder)
        await until(lambda: not file.is_on_duty(0))
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert int(status["VmRSS"].split()[0]) < 15 * 1024
    opened = {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}
    assert opened == {"/dev/null", str(guarded.folder / "watchdog.log"), str(guarded.folder / "promise")}
    assert b"PWM_" not in Path(f"/proc/{pid}/environ").read_bytes()
