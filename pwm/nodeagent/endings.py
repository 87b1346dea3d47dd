"""Why a container ended, in a code for programs and a sentence for people.

In the order of what explains most: PWM stopped it; the kernel killed it for its memory; a signal; an exit code.
Pure functions.
"""

import signal

from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.workload_pb2 import ContainerSpec
from pwm.nodeagent.drivers.driver import Ended
from pwm.quantity import format_bytes

# As in a shell: 128 + n for signal n.
SIGNAL_BASE = 128
KILLED = SIGNAL_BASE + signal.SIGKILL
BY_WATCHDOG = Reason(
    code=Reason.SELF_FENCED,
    message="its node's agent did not run, or hung, so the watchdog ended it before another may start elsewhere",
)


def reason(ended: Ended, spec: ContainerSpec, *, stop: Reason | None) -> Reason:
    """`stop`: why PWM stopped it, or None if it ended by itself."""
    if stop is not None:
        return stop
    if ended.oom_killed:
        limit = spec.resources.memory_bytes
        why = f"it used more memory than its limit of {format_bytes(limit)}" if limit else "the node ran out of memory"
        return Reason(code=Reason.MEMORY_LIMIT, message=f"The command was killed because {why}")
    remark = f"; {ended.message}" if ended.message else ""
    if ended.exit_code == 0:
        return Reason(code=Reason.COMPLETED, message=f"The command ended{remark}")
    if name := _signal(ended.exit_code):
        return Reason(code=Reason.KILLED_BY_SIGNAL, message=f"The command was killed by {name}{remark}")
    return Reason(code=Reason.EXIT_CODE, message=f"The command ended with exit code {ended.exit_code}{remark}")


def _signal(exit_code: int) -> str:
    """The signal's name, of those that kill; a program may well mean 130 or 255 as its own code."""
    try:
        found = signal.Signals(exit_code - SIGNAL_BASE)
    except ValueError:
        return ""
    return found.name
