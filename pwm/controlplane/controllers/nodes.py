"""The zone leader's watch over nodes: ready, out of reach, in maintenance.

Liveness is not in the log: replicas announce the sessions they hold by leased keys. This loop compares
what they announce with each node's phase and appends an event only when the phase or its reason changes.
"""

import structlog

from pwm.api.v1.common_pb2 import Actor
from pwm.controlplane.clock import Clock
from pwm.controlplane.commands import Commands
from pwm.controlplane.core.decide import change, change_node_phase
from pwm.controlplane.core.nodes import node_phase
from pwm.controlplane.errors import ApiError
from pwm.controlplane.presence import Presence
from pwm.controlplane.store.commits import Guard
from pwm.controlplane.view import View

log = structlog.get_logger(__name__)

ACTOR = Actor(type=Actor.CONTROLLER, name="nodes")
# Silence after which a node counts as out of reach.
NODE_GRACE_MS = 15_000
BEAT_S = 1.0


class NodeController:
    def __init__(
        self, *, zone: str, view: View, commands: Commands, presence: Presence, clock: Clock, fence: Guard
    ) -> None:
        self._zone = zone
        self._view = view
        self._commands = commands
        self._presence = presence
        self._clock = clock
        self._fence = fence

    async def run(self) -> None:
        """Until cancelled. Raises FenceLost when another replica leads."""
        while True:
            changes = []
            now_ms = self._clock.now_ms()
            for node in self._view.all("Node"):
                if (node.spec.zone or "default") != self._zone:
                    continue
                verdict = node_phase(
                    node, self._presence.contact(node.metadata.name), now_ms=now_ms, grace_ms=NODE_GRACE_MS
                )
                if verdict is not None and (payloads := change_node_phase(node, *verdict)):
                    changes.append(change(node, *payloads))
            if changes:
                try:
                    await self._commands.run_in_parts(changes, actor=ACTOR, guards=(self._fence,))
                except ApiError as error:
                    log.warning("node phases wait", why=error.message)
            await self._presence.wait_for_change(timeout_s=BEAT_S)
