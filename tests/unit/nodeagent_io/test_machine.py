"""What the agent says of its machine, from /proc."""

import os
from pathlib import Path

import pytest

from pwm.nodeagent.config import GIB
from pwm.nodeagent.gpu.monitor import GpuMonitor
from pwm.nodeagent.inventory import machine
from pwm.nodeagent.stats import NodeSampler
from pwm.version import VERSION


def _proc(path: Path, *, stat: str) -> Path:
    path.mkdir(exist_ok=True)
    (path / "stat").write_text(stat + "\ncpu0 1 2 3\n")
    (path / "loadavg").write_text("1.25 0.5 0.1 2/300 4242\n")
    (path / "meminfo").write_text(
        "MemTotal:       8000000 kB\nMemFree:        1000000 kB\nMemAvailable:   6000000 kB\nHugePages_Total: 0\n"
    )
    return path


class _NoGpus(GpuMonitor):
    def __init__(self) -> None:
        super().__init__(dict)


async def test_the_busy_share_is_that_since_the_sample_before(tmp_path: Path) -> None:
    #                                       user nice system idle iowait irq softirq steal guest guest_nice
    proc = _proc(tmp_path / "proc", stat="cpu  100 0 100 700 100 0 0 0 50 0")
    gpus = _NoGpus()
    sampler = NodeSampler(disk=tmp_path, gpus=gpus, proc=proc)
    try:
        assert (await sampler.sample()).cpu == 0
        _proc(proc, stat="cpu  160 0 110 720 110 0 0 0 90 0")
        usage = await sampler.sample()
        assert usage.cpu == pytest.approx(0.7)
        # A counter that went back (a processor was taken away) is no use of it.
        _proc(proc, stat="cpu  10 0 10 10 10 0 0 0 0 0")
        assert (await sampler.sample()).cpu == 0
    finally:
        gpus.close()


async def test_memory_that_the_kernel_would_give_away_is_not_used(tmp_path: Path) -> None:
    gpus = _NoGpus()
    try:
        proc = _proc(tmp_path / "proc", stat="cpu  1 0 1 1 1 0 0 0 0 0")
        usage = await NodeSampler(disk=tmp_path, gpus=gpus, proc=proc).sample()
    finally:
        gpus.close()
    assert usage.memory_total_bytes == 8_000_000 * 1024
    assert usage.memory_used_bytes == 2_000_000 * 1024
    assert usage.load1 == 1.25
    assert usage.disk_total_bytes > usage.disk_used_bytes > 0
    assert usage.HasField("time")


def test_the_machine_says_what_it_is() -> None:
    found = machine()
    assert found.agent_version == VERSION
    assert len(found.boot_id) == 36
    assert found.kernel == os.uname().release
    assert found.cpu_count == len(os.sched_getaffinity(0))
    assert found.memory_bytes > 0
    assert found.cpu_product
    assert found.os


def test_an_agent_with_a_share_offers_at_most_that() -> None:
    whole = machine()
    small = machine(cpus=1, memory_bytes=GIB)
    assert (small.cpu_count, small.memory_bytes) == (1, min(GIB, whole.memory_bytes))
    more = machine(cpus=10_000, memory_bytes=1 << 60)
    assert (more.cpu_count, more.memory_bytes) == (whole.cpu_count, whole.memory_bytes)
