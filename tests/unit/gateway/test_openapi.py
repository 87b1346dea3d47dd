"""The OpenAPI document is valid, complete, and true."""

import json
from typing import Any

import pytest
from google.protobuf import json_format
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from pwm.api.v1 import services_pb2 as s
from pwm.api.v1.events_pb2 import Event
from pwm.api.v1.identity_pb2 import Group
from pwm.api.v1.resource_pb2 import Resource
from pwm.controlplane.gateway.comments import comments
from pwm.controlplane.gateway.encoding import Encoder
from pwm.controlplane.gateway.openapi import document
from pwm.controlplane.gateway.routes import Routes


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    services = [(service, object()) for service in s.DESCRIPTOR.services_by_name.values()]
    return document(Routes(services), title="PWM", version="3.0.0")


def test_the_document_is_valid(described: dict[str, Any]) -> None:
    validate(described)


def test_every_rpc_is_described_with_its_comment(described: dict[str, Any]) -> None:
    operations = {
        operation["operationId"]: operation for path in described["paths"].values() for operation in path.values()
    }
    declared = {
        f"{service.name}_{method.name}"
        for service in s.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert set(operations) == declared
    assert operations["SystemService_GetVersion"]["summary"] == "Version of the server and the oldest client it serves"
    assert operations["SystemService_GetVersion"]["security"] == []
    assert "security" not in operations["SystemService_WhoAmI"]
    assert "Needs the verb `stop` on Workload." in operations["WorkloadService_Stop"]["description"]


def test_comments_of_fields_messages_and_enum_values_are_found() -> None:
    found = comments()
    assert found["pwm.v1.ListRequest.selector"] == "k=v, k!=v, k, !k, comma-separated."
    assert found["pwm.v1.Problem"].startswith("Problem is one thing wrong with a document.")
    assert found["pwm.v1.WatchResponse.Type.SYNCED"] == "Everything that was there at the start has been sent."


def test_streams_are_described_in_each_of_their_forms(described: dict[str, Any]) -> None:
    watch = described["paths"]["/v1/watch/{kind}"]["get"]["responses"]["200"]["content"]
    assert list(watch) == ["application/x-ndjson", "text/event-stream"]
    logs = described["paths"]["/v1/workloads/{name}/logs"]["get"]["responses"]["200"]["content"]
    assert list(logs) == ["application/x-ndjson", "text/event-stream", "application/vnd.pwm.frames", "text/plain"]


def test_parameters_are_those_of_the_request(described: dict[str, Any]) -> None:
    parameters = described["paths"]["/v1/resources/{kind}"]["get"]["parameters"]
    assert [(one["in"], one["name"]) for one in parameters] == [
        ("path", "kind"),
        *(
            ("query", name)
            for name in ("group", "allGroups", "selector", "format", "minRevision", "zone", "names", "workload")
        ),
    ]
    posted = described["paths"]["/v1/apply"]["post"]
    assert [one["name"] for one in posted["parameters"]] == ["Idempotency-Key"]
    assert posted["requestBody"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/ApplyRequest"
    }


def validator(described: dict[str, Any], name: str) -> Draft202012Validator:
    schema = json.loads(json.dumps(described["components"]).replace("#/components/schemas/", "#/$defs/"))
    return Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": schema["schemas"]})


def encoded(message: Any) -> Any:
    return json.loads(Encoder().encode(message))


def test_a_resource_fits_exactly_one_schema(described: dict[str, Any]) -> None:
    check = validator(described, "ListEventsResponse")
    check.validate(encoded(s.ListEventsResponse(event=Event(kind="Workload", uid="u", version=1))))
    check = validator(described, "GetResponse")
    check.validate(
        encoded(s.GetResponse(resource=Resource(group=Group(api_version="v1", kind="Group")), revision=2**60))
    )
    assert not check.is_valid({"resource": {"apiVersion": "v1", "kind": "Spaceship"}})
    assert (
        described["components"]["schemas"]["Resource"]["discriminator"]["mapping"]["GPU"] == "#/components/schemas/GPU"
    )
    assert "Event" not in described["components"]["schemas"]["Resource"]["discriminator"]["mapping"]


def test_what_the_gateway_answers_fits_the_document(described: dict[str, Any]) -> None:
    why = s.WhyResponse(phase="QUEUED", queue_position=1, queue_length=2**31 - 1)
    why.estimated_start.FromMilliseconds(1_700_000_000_123)
    why.refusals.add(nodes=["n1"]).reason.code = 7
    validator(described, "WhyResponse").validate(encoded(why))
    apply = s.ApplyRequest(dry_run=True)
    json_format.ParseDict({"kind": "Workload", "spec": {"a": [1, None, True]}}, apply.documents.add())
    validator(described, "ApplyRequest").validate(encoded(apply))
    apply.manifests.add(text="kind: Workload\n", first_line=7)
    validator(described, "ApplyRequest").validate(encoded(apply))
    assert not validator(described, "ApplyRequest").is_valid({"manifests": [{"txet": ""}]})
    refused = s.ApplyResult(outcome="REFUSED", manifest=1)
    refused.problems.add(message="not valid YAML", line=2, column=5)
    validator(described, "ApplyResponse").validate(encoded(s.ApplyResponse(results=[refused])))
    inspect = s.InspectResponse(containers=[s.ContainerInspection(container="a", error="gone")])
    validator(described, "InspectResponse").validate(encoded(inspect))


async def test_the_document_is_served_to_everybody(gateway: Any, described: dict[str, Any]) -> None:
    answer = await gateway.get("/openapi.json", Authorization="")
    assert answer.status == 200
    assert answer.json == described
    packed = await gateway.get("/openapi.json", Accept_Encoding="gzip")
    assert packed.headers["Content-Encoding"] == "gzip"


async def test_errors_fit_the_document(gateway: Any, described: dict[str, Any]) -> None:
    check = validator(described, "Error")
    for path in ("/v1/nothing", "/v1/resources/Workload/absent", "/v1/resources/Workload?folow=1"):
        check.validate((await gateway.get(path)).json)
