"""Paths and queries become requests; routes that cannot be served are refused at start."""

import pytest
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2, descriptor_pool

from pwm.api.v1 import services_pb2
from pwm.api.v1.services_pb2 import ExecRequest, ListRequest, LogsRequest, TopRequest
from pwm.controlplane.gateway.query import MAX_PARAMETERS, QueryReader, resolve
from pwm.controlplane.gateway.routes import BadRoute, Routes
from pwm.controlplane.gateway.scalars import BadInput


class Nothing:
    """A servicer without methods."""


def routes() -> Routes:
    return Routes([(service, Nothing()) for service in services_pb2.DESCRIPTOR.services_by_name.values()])


@pytest.mark.parametrize(
    ("path", "method", "rpc", "values"),
    [
        ("/v1/version", "GET", "SystemService.GetVersion", []),
        ("/v1/resources/Workload", "GET", "ResourceService.List", ["Workload"]),
        ("/v1/resources/Workload/a", "GET", "ResourceService.Get", ["Workload", "a"]),
        ("/v1/resources/Workload/a", "DELETE", "ResourceService.Delete", ["Workload", "a"]),
        ("/v1/resources/Container/train.0.1", "GET", "ResourceService.Get", ["Container", "train.0.1"]),
        ("/v1/workloads/stop/stop", "POST", "WorkloadService.Stop", ["stop"]),
        ("/v1/workloads/a%20b%2Fc/logs", "GET", "WorkloadService.Logs", ["a b/c"]),
        ("/v1/workloads/%C3%A9/logs", "GET", "WorkloadService.Logs", ["é"]),
    ],
)
def test_a_path_leads_to_its_rpc(path: str, method: str, rpc: str, values: list[str]) -> None:
    found, given = routes().find(path)
    assert found[method].rpc.name == rpc
    assert given == values


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/", "/v1/version/", "/v1/resources/", "/v1/resources/a/b/c", "/v2/version"]
)
def test_other_paths_lead_nowhere(path: str) -> None:
    assert routes().find(path) == ({}, [])


def test_a_path_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(BadInput, match="not UTF-8"):
        routes().find("/v1/workloads/%ff/logs")


def test_every_rpc_of_the_api_has_a_route_and_says_who_may_call_it() -> None:
    served = {route.rpc.name: route.rpc for route in routes().all}
    declared = [
        f"{service.name}.{method.name}"
        for service in services_pb2.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]
    assert len(declared) >= 20
    assert sorted(served) == sorted(declared)
    for name, rpc in served.items():
        assert rpc.access is not None, f"{name} has no access option"
        rules = [rpc.access.public, rpc.access.authenticated, rpc.access.node, bool(rpc.access.verb)]
        assert rules.count(True) == 1, f"{name} has not exactly one rule"
        if rpc.access.verb:
            assert bool(rpc.access.kind) != bool(rpc.access.kind_field), f"{name} names no kind, or two"
        for path in filter(None, (rpc.access.kind_field, rpc.access.group_field)):
            assert resolve(rpc.descriptor.input_type, path) is not None, f"{name} has no field {path}"


def list_of(query: str) -> ListRequest:
    request = ListRequest()
    QueryReader(ListRequest.DESCRIPTOR, taken=("kind",)).read(query, request)
    return request


def test_a_query_sets_fields_of_every_kind() -> None:
    request = list_of(
        "group=vision&allGroups=true&format=WIDE&minRevision=18446744073709551615&names=a&names=b%26&selector=k%3Dv,+x"
    )
    assert request == ListRequest(
        group="vision", all_groups=True, format="WIDE", min_revision=2**64 - 1, names=["a", "b&"], selector="k=v, x"
    )
    assert list_of("all_groups=1&min_revision=5&format=2") == ListRequest(
        all_groups=True, min_revision=5, format="TABLE"
    )


