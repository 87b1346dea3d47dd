"""One table of options, two readers: they must never differ, and whatever is wrong must be said with exit code 2."""

from collections.abc import Iterator
from typing import Any

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pwm.cli import main as cli
from pwm.cli.command import GLOBALS, Argument, Command, Option, parse
from pwm.cli.invocation import Invocation
from pwm.cli.usage import click_command
from tests.unit.cli.conftest import Pwm


def _all_commands() -> Iterator[tuple[str, Command]]:
    for name, (module, _) in cli.COMMANDS.items():
        if module in OURS:
            command = cli.load(name)
            assert command is not None
            yield from ((f"{name} {sub.name}", sub) for sub in command.subcommands.values())
            if not command.subcommands:
                yield name, command


OURS = (
    *("apply", "get", "describe", "delete", "stop", "scale", "why", "events", "profile", "login", "token", "version"),
    *("completion", "daemons", "admin", "whoami"),
)
COMMANDS = dict(_all_commands())
_VALUE = st.sampled_from(["a", "wk", "b-1", "1", "30s", "json", "x=y", "127.0.0.1:1", "", "a b", "-", "1GiB", "info"])


def _words_of(option: Option) -> st.SearchStrategy[list[str]]:
    spelling = st.sampled_from(option.spellings)
    if option.flag:
        return spelling.map(lambda s: [s])
    value = st.sampled_from(option.choices) if option.choices else _VALUE
    return st.tuples(spelling, value, st.booleans()).map(_joined)


def _joined(parts: tuple[str, str, bool]) -> list[str]:
    spelling, value, join = parts
    if not join:
        return [spelling, value]
    return [f"{spelling}={value}"] if spelling.startswith("--") else [spelling + value] if value else [spelling, value]


def _line_of(command: Command) -> st.SearchStrategy[list[str]]:
    word = st.one_of(_VALUE.filter(lambda text: text not in ("", "-")), st.just("--")).map(lambda text: [text])
    pieces = [word, *(_words_of(option) for option in command.options)]
    needed = sum(argument.required for argument in command.arguments)
    anything = st.lists(st.one_of(pieces), max_size=6)
    # Three arguments in a row are rare where everything is drawn.
    complete = st.tuples(st.lists(word, min_size=needed, max_size=needed), anything).map(lambda both: both[0] + both[1])
    return st.one_of(anything, complete).map(lambda parts: [word for part in parts for word in part])


@pytest.mark.parametrize("name", COMMANDS)
def test_the_quick_reader_reads_as_click_does(name: str) -> None:
    command = COMMANDS[name]
    seen: list[dict[str, Any]] = []
    double = Command(name, None, help="", parameters=[*command.options, *command.arguments])
    double.interspersed = command.interspersed

    @settings(max_examples=60, deadline=None)
    @given(_line_of(command))
    def agree(line: list[str]) -> None:
        quick = parse(command, line)
        try:
            context = click_command(double).make_context(name, list(line))
        except click.UsageError:
            assert quick is None, line
            return
        if quick is not None:
            assert context.params == quick, line
            seen.append(quick)

    agree()
    assert seen, "no line was read by both"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["verion"], "Did you mean version?"),
        (["get"], "Missing argument"),
        (["get", "wk", "--outptu", "json"], "No such option"),
        (["get", "wk", "-o", "xml"], "'xml' is not one of"),
        (["get", "wrkloads"], "Did you mean workloads?"),
        (["profile", "ad"], "Did you mean add?"),
        (["scale", "wk", "train", "many"], "'many' is not a whole number"),
        (["stop", "wk", "a", "--wait", "--timeout", "soon"], "'soon' is not a duration"),
        (["describe", "wk"], "say which one"),
        (["stop"], "say what to stop"),
        (["apply"], "say what to apply"),
    ],
)
def test_a_mistake_on_the_command_line_is_said_with_exit_code_2(pwm: Pwm, words: list[str], says: str) -> None:
    result = pwm(*words)
    assert (result.code, result.out) == (2, "")
    assert says in result.err


def test_help_names_every_command_without_importing_any(pwm: Pwm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "load", lambda name: pytest.fail(f"{name} was imported"))
    result = pwm("--help")
    assert result.code == 0
    assert all(f"  {name} " in result.out for name in cli.COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_for_all_its_options(pwm: Pwm, name: str) -> None:
    result = pwm(*name.split(), "--help")
    assert result.code == 0
    for parameter in (*COMMANDS[name].options, *COMMANDS[name].arguments):
        if isinstance(parameter, Argument) or not parameter.hidden:
            shown = parameter.spellings[0] if isinstance(parameter, Option) else parameter.metavar or parameter.name
            assert shown.split()[0].upper().strip("[].") in result.out.upper()


@pytest.mark.parametrize(
    "words",
    [["-g", "lab", "get", "wk"], ["get", "wk", "-g", "lab"], ["get", "-glab", "wk"], ["--group=lab", "get", "wk"]],
)
def test_the_group_may_stand_before_or_after_the_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[dict[str, Any]] = []
    monkeypatch.setattr(Invocation, "run", lambda command, values: ran.append(values) or 0)
    assert cli.run(words) == 0
    assert {name: value for name, value in ran[0].items() if name in GLOBALS and value} == {"group": "lab"}


def test_click_passes_the_group_on_too(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[dict[str, Any]] = []
    monkeypatch.setattr(Invocation, "run", lambda command, values: ran.append(values) or 0)
    monkeypatch.setattr(cli, "_plain", lambda words: None)
    assert cli.run(["-g", "lab", "profile", "use", "x"]) == 0
    assert (ran[0]["group"], ran[0]["name"]) == ("lab", "x")


def test_an_old_verb_still_works(pwm: Pwm) -> None:
    assert "say what to delete" in pwm("remove", "wk").err


def test_ctrl_c_ends_quietly_with_130(pwm: Pwm, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(command: Command, values: dict[str, Any]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(Invocation, "run", interrupted)
    result = pwm("version")
    assert (result.code, result.out, result.err) == (130, "", "")


def test_a_fault_of_ours_is_a_sentence_and_with_pwm_debug_a_traceback(
    pwm: Pwm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(command: Command, values: dict[str, Any]) -> int:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(Invocation, "run", broken)
    result = pwm("version")
    assert result.code == 1
    assert result.err == "error: internal error: ZeroDivisionError: oh\n  PWM_DEBUG=1 shows where.\n"
    monkeypatch.setenv("PWM_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        pwm("version")
