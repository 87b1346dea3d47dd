"""Manifests as text, through the gateway: every document has its result, every problem its place, nobody waits."""

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from pwm.api.v1 import services_pb2 as api
from pwm.controlplane.auth import Authorizer, Principal
from pwm.controlplane.books import Books
from pwm.controlplane.bootstrap import ADMIN, Bootstrap
from pwm.controlplane.clock import Clock
from pwm.controlplane.core.credits import DEFAULT_POLICY
from pwm.controlplane.core.nodes import Contact
from pwm.controlplane.core.scheduling.cluster import Cluster
from pwm.controlplane.errors import ApiError
from pwm.controlplane.gateway import Gateway, HealthReport
from pwm.controlplane.queries import Queries
from pwm.controlplane.services import manifests
from pwm.controlplane.services.accounts import AccountReader
from pwm.controlplane.services.applying import Applier
from pwm.controlplane.services.joining import Joining
from pwm.controlplane.services.manifests import MAX_DOCUMENTS, locate, read_request
from pwm.controlplane.services.newest_events import NewestEvents
from pwm.controlplane.services.resources import ResourceService
from pwm.controlplane.services.secrets import SecretApplier
from pwm.controlplane.services.system import SystemService
from pwm.controlplane.treasury import Treasury
from tests.unit.controlplane.conftest import Plane

HELLO = """\
apiVersion: v1
kind: Workload
metadata: {name: hello}
spec:
  image: busybox
"""
WRONG = HELLO.replace("hello", "wrong") + "  config:\n    memroy: 4GiB\n  volumes:\n    - {name: a, target: data}\n"


@dataclass
class Server:
    session: aiohttp.ClientSession
    url: str

    async def ask(self, method: str, path: str, body: Any = None, *, key: str = "") -> tuple[int, Any]:
        data = io.BytesIO(json.dumps(body).encode()) if body is not None else None
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if key:
            headers["Idempotency-Key"] = key
        async with self.session.request(method, self.url + path, data=data, headers=headers) as answer:
            return answer.status, await answer.json()

    async def apply(self, *texts: str, key: str = "", **more: Any) -> list[dict[str, Any]]:
        """The results of these manifests."""
        body = {"manifests": [{"text": t} for t in texts], **more}
        status, answer = await self.ask("POST", "/v1/apply", body, key=key)
        assert status == 200, answer
        results: list[dict[str, Any]] = answer.get("results", [])
        return results


@pytest.fixture
async def server(plane: Plane) -> AsyncIterator[Server]:
    clock = Clock()
    await Bootstrap(view=plane.view, commands=plane.commands, clock=clock).run(
        admin_token_file=None, node_token_file=None
    )
    principal = Principal(user=plane.view.by_name("User", ADMIN))
    authorizer, cluster = Authorizer(plane.view), Cluster()
    treasury = Treasury(books=Books(view=plane.view, clock=clock, policy=DEFAULT_POLICY), view=plane.view)
    applier = Applier(
        view=plane.view,
        commands=plane.commands,
        cluster=cluster,
        authorizer=authorizer,
        secrets=SecretApplier(view=plane.view, secrets=plane.secrets),
        treasury=treasury,
        clock=clock,
        registries=("docker.io", "registry.lab"),
    )
    resources = ResourceService(
        view=plane.view,
        queries=Queries(view=plane.view, cluster=cluster, clock=clock, contact=lambda node: Contact(connected=True)),
        commands=plane.commands,
        applier=applier,
        authorizer=authorizer,
        clock=clock,
        stale_since_ms=lambda: 0,
        store_revision=plane.store.revision,
        observe_contact=lambda observer: None,
        newest_events=NewestEvents(plane.view, plane.store, lambda: plane.follower.changed_last),
    )

    async def authenticate(token: str | None, peer: str) -> Principal:
        return principal

    joining = Joining(
        view=plane.view, commands=plane.commands, clock=clock, credentials=None, memberships=None, replicas=lambda: ()
    )
    accounts = AccountReader(view=plane.view, cluster=cluster)
    by_name = api.DESCRIPTOR.services_by_name
    gateway = Gateway(
        services=[
            (by_name["ResourceService"], resources),
            (by_name["SystemService"], SystemService(clock, authorizer, joining, accounts, treasury)),
        ],
        authenticate=authenticate,
        authorize=authorizer.check_of,
        health=lambda: HealthReport(ready=True),
        registry=CollectorRegistry(),
        title="PWM",
        version="3.0.0",
        webui=Path("/nonexistent"),
    )
    port = await gateway.start("127.0.0.1", 0)
    try:
        async with aiohttp.ClientSession(headers={"Authorization": "Bearer pwm_admin"}) as session:
            yield Server(session, f"http://127.0.0.1:{port}")
    finally:
        await gateway.stop(0.2)


