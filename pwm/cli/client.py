"""The client of the control plane: any replica will do, so servers are tried in turn.

A call goes to the first server of the profile that can be reached; when that one cannot, or says that
it cannot answer now (503), the next is asked. Writes carry an Idempotency-Key, so that repeating one
whose answer was lost changes nothing twice. Every answer carries its revision; what this client has
written it asks to see again (`minRevision`), whichever replica it asks.

`call` answers with one JSON object, `stream` yields JSON objects, `raw` gives the body's bytes, and
`connect` a bare connection for a WebSocket. Errors are `ServerError` and `NoServerError`.
"""

from __future__ import annotations

import json
import time

from pwm.cli.errors import CliError, NoServerError, ServerError, server_error
from pwm.cli.http1 import Broken, Connection, NoAnswer, Response, Server, TransportError, Unreachable
from pwm.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from pwm.cli.profiles import Profile

ANSWER_TIMEOUT_S = 30.0
# A stream's server sends a beat at least every 15 s; three missed ones mean that it has gone.
STREAM_TIMEOUT_S = 45.0
# How often the list of servers is gone through when answers get lost on the way, and the pause between.
ROUNDS = 3
ROUND_PAUSE_S = 0.2
JSON_LINES = "application/x-ndjson"


class Client:
    """Calls of one profile's servers. Not for several threads at once: make one for each."""

    def __init__(self, profile: Profile, *, warn: Callable[[str], None]) -> None:
        self._profile = profile
        self._warn = warn
        self._servers = [Server(url) for url in profile.servers]
        self._connection: Connection | None = None
        self._warned: set[str] = set()
        # Highest revision that this client has written.
        self.revision = 0

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # --- calls ------------------------------------------------------------------------------------

    def call(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, Any] | None = None,
        body: object = None,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> dict[str, Any]:
        """One request, one JSON object. Writes are repeated safely, reads see what was written before."""
        writes = method != "GET"
        headers = self._headers()
        if writes:
            headers["Idempotency-Key"] = _new_key()
        elif self.revision and path.startswith(("/v1/resources/",)):
            query = {"minRevision": self.revision, **(query or {})}
        data = b"" if body is None else json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
        if data:
            headers["Content-Type"] = "application/json"
        response, content = self._ask(method, path + _query(query), headers, data, timeout_s)
        document = _decode(content, response.status)
        if response.status >= 400 or not isinstance(document, dict):
            raise server_error(document, http_status=response.status)
        self._notice(document, writes=writes)
        return document

    def stream(
        self,
        path: str,
        *,
        query: dict[str, Any] | None = None,
        timeout_s: float | None = STREAM_TIMEOUT_S,
        deadline: float | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Results of a stream as they come, and its end.

        Raises `Broken` when it is cut, `DeadlinePassed` when the deadline (monotonic) comes while it waits.
        """
        response = self.raw(path, query=query, accept=JSON_LINES, timeout_s=timeout_s)
        if self._connection is not None:
            self._connection.deadline = deadline
        try:
            for line in response.lines():
                if not line:
                    continue
                document = _decode(line, response.status)
                if "error" in document:
                    raise server_error(document["error"])
                yield document.get("result", {})
        finally:
            self.close()

    def raw(
        self, path: str, *, query: dict[str, Any] | None = None, accept: str, timeout_s: float | None = STREAM_TIMEOUT_S
    ) -> Response:
        """The answer to a GET, its body unread: `response.chunks()`. Errors of the start are raised."""
        headers = {**self._headers(), "Accept": accept}
        response = self._open("GET", path + _query(query), headers, b"", timeout_s)
        if response.status >= 400:
            raise server_error(_decode(response.read(), response.status), http_status=response.status)
        return response

    def connect(self) -> tuple[Connection, dict[str, str]]:
        """A new connection to the first server that can be reached, and the headers that say who asks."""
        failures: list[tuple[Server, str]] = []
        for server in self._servers:
            try:
                return self._connected(server), self._headers()
            except Unreachable as error:
                failures.append((server, str(error)))
        raise self._nobody(failures)

    # --- servers in turn --------------------------------------------------------------------------

    def _ask(
        self, method: str, target: str, headers: dict[str, str], body: bytes, timeout_s: float
    ) -> tuple[Response, bytes]:
        """Request and whole answer, from the first server that gives one; broken ones are asked again."""
        failures: list[tuple[Server, str]] = []
        for round_number in range(ROUNDS):
            if round_number:
                time.sleep(ROUND_PAUSE_S)
            try:
                response = self._open(method, target, headers, body, timeout_s)
                return response, response.read()
            except Broken as error:
                server = self._connection.server if self._connection else self._servers[0]
                self.close()
                failures = [(server, str(error))]
                if isinstance(error, NoAnswer):
                    break
        raise self._nobody(failures)

    def _open(
        self, method: str, target: str, headers: dict[str, str], body: bytes, timeout_s: float | None
    ) -> Response:
        """The answer's head from the first server that can answer; the body is still to be read."""
        failures: list[tuple[Server, str]] = []
        unavailable: ServerError | None = None
        broken: Broken | None = None
        for server in self._in_turn():
            try:
                response = self._exchange(server, method, target, headers, body, timeout_s)
                if response.status not in (502, 503):
                    self._compare_versions(response.headers)
                    return response
                unavailable = server_error(_decode(response.read(), response.status), http_status=response.status)
            except TransportError as error:
                failures.append((server, str(error)))
                broken = error if isinstance(error, Broken) else broken
            self.close()
        if unavailable is not None:
            raise unavailable
        if broken is not None:
            raise broken
        raise self._nobody(failures)

    def _exchange(
        self, server: Server, method: str, target: str, headers: dict[str, str], body: bytes, timeout_s: float | None
    ) -> Response:
        """One request to one server. A kept connection may have been closed meanwhile; then a new one is made."""
        kept = self._connection
        if kept is not None and kept.server is server and kept.keep and not kept.busy:
            try:
                return kept.request(method, target, headers=headers, body=body, timeout_s=timeout_s)
            except NoAnswer:
                raise
            except Broken:
                pass
        self.close()
        self._connection = self._connected(server)
        return self._connection.request(method, target, headers=headers, body=body, timeout_s=timeout_s)

    def _in_turn(self) -> list[Server]:
        """The server that answered last first."""
        if self._connection is None:
            return self._servers
        first = self._connection.server
        return [first, *(server for server in self._servers if server is not first)]

    def _connected(self, server: Server) -> Connection:
        return Connection(server, ca_file=self._profile.ca_file)

    def _nobody(self, failures: list[tuple[Server, str]]) -> NoServerError:
        what = "; ".join(f"{server}: {why}" for server, why in failures)
        return NoServerError(
            f"no server of profile {self._profile.name!r} answers ({what})",
            next_step="Is the controller running? `pwm up` starts a whole PWM here; `pwm profile ls` lists servers.",
        )

    # --- what every request says, what every answer tells -----------------------------------------

    def _headers(self) -> dict[str, str]:
        headers = {"User-Agent": f"pwm/{VERSION}", "Accept": "application/json"}
        if self._profile.token:
            headers["Authorization"] = f"Bearer {self._profile.token}"
        return headers

    def _notice(self, document: dict[str, Any], *, writes: bool) -> None:
        if writes and "revision" in document:
            self.revision = max(self.revision, int(document["revision"]))
        if "staleSince" in document:
            self._warn_once(
                f"the control plane cannot reach etcd since {document['staleSince']}; what you see may be old"
            )

    def _compare_versions(self, headers: dict[str, str]) -> None:
        server = headers.get("pwm-version", "")
        if server and not fits(VERSION, server, headers.get("pwm-oldest-client", "")):
            self._warn_once(misfit(VERSION, server))

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self._warn(text)


def fits(client: str, server: str, oldest_client: str) -> bool:
    """Whether this client may talk to that server: same major version, and not older than it serves."""
    ours, theirs = _numbers(client), _numbers(server)
    return ours[:1] == theirs[:1] and (not oldest_client or ours >= _numbers(oldest_client))


def misfit(client: str, server: str) -> str:
    """The warning when they don't fit."""
    older = "the client" if _numbers(client) < _numbers(server) else "the server"
    return f"client {client} and server {server} do not fit together; update {older}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split("-")[0].split(".") if part.isdecimal())


def _new_key() -> str:
    from os import urandom

    return urandom(16).hex()


def _query(query: dict[str, Any] | None) -> str:
    """`?a=b&c=d`; sequences are repeated, empty values left out."""
    if not query:
        return ""
    pairs = []
    for name, value in query.items():
        for item in value if isinstance(value, (list, tuple)) else (value,):
            if item is None or item is False or item == "":
                continue
            pairs.append(f"{name}={quote('true' if item is True else str(item))}")
    return "?" + "&".join(pairs) if pairs else ""


_SAFE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def quote(text: str) -> str:
    """Percent-encodes a value of a path or query (urllib.parse costs 8 ms to import)."""
    return "".join(chr(byte) if byte in _SAFE else f"%{byte:02X}" for byte in text.encode())


def _decode(content: bytes, status: int) -> Any:
    try:
        return json.loads(content) if content else {}
    except ValueError as error:
        if status >= 400:
            return content[:200].decode(errors="replace")
        raise CliError(
            "the server's answer is not JSON", next_step="Is this a PWM server? See `pwm profile ls`."
        ) from error
