"""The one door for writes: load, decide, append, wait.

A command is a function of the view that returns the changes it wants, stream by stream. Here each change
gets its versions, time and actor, is folded into the new head, and goes to the store as one transaction
that holds only if no stream moved meanwhile. If one did, the view catches up and the command decides
again, a bounded number of times. When `run` returns, the view holds what was written, so the same
replica can be read at once; others are asked with `min_revision`.

Names are claimed with the stream that takes them and released with its end. Kinds that live in a group
share one name space per group, so that a name says what it is.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import grpc
import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from pwm.api.v1 import events_pb2 as ev
from pwm.api.v1.access_pb2 import since
from pwm.api.v1.common_pb2 import Actor
from pwm.api.v1.identity_pb2 import Token
from pwm.api.v1.services_pb2 import Problem
from pwm.controlplane.clock import Clock
from pwm.controlplane.core.decide import Change, Payload
from pwm.controlplane.core.evolve import State, evolve
from pwm.controlplane.core.limits import Account
from pwm.controlplane.errors import ApiError, conflict, invalid, unavailable
from pwm.controlplane.store import errors as store_errors
from pwm.controlplane.store.commits import Commit, Guard, ReceiptWrite, StreamId, StreamWrite, Turn
from pwm.controlplane.store.eventstore import EventStore
from pwm.controlplane.view import View
from pwm.version import VERSION, numbers

log = structlog.get_logger(__name__)

# Decisions on a contested stream before the caller is told to try again: each loser waits for the winner.
MAX_DECISIONS = 16
# Streams of one commit: two puts and a compare each, names and guards besides, within etcd's 128 operations.
MAX_STREAMS_PER_COMMIT = 40
# How long a writer waits for its own change to come back through the watch.
READ_BACK_TIMEOUT_S = 10.0

# Kinds whose names are unique in their group, across these kinds.
GROUPED_KINDS = frozenset({"Workload", "Volume", "Storage", "Secret"})
# Kinds of which something is kept beside the log.
SEALED_KINDS = frozenset({"Secret"})
# Kinds whose names are not claimed as those of others are: a container's is its workload's, a token's its user's.
UNNAMED_KINDS = frozenset({"Container", "Token"})

_PAYLOAD_FIELDS = {
    field.message_type.name: field.name
    for field in ev.Event.DESCRIPTOR.oneofs_by_name["payload"].fields
    if field.message_type
}

# Payloads that an older version would not heed, and the first that does.
_SINCE = {
    field.message_type.name: field.GetOptions().Extensions[since]
    for field in ev.Event.DESCRIPTOR.oneofs_by_name["payload"].fields
    if field.message_type and field.GetOptions().HasExtension(since)
}

Decide = Callable[[], Sequence[Change]]


class Witness(Protocol):
    """Writes down who changed what (`audit`)."""

    def origin(self, actor: Actor) -> bytes:
        """From where the actor's change comes, to be kept with it; b"": from nobody's call."""
        ...

    def changed(self, commit: Commit, revision: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command did. `revision` is the view's own when nothing had to change."""

    revision: int
    changes: tuple[Change, ...]


class NameInUse(Exception):
    """A name that a new resource wants belongs to another."""

    def __init__(self, name: str, holder_kind: str) -> None:
        super().__init__(f"the name {name} is taken by a {holder_kind}")
        self.name = name
        self.holder_kind = holder_kind


