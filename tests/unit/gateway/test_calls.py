"""Unary calls over a real server: who, what, how errors look, and the limits."""

import asyncio
import dataclasses
import gzip
import json
import socket
from typing import Any

import pytest
import structlog

from pwm.api.v1.services_pb2 import StopRequest
from pwm.controlplane.gateway import requests, routes
from pwm.controlplane.gateway.requests import MAX_BODY_BYTES
from pwm.version import OLDEST_CLIENT, VERSION
from tests.patience import PATIENCE_S
from tests.unit.gateway.conftest import TOKEN


async def test_a_get_answers_with_the_resource_itself(gateway: Any, world: Any) -> None:
    answer = await gateway.get("/v1/resources/Workload/train.0.1?group=vision")
    assert answer.status == 200
    assert answer.json["resource"]["kind"] == "Workload"
    assert answer.json["resource"]["metadata"]["version"] == "7"
    assert answer.json["revision"] == "42"
    assert (world.requests[0].kind, world.requests[0].name, world.requests[0].group) == (
        "Workload",
        "train.0.1",
        "vision",
    )


async def test_a_service_learns_who_calls_and_how(gateway: Any, world: Any) -> None:
    answer = await gateway.get("/v1/whoami", Idempotency_Key="k-1", X_Request_Id="mine", Grpc_Timeout="5S")
    assert answer.json == {"user": "user:ann", "groups": ["vision"]}
    (context,) = world.contexts
    assert (context.peer, context.idempotency_key, context.request_id) == ("127.0.0.1", "k-1", "mine")
    assert 0 < context.deadline - asyncio.get_running_loop().time() < 5
    assert answer.headers["X-Request-Id"] == "mine"


async def test_request_ids_differ_and_are_not_taken_from_anybody(gateway: Any, world: Any) -> None:
    given = [
        (await gateway.get("/v1/whoami", X_Request_Id=wanted)).headers["X-Request-Id"]
        for wanted in ("", "a b", "x" * 65)
    ]
    assert len(set(given)) == 3
    assert not {"a b", "x" * 65} & set(given)


async def test_a_post_reads_its_body_and_its_path(gateway: Any, world: Any) -> None:
    answer = await gateway.ask("POST", "/v1/workloads/train/stop", {"group": "vision"})
    assert (answer.status, answer.json) == (200, {"revision": str(2**53 + 1), "changed": True})
    assert world.requests == [StopRequest(name="train", group="vision")]
    assert (await gateway.ask("POST", "/v1/workloads/train/stop")).status == 200
    assert world.requests[1] == StopRequest(name="train")


async def test_body_and_path_may_not_contradict_each_other(gateway: Any) -> None:
    answer = await gateway.ask("POST", "/v1/workloads/train/stop", {"name": "other"})
    assert (answer.status, answer.json["message"]) == (400, "name: the body and the path do not name the same")
    assert (await gateway.ask("POST", "/v1/workloads/train/stop", {"name": "train"})).status == 200


@pytest.mark.parametrize("authorization", ["", "Bearer ", "Bearer wrong", "Basic pwm_ann", "pwm_ann"])
async def test_without_a_live_token_nothing_is_answered(gateway: Any, world: Any, authorization: str) -> None:
    answer = await gateway.get("/v1/whoami", Authorization=authorization)
    assert (answer.status, answer.json["code"]) == (401, 16)
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.json["details"][0]["nextStep"]
    assert not world.requests


async def test_a_public_rpc_needs_no_token_and_looks_at_none(gateway: Any, world: Any) -> None:
    assert (await gateway.get("/v1/version", Authorization="")).json["version"] == "3.0.0"
    assert (await gateway.get("/v1/version", Authorization="Bearer wrong")).status == 200
    assert [context.principal.name for context in world.contexts] == ["", ""]


async def test_who_may_not_is_refused(gateway: Any, world: Any) -> None:
    answer = await gateway.get("/v1/resources/Workload", Authorization="Bearer pwm_bob")
    assert (answer.status, answer.json) == (403, {"code": 7, "message": "bob may not get", "details": []})
    assert not world.requests


async def test_an_rpc_without_an_access_rule_is_denied_to_everybody(world: Any, start: Any, monkeypatch: Any) -> None:
    rules = [route.rpc.access for route in routes.Routes(world.services()).all]
    assert None not in rules
    made = routes._rpc
    monkeypatch.setattr(routes, "_rpc", lambda *given: dataclasses.replace(made(*given), access=None))
    async with start(world) as gateway:
        for path in ("/v1/version", "/v1/whoami", "/v1/resources/Workload"):
            answer = await gateway.get(path)
            assert (answer.status, answer.json["code"]) == (403, 7)
            assert "no access rule" in answer.json["message"]
    assert not world.requests


