"""What can go wrong at the store's border, and whether trying again helps.

Two families. `KVError` is about the key-value store below: is it there, was the write applied. The
distinction that everything else rests on is between `Unavailable` (the write was surely not applied, so
the same write may be sent again) and `Ambiguous` (nobody knows: read back first). `AppendRefused` is the
event store's answer to a commit whose conditions did not hold: the store works, the decision is out of
date. `RebuildNeeded` tells a follower that it cannot go on from where it was.

`retry_helps` says whether the very same request may succeed later without anybody doing anything.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pwm.controlplane.store.commits import StreamId


class StoreError(Exception):
    """Anything the store reports. The text is one sentence that can be shown to an operator."""

    retry_helps = False


class KVError(StoreError):
    """The key-value store below did not do what it was asked."""


class Unavailable(KVError):
    """No member answered in time, and the request was certainly not applied."""

    retry_helps = True


class Ambiguous(KVError):
    """A write may or may not have been applied: read back before doing it again."""


class NoSpace(KVError):
    """The store's space quota is used up: reads and deletes work, writes and new leases do not."""


class RequestTooLarge(KVError):
    """The request is larger than the key-value store takes, or has too many operations."""


class BadRequest(KVError):
    """The key-value store calls the request itself wrong: a mistake in this program."""


class AccessRefused(KVError):
    """The key-value store does not accept who we are."""


class VersionRefused(KVError):
    """A member runs a version that loses acknowledged writes or watch events."""


class LeaseLost(KVError):
    """The lease has ended, and with it every key that was attached to it."""


class RevisionWentBack(KVError):
    """The store is younger than what was already read from it: it was restored from an old snapshot.

    Whatever was acknowledged since then is gone, so nothing may go on by itself: a person has to decide.
    """

    def __init__(self, *, seen: int, now: int) -> None:
        super().__init__(
            f"the store is at revision {now}, but revision {seen} was read before: it was restored from an old snapshot"
        )
        self.seen = seen
        self.now = now


class StoreInDoubt(KVError):
    """The store is not the one it was, or so it seems: nothing may be changed until a person has decided."""


class NotInDoubt(StoreError):
    """There is nothing for a person to decide."""


class RebuildNeeded(StoreError):
    """A follower cannot go on: page the heads again and follow from their revision."""


class Compacted(RebuildNeeded, KVError):
    """The revision asked for is no longer kept. `revision` is the oldest one that is, 0 when not told."""

    def __init__(self, revision: int = 0) -> None:
        super().__init__(f"history before revision {revision or 'now'} has been compacted")
        self.revision = revision


class LineageChanged(RebuildNeeded, KVError):
    """A restored store has been accepted as the truth: whatever was read before counts no more."""


class Missed(RebuildNeeded):
    """The heads prove that the watch did not deliver every event. The streams that were missed are named."""

    def __init__(self, streams: "tuple[StreamId, ...]", *, revision: int) -> None:
        named = ", ".join(f"{s.kind}/{s.uid}" for s in streams[:3])
        super().__init__(f"{len(streams)} streams changed up to revision {revision} without being delivered: {named}")
        self.streams = streams
        self.revision = revision


class AppendRefused(StoreError):
    """A commit was not appended because one of its conditions did not hold."""


class Conflict(AppendRefused):
    """Streams moved on since the decision: load them again and decide again."""

    def __init__(self, streams: "tuple[StreamId, ...]") -> None:
        super().__init__("changed by another: " + ", ".join(f"{s.kind}/{s.uid}" for s in streams))
        self.streams = streams


class FenceLost(AppendRefused):
    """The writer is no longer the leader it thinks it is: it must stop leading at once."""

    def __init__(self, key: bytes) -> None:
        super().__init__(f"no longer leading: {key.decode(errors='replace')}")
        self.key = key


class GuardFailed(AppendRefused):
    """A key that the commit relied on, other than a leader's, is not what it was."""

    def __init__(self, key: bytes) -> None:
        super().__init__(f"no longer as it was: {key.decode(errors='replace')}")
        self.key = key


class NameTaken(AppendRefused):
    """A name (`scope/group/name`) belongs to another stream, `holder` (`kind/uid`)."""

    def __init__(self, name: str, holder: str) -> None:
        super().__init__(f"the name {name} is taken by {holder}")
        self.name = name
        self.holder = holder


class AlreadyAnswered(AppendRefused):
    """This idempotency key was used before: `answer` is what was answered then, at `revision`."""

    def __init__(self, answer: bytes, *, revision: int) -> None:
        super().__init__("this request was answered before")
        self.answer = answer
        self.revision = revision


class TooLarge(AppendRefused):
    """An event, a state or the whole commit is over its limit. Sizes are in bytes unless `what` says otherwise."""

    def __init__(self, what: str, *, size: int, limit: int) -> None:
        super().__init__(f"{what} is too large: {size:,} of at most {limit:,}")
        self.what = what
        self.size = size
        self.limit = limit
