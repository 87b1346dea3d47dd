"""Group commit: commits that wait at the same moment share one transaction.

A transaction costs etcd one entry in its log and one fsync, whatever it holds, so sixty-four waiting
appends in one transaction are many times faster than one by one. A commit goes out at once when nothing is
on its way; while something is, those that come wait and go together. Commits may share a transaction when
none writes a key that another writes or compares, so that the result is the same as that of some order of
separate transactions.

If a shared transaction fails, what it read tells whose conditions did not hold: those get their refusal,
the others go again. If its outcome is unknown, it is sent again as it is. That is safe because each commit
compares the heads that it rewrites: it can be applied once only, and if its heads have moved, they tell
by their commit id whether it was this commit that moved them.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from functools import partial

import structlog

from pwm.api.v1.store_pb2 import Head, Receipt, Record
from pwm.controlplane.store import errors
from pwm.controlplane.store.commits import COMMIT_LIMIT_BYTES, COMMIT_LIMIT_OPERATIONS
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.kv import KV, Compare, Delete, KeyValue, Put, Read, Target
from pwm.controlplane.store.prepared import Prepared, verdict

APPEND_TIMEOUT_S = 2.7
"""After this long a person is told that the store does not answer: three seconds, with the way there and back."""

ATTEMPT_TIMEOUT_S = 1.2
"""One attempt: a killed member never answers, and another attempt is safe."""

PAUSE_S = 0.05
IN_FLIGHT = 2
"""Transactions on their way at once: while etcd writes one, the next one is made here."""

ASK_AT_ONCE = 4
"""Groups up to this size carry along the reads that explain a failure. In a larger one they would cost every
transaction a tenth of its size; there a failed one is sent once more, asking."""

log = structlog.get_logger(__name__)


class GroupCommit:
    """Owns the transactions on their way. `submit` is the only way in; `close` waits for all of them."""

    def __init__(self, kv: KV, *, keys: Keys) -> None:
        self._kv = kv
        self._keys = keys
        self._waiting: deque[Prepared] = deque()
        self._on_their_way: set[asyncio.Task[None]] = set()
        # Keys that transactions on their way write: who writes one of them too waits, so that commits
        # to the same stream are judged in the order of asking.
        self._busy: set[bytes] = set()
        self._departure_planned = False
        self._closed = False

    async def submit(self, prepared: Prepared) -> int:
        """Waits for the outcome, until the commit's deadline: the revision, or a StoreError."""
        if self._closed:
            raise errors.Unavailable("the event store is closed")
        self._waiting.append(prepared)
        if not self._departure_planned and len(self._on_their_way) < IN_FLIGHT:
            # At the end of this turn of the loop, so that what is submitted together goes together.
            self._departure_planned = True
            asyncio.get_running_loop().call_soon(self._depart)
        return await prepared.answer

    async def close(self) -> None:
        """Refuses what still waits and lets what is on its way arrive."""
        self._closed = True
        for prepared in self._waiting:
            _fail(prepared, errors.Unavailable("the event store is closed"))
        self._waiting.clear()
        while self._on_their_way:
            await asyncio.wait(self._on_their_way)

    def _depart(self) -> None:
        self._departure_planned = False
        while self._waiting and len(self._on_their_way) < IN_FLIGHT:
            group = self._take_group()
            if not group:
                return
            task = asyncio.get_running_loop().create_task(self._commit(group))
            self._on_their_way.add(task)
            task.add_done_callback(partial(self._arrive, group))

    def _arrive(self, group: list[Prepared], task: asyncio.Task[None]) -> None:
        self._on_their_way.discard(task)
        for prepared in group:
            self._busy -= prepared.written
        if not task.cancelled():
            task.result()  # every outcome went to the commits: an exception here is a mistake, so let it be heard
        self._depart()

    def _take_group(self) -> list[Prepared]:
        """The longest-waiting commit and all others that fit beside it, in their order.

        As many as fit: a transaction costs etcd about a millisecond before its first operation, so that two of
        half the size are slower than one, even side by side.
        """
        group: list[Prepared] = []
        room = _Room()
        left: deque[Prepared] = deque()
        while self._waiting:
            prepared = self._waiting.popleft()
            if prepared.answer.done():  # its caller has given up
                continue
            if self._busy.isdisjoint(prepared.written) and room.takes(prepared):
                group.append(prepared)
            else:
                left.append(prepared)
                if room.full:
                    break
        left.extend(self._waiting)
        self._waiting = left
        for prepared in group:
            self._busy |= prepared.written
        return group

    async def _commit(self, group: list[Prepared]) -> None:
        try:
            await self._commit_group(group)
        except asyncio.CancelledError:
            for prepared in group:
                _fail(prepared, errors.Ambiguous("the event store was stopped while writing"))
            raise
        except Exception as error:
            # A mistake in this program: the callers must not wait for ever.
            for prepared in group:
                _fail(prepared, error)

    async def _commit_group(self, group: list[Prepared], *, unknown: bool = False) -> None:
        """`unknown`: an earlier attempt may have been applied."""
        loop = asyncio.get_running_loop()
        asking = unknown or len(group) <= ASK_AT_ONCE
        while group:
            left_s = min(prepared.deadline for prepared in group) - loop.time()
            try:
                group = await self._attempt(group, left_s, unknown=unknown, asking=asking)
                asking = True
                continue
            except (errors.Ambiguous, errors.Unavailable) as error:
                unknown = unknown or isinstance(error, errors.Ambiguous)
                trouble: errors.KVError = error
            except errors.KVError as error:
                await self._alone(group, error, unknown=unknown)
                return
            group = _still_patient(group, errors.Ambiguous(str(trouble)) if unknown else trouble)
            await asyncio.sleep(PAUSE_S)

    async def _attempt(self, group: list[Prepared], left_s: float, *, unknown: bool, asking: bool) -> list[Prepared]:
        """One transaction, `asking` whose conditions failed if it fails. Returns those who have to try again."""
        compares, operations = _merge(group)
        reads = _reads(group, values=unknown) if asking else []
        result = await self._kv.txn(compares, operations, reads, timeout_s=min(ATTEMPT_TIMEOUT_S, max(left_s, 0.1)))
        if result.succeeded:
            for prepared in group:
                _succeed(prepared, result.revision)
            return []
        if not asking:
            return group
        found = {kv.key: kv for page in result.reads for kv in page.kvs}
        again = []
        for prepared in group:
            refusal = verdict(prepared, found, keys=self._keys)
            if refusal is None:
                again.append(prepared)
                continue
            revision = await self._applied_at(prepared, found) if unknown else 0
            if revision:
                _succeed(prepared, revision)
            else:
                _fail(prepared, refusal)
        if len(again) == len(group):
            raise errors.Unavailable("a transaction failed although all of its conditions hold")
        return again

    async def _alone(self, group: Sequence[Prepared], error: errors.KVError, *, unknown: bool) -> None:
        """An error that is some commit's own fault (a lost lease, a size) must not hit those beside it."""
        if len(group) == 1:
            _fail(group[0], errors.Ambiguous(str(error)) if unknown else error)
            return
        for prepared in group:
            await self._commit_group([prepared], unknown=unknown)

    async def _applied_at(self, prepared: Prepared, found: dict[bytes, KeyValue]) -> int:
        """The revision at which this commit was applied by an earlier attempt, 0 if it surely was not.

        The heads have moved, so the commit cannot be applied any more: what is found now is final.
        """
        commit = prepared.commit
        commit_id = commit.id.encode()
        if commit.receipt is not None:
            kv = found.get(self._keys.receipt(commit.receipt.principal, commit.receipt.key))
            if kv is not None:
                return kv.mod_revision if Receipt.FromString(kv.value).commit_id == commit_id else 0
        write = commit.writes[0]
        key = self._keys.head(write.stream)
        kv = found.get(key)
        if kv is None:
            return 0
        if Head.FromString(kv.value).commit_id == commit_id:
            return kv.mod_revision
        # Someone wrote after us, or instead of us: the head as it was after the first event in question tells.
        record = await self._kv.range(self._keys.event(write.stream, write.version_before + 1))
        if not record.kvs:
            raise errors.Ambiguous(f"the event that would tell about commit {commit.id} is not there any more")
        written_at = record.kvs[0].mod_revision
        try:
            then = await self._kv.range(key, revision=written_at)
        except errors.Compacted:
            same = Record.FromString(record.kvs[0].value).event == write.events[0]
            log.warning("told by the event alone whether a commit was applied", commit=commit.id, applied=same)
            return written_at if same else 0
        return written_at if then.kvs and Head.FromString(then.kvs[0].value).commit_id == commit_id else 0


