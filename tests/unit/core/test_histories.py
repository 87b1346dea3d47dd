"""What was released stays true: old logs fold to the bytes they folded to, and no message loses a field.

`scripts/record_history.py` records both at each release, in tests/histories/VERSION.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet

from pwm.api.v1 import events_pb2 as ev
from pwm.controlplane.core.evolve import STATE_TYPES, evolve, fold_all, understood
from pwm.version import VERSION, numbers

HISTORIES = Path(__file__).parents[2] / "histories"
VERSIONS = sorted((path.name for path in HISTORIES.iterdir()), key=numbers)
API = Path(ev.__file__).parents[1] / "descriptors.binpb"
AGAIN = "if this version has not been released, record it again: scripts/record_history.py --replace"


def events_of(version: str, kind: str) -> list[ev.Event]:
    data, events = (HISTORIES / version / f"{kind}.binpb").read_bytes(), []
    while data:
        size = int.from_bytes(data[:4], "big")
        event = ev.Event.FromString(data[4 : 4 + size])
        assert understood(event, size), f"{kind} version {event.version} is not known any more; {AGAIN}"
        events.append(event)
        data = data[4 + size :]
    return events


def hashes_of(version: str) -> dict[str, str]:
    return json.loads((HISTORIES / version / "hashes.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize(("version", "kind"), [(v, kind) for v in VERSIONS for kind in hashes_of(v)])
def test_a_recorded_history_folds_to_its_recorded_hash(version: str, kind: str) -> None:
    digest, state, events = hashlib.sha256(), None, events_of(version, kind)
    for event in events:
        state = evolve(state, event)
        digest.update(state.SerializeToString(deterministic=True))
    assert digest.hexdigest() == hashes_of(version)[kind], AGAIN
    assert fold_all(events) == state


@pytest.mark.parametrize("version", VERSIONS)
def test_every_payload_that_the_version_had_is_in_its_histories(version: str) -> None:
    there = {event.WhichOneof("payload") for kind in hashes_of(version) for event in events_of(version, kind)}
    (message,) = (m for name, m in messages(recorded(version)).items() if name == "Event")
    assert {field.name for field in message.field if field.HasField("oneof_index")} == there, AGAIN


def test_there_is_a_recorded_version_and_none_of_the_future() -> None:
    assert VERSIONS
    assert numbers(VERSIONS[-1]) <= numbers(VERSION)


# ---- messages


def recorded(version: str) -> FileDescriptorSet:
    return FileDescriptorSet.FromString((HISTORIES / version / "descriptors.binpb").read_bytes())


def today() -> FileDescriptorSet:
    everything = FileDescriptorSet.FromString(API.read_bytes())
    return FileDescriptorSet(file=[file for file in everything.file if file.package == "pwm.v1"])


def messages(files: FileDescriptorSet) -> dict[str, DescriptorProto]:
    found: dict[str, DescriptorProto] = {}

    def add(prefix: str, items: Iterable[DescriptorProto]) -> None:
        for message in items:
            found[prefix + message.name] = message
            add(f"{prefix}{message.name}.", message.nested_type)

    for file in files.file:
        add("", file.message_type)
    return found


def enums(files: FileDescriptorSet) -> dict[str, EnumDescriptorProto]:
    found = {enum.name: enum for file in files.file for enum in file.enum_type}
    for name, message in messages(files).items():
        found.update((f"{name}.{enum.name}", enum) for enum in message.enum_type)
    return found


def shape(field: FieldDescriptorProto, message: DescriptorProto) -> tuple[object, ...]:
    oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
    return field.name, field.json_name, field.type, field.type_name, field.label, field.proto3_optional, oneof


def broken(old: FileDescriptorSet, new: FileDescriptorSet) -> list[str]:
    """What a program that knows the old messages cannot rely on any more."""
    found = []
    for name, message in messages(old).items():
        now = messages(new).get(name)
        if now is None:
            found.append(f"{name} is gone")
            continue
        fields = {field.number: field for field in now.field}
        for field in message.field:
            if field.number not in fields:
                found.append(f"{name}.{field.name} = {field.number} is gone")
            elif shape(field, message) != shape(fields[field.number], now):
                found.append(f"{name}.{field.name} = {field.number} is something else now")
    for name, enum in enums(old).items():
        there = {value.number: value.name for value in enums(new)[name].value} if name in enums(new) else {}
        for value in enum.value:
            if there.get(value.number) != value.name:
                found.append(f"{name}.{value.name} = {value.number} is gone")
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_no_message_of_a_released_version_has_lost_or_changed_a_field(version: str) -> None:
    assert broken(recorded(version), today()) == [], AGAIN


def test_what_breaks_a_message_is_noticed() -> None:
    old, new = recorded(VERSIONS[-1]), recorded(VERSIONS[-1])
    event = messages(new)["Event"]
    del event.field[0]
    event.field[0].type = FieldDescriptorProto.TYPE_INT32
    messages(new)["Removed"].name = "Gone"
    enums(new)["Actor.Type"].value[1].number = 99
    assert len(broken(old, new)) == 4
    assert broken(old, old) == []


def test_every_kind_of_resource_is_recorded_in_its_newest_release() -> None:
    assert set(hashes_of(VERSIONS[-1])) <= set(STATE_TYPES), "no kind may go"
