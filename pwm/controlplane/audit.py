"""Writes down who did what: changes, denials, log-ins and shells, from where and with which token.

Nobody waits for it. What is to be written down is put into a bounded queue, and a loop writes what has gathered in a
second as one batch, chained to the one before (`core/auditing`). A change has from where it came in its own commit
already. So a controller that is killed loses what it saw in its last second of denials and log-ins, and of changes only
the entry: `pwm admin verify` counts those. While the store is out of reach the queue fills; what does not fit into it
is counted.

A batch whose write came to nothing, or of which nobody knows, is written again under the same key with the same
bytes, so it is there once. Each start of a controller begins a chain of its own, and so does a restore of the store:
it took an unknown part of the chain away.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing, suppress

import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from pwm.api.v1.audit_pb2 import AuditBatch, AuditEntry, Origin
from pwm.api.v1.common_pb2 import Actor
from pwm.api.v1.events_pb2 import Event
from pwm.api.v1.identity_pb2 import Token
from pwm.api.v1.workload_pb2 import WorkloadStatus
from pwm.controlplane.auth import Principal
from pwm.controlplane.clock import Clock
from pwm.controlplane.context import CALL, CallContext
from pwm.controlplane.core.addresses import neighbourhood
from pwm.controlplane.core.auditing import StoredBatch, Tally, event_digest, seal
from pwm.controlplane.errors import ApiError, LoginFailed
from pwm.controlplane.store import errors as store_errors
from pwm.controlplane.store.commits import Commit
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.kv import KV, KeyValue, prefix_end
from pwm.enums import value_name

# What gathers in this time is one batch: at most so many keys are written, and so much is lost with a controller.
BEAT_S = 1.0
# About 3 MB. At a thousand changes a second ten seconds without the store.
MOST_WAITING = 10_000
# Some 200 bytes each, in a request of 1 MiB at most.
MOST_IN_BATCH = 1_000
# For the last batch of a controller that stops.
LAST_WRITE_S = 1.0
# Names of kinds and groups come from callers.
MOST_CHARS = 100

log = structlog.get_logger(__name__)


class Audit:
    """`run` keeps writing; everything else only takes a note. It is the journal of the door, too."""

    def __init__(self, kv: KV, *, keys: Keys, clock: Clock, replica: str) -> None:
        self._kv = kv
        self._keys = keys
        self._clock = clock
        self._replica = replica
        self._tally = Tally()
        self._waiting: list[AuditEntry] = []
        self._lost = 0
        self._lost_since_ms = 0
        self._begin_chain()

    def _begin_chain(self) -> None:
        self._chain = f"{self._replica}.{self._clock.new_id()[-8:]}"
        # The last batch that was written, and the one that is to be written next.
        self._number = 0
        self._previous = b""
        self._previous_ms = 0
        self._next: tuple[AuditBatch, bytes] | None = None

    # ---- what is noted

    def origin(self, actor: Actor) -> bytes:
        """From where the call came for which a change is made now, to be kept with it; b"" when it is nobody's wish."""
        call = _call_of(actor)
        if call is None:
            return b""
        return Origin(address=call.peer, token=call.principal.token_id).SerializeToString(deterministic=True)

    def changed(self, commit: Commit, revision: int) -> None:
        """A change with an origin has been written."""
        call = CALL.get()
        if call is None or not commit.origin:
            return
        for write in commit.writes:
            for written in write.events:
                event = Event.FromString(written)
                entry = self._entry(AuditEntry.CHANGE, call.principal, call.peer)
                entry.kind, entry.group, entry.name = event.kind, event.group, event.name
                entry.what, entry.uid, entry.version = _said(event), event.uid, event.version
                entry.revision, entry.digest = revision, event_digest(written, commit.origin)
                if event.kind == "Token":
                    entry.name = _of_token(event, write.state)
                self._put(entry)

    def denied(self, principal: Principal, *, verb: str, kind: str, group: str, name: str) -> None:
        """Somebody may not do what the present call wants."""
        call = CALL.get()
        if call is None:
            return
        entry = self._entry(AuditEntry.DENIED, principal, call.peer)
        entry.what, entry.kind = _short(verb), _short(kind)
        entry.group, entry.name = _short(group), _short(name)
        self._count(entry)

    def visit_began(self, visitor: Principal, address: str) -> None:
        self._count(self._entry(AuditEntry.LOGIN, visitor, address))

    def logged_in(self, visitor: Principal, address: str, what: str) -> None:
        """Somebody has got a token for a log-in somewhere else."""
        entry = self._entry(AuditEntry.LOGIN, visitor, address)
        entry.what = _short(what)
        self._count(entry)

    def login_failed(self, error: ApiError, address: str) -> None:
        entry = self._entry(AuditEntry.LOGIN_FAILED, None, address)
        if isinstance(error, LoginFailed):
            entry.user, entry.token, entry.what = error.user, error.name, _short(error.what)
        entry.what = entry.what or ("" if entry.user else "wrong token")
        self._count(entry)

    def banned(self, address: str, seconds: float) -> None:
        entry = self._entry(AuditEntry.BANNED, None, address)
        entry.what = f"for {seconds:g} s"
        self._count(entry)

    def shell(self, call: CallContext, *, group: str, container: str, ended: str | None = None) -> None:
        """A shell began, or ended in some way. What was done in it is nobody's business here."""
        action = AuditEntry.SHELL_BEGAN if ended is None else AuditEntry.SHELL_ENDED
        entry = self._entry(action, call.principal, call.peer)
        entry.kind, entry.group, entry.name, entry.what = "Container", group, container, ended or ""
        self._put(entry)

    def _entry(self, action: AuditEntry.Action.ValueType, principal: Principal | None, address: str) -> AuditEntry:
        entry = AuditEntry(action=action, address=address, time=_stamp(self._clock.now_ms()))
        if principal is not None and principal.user is not None:
            entry.user, entry.user_uid = principal.name, principal.user.metadata.uid
            entry.token = principal.token_id
        return entry

    def _count(self, entry: AuditEntry) -> None:
        """What costs whoever does it nothing."""
        now = self._tally.note(entry, source=neighbourhood(entry.address))
        if now is not None:
            self._put(now)

    def _put(self, entry: AuditEntry) -> None:
        if len(self._waiting) >= MOST_WAITING:
            self._lose(1)
            return
        self._waiting.append(entry)

    def _lose(self, count: int) -> None:
        if count:
            self._lost_since_ms = self._lost_since_ms or self._clock.now_ms()
            self._lost += count

    def begin_anew(self) -> None:
        """The store was restored. Changes that wait are none of the log that is there now; they are counted as lost."""
        waiting = [*(self._next[0].entries if self._next else ()), *self._waiting]
        self._waiting = [entry for entry in waiting if entry.action != AuditEntry.CHANGE]
        self._lose(len(waiting) - len(self._waiting))
        self._begin_chain()

    # ---- writing it down

    async def run(self) -> None:
        """Until cancelled; then what waits is written, if that goes fast."""
        try:
            while True:
                await asyncio.sleep(BEAT_S)
                await self.write_down()
        finally:
            for entry in self._tally.due(self._clock.now_ms(), all_of_it=True):
                self._put(entry)
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_WRITE_S):
                    await self.write_down()

    async def write_down(self) -> None:
        """Everything that waits. What the store does not take is tried again."""
        for entry in self._tally.due(self._clock.now_ms()):
            self._put(entry)
        while self._next is not None or self._waiting:
            batch, value = self._next = self._next or self._make_next()
            key = self._keys.audit(batch.time.ToMilliseconds(), batch.chain, batch.number)
            try:
                await self._kv.put(key, value)
            except store_errors.StoreError as error:
                log.info("the audit is written down later", why=str(error), entries=len(self._waiting))
                return
            self._next = None

    def _make_next(self) -> tuple[AuditBatch, bytes]:
        entries = self._waiting[:MOST_IN_BATCH]
        del self._waiting[:MOST_IN_BATCH]
        if self._lost and not self._waiting:
            lost = AuditEntry(action=AuditEntry.LOST, time=_stamp(self._lost_since_ms), count=self._lost)
            lost.until.CopyFrom(_stamp(self._clock.now_ms()))
            entries.append(lost)
            self._lost = self._lost_since_ms = 0
        # Times of a chain never go back, whatever clocks do: batches are read in the order of their times.
        time_ms = max(self._clock.now_ms(), self._previous_ms)
        self._number += 1
        batch = AuditBatch(
            replica=self._replica, chain=self._chain, number=self._number, time=_stamp(time_ms), entries=entries
        )
        if self._previous:
            batch.previous = self._previous
            batch.previous_time.CopyFrom(_stamp(self._previous_ms))
        sealed = seal(batch)
        self._previous, self._previous_ms = sealed.digest, time_ms
        return batch, sealed.SerializeToString(deterministic=True)


