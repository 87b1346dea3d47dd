"""A simulated etcd of three members, at the level of its gRPC interface.

One history is shared by all members, which is what raft gives to those who ask for linearizable reads; what
differs is who can be asked, when, and what becomes of a request on its way. A member serves while it can
reach the leader, the leader while it can reach a majority. When that ends an election takes a second or
two, requests wait, leases are lengthened by a whole term, members cut off refuse with "no leader" or say nothing
and watches on them fall behind. A write whose answer is lost may have been applied or not.

A watch is delivered by its member in its own time; it may be fragmented, compacted (first created, then cancelled)
or answered out of order (progress, as in etcd before 3.5.8).
"""

import random
from collections.abc import Callable
from typing import Any

import grpc

from pwm.api.etcd import kv_pb2
from pwm.api.etcd import rpc_pb2 as pb
from pwm.controlplane.store import errors
from pwm.controlplane.store.kv import Compare, Delete, KeyValue, Page, Put, Read, Target, WatchEvent
from pwm.controlplane.store.memory import LEAST_LEASE_S, MemoryKV, _check_request, _Lease, _within
from tests.sim.loop import Universe
from tests.sim.network import Host, Network, Process
from tests.sim.rpc import Code, Server, ServerCall

PORT = 2379
ELECTION_S = (1.0, 2.5)
# Without a leader for so long a member refuses those who asked for one (`hasleader`).
NO_LEADER_AFTER_S = 1.5
REQUEST_TIMEOUT_S = 7.0
DISK_S = 0.001
APPLY_S = 0.002
VERSION = "3.5.30"

_KV = "/etcdserverpb.KV/"
_EMPTY_HEADER = pb.ResponseHeader()

Commit = Callable[[int, list[WatchEvent], "Process | None"], None]


class _Store(MemoryKV):
    """The history, and the leases with the leader's time instead of an event loop's."""

    def __init__(self, cluster: "EtcdCluster") -> None:
        super().__init__()
        self._cluster = cluster

    def _grow(self, revision: int, events: list[WatchEvent]) -> None:
        self._revision = revision
        self._history.append(events)
        self._cluster.grown(revision, events)

    def _expire_at(self, lease: int, ttl_s: int) -> Any:
        return self._cluster.universe.later(ttl_s + self._cluster.rng.random() * 0.5, self._cluster.expire, lease)

    def granted(self, ttl_s: int) -> tuple[int, int]:
        self._last_lease += 1
        granted = max(ttl_s, LEAST_LEASE_S)
        self._leases[self._last_lease] = _Lease(granted, {}, self._expire_at(self._last_lease, granted))
        return self._last_lease, granted

    def renewed(self, lease: int) -> int:
        held = self._leases.get(lease)
        if held is None:
            return 0
        held.timer.cancel()
        held.timer = self._expire_at(lease, held.ttl_s)
        return held.ttl_s

    def compacted(self, revision: int) -> None:
        self._compacted = revision
        del self._history[: max(revision + 1 - self._history_start, 0)]
        self._history_start = max(self._history_start, revision + 1)
        for versions in self._versions.values():
            versions.forget_before(revision)
        self._keys = [key for key in self._keys if self._versions[key].values]
        self._versions = {key: self._versions[key] for key in self._keys}


class _Watcher:
    """One watch stream on one member."""

    def __init__(self, member: "Member", call: ServerCall, request: pb.WatchCreateRequest) -> None:
        self.member = member
        self.call = call
        self.key, self.end = request.key, request.range_end
        self.deletes = pb.WatchCreateRequest.NODELETE not in request.filters
        self.fragment = request.fragment
        self.next = request.start_revision
        self.due = False

    def concerns(self, events: list[WatchEvent]) -> bool:
        return any(_within(e.kv.key, self.key, self.end) for e in events)


