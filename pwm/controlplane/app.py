"""A controller replica as a process: the control plane's parts behind a gRPC and an HTTP server.

Agents and other replicas come through the one, users through the other. `plane` has the parts. A loop that
fails takes the process down, and whoever runs it starts it again: state is in the store, so nothing is lost.
"""

import asyncio
import secrets
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack

import grpc
import structlog
from prometheus_client import CollectorRegistry, Gauge

from pwm import daemon_log
from pwm.api.v1 import agent_pb2_grpc, peer_pb2_grpc
from pwm.controlplane.bootstrap import Bootstrap, write_private
from pwm.controlplane.clock import Clock
from pwm.controlplane.cluster_key import ClusterKey, ClusterKeyError
from pwm.controlplane.config import ControllerConfig, UnusableFile
from pwm.controlplane.core.antechamber import within
from pwm.controlplane.credentials import CannotServe, Credentials, GivenCertificate
from pwm.controlplane.delivery.courier import Courier
from pwm.controlplane.garbage import look_for_garbage
from pwm.controlplane.gateway.arrivals import room
from pwm.controlplane.gateway.doorkeeper import Doorkeeper
from pwm.controlplane.gateway.gateway import Gateway
from pwm.controlplane.oidc.provider import Provider
from pwm.controlplane.oidc.settings import BadSettings
from pwm.controlplane.peers import dial_insecure, dial_with
from pwm.controlplane.plane import ControlPlane
from pwm.controlplane.servicers import servicers
from pwm.controlplane.store import errors as store_errors
from pwm.controlplane.store.etcd import EtcdKV
from pwm.controlplane.store.etcd_quota import Quotas
from pwm.controlplane.store.keys import Keys
from pwm.version import VERSION

log = structlog.get_logger(__name__)

# By name: what it is, and how to read it.
Gauges = dict[str, tuple[str, Callable[[], float]]]

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
    # Of agents and controllers on a slow line; with TLS nobody without a certificate stays for longer.
    ("grpc.server_handshake_timeout_ms", 10_000),
)

# What they say decides who may do what: open streams are looked at again when one of them changes.
KINDS_OF_ACCESS = frozenset({"Token", "User", "Role", "Group"})


async def run(config: ControllerConfig, stop: asyncio.Event) -> None:
    """A replica on real etcd and real sockets, until `stop` is set."""
    clock = Clock()
    replica = config.replica or f"{config.hostname}-{clock.new_id()[-6:]}"
    async with AsyncExitStack() as stack:
        kv = await stack.enter_async_context(
            EtcdKV(config.etcd, credentials=config.etcd_credentials, quota_of=Quotas(tls=config.etcd_tls))
        )
        keys = Keys(config.prefix.encode())
        cluster_key = ClusterKey.load_or_make(config.cluster_key_file) if config.cluster_key_file else None
        credentials = _credentials(config, kv, keys, replica, clock, cluster_key) if config.tls else None
        provider = await stack.enter_async_context(Provider(config.oidc)) if config.oidc else None
        plane = ControlPlane(
            kv=kv,
            keys=keys,
            replica=replica,
            address=f"{config.http_scheme}://{config.reached_by(config.http_host)}:{config.http_port}",
            peer_address=f"{config.reached_by(config.agent_host)}:{config.agent_port}",
            peer_token=secrets.token_urlsafe(32),
            clock=clock,
            times=config.times,
            credit_policy=config.credit_policy,
            courier=Courier(config.notices),
            registries=config.registries,
            idle_policy=config.idle,
            cluster_key=cluster_key,
            provider=provider,
            audit_kept_ms=config.audit_keep_ms,
            credentials=credentials,
            dial_peer=dial_with(credentials.dialling) if credentials else dial_insecure,
        )
        await stack.enter_async_context(plane.store)
        async with asyncio.TaskGroup() as group:
            certified = asyncio.Event()
            loops = group.create_task(_run_loops(plane, certified))
            serving = group.create_task(_serve(config, plane, kv, certified))
            stopping = group.create_task(stop.wait())
            garbage = group.create_task(look_for_garbage())
            await asyncio.wait([loops, serving, stopping], return_when=asyncio.FIRST_COMPLETED)
            for task in (serving, loops, stopping, garbage):
                task.cancel()


def _credentials(
    config: ControllerConfig, kv: EtcdKV, keys: Keys, replica: str, clock: Clock, cluster_key: ClusterKey | None
) -> Credentials:
    assert cluster_key is not None, "there is TLS"
    given = GivenCertificate(config.tls_cert, config.tls_key) if config.tls_cert and config.tls_key else None
    return Credentials(
        kv,
        keys=keys,
        cluster_key=cluster_key,
        clock=clock,
        replica=replica,
        hosts=config.tls_hosts,
        life_ms=config.certificate_life_ms,
        given=given,
    )


async def _run_loops(plane: ControlPlane, certified: asyncio.Event) -> None:
    """Other replicas are dialled with a certificate, so there has to be one."""
    await certified.wait()
    async with asyncio.TaskGroup() as group:
        group.create_task(plane.run())
        if plane.credentials is not None:
            group.create_task(plane.credentials.run())


