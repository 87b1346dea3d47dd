"""Faults on real etcd and real Docker: processes are killed, the engine goes away, containers vanish.

What must hold: nothing acknowledged is lost, no container is touched by a fault of the control plane, every
printed line is kept once, and everything recovers without a hand.
"""

import asyncio
import json
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pwm.images import ensure_busybox
from tests.docker_engine import IsolatedDockerdFactory
from tests.integration.registry import Registry
from tests.patience import PATIENCE_S
from tests.pwm_cluster import PwmCluster, eventually, manifest

pytestmark = [pytest.mark.etcd, pytest.mark.docker]

DONE, FAILED, NO_SERVER = 0, 1, 6
# A hundred lines a second, and a last one that says how many there were.
# A trap runs between any two commands: it must not tell of a line that is about to be printed.
COUNT = "n=0; trap 'stop=1' TERM; until [ $stop ]; do n=$((n+1)); echo line $n; sleep 0.01; done; echo end $n"
BYE = "echo begun; trap 'sleep 1; echo bye; exit 7' TERM; while :; do sleep 0.1; done"
# An answer that etcd is away: 3 s on an idle machine, besides the start of the command.


@pytest.fixture
def pwm(cluster: PwmCluster) -> Iterator[PwmCluster]:
    """The module's cluster, whole again after each test whatever the test did to it."""
    yield cluster
    cluster.mend()


# --- agents


def test_an_agent_killed_while_a_container_runs_loses_and_doubles_no_line(pwm: PwmCluster) -> None:
    pwm.apply("keep", COUNT)
    pwm.until("keep", "RUNNING")
    before = process(pwm, "keep")
    with following(pwm, "keep") as follower:
        for _ in range(2):
            eventually_grows(follower)
            pwm.kill("agent")
            pwm.start_agent()
        assert process(pwm, "keep") == before
        eventually_grows(follower)
        pwm.ok("stop", "wk", "keep", "--wait")
        assert follower.wait() == DONE
    assert_counted(follower.text(), "what was followed")
    assert_counted(pwm.ok("logs", "wk", "keep"), "what is kept")
    assert len(pwm.containers("keep")) == 1
    pwm.ok("delete", "wk", "keep", "--wait")


def test_an_agent_killed_while_it_creates_containers_makes_each_of_them_once(pwm: PwmCluster) -> None:
    names = [f"made-{n}" for n in range(12)]
    pwm.ok("apply", "-f", "-", input="".join(manifest(name, "echo once", cpu="10m") for name in names))
    eventually(lambda: docker(pwm, "ps", "-aq", *ours(pwm)), "the first container is there")
    pwm.kill("agent")
    pwm.start_agent()
    for name in names:
        pwm.until(name, "EXITED")
        assert pwm.ok("logs", "wk", name) == "once\n"
        assert [c["spec"]["attempt"] for c in pwm.containers(name)] == [1]
    pwm.ok("delete", "wk", *names, "--wait")


def test_an_agent_killed_while_it_pulls_pulls_again(pwm: PwmCluster) -> None:
    with registry(layer_delay_s=0.5) as served:
        image, echo = f"{served.address}/public", ["/bin/busybox", "echo", "once"]
        try:
            names = [f"pulls-{n}" for n in range(3)]
            pwm.ok("apply", "-f", "-", input="".join(manifest(name, "", image=image, cmd=echo) for name in names))
            eventually(served.downloading.is_set, "the image is being pulled")
            pwm.kill("agent")
            served.layer_delay_s = 0.0
            pwm.start_agent()
            for name in names:
                pwm.until(name, "EXITED")
                assert pwm.ok("logs", "wk", name) == "once\n"
                assert len(pwm.containers(name)) == 1
            pwm.ok("delete", "wk", *names, "--wait")
        finally:
            docker(pwm, "rmi", "-f", image, check=False)


