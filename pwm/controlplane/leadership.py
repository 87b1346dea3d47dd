"""Holding a role: campaign, work while it lasts, campaign again.

A leader's writes all carry its fence, so one that was deposed without noticing harms nothing; it stops at
the first refused write or when its lease is gone. On winning it first catches up with everything that was
written before it won, then makes a full pass: it trusts nothing it remembers from an earlier term.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from pwm.controlplane.store import errors as store_errors
from pwm.controlplane.store.commits import Guard
from pwm.controlplane.view import View

log = structlog.get_logger(__name__)

RETRY_DELAY_S = 0.5
# Whoever gave a role up leaves it to others for this long, unless nobody takes it.
HANDOVER_S = 1.0


class Term(Protocol):
    """One time of leading: valid until `lost` is set. `revision`: the store's at the moment of winning."""

    fence: Guard
    revision: int

    @property
    def lost(self) -> asyncio.Event: ...

    async def resign(self) -> None: ...


# Waits until the role is won.
Campaign = Callable[[], Awaitable[Term]]
# Does the role's work with the given fence, until cancelled.
Duty = Callable[[Guard], Awaitable[None]]


class Leadership:
    """Keeps trying to hold `role`, and does its duty while it does."""

    def __init__(self, *, role: str, campaign: Campaign, duty: Duty, view: View) -> None:
        self.role = role
        self.leading = False
        self._campaign = campaign
        self._duty = duty
        self._view = view
        self._giving_up = asyncio.Event()

    async def run(self) -> None:
        """For ever; cancel to stop, which resigns."""
        while True:
            # Who knows nothing yet would only keep the role from those who do.
            await self._view.wait_for(0)
            self._giving_up.clear()
            try:
                term = await self._campaign()
            except store_errors.StoreError as error:
                log.debug("cannot campaign", role=self.role, why=str(error))
                await asyncio.sleep(RETRY_DELAY_S)
                continue
            try:
                await self._lead(term)
            finally:
                self.leading = False
                await asyncio.shield(self._resign(term))
            if self._giving_up.is_set():
                await asyncio.sleep(HANDOVER_S)

    def give_up(self) -> None:
        """Let another lead: resign now, and campaign again after a while."""
        self._giving_up.set()

    async def _lead(self, term: Term) -> None:
        log.info("leading", role=self.role)
        why = "stopping"
        try:
            async with asyncio.TaskGroup() as group:
                duty = group.create_task(self._do(term))
                lost = group.create_task(term.lost.wait())
                giving_up = group.create_task(self._giving_up.wait())
                await asyncio.wait({lost, giving_up}, return_when=asyncio.FIRST_COMPLETED)
                why = "the lease was lost" if term.lost.is_set() else "another is to lead"
                for task in (duty, lost, giving_up):
                    task.cancel()
        except* (store_errors.FenceLost, store_errors.GuardFailed):
            why = "another replica leads"
        except* store_errors.Unavailable as errors:
            why = f"the store is out of reach ({errors.exceptions[0]})"
            await asyncio.sleep(RETRY_DELAY_S)
        except* Exception as errors:
            # A mistake in a controller must not take the replica down with it: resign, and begin afresh.
            why = "the controller failed"
            log.error("controller failed", role=self.role, exc_info=errors.exceptions[0])
            await asyncio.sleep(RETRY_DELAY_S)
        finally:
            log.info("no longer leading", role=self.role, why=why)

    async def _do(self, term: Term) -> None:
        # Won already: whoever led before can write no more, so what is there now is all of it.
        await self._view.wait_for(term.revision)
        self.leading = True
        await self._duty(term.fence)

    async def _resign(self, term: Term) -> None:
        try:
            await term.resign()
        except store_errors.StoreError as error:
            log.debug("could not resign; the lease will end by itself", role=self.role, why=str(error))