def where(part: dict[str, Any]) -> tuple[int, int]:
    return part.get("line", 0), part.get("column", 0)


def said(result: dict[str, Any]) -> list[tuple[tuple[int, int], str]]:
    return [(where(problem), problem["message"]) for problem in result.get("problems", [])]


async def test_problems_have_line_and_column(server: Server) -> None:
    good, wrong = await server.apply(f"# two documents\n{HELLO}---\n{WRONG}")
    assert (good["outcome"], good["name"], where(good)) == ("CREATED", "hello", (2, 1))
    assert (wrong["outcome"], wrong["name"], where(wrong)) == ("REFUSED", "wrong", (8, 1))
    assert said(wrong) == [
        ((14, 13), "spec.config has no field 'memroy'"),
        ((16, 25), "spec.volumes[0].target is 'data', but must be a path from / on without '..'"),
    ]
    assert wrong["problems"][0]["field"] == "spec.config.memroy"
    assert wrong["problems"][0]["nextStep"] == "did you mean memory?"


async def test_what_cannot_be_read_is_a_refused_document_among_the_others(server: Server) -> None:
    first, second, third = await server.apply(HELLO, "a: 1\na: 2\n", HELLO.replace("hello", "other"))
    assert (first["outcome"], third["outcome"]) == ("CREATED", "CREATED")
    assert [result.get("manifest", 0) for result in (first, second, third)] == [0, 1, 2]
    assert second == {
        "outcome": "REFUSED",
        "manifest": 1,
        "problems": [
            {
                "message": "'a' is there twice; the first is in line 1",
                "nextStep": "Remove one of them.",
                "code": 3,
                "line": 2,
                "column": 1,
            }
        ],
    }


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("a: [1\n", (1, 4), "not valid YAML: a bracket or brace is opened here and not closed"),
        ("\n\thello\n", (2, 1), "a tab; YAML is indented with spaces only"),
        ("hello\n", (1, 1), "a document is a mapping of fields, and this is plain text"),
        ("[" * 10_000, (1, 33), "nested deeper than 32 levels"),
        ("# long\na: " + "x" * 300 * 1024, (2, 1), "this document has 300 KiB, and 48 KiB is the most"),
        ("a: \x01\n", (1, 4), "the control character U+0001 is not allowed in YAML"),
    ],
)
async def test_bad_text_is_said_as_on_the_command_line(
    server: Server, text: str, place: tuple[int, int], message: str
) -> None:
    (result,) = await server.apply(text)
    assert result["outcome"] == "REFUSED"
    assert said(result) == [(place, message)]


async def test_lines_are_those_of_the_file_that_a_text_is_a_part_of(server: Server) -> None:
    _, answer = await server.ask("POST", "/v1/apply", {"manifests": [{"text": WRONG, "firstLine": 101}]})
    (result,) = answer["results"]
    assert (where(result), said(result)[0][0]) == ((101, 1), (107, 13))
    for line in (-1, 2**31 - 1):
        status, answer = await server.ask("POST", "/v1/apply", {"manifests": [{"text": WRONG, "firstLine": line}]})
        assert (status, answer["code"]) == (400, 3)
        assert "manifests[0].firstLine" in answer["message"]


