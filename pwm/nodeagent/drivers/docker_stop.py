"""Whether a container can hear that it is asked to end.

The kernel drops signals that a container's first process does not handle: waiting for it is in vain. A shell or a
Python program as the first process would otherwise take the whole grace for every stop. With an init in front of
it, it would have died of the signal at once; killing it then ends it just as fast.
"""

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from pwm.nodeagent.drivers.docker_api import DockerApi
from pwm.nodeagent.drivers.docker_exec import belongs_to

# What a program that has just begun needs until it handles signals, and how often it is looked at until then.
SETTING_UP_S = 1.0
SETTING_UP_POLL_S = 0.02


async def ignores_stop_signal(api: DockerApi, runtime_id: str, *, within_s: float) -> bool:
    """Asks the engine and the kernel; takes up to `within_s` for a program that has just begun. Raises ApiError."""
    end = time.monotonic() + within_s
    while True:
        info = await api.get(f"/containers/{runtime_id}/json")
        if not _ignores(info, runtime_id):
            return False
        started_at = Timestamp()
        started_at.FromJsonString(info["State"]["StartedAt"])
        age_s = time.time() - started_at.ToNanoseconds() / 1e9
        # Also when the clock was set back since.
        if not 0 <= age_s < SETTING_UP_S or time.monotonic() > end:
            return True
        await asyncio.sleep(SETTING_UP_POLL_S)


def _ignores(info: dict[str, Any], runtime_id: str) -> bool:
    pid = int(info["State"]["Pid"])
    name = info["Config"].get("StopSignal") or "SIGTERM"
    if not belongs_to(pid, runtime_id):
        return False
    try:
        number = int(name) if name.isdigit() else signal.Signals[name if name.startswith("SIG") else f"SIG{name}"]
        fields = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        # Blocked ones may be taken up by sigwait or a signalfd.
        handled = int(fields["SigCgt"], 16) | int(fields["SigBlk"], 16)
    except (KeyError, ValueError, OSError):
        return False
    return not handled >> (number - 1) & 1
