"""What this machine is: processors, memory, system. Read once; drivers and GPUs are added by who knows them.

An agent may be told to offer only a share of its machine (`--cpus`, `--memory`, `--gpus`): several agents on one
machine would otherwise each promise all of it.

python -m pwm.nodeagent.inventory     prints, as JSON, what an agent would tell about this machine now
"""

import asyncio
import os
import platform
import sys
from pathlib import Path

from google.protobuf import json_format

from pwm.api.v1.node_pb2 import Inventory
from pwm.nodeagent.config import DEFAULT_DOCKER_HOST
from pwm.nodeagent.drivers.docker import DockerDriver
from pwm.nodeagent.gpu.monitor import GpuMonitor
from pwm.version import VERSION

KIB = 1024
_PROC = Path("/proc")
# Architectures other than x86 call it otherwise or not at all.
_CPU_NAMES = ("model name", "Model", "Hardware", "cpu model")


def machine(*, cpus: int = 0, memory_bytes: int = 0) -> Inventory:
    """Everything that does not change while the agent runs; of CPUs and memory at most so much (0: all)."""
    # What this process may use: an agent that was given part of a machine offers that part.
    cpu_count, memory = len(os.sched_getaffinity(0)), _memory_bytes()
    return Inventory(
        agent_version=VERSION,
        boot_id=_read(_PROC / "sys/kernel/random/boot_id").strip(),
        os=_os_name(),
        kernel=platform.release(),
        cpu_product=_cpu_product(),
        cpu_count=min(cpu_count, cpus or cpu_count),
        memory_bytes=min(memory, memory_bytes or memory),
    )


def _cpu_product() -> str:
    fields: dict[str, str] = {}
    for line in _read(_PROC / "cpuinfo").splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return next((fields[name] for name in _CPU_NAMES if fields.get(name)), platform.machine())


def _memory_bytes() -> int:
    for line in _read(_PROC / "meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "MemTotal":
            return int(value.split()[0]) * KIB
    return 0


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        return platform.system()


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


async def look(docker_host: str) -> Inventory:
    """The whole inventory, as an agent with that engine would tell it."""
    inventory = machine()
    gpus = GpuMonitor(dict)
    docker = DockerDriver(docker_host.removeprefix("unix://"), node="", cluster="")
    try:
        inventory.gpus.extend(await gpus.devices())
        inventory.nvidia_driver = gpus.driver_version
        inventory.drivers.append(await docker.probe())
    finally:
        await docker.close()
        gpus.close()
    return inventory


if __name__ == "__main__":
    found = asyncio.run(look(os.environ.get("DOCKER_HOST", DEFAULT_DOCKER_HOST)))
    sys.stdout.write(json_format.MessageToJson(found) + "\n")
