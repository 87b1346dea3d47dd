"""`pwm admin failover`: what its findings find, what its times measure, and what it refuses to begin with."""

from dataclasses import replace
from typing import Any

import pytest

from pwm.cli.failover import evidence, report
from pwm.cli.failover.ledger import Ack, Pages
from pwm.cli.failover.line import Line
from pwm.cli.failover.rounds import Plan, Round
from pwm.cli.failover.watch import Watcher
from pwm.cli.failover.world import Container, World, standing
from pwm.cli.profiles import Profile
from tests.unit.cli.conftest import FakeServer, Pwm, Stream

PLAN = Plan("zone/default", "KILL", 5.0)


def pages(*revisions: int, unresolved: int = 0, reads: int = 3) -> Pages:
    acks = [Ack(revision, float(at)) for at, revision in enumerate(revisions)]
    return Pages("ledger-1", "u1", acks=acks, unresolved=unresolved, reads=reads)


def history(*revisions: int) -> list[dict[str, Any]]:
    """Of a ledger that was created at revision 1 and written at these."""
    created = {"uid": "u1", "version": "1", "revision": "1", "workloadApplied": {}}
    written = [
        {"uid": "u1", "version": str(version), "revision": str(revision), "workloadRestarted": {}}
        for version, revision in enumerate(revisions, start=2)
    ]
    return [created, *written]


def watcher(*versions: int, trouble: str = "") -> Watcher:
    return Watcher("http://a", [{"uid": "u1", "version": str(v), "revision": str(v)} for v in versions], trouble)


def container(**different: Any) -> Container:
    found = Container(
        uid="c1", name="w.0.1", group="g", workload="w", workload_uid="w1", replica=0, attempt=1, node="n1",
        phase="RUNNING", reported=("42", "10:00"), exit_code=None, stopped_by="", by_driver=("42", "10:00"),
    )  # fmt: skip
    return replace(found, **different)


# --- the ledger -------------------------------------------------------------------------------------


def test_a_ledger_that_is_in_the_log_as_it_was_acknowledged_has_nothing_wrong() -> None:
    rounds = [(pages(5, 7, 9), history(5, 7, 9))]
    assert [evidence.lost(rounds).count, evidence.doubled(rounds).count] == [0, 0]
    assert evidence.lost(rounds).good
    assert evidence.doubled(rounds).good


def test_an_acknowledged_write_that_is_not_in_the_log_is_lost() -> None:
    finding = evidence.lost([(pages(5, 7, 9), history(5, 9))])
    assert (finding.count, finding.found) == (1, ["ledger-1: nothing at revision 7"])
    assert not finding.good


def test_a_write_that_nobody_was_told_of_was_done_twice() -> None:
    finding = evidence.doubled([(pages(5, 9), history(5, 6, 9))])
    assert (finding.count, finding.found) == (1, ["ledger-1: nobody was told of 6"])


def test_a_write_under_way_at_the_end_may_be_in_the_log_but_only_once() -> None:
    assert evidence.doubled([(pages(5, unresolved=1), history(5, 8))]).good
    assert evidence.doubled([(pages(5, unresolved=1), history(5, 8, 9))]).count == 1


def test_two_acknowledgements_of_one_revision_are_one_write_too_few() -> None:
    assert evidence.doubled([(pages(5, 5), history(5))]).count == 1


def test_a_hole_in_the_versions_is_found() -> None:
    holed = [event for event in history(5, 7, 9) if event["version"] != "3"]
    assert "versions are 1, 2, 4" in evidence.doubled([(pages(5, 9), holed)]).found[0]


def test_what_rests_on_nothing_is_no_success() -> None:
    nothing = [(pages(reads=0), history())]
    findings = [
        evidence.lost(nothing),
        evidence.doubled(nothing),
        evidence.stale([pages(reads=0)], servers=3),
        evidence.missed([], nothing),
        evidence.verified({}),
    ]
    assert [(finding.count, finding.good) for finding in findings] == [(0, False)] * 5
    assert "proves nothing" in report.text([round_()], findings, colour=False)


