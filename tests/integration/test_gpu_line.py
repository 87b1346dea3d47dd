"""GPUs from discovery to containers, through the whole of PWM: a fake NVML below the agent, a real Docker engine."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pwm.images import ensure_busybox
from tests.docker_engine import IsolatedDockerdFactory
from tests.etcd_server import require_etcd
from tests.fake_gpus import FakeGpus
from tests.pwm_cluster import PwmCluster, eventually, manifest

pytestmark = [pytest.mark.etcd, pytest.mark.docker]
A100 = "NVIDIA A100-SXM4-80GB"


@pytest.fixture
def gpu_cluster(isolated_dockerd: IsolatedDockerdFactory, fake_gpus: FakeGpus, tmp_path: Path) -> Iterator[PwmCluster]:
    require_etcd()
    engine = isolated_dockerd(gpu_hook=True)
    ensure_busybox(engine.host)
    fake_gpus.set("count 4", f"name {A100}")
    made = PwmCluster(tmp_path / "pwm", engine.host, environment=fake_gpus.environment)
    made.directory.mkdir()
    try:
        yield made.start()
    finally:
        made.close()


def gpu_workload(name: str, gpu: dict[str, Any]) -> str:
    document = json.loads(manifest(name, 'echo "$NVIDIA_VISIBLE_DEVICES"; sleep 600').removesuffix("---\n"))
    document["spec"]["selectors"] = {"gpu": gpu}
    del document["spec"]["config"]["memory"]
    return json.dumps(document) + "\n---\n"


def test_gpus_are_found_given_to_containers_by_uuid_and_taken_back(
    gpu_cluster: PwmCluster, fake_gpus: FakeGpus
) -> None:
    pwm = gpu_cluster
    gpus = json.loads(pwm.ok("get", "gpu", "-o", "json"))
    assert [(g["device"]["uuid"], g["phase"]) for g in gpus] == [(fake_gpus.uuid(i), "FREE") for i in range(4)]

    pwm.ok("apply", "-f", "-", input=gpu_workload("two", {"product_name": ["H100", "A100"], "count": 2}))
    pwm.until("two", "RUNNING")
    (container,) = pwm.containers("two")
    given = container["spec"]["gpuUuids"]
    assert len(set(given)) == 2
    (inspection,) = json.loads(pwm.ok("inspect", "wk", "two"))
    (request,) = inspection["document"]["HostConfig"]["DeviceRequests"]
    assert request["DeviceIDs"] == given
    eventually(lambda: pwm.pwm("logs", "wk", "two").out == ",".join(given) + "\n", "the container sees its GPUs")

    node = pwm.node()["status"]["inventory"]
    resources = container["spec"]["resources"]
    assert resources["cpuMillis"] == str(node["cpuCount"] * 1000 // 2), "half of the GPUs take half of the cores"

    pwm.ok("apply", "-f", "-", input=gpu_workload("three", {"count": 3}))
    why = pwm.ok("why", "wk", "three")
    assert "NO_GPU_FREE" in why
    assert pwm.phase("three") == "QUEUED"
    pwm.ok("apply", "-f", "-", input=gpu_workload("other", {"product_name": "V100", "count": 1}))
    assert "EMPTY_GPU_SELECTOR" in pwm.ok("why", "wk", "other")

    booked = [g for g in json.loads(pwm.ok("get", "gpu", "-o", "json")) if g["phase"] == "BOOKED"]
    assert {g["container"] for g in booked} == {"users/two.0.1"}
    pwm.ok("delete", "wk", "two", "--wait")
    pwm.until("three", "RUNNING")


def test_a_gpu_that_is_lost_or_in_foreign_hands_is_not_given_out(gpu_cluster: PwmCluster, fake_gpus: FakeGpus) -> None:
    pwm = gpu_cluster
    fake_gpus.set("count 4", f"name {A100}", "0.lost 1", "1.lost 1", "2.lost 1")

    def healthy() -> int:
        listed = json.loads(pwm.ok("get", "gpu", "-o", "json"))
        return sum(g["phase"] == "FREE" for g in listed)

    eventually(lambda: healthy() == 1, lambda: pwm.ok("get", "gpu"))
    pwm.ok("apply", "-f", "-", input=gpu_workload("pair", {"count": 2}))
    assert pwm.phase("pair") == "QUEUED"
    fake_gpus.set("count 4", f"name {A100}")
    pwm.until("pair", "RUNNING")
