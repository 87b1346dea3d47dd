"""The audit's sums: what is written down of what happens again and again, and whether what is written is still whole.

*Tally*. A change is written down each time: it cost a write already. What strangers and refused scripts do costs them
nothing, and must not cost the store a write each time: a million guesses would fill it. So of the same thing only the
first is written down at once; what follows is counted, and a minute later written as one entry, "4,812 from .. to ..".
An address that tries many different things is written down in detail a few times a minute; the rest is counted
together.

*Chain*. A controller writes batches of entries, each with the digest of the one before. Whoever takes one away or
changes one has to write all later ones anew. That shows tampering by who has access to some keys, or a backup; who
may write anything in etcd can also write a new chain, which only a copy elsewhere would show.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from google.protobuf.message import DecodeError

from pwm.api.v1.audit_pb2 import AuditBatch, AuditEntry, SealedBatch

# What is counted is written down so often.
WINDOW_MS = 60_000
# Sources (a user at an address) that are told apart at a time, and things that one of them does.
MOST_SOURCES = 200
MOST_THINGS = 20
# Of a SHA-256: enough to find every change of an event, and small enough for each of them.
EVENT_DIGEST_BYTES = 16


# ---- tally


class _Source(NamedTuple):
    user: str
    address: str


@dataclass(slots=True)
class _Count:
    """Of one thing: what was not written down yet."""

    entry: AuditEntry
    opened_ms: int
    more: int = 0


class Tally:
    """`note` says what to write down now, `due` what has been counted."""

    def __init__(self) -> None:
        self._sources: dict[_Source, dict[tuple[object, ...], _Count]] = {}

    def note(self, entry: AuditEntry, *, source: str) -> AuditEntry | None:
        """`source` is the address, or what counts as one. Returns the entry if it is to be written down now.

        It belongs to the tally from here on, and has time and address.
        """
        at_ms = entry.time.ToMilliseconds()
        key = _Source(entry.user, source)
        if key not in self._sources and len(self._sources) >= MOST_SOURCES:
            key, entry = _Source("", ""), _unnamed(entry, keep_source=False)
        things = self._sources.setdefault(key, {})
        thing = _identity(entry)
        if thing not in things and len(things) >= MOST_THINGS:
            entry = _unnamed(entry, keep_source=True)
            thing = _identity(entry)
        count = things.get(thing)
        if count is None:
            things[thing] = _Count(entry, at_ms)
            return entry
        if not count.more:
            count.entry = AuditEntry()
            count.entry.CopyFrom(entry)
        count.more += 1
        count.entry.count = count.more
        count.entry.until.FromMilliseconds(at_ms)
        return None

    def due(self, now_ms: int, *, all_of_it: bool = False) -> list[AuditEntry]:
        """What has been counted for a minute, or everything that has been counted."""
        found: list[AuditEntry] = []
        for source, things in list(self._sources.items()):
            for thing, count in list(things.items()):
                if not all_of_it and 0 <= now_ms - count.opened_ms < WINDOW_MS:
                    continue
                if count.more:
                    # It goes on, it seems: the next ones are counted from the start.
                    found.append(count.entry)
                    count.more, count.opened_ms = 0, now_ms
                else:
                    del things[thing]
            if not things:
                del self._sources[source]
        return found


def _identity(entry: AuditEntry) -> tuple[object, ...]:
    """The entry without its times, for those that are counted."""
    return entry.action, entry.user_uid, entry.token, entry.kind, entry.group, entry.name, entry.what


def _unnamed(entry: AuditEntry, *, keep_source: bool) -> AuditEntry:
    """One of many: only what kind of thing was done."""
    other = AuditEntry(time=entry.time, action=entry.action)
    if keep_source:
        other.user, other.user_uid, other.address = entry.user, entry.user_uid, entry.address
    return other


# ---- chain


def event_digest(event: bytes, origin: bytes) -> bytes:
    """Of an event as it is stored, with from where it came."""
    return hashlib.sha256(len(event).to_bytes(4, "big") + event + origin).digest()[:EVENT_DIGEST_BYTES]


def seal(batch: AuditBatch) -> SealedBatch:
    written = batch.SerializeToString(deterministic=True)
    return SealedBatch(batch=written, digest=hashlib.sha256(written).digest())


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """A batch as it was found: where it lay, and what was there."""

    time_ms: int
    chain: str
    number: int
    value: bytes

    @property
    def content(self) -> AuditBatch | None:
        """None: it is not what was written there."""
        try:
            sealed = SealedBatch.FromString(self.value)
            batch = AuditBatch.FromString(sealed.batch)
        except DecodeError:
            return None
        place = (batch.time.ToMilliseconds(), batch.chain, batch.number)
        whole = hashlib.sha256(sealed.batch).digest() == sealed.digest
        return batch if whole and place == (self.time_ms, self.chain, self.number) else None


@dataclass(slots=True)
class _Link:
    """The last batch of a chain that was looked at."""

    number: int
    digest: bytes


class ChainCheck:
    """Follows all chains at once, batch by batch in the order of their times."""

    def __init__(self, *, kept_since_ms: int) -> None:
        """`kept_since_ms`: what is older may have been dropped."""
        self.kept_since_ms = kept_since_ms
        self._links: dict[str, _Link] = {}
        self.entries = 0
        # Digest of each audited event, by kind, uid and version.
        self.events: dict[tuple[str, str, int], bytes] = {}

    def follow(self, stored: StoredBatch) -> Iterator[str]:
        """What is wrong with it, or missing before it."""
        batch = stored.content
        link = self._links.get(stored.chain)
        where = f"audit {stored.chain}"
        if batch is None:
            yield f"{where}: batch {stored.number} has been changed"
            self._links[stored.chain] = _Link(stored.number, b"")
            return
        before = link.number if link is not None else 0
        if link is None and stored.number > 1 and batch.previous_time.ToMilliseconds() < self.kept_since_ms:
            pass  # what was before it has been dropped, as it should
        elif stored.number != before + 1:
            yield f"{where}: {_missing(before + 1, stored.number - 1)} before {_time(batch)}"
        elif batch.previous != (link.digest if link is not None else b"") and (link is None or link.digest):
            yield f"{where}: batch {before} or {stored.number} has been replaced, at {_time(batch)}"
        self._links[stored.chain] = _Link(stored.number, SealedBatch.FromString(stored.value).digest)
        self._take(batch.entries)

    def _take(self, entries: Sequence[AuditEntry]) -> None:
        self.entries += len(entries)
        for entry in entries:
            if entry.action == AuditEntry.CHANGE:
                self.events[entry.kind, entry.uid, entry.version] = entry.digest


def check_chains(batches: Iterable[StoredBatch], *, kept_since_ms: int = 0) -> list[str]:
    """What is wrong with all of them, in the order of their times."""
    check = ChainCheck(kept_since_ms=kept_since_ms)
    return [problem for stored in batches for problem in check.follow(stored)]


def _missing(first: int, last: int) -> str:
    if last < first:
        return f"batch {first} or one after it was written twice"
    return f"batch {first} is missing" if first == last else f"batches {first} to {last} are missing"


def _time(batch: AuditBatch) -> str:
    return batch.time.ToJsonString()
