"""Who may do what."""

import pytest

from pwm.api.v1.identity_pb2 import Role, RoleSpec, User, Verbs
from pwm.controlplane.core.authz import CLUSTER_KINDS, Ruling, default_group, explain_access, may, permissions


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
    assert default_group(user(("pwm.all", {}, ""), ("pwm.resource", {}, ""), ("vision", {}, ""))) == "vision"
    assert default_group(user()) == "users"


EVERYTHING = {"pwm.all": ["pwm.all"]}


@pytest.mark.parametrize("kind", sorted(CLUSTER_KINDS))
@pytest.mark.parametrize("verb", ["apply", "delete", "token", "stop", "validate"])
def test_everything_in_an_ordinary_group_is_nothing_in_the_cluster(kind: str, verb: str) -> None:
    owner = user(("vision", EVERYTHING, ""), ("users", {}, "viewer"))
    for group in ("", "vision"):
        assert not may(owner, ROLES, verb=verb, kind=kind, group=group)


@pytest.mark.parametrize("kind", sorted(CLUSTER_KINDS))
def test_kinds_of_the_cluster_are_for_members_of_their_home_and_of_everything(kind: str) -> None:
    home = "pwm.resource" if kind in ("Node", "GPU", "CPU", "Storage") else "admin"
    for group in ("admin", "pwm.resource", "pwm.all"):
        allowed = may(user((group, EVERYTHING, "")), {}, verb="apply", kind=kind)
        assert allowed is (group in (home, "pwm.all"))


@pytest.mark.parametrize("kind", ["User", "Role", "Cluster", "Token"])
def test_who_is_a_member_of_nothing_sees_nobody_else(kind: str) -> None:
    assert not may(user(), {}, verb="get", kind=kind)
    assert not may(user(), {}, verb="get", kind=kind, name="somebody")


@pytest.mark.parametrize("kind", ["Node", "GPU", "CPU", "Zone", "Storage", "ResourceCredit"])
def test_everybody_sees_machines_and_prices(kind: str) -> None:
    assert may(user(), {}, verb="get", kind=kind)
    assert not may(user(), {}, verb="apply", kind=kind)


def test_everybody_sees_himself_his_roles_and_his_groups() -> None:
    ann = user(("vision", {}, "viewer"))
    ann.metadata.name = "ann"
    for kind, own, other in (("User", "ann", "bob"), ("Role", "viewer", "admin"), ("Group", "vision", "secret")):
        assert may(ann, ROLES, verb="getOne", kind=kind, name=own)
        assert not may(ann, ROLES, verb="get", kind=kind, name=other)
        assert not may(ann, ROLES, verb="get", kind=kind)
        assert not may(ann, ROLES, verb="apply", kind=kind, name=own)
    assert may(ann, ROLES, verb="token", kind="User", name="ann")
    assert may(ann, ROLES, verb="get", kind="Group", name="pwm.resource")
    assert may(user(("pwm.all", {}, "viewer")), ROLES, verb="get", kind="Group", name="secret")


@pytest.mark.parametrize(("kind", "group"), [("Node", ""), ("Storage", ""), ("Volume", "pwm.resource")])
def test_what_is_shared_is_for_everybody_until_a_membership_of_it_speaks_of_the_kind(kind: str, group: str) -> None:
    def may_use(*memberships: tuple[str, dict[str, list[str]], str]) -> bool:
        return may(user(*memberships), {"none": Role(spec=RoleSpec(permission={kind: Verbs()}))}, verb="use", kind=kind,
                   group=group)  # fmt: skip

    assert may_use()
    assert may_use(("vision", {kind: ["get"]}, ""))
    assert may_use(("pwm.resource", {"Secret": ["get"]}, ""))
    assert may_use(("pwm.resource", {kind: ["USE"]}, ""))
    assert not may_use(("pwm.resource", {kind: ["get"]}, ""))
    assert not may_use(("pwm.resource", {kind: []}, ""))
    assert not may_use(("pwm.resource", {}, "none"))
    assert not may_use(("pwm.resource", {"pwm.all": ["get"]}, ""))
    assert may_use(("pwm.resource", {kind: []}, ""), ("pwm.all", {kind: ["use"]}, ""))


def test_a_volume_of_another_group_is_not_shared() -> None:
    assert not may(user(), {}, verb="use", kind="Volume", group="vision")
    assert not may(user(), {}, verb="apply", kind="Volume", group="pwm.resource")


def test_a_kind_of_a_group_is_nowhere_without_one() -> None:
    assert not may(user(("vision", EVERYTHING, "")), {}, verb="get", kind="Workload", group="")
    assert may(user(("pwm.all", EVERYTHING, "")), {}, verb="get", kind="Workload", group="")


def test_containers_binds_and_events_go_with_workloads() -> None:
    ann = user(("vision", {"Workload": ["get"]}, ""))
    for kind in ("Container", "Bind", "Event"):
        assert may(ann, {}, verb="get", kind=kind, group="vision")
        assert not may(ann, {}, verb="get", kind=kind, group="other")
    assert not may(user(("vision", {"Container": ["get"]}, "")), {}, verb="get", kind="Workload", group="vision")


def test_a_ruling_says_by_which_rule() -> None:
    ann = user(("vision", {"Workload": ["cancel"]}, "viewer"), ("pwm.resource", {"Node": ["get"]}, ""))

    def said(verb: str, kind: str, group: str = "", name: str = "") -> str:
        ruling: Ruling = explain_access(ann, ROLES, verb=verb, kind=kind, group=group, name=name)
        return f"{'yes' if ruling.allowed else 'no'}: {ruling}"

    assert said("stop", "Workload", "vision") == "yes: the policy of the membership of vision grants cancel on Workload"
    assert said("logs", "Container", "vision") == (
        "yes: the role viewer of the membership of vision grants LOGS on Workload"
    )
    assert said("shell", "Workload", "vision") == "no: no membership of vision or pwm.all grants shell on Workload"
    assert said("apply", "User") == "no: no membership of admin or pwm.all grants apply on User"
    assert said("get", "Zone") == "yes: everybody may get Zone"
    assert said("use", "Node") == "no: the membership of pwm.resource names Node, and does not grant use"
    assert said("use", "Storage") == (
        "yes: Storage is shared: everybody may use, as no membership of pwm.resource names it"
    )


def test_permissions_are_what_policies_and_roles_grant_together() -> None:
    ann = user(("vision", {"Workload": ["get", "apply"], "Volume": []}, "viewer"), ("audio", {}, "gone"))
    assert permissions(ann, ROLES) == [("vision", "Workload", ["get", "apply", "LOGS"])]
