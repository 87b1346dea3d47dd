"""What containers use, read from their cgroups.

The engine's own statistics take it some milliseconds of CPU per container and call; these files take a tenth,
which matters with hundreds of containers every few seconds. Where Docker puts the cgroups depends on the
kernel's version of them and on the engine's cgroup driver: all four places are known.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pwm.api.v1.agent_pb2 import ContainerUsage

NS_PER_S = 1_000_000_000
# "No limit" is a number near 2^63 in version 1.
NO_LIMIT_BYTES = 1 << 60


@dataclass
class Cgroups:
    """Samples; remembers the CPU time of the last one, since use is a difference."""

    root: Path = Path("/sys/fs/cgroup")
    proc: Path = Path("/proc")
    _last: dict[str, tuple[float, int]] = field(default_factory=dict)

    def sample(self, runtime_ids: Mapping[str, str]) -> list[ContainerUsage]:
        """By uid; containers that are gone are left out. Reads files: call it from a thread."""
        found = []
        last, self._last = self._last, {}
        for uid, runtime_id in runtime_ids.items():
            try:
                usage, cpu_ns = self._read(uid, runtime_id)
            except (OSError, ValueError, KeyError, IndexError):
                continue
            now = time.monotonic()
            if uid in last and now > last[uid][0]:
                usage.cpu_cores = max(0.0, (cpu_ns - last[uid][1]) / NS_PER_S / (now - last[uid][0]))
            self._last[uid] = now, cpu_ns
            found.append(usage)
        return found

    def _read(self, uid: str, runtime_id: str) -> tuple[ContainerUsage, int]:
        if (self.root / "cgroup.controllers").exists():
            usage, cpu_ns, procs = self._version2(uid, runtime_id)
        else:
            usage, cpu_ns, procs = self._version1(uid, runtime_id)
        self._network(usage, procs)
        return usage, cpu_ns

    def _version2(self, uid: str, runtime_id: str) -> tuple[ContainerUsage, int, Path]:
        folder = self._folder("", runtime_id)
        cpu = _pairs(folder / "cpu.stat")
        memory = _pairs(folder / "memory.stat")
        limit = (folder / "memory.max").read_text().strip()
        usage = ContainerUsage(
            uid=uid,
            # Files the kernel may drop at any time are no use of memory, as in `docker stats`.
            memory_bytes=max(0, _number(folder / "memory.current") - memory.get("inactive_file", 0)),
            memory_limit_bytes=0 if limit == "max" else int(limit),
            pids=_number(folder / "pids.current"),
        )
        for line in _lines(folder / "io.stat"):
            counters = dict(part.split("=") for part in line.split()[1:])
            usage.block_read_bytes += int(counters.get("rbytes", 0))
            usage.block_write_bytes += int(counters.get("wbytes", 0))
        return usage, cpu["usage_usec"] * 1000, folder / "cgroup.procs"

    def _version1(self, uid: str, runtime_id: str) -> tuple[ContainerUsage, int, Path]:
        memory = self._folder("memory", runtime_id)
        limit = _number(memory / "memory.limit_in_bytes")
        usage = ContainerUsage(
            uid=uid,
            memory_bytes=max(
                0,
                _number(memory / "memory.usage_in_bytes")
                - _pairs(memory / "memory.stat").get("total_inactive_file", 0),
            ),
            memory_limit_bytes=0 if limit >= NO_LIMIT_BYTES else limit,
            pids=_number(self._folder("pids", runtime_id) / "pids.current"),
        )
        for line in _lines(self._folder("blkio", runtime_id) / "blkio.throttle.io_service_bytes"):
            parts = line.split()
            if len(parts) == 3 and parts[1] == "Read":
                usage.block_read_bytes += int(parts[2])
            elif len(parts) == 3 and parts[1] == "Write":
                usage.block_write_bytes += int(parts[2])
        cpu_ns = _number(self._folder("cpuacct", runtime_id) / "cpuacct.usage")
        return usage, cpu_ns, memory / "cgroup.procs"

    def _folder(self, controller: str, runtime_id: str) -> Path:
        base = self.root / controller
        plain = base / "docker" / runtime_id
        return plain if plain.exists() else base / "system.slice" / f"docker-{runtime_id}.scope"

    def _network(self, usage: ContainerUsage, procs: Path) -> None:
        # Any process of the container sees its network's counters.
        pid = procs.read_text().split(maxsplit=1)[0]
        for line in _lines(self.proc / pid / "net" / "dev"):
            name, colon, rest = line.partition(":")
            if colon and name.strip() != "lo":
                counters = rest.split()
                usage.net_rx_bytes += int(counters[0])
                usage.net_tx_bytes += int(counters[8])


def _number(path: Path) -> int:
    return int(path.read_text())


def _pairs(path: Path) -> dict[str, int]:
    return {name: int(value) for name, value in (line.split() for line in path.read_text().splitlines())}


def _lines(path: Path) -> list[str]:
    # Not every kernel counts blocks.
    return path.read_text().splitlines() if path.exists() else []
