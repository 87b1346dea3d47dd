"""Controllers and agents of this version and of the next live together, and are replaced one by one."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import next_version
from tests.docker_engine import DockerEngine
from tests.pwm_cluster import PwmCluster, eventually

pytestmark = [pytest.mark.etcd, pytest.mark.docker, pytest.mark.slow]

FOR_EVER = "echo begun; trap 'exit 0' TERM; while :; do sleep 0.2; done"


class Upgrading(PwmCluster):
    """Parts named in `updated` run the next version."""

    def __init__(self, directory: Path, docker_host: str, *, next_environment: dict[str, str]) -> None:
        super().__init__(directory, docker_host, controllers=2)
        self.updated: set[str] = set()
        self._next = next_environment

    def _spawn(self, part: str, *words: str) -> None:
        self.environment = self._next if part in self.updated else {}
        super()._spawn(part, *words)

    def update(self, part: str, *, back: bool = False) -> None:
        """Stop it in order, and start it again as the other version."""
        self.stop(part)
        (self.updated.discard if back else self.updated.add)(part)
        if part == "agent":
            self.start_agent()
        else:
            self.start_controller(part)

    def at(self, part: str) -> str:
        return f"--server=http://{self.replica(part).http}"

    def versions(self) -> dict[str, str]:
        """Of controllers, by address, and of the agent."""
        status = json.loads(self.ok("admin", "status", "-o", "json"))
        found = {replica["address"]: replica["version"] for replica in status["replicas"]}
        return {**found, "agent": status["agents"][0]["version"]}


@pytest.fixture
def pwm(docker_engine: DockerEngine, busybox_image: str, tmp_path: Path) -> Iterator[Upgrading]:
    environment = next_version.make(tmp_path / "next")
    cluster = Upgrading(tmp_path, docker_engine.host, next_environment=environment)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


def works(pwm: Upgrading, name: str) -> None:
    """A workload's whole life, each step at another controller."""
    first, second = (pwm.at(replica.part) for replica in pwm.replicas)
    pwm.apply(name, FOR_EVER)
    pwm.until(name, "RUNNING")
    for server in (first, second):
        eventually(lambda server=server: pwm.pwm("logs", "wk", name, server).out == "begun\n", "its output")  # type: ignore[misc]
        assert name in pwm.ok("get", "wk", server)
        assert name in pwm.ok("events", server)
    pwm.ok("stop", "wk", name, "--wait", second)
    pwm.ok("delete", "wk", name, "--wait", first)


def is_clean(pwm: Upgrading) -> None:
    for replica in pwm.replicas:
        pwm.ok("admin", "verify", pwm.at(replica.part))


def process(pwm: Upgrading) -> str:
    form = "{{.Id}} {{.State.Pid}} {{.State.StartedAt}}"
    found = [c for c in pwm.containers("stays") if c["spec"].get("replica", 0) == 0]
    command = ["docker", "-H", pwm.docker_host, "inspect", "--format", form, found[0]["status"]["runtimeId"]]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_parts_are_updated_one_by_one_under_running_containers(pwm: Upgrading) -> None:
    pwm.apply("stays", FOR_EVER)
    pwm.until("stays", "RUNNING")
    before = process(pwm)
    assert set(pwm.versions().values()) == {"3.0.0"}

    pwm.update("controller-2")
    eventually(lambda: sorted(pwm.versions().values()) == ["3.0.0", "3.0.0", "3.1.0"], "the other one knows of it")
    old, new = pwm.at("controller"), pwm.at("controller-2")
    works(pwm, "mixed")

    # Written by the new one: a payload and a field that the old one does not know.
    pwm.ok("scale", "wk", "stays", "2", new)
    eventually(lambda: len(pwm.containers("stays")) == 2, "it is scaled, whoever leads")
    assert json.loads(pwm.ok("get", "wk", "stays", "-o", "json", old))["spec"]["replica"]["count"] == 2
    # Written by the old one on top of it: what it does not know is kept.
    pwm.ok("scale", "wk", "stays", "1", old)
    status = json.loads(pwm.ok("get", "wk", "stays", "-o", "json", new))["status"]
    assert (status["note"], status["scaledBecause"]) == ("to 2", "tomorrow")
    is_clean(pwm)

    pwm.update("agent")
    works(pwm, "new-agent")
    # The new agent at the old controller, and at the new one, whichever it was at.
    for part in ("controller-2", "controller"):
        pwm.stop(part)
        eventually(lambda: pwm.node()["status"].get("phase") == "READY", "the node is READY")
        pwm.apply(f"without-{part}", FOR_EVER)
        pwm.until(f"without-{part}", "RUNNING")
        pwm.start_controller(part)
    pwm.update("agent", back=True)
    works(pwm, "old-agent-again")

    pwm.update("controller")
    works(pwm, "old-agent")
    pwm.update("agent")
    eventually(lambda: set(pwm.versions().values()) == {"3.1.0"}, "all are new")
    works(pwm, "all-new")
    is_clean(pwm)
    assert process(pwm) == before
    for part in ("controller", "controller-2", "agent"):
        assert "Traceback" not in pwm.log(part)