def test_a_read_that_lacks_what_was_written_before_is_told() -> None:
    old = pages(5)
    old.stale.append("http://a showed version 3 after write 9 was acknowledged")
    finding = evidence.stale([old], servers=3)
    assert (finding.count, finding.found) == (1, old.stale)


@pytest.mark.parametrize(
    ("seen", "wrong"),
    [((1, 2, 3), 0), ((1, 2, 3, 4), 0), ((1, 3), 1), ((1, 2, 2, 3), 1), ((2, 1, 3), 3), ((), 3)],
    ids=["all", "and the end, later", "one missing", "one twice", "out of order", "none"],
)
def test_watchers_see_each_event_once_and_in_order(seen: tuple[int, ...], wrong: int) -> None:
    rounds = [(pages(5, 7), history(5, 7))]
    finding = evidence.missed([watcher(1, 2, 3), watcher(*seen)], rounds)
    assert finding.count == wrong
    assert finding.good == (wrong == 0)


def test_a_watcher_that_gave_up_is_told_with_the_reason() -> None:
    finding = evidence.missed([watcher(1, 2, trouble="no server answers")], [(pages(5), history(5))])
    assert (finding.count, finding.found) == (1, ["the watcher of http://a gave up: no server answers"])


# --- containers -------------------------------------------------------------------------------------


def test_a_container_that_runs_on_was_not_touched() -> None:
    finding = evidence.touched({"c1": container()}, {"c1": container()})
    assert (finding.count, finding.rests_on) == (0, "1 of 1 are the processes they were, 1 by their drivers' word")


@pytest.mark.parametrize(
    "now",
    [
        container(reported=("43", "10:05")),
        container(by_driver=("43", "10:05")),
        container(node="n2"),
        container(phase="LOST"),
        container(phase="EXITED", exit_code=137),
        container(phase="EXITED", exit_code=0, stopped_by="CONTROLLER"),
    ],
)
def test_a_container_that_is_another_process_or_was_stopped_by_no_user_was_touched(now: Container) -> None:
    finding = evidence.touched({"c1": container()}, {"c1": now})
    assert finding.count == 1
    assert finding.found[0].startswith("g/w.0.1 on n1: ")


@pytest.mark.parametrize(
    "now",
    [None, container(phase="EXITED", exit_code=0), container(phase="EXITED", exit_code=143, stopped_by="USER")],
    ids=["deleted", "ended", "stopped by its user"],
)
def test_a_container_that_went_for_reasons_of_its_own_was_not_touched(now: Container | None) -> None:
    finding = evidence.touched({"c1": container()}, {"c1": now} if now else {})
    assert finding.count == 0
    assert "1 ended by themselves" in finding.rests_on


def test_a_replica_that_lives_twice_was_placed_twice() -> None:
    twice = {"c1": container(), "c2": container(uid="c2", attempt=2, phase="ASSIGNED")}
    assert evidence.placed_twice(twice, []).found == ["g/w.0 has 2 live containers"]
    after_its_end = {"c1": container(phase="EXITED"), "c2": container(uid="c2", attempt=2)}
    assert evidence.placed_twice(after_its_end, []).good


def test_an_attempt_that_was_placed_twice_is_found_in_the_events() -> None:
    placed = {"containerPlaced": {"spec": {"workloadUid": "w1", "attempt": 1}}}
    assert evidence.placed_twice({"c1": container()}, [placed]).good
    assert evidence.placed_twice({"c1": container()}, [placed, placed]).found == [
        "attempt 1 of g/w.0 was placed 2 times"
    ]


# --- times ------------------------------------------------------------------------------------------


def test_the_longest_wait_is_between_two_acknowledgements_around_the_failure() -> None:
    acks = [Ack(1, 0.0), Ack(2, 3.0), Ack(3, 3.5), Ack(4, 5.5), Ack(5, 5.6)]
    assert evidence.longest_wait_s(acks, from_s=3.4, to_s=5.6) == 2.0
    # The wait that the failure falls into counts whole.
    assert evidence.longest_wait_s(acks, from_s=2.9, to_s=3.4) == 3.0
    assert evidence.longest_wait_s([], from_s=0, to_s=1) == 0.0