def test_an_agent_killed_while_it_stops_containers_stops_them_and_keeps_their_last_words(pwm: PwmCluster) -> None:
    names = [f"stops-{n}" for n in range(6)]
    pwm.ok("apply", "-f", "-", input="".join(manifest(name, BYE, cpu="10m", stopGrace="20s") for name in names))
    for name in names:
        # Only then it handles the signal.
        eventually(lambda name=name: "begun" in pwm.pwm("logs", "wk", name).out, f"{name} has begun")
    pwm.ok("stop", "wk", *names)
    eventually(lambda: "EXITING" in pwm.ok("get", "c", "-o", "json"), "the first is being stopped")
    pwm.kill("agent")
    pwm.start_agent()
    for name in names:
        pwm.until(name, "STOPPED")
        assert pwm.ok("logs", "wk", name) == "begun\nbye\n"
        (container,) = pwm.containers(name)
        assert container["status"]["exitCode"] == 7
    pwm.ok("delete", "wk", *names, "--wait")


def test_a_node_out_of_reach_is_said_and_comes_back_with_its_containers(pwm: PwmCluster) -> None:
    pwm.apply("away", COUNT)
    pwm.until("away", "RUNNING")
    before = process(pwm, "away")
    pwm.kill("agent")
    begun = time.monotonic()
    eventually(lambda: pwm.node()["status"]["phase"] == "NOT_READY", "the node is NOT_READY")
    assert time.monotonic() - begun > 10, "a silence this short is no loss"
    assert pwm.phase("away") == "UNKNOWN"
    assert "node n1 is NOT_READY" in pwm.ok("why", "wk", "away")
    assert "NODE_UNREACHABLE" in pwm.ok("get", "node")
    assert "node n1 is NOT_READY" in pwm.ok("admin", "status")
    logs = pwm.pwm("logs", "wk", "away")
    assert logs.code == NO_SERVER
    assert "the agent of node n1 is not connected" in logs.err
    pwm.start_agent()
    pwm.until("away", "RUNNING")
    assert process(pwm, "away") == before
    pwm.ok("stop", "wk", "away", "--wait")
    assert_counted(pwm.ok("logs", "wk", "away"), "what is kept")
    pwm.ok("delete", "wk", "away", "--wait")


# --- controllers


def test_a_controller_killed_loses_nothing_that_it_acknowledged(pwm: PwmCluster) -> None:
    pwm.apply("stays", COUNT)
    pwm.until("stays", "RUNNING")
    before = process(pwm, "stays")
    acknowledged: list[str] = []
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            name = f"ack-{len(acknowledged)}"
            if pwm.pwm("apply", "-f", "-", input=volume(name)).code == DONE:
                acknowledged.append(name)

    writer = threading.Thread(target=write)
    with following(pwm, "stays") as follower:
        writer.start()
        try:
            for _ in range(2):
                some = len(acknowledged)
                eventually(lambda some=some: len(acknowledged) >= some + 2, "changes are acknowledged")
                eventually_grows(follower)
                pwm.kill("controller")
                pwm.start_controller()
        finally:
            stop.set()
            writer.join()
        eventually(lambda: pwm.node()["status"].get("phase") == "READY", "the node is READY")
        eventually_grows(follower)
        assert process(pwm, "stays") == before
        pwm.ok("stop", "wk", "stays", "--wait")
        assert follower.wait() == DONE
    assert_counted(follower.text(), "what was followed")
    kept = pwm.ok("get", "volume", "-o", "name").split()
    assert [name for name in acknowledged if f"volume/{name}" not in kept] == []
    assert len(pwm.containers("stays")) == 1
    pwm.ok("delete", "volume", *acknowledged)
    pwm.ok("delete", "wk", "stays", "--wait")


