"""Describe, why, events, whoami, version, admin: answers for people, and the same as JSON."""

import json
from typing import Any

import pytest

from pwm.cli.render import age, local_time
from tests.unit.cli.conftest import FakeServer, Pwm, Stream

WORKLOAD: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Workload",
    "metadata": {"name": "train", "group": "lab", "labels": {"b": "2", "a": "1"}, "createdBy": {"name": "ada"},
                 "createdAt": "2026-01-02T03:04:05.123456789Z"},
    "spec": {"image": {"image": "busybox"}},
    "status": {"phase": "CRASHED", "reason": {"code": "EXIT_CODE", "message": "exit code 3\x1b[2J"}, "restarts": 2},
}  # fmt: skip


def test_describe_has_sections_and_ends_with_events(server: FakeServer, pwm: Pwm) -> None:
    server.on("GET", "/v1/resources/Workload/train", {"resource": WORKLOAD})
    server.on("GET", "/v1/resources/Container", {"text": "NAME       STATUS\ntrain.0.1  failed\n", "count": 1})
    server.on("GET", "/v1/events", Stream([{"text": "12:00  created by ada"}]))
    result = pwm("describe", "wk", "train", "-g", "lab")
    assert result.code == 0
    assert [line.split(":")[0] for line in result.lines if line and not line.startswith(" ")] == [
        "Name", "Kind", "Group", "Labels", "Created", "Status", "Reason", "Spec", "Status", "Containers", "Events",
    ]  # fmt: skip
    assert "Labels:   a=1, b=2" in result.lines
    assert result.lines[-1] == "  12:00  created by ada"
    assert "\x1b" not in result.out
    assert server.of("GET", "/v1/events")[0].query == {
        "kind": ["Workload"], "name": ["train"], "group": ["lab"], "limit": ["20"],
    }  # fmt: skip


def test_describe_as_a_table_json_and_yaml(server: FakeServer, pwm: Pwm) -> None:
    server.on("GET", "/v1/resources/Workload/train", {"resource": WORKLOAD})
    assert ["spec.image.image", "busybox"] in [line.split() for line in pwm("describe", "wk", "train", "-t").lines]
    assert json.loads(pwm("describe", "wk", "train", "-o", "json").out) == WORKLOAD
    assert "    image: busybox" in pwm("describe", "wk", "train", "-o", "yaml").lines


def test_describe_without_the_right_to_see_events_shows_the_rest(server: FakeServer, pwm: Pwm) -> None:
    server.on("GET", "/v1/resources/Node/n1", {"resource": {"kind": "Node", "metadata": {"name": "n1"}}})
    server.on("GET", "/v1/events", (403, {"code": 7, "message": "you may not"}))
    result = pwm("describe", "node", "n1")
    assert result.code == 0
    assert result.lines[-1] == "  not shown: you may not"
    assert pwm("describe", "node", "n2").code == 3


def test_why_gives_every_reason_and_the_way_out(server: FakeServer, pwm: Pwm) -> None:
    reason = {"code": "NO_GPU_FREE", "message": "4 GPUs are wanted, 2 are free"}
    answer = {
        "phase": "QUEUED",
        "reason": reason,
        "refusals": [
            {"reason": reason, "nodes": ["n1", "n2"]},
            {
                "reason": {"code": "NO_MEMORY_FREE", "message": "not enough memory"},
                "nodes": [f"m{n}" for n in range(9)],
            },
        ],
        "queuePosition": 2,
        "queueLength": 5,
        "suggestions": ["ask for 2 GPUs instead of 4"],
        "warnings": ["node n3 is out of reach"],
        "replicas": [
            {"replica": 1, "attempts": 3, "status": {"phase": "FAILED", "reason": {"message": "exit code 1"}}}
        ],
    }
    server.on("GET", "/v1/workloads/train/why", answer)
    result = pwm("why", "wk", "train")
    assert result.lines == [
        "train is QUEUED: 4 GPUs are wanted, 2 are free (NO_GPU_FREE)",
        "  place 2 of 5 in the queue",
        "Warnings:",
        "  node n3 is out of reach",
        "Nodes:",
        "  2 nodes: 4 GPUs are wanted, 2 are free (NO_GPU_FREE)  [n1, n2]",
        "  9 nodes: not enough memory (NO_MEMORY_FREE)  [m0, m1, m2, m3, m4, ...]",
        "What would start it:",
        "  ask for 2 GPUs instead of 4",
        "Replicas:",
        "  1: failed: exit code 1, attempt 3",
    ]
    assert json.loads(pwm("why", "train", "-o", "json").out) == answer
    assert pwm("why", "wk").code == 2


