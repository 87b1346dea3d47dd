"""Time and ids for the control plane: the only place that reads the clock or draws random bits.

Everything that needs either gets a `Clock`, so that the simulator can give it another.
"""

import secrets
import time

# Crockford's base 32: ids sort by time and can be read aloud.
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


class Clock:
    def now_ms(self) -> int:
        """Wall clock, milliseconds since the epoch."""
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        return time.monotonic()

    def new_id(self) -> str:
        """26 characters: 48 bits of time, 80 random bits (a ULID in lower case)."""
        number = (self.now_ms() << 80) | secrets.randbits(80)
        return "".join(_ALPHABET[(number >> shift) & 31] for shift in range(125, -1, -5))

    def seed(self) -> int:
        return secrets.randbits(32)
