"""The main job on real etcd and real Docker: apply, running, logs, stop, delete."""

import json
import re
import subprocess

import pytest

from tests.pwm_cluster import PwmCluster, eventually, manifest

pytestmark = [pytest.mark.etcd, pytest.mark.docker]


def test_a_workload_goes_from_apply_to_its_end(cluster: PwmCluster) -> None:
    cluster.apply("line", "echo one; echo two >&2; echo three", env={"A": "b"})
    cluster.until("line", "EXITED")
    logs = cluster.pwm("logs", "wk", "line", "-f")
    assert (logs.code, logs.out, logs.err) == (0, "one\nthree\n", "two\n")
    assert "EXITED" in cluster.ok("get", "wk", "line")
    events = cluster.ok("events", "Workload", "line")
    steps = ["created", "placed on n1", "running", "exited, exit code 0"]
    assert [step for step in steps if step in events] == steps
    cluster.ok("delete", "wk", "line", "--wait")
    assert cluster.pwm("get", "wk", "line").code == 3


def test_stopping_stops_the_container_and_keeps_its_output(cluster: PwmCluster) -> None:
    cluster.apply("stopme", "trap 'echo bye; exit 7' TERM; echo started; while :; do sleep 0.1; done")
    eventually(lambda: cluster.pwm("logs", "wk", "stopme").out == "started\n", "the command has begun")
    cluster.ok("stop", "wk", "stopme", "--wait")
    assert cluster.phase("stopme") == "STOPPED"
    assert cluster.ok("logs", "wk", "stopme") == "started\nbye\n"
    (container,) = cluster.containers("stopme")
    assert container["status"]["exitCode"] == 7
    assert _docker(cluster, "ps", "-aq", "--filter", "label=pwm.workload=stopme") == ""
    cluster.ok("restart", "wk", "stopme")
    cluster.until("stopme", "RUNNING")
    cluster.ok("delete", "wk", "stopme", "--wait")


def test_following_shows_lines_as_they_are_printed_and_ends_with_the_workload(cluster: PwmCluster) -> None:
    cluster.apply("follow", "for n in 1 2 3; do echo line $n; sleep 0.3; done; exit 3")
    logs = cluster.pwm("logs", "wk", "follow", "-f")
    assert logs.out == "line 1\nline 2\nline 3\n"
    cluster.until("follow", "CRASHED")
    assert cluster.workload("follow")["status"]["exitCode"] == 3
    assert cluster.ok("logs", "wk", "follow", "--tail", "1") == "line 3\n"
    stamped = cluster.ok("logs", "wk", "follow", "-t").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z line \d$", line) for line in stamped), stamped


def test_a_crash_loop_backs_off_and_ends_at_its_limit(cluster: PwmCluster) -> None:
    cluster.apply("crash", "echo attempt; exit 9", restartPolicy="OnFailure", maxAttempts=3)
    cluster.until("crash", "CRASHED")
    why = cluster.ok("why", "wk", "crash")
    assert "MAX_RETRY_REACHED" in why
    starts = [c["metadata"]["createdAt"] for c in cluster.containers("crash")]
    assert len(starts) == 3
    assert cluster.ok("logs", "wk", "crash", "--previous") == "attempt\n"


def test_memory_is_limited_and_a_kill_for_it_is_said(cluster: PwmCluster) -> None:
    cluster.apply("hungry", "sleep 1; x=$(head -c 200m /dev/zero | tr '\\0' x); echo never", memory="16MiB")
    cluster.until("hungry", "CRASHED")
    status = cluster.workload("hungry")["status"]
    assert status["reason"]["code"] == "MEMORY_LIMIT", status
    assert "16MiB" in status["reason"]["message"]


def test_limits_and_hardening_are_what_docker_was_told(cluster: PwmCluster) -> None:
    cluster.apply("hard", "sleep 600", shmSize=8_388_608, hostname="my-host")
    cluster.until("hard", "RUNNING")
    (inspection,) = json.loads(cluster.ok("inspect", "wk", "hard"))
    inspected = inspection["document"]
    host = inspected["HostConfig"]
    assert host["Memory"] == host["MemorySwap"] == 32 << 20
    assert host["NanoCpus"] == 50_000_000
    assert host["ShmSize"] == 8 << 20
    assert host["PidsLimit"] > 0
    assert host["RestartPolicy"]["Name"] in ("", "no")
    assert host["CapDrop"] == ["ALL"]
    assert "no-new-privileges" in str(host["SecurityOpt"])
    assert not host["Privileged"]
    assert host["PidMode"] == ""
    assert host["IpcMode"] == "private"
    assert inspected["Config"]["Hostname"] == "my-host"
    assert inspected["Name"] == "/pwm.users.hard.0.1"
    assert inspected["Config"]["Labels"]["pwm.workload"] == "hard"
    cluster.ok("delete", "wk", "hard", "--wait")


