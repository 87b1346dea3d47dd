"""Connections to etcd's members: which one to ask, and what its errors mean.

Each member has a gRPC channel of its own, and calls and watches stick to one member until it misbehaves.
Then all of them leave it for the next, and it is asked in the background until it is well again, so that no
call of a user's has to find out that it is still frozen. One channel over all members would hide which of
them answered, and gRPC's own balancing keeps sending to a member that accepts connections but does nothing.

`translate` is where every error of gRPC and etcd becomes one of the store's own. The question it must
never get wrong is whether a write can have been applied: only what etcd says before it proposes a
request, and connections that were never made, count as surely not applied.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from pwm.api.etcd import rpc_pb2 as pb
from pwm.api.etcd import rpc_pb2_grpc as rpc
from pwm.controlplane.store import errors

if TYPE_CHECKING:
    from pwm.api.etcd.rpc_pb2_grpc import (
        ClusterAsyncStub,
        KVAsyncStub,
        LeaseAsyncStub,
        MaintenanceAsyncStub,
        WatchAsyncStub,
    )

KEEPALIVE_TIME_MS = 10_000
"""Pings below this make etcd answer GOAWAY (too many pings)."""

KEEPALIVE_TIMEOUT_MS = 3_000
MESSAGE_LIMIT_BYTES = 64 * 1024 * 1024
"""gRPC's default of 4 MiB refuses a page of large heads."""

PROBE_TIMEOUT_S = 1.0
FIRST_PROBE_S = 0.5
LAST_PROBE_S = 5.0
"""How often a member that failed is asked whether it is back: soon at first, as most are only restarted."""

CHANNEL_OPTIONS: list[tuple[str, int]] = [
    ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    # Without it a connection that was found dead is kept for a minute all the same.
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.http2.max_pings_without_data", 0),
    # keepalive_permit_without_calls is not set: etcd hangs up on clients that ping while they ask nothing.
    ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
    ("grpc.max_send_message_length", MESSAGE_LIMIT_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_retries", 0),  # gRPC must not repeat a write on its own
    ("grpc.use_local_subchannel_pool", 1),
]

# What etcd says before anything is proposed to raft, so that a write may be sent again.
_NOT_PROPOSED = ("no leader", "not capable", "too many requests", "unhealthy cluster")
# What gRPC says when no connection was made.
_NOT_SENT = ("failed to connect", "connection refused", "name resolution", "dns resolution", "no route to host")

# Signs of TLS that fails, and what they mean.
_TLS_TROUBLE = (
    (
        "certificate_verify_failed",
        "failed to connect: etcd's certificate cannot be believed; --etcd-ca has to name the authorities that it is "
        "of, and it has to be for the address in --etcd",
    ),
    ("tsi_data_corrupted", "failed to connect: etcd wants another certificate than it is shown, see --etcd-cert"),
    ("wrong_version_number", "failed to connect: etcd does not speak TLS; leave out --etcd-ca and --etcd-cert"),
)

# For a read: this member could not answer, another one may. UNKNOWN is how etcd passes on its own time-outs.
_ASK_ANOTHER = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.ABORTED,
)

# Opens a channel to HOST:PORT.
Dial = Callable[[str], grpc.aio.Channel]


@dataclass(slots=True, eq=False)
class Endpoint:
    """One member's channel and stubs."""

    address: str
    channel: grpc.aio.Channel
    kv: "KVAsyncStub"
    watch: "WatchAsyncStub"
    lease: "LeaseAsyncStub"
    cluster: "ClusterAsyncStub"
    maintenance: "MaintenanceAsyncStub"
    # It failed, and has not been found well since.
    away: bool = False
    # Why it is not used at all: a sentence; empty for a member whose version is all right.
    refused: str = ""
    # Loop time of its last failure.
    failed_at: float = 0.0
    # Set when calls to it fail: whoever waits for something on a stream of this member must not wait on.
    left: asyncio.Event = field(default_factory=asyncio.Event)


