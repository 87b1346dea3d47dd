"""How a refusal is told: at which stage a node said no, why, and what would help.

The stages are the order of the filters, and the order carries meaning: the further a node got, the closer it
is to running the workload. So the main reason of a refusal is the one of the node that got furthest. What a
node *is* (zone, labels, devices) comes first, what it could ever hold second, whether it is ready third and
what is free right now last. A node that is down but has the right GPUs thus counts as closer than a healthy
one with the wrong GPUs, and nobody is told "no node has an A100" when the truth is "the A100 node is down".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from pwm.api.v1.common_pb2 import Reason


class Stage(IntEnum):
    """The filters in their order."""

    ADMITTED = 0
    ZONE = 1
    LABEL = 2
    TYPE = 3
    DRIVER = 4
    CPU_MODEL = 5
    GPU_MODEL = 6
    GPU_MEMORY = 7
    GPU_CAPACITY = 8
    CPU_CAPACITY = 9
    MEMORY_CAPACITY = 10
    READY = 11
    DRIVER_READY = 12
    GPU_FREE = 13
    CPU_FREE = 14
    MEMORY_FREE = 15
    RESERVED = 16
    FITS = 17


@dataclass(frozen=True, slots=True)
class Refusal:
    """One node's no: the stage, the code, and a sentence whose subject is the node."""

    stage: Stage
    code: Reason.Code.ValueType
    sentence: str


@dataclass(frozen=True, slots=True)
class Change:
    """Something that would let a workload start: fields of its spec with their new values (an empty value removes
    the field), or, without fields, something to wait for. With `at_once` it was tried and fits now; else the
    workload can start once what is in its way has ended."""

    text: str
    fields: tuple[tuple[str, str], ...] = ()
    at_once: bool = True
    # Containers that the text names, as GROUP/NAME: not everybody may hear of each.
    holders: tuple[str, ...] = ()

    def told(self, may_see: Callable[[str], bool]) -> str:
        """The text for somebody who may see some containers only: others are counted."""
        seen = [name for name in self.holders if may_see(name)]
        hidden = len(self.holders) - len(seen)
        if not hidden:
            return self.text
        others = counted(hidden, "container") + " of others"
        return self.text.replace(listed(self.holders), listed([*seen, others]))


@dataclass(slots=True)
class Explanation:
    """Why a workload, or the replicas of it that still wait, cannot start.

    `possible` is false when no node could run it even with nothing else on it: waiting will not help.
    """

    reason: Reason
    refusals: list[tuple[Reason, tuple[str, ...]]] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    possible: bool = False

    @property
    def suggestions(self) -> list[str]:
        """The changes as sentences, best first."""
        return [change.text for change in self.changes]


def listed(items: Sequence[str], *, word: str = "and", most: int = 4) -> str:
    """`a, b and c`; what is beyond `most` is counted."""
    if len(items) > most:
        items = [*items[:most], f"{len(items) - most} more"]
    return f" {word} ".join(part for part in (", ".join(items[:-1]), items[-1]) if part) if items else ""


def counted(count: int, word: str) -> str:
    """`1 GPU`, `2 GPUs`."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