class AuditLog:
    """Reads what all controllers have written down."""

    def __init__(self, kv: KV, *, keys: Keys) -> None:
        self._kv = kv
        self._keys = keys

    async def batches(self) -> AsyncGenerator[StoredBatch, None]:
        """All there are, in the order of their times. Raises KVError."""
        async with aclosing(self._kv.pages(self._keys.all_audit)) as pages:
            async for page in pages:
                for stored in self._stored(page.kvs):
                    yield stored

    async def revision(self) -> int:
        """Of the store, now. Raises KVError."""
        return (await self._kv.range(self._keys.audit_kept_since, keys_only=True)).revision

    async def follow(self, after: int) -> AsyncGenerator[tuple[int, list[StoredBatch]], None]:
        """What is written after a revision, with the revision that it has come to; in quiet times nothing now and then.

        Raises KVError, Compacted among them.
        """
        start = self._keys.all_audit
        watch = self._kv.watch(start, prefix_end(start), start_revision=after + 1, deletes=False)
        async with aclosing(watch) as changes:
            async for change in changes:
                # A batch of which nobody knew whether it had been written was written again, with the same content.
                new = (event.kv for event in change.events if event.kv.version == 1)
                yield change.revision, self._stored(new)

    async def between(self, from_ms: int, to_ms: int, *, revision: int = 0) -> list[StoredBatch]:
        """Those written from one time on and before another, as of a revision (0: now). Raises KVError."""
        start, end = self._keys.audit_from(from_ms), self._keys.audit_from(to_ms)
        found: list[StoredBatch] = []
        while True:
            page = await self._kv.range(start, end, limit=MOST_IN_BATCH, revision=revision)
            found += self._stored(page.kvs)
            if len(page.kvs) < MOST_IN_BATCH:
                return found
            start = page.kvs[-1].key + b"\0"

    async def oldest_ms(self) -> int | None:
        """When the first there is was written; None: there is none. Raises KVError."""
        start = self._keys.all_audit
        page = await self._kv.range(start, prefix_end(start), limit=1, keys_only=True)
        return self._keys.parse_audit(page.kvs[0].key)[0] if page.kvs else None

    async def kept_since_ms(self) -> int:
        """What is older may have been dropped. Raises KVError."""
        page = await self._kv.range(self._keys.audit_kept_since)
        return int(page.kvs[0].value) if page.kvs else 0

    def _stored(self, kvs: Iterable[KeyValue]) -> list[StoredBatch]:
        return [StoredBatch(*self._keys.parse_audit(kv.key), kv.value) for kv in kvs]


def _call_of(actor: Actor) -> CallContext | None:
    """The present call, if it is the actor's."""
    call = CALL.get()
    if call is None or actor.type != Actor.USER or call.principal is None or call.principal.name != actor.name:
        return None
    return call


def _said(event: Event) -> str:
    """The name of its payload; of a desire what is desired, too."""
    payload = event.WhichOneof("payload") or ""
    if payload != "workload_desired":
        return payload
    return f"{payload} {value_name(WorkloadStatus.Desired.Name, event.workload_desired.desired).lower()}"


def _of_token(event: Event, state: bytes) -> str:
    """`laptop of ann`; never the hash of it."""
    spec = Token.FromString(state).spec
    name = event.name[:12] if event.name == event.uid else event.name
    whose = spec.user or (f"node {spec.node}" if spec.node else "")
    return f"{name} of {whose}" if whose else name


def _short(text: str) -> str:
    return text if len(text) <= MOST_CHARS else text[:MOST_CHARS] + "…"


def _stamp(ms: int) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMilliseconds(ms)
    return stamp
