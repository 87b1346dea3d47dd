"""etcd as the key-value store: an asyncio client over stubs generated from the part of its API we use.

Written here because no maintained client library keeps the three promises the event store needs: a write's
outcome is applied, surely not applied, or ambiguous, and never guessed; a watch that resumes loses
nothing (`etcd_watch`); and a member that is frozen, restarted or cut off is left at once
(`etcd_channels`). Reads are repeated on another member within their time; writes only when the first
attempt was certainly not applied.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Self, TypeVar

import grpc
import grpc.aio
import structlog

from pwm.api.etcd import rpc_pb2 as pb
from pwm.controlplane.store import errors
from pwm.controlplane.store.etcd_channels import Dial, Endpoint, Endpoints, in_words, translate
from pwm.controlplane.store.etcd_versions import judge_version
from pwm.controlplane.store.etcd_watch import key_value, watch
from pwm.controlplane.store.kv import (
    PAGE_KEYS,
    Compare,
    Delete,
    KeyValue,
    LeaseGrant,
    Member,
    Page,
    Put,
    Read,
    Status,
    Target,
    TxnResult,
    WatchBatch,
    prefix_end,
)

CALL_TIMEOUT_S = 3.0
"""Without a quorum etcd takes seven seconds to say so; a person waits three."""

ATTEMPT_TIMEOUT_S = 1.0
"""One attempt of a read, so that one frozen member cannot use up the whole time."""

PAGE_BYTES = 8 * 1024 * 1024
"""What a page of a walk should weigh: a fraction of the message limit, as keys further on may weigh more."""

PAGE_GROWTH = 8

RETRY_PAUSE_S = 0.05
MAINTENANCE_TIMEOUT_S = 120.0
"""Defragmenting and physical compaction block for as long as the disk needs."""

# A member whose leader is gone refuses at once instead of letting the call wait.
_METADATA = (("hasleader", "true"),)

log = structlog.get_logger(__name__)
T = TypeVar("T")
Method = Callable[[Endpoint, float], Awaitable[T]]


class EtcdKV:
    """The `KV` protocol on etcd. Use it within one event loop; `close` it when done."""

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        credentials: grpc.ChannelCredentials | None = None,
        dial: Dial | None = None,
        quota_of: Callable[[str], Awaitable[int]] | None = None,
    ) -> None:
        """`dial` opens the channels, for the simulator; else they are gRPC's own. `quota_of` asks the member at an
        address for its quota, where it does not tell it with its status.
        """
        self._endpoints = Endpoints(addresses, credentials=credentials, dial=dial)
        self._quota_of = quota_of
        # What was said of each member's version, so that it is said once.
        self._said: dict[str, str] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._endpoints.close()

    async def check_versions(self) -> None:
        """Refuses members of versions known to lose data. Raises VersionRefused, or Unavailable if none answers."""
        status = await self.status()
        if all(member.trouble for member in status.members):
            raise errors.Unavailable(status.members[0].trouble)
        for member in status.members:
            if member.refused:
                raise errors.VersionRefused(member.refused)

    @property
    def interruptions(self) -> int:
        return self._endpoints.interruptions

    # ---- keys

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
        request = pb.RangeRequest(
            key=key,
            range_end=end,
            limit=limit,
            revision=revision,
            keys_only=keys_only,
            min_mod_revision=min_mod_revision,
        )
        return _page(await self._read(lambda e, timeout: e.kv.Range(request, timeout=timeout, metadata=_METADATA)))

    async def pages(
        self, prefix: bytes, *, revision: int = 0, keys_only: bool = False, page_keys: int = 0
    ) -> AsyncGenerator[Page, None]:
        end = prefix_end(prefix)
        page = await self.range(prefix, end, limit=page_keys or PAGE_KEYS, revision=revision, keys_only=keys_only)
        revision = revision or page.revision
        while page.more:
            start, limit = page.kvs[-1].key + b"\0", page_keys or _next_limit(page)
            # etcd reads the next page while the caller works on this one.
            ahead = asyncio.create_task(
                self._page_of_a_walk(start, end, limit=limit, revision=revision, keys_only=keys_only)
            )
            try:
                page.revision = revision
                yield page
                page = await ahead
            finally:
                ahead.cancel()
                await asyncio.gather(ahead, return_exceptions=True)
        page.revision = revision
        yield page

    async def _page_of_a_walk(self, key: bytes, end: bytes, *, limit: int, revision: int, keys_only: bool) -> Page:
        """At most `limit` keys, or if they weigh too much together, as many as surely fit."""
        try:
            return await self.range(key, end, limit=limit, revision=revision, keys_only=keys_only)
        except errors.RequestTooLarge:
            if limit <= PAGE_KEYS:
                raise
            return await self.range(key, end, limit=PAGE_KEYS, revision=revision, keys_only=keys_only)

    async def put(self, key: bytes, value: bytes, *, lease: int = 0) -> int:
        request = pb.PutRequest(key=key, value=value, lease=lease)
        answer = await self._write(lambda e, timeout: e.kv.Put(request, timeout=timeout, metadata=_METADATA))
        return answer.header.revision

    async def delete(self, key: bytes, end: bytes = b"") -> int:
        request = pb.DeleteRangeRequest(key=key, range_end=end)
        answer = await self._write(lambda e, timeout: e.kv.DeleteRange(request, timeout=timeout, metadata=_METADATA))
        return answer.deleted

    async def txn(
        self,
        compares: Sequence[Compare],
        then: Sequence[Put | Delete],
        otherwise: Sequence[Read] = (),
        *,
        timeout_s: float | None = None,
    ) -> TxnResult:
        request = txn_request(compares, then, otherwise)
        answer = await self._write(
            lambda e, timeout: e.kv.Txn(request, timeout=timeout, metadata=_METADATA), timeout_s=timeout_s
        )
        reads = [] if answer.succeeded else [_page(r.response_range) for r in answer.responses]
        return TxnResult(answer.succeeded, answer.header.revision, reads, answer.header.cluster_id)

    def watch(
        self, key: bytes, end: bytes = b"", *, start_revision: int, deletes: bool = True
    ) -> AsyncGenerator[WatchBatch, None]:
        return watch(self._endpoints, key, end, start_revision=start_revision, deletes=deletes)

    # ---- leases

    async def grant_lease(self, ttl_s: int) -> LeaseGrant:
        # Safe to repeat: a lease that nobody knows of ends by itself.
        request = pb.LeaseGrantRequest(TTL=ttl_s)
        answer = await self._read(lambda e, timeout: e.lease.LeaseGrant(request, timeout=timeout, metadata=_METADATA))
        if answer.error:
            raise errors.KVError(answer.error)
        return LeaseGrant(answer.ID, answer.TTL)

    async def keep_alive(self, lease: int) -> int:
        """One exchange on a stream of its own: a stream kept open would hang on a frozen member."""

        async def exchange(endpoint: Endpoint, timeout: float) -> int:
            call = endpoint.lease.LeaseKeepAlive(timeout=timeout, metadata=_METADATA)
            try:
                await call.write(pb.LeaseKeepAliveRequest(ID=lease))
                answer = await call.read()
            except asyncio.InvalidStateError as error:  # gRPC's way to say that the call had ended before the write
                raise errors.Unavailable("the keep-alive stream ended before it was used") from error
            finally:
                call.cancel()
            if not isinstance(answer, pb.LeaseKeepAliveResponse):
                raise errors.Unavailable("the keep-alive stream ended without an answer")
            return answer.TTL

        ttl_s = await self._read(exchange)
        if ttl_s <= 0:
            raise errors.LeaseLost(f"lease {lease:x} has ended")
        return ttl_s

    async def revoke_lease(self, lease: int) -> None:
        request = pb.LeaseRevokeRequest(ID=lease)
        try:
            await self._read(lambda e, timeout: e.lease.LeaseRevoke(request, timeout=timeout, metadata=_METADATA))
        except errors.LeaseLost:
            return

    # ---- care of the store

    async def compact(self, revision: int) -> None:
        request = pb.CompactionRequest(revision=revision, physical=True)
        try:
            await self._read(
                lambda e, timeout: e.kv.Compact(request, timeout=timeout, metadata=_METADATA),
                timeout_s=MAINTENANCE_TIMEOUT_S,
                attempt_s=MAINTENANCE_TIMEOUT_S,
            )
        except errors.Compacted:
            return

    async def free_space(self) -> None:
        for endpoint in self._endpoints.all:  # one after the other: a member does not serve while it defragments
            try:
                await endpoint.maintenance.Defragment(pb.DefragmentRequest(), timeout=MAINTENANCE_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                log.warning("etcd member not defragmented", member=endpoint.address, error=error.details())
        ask = pb.AlarmRequest(action=pb.AlarmRequest.GET, alarm=pb.NOSPACE)
        raised = await self._read(lambda e, timeout: e.maintenance.Alarm(ask, timeout=timeout))
        for alarm in raised.alarms:  # each is lifted by the member it names: there is no "all"
            await self._lift(
                pb.AlarmRequest(action=pb.AlarmRequest.DEACTIVATE, alarm=pb.NOSPACE, memberID=alarm.memberID)
            )

    async def _lift(self, request: pb.AlarmRequest) -> None:
        await self._read(lambda e, timeout: e.maintenance.Alarm(request, timeout=timeout))

    async def status(self) -> Status:
        """Asks every member, at most `ATTEMPT_TIMEOUT_S` each and all at once; silent ones carry their trouble."""
        answers = await asyncio.gather(*(self._member_status(e) for e in self._endpoints.all))
        alarms: tuple[str, ...] = ()
        if any(not member.trouble for member, _ in answers):
            ask = pb.AlarmRequest(action=pb.AlarmRequest.GET)
            try:
                raised = await self._read(lambda e, timeout: e.maintenance.Alarm(ask, timeout=timeout))
                alarms = tuple(sorted({pb.AlarmType.Name(a.alarm) for a in raised.alarms}))
            except errors.Unavailable:
                alarms = ("NO_QUORUM",)
            except errors.VersionRefused:
                log.debug("no member may be asked for alarms")
        return Status(max(revision for _, revision in answers), tuple(member for member, _ in answers), alarms)

    async def _member_status(self, endpoint: Endpoint) -> tuple[Member, int]:
        try:
            answer = await endpoint.maintenance.Status(pb.StatusRequest(), timeout=ATTEMPT_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            return Member(endpoint.address, endpoint.address, trouble=in_words(error)), 0
        name = f"{answer.header.member_id:x}"
        quota_bytes = answer.dbSizeQuota
        if not quota_bytes and self._quota_of is not None:
            quota_bytes = await self._quota_of(endpoint.address)
        refused, advice = judge_version(answer.version, member=name)
        self._heed(endpoint, refused, advice)
        member = Member(
            name=name,
            address=endpoint.address,
            version=answer.version,
            leader=answer.leader == answer.header.member_id,
            db_bytes=answer.dbSize,
            db_in_use_bytes=answer.dbSizeInUse,
            quota_bytes=quota_bytes,
            refused=refused,
            advice=advice,
        )
        return member, answer.header.revision

    def _heed(self, endpoint: Endpoint, refused: str, advice: str) -> None:
        """A member may be exchanged for one of another version at any time."""
        if refused != endpoint.refused:
            self._endpoints.refuse(endpoint, refused)
        if self._said.get(endpoint.address, "") != (refused or advice):
            self._said[endpoint.address] = refused or advice
            if refused:
                log.error("etcd member is not used", why=refused)
            elif advice:
                log.warning("etcd member should be updated", why=advice)

    # ---- calls

    async def _read(
        self, method: Method[T], *, timeout_s: float = CALL_TIMEOUT_S, attempt_s: float = ATTEMPT_TIMEOUT_S
    ) -> T:
        """Repeats on another member until the time is up: for whatever may be done twice."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            endpoint = self._endpoints.pick()
            try:
                return await method(endpoint, min(attempt_s, deadline - loop.time()))
            except (grpc.aio.AioRpcError, errors.Unavailable) as error:
                own = error if isinstance(error, errors.Unavailable) else translate(error, write=False)
                if not isinstance(own, errors.Unavailable):
                    raise own from error
                self._endpoints.shun(endpoint)
                if loop.time() + RETRY_PAUSE_S >= deadline:
                    raise own from error
                await asyncio.sleep(RETRY_PAUSE_S)

    async def _write(self, method: Method[T], *, timeout_s: float | None = None) -> T:
        """Repeats only what was surely not applied; else the caller learns that it is ambiguous."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (CALL_TIMEOUT_S if timeout_s is None else timeout_s)
        while True:
            endpoint = self._endpoints.pick()
            try:
                return await method(endpoint, deadline - loop.time())
            except grpc.aio.AioRpcError as error:
                own = translate(error, write=True)
                if isinstance(own, errors.Unavailable | errors.Ambiguous):
                    self._endpoints.shun(endpoint)
                if not isinstance(own, errors.Unavailable) or loop.time() + RETRY_PAUSE_S >= deadline:
                    raise own from error
                await asyncio.sleep(RETRY_PAUSE_S)


# ---- between our values and etcd's messages


def _next_limit(page: Page) -> int:
    """How many keys to ask for next. etcd 3.4 walks its index to the end of the range for every page, so a few
    large pages are many times cheaper than many small ones; what they weigh is taken from the last one."""
    weight = sum(len(kv.key) + len(kv.value) for kv in page.kvs) // len(page.kvs) + 1
    return max(PAGE_KEYS, min(len(page.kvs) * PAGE_GROWTH, PAGE_BYTES // weight))


def _page(answer: pb.RangeResponse) -> Page:
    kvs: list[KeyValue] = [key_value(kv) for kv in answer.kvs]
    return Page(answer.header.revision, kvs, answer.more, answer.header.cluster_id)


def txn_request(compares: Sequence[Compare], then: Sequence[Put | Delete], otherwise: Sequence[Read]) -> pb.TxnRequest:
    """Filled in place: making each part apart and copying it in takes four times as long."""
    request = pb.TxnRequest()
    for compare in compares:
        condition = request.compare.add()
        condition.key = compare.key
        if compare.target is Target.MOD:
            condition.target = pb.Compare.MOD
            condition.mod_revision = compare.revision
        else:
            condition.target = pb.Compare.CREATE
            condition.create_revision = compare.revision
    for operation in then:
        if isinstance(operation, Put):
            put = request.success.add().request_put
            put.key = operation.key
            put.value = operation.value
            if operation.lease:
                put.lease = operation.lease
        else:
            deletion = request.success.add().request_delete_range
            deletion.key = operation.key
            deletion.range_end = operation.end
    for read in otherwise:
        wanted = request.failure.add().request_range
        wanted.key = read.key
        if read.keys_only:
            wanted.keys_only = True
    return request