def test_both_daemons_stopped_in_order_and_started_again_touch_no_container(pwm: PwmCluster) -> None:
    pwm.apply("calm", COUNT)
    pwm.until("calm", "RUNNING")
    before = process(pwm, "calm")
    with following(pwm, "calm") as follower:
        eventually_grows(follower)
        pwm.stop("agent")
        pwm.stop("controller")
        pwm.start_controller()
        pwm.start_agent()
        eventually_grows(follower)
        assert process(pwm, "calm") == before
        pwm.ok("stop", "wk", "calm", "--wait")
        assert follower.wait() == DONE
    assert_counted(follower.text(), "what was followed")
    pwm.ok("delete", "wk", "calm", "--wait")


# --- etcd


def test_without_etcd_reads_go_on_with_a_warning_and_writes_are_refused_until_it_is_back(pwm: PwmCluster) -> None:
    pwm.apply("during", COUNT)
    pwm.until("during", "RUNNING")
    before = process(pwm, "during")
    kept = [f"kept-{n}" for n in range(20)]
    pwm.ok("apply", "-f", "-", input="---\n".join(volume(name) for name in kept))
    pwm.etcd.kill()
    eventually(lambda: "what you see may be old" in pwm.pwm("get", "wk").err, "it is said that lists may be old")
    listed = pwm.pwm("get", "wk")
    assert (listed.code, "during" in listed.out) == (DONE, True)
    refused = pwm.pwm("apply", "-f", "-", input=manifest("later", "true"))
    assert refused.code == NO_SERVER, refused
    assert "etcd" in refused.err or "store is out of reach" in refused.err
    assert "Traceback" not in refused.err
    assert "etcd" in pwm.ok("why", "wk", "during")
    status = pwm.pwm("admin", "status")
    assert "etcd cannot be reached" in status.out + status.err
    pwm.etcd.start()
    eventually(lambda: pwm.pwm("apply", "-f", "-", input=manifest("later", "true")).code == DONE, "writes go on")
    eventually(lambda: not pwm.pwm("get", "wk").err, "the warning is gone")
    pwm.until("later", "EXITED")
    assert {f"volume/{name}" for name in kept} <= set(pwm.ok("get", "volume", "-o", "name").split())
    assert process(pwm, "during") == before
    pwm.ok("stop", "wk", "during", "--wait")
    assert_counted(pwm.ok("logs", "wk", "during"), "what is kept")
    pwm.ok("delete", "wk", "during", "later", "--wait")
    pwm.ok("delete", "volume", *kept)


# --- behind PWM's back


def test_a_container_removed_by_somebody_else_has_disappeared_and_is_restarted(pwm: PwmCluster) -> None:
    pwm.apply("gone", COUNT, restartPolicy="OnFailure")
    pwm.until("gone", "RUNNING")
    docker(pwm, "rm", "-f", runtime_id(pwm, "gone"))
    eventually(lambda: len(pwm.containers("gone")) == 2, "it is tried again")
    pwm.until("gone", "RUNNING")
    first, second = sorted(pwm.containers("gone"), key=lambda c: str(c["spec"]["attempt"]))
    assert first["status"]["phase"] == "FAILED"
    assert first["status"]["reason"]["code"] == "CONTAINER_DISAPPEARED"
    assert "removed from its node by somebody else" in first["status"]["reason"]["message"]
    assert second["status"]["phase"] == "RUNNING"
    printed = pwm.ok("logs", "wk", "gone", "--previous").splitlines()
    assert printed == [f"line {n}" for n in range(1, len(printed) + 1)]
    pwm.ok("delete", "wk", "gone", "--wait")


@pytest.mark.parametrize(("how", "exit_code"), [("kill", 137), ("stop", 0)])
def test_a_container_ended_by_somebody_else_ends_as_it_did_and_is_restarted(
    pwm: PwmCluster, how: str, exit_code: int
) -> None:
    name = f"by-{how}"
    pwm.apply(name, COUNT, restartPolicy="Always")
    pwm.until(name, "RUNNING")
    eventually(lambda: "line" in pwm.pwm("logs", "wk", name).out, "it printed")
    docker(pwm, how, runtime_id(pwm, name))
    eventually(lambda: len(pwm.containers(name)) == 2, "it is tried again")
    pwm.until(name, "RUNNING")
    first = min(pwm.containers(name), key=lambda c: int(c["spec"]["attempt"]))
    assert first["status"]["phase"] == "EXITED"
    assert first["status"].get("exitCode", 0) == exit_code
    pwm.ok("delete", "wk", name, "--wait")


