"""Exec over a WebSocket, with a client of another make (websockets)."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from pwm.api.v1.services_pb2 import ExecRequest, ExecStart
from pwm.controlplane.gateway import websocket
from tests.patience import PATIENCE_S

START = json.dumps({"start": {"name": "train", "cmd": ["cat"], "stdin": True}})


@asynccontextmanager
async def session(gateway: Any, **headers: str) -> AsyncIterator[ClientConnection]:
    fields = {"Authorization": "Bearer pwm_ann", **headers}
    async with asyncio.timeout(PATIENCE_S):
        async with connect(
            f"ws://127.0.0.1:{gateway.port}/v1/exec",
            additional_headers={key: value for key, value in fields.items() if value or key == "Origin"},
            proxy=None,
            max_size=2**22,
        ) as socket:
            yield socket


async def test_bytes_go_both_ways_and_the_exit_code_comes_last(gateway: Any, world: Any) -> None:
    async with session(gateway) as socket:
        await socket.send(START)
        await socket.send(b"\x00hello\xff")
        assert await socket.recv() == b"\x01hello\xff"
        await socket.send(json.dumps({"input": {"resize": {"rows": 24, "columns": 80}}}))
        assert await socket.recv() == b"\x0280x24"
        await socket.send(json.dumps({"input": {"closeStdin": True}}))
        assert json.loads(await socket.recv()) == {"output": {"exitCode": 3}}
        with pytest.raises(ConnectionClosed) as caught:
            await socket.recv()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1000
    assert world.requests[0] == ExecRequest(start=ExecStart(name="train", cmd=["cat"], stdin=True))
    assert world.contexts[0].principal.name == "user:ann"


async def refusal(socket: ClientConnection) -> dict[str, Any]:
    message = json.loads(await socket.recv())
    with pytest.raises(ConnectionClosed):
        await socket.recv()
    error: dict[str, Any] = message["error"]
    return error


async def test_without_a_token_there_is_no_socket(gateway: Any) -> None:
    for token in ("", "Bearer wrong"):
        with pytest.raises(InvalidStatus) as caught:
            async with session(gateway, Authorization=token):
                pass
        assert caught.value.response.status_code == 401


async def test_who_may_not_is_told_when_it_is_known_what_they_want(gateway: Any, world: Any) -> None:
    async with session(gateway, Authorization="Bearer pwm_bob") as socket:
        await socket.send(START)
        assert await refusal(socket) == {"code": 7, "message": "bob may not shell", "details": []}
    assert not world.requests


async def test_a_page_from_elsewhere_is_refused(gateway: Any) -> None:
    for origin in ("https://evil.example", "null", "http://[", "", f"http://localhost:{gateway.port}"):
        with pytest.raises(InvalidStatus) as caught:
            async with session(gateway, Origin=origin):
                pass
        assert caught.value.response.status_code == 403
    async with session(gateway, Origin=f"http://127.0.0.1:{gateway.port}") as socket:
        await socket.send(START)


async def test_an_error_of_the_service_ends_the_session(gateway: Any) -> None:
    async with session(gateway) as socket:
        await socket.send(json.dumps({"start": {"name": "absent"}}))
        assert (await refusal(socket))["message"] == "there is no workload absent"


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ("{", "the body is no valid JSON at line 1, column 2"),
        (json.dumps({"start": {"nam": "x"}}), "start.nam: unknown field; known here: name, group"),
        (json.dumps({"input": {"closeStdin": True}}), "start: the first message says what to run"),
        (b"\x00x", "start: the first message says what to run"),
        (b"\x05x", "a binary message begins with the byte 0 for stdin"),
        (b"", "a binary message begins with the byte 0 for stdin"),
    ],
)
async def test_a_wrong_first_message_is_refused(gateway: Any, world: Any, message: Any, sentence: str) -> None:
    async with session(gateway) as socket:
        await socket.send(message)
        error = await refusal(socket)
    assert error["code"] == 3
    assert error["message"].startswith(sentence)
    assert not world.requests


async def test_a_wrong_later_message_ends_the_session(gateway: Any, world: Any) -> None:
    for wrong in (START, b"\x01x", json.dumps({"inptu": 1})):
        world.cancelled.clear()
        async with session(gateway) as socket:
            await socket.send(START)
            await socket.send(wrong)
            assert (await refusal(socket))["code"] == 3
        assert world.cancelled.is_set()


async def test_a_socket_that_says_nothing_is_closed(gateway: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(websocket, "FIRST_MESSAGE_S", 0.05)
    async with session(gateway) as socket:
        assert (await refusal(socket))["code"] == 4


async def test_a_message_that_is_too_long_closes_the_session(gateway: Any, world: Any) -> None:
    async with session(gateway) as socket:
        await socket.send(START)
        await socket.send(b"\x00" + b"x" * websocket.MAX_MESSAGE_BYTES)
        with pytest.raises(ConnectionClosed) as caught:
            await socket.recv()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1009
    async with asyncio.timeout(PATIENCE_S):
        await world.cancelled.wait()


@pytest.mark.parametrize("code", [1000, 1001])
async def test_a_client_that_closes_is_done_and_its_command_is_hung_up_on(gateway: Any, world: Any, code: int) -> None:
    async with session(gateway) as socket:
        await socket.send(START)
        for _ in range(12):
            await socket.send(b"\x00input")
        await socket.close(code)
    async with asyncio.timeout(PATIENCE_S):
        await world.hung_up.wait()
        await world.cancelled.wait()


async def test_a_client_that_vanishes_may_come_back_and_its_command_is_only_let_go(gateway: Any, world: Any) -> None:
    async with session(gateway) as socket:
        await socket.send(START)
        async with asyncio.timeout(PATIENCE_S):
            await world.started.wait()
        socket.transport.abort()
        async with asyncio.timeout(PATIENCE_S):
            await world.cancelled.wait()
    assert not world.hung_up.is_set()


@pytest.mark.parametrize("code", [1002, 1011, 1012, 4000])
async def test_a_client_that_closes_for_trouble_may_come_back(gateway: Any, world: Any, code: int) -> None:
    async with session(gateway) as socket:
        await socket.send(START)
        async with asyncio.timeout(PATIENCE_S):
            await world.started.wait()
        await socket.close(code)
        async with asyncio.timeout(PATIENCE_S):
            await world.cancelled.wait()
    assert not world.hung_up.is_set()


async def test_a_server_that_stops_says_so(world: Any, start: Any) -> None:
    async with start(world) as gateway, session(gateway) as socket:
        await socket.send(START)
        async with asyncio.timeout(PATIENCE_S):
            await world.started.wait()
        async with asyncio.TaskGroup() as group:
            stop = group.create_task(gateway.gateway.stop(5))
            assert (await refusal(socket))["message"] == "this controller is stopping"
            await stop
    assert world.cancelled.is_set()
    assert not world.hung_up.is_set(), "its client finds the command again through another replica"


async def test_a_revoked_token_ends_the_session(gateway: Any, world: Any) -> None:
    async with session(gateway) as socket:
        await socket.send(START)
        async with asyncio.timeout(PATIENCE_S):
            await world.started.wait()
        await gateway.gateway._streams.recheck()
        await socket.send(b"\x00still here")
        assert await socket.recv() == b"\x01still here"
        del world.tokens["pwm_ann"]
        await gateway.gateway._streams.recheck()
        assert (await refusal(socket))["code"] == 16
    assert world.hung_up.is_set()


async def test_a_session_ends_at_its_deadline(gateway: Any, world: Any) -> None:
    async with session(gateway, **{"Grpc-Timeout": "200m"}) as socket:
        await socket.send(START)
        assert (await refusal(socket))["code"] == 4
    assert world.cancelled.is_set()


async def test_the_server_pings(gateway: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(websocket, "PING_S", 0.01)
    headers = {"Authorization": "Bearer pwm_ann"}
    async with (
        asyncio.timeout(PATIENCE_S),
        aiohttp.ClientSession(headers=headers) as client,
        client.ws_connect(f"http://127.0.0.1:{gateway.port}/v1/exec", autoping=False) as socket,
    ):
        await socket.send_str(START)
        assert (await socket.receive()).type is aiohttp.WSMsgType.PING


async def test_a_plain_request_is_told_that_this_is_a_websocket(gateway: Any) -> None:
    answer = await gateway.get("/v1/exec")
    assert (answer.status, answer.headers["Upgrade"]) == (426, "websocket")


async def test_a_megabyte_of_input_comes_back(gateway: Any) -> None:
    chunk = bytes(range(256)) * 256
    async with session(gateway) as socket:
        await socket.send(START)

        async def feed() -> None:
            for _ in range(16):
                await socket.send(b"\x00" + chunk)

        async with asyncio.TaskGroup() as group:
            group.create_task(feed())
            for _ in range(16):
                assert await socket.recv() == b"\x01" + chunk
