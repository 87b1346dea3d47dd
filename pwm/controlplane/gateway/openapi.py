"""The OpenAPI 3.1 document of the API, made from the descriptors when the gateway starts.

Nothing about the API is written twice: paths and methods are the routes the gateway serves, schemas are the messages it
reads and writes, texts are the comments in the proto files. What a client cannot see there is added from the options:
who may call, and in which forms a stream can be read.
"""

from typing import Any, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from pwm.api.v1.access_pb2 import Access
from pwm.api.v1.services_pb2 import Problem
from pwm.controlplane.gateway.comments import comments
from pwm.controlplane.gateway.query import is_text
from pwm.controlplane.gateway.requests import MAX_IDEMPOTENCY_KEY_CHARS
from pwm.controlplane.gateway.routes import Route, Routes, Rpc
from pwm.controlplane.gateway.schemas import Schema, Schemas, is_well_known
from pwm.controlplane.gateway.streams import EVENT_STREAM, FRAMES, JSON_LINES, TEXT

ERROR = {"$ref": "#/components/schemas/Error"}
_BYTES = {"type": "string", "contentMediaType": "application/octet-stream"}


def document(routes: Routes, *, title: str, version: str) -> dict[str, Any]:
    schemas = Schemas()
    paths: dict[str, dict[str, Any]] = {}
    for route in routes.all:
        paths.setdefault(route.template, {})[route.method.lower()] = _operation(route, schemas)
    tags = {route.rpc.descriptor.containing_service: None for route in routes.all}
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version, "license": {"name": "MIT", "identifier": "MIT"}},
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}],
        "tags": [_described({"name": service.name}, service.full_name) for service in tags],
        "paths": paths,
        "components": {
            "schemas": {"Error": _error(schemas), **schemas.components},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "responses": {
                "Error": {"description": "What went wrong.", "content": {"application/json": {"schema": ERROR}}}
            },
        },
    }


def _described(value: dict[str, Any], full_name: str) -> dict[str, Any]:
    text = comments().get(full_name)
    return {**value, "description": text} if text else value


def _error(schemas: Schemas) -> Schema:
    problem = schemas.reference(Problem.DESCRIPTOR)
    tagged = {"properties": {"@type": {"const": "pwm.v1.Problem"}}, "required": ["@type"]}
    return {
        "type": "object",
        "description": "An error, as grpc-gateway writes it.",
        "properties": {
            "code": {"type": "integer", "description": "Number of the gRPC status code."},
            "message": {"type": "string", "description": "What was wrong, in a sentence."},
            "details": {"type": "array", "items": {"allOf": [problem, tagged]}},
        },
        "required": ["code", "message", "details"],
    }


def _operation(route: Route, schemas: Schemas) -> dict[str, Any]:
    rpc = route.rpc
    comment = comments().get(rpc.descriptor.full_name, "")
    operation: dict[str, Any] = {
        "operationId": rpc.name.replace(".", "_"),
        "tags": [rpc.descriptor.containing_service.name],
        "description": "\n\n".join(filter(None, [comment, _access(rpc.access)])),
        "parameters": _parameters(route, schemas),
        "responses": {**_answers(rpc, schemas), "default": {"$ref": "#/components/responses/Error"}},
    }
    if comment:
        operation["summary"] = comment.split(". ")[0].removesuffix(".")
    if rpc.access is not None and rpc.access.public:
        operation["security"] = []
    if route.body:
        operation["requestBody"] = {"content": {"application/json": {"schema": _body(route, schemas)}}}
    return operation


def _access(access: Access | None) -> str:
    if access is None:
        return "Nobody may call this."
    if access.public:
        return "Needs no token."
    if access.node:
        return "Needs the credential of a node."
    if access.authenticated:
        return "Needs a token."
    on = access.kind or f"the kind in `{access.kind_field}`"
    return f"Needs the verb `{access.verb}` on {on}."


def _body(route: Route, schemas: Schemas) -> Schema:
    request = route.rpc.descriptor.input_type
    if route.body == "*":
        return schemas.request(request, without=route.variable_fields)
    return schemas.field(request.fields_by_name[route.body])


def _parameters(route: Route, schemas: Schemas) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"name": setter.name, "in": "path", "required": True, "schema": _path_schema(setter.field, schemas)}
        for setter in route.variables
    ]
    if not route.body and not route.rpc.bidirectional:
        found += _query(route.rpc.descriptor.input_type, "", set(route.variable_fields), schemas)
    if route.method != "GET":
        found.append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "description": "Names this change: the same call again is answered and not done again.",
                "schema": {"type": "string", "maxLength": MAX_IDEMPOTENCY_KEY_CHARS, "pattern": "^[ -~]*$"},
            }
        )
    return found


def _path_schema(field: FieldDescriptor, schemas: Schemas) -> Schema:
    schema = schemas.field(field)
    return {**schema, "minLength": 1} if schema.get("type") == "string" else schema


def _query(descriptor: Descriptor, prefix: str, taken: set[str], schemas: Schemas) -> list[dict[str, Any]]:
    """The fields that a URL can set: scalars, lists of them, times, and the same inside messages."""
    found: list[dict[str, Any]] = []
    for field in descriptor.fields:
        if f"{prefix}{field.name}" in taken:
            continue
        if is_text(field):
            schema = schemas.field(field)
            one = {"name": f"{prefix}{field.json_name}", "in": "query", "schema": schema}
            if "description" in schema:
                one["description"] = schema["description"]
            found.append(one)
        elif not field.is_repeated and not is_well_known(field):
            found += _query(cast(Descriptor, field.message_type), f"{prefix}{field.json_name}.", taken, schemas)
    return found


def _answers(rpc: Rpc, schemas: Schemas) -> dict[str, Any]:
    answer = schemas.reference(rpc.descriptor.output_type)
    if rpc.bidirectional:
        question = schemas.reference(rpc.descriptor.input_type)
        text = (
            "A WebSocket. Text messages are JSON; the first one says what to run. "
            "Binary messages begin with a channel: 0 stdin, 1 stdout, 2 stderr."
        )
        return {"101": {"description": text, "x-websocket": {"receives": question, "sends": answer}}}
    if not rpc.streams:
        return {"200": {"description": "Done.", "content": {"application/json": {"schema": answer}}}}
    line = {
        "description": "One line of a stream.",
        "oneOf": [
            {"type": "object", "properties": {"result": answer}, "required": ["result"]},
            {"type": "object", "properties": {"error": ERROR}, "required": ["error"]},
        ],
    }
    content: dict[str, Any] = {JSON_LINES: {"schema": line}, EVENT_STREAM: {"schema": {"type": "string"}}}
    if rpc.raw_stream is not None:
        content |= {FRAMES: {"schema": _BYTES}, TEXT: {"schema": _BYTES}}
    return {"200": {"description": "A stream, one message after the other.", "content": content}}
