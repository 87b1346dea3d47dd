"""What the cluster says of itself: its status, who leads, which containers run, and what their drivers say of them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime

from pwm.cli.client import quote
from pwm.cli.errors import ServerError
from pwm.cli.failover.line import Line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pwm.cli.profiles import Profile

# The status asks all replicas, and waits a while for one that does not answer.
STATUS_S = 6.0
# An agent is asked for each workload; some answer slowly.
INSPECT_S = 15.0
HISTORY_S, HISTORY_EVENTS = 30.0, 100_000
# For a replica to see what another one wrote: milliseconds. What is not there by then is lost.
SEEN_LIMIT_S = 5.0
POLL_S = 0.05
# What is on its way at any moment of a busy cluster; the server draws the same line.
CAUGHT_UP_REVISIONS = 50
ENDED = ("EXITED", "FAILED", "DELETED")


@dataclass(frozen=True)
class Replica:
    id: str
    address: str
    trouble: str
    lag: int
    # Its clock, less that of the replica that answered.
    clock_ahead_s: float


@dataclass(frozen=True)
class Leader:
    replica: str
    # By its own clock, seconds since the epoch.
    since_s: float
    at_work: bool


@dataclass(frozen=True)
class Standing:
    """The control plane at one moment."""

    replicas: dict[str, Replica]
    leaders: dict[str, Leader]
    revision: int

    def unrest(self, role: str, *, replicas: int) -> str:
        """What keeps it from being calm, with so many replicas; "" when nothing does."""
        if len(self.replicas) < replicas:
            return f"{len(self.replicas)} of {replicas} replicas are here"
        for replica in self.replicas.values():
            if replica.trouble:
                return f"replica {replica.id} ({replica.address}) {replica.trouble}"
            if replica.lag > CAUGHT_UP_REVISIONS:
                return f"replica {replica.id} ({replica.address}) is {replica.lag} changes behind"
        if role not in self.leaders:
            return f"nobody leads {role}"
        return "" if self.leaders[role].at_work else f"{self.leaders[role].replica} has only begun to lead {role}"


def standing(answer: dict[str, Any]) -> Standing:
    """From the answer of /v1/admin/status."""
    replicas = {
        str(replica["id"]): Replica(
            id=str(replica["id"]),
            address=str(replica.get("address", "")),
            trouble="cannot reach etcd" if replica.get("staleSince") else str(replica.get("trouble", "")),
            lag=int(replica.get("lag") or 0),
            clock_ahead_s=int(replica.get("clockAheadMs") or 0) / 1000,
        )
        for replica in answer.get("replicas", [])
    }
    leaders = {
        str(leader["role"]): Leader(str(leader["replica"]), seconds(leader["since"]), bool(leader.get("atWork")))
        for leader in answer.get("leaders", [])
    }
    return Standing(replicas, leaders, int(answer.get("revision") or 0))


class World:
    """Asks whichever server answers. Not for several threads at once."""

    def __init__(self, profile: Profile) -> None:
        self._line = Line(profile, answer_s=STATUS_S)

    def close(self) -> None:
        self._line.close()

    def away_from(self, server: str) -> None:
        """Ask another server than this one, if there is another."""
        if self._line.server.rstrip("/") == server.rstrip("/"):
            self._line.move_on()

    def ask(self, method: str, path: str, *, body: object = None, answer_s: float = STATUS_S) -> dict[str, Any]:
        """From any server, for as long as two of them may take to fail."""
        limit = time.monotonic() + 2 * answer_s
        return self._line.insist(
            lambda: self._line.ask(method, path, body=body, answer_s=answer_s),
            until=lambda: time.monotonic() > limit,
        )

    def standing(self) -> Standing:
        return standing(self.ask("GET", "/v1/admin/status"))

    def history(self, group: str, name: str, *, upto: int) -> list[dict[str, Any]]:
        """Every event of a workload and its containers that the log holds, of `upto` and before at least.

        The replica that is asked may not have seen the last of it yet: it is asked again for a while.
        """
        path = f"/v1/events?kind=Workload&group={quote(group)}&name={quote(name)}&limit={HISTORY_EVENTS}"
        limit = time.monotonic() + 2 * HISTORY_S
        seen_limit = time.monotonic() + SEEN_LIMIT_S
        while True:
            messages = self._line.insist(
                lambda: self._line.list(path, answer_s=HISTORY_S), until=lambda: time.monotonic() > limit
            )
            events = [message["event"] for message in messages if "event" in message]
            if time.monotonic() > seen_limit or any(int(event["revision"]) >= upto for event in events):
                return events
            time.sleep(POLL_S)

    def containers(self) -> dict[str, Container]:
        """All containers, by uid."""
        listed = self.ask("GET", "/v1/resources/Container?allGroups=true", answer_s=INSPECT_S).get("items", [])
        found = {str(item["metadata"]["uid"]): _container(item) for item in listed}
        running = {(c.group, c.workload) for c in found.values() if c.phase == "RUNNING"}
        by_name = {(c.group, c.name): c for c in found.values()}
        for group, workload in sorted(running):
            for seen in self._inspected(group, workload):
                container = by_name.get((group, str(seen.get("container"))))
                if container is not None:
                    container.by_driver = _by_driver(seen.get("document") or {})
        return found

    def _inspected(self, group: str, workload: str) -> list[dict[str, Any]]:
        path = f"/v1/workloads/{quote(workload)}/inspect?group={quote(group)}"
        try:
            found: list[dict[str, Any]] = self.ask("GET", path, answer_s=INSPECT_S).get("containers", [])
        except ServerError:
            return []  # it has been deleted meanwhile
        return found


@dataclass
class Container:
    """One container as the log has it, and as its driver has it."""

    uid: str
    name: str
    group: str
    workload: str
    workload_uid: str
    replica: int
    attempt: int
    node: str
    phase: str
    # Process id and start as its agent reported them once.
    reported: tuple[str, str]
    exit_code: int | None
    # Who wanted it stopped, such as USER; "" when nobody did.
    stopped_by: str
    # Process id and start as the driver says now; empty when it was not asked or did not say.
    by_driver: tuple[str, ...] = ()

    @property
    def live(self) -> bool:
        return self.phase not in ENDED


def _container(item: dict[str, Any]) -> Container:
    spec, status, metadata = item.get("spec", {}), item.get("status", {}), item["metadata"]
    code = status.get("exitCode")
    asked = status.get("stopRequestedBy") or {}
    return Container(
        uid=str(metadata["uid"]),
        name=str(metadata["name"]),
        group=str(metadata.get("group", "")),
        workload=str(spec.get("workload", "")),
        workload_uid=str(spec.get("workloadUid", "")),
        replica=int(spec.get("replica") or 0),
        attempt=int(spec.get("attempt") or 0),
        node=str(spec.get("node", "")),
        phase=str(status.get("phase", "")),
        reported=(str(status.get("pid", "")), str(status.get("startedAt", ""))),
        exit_code=None if code is None else int(code),
        stopped_by=str(asked.get("type", "CONTROLLER")) if status.get("stopRequested") else "",
    )


def _by_driver(document: dict[str, Any]) -> tuple[str, ...]:
    state = document.get("State")
    found = state if isinstance(state, dict) else document
    pid, started = found.get("Pid"), found.get("StartedAt", found.get("Started"))
    return (str(pid), str(started)) if pid else ()


def seconds(stamp: str) -> float:
    """Seconds since the epoch of an RFC 3339 time."""
    import re

    return datetime.fromisoformat(re.sub(r"(\.\d{1,6})\d*", r"\1", stamp)).timestamp()