async def test_a_list_has_a_result_for_each_of_its_documents(server: Server) -> None:
    documents = [json.dumps({"kind": "Workload", "metadata": {"name": name}, "spec": {"imag": "x"}}) for name in "ab"]
    results = await server.apply("[\n" + ",\n ".join(documents) + "\n]")
    assert [(result["name"], where(result)) for result in results] == [("a", (2, 1)), ("b", (3, 2))]
    assert [said(result)[0] for result in results] == [
        ((2, documents[0].index('"x"') + 1), "spec has no field 'imag'"),
        ((3, documents[1].index('"x"') + 2), "spec has no field 'imag'"),
    ]


async def test_documents_as_json_come_first_and_have_no_place(server: Server) -> None:
    document = {"kind": "Workload", "metadata": {"name": "json"}, "spec": {"imag": "x"}}
    first, second = await server.apply(HELLO, documents=[document])
    assert (first["name"], where(first), said(first)[0][0]) == ("json", (0, 0), (0, 0))
    assert (second["name"], where(second)) == ("hello", (1, 1))


async def test_a_warning_and_a_refusal_after_reading_have_places_too(server: Server) -> None:
    (result,) = await server.apply(HELLO + "  config:\n    startMode: strange\n")
    assert result["outcome"] == "CREATED"
    assert [(warning["field"], where(warning)) for warning in result["warnings"]] == [
        ("spec.config.startMode", (7, 16))
    ]
    (result,) = await server.apply(HELLO.replace("{name: hello}", "{name: a, group: nowhere}"))
    assert said(result) == [((3, 28), "there is no group nowhere")]


async def test_text_without_documents_has_no_results(server: Server) -> None:
    assert await server.apply("# nothing\n---\n", "", "null\n---\n~\n") == []


@pytest.mark.parametrize(
    "body",
    [
        {"manifests": [{"text": "---\n" * 2_000_000}]},
        {"manifests": [{"text": "\n...\n" * MAX_DOCUMENTS}]},
        {"manifests": [{"text": ""}] * (MAX_DOCUMENTS + 1)},
        {"manifests": [{"text": "[" + "{}," * (MAX_DOCUMENTS + 1) + "]"}]},
        {"manifests": [{"text": "[" + "{}," * 800 + "]"}] * 3},
        {"documents": [{}] * (MAX_DOCUMENTS + 1)},
    ],
    ids=["starts", "ends", "manifests", "a list", "several lists", "json"],
)
async def test_too_many_documents_are_refused_before_anything_is_done(server: Server, body: dict[str, Any]) -> None:
    status, answer = await server.ask("POST", "/v1/apply", body)
    assert (status, answer["message"]) == (400, "more than 2,000 documents")
    assert answer["details"][0]["nextStep"] == "send them in several requests"


async def test_a_json_document_far_over_the_limit_is_not_unpacked(server: Server) -> None:
    status, answer = await server.ask("POST", "/v1/apply", {"documents": [{"kind": "x" * 500_000}]})
    assert status == 200
    assert "far larger than the 48 KiB" in answer["results"][0]["problems"][0]["message"]


_PARTS = [
    "---\n",
    "...\n",
    "kind: Workload\n",
    "kind: ",
    "metadata: {name: a}\n",
    "a: 1\n",
    "spec:\n",
    "  image: x\n",
    "- ",
    "&a ",
    "*a",
    "[",
    "]",
    "{",
    "}",
    "'",
    '"',
    "\\ud800",
    "# c\n",
    "\r",
    "\u2028",
    "\0",
    "é",
    "<<: ",
    "  - {name: /etc}\n",
]


