"""One client's line to the servers: requests go to one of them until it fails to answer, then to the next.

The command line's own client does more (it spreads over servers, asks a slow one whether it lives, goes on with
streams). A measuring instrument is better off simple: which server a request goes to, how long it is waited for
and what is repeated is decided here and by nobody else. A request that is repeated carries the same key, so that
what had been done before the answer was lost is not done twice.
"""

from __future__ import annotations

import json
import time

from pwm.cli.errors import ABORTED, UNAVAILABLE, NoServerError, ServerError, server_error
from pwm.cli.http1 import Connection, Server, TransportError
from pwm.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, TypeVar

    from pwm.cli.profiles import Profile

    T = TypeVar("T")

# Everything asked here is small: a server that is there answers in milliseconds.
ANSWER_S = 1.0
# After all servers have failed to answer, one after the other.
PAUSE_S = 0.02


class Line:
    """Not for several threads at once."""

    def __init__(self, profile: Profile, *, first: str = "", only: bool = False, answer_s: float = ANSWER_S) -> None:
        """`first` is the URL of the server to begin with; `only`: and to stay with."""
        urls: Sequence[str] = sorted(profile.servers, key=lambda url: url.rstrip("/") != first.rstrip("/"))
        self._servers = [Server(url) for url in (urls[:1] if only else urls)]
        self._profile = profile
        self._answer_s = answer_s
        self._connection: Connection | None = None
        # How often another server had to be asked.
        self.moves = 0

    @property
    def server(self) -> str:
        """The one that is asked now."""
        return self._servers[0].url

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def ask(
        self, method: str, path: str, *, body: object = None, key: str = "", answer_s: float | None = None
    ) -> dict[str, Any]:
        """One request to the server of now. Raises TransportError or ServerError."""
        document: dict[str, Any] = json.loads(self._exchange(method, path, body, key, answer_s) or b"{}")
        return document

    def list(self, path: str, *, answer_s: float | None = None) -> list[dict[str, Any]]:
        """All messages of a stream that ends by itself. Raises as `ask`."""
        lines = [json.loads(line) for line in self._exchange("GET", path, None, "", answer_s).splitlines() if line]
        for line in lines:
            if "error" in line:
                raise server_error(line["error"])
        return [line.get("result", {}) for line in lines]

    def insist(self, request: Callable[[], T], *, until: Callable[[], bool]) -> T:
        """Repeats a request at server after server until one answers. Raises NoServerError once `until` says that it
        is enough. Errors that another server would give as well are raised at once.
        """
        failures = 0
        while True:
            try:
                return request()
            except TransportError as error:
                trouble = f"{self.server}: {error}"
            except ServerError as error:
                if error.status not in (UNAVAILABLE, ABORTED):
                    raise
                trouble = f"{self.server}: {error.message}"
            if until():
                raise NoServerError(f"no server answers ({trouble})")
            self.move_on()
            failures += 1
            if failures % len(self._servers) == 0:
                time.sleep(PAUSE_S)

    def move_on(self) -> None:
        """The next request goes to the next server."""
        self.close()
        self.moves += 1
        self._servers.append(self._servers.pop(0))

    def _exchange(self, method: str, path: str, body: object, key: str, answer_s: float | None) -> bytes:
        headers = {
            "User-Agent": f"pwm/{VERSION}",
            # Streams come as lines; whoever asks for one object gets one line.
            "Accept": "application/json, application/x-ndjson",
            "Authorization": f"Bearer {self._profile.token}",
        }
        data = b""
        if body is not None:
            data = json.dumps(body, separators=(",", ":")).encode()
            headers["Content-Type"] = "application/json"
        if key:
            headers["Idempotency-Key"] = key
        try:
            connection = self._connected()
            response = connection.request(
                method, path, headers=headers, body=data, timeout_s=answer_s or self._answer_s
            )
            content = response.read()
        except TransportError:
            self.close()
            raise
        if response.status >= 400:
            raise server_error(json.loads(content) if content[:1] == b"{" else {}, http_status=response.status)
        return content

    def _connected(self) -> Connection:
        if self._connection is None or not self._connection.keep or self._connection.busy:
            self.close()
            self._connection = Connection(
                self._servers[0],
                ca_file=self._profile.ca_file,
                pinned=bool(self._profile.pinned),
                connect_timeout_s=self._answer_s,
            )
        return self._connection