def test_a_wait_that_has_no_end_lasts_to_the_end() -> None:
    assert evidence.longest_wait_s([Ack(1, 0.0), Ack(2, 0.1)], from_s=0, to_s=4.1) == pytest.approx(4.0)


def test_medians() -> None:
    assert [evidence.median([3.0]), evidence.median([1.0, 9.0, 2.0]), evidence.median([1.0, 2.0])] == [3.0, 2.0, 1.5]


def round_(**different: Any) -> Round:
    made = Round(
        1, "vm-a", "http://a:4700", pages(5, 7), history=history(5, 7), leader="vm-b", takeover_s=0.014,
        usual_s=0.01, wait_s=0.031, back_s=2.1,
    )  # fmt: skip
    return replace(made, **different)


def test_a_report_is_at_most_a_hundred_columns_wide_and_ends_with_the_verdict() -> None:
    rounds = [round_(), round_(takeover_s=1.5, back_s=None)]
    ledgers = [(r.pages, r.history) for r in rounds]
    findings = [evidence.lost(ledgers), evidence.missed([watcher(1, 2, 3)], ledgers)]
    text = report.text(rounds, findings, colour=False)
    assert max(map(len, text.splitlines())) <= 100
    assert text.endswith("Nobody noticed.")
    assert "757 ms" in text  # the median of 14 ms and 1.5 s
    bad = evidence.lost([(pages(5, 7), history(5))])
    assert report.text(rounds, [bad], colour=False).endswith("see above, and the controllers' logs.")


def test_rounds_are_lines_of_a_table() -> None:
    table = report.RoundTable(PLAN, standing(status()), colour=False)
    rows = [table.header(), table.row(round_()), table.row(round_(takeover_s=1.5, back_s=None))]
    assert [row.split() for row in rows[1:]] == [
        ["1", "vm-a", "a:4700", "vm-b", "14", "ms", "31", "ms", "2.1", "s"],
        ["1", "vm-a", "a:4700", "vm-b", "1.5", "s", "31", "ms", "not", "at", "all"],
    ]
    assert {row.index(word) for row, word in zip(rows, ("LED AFTER", "14 ms", "1.5 s"), strict=True)} == {41}


def test_the_report_for_scripts_says_the_same() -> None:
    findings = [evidence.lost([(pages(5, 7), history(5))])]
    document = report.as_json(PLAN, [round_()], findings)
    assert document["good"] is False
    assert document["times"]["next_leader"] == {"p50": 0.014, "max": 0.014}
    assert document["findings"][0]["count"] == 1
    assert document["rounds"][0]["revisions"] == [5, 7]


# --- calm -------------------------------------------------------------------------------------------


def status(**different: Any) -> dict[str, Any]:
    replicas = [
        {"id": name, "address": f"http://{name}:4700", "version": "3", "revision": "9", "answering": name == "a"}
        for name in "abc"
    ]
    leaders = [{"role": "zone/default", "replica": "a", "since": "2026-01-01T00:00:00.5Z", "atWork": True}]
    return {"replicas": replicas, "leaders": leaders, "revision": "9", **different}


def test_what_keeps_a_cluster_from_being_calm() -> None:
    def unrest(answer: dict[str, Any]) -> str:
        return standing(answer).unrest("zone/default", replicas=3)

    assert unrest(status()) == ""
    assert standing(status()).leaders["zone/default"].since_s == 1767225600.5
    assert unrest(status(replicas=status()["replicas"][:2])) == "2 of 3 replicas are here"
    assert unrest(status(leaders=[])) == "nobody leads zone/default"
    for trouble, said in (
        ({"trouble": "does not answer"}, "does not answer"),
        ({"lag": "900"}, "is 900 changes behind"),
        ({"staleSince": "2026-01-01T00:00:00Z"}, "cannot reach etcd"),
    ):
        broken = status()
        broken["replicas"][1] |= trouble
        assert unrest(broken) == f"replica b (http://b:4700) {said}"
    begun = status()
    begun["leaders"][0]["atWork"] = False
    assert "has only begun to lead" in unrest(begun)