@given(st.lists(st.sampled_from(_PARTS), max_size=12).map("".join), st.integers(0, 2**30))
def test_no_text_gets_anything_but_results_with_places(text: str, first_line: int) -> None:
    async def answer() -> list[api.ApplyResult]:
        request = api.ApplyRequest(manifests=[api.Manifest(text=text, first_line=first_line)])
        readings = await read_request(request, group="users")
        results = [r.meaning if isinstance(r.meaning, api.ApplyResult) else api.ApplyResult() for r in readings]
        await locate(readings, results)
        return results

    lines = sum(text.count(sign) for sign in "\n\r\u2028") + 2
    for result in asyncio.run(answer()):
        assert all(problem.message for problem in result.problems)
        for part in (result, *result.problems) if result.line else result.problems:
            assert max(first_line, 1) <= part.line <= first_line + lines
            assert part.column >= 1


async def test_200_documents_of_the_greatest_size_hold_up_nobody(server: Server) -> None:
    """While they are read, and read again because all are wrong, others are answered."""
    variables = "".join(f"      VAR_{number}: 'value {number}'\n" for number in range(1_600))
    texts = [
        HELLO.replace("hello", f"large-{number}") + f"  config:\n    nonsense:\n{variables}" for number in range(200)
    ]
    assert 40_000 < len(texts[0]) < 48 * 1024
    pauses: list[float] = []

    async def look() -> None:
        while True:
            started = time.monotonic()
            status, _ = await server.ask("GET", "/v1/version")
            pauses.append(time.monotonic() - started)
            assert status == 200

    looking = asyncio.create_task(look())
    started = time.monotonic()
    try:
        results = await server.apply(*texts)
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
    took = time.monotonic() - started
    assert len(results) == 200
    assert {said(result)[0] for result in results} == {((7, 5), "spec.config has no field 'nonsense'")}
    assert len(pauses) > 20, f"answered {len(pauses)} times in {took:.1f} s"
    pauses.sort()
    assert pauses[len(pauses) // 2] < 0.1
    assert pauses[-1] < took / 4


async def test_2000_small_documents_let_others_take_turns() -> None:
    request = api.ApplyRequest(manifests=[api.Manifest(text=HELLO)] * MAX_DOCUMENTS)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count())
    readings = await read_request(request, group="users")
    counting.cancel()
    assert len(readings) == MAX_DOCUMENTS
    assert turns >= MAX_DOCUMENTS


async def test_the_number_of_documents_is_known_before_one_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def unread(*arguments: object) -> None:
        raise AssertionError("it was read")

    for name in ("cut", "read", "parse_document"):
        monkeypatch.setattr(manifests, name, unread)
    request = api.ApplyRequest(manifests=[api.Manifest(text="---\n" * 3_000)])
    with pytest.raises(ApiError, match="more than"):
        await read_request(request, group="users")


async def test_a_repeated_request_is_answered_as_it_was_and_undoes_nothing(server: Server) -> None:
    texts = HELLO, HELLO.replace("hello", "other"), WRONG
    first = await server.apply(*texts, key="k1")
    assert [result["outcome"] for result in first] == ["CREATED", "CREATED", "REFUSED"]
    assert await server.apply(*texts, key="k1") == first
    changed = HELLO + "  replica: {count: 3}\n"
    assert [result["outcome"] for result in await server.apply(changed, key="k2")] == ["SCALED"]
    assert await server.apply(*texts, key="k1") == first
    (again,) = await server.apply(changed, key="k3")
    assert again["outcome"] == "UNCHANGED"
    # A dry run answers of now, whatever was done under that key.
    (dry, *_) = await server.apply(changed, key="k1", dryRun=True)
    assert dry["outcome"] == "UNCHANGED"


