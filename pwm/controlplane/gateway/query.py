"""Request fields out of a URL: path variables and query parameters.

Everything in a URL is text, so each field type reads its text form: numbers in digits, `true` and `false`, enums by
name, times as RFC 3339, durations as `90s`. A repeated field is given several times, a nested one as `a.b`. A
parameter that the request does not have is refused by name: a misspelt `?folow=true` that silently does something
else costs more than an error.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from pwm.controlplane.gateway.decoding import BadInput, Decoder, assign, quoted, scalar, unknown_field

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
    set: Callable[[Any, str, str], None]

    def __call__(self, message: Message, text: str) -> None:
        self.set(self._owner(message), text, self.name)

    def get(self, message: Message) -> Any:
        return getattr(self._owner(message), self.field.name)

    def _owner(self, message: Message) -> Any:
        owner: Any = message
        for parent in self.parents:
            owner = getattr(owner, parent)
        return owner


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
    if field is None or (field.message_type is not None and field.message_type.full_name not in _TEXT_MESSAGES):
        return None
    return Setter(name, tuple(parents), field, _set(field))


def _field(descriptor: Descriptor, name: str) -> FieldDescriptor | None:
    by_name = descriptor.fields_by_name.get(name)
    return by_name or next((field for field in descriptor.fields if field.json_name == name), None)


def _set(field: FieldDescriptor) -> Callable[[Any, str, str], None]:
    name = field.name
    if field.message_type is not None:
        read_message = _DECODER.compile(field.message_type)
        if field.is_repeated:
            return lambda owner, text, path: read_message(getattr(owner, name).add(), text, path, 0)
        return lambda owner, text, path: read_message(getattr(owner, name), text, path, 0)
    read = _reader(field)
    if field.is_repeated:
        return lambda owner, text, path: assign(getattr(owner, name).append, read(text, path), path)
    return lambda owner, text, path: assign(lambda value: setattr(owner, name, value), read(text, path), path)


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
        try:
            pairs = parse_qsl(
                query, keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=MAX_PARAMETERS
            )
        except ValueError as error:
            raise BadInput("", f"the query is not name=value&name=value in UTF-8, {MAX_PARAMETERS} at most") from error
        seen: set[tuple[tuple[str, ...], str]] = set()
        for name, text in pairs:
            setter = self._setters.get(name) or self._resolve(name)
            if not setter.field.is_repeated:
                target = (setter.parents, setter.field.name)
                if target in seen:
                    raise BadInput(name, "is given twice")
                seen.add(target)
            setter(message, text)

    def _resolve(self, name: str) -> Setter:
        setter = resolve(self._descriptor, name)
        if setter is None:
            raise unknown_field(self._descriptor, name, "")
        full = ".".join((*setter.parents, setter.field.name))
        if full in self._taken:
            raise BadInput(name, "is in the path already")
        self._setters[name] = setter
        return setter
