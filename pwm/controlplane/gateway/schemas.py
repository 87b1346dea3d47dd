"""JSON schemas of the messages, for the OpenAPI document.

They describe what `encoding` writes and `decoding` reads: 64-bit integers as strings, enums by name, times as text, and
a flattened message (Resource) as one of its members, told apart by `kind`. Descriptions are the proto files' comments.
"""

from collections.abc import Collection
from typing import Any, cast

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from pwm.api.v1 import access_pb2
from pwm.controlplane.gateway.comments import comments
from pwm.controlplane.gateway.decoding import MAX_JSON_DEPTH

Schema = dict[str, Any]

_INT32_LIMIT = 2**31
_F = FieldDescriptor

# Whole groups of four, with "=" in place of what the last one lacks.
_BASE64 = r"^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
_SCALARS: dict[int, Schema] = {
    _F.TYPE_STRING: {"type": "string"},
    _F.TYPE_BOOL: {"type": "boolean"},
    _F.TYPE_DOUBLE: {"type": "number", "format": "double"},
    _F.TYPE_BYTES: {"type": "string", "contentEncoding": "base64", "pattern": _BASE64},
    _F.TYPE_INT32: {"type": "integer", "format": "int32", "minimum": -_INT32_LIMIT, "maximum": _INT32_LIMIT - 1},
    _F.TYPE_UINT32: {"type": "integer", "format": "int64", "minimum": 0, "maximum": 2 * _INT32_LIMIT - 1},
    _F.TYPE_INT64: {"type": "string", "format": "int64", "pattern": "^-?[0-9]{1,19}$"},
    _F.TYPE_UINT64: {"type": "string", "format": "uint64", "pattern": "^[0-9]{1,20}$"},
    _F.TYPE_FIXED64: {"type": "string", "format": "uint64", "pattern": "^[0-9]{1,20}$"},
}

_WELL_KNOWN: dict[str, Schema] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?[0-9]{1,11}(\.[0-9]{1,9})?s$", "examples": ["90s"]},
    "google.protobuf.Struct": {
        "type": "object",
        "additionalProperties": True,
        "description": f"Any JSON object, {MAX_JSON_DEPTH} levels deep at most.",
    },
    "google.protobuf.Value": {},
    "google.protobuf.ListValue": {"type": "array", "items": {}},
}


class Schemas:
    """Collects the schemas of messages as they are referred to."""

    def __init__(self) -> None:
        self.components: dict[str, Schema] = {}

    def reference(self, descriptor: Descriptor) -> Schema:
        """A reference to the message's schema, which is added if it is new."""
        if descriptor.full_name in _WELL_KNOWN:
            return _WELL_KNOWN[descriptor.full_name]
        name = component_name(descriptor)
        if name not in self.components:
            self.components[name] = {}  # before the fields: a type may hold itself
            flatten = descriptor.GetOptions().Extensions[access_pb2.flatten]
            self.components[name] = self._flattened(descriptor) if flatten else self._message(descriptor)
        return {"$ref": f"#/components/schemas/{name}"}

    def request(self, descriptor: Descriptor, *, without: Collection[str]) -> Schema:
        """A reference to a body's schema: without what the path says already, and closed, as the decoder is."""
        reference = self.reference(descriptor)
        schema = self.components[component_name(descriptor)]
        for name in without:
            schema["properties"].pop(descriptor.fields_by_name[name].json_name, None)
        self._close(descriptor)
        return reference

    def _close(self, descriptor: Descriptor) -> None:
        """Of a body, and of messages in it: the decoder takes no fields that it does not know."""
        schema = self.components.get(component_name(descriptor), {})
        if "properties" not in schema or "additionalProperties" in schema:
            return
        schema["additionalProperties"] = False
        for field in descriptor.fields:
            if field.message_type is not None:
                self._close(field.message_type)

    def field(self, field: FieldDescriptor) -> Schema:
        """The schema of a field with its description."""
        description = comments().get(field.full_name)
        schema = self._value(field)
        return {**schema, "description": description} if description else schema

    def _value(self, field: FieldDescriptor) -> Schema:
        message = field.message_type
        if message is not None and message.GetOptions().map_entry:
            return {"type": "object", "additionalProperties": self.single(message.fields_by_name["value"])}
        one = self.single(field)
        return {"type": "array", "items": one} if field.is_repeated else one

    def single(self, field: FieldDescriptor) -> Schema:
        """The schema of one value of a field that may be repeated."""
        if field.message_type is not None:
            return self.reference(field.message_type)
        if field.enum_type is not None:
            return self._enum(field.enum_type)
        return _SCALARS[field.type]

    def _enum(self, enum: EnumDescriptor) -> Schema:
        name = component_name(enum)
        if name not in self.components:
            told = [
                f"- `{value.name}`: {comments()[full]}"
                for value in enum.values
                if (full := f"{enum.full_name}.{value.name}") in comments()
            ]
            text = "\n\n".join(filter(None, [comments().get(enum.full_name, ""), "\n".join(told)]))
            schema: Schema = {"type": "string", "enum": [value.name for value in enum.values]}
            self.components[name] = {**schema, "description": text} if text else schema
        return {"$ref": f"#/components/schemas/{name}"}

    def _message(self, descriptor: Descriptor) -> Schema:
        properties = {field.json_name: self.field(field) for field in descriptor.fields}
        schema: Schema = {"type": "object", "properties": properties}
        description = comments().get(descriptor.full_name)
        return {**schema, "description": description} if description else schema

    def _flattened(self, descriptor: Descriptor) -> Schema:
        (oneof,) = descriptor.oneofs
        members, mapping = [], {}
        for field in oneof.fields:
            member = cast(Descriptor, field.message_type)
            reference = self.reference(member)
            members.append(reference)
            if is_kind(member):
                mapping[member.name] = reference["$ref"]
                self._narrow(member)
            else:
                # An event has the kind of the resource it is about; no apiVersion tells it apart.
                self.components[component_name(member)]["not"] = {"required": ["apiVersion"]}
        return {"oneOf": members, "discriminator": {"propertyName": "kind", "mapping": mapping}}

    def _narrow(self, member: Descriptor) -> None:
        schema = self.components[component_name(member)]
        schema["properties"]["kind"] = {"const": member.name}
        schema["required"] = ["apiVersion", "kind"]


def is_well_known(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.full_name in _WELL_KNOWN


def is_kind(descriptor: Descriptor) -> bool:
    """Whether a message is a resource of its own kind."""
    return {"api_version", "kind"} <= set(descriptor.fields_by_name)


def component_name(descriptor: Descriptor | EnumDescriptor) -> str:
    """The full name without its package: WorkloadStatus.Phase."""
    return descriptor.full_name.removeprefix(f"{descriptor.file.package}.")