async def test_a_dry_run_of_a_group_and_what_is_in_it_says_what_would_happen(server: Server) -> None:
    group = "kind: Group\nmetadata: {name: vision}\n"
    inside = HELLO.replace("{name: hello}", "{name: hello, group: vision}")
    assert [r["outcome"] for r in await server.apply(group, inside, dryRun=True)] == ["CREATED", "CREATED"]
    assert [r["outcome"] for r in await server.apply(inside, group, dryRun=True)] == ["REFUSED", "CREATED"]
    assert [r["outcome"] for r in await server.apply(inside, dryRun=True)] == ["REFUSED"]
    assert [r["outcome"] for r in await server.apply(group, inside)] == ["CREATED", "CREATED"]


async def test_what_users_have_set_for_themselves_stays_when_their_document_does_not_speak_of_it(
    server: Server, plane: Plane
) -> None:
    user = "kind: User\nmetadata: {name: zoe}\nspec: {groups: [{name: users}], notify: {on: [crashed]}}\n"
    silent = user.replace(", notify: {on: [crashed]}", "")
    await server.apply(user)
    assert [r["outcome"] for r in await server.apply(silent)] == ["UNCHANGED"]
    await server.apply(silent.replace("users", "admin"))
    zoe = plane.view.by_name("User", "zoe")
    assert ([m.name for m in zoe.spec.groups], list(zoe.spec.notify.on)) == (["admin"], ["crashed"])
    await server.apply(user.replace("crashed", "idle"))
    assert list(plane.view.by_name("User", "zoe").spec.notify.on) == ["idle"]


async def test_what_people_s_documents_name_in_vain_is_warned_of(server: Server) -> None:
    user = (
        "kind: User\nmetadata: {name: zoe}\nspec:\n  groups:\n    - {name: visoin, role: studnet}\n"
        "    - {name: pwm.all}\n  limits: {resources: {nodes: {deny: [gpu99, pwm.all]}}}\n"
    )
    group = "kind: Group\nmetadata: {name: vision}\n"
    role = "kind: Role\nmetadata: {name: student}\nspec: {permission: pwm.all}\n"
    warned = (await server.apply(user, group, role, dryRun=True))[0]["warnings"]
    assert [(w["message"], w["nextStep"], w["line"], w["column"]) for w in warned] == [
        ("there is no Group visoin", "did you mean vision?", 5, 14),
        ("there is no Role studnet", "did you mean student?", 5, 28),
        ("no node is called gpu99", "it counts as soon as there is one", 7, 39),
    ]
    right = user.replace("visoin", "vision").replace("studnet", "student").replace("gpu99, ", "")
    assert "warnings" not in (await server.apply(right, group, role))[0]


async def test_a_group_with_members_is_not_deleted(server: Server) -> None:
    await server.apply("kind: Group\nmetadata: {name: vision}\n",
                       "kind: User\nmetadata: {name: zoe}\nspec: {groups: [{name: vision}]}\n")  # fmt: skip
    status, answer = await server.ask("DELETE", "/v1/resources/Group/vision")
    assert (status, answer["message"]) == (400, "Group vision is in use by User zoe")
    assert (await server.ask("DELETE", "/v1/resources/User/zoe"))[0] == 200
    assert (await server.ask("DELETE", "/v1/resources/Group/vision"))[0] == 200


async def test_an_image_of_a_registry_that_is_not_allowed_is_refused_where_it_is_named(server: Server) -> None:
    document = "apiVersion: v1\nkind: Workload\nmetadata: {name: NAME}\nspec: {image: IMAGE}\n"
    images = {"hub": "ubuntu:24.04", "lab": "registry.lab/team/x", "inside": "10.0.0.1:5000/x", "else": "ghcr.io/x/y"}
    texts = [document.replace("NAME", name).replace("IMAGE", image) for name, image in images.items()]
    results = {result["name"]: result for result in await server.apply("---\n".join(texts))}
    assert [results[name]["outcome"] for name in images] == ["CREATED", "CREATED", "REFUSED", "REFUSED"]
    problem = results["else"]["problems"][0]
    assert problem["message"] == "images of ghcr.io may not be used here"
    assert (problem["line"], problem["nextStep"]) == (19, "images may come from docker.io, registry.lab")
