"""The machine's NVIDIA GPUs through NVML: what they are, what they do, and whether they can be trusted.

Blocking, and NVML may block for good when a driver is in trouble, so `monitor.py` calls this from a thread of
its own. A GPU is known by its UUID. One that was seen once stays known: if it falls off the bus or its driver is
gone, it is shown as unhealthy with the reason, not silently missing. No driver at all is no error: no GPUs.

`PWM_NVML_LIBRARY` names another library to load in place of the system's libnvidia-ml.so.1.
"""

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pynvml

from pwm.api.v1.agent_pb2 import GPUProcess, GPUUsage
from pwm.api.v1.node_pb2 import GPUDevice

LIBRARY_VARIABLE = "PWM_NVML_LIBRARY"
_SONAME = "libnvidia-ml.so.1"
_PCI_DEVICES = Path("/sys/bus/pci/devices")
_PROC = Path("/proc")
# What NVML says when the driver was restarted under it, or is not there (yet): begin anew at the next look.
_BEGIN_ANEW = frozenset(
    {
        pynvml.NVML_ERROR_UNINITIALIZED,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    }
)
# Not merely a question that this product cannot answer.
_SERIOUS = _BEGIN_ANEW | {pynvml.NVML_ERROR_GPU_IS_LOST}


@dataclass(slots=True)
class Snapshot:
    """One look at all GPUs, in the order of their indexes."""

    driver_version: str = ""
    devices: list[GPUDevice] = field(default_factory=list)
    usage: list[GPUUsage] = field(default_factory=list)


class Nvml:
    """Used by one thread at a time."""

    def __init__(self) -> None:
        self._initialized = False
        self._known: dict[str, GPUDevice] = {}
        # A lost GPU no longer says who it is.
        self._uuid_at: dict[int, str] = {}

    def look(self) -> Snapshot:
        """Never raises for what GPUs do; what is wrong stands in the devices."""
        try:
            self._initialize()
            return self._look()
        except pynvml.NVMLError as error:
            if error.value in _BEGIN_ANEW:
                self.close()
            return self._all_unhealthy(f"The NVIDIA driver does not work: {_text(error)}")

    def close(self) -> None:
        if self._initialized:
            self._initialized = False
            _ask(pynvml.nvmlShutdown)

    def _initialize(self) -> None:
        if not self._initialized:
            _load_library()
            pynvml.nvmlInit()
            self._initialized = True

    def _look(self) -> Snapshot:
        snapshot = Snapshot(driver_version=_ask(pynvml.nvmlSystemGetDriverVersion, default=""))
        found: set[str] = set()
        for index in range(pynvml.nvmlDeviceGetCount()):
            try:
                device, usage = self._read(index)
            except pynvml.NVMLError as error:
                if error.value in _BEGIN_ANEW:
                    raise
                uuid = self._uuid_at.get(index, "")
                if uuid not in self._known:
                    # Broken since before the agent started: without its name it cannot be given to anybody.
                    continue
                device, usage = self._unhealthy(uuid, f"The NVIDIA driver reports: {_text(error)}"), GPUUsage(uuid=uuid)
            found.add(device.uuid)
            snapshot.devices.append(device)
            snapshot.usage.append(usage)
        for uuid in self._known.keys() - found:
            snapshot.devices.append(self._unhealthy(uuid, "The NVIDIA driver no longer lists it"))
            snapshot.usage.append(GPUUsage(uuid=uuid))
        return snapshot

    def _read(self, index: int) -> tuple[GPUDevice, GPUUsage]:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        uuid: str = pynvml.nvmlDeviceGetUUID(handle)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        bus_id = _ask(lambda: pynvml.nvmlDeviceGetPciInfo(handle).busId, default="")
        device = GPUDevice(
            uuid=uuid,
            index=index,
            product_name=pynvml.nvmlDeviceGetName(handle),
            memory_bytes=memory.total,
            pci_bus_id=bus_id,
            numa_node=_numa_node(bus_id, handle),
            healthy=True,
        )
        self._known[uuid] = _copy(device)
        self._uuid_at[index] = uuid
        return device, _usage(uuid, handle, memory)

    def _unhealthy(self, uuid: str, message: str) -> GPUDevice:
        device = _copy(self._known[uuid])
        device.healthy = False
        device.message = message
        return device

    def _all_unhealthy(self, message: str) -> Snapshot:
        known = sorted(self._known.values(), key=lambda device: device.index)
        return Snapshot(
            devices=[self._unhealthy(device.uuid, message) for device in known],
            usage=[GPUUsage(uuid=device.uuid) for device in known],
        )


def _usage(uuid: str, handle: Any, memory: Any) -> GPUUsage:
    """Not every product measures everything: what is missing is 0, and `measured` says whether being busy is."""
    busy_percent = _ask(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    usage = GPUUsage(
        uuid=uuid,
        utilization=(busy_percent or 0) / 100,
        measured=busy_percent is not None,
        memory_used_bytes=memory.used,
        memory_total_bytes=memory.total,
        temperature_c=_ask(lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU), default=0),
        power_w=_ask(lambda: pynvml.nvmlDeviceGetPowerUsage(handle), default=0) / 1000,
        power_limit_w=_ask(lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(handle), default=0) / 1000,
    )
    for process in _ask(lambda: pynvml.nvmlDeviceGetComputeRunningProcesses(handle), default=[]):
        usage.processes.append(
            GPUProcess(pid=process.pid, memory_bytes=process.usedGpuMemory or 0, command=_command(process.pid))
        )
    return usage


def _ask(question: Callable[[], Any], default: Any = None) -> Any:
    """An answer that a product may not have. A lost GPU is no such thing."""
    try:
        return question()
    except pynvml.NVMLError as error:
        if error.value in _SERIOUS:
            raise
        return default


def _load_library() -> None:
    """A library with the right soname that is loaded already is what pynvml then gets."""
    path = os.environ.get(LIBRARY_VARIABLE)
    if path:
        try:
            ctypes.CDLL(path)
        except OSError as error:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND) from error


def _numa_node(bus_id: str, handle: Any) -> int:
    """-1: not known. The kernel writes PCI domains with four digits, NVML with eight."""
    try:
        return int((_PCI_DEVICES / bus_id.lower()[-12:] / "numa_node").read_text())
    except (OSError, ValueError):
        return int(_ask(lambda: pynvml.nvmlDeviceGetNumaNodeId(handle), default=-1))


def _copy(device: GPUDevice) -> GPUDevice:
    """What leaves here belongs to whoever asked."""
    copy = GPUDevice()
    copy.CopyFrom(device)
    return copy


def _command(pid: int) -> str:
    try:
        return (_PROC / str(pid) / "comm").read_text(errors="replace").strip()
    except OSError:
        return ""


def _text(error: pynvml.NVMLError) -> str:
    return str(error) or f"NVML error {error.value}"
