"""A commit made ready for a transaction: keys, compares and values, with the limits checked.

Also the way back: given what a failed transaction read, `verdict` says why this commit was refused. The
order in which it looks matters. A receipt comes first, since a repeated request must get the answer of the
first one although its other conditions fail as well; then the fence, since a deposed leader must hear that
and nothing else; then guards, streams and names.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from pwm.api.v1.store_pb2 import Head, Receipt, Record
from pwm.controlplane.store import errors
from pwm.controlplane.store.commits import (
    COMMIT_LIMIT_BYTES,
    COMMIT_LIMIT_OPERATIONS,
    EVENT_LIMIT_BYTES,
    STATE_LIMIT_BYTES,
    Commit,
    Guard,
    StreamWrite,
)
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.kv import Compare, Delete, KeyValue, Put, Target

OVERHEAD_BYTES = 32
"""What protobuf and etcd add to a key and a value, at most."""


@dataclass(slots=True, eq=False)
class Prepared:
    """One commit, waiting for its transaction. `answer` is its outcome: the revision, or why it was refused."""

    commit: Commit
    answer: "asyncio.Future[int]"
    # Conditions on keys that the commit writes itself.
    compares: list[Compare]
    # Conditions on keys that it only relies on.
    guards: list[Compare]
    operations: list[Put | Delete]
    # The event records among the operations: their position is only known in the transaction.
    records: list[Put]
    # Keys whose value is needed, not only their revision, to tell why the commit was refused.
    informative: set[bytes]
    written: set[bytes]
    size_bytes: int
    # Loop time at which the caller wants to hear something, whatever it is.
    deadline: float

    def settle_positions(self, first: int) -> None:
        """Writes into the records where they stand in their transaction. May be done again for another one."""
        events = (event for write in self.commit.writes for event in write.events)
        for position, (record, event) in enumerate(zip(self.records, events, strict=True), first):
            record.value = Record(event=event, position=position, origin=self.commit.origin).SerializeToString()


def prepare(
    commit: Commit, answer: "asyncio.Future[int]", *, keys: Keys, receipt_lease: int, deadline: float
) -> Prepared:
    """Raises TooLarge. `receipt_lease` is what a receipt hangs on, 0 when the commit has none."""
    assert commit.writes, "a commit writes at least one stream: its head tells whether the commit was applied"
    guards = [guard_compare(guard) for guard in commit.guards] if commit.guards else []
    prepared = Prepared(commit, answer, [], guards, [], [], set(), set(), 0, deadline)
    commit_id = commit.id.encode()
    prepared.size_bytes += len(commit.origin) * sum(len(write.events) for write in commit.writes)
    for write in commit.writes:
        _prepare_stream(prepared, write, commit_id, keys)
    for turn in commit.turns:
        prepared.compares.append(Compare(turn.key, Target.MOD, turn.mod_revision))
        prepared.operations.append(Put(turn.key, commit_id))
    if commit.claim_names or commit.release_names:
        _prepare_names(prepared, keys)
    if commit.receipt is not None:
        _prepare_receipt(prepared, commit_id, keys, receipt_lease)
    for operation in prepared.operations:
        prepared.written.add(operation.key)
        prepared.size_bytes += 3 * len(operation.key) + OVERHEAD_BYTES  # written, compared, and read when that fails
        if isinstance(operation, Put):
            prepared.size_bytes += len(operation.value)
    assert len(prepared.written) == len(prepared.operations), "a commit writes each key once"
    _check("a commit", prepared.size_bytes, COMMIT_LIMIT_BYTES)
    conditions = len(prepared.compares) + len(prepared.guards)
    _check("a commit (operations)", max(len(prepared.operations), conditions), COMMIT_LIMIT_OPERATIONS)
    return prepared


def _prepare_stream(prepared: Prepared, write: StreamWrite, commit_id: bytes, keys: Keys) -> None:
    stream, version, operations = write.stream, write.version_before, prepared.operations
    assert write.events, "a stream is written by its events"
    assert (version == 0) == (write.revision_before == 0), "version and revision tell of the same head"
    if len(write.state) > STATE_LIMIT_BYTES:
        raise errors.TooLarge(
            f"the state of {stream.kind}/{stream.uid}", size=len(write.state), limit=STATE_LIMIT_BYTES
        )
    for event in write.events:
        if len(event) > EVENT_LIMIT_BYTES:
            raise errors.TooLarge(f"an event of {stream.kind}/{stream.uid}", size=len(event), limit=EVENT_LIMIT_BYTES)
        version += 1
        record = Put(keys.event(stream, version), event)
        prepared.records.append(record)
        operations.append(record)
    head = Head(version=version, state=write.state, commit_id=commit_id)
    if write.removed_at_ms:
        head.removed_at.FromMilliseconds(write.removed_at_ms)
    key = keys.head(stream)
    prepared.compares.append(Compare(key, Target.MOD, write.revision_before))
    operations.append(Put(key, head.SerializeToString()))
    if write.sealed is not None:
        key = keys.sealed(stream)
        operations.append(Delete(key) if write.removed_at_ms else Put(key, write.sealed))


def _prepare_names(prepared: Prepared, keys: Keys) -> None:
    """A name that changes hands needs no compare: it hangs on the released stream's head, which is compared."""
    claimed = {keys.name(name): holder for name, holder in prepared.commit.claim_names}
    released = [keys.name(name) for name in prepared.commit.release_names]
    for key, holder in claimed.items():
        prepared.operations.append(Put(key, holder.encode()))
        if key not in released:
            prepared.compares.append(Compare(key, Target.CREATE, 0))
            prepared.informative.add(key)
    prepared.operations += [Delete(key) for key in released if key not in claimed]


