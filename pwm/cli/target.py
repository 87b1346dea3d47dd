"""Which workload, replica or container the words of a command mean.

`wk train`, `train`, `c train.0.2` and `container train.0.2` all do; a container's name is its workload's
with replica and attempt, `WORKLOAD.REPLICA.ATTEMPT`. Shared by logs, shell, inspect and top.
"""

from __future__ import annotations

from pwm.cli.client import quote
from pwm.cli.errors import UsageError
from pwm.cli.kinds import kind_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pwm.cli.invocation import Invocation


class Target:
    """A workload, or one container of it."""

    __slots__ = ("container", "group", "name", "replica")

    def __init__(self, name: str, *, group: str = "", container: str = "", replica: int | None = None) -> None:
        self.name = name
        self.group = group
        self.container = container
        self.replica = replica

    def path(self, verb: str) -> str:
        """Path of the workload's rpc, such as /v1/workloads/train/logs."""
        return f"/v1/workloads/{quote(self.name)}/{verb}"

    @property
    def resource_path(self) -> str:
        return f"/v1/resources/Workload/{quote(self.name)}"


def target_of(invocation: Invocation, words: Sequence[str], *, replica: int | None = None) -> Target:
    """The target that a command's words name; a `UsageError` says how to write it."""
    if len(words) == 1:
        kind, name = "Workload", words[0]
    elif len(words) == 2:
        kind, name = kind_of(words[0]), words[1]
    else:
        raise UsageError("name one workload", next_step="Such as: wk NAME")
    if kind == "Workload":
        return Target(name, group=invocation.group, replica=replica)
    if kind != "Container":
        raise UsageError(f"a {kind} has no containers of its own", next_step="Name a workload: wk NAME")
    workload, *numbers = name.rsplit(".", 2)
    if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
        raise UsageError(
            f"{name!r} is not the name of a container", next_step="They look like train.0.1; see `pwm get c`."
        )
    return Target(workload, group=invocation.group, container=name, replica=int(numbers[0]))


def words_and_command(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """`wk NAME CMD...` taken apart: the words that name the workload, and the command after them."""
    count = 2 if len(words) > 1 and _is_kind(words[0]) else 1
    return list(words[:count]), list(words[count:])


def _is_kind(word: str) -> bool:
    try:
        return bool(kind_of(word))
    except UsageError:
        return False
