"""How the control plane is: every replica, who leads what, etcd, agents, and what an admin should know.

Everything is asked at this moment, of everybody at once, and bounded in time: this is what one looks at when
something is wrong, so whoever does not answer is a line of the answer and never the reason for having none. A
replica is behind by the revisions between what it has folded and the newest event there was when it was asked.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable

from pwm.api.v1 import services_pb2 as api
from pwm.api.v1.node_pb2 import NodeStatus
from pwm.api.v1.peer_pb2 import ConnectedAgent, DescribeResponse
from pwm.api.v1.store_pb2 import Doubt
from pwm.controlplane.clock import Clock
from pwm.controlplane.commands import timestamp
from pwm.controlplane.core.nodes import NodeTimes, Sight, silence, silence_said
from pwm.controlplane.core.scheduling.demand import zone_of
from pwm.controlplane.presence import Presence
from pwm.controlplane.replicas import Replicas
from pwm.controlplane.store import errors as store_errors
from pwm.controlplane.store.eventstore import EventStore
from pwm.controlplane.store.kv import KV, Status
from pwm.controlplane.store.space import DEFAULT_QUOTA_BYTES, WARN_SHARE
from pwm.controlplane.view import View
from pwm.enums import value_name

ETCD_TIMEOUT_S = 3.0
# Share of a heartbeat's silence after which an agent is called slow.
QUIET_AGENT_MS = 12_000
# A busy cluster writes some hundred events a second; whoever is further behind than that is not just busy.
BEHIND_REVISIONS = 500
# Times of events come from any replica's clock. A replica may take a while to say what its clock shows.
CLOCKS_DIFFER_MS = 3_000
CHORES = "cluster"

_ALARMS = {
    "NOSPACE": "it is out of space and refuses changes; PWM makes room, and if that does not help, raise its quota",
    "NO_QUORUM": "most of its members are away, and nothing can be changed until they are back",
    "CORRUPT": "a member's data is damaged; replace it from a healthy one",
}

# (role, replica, since in ms) of every role that has a leader. May raise StoreError.
Leaders = Callable[[], Awaitable[list[tuple[str, str, int]]]]


class ClusterStatus:
    def __init__(
        self,
        *,
        replica: str,
        view: View,
        store: EventStore,
        kv: KV,
        presence: Presence,
        replicas: Replicas,
        clock: Clock,
        leaders: Leaders,
        roles: Callable[[], Iterable[str]],
        times: NodeTimes,
        stale_since_ms: Callable[[], int],
        doubt: Callable[[], Doubt | None],
    ) -> None:
        """`roles` are all that should have a leader; `doubt`: whether etcd was restored from an older snapshot."""
        self._doubt = doubt
        self._replica = replica
        self._view = view
        self._store = store
        self._kv = kv
        self._presence = presence
        self._replicas = replicas
        self._clock = clock
        self._leaders = leaders
        self._roles = roles
        self._times = times
        self._stale_since_ms = stale_since_ms

    async def read(self) -> api.GetStatusResponse:
        status, trouble = await self._etcd()
        described = await self._replicas.describe()
        answer = api.GetStatusResponse(revision=self._view.revision, streams=self._view.streams)
        try:
            leaders = await self._leaders() if not trouble else []
            newest = await self._newest(described, status) if status and not trouble else 0
        except store_errors.StoreError as error:
            leaders, newest, trouble = [], 0, str(error)
        for role, replica, since_ms in leaders:
            at_work = replica in described and role in described[replica].roles
            answer.leaders.add(role=role, replica=replica, since=timestamp(since_ms), at_work=at_work)
        self._add_replicas(answer, described, newest)
        _add_etcd(answer, status)
        self._add_agents(answer, described)
        answer.warnings.extend(self._warnings(answer, status, trouble))
        return answer

    # ---- etcd

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

    async def _newest(self, described: dict[str, DescribeResponse], status: Status) -> int:
        """The newest event that was there before the replicas were asked, or a revision shortly before it."""
        seen = min(answer.revision for answer in described.values())
        return min(await self._store.newest_event(after_revision=seen), max(seen, status.revision))

    # ---- replicas

    def _add_replicas(self, answer: api.GetStatusResponse, described: dict[str, DescribeResponse], newest: int) -> None:
        now_ms = described[self._replica].time.ToMilliseconds()
        for replica, about in sorted(self._presence.replicas.items(), key=lambda item: str(item[1]["address"])):
            info = answer.replicas.add(
                id=replica,
                address=str(about["address"]),
                version=str(about["version"]),
                started_at=timestamp(int(str(about["started_ms"]))),
                answering=replica == self._replica,
                roles=[leader.role for leader in answer.leaders if leader.replica == replica],
                deaf=bool(about.get("deaf")),
            )
            said = described.get(replica)
            if said is None:
                info.trouble = "does not answer"
                continue
            info.revision = said.revision
            info.lag = max(0, newest - said.revision)
            info.agents = len(said.agents)
            info.clock_ahead_ms = said.time.ToMilliseconds() - now_ms if said.HasField("time") else 0
            if said.HasField("stale_since"):
                info.stale_since.CopyFrom(said.stale_since)

    # ---- agents

    def _add_agents(self, answer: api.GetStatusResponse, described: dict[str, DescribeResponse]) -> None:
        connected: dict[str, tuple[str, ConnectedAgent]] = {}
        for replica, said in described.items():
            for agent in said.agents:
                known = connected.get(agent.node)
                # An agent that has just moved may still be known at the replica it left.
                if known is None or known[1].epoch < agent.epoch:
                    connected[agent.node] = replica, agent
        for node in sorted(self._view.all("Node"), key=lambda n: n.metadata.name):
            replica, session = connected.get(node.metadata.name, ("", None))
            silent = silence_said(node, self._presence.contact(node.metadata.name))
            answer.agents.append(
                api.AgentStatus(
                    node=node.metadata.name,
                    phase=value_name(NodeStatus.Phase.Name, node.status.phase) + (" (disconnected)" if silent else ""),
                    replica=replica,
                    epoch=session.epoch if session else 0,
                    version=session.version if session else node.status.inventory.agent_version,
                    last_heard=session.last_heard if session else None,
                    problems=[f"{d.name}: {d.message}" for d in node.status.inventory.drivers if not d.ready],
                )
            )

    # ---- in plain words

    def _warnings(self, answer: api.GetStatusResponse, status: Status | None, trouble: str) -> list[str]:
        warnings = []
        doubt = self._doubt()
        if doubt is not None:
            warnings += [
                f"etcd was restored from an older snapshot, or exchanged: {doubt.why}",
                "nothing is changed until an admin decides; containers go on, and what you see is from before it",
                "`pwm admin accept-restore` goes on from what etcd holds now, after telling what that means",
            ]
        elif trouble:
            warnings.append(f"etcd cannot be reached ({trouble}): reads may be old, nothing can be changed")
        elif self._stale_since_ms():
            warnings.append("the log of changes is behind: what you see may be old")
        warnings += _of_etcd(answer, status)
        if not trouble and doubt is None:
            warnings += self._of_leaders(answer)
        warnings += _of_replicas(answer.replicas)
        warnings += self._of_zones()
        warnings += self._of_agents(answer)
        return warnings

    def _of_leaders(self, answer: api.GetStatusResponse) -> Iterable[str]:
        led = {leader.role: leader for leader in answer.leaders}
        here = {replica.id for replica in answer.replicas}
        for role in sorted(self._roles()):
            without = "nothing is cleaned up" if role == CHORES else "nothing is placed there"
            if role not in led:
                yield f"nobody leads {role}: {without} until a replica takes over"
            elif led[role].replica not in here:
                yield f"{role} is led by {led[role].replica}, which is not here: its lease ends in a few seconds"

    def _of_zones(self) -> Iterable[str]:
        """Zones where so many nodes are silent that none of them is given up."""
        zones: defaultdict[str, list[Sight]] = defaultdict(list)
        for node in self._view.all("Node"):
            zones[zone_of(node.spec.zone)].append((node, self._presence.contact(node.metadata.name)))
        for zone, sights in sorted(zones.items()):
            found = silence(sights, least_ms=self._times.grace_ms)
            if found.brake:
                yield f"zone {zone}: {found}" if len(zones) > 1 else str(found)

    def _of_agents(self, answer: api.GetStatusResponse) -> Iterable[str]:
        for agent in answer.agents:
            if agent.phase not in ("READY", "MAINTENANCE"):
                node = self._view.by_name("Node", agent.node)
                said = ""
                if node is not None:
                    said = silence_said(node, self._presence.contact(agent.node)) or node.status.reason.message
                yield f"node {agent.node} is {agent.phase}" + (f": {said}" if said else "")
            elif agent.replica and self._clock.now_ms() - agent.last_heard.ToMilliseconds() > QUIET_AGENT_MS:
                yield f"the agent of node {agent.node} has been quiet for a while"
            for problem in agent.problems:
                if agent.phase == "READY":
                    yield f"node {agent.node}: {problem}"


def _add_etcd(answer: api.GetStatusResponse, status: Status | None) -> None:
    for member in status.members if status else ():
        answer.etcd.append(
            api.EtcdMember(
                name=member.name,
                endpoint=member.address,
                version=member.version,
                reachable=not member.trouble,
                leader=member.leader,
                db_size_bytes=member.db_bytes,
                db_in_use_bytes=member.db_in_use_bytes,
                quota_bytes=member.quota_bytes or DEFAULT_QUOTA_BYTES,
                error=member.trouble,
            )
        )
    answer.alarms.extend(status.alarms if status else ())


def _of_etcd(answer: api.GetStatusResponse, status: Status | None) -> Iterable[str]:
    for member in status.members if status else ():
        if member.trouble:
            yield f"etcd member {member.name or member.address} is away: {member.trouble}"
            continue
        if member.refused or member.advice:
            yield member.refused or member.advice
        quota_bytes = member.quota_bytes or DEFAULT_QUOTA_BYTES
        if member.db_bytes >= WARN_SHARE * quota_bytes:
            yield f"etcd member {member.address} is at {100 * member.db_bytes // quota_bytes} % of its quota"
    for alarm in answer.alarms:
        yield f"etcd raised the alarm {alarm}" + (f": {_ALARMS[alarm]}" if alarm in _ALARMS else "")
    count = len(answer.etcd)
    if len(answer.replicas) > 1 and count == 1:
        yield "etcd has one member: while it is away nothing can be changed, however many controllers there are"
    elif len(answer.replicas) > 1 and count and count % 2 == 0:
        lost = (count - 1) // 2
        yield f"etcd has {count} members and survives the loss of {lost}, as with {count - 1}: use an odd number"


def _of_replicas(replicas: Iterable[api.ReplicaInfo]) -> Iterable[str]:
    for replica in replicas:
        if replica.trouble:
            led = f", and leads {', '.join(replica.roles)} until its lease ends" if replica.roles else ""
            yield f"replica {replica.id} ({replica.address}) {replica.trouble}: it hangs, or is cut off{led}"
        elif replica.HasField("stale_since") and not replica.answering:
            yield f"replica {replica.id} ({replica.address}) cannot reach etcd: what it shows is old"
        elif replica.lag > BEHIND_REVISIONS:
            yield f"replica {replica.id} ({replica.address}) is {replica.lag} changes behind: what it shows is old"
        if replica.deaf:
            yield f"no agent reaches replica {replica.id} ({replica.address}) at its port for agents"
        if abs(replica.clock_ahead_ms) > CLOCKS_DIFFER_MS:
            way = "ahead of" if replica.clock_ahead_ms > 0 else "behind"
            apart = f"{abs(replica.clock_ahead_ms) / 1000:.1f} s"
            yield f"the clock of replica {replica.id} ({replica.address}) is {apart} {way} that of the one that answers"
    versions = sorted({replica.version for replica in replicas})
    if len(versions) > 1:
        yield f"replicas run different versions ({', '.join(versions)}): finish the upgrade"
