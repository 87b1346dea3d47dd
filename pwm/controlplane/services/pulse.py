"""What streams that follow the view have in common: a sign of life, and an end when there is nothing to follow.

A replica that cannot reach the store answers questions from what it has, and says so. But who follows would wait
for changes that others see: such a stream ends after a moment, as UNAVAILABLE, and its client goes on at a
replica that can. While none can, it asks again until one does.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable

from pwm.controlplane.clock import Clock
from pwm.controlplane.errors import ApiError, unavailable
from pwm.controlplane.view import Subscription, ViewChange

# Silence after which a stream says how far it has come.
BEAT_S = 15.0
# How often it is looked whether there is anything to follow, and how long there may not be: an election of etcd's
# takes less.
LOOK_S, STALE_LIMIT_S = 3.0, 5.0


class Pulse:
    def __init__(self, *, clock: Clock, stale_since_ms: Callable[[], int]) -> None:
        self._clock = clock
        self._stale_since_ms = stale_since_ms

    def check(self) -> None:
        """Raises ApiError UNAVAILABLE when the view has not been up to date for a while."""
        since_ms = self._stale_since_ms()
        if since_ms and self._clock.now_ms() - since_ms > STALE_LIMIT_S * 1000:
            raise _stale()

    async def batches(self, subscription: Subscription) -> AsyncGenerator[list[ViewChange], None]:
        """Changes as they come; an empty list now and then when none do. Raises Resync, and ApiError as `check`."""
        loop = asyncio.get_running_loop()
        beat_at = loop.time() + BEAT_S
        look_s = min(LOOK_S, BEAT_S)
        timer: asyncio.TimerHandle

        def look() -> None:
            # Again and again, instead of a time limit for each wait: that costs as much as a task switch.
            nonlocal timer
            subscription.nudge()
            timer = loop.call_later(look_s, look)

        timer = loop.call_later(look_s, look)
        try:
            while True:
                changes = await subscription.batch()
                if not changes:
                    self.check()
                    if loop.time() < beat_at:
                        continue
                beat_at = loop.time() + BEAT_S
                yield changes
        finally:
            timer.cancel()


def _stale() -> ApiError:
    return unavailable(
        "this replica cannot reach etcd, so there are no changes to follow",
        next_step="pwm admin status shows the state of etcd",
    )