class Commands:
    def __init__(
        self,
        *,
        store: EventStore,
        view: View,
        clock: Clock,
        versions: Callable[[], Iterable[str]] = lambda: (VERSION,),
        witness: Witness | None = None,
    ) -> None:
        """`versions` are those of the replicas that are here, which all have to heed what is written."""
        self._versions = versions
        self._witness = witness
        self._store = store
        self._view = view
        self._clock = clock

    async def run(
        self,
        decide: Decide,
        *,
        actor: Actor,
        guards: Sequence[Guard] = (),
        receipt: ReceiptWrite | None = None,
        answer: Callable[[], bytes] | None = None,
    ) -> Outcome:
        """Decide and append until it holds.

        `answer` makes what the receipt keeps, once it has been decided. Raises what `decide` raises;
        store_errors.FenceLost or GuardFailed when a guard no longer holds; AlreadyAnswered for a receipt that exists;
        ApiError ABORTED when the stream stays contested and UNAVAILABLE when the store cannot be reached.
        """
        for _ in range(MAX_DECISIONS):
            try:
                changes = [c for c in decide() if c.payloads]
            except Exception:
                await self._unless_answered(receipt)
                raise
            if not changes:
                await self._unless_answered(receipt)
                return Outcome(self._view.revision, ())
            if receipt is not None and answer is not None:
                receipt = replace(receipt, answer=answer())
            commit = self._commit(changes, actor, tuple(guards), receipt)
            try:
                revision = await self._store.append(commit)
            except store_errors.Conflict as error:
                await self._catch_up(error.streams)
                continue
            except store_errors.NameTaken as error:
                await self._name_taken(error, changes)
                continue
            except store_errors.TooLarge as error:
                raise invalid(str(error), next_step="make the document smaller") from error
            except store_errors.KVError as error:
                raise _out_of_reach(error) from error
            if self._witness is not None:
                self._witness.changed(commit, revision)
            await self._read_back(revision)
            return Outcome(revision, tuple(changes))
        raise conflict("others keep changing the same resource", next_step="try again")

    async def _unless_answered(self, receipt: ReceiptWrite | None) -> None:
        """That nothing is to be done may be because it has been done: by a request whose answer was lost."""
        if receipt is None:
            return
        try:
            found = await self._store.receipt(receipt.principal, receipt.key)
        except store_errors.KVError as error:
            raise _out_of_reach(error) from error
        if found is not None:
            raise store_errors.AlreadyAnswered(found.answer, revision=found.revision)

    async def run_in_parts(
        self, changes: Sequence[Change], *, actor: Actor, guards: Sequence[Guard] = ()
    ) -> list[Change]:
        """Append independent changes as several commits at once. Returns those that no longer applied.

        For loops that look again anyway: a change decided on a state that moved on is skipped, not redone.
        """
        parts = [changes[i : i + MAX_STREAMS_PER_COMMIT] for i in range(0, len(changes), MAX_STREAMS_PER_COMMIT)]
        appends = (self._append_part(part, actor, tuple(guards)) for part in parts)
        results = await asyncio.gather(*appends, return_exceptions=True)
        newest, left = 0, []
        for result in results:
            if isinstance(result, store_errors.KVError):
                raise _out_of_reach(result) from result
            if isinstance(result, BaseException):
                raise result
            newest = max(newest, result[0])
            left += result[1]
        await self._read_back(newest)
        return left

    async def run_part(
        self, part: Sequence[Change], *, actor: Actor, guards: Sequence[Guard] = (), turns: Sequence[Turn] = ()
    ) -> tuple[int, list[Change]]:
        """One commit as `run_in_parts` makes them, which takes these turns. Returns its revision, 0 when nothing was
        left to do, and the changes that no longer applied.

        Raises store_errors.GuardFailed when one of the turns has been taken by another.
        """
        try:
            revision, skipped = await self._append_part(part, actor, tuple(guards), tuple(turns))
        except store_errors.KVError as error:
            raise _out_of_reach(error) from error
        await self._read_back(revision)
        return revision, skipped

    async def turns(self, accounts: Sequence[Account]) -> dict[Account, Turn]:
        """The turns of these accounts as they are now, once the view holds all that was done in them.

        Raises ApiError UNAVAILABLE.
        """
        keys = {self._store.keys.turn(*account): account for account in accounts}
        try:
            found = await self._store.turns(keys)
            await self._view.wait_for(max(t.mod_revision for t in found.values()), timeout_s=READ_BACK_TIMEOUT_S)
        except store_errors.KVError as error:
            raise _out_of_reach(error) from error
        except TimeoutError as error:
            raise unavailable("this replica lags behind the store", next_step="try again") from error
        return {keys[key]: turn for key, turn in found.items()}

    async def _append_part(
        self, part: Sequence[Change], actor: Actor, guards: tuple[Guard, ...], turns: tuple[Turn, ...] = ()
    ) -> tuple[int, list[Change]]:
        current = [c for c in part if self._is_current(c)]
        skipped = [c for c in part if not self._is_current(c)]
        if not current:
            return 0, skipped
        try:
            relied_on = self._relied_on(current)
            commit = self._commit(current, actor, (*guards, *relied_on.values()), None)
            return await self._store.append(replace(commit, turns=turns) if turns else commit), skipped
        except store_errors.Conflict as error:
            await self._catch_up(error.streams)
            moved = {(s.kind, s.uid) for s in error.streams}
            left = [c for c in current if (c.kind, c.uid) not in moved]
            revision, more = await self._append_part(left, actor, guards, turns)
            return revision, [*skipped, *(c for c in current if (c.kind, c.uid) in moved), *more]
        except store_errors.GuardFailed as error:
            stream = next((stream for stream, guard in relied_on.items() if guard.key == error.key), None)
            if stream is None:
                raise
            await self._catch_up([stream])
            revision, more = await self._append_part(current, actor, guards, turns)
            return revision, [*skipped, *more]

    def _relied_on(self, changes: Sequence[Change]) -> dict[StreamId, Guard]:
        """Guards for what the changes were decided on besides the states that they change."""
        guards: dict[StreamId, Guard] = {}
        for change in changes:
            for state in change.given:
                stream = StreamId(state.kind, state.metadata.uid)
                entry = self._view.entry(*stream) if stream not in guards else None
                if entry is not None:
                    guards[stream] = Guard(self._store.keys.head(stream), mod_revision=entry.revision)
        return guards

    def _is_current(self, change: Change) -> bool:
        return self._holds(change.kind, change.uid, change.state) and all(
            self._holds(state.kind, state.metadata.uid, state) for state in change.given
        )

    def _holds(self, kind: str, uid: str, state: State | None) -> bool:
        entry = self._view.entry(kind, uid)
        return (entry.state if entry is not None else None) is state

    def _commit(
        self, changes: Sequence[Change], actor: Actor, guards: tuple[Guard, ...], receipt: ReceiptWrite | None
    ) -> Commit:
        self._refuse_what_some_do_not_know(changes)
        now_ms = self._clock.now_ms()
        claimed: list[tuple[str, str]] = []
        released: list[str] = []
        for change in changes:
            claims, releases = _names(change)
            if claims:
                claimed.append((claims, f"{change.kind}/{change.uid}"))
            if releases:
                released.append(releases)
        return Commit(
            id=self._clock.new_id(),
            writes=tuple(self._write(change, actor, now_ms) for change in changes),
            claim_names=tuple(claimed),
            release_names=tuple(released),
            guards=guards,
            receipt=receipt,
            origin=self._witness.origin(actor) if self._witness is not None else b"",
        )

    def _refuse_what_some_do_not_know(self, changes: Sequence[Change]) -> None:
        for change in changes if _SINCE else ():
            for payload in change.payloads:
                needed = _SINCE.get(payload.DESCRIPTOR.name)
                oldest = min(self._versions(), key=numbers, default=VERSION) if needed else ""
                if needed and numbers(oldest) < numbers(needed):
                    raise ApiError(
                        grpc.StatusCode.FAILED_PRECONDITION,
                        f"this needs PWM {needed}, but a controller of version {oldest} is still running",
                        next_step="update all controllers first; pwm admin status shows their versions",
                    )

    def _write(self, change: Change, actor: Actor, now_ms: int) -> StreamWrite:
        state = change.state
        before = state.metadata.version if state is not None else 0
        events: list[bytes] = []
        for offset, payload in enumerate(change.payloads, start=1):
            event = stamp(change, payload, version=before + offset, actor=actor, now_ms=now_ms)
            state = evolve(state, event)
            events.append(event.SerializeToString(deterministic=True))
        assert state is not None
        entry = self._view.entry(change.kind, change.uid) if change.state is not None else None
        assert change.state is None or (entry is not None and entry.state is change.state), "decided on an old state"
        return StreamWrite(
            stream=StreamId(change.kind, change.uid),
            version_before=before,
            revision_before=entry.revision if entry is not None else 0,
            events=tuple(events),
            state=state.SerializeToString(deterministic=True),
            removed_at_ms=now_ms if change.removes else 0,
            sealed=b"" if change.removes and change.kind in SEALED_KINDS else change.sealed,
        )

    async def _read_back(self, revision: int) -> None:
        try:
            await self._view.wait_for(revision, timeout_s=READ_BACK_TIMEOUT_S)
        except TimeoutError:
            log.warning("the view lags behind an own write", revision=revision, view=self._view.revision)

    async def _catch_up(self, streams: Sequence[StreamId]) -> None:
        """Wait until the view holds what the streams' heads say."""
        newest = 0
        for stream in streams:
            try:
                head = await self._store.head(stream)
            except store_errors.KVError as error:
                raise _out_of_reach(error) from error
            if head is not None:
                newest = max(newest, head.revision)
        try:
            await self._view.wait_for(newest, timeout_s=READ_BACK_TIMEOUT_S)
        except TimeoutError as error:
            raise unavailable("this replica lags behind the store", next_step="try again") from error

    async def _name_taken(self, error: store_errors.NameTaken, changes: Sequence[Change]) -> None:
        """Somebody has the name: another kind for good; the same kind means that the view was behind."""
        holder_kind, _, uid = error.holder.partition("/")
        for change in changes:
            if _names(change)[0] == error.name and change.kind != holder_kind:
                raise NameInUse(change.name, holder_kind) from error
        await self._catch_up([StreamId(holder_kind, uid)])


