"""A user's document as a tree that remembers where each value stood, and what was found wrong with it.

Documents arrive as JSON values. Old forms are rewritten before they are read (`legacy`), which moves values
to other places; a complaint must still name the field as the user wrote it, because the CLI turns that path
into line and column. So every value is wrapped in an `Item` with its path, and rewriting moves items.

All that is wrong is collected in `Findings`, not just the first: whoever mends a file wants the whole list.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TypeAlias

from pwm.api.v1.services_pb2 import Problem

# gRPC status codes that problems carry.
INVALID_ARGUMENT = 3
PERMISSION_DENIED = 7
FAILED_PRECONDITION = 9

# Nesting of the deepest field that any kind has is 7; what is deeper cannot be meant.
MAX_DEPTH = 16
# A list of more problems helps nobody, and a hostile document must not get a long answer.
MAX_PROBLEMS = 30
# Whole numbers above it do not survive JSON, where numbers are doubles.
MAX_EXACT_INT = 2**53
# Longest excerpt of a user's value in a message, and longest message.
_SHOWN_CHARS = 40
_SENTENCE_CHARS = 400
# A value that stands deeper has the path of the nearest parent: long keys above a long list would make a gigabyte of
# paths out of a document of common size.
_PATH_CHARS = 400

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


@dataclass(slots=True)
class Item:
    """A value and its path in the document as written: `spec.volumes[0].name`."""

    value: "bool | int | float | str | list[Item] | dict[str, Item] | None"
    path: str

    @property
    def mapping(self) -> "dict[str, Item] | None":
        return self.value if isinstance(self.value, dict) else None

    @property
    def sequence(self) -> "list[Item] | None":
        return self.value if isinstance(self.value, list) else None

    @property
    def text(self) -> str | None:
        return self.value if isinstance(self.value, str) else None


@dataclass(slots=True)
class Findings:
    """Problems (the document is refused) and warnings (it is accepted, but the user should know)."""

    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    def refuse(self, path: str, message: str, next_step: str = "", *, code: int = INVALID_ARGUMENT) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(
                Problem(field=_printable(path), message=_printable(message), next_step=_printable(next_step), code=code)
            )

    def warn(self, path: str, message: str, next_step: str = "") -> None:
        if len(self.warnings) < MAX_PROBLEMS:
            self.warnings.append(
                Problem(field=_printable(path), message=_printable(message), next_step=_printable(next_step))
            )


class TooDeep(ValueError):
    """The document is nested deeper than any kind is. The argument is the path."""


def plant(value: Json, path: str = "", depth: int = 0) -> Item:
    """The tree of a document. Whole numbers that came as floats (2.0) become whole again."""
    if depth > MAX_DEPTH:
        raise TooDeep(path)
    if isinstance(value, dict):
        prefix = f"{path}." if path else ""
        children = {key: plant(child, _path(f"{prefix}{key}", path), depth + 1) for key, child in value.items()}
        return Item(children, path)
    if isinstance(value, list):
        return Item([plant(child, _path(f"{path}[{n}]", path), depth + 1) for n, child in enumerate(value)], path)
    if isinstance(value, float) and abs(value) <= MAX_EXACT_INT and value == int(value):
        return Item(int(value), path)
    return Item(value, path)


def _path(path: str, parent: str) -> str:
    return path if len(path) <= _PATH_CHARS else parent


def child(item: Item | None, *keys: str) -> Item | None:
    """The item below `item`, or None where the way ends or holds nothing."""
    for key in keys:
        mapping = item.mapping if item is not None else None
        item = mapping.get(key) if mapping is not None else None
    return item if item is not None and item.value is not None else None


def below(item: Item, key: str) -> str:
    """Path of a field that `item` should have."""
    return f"{item.path}.{key}" if item.path else key


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant, compared without case."""
    by_lower = {name.lower(): name for name in known}
    found = get_close_matches(word.lower()[:64], by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def suggestion(word: str, known: Mapping[str, object] | Iterable[str]) -> str:
    """What to do about an unknown word: the nearest known one, else all of them."""
    names = list(known)
    near = nearest(word, names)
    return f"did you mean {near}?" if near else f"known here: {', '.join(names)}" if names else "remove it"


def shown(value: object) -> str:
    """A user's value inside a sentence: quoted, escaped, short."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = str(value)
    return repr(text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…")


def _printable(sentence: str) -> str:
    """A sentence that may hold a user's field names: without control characters, and not endless."""
    if len(sentence) > _SENTENCE_CHARS:
        sentence = sentence[: _SENTENCE_CHARS - 1] + "…"
    return sentence if sentence.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in sentence)
