"""`pwm login --oidc`: what people are told, how often the server is asked, and how it ends."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from pwm.cli import client as client_module
from pwm.cli import device_login
from pwm.cli.profiles import read_config
from tests.unit.cli.conftest import FakeServer, Pwm, Request

SECRET = "pwm_" + "S" * 43
PROVIDER, BEGIN, COMPLETE = "/v1/login/provider", "/v1/login/begin", "/v1/login/complete"
BEGUN = {
    "handle": "pwmlogin.HANDLE",
    "userCode": "ABCD-EFGH",
    "verificationUri": "https://idp.example.org/device",
    "verificationUriComplete": "https://idp.example.org/device?user_code=ABCD-EFGH",
    "lifetime": "600s",
    "interval": "5s",
}
PENDING, SLOW_DOWN = {"state": "PENDING"}, {"state": "SLOW_DOWN"}
DONE = {
    "state": "DONE", "token": SECRET, "entry": {"name": "oidc-box", "user": "ann", "expiresAt": "2030-01-01T00:00:00Z"},
}  # fmt: skip
AWAY = (503, {"code": 14, "message": "the provider to log in at is out of reach: no answer", "details": []})
NOT_KNOWN = (
    401,
    {
        "code": 16, "message": "no user here has the e-mail address ann@example.org",
        "details": [{"@type": "pwm.v1.Problem", "nextStep": "ask an admin for it: spec.contact.email of your User"}],
    },
)  # fmt: skip


class Time:
    """Passes only when somebody waits."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    made = Time()
    monkeypatch.setattr(device_login, "time", made)
    # Between attempts at servers that do not answer.
    monkeypatch.setattr(client_module, "ROUND_PAUSE_S", 0.0)
    return made


