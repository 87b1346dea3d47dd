"""`pwm events --audit`: what was written down of who did what, newest last; and what is written down from then on.

Who may `get` the `Cluster` sees everything; everybody else what they did themselves, and what was tried with their
tokens. Entries lie in the store in the order of time, so the newest are read from the end, in windows that grow until
there are enough. Who follows has them as of a revision, and then each batch as it is written, by whichever controller:
in that order, which may differ from that of their times by a second. Asked again with the revision that it has come to,
any controller goes on from there.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import TypeAlias

import grpc

from pwm.api.v1 import audit_pb2 as api
from pwm.api.v1.audit_pb2 import AuditEntry
from pwm.controlplane.audit import AuditLog
from pwm.controlplane.auth import Authorizer, Principal
from pwm.controlplane.clock import Clock
from pwm.controlplane.context import CallContext
from pwm.controlplane.core.auditing import StoredBatch
from pwm.controlplane.errors import ApiError, invalid, unavailable
from pwm.controlplane.services.audit_text import line
from pwm.controlplane.store import errors as store_errors

DEFAULT_LIMIT = 200
# Some 2 MB of JSON; for more there are windows of time.
MOST_ENTRIES = 10_000
FIRST_WINDOW_MS = 3_600_000
# Other controllers' clocks may be ahead.
AHEAD_MS = 86_400_000
# A stream in which nothing happens says so as often; etcd gives a sign every few seconds while it is there.
BEAT_S, SILENCE_LIMIT_S = 15.0, 20.0

Request: TypeAlias = api.ListAuditRequest | api.StreamAuditRequest


class AuditReader:
    def __init__(self, *, log: AuditLog, authorizer: Authorizer, clock: Clock) -> None:
        self._log = log
        self._authorizer = authorizer
        self._clock = clock

    async def read(self, request: api.ListAuditRequest, context: CallContext) -> api.ListAuditResponse:
        _check_limit(request)
        try:
            found = await self._newest(request, context.principal)
        except store_errors.KVError as error:
            raise unavailable(f"the audit cannot be read now: {error}") from error
        return api.ListAuditResponse(entries=found, text=_text(found))

    async def stream(
        self, request: api.StreamAuditRequest, context: CallContext
    ) -> AsyncGenerator[api.StreamAuditResponse, None]:
        _check_limit(request)
        try:
            now, after = await self._log.revision(), request.after_revision
            if after > now:
                raise _gone(f"there is no revision {after}: the store was restored from an older snapshot")
            if not after:
                after = now
                found = await self._newest(request, context.principal, revision=now)
                yield api.StreamAuditResponse(entries=found, text=_text(found), revision=now)
            if request.follow:
                async with aclosing(self._following(request, context.principal, after)) as batches:
                    async for batch in batches:
                        yield batch
        except store_errors.Compacted as error:
            raise _gone(f"what was written down after revision {after} cannot be told from older entries") from error
        except store_errors.KVError as error:
            raise unavailable(f"the audit cannot be read now: {error}") from error

    async def _following(
        self, request: api.StreamAuditRequest, caller: Principal, after: int
    ) -> AsyncGenerator[api.StreamAuditResponse, None]:
        said_at = self._clock.monotonic_s()
        async with aclosing(self._log.follow(after)) as log:
            while True:
                try:
                    async with asyncio.timeout(SILENCE_LIMIT_S):
                        revision, batches = await anext(log)
                except TimeoutError as error:
                    raise unavailable("this replica cannot reach etcd, so there is nothing to follow") from error
                everything = self._authorizer.may(caller, verb="get", kind="Cluster")
                found = [e for e in _entries(batches) if _wanted(e, request, caller, all_of_them=everything)]
                if found or self._clock.monotonic_s() - said_at >= BEAT_S:
                    said_at = self._clock.monotonic_s()
                    yield api.StreamAuditResponse(entries=found, text=_text(found), revision=revision)

    async def _newest(self, request: Request, caller: Principal, *, revision: int = 0) -> list[AuditEntry]:
        limit = request.limit or DEFAULT_LIMIT
        all_of_them = self._authorizer.may(caller, verb="get", kind="Cluster")
        oldest_ms = await self._log.oldest_ms()
        if oldest_ms is None:
            return []
        now_ms = self._clock.now_ms()
        since_ms = now_ms - request.since.ToMilliseconds() if request.HasField("since") else 0
        upto_ms, window_ms = now_ms + AHEAD_MS, FIRST_WINDOW_MS
        from_ms = now_ms - window_ms
        found: list[AuditEntry] = []
        while True:
            batches = await self._log.between(max(from_ms, since_ms), upto_ms, revision=revision)
            found[:0] = [e for e in _entries(batches) if _wanted(e, request, caller, all_of_them=all_of_them)]
            if len(found) >= limit or from_ms <= max(oldest_ms, since_ms):
                break
            window_ms *= 2
            from_ms, upto_ms = from_ms - window_ms, from_ms
        # What was counted together is older than the batch that it is in.
        found.sort(key=lambda entry: entry.time.ToNanoseconds())
        return [entry for entry in found if entry.time.ToMilliseconds() >= since_ms][-limit:]


def _entries(batches: Iterable[StoredBatch]) -> Iterable[AuditEntry]:
    """As they may be shown: without what is only for checking them."""
    for stored in batches:
        batch = stored.content
        for entry in batch.entries if batch is not None else ():
            entry.replica = batch.replica if batch is not None else ""
            entry.digest = b""
            if entry.kind == "Token":
                entry.uid = ""  # the hash of it
            yield entry


def _text(entries: Iterable[AuditEntry]) -> str:
    return "".join(line(entry) + "\n" for entry in entries)


def _check_limit(request: Request) -> None:
    if not 0 <= request.limit <= MOST_ENTRIES:
        raise invalid(f"limit is a number from 1 to {MOST_ENTRIES}", next_step="ask for parts, with since")


def _gone(what: str) -> ApiError:
    return ApiError(grpc.StatusCode.OUT_OF_RANGE, what, next_step="ask without after_revision for the newest there are")


def _wanted(entry: AuditEntry, request: Request, caller: Principal, *, all_of_them: bool) -> bool:
    own = caller.user is not None and entry.user == caller.name
    # Another one may have had the name.
    own = own and entry.user_uid in ("", caller.user.metadata.uid if caller.user is not None else "")
    return (
        (all_of_them or own)
        and request.user in ("", entry.user)
        and request.address in ("", entry.address)
        and (not request.actions or entry.action in request.actions)
    )
