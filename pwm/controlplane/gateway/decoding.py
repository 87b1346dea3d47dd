"""JSON to messages, with errors that say where and what.

`json_format.ParseDict` is the reference: what it refuses is refused here, and what both accept means the same. It is
written anew because users read these errors. Each names the path of the field as it was written
(`spec.config.memory: a text is expected, not 5`) and what would have been right, and a document of 16 MiB cannot
hold up the server: depth is bounded, duplicate keys are refused, nothing is quadratic.

Each message type is compiled once into a table from JSON name to setter. A field may be given under its JSON name
or its proto name. Single values are read in `scalars`, URLs in `query`, and JSON is written in `encoding`.
"""

import json
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from pwm.api.v1 import access_pb2
from pwm.controlplane.gateway.scalars import QUOTED_CHARS, BadInput, assign, finite, quoted, scalar

# Levels of {} and []. A google.protobuf.Struct nests three binary messages a level, and protobuf's parsers
# give up at 100.
MAX_JSON_DEPTH = 32

# setter(message, value, path, depth)
Setter = Callable[[Any, Any, str, int], None]


def parse_json(body: bytes) -> Any:
    """JSON text to Python values; BadInput says where it is wrong."""
    try:
        return json.loads(body.decode(), object_pairs_hook=_object, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise BadInput("", f"the body is not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise BadInput("", f"the body is no valid JSON at {where}: {error.msg}") from error
    except RecursionError as error:
        raise _too_deep("") from error
    except BadInput:
        raise
    except ValueError as error:  # a number of thousands of digits
        raise BadInput("", "the body holds a number that is too long") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise BadInput("", f"the key {quoted(twice)} is given twice in one object")
    return made


def _no_constant(name: str) -> None:
    raise BadInput("", f"{name} is no JSON; write it in quotes where a number may be infinite")


def _too_deep(path: str) -> BadInput:
    return BadInput(path, f"nested deeper than {MAX_JSON_DEPTH} levels")


class Decoder:
    """Reads messages from JSON values. Tables are compiled when a type is first seen and kept."""

    def __init__(self) -> None:
        self._setters: dict[str, Setter] = {}

    def decode(self, value: Any, message: Message, *, path: str = "") -> None:
        """Fills `message`, which is empty; BadInput if the value does not fit."""
        self.compile(cast(Descriptor, message.DESCRIPTOR))(message, value, path, 0)

    def compile(self, descriptor: Descriptor) -> Setter:
        known = self._setters.get(descriptor.full_name)
        if known is not None:
            return known
        if descriptor.full_name in _WELL_KNOWN:
            setter = _WELL_KNOWN[descriptor.full_name]
        elif descriptor.full_name.startswith("google.protobuf."):
            raise TypeError(f"{descriptor.full_name} is not used in this API")
        elif descriptor.GetOptions().Extensions[access_pb2.flatten]:
            setter = self._flattened(descriptor)
        else:
            return self._compile_fields(descriptor)
        self._setters[descriptor.full_name] = setter
        return setter

    def _compile_fields(self, descriptor: Descriptor) -> Setter:
        fields: dict[str, tuple[FieldDescriptor, Setter]] = {}

        def fill(message: Message, value: Any, path: str, depth: int) -> None:
            entries = _expect_object(value, path, depth)
            given: dict[str, str] = {}
            for key, item in entries.items():
                known = fields.get(key)
                if known is None:
                    raise unknown_field(descriptor, key, path)
                field, setter = known
                if item is None and not _takes_null(field):
                    continue
                _check_single(field, key, given, path)
                setter(message, item, join(path, key), depth + 1)

        self._setters[descriptor.full_name] = fill  # before the fields: a type may hold itself
        for field in descriptor.fields:
            fields[field.name] = fields[field.json_name] = (field, self._field(field))
        return fill

    def _field(self, field: FieldDescriptor) -> Setter:
        name = field.name
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            return self._map(field)
        if field.message_type is not None:
            inner = self.compile(field.message_type)
            if field.is_repeated:
                return _repeated(name, lambda values, item, path, depth: inner(values.add(), item, path, depth))

            def set_message(message: Any, item: Any, path: str, depth: int) -> None:
                child = getattr(message, name)
                child.SetInParent()
                inner(child, item, path, depth)

            return set_message
        read = scalar(field)
        if field.is_repeated:
            return _repeated(name, lambda values, item, path, depth: assign(values.append, read(item, path), path))
        return lambda message, item, path, depth: assign(partial(setattr, message, name), read(item, path), path)

    def _map(self, field: FieldDescriptor) -> Setter:
        entry = cast(Descriptor, field.message_type)
        key_field = entry.fields_by_name["key"]
        if key_field.type != FieldDescriptor.TYPE_STRING:
            raise TypeError(f"{field.full_name}: the API's maps have text keys")
        value_field = entry.fields_by_name["value"]
        inner = self.compile(value_field.message_type) if value_field.message_type is not None else None
        read = scalar(value_field) if inner is None else None

        def set_map(message: Any, value: Any, path: str, depth: int) -> None:
            target = getattr(message, field.name)
            for key, item in _expect_object(value, path, depth).items():
                at = join(path, key)
                _check_text(key, path)
                if item is None:
                    raise BadInput(at, "null is no value")
                if inner is not None:
                    inner(target[key], item, at, depth + 1)
                elif read is not None:
                    assign(partial(target.__setitem__, key), read(item, at), at)

        return set_map

    def _flattened(self, descriptor: Descriptor) -> Setter:
        (oneof,) = descriptor.oneofs
        members = {cast(Descriptor, field.message_type).name: field for field in oneof.fields}

        def fill(message: Any, value: Any, path: str, depth: int) -> None:
            entries = _expect_object(value, path, depth)
            if not entries:
                return
            kind = entries.get("kind")
            member = members.get(kind) if isinstance(kind, str) else None
            if member is None:
                raise BadInput(join(path, "kind"), f"{quoted(kind)} is no kind; one of {', '.join(members)}")
            inner = getattr(message, member.name)
            inner.SetInParent()
            self.compile(cast(Descriptor, member.message_type))(inner, value, path, depth)

        return fill


def join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def unknown_field(descriptor: Descriptor, key: str, path: str) -> BadInput:
    names = ", ".join(field.json_name for field in descriptor.fields)
    known = f"known here: {names}" if names else "there are none here"
    shown = key if key.isprintable() and len(key) <= QUOTED_CHARS else quoted(key)
    return BadInput(join(path, shown), f"unknown field; {known}")


def _expect_object(value: Any, path: str, depth: int) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadInput(path, f"an object is expected, not {quoted(value)}")
    if depth > MAX_JSON_DEPTH:
        raise _too_deep(path)
    return value


def _takes_null(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.full_name == "google.protobuf.Value"


def _check_single(field: FieldDescriptor, key: str, given: dict[str, str], path: str) -> None:
    """Refuses a field under both of its names and two members of one oneof."""
    one = field.containing_oneof
    name = f"oneof {one.name}" if one is not None else field.name
    if name in given:
        raise BadInput(join(path, key), f"cannot be given together with {given[name]}")
    given[name] = key


def _repeated(name: str, append: Setter) -> Setter:
    def set_list(message: Any, value: Any, path: str, depth: int) -> None:
        if not isinstance(value, list):
            raise BadInput(path, f"a list is expected, not {quoted(value)}")
        values = getattr(message, name)
        for index, item in enumerate(value):
            at = f"{path}[{index}]"
            if item is None:
                raise BadInput(at, "null is no value")
            append(values, item, at, depth + 1)

    return set_list


def _check_text(text: str, path: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadInput(path, "a key holds half of a surrogate pair") from error


def _generic(what: str) -> Setter:
    def fill(message: Any, value: Any, path: str, depth: int) -> None:
        if isinstance(value, str) and len(value) <= QUOTED_CHARS:
            try:
                message.FromJsonString(value)
            except (ValueError, OverflowError):
                pass
            else:
                return
        raise BadInput(path, f"{what}, not {quoted(value)}")

    return fill


def _struct(message: Any, value: Any, path: str, depth: int) -> None:
    fields = message.fields
    for key, item in _expect_object(value, path, depth).items():
        _check_text(key, path)
        _value(fields[key], item, join(path, key), depth + 1)


def _list(message: Any, value: Any, path: str, depth: int) -> None:
    if not isinstance(value, list):
        raise BadInput(path, f"a list is expected, not {quoted(value)}")
    if depth > MAX_JSON_DEPTH:
        raise _too_deep(path)
    message.SetInParent()
    add = message.values.add
    for index, item in enumerate(value):
        _value(add(), item, f"{path}[{index}]", depth + 1)


def _value(message: Any, value: Any, path: str, depth: int) -> None:
    if isinstance(value, str):
        try:
            message.string_value = value
        except UnicodeEncodeError as error:
            raise BadInput(path, "the text holds half of a surrogate pair") from error
    elif isinstance(value, dict):
        message.struct_value.SetInParent()
        _struct(message.struct_value, value, path, depth)
    elif isinstance(value, list):
        _list(message.list_value, value, path, depth)
    elif isinstance(value, bool):
        message.bool_value = value
    elif value is None:
        message.null_value = 0
    else:
        message.number_value = finite(value, path)


_WELL_KNOWN: dict[str, Setter] = {
    "google.protobuf.Timestamp": _generic("a time such as 2026-01-31T12:00:00Z is expected"),
    "google.protobuf.Duration": _generic("a duration in seconds such as 90s or 1.5s is expected"),
    "google.protobuf.Struct": _struct,
    "google.protobuf.Value": _value,
    "google.protobuf.ListValue": _list,
}
