"""Serves agents: the `Session` and `Relay` rpcs of agent.proto, and `AgentLink` to the services.

A session begins when the node's presence is written to the store: the revision of that write, below the store's
incarnation, is its epoch, so a newer session, on this replica or another, always has a higher one, and reports of
the older are refused by the store itself. Agents are told how far the log has been read, and say it when they
come back: one who was told of more than there is proves that the store was restored from an older snapshot. While
that is in doubt agents are held: they get no orders, and what they have is noted for the admin who has to decide.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol

import grpc
import structlog

from pwm.api.v1 import agent_pb2_grpc
from pwm.api.v1.agent_pb2 import (
    Configure,
    HeldContainer,
    Hello,
    Hold,
    NodeUsage,
    OpenStream,
    RenewRequest,
    RenewResponse,
    SessionResponse,
    Welcome,
)
from pwm.api.v1.common_pb2 import Actor
from pwm.api.v1.store_pb2 import Doubt, Position
from pwm.api.v1.workload_pb2 import Container
from pwm.controlplane.agentlink import AgentInfo, AgentUnreachable
from pwm.controlplane.clock import Clock
from pwm.controlplane.commands import Commands
from pwm.controlplane.core.decide import Change, Refusal, join_node
from pwm.controlplane.core.nodes import NodeTimes
from pwm.controlplane.dispatcher import session as sessions
from pwm.controlplane.dispatcher.admittance import VIEW_PATIENCE_S, Admittance, Caller, CallerGone, Issuance
from pwm.controlplane.dispatcher.giving import Give, give_secrets
from pwm.controlplane.dispatcher.heartbeats import Heartbeats
from pwm.controlplane.dispatcher.relay import AgentStream, Relays, first_message
from pwm.controlplane.dispatcher.reports import ReportIntake
from pwm.controlplane.errors import ApiError
from pwm.controlplane.store import errors as store_errors
from pwm.controlplane.store.commits import Guard
from pwm.controlplane.view import View, ViewChange

log = structlog.get_logger(__name__)

# How often usage is sent while somebody watches.
WATCHED_HEARTBEAT_MS = 1_000


class Custody(Protocol):
    """Who knows whether the store is still the one it was: `store.lineage`."""

    uid: str
    incarnation: int

    @property
    def doubt(self) -> Doubt | None: ...

    @property
    def stands_still(self) -> bool:
        """Whether the doubt is in the store, so that no replica can change anything."""
        ...

    def epoch(self, revision: int) -> int: ...

    async def check(self) -> None:
        """Look at the store now."""
        ...

    def testify(self, revision: int, position: Position) -> None:
        """Fill in how far the log has been read."""
        ...

    async def witness(self, *, node: str, position: Position) -> None:
        """The node's agent was told of this position in the log."""
        ...

    async def settled(self) -> None: ...


class NodePresence(Protocol):
    """Where sessions are announced: leased keys in the store."""

    async def announce(self, node: str) -> Guard:
        """Say that this replica holds the node's session. The guard's mod_revision is the epoch."""
        ...

    async def withdraw(self, node: str, guard: Guard, *, silent_ms: int) -> None: ...

    async def standing(self, nodes: Collection[str]) -> Collection[str]:
        """Those whose session, announced here, still stood at some time after this was called."""
        ...


