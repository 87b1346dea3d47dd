"""Comments of the proto files, by the full name of what they stand above.

Generated modules keep names and types but no comments. `proto/generate.py` therefore also writes all files as a
descriptor set with source information, where a comment's place is a path of field numbers: [4, 0, 2, 1] is the second
field of the first message. Here these paths become names.
"""

from functools import cache
from importlib import resources

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

# Written by proto/generate.py beside the generated modules.
DESCRIPTORS = "descriptors.binpb"

Path = tuple[int, ...]


@cache
def comments() -> dict[str, str]:
    """Full name -> comment, its lines joined into paragraphs."""
    found: dict[str, str] = {}
    files = FileDescriptorSet.FromString(resources.files("pwm.api").joinpath(DESCRIPTORS).read_bytes())
    for file in files.file:
        names = _names(file)
        for location in file.source_code_info.location:
            name = names.get(tuple(location.path))
            text = location.leading_comments or location.trailing_comments
            if name and text:
                found[name] = _paragraphs(text)
    return found


def _paragraphs(text: str) -> str:
    blocks = [" ".join(line.strip() for line in block.splitlines()) for block in text.strip().split("\n\n")]
    return "\n\n".join(block.strip() for block in blocks)


def _names(file: FileDescriptorProto) -> dict[Path, str]:
    names: dict[Path, str] = {}
    package = file.package
    for index, message in enumerate(file.message_type):
        _message(names, message, (file.MESSAGE_TYPE_FIELD_NUMBER, index), package)
    for index, enum in enumerate(file.enum_type):
        _enum(names, enum, (file.ENUM_TYPE_FIELD_NUMBER, index), package)
    for index, service in enumerate(file.service):
        _service(names, service, (file.SERVICE_FIELD_NUMBER, index), package)
    return names


def _message(names: dict[Path, str], message: DescriptorProto, path: Path, scope: str) -> None:
    name = names[path] = f"{scope}.{message.name}"
    for index, field in enumerate(message.field):
        names[(*path, message.FIELD_FIELD_NUMBER, index)] = f"{name}.{field.name}"
    for index, nested in enumerate(message.nested_type):
        _message(names, nested, (*path, message.NESTED_TYPE_FIELD_NUMBER, index), name)
    for index, enum in enumerate(message.enum_type):
        _enum(names, enum, (*path, message.ENUM_TYPE_FIELD_NUMBER, index), name)


def _enum(names: dict[Path, str], enum: EnumDescriptorProto, path: Path, scope: str) -> None:
    name = names[path] = f"{scope}.{enum.name}"
    for index, value in enumerate(enum.value):
        names[(*path, enum.VALUE_FIELD_NUMBER, index)] = f"{name}.{value.name}"


def _service(names: dict[Path, str], service: ServiceDescriptorProto, path: Path, scope: str) -> None:
    name = names[path] = f"{scope}.{service.name}"
    for index, method in enumerate(service.method):
        names[(*path, service.METHOD_FIELD_NUMBER, index)] = f"{name}.{method.name}"
