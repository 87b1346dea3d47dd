"""Every rpc, called by everybody about everything: who is let in, and what they can read out of the answer.

The cells come from the descriptors: each rpc, for each kind that it can be asked about, in the caller's own group, in
another one and about the cluster. What is expected comes from two tables here, which share nothing with the rules: the
verb that each rpc needs, and what each caller has been given. An rpc that is in no table fails.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from google.api import annotations_pb2
from google.protobuf.descriptor import MethodDescriptor

from pwm.api.v1 import agent_pb2, peer_pb2, services_pb2
from pwm.api.v1.access_pb2 import access
from pwm.controlplane.servicers import servicers
from tests.unit.access.world import CALLERS, HIDDEN, NOWHERE, OTHER, OWN, STRANGERS, Answer, a_world

PUBLIC, ANYBODY, BY_KIND = "public", "anybody", "by kind"
# The verb that each rpc needs, and on which kind.
NEEDS: dict[str, tuple[str, str]] = {
    "SystemService.GetVersion": (PUBLIC, ""),
    "SystemService.GetAuthorities": (PUBLIC, ""),
    "SystemService.Join": (PUBLIC, ""),
    "SystemService.WhoAmI": (ANYBODY, ""),
    "ResourceService.Apply": (ANYBODY, ""),
    "ResourceService.Get": ("get", BY_KIND),
    "ResourceService.List": ("get", BY_KIND),
    "ResourceService.Watch": ("get", BY_KIND),
    "ResourceService.Delete": ("delete", BY_KIND),
    "WorkloadService.Stop": ("stop", "Workload"),
    "WorkloadService.Scale": ("apply", "Workload"),
    "WorkloadService.Restart": ("apply", "Workload"),
    "WorkloadService.Keep": ("apply", "Workload"),
    "WorkloadService.Why": ("get", "Workload"),
    "WorkloadService.Logs": ("logs", "Workload"),
    "WorkloadService.CreateExecTicket": ("shell", "Workload"),
    "WorkloadService.Exec": ("shell", "Workload"),
    "WorkloadService.Inspect": ("inspect", "Workload"),
    "WorkloadService.Processes": ("top", "Workload"),
    "UsageService.Top": (ANYBODY, ""),
    "EventService.ListEvents": (ANYBODY, ""),
    "EventService.ListAudit": (ANYBODY, ""),
    "EventService.StreamAudit": (ANYBODY, ""),
    "TokenService.CreateToken": ("token", "User"),
    "TokenService.ListTokens": ("token", "User"),
    "TokenService.RevokeTokens": ("token", "User"),
    "LoginService.GetProvider": (PUBLIC, ""),
    "LoginService.BeginLogin": (PUBLIC, ""),
    "LoginService.CompleteLogin": (PUBLIC, ""),
    "CreditService.GetCredits": ("get", "User"),
    "CreditService.GetGroupCredits": ("get", "Credit"),
    "CreditService.GetReport": (ANYBODY, ""),
    "CreditService.ExplainReport": (ANYBODY, ""),
    "LimitService.GetLimits": ("get", "User"),
    "LimitService.GetGroupLimits": ("get", "Group"),
    "NoticeService.GetNotices": (ANYBODY, ""),
    "NoticeService.SetNotices": (ANYBODY, ""),
    "AdminService.Can": ("get", "User"),
    "AdminService.GetStatus": ("get", "Cluster"),
    "AdminService.Verify": ("validate", "Cluster"),
    "AdminService.ConfirmDead": ("apply", "Node"),
    "AdminService.Drill": ("apply", "Cluster"),
    "AdminService.AcceptRestore": ("apply", "Cluster"),
    "AdminService.CreateNodeToken": ("token", "Node"),
    "AdminService.CreateJoinToken": ("token", "Node"),
    "AdminService.ListNodeCredentials": ("token", "Node"),
    "AdminService.RevokeNodeCredentials": ("token", "Node"),
    "AdminService.RotateAuthority": ("apply", "Cluster"),
}
WORK = ("Workload", "Container", "Bind", "Event")
THINGS = ("Volume", "Secret")
# Of a group, and no resource.
FIGURES = ("Credit",)
MACHINES = ("Node", "GPU", "CPU", "Storage")
PEOPLE = ("Zone", "Group", "User", "Role", "ResourceCredit", "Cluster")
KINDS = (*WORK, *THINGS, *MACHINES, *PEOPLE[:-1])
# What each caller has been given: verbs on work and on things in the own group, the same in the other one, then verbs
# on machines and on people. `*`: all.
GIVEN: dict[str, tuple[str, str, str, str, str, str]] = {
    "member": ("get apply stop logs", "", "", "", "", ""),
    "owner": ("*", "*", "", "", "", ""),
    "reader": ("*", "*", "get", "", "", ""),
    "keeper": ("", "", "", "", "*", ""),
    "steward": ("", "", "", "", "", "*"),
    "admin": ("*", "*", "*", "*", "*", "*"),
    "stranger": ("", "", "", "", "", ""),
}
# Beside that, everybody may get these of the cluster, and his own of the others.
OPEN = (*MACHINES, "Zone", "ResourceCredit")
OWN_ONE = {"User": "{caller}", "Role": "watcher", "Group": OWN}

NAMES = {
    "Workload": ("ownwkl", HIDDEN["workload"]),
    "Container": ("ownwkl.0.1", f"{HIDDEN['workload']}.0.1"),
    "Bind": (f"Group:{OWN}:Workload:ownwkl", f"Group:{OTHER}:Workload:{HIDDEN['workload']}"),
    "Volume": ("ownvol", HIDDEN["volume"]),
    "Secret": ("ownsec", HIDDEN["secret"]),
    "User": ("{caller}", HIDDEN["user"]),
    "Role": ("everything", HIDDEN["role"]),
    "Group": (OWN, OTHER),
    "Node": ("n1", "n1"),
    "GPU": ("n1-0", "n1-1"),
    "CPU": ("n1", "n1"),
    "Storage": ("nas", "nas"),
    "Zone": ("spare-zone", "default"),
    "ResourceCredit": ("A100", "A100"),
}
# Of these rpcs an answer says that the caller was let in, whatever it is: no agent is connected, nothing is in doubt,
# no other replica is there, what is to be deleted is in use, who joins shows no key, there is no provider to log in at,
# and authorities are limited.
MAY_FAIL = {
    "WorkloadService.Logs", "TokenService.RevokeTokens", "AdminService.AcceptRestore", "AdminService.Drill",
    "ResourceService.Delete", "SystemService.Join", "AdminService.RotateAuthority",
    "LoginService.BeginLogin", "LoginService.CompleteLogin",
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One rpc about one thing. `hidden`: it names what belongs to others."""

    rpc: str
    method: str
    path: str
    query: tuple[tuple[str, str], ...]
    body: Any
    verb: str
    kind: str
    group: str
    hidden: bool
    filtered: bool

    def request(self, caller: str) -> dict[str, Any]:
        def fill(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: fill(part) for key, part in value.items()}
            if isinstance(value, list):
                return [fill(part) for part in value]
            return value.replace("{caller}", caller) if isinstance(value, str) else value

        return {"path": fill(self.path), "query": [(k, fill(v)) for k, v in self.query], "body": fill(self.body)}


