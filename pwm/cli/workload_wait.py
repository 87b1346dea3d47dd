"""Waiting for workloads: until they run, or until they have ended (`--wait` of apply, scale, restart, stop).

The way there is told on standard error, one line for each change of a status.
"""

from __future__ import annotations

from pwm.cli import exit_codes
from pwm.cli.kinds import WORKLOAD
from pwm.cli.watch import until

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from pwm.cli.invocation import Invocation

# Ended well, or as asked.
_ENDED_WELL = ("EXITED", "STOPPED", "PAUSED")
_ENDED_BADLY = ("CRASHED", "DENIED", "STUCK")


def wait_for_start(
    invocation: Invocation, workloads: Sequence[tuple[str, str]], *, timeout_s: float | None = None
) -> int:
    """Until each (group, name) runs or has ended. An exit code: FAILED when one crashed or was denied."""

    def done(workload: dict[str, Any] | None) -> bool:
        return workload is None or phase(workload) in ("RUNNING", *_ENDED_WELL, *_ENDED_BADLY)

    return _finish(invocation, workloads, done=done, timeout_s=timeout_s, what="running")


def wait_for_end(
    invocation: Invocation, workloads: Sequence[tuple[str, str]], *, timeout_s: float | None = None
) -> int:
    """Until no container of them is left running. Having crashed is no failure here: it was to end."""

    def done(workload: dict[str, Any] | None) -> bool:
        return workload is None or phase(workload) in (*_ENDED_WELL, *_ENDED_BADLY)

    _finish(invocation, workloads, done=done, timeout_s=timeout_s, what="ended")
    return exit_codes.DONE


def _finish(
    invocation: Invocation, workloads: Sequence[tuple[str, str]], *, done: Any, timeout_s: float | None, what: str
) -> int:
    wanted = {(group or own_group(invocation), name) for group, name in workloads}
    ended = until(invocation, WORKLOAD, wanted, timeout_s=timeout_s, done=done, what=what, show=status_line)
    code = exit_codes.DONE
    for (_, name), workload in ended.items():
        if workload is None:
            invocation.note(f"error: Workload/{name} was deleted meanwhile")
            code = exit_codes.FAILED
        elif phase(workload) in _ENDED_BADLY:
            code = exit_codes.FAILED
            if what == "running":
                invocation.note(f"error: Workload/{name} {status_line(workload)}\n  `pwm why wk {name}` says more.")
    return code


def own_group(invocation: Invocation) -> str:
    """The group that the server takes when none is named."""
    return invocation.group or str(invocation.client.call("GET", "/v1/whoami").get("defaultGroup", ""))


def phase(workload: dict[str, Any]) -> str:
    """The workload's status word."""
    return str((workload.get("status") or {}).get("phase") or "")


def status_line(workload: dict[str, Any]) -> str:
    """`PULLING on node-1`, `QUEUED: no GPU is free (NO_GPU_FREE)`, `RUNNING 2/3`."""
    from pwm.cli.render import sentence

    status = workload.get("status") or {}
    replicas, running = int(status.get("replicas") or 0), int(status.get("running") or 0)
    text = phase(workload)
    if replicas > 1 and running:
        text += f" {running}/{replicas}"
    if nodes := status.get("nodes"):
        text += " on " + ", ".join(str(node) for node in nodes[:3]) + (" ..." if len(nodes) > 3 else "")
    reason = sentence(status.get("reason") or {})
    return f"{text}: {reason}" if reason and text not in ("RUNNING",) else text
