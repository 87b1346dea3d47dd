"""The roles a replica campaigns for: one per zone, and the cluster's chores, spread over all replicas.

Every replica is a candidate for every role, so that one is enough. Who should lead what is computed from
who is here (`core.leaders`), the same on each: the one a role is meant for takes it at once when it becomes
vacant, the others each wait a little longer. A leader that finds for a while that its role is meant for
another, one that has newly come, hands it over; with the fence and the mark that costs milliseconds.

A *deaf* replica, one that agents cannot reach although they reach others, leads nothing if it can help it:
its agents would be the last to hear what it decides. It says so in its presence.
"""

import asyncio
from collections.abc import Callable, Iterable

import structlog

from pwm.controlplane.clock import Clock
from pwm.controlplane.core.leaders import order
from pwm.controlplane.core.scheduling.demand import DEFAULT_ZONE
from pwm.controlplane.leadership import Duty, Leadership
from pwm.controlplane.presence import Presence
from pwm.controlplane.store.election import Election
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.kv import KV
from pwm.controlplane.view import View

log = structlog.get_logger(__name__)

CHORES = "cluster"
ZONE_PREFIX = "zone/"

BEAT_S = 1.0
# By how much each further candidate holds back from a vacant role.
TURN_S = 0.1
# How long another must have been the better leader before it is given the role: longer than any restart.
REBALANCE_AFTER_S = 15.0


class Roles:
    """`run` keeps campaigning for all roles there are."""

    def __init__(
        self,
        *,
        kv: KV,
        keys: Keys,
        replica: str,
        view: View,
        clock: Clock,
        presence: Presence,
        duty: Callable[[str], Duty],
    ) -> None:
        """`duty` gives the work of a role."""
        self._kv = kv
        self._keys = keys
        self._replica = replica
        self._view = view
        self._clock = clock
        self._presence = presence
        self._duty = duty
        self._held: dict[str, tuple[Leadership, asyncio.Task[None]]] = {}
        self._misplaced_since_s: dict[str, float] = {}

    async def run(self) -> None:
        """For ever; cancel to stop, which resigns from everything."""
        await self._view.wait_for(0)
        async with asyncio.TaskGroup() as group:
            while True:
                wanted = self.wanted()
                for role in wanted - self._held.keys():
                    leadership = self._candidate(role)
                    self._held[role] = leadership, group.create_task(leadership.run(), name=f"role {role}")
                for role in self._held.keys() - wanted:
                    self._held.pop(role)[1].cancel()
                self._hand_over()
                await asyncio.sleep(BEAT_S)

    def wanted(self) -> set[str]:
        """All roles of the cluster."""
        zones = {zone.metadata.name for zone in self._view.all("Zone")} | {DEFAULT_ZONE}
        return {CHORES, *(ZONE_PREFIX + zone for zone in zones)}

    def led(self) -> list[str]:
        """Roles that this replica leads."""
        return sorted(role for role, (leadership, _) in self._held.items() if leadership.leading)

    def give_up(self, role: str) -> bool:
        """Hand the role to another; False when this replica does not lead it."""
        leadership = self._held[role][0] if role in self._held else None
        if leadership is None or not leadership.leading:
            return False
        leadership.give_up()
        return True

    def _candidate(self, role: str) -> Leadership:
        election = Election(
            self._kv,
            role,
            self._replica,
            value=lambda: str(self._clock.now_ms()).encode(),
            hold_back_s=lambda previous: self._hold_back_s(role, previous),
            keys=self._keys,
        )
        return Leadership(role=role, campaign=election.campaign, duty=self._duty(role), view=self._view)

    def _hold_back_s(self, role: str, previous: str) -> float:
        """Whoever led before does not count: it has crashed, or gives the role to others."""
        candidates = self._order(role, without=previous)
        return TURN_S * (candidates.index(self._replica) if self._replica in candidates else len(candidates))

    def _order(self, role: str, *, without: str = "") -> list[str]:
        able = {id for id, about in self._presence.replicas.items() if not about.get("deaf") and id != without}
        return order(role, roles=self.wanted(), replicas=able)

    def _hand_over(self) -> None:
        """Give up roles that have been meant for another for long enough."""
        now_s = self._clock.monotonic_s()
        misplaced = self._misplaced(self.led())
        self._misplaced_since_s = {role: self._misplaced_since_s.get(role, now_s) for role in misplaced}
        for role, since_s in self._misplaced_since_s.items():
            if now_s - since_s >= REBALANCE_AFTER_S:
                log.info("handing over", role=role, to=misplaced[role])
                self.give_up(role)
                # One at a time: the others are looked at again with what has become of this one.
                self._misplaced_since_s = {}
                return

    def _misplaced(self, led: Iterable[str]) -> dict[str, str]:
        """Role led here that is meant for another -> that other."""
        meant = {role: candidates[0] for role in led if (candidates := self._order(role))}
        return {role: other for role, other in meant.items() if other != self._replica}