def rpcs() -> Iterator[tuple[str, MethodDescriptor]]:
    for service in services_pb2.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            yield f"{service.name}.{method.name}", method


def cells() -> list[Cell]:
    made: list[Cell] = []
    for rpc, method in rpcs():
        if rpc not in NEEDS or method.client_streaming:
            continue
        verb, kind = NEEDS[rpc]
        for each in KINDS if kind == BY_KIND else (kind,):
            made += [
                _cell(rpc, method, verb, each, hidden=hidden, everywhere=everywhere)
                for hidden in (False, True)
                for everywhere in ((False, True) if "all_groups" in method.input_type.fields_by_name else (False,))
            ]
    # What changes something comes last, and last of all that the caller deletes himself.
    return sorted(made, key=lambda c: (c.method != "GET", c.method == "DELETE", c.kind == "User" and not c.hidden))


def _cell(rpc: str, method: MethodDescriptor, verb: str, kind: str, *, hidden: bool, everywhere: bool) -> Cell:
    rule = method.GetOptions().Extensions[annotations_pb2.http]
    way = rule.WhichOneof("pattern")
    path, fields = getattr(rule, way), method.input_type.fields_by_name
    name = NAMES.get(kind or "Workload", ("nothing", "nothing"))[hidden]
    group = OTHER if hidden else OWN
    about: dict[str, Any] = {
        "kind": kind or "Workload",
        "name": name,
        "group": group,
        "node": "n1",
        "user": NAMES["User"][hidden],
        "workload": NAMES["Workload"][hidden] if rpc == "UsageService.Top" and not everywhere else "",
        "verb": "get",
        "names": ["nothing-of-that-name"] if rpc.startswith("Token") else [],
        "role": "zone/default",
        "all_groups": everywhere,
        "format": "",
    }
    if rpc == "ResourceService.Apply":
        about = {"documents": [document(kind_, hidden=hidden) for kind_ in DOCUMENTS], "dry_run": True}
    given = {key: value for key, value in about.items() if key in fields and value not in ("", [], False)}
    for key in re.findall(r"\{(\w+)\}", path):
        path = path.replace(f"{{{key}}}", str(given.pop(key)).replace(":", "%3A"))
    query = () if rule.body else tuple((key, str(value).lower() if value is True else value) for key, value in
                                       given.items())  # fmt: skip
    in_group = kind in (*WORK, *THINGS, *FIGURES)
    return Cell(
        rpc=rpc,
        method=way.upper(),
        path=path,
        query=query,
        body=given if rule.body else None,
        verb=verb,
        kind=kind,
        group=group if in_group else "",
        hidden=hidden,
        filtered=rpc in ("ResourceService.List", "ResourceService.Watch")
        and (kind in OWN_ONE or (everywhere and in_group)),
    )


