"""`pwm logs` and `pwm inspect` as one runs them."""

import asyncio
import json
from typing import Any

from aiohttp import web

from pwm.cli import exit_codes
from tests.patience import PATIENCE_S
from tests.unit.cli_streams.conftest import Pwm
from tests.unit.cli_streams.fake_server import END, FakeServer, cursor, frame

LOGS = "/v1/workloads/train/logs"


def workload(phase: str, *, reason: str = "", code: str = "", exit_code: int = 0, count: int = 1) -> dict[str, Any]:
    status: dict[str, Any] = {"phase": phase, "reason": {"code": code, "message": reason}}
    if exit_code:
        status["exitCode"] = exit_code
    return {
        "apiVersion": "v1",
        "kind": "Workload",
        "metadata": {"name": "train", "group": "users"},
        "spec": {"replica": {"count": count}} if count > 1 else {},
        "status": status,
    }


def frames(server: FakeServer, *, replica: str = "0", text: bytes = b"hello\n", err: bytes = b"") -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        number = request.query.get("replica", replica)
        data = frame(1, text.replace(b"N", number.encode())) + cursor(f"train.{number}.1", len(text))
        if err:
            data += frame(2, err) + cursor(f"train.{number}.1", len(text) + len(err))
        return web.Response(body=data + END)

    server.on("GET", LOGS, handle)


def test_logs_keep_output_and_error_apart_byte_for_byte(server: FakeServer, pwm: Pwm) -> None:
    frames(server, text=b"a\x00\xff\r\nno end", err=b"oops\n")
    result = pwm("logs", "wk", "train")
    assert (result.returncode, result.stdout, result.stderr) == (0, b"a\x00\xff\r\nno end", b"oops\n")


def test_every_option_reaches_the_server(server: FakeServer, pwm: Pwm) -> None:
    frames(server)
    words = ["--tail", "5", "--since", "10m", "-t", "--replica", "0", "--previous", "-g", "vision"]
    assert pwm("logs", "train", *words).returncode == 0
    query = server.requests[-1][2]
    assert query == {
        "tail": "5", "since": "600.000s", "timestamps": "true", "replica": "0", "previous": "true", "group": "vision",
    }  # fmt: skip


def test_one_attempt_is_named_as_a_container(server: FakeServer, pwm: Pwm) -> None:
    frames(server)
    assert pwm("logs", "c", "train.0.3").returncode == 0
    assert server.requests[-1][2] == {"container": "train.0.3", "replica": "0"}


def test_following_waits_for_the_start_and_says_why(server: FakeServer, pwm: Pwm) -> None:
    frames(server)
    server.json_lines(
        "/v1/watch/Workload",
        [
            {"type": "ADDED", "resource": workload("QUEUED", reason="no GPU is free")},
            {"type": "SYNCED"},
            {"type": "BEAT"},
            {"type": "MODIFIED", "resource": workload("RUNNING")},
        ],
        hold_open=True,
    )
    result = pwm("logs", "wk", "train", "-f")
    assert (result.returncode, result.stdout) == (0, b"hello\n")
    assert b"train has not started yet: QUEUED: no GPU is free" in result.stderr


def test_following_several_replicas_shows_whole_lines_with_their_names(server: FakeServer, pwm: Pwm) -> None:
    frames(server, text=b"I am N\n")
    server.json_lines("/v1/watch/Workload", [{"type": "ADDED", "resource": workload("RUNNING", count=3)}])
    result = pwm("logs", "wk", "train", "-f")
    lines = sorted(result.stdout.splitlines())
    assert lines == [b"[train.0.1] I am 0", b"[train.1.1] I am 1", b"[train.2.1] I am 2"]


def test_following_a_workload_that_is_not_there_ends_with_not_found(server: FakeServer, pwm: Pwm) -> None:
    server.json_lines("/v1/watch/Workload", [{"type": "SYNCED"}], hold_open=True)
    result = pwm("logs", "wk", "train", "-f")
    assert result.returncode == exit_codes.NOT_FOUND
    assert b"there is no workload 'train'" in result.stderr


def test_what_the_server_refuses_is_said_with_its_exit_code(server: FakeServer, pwm: Pwm) -> None:
    server.answer("GET", LOGS, {"code": 7, "message": "you may not read these logs"}, status=403)
    result = pwm("logs", "wk", "train")
    assert result.returncode == exit_codes.REFUSED
    assert result.stderr == b"error: you may not read these logs\n"


def test_following_and_an_earlier_attempt_contradict_each_other(pwm: Pwm) -> None:
    assert pwm("logs", "wk", "train", "-f", "--previous").returncode == exit_codes.USAGE


def test_a_node_has_no_logs(pwm: Pwm) -> None:
    result = pwm("logs", "node", "n1")
    assert result.returncode == exit_codes.USAGE
    assert b"a Node has no containers" in result.stderr


def test_a_reader_that_leaves_ends_the_logs_quietly(server: FakeServer, environment: dict[str, str]) -> None:
    import subprocess
    import sys

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(2000):
            await response.write(frame(1, b"y\n" * 4096))
        await asyncio.Event().wait()
        return response

    server.on("GET", LOGS, handle)
    command = [sys.executable, "-m", "pwm", "logs", "wk", "train"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"y\n"
        process.stdout.close()
        assert process.wait(PATIENCE_S) == exit_codes.BROKEN_PIPE
        assert process.stderr.read() == b""


def test_inspect_prints_what_the_driver_says_and_names_what_is_missing(server: FakeServer, pwm: Pwm) -> None:
    containers = [
        {"container": "train.0.1", "node": "n1", "document": {"Id": "abc"}},
        {"container": "train.1.1", "node": "n2", "error": "node n2 is out of reach"},
    ]
    server.answer("GET", "/v1/workloads/train/inspect", {"containers": containers})
    result = pwm("inspect", "wk", "train")
    assert result.returncode == 0
    assert json.loads(result.stdout) == containers
    assert b"train.1.1 on n2: node n2 is out of reach" in result.stderr
