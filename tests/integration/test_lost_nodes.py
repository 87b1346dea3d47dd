"""Nodes that cannot be heard, on real etcd and real Docker: two agents, each behind a wire that can be cut.

Times are a tenth of the usual ones. What must hold: nothing runs twice, what a lost node has stays taken until
its end is known, a loss of contact that is shorter than the fence costs nothing, and when all nodes fall
silent nothing is given up. An agent that is killed or frozen is not there to do its part; its watchdog is.
"""

import http.client
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from tests.docker_engine import DockerEngine
from tests.etcd_server import require_etcd
from tests.pwm_cluster import START_LIMIT_S, PwmCluster, eventually
from tests.pwm_watch import watching
from tests.tcp_wire import TcpWire
from tests.watchdogs import watchdogs

pytestmark = [pytest.mark.etcd, pytest.mark.docker]

LOST_AFTER_S, GRACE_S, SELF_FENCE_S = 12.0, 5.0, 8.0
# Beats, commits and a slow machine, besides the start of a command.
SLACK_S = 6.0
DONE, FAILED, USAGE = 0, 1, 2
SLEEP = "trap 'exit 0' TERM; while :; do sleep 0.1; done"
STUBBORN = "trap '' TERM; while :; do sleep 0.1; done"


class TwoNodes(PwmCluster):
    """n1 and n2, on one engine."""

    def start(self) -> PwmCluster:
        self.etcd.start()
        self.start_controller()
        self.wires = {node: TcpWire(self.replicas[0].agents) for node in ("n1", "n2")}
        for node in self.wires:
            self.start_node(node)
        return self

    def start_node(self, node: str) -> None:
        self._spawn(
            f"agent-{node}",
            "agent",
            f"--controllers={self.wires[node].address}",
            f"--node-token-file={self.directory}/node-token",
            f"--state-dir={self.directory}/{node}",
            f"--cluster={self.name}",
            f"--docker-host={self.docker_host}",
            f"--node={node}",
        )
        eventually(lambda: self.is_ready(node), f"{node} is READY", limit_s=START_LIMIT_S)

    def mend(self) -> None:
        for node, wire in self.wires.items():
            wire.mend()
            if f"agent-{node}" not in self._processes:
                self.start_node(node)
            self.thaw(f"agent-{node}")
            eventually(lambda node=node: self.is_ready(node), f"{node} is READY", limit_s=START_LIMIT_S)

    def close(self) -> None:
        for wire in self.wires.values():
            wire.close()
        super().close()

    # ---- what it says

    def watchdogs(self, node: str) -> list[int]:
        return watchdogs(self.directory / node)

    def docker(self, command: str, name: str) -> None:
        subprocess.run(
            ["docker", "-H", self.docker_host, command, f"pwm.users.{name}"], check=True, capture_output=True
        )

    def runs(self, name: str) -> bool:
        return bool(self.container(name)["status"].get("phase") == "RUNNING")

    def ended_before_its_successor(self, name: str) -> dict[str, Any]:
        """By the engine's own clock; what it says of the old one."""
        old: dict[str, Any] = self.inspect(f"{name}.0.1")["State"]
        assert not old["Running"]
        assert at(old["FinishedAt"]) < at(self.inspect(f"{name}.0.2")["State"]["StartedAt"])
        return old

    def until_self_fenced(self, name: str) -> None:
        eventually(lambda: self.container(name)["status"]["phase"] == "EXITED", f"the end of {name} is known")
        assert self.container(name)["status"]["reason"]["code"] == "SELF_FENCED"

    def named(self, kind: str, name: str) -> dict[str, Any]:
        return json.loads(self.ok("get", kind, name, "-o", "json"))  # type: ignore[no-any-return]

    def status_of(self, node: str) -> dict[str, Any]:
        result = self.pwm("get", "node", node, "-o", "json")
        return json.loads(result.out)["status"] if result.code == DONE else {}  # type: ignore[no-any-return]

    def is_ready(self, node: str) -> bool:
        status = self.status_of(node)
        return status.get("phase") == "READY" and not status.get("disconnected")

    def container(self, name: str) -> dict[str, Any]:
        listed = json.loads(self.ok("get", "c", "-o", "json"))
        return next((c for c in listed if c["metadata"]["name"] == name), {"status": {}, "spec": {}})

    def inspect(self, name: str) -> dict[str, Any]:
        """What Docker says; empty when it has no such container."""
        done = subprocess.run(
            ["docker", "-H", self.docker_host, "inspect", f"pwm.users.{name}"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        found: list[dict[str, Any]] = json.loads(done.stdout or "[]")
        return found[0] if found and found[0]["Config"]["Labels"].get("pwm.cluster") == self.name else {}

    def run_on(self, node: str, name: str, script: str, *, on_node_lost: str, stop_grace: str = "1s") -> None:
        """A workload whose container is on `node` now, and may go anywhere later."""
        other = next(n for n in self.wires if n != node)
        self.ok("apply", "-f", "-", input=node_manifest(other, maintenance=True))
        try:
            document = {
                "apiVersion": "v1", "kind": "Workload", "metadata": {"name": name},
                "spec": {
                    "image": "pwm-demo/busybox", "selectors": {"cpu": {"count": "100m"}}, "onNodeLost": on_node_lost,
                    "config": {"cmd": ["sh", "-c", script], "memory": "32MiB", "stopGrace": stop_grace},
                },
            }  # fmt: skip
            self.ok("apply", "-f", "-", input=json.dumps(document))
            self.until(name, "RUNNING")
        finally:
            self.ok("apply", "-f", "-", input=node_manifest(other, maintenance=False))
        eventually(lambda: self.is_ready(other), f"{other} takes work again")
        assert self.container(f"{name}.0.1")["spec"]["node"] == node


def node_manifest(node: str, *, maintenance: bool) -> str:
    spec = {"maintenance": True} if maintenance else {}
    return json.dumps({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}, "spec": spec})


def at(stamp: str) -> float:
    """Seconds of a time as Docker writes it, with nine digits."""
    whole, _, rest = stamp.rstrip("Z").partition(".")
    return datetime.fromisoformat(whole + "+00:00").timestamp() + float(f"0.{rest or 0}")


@pytest.fixture(scope="module")
def two_nodes(
    docker_engine: DockerEngine, busybox_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TwoNodes]:
    require_etcd()
    settings = {
        "PWM_NODE_LOST_AFTER": f"{LOST_AFTER_S:g}s",
        "PWM_NODE_GRACE": f"{GRACE_S:g}s",
        "PWM_SELF_FENCE": f"{SELF_FENCE_S:g}s",
    }
    made = TwoNodes(tmp_path_factory.mktemp("pwm"), docker_engine.host, environment=settings)
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture
def pwm(two_nodes: TwoNodes) -> Iterator[TwoNodes]:
    """Whole again after each test, and without its workloads."""
    yield two_nodes
    two_nodes.mend()
    names = [w["metadata"]["name"] for w in json.loads(two_nodes.ok("get", "wk", "-o", "json"))]
    if names:
        two_nodes.ok("delete", "wk", *names, "--wait")
    eventually(lambda: not json.loads(two_nodes.ok("get", "c", "-o", "json")), "no container is left")


def test_a_node_that_is_cut_off_gives_way_and_comes_back_clean(pwm: TwoNodes) -> None:
    pwm.run_on("n1", "far-moves", STUBBORN, on_node_lost="reschedule", stop_grace="60s")
    pwm.run_on("n1", "far-waits", SLEEP, on_node_lost="wait")
    kept = pwm.inspect("far-waits.0.1")["State"]
    pwm.wires["n1"].cut()
    cut_at, cut = time.time(), time.monotonic()

    eventually(lambda: pwm.status_of("n1").get("phase") == "NOT_READY", "n1 is NOT_READY")
    assert pwm.phase("far-moves") == "UNKNOWN"
    eventually(lambda: pwm.status_of("n1").get("phase") == "LOST", "n1 is LOST")
    # The last heartbeat came up to one interval before the cut.
    assert time.monotonic() - cut > LOST_AFTER_S - 2
    eventually(lambda: pwm.container("far-moves.0.2")["status"].get("phase") == "RUNNING", "the successor runs")
    assert pwm.container("far-moves.0.2")["spec"]["node"] == "n2"
    assert pwm.phase("far-moves") == "RUNNING"

    # The old one ended before the new one began, by Docker's own clock.
    old, new = pwm.inspect("far-moves.0.1")["State"], pwm.inspect("far-moves.0.2")["State"]
    assert not old["Running"]
    assert at(old["FinishedAt"]) < at(new["StartedAt"])
    assert at(old["FinishedAt"]) - cut_at > SELF_FENCE_S - 2
    lost = pwm.container("far-moves.0.1")["status"]
    assert (lost["phase"], lost["reason"]["code"]) == ("LOST", "NODE_UNREACHABLE")
    # What it had stays taken: nobody knows yet that it has ended.
    assert pwm.status_of("n1")["used"]["cpuMillis"] == "200"
    assert pwm.phase("far-waits") == "UNKNOWN"
    assert "node n1 is LOST" in pwm.ok("why", "wk", "far-waits")
    assert pwm.inspect("far-waits.0.1")["State"]["Running"]

    pwm.wires["n1"].mend()
    eventually(lambda: pwm.is_ready("n1"), "n1 is back")
    eventually(lambda: pwm.container("far-moves.0.1")["status"]["phase"] == "EXITED", "the end of the old one is known")
    assert pwm.container("far-moves.0.1")["status"]["reason"]["code"] == "SELF_FENCED"
    assert pwm.status_of("n1")["used"]["cpuMillis"] == "100"
    pwm.until("far-waits", "RUNNING")
    after = pwm.inspect("far-waits.0.1")["State"]
    assert (after["Pid"], after["StartedAt"]) == (kept["Pid"], kept["StartedAt"])
    assert [c["spec"]["attempt"] for c in pwm.containers("far-moves")] == [1, 2]
    assert pwm.containers("far-moves")[1]["spec"].get("failuresBefore", 0) == 0


def test_contact_that_is_lost_for_less_than_the_fence_costs_nothing(pwm: TwoNodes) -> None:
    pwm.run_on("n1", "far-stays", SLEEP, on_node_lost="reschedule")
    before = pwm.inspect("far-stays.0.1")["State"]
    pwm.wires["n1"].cut()
    eventually(lambda: pwm.status_of("n1").get("phase") == "NOT_READY", "n1 is NOT_READY")
    pwm.wires["n1"].mend()
    eventually(lambda: pwm.is_ready("n1"), "n1 is back")
    pwm.until("far-stays", "RUNNING")
    after = pwm.inspect("far-stays.0.1")["State"]
    assert (after["Pid"], after["StartedAt"]) == (before["Pid"], before["StartedAt"])
    assert len(pwm.containers("far-stays")) == 1


def test_a_controller_that_is_killed_and_started_again_costs_nothing(pwm: TwoNodes) -> None:
    pwm.run_on("n1", "far-stays", SLEEP, on_node_lost="reschedule")
    before = pwm.inspect("far-stays.0.1")["State"]
    pwm.kill("controller")
    pwm.start_controller()
    eventually(lambda: pwm.is_ready("n1"), "n1 is back")
    after = pwm.inspect("far-stays.0.1")["State"]
    assert (after["Pid"], after["StartedAt"]) == (before["Pid"], before["StartedAt"])
    assert pwm.phase("far-stays") == "RUNNING"


def test_when_every_node_falls_silent_nothing_is_lost(pwm: TwoNodes) -> None:
    pwm.run_on("n1", "far-waits", SLEEP, on_node_lost="wait")
    before = pwm.inspect("far-waits.0.1")["State"]
    for wire in pwm.wires.values():
        wire.cut()
    over = time.monotonic() + LOST_AFTER_S + SLACK_S
    for node in pwm.wires:
        eventually(
            lambda node=node: "nothing is rescheduled" in pwm.status_of(node).get("reason", {}).get("message", ""),
            f"the silence of {node} is told as that of many", limit_s=GRACE_S + SLACK_S,
        )  # fmt: skip
    assert "2 of 2 nodes are silent: the network is the suspect" in pwm.ok("admin", "status")
    eventually(lambda: time.monotonic() > over, "long enough for a loss", limit_s=LOST_AFTER_S + SLACK_S)
    assert [pwm.status_of(node)["phase"] for node in pwm.wires] == ["NOT_READY", "NOT_READY"]
    for wire in pwm.wires.values():
        wire.mend()
    for node in pwm.wires:
        eventually(lambda node=node: pwm.is_ready(node), f"{node} is back")
    after = pwm.inspect("far-waits.0.1")["State"]
    assert (after["Pid"], after["StartedAt"]) == (before["Pid"], before["StartedAt"])
    for node in pwm.wires:
        said = pwm.ok("events", "node", node).split("like half of the zone's nodes")
        assert len(said) == 2
        assert "lost" not in said[1]


def test_an_agent_that_was_stopped_in_good_order_is_waited_for(pwm: TwoNodes) -> None:
    pwm.run_on("n1", "far-stays", SLEEP, on_node_lost="reschedule")
    before = pwm.inspect("far-stays.0.1")["State"]
    pwm.stop("agent-n1")
    eventually(lambda: not pwm.watchdogs("n1"), "there is nothing to watch over")
    eventually(lambda: pwm.status_of("n1").get("phase") == "LOST", "n1 is LOST")
    assert "what runs there is left alone" in pwm.ok("describe", "node", "n1")
    assert (pwm.phase("far-stays"), len(pwm.containers("far-stays"))) == ("UNKNOWN", 1)
    pwm.start_node("n1")
    pwm.until("far-stays", "RUNNING")
    after = pwm.inspect("far-stays.0.1")["State"]
    assert (after["Pid"], after["StartedAt"]) == (before["Pid"], before["StartedAt"])


# ---- agents that cannot keep their promise


def test_what_an_agent_leaves_behind_ends_before_its_successor_begins(pwm: TwoNodes) -> None:
    pwm.run_on("n1", "far-moves", STUBBORN, on_node_lost="reschedule", stop_grace="60s")
    pwm.run_on("n1", "far-paused", STUBBORN, on_node_lost="reschedule")
    pwm.run_on("n1", "far-waits", SLEEP, on_node_lost="wait")
    kept = pwm.inspect("far-waits.0.1")["State"]
    pwm.docker("pause", "far-paused.0.1")
    (watchdog,) = pwm.watchdogs("n1")
    pwm.kill("agent-n1")
    killed_at = time.time()
    assert pwm.watchdogs("n1") == [watchdog]

    for name in ("far-moves", "far-paused"):
        eventually(lambda name=name: pwm.runs(f"{name}.0.2"), "the successor runs")
        old = pwm.ended_before_its_successor(name)
        assert at(old["FinishedAt"]) - killed_at > SELF_FENCE_S - 2
        assert old["ExitCode"] == 137
    eventually(lambda: not pwm.watchdogs("n1"), "the watchdog has nothing left to do")
    after = pwm.inspect("far-waits.0.1")["State"]
    assert (after["Pid"], after["StartedAt"]) == (kept["Pid"], kept["StartedAt"])

    pwm.start_node("n1")
    for name in ("far-moves", "far-paused"):
        pwm.until_self_fenced(f"{name}.0.1")
        assert [c["spec"]["attempt"] for c in pwm.containers(name)] == [1, 2]
    assert len(pwm.watchdogs("n1")) == 1


def test_what_a_frozen_agent_holds_ends_too_and_all_is_well_when_it_thaws(pwm: TwoNodes) -> None:
    pwm.run_on("n1", "far-moves", STUBBORN, on_node_lost="reschedule", stop_grace="60s")
    (watchdog,) = pwm.watchdogs("n1")
    pwm.freeze("agent-n1")
    eventually(lambda: pwm.runs("far-moves.0.2"), "the successor runs")
    pwm.ended_before_its_successor("far-moves")
    assert pwm.watchdogs("n1") == [watchdog], "its agent may go on any moment"
    pwm.thaw("agent-n1")
    eventually(lambda: pwm.is_ready("n1"), "n1 is back")
    pwm.until_self_fenced("far-moves.0.1")
    pwm.until("far-moves", "RUNNING")
    assert [c["spec"]["attempt"] for c in pwm.containers("far-moves")] == [1, 2]
    assert pwm.watchdogs("n1") == [watchdog]


def test_an_agent_that_is_started_again_in_time_takes_over_and_so_does_its_watchdog(pwm: TwoNodes) -> None:
    pwm.run_on("n1", "far-stays", SLEEP, on_node_lost="reschedule")
    before = pwm.inspect("far-stays.0.1")["State"]
    (first,) = pwm.watchdogs("n1")
    pwm.kill("agent-n1")
    began = time.monotonic()
    eventually(lambda: time.monotonic() > began + GRACE_S, "it is away for a while")
    pwm.start_node("n1")
    (second,) = eventually(lambda: (now := pwm.watchdogs("n1")) and len(now) == 1 and first not in now and now, "one")
    os.kill(second, signal.SIGKILL)
    (third,) = eventually(lambda: [pid for pid in pwm.watchdogs("n1") if pid != second], "the agent starts another")
    over = time.monotonic() + LOST_AFTER_S + SLACK_S
    eventually(lambda: time.monotonic() > over, "long enough for a loss")
    after = pwm.inspect("far-stays.0.1")["State"]
    assert (after["Pid"], after["StartedAt"]) == (before["Pid"], before["StartedAt"])
    assert pwm.watchdogs("n1") == [third]
    assert (pwm.phase("far-stays"), len(pwm.containers("far-stays"))) == ("RUNNING", 1)


def test_an_agent_that_nobody_hears_leave_is_held_to_its_promise(pwm: TwoNodes) -> None:
    pwm.run_on("n1", "far-moves", STUBBORN, on_node_lost="reschedule")
    pwm.wires["n1"].cut()
    pwm.stop("agent-n1")
    assert len(pwm.watchdogs("n1")) == 1
    eventually(lambda: pwm.runs("far-moves.0.2"), "the successor runs")
    pwm.ended_before_its_successor("far-moves")
    eventually(lambda: not pwm.watchdogs("n1"), "the watchdog has nothing left to do")


def test_an_admin_says_that_a_node_is_dead(pwm: TwoNodes) -> None:
    pwm.run_on("n1", "far-waits", SLEEP, on_node_lost="wait")
    alive = pwm.pwm("admin", "confirm-dead", "n1", "--yes")
    assert (alive.code, "its agent is connected" in alive.err) == (FAILED, True), alive.err
    assert pwm.pwm("admin", "confirm-dead", "n1").code == USAGE, "nobody is at a terminal to be asked"
    pwm.kill("agent-n1")
    subprocess.run(
        ["docker", "-H", pwm.docker_host, "kill", "pwm.users.far-waits.0.1"], check=True, capture_output=True
    )
    eventually(lambda: pwm.status_of("n1").get("disconnected"), "n1 is disconnected")
    said = pwm.ok("admin", "confirm-dead", "n1", "--yes")
    assert "node/n1 confirmed dead" in said
    assert "users/far-waits.0.1" in said
    eventually(lambda: pwm.container("far-waits.0.2")["status"].get("phase") == "RUNNING", "its successor runs on n2")
    status = pwm.container("far-waits.0.1")["status"]
    assert (status["phase"], status["reason"]["code"]) == ("FAILED", "NODE_CONFIRMED_DEAD")
    node = pwm.status_of("n1")
    assert (node["phase"], node["used"].get("cpuMillis")) == ("LOST", None)
    assert "confirmed that the machine is dead by user admin" in pwm.ok("events", "node", "n1")
    pwm.start_node("n1")
    eventually(lambda: not pwm.inspect("far-waits.0.1"), "what was left on n1 is removed")


def test_a_workload_on_a_lost_node_can_be_deleted(pwm: TwoNodes) -> None:
    pwm.run_on("n1", "far-goes", SLEEP, on_node_lost="wait")
    pwm.wires["n1"].cut()
    eventually(lambda: pwm.status_of("n1").get("phase") == "NOT_READY", "n1 is NOT_READY")
    said = pwm.ok("delete", "wk", "far-goes", "--wait")
    assert "far-goes.0.1 may still run on node n1" in said
    assert pwm.phase("far-goes") == "GONE"
    assert pwm.container("far-goes.0.1")["status"]["phase"] == "LOST"
    refused = pwm.pwm("delete", "node", "n1")
    assert (refused.code, "far-goes.0.1" in refused.err) == (FAILED, True), refused.err
    assert pwm.inspect("far-goes.0.1")["State"]["Running"]
    pwm.wires["n1"].mend()
    eventually(lambda: not pwm.inspect("far-goes.0.1"), "it is gone from n1")
    eventually(lambda: not pwm.container("far-goes.0.1")["spec"], "and from the log")


def test_a_connection_that_breaks_is_shown_at_once(pwm: TwoNodes) -> None:
    token = (pwm.directory / "admin-token").read_text().strip()
    connection = http.client.HTTPConnection(pwm.replicas[0].http)

    def is_disconnected() -> bool:
        connection.request("GET", "/v1/resources/Node/n1", headers={"Authorization": f"Bearer {token}"})
        status = json.loads(connection.getresponse().read())["resource"]["status"]
        return bool(status.get("disconnected"))

    assert not is_disconnected()
    with watching(pwm, "node") as watch:
        pwm.kill("agent-n1")
        eventually(is_disconnected, "it is shown")
        eventually(lambda: watch.saw("READY (disconnected)"), "who watches sees it too")
    assert "READY (disconnected)" in pwm.ok("get", "node")
    assert "its agent has been silent for" in pwm.ok("describe", "node", "n1")
    assert "READY (disconnected)" in pwm.ok("admin", "status")
    connection.close()
