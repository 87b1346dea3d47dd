"""`pwm notify`: what is sent to the server, and how the answer is shown."""

from typing import Any

import pytest

from tests.unit.cli.conftest import FakeServer, Pwm


@pytest.mark.parametrize(
    ("answer", "lines"),
    [
        ({}, ["Of:  nothing", "To:  nowhere"]),
        ({"email": "a@b.c"}, ["Of:  idle, credits", "To:  a@b.c"]),
        ({"email": "a@b.c", "notify": {"on": ["crashed"]}}, ["Of:  crashed", "To:  nowhere"]),
        (
            {"email": "a@b.c", "notify": {"byEmail": True, "to": ["tgram://t/1"]}},
            ["Of:  exited, crashed, denied, idle, credits", "To:  a@b.c", "To:  tgram://t/1"],
        ),
    ],
)
def test_it_shows_of_what_and_where(server: FakeServer, pwm: Pwm, answer: dict[str, Any], lines: list[str]) -> None:
    server.on("GET", "/v1/notices", answer)
    assert pwm("notify").out.splitlines() == lines


def test_what_is_set_replaces_all_of_it(server: FakeServer, pwm: Pwm) -> None:
    server.on("POST", "/v1/notices", {"warnings": [{"field": "byEmail", "message": "no mail is sent: no server"}]})
    result = pwm("notify", "set", "--email", "--on", "crashed,denied", "--on", "idle", "--to", "tgram://t/1")
    assert server.requests[-1].body == {
        "notify": {"byEmail": True, "on": ["crashed", "denied", "idle"], "to": ["tgram://t/1"]}
    }
    assert "warning: no mail is sent: no server" in result.err
    pwm("notify", "reset")
    assert server.requests[-1].body == {}


@pytest.mark.parametrize("words", [("lunch",), ("set",), ("--email",), ("reset", "--to", "tgram://t/1")])
def test_what_makes_no_sense_is_said_before_anything_is_asked(
    server: FakeServer, pwm: Pwm, words: tuple[str, ...]
) -> None:
    result = pwm("notify", *words)
    assert result.code == 2
    assert "pwm notify" in result.err
    assert not server.requests
