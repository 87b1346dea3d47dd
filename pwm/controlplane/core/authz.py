"""Who may do what: the rules, written once, for every call, every item of a list and every message of a stream.

A user has verbs on kinds in groups: by the policy of a membership, through its role, or both. `pwm.all` stands for
every group, kind or verb. `explain_access` is the one function that decides, and it says by which rule; everything
else asks it, so that `pwm admin can` cannot differ from what happens.

    what is asked for                 memberships that count
    Workload, Volume, Secret in G     of G, and of pwm.all
    Node, GPU, CPU, Storage           of pwm.resource, where what is shared lies, and of pwm.all
    every other kind of the cluster   of admin, and of pwm.all

So somebody with everything in his own group is no admin: he cannot touch users, roles or nodes.

Without any membership an active user may see machines, prices and storages, himself, his roles and his groups; and
may use what is shared (nodes, storages, the volumes of pwm.resource), unless a membership of pwm.resource speaks of
that kind: then its word stands alone, and `Node: [get]` lets nobody run anything. Containers, binds and events belong
to workloads: whoever has a verb on those has it on these.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from pwm.api.v1.identity_pb2 import Membership, Role, User, Verbs
from pwm.controlplane.core import verbs as words

ALL = "pwm.all"
SHARED = "pwm.resource"
ADMIN = "admin"

# The group whose members' verbs count for a kind that belongs to no group.
HOMES = {
    **dict.fromkeys(("Node", "GPU", "CPU", "Storage"), SHARED),
    **dict.fromkeys(("Cluster", "Zone", "Group", "User", "Role", "ResourceCredit", "Token", "Ledger"), ADMIN),
}
CLUSTER_KINDS = frozenset(HOMES)
# Kinds of which everybody sees his own, and hardly anybody all.
OWN_KINDS = frozenset({"User", "Role", "Group"})
# Nothing secret is in these, and nobody can choose a GPU that he cannot see.
OPEN_KINDS = frozenset({"Node", "GPU", "CPU", "Storage", "Zone", "ResourceCredit"})
# What is shared is for everybody, until a membership of pwm.resource says otherwise.
SHARED_VERBS = {
    "Node": frozenset({"use"}),
    "Storage": frozenset({"use"}),
    "Volume": frozenset({"get", "use", "ls", "download"}),
}
# What a user may do with himself.
SELF_VERBS = frozenset({"get", "token", "validate"})
PARTS = {"Container": "Workload", "Bind": "Workload", "Event": "Workload"}

_SYNONYMS = {**words.SYNONYMS, "getone": "get", "describe": "get"}


@dataclass(frozen=True, slots=True)
class Ruling:
    """Whether something is allowed, and by which rule or for want of which."""

    allowed: bool
    # The membership that allows it: its group, the role it comes through, and what is granted.
    group: str = ""
    role: str = ""
    granted: tuple[str, str] = ("", "")
    # Instead of those: a rule that needs no membership, or what is missing.
    said: str = ""

    def __str__(self) -> str:
        if self.said:
            return self.said
        kind, verb = self.granted
        source = f"the role {self.role}" if self.role else "the policy"
        return f"{source} of the membership of {self.group} grants {verb} on {kind}"


def explain_access(
    user: User, roles: Mapping[str, Role], *, verb: str, kind: str, group: str = "", name: str = ""
) -> Ruling:
    """Whether `user` may do `verb` to a `kind`, and by which rule.

    `group`: where it is; nothing for kinds of the cluster. `name`: which one, for what everybody may do with his own.
    """
    if user.spec.HasField("active") and not user.spec.active:
        return Ruling(False, said=f"{user.metadata.name} is not active")
    wanted = canonical(verb)
    for membership in _memberships(user, kind, group):
        for role, policy in _grants(membership, roles):
            granted = _granting(policy, wanted, kind)
            if granted is not None:
                return Ruling(True, membership.name, role, granted)
    return _everybody(user, roles, wanted, kind, group, name) or Ruling(False, said=_missing(wanted, kind, group))


def may(user: User, roles: Mapping[str, Role], *, verb: str, kind: str, group: str = "", name: str = "") -> bool:
    """Whether `user` holds `verb` on `kind`; see `explain_access`."""
    return explain_access(user, roles, verb=verb, kind=kind, group=group, name=name).allowed


def _memberships(user: User, kind: str, group: str) -> Iterator[Membership]:
    """Those whose verbs count for a kind in a group. A kind that is in a group has none outside of it."""
    home = HOMES.get(kind, group)
    return (m for m in user.spec.groups if m.name == ALL or (m.name == home and home))


def _grants(membership: Membership, roles: Mapping[str, Role]) -> Iterator[tuple[str, Mapping[str, Verbs]]]:
    """(role, verbs by kind) of a membership: its own policy, then that of its role."""
    yield "", membership.policy
    role = roles.get(membership.role) if membership.role else None
    if role is not None:
        yield membership.role, role.spec.permission


def _granting(policy: Mapping[str, Verbs], wanted: str, kind: str) -> tuple[str, str] | None:
    """The kind and the verb of a policy that grant what is wanted."""
    for granted_kind, granted in policy.items():
        if _covers(granted_kind, kind):
            for held in granted.verbs:
                if held == ALL or canonical(held) == wanted:
                    return granted_kind, held
    return None


@lru_cache(maxsize=1024)
def _covers(granted: str, kind: str) -> bool:
    return granted == ALL or granted.lower() in (kind.lower(), PARTS.get(kind, kind).lower())


def _everybody(user: User, roles: Mapping[str, Role], wanted: str, kind: str, group: str, name: str) -> Ruling | None:
    """What needs no membership that grants it."""
    if wanted == "get" and kind in OPEN_KINDS:
        return Ruling(True, said=f"everybody may get {kind}")
    if kind in OWN_KINDS and name and _is_own(user, kind, name) and wanted in _own_verbs(kind):
        return Ruling(True, said=f"everybody may {wanted} his own {kind}")
    if wanted in SHARED_VERBS.get(kind, ()) and HOMES.get(kind, group) == SHARED:
        if not _spoken_of(user, roles, kind):
            return Ruling(True, said=f"{kind} is shared: everybody may {wanted}, as no membership of {SHARED} names it")
        return Ruling(False, said=f"the membership of {SHARED} names {kind}, and does not grant {wanted}")
    return None


def _is_own(user: User, kind: str, name: str) -> bool:
    if kind == "User":
        return name == user.metadata.name
    if kind == "Role":
        return any(m.role == name for m in user.spec.groups)
    return name == SHARED or any(m.name in (name, ALL) for m in user.spec.groups)


def _own_verbs(kind: str) -> frozenset[str]:
    return SELF_VERBS if kind == "User" else frozenset({"get"})


def _spoken_of(user: User, roles: Mapping[str, Role], kind: str) -> bool:
    """Whether a membership of pwm.resource says anything of a kind."""
    return any(
        _covers(granted, kind)
        for membership in user.spec.groups
        if membership.name == SHARED
        for _, policy in _grants(membership, roles)
        for granted in policy
    )


def _missing(wanted: str, kind: str, group: str) -> str:
    home = HOMES.get(kind, group)
    where = f"no membership of {home} or {ALL}" if home else f"no membership of {ALL}"
    return f"{where} grants {wanted} on {kind}"


@lru_cache(maxsize=1024)
def canonical(verb: str) -> str:
    """One spelling for all that mean the same."""
    lowered = verb.lower()
    return _SYNONYMS.get(lowered, lowered)


def default_group(user: User) -> str:
    """The group of documents and commands that name none: the first one a user is in by name."""
    return next((m.name for m in user.spec.groups if m.name not in (ALL, SHARED)), "users")


def permissions(user: User, roles: Mapping[str, Role]) -> list[tuple[str, str, list[str]]]:
    """(group, kind, verbs) of all that a user's memberships grant, each once, in the order of the groups."""
    granted: dict[tuple[str, str], list[str]] = {}
    for membership in user.spec.groups:
        for _, policy in _grants(membership, roles):
            for kind in sorted(policy):
                held = granted.setdefault((membership.name, kind), [])
                known = {canonical(verb) for verb in held}
                held += [verb for verb in policy[kind].verbs if canonical(verb) not in known]
    return [(group, kind, held) for (group, kind), held in granted.items() if held]
