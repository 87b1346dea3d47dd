"""Lists: the server's table as it is, with colours on a terminal, and watches that survive."""

import json
from typing import Any

import pytest
import yaml

from pwm.cli.render import coloured_table
from tests.unit.cli.conftest import FakeServer, Pwm, Stream

TABLE = "NAME   STATUS   READY\na      RUNNING  1/1\nRUNNING  QUEUED  0/1\n"
ITEM: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Workload",
    "metadata": {"name": "a", "group": "lab"},
    "spec": {"config": {"cmd": ["sh", "-c", "echo on\ndone\n"], "env": {"A": "on", "B": "010", "C": "1e3"}}},
}


def test_a_list_is_the_servers_table(server: FakeServer, pwm: Pwm) -> None:
    server.on("GET", "/v1/resources/Workload", {"text": TABLE, "count": 2})
    result = pwm("get", "wk", "-l", "a=b,!c", "-z", "z1", "-g", "lab")
    assert (result.code, result.out, result.err) == (0, TABLE, "")
    assert server.requests[0].query == {"format": ["TABLE"], "selector": ["a=b,!c"], "group": ["lab"], "zone": ["z1"]}


@pytest.mark.parametrize("words", [["-A"], ["-g", "pwm.all"], ["-g", "All"]])
def test_all_groups_are_asked_for_in_three_ways(server: FakeServer, pwm: Pwm, words: list[str]) -> None:
    server.on("GET", "/v1/resources/Container", {"text": TABLE, "count": 2})
    assert pwm("get", "c", *words).code == 0
    assert server.requests[0].query == {"format": ["TABLE"], "allGroups": ["true"]}


@pytest.mark.parametrize(
    ("typed", "kind"),
    [("wk", "Workload"), ("Workloads", "Workload"), ("ws", "Group"), ("z", "Zone"), ("rc", "ResourceCredit"),
     ("gpus", "GPU"), ("vol", "Volume"), ("c", "Container")],
)  # fmt: skip
def test_kinds_go_by_many_names(server: FakeServer, pwm: Pwm, typed: str, kind: str) -> None:
    server.on("GET", f"/v1/resources/{kind}", {"text": "NAME\na\n", "count": 1})
    assert pwm("get", typed).out == "NAME\na\n"


def test_names_may_be_given_with_their_kind(server: FakeServer, pwm: Pwm) -> None:
    server.on("GET", "/v1/resources/Workload", {"text": TABLE, "count": 2})
    pwm("get", "wk/a", "wk/b")
    assert server.requests[0].query["names"] == ["a", "b"]
    assert pwm("get", "wk/a", "node/b").code == 2


def test_a_name_that_is_not_there_is_exit_code_3(server: FakeServer, pwm: Pwm) -> None:
    server.on("GET", "/v1/resources/Workload", (404, {"code": 5, "message": "there is no Workload b"}))
    result = pwm("get", "wk", "b")
    assert (result.code, result.out, result.err) == (3, "", "error: there is no Workload b\n")


def test_an_empty_list_is_said_beside_the_output(server: FakeServer, pwm: Pwm) -> None:
    server.on("GET", "/v1/resources/Workload", {})
    result = pwm("get", "wk", "-g", "lab", "-l", "a=b")
    assert (result.code, result.out, result.err) == (0, "", "no Workload in group lab with labels a=b\n")
    assert pwm("get", "wk", "-o", "name").err == ""
    assert json.loads(pwm("get", "wk", "-j").out) == []


def test_json_and_yaml_can_be_read_back(server: FakeServer, pwm: Pwm) -> None:
    server.on("GET", "/v1/resources/Workload", {"items": [ITEM, ITEM], "count": 2})
    assert json.loads(pwm("get", "wk", "-o", "json").out) == [ITEM, ITEM]
    assert json.loads(pwm("get", "wk", "-j").out) == [ITEM, ITEM]
    text = pwm("get", "wk", "-o", "yaml").out
    assert list(yaml.safe_load_all(text)) == [ITEM, ITEM]
    assert "    - |\n      echo on\n      done\n" in text
    from pwm.manifest.documents import Document, parse

    assert [entry.content for entry in parse(text, "f") if isinstance(entry, Document)] == [ITEM, ITEM]


def test_one_name_gives_one_resource_and_not_a_list(server: FakeServer, pwm: Pwm) -> None:
    server.on("GET", "/v1/resources/Workload", {"items": [ITEM], "count": 1})
    assert json.loads(pwm("get", "wk", "a", "-o", "json").out) == ITEM


