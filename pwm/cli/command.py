"""Commands as tables, and the quick way to read a command line.

Each command declares its options once, as data. Two readers use the table: `parse` here, which needs
no library and is all that most calls ever load, and `usage.py`, which makes a click command of the
same table for whatever needs more words: `--help`, completion, and every mistake. `parse` never
explains: what it cannot read it hands over by returning None. That keeps `pwm version` at a few
times the price of a bare interpreter, of which importing click alone would be two.

A command's function gets the `Invocation` and its own values by name, and returns the exit code.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Literal

    # What a parameter's values are, so that the shell can complete them.
    Completes = Literal["kind", "name", "profile", "group", "user", "token", "file", ""]


class Option:
    """`--name VALUE`, or a flag. Several spellings may share it; the first long one is shown in help."""

    __slots__ = (
        "choices",
        "completes",
        "convert",
        "default",
        "flag",
        "help",
        "hidden",
        "metavar",
        "multiple",
        "name",
        "spellings",
    )

    def __init__(
        self,
        name: str,
        *spellings: str,
        help: str,
        flag: bool = False,
        multiple: bool = False,
        default: object = None,
        choices: Sequence[str] = (),
        convert: Callable[[str], object] | None = None,
        metavar: str = "",
        hidden: bool = False,
        completes: Completes = "",
    ) -> None:
        self.name = name
        self.spellings = spellings
        self.help = help
        self.flag = flag
        self.multiple = multiple
        self.default = False if flag else () if multiple else default
        self.choices = choices
        # Raises ValueError with a sentence for the user.
        self.convert = convert
        self.metavar = metavar
        self.hidden = hidden
        self.completes = completes


class Argument:
    """A positional value. `multiple` takes all that are left; missing ones are None or ()."""

    __slots__ = ("completes", "convert", "metavar", "multiple", "name", "required")

    def __init__(
        self,
        name: str,
        *,
        required: bool = True,
        multiple: bool = False,
        metavar: str = "",
        convert: Callable[[str], object] | None = None,
        completes: Completes = "",
    ) -> None:
        self.name = name
        self.required = required
        self.multiple = multiple
        self.metavar = metavar
        self.convert = convert
        self.completes = completes


class Command:
    """A command: its parameters as data and the function that does it.

    `subcommands` makes it a group of commands (`pwm profile add`); it then has no function of its own.
    With `interspersed` false, everything after the first argument is an argument (`pwm shell wk a ls -l`).
    """

    __slots__ = ("arguments", "epilog", "help", "hidden", "interspersed", "name", "options", "run", "subcommands")

    def __init__(
        self,
        name: str,
        run: Callable[..., int] | None = None,
        *,
        help: str,
        parameters: Sequence[Option | Argument] = (),
        subcommands: Sequence[Command] = (),
        epilog: str = "",
        hidden: bool = False,
        interspersed: bool = True,
    ) -> None:
        self.name = name
        self.run = run
        self.help = help
        self.options = [p for p in parameters if isinstance(p, Option)]
        self.arguments = [p for p in parameters if isinstance(p, Argument)]
        self.subcommands = {command.name: command for command in subcommands}
        self.epilog = epilog
        self.hidden = hidden
        self.interspersed = interspersed


# --- options that many commands share -------------------------------------------------------------

GROUP = Option("group", "-g", "--group", "--workspace", help="Group to work in.", metavar="GROUP", completes="group")
ALL_GROUPS = Option("all_groups", "-A", "--all-groups", help="All groups that you may see.", flag=True)
ZONE = Option("zone", "-z", "--zone", help="Zone to work in.", metavar="ZONE")
PROFILE = Option("profile", "--profile", help="Profile to use.", metavar="NAME", completes="profile")
SERVER = Option("server", "--server", help="Server to ask instead of the profile's.", metavar="URL", multiple=True)
SELECTOR = Option(
    "selector", "-l", "--selector", help="Only those with these labels: k=v, k!=v, k, !k.", metavar="LABELS"
)
TIMEOUT_HELP = "How long --wait waits, such as 30s or 10m."

# Where to go; every command that talks to a server takes them, before or after the command's name.
CONNECTION = (PROFILE, SERVER)
SCOPE = (GROUP, ZONE, *CONNECTION)
# Not values of a command's function but of its `Invocation`.
GLOBALS = ("group", "all_groups", "zone", "profile", "server")
GLOBAL_OPTIONS = (GROUP, ALL_GROUPS, ZONE, PROFILE, SERVER)


def seconds(text: str) -> float:
    """A duration option's value: `30s`, `10m`, or a bare number of seconds."""
    from pwm.quantity import parse_duration

    return float(text) if text.replace(".", "", 1).isdecimal() else parse_duration(text) / 1000


def whole_number(text: str) -> int:
    """An integer from 0."""
    if not text.isdecimal() or len(text) > 9:
        raise ValueError(f"{text!r} is not a whole number from 0")
    return int(text)


# --- the quick reader -----------------------------------------------------------------------------


class _NotPlain(Exception):
    """The line needs the full parser."""


def parse(command: Command, words: Sequence[str]) -> dict[str, Any] | None:
    """Values of the command's parameters, or None when the line is wrong or asks for help."""
    try:
        return _parse(command, words)
    except (_NotPlain, ValueError):
        return None


def _parse(command: Command, words: Sequence[str]) -> dict[str, Any]:
    by_spelling = {spelling: option for option in command.options for spelling in option.spellings}
    values: dict[str, Any] = {option.name: option.default for option in command.options}
    positional: list[str] = []
    rest = list(reversed(words))
    while rest:
        word = rest.pop()
        if word == "--":
            positional += reversed(rest)
            break
        if word.startswith("--"):
            _take_long(by_spelling, word, rest, values)
        elif word.startswith("-") and len(word) > 1:
            _take_short(by_spelling, word, rest, values)
        else:
            positional.append(word)
            if not command.interspersed:
                positional += reversed(rest)
                break
    _place(command.arguments, positional, values)
    return values


def _take_long(by_spelling: dict[str, Option], word: str, rest: list[str], values: dict[str, Any]) -> None:
    spelling, equals, value = word.partition("=")
    option = by_spelling.get(spelling)
    if option is None or (option.flag and equals):
        raise _NotPlain
    if option.flag:
        values[option.name] = True
    else:
        _store(option, value if equals else _next(rest), values)


def _take_short(by_spelling: dict[str, Option], word: str, rest: list[str], values: dict[str, Any]) -> None:
    """`-w`, `-Aw`, `-o json`, `-ojson`."""
    for position, letter in enumerate(word[1:], start=2):
        option = by_spelling.get("-" + letter)
        if option is None:
            raise _NotPlain
        if not option.flag:
            _store(option, word[position:] or _next(rest), values)
            return
        values[option.name] = True


def _next(rest: list[str]) -> str:
    if not rest:
        raise _NotPlain
    return rest.pop()


def _store(option: Option, text: str, values: dict[str, Any]) -> None:
    if option.choices and text not in option.choices:
        raise _NotPlain
    value = option.convert(text) if option.convert else text
    values[option.name] = (*values[option.name], value) if option.multiple else value


def _place(arguments: list[Argument], positional: list[str], values: dict[str, Any]) -> None:
    for argument in arguments:
        taken, positional = (positional, []) if argument.multiple else (positional[:1], positional[1:])
        if argument.required and not taken:
            raise _NotPlain
        converted = [argument.convert(text) for text in taken] if argument.convert else taken
        values[argument.name] = tuple(converted) if argument.multiple else converted[0] if converted else None
    if positional:
        raise _NotPlain
