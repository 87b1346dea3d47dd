"""The key-value store that the event store stands on, as a protocol: what PWM needs of etcd, no more.

Keys live in one ordered space. Every write makes a new *revision* of the whole store, a transaction makes
one for all its writes, and old revisions can be read until they are compacted away. On these three
properties rest optimistic concurrency (compare a key's revision), reading many pages as of one moment, and
following without a gap (page at revision R, watch from R+1).

Two implementations pass the same contract suite (tests/contract): `etcd.EtcdKV` and `memory.MemoryKV`.
The event store (`eventstore`), leases, election and registry are written against this module only.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

PAGE_KEYS = 500
"""Keys of a first page: at 64 KiB a value it stays within the client's 64 MiB message limit."""


@dataclass(slots=True)
class KeyValue:
    """One key as of some revision. `lease` is 0 when the key lives until it is deleted."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int


@dataclass(slots=True)
class Page:
    """The answer to a read. `revision` is the store's when it was answered; `more` if a limit cut it short.

    `cluster` identifies the store, as far as it does that by itself: it stays the same for as long as it lives.
    """

    revision: int
    kvs: list[KeyValue]
    more: bool = False
    cluster: int = 0


class Target(Enum):
    CREATE = "create"
    MOD = "mod"


@dataclass(slots=True)
class Compare:
    """Holds when the key's create or mod revision is this one; 0 means that the key does not exist."""

    key: bytes
    target: Target
    revision: int


@dataclass(slots=True)
class Put:
    key: bytes
    value: bytes
    lease: int = 0


@dataclass(slots=True)
class Delete:
    """Deletes one key, or with `end` every key in [key, end)."""

    key: bytes
    end: bytes = b""


@dataclass(slots=True)
class Read:
    """A read of one key inside a transaction that failed its compares."""

    key: bytes
    keys_only: bool = False


@dataclass(slots=True)
class TxnResult:
    """`reads` answer the `otherwise` part, in its order, when the transaction did not succeed."""

    succeeded: bool
    revision: int
    reads: list[Page]
    cluster: int = 0


@dataclass(slots=True)
class WatchEvent:
    """A put (`kv` complete) or a deletion (`kv` has key and mod_revision only)."""

    kv: KeyValue
    deleted: bool


@dataclass(slots=True)
class WatchBatch:
    """Whole revisions in order. Everything in the range up to `revision` has now been delivered.

    Without events it is a mark: the watch is alive and nothing new happened.
    """

    revision: int
    events: list[WatchEvent]


@dataclass(frozen=True, slots=True)
class LeaseGrant:
    id: int
    ttl_s: int


@dataclass(frozen=True, slots=True)
class Member:
    """One server of the key-value store. `trouble` is a sentence when it could not be asked.

    `quota_bytes` is how large its database may grow, 0 when it does not say; `refused` a sentence when it runs
    a version that is not used, `advice` one when its version has known faults.
    """

    name: str
    address: str
    version: str = ""
    leader: bool = False
    db_bytes: int = 0
    db_in_use_bytes: int = 0
    quota_bytes: int = 0
    trouble: str = ""
    refused: str = ""
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Status:
    """The store's health. `alarms` are etcd's own words: NOSPACE, CORRUPT."""

    revision: int
    members: tuple[Member, ...]
    alarms: tuple[str, ...]


class KV(Protocol):
    """Every method may raise `KVError`s; writes tell `Unavailable` from `Ambiguous`."""

    @property
    def interruptions(self) -> int:
        """Grows whenever the store failed to answer: as long as it stays the same, nobody has exchanged the store."""
        ...

    async def range(
        self,
        key: bytes,
        end: bytes = b"",
        *,
        limit: int = 0,
        revision: int = 0,
        keys_only: bool = False,
        min_mod_revision: int = 0,
    ) -> Page:
        """One key, or all of [key, end), as of `revision` (0: now, linearizable).

        `min_mod_revision` leaves out keys not written since then. Raises Compacted.
        """
        ...

    def pages(
        self, prefix: bytes, *, revision: int = 0, keys_only: bool = False, page_keys: int = 0
    ) -> AsyncGenerator[Page, None]:
        """Every key that starts with `prefix`, all pages as of one revision. Raises Compacted.

        A page has `page_keys` keys, or with 0 as many as are good for the store.
        """
        ...

    async def put(self, key: bytes, value: bytes, *, lease: int = 0) -> int:
        """Writes one key and returns the revision it made. Raises LeaseLost."""
        ...

    async def delete(self, key: bytes, end: bytes = b"") -> int:
        """Deletes one key or a range and returns how many there were."""
        ...

    async def txn(
        self,
        compares: Sequence[Compare],
        then: Sequence[Put | Delete],
        otherwise: Sequence[Read] = (),
        *,
        timeout_s: float | None = None,
    ) -> TxnResult:
        """If all compares hold, does `then` as one revision, else answers `otherwise`. Each key is written once."""
        ...

    def watch(
        self, key: bytes, end: bytes = b"", *, start_revision: int, deletes: bool = True
    ) -> AsyncGenerator[WatchBatch, None]:
        """Every change of the range from `start_revision` on, each once and in order, over failures of members.

        In quiet times a mark comes at least every few seconds while the store is alive. Raises Compacted.
        """
        ...

    async def grant_lease(self, ttl_s: int) -> LeaseGrant: ...

    async def keep_alive(self, lease: int) -> int:
        """Renews a lease and returns its new time to live in seconds. Raises LeaseLost."""
        ...

    async def revoke_lease(self, lease: int) -> None:
        """Ends a lease and deletes its keys. No error when it is gone already."""
        ...

    async def compact(self, revision: int) -> None:
        """Forgets what was overwritten or deleted before `revision`. No error when that was done already."""
        ...

    async def free_space(self) -> None:
        """Gives compacted space back to the disk and lifts the out-of-space alarm."""
        ...

    async def status(self) -> Status: ...

    async def close(self) -> None: ...


def prefix_end(prefix: bytes) -> bytes:
    """The end of the range of all keys that start with `prefix`."""
    for i in range(len(prefix) - 1, -1, -1):
        if prefix[i] < 0xFF:
            return prefix[:i] + bytes([prefix[i] + 1])
    return b"\0"  # etcd's word for "no end"