def _prepare_receipt(prepared: Prepared, commit_id: bytes, keys: Keys, lease: int) -> None:
    receipt = prepared.commit.receipt
    assert receipt is not None
    key = keys.receipt(receipt.principal, receipt.key)
    value = Receipt(answer=receipt.answer, commit_id=commit_id).SerializeToString()
    prepared.compares.append(Compare(key, Target.CREATE, 0))
    prepared.operations.append(Put(key, value, lease))
    prepared.informative.add(key)


def guard_compare(guard: Guard) -> Compare:
    if guard.create_revision is not None:
        return Compare(guard.key, Target.CREATE, guard.create_revision)
    assert guard.mod_revision is not None
    return Compare(guard.key, Target.MOD, guard.mod_revision)


def _check(what: str, size: int, limit: int) -> None:
    if size > limit:
        raise errors.TooLarge(what, size=size, limit=limit)


def verdict(prepared: Prepared, found: Mapping[bytes, KeyValue], *, keys: Keys) -> errors.AppendRefused | None:
    """Why the commit cannot be appended, given the keys that a failed transaction read; None if all holds."""
    commit = prepared.commit
    if commit.receipt is not None:
        kv = found.get(keys.receipt(commit.receipt.principal, commit.receipt.key))
        if kv is not None:
            return errors.AlreadyAnswered(Receipt.FromString(kv.value).answer, revision=kv.mod_revision)
    failed = [guard.key for guard in prepared.guards if not _holds(guard, found)]
    for key in failed:
        if key.startswith(keys.all_leaders):
            return errors.FenceLost(key)
    failed += [t.key for t in commit.turns if not _holds(Compare(t.key, Target.MOD, t.mod_revision), found)]
    if failed:
        return errors.GuardFailed(failed[0])
    moved = tuple(
        w.stream
        for w in commit.writes
        if not _holds(Compare(keys.head(w.stream), Target.MOD, w.revision_before), found)
    )
    if moved:
        return errors.Conflict(moved)
    for name, _ in commit.claim_names:
        kv = found.get(keys.name(name))
        if kv is not None and name not in commit.release_names:
            return errors.NameTaken(name, kv.value.decode())
    return None


def _holds(compare: Compare, found: Mapping[bytes, KeyValue]) -> bool:
    kv = found.get(compare.key)
    if kv is None:
        return compare.revision == 0
    return compare.revision == (kv.mod_revision if compare.target is Target.MOD else kv.create_revision)
