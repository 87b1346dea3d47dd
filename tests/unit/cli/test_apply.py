"""Each document gets its line and its reason; the exit code is that of the worst."""

import json
from pathlib import Path
from typing import Any

import pytest

from pwm.manifest.cutting import ManifestError, cut
from pwm.manifest.documents import read_all
from tests.unit.cli.conftest import FakeServer, Pwm, Request, Stream

HELLO = """\
apiVersion: v1
kind: Workload
metadata: {name: hello}
spec:
  image: busybox
  config:
    memroy: 4GiB
  volumes:
    - {name: home, target: home}
"""


def _result(outcome: str, name: str = "hello", **more: Any) -> dict[str, Any]:
    return {"outcome": outcome, "kind": "Workload", "name": name, "group": "lab", **more}


def _problem(message: str, at: tuple[int, int] = (1, 1), *, code: int = 3, next_step: str = "") -> dict[str, Any]:
    return {"message": message, "nextStep": next_step, "code": code, "line": at[0], "column": at[1]}


def _read(request: Request) -> dict[str, Any]:
    """As the server does: a result for each document of each manifest."""
    results: list[dict[str, Any]] = []
    for index, manifest in enumerate(request.body["manifests"]):
        for document in read_all(cut(manifest["text"], first_line=manifest["firstLine"])):
            if isinstance(document, ManifestError):
                place = (document.place.line, document.place.column)
                problem = _problem(document.message, place, next_step=document.next_step)
                results.append({"outcome": "REFUSED", "problems": [problem], "manifest": index})
            else:
                start = {"line": document.start.line, "column": document.start.column}
                name = {"name": document.name} if document.name else {}
                results.append({"outcome": "CREATED", "kind": document.kind, "manifest": index, **name, **start})
    return {"results": results, "revision": "9"}


def _workload(phase: str, name: str = "hello", **status: Any) -> dict[str, Any]:
    metadata = {"name": name, "group": "lab", "uid": name}
    return {"kind": "Workload", "metadata": metadata, "status": {"phase": phase, **status}}


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "hello.yaml"
    path.write_text(HELLO)
    return path


@pytest.mark.parametrize("outcome", ["CREATED", "CONFIGURED", "SCALED", "UNCHANGED"])
def test_what_became_of_a_document_is_one_line(server: FakeServer, pwm: Pwm, manifest: Path, outcome: str) -> None:
    server.on("POST", "/v1/apply", {"results": [_result(outcome)]})
    result = pwm("apply", "-f", manifest)
    assert (result.code, result.out, result.err) == (0, f"Workload/hello {outcome.lower()}\n", "")
    assert server.requests[0].body == {"manifests": [{"text": HELLO, "firstLine": 1}]}


def test_a_refusal_says_where_in_the_file_and_what_to_do(server: FakeServer, pwm: Pwm, manifest: Path) -> None:
    problems = [
        _problem("there is no field memroy", (7, 13), next_step="did you mean memory?"),
        _problem("a target is an absolute path", (9, 28)),
        _problem("there is no group", (3, 1)),
    ]
    warnings = [_problem("has no tag", (5, 10))]
    server.on("POST", "/v1/apply", {"results": [_result("REFUSED", problems=problems, warnings=warnings)]})
    result = pwm("apply", "-f", manifest)
    assert (result.code, result.out) == (1, "Workload/hello refused\n")
    assert result.err == (
        f"error: {manifest}:7:13: there is no field memroy\n  did you mean memory?\n"
        f"error: {manifest}:9:28: a target is an absolute path\n"
        f"error: {manifest}:3:1: there is no group\n"
        f"warning: {manifest}:5:10: has no tag\n"
    )


@pytest.mark.parametrize(
    ("codes", "exit_code"),
    [([3], 1), ([9], 1), ([5], 3), ([6], 4), ([10], 4), ([7], 5), ([8], 5), ([3, 7], 5), ([0], 1), ([], 1)],
)
def test_the_exit_code_is_that_of_the_worst_refusal(
    server: FakeServer, pwm: Pwm, manifest: Path, codes: list[int], exit_code: int
) -> None:
    refused = _result("REFUSED", problems=[_problem("no", code=code) for code in codes])
    server.on("POST", "/v1/apply", {"results": [refused]})
    assert pwm("apply", "-f", manifest).code == exit_code


