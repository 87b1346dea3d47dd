"""The client of the control plane: any replica will do, so servers are tried in turn.

Which of several servers is asked first depends on who asks: each user of each machine has an order of their own
(`_order`). So clients spread over the replicas, and one command sees at once what the command before it changed.
When a server cannot be reached, says that it cannot answer now (503), or is found frozen, the next is asked, and
it comes last for a while. One that asks for a pause (429) gets it. Writes carry an Idempotency-Key, so that repeating
one whose answer was lost changes nothing twice. Every answer carries its revision; what this client has written it asks
to see again (`minRevision`), whichever replica it asks. A replica that is cut off from the store says so; then another
is asked.

`call` answers with one JSON object, `stream` yields JSON objects, `raw` gives the body's bytes, and
`connect` a bare connection for a WebSocket. Errors are `ServerError` and `NoServerError`.
"""

from __future__ import annotations

import json
import socket
import time

from pwm.cli.errors import CliError, NoServerError, ServerError, server_error
from pwm.cli.http1 import (
    CONNECT_TIMEOUT_S,
    NOT_BELIEVED,
    Broken,
    Connection,
    NoAnswer,
    Response,
    Server,
    TransportError,
    Unreachable,
)
from pwm.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from pwm.cli.profiles import Profile

ANSWER_TIMEOUT_S = 30.0
# A stream's server is asked for a sign of life so often, and left when two of them are missing: a frozen one says
# nothing, and keeps its connections. A beat costs the server 25 us: 8 % of a core for 10,000 quiet streams. One that
# knows of no beats says something every 15 s where it matters.
BEAT_S, BEATLESS_S = 3, 7.0
STREAM_TIMEOUT_S = 45.0
# Silence after which a server is asked on another connection whether it lives, and how long that may take. Together
# they are what a frozen server costs, once. A large request takes a while to read.
DOUBT_AFTER_S, ALIVE_TIMEOUT_S = 0.8, 1.0
DOUBTLESS_BYTES_PER_S = 250_000
# A server that was frozen or could not be reached is asked last for so long; one that had no answer, for less.
AVOID_S, AVOID_BRIEFLY_S = 30.0, 3.0
# How often the list of servers is gone through when answers get lost on the way, and the pause between.
ROUNDS = 3
ROUND_PAUSE_S = 0.2
# How long a command lets itself be put off by servers that ask it to come back later, all pauses together.
PATIENCE_S, SCATTER_S = 30.0, 0.5
JSON_LINES = "application/x-ndjson"

# Between attempts to go on with a stream: short at first, since the next server is there already.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0
# A connection that is replaced sooner than that is nobody's concern.
NOTICE_AFTER_S = 2.0

# Until when (monotonic) servers are asked last, by URL: all clients of a process know it.
_avoided: dict[str, float] = {}


