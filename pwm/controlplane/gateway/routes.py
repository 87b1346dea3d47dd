"""Which rpc an HTTP request means.

Routes are written once, as `google.api.http` options beside the rpcs. Here they become a tree of path segments, so that
finding one costs a dict look-up per segment, however many rpcs there are. An rpc also carries what it needs to
be called: who may (`access`), how its stream may be read (`raw_stream`), and the servicer's method.

Of the template language only what the API uses is understood: literals and `{field}` for one segment, with a
dotted field for a nested one. Anything else is refused when the gateway starts, not when somebody calls.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from google.api import annotations_pb2, http_pb2
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from pwm.api.v1 import access_pb2
from pwm.controlplane.gateway.query import Setter, resolve
from pwm.controlplane.gateway.scalars import BadInput

_VARIABLE = re.compile(r"\{([a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)*)\}")
_LITERAL = re.compile(r"[A-Za-z0-9_.~-]+")


class BadRoute(ValueError):
    """A route in the proto files that the gateway cannot serve: a fault found at start."""


@dataclass(frozen=True, eq=False)
class Rpc:
    """One rpc: its shape, its rules, and the method that answers it."""

    name: str  # ResourceService.Get
    descriptor: MethodDescriptor
    request_class: type[Message]
    response_class: type[Message]
    access: access_pb2.Access | None
    raw_stream: access_pb2.RawStream | None
    # None: the servicer does not implement it.
    call: Callable[[Any, Any], Any] | None

    @property
    def streams(self) -> bool:
        return bool(self.descriptor.server_streaming)

    @property
    def bidirectional(self) -> bool:
        return bool(self.descriptor.client_streaming)


@dataclass(frozen=True, eq=False)
class Route:
    """One HTTP binding of an rpc."""

    rpc: Rpc
    method: str
    template: str
    # Setters of the path's variables, in order, and their fields.
    variables: tuple[Setter, ...]
    variable_fields: tuple[str, ...]
    # "*": the body is the request. A name: that field of it. "": there is no body.
    body: str


@dataclass(slots=True)
class _Node:
    literals: dict[str, "_Node"] = field(default_factory=dict)
    variable: "_Node | None" = None
    routes: dict[str, Route] = field(default_factory=dict)


class Routes:
    """All routes of the given services."""

    def __init__(self, services: Iterable[tuple[ServiceDescriptor, Any]]) -> None:
        self._root = _Node()
        self.all: list[Route] = []
        for descriptor, servicer in services:
            for method in descriptor.methods:
                for route in bindings(_rpc(method, servicer)):
                    self._add(route)

    def _add(self, route: Route) -> None:
        node = self._root
        for segment in route.template.split("/")[1:]:
            if _VARIABLE.fullmatch(segment):
                node.variable = node.variable or _Node()
                node = node.variable
            else:
                node = node.literals.setdefault(segment, _Node())
        if route.method in node.routes:
            other = node.routes[route.method].rpc.name
            raise BadRoute(f"{route.method} {route.template} means {route.rpc.name} and {other}")
        node.routes[route.method] = route
        self.all.append(route)

    def find(self, path: str) -> tuple[dict[str, Route], list[str]]:
        """The routes of a path by HTTP method, and the values of its variables; no routes: nothing is there."""
        values: list[str] = []
        node = self._root
        for segment in path.split("/")[1:]:
            literal = node.literals.get(segment)
            if literal is not None:
                node = literal
            elif node.variable is not None and segment:
                node = node.variable
                values.append(_decoded(segment) if "%" in segment or not segment.isascii() else segment)
            else:
                return {}, []
        return node.routes, values


def _decoded(segment: str) -> str:
    try:
        return unquote(segment.encode("utf-8", "surrogateescape").decode(), errors="strict")
    except UnicodeDecodeError as error:
        raise BadInput("", "the path is not UTF-8 behind its percent signs") from error


def _rpc(method: MethodDescriptor, servicer: Any) -> Rpc:
    options = method.GetOptions()
    has_access = options.HasExtension(access_pb2.access)
    has_raw = options.HasExtension(access_pb2.raw_stream)
    call = getattr(servicer, method.name, None)
    if call is not None and getattr(call, "__module__", "").endswith("_pb2_grpc"):
        call = None  # the generated base's method, which only says that it is missing
    return Rpc(
        name=f"{method.containing_service.name}.{method.name}",
        descriptor=method,
        request_class=GetMessageClass(method.input_type),
        response_class=GetMessageClass(method.output_type),
        access=options.Extensions[access_pb2.access] if has_access else None,
        raw_stream=options.Extensions[access_pb2.raw_stream] if has_raw else None,
        call=call,
    )


def bindings(rpc: Rpc) -> list[Route]:
    """The routes of an rpc: its rule and the additional ones; none if it has no HTTP rule."""
    options = rpc.descriptor.GetOptions()
    if not options.HasExtension(annotations_pb2.http):
        return []
    rule = options.Extensions[annotations_pb2.http]
    return [_route(rpc, one) for one in (rule, *rule.additional_bindings)]


def _route(rpc: Rpc, rule: http_pb2.HttpRule) -> Route:
    pattern = rule.WhichOneof("pattern")
    if pattern is None or pattern == "custom":
        raise BadRoute(f"{rpc.name} has no route with one of HTTP's own methods")
    template = getattr(rule, pattern)
    names = []
    for segment in template.split("/")[1:]:
        variable = _VARIABLE.fullmatch(segment)
        if variable:
            names.append(variable[1])
        elif not _LITERAL.fullmatch(segment):
            raise BadRoute(f"{rpc.name}: {segment!r} in {template} is neither a literal nor {{field}}")
    if rule.response_body:
        raise BadRoute(f"{rpc.name}: response_body is not served")
    if rule.body not in ("", "*"):
        _check_body(rpc, rule.body)
    if rpc.bidirectional and pattern != "get":
        raise BadRoute(f"{rpc.name}: a WebSocket opens with GET")
    return Route(
        rpc=rpc,
        method=pattern.upper(),
        template=template,
        variables=tuple(_variable(rpc, name) for name in names),
        variable_fields=tuple(names),
        body=rule.body,
    )


def _check_body(rpc: Rpc, name: str) -> None:
    body = rpc.descriptor.input_type.fields_by_name.get(name)
    if body is None or body.message_type is None or body.is_repeated:
        raise BadRoute(f"{rpc.name}: the body field {name} is no message of {rpc.descriptor.input_type.name}")


def _variable(rpc: Rpc, name: str) -> Setter:
    setter = resolve(rpc.descriptor.input_type, name)
    if setter is None or setter.field.is_repeated or setter.field.type == FieldDescriptor.TYPE_BYTES:
        raise BadRoute(f"{rpc.name}: the path's {{{name}}} is no single field of {rpc.descriptor.input_type.name}")
    return setter
