"""A commit made ready for a transaction: keys, compares, values serialised once, limits checked.

Also the way back: given what a failed transaction read, `verdict` says why this commit was refused. The
order in which it looks matters. A receipt comes first, since a repeated request must get the answer of the
first one although its other conditions fail as well; then the fence, since a deposed leader must hear that
and nothing else; then guards, streams and names.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    import asyncio

# A message is the concatenation of its fields, so a record is its event part followed by its position,
# and the event, which may be large, is serialised only once although its position comes late.
_POSITIONS = [Record(position=i).SerializeToString() for i in range(COMMIT_LIMIT_OPERATIONS)]


@dataclass(slots=True, eq=False)
class Prepared:
    """One commit, waiting for its transaction. `answer` is its outcome: the revision, or why it was refused."""

    commit: Commit
    answer: "asyncio.Future[int]"
    compares: list[Compare]
    operations: list[Put | Delete]
    # Places in `operations` of the event records, whose position is only known in the transaction.
    records: list[int]
    # Keys compared by value of their content: reading them back needs more than their revision.
    informative: frozenset[bytes]
    size_bytes: int
    written: frozenset[bytes]
    compared: frozenset[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.compared = frozenset(c.key for c in self.compares)

    def with_positions(self, first: int) -> list[Put | Delete]:
        """The operations, with this commit's events at `first` and after it in the transaction's order."""
        operations = list(self.operations)
        for offset, place in enumerate(self.records):
            put = operations[place]
            assert isinstance(put, Put)
            operations[place] = Put(put.key, put.value + _POSITIONS[first + offset])
        return operations


def prepare(commit: Commit, answer: "asyncio.Future[int]", *, keys: Keys, receipt_lease: int) -> Prepared:
    """Raises TooLarge. `receipt_lease` is what a receipt hangs on, 0 when the commit has none."""
    assert commit.writes, "a commit writes at least one stream: its head tells whether the commit was applied"
    compares: dict[Compare, None] = {}
    operations: list[Put | Delete] = []
    records: list[int] = []
    commit_id = commit.id.encode()
    for write in commit.writes:
        _prepare_stream(write, commit_id, keys, compares, operations, records)
    informative = _prepare_names(commit, keys, compares, operations)
    for guard in commit.guards:
        compares[_guard_compare(guard)] = None
    if commit.receipt is not None:
        key = keys.receipt(commit.receipt.principal, commit.receipt.key)
        value = Receipt(answer=commit.receipt.answer, commit_id=commit_id).SerializeToString()
        compares[Compare(key, Target.CREATE, 0)] = None
        operations.append(Put(key, value, receipt_lease))
        informative.add(key)
    written = frozenset(o.key for o in operations)
    assert len(written) == len(operations), "a commit writes each key once"
    size = sum(len(o.key) + (len(o.value) if isinstance(o, Put) else 0) for o in operations)
    size += sum(2 * len(c.key) for c in compares)  # compared, and read when that fails
    _check("a commit", size, COMMIT_LIMIT_BYTES)
    _check("a commit (operations)", max(len(operations), len(compares)), COMMIT_LIMIT_OPERATIONS)
    return Prepared(commit, answer, list(compares), operations, records, frozenset(informative), size, written)


def _prepare_stream(
    write: StreamWrite,
    commit_id: bytes,
    keys: Keys,
    compares: dict[Compare, None],
    operations: list[Put | Delete],
    records: list[int],
) -> None:
    assert write.events, "a stream is written by its events"
    assert (write.version_before == 0) == (write.revision_before == 0), "version and revision tell of the same head"
    name = f"{write.stream.kind}/{write.stream.uid}"
    _check(f"the state of {name}", len(write.state), STATE_LIMIT_BYTES)
    version = write.version_before
    for event in write.events:
        _check(f"an event of {name}", len(event), EVENT_LIMIT_BYTES)
        version += 1
        records.append(len(operations))
        operations.append(Put(keys.event(write.stream, version), Record(event=event).SerializeToString()))
    head = Head(version=version, state=write.state, commit_id=commit_id)
    if write.removed_at_ms:
        head.removed_at.FromMilliseconds(write.removed_at_ms)
    key = keys.head(write.stream)
    compares[Compare(key, Target.MOD, write.revision_before)] = None
    operations.append(Put(key, head.SerializeToString(deterministic=True)))


def _prepare_names(
    commit: Commit, keys: Keys, compares: dict[Compare, None], operations: list[Put | Delete]
) -> set[bytes]:
    """A name that changes hands needs no compare: it hangs on the released stream's head, which is compared."""
    claimed = {keys.name(name): holder for name, holder in commit.claim_names}
    released = {keys.name(name) for name in commit.release_names}
    for key, holder in claimed.items():
        operations.append(Put(key, holder.encode()))
        if key not in released:
            compares[Compare(key, Target.CREATE, 0)] = None
    operations += [Delete(keys.name(name)) for name in commit.release_names if keys.name(name) not in claimed]
    return set(claimed) - released


def _guard_compare(guard: Guard) -> Compare:
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
    guards = [g.key for g in commit.guards if not holds(_guard_compare(g), found)]
    for key in guards:
        if key.startswith(keys.all_leaders):
            return errors.FenceLost(key)
    if guards:
        return errors.GuardFailed(guards[0])
    moved = tuple(
        w.stream for w in commit.writes if not holds(Compare(keys.head(w.stream), Target.MOD, w.revision_before), found)
    )
    if moved:
        return errors.Conflict(moved)
    for name, _ in commit.claim_names:
        kv = found.get(keys.name(name))
        if kv is not None and name not in commit.release_names:
            return errors.NameTaken(name, kv.value.decode())
    return None


def holds(compare: Compare, found: Mapping[bytes, KeyValue]) -> bool:
    kv = found.get(compare.key)
    if kv is None:
        return compare.revision == 0
    return compare.revision == (kv.mod_revision if compare.target is Target.MOD else kv.create_revision)