class Client:
    """Calls of one profile's servers. Not for several threads at once: make one for each."""

    def __init__(self, profile: Profile, *, warn: Callable[[str], None], in_order: bool = False) -> None:
        """`in_order`: ask the servers in the order of the profile, not in this user's own."""
        self._profile = profile
        self._warn = warn
        servers = [Server(url) for url in profile.servers]
        self._servers = servers if in_order else _order(servers)
        self._connection: Connection | None = None
        self._warned: set[str] = set()
        self._has_refreshed = False
        # Highest revision that this client has written.
        self.revision = 0

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def avoid(self, server: Server, *, for_s: float = AVOID_S) -> None:
        """Ask this server only after the others, for a while."""
        _avoided[server.url] = time.monotonic() + for_s

    def leave(self, error: TransportError) -> None:
        """The connection broke: the next one is made to another server, if there is one."""
        if self._connection is not None:
            self.avoid(self._connection.server, for_s=AVOID_S if isinstance(error, NoAnswer) else AVOID_BRIEFLY_S)
        self.close()

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
        target = path + _query(query)
        document = _document(*self._ask(method, target, headers, data, timeout_s))
        if "staleSince" in document and not writes:
            document = self._fresher(document, target, headers, timeout_s)
        self._notice(document, writes=writes)
        if self._profile.pinned and not self._has_refreshed:
            self._refresh_pins()
        return document

    def _refresh_pins(self) -> None:
        from pwm.cli import pins

        self._has_refreshed = True
        if pins.is_due(self._profile):
            pins.refresh(self, self._profile)

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
        except Broken as error:
            self.leave(error)
            raise
        finally:
            self.close()

    def raw(
        self, path: str, *, query: dict[str, Any] | None = None, accept: str, timeout_s: float | None = STREAM_TIMEOUT_S
    ) -> Response:
        """The answer to a GET, its body unread: `response.chunks()`. Errors of the start are raised."""
        headers = {**self._headers(), "Accept": accept, "Pwm-Beat": str(BEAT_S)}
        response = self._open("GET", path + _query(query), headers, b"", timeout_s or STREAM_TIMEOUT_S)
        if response.status >= 400:
            raise server_error(_decode(response.read(), response.status), http_status=response.status)
        if self._connection is not None:
            # From here on silence is usual.
            self._connection.doubt_after_s = 0.0
            self._connection.timeout_s = BEATLESS_S if "pwm-beat" in response.headers else timeout_s
        return response

    def connect(self) -> tuple[Connection, dict[str, str]]:
        """A new connection to the first server that can be reached, and the headers that say who asks."""
        failures: list[tuple[Server, str]] = []
        for server in self._in_turn():
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
        unsure: ServerError | None = None
        for round_number in range(ROUNDS):
            if round_number:
                time.sleep(ROUND_PAUSE_S)
            try:
                response = self._open(method, target, headers, body, timeout_s)
                return response, response.read()
            except ServerError as error:
                # Once it is not known whether a request was done, a refusal of the next one does not tell either.
                unsure = unsure or (error if error.unsure else None)
                if unsure is None:
                    raise
            except Broken as error:
                server = self._connection.server if self._connection else self._servers[0]
                self.leave(error)
                failures = [(server, str(error))]
                if isinstance(error, NoAnswer):
                    break
        raise unsure or self._nobody(failures)

    def _open(
        self, method: str, target: str, headers: dict[str, str], body: bytes, timeout_s: float | None
    ) -> Response:
        """The answer's head from the first server that can answer; the body is still to be read.

        One that says that there are too many requests, and when there are not, is asked again then: others are not
        asked for what it may not give.
        """
        patience_s = PATIENCE_S
        while True:
            response = self._open_now(method, target, headers, body, timeout_s)
            pause_s = _asked_pause_s(response)
            if not 0 < pause_s <= patience_s:
                return response
            response.read()
            if pause_s > NOTICE_AFTER_S:
                self._warn_once(f"the server asks for a pause: too many requests; going on in {pause_s:.0f} s")
            patience_s -= pause_s
            time.sleep(pause_s)

    def _open_now(
        self, method: str, target: str, headers: dict[str, str], body: bytes, timeout_s: float | None
    ) -> Response:
        failures: list[tuple[Server, str]] = []
        unavailable: ServerError | None = None
        broken: Broken | None = None
        for server in self._in_turn():
            try:
                response = self._exchange(server, method, target, headers, body, timeout_s)
                if response.status not in (502, 503):
                    self._heed(response.headers)
                    return response
                if unavailable is None or not unavailable.unsure:
                    unavailable = server_error(_decode(response.read(), response.status), http_status=response.status)
                self.avoid(server, for_s=AVOID_BRIEFLY_S)
            except TransportError as error:
                failures.append((server, str(error)))
                if isinstance(error, Broken):
                    broken = error
                    self.avoid(server, for_s=AVOID_S if isinstance(error, NoAnswer) else AVOID_BRIEFLY_S)
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
                return self._request(kept, method, target, headers, body, timeout_s)
            except NoAnswer:
                raise
            except Broken:
                pass
        self.close()
        self._connection = self._connected(server)
        return self._request(self._connection, method, target, headers, body, timeout_s)

    def _request(
        self,
        connection: Connection,
        method: str,
        target: str,
        headers: dict[str, str],
        body: bytes,
        timeout_s: float | None,
    ) -> Response:
        if len(self._servers) > 1:
            connection.doubt_after_s = DOUBT_AFTER_S + len(body) / DOUBTLESS_BYTES_PER_S
            connection.is_alive = lambda: self._is_alive(connection.server)
        return connection.request(method, target, headers=headers, body=body, timeout_s=timeout_s)

    def _is_alive(self, server: Server) -> bool:
        """Whether the server answers at all: one that is busy with our request does, a frozen one does not."""
        try:
            connection = self._connected(server, timeout_s=ALIVE_TIMEOUT_S)
        except Unreachable:
            return False
        try:
            connection.request("GET", "/healthz", headers={}, timeout_s=ALIVE_TIMEOUT_S)
        except TransportError:
            return False
        finally:
            connection.close()
        return True

    def _in_turn(self) -> list[Server]:
        """The server that answered last first, those that did not answer last."""
        now = time.monotonic()
        kept = self._connection.server if self._connection is not None else None

        def rank(server: Server) -> float:
            until = _avoided.get(server.url, 0.0)
            return until if until > now else -1.0 if server is kept else 0.0

        return sorted(self._servers, key=rank)

    def _fresher(self, old: dict[str, Any], target: str, headers: dict[str, str], timeout_s: float) -> dict[str, Any]:
        """The answer of a replica that can reach the store; the old one when none can."""
        for _ in self._servers[1:]:
            if self._connection is not None:
                self.avoid(self._connection.server, for_s=AVOID_BRIEFLY_S)
            self.close()
            try:
                document = _document(*self._ask("GET", target, headers, b"", timeout_s))
            except CliError:
                return old
            if "staleSince" not in document:
                return document
        return old

    def _connected(self, server: Server, *, timeout_s: float = CONNECT_TIMEOUT_S) -> Connection:
        try:
            profile = self._profile
            return Connection(server, ca_file=profile.ca_file, pinned=bool(profile.pinned), connect_timeout_s=timeout_s)
        except Unreachable as error:
            if isinstance(error.__cause__, TimeoutError):
                self.avoid(server)
            raise

    def _nobody(self, failures: list[tuple[Server, str]]) -> NoServerError:
        what = "; ".join(f"{server}: {why}" for server, why in failures)
        step = "Is the controller running? `pwm up` starts a whole PWM here; `pwm profile ls` lists servers."
        if any(why.startswith(NOT_BELIEVED) for _, why in failures):
            step = (
                "pwm login --fingerprint HEX believes a PWM's own authority; `pwm admin ca show` prints it where "
                "one is logged in. --ca FILE believes those of a file."
            )
        return NoServerError(f"no server of profile {self._profile.name!r} answers ({what})", next_step=step)

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

    def _heed(self, headers: dict[str, str]) -> None:
        """What every answer tells besides."""
        if ends := headers.get("pwm-token-ends"):
            from pwm.cli.render import local_time

            self._warn_once(
                f"this token ends at {local_time(ends)}; `pwm token create` makes another, which `pwm login` takes, "
                "and `pwm login --oidc` gets one with a browser"
            )
        self._compare_versions(headers)

    def _compare_versions(self, headers: dict[str, str]) -> None:
        server = headers.get("pwm-version", "")
        if server and not fits(VERSION, server, headers.get("pwm-oldest-client", "")):
            self._warn_once(misfit(VERSION, server))

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self._warn(text)


