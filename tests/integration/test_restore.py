"""etcd is restored from an older snapshot under a running PWM: everything stands still until an admin decides."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker_engine import DockerEngine
from tests.pwm_cluster import PwmCluster, eventually, manifest

pytestmark = [pytest.mark.etcd, pytest.mark.docker, pytest.mark.slow]

DONE, USAGE, NO_SERVER = 0, 2, 6
FOR_EVER = "trap 'exit 0' TERM; while :; do sleep 0.2; done"
# Until everybody has noticed: the store is asked every two seconds.


@pytest.fixture
def pwm(docker_engine: DockerEngine, busybox_image: str, tmp_path: Path) -> Iterator[PwmCluster]:
    if shutil.which("etcdctl") is None:
        pytest.skip("needs etcdctl")
    cluster = PwmCluster(tmp_path, docker_engine.host, controllers=2)
    try:
        yield cluster.start()
    finally:
        cluster.close()


def etcdctl(pwm: PwmCluster, *arguments: str) -> None:
    environment = {**os.environ, "ETCDCTL_API": "3"}
    subprocess.run(
        ["etcdctl", f"--endpoints={pwm.etcd.address}", *arguments], check=True, capture_output=True, env=environment
    )


def restore(pwm: PwmCluster, snapshot: Path) -> None:
    """As an admin does it: a member with the snapshot in the place of the one that was there."""
    pwm.etcd.kill()
    member = pwm.etcd.data_dir / "member"
    shutil.rmtree(member)
    etcdctl(
        pwm, "snapshot", "restore", str(snapshot), f"--name={pwm.etcd.name}", f"--data-dir={member}",
        f"--initial-cluster={pwm.etcd.name}={pwm.etcd.peer_url}", f"--initial-advertise-peer-urls={pwm.etcd.peer_url}",
    )  # fmt: skip
    pwm.etcd.start()


def docker(pwm: PwmCluster, *arguments: str) -> str:
    command = ["docker", "-H", pwm.docker_host, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def alive(pwm: PwmCluster) -> dict[str, str]:
    """What runs, by workload, and what would differ if it had been touched."""
    there = docker(pwm, "ps", "-q", "--no-trunc", "--filter", f"label=pwm.cluster={pwm.name}").split()
    form = '{{index .Config.Labels "pwm.workload"}} {{.Id}} {{.State.Pid}} {{.State.StartedAt}}'
    lines = docker(pwm, "inspect", "--format", form, *there).splitlines() if there else []
    return {line.split()[0]: line for line in lines}


def run(pwm: PwmCluster, *names: str) -> None:
    pwm.ok("apply", "-f", "-", input="".join(manifest(name, FOR_EVER) for name in names))
    for name in names:
        pwm.until(name, "RUNNING")


def stands_still(pwm: PwmCluster, part: str) -> bool:
    server = f"--server=http://{pwm.replica(part).http}"
    said = pwm.pwm("admin", "status", server)
    return said.code == DONE and "restored from an older snapshot" in said.out


def test_a_restore_under_running_replicas_is_noticed_touches_nothing_and_is_settled_by_an_admin(
    pwm: PwmCluster, tmp_path: Path
) -> None:
    run(pwm, "before")
    etcdctl(pwm, "snapshot", "save", str(tmp_path / "snapshot"))
    run(pwm, "after")
    running = alive(pwm)
    assert set(running) == {"before", "after"}
    eventually(lambda: "users/after" in pwm.ok("events", "--audit"), "the audit has what the restore takes away, too")
    restore(pwm, tmp_path / "snapshot")

    for replica in pwm.replicas:
        part = replica.part
        eventually(lambda part=part: stands_still(pwm, part), f"{part} stands still")  # type: ignore[misc]
    listed = pwm.pwm("get", "wk")
    assert (listed.code, "after" in listed.out) == (DONE, True), "what was there before the restore is still shown"
    assert "may be old" in listed.err
    refused = pwm.pwm("apply", "-f", "-", input=manifest("new", FOR_EVER))
    assert refused.code == NO_SERVER
    assert "until an admin decides" in refused.err
    assert "accept-restore" in refused.err

    pwm.kill("controller-2")
    pwm.start_controller("controller-2")
    assert stands_still(pwm, "controller-2"), "one that was started after it stands still as well"

    eventually(lambda: "users/after.0.1" in pwm.pwm("admin", "accept-restore").out, "the agent has said what it has")
    asked = pwm.pwm("admin", "accept-restore")
    assert asked.code == USAGE, "it goes on only if somebody agrees"
    assert "n1 users/after.0.1" in asked.out
    assert "before.0.1" not in asked.out
    assert alive(pwm) == running, "nothing was touched"

    assert "incarnation 1" in pwm.ok("admin", "accept-restore", "--yes")
    eventually(lambda: set(alive(pwm)) == {"before"}, "what the log does not know is removed")
    assert alive(pwm)["before"] == running["before"], "and what it knows goes on"
    pwm.until("before", "RUNNING")
    run(pwm, "new")
    assert not stands_still(pwm, "controller")
    assert pwm.phase("after") == "GONE"
    eventually(lambda: "users/new" in pwm.ok("events", "--audit"), "the audit goes on")
    pwm.ok("admin", "verify")
    assert pwm.pwm("admin", "accept-restore", "--yes").code not in (DONE, NO_SERVER), "there is nothing to accept now"
    # Agents obey the epochs of later sessions, too.
    pwm.kill("agent")
    pwm.start_agent()
    pwm.ok("delete", "wk", "before", "new", "--wait")


def test_replicas_started_after_a_restore_hear_of_it_from_agents(pwm: PwmCluster, tmp_path: Path) -> None:
    run(pwm, "before")
    etcdctl(pwm, "snapshot", "save", str(tmp_path / "snapshot"))
    run(pwm, "after")
    running = alive(pwm)
    for replica in pwm.replicas:
        pwm.kill(replica.part)
    restore(pwm, tmp_path / "snapshot")
    for replica in pwm.replicas:
        pwm.start_controller(replica.part)
    for replica in pwm.replicas:
        part = replica.part
        eventually(lambda part=part: stands_still(pwm, part), f"{part} stands still")  # type: ignore[misc]
    assert "agent of node n1" in pwm.ok("admin", "status")
    refused = pwm.pwm("apply", "-f", "-", input=manifest("new", FOR_EVER))
    assert (refused.code, "until an admin decides" in refused.err) == (NO_SERVER, True)
    assert alive(pwm) == running
    eventually(lambda: "n1 users/after.0.1" in pwm.pwm("admin", "accept-restore").out, "the agent has said what it has")
    pwm.ok("admin", "accept-restore", "--yes")
    eventually(lambda: set(alive(pwm)) == {"before"}, "what the log does not know is removed")
    pwm.until("before", "RUNNING")
    assert alive(pwm)["before"] == running["before"]
    pwm.ok("delete", "wk", "before", "--wait")
    pwm.ok("admin", "verify")
