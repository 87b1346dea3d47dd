"""Reads the log beside the controllers, straight from etcd, and holds everything against it afterwards.

Every transaction goes through the simulator's checker as it is made (I1, I2, I5, I6, I16); at the end the clients'
books are compared with the log (I4, no watch event missed or repeated) and the containers of bystanders with what
they were before (nothing touched).
"""

import asyncio
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import docker

from pwm.api.v1.events_pb2 import Event
from pwm.api.v1.store_pb2 import Record
from pwm.api.v1.workload_pb2 import ContainerStatus
from pwm.controlplane.store.etcd import EtcdKV
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.kv import WatchEvent, prefix_end
from tests.faults.ledger import Books
from tests.sim.checker import Checker

KEYS = Keys()
EVENT_LIMIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Seen:
    """An event of the log and when this observer saw it, in the loop's time."""

    event: Event
    revision: int
    at_s: float


@dataclass
class Findings:
    """What an admin would ask. Everything but the counts must be empty or zero."""

    acknowledged: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    missed: int = 0
    repeated: int = 0
    placements_doubled: list[str] = field(default_factory=list)
    touched: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (
            self.lost or self.doubled or self.missed or self.repeated
            or self.placements_doubled or self.touched or self.broken
        )  # fmt: skip


class Judge:
    """`run` it as a task from the start."""

    def __init__(self, etcd: list[str]) -> None:
        self._etcd = etcd
        self.checker = Checker(KEYS)
        # As they came, so in the order of `at_s`; a whole run has hundreds of thousands.
        self.events: list[Seen] = []
        # The same by workload.
        self._of_workload: dict[str, list[Seen]] = defaultdict(list)
        # Role -> (when, replica) of every time that it was won.
        self.elections: dict[str, list[tuple[float, str]]] = {}
        self.broken: list[str] = []
        # Of the last transaction that was seen.
        self.revision = 0
        self._changed = asyncio.Event()

    async def run(self) -> None:
        async with EtcdKV(self._etcd) as kv:
            async for batch in kv.watch(KEYS.prefix, prefix_end(KEYS.prefix), start_revision=1):
                self._take(batch.events)
                self._changed.set()

    def _take(self, events: list[WatchEvent]) -> None:
        by_revision: dict[int, list[WatchEvent]] = {}
        for event in events:
            by_revision.setdefault(event.kv.mod_revision, []).append(event)
        now_s = asyncio.get_running_loop().time()
        for at, writes in sorted(by_revision.items()):
            try:
                self.checker.transaction(at, writes)
            except AssertionError as error:
                self.broken.append(f"revision {at}: {error}")
            for write in writes:
                self._note(write, now_s)
            self.revision = at

    def _note(self, write: WatchEvent, now_s: float) -> None:
        key = write.kv.key
        if write.deleted:
            return
        if key.startswith(KEYS.all_leaders) and write.kv.create_revision == write.kv.mod_revision:
            replica = write.kv.value.partition(b"\n")[0].decode()
            self.elections.setdefault(key[len(KEYS.all_leaders) :].decode(), []).append((now_s, replica))
        elif key.startswith(KEYS.all_events) and not key.startswith(KEYS.all_marks):
            event = Event.FromString(Record.FromString(write.kv.value).event)
            seen = Seen(event, write.kv.mod_revision, now_s)
            self.events.append(seen)
            self._of_workload[event.name.partition(".")[0]].append(seen)

    # ---- while it goes on

    def leader(self, role: str) -> str:
        return self.elections[role][-1][1]

    async def won_after(self, role: str, moment_s: float, *, limit_s: float) -> float:
        """Seconds from the moment until the role was won again."""
        found = await self._until(
            lambda: next((w for w in self.elections.get(role, []) if w[0] > moment_s), None), limit_s
        )
        return found[0] - moment_s

    async def placed_after(self, workload: str, moment_s: float, *, limit_s: float) -> float:
        """Seconds from the moment until a container of the workload was placed: a fenced write."""

        def placed() -> Seen | None:
            return next((s for s in self._of_workload[workload] if s.event.HasField("container_placed")), None)

        return (await self._until(placed, limit_s)).at_s - moment_s

    async def running_after(self, workload: str, moment_s: float, *, limit_s: float) -> float:
        """Seconds from the moment until a container of the workload ran."""

        def runs() -> Seen | None:
            of_it = self._of_workload[workload]
            return next((s for s in of_it if s.event.container_reported.phase == ContainerStatus.RUNNING), None)

        return (await self._until(runs, limit_s)).at_s - moment_s

    async def ended_after(self, workload: str, moment_s: float, *, limit_s: float) -> float:
        """Seconds from the moment until a container of the workload had ended."""
        ends = (ContainerStatus.EXITED, ContainerStatus.FAILED)
        return await self.event_after(
            lambda s: s.event.container_reported.phase in ends and s.event.name.startswith(f"{workload}."),
            moment_s, limit_s=limit_s,
        )  # fmt: skip

    async def event_after(
        self, wanted: Callable[[Seen], bool], moment_s: float, *, limit_s: float = EVENT_LIMIT_S
    ) -> float:
        """Seconds from the moment until such an event was seen."""

        looked_at = bisect_left(self.events, moment_s, key=lambda s: s.at_s)

        def find() -> Seen | None:
            nonlocal looked_at
            new, looked_at = self.events[looked_at:], len(self.events)
            return next((s for s in new if wanted(s)), None)

        return (await self._until(find, limit_s)).at_s - moment_s

    async def seen(self, revision: int, *, limit_s: float) -> None:
        """Until every event up to there was seen."""
        await self._until(lambda: self.revision >= revision or None, limit_s)

    async def _until(self, find: Any, limit_s: float) -> Any:
        async with asyncio.timeout(limit_s):
            while (found := find()) is None:
                self._changed.clear()
                await self._changed.wait()
            return found

    # ---- afterwards

    def judge(self, books: Books, *, before: dict[str, str], after: dict[str, str]) -> Findings:
        """Compares the books with the log. `before`, `after`: bystanders' containers, as `running` gives them."""
        findings = Findings(acknowledged=len(books.acks), broken=[*self.broken, *books.refusals])
        written = Counter(
            (s.event.name, int(s.event.workload_applied.labels["number"]))
            for s in self.events
            if s.event.HasField("workload_applied") and "number" in s.event.workload_applied.labels
        )
        for ack in books.acks:
            times = written[ack.workload, ack.number]
            if times == 0:
                findings.lost.append(f"{ack.workload} {ack.number}")
            elif times > 1:
                findings.doubled.append(f"{ack.workload} {ack.number}: {times} times")
        self._judge_followers(books, findings)
        placed = Counter(s.event.name for s in self.events if s.event.HasField("container_placed"))
        findings.placements_doubled = [name for name, times in placed.items() if times > 1]
        findings.touched = [
            f"{name}: {what} -> {after.get(name, 'gone')}" for name, what in before.items() if after.get(name) != what
        ]
        return findings

    def _judge_followers(self, books: Books, findings: Findings) -> None:
        public = [(s.event.uid, s.event.version, s.revision) for s in self.events if s.event.kind != "Token"]
        for seen in books.seen.values():
            got = Counter(seen)
            findings.repeated += sum(times - 1 for times in got.values())
            if seen:
                first, last = seen[0][2], seen[-1][2]
                findings.missed += sum(1 for item in public if first < item[2] < last and item not in got)


def running(docker_host: str, cluster: str) -> dict[str, str]:
    """Each running container of the cluster: its pid and when it started."""
    client = docker.DockerClient(base_url=docker_host, version="auto", timeout=60)
    try:
        return {
            c.name: f"pid {c.attrs['State']['Pid']} started {c.attrs['State']['StartedAt']}"
            for c in client.containers.list(filters={"label": f"pwm.cluster={cluster}"})
        }
    finally:
        client.close()