async def test_the_caller_is_known_before_the_body_is_read(gateway: Any) -> None:
    """The refusal comes although the body never does."""
    reader, writer = await gateway.connect()
    writer.write(
        b"POST /v1/apply HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n{"
    )
    async with asyncio.timeout(PATIENCE_S):
        head = await reader.readuntil(b"\r\n")
    assert b" 401 " in head


async def test_errors_look_like_those_of_grpc_gateway(gateway: Any) -> None:
    answer = await gateway.get("/v1/resources/Workload/absent")
    assert answer.status == 404
    assert answer.json == {
        "code": 5,
        "message": "there is no workload absent",
        "details": [
            {
                "@type": "pwm.v1.Problem",
                "message": "there is no workload absent",
                "nextStep": "pwm get wk lists those there are",
            }
        ],
    }


async def test_an_unknown_field_is_named(gateway: Any, world: Any) -> None:
    answer = await gateway.ask("POST", "/v1/workloads/train/scale", {"count": 2, "cuont": 3})
    assert answer.status == 400
    (detail,) = answer.json["details"]
    assert detail["field"] == "cuont"
    assert answer.json["message"] == "cuont: unknown field; known here: name, group, count"
    assert (await gateway.get("/v1/resources/Workload?folow=1")).json["details"][0]["field"] == "folow"
    assert not world.requests


async def test_a_fault_of_ours_tells_the_caller_a_request_id_and_the_log_the_rest(gateway: Any) -> None:
    with structlog.testing.capture_logs() as logged:
        answer = await gateway.get("/v1/resources/Workload/broken")
    assert (answer.status, answer.json["code"]) == (500, 13)
    assert "secret" not in answer.body.decode()
    assert answer.headers["X-Request-Id"] in answer.json["message"]
    (entry,) = logged
    assert (entry["event"], entry["request_id"]) == ("a call failed", answer.headers["X-Request-Id"])


async def test_what_a_service_does_not_implement_is_501(gateway: Any) -> None:
    answer = await gateway.get("/v1/workloads/train/inspect")
    assert (answer.status, answer.json["code"]) == (501, 12)


@pytest.mark.parametrize("path", ["/v1/nothing", "/v1", "/nothing", "/v1/resources/Workload/a/b", "//", "/v1/version/"])
async def test_an_unknown_route_is_404_in_json(gateway: Any, path: str) -> None:
    answer = await gateway.get(path)
    assert (answer.status, answer.json["code"]) == (404, 5)
    assert answer.headers["Content-Type"] == "application/json"


async def test_a_wrong_method_is_405_and_says_which_are_right(gateway: Any) -> None:
    answer = await gateway.ask("POST", "/v1/resources/Workload/a", {})
    assert (answer.status, answer.headers["Allow"]) == (405, "DELETE, GET")
    assert answer.json["message"] == "POST is not possible at /v1/resources/Workload/a, but DELETE, GET is"
    assert (await gateway.ask("OPTIONS", "/v1/version")).status == 405
    assert (await gateway.ask("PROPFIND", "/v1/version")).status == 405
    assert (await gateway.ask("POST", "/healthz")).headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "", "multipart/form-data"])
async def test_only_json_is_read(gateway: Any, world: Any, content_type: str) -> None:
    answer = await gateway.ask("POST", "/v1/apply", b"{}", headers={"Content-Type": content_type})
    assert answer.status == 415
    assert "application/json" in answer.json["message"]
    assert not world.requests


async def test_json_may_name_its_charset(gateway: Any) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    assert (await gateway.ask("POST", "/v1/apply", b"{}", headers=headers)).status == 200


async def test_a_compressed_body_is_refused(gateway: Any, world: Any) -> None:
    answer = await gateway.ask("POST", "/v1/apply", gzip.compress(b"{}"), headers={"Content-Encoding": "gzip"})
    assert answer.status == 415
    assert not world.requests


async def test_a_body_where_none_belongs_is_refused(gateway: Any) -> None:
    answer = await gateway.ask("GET", "/v1/resources/Workload", {"a": 1})
    assert (answer.status, answer.json["message"]) == (400, "GET /v1/resources/{kind} takes no body")
    answer = await gateway.ask("POST", "/v1/apply?group=a", {})
    assert (answer.status, answer.json["message"]) == (
        400,
        "POST /v1/apply takes no query; everything goes into the body",
    )


async def test_a_body_over_16_mib_is_refused_in_a_sentence(gateway: Any, world: Any) -> None:
    answer = await gateway.ask("POST", "/v1/apply", b" " * (MAX_BODY_BYTES + 1))
    assert (answer.status, answer.json["message"]) == (
        413,
        "the request's body is longer than 16 MiB; send fewer documents at a time",
    )
    assert not world.requests


