"""What the machine itself is using, for heartbeats: processors, memory, disk, load and GPUs.

Read from /proc, a few hundred microseconds per sample; containers are added by their drivers.
"""

import asyncio
import os
from pathlib import Path

from pwm.api.v1.agent_pb2 import NodeUsage
from pwm.nodeagent.gpu.monitor import GpuMonitor

_KIB = 1024
_PROC = Path("/proc")
# Fields of the first line of /proc/stat that count as idle: idle and iowait. The last two are parts of others.
_IDLE_FIELDS = (3, 4)
_COUNTED_FIELDS = 8


class NodeSampler:
    """`disk`: a folder on the disk that containers and their output fill."""

    def __init__(self, *, disk: Path, gpus: GpuMonitor, proc: Path = _PROC) -> None:
        self._disk = disk
        self._gpus = gpus
        self._proc = proc
        self._last_ticks = _ticks(proc)

    async def sample(self) -> NodeUsage:
        usage, gpus = await asyncio.gather(asyncio.to_thread(self._sample), self._gpus.usage())
        usage.gpus.extend(gpus)
        return usage

    def _sample(self) -> NodeUsage:
        usage = NodeUsage(cpu=self._busy_share(), load1=float((self._proc / "loadavg").read_text().split()[0]))
        usage.time.GetCurrentTime()
        memory = _memory(self._proc)
        usage.memory_total_bytes = memory["MemTotal"]
        # What the kernel would give away at once is not used.
        usage.memory_used_bytes = memory["MemTotal"] - memory.get("MemAvailable", memory["MemFree"])
        disk = os.statvfs(self._disk)
        usage.disk_total_bytes = disk.f_blocks * disk.f_frsize
        usage.disk_used_bytes = (disk.f_blocks - disk.f_bfree) * disk.f_frsize
        return usage

    def _busy_share(self) -> float:
        """Since the last sample."""
        (idle, total), (idle_before, total_before) = (now := _ticks(self._proc)), self._last_ticks
        self._last_ticks = now
        passed = total - total_before
        return min(1.0, max(0.0, 1 - (idle - idle_before) / passed)) if passed > 0 else 0.0


def _ticks(proc: Path) -> tuple[int, int]:
    """(idle, all) of all processors together."""
    with (proc / "stat").open() as file:
        fields = [int(field) for field in file.readline().split()[1 : _COUNTED_FIELDS + 1]]
    return sum(fields[i] for i in _IDLE_FIELDS), sum(fields)


def _memory(proc: Path) -> dict[str, int]:
    found = {}
    for line in (proc / "meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("MemTotal", "MemFree", "MemAvailable"):
            found[name] = int(value.split()[0]) * _KIB
    return found