class _Room:
    """How much more one transaction can take, and which keys are spoken for."""

    def __init__(self) -> None:
        self.full = False
        self._operations = 0
        self._conditions = 0
        self._size = 0
        self._written: set[bytes] = set()
        self._relied_on: set[bytes] = set()

    def takes(self, prepared: Prepared) -> bool:
        """Reserves room for the commit, or says no."""
        operations = self._operations + len(prepared.operations)
        conditions = self._conditions + len(prepared.compares) + len(prepared.guards)
        size = self._size + prepared.size_bytes
        if operations > COMMIT_LIMIT_OPERATIONS or conditions > COMMIT_LIMIT_OPERATIONS or size > COMMIT_LIMIT_BYTES:
            self.full = True
            return False
        if not self._written.isdisjoint(prepared.written) or not self._relied_on.isdisjoint(prepared.written):
            return False
        for guard in prepared.guards:
            if guard.key in self._written:
                return False
            # Commits of one leader share its fence, so it is counted once.
            conditions -= guard.key in self._relied_on
            self._relied_on.add(guard.key)
        self._operations, self._conditions, self._size = operations, conditions, size
        self._written |= prepared.written
        return True


def _merge(group: Sequence[Prepared]) -> tuple[list[Compare], list[Put | Delete]]:
    """One transaction for all, with the operations in the order of asking."""
    compares: list[Compare] = []
    operations: list[Put | Delete] = []
    guards: dict[tuple[bytes, Target, int], Compare] = {}
    position = 0
    for prepared in group:
        prepared.settle_positions(position)
        position += len(prepared.records)
        compares += prepared.compares
        operations += prepared.operations
        for guard in prepared.guards:
            guards[guard.key, guard.target, guard.revision] = guard
    compares += guards.values()
    return compares, operations


def _reads(group: Sequence[Prepared], *, values: bool) -> list[Read]:
    """What tells whose conditions failed; with `values` also who wrote the heads."""
    reads: list[Read] = []
    guards: dict[bytes, Read] = {}
    for prepared in group:
        informative = prepared.informative
        reads += [Read(c.key, keys_only=not values and c.key not in informative) for c in prepared.compares]
        guards.update((guard.key, Read(guard.key, keys_only=True)) for guard in prepared.guards)
    reads += guards.values()
    return reads


def _still_patient(group: Sequence[Prepared], trouble: errors.KVError) -> list[Prepared]:
    """Those who can wait for another attempt; the others are told why there was none."""
    last_start = asyncio.get_running_loop().time() + PAUSE_S
    for prepared in group:
        if prepared.deadline <= last_start:
            _fail(prepared, trouble)
    return [prepared for prepared in group if prepared.deadline > last_start]


def _succeed(prepared: Prepared, revision: int) -> None:
    if not prepared.answer.done():
        prepared.answer.set_result(revision)


def _fail(prepared: Prepared, error: Exception) -> None:
    if not prepared.answer.done():
        prepared.answer.set_exception(error)
