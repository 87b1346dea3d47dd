"""JSON is what json_format says it is, in both directions; where it differs, on purpose, a test says how."""

import json
import math
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.struct_pb2 import Struct
from hypothesis import given, settings
from hypothesis import strategies as st

from pwm.api.v1 import (
    agent_pb2,
    events_pb2,
    identity_pb2,
    node_pb2,
    resource_pb2,
    services_pb2,
    store_pb2,
    volume_pb2,
    workload_pb2,
)
from pwm.api.v1.resource_pb2 import Resource
from pwm.api.v1.services_pb2 import ApplyRequest, ListRequest, ListResponse, LogsRequest, WatchResponse
from pwm.api.v1.workload_pb2 import Workload
from pwm.controlplane.gateway.decoding import MAX_JSON_DEPTH, Decoder, parse_json
from pwm.controlplane.gateway.encoding import Encoder, Memo
from pwm.controlplane.gateway.scalars import BadInput

FILES = [
    agent_pb2, events_pb2, identity_pb2, node_pb2, resource_pb2, services_pb2, store_pb2, volume_pb2, workload_pb2,
]  # fmt: skip
MESSAGES = [message for file in FILES for message in file.DESCRIPTOR.message_types_by_name.values()]

TEXT = st.text(max_size=6)
JSON_NUMBER = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | JSON_NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)

INTEGERS = {
    FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.TYPE_FIXED64: st.integers(0, 2**64 - 1),
}