class Dispatcher(agent_pb2_grpc.AgentServiceServicer):
    def __init__(
        self,
        *,
        replica: str,
        view: View,
        commands: Commands,
        clock: Clock,
        presence: NodePresence,
        admittance: Admittance,
        times: NodeTimes,
        custody: Custody,
        give: Give,
        issuance: Issuance | None = None,
        gpu_used_from_percent: int = 0,
    ) -> None:
        """`give` reads what the secrets of a container hold. `issuance`: None without TLS."""
        self._replica = replica
        self._view = view
        self._commands = commands
        self._clock = clock
        self._presence = presence
        self._admittance = admittance
        self._custody = custody
        self._give = give
        self._issuance = issuance
        self._gpu_used_from_percent = gpu_used_from_percent
        self._sessions: dict[str, sessions.Session] = {}
        self._held: dict[str, Sequence[HeldContainer]] = {}
        self._relays = Relays()
        self._times = times
        self._heartbeats = Heartbeats(standing=presence.standing, self_fence_ms=times.self_fence_ms, clock=clock)
        self._usage_watchers = 0
        view.observe(self._view_changed)

    async def run(self) -> None:
        """Acknowledge heartbeats, until cancelled."""
        await self._heartbeats.run()

    # ---- the rpcs

    async def Session(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        caller = await self._admittance.identify(context)
        first = await first_message(context)
        if first is grpc.aio.EOF or first.WhichOneof("message") != "hello":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first message is hello")
        hello: Hello = first.hello
        if caller.node not in ("", hello.node):
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED, f"this credential is for node {caller.node}, not for {hello.node}"
            )
        try:
            await self._know_each_other(hello, context)
            await self._admittance.admit(caller, hello.node, context)
            guard = await self._begin(hello)
        except (ApiError, store_errors.StoreError, TimeoutError) as error:
            why = str(error) or "this replica lags behind the log"
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"the control plane cannot take the session now: {why}")
            return
        with self._admittance.open(caller, hello.node):
            await self._hold(hello, guard, context, caller)

    async def Relay(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        caller = await self._admittance.identify(context)
        await self._admittance.admit(caller, caller.node, context)
        with self._admittance.open(caller, caller.node):
            serving = asyncio.ensure_future(self._relays.serve(caller.node, context))
            try:
                either: set[asyncio.Future[Any]] = {serving, caller.ended}
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if serving.done():
                    serving.result()
            finally:
                serving.cancel()

    async def Renew(self, request: RenewRequest, context: Any) -> RenewResponse:
        caller = await self._admittance.identify(context)
        if self._issuance is None or caller.holder is None:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "this controller runs without TLS")
        assert self._issuance is not None
        assert caller.holder is not None
        await self._admittance.admit(caller, caller.node, context)
        code, why = grpc.StatusCode.INVALID_ARGUMENT, ""
        try:
            return await self._issuance.renew(request, caller.holder)
        except (ValueError, Refusal) as error:
            why = str(error)
        except ApiError as error:
            code, why = error.code, error.message
        return await context.abort(code, why)  # type: ignore[no-any-return]

    # ---- before a session

    async def _know_each_other(self, hello: Hello, context: Any) -> None:
        """Returns when orders of this log are what the agent should obey."""
        custody = self._custody
        if hello.cluster and hello.cluster != custody.uid and custody.uid:
            log.error("an agent of another cluster was refused", node=hello.node, cluster=hello.cluster)
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"this agent works for another cluster ({hello.cluster}; this one is {custody.uid}): to give its"
                " machine to this one, end its containers and remove the agent's state directory",
            )
        await custody.witness(node=hello.node, position=hello.position)
        if custody.doubt is not None:
            await self._hold_still(hello, context)
        # After a restore was accepted it is built anew.
        await self._view.wait_for(0)

    async def _hold_still(self, hello: Hello, context: Any) -> None:
        """Until it is decided. Raises StoreInDoubt in the end: the agent says hello again."""
        log.info("agent held", node=hello.node, containers=len(hello.containers))
        self._held[hello.node] = hello.containers
        settled = asyncio.ensure_future(self._custody.settled())
        number = 0
        try:
            while (doubt := self._custody.doubt) is not None:
                # Looked at after the heartbeat came: so nobody can lose the node before the agent counts as cut off.
                await self._custody.check()
                if not self._custody.stands_still:
                    raise store_errors.StoreInDoubt(doubt.why)
                await context.write(SessionResponse(hold=Hold(message=doubt.why, number=number)))
                number = await self._heartbeat(context, settled)
            raise store_errors.StoreInDoubt("it has been decided: say hello again")
        except (grpc.RpcError, grpc.aio.UsageError, asyncio.InvalidStateError) as error:
            raise store_errors.StoreInDoubt("the connection broke") from error
        finally:
            settled.cancel()
            if self._held.get(hello.node) is hello.containers:
                del self._held[hello.node]

    async def _heartbeat(self, context: Any, settled: asyncio.Future[None]) -> int:
        """The number of the next heartbeat of a held agent; 0 when it is settled before it comes."""
        reading = asyncio.ensure_future(context.read())
        try:
            silence_s = self._times.session_silence_ms / 1000
            await asyncio.wait({reading, settled}, timeout=silence_s, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done() and not settled.done():
                raise store_errors.StoreInDoubt(f"silent for {silence_s:g} s")
            if not reading.done():
                return 0
            if reading.result() is grpc.aio.EOF:
                raise store_errors.StoreInDoubt("the agent hung up")
            return int(reading.result().heartbeat.number)
        finally:
            reading.cancel()

    def held(self) -> dict[str, Sequence[HeldContainer]]:
        """What the agents have that wait here for an admin's decision, by node."""
        return self._held

    # ---- a session's life

    async def _begin(self, hello: Hello) -> Guard:
        """The node's session is here, and the log says what the node has."""
        guard = await self._presence.announce(hello.node)
        try:
            # What other replicas ordered and heard in the node's earlier sessions: an agent that is given less ends
            # containers that it should run, and a report on one that is not known here would be lost.
            await self._view.wait_for(guard.mod_revision or 0, timeout_s=VIEW_PATIENCE_S)
            await self._join(hello.node, hello.inventory, guard)
        except BaseException:
            await asyncio.shield(self._presence.withdraw(hello.node, guard, silent_ms=0))
            raise
        return guard

    async def _join(self, node_name: str, inventory: Any, guard: Guard) -> None:
        new_uid = self._clock.new_id()

        def decide() -> list[Change]:
            node = self._view.by_name("Node", node_name)
            uid = node.metadata.uid if node is not None else new_uid
            return [Change("Node", uid, node_name, "", node, join_node(node, inventory))]

        await self._commands.run(decide, actor=Actor(type=Actor.NODE, name=node_name), guards=(guard,))

    async def _hold(self, hello: Hello, guard: Guard, context: Any, caller: Caller) -> None:
        node = hello.node
        older = self._sessions.get(node)
        if older is not None:
            older.superseded.set()
        session = sessions.Session(
            node=node,
            epoch=self._custody.epoch(guard.mod_revision or 0),
            agent_version=hello.inventory.agent_version,
            now_ms=self._clock.now_ms(),
        )
        self._sessions[node] = session
        log.info("agent connected", node=node, epoch=session.epoch, version=session.agent_version)

        intake = ReportIntake(
            node=node, guard=guard, view=self._view, commands=self._commands, acknowledge=session.acknowledge
        )
        why, silent_ms = "the agent hung up", 0
        try:
            await context.write(SessionResponse(welcome=self._welcome(session)))
            await context.write(self._with_position(session.full(self._view.containers_on(node))))
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._receive(session, intake, context, guard)),
                    group.create_task(self._send(session, context)),
                    group.create_task(intake.run()),
                    group.create_task(self._superseded(session)),
                    group.create_task(self._admittance.until_gone(caller)),
                    group.create_task(give_secrets(session, view=self._view, give=self._give)),
                ]
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    task.cancel()
        except* _Silent as group_error:
            silent_ms = self._times.session_silence_ms
            why = str(group_error.exceptions[0])
        except* (_Superseded, CallerGone) as group_error:
            why = str(group_error.exceptions[0])
        except* store_errors.GuardFailed:
            why = "a newer session of the node took over"
        except* (grpc.RpcError, grpc.aio.UsageError, asyncio.InvalidStateError):
            why = "the connection broke"
        except* ApiError as group_error:
            # A new inventory could not be kept: the agent's next hello brings it again.
            why = str(group_error.exceptions[0])
        finally:
            log.info("agent disconnected", node=node, epoch=session.epoch, why=why)
            if self._sessions.get(node) is session:
                del self._sessions[node]
            await asyncio.shield(self._presence.withdraw(node, guard, silent_ms=silent_ms))

    async def _receive(self, session: sessions.Session, intake: ReportIntake, context: Any, guard: Guard) -> None:
        while True:
            silence_s = self._times.session_silence_ms / 1000
            try:
                async with asyncio.timeout(silence_s):
                    message = await context.read()
            except TimeoutError:
                raise _Silent(f"silent for {silence_s:g} s") from None
            if message is grpc.aio.EOF:
                return
            session.last_heard_ms = self._clock.now_ms()
            match message.WhichOneof("message"):
                case "reports":
                    intake.offer(message.reports.reports)
                case "heartbeat":
                    session.usage = message.heartbeat.usage
                    self._heartbeats.came(session, message.heartbeat.number)
                case "secrets_wanted":
                    session.secrets_wanted.put_nowait(message.secrets_wanted.container_uid)
                case "inventory":
                    await self._join(session.node, message.inventory, guard)

    async def _send(self, session: sessions.Session, context: Any) -> None:
        while True:
            for message in await session.outgoing():
                await context.write(self._with_position(message))

    def _with_position(self, message: SessionResponse) -> SessionResponse:
        """What the agent is told of, a restored log may not have: it will say so."""
        if self._view.synced:
            match message.WhichOneof("message"):
                case "assignments":
                    self._custody.testify(self._view.revision, message.assignments.position)
                case "heard":
                    self._custody.testify(self._view.revision, message.heard.position)
        return message

    async def _superseded(self, session: sessions.Session) -> None:
        await session.superseded.wait()
        raise _Superseded("a newer session of the node took over")

    def _view_changed(self, change: ViewChange) -> None:
        if change.kind != "Container":
            return
        container = change.after or change.before
        assert isinstance(container, Container)
        session = self._sessions.get(container.spec.node)
        if session is not None:
            session.changed(change.uid, change.after if isinstance(change.after, Container) else None)

    def restart_sessions(self) -> None:
        """The view was rebuilt, or sessions are no longer announced: agents dial again and get a full set."""
        for session in self._sessions.values():
            session.superseded.set()

    # ---- AgentLink

    @asynccontextmanager
    async def open(self, node: str, request: OpenStream) -> AsyncIterator[AgentStream]:
        session = self._sessions.get(node)
        if session is None:
            raise AgentUnreachable(f"the agent of node {node} is not connected")
        request.stream_id = self._clock.new_id()
        session.open(request)
        stream = await self._relays.expect(request.stream_id, node)
        try:
            yield stream
        finally:
            stream.closed.set()

    def holds(self, node: str) -> bool:
        """Whether the node's agent is connected here."""
        return node in self._sessions

    def usage_of_all(self) -> dict[str, NodeUsage]:
        """Latest usage of each node connected here."""
        return {node: session.usage for node, session in self._sessions.items() if session.usage is not None}

    def usage(self, node: str) -> NodeUsage | None:
        session = self._sessions.get(node)
        return session.usage if session else None

    @contextmanager
    def watch_usage(self) -> Iterator[None]:
        self._usage_watchers += 1
        if self._usage_watchers == 1:
            self.reconfigure()
        try:
            yield
        finally:
            self._usage_watchers -= 1
            if not self._usage_watchers:
                self.reconfigure()

    def nodes(self) -> set[str]:
        """Whose agents are connected here."""
        return set(self._sessions)

    def agents(self) -> list[AgentInfo]:
        return [
            AgentInfo(s.node, self._replica, s.epoch, s.agent_version, s.last_heard_ms) for s in self._sessions.values()
        ]

    def _welcome(self, session: sessions.Session) -> Welcome:
        return Welcome(
            epoch=session.epoch,
            configure=self._configure(),
            cluster=self._custody.uid,
            incarnation=self._custody.incarnation,
        )

    def _configure(self) -> Configure:
        times = self._times
        usual_ms = times.heartbeat_ms
        return Configure(
            heartbeat_ms=min(usual_ms, WATCHED_HEARTBEAT_MS) if self._usage_watchers else usual_ms,
            self_fence_ms=times.self_fence_ms,
            lost_after_ms=times.lost_after_ms,
            authorities_id=self._issuance.bundle_id if self._issuance else "",
            gpu_used_from_percent=self._gpu_used_from_percent,
        )

    def reconfigure(self) -> None:
        """Tell every agent what applies from now on."""
        for session in self._sessions.values():
            session.configure(self._configure())


class _Superseded(Exception):
    """The session is over; the message says why."""


class _Silent(Exception):
    """Nothing came for so long that the session is over."""
