"""A controller replica, wired: the only module that knows all the parts.

    store ── follower ──▶ view ──▶ queries ──▶ services ──▶ gateway
      ▲                    │                      │
      └──── commands ◀─────┴── controllers        └── dispatcher ◀──▶ agents
                              (while leading)

`Replica` makes the parts and runs their loops in one task group: a loop that fails takes the process down,
and whoever runs it starts it again (state is in the store, so nothing is lost). Loops that depend on etcd
never fail for its absence; they wait.
"""

import asyncio
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack

import grpc
import structlog
from google.protobuf.descriptor import ServiceDescriptor
from prometheus_client import CollectorRegistry, Gauge

from pwm import daemon_log
from pwm.api.v1 import agent_pb2_grpc, services_pb2
from pwm.controlplane.agentlink import AgentLink
from pwm.controlplane.auth import Authenticator, Authorizer
from pwm.controlplane.bootstrap import Bootstrap
from pwm.controlplane.clock import Clock
from pwm.controlplane.commands import Commands
from pwm.controlplane.config import ControllerConfig
from pwm.controlplane.controllers.chores import keep_retention, watch_space
from pwm.controlplane.controllers.nodes import NodeController
from pwm.controlplane.controllers.workloads import WorkloadController
from pwm.controlplane.core.scheduling.cluster import Cluster
from pwm.controlplane.dispatcher.dispatcher import Dispatcher
from pwm.controlplane.follower import Follower
from pwm.controlplane.gateway.gateway import Gateway
from pwm.controlplane.gateway.site import HealthReport
from pwm.controlplane.leadership import Duty, Leadership
from pwm.controlplane.presence import Presence
from pwm.controlplane.queries import Queries
from pwm.controlplane.services.admin import AdminService
from pwm.controlplane.services.applying import Applier
from pwm.controlplane.services.events import EventService
from pwm.controlplane.services.exec import ExecBridge
from pwm.controlplane.services.explaining import Explainer
from pwm.controlplane.services.logs import LogReader
from pwm.controlplane.services.resources import ResourceService
from pwm.controlplane.services.system import SystemService
from pwm.controlplane.services.usage import UsageService
from pwm.controlplane.services.workloads import WorkloadService
from pwm.controlplane.store import errors as store_errors
from pwm.controlplane.store.commits import Guard
from pwm.controlplane.store.election import Election
from pwm.controlplane.store.etcd import EtcdKV
from pwm.controlplane.store.eventstore import EventStore
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.kv import KV
from pwm.controlplane.store.registry import Registry
from pwm.controlplane.store.retention import Retention
from pwm.controlplane.view import View, ViewChange
from pwm.version import VERSION

log = structlog.get_logger(__name__)

DEFAULT_ZONE = "default"
CHORES = "cluster"
# How often the store is asked whether it is there, and how long it may take to say so.
PING_EVERY_S = 2.0
PING_TIMEOUT_S = 2.0
STOP_GRACE_S = 2.0
# Agents send batches; a full set of assignments of a large node fits.
GRPC_MESSAGE_BYTES = 64 << 20
GRPC_OPTIONS = (
    ("grpc.max_receive_message_length", GRPC_MESSAGE_BYTES),
    ("grpc.max_send_message_length", GRPC_MESSAGE_BYTES),
    # Another process on the port is an error, not a rival for its connections.
    ("grpc.so_reuseport", 0),
    # Agents ping every 10 s to notice a replica that is gone; gRPC's default would hang up on them.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
)


