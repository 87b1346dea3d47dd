"""The wall clock without its jumps, for what must not follow them: what somebody is charged for, and stopped for.

It begins with the wall clock and then moves with the time that has elapsed. Small corrections of the wall clock are
followed, as it and the elapsed time drift apart; a jump is not, and it never goes back.
"""

from pwm.controlplane.clock import Clock

# The wall clock is followed as long as it is so close to the time that has elapsed.
CLOCK_STEP_MS = 5_000


class SteadyTime:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._now_ms, self._at_s = clock.now_ms(), clock.monotonic_s()

    def now_ms(self) -> int:
        at_s, wall_ms = self._clock.monotonic_s(), self._clock.now_ms()
        expected_ms = self._now_ms + int((at_s - self._at_s) * 1000)
        followed_ms = wall_ms if abs(wall_ms - expected_ms) <= CLOCK_STEP_MS else expected_ms
        if followed_ms > self._now_ms:
            self._now_ms, self._at_s = followed_ms, at_s
        return self._now_ms