DOCUMENTS = ("Workload", "Volume", "Node", "Zone", "Group", "User", "Role", "Storage", "ResourceCredit")


def document(kind: str, *, hidden: bool, group: str = "") -> dict[str, Any]:
    metadata = {"name": {"Zone": "default"}.get(kind, NAMES[kind][hidden].replace("{caller}", "member"))}
    if kind in ("Workload", "Volume"):
        metadata["group"] = group or (OTHER if hidden else OWN)
    spec: dict[str, Any] = {
        "Workload": {"image": "busybox"},
        "Volume": {"storage": "nas"},
        "ResourceCredit": {"credit": {"per": {"hour": 1}}},
        "Storage": {"kind": "nfs", "nfs": {"server": "s", "path": "/p"}},
    }.get(kind, {})
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, "spec": spec}


# ---- what is expected


def holds(caller: str, verb: str, kind: str, group: str) -> bool:
    work, things, other_work, other_things, machines, people = (part.split() for part in GIVEN[caller])
    if kind in WORK:
        held = other_work if group == OTHER else work
    elif kind in (*THINGS, *FIGURES):
        held = other_things if group == OTHER else things
    else:
        held = machines if kind in MACHINES else people
    return "*" in held or verb in held


def expected(caller: str, cell: Cell) -> bool:
    if cell.verb == PUBLIC:
        return True
    if caller in STRANGERS:
        return False
    if cell.rpc == "UsageService.Top":
        asks_for_one = ("workload", NAMES["Workload"][cell.hidden]) in cell.query
        return not asks_for_one or holds(caller, "top", "Workload", OTHER if cell.hidden else OWN)
    if cell.verb == ANYBODY or cell.filtered or holds(caller, cell.verb, cell.kind, cell.group):
        return True
    if cell.verb == "get" and cell.kind in OPEN:
        return True
    if cell.kind == "Group":
        return cell.verb == "get" and (OTHER if cell.hidden else OWN) in CALLERS[caller]
    return cell.kind == "User" and not cell.hidden and cell.verb in ("get", "token")


def unspeakable(caller: str) -> list[str]:
    """Names that no answer may have in it, unless the caller said them first."""
    names = []
    sees_people = caller not in STRANGERS and holds(caller, "get", "User", "")
    in_other = caller not in STRANGERS and holds(caller, "get", "Workload", OTHER)
    if not in_other:
        names.append(HIDDEN["workload"])
    if not in_other and not sees_people:
        names.append(OTHER)
    if caller in STRANGERS or not holds(caller, "get", "Volume", OTHER):
        names += [HIDDEN["volume"], HIDDEN["secret"]]
    if not sees_people:
        names += [HIDDEN["user"], HIDDEN["role"]]
    return names


def of_nothing(part: Any) -> Any:
    """The same about what there is nothing of."""
    if isinstance(part, dict):
        return {key: of_nothing(value) for key, value in part.items()}
    if isinstance(part, list | tuple):
        return [of_nothing(value) for value in part]
    if isinstance(part, str):
        for what, name in HIDDEN.items():
            part = part.replace(name, NOWHERE[what])
    return part


# ---- the tests


def test_every_rpc_of_the_api_has_a_rule_here_and_in_its_descriptor() -> None:
    assert dict(rpcs()).keys() == NEEDS.keys()
    for service in (d for m in (services_pb2, agent_pb2, peer_pb2) for d in m.DESCRIPTOR.services_by_name.values()):
        for method in service.methods:
            assert method.GetOptions().HasExtension(access), f"{service.name}.{method.name} has no access option"


async def test_nothing_that_is_for_agents_and_replicas_has_a_route() -> None:
    async with a_world() as world:
        offered = {descriptor.name for descriptor, _ in servicers(world.plane)}
    assert offered == set(services_pb2.DESCRIPTOR.services_by_name)


