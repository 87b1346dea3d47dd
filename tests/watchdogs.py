"""Watchdogs of agents that tests have started, and the shims of their processes.

They outlive a killed agent, on purpose, but not the test.

They are found by the state folder in their command line, which no other agent on the machine has.
"""

import json
import os
import select
import signal
from pathlib import Path

MODULE = b"pwm.nodeagent.watchdog"
# When it is killed, the kernel ends its process with it.
SHIM = b"/process_shim.py"
END_LIMIT_S = 10.0


def watchdogs(folder: Path) -> list[int]:
    """Process ids of the watchdogs whose agent's state folder is this one, or below it."""
    return [pid for pid in _pids() if _is_below(folder, _watched(pid))]


def _shims(folder: Path) -> list[int]:
    return [pid for pid in _pids() if _is_below(folder, _shim_of(pid))]


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _is_below(folder: Path, state: Path | None) -> bool:
    return state is not None and folder.absolute() in (state, *state.parents)


def _words(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def _watched(pid: int) -> Path | None:
    words = _words(pid)
    return Path(json.loads(words[words.index(MODULE) + 1])["state"]) if MODULE in words else None


def _shim_of(pid: int) -> Path | None:
    words = _words(pid)
    at = next((n for n, word in enumerate(words) if word.endswith(SHIM)), None)
    return Path(os.fsdecode(words[at + 2])) if at is not None and words[at + 1 : at + 2] == [b"run"] else None


def end_watchdogs(folder: Path) -> None:
    """Kill them, and wait until they are gone."""
    for pid in (*watchdogs(folder), *_shims(folder)):
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if _is_below(folder, _watched(pid) or _shim_of(pid)):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                assert select.select([descriptor], [], [], END_LIMIT_S)[0], f"{pid} does not end"
        finally:
            os.close(descriptor)
