"""Acknowledges heartbeats, so that agents know that they are heard.

An agent that is cut off ends those of its containers that may be started elsewhere, and it counts from the moment
it sent the last heartbeat that was acknowledged (`core.nodes` has the whole argument). So an acknowledgement must
never be wrong: the others may think the node silent although it talks to a replica that is itself cut off from
the store, was stopped for a while, or is taken for dead. Hence the store is asked, after the heartbeat came,
whether this replica's sessions stand; one question serves all heartbeats that came before it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection

import structlog

from pwm.controlplane.clock import Clock
from pwm.controlplane.dispatcher.session import Session
from pwm.controlplane.store import errors as store_errors

log = structlog.get_logger(__name__)

# Heartbeats that come within this time share a question to the store.
GATHER_S = 0.2
# A store that is slower than this is asked again, for the heartbeats that have come meanwhile.
ANSWER_TIMEOUT_S = 3.0
# An agent learns so many times within its self-fence that it is heard; more often only costs messages.
PER_SELF_FENCE = 10

# Those of the nodes whose sessions stood at some time after the call. Raises StoreError.
Standing = Callable[[Collection[str]], Awaitable[Collection[str]]]


class Heartbeats:
    """`run` it in a task; without, nobody is acknowledged."""

    def __init__(self, *, standing: Standing, self_fence_ms: int, clock: Clock) -> None:
        self._standing = standing
        self._every_s = self_fence_ms / 1000 / PER_SELF_FENCE
        self._clock = clock
        self._waiting: dict[str, tuple[Session, int]] = {}
        self._came = asyncio.Event()

    def came(self, session: Session, number: int) -> None:
        """A heartbeat of the session. 0: its agent is of a version that expects no acknowledgement."""
        if number and self._clock.monotonic_s() >= session.acknowledged_s + self._every_s:
            self._waiting[session.node] = (session, number)
            self._came.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._came.wait()
            await asyncio.sleep(GATHER_S)
            self._came.clear()
            waiting, self._waiting = self._waiting, {}
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    standing = await self._standing(waiting.keys())
            except (TimeoutError, store_errors.StoreError) as error:
                log.debug("heartbeats are not acknowledged", nodes=len(waiting), why=str(error) or "no answer")
                continue
            for node in standing:
                session, number = waiting[node]
                session.heard(number, now_s=self._clock.monotonic_s())