class Endpoints:
    """The members in an order of this client's own, so that replicas spread over them."""

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        credentials: grpc.ChannelCredentials | None = None,
        dial: Dial | None = None,
    ) -> None:
        assert addresses, "etcd needs at least one address"
        shuffled = random.sample(list(addresses), len(addresses))
        connect = dial or partial(_dial, credentials=credentials)
        self.all = [_endpoint(target, connect(target)) for target in map(_target, shuffled)]
        self.interruptions = 0
        """How often an answer failed to come: as long as it stays the same, nothing has happened to the store."""
        self._current = self.all[0]
        self._probes: set[asyncio.Task[None]] = set()

    def pick(self) -> Endpoint:
        """The member in use; when it has failed, the next that has not; if all have, the one that failed first.

        Raises VersionRefused when no member may be used.
        """
        current = self._current
        if current.away or current.refused:
            usable = [endpoint for endpoint in self.all if not endpoint.refused]
            if not usable:
                raise errors.VersionRefused(current.refused)
            self._current = min(usable, key=lambda e: (e.away, e.failed_at))
        return self._current

    def shun(self, endpoint: Endpoint) -> None:
        """It did not answer: leave it until it does."""
        self.interruptions += 1
        loop = asyncio.get_running_loop()
        endpoint.failed_at = loop.time()
        endpoint.left.set()
        endpoint.left = asyncio.Event()
        if not endpoint.away:
            endpoint.away = True
            probe = loop.create_task(self._await_return(endpoint), name=f"etcd {endpoint.address}")
            self._probes.add(probe)
            probe.add_done_callback(self._probes.discard)

    def refuse(self, endpoint: Endpoint, why: str) -> None:
        """Use it no more, or with an empty reason again."""
        endpoint.refused = why
        if why:
            endpoint.left.set()
            endpoint.left = asyncio.Event()

    async def _await_return(self, endpoint: Endpoint) -> None:
        pause_s = FIRST_PROBE_S
        while True:
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, LAST_PROBE_S)
            try:
                answer = await endpoint.maintenance.Status(pb.StatusRequest(), timeout=PROBE_TIMEOUT_S)
            except grpc.aio.AioRpcError:
                continue
            if answer.leader:  # one that is cut off from the others answers, and is of no use
                endpoint.away = False
                return

    async def close(self) -> None:
        for probe in self._probes:
            probe.cancel()
        await asyncio.gather(*self._probes, return_exceptions=True)
        for endpoint in self.all:
            await endpoint.channel.close()


def _target(address: str) -> str:
    """gRPC's form of an address that may be written as etcd's tools write it, with a scheme."""
    return address.removeprefix("http://").removeprefix("https://").rstrip("/")


def _dial(address: str, *, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    if credentials is None:
        return grpc.aio.insecure_channel(address, CHANNEL_OPTIONS)
    return grpc.aio.secure_channel(address, credentials, CHANNEL_OPTIONS)


def _endpoint(address: str, channel: grpc.aio.Channel) -> Endpoint:
    return Endpoint(
        address,
        channel,
        rpc.KVStub(channel),
        rpc.WatchStub(channel),
        rpc.LeaseStub(channel),
        rpc.ClusterStub(channel),
        rpc.MaintenanceStub(channel),
    )


def translate(error: grpc.aio.AioRpcError, *, write: bool) -> errors.KVError:
    """The store's own error for one of gRPC's. Anything not known to be harmless is Ambiguous for a write."""
    code, text = error.code(), error.details() or error.code().name
    lowered = text.lower()
    known = _known(code, lowered, text)
    if known is not None:
        return known
    text = in_words(error)
    if write:
        never_applied = any(s in lowered for s in _NOT_PROPOSED + _NOT_SENT)
        return errors.Unavailable(text) if never_applied else errors.Ambiguous(text)
    return errors.Unavailable(text) if code in _ASK_ANOTHER else errors.KVError(text)


def in_words(error: grpc.aio.AioRpcError) -> str:
    """What it says; but when TLS is at fault, what gRPC says is not for people."""
    text = error.details() or error.code().name
    lowered = text.lower()
    for sign, meaning in _TLS_TROUBLE:
        if sign in lowered:
            return meaning
    if "failed to connect" in lowered and lowered.endswith("socket closed"):
        return f"{text}; if etcd speaks TLS, say so with --etcd-ca"
    return text


def _known(code: grpc.StatusCode, lowered: str, text: str) -> errors.KVError | None:
    """Errors that mean one thing, whether reading or writing."""
    status = grpc.StatusCode
    if code == status.OUT_OF_RANGE:
        # The other kind, "a future revision", comes from a member that lags: another one may know it.
        return errors.Compacted() if "compacted" in lowered else errors.Unavailable(text)
    if code == status.RESOURCE_EXHAUSTED:
        if "space exceeded" in lowered:
            return errors.NoSpace(text)
        return errors.Unavailable(text) if "too many requests" in lowered else errors.RequestTooLarge(text)
    if code == status.NOT_FOUND and "lease" in lowered:
        return errors.LeaseLost(text)
    if code == status.INVALID_ARGUMENT:
        too_large = "too large" in lowered or "too many operations" in lowered
        return errors.RequestTooLarge(text) if too_large else errors.BadRequest(text)
    if code in (status.PERMISSION_DENIED, status.UNAUTHENTICATED):
        return errors.AccessRefused(text)
    if code == status.UNIMPLEMENTED:
        return errors.BadRequest(text)
    return None