async def test_a_body_that_hides_its_length_is_cut_off_all_the_same(gateway: Any) -> None:
    reader, writer = await gateway.connect()
    writer.write(
        b"POST /v1/apply HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer pwm_ann\r\n"
        b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    chunk = b"100000\r\n" + b" " * 2**20 + b"\r\n"
    for _ in range(17):
        writer.write(chunk)
        await writer.drain()
    async with asyncio.timeout(PATIENCE_S):
        assert b" 413 " in await reader.readuntil(b"\r\n")


async def test_a_body_of_almost_16_mib_is_read(gateway: Any, world: Any) -> None:
    documents = [{"kind": "Workload", "blob": "x" * 1_000_000} for _ in range(15)]
    answer = await gateway.ask("POST", "/v1/apply", {"documents": documents})
    assert len(answer.json["results"]) == 15


async def test_a_body_that_comes_too_slowly_is_given_up(gateway: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(requests, "BODY_TIMEOUT_S", 0.05)
    reader, writer = await gateway.connect()
    writer.write(
        b"POST /v1/apply HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer pwm_ann\r\n"
        b"Content-Type: application/json\r\nContent-Length: 10\r\n\r\n{"
    )
    async with asyncio.timeout(PATIENCE_S):
        assert b" 408 " in await reader.readuntil(b"\r\n")


async def test_a_client_may_ask_before_it_sends_a_large_body(gateway: Any) -> None:
    reader, writer = await gateway.connect()
    writer.write(
        b"POST /v1/apply HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer pwm_ann\r\nExpect: 100-continue\r\n"
        b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n"
    )
    async with asyncio.timeout(PATIENCE_S):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"{}")
        assert b"HTTP/1.1 200 " in await reader.readuntil(b"\r\n")


async def test_a_large_text_is_compressed_for_who_asks(gateway: Any, world: Any) -> None:
    world.text = "a line of a table\n" * 10_000
    plain = await gateway.get("/v1/resources/Workload")
    packed = await gateway.get("/v1/resources/Workload", Accept_Encoding="deflate, gzip;q=0.5")
    assert packed.headers["Content-Encoding"] == "gzip"
    assert len(packed.body) * 10 < len(plain.body)
    assert json.loads(gzip.decompress(packed.body)) == plain.json
    assert plain.headers["Content-Encoding"] is None
    refused = await gateway.get("/v1/resources/Workload", Accept_Encoding="gzip;q=0")
    assert refused.headers["Content-Encoding"] is None
    assert (await gateway.get("/v1/whoami", Accept_Encoding="gzip")).headers["Content-Encoding"] is None


async def test_a_deadline_ends_a_call(gateway: Any, world: Any) -> None:
    answer = await gateway.get("/v1/resources/Workload/slow", Grpc_Timeout="50m")
    assert (answer.status, answer.json["code"]) == (504, 4)
    assert world.cancelled.is_set()


@pytest.mark.parametrize(
    ("header", "value"), [("Grpc-Timeout", "soon"), ("Grpc-Timeout", "5"), ("Idempotency-Key", "x" * 129)]
)
async def test_a_header_that_cannot_be_read_is_refused(gateway: Any, header: str, value: str) -> None:
    answer = await gateway.ask("GET", "/v1/whoami", headers={header: value})
    assert (answer.status, answer.json["details"][0]["field"]) == (400, header)


async def test_a_client_that_leaves_cancels_its_call(gateway: Any, world: Any) -> None:
    _, writer = await gateway.connect()
    writer.write(b"GET /v1/resources/Workload/slow HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer pwm_ann\r\n\r\n")
    async with asyncio.timeout(PATIENCE_S):
        await world.started.wait()
        writer.close()
        await world.cancelled.wait()


async def test_a_connection_serves_many_requests_also_after_an_error(gateway: Any) -> None:
    reader, writer = await gateway.connect()
    for path, status in [("/v1/version", 200), ("/v1/nothing", 404), ("/v1/version", 200)]:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        async with asyncio.timeout(PATIENCE_S):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            assert f" {status} " in head.splitlines()[0]
            await reader.readexactly(int(head.split("content-length: ")[1].split()[0]))


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"GET /v1/version HTTP/1.1\r\nHost: x\r\nBad Header: 1\r\n\r\n",
        b"GET /v1/version HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 10_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/version HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: 1\r\n" % n for n in range(100)) + b"\r\n",
        b"POST /v1/apply HTTP/1.1\r\nHost: x\r\nContent-Length: nine\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_refused_in_json_without_a_banner(gateway: Any, sent: bytes) -> None:
    reader, writer = await gateway.connect()
    writer.write(sent)
    async with asyncio.timeout(PATIENCE_S):
        answer = await reader.read()
    head, body = answer.split(b"\r\n\r\n", 1)
    assert head.startswith((b"HTTP/1.0 400", b"HTTP/1.1 400", b"HTTP/1.1 431"))
    assert b"server:" not in head.lower()
    assert "no valid HTTP request" in json.loads(body)["message"]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /v1/\xed\xa0\x80 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"PUT /v1/workloads/\xff/logs HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /v1/whoami HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\r\n\r\n", 401),
        (b"GET /v1/version?a=\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /v1/version HTTP/1.1\r\nHost: x\r\nX-Request-Id: \xff\r\n\r\n", 200),
        (b"GET /v1/version HTTP/1.1\r\nHost: x\r\nIdempotency-Key: \xff\r\n\r\n", 400),
        (b"GET /v1/version HTTP/1.0\r\n\r\n", 200),
        (b"GET http://x/v1/version HTTP/1.1\r\nHost: x\r\n\r\n", 200),
    ],
)
async def test_bytes_that_are_no_text_are_no_fault_of_ours(gateway: Any, sent: bytes, status: int) -> None:
    reader, writer = await gateway.connect()
    writer.write(sent)
    async with asyncio.timeout(PATIENCE_S):
        assert f" {status} " in (await reader.readuntil(b"\r\n")).decode()