def test_a_query_sets_times_and_nested_fields() -> None:
    logs = LogsRequest()
    QueryReader(LogsRequest.DESCRIPTOR, taken=("name",)).read("since=90.5s&tail=0&replica=0", logs)
    assert logs.since.ToMilliseconds() == 90_500
    assert logs.HasField("tail")
    assert logs.HasField("replica")
    top = TopRequest()
    QueryReader(TopRequest.DESCRIPTOR, taken=()).read("interval=1s", top)
    assert top.interval.seconds == 1
    run = ExecRequest()
    QueryReader(ExecRequest.DESCRIPTOR, taken=()).read(
        "start.name=a&start.size.columns=80&start.cmd=ls&start.cmd=-l", run
    )
    assert run.start.name == "a"
    assert run.start.size.columns == 80
    assert run.start.cmd == ["ls", "-l"]


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("folow=true", "folow: unknown field; known here: kind, group, allGroups"),
        ("group.name=a", "group.name: unknown field"),
        ("group=a&group=b", "group: is given twice"),
        ("allGroups=true&all_groups=true", "all_groups: is given twice"),
        ("kind=Node", "kind: is in the path already"),
        ("allGroups=yes", 'allGroups: true or false is expected, not "yes"'),
        ("allGroups=", 'allGroups: true or false is expected, not ""'),
        ("minRevision=-1", "minRevision: -1 is out of range"),
        ("minRevision=x", 'minRevision: a whole number is expected, not "x"'),
        ("minRevision=99999999999999999999", "minRevision: 99999999999999999999 is out of range"),
        ("format=tables", 'format: "tables" is not one of RESOURCES'),
        ("format=77", "format: 77 is not one of RESOURCES"),
        ("group", 'the query is not name=value&name=value: "group"'),
        ("group=a&&zone=b", "the query is not name=value&name=value"),
        ("group=%ff", "the query is not UTF-8"),
        ("group=\udcff", "the query is not UTF-8"),
        ("&".join(["names=a"] * (MAX_PARAMETERS + 1)), "a query has at most 2000 parameters"),
    ],
)
def test_a_wrong_query_is_refused_in_a_sentence(query: str, sentence: str) -> None:
    with pytest.raises(BadInput) as caught:
        list_of(query)
    assert str(caught.value).startswith(sentence)


def service_with(rule: dict[str, str], *, request: str = "R") -> Routes:
    """Routes of a service made up for the test: message R {string name; R inner; repeated string many; bytes data}."""
    file = descriptor_pb2.FileDescriptorProto(name="test.proto", package="t", syntax="proto3")
    message = file.message_type.add(name="R")
    string, nested, raw = 9, 11, 12
    message.field.add(name="name", number=1, type=string, label=1)
    message.field.add(name="inner", number=2, type=nested, type_name=".t.R", label=1)
    message.field.add(name="many", number=3, type=string, label=3)
    message.field.add(name="data", number=4, type=raw, label=1)
    service = file.service.add(name="S")
    method = service.method.add(name="M", input_type=".t.R", output_type=".t.R")
    option = method.options.Extensions[annotations_pb2.http]
    for key, value in rule.items():
        setattr(option, key, value)
    pool = descriptor_pool.DescriptorPool()
    return Routes([(pool.AddSerializedFile(file.SerializeToString()).services_by_name["S"], Nothing())])


def test_a_path_may_name_a_nested_field() -> None:
    made = service_with({"get": "/v9/{inner.name}/x"})
    assert made.find("/v9/a/x")[1] == ["a"]
    assert made.all[0].variables[0].parents == ("inner",)


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ({"get": "/v9/{name=**}"}, "is neither a literal nor"),
        ({"get": "/v9/a:verb"}, "is neither a literal nor"),
        ({"get": "/v9/{nobody}"}, "is no single field of R"),
        ({"get": "/v9/{many}"}, "is no single field of R"),
        ({"get": "/v9/{data}"}, "is no single field of R"),
        ({"get": "/v9/{inner}"}, "is no single field of R"),
        ({"post": "/v9/a", "body": "name"}, "the body field name is no message of R"),
        ({"get": "/v9/a", "response_body": "name"}, "response_body is not served"),
        ({"body": "*"}, "no route with one of HTTP's own methods"),
    ],
)
def test_a_route_that_cannot_be_served_is_refused_at_start(rule: dict[str, str], sentence: str) -> None:
    with pytest.raises(BadRoute, match=sentence):
        service_with(rule)


def test_two_rpcs_cannot_have_one_route() -> None:
    service = services_pb2.DESCRIPTOR.services_by_name["SystemService"]
    with pytest.raises(BadRoute, match=r"GET /v1/version means SystemService.GetVersion and SystemService.GetVersion"):
        Routes([(service, Nothing()), (service, Nothing())])
