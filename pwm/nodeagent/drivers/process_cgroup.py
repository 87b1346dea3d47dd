"""A control group for one process and everything it starts: limits, use, and what is still alive in it.

Where the agent is root there is a group per process (`pwm/<uid>` in the unified hierarchy, or in each controller
of version 1). Where it is not, there is none: limits are then the weaker ones of the shell (`ulimit`), and use is
summed over the process tree.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_PARENT = "pwm"
_V1_CONTROLLERS = ("cpu", "cpuacct", "memory", "pids")
_V2_CONTROLLERS = "+cpu +memory +pids"
# The kernel's usual period; the quota is what may be used of it.
_PERIOD_US = 100_000
# Enough for any job, and too little to fill the machine's table of processes; as for containers.
PIDS_LIMIT = 16384


@dataclass(frozen=True, slots=True)
class Limits:
    cpu_millis: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Use:
    cpu_ns: int
    memory_bytes: int
    pids: int


class Cgroup:
    """`folders` is empty where the agent cannot have groups."""

    def __init__(self, name: str, *, root: Path = _ROOT) -> None:
        self._unified = (root / "cgroup.controllers").exists()
        if self._unified:
            parents = [root / _PARENT]
        else:
            parents = [root / controller / _PARENT for controller in _V1_CONTROLLERS if (root / controller).is_dir()]
        self.folders = [parent / name for parent in parents] if os.geteuid() == 0 else []

    @property
    def exists(self) -> bool:
        return bool(self.folders) and all(folder.is_dir() for folder in self.folders)

    @property
    def procs(self) -> list[str]:
        """Files that a process joins by writing 0."""
        return [str(folder / "cgroup.procs") for folder in self.folders] if self.exists else []

    def create(self, limits: Limits) -> bool:
        """False where the system lets nobody make groups (a read-only /sys, a container)."""
        if not self.folders:
            return False
        try:
            for folder in self.folders:
                folder.parent.mkdir(exist_ok=True)
                if self._unified:
                    (folder.parent.parent / "cgroup.subtree_control").write_text(_V2_CONTROLLERS)
                    (folder.parent / "cgroup.subtree_control").write_text(_V2_CONTROLLERS)
                folder.mkdir(exist_ok=True)
            self._limit(limits)
        except OSError:
            self.remove()
            return False
        return self.exists

    def remove(self) -> None:
        for folder in self.folders:
            # One with living processes stays; the next removal finds it.
            with contextlib.suppress(OSError):
                folder.rmdir()

    def use(self) -> Use:
        """Raises OSError or ValueError when the group is gone."""
        if self._unified:
            folder = self.folders[0]
            cpu = _pairs(folder / "cpu.stat")["usage_usec"] * 1000
            memory = _number(folder / "memory.current") - _pairs(folder / "memory.stat").get("inactive_file", 0)
            return Use(cpu, max(0, memory), _number(folder / "pids.current"))
        memory_folder = self._controller("memory")
        cached = _pairs(memory_folder / "memory.stat").get("total_inactive_file", 0)
        return Use(
            _number(self._controller("cpuacct") / "cpuacct.usage"),
            max(0, _number(memory_folder / "memory.usage_in_bytes") - cached),
            _number(self._controller("pids") / "pids.current"),
        )

    def oom_killed(self) -> bool:
        """Whether the kernel killed something in it for its memory."""
        try:
            if self._unified:
                return _pairs(self.folders[0] / "memory.events").get("oom_kill", 0) > 0
            return _pairs(self._controller("memory") / "memory.oom_control").get("oom_kill", 0) > 0
        except (OSError, ValueError, LookupError):
            return False

    def _controller(self, name: str) -> Path:
        for folder in self.folders:
            if folder.parent.parent.name == name:
                return folder
        raise FileNotFoundError(f"this machine has no {name} control groups")

    def _limit(self, limits: Limits) -> None:
        quota = limits.cpu_millis * _PERIOD_US // 1000
        if self._unified:
            folder = self.folders[0]
            (folder / "pids.max").write_text(str(PIDS_LIMIT))
            (folder / "cpu.max").write_text(f"{quota} {_PERIOD_US}" if quota else f"max {_PERIOD_US}")
            (folder / "memory.max").write_text(str(limits.memory_bytes or "max"))
            if limits.memory_bytes and (folder / "memory.swap.max").exists():
                (folder / "memory.swap.max").write_text("0")
            return
        (self._controller("pids") / "pids.max").write_text(str(PIDS_LIMIT))
        (self._controller("cpu") / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
        (self._controller("cpu") / "cpu.cfs_quota_us").write_text(str(quota or -1))
        memory = self._controller("memory")
        (memory / "memory.limit_in_bytes").write_text(str(limits.memory_bytes or -1))
        # Memory and swap together, so no swap; some kernels do not count it.
        if limits.memory_bytes and (memory / "memory.memsw.limit_in_bytes").exists():
            (memory / "memory.memsw.limit_in_bytes").write_text(str(limits.memory_bytes))


def _number(path: Path) -> int:
    return int(path.read_text())


def _pairs(path: Path) -> dict[str, int]:
    return {name: int(value) for name, value in (line.split() for line in path.read_text().splitlines())}
