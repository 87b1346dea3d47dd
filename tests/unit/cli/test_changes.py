"""Stop, restart, scale and delete: by name, by label, by file."""

from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.conftest import FakeServer, Pwm, Stream

FILE = "kind: Group\nmetadata: {name: lab}\n---\nkind: Workload\nmetadata: {name: a, workspace: lab}\n"


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "f.yaml"
    path.write_text(FILE)
    return path


@pytest.mark.parametrize("words", [["wk", "a"], ["a"], ["wk/a"], ["workload", "a"]])
@pytest.mark.parametrize(("verb", "done"), [("stop", "stopped"), ("restart", "restarted")])
def test_by_name(server: FakeServer, pwm: Pwm, verb: str, done: str, words: list[str]) -> None:
    server.on("POST", f"/v1/workloads/a/{verb}", {"changed": True, "revision": "5"})
    assert pwm(verb, *words, "-g", "lab").out == f"Workload/a {done}\n"
    assert server.requests[0].body == {"group": "lab"}


def test_what_is_stopped_already_is_unchanged(server: FakeServer, pwm: Pwm) -> None:
    server.on("POST", "/v1/workloads/a/stop", {"revision": "5"})
    result = pwm("stop", "wk", "a")
    assert (result.code, result.out) == (0, "Workload/a unchanged\n")


def test_one_that_fails_does_not_hold_up_the_others(server: FakeServer, pwm: Pwm) -> None:
    server.on("POST", "/v1/workloads/b/stop", {"changed": True})
    result = pwm("stop", "wk", "a", "b")
    assert (result.code, result.out) == (3, "Workload/b stopped\n")
    assert "error: Workload/a: there is nothing" in result.err


def test_by_label(server: FakeServer, pwm: Pwm) -> None:
    items = [{"metadata": {"name": name, "group": "lab"}} for name in ("a", "b")]
    server.on("GET", "/v1/resources/Workload", {"items": items})
    for name in ("a", "b"):
        server.on("POST", f"/v1/workloads/{name}/stop", {"changed": True})
    assert pwm("stop", "-l", "stage=1", "-A").lines == ["Workload/a stopped", "Workload/b stopped"]
    assert server.requests[0].query == {"allGroups": ["true"], "selector": ["stage=1"], "format": ["RESOURCES"]}
    assert server.requests[1].body == {"group": "lab"}


def test_by_file_only_the_workloads_are_stopped(server: FakeServer, pwm: Pwm, manifest: Path) -> None:
    server.on("POST", "/v1/workloads/a/stop", {"changed": True})
    assert pwm("stop", "-f", manifest).lines == ["Workload/a stopped"]
    assert server.requests[0].body == {"group": "lab"}


def test_by_file_everything_is_deleted_last_first(server: FakeServer, pwm: Pwm, manifest: Path) -> None:
    server.on("DELETE", "/v1/resources/Workload/a", {"cascade": ["Container lab/a.0.1"]})
    server.on("DELETE", "/v1/resources/Group/lab", {})
    result = pwm("delete", "-f", manifest)
    assert result.lines == ["Workload/a deleted", "  with it Container lab/a.0.1", "Group/lab deleted"]
    assert server.requests[0].query == {"group": ["lab"]}


def test_a_file_that_cannot_be_read_deletes_nothing(server: FakeServer, pwm: Pwm, manifest: Path) -> None:
    manifest.write_text(FILE + "---\na: [\n")
    result = pwm("delete", "-f", manifest)
    assert (result.code, server.requests) == (1, [])
    assert f"{manifest}:7:4: not valid YAML" in result.err


@pytest.mark.parametrize(
    "words",
    [["delete"], ["delete", "wk"], ["delete", "wk", "a", "-l", "x"], ["stop", "-f", "x", "a"],
     ["stop", "node", "n"], ["stop", "c", "a.0.1"], ["scale", "a"], ["scale", "wk", "a"],
     ["scale", "node", "n", "3"], ["scale", "a", "b", "3"]],
)  # fmt: skip
def test_half_a_command_is_wrong_usage(server: FakeServer, pwm: Pwm, words: list[str]) -> None:
    result = pwm(*words)
    assert (result.code, result.out, server.requests) == (2, "", [])


def test_deleting_what_is_not_there(server: FakeServer, pwm: Pwm) -> None:
    assert pwm("delete", "wk", "a").code == 3
    assert pwm("delete", "wk", "a", "--ignore-not-found").code == 0


@pytest.mark.parametrize("words", [["wk", "a", "3"], ["a", "3"], ["wk", "a", "--replicas", "3"]])
def test_scale(server: FakeServer, pwm: Pwm, words: list[str]) -> None:
    server.on("POST", "/v1/workloads/a/scale", {"changed": True, "revision": "3"})
    assert pwm("scale", *words).out == "Workload/a scaled to 3\n"
    assert server.requests[0].body == {"count": 3}


def _message(type_: str, phase: str = "") -> dict[str, Any]:
    resource = {"metadata": {"name": "a", "group": "lab"}, "status": {"phase": phase}} if phase else {}
    return {"type": type_, "resource": resource, "revision": "9"}


def test_stop_waits_until_it_has_ended(server: FakeServer, pwm: Pwm) -> None:
    server.on("GET", "/v1/whoami", {"defaultGroup": "lab"})
    server.on("POST", "/v1/workloads/a/stop", {"changed": True, "revision": "8"})
    messages = [_message("ADDED", "STOPPING"), _message("SYNCED"), _message("MODIFIED", "STOPPED")]
    server.on("GET", "/v1/watch/Workload", Stream(messages, hangs=True))
    result = pwm("stop", "a", "--wait")
    assert result.code == 0
    assert result.err.splitlines() == ["Workload/a STOPPING", "Workload/a STOPPED"]


def test_delete_waits_until_it_is_gone(server: FakeServer, pwm: Pwm) -> None:
    server.on("DELETE", "/v1/resources/Workload/a", {"revision": "8"})
    messages = [_message("ADDED", "STOPPING"), _message("SYNCED"), _message("DELETED", "STOPPED")]
    server.on("GET", "/v1/watch/Workload", Stream(messages, hangs=True))
    assert pwm("delete", "wk", "a", "-g", "lab", "--wait").code == 0
    server.on("GET", "/v1/watch/Workload", Stream([_message("SYNCED")], hangs=True))
    assert pwm("delete", "wk", "a", "-g", "lab", "--wait").code == 0, "gone before the watch began"
    server.on("GET", "/v1/watch/Workload", Stream([_message("ADDED", "STOPPING"), _message("SYNCED")], hangs=True))
    assert pwm("delete", "wk", "a", "-g", "lab", "--wait", "--timeout", "0.1").code == 7