def _out_of_reach(error: store_errors.KVError) -> ApiError:
    if isinstance(error, store_errors.StoreInDoubt):
        return unavailable(
            f"nothing is changed until an admin decides: {error}",
            next_step="`pwm admin status` says what happened; `pwm admin accept-restore` goes on from what there is",
        )
    if isinstance(error, store_errors.NoSpace):
        return unavailable(
            "the change was not saved: etcd is out of space",
            next_step="try again in a minute: PWM is making room; if that does not help, raise etcd's quota",
        )
    if isinstance(error, store_errors.Ambiguous):
        message = f"the change may or may not have been saved: the control plane's store did not answer ({error})"
        # By its code a client knows that only the same request once more tells.
        unknown = Problem(
            message=message,
            next_step="look, or do it once more with the same Idempotency-Key: what was saved is not done twice",
            code=grpc.StatusCode.UNKNOWN.value[0],
        )
        return ApiError(grpc.StatusCode.UNAVAILABLE, message, [unknown])
    return unavailable(
        f"the change was not saved: the control plane's store is out of reach ({error})",
        next_step="try again in a moment; `pwm admin status` shows the state of etcd",
    )


def _names(change: Change) -> tuple[str, str]:
    """The name that a change claims, and the one that it releases, as the store keeps them; "" = none."""
    if change.kind in UNNAMED_KINDS:
        return _token_names(change) if change.kind == "Token" else ("", "")
    key = name_key(change.kind, change.group, change.name)
    return key if change.state is None else "", key if change.removes else ""


