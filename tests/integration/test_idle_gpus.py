"""GPUs that nobody uses come back: a real PWM with short times, on GPUs whose use a fake NVML makes up."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docker_engine import DockerEngine
from tests.etcd_server import require_etcd
from tests.fake_gpus import FakeGpus
from tests.pwm_cluster import PwmCluster, eventually

pytestmark = [pytest.mark.etcd, pytest.mark.docker]
# Agents report each 2 s: a third of the grace. A warning comes after one more report, and a stop never.
PATIENT = {
    "PWM_IDLE_PAUSE_AFTER": "3600s",
    "PWM_IDLE_WARN_BEFORE": "3599s",
    "PWM_IDLE_AFTER_START": "0s",
    "PWM_NODE_GRACE": "6s",
}
# With these a stop follows soon after the warning.
IMPATIENT = {"PWM_IDLE_PAUSE_AFTER": "3s", "PWM_IDLE_WARN_BEFORE": "1s"}


@pytest.fixture
def gpu_cluster(docker_engine: DockerEngine, fake_gpus: FakeGpus, tmp_path: Path) -> Iterator[PwmCluster]:
    require_etcd()
    made = PwmCluster(tmp_path / "pwm", docker_engine.host, environment={**fake_gpus.environment, **PATIENT})
    made.directory.mkdir()
    try:
        yield made.start()
    finally:
        made.close()


def start(pwm: PwmCluster, name: str) -> str:
    """A process with a GPU, the GPU's uuid. Processes outlive their agent; this one ends with the cluster's etcd."""
    spec = {
        "driver": "pwm.process",
        "selectors": {"gpu": {"count": 1}, "cpu": {"count": "50m"}},
        "config": {
            "cmd": ["sh", "-c", f"while [ -d /proc/{pwm.etcd.pid} ]; do sleep 0.5; done"],
            "memory": "16MiB",
            "stopGrace": "1s",
        },
    }
    document = {"apiVersion": "v1", "kind": "Workload", "metadata": {"name": name}, "spec": spec}
    pwm.ok("apply", "-f", "-", input=json.dumps(document))
    pwm.until(name, "RUNNING")
    (container,) = pwm.containers(name)
    (uuid,) = container["spec"]["gpuUuids"]
    return str(uuid)


def idle(pwm: PwmCluster, name: str) -> dict[str, Any]:
    """Where it stands with the rule, as its status says."""
    return pwm.workload(name)["status"].get("idle", {})  # type: ignore[no-any-return]


def events(pwm: PwmCluster, name: str, payload: str) -> list[dict[str, Any]]:
    lines = pwm.ok("events", "wk", name, "-o", "json").splitlines()
    return [event[payload] for event in map(json.loads, lines) if payload in event]


def test_who_does_not_use_a_gpu_is_warned_may_keep_it_and_is_stopped_with_the_evidence(
    gpu_cluster: PwmCluster, fake_gpus: FakeGpus
) -> None:
    pwm = gpu_cluster
    used = start(pwm, "busy")
    index = next(i for i in range(2) if fake_gpus.uuid(i) == used)
    fake_gpus.set("count 2", f"{index}.busy 80", f"{1 - index}.busy 2", f"{1 - index}.used 1073741824")
    unused = start(pwm, "lazy")

    eventually(lambda: "warnedAt" in idle(pwm, "lazy"), "lazy is warned")
    assert pwm.phase("lazy") == "RUNNING"
    assert "IDLE" in pwm.ok("get", "wk", "lazy")
    why = pwm.ok("why", "wk", "lazy")
    assert "pwm keep wk lazy" in why
    assert f"{unused} of lazy.0.1 on n1: not in use for" in why
    assert "2 % at most and 2 % on average" in why

    assert "kept until" in pwm.ok("keep", "wk", "lazy", "--for", "2h")
    assert idle(pwm, "lazy")["keptBy"]["name"] == "admin"
    assert "warnedAt" not in idle(pwm, "lazy")
    assert "kept until" in pwm.ok("why", "wk", "lazy")
    assert "kept until" in pwm.ok("describe", "wk", "lazy")
    # Another controller, who learns from the agent what was before its time.
    pwm.ok("keep", "wk", "lazy", "--for", "1s")
    pwm.stop("controller")
    pwm.environment.update(IMPATIENT)
    pwm.start_controller()

    eventually(lambda: pwm.phase("lazy") == "STOPPED", lambda: pwm.ok("why", "wk", "lazy"))
    status = pwm.workload("lazy")["status"]
    assert status["reason"]["code"] == "IDLE"
    assert "its GPU was not in use for" in status["reason"]["message"]
    assert pwm.containers("lazy")[0]["status"]["reason"]["code"] == "IDLE"
    (stopped,) = [desired for desired in events(pwm, "lazy", "workloadDesired") if desired["desired"] == "STOP"]
    (gpu,) = stopped["idle"]["gpus"]
    assert (gpu["uuid"], gpu["container"], gpu["node"]) == (unused, "lazy.0.1", "n1")
    assert int(gpu["unusedMs"]) >= 3_000
    assert gpu["samples"] > 1
    assert gpu["utilizationMax"] == pytest.approx(0.02)
    assert gpu["memoryUsedBytes"] == str(1 << 30)
    first, again = [int(w["evidence"]["unusedMs"]) for w in events(pwm, "lazy", "workloadIdleWarned")]
    assert first < again < int(gpu["unusedMs"]), "the time goes on over the change of controllers"

    assert pwm.phase("busy") == "RUNNING"
    assert idle(pwm, "busy") == {}
    refused = pwm.pwm("keep", "wk", "lazy")
    assert refused.code == 4
    assert "pwm restart wk lazy" in refused.err
