"""Single values out of JSON: texts, numbers, enums, bytes; and how what is wrong with one is told.

What fits is given back as protobuf wants it, and what doesn't raises BadInput with the path of the field and the value
as it was written, shortened. Ranges are left to protobuf: it knows them, and says no when the value is assigned.
"""

import base64
import binascii
import json
import math
import re
from collections.abc import Callable
from typing import Any, cast

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor

# What an error quotes of a wrong value.
QUOTED_CHARS = 40

# read(value, path)
Read = Callable[[Any, str], Any]

_BASE64 = re.compile(r"[A-Za-z0-9+/_-]*={0,2}")
_INTEGER = re.compile(r"-?[0-9]{1,20}")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class BadInput(ValueError):
    """What a client sent cannot be read. `path` is the field as written, "" for the whole."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path
        self.message = message


def quoted(value: Any) -> str:
    """A value as an error shows it: JSON, shortened, in a time that does not grow with it."""
    if isinstance(value, dict):
        return "{…}" if value else "{}"
    if isinstance(value, list):
        return "[…]" if value else "[]"
    if isinstance(value, str):
        value = value[: QUOTED_CHARS + 1]
    text = json.dumps(value, ensure_ascii=False).encode(errors="replace").decode()
    return text if len(text) <= QUOTED_CHARS else text[: QUOTED_CHARS - 1] + "…"


def assign(setter: Callable[[Any], object], value: Any, path: str) -> None:
    """Sets a value that has the right type; protobuf checks its range and its text."""
    try:
        setter(value)
    except UnicodeEncodeError as error:
        raise BadInput(path, "the text holds half of a surrogate pair") from error
    except ValueError as error:
        raise BadInput(path, f"{quoted(value)} is out of range") from error


def scalar(field: FieldDescriptor) -> Read:
    """Reads one value that is no message; the range is checked when it is assigned."""
    if field.type == FieldDescriptor.TYPE_STRING:
        return _text
    if field.type == FieldDescriptor.TYPE_BOOL:
        return _bool
    if field.type == FieldDescriptor.TYPE_BYTES:
        return _bytes
    if field.type == FieldDescriptor.TYPE_ENUM:
        return _enum(field)
    if field.type == FieldDescriptor.TYPE_DOUBLE:
        return _double
    if field.type == FieldDescriptor.TYPE_FLOAT:
        raise TypeError(f"{field.full_name}: the API uses double, never float")
    return _integer


def _text(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise BadInput(path, f"a text is expected, not {quoted(value)}")
    return value


def _bool(value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        raise BadInput(path, f"true or false is expected, not {quoted(value)}")
    return value


def _integer(value: Any, path: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        return int(value)
    raise BadInput(path, f"a whole number is expected, not {quoted(value)}")


def _double(value: Any, path: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return finite(value, path)
    if isinstance(value, str) and value in _SPECIAL:
        return _SPECIAL[value]
    if isinstance(value, str) and len(value) <= QUOTED_CHARS and _NUMBER.fullmatch(value):
        return finite(float(value), path)
    raise BadInput(path, f"a number is expected, not {quoted(value)}")


def finite(value: int | float, path: str) -> float:
    try:
        number = float(value)
    except OverflowError as error:
        raise BadInput(path, f"{quoted(value)} is out of range") from error
    if not math.isfinite(number):
        raise BadInput(path, "the number is out of range")
    return number


def _bytes(value: Any, path: str) -> bytes:
    if not isinstance(value, str) or not _BASE64.fullmatch(value):
        raise BadInput(path, f"bytes in base64 are expected, not {quoted(value)}")
    plain = value.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except binascii.Error as error:
        raise BadInput(path, "the base64 is cut short") from error


def _enum(field: FieldDescriptor) -> Read:
    numbers = {value.name: value.number for value in cast(EnumDescriptor, field.enum_type).values}
    known = set(numbers.values())
    names = ", ".join(name for name, number in numbers.items() if number != 0) or ", ".join(numbers)

    def read(value: Any, path: str) -> int:
        if isinstance(value, str) and value in numbers:
            return numbers[value]
        if isinstance(value, int) and not isinstance(value, bool) and value in known:
            return value
        raise BadInput(path, f"{quoted(value)} is not one of {names}")

    return read
