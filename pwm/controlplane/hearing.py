"""Whether agents can reach this replica: one that lost all of them to others had better not lead.

A leader needs etcd to lead, and nothing of the network its agents are in; cut off from that it would go on
leading, heard by nobody at first hand. The evidence is that at least two agents were connected here, that none
is any more, and that some of them have turned up at another replica. The next agent that connects here
disproves it; without one it is believed for a while and then forgotten, for agents do not come back by themselves.
A replica that was itself away, frozen or starved, has no evidence: its agents left for a good reason.
"""

from collections.abc import Callable

from pwm.controlplane.clock import Clock

# Agents of which all must have gone: a single one changes its replica for reasons of its own.
LEAST_AGENTS = 2
# A replica that starts again, or an agent that dials around, needs less.
DEAF_AFTER_S = 5.0
DEAF_FOR_S = 60.0
# A longer pause between two questions means that this process did not run.
AWAY_S = 4.0


class Hearing:
    def __init__(self, *, clock: Clock, connected_here: Callable[[], set[str]], holder: Callable[[str], str]) -> None:
        """`holder` names the replica that a node is connected to, "" for none."""
        self._clock = clock
        self._connected_here = connected_here
        self._holder = holder
        # The last agents that were here at the same time.
        self._heard: set[str] = set()
        self._silent_since_s = 0.0
        self._asked_s = clock.monotonic_s()

    def deaf(self) -> bool:
        """To be asked about once a second: it remembers who was here."""
        now_s = self._clock.monotonic_s()
        away, self._asked_s = now_s - self._asked_s > AWAY_S, now_s
        here = self._connected_here()
        if here:
            self._heard, self._silent_since_s = here, 0.0
            return False
        self._silent_since_s = self._silent_since_s or now_s
        silent_s = now_s - self._silent_since_s
        if away or silent_s > DEAF_AFTER_S + DEAF_FOR_S:
            self._heard = set()
        if len(self._heard) < LEAST_AGENTS or silent_s < DEAF_AFTER_S:
            return False
        return any(self._holder(node) for node in self._heard)