async def test_many_requests_sent_at_once_are_answered_in_order(gateway: Any) -> None:
    reader, writer = await gateway.connect()
    for number in range(50):
        writer.write(b"GET /v1/version HTTP/1.1\r\nHost: x\r\nX-Request-Id: %d\r\n\r\n" % number)
    async with asyncio.timeout(PATIENCE_S):
        for number in range(50):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            assert f"X-Request-Id: {number}\r\n" in head
            await reader.readexactly(int(head.split("Content-Length: ")[1].split()[0]))


async def test_answers_carry_security_headers_and_no_banner(gateway: Any) -> None:
    for path in ("/v1/version", "/v1/nothing", "/v1/resources/Workload/broken"):
        with structlog.testing.capture_logs():
            answer = await gateway.get(path)
        assert answer.headers["Server"] is None
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"


async def test_calls_are_counted_by_rpc_and_outcome(gateway: Any) -> None:
    await gateway.get("/v1/whoami")
    await gateway.get("/v1/whoami", Authorization="")
    await gateway.get("/v1/nothing")
    await gateway.get("/v1/watch/Workload")
    text = (await gateway.get("/metrics")).body.decode()
    assert 'pwm_gateway_calls_total{code="OK",rpc="SystemService.WhoAmI"} 1.0' in text
    assert 'pwm_gateway_calls_total{code="UNAUTHENTICATED",rpc="SystemService.WhoAmI"} 1.0' in text
    assert 'pwm_gateway_calls_total{code="NOT_FOUND",rpc=""} 1.0' in text
    assert 'pwm_gateway_calls_total{code="OK",rpc="ResourceService.Watch"} 1.0' in text
    assert 'pwm_gateway_call_seconds_count{rpc="SystemService.WhoAmI"} 1.0' in text
    assert 'pwm_gateway_open_streams{rpc="ResourceService.Watch"} 0.0' in text


async def test_after_stop_nothing_listens(world: Any, start: Any) -> None:
    async with start(world) as gateway:
        assert (await gateway.get("/v1/version")).status == 200
        port = gateway.port
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


async def test_a_running_call_may_end_while_the_server_stops(world: Any, start: Any) -> None:
    async with start(world) as gateway, asyncio.TaskGroup() as group:
        call = group.create_task(gateway.get("/v1/resources/Workload/held"))
        async with asyncio.timeout(PATIENCE_S):
            await world.started.wait()
        stop = group.create_task(gateway.gateway.stop(5))
        await asyncio.sleep(0)
        world.go_on.set()
        assert (await call).status == 200
        await stop


@pytest.mark.parametrize("path", ["/v1/whoami", "/v1/watch/workload"])
async def test_who_shows_a_token_that_ends_soon_is_told_with_every_answer(gateway: Any, world: Any, path: str) -> None:
    caller = world.tokens[TOKEN]
    assert (await gateway.get(path)).headers["Pwm-Token-Ends"] is None
    world.tokens[TOKEN] = dataclasses.replace(caller, ending="2026-11-22T10:00:00Z")
    answer = await gateway.get(path)
    assert (answer.status, answer.headers["Pwm-Token-Ends"]) == (200, "2026-11-22T10:00:00Z")


async def test_every_answer_says_which_clients_fit(gateway: Any) -> None:
    for path, status in (("/v1/whoami", 200), ("/v1/nowhere", 404)):
        answer = await gateway.get(path)
        assert (answer.status, answer.headers["Pwm-Version"]) == (status, VERSION)
        assert answer.headers["Pwm-Oldest-Client"] == OLDEST_CLIENT
