"""A control plane of answers written down, and `pwm` called in this process against it."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from pwm.cli import client as client_module
from pwm.cli import main as cli


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: Any


@dataclass
class Stream:
    """Messages of a stream; `cut` closes the connection in the middle instead of ending it."""

    messages: list[dict[str, Any]]
    cut: bool = False
    error: dict[str, Any] | None = None
    # Kept open after the messages until the test ends.
    hangs: bool = False


class FakeServer:
    """Answers what a test has put down for a method and path; several answers are given one after the other."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._answers: dict[tuple[str, str], list[Any]] = {}
        self.headers: dict[str, str] = {}
        self.stopping = threading.Event()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                fake.handle(self)

            do_POST = do_DELETE = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client that hangs up is no fault here

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def on(self, method: str, path: str, *answers: Any) -> None:
        """The last answer is given again and again. An answer: a dict, (status, dict), a Stream, or a function."""
        self._answers[method, path] = list(answers)

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        url = urlsplit(handler.path)
        length = int(handler.headers.get("Content-Length") or 0)
        content = handler.rfile.read(length)
        headers = {name.lower(): value for name, value in handler.headers.items()}
        request = Request(
            handler.command, url.path, parse_qs(url.query), headers, json.loads(content) if content else None
        )
        self.requests.append(request)
        answers = self._answers.get((request.method, request.path))
        if not answers:
            self._json(handler, 404, {"code": 5, "message": f"there is nothing at {request.path}", "details": []})
            return
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if callable(answer):
            answer = answer(request)
        if answer == "hang up":
            handler.close_connection = True
            handler.connection.close()
        elif isinstance(answer, Stream):
            self._stream(handler, answer)
        elif isinstance(answer, tuple):
            self._json(handler, *answer)
        else:
            self._json(handler, 200, answer)

    def _json(self, handler: BaseHTTPRequestHandler, status: int, document: Any) -> None:
        content = document if isinstance(document, bytes) else json.dumps(document).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        for name, value in self.headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def _stream(self, handler: BaseHTTPRequestHandler, stream: Stream) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        for name, value in self.headers.items():
            handler.send_header(name, value)
        handler.end_headers()

        def chunk(data: bytes) -> None:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            handler.wfile.flush()

        for message in stream.messages:
            chunk(json.dumps({"result": message}).encode() + b"\n")
        if stream.error is not None:
            chunk(json.dumps({"error": stream.error}).encode() + b"\n")
        if stream.hangs:
            self.stopping.wait()
        if stream.cut:
            handler.close_connection = True
            handler.connection.close()
        else:
            handler.wfile.write(b"0\r\n\r\n")

    def of(self, method: str, path: str) -> list[Request]:
        """Requests that were made of it."""
        return [request for request in self.requests if (request.method, request.path) == (method, path)]

    def stop(self) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@dataclass
class Result:
    code: int
    out: str
    err: str
    lines: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.lines = self.out.splitlines()


Pwm = Callable[..., Result]


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees the profiles or variables of whoever runs it."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("PWM_CONFIG", "PWM_PROFILE", "PWM_SERVER", "PWM_TOKEN", "PWM_DEBUG", "FORCE_COLOR", "_PWM_COMPLETE"):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture(autouse=True)
def servers_as_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests name their servers in the order in which they shall be asked, and forget what others found out."""
    monkeypatch.setattr(client_module, "_order", list)
    monkeypatch.setattr(client_module, "_avoided", {})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """The server that `pwm` finds by its environment."""
    fake = FakeServer()
    monkeypatch.setenv("PWM_SERVER", fake.url)
    monkeypatch.setenv("PWM_TOKEN", "pwm_secret")
    try:
        yield fake
    finally:
        fake.stop()


@pytest.fixture
def other_server() -> Iterator[FakeServer]:
    """A second server, which nothing points to by itself."""
    fake = FakeServer()
    try:
        yield fake
    finally:
        fake.stop()


@pytest.fixture
def pwm(capsys: pytest.CaptureFixture[str]) -> Pwm:
    """`pwm("get", "wk")`: the exit code and what was printed."""

    def call(*words: str) -> Result:
        capsys.readouterr()
        code = cli.run([str(word) for word in words])
        printed = capsys.readouterr()
        return Result(code, printed.out, printed.err)

    return call