def test_events_of_one_resource(server: FakeServer, pwm: Pwm) -> None:
    server.on("GET", "/v1/events", Stream([{"text": "a"}, {"text": "b\x1b[31m"}]))
    result = pwm("events", "wk", "train", "-n", "5", "-g", "lab")
    assert result.lines == ["a", "b\ufffd[31m"]
    assert server.requests[0].query == {"kind": ["Workload"], "name": ["train"], "group": ["lab"], "limit": ["5"]}


def test_events_as_json_are_one_a_line(server: FakeServer, pwm: Pwm) -> None:
    server.on("GET", "/v1/events", Stream([{"event": {"uid": "u", "version": "1"}, "text": "a"}]))
    assert [json.loads(line) for line in pwm("events", "-o", "json").lines] == [{"uid": "u", "version": "1"}]


def _event(revision: int, version: int) -> dict[str, Any]:
    return {"event": {"uid": "u", "version": str(version), "revision": str(revision)}, "text": f"event {version}"}


def test_following_events_neither_loses_nor_repeats_one(server: FakeServer, pwm: Pwm) -> None:
    """The connection breaks between two events of one revision."""
    server.on(
        "GET",
        "/v1/events",
        Stream([_event(7, 1), _event(8, 2)], cut=True),
        Stream([_event(8, 2), _event(8, 3), _event(9, 4)], cut=True),
        (403, {"code": 7, "message": "that is all"}),
    )
    result = pwm("events", "-f")
    assert result.lines == ["event 1", "event 2", "event 3", "event 4"]
    asked = [request.query.get("afterRevision") for request in server.requests]
    assert asked == [None, ["7"], ["8"]]


def test_quiet_progress_is_remembered_and_shown_to_nobody(server: FakeServer, pwm: Pwm) -> None:
    """A filter that lets nothing through for long comes back to where it was, not to where it saw something last."""
    server.on(
        "GET",
        "/v1/events",
        Stream([_event(7, 1), {"revision": "7"}, {"revision": "500"}], cut=True),
        Stream([_event(600, 2)], cut=True),
        (403, {"code": 7, "message": "that is all"}),
    )
    assert pwm("events", "-f").lines == ["event 1", "event 2"]
    assert [request.query.get("afterRevision") for request in server.requests] == [None, ["500"], ["599"]]


def test_events_that_are_no_longer_kept_are_said_to_be_missing(server: FakeServer, pwm: Pwm) -> None:
    gone = (400, {"code": 11, "message": "the events after revision 7 are no longer kept"})
    server.on(
        "GET",
        "/v1/events",
        Stream([_event(7, 1), {"revision": "7"}], cut=True),
        gone,
        Stream([_event(6, 0), _event(7, 1), _event(900, 5), {"revision": "901"}], cut=True),
        (403, {"code": 7, "message": "that is all"}),
    )
    result = pwm("events", "-f")
    assert result.lines == ["event 1", "event 5"]
    assert result.err.startswith("the events after revision 7 are no longer kept: some may be missing here\n")
    assert [request.query.get("afterRevision") for request in server.requests] == [None, ["7"], None, ["901"]]


def _written(revision: int, *names: str) -> dict[str, Any]:
    entries = [{"action": "CHANGE", "name": name} for name in names]
    return {"entries": entries, "text": "".join(f"change {name}\n" for name in names), "revision": str(revision)}


def test_following_the_audit_neither_loses_nor_repeats_anything(server: FakeServer, pwm: Pwm) -> None:
    server.on(
        "GET",
        "/v1/audit/stream",
        Stream([_written(7, "a", "b"), _written(9)], cut=True),
        Stream([_written(12, "c")], cut=True),
        (400, {"code": 11, "message": "what was written down after revision 12 is no longer kept"}),
        Stream([_written(20, "d")], cut=True),
        (403, {"code": 7, "message": "that is all"}),
    )
    result = pwm("events", "--audit", "-f", "--user", "ann", "--since", "1h", "-n", "5")
    assert result.lines == ["change a", "change b", "change c", "change d"]
    assert "after revision 12 is no longer kept: some may be missing here" in result.err
    asked = [request.query for request in server.requests]
    assert [query.get("afterRevision") for query in asked] == [None, ["9"], ["12"], None, ["20"]]
    assert all((query["follow"], query["user"]) == (["true"], ["ann"]) for query in asked)
    assert [query.get("limit") for query in asked] == [["5"], None, None, ["5"], None]


