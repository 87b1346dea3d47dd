"""Watchdogs of agents that tests have started: they outlive a killed agent, on purpose, but not the test.

They are found by the state folder in their command line, which no other agent on the machine has.
"""

import json
import os
import select
import signal
from pathlib import Path

MODULE = b"pwm.nodeagent.watchdog"
END_LIMIT_S = 10.0


def watchdogs(folder: Path) -> list[int]:
    """Process ids of the watchdogs whose agent's state folder is this one, or below it."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _is_one(entry, folder)]


def _is_one(process: Path, folder: Path) -> bool:
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    if MODULE not in words:
        return False
    state = Path(json.loads(words[words.index(MODULE) + 1])["state"])
    return folder.absolute() in (state, *state.parents)


def end_watchdogs(folder: Path) -> None:
    """Kill them, and wait until they are gone."""
    for pid in watchdogs(folder):
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if _is_one(Path(f"/proc/{pid}"), folder):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                assert select.select([descriptor], [], [], END_LIMIT_S)[0], f"watchdog {pid} does not end"
        finally:
            os.close(descriptor)