# --- what it does not begin with --------------------------------------------------------------------


def failover(pwm: Pwm, *words: str) -> tuple[int, str]:
    result = pwm("admin", "failover", *words)
    return result.code, result.err


def test_one_controller_is_not_enough(pwm: Pwm, server: FakeServer) -> None:
    server.on("GET", "/v1/admin/status", status(replicas=status()["replicas"][:1]))
    code, said = failover(pwm, "--yes")
    assert code == 1
    assert "one controller only" in said
    assert "pwm up --controllers 3" in said
    assert server.of("POST", "/v1/admin/drill") == []


def test_a_role_that_nobody_leads_is_said_with_those_there_are(pwm: Pwm, server: FakeServer) -> None:
    server.on("GET", "/v1/admin/status", status())
    code, said = failover(pwm, "--role", "zone/moon", "--yes")
    assert code == 2
    assert "no leader of zone/moon" in said
    assert "zone/default" in said


def test_unrest_that_does_not_end_is_said(pwm: Pwm, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pwm.cli.failover.rounds.CALM_LIMIT_S", 0)
    broken = status()
    broken["replicas"][2]["trouble"] = "does not answer"
    server.on("GET", "/v1/admin/status", broken)
    code, said = failover(pwm, "--yes")
    assert code == 1
    assert "replica c (http://c:4700) does not answer" in said


def test_without_a_terminal_somebody_has_to_have_said_yes(pwm: Pwm, server: FakeServer) -> None:
    server.on("GET", "/v1/admin/status", status())
    server.on("GET", "/v1/resources/Container", {"items": []})
    code, said = failover(pwm)
    assert code == 2
    assert "This kills (SIGKILL) the controller that leads zone/default" in said
    assert "--yes" in said
    assert [request for request in server.requests if request.method == "POST"] == []


@pytest.mark.parametrize(
    "words", [("--kill", "--freeze"), ("--freeze", "--for", "1s"), ("--freeze", "--for", "2m"), ("--rounds", "0")]
)
def test_what_makes_no_sense_is_wrong_usage(pwm: Pwm, server: FakeServer, words: tuple[str, ...]) -> None:
    assert failover(pwm, *words)[0] == 2
    assert server.requests == []


# --- the line ---------------------------------------------------------------------------------------


def test_a_line_moves_on_with_the_same_key_and_begins_where_it_is_told(
    server: FakeServer, other_server: FakeServer
) -> None:
    server.on("POST", "/x", "hang up")
    other_server.on("POST", "/x", {"revision": "7"})
    line = Line(Profile("p", servers=[other_server.url, server.url], token="t"), first=server.url)
    try:
        answer = line.insist(lambda: line.ask("POST", "/x", body={}, key="k"), until=lambda: False)
    finally:
        line.close()
    assert answer == {"revision": "7"}
    assert (line.server, line.moves) == (other_server.url, 1)
    keys = [request.headers["idempotency-key"] for fake in (server, other_server) for request in fake.of("POST", "/x")]
    assert keys == ["k", "k"]


def test_a_history_is_read_until_it_reaches_what_was_acknowledged(server: FakeServer) -> None:
    short, whole = [Stream([{"event": event} for event in history(*revisions)]) for revisions in ((5,), (5, 7))]
    server.on("GET", "/v1/events", short, short, whole)
    world = World(Profile("p", servers=[server.url], token="t"))
    try:
        events = world.history("admin", "ledger-1", upto=7)
    finally:
        world.close()
    assert evidence.lost([(pages(5, 7), events)]).good
    assert len(server.requests) == 3


def test_a_history_that_never_reaches_it_is_taken_as_it_is(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pwm.cli.failover.world.SEEN_LIMIT_S", 0)
    server.on("GET", "/v1/events", Stream([{"event": event} for event in history(5)]))
    world = World(Profile("p", servers=[server.url], token="t"))
    try:
        events = world.history("admin", "ledger-1", upto=7)
    finally:
        world.close()
    assert evidence.lost([(pages(5, 7), events)]).count == 1