def test_the_audit_is_followed_by_programs_line_by_line(server: FakeServer, pwm: Pwm) -> None:
    server.on("GET", "/v1/audit/stream", Stream([_written(7, "a", "b")], cut=True), (403, {"code": 7, "message": "no"}))
    result = pwm("events", "--audit", "-f", "-o", "json")
    assert [json.loads(line)["name"] for line in result.lines] == ["a", "b"]
    assert pwm("events", "wk", "--audit").code == 2


def test_events_cut_short_are_no_success(server: FakeServer, pwm: Pwm) -> None:
    server.on("GET", "/v1/events", Stream([_event(7, 1)], cut=True))
    assert pwm("events").code == 6


def test_version_says_both_and_warns_when_they_do_not_fit(server: FakeServer, pwm: Pwm) -> None:
    server.on("GET", "/v1/version", {"version": "4.2.0", "apiVersion": "v1", "oldestClient": "4.0.0"})
    result = pwm("version")
    assert (result.code, result.lines) == (0, ["client 3.0.0", "server 4.2.0"])
    assert "update the client" in result.err
    assert pwm("--version").lines == result.lines
    assert json.loads(pwm("version", "-o", "json").out)["server"]["version"] == "4.2.0"


def test_version_without_a_server_is_no_failure(pwm: Pwm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PWM_SERVER", "http://127.0.0.1:1")
    result = pwm("version")
    assert (result.code, result.lines) == (0, ["client 3.0.0", "server unknown"])
    assert "no server" in result.err
    assert pwm("version", "--client").err == ""
    assert pwm("api-version").out == "v1\n"


def test_whoami(server: FakeServer, pwm: Pwm) -> None:
    server.on("GET", "/v1/whoami", {"user": "ada", "defaultGroup": "lab", "groups": ["lab", "users"]})
    assert pwm("whoami").lines[:2] == ["User:     ada", "Groups:   lab (yours), users"]


def test_admin_status_shows_trouble_in_plain_words(server: FakeServer, pwm: Pwm) -> None:
    answer = {
        "replicas": [
            {"id": "c1", "address": "http://c1:4700", "version": "3.0.0", "answering": True, "revision": "77"},
            {
                "id": "c2",
                "address": "http://c2:4700",
                "version": "3.0.0",
                "roles": ["zone/default"],
                "trouble": "hangs",
            },
        ],
        "leaders": [{"role": "zone/default", "replica": "c2"}],
        "etcd": [
            {"endpoint": "e1:2379", "error": "no answer"},
            {"endpoint": "e2:2379", "reachable": True, "leader": True, "dbSizeBytes": "4096", "quotaBytes": "8192"},
        ],
        "agents": [{"node": "n1", "phase": "NOT_READY", "problems": ["Docker does not answer"]}],
        "warnings": ["etcd member e1:2379 cannot be reached"],
        "revision": "77",
    }
    server.on("GET", "/v1/admin/status", answer)
    result = pwm("admin", "status")
    assert result.code == 0
    shown = [line.split() for line in result.lines]
    assert ["c1", "c1:4700", "3.0.0", "77", "0", "0"] in shown
    assert ["c2", "c2:4700", "3.0.0", "zone/default", "?", "?", "?"] in shown
    assert ["zone/default", "c2", "never", "not", "at", "work"] in shown
    assert ["e1:2379", "LOST", "no", "answer"] in shown
    assert ["e2:2379", "leader", "4KiB", "8KiB"] in shown
    assert "c1 answered, at revision 77: 0 resources" in result.lines
    assert any(
        line.startswith("n1") and "NOT_READY" in line and "Docker does not answer" in line for line in result.lines
    )
    assert result.lines[-1] == "  - etcd member e1:2379 cannot be reached"
    assert json.loads(pwm("admin", "status", "-o", "json").out) == answer


def test_admin_verify_fails_when_something_differs(server: FakeServer, pwm: Pwm) -> None:
    server.on("POST", "/v1/admin/verify", {"streams": "3", "events": "9"}, {"streams": "3", "differences": ["Node/n1"]})
    assert pwm("admin", "verify").code == 0
    result = pwm("admin", "verify")
    assert (result.code, result.lines[-2:]) == (1, ["  differs: Node/n1", "1 differ"])


def test_a_join_token_is_printed_alone(server: FakeServer, pwm: Pwm) -> None:
    answer = {"token": "pwmjoin.f.s", "controllers": ["a:4701", "b:4701"], "servers": ["https://a:4700"]}
    server.on("POST", "/v1/admin/join-tokens", answer)
    result = pwm("admin", "join-token", "n1", "--lifetime", "15m")
    assert result.out == "pwmjoin.f.s\n"
    assert server.requests[0].body == {"node": "n1", "lifetime": "900s"}
    how = "pwm agent --controllers a:4701,b:4701 --join https://a:4700 --join-token-file FILE --node n1"
    assert result.err.splitlines()[-1].strip() == how


def test_authorities_are_shown_by_their_fingerprints(server: FakeServer, pwm: Pwm) -> None:
    new = {"name": "PWM authority 2", "fingerprint": "f2", "issuing": True, "expiresAt": "2036-01-01T00:00:00Z"}
    old = {**new, "name": "PWM authority 1", "fingerprint": "f1", "issuing": False, "retiresAt": "2026-12-22T00:00:00Z"}
    server.on("GET", "/v1/authorities", {"authorities": [new, old], "certificates": "PEM"})
    assert [
        line.split(";")[0].rpartition(" until")[0] or line.split(";")[0] for line in pwm("admin", "ca", "show").lines
    ] == [
        "f2  PWM authority 2: issues",
        "f1  PWM authority 1: trusted",
    ]
    assert pwm("admin", "ca", "show", "-o", "pem").out == "PEM"
    server.on("POST", "/v1/admin/authorities/rotate", {"authority": new, "old": old}, {"authority": new})
    assert "learn of the new one by themselves" in pwm("admin", "ca", "rotate").err
    assert "log in anew" in pwm("admin", "ca", "rotate", "--trust-old-for", "0s").err
    assert [request.body for request in server.requests[-2:]] == [{}, {"trustOldFor": "0s"}]


def test_times_are_read_with_any_number_of_digits() -> None:
    assert age("2026-01-02T03:04:05.123456789Z", now_s=1767323045 + 75) == "1m14s"
    assert age("2026-01-02T03:04:05Z", now_s=1767323045 + 75) == "1m15s"
    assert local_time("2026-01-02T03:04:05.1Z").endswith(":04:05")
    assert (age(""), local_time("")) == ("", "")


def test_whoami_says_what_the_memberships_grant(server: FakeServer, pwm: Pwm) -> None:
    granted = [{"group": "lab", "kind": "Workload", "verbs": ["get", "logs"]}]
    server.on("GET", "/v1/whoami", {"user": "ada", "defaultGroup": "lab", "groups": ["lab"], "permissions": granted})
    result = pwm("whoami")
    assert [line.split() for line in result.lines[-2:]] == [
        ["GROUP", "KIND", "VERBS"],
        ["lab", "Workload", "get,", "logs"],
    ]


@pytest.mark.parametrize(
    ("allowed", "code", "begins"), [(True, 0, "yes: ada may stop"), (False, 5, "no: ada may not stop")]
)
def test_can_says_yes_or_no_and_by_which_rule(
    server: FakeServer, pwm: Pwm, allowed: bool, code: int, begins: str
) -> None:
    said = {"rule": "because", "user": "ada", "verb": "stop", "kind": "Workload", "group": "lab"}
    server.on("GET", "/v1/admin/can", {**said, **({"allowed": True} if allowed else {})})
    result = pwm("admin", "can", "ada", "cancel", "wk", "-g", "lab")
    assert (result.code, result.lines) == (code, [f"{begins} Workload in group lab", "  because"])
    (request,) = server.of("GET", "/v1/admin/can")
    assert request.query == {"user": ["ada"], "verb": ["cancel"], "kind": ["Workload"], "group": ["lab"]}
    result = pwm("admin", "can", "ada", "get", "Token", "--name", "x", "-o", "json")
    assert (result.code, json.loads(result.out)["allowed"]) == (code, allowed)
