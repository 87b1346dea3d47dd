#!/usr/bin/env python3
"""Records, for a release, what this version's events fold to and what its messages look like.

Written to tests/histories/VERSION: a history of each kind of resource with every payload of its events, once
with every field set and once with none, the hash of the states it folds to, and the descriptors of all messages. The
tests hold every later version against all of it (tests/unit/core/test_histories.py): logs that were written long ago
must fold to the same bytes for ever, and no field may change its number, type or meaning.

A version that was released is never recorded again; `--replace` is for one that has not been.
"""

import argparse
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import FieldDescriptor as F
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.message import Message

ROOT = Path(__file__).resolve().parent.parent
HISTORIES = ROOT / "tests" / "histories"
sys.path.insert(0, str(ROOT))

from pwm.api.v1 import events_pb2 as ev  # noqa: E402
from pwm.controlplane.core.evolve import STATE_TYPES, evolve  # noqa: E402
from pwm.version import VERSION  # noqa: E402

# Messages within messages: deeper than any spec is.
DEEPEST = 8
# Payloads whose names do not begin with their kind's.
NAMED_OTHERWISE = {"period_settled": ("Ledger",), "credit_notice": ("User", "Group")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replace", action="store_true", help="record a version again that has not been released")
    target = HISTORIES / VERSION
    if target.exists():
        if not parser.parse_args().replace:
            sys.stderr.write(f"{VERSION} is recorded already; if it has not been released, say --replace\n")
            return 1
        shutil.rmtree(target)
    target.mkdir(parents=True)
    hashes = {}
    for kind in sorted(STATE_TYPES):
        events = list(history(kind))
        (target / f"{kind}.binpb").write_bytes(b"".join(framed(event) for event in events))
        hashes[kind] = hash_of(events)
    (target / "hashes.json").write_text(json.dumps(hashes, indent=2) + "\n")
    (target / "descriptors.binpb").write_bytes(descriptors().SerializeToString(deterministic=True))
    sys.stdout.write(f"recorded {len(hashes)} histories of version {VERSION}\n")
    return 0


def framed(event: ev.Event) -> bytes:
    """As in the file: four bytes of length, then the event."""
    data = event.SerializeToString(deterministic=True)
    return len(data).to_bytes(4, "big") + data


def hash_of(events: list[ev.Event]) -> str:
    """Of the state after each event, one after the other."""
    digest, state = hashlib.sha256(), None
    for event in events:
        state = evolve(state, event)
        digest.update(state.SerializeToString(deterministic=True))
    return digest.hexdigest()


def descriptors() -> FileDescriptorSet:
    """PWM's own messages, without their comments."""
    everything = FileDescriptorSet.FromString((ROOT / "pwm" / "api" / "descriptors.binpb").read_bytes())
    ours = FileDescriptorSet(file=[file for file in everything.file if file.package == "pwm.v1"])
    for file in ours.file:
        file.ClearField("source_code_info")
    return ours


# ---- histories


def history(kind: str) -> Iterator[ev.Event]:
    """Every payload of this kind's events, full, empty, and full once more with other values; then the end."""
    payloads = [field for field in _payloads() if kind in _kinds_of(field.name)]
    version = 0
    for fill_from in (1, 0, 1000):
        for field in payloads:
            version += 1
            event = ev.Event(kind=kind, uid=f"{kind.lower()}-1", version=version, name="name", group="group")
            event.time.FromMilliseconds(1_700_000_000_000 + version)
            event.actor.name, event.actor.type = f"actor-{version}", 1 + version % 3
            payload = getattr(event, field.name)
            payload.SetInParent()
            if fill_from:
                _fill(payload, iter(range(fill_from + 100 * version, 1 << 30)), depth=0)
            yield event
    end = ev.Event(kind=kind, uid=f"{kind.lower()}-1", version=version + 1, name="name", group="group")
    end.removed.reason.message = "gone"
    end.time.FromMilliseconds(1_700_000_100_000)
    yield end


def _payloads() -> list[Any]:
    return [f for f in ev.Event.DESCRIPTOR.oneofs_by_name["payload"].fields if f.name != "removed"]


def _kinds_of(payload: str) -> tuple[str, ...]:
    """`resource_credit_applied` is an event of a ResourceCredit."""
    if payload in NAMED_OTHERWISE:
        return NAMED_OTHERWISE[payload]
    found = [kind for kind in STATE_TYPES if payload.startswith(re.sub(r"(?<!^)([A-Z])", r"_\1", kind).lower() + "_")]
    assert found, f"no kind has the payload {payload}"
    return (max(found, key=len),)


def _fill(message: Message, numbers: Iterator[int], *, depth: int) -> None:
    """Every field set, each to a value of its own; of a oneof the first."""
    for field in message.DESCRIPTOR.fields:
        if field.containing_oneof is not None and field.containing_oneof.fields[0] is not field:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            _fill_map(getattr(message, field.name), field.message_type, numbers, depth)
        elif field.message_type is not None:
            if depth < DEEPEST:
                repeated = field.is_repeated
                inner = getattr(message, field.name).add() if repeated else getattr(message, field.name)
                inner.SetInParent()
                _fill(inner, numbers, depth=depth + 1)
        elif field.is_repeated:
            getattr(message, field.name).append(_value(field, next(numbers)))
        else:
            setattr(message, field.name, _value(field, next(numbers)))


def _fill_map(mapping: Any, entry: Any, numbers: Iterator[int], depth: int) -> None:
    key = _value(entry.fields_by_name["key"], next(numbers))
    value = entry.fields_by_name["value"]
    if value.message_type is not None:
        _fill(mapping[key], numbers, depth=depth + 1)
    else:
        mapping[key] = _value(value, next(numbers))


def _value(field: Any, number: int) -> Any:
    match field.cpp_type:
        case F.CPPTYPE_STRING:
            return f"{number}".encode() if field.type == F.TYPE_BYTES else f"{field.name}-{number}"
        case F.CPPTYPE_BOOL:
            return True
        case F.CPPTYPE_ENUM:
            values = [value.number for value in field.enum_type.values if value.number]
            return values[number % len(values)]
        case F.CPPTYPE_DOUBLE | F.CPPTYPE_FLOAT:
            return number / 2
        case _:
            return number


if __name__ == "__main__":
    raise SystemExit(main())
