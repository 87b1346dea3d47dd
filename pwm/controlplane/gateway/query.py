"""Request fields out of a URL: path variables and query parameters.

Everything in a URL is text, so each field type reads its text form: numbers in digits, `true` and `false`, enums by
name, times as RFC 3339, durations as `90s`. A repeated field is given several times, a nested one as `a.b`. A
parameter that the request does not have is refused by name: a misspelt `?folow=true` that silently does something
else costs more than an error.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import unquote_plus

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from pwm.controlplane.gateway.decoding import Decoder, unknown_field
from pwm.controlplane.gateway.scalars import BadInput, assign, quoted, scalar

# Most parameters of one request; `names` of a list may be many.
MAX_PARAMETERS = 2_000

_TRUE = frozenset({"true", "True", "TRUE", "1"})
_FALSE = frozenset({"false", "False", "FALSE", "0"})
_TEXT_MESSAGES = frozenset({"google.protobuf.Timestamp", "google.protobuf.Duration"})
_DECODER = Decoder()


@dataclass(frozen=True, slots=True)
class Setter:
    """Sets one field, perhaps a nested one, from a text."""

    name: str
    # Messages on the way to the field.
    parents: tuple[str, ...]
    field: FieldDescriptor
    # set(message, text); BadInput if the text is no value of the field
    set: Callable[[Any, str], None]

    def get(self, message: Message) -> Any:
        return getattr(_owner(message, self.parents), self.field.name)


def resolve(descriptor: Descriptor, name: str) -> Setter | None:
    """The setter of a dotted name, in JSON or proto spelling; None if a URL cannot set it."""
    parents: list[str] = []
    *outer, last = name.split(".")
    for part in outer:
        field = _field(descriptor, part)
        if field is None or field.message_type is None or field.is_repeated:
            return None
        parents.append(field.name)
        descriptor = field.message_type
    field = _field(descriptor, last)
    if field is None or not is_text(field):
        return None
    return Setter(name, tuple(parents), field, _nested(tuple(parents), _set(field, name)))


def _owner(message: Any, parents: tuple[str, ...]) -> Any:
    for parent in parents:
        message = getattr(message, parent)
    return message


def _nested(parents: tuple[str, ...], set_field: Callable[[Any, str], None]) -> Callable[[Any, str], None]:
    return (lambda message, text: set_field(_owner(message, parents), text)) if parents else set_field


def is_text(field: FieldDescriptor) -> bool:
    """Whether a text can be a value of the field."""
    return field.message_type is None or field.message_type.full_name in _TEXT_MESSAGES


def _field(descriptor: Descriptor, name: str) -> FieldDescriptor | None:
    by_name = descriptor.fields_by_name.get(name)
    return by_name or next((field for field in descriptor.fields if field.json_name == name), None)


def _set(field: FieldDescriptor, path: str) -> Callable[[Any, str], None]:
    name = field.name
    if field.message_type is not None:
        read_message = _DECODER.compile(field.message_type)
        if field.is_repeated:
            return lambda owner, text: read_message(getattr(owner, name).add(), text, path, 0)
        return lambda owner, text: read_message(getattr(owner, name), text, path, 0)
    read = _reader(field)
    if field.is_repeated:
        return lambda owner, text: assign(getattr(owner, name).append, read(text, path), path)
    if field.type == FieldDescriptor.TYPE_STRING:
        # Most of what is in URLs. A decoded URL holds nothing that a text field refuses.
        return lambda owner, text: setattr(owner, name, text)
    return lambda owner, text: assign(partial(setattr, owner, name), read(text, path), path)


def _reader(field: FieldDescriptor) -> Callable[[str, str], Any]:
    if field.type == FieldDescriptor.TYPE_BOOL:
        return _bool
    read = scalar(field)
    if field.type == FieldDescriptor.TYPE_ENUM:
        return lambda text, path: read(int(text) if text.isdecimal() and len(text) < 10 else text, path)
    return read


def _bool(text: str, path: str) -> bool:
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise BadInput(path, f"true or false is expected, not {quoted(text)}")


class QueryReader:
    """Reads the query of one rpc's requests; the setters of the parameters it has met are kept."""

    def __init__(self, descriptor: Descriptor, *, taken: tuple[str, ...]) -> None:
        self._descriptor = descriptor
        self._taken = taken
        self._setters: dict[str, Setter] = {}

    def read(self, query: str, message: Message) -> None:
        """Fills `message`; BadInput for what it does not have or cannot hold."""
        pairs = query.split("&", MAX_PARAMETERS)
        if len(pairs) > MAX_PARAMETERS:
            raise BadInput("", f"a query has at most {MAX_PARAMETERS} parameters")
        seen = set()
        for pair in pairs:
            name, equals, text = pair.partition("=")
            if not equals:
                raise BadInput("", f"the query is not name=value&name=value: {quoted(pair)}")
            setter = self._setters.get(name) or self._resolve(decoded(name))
            if not setter.field.is_repeated:
                target = (setter.parents, setter.field.name)
                if target in seen:
                    raise BadInput(setter.name, "is given twice")
                seen.add(target)
            setter.set(message, decoded(text))

    def _resolve(self, name: str) -> Setter:
        if name in self._setters:
            return self._setters[name]
        setter = resolve(self._descriptor, name)
        if setter is None:
            raise unknown_field(self._descriptor, name, "")
        full = ".".join((*setter.parents, setter.field.name))
        if full in self._taken:
            raise BadInput(name, "is in the path already")
        self._setters[name] = setter
        return setter


def decoded(text: str) -> str:
    """A parameter without its percent signs."""
    if "%" not in text and "+" not in text and text.isascii():
        return text
    try:
        return unquote_plus(text.encode("utf-8", "surrogateescape").decode(), errors="strict")
    except UnicodeDecodeError as error:
        raise BadInput("", f"the query is not UTF-8: {quoted(text)}") from error