def _asked_pause_s(response: Response) -> float:
    """How long the server wants to be left alone, and a bit, since all whom it tells so come back then; 0: not."""
    after = response.headers.get("retry-after", "")
    if response.status != 429 or not after.isdecimal():
        return 0.0
    from os import urandom

    return int(after) + urandom(1)[0] / 255 * SCATTER_S


class BackOff:
    """Pauses between attempts, longer and longer, and no two clients' the same: they lose a server together."""

    def __init__(self, *, first_s: float = FIRST_PAUSE_S, longest_s: float = LONGEST_PAUSE_S) -> None:
        self._first_s, self._longest_s = first_s, longest_s
        self._limit_s = first_s

    def reset(self) -> None:
        self._limit_s = self._first_s

    def next_s(self) -> float:
        from os import urandom

        pause_s = self._limit_s * (0.2 + 0.8 * urandom(1)[0] / 255)
        self._limit_s = min(self._longest_s, self._limit_s * 2)
        return pause_s


def _order(servers: list[Server]) -> list[Server]:
    """The servers in this user's order on this machine, which is the same each time and another for others."""
    if len(servers) < 2:
        return servers
    import os
    from zlib import crc32

    who = crc32(f"{socket.gethostname()}/{os.getuid() if hasattr(os, 'getuid') else ''}".encode())

    def rank(server: Server) -> int:
        # Checksums are linear: without the stirring, one of three servers would be everybody's favourite.
        rank = who ^ crc32(server.url.encode())
        for _ in range(2):
            rank = (rank ^ rank >> 16) * 0x45D9F3B & 0xFFFFFFFF
        return rank ^ rank >> 16

    return sorted(servers, key=rank)


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


def _document(response: Response, content: bytes) -> dict[str, Any]:
    """The JSON object of an answer; raises what else it says."""
    document = _decode(content, response.status)
    if response.status >= 400 or not isinstance(document, dict):
        raise server_error(document, http_status=response.status)
    return document


def _decode(content: bytes, status: int) -> Any:
    try:
        return json.loads(content) if content else {}
    except ValueError as error:
        if status >= 400:
            return content[:200].decode(errors="replace")
        raise CliError(
            "the server's answer is not JSON", next_step="Is this a PWM server? See `pwm profile ls`."
        ) from error
