"""The ledger: a workload of the drill's own, changed and read without a pause, and a list of what was acknowledged.

What is written must show when it is done twice, so each write is a restart: it is an event each time, whatever was
before (setting the same label again would be none). The workload has no replica, so that nothing runs
because of it. Each write has a key of its own and is repeated with that key until some server acknowledges it; the
answer names the revision at which it is in the log. So afterwards the log must hold a restart at each of these
revisions and no other, except for one that was under way when the writing ended.

Reads go to every server in turn and demand what was acknowledged last: an answer that does not have it is stale.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from functools import partial
from os import urandom

from pwm.cli.client import quote
from pwm.cli.errors import CliError, NoServerError, ServerError
from pwm.cli.failover.line import Line
from pwm.cli.http1 import TransportError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pwm.cli.profiles import Profile

# The admins' own: whoever watches the workloads of another group sees nothing of a drill.
GROUP = "admin"
# Between one acknowledgement and the next write: short against any failover, long enough to leave the servers idle.
PAUSE_S = 0.01
# A stream keeps its last 1,000 events; a round must fit.
MOST_WRITES = 900
CREATE_LIMIT_S = 10.0


@dataclass(frozen=True)
class Ack:
    """A write that a server acknowledged: where it is in the log, and when that was known (monotonic)."""

    revision: int
    at_s: float


@dataclass
class Pages:
    """What was written and read in one round."""

    name: str
    uid: str
    acks: list[Ack] = field(default_factory=list)
    # Writes that nobody acknowledged before the end: they may be in the log or not.
    unresolved: int = 0
    reads: int = 0
    # Reads that no server answered in time: a wait, not a fault.
    unanswered: int = 0
    stale: list[str] = field(default_factory=list)


class Ledger:
    """`with Ledger(...) as ledger:` writes and reads until the block ends; `pages` is what there is then."""

    def __init__(self, profile: Profile, *, name: str, first: str) -> None:
        """`first`: the server to write to, until it fails to answer."""
        self._profile = profile
        self._line = Line(profile, first=first)
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=f"ledger {work.__name__}", daemon=True)
            for work in (self._write, self._read)
        ]
        self._paused = threading.Event()
        self.trouble: CliError | None = None
        # When the writing ended before the block did (monotonic).
        self.written_until_s: float | None = None
        self.pages = Pages(name, self._create(name))

    def _create(self, name: str) -> str:
        spec = {"image": "none", "replica": {"count": 0}}
        document = {"apiVersion": "v1", "kind": "Workload", "metadata": {"name": name, "group": GROUP}, "spec": spec}
        limit = time.monotonic() + CREATE_LIMIT_S
        answer = self._line.insist(
            lambda: self._line.ask("POST", "/v1/apply", body={"documents": [document]}),
            until=lambda: time.monotonic() > limit,
        )
        result = answer["results"][0]
        if result["outcome"] == "REFUSED":
            problem = (result.get("problems") or [{}])[0]
            raise CliError(f"the workload {name} of the drill is refused: {problem.get('message', 'no reason given')}")
        return str(result["uid"])

    def __enter__(self) -> Ledger:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._line.close()

    def wait(self, seconds: float) -> None:
        """Lets it go on for so long; raises what went wrong with it meanwhile."""
        self._stop.wait(seconds)
        if self.trouble is not None:
            raise self.trouble

    def pause(self) -> None:
        """Writes no more; reads go on."""
        self._paused.set()

    # --- the two threads --------------------------------------------------------------------------

    def _guarded(self, work: Any) -> None:
        try:
            work()
        except CliError as error:
            self.trouble = error
            self._stop.set()

    def _write(self) -> None:
        path = f"/v1/workloads/{quote(self.pages.name)}/restart"
        while not self._stop.is_set():
            if self._paused.is_set() or len(self.pages.acks) >= MOST_WRITES:
                self.written_until_s = time.monotonic()
                return
            try:
                answer = self._line.insist(
                    partial(self._line.ask, "POST", path, body={"group": GROUP}, key=urandom(16).hex()),
                    until=self._stop.is_set,
                )
            except NoServerError:
                self.pages.unresolved += 1
                return
            self.pages.acks.append(Ack(int(answer["revision"]), time.monotonic()))
            self._stop.wait(PAUSE_S)

    def _read(self) -> None:
        lines = [Line(self._profile, first=url, only=True) for url in self._profile.servers]
        turn = 0
        while not self._stop.wait(PAUSE_S):
            if not self.pages.acks:
                continue
            written, ack = len(self.pages.acks), self.pages.acks[-1]
            line = lines[turn % len(lines)]
            turn += 1
            try:
                path = f"/v1/resources/Workload/{quote(self.pages.name)}?group={GROUP}&minRevision={ack.revision}"
                answer = line.ask("GET", path)
            except (TransportError, ServerError):
                self.pages.unanswered += 1
                continue
            self.pages.reads += 1
            version = int(answer["resource"]["metadata"].get("version", 0))
            # Created, then written so often.
            if version < written + 1:
                self.pages.stale.append(
                    f"{line.server} showed version {version} after write {written} was acknowledged"
                )
        for line in lines:
            line.close()
