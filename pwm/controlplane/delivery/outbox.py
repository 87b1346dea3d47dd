"""What is kept of notices beside the log: how far it has been read for them, what has been told, what is on its way.

    notices/read            up to which revision events have been turned into notices (pwm.v1.NoticesRead)
    notices/told/{uid}      what has been told of a workload's run (pwm.v1.NoticesTold)
    notices/out/{id}        one notice on its way to one address (pwm.v1.PendingNotice)

All of it is written by the leader of the cluster's chores, with its fence. A notice comes into the outbox in the
transaction that notes that it has been decided on, and leaves it when it was delivered: a leader that is killed in
between leaves it to the next one, which may deliver it once more but never forgets it.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from hashlib import sha256

from pwm.api.v1.store_pb2 import NoticesRead, NoticesTold, PendingNotice
from pwm.controlplane.store import errors as store_errors
from pwm.controlplane.store.commits import Guard
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.kv import KV, Delete, Put
from pwm.controlplane.store.prepared import guard_compare

# etcd takes 128 operations in a transaction, the fence's compare among them.
WRITES_AT_ONCE = 100

Write = Put | Delete


class Outbox:
    """For one term of leading the chores. Every method may raise KVError, those that write FenceLost."""

    def __init__(self, kv: KV, *, keys: Keys, fence: Guard) -> None:
        self._kv = kv
        self._keys = keys
        self._fence = fence

    # ---- reading

    async def read_upto(self) -> int | None:
        """None: nothing has ever been read."""
        page = await self._kv.range(self._keys.notices_read)
        return NoticesRead.FromString(page.kvs[0].value).revision if page.kvs else None

    async def told(self) -> dict[str, NoticesTold]:
        """By the uid of the workload."""
        start = self._keys.notices_told("")
        return {key[len(start) :].decode(): NoticesTold.FromString(value) async for key, value in self._all(start)}

    async def pending(self) -> list[PendingNotice]:
        """In the order in which they came."""
        found = [PendingNotice.FromString(value) async for _, value in self._all(self._keys.notices_out(""))]
        return sorted(found, key=lambda letter: (letter.accepted.ToNanoseconds(), letter.time.ToNanoseconds()))

    async def _all(self, prefix: bytes) -> AsyncIterator[tuple[bytes, bytes]]:
        async with aclosing(self._kv.pages(prefix)) as pages:
            async for page in pages:
                for kv in page.kvs:
                    yield kv.key, kv.value

    # ---- what to write

    def reached(self, revision: int) -> Put:
        return Put(self._keys.notices_read, NoticesRead(revision=revision).SerializeToString())

    def remember(self, uid: str, told: NoticesTold) -> Put:
        return Put(self._keys.notices_told(uid), told.SerializeToString())

    def forget(self, uid: str) -> Delete:
        return Delete(self._keys.notices_told(uid))

    def put(self, letter: PendingNotice) -> Put:
        return Put(self._keys.notices_out(letter_id(letter)), letter.SerializeToString())

    def drop(self, letter: PendingNotice) -> Delete:
        return Delete(self._keys.notices_out(letter_id(letter)))

    async def write(self, writes: Sequence[Write]) -> None:
        """In this order, as few transactions as can be."""
        for first in range(0, len(writes), WRITES_AT_ONCE):
            part = list(writes[first : first + WRITES_AT_ONCE])
            result = await self._kv.txn([guard_compare(self._fence)], part)
            if not result.succeeded:
                raise store_errors.FenceLost(self._fence.key)


def letter_id(letter: PendingNotice) -> str:
    """Names one notice on its way to one address, without what is secret in that."""
    return f"{letter.id}-{sha256(letter.address.encode()).hexdigest()[:12]}"


def without_repetition(letters: Iterable[PendingNotice]) -> list[PendingNotice]:
    return list({letter_id(letter): letter for letter in letters}.values())
