"""A watch on etcd that loses nothing, whatever happens to members and connections.

What is delivered is whole revisions in order, each once. After any break the watch starts again at the last
delivered revision + 1, on another member if need be. Traps of etcd that are handled here:

- the header of the `created` answer carries the store's revision, which says nothing of what was delivered;
- a large revision arrives in fragments, which must be joined before its revision counts as delivered; they are
  made in quadratic time, so one of very many events (`retention.py` makes none) looks like silence for long;
- a member restored from a snapshot may send old revisions again (etcd issue 15271), which are dropped;
- the answer to a progress request may overtake events (etcd issue 15220, fixed in 3.4.25 and 3.5.8), so it
  proves only that the connection lives. etcd's own periodic marks are in order and do count.

A compacted watch is first created, then cancelled with a compact_revision and no reason: `Compacted`.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import structlog

from pwm.api.etcd import kv_pb2
from pwm.api.etcd import rpc_pb2 as pb
from pwm.controlplane.store import errors
from pwm.controlplane.store.etcd_channels import Endpoints, translate
from pwm.controlplane.store.kv import KeyValue, WatchBatch, WatchEvent

if TYPE_CHECKING:
    WatchCall = grpc.aio.StreamStreamCall[pb.WatchRequest, pb.WatchResponse]

QUIET_S = 1.5
"""After this much silence the member is asked for a sign of life."""

SILENT_S, LONGEST_SILENT_S = 3.5, 28.0
"""A member that gave none for so long is left for another: users wait for what the watch brings. When the next ones
give none either, each is waited for twice as long: what is slow may be the store as a whole, or this very process,
and who begins anew too soon never gets anywhere."""

FIRST_BACK_OFF_S = 0.05
LAST_BACK_OFF_S = 2.0

_METADATA = (("hasleader", "true"),)  # a member cut off from the others must not pretend that nothing happens
_UNSOLICITED = -1  # the watch id of an answer to a progress request

log = structlog.get_logger(__name__)


class _Broken(Exception):
    """The stream is of no more use; the watch resumes on a new one."""


async def watch(
    endpoints: Endpoints, key: bytes, end: bytes, *, start_revision: int, deletes: bool
) -> AsyncGenerator[WatchBatch, None]:
    """Delivers every change from `start_revision` on. Ends only by an error that resuming cannot cure."""
    assert start_revision > 0, "a watch starts at a known revision, else a break before its first event loses some"
    position = _Position(start_revision)
    back_off_s = FIRST_BACK_OFF_S
    while True:
        endpoint = endpoints.pick()
        call = endpoint.watch.Watch(metadata=_METADATA)
        try:
            await _create(call, _request(key, end, position.next_revision, deletes=deletes))
            async for batch in _batches(call, position, endpoint.left):
                back_off_s = FIRST_BACK_OFF_S
                yield batch
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError, _Broken) as error:
            _refuse_to_resume(error)
            endpoints.shun(endpoint)
            if isinstance(error, TimeoutError):
                position.patience_s = min(position.patience_s * 2, LONGEST_SILENT_S)
            said = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
            log.info("watch resumes", member=endpoint.address, at=position.next_revision, error=said or "silent")
        finally:
            call.cancel()
        await asyncio.sleep(back_off_s)
        back_off_s = min(back_off_s * 2, LAST_BACK_OFF_S)


class _Position:
    """Where the watch stands: everything before `next_revision` has been delivered."""

    def __init__(self, next_revision: int) -> None:
        self.next_revision = next_revision
        # How long the next member may be silent.
        self.patience_s = SILENT_S
        self._fragments: list[kv_pb2.Event] = []

    def restart(self) -> None:
        self._fragments = []

    def accept(self, answer: pb.WatchResponse) -> WatchBatch | None:
        """What the answer adds, or None when it adds nothing that can be delivered yet."""
        if answer.fragment:
            self._fragments += answer.events
            return None
        wire = [*self._fragments, *answer.events] if self._fragments else answer.events
        self._fragments, self.patience_s = [], SILENT_S
        if wire:
            return self._deliver(wire)
        if answer.watch_id != _UNSOLICITED:
            self.next_revision = max(self.next_revision, answer.header.revision + 1)
        return WatchBatch(self.next_revision - 1, [])

    def _deliver(self, wire: Iterable[kv_pb2.Event]) -> WatchBatch | None:
        since = self.next_revision
        events = [_watch_event(e) for e in wire if e.kv.mod_revision >= since]
        if not events:
            return None
        self.next_revision = events[-1].kv.mod_revision + 1
        return WatchBatch(self.next_revision - 1, events)


async def _create(call: "WatchCall", request: pb.WatchRequest) -> None:
    async with asyncio.timeout(QUIET_S):
        await call.write(request)


async def _batches(
    call: "WatchCall", position: _Position, member_left: asyncio.Event
) -> AsyncGenerator[WatchBatch, None]:
    """What one stream delivers until it breaks."""
    position.restart()
    leaving = asyncio.ensure_future(member_left.wait())
    try:
        while True:
            answer = await _next_answer(call, leaving, silent_s=position.patience_s)
            if answer.compact_revision:
                raise errors.Compacted(answer.compact_revision)
            if answer.canceled:
                raise _Broken(answer.cancel_reason)
            if answer.created:
                continue
            batch = position.accept(answer)
            if batch is not None:
                yield batch
    finally:
        leaving.cancel()


async def _next_answer(call: "WatchCall", leaving: "asyncio.Future[Any]", *, silent_s: float) -> pb.WatchResponse:
    """Waits for the next message, asking for a sign of life when it stays quiet.

    `leaving` is done when other calls to the member have failed: a frozen one would let us wait for nothing.

    The read itself is never cancelled while the stream is good: gRPC ends a call whose read is cancelled.
    """
    reading = asyncio.ensure_future(call.read())
    try:
        either: set[asyncio.Future[Any]] = {reading, leaving}
        done, _ = await asyncio.wait(either, timeout=QUIET_S, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            async with asyncio.timeout(silent_s - QUIET_S):
                await call.write(pb.WatchRequest(progress_request=pb.WatchProgressRequest()))
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            raise _Broken("other calls to the member failed")
        answer = reading.result()
    finally:
        reading.cancel()
    if not isinstance(answer, pb.WatchResponse):
        raise _Broken("the member ended the stream")
    return answer


def _request(key: bytes, end: bytes, start_revision: int, *, deletes: bool) -> pb.WatchRequest:
    create = pb.WatchCreateRequest(
        key=key, range_end=end, start_revision=start_revision, progress_notify=True, fragment=True
    )
    if not deletes:
        create.filters.append(pb.WatchCreateRequest.NODELETE)
    return pb.WatchRequest(create_request=create)


def _refuse_to_resume(error: Exception) -> None:
    """Raises what another member would say as well."""
    if isinstance(error, grpc.aio.AioRpcError):
        own = translate(error, write=False)
        if not isinstance(own, errors.Unavailable):
            raise own from error


def key_value(kv: kv_pb2.KeyValue) -> KeyValue:
    return KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


def _watch_event(event: kv_pb2.Event) -> WatchEvent:
    return WatchEvent(key_value(event.kv), event.type == kv_pb2.Event.DELETE)