def test_scaling_up_and_down_changes_only_what_it_must(cluster: PwmCluster) -> None:
    cluster.apply("wide", "sleep 600", cpu="20m")
    cluster.until("wide", "RUNNING")
    first = cluster.containers("wide")[0]["status"]["runtimeId"]
    cluster.ok("scale", "wk", "wide", "3")
    eventually(lambda: cluster.workload("wide")["status"].get("running") == 3, "three run")
    cluster.ok("scale", "wk", "wide", "1")
    eventually(lambda: cluster.workload("wide")["status"].get("running") == 1, "one runs")
    running = [c for c in cluster.containers("wide") if c["status"]["phase"] == "RUNNING"]
    assert [c["status"]["runtimeId"] for c in running] == [first]
    cluster.ok("delete", "wk", "wide", "--wait")


def test_a_changed_spec_replaces_the_container(cluster: PwmCluster) -> None:
    cluster.apply("change", "echo old; sleep 600")
    cluster.until("change", "RUNNING")
    cluster.apply("change", "echo new; sleep 600")
    eventually(lambda: "new" in cluster.pwm("logs", "wk", "change").out, "the new one printed")
    assert cluster.ok("logs", "wk", "change", "--previous") == "old\n"
    cluster.ok("delete", "wk", "change", "--wait")


def test_run_ends_with_the_code_of_its_container(cluster: PwmCluster) -> None:
    done = cluster.pwm(
        "run",
        "--cpu",
        "50m",
        "--mem",
        "32MiB",
        "--rm",
        "pwm-demo/busybox",
        "--",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 42",
    )
    assert (done.code, done.out) == (42, "out\n")
    assert "err" in done.err


def test_a_command_runs_in_a_container_through_shell(cluster: PwmCluster) -> None:
    cluster.apply("shellme", "sleep 600")
    cluster.until("shellme", "RUNNING")
    done = cluster.pwm("shell", "wk", "shellme", "--", "sh", "-c", "cat; echo err >&2; exit 5", input="typed\n")
    assert (done.code, done.out, done.err) == (5, "typed\n", "err\n")
    cluster.ok("delete", "wk", "shellme", "--wait")


def test_an_image_that_does_not_exist_is_said_in_a_sentence(cluster: PwmCluster) -> None:
    cluster.ok("apply", "-f", "-", input=manifest("noimage", "true", image="127.0.0.1:1/not/there:1"))
    cluster.until("noimage", "CRASHED")
    reason = cluster.workload("noimage")["status"]["reason"]
    assert reason["code"] in ("IMAGE_NOT_PRESENT", "REGISTRY_UNREACHABLE", "PULL_FAILED"), reason
    assert "not/there" in reason["message"]


def test_what_cannot_be_placed_waits_and_says_why(cluster: PwmCluster) -> None:
    cluster.ok("apply", "-f", "-", input=manifest("toolarge", "true", cpu="4000"))
    assert cluster.phase("toolarge") == "QUEUED"
    why = cluster.ok("why", "wk", "toolarge")
    assert "NO_CPU" in why or "CPU" in why
    assert "n1" in why
    cluster.ok("delete", "wk", "toolarge")


@pytest.mark.timeout(400)  # an engine on two busy cores starts three a second
def test_two_hundred_workloads_applied_at_once_all_run_to_their_end(cluster: PwmCluster) -> None:
    documents = "".join(manifest(f"many-{n}", f"echo {n}", cpu="10m", memory="8MiB") for n in range(200))
    out = cluster.ok("apply", "-f", "-", input=documents, timeout_s=120)
    assert out.count("created") == 200

    def ended() -> bool:
        listed = cluster.ok("get", "wk").splitlines()
        return sum(line.startswith("many-") and " EXITED " in line for line in listed) == 200

    eventually(ended, lambda: cluster.ok("get", "wk"), limit_s=240)
    assert cluster.ok("logs", "wk", "many-137") == "137\n"
    assert "no differences" in cluster.ok("admin", "verify").lower() or cluster.pwm("admin", "verify").code == 0


def _docker(cluster: PwmCluster, *arguments: str) -> str:
    command = ["docker", "-H", cluster.docker_host, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