def scalars(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.enum_type is not None:
        return st.sampled_from([value.number for value in field.enum_type.values])
    if field.type in INTEGERS:
        return INTEGERS[field.type]
    return {
        FieldDescriptor.TYPE_STRING: TEXT,
        FieldDescriptor.TYPE_BOOL: st.booleans(),
        FieldDescriptor.TYPE_BYTES: st.binary(max_size=6),
        FieldDescriptor.TYPE_DOUBLE: st.floats(allow_nan=False) | st.just(math.nan),  # one NaN: JSON knows no other
    }[field.type]


def fill(draw: st.DrawFn, message: Any, depth: int = 0) -> Any:
    """Gives a message random values, three levels deep at most."""
    descriptor: Descriptor = message.DESCRIPTOR
    if descriptor.full_name == "google.protobuf.Timestamp":
        message.seconds = draw(st.integers(-62135596800, 253402300799))
        message.nanos = draw(st.sampled_from([0, 1, 999_999_999, 120_000_000, 7_000]))
        return message
    if descriptor.full_name == "google.protobuf.Duration":
        sign = draw(st.sampled_from([1, -1]))
        message.seconds = sign * draw(st.integers(0, 315_576_000_000))
        message.nanos = sign * draw(st.sampled_from([0, 1, 999_999_999, 120_000_000, 7_000]))
        return message
    if not descriptor.fields:
        return message
    if descriptor.full_name == "google.protobuf.Struct":
        json_format.ParseDict(draw(st.dictionaries(TEXT, JSON, max_size=3)), message)
        return message
    for field in draw(st.lists(st.sampled_from(list(descriptor.fields)), unique_by=lambda f: f.name, max_size=8)):
        if field.message_type is not None and depth >= 3:
            continue
        target = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            value_field = field.message_type.fields_by_name["value"]
            for key in draw(st.lists(TEXT, max_size=2)):
                if value_field.message_type is not None:
                    fill(draw, target[key], depth + 1)
                else:
                    target[key] = draw(scalars(value_field))
        elif field.message_type is not None and field.is_repeated:
            for _ in range(draw(st.integers(0, 2))):
                fill(draw, target.add(), depth + 1)
        elif field.message_type is not None:
            target.SetInParent()
            fill(draw, target, depth + 1)
        elif field.is_repeated:
            target.extend(draw(st.lists(scalars(field), max_size=3)))
        else:
            setattr(message, field.name, draw(scalars(field)))
    return message


@st.composite
def messages(draw: st.DrawFn, kinds: Any = None) -> Any:
    return fill(draw, GetMessageClass(draw(st.sampled_from(kinds or MESSAGES)))())


def flattened(value: Any, message: Any) -> Any:
    """What json_format wrote, with each Resource replaced by the one message it holds."""
    if message.DESCRIPTOR.full_name == "pwm.v1.Resource":
        member = message.WhichOneof("resource")
        if member is None:
            return {}
        field = message.DESCRIPTOR.fields_by_name[member]
        return flattened(value[field.json_name], getattr(message, member))
    for field, inner in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        if field.message_type.full_name.startswith("google.protobuf."):
            continue
        name = field.json_name
        if field.is_repeated:
            value[name] = [flattened(one, item) for one, item in zip(value[name], inner, strict=True)]
        else:
            value[name] = flattened(value[name], inner)
    return value


ENCODER = Encoder()
DECODER = Decoder()


@given(messages())
@settings(max_examples=200, deadline=None)
def test_every_message_is_written_as_json_format_writes_it(message: Any) -> None:
    reference = flattened(json.loads(json_format.MessageToJson(message)), message)
    assert json.loads(ENCODER.encode(message)) == reference
    assert json.loads(Encoder(memo_bytes=0).encode(message)) == reference


@given(messages())
@settings(max_examples=200, deadline=None)
def test_every_message_survives_json(message: Any) -> None:
    reference = json_format.MessageToDict(message)
    if contains_resource(message.DESCRIPTOR):
        return
    read = type(message)()
    DECODER.decode(reference, read)
    assert read.SerializeToString(deterministic=True) == message.SerializeToString(deterministic=True)


def contains_resource(descriptor: Descriptor) -> bool:
    return descriptor.full_name == "pwm.v1.Resource" or any(
        field.message_type is not None and field.message_type.full_name == "pwm.v1.Resource"
        for field in descriptor.fields
    )


@given(messages([services_pb2.DESCRIPTOR.message_types_by_name["GetResponse"]]))
@settings(max_examples=200, deadline=None)
def test_a_resource_is_told_apart_by_its_kind(message: Any) -> None:
    if not message.HasField("resource"):
        return
    member = message.resource.WhichOneof("resource")
    if member is None or member == "event":
        return
    inner = getattr(message.resource, member)
    inner.api_version, inner.kind = "v1", inner.DESCRIPTOR.name
    read = type(message)()
    DECODER.decode(json.loads(ENCODER.encode(message)), read)
    assert read.SerializeToString(deterministic=True) == message.SerializeToString(deterministic=True)


REQUESTS = [
    method.input_type for service in services_pb2.DESCRIPTOR.services_by_name.values() for method in service.methods
]
NAMES = sorted({name for message in MESSAGES for f in message.fields for name in (f.json_name, f.name)})
WILD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["1", "-5", "1s", "x="]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(st.sampled_from(MESSAGES), st.dictionaries(st.sampled_from(NAMES) | TEXT, WILD, max_size=4))
@settings(max_examples=400, deadline=None)
def test_what_is_accepted_means_what_json_format_reads(descriptor: Descriptor, value: Any) -> None:
    if contains_resource(descriptor):
        return
    read = GetMessageClass(descriptor)()
    try:
        DECODER.decode(value, read)
    except BadInput:
        return
    reference = json_format.ParseDict(value, GetMessageClass(descriptor)())
    assert read.SerializeToString(deterministic=True) == reference.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"selectr": "a"}, "selectr: unknown field; known here: kind, group, allGroups, selector, format, "),
        ({"kind": 5}, "kind: a text is expected, not 5"),
        ({"allGroups": "true"}, 'allGroups: true or false is expected, not "true"'),
        ({"allGroups": 1}, "allGroups: true or false is expected, not 1"),
        ({"minRevision": -1}, "minRevision: -1 is out of range"),
        ({"minRevision": "1.5"}, 'minRevision: a whole number is expected, not "1.5"'),
        ({"minRevision": 1.5}, "minRevision: a whole number is expected, not 1.5"),
        ({"minRevision": True}, "minRevision: a whole number is expected, not true"),
        ({"format": "tables"}, 'format: "tables" is not one of RESOURCES, TABLE, WIDE, NAME'),
        ({"format": 99}, "format: 99 is not one of RESOURCES, TABLE, WIDE, NAME"),
        ({"names": "a"}, 'names: a list is expected, not "a"'),
        ({"names": ["a", None]}, "names[1]: null is no value"),
        ({"names": ["a", {}]}, "names[1]: a text is expected, not {}"),
        ({"minRevision": 1, "min_revision": 2}, "min_revision: cannot be given together with minRevision"),
        ({"kind": "\ud800"}, "kind: the text holds half of a surrogate pair"),
        ([], "an object is expected, not []"),
        (None, "an object is expected, not null"),
    ],
)
def test_a_wrong_value_is_refused_in_a_sentence_with_its_path(value: Any, sentence: str) -> None:
    with pytest.raises(BadInput) as caught:
        DECODER.decode(value, ListRequest())
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"spec": {"config": {"memory": 5}}}, "spec.config.memory: a text is expected, not 5"),
        ({"spec": {"volumes": [{}, {"nam": 1}]}}, "spec.volumes[1].nam: unknown field; known here: name, group, "),
        ({"spec": {"config": {"env": {"A": 1}}}}, "spec.config.env.A: a text is expected, not 1"),
        ({"spec": {"config": {"env": ["A=1"]}}}, "spec.config.env: an object is expected, not […]"),
        ({"metadata": {"createdAt": "now"}}, "metadata.createdAt: a time such as 2026-01-31T12:00:00Z is expected"),
    ],
)
def test_the_path_goes_all_the_way_down(value: Any, sentence: str) -> None:
    with pytest.raises(BadInput) as caught:
        DECODER.decode(value, Workload())
    assert str(caught.value).startswith(sentence)


