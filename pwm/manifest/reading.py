"""One YAML document as plain values, and the place of each.

Reading goes over libyaml's events rather than its nodes: no recursion, whatever a document's depth, and every
limit is checked before memory is spent on what is over it.

What a value is follows YAML 1.2, with one rule more: text becomes a number only when that number prints as
the same text. So `on`, `no`, `010`, `1.10`, `12:30` and `2024-01-01` stay what the user wrote, in an
environment variable above all. Tags, other than the core ones, are refused.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.events import (
    AliasEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
    StreamStartEvent,
)

from pwm.manifest.cutting import DOCUMENT_LIMIT_BYTES, Chunk, ManifestError, Place

# No kind nests deeper than 7.
DEPTH_LIMIT = 32
# Positions of longer paths are not kept: long keys above a long list would make much memory of a small document.
PATH_LIMIT_CHARS = 500

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CORE_TAGS = {"tag:yaml.org,2002:" + name: name for name in ("str", "int", "float", "bool", "null", "map", "seq")}
_TAGGED: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "null": (type(None),),
}
_WORDS = {"": None, "~": None, "null": None, "Null": None, "NULL": None} | {
    spelling: value
    for word, value in (("true", True), ("false", False))
    for spelling in (word, word.title(), word.upper())
}
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,15}")
_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]*)\.[0-9]+")
# Numbers travel as doubles; larger integers would lose digits.
_EXACT_INTEGERS = 2**53


def read_value(
    chunk: Chunk, *, positions: dict[str, tuple[int, int]] | None = None, starts: list[Place] | None = None
) -> Any:
    """The document's value.

    `positions` is filled with path -> line and column within the chunk, from 0. `starts`, at next to no cost, with the
    place of the value and, if it is a list, of its items.
    """
    return _Reader(chunk, positions, starts).read()


class _Open:
    """A mapping or list whose end has not come yet."""

    __slots__ = ("anchor", "first_line_of", "key", "key_mark", "mark", "merged", "path", "size", "value")

    def __init__(
        self, value: dict[str, Any] | list[Any], path: str | None, event: MappingStartEvent | SequenceStartEvent
    ) -> None:
        self.value = value
        # None: longer than anybody asks for, and so are those below it.
        self.path = path
        self.anchor = event.anchor
        # Where its bracket or brace is; None when it is written without.
        self.mark: Any = event.start_mark if event.flow_style else None
        self.size = 1
        # Of a mapping: the key whose value comes next, where it stands, and on which line each key was.
        self.key: str | None = None
        self.key_mark: Any = None
        self.first_line_of: dict[str, int] = {}
        self.merged: list[Any] = []


class _Reader:
    """Builds one document's value from events; with `positions`, notes where each path stands."""

    def __init__(self, chunk: Chunk, positions: dict[str, tuple[int, int]] | None, starts: list[Place] | None) -> None:
        self._chunk = chunk
        self._positions = positions
        self._starts = starts
        self._stack: list[_Open] = []
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._begun = False
        self._root: Any = None

    def read(self) -> Any:
        try:
            for event in yaml.parse(self._chunk.text, Loader=_LOADER):
                self._take(event)
        except yaml.MarkedYAMLError as error:
            raise _syntax_error(error, self._chunk, self._left_open()) from error
        except yaml.reader.ReaderError as error:
            raise _character_error(error, self._chunk) from error
        except ValueError as error:  # libyaml knows that there is no such character, PyYAML's own reader does not
            raise ManifestError("not valid YAML: an escape of no character", self._chunk.start) from error
        return self._root

    def _left_open(self) -> Any:
        """Where the innermost bracket that is still open was opened; None when none is."""
        return self._stack[-1].mark if self._stack else None

    def _take(self, event: Event) -> None:
        if isinstance(event, ScalarEvent):
            self._scalar(event)
        elif isinstance(event, (MappingStartEvent, SequenceStartEvent)):
            self._start(event)
        elif isinstance(event, (MappingEndEvent, SequenceEndEvent)):
            self._end()
        elif isinstance(event, AliasEvent):
            self._alias(event)
        elif isinstance(event, DocumentStartEvent):
            self._document(event)
        elif not isinstance(event, (StreamStartEvent, StreamEndEvent, DocumentEndEvent)):
            raise AssertionError(event)

    # --- events -----------------------------------------------------------------------------------

    def _document(self, event: DocumentStartEvent) -> None:
        """A text that is cut has one; signs that end a line for YAML and for nobody else can hide a second."""
        if self._begun:
            raise self._error("another document begins here", event, "Write --- on a line of its own before it.")
        self._begun = True

    def _scalar(self, event: ScalarEvent) -> None:
        top = self._stack[-1] if self._stack else None
        if top is not None and isinstance(top.value, dict) and top.key is None:
            self._key(top, event)
            return
        self._path_of_next(event, scalar=True)
        value = self._value(event)
        size = len(event.value) + 1
        if event.anchor:
            self._anchors[event.anchor] = value, size
        self._add(value, size)

    def _key(self, mapping: _Open, event: ScalarEvent) -> None:
        key = str(event.value)
        if event.tag not in (None, "!") and event.tag != "tag:yaml.org,2002:str":
            self._value(event)
        if not key:
            raise self._error("a field has no name before its colon", event)
        if key in mapping.first_line_of:
            first = self._chunk.first_line + mapping.first_line_of[key]
            raise self._error(f"{key!r} is there twice; the first is in line {first}", event, "Remove one of them.")
        mapping.key, mapping.key_mark = key, event.start_mark
        mapping.first_line_of[key] = mapping.key_mark.line
        mapping.size += len(key) + 1
        if event.anchor:
            self._anchors[event.anchor] = key, len(key) + 1

    def _start(self, event: MappingStartEvent | SequenceStartEvent) -> None:
        top = self._stack[-1] if self._stack else None
        if top is not None and isinstance(top.value, dict) and top.key is None:
            raise self._error("a field's name must be text, not a list or mapping", event)
        if event.tag not in (None, "!") and event.tag not in _CORE_TAGS:
            raise self._tag_error(event)
        if len(self._stack) >= DEPTH_LIMIT:
            raise self._error(f"nested deeper than {DEPTH_LIMIT} levels", event, "No kind of PWM nests that deep.")
        path = self._path_of_next(event, scalar=False)
        value: dict[str, Any] | list[Any] = {} if isinstance(event, MappingStartEvent) else []
        self._stack.append(_Open(value, path, event))

    def _end(self) -> None:
        closed = self._stack.pop()
        if isinstance(closed.value, dict):
            for mapping in closed.merged:
                closed.value.update({key: value for key, value in mapping.items() if key not in closed.value})
        if closed.anchor:
            self._anchors[closed.anchor] = closed.value, closed.size
        self._add(closed.value, closed.size)

    def _alias(self, event: AliasEvent) -> None:
        top = self._stack[-1] if self._stack else None
        if top is not None and isinstance(top.value, dict) and top.key is None:
            raise self._error("a field's name cannot be an alias", event)
        if event.anchor not in self._anchors:
            inside = any(opened.anchor == event.anchor for opened in self._stack)
            what = "contains itself" if inside else "has no anchor before it"
            raise self._error(f"the alias *{event.anchor} {what}", event, f"Write &{event.anchor} at what it means.")
        value, size = self._anchors[event.anchor]
        if sum(opened.size for opened in self._stack) + size > DOCUMENT_LIMIT_BYTES:
            limit = f"{DOCUMENT_LIMIT_BYTES // 1024} KiB"
            raise self._error(f"its aliases unfold to more than {limit}", event, "Write fewer aliases, or split it.")
        self._path_of_next(event, scalar=True)
        self._add(value, size)

    # --- values -----------------------------------------------------------------------------------

    def _add(self, value: Any, size: int) -> None:
        if not self._stack:
            self._root = value
            return
        top = self._stack[-1]
        top.size += size
        if isinstance(top.value, list):
            top.value.append(value)
            return
        key, mark = top.key, top.key_mark
        assert key is not None
        top.key = None
        if key != "<<":
            top.value[key] = value
            return
        merged = value if isinstance(value, list) else [value]
        if not all(isinstance(mapping, dict) for mapping in merged):
            message = "<< takes in the fields of a mapping, and this is none"
            raise ManifestError(message, _place(self._chunk, mark), next_step="Give it an alias of a mapping.")
        top.merged += merged

    def _value(self, event: ScalarEvent) -> Any:
        text = str(event.value)
        if event.tag in (None, "!"):
            return plain_value(text) if event.implicit[0] else text
        name = _CORE_TAGS.get(event.tag)
        if name is None:
            raise self._tag_error(event)
        value = text if name == "str" else plain_value(text)
        if not isinstance(value, _TAGGED.get(name, ())):
            raise self._error(f"{text!r} is not what its tag !!{name} says", event)
        return value

    def _path_of_next(self, event: Event, *, scalar: bool) -> str | None:
        """Path of the value that begins with this event; its place is noted.

        The place of a scalar is its own, that of a mapping or list its key's, which is where a person looks.
        """
        mark: Any = event.start_mark
        if self._starts is not None and len(self._stack) <= 1 and not (self._stack and self._stack[0].key):
            self._starts.append(_place(self._chunk, mark))
        if self._positions is None:
            return None
        if not self._stack:
            path = ""
        else:
            top = self._stack[-1]
            if top.path is None:
                return None
            if isinstance(top.value, list):
                path = f"{top.path}[{len(top.value)}]"
            else:
                path = f"{top.path}.{top.key}" if top.path else str(top.key)
                mark = mark if scalar else top.key_mark
        if len(path) > PATH_LIMIT_CHARS:
            return None
        self._positions[path] = (mark.line, mark.column)
        return path

    def _error(self, message: str, event: Event, next_step: str = "") -> ManifestError:
        return ManifestError(message, _place(self._chunk, event.start_mark), next_step=next_step)

    def _tag_error(self, event: Any) -> ManifestError:
        tag = str(event.tag).replace("tag:yaml.org,2002:", "!!")
        return self._error(f"the tag {tag} means nothing here", event, "Remove it; write plain values.")


