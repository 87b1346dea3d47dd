"""GPUs as the agent sees them: looked at in a thread of their own, with the owner of each process.

A GPU that a process uses which PWM did not start is not free, whatever the log says: it is unhealthy until that
process is gone. A container that is just starting or ending may look like one for a moment, so only what stays
for a while counts. When the driver hangs, the last look stays and all GPUs are unhealthy until it answers.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from pwm.api.v1.agent_pb2 import GPUUsage
from pwm.api.v1.node_pb2 import GPUDevice
from pwm.nodeagent.gpu.nvml import Nvml, Snapshot

# Eight GPUs take some 20 ms; a driver under reset has taken seconds.
_LOOK_S = 10.0
# Longer than between the start of a container and the agent's knowing it, or its end and the driver's clean-up.
FOREIGN_AFTER_S = 10.0
# Inventory and usage of the same moment share a look.
_FRESH_S = 0.5
_PROC = Path("/proc")
_SHIM_NAME = "process_shim.py"


class GpuMonitor:
    """`containers` gives the runtime id (as in its control group) → uid of all containers that live."""

    def __init__(
        self,
        containers: Callable[[], Mapping[str, str]],
        *,
        foreign_after_s: float = FOREIGN_AFTER_S,
        nvml: Nvml | None = None,
        proc: Path = _PROC,
    ) -> None:
        self._containers = containers
        self._foreign_after_s = foreign_after_s
        self._nvml = nvml or Nvml()
        self._proc = proc
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="nvml")
        self._pending: Future[Snapshot] | None = None
        self._last = Snapshot()
        self._last_at = float("-inf")
        # (GPU, pid) of processes without an owner → since when.
        self._foreign: dict[tuple[str, int], float] = {}

    @property
    def driver_version(self) -> str:
        """As of the last look; empty without a driver."""
        return self._last.driver_version

    async def devices(self) -> list[GPUDevice]:
        """For the inventory."""
        return list((await self._look()).devices)

    async def usage(self) -> list[GPUUsage]:
        """For heartbeats; each process with its container."""
        return list((await self._look()).usage)

    def close(self) -> None:
        # A hung driver must not keep the agent from ending.
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _look(self) -> Snapshot:
        if time.monotonic() - self._last_at < _FRESH_S:
            return self._last
        if self._pending is None:
            self._pending = self._thread.submit(self._look_in_thread)
        try:
            async with asyncio.timeout(_LOOK_S):
                # Shielded: a look that takes too long goes on, and the next asks for the same one.
                self._last = await asyncio.shield(asyncio.wrap_future(self._pending))
        except TimeoutError:
            for device in self._last.devices:
                device.healthy = False
                device.message = f"The NVIDIA driver has not answered for {_LOOK_S:.0f} s"
            return self._last
        self._pending = None
        self._last_at = time.monotonic()
        return self._last

    def _look_in_thread(self) -> Snapshot:
        snapshot = self._nvml.look()
        containers = self._containers()
        now = time.monotonic()
        foreign: dict[tuple[str, int], float] = {}
        devices = {device.uuid: device for device in snapshot.devices}
        for usage in snapshot.usage:
            for process in usage.processes:
                process.container_uid = self._owner(process.pid, containers)
                if process.container_uid:
                    continue
                key = usage.uuid, process.pid
                foreign[key] = self._foreign.get(key, now)
                if now - foreign[key] >= self._foreign_after_s:
                    device = devices[usage.uuid]
                    device.healthy = False
                    device.message = (
                        f"Process {process.pid} ({process.command or 'unknown'}) uses it and was not started by PWM"
                    )
        self._foreign = foreign
        return snapshot

    def _owner(self, pid: int, containers: Mapping[str, str]) -> str:
        """By its control group; without groups by the shim above it, whose command line names the container."""
        while pid > 1:
            try:
                text = (self._proc / str(pid) / "cgroup").read_text()
                command = (self._proc / str(pid) / "cmdline").read_text(errors="replace")
                status = (self._proc / str(pid) / "stat").read_text(errors="replace")
            except OSError:
                return ""
            if _SHIM_NAME in command:
                text += command
            for runtime_id, uid in containers.items():
                if runtime_id in text:
                    return uid
            pid = int(status.rpartition(")")[2].split()[1])
        return ""
