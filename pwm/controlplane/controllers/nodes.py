"""The zone leader's watch over nodes: ready, out of reach, lost, in maintenance, and what their loss means.

Liveness is not in the log: replicas announce the sessions they hold by leased keys. This loop compares
what they announce with each node's phase (`core.nodes`) and appends an event only when the phase or its reason
changes. That a node is silent or lost is appended on condition that nobody has heard of it in that very moment. Then
its containers are given up, in commits of their own: as often as needed, for it can be seen from the log what
is still to be done.
"""

import asyncio
from itertools import starmap

import structlog

from pwm.api.v1.common_pb2 import Actor, Reason
from pwm.api.v1.events_pb2 import ContainerReported
from pwm.api.v1.node_pb2 import Node, NodeStatus
from pwm.api.v1.workload_pb2 import Container, ContainerStatus, Workload
from pwm.controlplane.clock import Clock
from pwm.controlplane.commands import Commands
from pwm.controlplane.core.decide import Change, change, change_node_phase, report_container
from pwm.controlplane.core.nodes import NodeTimes, Sight, Verdict, brake_is_on, losses, verdicts
from pwm.controlplane.core.scheduling.demand import zone_of
from pwm.controlplane.errors import ApiError
from pwm.controlplane.presence import Presence
from pwm.controlplane.store import errors as store_errors
from pwm.controlplane.store.commits import Guard
from pwm.controlplane.view import View
from pwm.lifecycle import Owner

log = structlog.get_logger(__name__)

ACTOR = Actor(type=Actor.CONTROLLER, name="nodes")
BEAT_S = 1.0


class NodeController:
    def __init__(
        self,
        *,
        zone: str,
        view: View,
        commands: Commands,
        presence: Presence,
        clock: Clock,
        fence: Guard,
        times: NodeTimes,
    ) -> None:
        self._zone = zone
        self._view = view
        self._commands = commands
        self._presence = presence
        self._clock = clock
        self._fence = fence
        self._times = times
        # When the brake was last seen on.
        self._braked_s = float("-inf")
        # By the id of its message, which is replaced by each change: each node of the zone, with its name.
        self._known: dict[int, tuple[Node, str]] = {}
        # What was known when there was nothing to say about any node.
        self._quiet_since: tuple[int, int] | None = None
        # Those of which there is nothing to say as long as they are connected.
        self._settled: set[int] = set()

    async def run(self) -> None:
        """Until cancelled. Raises FenceLost when another replica leads."""
        while True:
            news = self._view.nodes, self._presence.news
            everyone, doubtful = self._look() if news != self._quiet_since else ([], [])
            # Until something changes there is no more to say than now.
            self._quiet_since = None if doubtful else news
            try:
                await self._judge(everyone, doubtful)
                await self._give_up([node for node, _ in doubtful if node.status.phase == NodeStatus.LOST])
            except ApiError as error:
                log.warning("node phases wait", why=error.message)
            await self._presence.wait_for_change(timeout_s=self._pause_s(doubtful))

    def _look(self) -> tuple[list[Sight], list[Sight]]:
        """All nodes of the zone, and those of them about which there may be something to say.

        When one of them changes there are thousands that are connected and just as they were: of these no more is read
        than names.
        """
        known = {}
        for node in self._view.all("Node"):
            found = self._known.get(id(node))
            if found is not None:
                known[id(node)] = found
            elif zone_of(node.spec.zone) == self._zone:
                known[id(node)] = node, node.metadata.name
        self._known = known
        self._settled &= known.keys()
        everyone, doubtful = [], []
        for key, (node, name) in known.items():
            sight = node, self._presence.contact(name)
            everyone.append(sight)
            if not (sight[1].connected and key in self._settled):
                doubtful.append(sight)
        return everyone, doubtful

    def _pause_s(self, doubtful: list[Sight]) -> float:
        """Until the next beat, or until a silent node is due, whichever comes first."""
        waits = [BEAT_S]
        for node, _ in doubtful:
            contact = self._presence.contact(node.metadata.name)
            if not contact.connected:
                due = (self._times.grace_ms - contact.silent_ms, self._times.lost_after_ms - contact.silent_ms)
                waits += [ms / 1000 for ms in due if ms > 0]
        return min(waits)

    async def _judge(self, everyone: list[Sight], doubtful: list[Sight]) -> None:
        if not doubtful:
            return
        changes: list[Change] = []
        silent: list[tuple[Verdict, Guard]] = []
        if brake_is_on(everyone):
            self._braked_s = self._clock.monotonic_s()
        calm_ms = (self._clock.monotonic_s() - self._braked_s) * 1000
        for verdict in verdicts(everyone, self._times, calm_ms=calm_ms, of=doubtful):
            node, phase, reason = verdict
            payloads = change_node_phase(node, phase, reason)
            if payloads and reason.code == Reason.NODE_UNREACHABLE:
                # In the same moment as the sight: what is learned while others are written must not count as known.
                silent.append((verdict, self._presence.still_silent(node.metadata.name)))
            elif payloads:
                changes.append(change(node, *payloads))
            elif self._presence.contact(node.metadata.name).connected:
                self._settled.add(id(node))
        if changes:
            await self._commands.run_in_parts(changes, actor=ACTOR, guards=(self._fence,))
        # Together, so that they share transactions: a network that fails takes many nodes at once.
        outcomes = await asyncio.gather(*starmap(self._call_silent, silent), return_exceptions=True)
        if failed := [outcome for outcome in outcomes if outcome is not None]:
            raise failed[0]

    async def _call_silent(self, verdict: Verdict, still_silent: Guard) -> None:
        """Not ready, or lost. What this replica has seen of the node may be old: another may have heard of it."""
        node, phase, reason = verdict
        name, uid = node.metadata.name, node.metadata.uid

        def decide() -> list[Change]:
            now: Node | None = self._view.get("Node", uid)
            return [] if now is None else [change(now, *change_node_phase(now, phase, reason))]

        try:
            await self._commands.run(decide, actor=ACTOR, guards=(self._fence, still_silent))
        except store_errors.GuardFailed:
            log.info("a node was heard of in time", node=name)
            return
        if phase == NodeStatus.LOST:
            log.warning("a node is lost", node=name, why=reason.message)

    async def _give_up(self, lost: list[Node]) -> None:
        """As long as nobody has heard of the node: what its agent says of itself when it is back, such as that it
        keeps a promise from now on, must not be held against what has run there all the time.
        """
        for node in lost:
            name = node.metadata.name
            found = losses(node, self._view.containers_on(name), self._workload)
            if not found or self._presence.contact(name).connected:
                continue
            changes = [_said_of(container, reported, node) for container, reported in found]
            try:
                guards = (self._fence, self._presence.still_silent(name))
                await self._commands.run_in_parts(changes, actor=ACTOR, guards=guards)
            except store_errors.GuardFailed:
                log.info("a node was heard of in time", node=name)

    def _workload(self, uid: str) -> Workload | None:
        return self._view.get("Workload", uid)


def _said_of(container: Container, reported: ContainerReported, node: Node) -> Change:
    # That a container has failed is the agent's to say; here an admin has said it in its place.
    owner = Owner.CONTROLLER if reported.phase == ContainerStatus.LOST else Owner.AGENT
    return change(container, *report_container(container, reported, owner=owner), cause=node)
