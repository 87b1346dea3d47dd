"""Who is here: which replicas run, and which of them holds each node's session.

Writing side: a replica announces itself and the sessions it holds, all on one lease; when it dies they go
with it. When it was cut off for so long that it lost the lease, it announces itself anew and its sessions
start over. Reading side: the leader asks for each node whether it is connected, or for how long it has been silent.

A session that is over leaves a mark in its place, which says for how long nothing had been heard of the node by
then, and whose revision proves later on that the node has not been back in between. Silence is measured by every
replica for itself, on a clock that nobody sets, and never as longer than it was: after a gap in what was seen,
and for nodes without a mark, it begins anew.
"""

import asyncio
import json
from collections.abc import Callable, Collection, Mapping

import structlog

from pwm.controlplane.clock import Clock
from pwm.controlplane.core.nodes import HERE, Contact
from pwm.controlplane.store import errors as store_errors
from pwm.controlplane.store.commits import Guard
from pwm.controlplane.store.registry import REPLICAS, SESSIONS, Entries, Registry

log = structlog.get_logger(__name__)

RETRY_DELAY_S = 0.5
# Begins a mark; no replica's name does. Milliseconds of silence follow.
_SILENT = b"\0"

# Called with the nodes that have come or gone.
ContactObserver = Callable[[Collection[str]], None]


