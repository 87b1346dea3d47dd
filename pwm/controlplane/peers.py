"""The other replicas: noticing at once when one has crashed, and reaching agents through them.

A replica keeps a stream open to each other one. When a process dies its host ends all its connections, so the
stream breaks within milliseconds; if then nobody listens at its address any more, or another process does,
the replica is dead: its leases are revoked, and with them go the roles it led and the sessions it held, at
once instead of when they would end by themselves. Being wrong would cost an election and nothing else, for a
leader's fence is in each of its transactions. A peer that was never reached is never called dead, and one that
hangs, or that the network hides, is left to its lease.

    presence ─▶ Peers ── Attend ──▶ crash: revoke leases
                  ├───── Pass ─────▶ byte streams to agents connected there (one hop)
                  ├───── WatchUsage ▶ usage of nodes connected there, while somebody watches
                  └───── Describe, Fail
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import structlog

from pwm.api.v1 import peer_pb2 as pb
from pwm.api.v1.agent_pb2 import NodeUsage, OpenStream, RelayRequest, RelayResponse
from pwm.api.v1.peer_pb2_grpc import PeerServiceStub
from pwm.controlplane.agentlink import AgentRefused, AgentUnreachable
from pwm.controlplane.presence import Presence
from pwm.controlplane.store import errors as store_errors
from pwm.controlplane.store.election import leaders
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.kv import KV
from pwm.controlplane.store.registry import REPLICAS
from pwm.trust import SERVER_NAME

log = structlog.get_logger(__name__)

# A host that is there answers a connection, or refuses it, in a moment.
PROBE_TIMEOUT_S = 0.5
RETRY_FIRST_S, RETRY_LAST_S = 0.05, 2.0
DESCRIBE_TIMEOUT_S = 2.0
_CHANNEL_OPTIONS = (
    # A peer that vanished without a word (power, network) or is frozen is noticed after 5 + 3 s. The time-out of
    # keep-alives alone does nothing: what counts is that of pings, which is a minute unless told otherwise.
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    # Reconnecting is this module's work; gRPC must not wait longer than it does.
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
)
_GONE = (grpc.RpcError, grpc.aio.UsageError, asyncio.InvalidStateError)


@dataclass(frozen=True, slots=True)
class Peer:
    """Another replica, as it announced itself."""

    replica: str
    address: str
    token: str

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.token}"),)


# Opens a channel to HOST:PORT.
Dial = Callable[[str], Any]
# Whether a connection to HOST:PORT is refused: nobody listens there.
Refused = Callable[[str], Awaitable[bool]]


class Peers:
    def __init__(self, *, replica: str, presence: Presence, kv: KV, keys: Keys, dial: Dial, refused: Refused) -> None:
        self._replica = replica
        self._presence = presence
        self._kv = kv
        self._keys = keys
        self._dial = dial
        self._refused = refused
        self._attending: dict[str, asyncio.Task[None]] = {}
        self._alive: set[str] = set()
        self._channels: dict[str, Any] = {}
        self._usage: dict[str, NodeUsage] = {}
        self._usage_watchers = 0
        self._usage_wanted = asyncio.Event()
        self._usage_unwanted = asyncio.Event()

    async def run(self) -> None:
        """Attend to every other replica, for ever; cancel to stop."""
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    for peer in self._others():
                        if peer.replica not in self._attending:
                            task = group.create_task(self._attend(peer), name=f"peer {peer.replica}")
                            self._attending[peer.replica] = task
                    await self._presence.wait_for_replicas()
        finally:
            for channel in self._channels.values():
                await channel.close()

    def alive(self) -> set[str]:
        """Replicas to which a stream is open at this moment."""
        return set(self._alive)

    def _others(self) -> list[Peer]:
        return [
            Peer(id, str(about.get("peer", "")), str(about.get("token", "")))
            for id, about in self._presence.replicas.items()
            if id != self._replica and about.get("peer")
        ]

    def _peer(self, replica: str) -> Peer | None:
        return next((peer for peer in self._others() if peer.replica == replica), None)

    def _stub(self, peer: Peer) -> Any:
        if peer.replica not in self._channels:
            self._channels[peer.replica] = self._dial(peer.address)
        return PeerServiceStub(self._channels[peer.replica])

    # ---- is it alive?

    async def _attend(self, peer: Peer) -> None:
        """Until the replica is gone from the list."""
        try:
            async with asyncio.TaskGroup() as group:
                usage = group.create_task(self._follow_usage(peer))
                await self._watch_over(peer)
                usage.cancel()
        finally:
            del self._attending[peer.replica]
            await self._hang_up(peer)

    async def _watch_over(self, peer: Peer) -> None:
        known_alive, pause_s = False, RETRY_FIRST_S
        while self._peer(peer.replica) is not None:
            answering = await self._hold_stream(peer)
            if not answering:
                await self._hang_up(peer)
            if answering == peer.replica:
                known_alive, pause_s = True, RETRY_FIRST_S
            if known_alive and (answering not in ("", peer.replica) or await self._refused(peer.address)):
                log.warning("a replica has crashed", replica=peer.replica, address=peer.address)
                # Its stream can only be opened again by another process with the same address.
                known_alive = False
                await self._bury(peer)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, RETRY_LAST_S)

    async def _hang_up(self, peer: Peer) -> None:
        """What is made next uses a new connection, with the credentials of then."""
        channel = self._channels.pop(peer.replica, None)
        if channel is not None:
            await channel.close()

    async def _hold_stream(self, peer: Peer) -> str:
        """Until the stream breaks. Returns which replica answered, "" for none."""
        answering = ""
        try:
            async for message in self._stub(peer).Attend(
                pb.AttendRequest(replica=self._replica), metadata=peer.metadata
            ):
                match message.WhichOneof("message"):
                    case "replica":
                        answering = message.replica
                        if answering == peer.replica:
                            self._alive.add(answering)
                    case "leaving":
                        log.info("a replica leaves", replica=peer.replica)
        except _GONE as error:
            if isinstance(error, grpc.RpcError) and error.code() == grpc.StatusCode.UNAUTHENTICATED:
                # Whoever it is does not know the token that this replica announced.
                return answering or "another"
        finally:
            self._alive.discard(peer.replica)
        return answering

    async def _bury(self, peer: Peer) -> None:
        """End its leases: roles first, then its presence and sessions. Each may be gone already."""
        try:
            led = [
                leader.lease
                for leader in (await leaders(self._kv, self._keys)).values()
                if leader.replica_id == peer.replica
            ]
            announced = await self._kv.range(self._keys.presence(REPLICAS, peer.replica))
            leases = dict.fromkeys([*led, *(found.lease for found in announced.kvs)])
            results = await asyncio.gather(*map(self._kv.revoke_lease, leases), return_exceptions=True)
            for error in results:
                if isinstance(error, store_errors.LeaseLost):
                    continue
                if isinstance(error, BaseException):
                    raise error
        except store_errors.StoreError as error:
            log.info("leases of the crashed replica are left to end", replica=peer.replica, why=str(error))

    # ---- asking

    async def describe(self) -> list[pb.DescribeResponse]:
        """What every other replica says of itself; one that does not answer is left out."""

        async def ask(peer: Peer) -> pb.DescribeResponse | None:
            try:
                answer: pb.DescribeResponse = await self._stub(peer).Describe(
                    pb.DescribeRequest(), metadata=peer.metadata, timeout=DESCRIBE_TIMEOUT_S
                )
            except _GONE as error:
                log.debug("a replica does not describe itself", replica=peer.replica, why=str(error))
                return None
            return answer

        return [answer for answer in await asyncio.gather(*map(ask, self._others())) if answer is not None]

    async def fail(self, replica: str, request: pb.FailRequest) -> None:
        """Makes another replica fail. Raises AgentUnreachable when it cannot be asked."""
        peer = self._peer(replica)
        if peer is None:
            raise AgentUnreachable(f"replica {replica} is not here")
        try:
            await self._stub(peer).Fail(request, metadata=peer.metadata, timeout=DESCRIBE_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise AgentUnreachable(f"replica {replica} could not be asked: {error.details()}") from error

    # ---- agents connected elsewhere

    @asynccontextmanager
    async def open(self, replica: str, node: str, request: OpenStream) -> AsyncIterator["PassedStream"]:
        """A stream to the agent of `node` through the replica that holds its session."""
        peer = self._peer(replica)
        if peer is None:
            raise AgentUnreachable(f"the agent of node {node} is changing its controller")
        call = self._stub(peer).Pass(metadata=peer.metadata)
        try:
            stream = PassedStream(call, node)
            await stream.begin(request)
            yield stream
        finally:
            call.cancel()

    def usage(self, node: str) -> NodeUsage | None:
        return self._usage.get(node)

    @contextmanager
    def watch_usage(self) -> Iterator[None]:
        """While entered, the other replicas send what their nodes use."""
        self._usage_watchers += 1
        self._usage_wanted.set()
        self._usage_unwanted.clear()
        try:
            yield
        finally:
            self._usage_watchers -= 1
            if not self._usage_watchers:
                self._usage_wanted.clear()
                self._usage_unwanted.set()
                self._usage.clear()

    async def refresh_usage(self) -> None:
        """Ask each other replica once; one that does not answer at once is left out."""

        async def ask(peer: Peer) -> None:
            call = self._stub(peer).WatchUsage(pb.WatchUsageRequest(), metadata=peer.metadata)
            try:
                async with asyncio.timeout(DESCRIBE_TIMEOUT_S):
                    if (message := await call.read()) is not grpc.aio.EOF:
                        self._usage.update(message.nodes)
            except (TimeoutError, *_GONE) as error:
                log.debug("a replica does not say what its nodes use", replica=peer.replica, why=str(error))
            finally:
                call.cancel()

        await asyncio.gather(*map(ask, self._others()))

    async def _follow_usage(self, peer: Peer) -> None:
        while True:
            await self._usage_wanted.wait()
            call = self._stub(peer).WatchUsage(pb.WatchUsageRequest(), metadata=peer.metadata)
            reading = asyncio.ensure_future(self._read_usage(call))
            unwanted = asyncio.ensure_future(self._usage_unwanted.wait())
            try:
                await asyncio.wait({reading, unwanted}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                call.cancel()
                for task in (reading, unwanted):
                    task.cancel()
                await asyncio.wait({reading, unwanted})
            if self._usage_wanted.is_set():
                await asyncio.sleep(RETRY_LAST_S)

    async def _read_usage(self, call: Any) -> None:
        try:
            async for message in call:
                self._usage.update(message.nodes)
        except _GONE as error:
            log.debug("usage of another replica's nodes is not followed", why=str(error))


class PassedStream:
    """A `RelayStream` whose agent is connected to another replica."""

    def __init__(self, call: Any, node: str) -> None:
        self._call = call
        self._node = node
        self._moved = False

    def moved(self) -> None:
        """The agent has left the replica that this goes through, which may be frozen and never say so."""
        self._moved = True
        self._call.cancel()

    async def begin(self, request: OpenStream) -> None:
        await self._write(pb.PassRequest(target=pb.PassTarget(node=self._node, open=request)))

    async def __aiter__(self) -> AsyncIterator[RelayRequest]:
        while True:
            try:
                message = await self._call.read()
            except _GONE as error:
                raise AgentUnreachable("the connection to the agent's controller broke") from error
            except asyncio.CancelledError:
                self._unless_moved()
                raise
            if message is grpc.aio.EOF:
                raise AgentUnreachable("the connection to the agent's controller broke")
            if message.WhichOneof("message") == "unreachable":
                raise AgentUnreachable(message.unreachable)
            frame: RelayRequest = message.frame
            match frame.WhichOneof("frame"):
                case "complete":
                    return
                case "error":
                    raise AgentRefused(frame.error.code, frame.error.message)
            yield frame

    async def send(self, frame: RelayResponse) -> None:
        await self._write(pb.PassRequest(frame=frame))

    async def _write(self, message: pb.PassRequest) -> None:
        try:
            await self._call.write(message)
        except _GONE as error:
            raise AgentUnreachable("the connection to the agent's controller broke") from error
        except asyncio.CancelledError:
            self._unless_moved()
            raise

    def _unless_moved(self) -> None:
        """A call that was cancelled raises the same in whoever waits for it as their own cancellation does."""
        task = asyncio.current_task()
        if self._moved and not (task is not None and task.cancelling()):
            raise AgentUnreachable(f"the agent of node {self._node} is changing its controller") from None


def dial_insecure(address: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)


def dial_with(credentials: Callable[[], grpc.ChannelCredentials]) -> Dial:
    """Connections to replicas of this cluster only, each with the credentials of its moment."""

    def dial(address: str) -> grpc.aio.Channel:
        options = (*_CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", SERVER_NAME))
        return grpc.aio.secure_channel(address, credentials(), options=options)

    return dial


async def connection_refused(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except ConnectionRefusedError:
        return True
    except (OSError, TimeoutError):
        # No route, no answer: the network may be the reason, so this proves nothing.
        return False
    writer.close()
    return False
