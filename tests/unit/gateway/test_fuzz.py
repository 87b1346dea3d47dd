"""Whatever a client sends, it gets an answer that says what was wrong, and never a fault of the server."""

import asyncio
import json
import re
import socket
from typing import Any
from urllib.parse import quote

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pwm.api.v1 import services_pb2 as s
from pwm.controlplane.gateway.routes import Route, Routes
from tests.patience import PATIENCE_S

ROUTES = [
    route
    for route in Routes([(service, object()) for service in s.DESCRIPTOR.services_by_name.values()]).all
    if not route.rpc.bidirectional
]
NAMES = sorted({field.json_name for route in ROUTES for field in route.rpc.descriptor.input_type.fields})

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=20,
)
BODY = st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode())
# What http.client itself would refuse is left out; the raw socket tests have that.
TARGET = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="#"), max_size=30)
QUERY = st.lists(st.tuples(st.sampled_from(NAMES) | st.text(max_size=6), st.text(max_size=8)), max_size=4).map(
    lambda pairs: "&".join(f"{quote(name)}={quote(value)}" for name, value in pairs)
)


# Answers that are no fault of the server: all that was wrong is known and said.
EXPECTED = {200, 400, 404, 405, 413, 415, 501}


def check(route: Route | None, answer: Any) -> None:
    assert answer.status in EXPECTED, (answer.status, answer.body)
    if answer.status != 200:
        error = answer.json
        assert error["message"]
        assert error["code"] > 0
    elif route is not None and not route.rpc.streams:
        # What comes back is a message of the rpc.
        assert isinstance(answer.json, dict)


async def many(gateway: Any, *, examples: int, **strategies: Any) -> None:
    """Sends random requests from a thread, while the gateway answers in this one."""

    @given(**strategies)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def send(route: Route, name: str, query: str, body: bytes | None) -> None:
        path = re.sub(r"\{[^}]*\}", quote(name, safe="") or "x", route.template)
        target = f"{path}?{query}" if query else path
        check(route, gateway._ask(route.method, target, body, {"Authorization": "Bearer pwm_ann"}))

    await asyncio.to_thread(send)


# The fakes fail, hang or wait under these names.
NAME = st.text(max_size=8).filter(lambda name: name not in {"broken", "slow", "held"})


async def test_random_queries_to_every_rpc_are_answered(gateway: Any) -> None:
    await many(
        gateway, examples=150, route=st.sampled_from([r for r in ROUTES if not r.body]), name=NAME, query=QUERY,
        body=st.none(),
    )  # fmt: skip


async def test_random_bodies_to_every_rpc_are_answered(gateway: Any) -> None:
    await many(
        gateway, examples=250, route=st.sampled_from([r for r in ROUTES if r.body]), name=NAME, query=st.just(""),
        body=BODY,
    )  # fmt: skip


async def test_random_targets_are_answered(gateway: Any) -> None:
    @given(target=TARGET, method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]))
    @settings(max_examples=150, deadline=None, database=None)
    def send(target: str, method: str) -> None:
        answer = gateway._ask(method, "/" + target, None, {"Authorization": "Bearer pwm_ann"})
        check(None, answer)

    await asyncio.to_thread(send)


async def test_random_bytes_do_not_hang_or_break_the_server(gateway: Any) -> None:
    @given(st.binary(max_size=200))
    @settings(max_examples=100, deadline=None, database=None)
    def send(sent: bytes) -> None:
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE_S) as connection:
            connection.sendall(sent + b"\r\n\r\n")
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while part := connection.recv(65536):
                answer += part
        assert not answer or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4", b"HTTP/1.1 2", b"HTTP/1.0 2")), answer

    await asyncio.to_thread(send)
    assert (await gateway.get("/v1/version")).status == 200
