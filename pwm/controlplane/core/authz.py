"""Who may do what: one pure function that every call, every item of a list and every stream goes through.

A user has verbs in groups, inline by policy or through a role. `pwm.all` stands for every group, kind or
verb. Verbs are compared without case; `cancel` and `stop`, `unpause` and `resume` are one verb each.
"""

from collections.abc import Mapping

from pwm.api.v1.identity_pb2 import Role, User, Verbs

ALL = "pwm.all"
# Kinds that belong to the cluster: a verb on them may come from any of the user's memberships.
CLUSTER_KINDS = frozenset({"Cluster", "Zone", "Node", "Group", "User", "Role", "ResourceCredit", "GPU", "CPU", "Token"})

_SYNONYMS = {"cancel": "stop", "unpause": "resume", "getone": "get", "describe": "get"}


def may(user: User, roles: Mapping[str, Role], *, verb: str, kind: str, group: str = "") -> bool:
    """Whether `user` holds `verb` on `kind` in `group` (empty: a kind of the cluster)."""
    if user.spec.HasField("active") and not user.spec.active:
        return False
    for membership in user.spec.groups:
        if group and kind not in CLUSTER_KINDS and membership.name not in (group, ALL):
            continue
        if _grants(membership.policy, verb, kind):
            return True
        role = roles.get(membership.role)
        if role is not None and _grants(role.spec.permission, verb, kind):
            return True
    return False


def _grants(policy: Mapping[str, Verbs], verb: str, kind: str) -> bool:
    wanted = _canonical(verb)
    for granted_kind, granted in policy.items():
        if granted_kind == ALL or granted_kind.lower() == kind.lower():
            for held in granted.verbs:
                if held == ALL or _canonical(held) == wanted:
                    return True
    return False


def _canonical(verb: str) -> str:
    lowered = verb.lower()
    return _SYNONYMS.get(lowered, lowered)


def default_group(user: User) -> str:
    """The group of documents and commands that name none: the first one a user is in by name."""
    return next((m.name for m in user.spec.groups if m.name != ALL), "users")
