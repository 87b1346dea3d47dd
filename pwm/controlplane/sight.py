"""What one caller may see: every answer and every message of a stream goes through here, item by item.

A sight is made for a call or a stream, and kept as long as that lasts. It asks again for every item: who was taken out
of a group sees nothing more of it, in streams that were open before, too.

What a caller may not see is left out as if it did not exist. What he may see can name what he may not, such as a GPU
its holder: then he gets it without that name.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pwm.api.v1.agent_pb2 import NodeUsage
from pwm.api.v1.events_pb2 import Event
from pwm.api.v1.identity_pb2 import User
from pwm.api.v1.node_pb2 import GPU
from pwm.api.v1.resource_pb2 import Bind
from pwm.controlplane.auth import Authorizer, Principal
from pwm.controlplane.core.authz import OWN_KINDS
from pwm.controlplane.core.targets import hidden_from, hidden_in_event
from pwm.controlplane.queries import Shown

# Names in one sentence before the rest is only counted.
NAMES_SHOWN = 5
# Of these it takes more than the group to know who may see one, or how.
_ITEM_BY_ITEM = OWN_KINDS | {"Event", "Bind", "GPU"}


class Sight:
    __slots__ = ("_authorizer", "_principal")

    def __init__(self, authorizer: Authorizer, principal: Principal) -> None:
        self._authorizer = authorizer
        self._principal = principal

    @property
    def default_group(self) -> str:
        return self._principal.default_group

    def may(self, kind: str, *, group: str = "", name: str = "", verb: str = "get") -> bool:
        """Whether the caller holds a verb now."""
        return self._authorizer.may(self._principal, verb, kind, group, name)

    def of(self, kind: str, item: Any) -> Any | None:
        """The item as the caller may see it; None: not at all."""
        return seen(self._authorizer, self._principal, kind, Shown.of(item))

    def through(self, kind: str) -> Callable[[Shown], Any | None]:
        """`of` for many items of a kind.

        A group is asked about once, until somebody's rights change.
        """
        if kind in _ITEM_BY_ITEM:
            return lambda shown: self.by_itself(kind, shown.message)
        view, rights, sees = self._authorizer.view, -1, dict[str, bool]()
        hides, viewer = kind == "Workload", self._principal.name

        def see(shown: Shown) -> Any | None:
            nonlocal rights
            if rights != view.rights:
                rights = view.rights
                sees.clear()
            group = shown.group
            may = sees.get(group)
            if may is None:
                may = sees[group] = self.may(kind, group=group)
            if not may:
                return None
            return hidden_from(shown.message, viewer) if hides and not shown.plain else shown.message

        return see

    def by_itself(self, kind: str, item: Any) -> Any | None:
        """`of` for an item of which it takes more than the group to know."""
        if isinstance(item, Event):
            return self.event(item) if self.sees_event(item) else None
        if isinstance(item, Bind):
            return item if self.may(item.child_kind, group=item.metadata.group, name=item.child) else None
        metadata = item.metadata
        if not self.may(kind, group=metadata.group, name=metadata.name):
            return None
        if isinstance(item, User):
            return hidden_from(item, self._principal.name)
        return self._gpu(item) if isinstance(item, GPU) else item

    def event(self, event: Event) -> Event:
        """One that the caller may see, without what is not shown to him of it."""
        return hidden_in_event(event, self._principal.name)

    def sees_event(self, event: Event) -> bool:
        # The name and the uid of a token are the hash of it: it has a list of its own.
        return event.kind != "Token" and self.may(event.kind, group=event.group, name=event.name)

    def _gpu(self, gpu: GPU) -> GPU:
        """Without the name of a holder of whom the caller knows nothing."""
        if not gpu.container or self.container(gpu.container):
            return gpu
        shown = GPU()
        shown.CopyFrom(gpu)
        shown.container = ""
        return shown

    def container(self, name: str) -> bool:
        """Whether the caller may see the container GROUP/NAME."""
        return self.may("Container", group=name.partition("/")[0])

    def usage(self, usage: NodeUsage, groups: dict[str, str]) -> NodeUsage:
        """What a node uses, without whose it is: neither the containers nor the processes that others have there.

        `groups`: the group of each container by its uid. Processes that PWM did not start belong to nobody.
        """
        shown = NodeUsage()
        shown.CopyFrom(usage)
        del shown.containers[:]
        del shown.activity[:]
        for gpu in shown.gpus:
            seen = [
                process
                for process in gpu.processes
                if not process.container_uid
                or (process.container_uid in groups and self.may("Container", group=groups[process.container_uid]))
            ]
            if len(seen) < len(gpu.processes):
                del gpu.processes[:]
                gpu.processes.extend(seen)
        return shown

    def named(self, names: Iterable[tuple[str, str, str]]) -> str:
        """`Volume vision/data, Workload vision/train and 3 more`, of (kind, group, name), for a sentence."""
        shown: list[str] = []
        count = 0
        for kind, group, name in names:
            count += 1
            if len(shown) < NAMES_SHOWN and self.may(kind, group=group, name=name):
                shown.append(f"{kind} {group}/{name}" if group else f"{kind} {name}")
        return _and_more(shown, count - len(shown), nothing="what you may not see")


def seen(authorizer: Authorizer, principal: Principal, kind: str, shown: Shown) -> Any | None:
    """`Sight.of` for a single item: each GET comes by, and what `may` has answered before is looked up here."""
    if kind in _ITEM_BY_ITEM:
        return Sight(authorizer, principal).by_itself(kind, shown.message)
    decided = principal.decided
    known = decided.rights == authorizer.view.rights and decided.answers.get(("get", kind, shown.group, ""))
    if not known and not authorizer.may(principal, "get", kind, shown.group):
        return None
    return shown.message if shown.plain or kind != "Workload" else hidden_from(shown.message, principal.name)


def _and_more(shown: Sequence[str], left: int, *, nothing: str) -> str:
    if not shown:
        return nothing
    return ", ".join(shown) + (f" and {left} more" if left else "")
