"""What this machine is: processors, memory, system. Read once; drivers and GPUs are added by who knows them."""

import os
import platform
from pathlib import Path

from pwm.api.v1.node_pb2 import Inventory
from pwm.version import VERSION

KIB = 1024
_PROC = Path("/proc")
# Architectures other than x86 call it otherwise or not at all.
_CPU_NAMES = ("model name", "Model", "Hardware", "cpu model")


def machine() -> Inventory:
    """Everything that does not change while the agent runs."""
    return Inventory(
        agent_version=VERSION,
        boot_id=_read(_PROC / "sys/kernel/random/boot_id").strip(),
        os=_os_name(),
        kernel=platform.release(),
        cpu_product=_cpu_product(),
        cpu_count=os.cpu_count() or 1,
        memory_bytes=_memory_bytes(),
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
