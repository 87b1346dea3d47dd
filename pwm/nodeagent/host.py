"""The machine below an agent: its clock, its disk and its devices, in one place.

Containers are not here, they are the drivers'. Everything else that an agent asks of its surroundings goes
through this, so that the simulator can put an agent on a machine of its own making.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from pwm.api.v1.agent_pb2 import NodeUsage
from pwm.api.v1.node_pb2 import GPUDevice
from pwm.nodeagent.config import DAY_S, AgentConfig
from pwm.nodeagent.gpu.monitor import GpuMonitor
from pwm.nodeagent.inventory import machine
from pwm.nodeagent.journal import Journal
from pwm.nodeagent.logs.store import LogStore
from pwm.nodeagent.stats import NodeSampler

# For a question about the machine that is asked on the way out.
ANSWER_TIMEOUT_S = 1.0


class Host:
    """This machine, as far as the configuration lends it."""

    def __init__(self, config: AgentConfig) -> None:
        self.inventory = machine(cpus=config.cpus, memory_bytes=config.memory_bytes)
        self.journal = Journal(config.state_dir / "journal.db")
        self.logs = LogStore(
            config.state_dir / "logs",
            max_bytes=config.log_max_bytes,
            total_bytes=config.log_total_bytes,
            keep_s=config.log_keep_days * DAY_S,
        )
        self._disk: Path = config.state_dir
        self._only = config.gpus

    def now_ns(self) -> int:
        """Wall clock, nanoseconds since 1970."""
        return time.time_ns()

    def uptime_ms(self) -> int:
        """Elapsed time since the machine was booted, also while it slept; nobody sets this clock."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000

    async def goes_down(self) -> bool:
        """Whether the machine is being shut down."""
        try:
            asked = await asyncio.create_subprocess_exec(
                "systemctl", "is-system-running", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
            )
        except OSError:
            return False
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                said, _ = await asked.communicate()
        except TimeoutError:
            asked.kill()
            await asked.wait()
            return False
        return said.strip() == b"stopping"

    def devices(self, containers: Callable[[], Mapping[str, str]]) -> "Devices":
        """`containers`: the engines' ids → uids of all containers that may have processes."""
        return Devices(GpuMonitor(containers, only=self._only), disk=self._disk)

    async def close(self) -> None:
        await self.logs.close()
        self.journal.close()


class Devices:
    """What can be measured: GPUs, and the use of processors, memory and disk."""

    def __init__(self, gpus: GpuMonitor, *, disk: Path) -> None:
        self._gpus = gpus
        self._sampler = NodeSampler(disk=disk, gpus=gpus)

    @property
    def nvidia_driver(self) -> str:
        """As of the last look; empty without a driver."""
        return self._gpus.driver_version

    async def gpus(self) -> list[GPUDevice]:
        return await self._gpus.devices()

    async def usage(self) -> NodeUsage:
        """Of the machine; containers are added by their drivers."""
        return await self._sampler.sample()

    def close(self) -> None:
        self._gpus.close()
