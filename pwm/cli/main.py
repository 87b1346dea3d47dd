"""`pwm`: finds the command, runs it, and turns whatever goes wrong into a sentence and an exit code.

Commands live one to a module and are imported when they are named, never before; `COMMANDS` says
where, with the one line that `pwm --help` shows. The quick reader of `command.py` handles a plain
line; all else (help, mistakes, completion) goes to `usage.py`, which loads click.

Exit codes are those of `exit_codes.py`. PWM_DEBUG=1 shows the traceback of an error.
"""

from __future__ import annotations

import os
import sys

from pwm.cli import exit_codes
from pwm.cli.command import GLOBAL_OPTIONS, Argument, Command, parse
from pwm.cli.errors import CliError
from pwm.cli.invocation import Invocation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from pwm.cli.usage import Program

# name -> (module in commands/ with COMMANDS, a table of its commands by name; line for `pwm --help`)
COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("up", "A whole PWM on this machine."),
    "apply": ("apply", "Create or change resources from YAML."),
    "run": ("run", "Run a workload without YAML."),
    "get": ("get", "List resources, or keep a list up to date."),
    "describe": ("describe", "All about one resource, with its events."),
    "why": ("why", "Why a workload does not run, or why it ended."),
    "logs": ("logs", "What a workload's containers print."),
    "shell": ("shell", "A shell or a command inside a container."),
    "top": ("top", "Live usage of nodes, GPUs and workloads."),
    "inspect": ("inspect", "What the driver says of a workload's containers."),
    "stop": ("stop", "Stop workloads and keep them."),
    "restart": ("stop", "Start workloads anew."),
    "keep": ("keep", "Hold a workload that does not use its GPUs."),
    "scale": ("scale", "Change a workload's number of replicas."),
    "delete": ("delete", "Delete resources."),
    "events": ("events", "What happened, and who did it."),
    "credits": ("credits", "Credits spent and left, and what devices cost."),
    "report": ("credits", "Use and cost by user, group, device and week."),
    "limits": ("limits", "What may be had at once, and what of it is in use."),
    "login": ("login", "Log in with a token."),
    "notify": ("notify", "Where you are told what becomes of your workloads."),
    "token": ("token", "Make, list and end tokens."),
    "profile": ("profile", "Servers and tokens."),
    "whoami": ("whoami", "Who the token speaks for."),
    "version": ("version", "Version of client and server."),
    "api-version": ("version", "Version of the API."),
    "completion": ("completion", "Completion for bash, zsh or fish."),
    "admin": ("admin", "The cluster itself: status, failover, verify, node tokens."),
    "controller": ("daemons", "Run a control-plane replica."),
    "agent": ("daemons", "Run the agent of this node."),
}
# Verbs of PWM 1.x that have another name now.
OLD_NAMES = {"cancel": "stop", "remove": "delete"}
VERSION_FLAGS = ("-v", "--vers", "--version")

_GLOBALS = Command("pwm", help="", parameters=(*GLOBAL_OPTIONS, Argument("words", multiple=True)), interspersed=False)


def load(name: str) -> Command | None:
    """The command of that name; its module is imported now."""
    name = OLD_NAMES.get(name, name)
    entry = COMMANDS.get(name)
    if entry is None:
        return None
    # As importlib.import_module does, whose import takes half a millisecond.
    module = __import__(f"pwm.cli.commands.{entry[0]}", fromlist=["COMMANDS"])
    commands: dict[str, Command] = module.COMMANDS
    return commands[name]


def run(words: Sequence[str]) -> int:
    """Runs one command line and returns its exit code; everything that goes wrong has been said."""
    try:
        code = _dispatch(words)
        sys.stdout.flush()
        return code
    except CliError as error:
        _say(error)
        return error.exit_code
    except KeyboardInterrupt:
        return exit_codes.INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; nobody is there to be told, and the interpreter must
        # not try to flush again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return exit_codes.BROKEN_PIPE
    except Exception as error:
        if os.environ.get("PWM_DEBUG"):
            raise
        _say(_unforeseen(error))
        return exit_codes.FAILED


def _dispatch(words: Sequence[str]) -> int:
    if len(words) == 1 and words[0] in VERSION_FLAGS:
        words = ["version"]
    if "_PWM_COMPLETE" not in os.environ:
        plain = _plain(words)
        if plain is not None:
            return Invocation.run(*plain)
    from pwm.cli.usage import run as run_in_full

    return run_in_full(program(), words)


def program() -> Program:
    """All commands as click sees them."""
    from pwm.cli.usage import Program

    return Program({name: entry[1] for name, entry in COMMANDS.items()}, load)


def _plain(words: Sequence[str]) -> tuple[Command, dict[str, Any]] | None:
    """The command and its values when the line is plain; None when it takes the full reader."""
    if words and not words[0].startswith("-"):
        scope: dict[str, Any] = {}
        rest = list(words)
    else:
        before = parse(_GLOBALS, words)
        if before is None or not before["words"]:
            return None
        rest = list(before.pop("words"))
        scope = {name: value for name, value in before.items() if value}
    command = load(rest[0])
    rest = rest[1:]
    while command is not None and command.subcommands:
        command = command.subcommands.get(rest[0]) if rest else None
        rest = rest[1:]
    values = parse(command, rest) if command is not None else None
    if command is None or values is None:
        return None
    return command, {**scope, **{name: value for name, value in values.items() if value or name not in scope}}


def _unforeseen(error: BaseException) -> CliError:
    """What nobody caught, as a sentence: the machine's trouble by its own words, ours as a fault of ours."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return CliError(f"{where}{error.strerror[:1].lower()}{error.strerror[1:]}")
    return CliError(f"internal error: {type(error).__name__}: {error}", next_step="PWM_DEBUG=1 shows where.")


def _say(error: CliError) -> None:
    try:
        sys.stdout.flush()
        sys.stderr.write(f"error: {error}\n")
        sys.stderr.flush()
    except OSError:
        pass


def _prepare_streams() -> None:
    """Standard streams that were closed lead nowhere; characters that a terminal lacks are replaced."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: PTH123, SIM115
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]


def main() -> None:
    """The console script. Ends the process without the interpreter's own cleaning up, which only costs time."""
    _prepare_streams()
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = code or exit_codes.BROKEN_PIPE
    os._exit(code)