def test_bad_documents_do_not_hold_up_good_ones(server: FakeServer, pwm: Pwm, tmp_path: Path) -> None:
    server.on("POST", "/v1/apply", _read)
    path = tmp_path / "mixed.yaml"
    path.write_text("{kind: Workload, metadata: {name: a}}\n---\nb: [\n---\nkind: Workload\nmetadata: {name: c}\n")
    result = pwm("apply", "-f", path, "-f", tmp_path / "missing.yaml", path)
    assert result.code == 1
    assert result.lines == [
        "Workload/a created",
        f"{path}:3:4 refused",
        "Workload/c created",
        f"{tmp_path}/missing.yaml refused",
        "Workload/a created",
        f"{path}:3:4 refused",
        "Workload/c created",
    ]
    assert f"error: {path}:3:4: not valid YAML" in result.err
    assert f"error: {tmp_path}/missing.yaml: there is no such file" in result.err


def test_nothing_is_sent_when_nothing_can_be_read(server: FakeServer, pwm: Pwm, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("a: '" + "x" * 50_000 + "'\n")
    result = pwm("apply", path, tmp_path / "missing.yaml")
    assert (result.code, server.requests) == (1, [])
    assert result.lines == [f"{path}:1:1 refused", f"{tmp_path}/missing.yaml refused"]
    assert f"error: {path}:1:1: this document has 49 KiB, and 48 KiB is the most\n  Put data into" in result.err
    path.write_text("# nothing\n---\n")
    result = pwm("apply", path)
    assert (result.code, server.requests) == (1, [])
    assert "no documents there" in result.err


def test_a_file_whose_documents_all_say_nothing_has_none(server: FakeServer, pwm: Pwm, tmp_path: Path) -> None:
    server.on("POST", "/v1/apply", _read)
    path = tmp_path / "null.yaml"
    path.write_text("null\n---\n~\n")
    result = pwm("apply", path)
    assert (result.code, result.out) == (1, "")
    assert "no documents there" in result.err


def test_a_document_without_a_name_is_called_by_its_place(server: FakeServer, pwm: Pwm, tmp_path: Path) -> None:
    server.on("POST", "/v1/apply", _read)
    path = tmp_path / "unnamed.yaml"
    path.write_text("# first\n---\nkind: Workload\n---\n  a: 1\n")
    assert pwm("apply", path).lines == [f"Workload ({path}:3:1) created", f"document ({path}:5:3) created"]


def test_lines_in_sentences_are_those_of_the_file(server: FakeServer, pwm: Pwm, tmp_path: Path) -> None:
    server.on("POST", "/v1/apply", _read)
    path = tmp_path / "twice.yaml"
    path.write_text("a: 1\n---\nb: 1\nb: 2\n")
    assert f"error: {path}:4:1: 'b' is there twice; the first is in line 3\n" in pwm("apply", path).err


def test_thousands_of_documents_go_in_batches(server: FakeServer, pwm: Pwm, tmp_path: Path) -> None:
    server.on("POST", "/v1/apply", _read)
    path = tmp_path / "many.yaml"
    path.write_text("".join(f"---\nkind: Workload\nmetadata: {{name: w{n}}}\n" for n in range(1001)))
    result = pwm("apply", "-f", path)
    assert result.lines == [f"Workload/w{n} created" for n in range(1001)]
    sizes = [len(request.body["manifests"]) for request in server.requests]
    assert (sum(sizes), max(sizes), len(sizes)) == (1001, 200, 6)


def test_a_batch_that_is_refused_as_a_whole_refuses_each_of_it(server: FakeServer, pwm: Pwm, manifest: Path) -> None:
    detail = {"@type": "pwm.v1.Problem", "message": "too many", "nextStep": "send fewer"}
    server.on("POST", "/v1/apply", (400, {"code": 3, "message": "too many", "details": [detail]}))
    manifest.write_text(f"# first\n---\n{HELLO}---\n{HELLO}")
    result = pwm("apply", manifest)
    assert (result.code, result.lines) == (1, [f"{manifest}:3:1 refused", f"{manifest}:13:1 refused"])
    assert f"error: {manifest}:3:1: too many\n  send fewer\n" in result.err


def test_an_answer_of_what_was_not_sent_is_no_answer(server: FakeServer, pwm: Pwm, manifest: Path) -> None:
    server.on("POST", "/v1/apply", {"results": [_result("CREATED", manifest=1)]})
    result = pwm("apply", manifest)
    assert (result.code, result.out) == (1, "")
    assert "pwm version" in result.err


def test_a_server_that_cannot_answer_ends_it_with_6(server: FakeServer, pwm: Pwm, manifest: Path) -> None:
    server.on("POST", "/v1/apply", (503, {"code": 14, "message": "etcd cannot be reached"}))
    result = pwm("apply", manifest)
    assert (result.code, result.err) == (6, "error: etcd cannot be reached\n")


def test_a_dry_run_changes_nothing_and_predicts(server: FakeServer, pwm: Pwm, manifest: Path) -> None:
    server.on("POST", "/v1/apply", {"results": [_result("CREATED", prediction="would start now on node n1")]})
    result = pwm("apply", "-f", manifest, "--dry-run", "-g", "vision")
    assert result.out == "Workload/hello created (dry run): would start now on node n1\n"
    assert server.requests[0].body["dryRun"] is True
    assert server.requests[0].body["group"] == "vision"


def test_outputs_for_programs(server: FakeServer, pwm: Pwm, manifest: Path, tmp_path: Path) -> None:
    server.on("POST", "/v1/apply", _read)
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [\n")
    missing = tmp_path / "missing.yaml"
    assert pwm("apply", manifest, bad, missing, "-o", "name").lines == ["Workload/hello"]
    printed = json.loads(pwm("apply", manifest, bad, missing, "-o", "json").out)
    assert [(entry["outcome"], entry["name"], entry["source"]) for entry in printed] == [
        ("CREATED", "hello", str(manifest)),
        ("REFUSED", "", str(bad)),
        ("REFUSED", "", str(missing)),
    ]
    assert (printed[0]["line"], printed[1]["problems"][0]["line"]) == (1, 1)


def test_a_diff_compares_what_the_document_speaks_of(server: FakeServer, pwm: Pwm, manifest: Path) -> None:
    there = {
        "apiVersion": "v1",
        "kind": "Workload",
        "metadata": {"name": "hello", "group": "lab", "uid": "u"},
        "spec": {"image": "alpine", "config": {"memroy": "4GiB"}, "driver": "pwm.docker", "volumes": []},
    }
    server.on("GET", "/v1/resources/Workload/hello", {"resource": there})
    server.on("POST", "/v1/apply", {"results": [_result("CONFIGURED")]})
    lines = pwm("apply", manifest, "--diff").lines
    changed = [line for line in lines if line[:1] in "+-" and not line.startswith(("+++", "---"))]
    assert changed == [
        "-  image: alpine",
        "+  image: busybox",
        "-  volumes: []",
        "+  volumes:",
        "+  - name: home",
        "+    target: home",
    ]
    assert server.requests[-1].body["dryRun"] is True


def test_a_diff_of_something_new_is_all_of_it(server: FakeServer, pwm: Pwm, manifest: Path) -> None:
    server.on("GET", "/v1/resources/Workload/hello", (404, {"code": 5, "message": "there is no Workload hello"}))
    server.on("POST", "/v1/apply", {"results": [_result("CREATED")]})
    assert "+  image: busybox" in pwm("apply", manifest, "--diff").lines


def test_a_diff_of_people_knows_all_spellings_and_shows_what_goes(server: FakeServer, pwm: Pwm, tmp_path: Path) -> None:
    file = tmp_path / "people.yaml"
    file.write_text(
        "kind: User\nmetadata: {name: ann}\n"
        "spec: {groups: [{policy: {Node: get, Volume: [get]}, name: vision}], limits: {credits: {weekly: 100}}}\n"
        "---\nkind: Role\nmetadata: {name: head}\nspec: {permission: pwm.all}\n"
    )
    policy = {"Node": {"verbs": ["get"]}, "Volume": {"verbs": ["get"]}}
    spec: dict[str, Any] = {"groups": [{"name": "vision", "policy": policy}], "limits": {"credits": {"weekly": 100.0}}}
    role = {"kind": "Role", "metadata": {"name": "head"}, "spec": {"permission": {"pwm.all": {"verbs": ["pwm.all"]}}}}
    own = {"notify": {"byEmail": True}}
    user = {"kind": "User", "metadata": {"name": "ann", "uid": "u"}, "spec": spec | own}
    server.on("GET", "/v1/resources/Role/head", {"resource": role})
    server.on("GET", "/v1/resources/User/ann", {"resource": user})
    server.on("POST", "/v1/apply", {"results": [_result("UNCHANGED")]})
    assert pwm("apply", file, "--diff").lines == ["Workload/hello unchanged (dry run)"]
    limited = spec | {"limits": {"credits": {"weekly": 100.5}, "resources": {"gpus": {"total": 2}}}}
    server.on("GET", "/v1/resources/User/ann", {"resource": user | {"spec": limited}})
    changed = [
        line for line in pwm("apply", file, "--diff").lines if line[:1] in "+-" and line[:3] not in ("+++", "---")
    ]
    assert changed == [
        "-      weekly: 100.5", "-    resources:", "-      gpus:", "-        total: 2", "+      weekly: 100",
    ]  # fmt: skip


# --- --wait ---------------------------------------------------------------------------------------


def _watched(*workloads: dict[str, Any], synced_after: int = 1) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = [
        {"type": "MODIFIED", "resource": workload, "revision": "10"} for workload in workloads
    ]
    messages.insert(synced_after, {"type": "SYNCED", "revision": "9"})
    return messages


def test_waiting_tells_the_way_and_ends_when_it_runs(server: FakeServer, pwm: Pwm, manifest: Path) -> None:
    server.on("POST", "/v1/apply", {"results": [_result("CREATED")], "revision": "9"})
    reason = {"code": "NO_GPU_FREE", "message": "no GPU is free"}
    states = [
        _workload("QUEUED", reason=reason),
        _workload("PULLING", nodes=["n1"]),
        _workload("PULLING", nodes=["n1"]),
        _workload("RUNNING", nodes=["n1"]),
    ]
    server.on("GET", "/v1/watch/Workload", Stream(_watched(*states), hangs=True))
    result = pwm("apply", manifest, "--wait")
    assert (result.code, result.out) == (0, "Workload/hello created\n")
    assert result.err.splitlines() == [
        "Workload/hello QUEUED: no GPU is free (NO_GPU_FREE)",
        "Workload/hello PULLING on n1",
        "Workload/hello RUNNING on n1",
    ]
    watch = server.of("GET", "/v1/watch/Workload")[0]
    assert (watch.query["minRevision"], watch.query["names"], watch.query["group"]) == (["9"], ["hello"], ["lab"])


def test_waiting_for_what_crashes_fails(server: FakeServer, pwm: Pwm, manifest: Path) -> None:
    server.on("POST", "/v1/apply", {"results": [_result("CREATED")]})
    crashed = _workload("CRASHED", reason={"code": "EXIT_CODE", "message": "exit code 3"})
    server.on("GET", "/v1/watch/Workload", Stream(_watched(_workload("RUNNING", "other"), crashed, synced_after=2)))
    result = pwm("apply", manifest, "--wait")
    assert result.code == 1
    assert "error: Workload/hello CRASHED: exit code 3 (EXIT_CODE)\n  `pwm why wk hello` says more." in result.err


def test_waiting_for_what_ends_well_succeeds(server: FakeServer, pwm: Pwm, manifest: Path) -> None:
    server.on("POST", "/v1/apply", {"results": [_result("CREATED")]})
    server.on("GET", "/v1/watch/Workload", Stream(_watched(_workload("EXITED"))))
    assert pwm("apply", manifest, "--wait").code == 0


def test_waiting_too_long_ends_with_7(server: FakeServer, pwm: Pwm, manifest: Path) -> None:
    server.on("POST", "/v1/apply", {"results": [_result("CREATED")]})
    server.on("GET", "/v1/watch/Workload", Stream(_watched(_workload("QUEUED")), hangs=True))
    result = pwm("apply", manifest, "--wait", "--timeout", "200ms")
    assert result.code == 7
    assert "not running within 0.2 s: hello" in result.err


def test_waiting_goes_on_through_a_lost_connection(server: FakeServer, pwm: Pwm, manifest: Path) -> None:
    server.on("POST", "/v1/apply", {"results": [_result("CREATED")], "revision": "9"})
    server.on(
        "GET",
        "/v1/watch/Workload",
        Stream(_watched(_workload("QUEUED")), cut=True),
        (503, {"code": 14, "message": "starting"}),
        Stream(_watched(_workload("RUNNING")), hangs=True),
    )
    result = pwm("apply", manifest, "--wait")
    assert result.code == 0
    assert result.err.splitlines()[-1] == "Workload/hello RUNNING"
    assert server.of("GET", "/v1/watch/Workload")[-1].query["minRevision"] == ["10"]


def test_waiting_for_what_is_deleted_meanwhile_fails(server: FakeServer, pwm: Pwm, manifest: Path) -> None:
    server.on("POST", "/v1/apply", {"results": [_result("CREATED")]})
    messages = [*_watched(_workload("QUEUED")), {"type": "DELETED", "resource": _workload("DELETED")}]
    server.on("GET", "/v1/watch/Workload", Stream(messages, hangs=True))
    result = pwm("apply", manifest, "--wait")
    assert result.code == 1
    assert "was deleted meanwhile" in result.err