async def _serve(config: ControllerConfig, plane: ControlPlane, kv: EtcdKV, certified: asyncio.Event) -> None:
    """Check etcd, make the first things, then open the doors."""
    credentials = plane.credentials
    while True:
        try:
            await kv.check_versions()
            await plane.secrets.check_key(kv)
            if credentials is not None:
                await credentials.load()
            break
        except store_errors.Unavailable as error:
            log.warning("waiting for etcd", endpoints=config.etcd, why=str(error))
            await asyncio.sleep(1.0)
    certified.set()
    await plane.view.wait_for(0)
    await Bootstrap(view=plane.view, commands=plane.commands, clock=plane.clock).run(
        admin_token_file=config.admin_token_file, node_token_file=config.node_token_file
    )
    server = grpc.aio.server(options=GRPC_OPTIONS)
    agent_pb2_grpc.add_AgentServiceServicer_to_server(plane.dispatcher, server)
    peer_pb2_grpc.add_PeerServiceServicer_to_server(plane.peer_door, server)
    door = Doorkeeper(
        config.door,
        proxies=config.trusted_proxies,
        unlimited=plane.authorizer.runs_the_cluster,
        journal=plane.audit,
    )
    registry = _metrics(plane, door)
    gateway = Gateway(
        services=servicers(plane),
        authenticate=plane.authenticator.user,
        recognize=plane.authenticator.recognize,
        authorize=plane.authorizer.check_of,
        redeem=plane.tickets.redeem,
        health=plane.health,
        registry=registry,
        door=door,
        title="PWM",
        version=VERSION,
        most_streams=config.streams_per_user,
        connections=within(config.connections, room()),
        tls=credentials.https if credentials is not None else None,
    )
    _gauges(registry, {
        "pwm_strangers": ("Connections over which no valid token came", lambda: gateway.strangers),
        "pwm_strangers_pushed_out": ("Such connections that had to go for newer ones", lambda: gateway.pushed_out),
    })  # fmt: skip
    plane.view.observe(lambda change: gateway.recheck_soon() if change.kind in KINDS_OF_ACCESS else None)
    try:
        if credentials is not None:
            _write_authorities(config, credentials)
            server.add_secure_port(f"{config.agent_host}:{config.agent_port}", credentials.agents())
        else:
            log.warning("no TLS: whoever is on the way can read and change what is said")
            server.add_insecure_port(f"{config.agent_host}:{config.agent_port}")
        await server.start()
        port = await gateway.start(config.http_host, config.http_port)
        log.info("serving", replica=plane.replica, http=f"{config.http_host}:{port}", agents=config.agent_port)
        await asyncio.Event().wait()
    finally:
        plane.peer_door.leave()
        # Agents go to another replica at once, and with them shells and logs, whose clients are sent away now.
        plane.dispatcher.restart_sessions()
        await asyncio.gather(server.stop(STOP_GRACE_S), gateway.stop(STOP_GRACE_S))


def _write_authorities(config: ControllerConfig, credentials: Credentials) -> None:
    """Now, and whenever others are trusted."""
    file = config.ca_file
    if file is None:
        return

    def write() -> None:
        write_private(file, credentials.roots)

    write()
    credentials.observe(write)


def _metrics(plane: ControlPlane, door: Doorkeeper) -> CollectorRegistry:
    registry = CollectorRegistry()
    gauges: Gauges = {
        "pwm_view_revision": ("Revision the view has folded", lambda: plane.view.revision),
        "pwm_view_streams": ("Live streams in the view", lambda: plane.view.streams),
        "pwm_view_rebuilds": ("Times the view was built anew", lambda: plane.follower.rebuilds),
        "pwm_store_stale": ("1 while the store is out of reach", lambda: float(bool(plane.follower.stale_since_ms))),
        "pwm_sessions": ("Agents with a session here", lambda: len(plane.dispatcher.agents())),
        "pwm_door_refused": ("Requests sent away for asking too much", lambda: door.refused),
        "pwm_door_bans": ("Bans of addresses that sent wrong tokens", lambda: door.bans),
        "pwm_leading": ("Roles this replica leads", lambda: len(plane.roles.led())),
    }
    _gauges(registry, gauges)
    return registry


def _gauges(registry: CollectorRegistry, gauges: Gauges) -> None:
    for name, (text, read) in gauges.items():
        Gauge(name, text, registry=registry).set_function(read)


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
    except* CannotServe as error:
        log.error("cannot serve with TLS", why=str(error.exceptions[0]))
        code = 1
    except* BadSettings as unfit:
        log.error("provider to log in at refused", why=str(unfit.exceptions[0]))
        code = 1
    except* ClusterKeyError as unusable:
        log.error("cluster key refused", why=str(unusable.exceptions[0]))
        code = 1
    except* UnusableFile as unusable_file:
        log.error("settings refused", why=str(unusable_file.exceptions[0]))
        code = 1
    except* OSError as error:
        log.error("cannot listen", why=str(error.exceptions[0]))
        code = 1
    return code
