"""Clients that write, read back and watch all the while, and keep their own books.

A *writer* changes one workload of its own (no replicas, a number as its label) again and again, each change with an
idempotency key, asked again at another controller until it is acknowledged. A *follower* reads all events at one
controller, moves on to the next when it breaks, and resumes at the revision it had. Neither knows of the faults.
"""

import asyncio
import itertools
import json
import secrets
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

PAUSE_S = 0.02
# Longer than the controllers take to say that they cannot.
ANSWER_LIMIT_S = 4.0
STREAM_SILENCE_S = 20.0


@dataclass(frozen=True, slots=True)
class Ack:
    """Times are of the loop's clock, in seconds."""

    workload: str
    number: int
    revision: int
    sent_s: float
    acked_s: float


@dataclass
class Books:
    # In the order of `acked_s`; a whole run has hundreds of thousands.
    acks: list[Ack] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    # By follower: (uid, version) of every event it was given, in order, with its revision.
    seen: dict[str, list[tuple[str, int, int]]] = field(default_factory=dict)
    # Answers 503 and how long each took.
    unavailable_s: list[float] = field(default_factory=list)

    def gap_s(self, since_s: float, until_s: float) -> float:
        """The longest time without an acknowledged write in between."""
        within = itertools.takewhile(lambda a: a.acked_s < until_s, self._after(since_s))
        times = [since_s, *(a.acked_s for a in within), until_s]
        return max(after - before for before, after in itertools.pairwise(times))

    def first_ack_after(self, moment_s: float) -> Ack | None:
        """The first acknowledgement of a write that was sent, or asked again, after the moment."""
        return next(self._after(moment_s), None)

    def _after(self, moment_s: float) -> Iterator[Ack]:
        first = bisect_left(self.acks, moment_s, key=lambda a: a.acked_s)
        return (self.acks[at] for at in range(first, len(self.acks)))


class Ledger:
    """`run` it as a task; cancel it to close the books."""

    def __init__(self, servers: Sequence[str], token: str, *, writers: int = 2, image: str) -> None:
        self._servers = list(servers)
        self._headers = {"Authorization": f"Bearer {token}"}
        self._writers = writers
        self._image = image
        self._prefix = f"ledger-{secrets.token_hex(2)}"
        self.books = Books()

    @property
    def workloads(self) -> list[str]:
        return [f"{self._prefix}-{n}" for n in range(self._writers)]

    async def run(self) -> None:
        async with aiohttp.ClientSession(headers=self._headers) as session, asyncio.TaskGroup() as group:
            for number, name in enumerate(self.workloads):
                group.create_task(self._write(session, name, first_server=number))
            for number in range(len(self._servers)):
                group.create_task(self._follow(session, f"follower-{number}", first_server=number))

    async def apply_until_acknowledged(
        self,
        name: str,
        *,
        command: Sequence[str] = ("true",),
        cpu: str = "10m",
        restartPolicy: str = "Never",
        labels: Mapping[str, str] | None = None,
        **spec: Any,
    ) -> None:
        """One workload more, beside the books; asked at one controller after the other."""
        config = {"cmd": list(command), "memory": "8MiB", "stopGrace": "1s", "restartPolicy": restartPolicy}
        spec = {"image": self._image, "selectors": {"cpu": {"count": cpu}}, "config": config, **spec}
        metadata = {"name": name, "labels": dict(labels or {})}
        document = {"apiVersion": "v1", "kind": "Workload", "metadata": metadata, "spec": spec}
        key = secrets.token_hex(16)
        async with aiohttp.ClientSession(headers=self._headers) as session:
            for server in itertools.cycle(self._servers):
                if await self._post(session, server, document, key) is not None:
                    return
                await asyncio.sleep(PAUSE_S)

    async def delete_until_acknowledged(self, name: str) -> None:
        async with aiohttp.ClientSession(headers=self._headers) as session:
            for server in itertools.cycle(self._servers):
                try:
                    async with session.delete(f"{server}/v1/resources/workload/{name}") as response:
                        if response.status in (200, 404):
                            return
                except (aiohttp.ClientError, TimeoutError):
                    pass
                await asyncio.sleep(PAUSE_S)

    # ---- writing

    async def _write(self, session: aiohttp.ClientSession, name: str, *, first_server: int) -> None:
        loop = asyncio.get_running_loop()
        server = first_server
        for number in itertools.count(1):
            key, sent_s = secrets.token_hex(16), loop.time()
            while True:
                answer = await self._apply(session, self._servers[server % len(self._servers)], name, number, key)
                if answer is not None:
                    break
                server += 1
                await asyncio.sleep(PAUSE_S)
            self.books.acks.append(Ack(name, number, int(answer["revision"]), sent_s, loop.time()))
            await asyncio.sleep(PAUSE_S)

    async def _apply(
        self, session: aiohttp.ClientSession, server: str, name: str, number: int, key: str
    ) -> dict[str, Any] | None:
        document = {
            "apiVersion": "v1", "kind": "Workload",
            "metadata": {"name": name, "labels": {"number": str(number)}},
            "spec": {"image": self._image, "replica": {"count": 0}},
        }  # fmt: skip
        return await self._post(session, server, document, key)

    async def _post(
        self, session: aiohttp.ClientSession, server: str, document: dict[str, Any], key: str
    ) -> dict[str, Any] | None:
        """The answer, None when there was none or it was 503."""
        asked_s = asyncio.get_running_loop().time()
        try:
            async with session.post(
                f"{server}/v1/apply", json={"documents": [document]}, headers={"Idempotency-Key": key},
                timeout=aiohttp.ClientTimeout(total=ANSWER_LIMIT_S, sock_connect=1.0),
            ) as response:  # fmt: skip
                answer = await response.json()
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return None
        if response.status == 503:
            self.books.unavailable_s.append(asyncio.get_running_loop().time() - asked_s)
            return None
        if response.status != 200 or answer["results"][0]["outcome"] == "REFUSED":
            self.books.refusals.append(f"{document['metadata']['name']}: {response.status} {json.dumps(answer)[:300]}")
            return None
        return dict(answer)

    # ---- following

    async def _follow(self, session: aiohttp.ClientSession, follower: str, *, first_server: int) -> None:
        seen = self.books.seen.setdefault(follower, [])
        server, revision = first_server, 0
        while True:
            url = f"{self._servers[server % len(self._servers)]}/v1/events"
            query = {"allGroups": "true", "follow": "true", "afterRevision": str(revision), "limit": "100000"}
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=1.0, sock_read=STREAM_SILENCE_S)
            try:
                async with session.get(
                    url, params=query, headers={"Accept": "application/x-ndjson"}, timeout=timeout
                ) as response:
                    response.raise_for_status()
                    async for line in response.content:
                        message = json.loads(line or b"{}")
                        if "error" in message:
                            break
                        if event := message.get("result", {}).get("event"):
                            revision = int(event["revision"])
                            seen.append((event["uid"], int(event["version"]), revision))
            except (aiohttp.ClientError, TimeoutError, ValueError):
                pass
            server += 1
            await asyncio.sleep(PAUSE_S)