@pytest.mark.parametrize("caller", [*CALLERS, *STRANGERS])
async def test_each_caller_is_let_in_where_it_may_and_reads_nothing_of_others(caller: str) -> None:
    wrong: list[str] = []
    seen = 0
    async with a_world() as world:
        for cell in cells():
            request = cell.request(caller)
            where = f"{cell.rpc} {cell.kind} {request['path']} {dict(request['query'])} {cell.body or ''}"
            twin = None
            if cell.hidden and not expected(caller, cell):
                twin = await world.ask(caller, cell.method, **{key: of_nothing(part) for key, part in request.items()})
            answer = await world.ask(caller, cell.method, **request)
            seen += 1
            wrong += [f"{where}: {complaint}" for complaint in complaints(caller, cell, answer, twin)]
    assert seen > 150
    assert not wrong, "\n".join(wrong)


def complaints(caller: str, cell: Cell, answer: Answer, twin: Answer | None) -> Iterator[str]:
    allowed = expected(caller, cell)
    refusal = 401 if caller in STRANGERS else 403
    may_fail = cell.rpc in MAY_FAIL or (cell.rpc, cell.kind) == ("ResourceService.Get", "Event")
    if allowed and answer.status != 200 and not (may_fail and answer.status in (400, 404, 409, 503)):
        yield f"is refused with {answer.status}: {answer.body[:200]!r}"
    if not allowed and answer.status != refusal:
        yield f"is answered with {answer.status} instead of {refusal}: {answer.body[:200]!r}"
    text = answer.body.decode()
    said = f"{cell.path} {cell.query} {cell.body}"
    leaked = [name for name in unspeakable(caller) if name in text and name not in said]
    if leaked:
        yield f"tells of {leaked}: {text[:300]}"
    if twin is not None and (twin.status, twin.body.decode()) != (answer.status, of_nothing(text)):
        yield f"is answered as {twin.body[:200]!r} when there is no such thing, and now {text[:200]!r}"


@pytest.mark.parametrize("caller", CALLERS)
async def test_a_document_is_applied_by_who_may_apply_its_kind_and_by_nobody_else(caller: str) -> None:
    async with a_world() as world:
        for hidden in (False, True):
            documents = [document(kind, hidden=hidden) for kind in DOCUMENTS]
            answer = await world.ask(caller, "POST", "/v1/apply", body={"documents": documents, "dryRun": True})
            results = answer.json["results"]
            for kind, result in zip(DOCUMENTS, results, strict=True):
                group = OTHER if hidden else OWN
                refused = any(problem["code"] == 7 for problem in result.get("problems", ()))
                assert refused is not holds(caller, "apply", kind, group), (kind, hidden, result)
            twin = await world.ask(
                caller, "POST", "/v1/apply", body={"documents": of_nothing(documents), "dryRun": True}
            )
            for kind, result, other in zip(DOCUMENTS, results, twin.json["results"], strict=True):
                if not holds(caller, "apply", kind, OTHER if hidden else OWN):
                    assert of_nothing(result) == other


async def test_nobody_gives_himself_what_he_has_not() -> None:
    async with a_world() as world:
        for caller in ("member", "owner", "reader", "keeper", "stranger"):
            grab = {
                "kind": "User",
                "metadata": {"name": caller},
                "spec": {"groups": [{"name": "pwm.all", "policy": "pwm.all"}]},
            }
            role = {"kind": "Role", "metadata": {"name": "watcher"}, "spec": {"permission": "pwm.all"}}
            answer = await world.ask(caller, "POST", "/v1/apply", body={"documents": [grab, role]})
            assert [r["outcome"] for r in answer.json["results"]] == ["REFUSED", "REFUSED"]
            assert (await world.ask(caller, "GET", "/v1/admin/status")).status == 403


async def test_who_is_let_in_sees_what_is_his() -> None:
    """Else all of this could pass with everything hidden from everybody."""
    async with a_world() as world:
        for caller, shown in {
            "member": {"Workload": "ownwkl", "Container": "ownwkl.0.1", "Bind": "ownwkl", "Event": "ownwkl"},
            "owner": {"Workload": "ownwkl", "Volume": "ownvol", "GPU": f"{OWN}/ownwkl.0.1"},
            "reader": {"Workload": HIDDEN["workload"], "GPU": f"{OTHER}/{HIDDEN['workload']}.0.1", "Group": OTHER},
            "steward": {"User": HIDDEN["user"], "Role": HIDDEN["role"], "Group": OTHER},
            "admin": {"Volume": HIDDEN["volume"], "Event": HIDDEN["user"], "User": HIDDEN["user"]},
            "stranger": {"User": "stranger", "Node": "n1", "Storage": "nas", "Group": "pwm.resource"},
        }.items():
            for kind, name in shown.items():
                for way in ("resources", "watch"):
                    query = {"all_groups": "true"}
                    answer = await world.ask(caller, "GET", f"/v1/{way}/{kind}", query=query)
                    assert name in answer.body.decode(), (caller, way, kind)
        volumes = await world.ask("stranger", "GET", "/v1/resources/Volume", query={"group": "pwm.resource"})
        assert "dataset" in volumes.body.decode()
