"""A process and all it started, read from /proc: what they are, and what they use together.

Orphans of a watched process come back to its shim (a subreaper), so the tree below the shim is complete.
"""

import asyncio
import os
import pwd
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pwm.nodeagent.drivers.driver import ProcessTable
from pwm.nodeagent.drivers.process_cgroup import Use

_PROC = Path("/proc")
_TITLES = ["UID", "PID", "PPID", "STIME", "TIME", "RSS", "CMD"]


@dataclass(frozen=True, slots=True)
class _Stat:
    pid: int
    parent: int
    uid: int
    cpu_ticks: int
    start_ticks: int
    resident_bytes: int


def table(shim: int) -> ProcessTable:
    """As `ps` shows it, without the shim itself."""
    tick, boot = os.sysconf("SC_CLK_TCK"), _boot_time_s()
    rows = []
    for stat in _below(shim):
        started = _clock(boot + stat.start_ticks // tick)
        spent = stat.cpu_ticks // tick
        time = f"{spent // 3600:02d}:{spent // 60 % 60:02d}:{spent % 60:02d}"
        size = f"{stat.resident_bytes // 1024}K"
        rows.append([_user(stat.uid), str(stat.pid), str(stat.parent), started, time, size, _command(stat.pid)])
    return ProcessTable(titles=_TITLES, rows=rows)


def use(shim: int) -> Use:
    tick_ns = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    stats = _below(shim)
    return Use(
        cpu_ns=sum(stat.cpu_ticks for stat in stats) * tick_ns,
        memory_bytes=sum(stat.resident_bytes for stat in stats),
        pids=len(stats),
    )


async def gone(pid: int) -> None:
    """Until a process that may be nobody's child has ended; raises ProcessLookupError when there is none."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    fd = os.pidfd_open(pid)
    loop.add_reader(fd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)


def _below(root: int) -> list[_Stat]:
    children: dict[int, list[_Stat]] = defaultdict(list)
    for folder in _PROC.iterdir():
        if folder.name.isdigit() and (stat := _stat(int(folder.name))) is not None:
            children[stat.parent].append(stat)
    found, waiting = [], [root]
    while waiting:
        below = children.pop(waiting.pop(), [])
        found.extend(below)
        waiting.extend(stat.pid for stat in below)
    return sorted(found, key=lambda stat: stat.pid)


def _stat(pid: int) -> _Stat | None:
    try:
        fields = (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
        uid = (_PROC / str(pid)).stat().st_uid
    except OSError:
        # It has ended.
        return None
    # Numbers of proc(5) minus three: utime, stime and those of children that were waited for.
    cpu_ticks = sum(int(fields[i]) for i in range(11, 15))
    return _Stat(pid, int(fields[1]), uid, cpu_ticks, int(fields[19]), int(fields[21]) * os.sysconf("SC_PAGE_SIZE"))


def _command(pid: int) -> str:
    try:
        words = (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
        name = (_PROC / str(pid) / "comm").read_text(errors="replace").strip()
    except OSError:
        return "?"
    return b" ".join(words).decode(errors="replace").strip() or f"[{name}]"


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _boot_time_s() -> int:
    lines = (_PROC / "stat").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("btime"))


def _clock(seconds: int) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%H:%M")
