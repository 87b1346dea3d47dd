"""GPUs as the agent sees them: looked at in a thread of their own, with the owner of each process.

A GPU that a process uses which PWM did not start is not free, whatever the log says: it is unhealthy until that
process is gone. A container that is just starting or ending may look like one for a moment, so only what stays
for a while counts. When the driver hangs, the last look stays and all GPUs are unhealthy until it answers.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import TypeVar

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

T = TypeVar("T", GPUDevice, GPUUsage)


class GpuMonitor:
    """`containers` gives the runtime id (as in its control group) → uid of all containers that live.

    With `only`, GPUs of other UUIDs are none of this agent's business: another one offers them.
    """

    def __init__(
        self,
        containers: Callable[[], Mapping[str, str]],
        *,
        only: Collection[str] | None = None,
        foreign_after_s: float = FOREIGN_AFTER_S,
        nvml: Nvml | None = None,
        proc: Path = _PROC,
    ) -> None:
        self._containers = containers
        self._only = only
        self._foreign_after_s = foreign_after_s
        self._nvml = nvml or Nvml()
        self._proc = proc
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
        return self._ours((await self._look()).devices)

    async def usage(self) -> list[GPUUsage]:
        """For heartbeats; each process with its container."""
        return self._ours((await self._look()).usage)

    def _ours(self, items: Iterable[T]) -> list[T]:
        return [item for item in items if self._only is None or item.uuid in self._only]

    def close(self) -> None:
        """Lets go of the driver, unless it is hanging."""
        if self._pending is None:
            self._nvml.close()

    async def _look(self) -> Snapshot:
        if time.monotonic() - self._last_at < _FRESH_S:
            return self._last
        if self._pending is None:
            self._pending = Future()
            # Not of a pool, which Python waits for at its end: a driver that hangs must not keep the agent alive.
            Thread(target=self._answer, args=(self._pending,), name="nvml", daemon=True).start()
        pending = self._pending
        try:
            async with asyncio.timeout(_LOOK_S):
                # Shielded: a look that takes too long goes on, and the next asks for the same one.
                self._last = await asyncio.shield(asyncio.wrap_future(pending))
            self._last_at = time.monotonic()
        except TimeoutError:
            self._last = _without_answer(self._last)
        finally:
            if pending.done() and self._pending is pending:
                self._pending = None
        return self._last

    def _answer(self, pending: "Future[Snapshot]") -> None:
        try:
            pending.set_result(self._look_in_thread())
        except Exception as error:
            pending.set_exception(error)

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


def _without_answer(last: Snapshot) -> Snapshot:
    """A copy, since others hold the devices of the last look. Nothing in it was measured now."""
    devices = []
    for known in last.devices:
        device = GPUDevice()
        device.CopyFrom(known)
        device.healthy = False
        device.message = f"The NVIDIA driver has not answered for {_LOOK_S:.0f} s"
        devices.append(device)
    usage = []
    for old in last.usage:
        repeated = GPUUsage()
        repeated.CopyFrom(old)
        repeated.measured = False
        usage.append(repeated)
    return Snapshot(last.driver_version, devices, usage)
