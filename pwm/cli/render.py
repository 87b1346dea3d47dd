"""What answers look like: colours, YAML, tables, and times.

Lists come rendered by the server (a table of 10,000 rows costs it 40 ms; drawn here with a library it
would cost seconds), so this module only adds colours, on a terminal, and draws the few small tables that are
made of an answer's fields.
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

GREEN, YELLOW, RED, DIM, BOLD, PLAIN = "\033[32m", "\033[33m", "\033[31m", "\033[2m", "\033[1m", "\033[0m"

_COLOUR_OF = (
    dict.fromkeys(("RUNNING", "READY", "FREE", "CREATED", "COMPLETED"), GREEN)
    | dict.fromkeys(("CRASHED", "DENIED", "STUCK", "FAILED", "LOST", "NOT_READY", "REFUSED", "UNKNOWN"), RED)
    | dict.fromkeys(("EXITED", "STOPPED", "DELETED", "UNCHANGED"), DIM)
    | dict.fromkeys(
        [
            "INSERTED",
            "QUEUED",
            "ASSIGNED",
            "PULLING",
            "CREATING",
            "LAUNCHING",
            "PAUSING",
            "PAUSED",
            "RESUMING",
            "STOPPING",
            "EXITING",
            "MAINTENANCE",
            "DRAINING",
            "CONFIGURED",
            "SCALED",
        ],
        YELLOW,
    )
)
# A status stands alone in its column: at an edge of the line, or two spaces from its neighbours.
# Compiled when a table is coloured: that takes longer than most answers.
_STATUS = rf"(?:(?<=  )|^)({'|'.join(_COLOUR_OF)})(?=  | *$)"
_CONTROL = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def status_word(word: str, *, colour: bool) -> str:
    """A status in its colour."""
    return f"{_COLOUR_OF[word.upper()]}{word}{PLAIN}" if colour and word.upper() in _COLOUR_OF else word


def coloured_table(text: str, *, header: bool = True) -> str:
    """A table for a terminal: bold header, coloured statuses, nothing that would steer the terminal."""
    flags = re.MULTILINE | re.IGNORECASE
    text = re.sub(
        _STATUS, lambda match: f"{_COLOUR_OF[match[1].upper()]}{match[1]}{PLAIN}", harmless(text), flags=flags
    )
    if not header:
        return text
    first, newline, rest = text.partition("\n")
    return f"{BOLD}{first}{PLAIN}{newline}{rest}"


def harmless(text: str) -> str:
    """Text without control characters, which a terminal might obey."""
    return text if text.isprintable() else text.translate(_CONTROL)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, two spaces apart; "" without rows."""
    if not rows:
        return ""
    lines = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n" for line in lines
    )


def fields(pairs: Sequence[tuple[str, str]], *, indent: str = "") -> str:
    """`Name:  value` lines, aligned; those without a value are left out."""
    shown = [(name, value) for name, value in pairs if value]
    width = max((len(name) for name, _ in shown), default=0) + 2
    return "".join(f"{indent}{name + ':':<{width}} {value}\n" for name, value in shown)


def to_yaml(document: object) -> str:
    """Block YAML in the order of the fields; text that another YAML might read as something else is quoted."""
    import yaml

    class Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
        """Text of several lines as a block, as people write it."""

    def text_of(dumper: Any, text: str) -> Any:
        block = "\n" in text and not any(line.endswith(" ") for line in text.split("\n"))
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if block else None)

    Dumper.add_representer(str, text_of)
    dumped: str = yaml.dump(document, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110)
    return dumped


def to_json(document: object) -> str:
    import json

    return json.dumps(document, indent=2, ensure_ascii=False)


def age(stamp: str, *, now_s: float | None = None) -> str:
    """How long ago an RFC 3339 time was: `3m12s`; "" for no time."""
    if not stamp:
        return ""
    import time
    from datetime import datetime

    from pwm.quantity import format_duration

    now_s = time.time() if now_s is None else now_s
    return format_duration(int((now_s - datetime.fromisoformat(_six_digits(stamp)).timestamp()) * 1000))


def local_time(stamp: str) -> str:
    """An RFC 3339 time as the clock on the wall shows it; "" for no time."""
    if not stamp:
        return ""
    from datetime import datetime

    return datetime.fromisoformat(_six_digits(stamp)).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _six_digits(stamp: str) -> str:
    """Nanoseconds cut to microseconds, which is what datetime reads."""
    return re.sub(r"(\.\d{1,6})\d*", r"\1", stamp)


def sentence(reason: dict[str, Any]) -> str:
    """A reason: its sentence, and its code in brackets."""
    code, message = str(reason.get("code") or ""), str(reason.get("message") or "")
    if code in ("", "NONE"):
        return harmless(message)
    return harmless(f"{message} ({code})" if message else code)