class ControlPlane:
    """The parts that need no network of their own; the simulator runs these too."""

    def __init__(self, *, kv: KV, keys: Keys, replica: str, address: str, clock: Clock) -> None:
        self.kv = kv
        self.clock = clock
        self.replica = replica
        self.store = EventStore(kv, keys=keys)
        self.view = View()
        self.cluster = Cluster()
        self.view.observe(self._account)
        self.commands = Commands(store=self.store, view=self.view, clock=clock)
        self.follower = Follower(store=self.store, view=self.view, clock=clock, on_loaded=self._account_all)
        self.queries = Queries(view=self.view, cluster=self.cluster, clock=clock)
        self.presence = Presence(
            registry=Registry(kv, keys=keys),
            replica=replica,
            about={"address": address, "version": VERSION, "started_ms": clock.now_ms()},
            clock=clock,
            on_lost=lambda: self.dispatcher.restart_sessions(),
        )
        self.authenticator = Authenticator(view=self.view, clock=clock)
        self.authorizer = Authorizer(self.view)
        self.dispatcher = Dispatcher(
            replica=replica,
            view=self.view,
            commands=self.commands,
            clock=clock,
            presence=self.presence,
            authenticate=self.authenticator.node,
        )
        self._keys = keys
        self._elections = {
            role: Election(kv, role, replica, str(clock.now_ms()).encode(), keys=keys)
            for role in (f"zone/{DEFAULT_ZONE}", CHORES)
        }
        self.leaderships = [
            self._leadership(f"zone/{DEFAULT_ZONE}", self._lead_zone),
            self._leadership(CHORES, self._lead_chores),
        ]

    def _leadership(self, role: str, duty: Duty) -> Leadership:
        return Leadership(
            role=role, campaign=self._elections[role].campaign, duty=duty, view=self.view, newest=self._newest
        )

    async def _newest(self, after_revision: int) -> int:
        return await self.store.newest_event(after_revision=after_revision)

    # ---- what leaders do

    async def _lead_zone(self, fence: Guard) -> None:
        common = {"zone": DEFAULT_ZONE, "view": self.view, "commands": self.commands, "clock": self.clock}
        async with asyncio.TaskGroup() as group:
            group.create_task(WorkloadController(**common, cluster=self.cluster, fence=fence).run())  # type: ignore[arg-type]
            group.create_task(NodeController(**common, presence=self.presence, fence=fence).run())  # type: ignore[arg-type]

    async def _lead_chores(self, fence: Guard) -> None:
        await keep_retention(Retention(self.kv, self.store), clock=self.clock, fence=fence)

    # ---- scheduling's accounting, in step with the view

    def _account(self, change: ViewChange) -> None:
        if change.kind == "Node":
            if change.after is None:
                assert change.before is not None
                self.cluster.drop_node(change.before.metadata.name)
            else:
                self.cluster.set_node(change.after)  # type: ignore[arg-type]
        elif change.kind == "Container":
            if change.after is None:
                self.cluster.drop_container(change.uid)
            else:
                self.cluster.set_container(change.after)  # type: ignore[arg-type]

    def _account_all(self) -> None:
        self.cluster.clear()
        for node in self.view.all("Node"):
            self.cluster.set_node(node)
        for container in self.view.all("Container"):
            self.cluster.set_container(container)
        self.dispatcher.restart_sessions()

    # ---- loops

    async def run(self) -> None:
        """All loops, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.follower.run())
            group.create_task(self.presence.run())
            group.create_task(self._ping())
            group.create_task(watch_space(self.kv))
            for leadership in self.leaderships:
                group.create_task(leadership.run())

    async def _ping(self) -> None:
        """Notices that the store is away although nobody writes, and that it is back."""
        while True:
            try:
                async with asyncio.timeout(PING_TIMEOUT_S):
                    await self.kv.range(b"\0")
            except (TimeoutError, store_errors.StoreError) as error:
                self.follower.out_of_reach(str(error) or f"no answer within {PING_TIMEOUT_S:.0f} s")
            else:
                if self.view.synced:
                    self.follower.in_reach()
            await asyncio.sleep(PING_EVERY_S)

    async def leaders(self) -> list[tuple[str, str, int]]:
        """(role, replica, since in ms) of each role that has a leader. Raises StoreError."""
        found = []
        for role, election in self._elections.items():
            leader = await election.leader()
            if leader is not None:
                found.append((role, leader.replica_id, int(leader.value or 0)))
        return found

    def stale_since_ms(self) -> int:
        return self.follower.stale_since_ms

    def health(self) -> HealthReport:
        if not self.view.synced:
            return HealthReport(ready=False, reasons=("the log has not been read yet",))
        return HealthReport(ready=True)

    # ---- services

    def services(self) -> list[tuple[ServiceDescriptor, object]]:
        """Every service's descriptor with its servicer, for the gateway."""
        view, clock, agents = self.view, self.clock, self.dispatcher
        applier = Applier(
            view=view, commands=self.commands, cluster=self.cluster, authorizer=self.authorizer, clock=clock
        )
        servicers = {
            "SystemService": SystemService(),
            "ResourceService": ResourceService(
                view=view,
                queries=self.queries,
                commands=self.commands,
                applier=applier,
                authorizer=self.authorizer,
                clock=clock,
                stale_since_ms=self.stale_since_ms,
            ),
            "WorkloadService": self._workload_service(agents),
            "UsageService": UsageService(
                view=view, queries=self.queries, agents=agents, authorizer=self.authorizer, clock=clock
            ),
            "EventService": EventService(view=view, store=self.store, authorizer=self.authorizer),
            "AdminService": AdminService(
                replica=self.replica,
                view=view,
                store=self.store,
                kv=self.kv,
                commands=self.commands,
                agents=agents,
                presence=self.presence,
                clock=clock,
                leaders=self.leaders,
                stale_since_ms=self.stale_since_ms,
            ),
        }
        return [(services_pb2.DESCRIPTOR.services_by_name[name], servicer) for name, servicer in servicers.items()]

    def _workload_service(self, agents: AgentLink) -> WorkloadService:
        explainer = Explainer(
            view=self.view,
            queries=self.queries,
            cluster=self.cluster,
            clock=self.clock,
            stale_since_ms=self.stale_since_ms,
        )
        return WorkloadService(
            view=self.view,
            commands=self.commands,
            agents=agents,
            explainer=explainer,
            logs=LogReader(view=self.view, agents=agents, clock=self.clock),
            bridge=ExecBridge(view=self.view, agents=agents, authorizer=self.authorizer),
        )