def plain_value(text: str) -> bool | int | float | str | None:
    """What an unquoted scalar means: a number only if it prints as the same text, else what is written."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text) and abs(int(text)) <= _EXACT_INTEGERS:
        return int(text)
    if _DECIMAL.fullmatch(text) and repr(float(text)) == text:
        return float(text)
    return text


# libyaml's words -> ours, and what to do.
_SYNTAX = (
    ("found character that cannot start any token", "no value begins with this sign", "Put the value in quotes."),
    (
        "mapping values are not allowed in this context",
        "a colon where none can be",
        "Check the indentation, and put text that holds ': ' in quotes.",
    ),
    ("did not find expected key", "a field was expected here", "Check the indentation here and in the line before."),
    ("did not find expected '-' indicator", "a list item was expected here", "Check the indentation of the list."),
    ("could not find expected ':'", "a colon is missing after a field's name", "Write `name: value`."),
    ("found unexpected end of stream", "the end of this is missing", "Is a quote or bracket left open?"),
    ("did not find expected node content", "a value is missing here", "Write a value, or quote the sign that is here."),
    (
        "block sequence entries are not allowed in this context",
        "a list item where none can be",
        "Items begin on a line of their own.",
    ),
    ("found undefined tag handle", "a tag that means nothing here", "Put text that begins with ! in quotes."),
    ("found unknown escape character", "an unknown escape in double quotes", "Use 'single quotes'."),
)


def _place(chunk: Chunk, mark: Any) -> Place:
    return chunk.place(mark.line, mark.column)


def _syntax_error(error: yaml.MarkedYAMLError, chunk: Chunk, left_open: Any) -> ManifestError:
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return ManifestError(f"not valid YAML: {error.problem}", Place(chunk.source, chunk.first_line, 1))
    if "end of stream" in str(error.problem) and error.context_mark is not None:
        mark = error.context_mark  # where the quote was opened says more than where the text ends
    elif left_open is not None and ("expected ','" in str(error.problem) or _is_over(chunk, mark)):
        message = "not valid YAML: a bracket or brace is opened here and not closed"
        return ManifestError(message, _place(chunk, left_open), next_step="Close it, or look for a missing comma.")
    lines = chunk.text.split("\n")
    line = lines[mark.line] if mark.line < len(lines) else ""
    if line[mark.column : mark.column + 1] == "\t" or "\t" in line[: len(line) - len(line.lstrip())]:
        step = "Replace the tabs at the beginning of this line."
        return ManifestError("a tab; YAML is indented with spaces only", _place(chunk, mark), next_step=step)
    problem = str(error.problem)
    for theirs, ours, step in _SYNTAX:
        if theirs in problem:
            return ManifestError(f"not valid YAML: {ours}", _place(chunk, mark), next_step=step)
    return ManifestError(f"not valid YAML: {problem}", _place(chunk, mark))


def _is_over(chunk: Chunk, mark: Any) -> bool:
    """Whether nothing comes after this place."""
    lines = chunk.text.split("\n")[mark.line :]
    return not "".join([line[mark.column :] if not number else line for number, line in enumerate(lines)]).strip()


def _character_error(error: yaml.reader.ReaderError, chunk: Chunk) -> ManifestError:
    """libyaml counts bytes; the first character that YAML forbids is looked for in the text instead."""
    found = re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff]", chunk.text)
    before = chunk.text[: found.start()] if found else ""
    place = Place(chunk.source, chunk.first_line + before.count("\n"), len(before) - before.rfind("\n"))
    character = f"U+{ord(found[0]):04X}" if found else f"U+{int(error.character):04X}"
    message = f"the control character {character} is not allowed in YAML"
    return ManifestError(message, place, next_step='Remove it, or write it as an escape in "double quotes".')
