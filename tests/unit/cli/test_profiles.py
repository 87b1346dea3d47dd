"""The file of profiles: old ones are read, new ones are private and whole."""

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pwm.cli import profiles
from pwm.cli.errors import CliError, UsageError
from pwm.cli.profiles import _read_plain, add_profile, current_profile, read_config
from tests.unit.cli.conftest import Pwm

OF_PWM_1 = """\
profile: lab
api:
  lab:
    server:
      - 'http://a:4700'
      - http://b:4700
    auth:
      token: eyJhbGciOiJIUzI1NiJ9.e30.abc_-
projects: {}
"""
NAMES = st.text(st.sampled_from("abyn0-. _:'\"#\n"), max_size=6)


def _write(home: Path, text: str, *, folder: str = ".pwm", mode: int = 0o600) -> Path:
    path = home / folder / "config"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def _current(name: str = "", servers: tuple[str, ...] = ()) -> profiles.Profile:
    return current_profile(name, servers, warn=pytest.fail)


def test_a_file_of_pwm_1_is_read(own_home: Path) -> None:
    _write(own_home, OF_PWM_1)
    profile = _current()
    assert (profile.name, profile.servers) == ("lab", ["http://a:4700", "http://b:4700"])
    assert profile.token == "eyJhbGciOiJIUzI1NiJ9.e30.abc_-"


def test_doras_file_is_read_when_there_is_no_other(own_home: Path) -> None:
    _write(own_home, OF_PWM_1, folder=".dora")
    assert _current().name == "lab"
    _write(own_home, "profile: new\napi: {new: {server: 'http://c', auth: {token: t}}}\n")
    assert (_current().name, _current().servers) == ("new", ["http://c"])


def test_without_a_file_the_local_controller_is_asked() -> None:
    profile = _current()
    assert (profile.name, profile.servers, profile.token) == ("default", ["https://127.0.0.1:4700"], "")


def test_options_win_over_the_environment_and_that_over_the_file(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(own_home, OF_PWM_1 + "")
    monkeypatch.setenv("PWM_TOKEN", "from-environment")
    monkeypatch.setenv("PWM_SERVER", "http://e1, http://e2")
    assert (_current().servers, _current().token) == (["http://e1", "http://e2"], "from-environment")
    assert _current(servers=("http://o",)).servers == ["http://o"]


def test_an_unknown_profile_is_said_with_those_there_are(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(own_home, OF_PWM_1)
    monkeypatch.setenv("PWM_PROFILE", "lba")
    with pytest.raises(UsageError, match="'lba'") as error:
        _current()
    assert "lab" in error.value.next_step


@given(
    st.dictionaries(
        NAMES,
        st.fixed_dictionaries({"server": st.lists(NAMES), "auth": st.fixed_dictionaries({"token": NAMES})}),
        max_size=3,
    ),
    st.one_of(st.none(), NAMES),
)
def test_the_quick_reader_reads_what_yaml_reads_or_gives_up(entries: dict[str, object], using: str | None) -> None:
    text = yaml.safe_dump({"profile": using, "api": entries}, sort_keys=False, width=10_000)
    quick = _read_plain(text)
    assert quick is None or quick == yaml.safe_load(text)


@given(st.text(st.sampled_from("ab: -\n'#[]{}&*!|>0y"), max_size=40))
def test_the_quick_reader_never_reads_anything_as_something_else(text: str) -> None:
    quick = _read_plain(text)
    if quick is not None:
        assert (yaml.safe_load(text) or {}) == quick


def test_what_we_write_ourselves_is_read_without_a_yaml_library(own_home: Path) -> None:
    add_profile("lab", servers=["http://127.0.0.1:4700", "https://pwm.example.org:443/x"], token="pwm_AbC-1_9")
    assert _read_plain((own_home / ".pwm/config").read_text()) == read_config(pytest.fail)


def test_the_file_is_private_and_keeps_what_it_does_not_know(own_home: Path) -> None:
    path = _write(own_home, OF_PWM_1)
    add_profile("new", servers=["http://n:1"], token="t", use=False)
    config = yaml.safe_load(path.read_text())
    assert path.stat().st_mode & 0o777 == 0o600
    assert config["projects"] == {}
    assert (config["profile"], list(config["api"])) == ("lab", ["lab", "new"])
    assert list(path.parent.iterdir()) == [path], "nothing is left lying about"


def test_a_failed_write_leaves_the_old_file(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(own_home, OF_PWM_1)

    def no_space(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(CliError, match="No space left"):
        add_profile("new", servers=["http://n:1"], token="t")
    assert path.read_text() == OF_PWM_1
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_others_can_read_is_warned_about(own_home: Path) -> None:
    path = _write(own_home, OF_PWM_1, mode=0o644)
    warned: list[str] = []
    read_config(warned.append)
    assert len(warned) == 1
    assert f"chmod 600 {path}" in warned[0]


@pytest.mark.parametrize(
    "text", ["[1, 2]", "api: [a]\n", "api: {a: [1]}\n", "api: {a: {auth: x}}\n", "a: [\n", "just text"]
)
def test_a_broken_file_is_a_sentence_with_its_name(own_home: Path, pwm: Pwm, text: str) -> None:
    path = _write(own_home, text)
    result = pwm("profile", "using")
    assert result.code == 1
    assert str(path) in result.err
    assert "Traceback" not in result.err


def test_profiles_are_added_used_listed_and_deleted(own_home: Path, pwm: Pwm) -> None:
    assert pwm("profile", "add", "a", "--api-server", "http://a:1", "-t", "ta").out == "profile a added, and in use\n"
    assert "pwm profile use b" in pwm("profile", "add", "b", "-s", "http://b:1", "-s", "http://b:2", "-t", "tb").out
    assert pwm("profile", "using").out == "a\n"
    assert pwm("profile", "use", "b").code == 0
    listing = pwm("profile", "ls")
    assert listing.lines[0].split() == ["NAME", "SERVERS", "TOKEN"]
    assert listing.lines[2].split() == ["*", "b", "http://b:1,", "http://b:2", "yes"]
    assert "tb" not in listing.out
    assert pwm("profile", "token").out == "tb\n"
    assert pwm("profile", "token", "a").out == "ta\n"
    assert pwm("profile", "ls", "-o", "name").lines == ["a", "b"]
    assert pwm("profile", "del", "b").out == "profile b deleted; using a now\n"
    assert pwm("profile", "del", "b").code == 3
    assert pwm("profile", "use", "nope").code == 3


def test_init_makes_a_first_profile_once(own_home: Path, pwm: Pwm) -> None:
    assert pwm("profile", "init").code == 0
    before = (own_home / ".pwm/config").read_text()
    assert "has profiles already" in pwm("profile", "init").out
    assert (own_home / ".pwm/config").read_text() == before


def test_a_profile_needs_a_server_that_is_one(pwm: Pwm) -> None:
    assert pwm("profile", "add", "a").code == 2
    assert "not a server's URL" in pwm("profile", "add", "a", "-s", "ftp://x").err
