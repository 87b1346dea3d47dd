"""Who may do what."""

import pytest

from pwm.api.v1.identity_pb2 import Role, RoleSpec, User, Verbs
from pwm.controlplane.core.authz import default_group, may


def user(*memberships: tuple[str, dict[str, list[str]], str], active: bool = True) -> User:
    made = User()
    made.spec.active = active
    for name, policy, role in memberships:
        made.spec.groups.add(name=name, policy={kind: Verbs(verbs=verbs) for kind, verbs in policy.items()}, role=role)
    return made


ROLES = {"viewer": Role(spec=RoleSpec(permission={"Workload": Verbs(verbs=["Get", "LOGS"])}))}


@pytest.mark.parametrize(
    ("memberships", "verb", "kind", "group", "allowed"),
    [
        ([("vision", {"Workload": ["apply"]}, "")], "apply", "Workload", "vision", True),
        ([("vision", {"Workload": ["apply"]}, "")], "apply", "Workload", "other", False),
        ([("vision", {"Workload": ["apply"]}, "")], "delete", "Workload", "vision", False),
        ([("vision", {"Workload": ["apply"]}, "")], "apply", "Volume", "vision", False),
        ([("vision", {"pwm.all": ["pwm.all"]}, "")], "delete", "Volume", "vision", True),
        ([("pwm.all", {"pwm.all": ["pwm.all"]}, "")], "shell", "Workload", "vision", True),
        ([("vision", {}, "viewer")], "get", "Workload", "vision", True),
        ([("vision", {}, "viewer")], "logs", "Workload", "vision", True),
        ([("vision", {}, "viewer")], "stop", "Workload", "vision", False),
        ([("vision", {}, "gone")], "get", "Workload", "vision", False),
        ([("vision", {"Workload": ["cancel"]}, "")], "stop", "Workload", "vision", True),
        ([("vision", {"workload": ["GetOne"]}, "")], "get", "Workload", "vision", True),
        ([("vision", {"Node": ["get"]}, "")], "get", "Node", "", True),
        ([], "get", "Workload", "vision", False),
    ],
)
def test_a_verb_comes_from_a_policy_or_a_role_of_the_group(
    memberships: list[tuple[str, dict[str, list[str]], str]], verb: str, kind: str, group: str, allowed: bool
) -> None:
    assert may(user(*memberships), ROLES, verb=verb, kind=kind, group=group) is allowed


def test_a_user_who_is_not_active_may_nothing() -> None:
    everything = ("pwm.all", {"pwm.all": ["pwm.all"]}, "")
    assert not may(user(everything, active=False), ROLES, verb="get", kind="Workload", group="vision")


def test_the_default_group_is_the_first_by_name() -> None:
    assert default_group(user(("pwm.all", {}, ""), ("vision", {}, ""))) == "vision"
    assert default_group(user()) == "users"
