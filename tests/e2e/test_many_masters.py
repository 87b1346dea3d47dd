"""Three controllers, three members of etcd and two nodes on one machine, as `pwm up` starts them: parts are killed,
leaders are made to fail, and nobody notices.
"""

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docker_engine import DockerEngine
from tests.e2e.local_pwm import LocalPwm, pwm_up, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SLEEPER = "trap 'exit 0' TERM; while :; do sleep 1; done"
ZEROS = [
    "acknowledged writes lost", "writes done twice", "stale reads", "watch events missed", "placements doubled",
    "containers touched", "resources unlike their log",
]  # fmt: skip


@pytest.fixture(scope="module")
def pwm(
    docker_engine: DockerEngine, busybox_image: str, etcd_binary: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalPwm]:
    directory = tmp_path_factory.mktemp("many")
    with pwm_up(
        directory, "--rm", "--controllers", "3", "--etcd", "3", "--nodes", "2", docker_host=docker_engine.host
    ) as running:
        # Only this profile is in the file, but --rm does not make it the one to use.
        running.environment["PWM_PROFILE"] = "local"
        for number in range(2):
            name = f"stays-{number}"
            running(
                "run", "-d", "--name", name, "--cpu", "100m", "--mem", "32MiB", busybox_image, "--", "sh", "-c", SLEEPER
            )
            running.wait_for_phase(name, "RUNNING")
        yield running


def status(pwm: LocalPwm) -> dict[str, Any]:
    result = pwm("admin", "status", "-o", "json", check=False)
    return json.loads(result.stdout) if result.returncode == 0 else {}  # type: ignore[no-any-return]


def whole(pwm: LocalPwm) -> bool:
    """Three replicas that answer and are up to date, both roles led, both nodes connected, three members."""
    now = status(pwm)
    replicas = now.get("replicas", [])
    return (
        len(replicas) == 3
        and not any(replica.get("trouble") or int(replica.get("lag", 0)) > 50 for replica in replicas)
        and [leader["role"] for leader in now["leaders"] if leader.get("atWork")] == ["cluster", "zone/default"]
        and all(agent.get("replica") and agent["phase"] == "READY" for agent in now["agents"])
        and sum(bool(member.get("reachable")) for member in now["etcd"]) == 3
    )


def processes(pwm: LocalPwm) -> dict[str, str]:
    """Container -> what Docker says of its process."""
    found = {}
    for number in range(2):
        shown = pwm("inspect", "wk", f"stays-{number}").stdout.decode()
        found[f"stays-{number}"] = " ".join(sorted(re.findall(r'"(?:Pid|StartedAt)": "?([^",\s]+)', shown)))
    return found


def children(pwm: LocalPwm) -> dict[int, str]:
    """Process id -> command line of each part."""
    own = Path(f"/proc/{pwm.process.pid}/task/{pwm.process.pid}/children").read_text().split()
    return {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode() for pid in own}


def test_such_a_cluster_is_said_part_by_part(pwm: LocalPwm) -> None:
    wait_until(lambda: whole(pwm), "not whole")
    said = pwm.log.read_text()
    for part in ("etcd-1", "etcd-3", "controller-1", "controller-3", "agent-1", "agent-2"):
        assert re.search(rf"✓ {part} ", said), said
    assert "shared by 2 nodes" in said
    now = status(pwm)
    assert len({replica["address"] for replica in now["replicas"]}) == 3
    assert len({agent["node"] for agent in now["agents"]}) == 2
    # Whatever etcd this machine has may be advised against.
    assert [warning for warning in now.get("warnings", []) if "known faults" not in warning] == []


def test_both_nodes_offer_a_share_and_not_the_machine_twice(pwm: LocalPwm) -> None:
    nodes = json.loads(pwm("get", "node", "-o", "json").stdout)
    inventories = [node["status"]["inventory"] for node in nodes]
    whole_memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert sum(int(inventory["memoryBytes"]) for inventory in inventories) <= whole_memory
    assert sum(int(inventory["cpuCount"]) for inventory in inventories) <= max(2, len(os.sched_getaffinity(0)))


@pytest.mark.parametrize("part", ["etcd", "controller", "agent"])
def test_a_part_that_is_killed_is_back_in_a_moment_and_touches_nothing(pwm: LocalPwm, part: str) -> None:
    wait_until(lambda: whole(pwm), "not whole before")
    before = processes(pwm)
    victims = [pid for pid, command in children(pwm).items() if f"pwm {part} " in command or f"/{part} " in command]
    assert len(victims) == {"etcd": 3, "controller": 3, "agent": 2}[part]
    os.kill(victims[0], signal.SIGKILL)
    wait_until(lambda: f"{part}-1 ended by itself (signal SIGKILL); starting it again" in pwm.log.read_text(), "unsaid")
    wait_until(lambda: len(children(pwm)) == 8, "not started again")
    wait_until(lambda: whole(pwm), "not whole after")
    assert processes(pwm) == before


@pytest.mark.parametrize(
    "failure", [["--kill", "--rounds", "2"], ["--freeze", "--rounds", "1"], ["--resign", "--rounds", "2"]], ids=str
)
def test_a_drill_proves_that_nobody_notices(pwm: LocalPwm, failure: list[str]) -> None:
    wait_until(lambda: whole(pwm), "not whole before")
    before = processes(pwm)
    result = pwm("admin", "failover", *failure, "--yes", "-o", "json", check=False)
    report = json.loads(result.stdout)
    assert [finding["what"] for finding in report["findings"]] == ZEROS
    assert [(f["what"], f["count"], f["found"]) for f in report["findings"] if not f["good"]] == []
    assert result.returncode == 0, result.stderr
    # None of it was vacuous.
    assert [len(round_["revisions"]) > 20 for round_ in report["rounds"]] == [True] * int(failure[2])
    assert all(round_["leader"] != round_["failed"] for round_ in report["rounds"])
    assert "2 of 2 are the processes they were, 2 by their drivers' word" in str(report["findings"])
    assert processes(pwm) == before
    names = [workload["metadata"]["name"] for workload in json.loads(pwm("get", "wk", "-A", "-o", "json").stdout)]
    assert sorted(names) == ["stays-0", "stays-1"]
    assert b"stays-0" in pwm("events").stdout
    assert b"pwm-drill" not in pwm("events").stdout, "users of another group are shown the drill"


def test_a_drill_of_the_other_role_names_its_leader(pwm: LocalPwm) -> None:
    wait_until(lambda: whole(pwm), "not whole before")
    result = pwm("admin", "failover", "--role", "cluster", "--rounds", "1", "--yes")
    assert b"Nobody noticed." in result.stdout
    assert b"leads cluster, once" in result.stderr
    assert re.search(rb"^1 +\S+ +127[.]0[.]0[.]1:", result.stderr, re.M), result.stderr
