"""What one client of a watch has been shown, and what to tell it next.

A watch shows states, not events: when several changes come at once, each resource they concern is sent once, as it is
now, and one that looks as before is not sent. What was sent last is remembered to know that.

A client that comes back, perhaps from another replica, names the revision up to which it was shown everything.
It gets what has changed since, as one batch, if this replica's view still knows those changes; else everything, as
at the start. Which of it the client has shown already it knows by the digests: they are the same on all replicas.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from pwm.api.v1 import events_pb2 as ev
from pwm.api.v1 import services_pb2 as api
from pwm.controlplane.clock import Clock
from pwm.controlplane.queries import RESOURCE_FIELDS, Queries, Shown
from pwm.controlplane.services.tables import Table
from pwm.controlplane.view import View, ViewChange

TEXT_FORMATS = (api.TABLE, api.WIDE, api.NAME)
# Two states of one resource look the same once in 10^19 changes.
_DIGEST_BYTES = 8
_SEPARATORS = re.compile(r"[.-]")
# What there is, as the caller may see it; None: it is not in the list, or not for him.
Filter = Callable[[Shown], Any | None]


class Watched:
    """`wanted`: see Filter."""

    def __init__(
        self, kind: str, request: api.WatchRequest, *, wanted: Filter, view: View, queries: Queries, clock: Clock
    ) -> None:
        self._kind = kind
        self._wanted = wanted
        self._view = view
        self._queries = queries
        self._clock = clock
        self._identify = request.identify
        self._names = frozenset(request.names)
        text = request.format in TEXT_FORMATS
        self._table = Table(kind, request.format, request.all_groups) if text else None
        # By uid, as it was sent last.
        self._sent: dict[str, Any] = {}

    def concerns(self, change: ViewChange) -> bool:
        """Whether a change can make a difference here; quick, and yes in doubt."""
        if not self._names or self._kind != "Workload" or change.kind not in ("Workload", "Container"):
            return True
        state: Any = change.after or change.before
        return (state.metadata.name if change.kind == "Workload" else state.spec.workload) in self._names

    def everything(self) -> list[api.WatchResponse]:
        """What is there, what is gone of what was sent before, and that this is all."""
        items = self._visible()
        gone = [uid for uid in self._sent if uid not in items]
        answers = [self._difference(uid, items.get(uid)) for uid in [*gone, *items]]
        return [*filter(None, answers), self._message(api.WatchResponse.SYNCED)]

    def since(self, revision: int) -> list[api.WatchResponse]:
        """What has changed since then; everything, if that is not known here: of nodes also their contact changes."""
        if self._kind == "Node" or not self._view.recent_after <= revision <= self._view.revision:
            return self.everything()
        self._sent = self._visible()
        answers = []
        for uid, (item, change) in self._affected(c for c in self._view.recent if c.revision > revision).items():
            if item is not None:
                answers.append(self._show(api.WatchResponse.MODIFIED, uid, item))
            elif change.kind == self._kind and change.before is not None:
                gone = self._wanted(Shown.of(change.before))
                if gone is not None:
                    answers.append(self._show(api.WatchResponse.DELETED, uid, gone))
        synced = self._message(api.WatchResponse.SYNCED)
        synced.resumed = True
        return [*answers, synced]

    def changed(self, changes: Sequence[ViewChange]) -> list[api.WatchResponse]:
        affected = self._affected(changes)
        answers = [*filter(None, (self._difference(uid, item) for uid, (item, _) in affected.items()))]
        if answers:
            answers[-1].revision = self._view.revision
        return answers

    def beat(self) -> api.WatchResponse:
        return self._message(api.WatchResponse.BEAT)

    def _visible(self) -> dict[str, Any]:
        """What is in the list, in its order."""
        seen = map(self._wanted, self._queries.all(self._kind))
        items = {_uid(item): item for item in seen if item is not None}
        if self._kind != "Event":
            items = dict(sorted(items.items(), key=lambda pair: in_order(pair[1])))
        if self._table is not None:
            self._table.measure(items.values(), now_ms=self._clock.now_ms())
        return items

    def _affected(self, changes: Iterable[ViewChange]) -> dict[str, tuple[Any | None, ViewChange]]:
        """By uid: the resource as it is now, if it is in the list, and the last change to it."""
        affected: dict[str, tuple[Any | None, ViewChange]] = {}
        for change in changes:
            for uid, item in self._queries.affected(self._kind, change):
                affected[uid] = (self._wanted(item) if item is not None else None, change)
        return affected

    def _difference(self, uid: str, item: Any | None) -> api.WatchResponse | None:
        before = self._sent.get(uid)
        if item is None:
            if before is None:
                return None
            del self._sent[uid]
            return self._show(api.WatchResponse.DELETED, uid, before)
        if before is item or before == item:
            return None
        self._sent[uid] = item
        return self._show(api.WatchResponse.ADDED if before is None else api.WatchResponse.MODIFIED, uid, item)

    def _show(self, type_: api.WatchResponse.Type.ValueType, uid: str, item: Any) -> api.WatchResponse:
        response = api.WatchResponse(type=type_)
        if self._table is None:
            getattr(response.resource, RESOURCE_FIELDS[self._kind]).CopyFrom(item)
        else:
            gone = type_ == api.WatchResponse.DELETED
            response.text = self._table.row(item, now_ms=self._clock.now_ms(), gone=gone)
        if self._identify:
            state = item.SerializeToString(deterministic=True)
            response.uid = uid
            response.digest = int.from_bytes(blake2b(state, digest_size=_DIGEST_BYTES).digest(), "big")
        return response

    def _message(self, type_: api.WatchResponse.Type.ValueType) -> api.WatchResponse:
        return api.WatchResponse(type=type_, revision=self._view.revision)


def in_order(item: Any) -> tuple[str, tuple[str, ...]]:
    """Sort key of lists: by group, then by name."""
    return item.metadata.group, _natural(item.metadata.name)


def _uid(item: Any) -> str:
    return f"{item.uid}/{item.version}" if isinstance(item, ev.Event) else item.metadata.uid or item.metadata.name


@lru_cache(maxsize=1 << 17)
def _natural(name: str) -> tuple[str, ...]:
    """Sort key that puts a.2 before a.10: numbers padded, so that they compare as text."""
    return tuple(part.zfill(10) if part.isdigit() else part for part in _SEPARATORS.split(name))
