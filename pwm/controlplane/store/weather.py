"""What an operation of the in-memory store meets, for tests and the simulator: delays and faults.

A fault is one of the three that matter to a writer: surely not applied, unknown and not applied, unknown but
applied. Readers see the first two as `Unavailable`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


class Fault(Enum):
    UNAVAILABLE = "surely not applied"
    AMBIGUOUS_BEFORE = "not applied, and the caller cannot know"
    AMBIGUOUS_AFTER = "applied, and the caller cannot know"


@dataclass(frozen=True, slots=True)
class Weather:
    """What one operation meets: how long it takes, and how it fails if it does."""

    delay_s: float = 0.0
    fault: Fault | None = None


CALM = Weather()
Forecast = Callable[[str], Weather]
"""Told the operation (range, put, delete, txn, watch, grant_lease, keep_alive, revoke_lease, compact)."""
