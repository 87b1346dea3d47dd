"""What goes into the event store and what comes out, as plain values.

A *stream* is the history of one resource; its *head* is the state after its last event. A *commit* is
everything that one decision changes, applied whole or not at all. Payloads are bytes here: the store knows
no resource. The store itself is in `eventstore`, the limits it holds commits to are here with their reasons.
"""

from dataclasses import dataclass
from typing import NamedTuple

EVENT_LIMIT_BYTES = 64 * 1024
"""An event carries at most one document of a manifest (48 KiB) and who, when and why."""

STATE_LIMIT_BYTES = 64 * 1024
"""A state is rewritten with each event, so it may not be larger than one."""

COMMIT_LIMIT_BYTES = 1024 * 1024
"""etcd takes requests of 1.5 MiB; the rest is room for keys, compares and framing."""

COMMIT_LIMIT_OPERATIONS = 127
"""etcd takes 128 compares, 128 writes and 128 reads in a transaction; one of them is `lineage`'s."""


class StreamId(NamedTuple):
    """A tuple, because a start makes one for each stream there is."""

    kind: str
    uid: str


@dataclass(frozen=True, slots=True)
class StreamWrite:
    """The next events of one stream and the state after them.

    The decision was made on version `version_before`, whose head had the mod revision `revision_before`
    (both 0: the stream must not exist yet). `removed_at_ms` ends the stream. `sealed` is kept beside it, in place of
    what was kept there before; it goes with the stream.
    """

    stream: StreamId
    version_before: int
    revision_before: int
    events: tuple[bytes, ...]
    state: bytes
    removed_at_ms: int = 0
    sealed: bytes | None = None


@dataclass(frozen=True, slots=True)
class Guard:
    """A key that must be as it was. Exactly one of the revisions is given; 0 means that it must not exist."""

    key: bytes
    create_revision: int | None = None
    mod_revision: int | None = None

    def __post_init__(self) -> None:
        assert (self.create_revision is None) != (self.mod_revision is None), "a guard has one revision"


@dataclass(frozen=True, slots=True)
class Turn:
    """A key that must be as it was and is rewritten: of two commits that were decided on it as it was, one holds.

    `mod_revision` 0 means that it must not exist yet. What is in it does not matter.
    """

    key: bytes
    mod_revision: int


@dataclass(frozen=True, slots=True)
class ReceiptWrite:
    """The answer to keep for this principal's idempotency key."""

    principal: str
    key: str
    answer: bytes


@dataclass(frozen=True, slots=True)
class Commit:
    """One decision. `id` is unique and tells after an ambiguous write whether it was applied.

    Names are `scope/group/name`; a claimed one maps to its holder, `kind/uid`. A name that is released and
    claimed by the same commit changes hands.
    """

    id: str
    writes: tuple[StreamWrite, ...]
    claim_names: tuple[tuple[str, str], ...] = ()
    release_names: tuple[str, ...] = ()
    guards: tuple[Guard, ...] = ()
    turns: tuple[Turn, ...] = ()
    receipt: ReceiptWrite | None = None
    # Kept with each of its events, and no part of them: from where they were wished for.
    origin: bytes = b""


@dataclass(slots=True)
class StoredHead:
    """A stream's last version and the state after it. `revision` is what the next write must name as before.

    `removed_at_ms` is 0 while the stream lives; `first_version` is above 1 once retention dropped events.
    """

    stream: StreamId
    version: int
    revision: int
    state: bytes
    removed_at_ms: int
    first_version: int


@dataclass(slots=True)
class HeadPage:
    """Some heads as of `revision`, the same for every page of one walk."""

    revision: int
    heads: list[StoredHead]


@dataclass(slots=True)
class StoredEvent:
    """One event; (revision, position) is its place in the cluster-wide order."""

    stream: StreamId
    version: int
    revision: int
    position: int
    event: bytes
    origin: bytes = b""


@dataclass(slots=True)
class Changes:
    """Whole revisions in cluster order. Every event up to `revision` has now been delivered; may be empty."""

    revision: int
    events: list[StoredEvent]


@dataclass(frozen=True, slots=True)
class StoredReceipt:
    answer: bytes
    revision: int
