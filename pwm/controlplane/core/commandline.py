"""A command written as one text: `cmd: python train.py --epochs 3`.

PWM 1.x and Dora handed the text to Docker as it was, and Docker took it for the name of one program; so
only single words ever worked without a shell as entry point. What people mean by a text is a command line,
and that is how it is read here:

    python train.py --name "run 1"     the words, as a shell splits them: [python, train.py, --name, run 1]
    cd /code && python train.py        needs a shell (operators, variables, patterns): [/bin/sh, -c, the text]
    entrypoint ends with -c            the shell is already there: the text is its one argument

A list is never touched.
"""

import shlex
from collections.abc import Sequence

SHELL = ("/bin/sh", "-c")
# Outside quotes these mean something to a shell; `~` and `#` only where a word begins.
_OPERATORS = frozenset("|&;<>()$`\n*?")
_AT_WORD_START = frozenset("~#")
# Inside double quotes only these do.
_IN_DOUBLE_QUOTES = frozenset("$`")


class CommandLineError(ValueError):
    """A text that is no command line; the message ends the sentence "cmd ..."."""


def split(text: str, *, entrypoint: Sequence[str] = ()) -> list[str]:
    """The argument list that a command line stands for."""
    if entrypoint and entrypoint[-1] == "-c":
        return [text]
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise CommandLineError("has a quote or backslash without its end") from error
    if not words:
        raise CommandLineError("is empty")
    return [*SHELL, text] if needs_shell(text, first=words[0]) else words


def needs_shell(text: str, *, first: str) -> bool:
    """Whether words alone would lose what the text means."""
    name, equals, _ = first.partition("=")
    if equals and name.isidentifier():
        return True
    quote = ""
    escaped = False
    before = " "
    for char in text:
        if escaped:
            escaped = False
        elif quote:
            if char == quote:
                quote = ""
            elif quote == '"' and char in _IN_DOUBLE_QUOTES:
                return True
            elif quote == '"' and char == "\\":
                escaped = True
        elif char == "\\":
            escaped = True
        elif char in "'\"":
            quote = char
        elif char in _OPERATORS or (char in _AT_WORD_START and before.isspace()):
            return True
        before = char
    return False