def test_colours_are_for_terminals_only(server: FakeServer, pwm: Pwm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    server.on("GET", "/v1/resources/Workload", {"text": TABLE, "count": 2})
    assert "\033" not in pwm("get", "wk").out
    monkeypatch.setenv("FORCE_COLOR", "1")
    lines = pwm("get", "wk").lines
    assert lines[0].startswith("\033[1mNAME")
    assert "\033[32mRUNNING\033[0m  1/1" in lines[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert pwm("get", "wk").out == TABLE


def test_what_a_terminal_would_obey_is_taken_out() -> None:
    assert "\033]0;" not in coloured_table("NAME\n\033]0;title\x07evil\x9b2J\n")


def test_ten_thousand_rows_arrive_whole(server: FakeServer, pwm: Pwm) -> None:
    table = "NAME     STATUS\n" + "".join(f"w{n:07} RUNNING\n" for n in range(10_000))
    server.on("GET", "/v1/resources/Container", {"text": table, "count": 10_000})
    assert pwm("get", "c").out == table


def _message(type_: str, text: str = "", revision: int = 0, *, uid: str = "", **more: Any) -> dict[str, Any]:
    """With `uid`, a digest of the text goes along, as the server makes one of the resource."""
    identity = {"uid": uid, "digest": str(hash(text.split("\n")[-1]))} if uid else {}
    return {"type": type_, "text": text, **identity, **({"revision": str(revision)} if revision else {}), **more}


def _until_interrupted(*streams: Any) -> list[Any]:
    """Answers of a watch, after which Ctrl-C is pressed (a refusal that ends the program, in its place)."""
    return [*streams, (403, {"code": 7, "message": "that is all"})]


def test_a_watch_goes_on_line_by_line(server: FakeServer, pwm: Pwm) -> None:
    first = [_message("ADDED", "NAME  STATUS\na     QUEUED", uid="u1"), _message("SYNCED", "", 1), _message("BEAT")]
    changes = [_message("MODIFIED", "a     RUNNING", uid="u1"), _message("MODIFIED", "a     QUEUED", uid="u1")]
    server.on("GET", "/v1/watch/Workload", *_until_interrupted(Stream([*first, *changes])))
    result = pwm("get", "wk", "-w", "-l", "x")
    assert result.lines == ["NAME  STATUS", "a     QUEUED", "a     RUNNING", "a     QUEUED"]
    assert server.requests[0].query == {
        "format": ["TABLE"], "selector": ["x"], "minRevision": ["0"], "identify": ["true"],
    }  # fmt: skip


def test_a_broken_watch_goes_on_where_it_was_without_repeating_itself(server: FakeServer, pwm: Pwm) -> None:
    header = "NAME  STATUS\n"
    one = Stream(
        [
            _message("ADDED", header + "a     QUEUED", uid="u1"),
            _message("ADDED", "b     QUEUED", uid="u2"),
            _message("SYNCED", "", 5),
            # The end of this batch is lost: nobody knows that revision 6 has come.
            _message("MODIFIED", "a     PULLING", uid="u1"),
        ],
        cut=True,
    )
    two = Stream(
        [
            _message("MODIFIED", header + "a     PULLING", uid="u1"),
            _message("MODIFIED", "c     QUEUED", uid="u3"),
            _message("DELETED", "b     DELETED", uid="u2"),
            _message("DELETED", "d     DELETED", uid="u4"),
            _message("SYNCED", "", 7, resumed=True),
            _message("MODIFIED", "a     RUNNING", 8, uid="u1"),
        ],
        cut=True,
    )
    server.on("GET", "/v1/watch/Workload", *_until_interrupted(one, two))
    result = pwm("get", "wk", "-w")
    assert result.lines == [
        "NAME  STATUS", "a     QUEUED", "b     QUEUED", "a     PULLING",
        "c     QUEUED", "b     DELETED", "a     RUNNING",
    ]  # fmt: skip
    asked = [request.query.get("afterRevision") for request in server.of("GET", "/v1/watch/Workload")]
    assert asked == [None, ["5"], ["8"]]


def test_a_replica_that_does_not_know_the_past_sends_everything_and_only_differences_are_shown(
    server: FakeServer, pwm: Pwm
) -> None:
    header = "NAME  STATUS\n"
    one = Stream(
        [
            _message("ADDED", header + "a     QUEUED", uid="u1"),
            _message("ADDED", "b     QUEUED", uid="u2"),
            _message("SYNCED", "", 5),
        ],
        cut=True,
    )
    two = Stream(
        [
            _message("ADDED", header + "a     QUEUED", uid="u1"),
            _message("ADDED", "c     QUEUED", uid="u3"),
            _message("SYNCED", "", 9),
        ]
    )
    server.on("GET", "/v1/watch/Workload", *_until_interrupted(one, two))
    result = pwm("get", "wk", "-w")
    assert result.lines == ["NAME  STATUS", "a     QUEUED", "b     QUEUED", "c     QUEUED", "b     QUEUED  DELETED"]


def test_a_watch_as_json_is_one_object_a_line(server: FakeServer, pwm: Pwm) -> None:
    stream = Stream([{"type": "ADDED", "resource": ITEM}, _message("SYNCED")])
    server.on("GET", "/v1/watch/Workload", *_until_interrupted(stream))
    assert json.loads(pwm("get", "wk", "-w", "-o", "json").lines[0]) == {"type": "ADDED", "resource": ITEM}


def test_containers_of_one_workload(server: FakeServer, pwm: Pwm) -> None:
    server.on("GET", "/v1/resources/Container", {"text": "NAME\n", "count": 1})
    pwm("get", "c", "--workload", "train")
    assert server.requests[0].query["workload"] == ["train"]
    assert pwm("get", "wk", "--workload", "train").code == 2
