"""A control plane replica's parts, wired, without any network of its own.

    store ── follower ──▶ view ──▶ queries ──▶ services
      ▲                    │                      │
      └──── commands ◀─────┴── controllers        ├── agents ──▶ dispatcher ◀──▶ agents connected here
                              (while leading)     │      └─────▶ peers ◀──▶ other replicas
                              roles               └── presence: who is here, who holds which session

`app` puts it behind gRPC and HTTP servers; the simulator runs the same parts on a simulated world. Loops that
depend on the store never fail for its absence; they wait.
"""

import asyncio
from collections.abc import Iterable
from functools import partial
from typing import Any

from pwm.controlplane.agents import Agents
from pwm.controlplane.audit import Audit, AuditLog
from pwm.controlplane.auth import Authenticator, Authorizer, Principal
from pwm.controlplane.books import Books
from pwm.controlplane.clock import Clock
from pwm.controlplane.cluster_key import ClusterKey
from pwm.controlplane.commands import Commands, name_key
from pwm.controlplane.controllers.chores import DEFAULT_AUDIT_KEPT_MS, keep_audit, keep_retention, watch_space
from pwm.controlplane.controllers.credits import CreditController
from pwm.controlplane.controllers.idle import IdleController
from pwm.controlplane.controllers.lost_notices import LostNotices
from pwm.controlplane.controllers.nodes import NodeController
from pwm.controlplane.controllers.notices import NoticeController
from pwm.controlplane.controllers.secrets import keep_sealed
from pwm.controlplane.controllers.tokens import forget_tokens
from pwm.controlplane.controllers.workloads import WorkloadController
from pwm.controlplane.core.credits import DEFAULT_POLICY, CreditPolicy
from pwm.controlplane.core.idle import DEFAULT_POLICY as IDLE_POLICY
from pwm.controlplane.core.idle import IdlePolicy
from pwm.controlplane.core.limits import GROUP, USER, Account
from pwm.controlplane.core.nodes import DEFAULT_TIMES, NodeTimes
from pwm.controlplane.core.registries import canonical
from pwm.controlplane.core.scheduling.cluster import Cluster
from pwm.controlplane.credentials import Credentials
from pwm.controlplane.delivery.courier import Courier, NoticeSettings
from pwm.controlplane.delivery.outbox import Outbox
from pwm.controlplane.dispatcher.admittance import Admittance
from pwm.controlplane.dispatcher.dispatcher import Dispatcher
from pwm.controlplane.follower import Follower
from pwm.controlplane.gateway.site import HealthReport
from pwm.controlplane.hearing import Hearing
from pwm.controlplane.leadership import Duty
from pwm.controlplane.memberships import Memberships
from pwm.controlplane.oidc.provider import Provider
from pwm.controlplane.peerdoor import PeerDoor
from pwm.controlplane.peers import Dial, Peers, Refused, connection_refused, dial_insecure
from pwm.controlplane.presence import Presence
from pwm.controlplane.queries import Queries
from pwm.controlplane.roles import CHORES, ZONE_PREFIX, Roles
from pwm.controlplane.secrets import Secrets
from pwm.controlplane.services.joining import Joining
from pwm.controlplane.store import errors as store_errors
from pwm.controlplane.store.commits import Guard, StreamId
from pwm.controlplane.store.election import leaders
from pwm.controlplane.store.eventstore import EventStore
from pwm.controlplane.store.guarded import BesideKV, GuardedKV
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.kv import KV
from pwm.controlplane.store.lineage import Lineage
from pwm.controlplane.store.registry import Registry
from pwm.controlplane.store.retention import Retention
from pwm.controlplane.tickets import Tickets
from pwm.controlplane.token_uses import TokenUses
from pwm.controlplane.treasury import Treasury
from pwm.controlplane.view import View, ViewChange
from pwm.version import VERSION