def test_a_name_that_is_deleted_and_applied_again_at_once_runs(pwm: PwmCluster) -> None:
    for _ in range(4):
        pwm.apply("again", "sleep 600")
        pwm.until("again", "RUNNING")
        pwm.ok("delete", "wk", "again", "--wait")
    free = ("ps", "-aq", "--filter", "name=pwm.users.again.0.1")
    eventually(lambda: not docker(pwm, *free), "the last of them is gone")
    leftover = docker(pwm, "create", "--name=pwm.users.again.0.1", *label_arguments(pwm), "pwm-demo/busybox", "true")
    try:
        pwm.apply("again", "echo ran")
        pwm.until("again", "EXITED")
        assert docker(pwm, "ps", "-aq", "--no-trunc", "--filter", f"id={leftover}") == ""
    finally:
        docker(pwm, "rm", "-f", leftover, check=False)
    pwm.ok("delete", "wk", "again", "--wait")


# --- the engine


@pytest.mark.parametrize("live_restore", [True, False])
def test_an_engine_that_is_killed_is_said_and_its_containers_are_adopted_or_have_truly_ended(
    isolated_dockerd: IsolatedDockerdFactory, tmp_path: Path, live_restore: bool
) -> None:
    dockerd = isolated_dockerd(live_restore=live_restore)
    ensure_busybox(dockerd.host)
    pwm = PwmCluster(tmp_path, dockerd.host)
    try:
        pwm.start()
        pwm.apply("engine", COUNT, restartPolicy="Always")
        pwm.until("engine", "RUNNING")
        before = process(pwm, "engine")
        dockerd.kill()
        eventually(lambda: "pwm.docker" in pwm.ok("admin", "status"), "the driver is away in `admin status`")
        assert "DRIVER_UNREACHABLE" in pwm.ok("get", "node")
        pwm.ok("apply", "-f", "-", input=manifest("waits", "echo ran"))
        eventually(lambda: "pwm.docker" in pwm.ok("why", "wk", "waits"), lambda: pwm.ok("why", "wk", "waits"))
        assert "pwm.docker" in pwm.ok("why", "wk", "engine")
        dockerd.start()
        pwm.until("waits", "EXITED")
        if live_restore:
            assert process(pwm, "engine") == before
            pwm.ok("stop", "wk", "engine", "--wait")
            assert len(pwm.containers("engine")) == 1
            assert_counted(pwm.ok("logs", "wk", "engine"), "what is kept")
        else:
            eventually(lambda: len(pwm.containers("engine")) == 2, "it is tried again")
            pwm.until("engine", "RUNNING")
            first = min(pwm.containers("engine"), key=lambda c: int(c["spec"]["attempt"]))
            assert first["status"]["phase"] == "EXITED"
            assert "while the Docker engine of the node was restarted" in first["status"]["reason"]["message"]
            assert_counted(pwm.ok("logs", "wk", "engine", "--previous"), "what is kept")
        pwm.ok("delete", "wk", "engine", "waits", "--wait")
        assert_whole(pwm)
    finally:
        pwm.close()


def test_after_all_faults_the_log_is_whole_and_knows_every_container(pwm: PwmCluster) -> None:
    assert_whole(pwm)


# --- what they share