async def run(config: ControllerConfig, stop: asyncio.Event) -> None:
    """A replica on real etcd and real sockets, until `stop` is set."""
    clock = Clock()
    replica = config.replica or f"{config.hostname}-{clock.new_id()[-6:]}"
    async with AsyncExitStack() as stack:
        kv = await stack.enter_async_context(EtcdKV(config.etcd))
        plane = ControlPlane(
            kv=kv,
            keys=Keys(config.prefix.encode()),
            replica=replica,
            address=f"http://{config.http_host}:{config.http_port}",
            clock=clock,
        )
        await stack.enter_async_context(plane.store)
        async with asyncio.TaskGroup() as group:
            loops = group.create_task(plane.run())
            serving = group.create_task(_serve(config, plane, kv))
            stopping = group.create_task(stop.wait())
            await asyncio.wait([loops, serving, stopping], return_when=asyncio.FIRST_COMPLETED)
            for task in (serving, loops, stopping):
                task.cancel()


async def _serve(config: ControllerConfig, plane: ControlPlane, kv: EtcdKV) -> None:
    """Check etcd, make the first things, then open the doors."""
    while True:
        try:
            await kv.check_versions()
            break
        except store_errors.Unavailable as error:
            log.warning("waiting for etcd", endpoints=config.etcd, why=str(error))
            await asyncio.sleep(1.0)
    await plane.view.wait_for(0)
    await Bootstrap(view=plane.view, commands=plane.commands, clock=plane.clock).run(
        admin_token_file=config.admin_token_file, node_token_file=config.node_token_file
    )
    server = grpc.aio.server(options=GRPC_OPTIONS)
    agent_pb2_grpc.add_AgentServiceServicer_to_server(plane.dispatcher, server)
    gateway = Gateway(
        services=plane.services(),
        authenticate=plane.authenticator.user,
        authorize=plane.authorizer.check_call,
        health=plane.health,
        registry=_metrics(plane),
        title="PWM",
        version=VERSION,
    )
    try:
        server.add_insecure_port(f"{config.agent_host}:{config.agent_port}")
        await server.start()
        port = await gateway.start(config.http_host, config.http_port)
        log.info("serving", replica=plane.replica, http=f"{config.http_host}:{port}", agents=config.agent_port)
        await asyncio.Event().wait()
    finally:
        await gateway.stop(STOP_GRACE_S)
        await server.stop(STOP_GRACE_S)


def _metrics(plane: ControlPlane) -> CollectorRegistry:
    registry = CollectorRegistry()
    gauges: dict[str, tuple[str, Callable[[], float]]] = {
        "pwm_view_revision": ("Revision the view has folded", lambda: plane.view.revision),
        "pwm_view_streams": ("Live streams in the view", lambda: plane.view.streams),
        "pwm_view_rebuilds": ("Times the view was built anew", lambda: plane.follower.rebuilds),
        "pwm_store_stale": ("1 while the store is out of reach", lambda: float(bool(plane.follower.stale_since_ms))),
        "pwm_sessions": ("Agents with a session here", lambda: len(plane.dispatcher.agents())),
        "pwm_leading": ("Roles this replica leads", lambda: sum(x.leading for x in plane.leaderships)),
    }
    for name, (text, read) in gauges.items():
        Gauge(name, text, registry=registry).set_function(read)
    return registry


def main(config: ControllerConfig) -> int:
    """`pwm controller`: runs until SIGTERM or SIGINT. Returns the exit code."""
    import uvloop

    daemon_log.configure(level=config.log_level, as_json=config.log_json)

    async def until_signal() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await run(config, stop)

    code = 0
    try:
        uvloop.run(until_signal())
    except* store_errors.VersionRefused as refused:
        log.error("etcd refused", why=str(refused.exceptions[0]))
        code = 1
    except* OSError as error:
        log.error("cannot listen", why=str(error.exceptions[0]))
        code = 1
    return code
