"""Who is first.

A waiting replica is no resource of its own: the queue is worked out from the workloads. Its order is
priority, then how long one has waited; what is left is settled by name, so that the order is the same on
every replica of the control plane and in every replay.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from pwm.api.v1.workload_pb2 import Workload

PRIORITIES = {"low": -100, "normal": 0, "": 0, "high": 100}


@dataclass(frozen=True, slots=True)
class Waiting:
    """One replica that wants a container: its `attempt`-th, since when, after so many failures in a row."""

    workload: Workload
    replica: int
    attempt: int
    since_ms: int
    failures: int = 0


def priority_of(text: str) -> int:
    """The number behind a priority; what cannot be read counts as normal (it was refused when applied)."""
    known = PRIORITIES.get(text)
    if known is not None:
        return known
    try:
        return int(text)
    except ValueError:
        return PRIORITIES.get(text.strip().lower(), 0)


def order(waiting: Iterable[Waiting], now_ms: int) -> list[Waiting]:
    """The queue, first to be served first. Times from the future (a clock stepped back) count as now."""
    return sorted(waiting, key=lambda w: _rank(w, now_ms))


def _rank(waiting: Waiting, now_ms: int) -> tuple[int, int, str, str, str, int, int]:
    metadata = waiting.workload.metadata
    return (
        -priority_of(waiting.workload.spec.priority),
        min(waiting.since_ms, now_ms),
        metadata.group,
        metadata.name,
        metadata.uid,
        waiting.replica,
        waiting.attempt,
    )