def assert_whole(pwm: PwmCluster) -> None:
    """The log folds to its heads, no container is unknown to it, and nothing broke on the way."""
    pwm.ok("admin", "verify")

    def unknown() -> set[str]:
        there = docker(pwm, "ps", "-a", *ours(pwm), "--format", '{{.Label "pwm.uid"}}').split()
        return set(there) - {c["metadata"]["uid"] for c in json.loads(pwm.ok("get", "c", "-A", "-o", "json"))}

    eventually(lambda: not unknown(), lambda: f"unknown to the log: {unknown()}")
    for part in ("controller", "agent"):
        log = pwm.log(part)
        broken = re.search(r"Traceback \(most recent call last\)[\s\S]{0,3000}", log)
        assert broken is None, f"{part}: {broken[0]}"


def volume(name: str) -> str:
    """A change that starts nothing."""
    return f"{{apiVersion: v1, kind: Volume, metadata: {{name: {name}}}, spec: {{storage: s}}}}\n"


def docker(pwm: PwmCluster, *arguments: str, check: bool = True) -> str:
    command = ["docker", "-H", pwm.docker_host, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=check).stdout.strip()


def ours(pwm: PwmCluster) -> tuple[str, str]:
    return "--filter", f"label=pwm.cluster={pwm.name}"


def label_arguments(pwm: PwmCluster) -> list[str]:
    """Of a container that an earlier life of this node's agent left behind."""
    labels = {"pwm.cluster": pwm.name, "pwm.node": "n1", "pwm.uid": "left-behind", "pwm.workload": "again"}
    return [f"--label={name}={value}" for name, value in labels.items()]


def runtime_id(pwm: PwmCluster, workload: str) -> str:
    (container,) = (c for c in pwm.containers(workload) if c["status"]["phase"] == "RUNNING")
    return str(container["status"]["runtimeId"])


def process(pwm: PwmCluster, workload: str) -> str:
    """What would differ if the container had been restarted."""
    return docker(pwm, "inspect", "--format", "{{.Id}} {{.State.Pid}} {{.State.StartedAt}}", runtime_id(pwm, workload))


def assert_counted(text: str, what: str) -> None:
    """`line 1` to `line N` and `end N`, each once and in order."""
    *lines, last = text.splitlines()
    for number, line in enumerate(lines, start=1):
        assert line == f"line {number}", f"{what}: line {number} of {len(lines)} is {line!r}"
    assert lines, f"{what}: nothing was printed"
    assert last == f"end {len(lines)}", f"{what}: {last!r} after {len(lines)} lines"


class Follower:
    """`pwm logs -f` in the background."""

    def __init__(self, pwm: PwmCluster, workload: str, folder: Path) -> None:
        self.file = folder / f"{workload}.followed"
        self.errors = folder / f"{workload}.followed.err"
        with self.file.open("wb") as out, self.errors.open("wb") as err:
            self.child = subprocess.Popen(
                pwm.command("logs", "wk", workload, "-f"), stdout=out, stderr=err, env=pwm.cli_environment
            )

    def text(self) -> str:
        return self.file.read_text()

    def wait(self) -> int:
        return self.child.wait(PATIENCE_S)


@contextmanager
def following(pwm: PwmCluster, workload: str) -> Iterator[Follower]:
    follower = Follower(pwm, workload, pwm.directory)
    try:
        yield follower
    finally:
        follower.child.kill()
        follower.child.wait()


def eventually_grows(follower: Follower) -> None:
    before = follower.file.stat().st_size
    eventually(
        lambda: follower.file.stat().st_size > before, lambda: f"more is followed: {follower.errors.read_text()}"
    )


@contextmanager
def registry(*, layer_delay_s: float) -> Iterator[Registry]:
    """A registry in a thread of its own: the tests here block."""
    served = Registry()
    served.layer_delay_s = layer_delay_s
    ready, loop = threading.Event(), asyncio.new_event_loop()
    ended = asyncio.Event()

    async def serve() -> None:
        async with served.serving():
            ready.set()
            await ended.wait()

    def run() -> None:
        try:
            loop.run_until_complete(serve())
        finally:
            loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(PATIENCE_S), "the registry does not serve"
        yield served
    finally:
        end: Callable[[], None] = ended.set
        loop.call_soon_threadsafe(end)
        thread.join()