# How often the store is asked whether it is there, and how long it may take to say so.
PING_EVERY_S = 2.0
PING_TIMEOUT_S = 2.0
HEARING_BEAT_S = 1.0


class ControlPlane:
    """`run` its loops; hand its `servicers`, `dispatcher` and `peer_door` to servers."""

    def __init__(
        self,
        *,
        kv: KV,
        keys: Keys,
        replica: str,
        address: str,
        clock: Clock,
        times: NodeTimes = DEFAULT_TIMES,
        audit_kept_ms: int = DEFAULT_AUDIT_KEPT_MS,
        credit_policy: CreditPolicy = DEFAULT_POLICY,
        idle_policy: IdlePolicy = IDLE_POLICY,
        peer_address: str = "",
        peer_token: str = "",
        dial_peer: Dial = dial_insecure,
        peer_refuses: Refused = connection_refused,
        credentials: Credentials | None = None,
        cluster_key: ClusterKey | None = None,
        courier: Courier | None = None,
        registries: Iterable[str] = (),
        provider: Provider | None = None,
    ) -> None:
        """`credentials`: agents and replicas are known by their certificates; None: by tokens alone, without TLS.
        `provider`: where people log in, if not with tokens alone; then there is a cluster key.

        `address` is where users reach this replica, `peer_address` where agents and other replicas do; whoever
        shows the `peer_token` can read the store, where it is announced.
        """
        self.lineage = Lineage(
            kv,
            keys=keys,
            replica=replica,
            now_ms=clock.now_ms,
            new_id=clock.new_id,
            on_turn=self._lineage_turned,
        )
        self.kv = kv = GuardedKV(self.lineage)
        self.clock = clock
        self.times = times
        self._idle_policy = idle_policy
        self.replica = replica
        self.store = EventStore(kv, keys=keys)
        self.view = View()
        self.cluster = Cluster()
        self.view.observe(self._account)
        self.books = Books(view=self.view, clock=clock, policy=credit_policy)
        self.treasury = Treasury(books=self.books, view=self.view)
        self.audit = Audit(kv, keys=keys, clock=clock, replica=replica)
        self.audit_log = AuditLog(kv, keys=keys)
        self.secrets = Secrets(store=self.store, view=self.view, key=cluster_key)
        self.commands = Commands(
            store=self.store, view=self.view, clock=clock, versions=self._versions, witness=self.audit
        )
        self.follower = Follower(
            store=self.store, view=self.view, clock=clock, on_loaded=self._account_all, custody=self.lineage
        )
        self.queries = Queries(
            view=self.view,
            cluster=self.cluster,
            clock=clock,
            contact=lambda node: self.presence.contact(node),
            denial=self.treasury.denial,
        )
        self.presence = Presence(
            registry=Registry(BesideKV(self.lineage), keys=keys),
            replica=replica,
            about={
                "address": address,
                "peer": peer_address,
                "token": peer_token,
                "version": VERSION,
                "started_ms": clock.now_ms(),
            },
            clock=clock,
            on_lost=lambda: self.dispatcher.restart_sessions(),
        )
        self.token_uses = TokenUses(kv, keys=keys, clock=clock)
        self.authenticator = Authenticator(view=self.view, clock=clock, note_use=self.token_uses.note)
        self.authorizer = Authorizer(self.view, denied=self.audit.denied)
        self.tickets = Tickets(kv, keys=keys, authenticator=self.authenticator)
        self.credentials = credentials
        memberships = None
        if credentials is not None:
            memberships = Memberships(view=self.view, commands=self.commands, clock=clock, credentials=credentials)
        self.dispatcher = Dispatcher(
            replica=replica,
            view=self.view,
            commands=self.commands,
            clock=clock,
            presence=self.presence,
            admittance=Admittance(
                view=self.view,
                clock=clock,
                authenticate=self.authenticator.node,
                node_revision=self._node_revision,
                issuance=memberships,
            ),
            times=times,
            custody=self.lineage,
            give=self.secrets.given_to,
            issuance=memberships,
            gpu_used_from_percent=idle_policy.used_from_percent,
        )
        if credentials is not None:
            credentials.observe(self.dispatcher.reconfigure)
        self.peers = Peers(
            replica=replica, presence=self.presence, kv=kv, keys=keys, dial=dial_peer, refused=peer_refuses
        )
        self.agents = Agents(replica=replica, dispatcher=self.dispatcher, peers=self.peers, presence=self.presence)
        self.roles = Roles(
            kv=kv, keys=keys, replica=replica, view=self.view, clock=clock, presence=self.presence, duty=self._duty
        )
        self.peer_door = PeerDoor(
            replica=replica,
            token=peer_token,
            view=self.view,
            dispatcher=self.dispatcher,
            roles=self.roles,
            clock=clock,
            stale_since_ms=self.stale_since_ms,
            is_controller=credentials.is_controller if credentials is not None else None,
        )
        self.joining = Joining(
            view=self.view,
            commands=self.commands,
            clock=clock,
            credentials=credentials,
            memberships=memberships,
            replicas=lambda: self.presence.replicas.values(),
        )
        self._keys = keys
        self._courier = courier
        self.registries = frozenset(map(canonical, registries))
        self.provider = provider
        self.cluster_key = cluster_key
        self._audit_kept_ms = audit_kept_ms

    async def _node_revision(self, name: str) -> int:
        """At which the node of that name was changed last, in the store; 0: there is none. Raises StoreError."""
        named = await self.kv.range(self._keys.name(name_key("Node", "", name)))
        if not named.kvs:
            return 0
        head = await self.store.head(StreamId("Node", named.kvs[0].value.decode().partition("/")[2]))
        return head.revision if head is not None else 0

    def _versions(self) -> list[str]:
        """Of all replicas that are here."""
        return [VERSION, *(str(about["version"]) for about in self.presence.replicas.values())]

    # ---- what leaders do

    def _duty(self, role: str) -> Duty:
        if role == CHORES:
            return self._lead_chores
        return partial(self._lead_zone, role.removeprefix(ZONE_PREFIX))

    async def _lead_zone(self, zone: str, fence: Guard) -> None:
        common = {"zone": zone, "view": self.view, "commands": self.commands, "clock": self.clock}
        async with asyncio.TaskGroup() as group:
            workloads = WorkloadController(
                **common, cluster=self.cluster, fence=fence, denial=self.treasury.denial  # type: ignore[arg-type]
            )  # fmt: skip
            group.create_task(workloads.run())
            nodes = NodeController(**common, presence=self.presence, fence=fence, times=self.times)  # type: ignore[arg-type]
            group.create_task(nodes.run())
            idle = IdleController(**common, agents=self.agents, fence=fence, policy=self._idle_policy)  # type: ignore[arg-type]
            group.create_task(idle.run())

    async def _lead_chores(self, fence: Guard) -> None:
        credits = CreditController(
            treasury=self.treasury, view=self.view, commands=self.commands, store=self.store, fence=fence,
        )  # fmt: skip
        async with asyncio.TaskGroup() as group:
            group.create_task(credits.run())
            if self._courier is not None:
                group.create_task(self._notices(self._courier, fence).run())
            group.create_task(keep_retention(Retention(self.kv, self.store), clock=self.clock, fence=fence))
            group.create_task(keep_sealed(self.secrets))
            group.create_task(
                keep_audit(self.kv, keys=self._keys, clock=self.clock, fence=fence, kept_ms=self._audit_kept_ms)
            )
            group.create_task(
                forget_tokens(
                    view=self.view, commands=self.commands, clock=self.clock, uses=self.token_uses, fence=fence
                )
            )

    def _notices(self, courier: Courier, fence: Guard) -> NoticeController:
        return NoticeController(
            view=self.view,
            store=self.store,
            outbox=Outbox(self.kv, keys=self._keys, fence=fence),
            courier=courier,
            clock=self.clock,
            shown_as=self.queries.workload,
            agents=self.agents,
            may_read=self._may_read_output,
            given_up=LostNotices(view=self.view, commands=self.commands, fence=fence).note,
        )

    def _may_read_output(self, user: str, group: str) -> bool:
        """Whether `pwm logs` would show a user the output of a group's workloads."""
        return self.authorizer.may(Principal(user=self.view.by_name("User", user)), "logs", "Workload", group)

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
        elif change.kind in (USER, GROUP):
            self._account_limits(change.kind, change.before, change.after)

    def _account_limits(self, kind: str, before: Any, after: Any) -> None:
        metadata = (before if after is None else after).metadata
        self.cluster.set_limits(Account(kind, metadata.name), None if after is None else after.spec.limits.resources)

    def _account_all(self) -> None:
        self.cluster.clear()
        self.books.load()
        for node in self.view.all("Node"):
            self.cluster.set_node(node)
        for container in self.view.all("Container"):
            self.cluster.set_container(container)
        for kind in (USER, GROUP):
            for state in self.view.all(kind):
                self._account_limits(kind, None, state)
        self.dispatcher.restart_sessions()

    # ---- loops

    async def run(self) -> None:
        """All loops, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.follower.run())
            group.create_task(self.presence.run())
            group.create_task(self.dispatcher.run())
            group.create_task(self._ping())
            group.create_task(watch_space(self.kv))
            group.create_task(self.roles.run())
            group.create_task(self.peers.run())
            group.create_task(self.token_uses.run())
            group.create_task(self.audit.run())
            group.create_task(self._listen())

    async def _ping(self) -> None:
        """Notices that the store is away although nobody writes, and that it is back."""
        while True:
            try:
                async with asyncio.timeout(PING_TIMEOUT_S):
                    await self.lineage.check()
            except (TimeoutError, store_errors.StoreError) as error:
                self.follower.out_of_reach(str(error) or f"no answer within {PING_TIMEOUT_S:.0f} s")
            else:
                if self.lineage.doubt is not None:
                    self.follower.out_of_reach(self.lineage.doubt.why)
                elif self.view.synced:
                    self.follower.in_reach()
            await asyncio.sleep(PING_EVERY_S)

    def _lineage_turned(self) -> None:
        """The store has gone back, or it was decided what follows from that."""
        if self.lineage.doubt is None:
            self.view.distrust()
            self.audit.begin_anew()
        else:
            self.follower.out_of_reach(self.lineage.doubt.why)
        # As long as there was doubt nobody could be lost: nobody must be lost for it afterwards.
        self.presence.begin_anew()
        self.dispatcher.restart_sessions()

    async def _listen(self) -> None:
        """Notices that agents cannot reach this replica, and says so."""
        hearing = Hearing(
            clock=self.clock,
            connected_here=self.dispatcher.nodes,
            holder=self.presence.holder,
        )
        while True:
            self.presence.say(deaf=hearing.deaf())
            await asyncio.sleep(HEARING_BEAT_S)

    @property
    def notice_settings(self) -> NoticeSettings | None:
        """How notices are sent; None: not at all."""
        return self._courier.settings if self._courier is not None else None

    async def leaders(self) -> list[tuple[str, str, int]]:
        """(role, replica, since in ms) of each role that has a leader. Raises StoreError."""
        found = await leaders(self.kv, self._keys)
        return [(role, leader.replica_id, int(leader.value or 0)) for role, leader in sorted(found.items())]

    def stale_since_ms(self) -> int:
        return self.follower.stale_since_ms

    def health(self) -> HealthReport:
        if not self.view.synced:
            return HealthReport(ready=False, reasons=("the log has not been read yet",))
        return HealthReport(ready=True)
