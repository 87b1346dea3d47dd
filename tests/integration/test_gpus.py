"""GPUs from NVML to containers, on machines that have none: a fake library and an engine with a stand-in hook."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pwm.api.v1.agent_pb2 import Assignment
from pwm.images import ensure_busybox
from pwm.nodeagent.drivers.docker import DockerDriver
from pwm.nodeagent.gpu.monitor import GpuMonitor
from pwm.nodeagent.stats import NodeSampler
from tests.docker_engine import IsolatedDockerd, IsolatedDockerdFactory
from tests.fake_gpus import FakeGpus


def test_the_inventory_command_prints_the_gpus_of_the_machine(fake_gpus: FakeGpus) -> None:
    fake_gpus.set("count 3", "name NVIDIA H100 PCIe", "driver 570.1")
    printed = subprocess.run(
        [sys.executable, "-m", "pwm.nodeagent.inventory"],
        env={**os.environ, **fake_gpus.environment, "DOCKER_HOST": "unix:///nonexistent.sock"},
        capture_output=True,
        check=True,
    ).stdout
    inventory = json.loads(printed)
    assert inventory["nvidiaDriver"] == "570.1"
    assert [gpu["uuid"] for gpu in inventory["gpus"]] == [fake_gpus.uuid(index) for index in range(3)]
    assert {gpu["product_name"] for gpu in inventory["gpus"]} == {"NVIDIA H100 PCIe"}
    (driver,) = inventory["drivers"]
    assert driver["name"] == "pwm.docker"
    assert "ready" not in driver
    assert driver["message"]


async def test_a_heartbeat_says_what_machine_and_gpus_are_using(fake_gpus: FakeGpus, tmp_path: Path) -> None:
    fake_gpus.set("busy 50", "used 1024")
    monitor = GpuMonitor(dict)
    try:
        usage = await NodeSampler(disk=tmp_path, gpus=monitor).sample()
    finally:
        monitor.close()
    assert [gpu.uuid for gpu in usage.gpus] == [fake_gpus.uuid(0), fake_gpus.uuid(1)]
    assert {gpu.utilization for gpu in usage.gpus} == {0.5}
    assert 0 < usage.memory_used_bytes < usage.memory_total_bytes
    assert 0 < usage.disk_used_bytes < usage.disk_total_bytes
    assert 0 <= usage.cpu <= 1


@pytest.mark.docker
async def test_a_container_gets_exactly_the_gpus_it_was_assigned_and_one_without_gets_none(
    isolated_dockerd: IsolatedDockerdFactory,
) -> None:
    engine = await asyncio.to_thread(isolated_dockerd, gpu_hook=True)
    image = await asyncio.to_thread(ensure_busybox, engine.host)
    driver = DockerDriver(engine.host.removeprefix("unix://"), node="n1", cluster="test")
    watching = asyncio.create_task(driver.run())
    try:
        for uid, uuids, visible in (("with", ["GPU-b", "GPU-d"], "GPU-b,GPU-d"), ("without", [], "void")):
            assignment = Assignment(uid=uid, name=f"{uid}.0.1", group="users")
            assignment.spec.image = image
            assignment.spec.cmd.extend(["sh", "-c", "echo [$NVIDIA_VISIBLE_DEVICES]"])
            assignment.spec.gpu_uuids.extend(uuids)
            await driver.create(assignment)
            await driver.start(uid)
            assert (await driver.wait(uid)).exit_code == 0
            runtime_id = (await driver.inspect(uid))["Id"]
            assert await asyncio.to_thread(_output, engine, runtime_id) == f"[{visible}]\n".encode()
        # The hook ran for the one container that has GPUs.
        states = [json.loads(line) for line in engine.hook_log.read_text().splitlines() if line]
        assert len(states) == 1
    finally:
        for uid in ("with", "without"):
            await driver.remove(uid)
        watching.cancel()
        await asyncio.wait([watching])
        await driver.close()


def _output(engine: IsolatedDockerd, runtime_id: str) -> bytes:
    client = engine.client()
    try:
        output: bytes = client.containers.get(runtime_id).logs()
        return output
    finally:
        client.close()
