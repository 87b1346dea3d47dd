"""The zone leader's watch over GPUs that nobody uses: it warns their workloads, and stops them (`core.idle`).

Agents say with their heartbeats how long each GPU has not been used. A heartbeat reaches the replica that the agent is
connected to, so the others are asked, but only while there is a workload that the rule is about at all. The measured
times are the agents': a new leader goes on where the last one was. What a replica knows may be old, for an agent that
is gone or hangs; so it counts only as long as something new keeps coming.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from pwm.api.v1.agent_pb2 import ContainerActivity
from pwm.api.v1.common_pb2 import Actor
from pwm.api.v1.events_pb2 import WorkloadDesired
from pwm.api.v1.workload_pb2 import ContainerStatus
from pwm.controlplane.agentlink import AgentLink
from pwm.controlplane.clock import Clock
from pwm.controlplane.commands import Commands
from pwm.controlplane.core.decide import Change, change
from pwm.controlplane.core.idle import IdlePolicy, judge, subject
from pwm.controlplane.core.scheduling.demand import zone_of
from pwm.controlplane.errors import ApiError
from pwm.controlplane.store.commits import Guard
from pwm.controlplane.view import View

log = structlog.get_logger(__name__)

ACTOR = Actor(type=Actor.CONTROLLER, name="idle")
# What was sent longer ago says nothing of now. Heartbeats come each 5 s or more often.
STALE_AFTER_S = 60.0


@dataclass(slots=True)
class _Heard:
    """The last word of a node: when it was said, by its clock, and when it was first seen here, by this one's."""

    said: int
    seen_s: float


class IdleController:
    """Runs for one term of leading `zone`; make a new one for the next."""

    def __init__(
        self,
        *,
        zone: str,
        view: View,
        commands: Commands,
        agents: AgentLink,
        clock: Clock,
        fence: Guard,
        policy: IdlePolicy,
    ) -> None:
        self._zone = zone
        self._view = view
        self._commands = commands
        self._agents = agents
        self._clock = clock
        self._fence = fence
        self._policy = policy
        self._heard: dict[str, _Heard] = {}

    async def run(self) -> None:
        """Until cancelled. Raises FenceLost when another replica leads."""
        while True:
            await asyncio.sleep(self._policy.beat_ms / 1000)
            try:
                await self.turn()
            except ApiError as error:
                log.warning("idle GPUs wait", why=error.message)

    async def turn(self) -> None:
        """Once."""
        suspects = self._suspects()
        if not suspects:
            return
        await self._agents.refresh_usage()
        activity = self._activity({node for nodes in suspects.values() for node in nodes})
        for uid in suspects:
            await self._commands.run(self._decision(uid, activity), actor=ACTOR, guards=(self._fence,))

    def _suspects(self) -> dict[str, set[str]]:
        """Workloads that the rule is about now, with the nodes that have GPUs of them."""
        now_ms = self._clock.now_ms()
        found: dict[str, set[str]] = {}
        for uid in self._holding_gpus():
            workload = self._view.get("Workload", uid)
            if workload is None or zone_of(workload.spec.zone) != self._zone:
                continue
            holders = subject(workload, self._view.containers_of(uid), self._policy, now_ms=now_ms)
            if holders:
                found[uid] = {container.spec.node for container in holders}
        return found

    def _holding_gpus(self) -> set[str]:
        """Uids of workloads that have a GPU."""
        return {
            container.spec.workload_uid
            for node in self._view.all("Node")
            if node.status.inventory.gpus
            for container in self._view.containers_on(node.metadata.name)
            if container.spec.gpu_uuids and container.status.phase == ContainerStatus.RUNNING
        }

    def _activity(self, nodes: set[str]) -> dict[str, ContainerActivity]:
        """What these nodes last said of their containers, if that was lately."""
        now_s, found = self._clock.monotonic_s(), dict[str, ContainerActivity]()
        self._heard = {node: heard for node, heard in self._heard.items() if node in nodes}
        for node in nodes:
            usage = self._agents.usage(node)
            if usage is None:
                continue
            heard = self._heard.get(node)
            if heard is None or heard.said != usage.time.ToNanoseconds():
                heard = self._heard[node] = _Heard(usage.time.ToNanoseconds(), now_s)
            if now_s - heard.seen_s < STALE_AFTER_S:
                found.update((activity.uid, activity) for activity in usage.activity)
        return found

    def _decision(self, uid: str, activity: dict[str, ContainerActivity]) -> Callable[[], list[Change]]:
        def decide() -> list[Change]:
            workload = self._view.get("Workload", uid)
            if workload is None:
                return []
            containers = self._view.containers_of(uid)
            payloads = judge(workload, containers, activity, self._policy, now_ms=self._clock.now_ms())
            if payloads and isinstance(payloads[0], WorkloadDesired):
                log.info("stopping an idle workload", workload=workload.metadata.name, group=workload.metadata.group)
            return [change(workload, *payloads)] if payloads else []

        return decide
