"""`pwm token` and `pwm login`."""

import io
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pwm.cli.invocation import Invocation
from pwm.cli.profiles import Profile, read_config
from tests.unit.cli.conftest import FakeServer, Pwm, Stream

SECRET = "pwm_" + "S" * 43
WHO = {"user": "ann", "groups": ["vision"], "defaultGroup": "vision", "token": {"name": "laptop"}}
REVOKED = {"code": 16, "message": "the token ci of ann has been revoked", "details": []}


def stamp(in_s: float) -> str:
    """Days away, so that it stays the same however long the tests before take."""
    return datetime.fromtimestamp(time.time() + in_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


TOKENS: list[dict[str, Any]] = [
    {"id": "0123456789ab", "name": "laptop", "user": "ann", "state": "LIVE", "createdAt": stamp(-3 * 86400),
     "createdBy": {"type": "USER", "name": "root"}, "expiresAt": stamp(5 * 86400 + 3000), "lastUsedAt": stamp(-86400),
     "lastUsedFrom": "10.0.0.7", "description": "on my desk", "current": True},
    {"id": "1123456789ab", "name": "ci", "user": "ann", "state": "REVOKED", "createdAt": stamp(-3 * 86400),
     "createdBy": {"type": "CONTROLLER", "name": "bootstrap"}, "revokedAt": stamp(-2 * 86400)},
    {"id": "2123456789ab", "name": "old", "user": "ann", "state": "EXPIRED", "createdAt": stamp(-9 * 86400),
     "expiresAt": stamp(-2 * 86400)},
    {"id": "3123456789ab", "name": "robot", "user": "bob", "state": "LIVE", "createdAt": stamp(-60)},
]  # fmt: skip


# ---- pwm token


def test_the_token_alone_goes_to_standard_output(server: FakeServer, pwm: Pwm) -> None:
    server.on("POST", "/v1/tokens", {"token": SECRET, "entry": TOKENS[0]})
    result = pwm("token", "create", "laptop")
    assert (result.code, result.out) == (0, SECRET + "\n")
    assert "token laptop of ann, good until 20" in result.err
    assert "pwm login" in result.err
    assert "PWM_TOKEN" in result.err
    assert server.requests[0].body == {"name": "laptop", "user": "", "description": ""}
    assert pwm("token", "create", "-o", "name").err == ""
    assert json.loads(pwm("token", "create", "-o", "json").out)["token"] == SECRET


def test_whom_a_token_is_handed_to_is_told_how_to_log_in(
    server: FakeServer, pwm: Pwm, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.on("POST", "/v1/tokens", {"token": SECRET, "entry": TOKENS[3]})
    url = server.url
    assert f"  pwm login --server {url} takes it" in pwm("token", "create", "--user", "bob").err
    authorities = [{"fingerprint": "old"}, {"fingerprint": "new", "issuing": True}]
    server.on("GET", "/v1/authorities", {"authorities": authorities})
    monkeypatch.setattr(Invocation, "profile", Profile("lab", servers=[url], token="t", pinned="ca-0123"))
    assert f"  pwm login --server {url} --fingerprint new takes it" in pwm("token", "create", "--user", "bob").err


@pytest.mark.parametrize(
    ("words", "body"),
    [
        (("--expires", "30d"), {"lifetime": "2592000.000s"}),
        (("-e", "1.5s"), {"lifetime": "1.500s"}),
        (("--expires", "never"), {"neverExpires": True}),
        (("--user", "bob", "-d", "for the robot"), {"user": "bob", "description": "for the robot"}),
    ],
)
def test_what_is_asked_for_reaches_the_server(
    server: FakeServer, pwm: Pwm, words: tuple[str, ...], body: dict[str, Any]
) -> None:
    server.on("POST", "/v1/tokens", {"token": SECRET, "entry": TOKENS[0]})
    assert pwm("token", "create", *words).code == 0
    assert server.requests[0].body == {"name": "", "user": "", "description": "", **body}


def test_an_expiry_that_is_none_is_wrong_usage(server: FakeServer, pwm: Pwm) -> None:
    result = pwm("token", "create", "--expires", "soon")
    assert result.code == 2
    assert "'soon' is not a duration" in result.err
    assert server.requests == []


def test_a_list_says_of_each_what_it_is_worth(server: FakeServer, pwm: Pwm) -> None:
    server.on("GET", "/v1/tokens", {"tokens": TOKENS[:3]})
    lines = [line.split("  ") for line in pwm("token", "ls").lines]
    rows = [[cell.strip() for cell in line if cell] for line in lines]
    assert rows == [
        ["NAME", "ID", "STATUS", "AGE", "EXPIRES", "LAST USED"],
        ["laptop (this one)", "0123456789ab", "LIVE", "3d", "in 5d", "1d ago"],
        ["ci", "1123456789ab", "REVOKED", "3d", "revoked 2d ago", "never"],
        ["old", "2123456789ab", "EXPIRED", "9d", "2d ago", "never"],
    ]
    wide = pwm("token", "ls", "-o", "wide").lines
    assert wide[1].endswith("10.0.0.7  root           on my desk")
    assert wide[2].endswith("the bootstrap")
    assert pwm("token", "ls", "-o", "name").lines == ["laptop", "ci", "old"]
    assert json.loads(pwm("token", "ls", "-o", "json").out) == TOKENS[:3]


def test_the_tokens_of_all_users_come_with_their_users(server: FakeServer, pwm: Pwm) -> None:
    server.on("GET", "/v1/tokens", {"tokens": TOKENS})
    result = pwm("token", "ls", "-A")
    assert server.requests[0].query == {"allUsers": ["true"]}
    assert [line.split()[0] for line in result.lines] == ["USER", "ann", "ann", "ann", "bob"]
    pwm("token", "ls", "--user", "bob")
    assert server.requests[1].query == {"user": ["bob"]}
    assert pwm("token", "ls", "-A", "--user", "bob").code == 2


def test_no_tokens_are_said(server: FakeServer, pwm: Pwm) -> None:
    server.on("GET", "/v1/tokens", {})
    result = pwm("token", "ls")
    assert (result.code, result.out) == (0, "")
    assert "pwm token create" in result.err


def test_names_cannot_steer_a_terminal(server: FakeServer, pwm: Pwm) -> None:
    server.on("GET", "/v1/tokens", {"tokens": [{**TOKENS[0], "description": "\033]0;evil\007"}]})
    assert "\033" not in pwm("token", "ls", "-o", "wide").out


def test_revoked_ones_are_named_and_ones_own_is_pointed_out(server: FakeServer, pwm: Pwm) -> None:
    server.on("POST", "/v1/tokens/revoke", {"tokens": TOKENS[:2]})
    result = pwm("token", "revoke", "laptop", "1123456789ab", "-u", "ann")
    assert result.lines == ["token laptop of ann revoked", "token ci of ann revoked"]
    assert "pwm login takes another" in result.err.replace("`", "")
    assert server.requests[0].body == {"names": ["laptop", "1123456789ab"], "user": "ann"}
    assert pwm("token", "revoke").code == 2


def test_a_refusal_ends_with_5_and_the_next_step(server: FakeServer, pwm: Pwm) -> None:
    server.on("POST", "/v1/tokens", (401, REVOKED))
    result = pwm("token", "create")
    assert result.code == 5
    assert "error: the token ci of ann has been revoked\n  pwm login" in result.err


@pytest.mark.parametrize("words", [("get", "wk", "-w"), ("events", "-f"), ("top", "--once")])
def test_a_stream_that_ends_for_a_revoked_token_is_not_asked_for_again(
    server: FakeServer, pwm: Pwm, words: tuple[str, ...]
) -> None:
    for path in ("/v1/watch/Workload", "/v1/events", "/v1/top"):
        server.on("GET", path, Stream([{"type": "SYNCED", "revision": "5"}], error=REVOKED))
    result = pwm(*words)
    assert result.code == 5
    assert "the token ci of ann has been revoked" in result.err
    assert len(server.requests) == 1


# ---- pwm login


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`stdin("text")`: what is piped in."""
    return lambda text: monkeypatch.setattr(sys, "stdin", io.StringIO(text))


@pytest.fixture
def fresh(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    """A server that only `--server` tells of."""
    monkeypatch.delenv("PWM_SERVER")
    monkeypatch.delenv("PWM_TOKEN")
    server.on("GET", "/v1/whoami", WHO)
    return server


def test_a_token_that_works_becomes_a_private_profile(fresh: FakeServer, pwm: Pwm, stdin: Any, own_home: Path) -> None:
    stdin(SECRET + "\n")
    result = pwm("login", "--server", fresh.url, "--server", "http://b:4700", "--profile", "lab")
    assert (result.code, result.lines) == (0, [f"logged in at {fresh.url}, http://b:4700 as ann, of vision"])
    assert fresh.requests[0].headers["authorization"] == f"Bearer {SECRET}"
    path = own_home / ".pwm/config"
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_config(pytest.fail) == {
        "profile": "lab",
        "api": {"lab": {"server": [fresh.url, "http://b:4700"], "auth": {"token": SECRET}}},
    }
    assert SECRET not in result.out + result.err


def test_a_second_login_renews_the_profile_in_use(fresh: FakeServer, pwm: Pwm, stdin: Any) -> None:
    stdin(SECRET)
    assert pwm("login", "--server", fresh.url).code == 0
    other = SECRET.replace("S", "T")
    fresh.on("GET", "/v1/whoami", {**WHO, "token": {"name": "new", "expiresAt": "2030-01-01T00:00:00Z"}})
    stdin(other)
    result = pwm("login")
    assert "the token new is good until 20" in result.out
    config = read_config(pytest.fail)
    assert config["api"]["default"] == {"server": [fresh.url], "auth": {"token": other}}


def test_the_servers_of_the_environment_are_those_of_the_new_profile(
    fresh: FakeServer, pwm: Pwm, stdin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PWM_SERVER", f"{fresh.url}, http://b:4700")
    stdin(SECRET)
    assert pwm("login").code == 0
    assert read_config(pytest.fail)["api"]["default"]["server"] == [fresh.url, "http://b:4700"]


def test_a_token_that_the_server_does_not_know_is_not_kept(fresh: FakeServer, pwm: Pwm, stdin: Any) -> None:
    fresh.on("GET", "/v1/whoami", (401, REVOKED))
    stdin(SECRET)
    result = pwm("login", "--server", fresh.url)
    assert result.code == 5
    assert SECRET not in result.out + result.err
    assert read_config(pytest.fail) == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "no token was given"), ("\n", "no token was given"), ("two words", "no token"), (SECRET[:20], "20 of 47")],
)
def test_what_is_no_token_is_not_sent_anywhere(fresh: FakeServer, pwm: Pwm, stdin: Any, text: str, words: str) -> None:
    stdin(text)
    result = pwm("login", "--server", fresh.url)
    assert result.code == 2
    assert words in result.err
    assert fresh.requests == []


def test_a_server_that_is_not_there_leaves_the_profile_alone(pwm: Pwm, stdin: Any, own_home: Path) -> None:
    stdin(SECRET)
    assert pwm("login", "--server", "http://127.0.0.1:1").code == 6
    assert not (own_home / ".pwm/config").exists()


def test_a_variable_that_replaces_the_profile_is_pointed_out(
    fresh: FakeServer, pwm: Pwm, stdin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PWM_TOKEN", "pwm_other")
    stdin(SECRET)
    result = pwm("login", "--server", fresh.url)
    assert "warning: PWM_TOKEN is set" in result.err
    assert fresh.requests[0].headers["authorization"] == f"Bearer {SECRET}", "what was given is what is checked"


def test_at_a_terminal_the_token_is_asked_for_and_not_shown(
    fresh: FakeServer, pwm: Pwm, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def hidden(prompt: str) -> str:
        asked.append(prompt)
        return SECRET

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("getpass.getpass", hidden)
    assert pwm("login", "--server", fresh.url).code == 0
    assert asked == ["Token (not shown): "]


def test_live_tokens_are_completed(server: FakeServer, pwm: Pwm) -> None:
    from pwm.cli.commands.completion import candidates

    server.on("GET", "/v1/tokens", {"tokens": TOKENS})
    assert candidates("token", {}) == ["laptop", "robot"]