@pytest.fixture
def idp(server: FakeServer, clock: Time, monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    """A server with a provider, to which nobody has logged in."""
    monkeypatch.delenv("PWM_TOKEN")
    monkeypatch.setattr("socket.gethostname", lambda: "box")
    server.on("GET", PROVIDER, {"issuer": "https://idp.example.org"})
    server.on("POST", BEGIN, BEGUN)
    server.on("POST", COMPLETE, DONE)
    return server


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Somebody sits there and types this, a line at a time."""
    lines: list[str] = []

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("getpass.getpass", lambda prompt: lines.pop(0))
    return lines


def test_the_address_and_the_code_are_shown_and_the_token_is_kept(idp: FakeServer, pwm: Pwm, own_home: Path) -> None:
    idp.on("POST", COMPLETE, PENDING, PENDING, DONE)
    result = pwm("login", "--oidc", "--profile", "lab")
    assert result.code == 0
    assert "\n    https://idp.example.org/device?user_code=ABCD-EFGH\n" in result.err
    assert "confirm there that the code is ABCD-EFGH (or type it at https://idp.example.org/device)" in result.err
    assert len(result.lines) == 1
    assert result.out.startswith(f"logged in at {idp.url} as ann; the token oidc-box is good until 20")
    assert read_config(pytest.fail)["api"]["lab"] == {"server": [idp.url], "auth": {"token": SECRET}}
    assert (own_home / ".pwm/config").stat().st_mode & 0o777 == 0o600
    assert SECRET not in result.out + result.err
    assert "\033" not in result.out + result.err, "there is no terminal"
    asked = idp.of("POST", COMPLETE)
    assert [request.body for request in asked] == [{"handle": "pwmlogin.HANDLE", "host": "box"}] * 3
    assert not [request for request in idp.requests if "authorization" in request.headers]
    assert idp.of("GET", "/v1/whoami") == [], "another replica may not know the token yet"


def test_a_provider_without_an_address_for_the_code_is_told_of_it_by_hand(idp: FakeServer, pwm: Pwm) -> None:
    idp.on("POST", BEGIN, {name: value for name, value in BEGUN.items() if name != "verificationUriComplete"})
    result = pwm("login", "--oidc")
    assert result.code == 0
    assert "\n    https://idp.example.org/device\n" in result.err
    assert "type the code ABCD-EFGH there" in result.err


def test_the_server_is_asked_as_seldom_as_the_provider_wants(idp: FakeServer, pwm: Pwm, clock: Time) -> None:
    idp.on("POST", COMPLETE, PENDING, SLOW_DOWN, PENDING, SLOW_DOWN, DONE)
    assert pwm("login", "--oidc").code == 0
    assert clock.pauses == [5, 5, 10, 10, 15]


def test_a_code_that_nobody_confirms_ends_in_time(idp: FakeServer, pwm: Pwm, clock: Time) -> None:
    idp.on("POST", BEGIN, {**BEGUN, "lifetime": "12s"})
    idp.on("POST", COMPLETE, PENDING)
    result = pwm("login", "--oidc")
    assert result.code == 5
    assert "error: the code was not confirmed in time\n  pwm login --oidc begins anew" in result.err
    assert clock.pauses == [5, 5, 2]
    assert read_config(pytest.fail) == {}


def test_who_is_refused_is_told_why_and_keeps_what_was_there(idp: FakeServer, pwm: Pwm, own_home: Path) -> None:
    idp.on("POST", COMPLETE, PENDING, NOT_KNOWN)
    result = pwm("login", "--oidc")
    assert (result.code, result.out) == (5, "")
    assert "error: no user here has the e-mail address ann@example.org\n  ask an admin for it" in result.err
    assert len(idp.of("POST", COMPLETE)) == 2
    assert not (own_home / ".pwm/config").exists()


def test_trouble_on_the_way_is_waited_out_and_said_once(idp: FakeServer, pwm: Pwm) -> None:
    idp.on("POST", COMPLETE, PENDING, AWAY, AWAY, "hang up", "hang up", "hang up", DONE)
    result = pwm("login", "--oidc")
    assert result.code == 0
    assert result.err.count("trying again") == 1
    assert "the provider to log in at is out of reach: no answer; trying again" in result.err


def test_trouble_that_lasts_is_how_it_ends(idp: FakeServer, pwm: Pwm) -> None:
    idp.on("POST", BEGIN, {**BEGUN, "lifetime": "12s"})
    idp.on("POST", COMPLETE, AWAY)
    result = pwm("login", "--oidc")
    assert result.code == 6
    assert "error: the provider to log in at is out of reach" in result.err


def test_ctrl_c_ends_it_without_a_word_and_leaves_nothing(
    idp: FakeServer, pwm: Pwm, clock: Time, monkeypatch: pytest.MonkeyPatch, own_home: Path
) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(clock, "sleep", interrupted)
    result = pwm("login", "--oidc")
    assert (result.code, result.out) == (130, "")
    assert result.err.endswith("(or type it at https://idp.example.org/device).\n")
    assert not (own_home / ".pwm/config").exists()


def test_what_a_provider_says_cannot_steer_a_terminal(idp: FakeServer, pwm: Pwm) -> None:
    evil = {
        name: f"{value}\033]0;evil\007" for name, value in BEGUN.items() if name.startswith(("user", "verification"))
    }
    idp.on("POST", BEGIN, {**BEGUN, **evil})
    result = pwm("login", "--oidc")
    assert "\033" not in result.err
    assert "evil" in result.err


@pytest.mark.parametrize(("no_colour", "bold"), [("", True), ("1", False)])
def test_a_terminal_shows_the_code_in_bold_unless_it_must_not(
    idp: FakeServer, pwm: Pwm, monkeypatch: pytest.MonkeyPatch, no_colour: str, bold: bool
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", no_colour)
    assert ("\033[1mABCD-EFGH\033[0m" in pwm("login", "--oidc").err) is bold


def test_a_server_without_a_provider_says_so(idp: FakeServer, pwm: Pwm) -> None:
    idp.on("POST", BEGIN, (400, {"code": 9, "message": "this PWM has no provider to log in at", "details": []}))
    result = pwm("login", "--oidc")
    assert result.code == 1
    assert "this PWM has no provider to log in at" in result.err


# ---- at a terminal, without the option


def test_enter_alone_logs_in_with_a_browser(idp: FakeServer, pwm: Pwm, terminal: list[str]) -> None:
    terminal.append("")
    result = pwm("login")
    assert result.code == 0
    assert "Or just Enter, to log in with a browser at https://idp.example.org." in result.err
    assert read_config(pytest.fail)["api"]["default"]["auth"] == {"token": SECRET}


def test_a_token_that_is_typed_is_taken_as_before(idp: FakeServer, pwm: Pwm, terminal: list[str]) -> None:
    other = SECRET.replace("S", "T")
    terminal.append(other)
    idp.on("GET", "/v1/whoami", {"user": "ann", "groups": ["vision"]})
    assert pwm("login").code == 0
    assert idp.of("POST", BEGIN) == []
    assert read_config(pytest.fail)["api"]["default"]["auth"] == {"token": other}


@pytest.mark.parametrize("answer", [{"issuer": ""}, {}, (404, {"code": 5, "message": "nothing there", "details": []})])
def test_where_there_is_no_provider_enter_alone_is_no_token(
    idp: FakeServer, pwm: Pwm, terminal: list[str], answer: Any
) -> None:
    terminal.append("")
    idp.on("GET", PROVIDER, answer)
    result = pwm("login")
    assert result.code == 2
    assert "no token was given" in result.err
    assert "Or just Enter" not in result.err


def test_a_script_that_pipes_nothing_in_is_not_kept_waiting(
    idp: FakeServer, pwm: Pwm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    result = pwm("login")
    assert result.code == 2
    assert "pwm login --oidc" in result.err
    assert idp.requests == []


def test_a_question_is_repeated_with_the_same_key(idp: FakeServer, pwm: Pwm) -> None:
    """Of one question, that is: a server that was left in doubt may know what it answered."""
    keys: list[str] = []

    def answer(request: Request) -> Any:
        keys.append(request.headers["idempotency-key"])
        return "hang up" if len(keys) == 1 else DONE

    idp.on("POST", COMPLETE, answer)
    assert pwm("login", "--oidc").code == 0
    assert len(keys) == 2
    assert len(set(keys)) == 1