def _token_names(change: Change) -> tuple[str, str]:
    """A token's name is its user's, and free again once it is revoked. One that was given none has its uid for it."""
    if change.name == change.uid:
        return "", ""
    if change.state is None:
        issued = next(p for p in change.payloads if isinstance(p, ev.TokenIssued))
        return f"Token/{issued.spec.user}/{change.name}", ""
    assert isinstance(change.state, Token)
    if change.state.spec.revoked:
        return "", ""
    ends = any(isinstance(p, (ev.TokenRevoked, ev.Removed)) for p in change.payloads)
    return "", f"Token/{change.state.spec.user}/{change.name}" if ends else ""


def name_key(kind: str, group: str, name: str) -> str:
    """Where the uniqueness of a name is kept, below the store's `name/`."""
    return f"-/{group}/{name}" if kind in GROUPED_KINDS else f"{kind}/{group}/{name}"


def stamp(change: Change, payload: Payload, *, version: int, actor: Actor, now_ms: int) -> ev.Event:
    event = ev.Event(
        kind=change.kind,
        uid=change.uid,
        version=version,
        name=change.name,
        group=change.group,
        time=timestamp(now_ms),
        actor=actor,
        cause=change.cause,
    )
    getattr(event, _PAYLOAD_FIELDS[payload.DESCRIPTOR.name]).CopyFrom(payload)
    return event


def timestamp(ms: int) -> Timestamp:
    return Timestamp(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000)
