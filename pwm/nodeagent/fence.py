"""How long this agent has been cut off, and when it must end containers because of that.

A container with `onNodeLost: reschedule` gets a successor on another node once this one has been silent for
`lost_after`. This agent, if it lives and only cannot be heard, has to have ended the container by then. It
counts from the moment at which it sent the last message that was answered: the control plane has heard it
then or later, so it cannot have begun to count before (pwm/controlplane/core/nodes.py has the whole argument).
After `self_fence` it begins; the control plane names both times, and the agent promises to keep them in its
inventory, so that nothing is started elsewhere on the strength of a promise that was never made.

The clock counts elapsed time since the machine was booted, also while it sleeps; nobody sets it. Contact is kept
in the journal with the boot it belongs to: an agent that starts again while it is cut off goes on counting,
and one on a machine that was booted anew has nothing left to end.

An agent that finds that `lost_after` itself has passed was not there to keep its promise: it was stopped, or the
machine slept. Its containers may long have successors, or, as after the whole cluster was switched off, none.
It tries for a moment to reach a controller, which can tell, before it ends them.

An agent that is stopped in good order takes its promise back first: its containers run on, and nothing is started
in their place. For one that is killed, or hangs, the watchdog keeps the promise (`watchdog.py`): it is told of every
contact, and acts when the time that is left for containers to end by themselves is over. The same goes for an
agent that could tell nobody that it leaves.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import NamedTuple

import structlog

from pwm.api.v1.common_pb2 import Reason
from pwm.nodeagent.journal import Contact, Journal
from pwm.nodeagent.watchdog import graces_end_ms
from pwm.quantity import format_duration

log = structlog.get_logger(__name__)

# How often the clock is read: sleeping does not count the time in which the machine sleeps.
TICK_S = 1.0
# For an agent that starts, or wakes up, too late: long enough to dial and be welcomed.
LAST_CHANCE_MS = 5_000
# Contact is written to disk when it has moved on by this share of the self-fence.
KEPT_PER_SELF_FENCE = 20
# Engines take the time to end a container in whole seconds.
GRACE_STEP_MS = 1_000


class Fencing(NamedTuple):
    """Containers that may have successors are to end, with so much time to do it."""

    reason: Reason
    grace_ms: int


class Fence:
    def __init__(
        self,
        journal: Journal,
        *,
        boot_id: str,
        clock_ms: Callable[[], int],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        tell: Callable[[Contact], None] = lambda contact: None,
    ) -> None:
        """`clock_ms`: elapsed time since boot, sleep included. `tell`: whoever keeps the promise if nobody is here."""
        self._journal = journal
        self._clock_ms = clock_ms
        self._sleep = sleep
        kept = journal.contact
        self._contact = kept if kept.boot_id == boot_id else replace(kept, boot_id=boot_id, heard_ms=0)
        # The contact after which containers were ended: once is enough.
        self._fenced_after_ms = -1
        self._changed = asyncio.Event()
        self._leaving = False
        # Contact was lost for so long that orders from before mean nothing.
        self._outdated = False
        self._tell = tell
        if self.promised_ms:
            tell(self._contact)

    # ---- contact

    def now_ms(self) -> int:
        return self._clock_ms()

    def heard(self, sent_ms: int) -> None:
        """A message that was sent at this time has been answered."""
        if sent_ms <= self._contact.heard_ms:
            return
        self._outdated = self._outdated or self._is_due()
        self._contact = replace(self._contact, heard_ms=sent_ms)
        self._tell(self._contact)
        self._changed.set()
        if sent_ms >= self._journal.contact.heard_ms + self._contact.self_fence_ms / KEPT_PER_SELF_FENCE:
            self._journal.keep_contact(self._contact)

    def configure(self, *, self_fence_ms: int, lost_after_ms: int) -> bool:
        """What the control plane asks for; whether the promise has changed with it."""
        before = self._contact
        self._contact = replace(before, self_fence_ms=self_fence_ms, lost_after_ms=lost_after_ms)
        if self._contact == before:
            return False
        self._tell(self._contact)
        self._changed.set()
        self._journal.keep_contact(self._contact)
        return True

    @property
    def promised_ms(self) -> int:
        """Silence after which no container that may have a successor runs here; 0: nothing is promised.

        Nothing is before the first contact: there is no moment yet to count from.
        """
        contact = self._contact
        return contact.lost_after_ms if contact.self_fence_ms and contact.heard_ms and not self._leaving else 0

    def leave(self) -> None:
        """Nobody will be here to keep a promise: none is made any more, until there is contact after the next start."""
        self._leaving = True

    def left(self) -> None:
        """The control plane knows that nothing is promised: there is nothing to count from."""
        nothing = replace(self._contact, heard_ms=0)
        self._journal.keep_contact(nothing)
        self._tell(nothing)

    @property
    def doubtful(self) -> bool:
        """Half of the self-fence has passed without an answer: another controller may give one."""
        contact = self._contact
        return bool(contact.self_fence_ms) and 2 * self._silent_ms() > contact.self_fence_ms

    @property
    def overdue(self) -> bool:
        """Nothing starts now that may have a successor: what is known of it may be from before a long silence.

        That is so for an agent that was stopped and goes on, until its fence falls or it is told what is wanted now.
        """
        return self._outdated or self._is_due()

    def ordered(self) -> None:
        """What is wanted now is known."""
        self._outdated = False

    def _is_due(self) -> bool:
        contact = self._contact
        return contact.self_fence_ms > 0 and contact.heard_ms > 0 and self._silent_ms() >= contact.self_fence_ms

    def _silent_ms(self) -> int:
        return self._clock_ms() - self._contact.heard_ms

    # ---- the fence

    async def run(self, end: Callable[[Fencing], None]) -> None:
        """Call `end` whenever contact has been lost for too long, until cancelled."""
        while True:
            self._changed.clear()
            contact = self._contact
            if not contact.self_fence_ms or not contact.heard_ms or contact.heard_ms == self._fenced_after_ms:
                await self._changed.wait()
                continue
            left_ms = contact.self_fence_ms - self._silent_ms()
            if left_ms > 0:
                await self._sleep(min(TICK_S, left_ms / 1000))
                continue
            if self._silent_ms() >= contact.lost_after_ms and await self._is_heard_after_all():
                continue
            # As of now: what is configured may have changed meanwhile.
            self._fenced_after_ms = self._contact.heard_ms
            fencing = self._fencing()
            log.warning(
                "cut off: ending what may start elsewhere", after_ms=self._silent_ms(), grace_ms=fencing.grace_ms
            )
            end(fencing)

    async def _is_heard_after_all(self) -> bool:
        contact, began_ms = self._contact, self._clock_ms()
        while self._clock_ms() < began_ms + LAST_CHANCE_MS:
            if self._contact.heard_ms > contact.heard_ms:
                return True
            await self._sleep(TICK_S / 10)
        return self._contact.heard_ms > contact.heard_ms

    def _fencing(self) -> Fencing:
        contact = self._contact
        grace_ms = max(0, graces_end_ms(contact.self_fence_ms, contact.lost_after_ms) - self._silent_ms())
        after = format_duration(contact.self_fence_ms)
        said = (
            f"its node could not reach any controller for {after}, so it had to end before another may start elsewhere"
        )
        return Fencing(Reason(code=Reason.SELF_FENCED, message=said), grace_ms // GRACE_STEP_MS * GRACE_STEP_MS)
