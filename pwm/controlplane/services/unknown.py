"""Warns of what people's documents name that is not there: a group, a role, a node.

It is no error: what is named may be applied later, and counts from then on. But a typo is likelier, and would keep
somebody out without a word.
"""

from collections.abc import Collection, Iterable, Iterator, Set

from pwm.api.v1.identity_pb2 import Group, NodeLimits, User
from pwm.api.v1.services_pb2 import ApplyResult
from pwm.controlplane.core.document import nearest
from pwm.controlplane.core.fields import is_any
from pwm.controlplane.core.kinds import Applied
from pwm.controlplane.view import View


def warn_unknown(message: Applied, result: ApplyResult, *, view: View, beside: Set[tuple[str, str]]) -> None:
    """`beside`: kinds and names of the documents that are applied with it."""
    if not isinstance(message, User | Group):
        return
    for kind, field, name in _named(message):
        if is_any(name) or (kind, name) in beside or view.by_name(kind, name) is not None:
            continue
        near = nearest(name, _names(kind, view.all(kind), beside))
        result.warnings.add(
            field=field,
            message=f"there is no {kind} {name}" if kind != "Node" else f"no node is called {name}",
            next_step=f"did you mean {near}?" if near else "it counts as soon as there is one",
        )


def _named(message: User | Group) -> Iterator[tuple[str, str, str]]:
    """(kind, field, name) of all that it names."""
    if isinstance(message, User):
        for number, membership in enumerate(message.spec.groups):
            yield "Group", f"spec.groups[{number}].name", membership.name
            if membership.role:
                yield "Role", f"spec.groups[{number}].role", membership.role
    nodes: NodeLimits = message.spec.limits.resources.nodes
    for part, names in (("allow", nodes.allow), ("deny", nodes.deny)):
        for number, name in enumerate(names):
            yield "Node", f"spec.limits.resources.nodes.{part}[{number}]", name


def _names(kind: str, states: Iterable[Applied], beside: Collection[tuple[str, str]]) -> list[str]:
    return sorted({s.metadata.name for s in states} | {name for of, name in beside if of == kind})