class Presence:
    def __init__(
        self,
        *,
        registry: Registry,
        replica: str,
        about: Mapping[str, object],
        clock: Clock,
        on_lost: Callable[[], None],
    ) -> None:
        """`about` is what the other replicas should know of this one; `on_lost`: sessions are no longer announced."""
        self._registry = registry
        self._replica = replica
        self._about = dict(about)
        self._about_changed = asyncio.Event()
        self._clock = clock
        self._on_lost = on_lost
        self._connected: dict[str, str] = {}
        # Revision of each node's last session, or of the mark it left, also when both are gone.
        self._epochs: dict[str, int] = {}
        self._silent_since_s: dict[str, float] = {}
        # Nodes of which nothing is known count as silent since then; None: this replica has heard nothing at all yet.
        self._listening_since_s: float | None = None
        self._changed = asyncio.Event()
        # Replaced at each change, so that any number of tasks can wait for the next.
        self._sessions_changed = asyncio.Event()
        self._replicas_changed = asyncio.Event()
        self._observers: list[ContactObserver] = []
        self.news = 0
        """Grows whenever sessions have been looked at anew."""
        self.replicas: dict[str, dict[str, object]] = {}

    async def run(self) -> None:
        """Keep the own entry alive and follow everybody's, for ever; cancelling withdraws what was announced."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._stay())
                group.create_task(self._follow(SESSIONS, self._sessions_are))
                group.create_task(self._follow(REPLICAS, self._replicas_are))
        finally:
            await asyncio.shield(self._registry.close())

    # ---- announcing

    async def announce(self, node: str) -> Guard:
        """This replica holds the node's session. The guard's mod_revision is the session's epoch."""
        return await self._registry.put(SESSIONS, node, self._replica.encode())

    async def standing(self, nodes: Collection[str]) -> set[str]:
        """Those whose session, announced here, still stood at some time after this was called. Raises StoreError."""
        return await self._registry.standing(SESSIONS, nodes)

    async def withdraw(self, node: str, guard: Guard, *, silent_ms: int) -> None:
        """The session is over, and nothing was heard of the node for so long; a newer one, wherever it is, stays."""
        try:
            await self._registry.replace(SESSIONS, node, guard, _SILENT + b"%d" % silent_ms)
        except store_errors.StoreError as error:
            log.debug("could not withdraw; the lease will", node=node, why=str(error))

    async def _stay(self) -> None:
        while True:
            self._about_changed.clear()
            try:
                await self._registry.put(REPLICAS, self._replica, json.dumps(self._about).encode())
                lost = await self._lost_before_change()
            except store_errors.StoreError as error:
                log.debug("cannot announce this replica", why=str(error))
                await asyncio.sleep(RETRY_DELAY_S)
                continue
            if lost:
                log.warning("presence lost: announcing anew")
                self._on_lost()

    async def _lost_before_change(self) -> bool:
        lost = asyncio.ensure_future(self._registry.lost())
        changed = asyncio.ensure_future(self._about_changed.wait())
        try:
            await asyncio.wait({lost, changed}, return_when=asyncio.FIRST_COMPLETED)
            return lost.done() and lost.result() is None
        finally:
            for task in (lost, changed):
                task.cancel()

    def say(self, **about: object) -> None:
        """Announce something more about this replica, or something else than before."""
        if any(self._about.get(name) != value for name, value in about.items()):
            self._about |= about
            self._about_changed.set()

    # ---- listening

    async def _follow(self, section: str, entries_are: Callable[[Entries], None]) -> None:
        while True:
            try:
                async for entries in self._registry.follow(section):
                    entries_are(entries)
            except store_errors.StoreError as error:
                log.debug("the registry is not followed now", section=section, why=str(error))
                await asyncio.sleep(RETRY_DELAY_S)

    def _replicas_are(self, entries: Entries) -> None:
        self.replicas = {id: json.loads(value) for id, value in entries.items()}
        self._replicas_changed.set()

    async def wait_for_replicas(self) -> None:
        """Until a replica has come, gone or said something else since the last call. For one caller."""
        await self._replicas_changed.wait()
        self._replicas_changed.clear()

    def _sessions_are(self, entries: Entries) -> None:
        now_s = self._clock.monotonic_s()
        connected = {node: value.decode() for node, value in entries.items() if not value.startswith(_SILENT)}
        if not entries.unbroken:
            self._listening_since_s = now_s
            for node in [n for n in self._silent_since_s if entries.epochs.get(n, 0) != self._epochs.get(n)]:
                del self._silent_since_s[node]
        for node in self._connected.keys() - entries.keys():
            self._silent_since_s[node] = now_s
        for node in entries.keys() - connected.keys():
            if node in self._connected or node not in self._silent_since_s:
                self._silent_since_s[node] = now_s - int(entries[node].removeprefix(_SILENT)) / 1000
        for node in connected:
            self._silent_since_s.pop(node, None)
        came_or_went = connected.keys() ^ self._connected.keys()
        if connected != self._connected:
            self._sessions_changed.set()
            self._sessions_changed = asyncio.Event()
        self._connected, self._epochs = connected, entries.epochs
        self.news += 1
        self._changed.set()
        if came_or_went:
            for observer in self._observers:
                observer(came_or_went)

    def begin_anew(self) -> None:
        """Count silence from now on: until now it meant nothing, because no node could be heard or lost."""
        self._silent_since_s.clear()
        self._listening_since_s = self._clock.monotonic_s()

    def holder(self, node: str) -> str:
        """The replica that holds the node's session; empty: none does."""
        return self._connected.get(node, "")

    async def moved(self, node: str, replica: str) -> None:
        """Until that replica holds the node's session no longer."""
        while self.holder(node) == replica:
            await self._sessions_changed.wait()

    def observe(self, observer: ContactObserver) -> None:
        self._observers.append(observer)

    def contact(self, node: str) -> Contact:
        if node in self._connected:
            return HERE
        since_s = self._silent_since_s.get(node, self._listening_since_s)
        if since_s is None:
            return Contact(connected=False)
        return Contact(connected=False, silent_ms=int((self._clock.monotonic_s() - since_s) * 1000))

    def still_silent(self, node: str) -> Guard:
        """A commit with this guard fails when the node was heard of meanwhile, although nobody here knows it yet."""
        return self._registry.unheard_since(node, self._epochs.get(node, 0))

    async def wait_for_change(self, *, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return
        self._changed.clear()
