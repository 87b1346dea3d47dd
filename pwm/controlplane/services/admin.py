"""What admins ask of the control plane itself: status, proof, credentials for agents."""

import asyncio
from collections.abc import Awaitable, Callable

from pwm.api.v1 import services_pb2 as api
from pwm.api.v1.events_pb2 import TokenIssued
from pwm.api.v1.identity_pb2 import TokenSpec
from pwm.api.v1.node_pb2 import NodeStatus
from pwm.controlplane.agentlink import AgentLink
from pwm.controlplane.auth import new_token, token_uid
from pwm.controlplane.clock import Clock
from pwm.controlplane.commands import Commands, timestamp
from pwm.controlplane.context import CallContext
from pwm.controlplane.core.authz import ALL
from pwm.controlplane.core.decide import Change
from pwm.controlplane.errors import unavailable
from pwm.controlplane.presence import Presence
from pwm.controlplane.store import errors as store_errors
from pwm.controlplane.store.eventstore import EventStore
from pwm.controlplane.store.kv import KV, Status
from pwm.controlplane.verify import verify
from pwm.controlplane.view import View

ETCD_TIMEOUT_S = 3.0
# Share of a heartbeat's silence after which an agent is called slow.
QUIET_AGENT_MS = 12_000


class AdminService:
    def __init__(
        self,
        *,
        replica: str,
        view: View,
        store: EventStore,
        kv: KV,
        commands: Commands,
        agents: AgentLink,
        clock: Clock,
        presence: Presence,
        leaders: Callable[[], Awaitable[list[tuple[str, str, int]]]],
        stale_since_ms: Callable[[], int],
    ) -> None:
        """`leaders` lists (role, replica, since in ms) of every role that has a leader."""
        self._replica = replica
        self._view = view
        self._store = store
        self._kv = kv
        self._commands = commands
        self._agents = agents
        self._clock = clock
        self._presence = presence
        self._leaders = leaders
        self._stale_since_ms = stale_since_ms

    async def GetStatus(self, request: api.GetStatusRequest, context: CallContext) -> api.GetStatusResponse:
        status, trouble = await self._etcd()
        answer = api.GetStatusResponse(revision=self._view.revision, streams=self._view.streams)
        for replica, value in sorted(self._presence.replicas.items()):
            info = answer.replicas.add(id=replica, address=str(value["address"]), version=str(value["version"]))
            info.started_at.CopyFrom(timestamp(int(str(value["started_ms"]))))
            if replica == self._replica:
                info.answering = True
                info.lag = max(0, status.revision - self._view.revision) if status else 0
        try:
            leaders = await self._leaders() if not trouble else []
        except store_errors.StoreError as error:
            leaders, trouble = [], str(error)
        answer.leaders.extend(
            api.LeaderStatus(role=role, replica=replica, since=timestamp(since)) for role, replica, since in leaders
        )
        for member in status.members if status else ():
            answer.etcd.append(
                api.EtcdMember(
                    endpoint=member.address,
                    version=member.version,
                    reachable=not member.trouble,
                    leader=member.leader,
                    db_size_bytes=member.db_bytes,
                    error=member.trouble,
                )
            )
        self._add_agents(answer)
        answer.warnings.extend(self._warnings(answer, status, trouble))
        return answer

    async def _etcd(self) -> tuple[Status | None, str]:
        try:
            async with asyncio.timeout(ETCD_TIMEOUT_S):
                status = await self._kv.status()
        except TimeoutError:
            return None, f"no answer within {ETCD_TIMEOUT_S:.0f} s"
        except store_errors.StoreError as error:
            return None, str(error)
        away = status.members and all(member.trouble for member in status.members)
        return status, "no member answers" if away else ""

    def _add_agents(self, answer: api.GetStatusResponse) -> None:
        connected = {agent.node: agent for agent in self._agents.agents()}
        for node in sorted(self._view.all("Node"), key=lambda n: n.metadata.name):
            agent = connected.get(node.metadata.name)
            answer.agents.append(
                api.AgentStatus(
                    node=node.metadata.name,
                    phase=NodeStatus.Phase.Name(node.status.phase),
                    replica=agent.replica if agent else "",
                    epoch=agent.epoch if agent else 0,
                    version=agent.version if agent else node.status.inventory.agent_version,
                    last_heard=timestamp(agent.last_heard_ms) if agent else None,
                    problems=[f"{d.name}: {d.message}" for d in node.status.inventory.drivers if not d.ready],
                )
            )

    def _warnings(self, answer: api.GetStatusResponse, status: Status | None, trouble: str) -> list[str]:
        warnings = []
        if trouble:
            warnings.append(f"etcd cannot be reached ({trouble}): reads may be old, nothing can be changed")
        elif self._stale_since_ms():
            warnings.append("the log of changes is behind: what you see may be old")
        for member in status.members if status else ():
            if member.trouble:
                warnings.append(f"etcd member {member.name or member.address} is away: {member.trouble}")
        warnings += [f"etcd raised the alarm {alarm}" for alarm in (status.alarms if status else ())]
        if not answer.leaders and not trouble:
            warnings.append("no replica leads: nothing is placed")
        for agent in answer.agents:
            if agent.phase not in ("READY", "MAINTENANCE"):
                node = self._view.by_name("Node", agent.node)
                said = node.status.reason.message if node is not None else ""
                warnings.append(f"node {agent.node} is {agent.phase}" + (f": {said}" if said else ""))
            elif agent.replica and self._clock.now_ms() - agent.last_heard.ToMilliseconds() > QUIET_AGENT_MS:
                warnings.append(f"the agent of node {agent.node} has been quiet for a while")
            warnings += [f"node {agent.node}: {problem}" for problem in agent.problems if agent.phase == "READY"]
        return warnings

    async def Verify(self, request: api.VerifyRequest, context: CallContext) -> api.VerifyResponse:
        try:
            return await verify(self._store, self._view)
        except store_errors.StoreError as error:
            raise unavailable(f"the log cannot be read now: {error}") from error

    async def CreateNodeToken(
        self, request: api.CreateNodeTokenRequest, context: CallContext
    ) -> api.CreateNodeTokenResponse:
        token = new_token()
        spec = TokenSpec(node=request.node or ALL, description=f"made by {context.principal.name}")
        if request.HasField("lifetime"):
            spec.expires_at.CopyFrom(timestamp(self._clock.now_ms() + request.lifetime.ToMilliseconds()))
        uid = token_uid(token)
        await self._commands.run(
            lambda: [Change("Token", uid, uid, "", None, (TokenIssued(spec=spec),))], actor=context.principal.actor
        )
        return api.CreateNodeTokenResponse(token=token)
