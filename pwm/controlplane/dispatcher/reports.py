"""From an agent's reports to the log.

Reports come in batches and are committed in batches: whatever has piled up while the last commit was
under way goes into the next. They are acknowledged once they are in the log, so an agent that reconnects
sends again what was not, and a report that comes twice moves nothing (phases only grow). Every commit
holds only while the session's epoch is the node's newest.
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol

import structlog

from pwm.api.v1.agent_pb2 import Report
from pwm.api.v1.common_pb2 import Actor
from pwm.api.v1.events_pb2 import ContainerReported
from pwm.controlplane.commands import MAX_STREAMS_PER_COMMIT, Commands
from pwm.controlplane.core.decide import Change, change, report_all
from pwm.controlplane.errors import ApiError
from pwm.controlplane.store.commits import Guard
from pwm.controlplane.view import View
from pwm.lifecycle import ENDED

log = structlog.get_logger(__name__)

# Pause before the same reports are tried again while the store is out of reach.
RETRY_DELAY_S = 0.5


class Acknowledge(Protocol):
    """Told up to which report everything is in the log, and whether the agent waits to hear it."""

    def __call__(self, sequence: int, *, soon: bool) -> None: ...


class ReportIntake:
    """Reports of one session, on their way into the log."""

    def __init__(self, *, node: str, guard: Guard, view: View, commands: Commands, acknowledge: Acknowledge) -> None:
        self._node = node
        self._guards = (guard,)
        self._view = view
        self._commands = commands
        self._acknowledge = acknowledge
        self._pending: dict[str, list[ContainerReported]] = {}
        self._sequence = 0
        self._arrived = asyncio.Event()

    def offer(self, reports: Sequence[Report]) -> None:
        """Take a batch, in order."""
        pending = self._pending
        for report in reports:
            uid = report.container_uid
            if uid in pending:
                pending[uid].append(report.reported)
            else:
                pending[uid] = [report.reported]
        if reports:
            self._sequence = max(self._sequence, reports[-1].sequence)
            self._arrived.set()

    async def run(self) -> None:
        """Commit what arrives, for ever. Raises store GuardFailed once a newer session took over."""
        actor = Actor(type=Actor.NODE, name=self._node)
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            pending, self._pending = self._pending, {}
            sequence = self._sequence
            uids = list(pending)
            parts = [uids[i : i + MAX_STREAMS_PER_COMMIT] for i in range(0, len(uids), MAX_STREAMS_PER_COMMIT)]
            async with asyncio.TaskGroup() as group:
                for part in parts:
                    group.create_task(self._commit({uid: pending[uid] for uid in part}, actor))
            # Then the agent removes what has ended; for the rest it only forgets what it reported.
            self._acknowledge(sequence, soon=any(r.phase in ENDED for each in pending.values() for r in each))

    async def _commit(self, reports: dict[str, list[ContainerReported]], actor: Actor) -> None:
        def decide() -> list[Change]:
            changes = []
            for uid, reported in reports.items():
                container = self._view.get("Container", uid)
                if container is not None and container.spec.node == self._node:
                    payloads = report_all(container, reported)
                    if payloads:
                        changes.append(change(container, *payloads))
            return changes

        while True:
            try:
                await self._commands.run(decide, actor=actor, guards=self._guards)
            except ApiError as error:
                log.warning("reports wait", node=self._node, why=error.message)
                await asyncio.sleep(RETRY_DELAY_S)
            else:
                return
