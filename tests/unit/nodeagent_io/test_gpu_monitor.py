"""GPUs through the agent's eyes, with a fake NVML underneath."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pwm.nodeagent.gpu.monitor import GpuMonitor
from pwm.nodeagent.gpu.nvml import LIBRARY_VARIABLE, Nvml
from tests.fake_gpus import FakeGpus

DRIVER_NOT_LOADED = "error 9"
UNINITIALIZED = "error 1"


@pytest.fixture
def nvml(fake_gpus: FakeGpus) -> Iterator[Nvml]:
    nvml = Nvml()
    yield nvml
    nvml.close()


def test_each_gpu_is_named_by_its_uuid_with_product_memory_bus_and_numa_node(fake_gpus: FakeGpus, nvml: Nvml) -> None:
    fake_gpus.set("count 4", "name NVIDIA H100 PCIe", "memory 85520809984", "driver 570.1", "3.uuid GPU-mine")
    snapshot = nvml.look()
    assert snapshot.driver_version == "570.1"
    assert [device.uuid for device in snapshot.devices] == [*(fake_gpus.uuid(i) for i in range(3)), "GPU-mine"]
    assert [device.index for device in snapshot.devices] == [0, 1, 2, 3]
    assert [device.numa_node for device in snapshot.devices] == [0, 0, 1, 1]
    first = snapshot.devices[0]
    assert (first.product_name, first.memory_bytes, first.pci_bus_id, first.healthy, first.message) == (
        "NVIDIA H100 PCIe",
        85520809984,
        "0000FAFA:10:00.0",
        True,
        "",
    )


def test_usage_is_in_shares_degrees_watts_and_bytes(fake_gpus: FakeGpus, nvml: Nvml) -> None:
    fake_gpus.set("busy 87", "used 1073741824", "celsius 71", "milliwatts 250500", "milliwatts_limit 300000")
    usage = nvml.look().usage[1]
    assert usage.uuid == fake_gpus.uuid(1)
    assert usage.utilization == pytest.approx(0.87)
    assert (usage.memory_used_bytes, usage.memory_total_bytes) == (1 << 30, 80 << 30)
    assert (usage.temperature_c, usage.power_w, usage.power_limit_w) == (71, 250.5, 300)


def test_what_a_product_cannot_measure_is_zero_and_no_fault(fake_gpus: FakeGpus, nvml: Nvml) -> None:
    fake_gpus.set("milliwatts_limit 0")
    snapshot = nvml.look()
    assert snapshot.usage[0].power_limit_w == 0
    assert snapshot.devices[0].healthy


def test_a_lost_gpu_stays_in_the_list_as_unhealthy_and_recovers(fake_gpus: FakeGpus, nvml: Nvml) -> None:
    nvml.look()
    fake_gpus.set("1.lost 1")
    healthy, lost = nvml.look().devices
    assert (healthy.healthy, lost.healthy) == (True, False)
    assert lost.uuid == fake_gpus.uuid(1)
    assert "GPU is lost" in lost.message
    fake_gpus.set()
    assert [device.healthy for device in nvml.look().devices] == [True, True]


def test_a_gpu_that_is_no_longer_listed_stays_as_unhealthy(fake_gpus: FakeGpus, nvml: Nvml) -> None:
    nvml.look()
    fake_gpus.set("count 1")
    kept, gone = nvml.look().devices
    assert kept.healthy
    assert (gone.uuid, gone.healthy, gone.message) == (
        fake_gpus.uuid(1),
        False,
        "The NVIDIA driver no longer lists it",
    )


def test_without_a_driver_there_are_no_gpus_and_no_error(fake_gpus: FakeGpus, nvml: Nvml) -> None:
    fake_gpus.set(DRIVER_NOT_LOADED)
    assert nvml.look().devices == []


def test_a_driver_that_is_unloaded_and_loaded_again_is_taken_up_again(fake_gpus: FakeGpus, nvml: Nvml) -> None:
    nvml.look()
    for broken in (DRIVER_NOT_LOADED, UNINITIALIZED):
        fake_gpus.set(broken)
        devices = nvml.look().devices
        assert [device.healthy for device in devices] == [False, False]
        assert all("The NVIDIA driver does not work" in device.message for device in devices)
        fake_gpus.set("driver 999.9")
        snapshot = nvml.look()
        assert snapshot.driver_version == "999.9"
        assert [device.healthy for device in snapshot.devices] == [True, True]


def test_a_library_that_is_not_there_means_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIBRARY_VARIABLE, "/nonexistent/libnvidia-ml.so.1")
    assert Nvml().look().devices == []


def _process(proc: Path, pid: int, *, cgroup: str, parent: int = 1, command: str = "python3\0") -> None:
    folder = proc / str(pid)
    folder.mkdir(parents=True)
    (folder / "cgroup").write_text(cgroup)
    (folder / "cmdline").write_text(command)
    (folder / "stat").write_text(f"{pid} (a (strange) name) S {parent} 1 1")


async def test_processes_belong_to_containers_by_control_group_or_by_shim(fake_gpus: FakeGpus, tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    _process(proc, 100, cgroup="4:memory:/docker/abc123\n")
    _process(proc, 200, cgroup="0::/user.slice\n", parent=201)
    _process(proc, 201, cgroup="0::/\n", command="python\0-I\0process_shim.py\0run\0/var/lib/pwm/agent/process/u2\0")
    _process(proc, 300, cgroup="0::/\n", parent=301)
    _process(proc, 301, cgroup="0::/\n", command="vim\0/home/me/u2\0")
    fake_gpus.set("processes 100:5,200:6,300:7,400:8")
    monitor = GpuMonitor(lambda: {"abc123": "u1", "u2": "u2"}, foreign_after_s=1e9, proc=proc)
    try:
        usage, _ = await monitor.usage()
        assert [(process.pid, process.container_uid, process.memory_bytes) for process in usage.processes] == [
            (100, "u1", 5),
            (200, "u2", 6),
            (300, "", 7),
            (400, "", 8),
        ]
        assert [device.healthy for device in await monitor.devices()] == [True, True]
    finally:
        monitor.close()


async def test_a_gpu_that_a_foreign_process_uses_is_unhealthy_once_it_stays(fake_gpus: FakeGpus) -> None:
    fake_gpus.set(f"1.processes {os.getpid()}:5")
    patient = GpuMonitor(dict, foreign_after_s=1e9)
    strict = GpuMonitor(dict, foreign_after_s=0)
    try:
        assert [device.healthy for device in await patient.devices()] == [True, True]
        free, used = await strict.devices()
        assert (free.healthy, used.healthy) == (True, False)
        assert f"Process {os.getpid()}" in used.message
        assert "was not started by PWM" in used.message
    finally:
        patient.close()
        strict.close()


async def test_a_driver_that_hangs_makes_gpus_unhealthy_and_holds_up_nobody(
    fake_gpus: FakeGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pwm.nodeagent.gpu.monitor._FRESH_S", 0.0)
    monitor = GpuMonitor(dict)
    try:
        before = await monitor.devices()
        assert [device.healthy for device in before] == [True, True]
        monkeypatch.setattr("pwm.nodeagent.gpu.monitor._LOOK_S", 0.05)
        fake_gpus.set("hang_ms 300")
        devices = await monitor.devices()
        assert [device.healthy for device in devices] == [False, False]
        assert "has not answered" in devices[0].message
        assert devices != before, "whoever compares with an earlier answer must see the difference"
        fake_gpus.set()
        monkeypatch.setattr("pwm.nodeagent.gpu.monitor._LOOK_S", 10.0)
        # First comes the answer of the look that was hanging, then that of a new one.
        await monitor.devices()
        assert [device.healthy for device in await monitor.devices()] == [True, True]
    finally:
        monitor.close()


async def test_a_look_that_fails_is_an_error_once_and_not_for_ever(fake_gpus: FakeGpus) -> None:
    answers: list[dict[str, str]] = [{}]

    def containers() -> dict[str, str]:
        return answers.pop()

    monitor = GpuMonitor(containers)
    try:
        answers.clear()
        with pytest.raises(IndexError):
            await monitor.devices()
        answers.append({})
        assert len(await monitor.devices()) == 2
    finally:
        monitor.close()


async def test_gpus_that_another_agent_offers_are_not_told(fake_gpus: FakeGpus) -> None:
    fake_gpus.set("count 4")
    monitor = GpuMonitor(dict, only={fake_gpus.uuid(1), fake_gpus.uuid(3)})
    try:
        assert [device.index for device in await monitor.devices()] == [1, 3]
        assert [usage.uuid for usage in await monitor.usage()] == [fake_gpus.uuid(1), fake_gpus.uuid(3)]
    finally:
        monitor.close()
    none = GpuMonitor(dict, only=())
    try:
        assert await none.devices() == []
    finally:
        none.close()