def test_a_duration_has_a_unit() -> None:
    request = LogsRequest()
    DECODER.decode({"since": "1.5s"}, request)
    assert request.since.ToMilliseconds() == 1500
    with pytest.raises(BadInput, match=r"since: a duration in seconds such as 90s or 1.5s is expected, not 10"):
        DECODER.decode({"since": 10}, LogsRequest())


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"{", "the body is no valid JSON at line 1, column 2: "),
        (b'{"a": 1,\n "a": 2}', 'the key "a" is given twice in one object'),
        (b'{"a": NaN}', "NaN is no JSON"),
        (b'{"a": -Infinity}', "-Infinity is no JSON"),
        (b"\xff", "the body is not UTF-8 at byte 0"),
        (b"[" * 100_000, "nested deeper than 32 levels"),
        (b'{"a":' * 100_000, "nested deeper than 32 levels"),
        (b"1" * 5_000, "the body holds a number that is too long"),
        (b"", "the body is no valid JSON at line 1, column 1"),
    ],
)
def test_text_that_is_no_json_is_refused_in_a_sentence(body: bytes, sentence: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_json(body)
    assert str(caught.value).startswith(sentence)


def test_depth_is_bounded_where_it_would_harm_the_binary_form() -> None:
    def nested(levels: int) -> dict[str, Any]:
        value: Any = {}
        for _ in range(levels):
            value = {"a": value}
        return {"documents": [value]}

    request = ApplyRequest()
    DECODER.decode(nested(MAX_JSON_DEPTH - 2), request)
    assert ApplyRequest.FromString(request.SerializeToString()) == request
    with pytest.raises(BadInput, match="nested deeper than 32 levels"):
        DECODER.decode(nested(MAX_JSON_DEPTH + 1), ApplyRequest())


def test_infinite_numbers_do_not_get_into_documents() -> None:
    with pytest.raises(BadInput, match=r"documents\[0\].a: the number is out of range"):
        DECODER.decode({"documents": [{"a": math.inf}]}, ApplyRequest())
    with pytest.raises(BadInput, match=r"documents\[0\].a: .* out of range"):
        DECODER.decode({"documents": [{"a": 10**400}]}, ApplyRequest())


def test_two_hundred_documents_are_read_as_they_are() -> None:
    document = {
        "apiVersion": "v1",
        "kind": "Workload",
        "metadata": {"name": "train", "group": "vision", "labels": {"a": "b"}},
        "spec": {"image": {"image": "x"}, "config": {"env": {f"K{n}": "v" for n in range(30)}, "cmd": ["a"] * 10}},
    }
    body = json.dumps({"documents": [document] * 200}).encode()
    request = ApplyRequest()
    DECODER.decode(parse_json(body), request)
    assert len(request.documents) == 200
    assert json_format.MessageToDict(request.documents[7]) == document


def test_a_changed_resource_is_written_anew() -> None:
    encoder = Encoder()
    message = WatchResponse(resource=Resource(workload=Workload(kind="Workload")))
    first = encoder.encode(message)
    assert encoder.encode(message) == first
    message.resource.workload.metadata.name = "other"
    assert json.loads(encoder.encode(message))["resource"]["metadata"]["name"] == "other"


def test_the_memo_forgets_what_was_not_used_for_longest() -> None:
    memo = Memo(limit_bytes=40)
    memo.put(b"a" * 5, b"1" * 5)
    memo.put(b"b" * 5, b"2" * 5)
    assert memo.get(b"a" * 5) == b"1" * 5
    memo.put(b"c" * 5, b"3" * 20)
    assert memo.get(b"b" * 5) is None
    assert memo.get(b"a" * 5) == b"1" * 5
    assert memo.size_bytes == 35
    memo.put(b"d", b"4" * 100)
    assert memo.size_bytes == 0


def test_a_list_of_resources_holds_the_resources_themselves() -> None:
    answer = ListResponse(items=[Resource(workload=Workload(kind="Workload")), Resource()], revision=2**63)
    assert json.loads(ENCODER.encode(answer)) == {"items": [{"kind": "Workload"}, {}], "revision": str(2**63)}


def test_types_that_the_api_does_not_use_are_refused_when_they_are_compiled() -> None:
    from google.protobuf.any_pb2 import Any as AnyMessage

    with pytest.raises(TypeError, match=r"google.protobuf.Any is not used in this API"):
        Encoder().encode(AnyMessage())
    with pytest.raises(TypeError, match=r"google.protobuf.Any is not used in this API"):
        Decoder().decode({}, AnyMessage())


def test_a_struct_that_json_cannot_hold_is_an_error() -> None:
    document = Struct()
    document.fields["a"].number_value = math.inf
    with pytest.raises(ValueError, match="no infinite numbers"):
        ENCODER.encode(document)
