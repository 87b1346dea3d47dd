"""What serves the users of a control plane replica, made of its parts."""

from google.protobuf.descriptor import ServiceDescriptor

from pwm.api.v1 import services_pb2
from pwm.controlplane.plane import ControlPlane
from pwm.controlplane.replicas import Replicas
from pwm.controlplane.services.accounts import AccountReader, LimitService
from pwm.controlplane.services.admin import AdminService
from pwm.controlplane.services.applying import Applier
from pwm.controlplane.services.audit import AuditReader
from pwm.controlplane.services.cluster_status import ClusterStatus
from pwm.controlplane.services.credits import CreditService
from pwm.controlplane.services.drill import Drill
from pwm.controlplane.services.events import EventService
from pwm.controlplane.services.exec import ExecBridge
from pwm.controlplane.services.explaining import Explainer
from pwm.controlplane.services.logins import LoginService
from pwm.controlplane.services.logs import LogReader
from pwm.controlplane.services.newest_events import NewestEvents
from pwm.controlplane.services.notices import NoticeService
from pwm.controlplane.services.resources import ResourceService
from pwm.controlplane.services.restore import Restore
from pwm.controlplane.services.secrets import SecretApplier
from pwm.controlplane.services.system import SystemService
from pwm.controlplane.services.tokens import TokenService
from pwm.controlplane.services.usage import UsageService
from pwm.controlplane.services.workloads import WorkloadService


def servicers(plane: ControlPlane) -> list[tuple[ServiceDescriptor, object]]:
    """Every service's descriptor with what serves it, for the gateway."""
    view, clock = plane.view, plane.clock
    applier = Applier(
        view=view,
        commands=plane.commands,
        cluster=plane.cluster,
        authorizer=plane.authorizer,
        secrets=SecretApplier(view=view, secrets=plane.secrets),
        notices=plane.notice_settings,
        registries=plane.registries,
        treasury=plane.treasury,
        clock=clock,
    )
    newest_events = NewestEvents(view, plane.store, lambda: plane.follower.changed_last)
    served = {
        "SystemService": SystemService(
            clock,
            plane.authorizer,
            plane.joining,
            accounts=AccountReader(view=view, cluster=plane.cluster),
            treasury=plane.treasury,
        ),
        "ResourceService": ResourceService(
            view=view,
            queries=plane.queries,
            commands=plane.commands,
            applier=applier,
            authorizer=plane.authorizer,
            clock=clock,
            stale_since_ms=plane.stale_since_ms,
            store_revision=plane.store.revision,
            observe_contact=plane.presence.observe,
            newest_events=newest_events,
        ),
        "WorkloadService": _workloads(plane),
        "UsageService": UsageService(
            view=view, queries=plane.queries, agents=plane.agents, authorizer=plane.authorizer, clock=clock
        ),
        "EventService": EventService(
            audit=AuditReader(log=plane.audit_log, authorizer=plane.authorizer, clock=clock),
            view=view,
            store=plane.store,
            authorizer=plane.authorizer,
            clock=clock,
            stale_since_ms=plane.stale_since_ms,
            newest=newest_events,
        ),
        "TokenService": TokenService(
            view=view,
            commands=plane.commands,
            authorizer=plane.authorizer,
            clock=clock,
            uses=plane.token_uses,
            stale_since_ms=plane.stale_since_ms,
        ),
        "LoginService": LoginService(
            provider=plane.provider,
            key=plane.cluster_key,
            view=view,
            commands=plane.commands,
            clock=clock,
            journal=plane.audit,
        ),
        "CreditService": CreditService(
            treasury=plane.treasury,
            view=view,
            store=plane.store,
            authorizer=plane.authorizer,
            stale_since_ms=plane.stale_since_ms,
        ),
        "LimitService": LimitService(
            view=view, accounts=AccountReader(view=view, cluster=plane.cluster), authorizer=plane.authorizer
        ),
        "NoticeService": NoticeService(view=view, commands=plane.commands, settings=plane.notice_settings),
        "AdminService": _admin(plane),
    }
    return [(services_pb2.DESCRIPTOR.services_by_name[name], servicer) for name, servicer in served.items()]


def _admin(plane: ControlPlane) -> AdminService:
    replicas = Replicas(replica=plane.replica, peers=plane.peers, door=plane.peer_door)
    status = ClusterStatus(
        replica=plane.replica,
        view=plane.view,
        store=plane.store,
        kv=plane.kv,
        presence=plane.presence,
        replicas=replicas,
        clock=plane.clock,
        leaders=plane.leaders,
        roles=plane.roles.wanted,
        times=plane.times,
        stale_since_ms=plane.stale_since_ms,
        doubt=lambda: plane.lineage.doubt,
    )
    return AdminService(
        view=plane.view,
        store=plane.store,
        audit_log=plane.audit_log,
        commands=plane.commands,
        clock=plane.clock,
        presence=plane.presence,
        status=status,
        drill=Drill(status=status, replicas=replicas, clock=plane.clock),
        restore=Restore(lineage=plane.lineage, store=plane.store, view=plane.view, replicas=replicas),
        authorizer=plane.authorizer,
        joining=plane.joining,
    )


def _workloads(plane: ControlPlane) -> WorkloadService:
    explainer = Explainer(
        view=plane.view,
        queries=plane.queries,
        cluster=plane.cluster,
        clock=plane.clock,
        stale_since_ms=plane.stale_since_ms,
    )
    return WorkloadService(
        view=plane.view,
        commands=plane.commands,
        agents=plane.agents,
        explainer=explainer,
        logs=LogReader(view=plane.view, agents=plane.agents, clock=plane.clock),
        bridge=ExecBridge(view=plane.view, agents=plane.agents, authorizer=plane.authorizer, audit=plane.audit),
        tickets=plane.tickets,
        authorizer=plane.authorizer,
        clock=plane.clock,
    )
