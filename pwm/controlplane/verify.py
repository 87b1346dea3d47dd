"""Proof that the state is what the log says: folds every stream and compares (I5, I16).

Each stream's events are read from the store, checked for holes and folded; the result must equal the head
byte for byte, and the view where the view is as new. Streams whose first events retention dropped cannot
be folded from the start: they are counted apart, and their remaining versions are checked for holes. So are
streams with events of a newer version of PWM, which this one cannot fold.

The audit's chains are followed as well, and what they say of each change is compared with the event that is there: who
rewrites an event together with its head, so that they fit, is found by that.
"""

from pwm.api.v1.events_pb2 import Event
from pwm.api.v1.services_pb2 import VerifyResponse
from pwm.controlplane.audit import AuditLog
from pwm.controlplane.core.auditing import ChainCheck, event_digest
from pwm.controlplane.core.evolve import STATE_TYPES, fold_all, understood
from pwm.controlplane.store.commits import StoredEvent, StoredHead
from pwm.controlplane.store.eventstore import EventStore
from pwm.controlplane.view import View

# Differences told; one is already one too many.
MAX_DIFFERENCES = 100


# A change is in the audit a second later.
AUDITED_AFTER_MS = 30_000


async def verify(store: EventStore, view: View, audit_log: AuditLog) -> VerifyResponse:
    """Raises StoreError."""
    answer = VerifyResponse()
    audit = ChainCheck(kept_since_ms=await audit_log.kept_since_ms())
    newest_ms = 0
    async for batch in audit_log.batches():
        newest_ms = batch.time_ms
        _tell(answer, *audit.follow(batch))
    answer.audited = audit.entries
    witness = _Witness(audit, settled_ms=newest_ms - AUDITED_AFTER_MS)
    async for page in store.heads():
        for head in page.heads:
            answer.streams += 1
            # Read up to the head's own version: a stream may have moved on since the page was read.
            events = [e async for e in store.read_stream(head.stream) if e.version <= head.version]
            answer.events += len(events)
            answer.unaudited += witness.unaudited(events)
            difference = witness.difference(events) or compare(head, events, view)
            if head.first_version > 1:
                answer.partial += 1
            elif is_newer(head, events):
                answer.newer += 1
            if difference:
                _tell(answer, f"{head.stream.kind}/{head.stream.uid}: {difference}")
    return answer


def _tell(answer: VerifyResponse, *differences: str) -> None:
    room = max(0, MAX_DIFFERENCES - len(answer.differences))
    answer.differences.extend(differences[:room])


class _Witness:
    """What the audit says of streams' events."""

    def __init__(self, audit: ChainCheck, *, settled_ms: int) -> None:
        """`settled_ms`: what was changed until then is in the audit, unless its controller was killed."""
        self._audit = audit
        self._settled_ms = settled_ms

    def difference(self, events: list[StoredEvent]) -> str:
        for stored in events:
            digest = self._digest(stored)
            if digest is not None and digest != event_digest(stored.event, stored.origin):
                return f"event {stored.version} is not the one that the audit has: it was changed after it was written"
        return ""

    def unaudited(self, events: list[StoredEvent]) -> int:
        """Changes at somebody's wish of which the audit does not know."""
        return sum(
            bool(stored.origin) and self._digest(stored) is None and self._is_settled(stored) for stored in events
        )

    def _digest(self, stored: StoredEvent) -> bytes | None:
        return self._audit.events.get((stored.stream.kind, stored.stream.uid, stored.version))

    def _is_settled(self, stored: StoredEvent) -> bool:
        at_ms = Event.FromString(stored.event).time.ToMilliseconds()
        return self._audit.kept_since_ms <= at_ms <= self._settled_ms


def is_newer(head: StoredHead, events: list[StoredEvent]) -> bool:
    """Whether there is something in the stream that only a newer version of PWM can fold."""
    if head.stream.kind not in STATE_TYPES:
        return True
    return any(not understood(Event.FromString(stored.event), len(stored.event)) for stored in events)


def compare(head: StoredHead, events: list[StoredEvent], view: View | None) -> str:
    """What is wrong with one stream; empty when nothing is."""
    versions = [e.version for e in events]
    expected = list(range(max(head.first_version, 1), head.version + 1))
    if versions != expected:
        missing = sorted(set(expected) - set(versions))
        return (
            f"the log has versions {versions[:3]}…, missing {missing[:5]}" if missing else "versions are out of order"
        )
    if head.first_version > 1 or is_newer(head, events):
        return ""
    log = [Event.FromString(stored.event) for stored in events]
    for event, version in zip(log, expected, strict=True):
        if (event.kind, event.uid, event.version) != (head.stream.kind, head.stream.uid, version):
            return f"event {version} says that it is {event.kind}/{event.uid} version {event.version}"
    state = fold_all(log)
    # Parsed here: another version may have put fields that this one does not know in another place.
    known = STATE_TYPES[head.stream.kind].FromString(head.state)
    if state is None or state.SerializeToString(deterministic=True) != known.SerializeToString(deterministic=True):
        return f"the fold of {len(events)} events is not the head of version {head.version}"
    if view is None or head.removed_at_ms:
        return ""
    held = view.entry(head.stream.kind, head.stream.uid)
    if held is None or held.revision != head.revision:
        return ""  # the view is newer (or older) than this page: nothing to compare
    return "" if held.state == state else "the view holds another state than the log"
