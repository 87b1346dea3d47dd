"""The agent's line to the control plane: one stream, to whichever replica answers.

The agent dials its servers in turn, says hello, and is given an epoch and the full set of its assignments;
after that both sides send what changes. Changes of assignments are a chain, each naming the set it applies to: a
hole means that something was missed, and the agent hangs up and begins again. A replica that gives a lower
epoch than one seen before is out of date (its session was taken over) and is not obeyed (`allegiance`). One that
is in doubt about its own log gives none: it holds the agent until an admin has decided.

A session that breaks costs nothing but the wait: containers run on, reports stay in the journal. The
first retry is immediate, at the next server; after that waits grow to `BACKOFF_MAX_S`, with jitter, so that a
thousand agents don't come back in the same instant.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import grpc
import structlog

from pwm.api.v1.agent_pb2 import (
    Assignments,
    Configure,
    Heartbeat,
    HeldContainer,
    Hello,
    Hold,
    NodeUsage,
    OpenStream,
    SecretsWanted,
    SessionRequest,
    SessionResponse,
    Welcome,
)
from pwm.api.v1.agent_pb2_grpc import AgentServiceStub
from pwm.api.v1.node_pb2 import Inventory
from pwm.nodeagent.allegiance import Allegiance, Outdated
from pwm.nodeagent.fence import Fence
from pwm.nodeagent.reporter import Reporter
from pwm.nodeagent.secrets import Secrets

log = structlog.get_logger(__name__)

BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 5.0
# A replica that takes a connection and then says nothing is left for the next.
WELCOME_TIMEOUT_S = 10.0
DEFAULT_HEARTBEAT_S = 5.0
# A heartbeat says that the agent lives: it does not wait for a GPU driver that hangs, and repeats the last usage.
SAMPLE_TIMEOUT_S = 2.0
# So that the heartbeats of many nodes spread out.
HEARTBEAT_JITTER = 0.1
# One message carries a full set of assignments: 2,000 containers with long environments are megabytes.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A replica that vanished without a word (power, network) or is frozen is noticed after 3 + 2 s. The time-out of
    # keep-alives alone does nothing: what counts is that of pings, which is a minute unless told otherwise. One that is
    # only busy answers pings all the same: gRPC does it, not Python.
    ("grpc.keepalive_time_ms", 3_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.ping_timeout_ms", 2_000),
    # Reconnecting is this module's work; gRPC must not wait longer than it does.
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Byte streams use a channel of their own, so that they cannot hold up the session's messages.
    ("grpc.use_local_subchannel_pool", 1),
)

Channel = grpc.aio.Channel
Dial = Callable[[str], Channel]
Relay = Callable[[Channel, OpenStream], Coroutine[Any, Any, None]]


def dial_insecure(address: str) -> Channel:
    return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)


class SessionOver(Exception):
    """The session cannot go on; the message says why. Dialling again may help."""


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """What a session needs from the rest of the agent."""

    inventory: Callable[[], Awaitable[Inventory]]
    sample: Callable[[], Awaitable[NodeUsage]]
    assign: Callable[[Assignments], None]
    relay: Relay
    # Everything that is here, and telling again how it is.
    held: Callable[[], list[HeldContainer]]
    tell_again: Callable[[], None]
    # Asked for, and what came.
    secrets: Secrets
    # Which authorities the control plane trusts, by the name of the set.
    authorities_are: Callable[[str], None] = lambda authorities_id: None
    # What this node shows is good for nothing any more, says a controller that is believed.
    shut_out: Callable[[str], None] = lambda why: None
    # From how many percent on a GPU counts as used; 0: not said.
    gpu_used_from: Callable[[int], None] = lambda percent: None


class Sessions:
    """`run` keeps a session open for ever."""

    def __init__(
        self,
        *,
        servers: Sequence[str],
        token: str,
        node: str,
        zone: str,
        reporter: Reporter,
        fence: Fence,
        allegiance: Allegiance,
        callbacks: Callbacks,
        dial: Dial = dial_insecure,
    ) -> None:
        self._servers = cycle(servers)
        self._tries_per_round = len(servers)
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._node, self._zone = node, zone
        self._reporter = reporter
        self._fence = fence
        self._callbacks = callbacks
        self._dial = dial
        self._allegiance = allegiance
        self._inventory_changed = asyncio.Event()
        self._session: _Session | None = None
        self._leaving = False
        # Address of the replica that holds the session; empty: none does.
        self.connected_to = ""

    def inventory_changed(self) -> None:
        """Tell the control plane what the machine has now."""
        self._inventory_changed.set()

    async def leave(self) -> bool:
        """Tell the inventory a last time, and end the session once it has arrived; `run` returns. False: it has not."""
        self._leaving = True
        return self._session is not None and await self._session.leave()

    async def run(self) -> None:
        """Until cancelled, or until `leave`."""
        failures = 0
        for address in self._servers:
            connected = False
            try:
                async with self._dial(address) as channel, self._dial(address) as bulk:
                    session = self._session = _Session(self, address, channel, bulk)
                    try:
                        await session.run()
                    finally:
                        connected = session.welcomed
                        self._session, self.connected_to = None, ""
            except (SessionOver, grpc.aio.AioRpcError) as error:
                if self._leaving:
                    return
                log.warning("session ended", server=address, why=_why(error, plaintext=bool(self._metadata)))
                if isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.UNAUTHENTICATED:
                    self._callbacks.shut_out(error.details() or "")
            failures = 0 if connected else failures + 1
            await asyncio.sleep(self._back_off(failures))

    def _back_off(self, failures: int) -> float:
        """None for the first round of all servers, then growing."""
        rounds = failures // self._tries_per_round
        if not rounds:
            return 0.0 if failures else random.uniform(0, BACKOFF_MIN_S)
        return random.uniform(0.5, 1.0) * min(BACKOFF_MAX_S, BACKOFF_MIN_S * float(2 ** min(rounds, 10)))

    def accept(self, welcome: Welcome) -> None:
        try:
            if self._allegiance.accept(welcome):
                self._callbacks.tell_again()
        except Outdated as error:
            raise SessionOver(str(error)) from error


class _Session:
    """One connection, from hello to its end."""

    def __init__(self, owner: Sessions, address: str, channel: Channel, bulk: Channel) -> None:
        self._owner = owner
        self._address = address
        self._callbacks = owner._callbacks
        self._stub = AgentServiceStub(channel)
        self._bulk = bulk
        self._call: Any = None
        self._writing = asyncio.Lock()
        self._set = 0
        self._heartbeat_s = DEFAULT_HEARTBEAT_S
        self._heartbeat_changed = asyncio.Event()
        # When each heartbeat that is not acknowledged yet was sent, by number.
        self._sent_ms: dict[int, int] = {}
        self._number = 0
        self.welcomed = False

    async def run(self) -> None:
        self._call = self._stub.Session(metadata=self._owner._metadata)
        try:
            await self._greet()
            async with asyncio.TaskGroup() as tasks:
                for work in (
                    self._send_reports(),
                    self._send_heartbeats(),
                    self._send_inventory(),
                    self._ask_for_secrets(),
                ):
                    tasks.create_task(work)
                tasks.create_task(self._receive(tasks))
        except* (SessionOver, grpc.aio.AioRpcError) as group:
            raise _first(group) from None
        finally:
            self._call.cancel()

    async def _greet(self) -> None:
        owner = self._owner
        owner._inventory_changed.clear()
        obeyed = owner._allegiance.obeyed
        hello = Hello(
            node=owner._node,
            zone=owner._zone,
            inventory=await self._callbacks.inventory(),
            cluster=obeyed.cluster,
            position=obeyed.position,
            containers=self._callbacks.held(),
        )
        sent_ms = owner._fence.now_ms()
        answer = await self._answer_to(SessionRequest(hello=hello))
        while answer.WhichOneof("message") == "hold":
            sent_ms, answer = await self._wait_held(sent_ms, answer.hold)
        if answer.WhichOneof("message") != "welcome":
            raise SessionOver("the server did not begin with a welcome")
        owner.accept(answer.welcome)
        # The node's session was announced before it was welcomed.
        owner._fence.heard(sent_ms)
        self._configure(answer.welcome.configure)
        if owner._fence.promised_ms != hello.inventory.fenced_after_ms:
            owner.inventory_changed()
        self.welcomed = True
        owner.connected_to = self._address
        log.info("session begins", server=self._address, epoch=answer.welcome.epoch)

    async def _answer_to(self, message: SessionRequest) -> SessionResponse:
        try:
            async with asyncio.timeout(WELCOME_TIMEOUT_S):
                await self._write(message)
                return await self._read()
        except TimeoutError:
            raise SessionOver(f"the server did not answer within {WELCOME_TIMEOUT_S:.0f} s") from None

    async def _wait_held(self, sent_ms: int, hold: Hold) -> tuple[int, SessionResponse]:
        """Do nothing until the next heartbeat is due or the server says more; the answer, and when it was asked for."""
        if not hold.number:
            log.warning("held: nothing changes until an admin has decided", server=self._address, why=hold.message)
        # Nobody can have lost this node by now.
        self._owner._fence.heard(sent_ms)
        reading = asyncio.ensure_future(self._read())
        try:
            await asyncio.wait({reading}, timeout=self._heartbeat_s)
            if not reading.done():
                self._number, sent_ms = self._number + 1, self._owner._fence.now_ms()
                await self._write(SessionRequest(heartbeat=Heartbeat(number=self._number)))
                async with asyncio.timeout(WELCOME_TIMEOUT_S):
                    await asyncio.wait({reading})
            return sent_ms, reading.result()
        except TimeoutError:
            raise SessionOver(f"the server did not answer within {WELCOME_TIMEOUT_S:.0f} s") from None
        finally:
            reading.cancel()

    # -- in

    async def _receive(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            message = await self._read()
            match message.WhichOneof("message"):
                case "assignments":
                    self._assign(message.assignments)
                case "acknowledged":
                    self._owner._reporter.acknowledged(message.acknowledged.up_to_sequence)
                case "open":
                    tasks.create_task(self._callbacks.relay(self._bulk, message.open))
                case "configure":
                    self._configure(message.configure)
                case "heard":
                    self._heard(message.heard.number)
                    self._owner._allegiance.told(message.heard.position)
                case "secrets":
                    self._callbacks.secrets.arrived(message.secrets)
                case "goodbye":
                    raise SessionOver(f"the server said goodbye: {message.goodbye.message}")

    def _assign(self, assignments: Assignments) -> None:
        if not assignments.full and assignments.applies_to != self._set:
            raise SessionOver(f"a change applies to set {assignments.applies_to}, but set {self._set} is known")
        self._set = assignments.results_in
        self._owner._allegiance.told(assignments.position)
        self._callbacks.assign(assignments)
        self._owner._fence.ordered()

    def _configure(self, configure: Configure) -> None:
        if configure.heartbeat_ms:
            self._heartbeat_s = configure.heartbeat_ms / 1000
            self._heartbeat_changed.set()
        self._callbacks.authorities_are(configure.authorities_id)
        self._callbacks.gpu_used_from(configure.gpu_used_from_percent)
        fence = self._owner._fence
        if fence.configure(self_fence_ms=configure.self_fence_ms, lost_after_ms=configure.lost_after_ms):
            # It promises something else now.
            self._owner.inventory_changed()

    def _heard(self, number: int) -> None:
        sent_ms = self._sent_ms.get(number)
        if sent_ms is not None:
            self._owner._fence.heard(sent_ms)
            # It came after everything that was ordered before.
            self._owner._fence.ordered()
        self._sent_ms = {n: at_ms for n, at_ms in self._sent_ms.items() if n > number}

    async def _read(self) -> SessionResponse:
        message = await self._call.read()
        if message is grpc.aio.EOF:
            # Raises if the end was an error.
            code, details = await self._call.code(), await self._call.details()
            raise SessionOver(f"the server hung up ({code.name}{': ' + details if details else ''})")
        assert isinstance(message, SessionResponse)
        return message

    # -- out

    async def leave(self) -> bool:
        """The other side ends the call in good order when it has dealt with everything that was said."""
        if not self.welcomed:
            return False
        try:
            await self._write(SessionRequest(inventory=await self._callbacks.inventory()))
            async with self._writing:
                await self._call.done_writing()
            return bool(await self._call.code() == grpc.StatusCode.OK)
        except (SessionOver, grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return False

    async def _write(self, message: SessionRequest) -> None:
        async with self._writing:
            try:
                await self._call.write(message)
            except asyncio.InvalidStateError as error:
                # The call is over; reading says why.
                raise SessionOver("the connection broke") from error

    async def _send_reports(self) -> None:
        async for reports in self._owner._reporter.outgoing():
            await self._write(SessionRequest(reports=reports))

    async def _ask_for_secrets(self) -> None:
        async for uid in self._callbacks.secrets.wanted():
            await self._write(SessionRequest(secrets_wanted=SecretsWanted(container_uid=uid)))

    async def _send_heartbeats(self) -> None:
        usage = NodeUsage()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(SAMPLE_TIMEOUT_S):
                    usage = await self._callbacks.sample()
            if self._owner._fence.doubtful:
                raise SessionOver("the server does not acknowledge heartbeats")
            self._number += 1
            if self._owner._fence.promised_ms:
                # Before it is sent, as the control plane may have it from then on.
                self._sent_ms[self._number] = self._owner._fence.now_ms()
            await self._write(SessionRequest(heartbeat=Heartbeat(usage=usage, number=self._number)))
            jitter = random.uniform(1 - HEARTBEAT_JITTER, 1 + HEARTBEAT_JITTER)
            self._heartbeat_changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat_s * jitter):
                    await self._heartbeat_changed.wait()

    async def _send_inventory(self) -> None:
        while True:
            await self._owner._inventory_changed.wait()
            self._owner._inventory_changed.clear()
            await self._write(SessionRequest(inventory=await self._callbacks.inventory()))


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _why(error: Exception, *, plaintext: bool) -> str:
    if not isinstance(error, grpc.aio.AioRpcError):
        return str(error)
    details = error.details() or ""
    if "WRONG_VERSION_NUMBER" in details:
        details = "this server does not speak TLS; it was started with --plaintext, or this is another port"
    elif plaintext and details.endswith("Socket closed"):
        details += "; if this server speaks TLS, start the agent without --plaintext, with a join token"
    return f"{error.code().name}: {details}"