class Member:
    """One server."""

    def __init__(self, cluster: "EtcdCluster", host: Host, number: int) -> None:
        self.cluster = cluster
        self.host = host
        self.number = number
        self.process: Process = None  # type: ignore[assignment]  # set by start
        self.watchers: dict[_Watcher, None] = {}
        self.pending: dict[Callable[[], None], bool] = {}
        self.leaderless_since_s: float | None = None
        self.slowness = 1.0
        self.watch_lag_s = 0.0
        self.defragmented = False

    @property
    def running(self) -> bool:
        return self.process.running

    def start(self) -> None:
        network = self.cluster.network
        self.process = Process(network, self.host, self.host.name)
        self.watchers.clear()
        self.pending.clear()
        server = Server(self.process)
        for path, handler in {
            _KV + "Range": self._range,
            _KV + "Put": self._put,
            _KV + "DeleteRange": self._delete,
            _KV + "Txn": self._txn,
            _KV + "Compact": self._compact,
            "/etcdserverpb.Lease/LeaseGrant": self._grant,
            "/etcdserverpb.Lease/LeaseRevoke": self._revoke,
        }.items():
            server.add_raw(path, self._when_led(handler))
        server.add_raw("/etcdserverpb.Lease/LeaseKeepAlive", self._keep_alive)
        server.add_raw("/etcdserverpb.Watch/Watch", self._watch)
        server.add_raw("/etcdserverpb.Maintenance/Status", self._status)
        server.add_raw("/etcdserverpb.Maintenance/Alarm", self._when_led(self._alarm))
        server.add_raw("/etcdserverpb.Maintenance/Defragment", self._defragment)
        self.process.listen(f"{self.host.name}:{PORT}", server)

    def header(self) -> pb.ResponseHeader:
        return pb.ResponseHeader(cluster_id=1, member_id=self.number + 1, revision=self.cluster.store._revision)

    def led(self) -> bool:
        """Whether it can have a request served now."""
        leader = self.cluster.leader
        if leader is None or not self.running:
            return False
        return leader is self or self.cluster.network.reachable(self.host, leader.host)

    def _when_led(self, handle: Callable[[ServerCall, bytes], None]) -> Callable[[ServerCall, bytes | None], None]:
        """As soon as it can be served, unless that takes too long or the client has gone."""
        cluster = self.cluster

        def serve(call: ServerCall, payload: bytes | None) -> None:
            assert payload is not None
            if self.led():
                if cluster.flaky and cluster.rng.random() < cluster.flaky:
                    self._misbehave(handle, call, payload)
                else:
                    handle(call, payload)
                return
            since_s = self.leaderless_since_s
            if since_s is not None and cluster.universe.now_s - since_s > NO_LEADER_AFTER_S:
                call.finish(Code.UNAVAILABLE, "etcdserver: no leader")
                return

            # It may be served although the client has given up: it was sent.
            def again() -> None:
                if call.open or cluster.rng.random() < 0.5:
                    handle(call, payload)

            def too_late() -> None:
                if self.pending.pop(again, False):
                    call.finish(Code.UNKNOWN, "etcdserver: request timed out")

            self.pending[again] = True
            cluster.universe.at(cluster.universe.now_s + REQUEST_TIMEOUT_S, self.process.loop, too_late)

        return serve

    def _misbehave(self, handle: Callable[[ServerCall, bytes], None], call: ServerCall, payload: bytes) -> None:
        """What becomes of a request in a bad moment: refused before it was proposed, lost, or done in secret."""
        luck = self.cluster.rng.randrange(5)
        if luck == 0:
            call.finish(Code.UNAVAILABLE, "etcdserver: no leader")
        elif luck == 1:
            call.finish(Code.UNAVAILABLE, "etcdserver: request timed out, possibly due to previous leader failure")
        elif luck == 2:
            call.finish(Code.UNKNOWN, "etcdserver: request timed out")
        elif luck == 3:
            handle(_Unheard(call), payload)  # type: ignore[arg-type]
            call.finish(Code.UNAVAILABLE, "etcdserver: request timed out, possibly due to connection lost")
        else:
            handle(_Unheard(call), payload)  # type: ignore[arg-type]

    def _answer(self, call: ServerCall, answer: Any, *, disk: bool = False) -> None:
        """After the time that raft and the disk take; a process that dies meanwhile does not answer."""
        cluster = self.cluster
        delay_s = (DISK_S if disk else 0.0002) * (0.5 + cluster.rng.random()) * self.slowness
        if disk and cluster.leader is not None:
            delay_s *= cluster.leader.slowness
        payload = answer.SerializeToString()
        cluster.universe.at(cluster.universe.now_s + delay_s, self.process.loop, call.send, payload)

    # ---- keys

    def _range(self, call: ServerCall, payload: bytes) -> None:
        request = pb.RangeRequest.FromString(payload)
        try:
            page = self.cluster.store._range(
                request.key, request.range_end, limit=request.limit, revision=request.revision,
                keys_only=request.keys_only, min_mod_revision=request.min_mod_revision,
            )  # fmt: skip
        except errors.KVError as error:
            _refuse(call, error)
            return
        self._answer(call, self._page(page))

    def _page(self, page: Page) -> pb.RangeResponse:
        return pb.RangeResponse(header=self.header(), kvs=[_wire(kv) for kv in page.kvs], more=page.more)

    def _put(self, call: ServerCall, payload: bytes) -> None:
        request = pb.PutRequest.FromString(payload)
        if self._apply(call, (), [Put(request.key, request.value, request.lease)], ()) is not None:
            self._answer(call, pb.PutResponse(header=self.header()), disk=True)

    def _delete(self, call: ServerCall, payload: bytes) -> None:
        request = pb.DeleteRangeRequest.FromString(payload)
        page = self.cluster.store._range(
            request.key, request.range_end, limit=0, revision=0, keys_only=True, min_mod_revision=0
        )
        if self._apply(call, (), [Delete(request.key, request.range_end)], ()) is not None:
            self._answer(call, pb.DeleteRangeResponse(header=self.header(), deleted=len(page.kvs)), disk=True)

    def _txn(self, call: ServerCall, payload: bytes) -> None:
        request = pb.TxnRequest.FromString(payload)
        compares = [_compare(c) for c in request.compare]
        reads = [Read(o.request_range.key, o.request_range.keys_only) for o in request.failure]
        result = self._apply(call, compares, [_operation(o) for o in request.success], reads)
        if result is not None:
            answer = pb.TxnResponse(header=self.header(), succeeded=result.succeeded)
            for page in result.reads:
                answer.responses.add().response_range.CopyFrom(self._page(page))
            self._answer(call, answer, disk=True)

    def _apply(self, call: ServerCall, compares: Any, then: Any, otherwise: Any) -> Any:
        cluster = self.cluster
        if cluster.full and any(isinstance(o, Put) for o in then):
            call.finish(Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")
            return None
        cluster.author = call.client
        try:
            _check_request(compares, then, otherwise)
            return cluster.store._txn(compares, then, otherwise)
        except errors.KVError as error:
            _refuse(call, error)
            return None
        finally:
            cluster.author = None

    def _compact(self, call: ServerCall, payload: bytes) -> None:
        request = pb.CompactionRequest.FromString(payload)
        store = self.cluster.store
        if request.revision > store._revision:
            call.finish(Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision")
        elif request.revision <= store._compacted:
            call.finish(Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted")
        else:
            self.cluster.compact(request.revision)
            self._answer(call, pb.CompactionResponse(header=self.header()), disk=True)

    # ---- leases

    def _grant(self, call: ServerCall, payload: bytes) -> None:
        if self.cluster.full:
            call.finish(Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")
            return
        lease, ttl_s = self.cluster.store.granted(pb.LeaseGrantRequest.FromString(payload).TTL)
        self._answer(call, pb.LeaseGrantResponse(header=self.header(), ID=lease, TTL=ttl_s), disk=True)

    def _revoke(self, call: ServerCall, payload: bytes) -> None:
        request = pb.LeaseRevokeRequest.FromString(payload)
        if request.ID not in self.cluster.store._leases:
            call.finish(Code.NOT_FOUND, "etcdserver: requested lease not found")
            return
        self.cluster.store._end_lease(request.ID)
        self._answer(call, pb.LeaseRevokeResponse(header=self.header()), disk=True)

    def _keep_alive(self, call: ServerCall, _: bytes | None) -> None:
        def renew(call: ServerCall, payload: bytes) -> None:
            request = pb.LeaseKeepAliveRequest.FromString(payload)
            ttl_s = self.cluster.store.renewed(request.ID)
            self._answer(call, pb.LeaseKeepAliveResponse(header=self.header(), ID=request.ID, TTL=ttl_s))

        serve = self._when_led(renew)
        call.on_message = lambda payload: serve(call, payload)

    # ---- watching

    def _watch(self, call: ServerCall, _: bytes | None) -> None:
        watcher: _Watcher | None = None

        def message(payload: bytes) -> None:
            nonlocal watcher
            request = pb.WatchRequest.FromString(payload)
            if request.WhichOneof("request_union") == "progress_request":
                if watcher is not None:
                    self._progress(watcher)
                return
            watcher = _Watcher(self, call, request.create_request)
            self.watchers[watcher] = None
            call.send(pb.WatchResponse(header=self.header(), created=True).SerializeToString())
            self.schedule(watcher)

        def gone() -> None:
            if watcher is not None:
                self.watchers.pop(watcher, None)

        call.on_message = message
        call.on_gone = gone

    def _progress(self, watcher: _Watcher) -> None:
        """The answer may overtake events that are due (etcd issue 15220)."""
        if not watcher.due or self.cluster.rng.random() < 0.5:
            header = self.header()
            watcher.call.send(pb.WatchResponse(header=header, watch_id=-1).SerializeToString())

    def schedule(self, watcher: _Watcher) -> None:
        """Deliver what the watcher has not seen, in a moment."""
        if not watcher.due:
            cluster = self.cluster
            watcher.due = True
            delay_s = (APPLY_S * self.slowness + self.watch_lag_s) * cluster.rng.random()
            cluster.universe.at(cluster.universe.now_s + delay_s, self.process.loop, self._deliver, watcher)

    def _deliver(self, watcher: _Watcher) -> None:
        watcher.due = False
        store, call = self.cluster.store, watcher.call
        if not call.open or watcher not in self.watchers:
            return
        if not self.led():
            return  # it knows of nothing new; scheduled again once it does
        if watcher.next <= store._compacted:
            del self.watchers[watcher]
            call.send(
                pb.WatchResponse(
                    header=self.header(), canceled=True, compact_revision=store._compacted
                ).SerializeToString()
            )
            return
        batch = store._batch(watcher.key, watcher.end, watcher.next, deletes=watcher.deletes)
        if batch is None:
            return
        watcher.next = batch.revision + 1
        if batch.events:
            self._send_events(watcher, batch.events)
        if watcher.next <= store._revision:
            self.schedule(watcher)

    def _send_events(self, watcher: _Watcher, events: list[WatchEvent]) -> None:
        wire = [_wire_event(e) for e in events]
        header = self.header()
        rng = self.cluster.rng
        while watcher.fragment and len(wire) > 1 and rng.random() < 0.3:
            cut = rng.randrange(1, len(wire))
            head, wire = wire[:cut], wire[cut:]
            watcher.call.send(pb.WatchResponse(header=header, fragment=True, events=head).SerializeToString())
        watcher.call.send(pb.WatchResponse(header=header, events=wire).SerializeToString())

    def hang_up(self, details: str) -> None:
        """End all watches, as when there has been no leader for a while."""
        watchers, self.watchers = self.watchers, {}
        for watcher in watchers:
            watcher.call.finish(Code.UNAVAILABLE, details)

    # ---- care

    def _status(self, call: ServerCall, _: bytes | None) -> None:
        cluster = self.cluster
        size = 2 << 30 if cluster.full else 1 << 20
        leader = cluster.leader.number + 1 if cluster.leader is not None and self.led() else 0
        self._answer(
            call, pb.StatusResponse(header=self.header(), version=VERSION, dbSize=size, dbSizeInUse=size, leader=leader)
        )

    def _alarm(self, call: ServerCall, payload: bytes) -> None:
        request, cluster = pb.AlarmRequest.FromString(payload), self.cluster
        if request.action == pb.AlarmRequest.DEACTIVATE and cluster.space_was_made():
            cluster.full = False
        alarms = [pb.AlarmMember(memberID=1, alarm=pb.NOSPACE)] if cluster.full else []
        self._answer(call, pb.AlarmResponse(header=self.header(), alarms=alarms))

    def _defragment(self, call: ServerCall, _: bytes | None) -> None:
        self.defragmented = True
        self._answer(call, pb.DefragmentResponse(header=self.header()))


class EtcdCluster:
    """Three members, who leads them, and the faults that are the cluster's own."""

    def __init__(self, network: Network, rng: random.Random, hosts: list[Host], commit: Commit) -> None:
        self.network = network
        self.universe: Universe = network.universe
        self.rng = rng
        self.store = _Store(self)
        self.members = [Member(self, host, i) for i, host in enumerate(hosts)]
        self.leader: Member | None = None
        self.author: Process | None = None
        self.flaky = 0.0
        self.full = False
        self._commit = commit
        self._electing = False
        for member in self.members:
            member.start()
        self.leader = self.members[rng.randrange(len(self.members))]
        network.on_change(self.look)

    # ---- who leads

    def _majority(self, member: Member) -> bool:
        reached = sum(
            other is member or (other.running and self.network.reachable(member.host, other.host))
            for other in self.members
        )
        return member.running and reached * 2 > len(self.members)

    def look(self) -> None:
        """Something changed: a member came or went, a link was cut or healed."""
        if self.leader is not None and not self._majority(self.leader):
            self.leader = None
        if self.leader is None and not self._electing:
            self._electing = True
            self.universe.later(self.rng.uniform(*ELECTION_S), self._elect)
        for member in self.members:
            self._look_at(member)

    def _look_at(self, member: Member) -> None:
        if member.led():
            member.leaderless_since_s = None
            pending, member.pending = member.pending, {}
            for again in pending:
                again()
            for watcher in member.watchers:
                member.schedule(watcher)
        elif member.leaderless_since_s is None:
            since_s = member.leaderless_since_s = self.universe.now_s
            process = member.process

            def hang_up() -> None:
                if member.leaderless_since_s == since_s and member.process is process:
                    member.hang_up("etcdserver: no leader")

            self.universe.at(self.universe.now_s + 2 * NO_LEADER_AFTER_S, process.loop, hang_up)

    def _elect(self) -> None:
        self._electing = False
        candidates = [member for member in self.members if self._majority(member)]
        if candidates:
            self.leader = self.rng.choice(candidates)
            # What was proposed to the old leader and not yet by a majority is lost.
            for lease in list(self.store._leases):
                self.store.renewed(lease)
            self.look()

    # ---- what happens

    def grown(self, revision: int, events: list[WatchEvent]) -> None:
        self._commit(revision, events, self.author)
        for member in self.members:
            for watcher in member.watchers:
                if not watcher.due and watcher.concerns(events):
                    member.schedule(watcher)

    def expire(self, lease: int) -> None:
        """A lease's time is up; only a leader can say so."""
        held = self.store._leases.get(lease)
        if held is None:
            return
        if self.leader is None:
            held.timer = self.universe.later(0.5, self.expire, lease)
        else:
            self.store._end_lease(lease)

    def compact(self, revision: int) -> None:
        self.store.compacted(revision)
        for member in self.members:
            for watcher in member.watchers:
                if watcher.next <= revision:
                    member.schedule(watcher)

    def fill_up(self) -> None:
        """The space quota is used up."""
        self.full = True
        for member in self.members:
            member.defragmented = False

    def space_was_made(self) -> bool:
        return any(member.defragmented for member in self.members)

    # ---- faults

    def kill(self, member: Member, *, power_cut: bool = False) -> None:
        member.process.kill(power_cut=power_cut)
        self.look()

    def start(self, member: Member) -> None:
        if not member.process.alive:
            member.start()
            member.leaderless_since_s = None
            self.look()

    def freeze(self, member: Member) -> None:
        member.process.freeze()
        self.look()

    def thaw(self, process: Process) -> None:
        process.thaw()
        self.look()


class _Unheard:
    """A call whose request is served although its answer will never be heard."""

    def __init__(self, call: ServerCall) -> None:
        self.client = call.client
        self.open = False

    def send(self, payload: bytes) -> None: ...

    def finish(self, code: grpc.StatusCode, details: str = "") -> None: ...


def _refuse(call: ServerCall, error: errors.KVError) -> None:
    if isinstance(error, errors.Compacted):
        call.finish(Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted")
    elif isinstance(error, errors.LeaseLost):
        call.finish(Code.NOT_FOUND, "etcdserver: requested lease not found")
    elif isinstance(error, errors.RequestTooLarge):
        call.finish(Code.INVALID_ARGUMENT, "etcdserver: too many operations in txn request")
    elif isinstance(error, errors.BadRequest):
        call.finish(Code.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request")
    else:
        call.finish(Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision")


def _compare(compare: pb.Compare) -> Compare:
    if compare.target == pb.Compare.MOD:
        return Compare(compare.key, Target.MOD, compare.mod_revision)
    assert compare.target == pb.Compare.CREATE
    return Compare(compare.key, Target.CREATE, compare.create_revision)


def _operation(operation: pb.RequestOp) -> Put | Delete:
    if operation.WhichOneof("request") == "request_put":
        put = operation.request_put
        return Put(put.key, put.value, put.lease)
    deletion = operation.request_delete_range
    return Delete(deletion.key, deletion.range_end)


def _wire(kv: KeyValue) -> kv_pb2.KeyValue:
    return kv_pb2.KeyValue(
        key=kv.key, value=kv.value, create_revision=kv.create_revision, mod_revision=kv.mod_revision,
        version=kv.version, lease=kv.lease,
    )  # fmt: skip


def _wire_event(event: WatchEvent) -> kv_pb2.Event:
    if event.deleted:
        kv = kv_pb2.KeyValue(key=event.kv.key, mod_revision=event.kv.mod_revision)
        return kv_pb2.Event(type=kv_pb2.Event.DELETE, kv=kv)
    return kv_pb2.Event(type=kv_pb2.Event.PUT, kv=_wire(event.kv))
