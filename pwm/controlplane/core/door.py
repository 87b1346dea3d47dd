"""How much an address may ask for, and when it is kept out: sums over times that the caller gives.

Requests are paid for from a *purse*, which fills at a steady rate up to a limit, so that a page of forty files or a
script that lists everything is served at once, and a loop without a pause is not. Every user who shows a valid token
has a purse of their own at each address: people share a log-in machine, and one's loop must not be felt by the others.
All that comes from an address without a valid token is paid from one purse.

A wrong token is a *failure*. After a few of them within the time of a ban the address is banned for that time: nothing
that comes from there without a valid token is answered. Valid tokens go on working. They have 256 random bits, which
nobody guesses at any rate; keeping them out too would let anybody on a shared machine lock out all others. What a ban
is for is that guessing costs the guesser time and the cluster nothing.

What is remembered is bounded. Strangers are remembered apart, so that a crowd of them can push out no visitor.
"""

from dataclasses import dataclass
from typing import Protocol, TypeVar

# Addresses without a valid token, and pairs of address and token, that are remembered: a few megabytes.
MOST_STRANGERS = 20_000
MOST_VISITORS = 20_000
# Of a clock that has run for years.
ROUNDING_S = 1e-6
# A token that comes back to an address after so long logs in anew.
VISIT_S = 3600.0


@dataclass(frozen=True, slots=True)
class DoorLimits:
    """Of each address. 0 requests a second: as many as they like; 0 failures: no bans."""

    requests_per_s: float = 30.0
    # Requests at once, after a pause.
    burst: int = 300
    failures: int = 3
    ban_s: float = 120.0


NO_LIMITS = DoorLimits(requests_per_s=0.0, failures=0)


@dataclass(slots=True)
class _Purse:
    """It holds what has flowed in since the moment up to which all has been spent."""

    spent_until_s: float


@dataclass(slots=True)
class _Visit:
    """Of a token at an address. All tokens of a user pay from the same purse there."""

    purse: _Purse
    at_s: float


@dataclass(slots=True)
class _Failures:
    count: int
    since_s: float
    banned_until_s: float = 0.0


class Visitor(Protocol):
    """Who has shown a valid token."""

    @property
    def name(self) -> str: ...

    @property
    def token_id(self) -> str: ...


# The answer to nearly every request.
_SERVED = (0.0, False)


class Door:
    """Times are seconds of a clock that never goes back."""

    def __init__(self, limits: DoorLimits) -> None:
        self.limits = limits
        # In which time one request's worth flows into a purse, and what fills it; 0: nobody pays.
        self._price_s = 1 / limits.requests_per_s if limits.requests_per_s else 0.0
        self._full_s = limits.burst * self._price_s
        self._visits: dict[tuple[str, str], _Visit] = {}
        self._purses: dict[tuple[str, str], _Purse] = {}
        self._strangers: dict[str, _Purse] = {}
        self._failures: dict[str, _Failures] = {}

    def visit(self, address: str, visitor: Visitor, now_s: float) -> tuple[float, bool]:
        """A request with a valid token.

        Seconds to wait before there is an answer, 0 for none; and whether a visit begins with it.
        """
        visit = self._visits.get((address, visitor.token_id))
        if visit is None or now_s - visit.at_s > VISIT_S:
            visit = self._begin_visit(address, visitor.name, visitor.token_id, now_s)
            return self._pay(visit.purse, now_s), True
        visit.at_s = now_s
        wait_s = self._pay(visit.purse, now_s)
        return (wait_s, False) if wait_s else _SERVED

    def _begin_visit(self, address: str, user: str, token: str, now_s: float) -> _Visit:
        if len(self._visits) >= MOST_VISITORS:
            self._visits = _newer_half(self._visits)
        if len(self._purses) >= MOST_VISITORS:
            self._purses = _newer_half(self._purses)
        purse = self._purses.get((address, user))
        if purse is None:
            purse = self._purses[address, user] = self._new_purse(now_s)
        visit = self._visits[address, token] = _Visit(purse, now_s)
        return visit

    def _new_purse(self, now_s: float) -> _Purse:
        return _Purse(now_s - self._full_s)

    def knock(self, address: str, now_s: float) -> float:
        """A request without a valid token. Seconds to wait before there is an answer, 0 for none."""
        wait_s = self.banned_s(address, now_s)
        if wait_s:
            return wait_s
        purse = self._strangers.get(address)
        if purse is None:
            if len(self._strangers) >= MOST_STRANGERS:
                self._strangers = _newer_half(self._strangers)
            purse = self._strangers[address] = self._new_purse(now_s)
        return self._pay(purse, now_s)

    def fail(self, address: str, now_s: float) -> bool:
        """A wrong token came. Whether the address is banned from now on, for this."""
        limits = self.limits
        if not limits.failures:
            return False
        failures = self._failures.get(address)
        if failures is None or now_s - failures.since_s > limits.ban_s:
            if failures is None and len(self._failures) >= MOST_STRANGERS:
                self._forget_failures(now_s)
            failures = self._failures[address] = _Failures(0, now_s)
        if failures.banned_until_s > now_s:
            return False
        failures.count += 1
        if failures.count < limits.failures:
            return False
        failures.banned_until_s = now_s + limits.ban_s
        # From the end of a ban it is counted anew.
        failures.since_s, failures.count = failures.banned_until_s, 0
        return True

    def banned_s(self, address: str, now_s: float) -> float:
        """For how long still."""
        failures = self._failures.get(address)
        return max(0.0, failures.banned_until_s - now_s) if failures is not None else 0.0

    def _pay(self, purse: _Purse, now_s: float) -> float:
        """What a refused request would have cost stays in the purse: who waits as long as told is served."""
        spent_s, full_s = purse.spent_until_s, now_s - self._full_s
        if spent_s < full_s:
            spent_s = full_s
        spent_s += self._price_s
        wait_s = spent_s - now_s
        if wait_s > ROUNDING_S:
            return wait_s
        purse.spent_until_s = spent_s
        return 0.0

    def _forget_failures(self, now_s: float) -> None:
        """Those that count no more; if that is not enough, all but bans; and if these are too many, the oldest."""
        since_s = now_s - self.limits.ban_s
        self._failures = {a: f for a, f in self._failures.items() if f.since_s >= since_s}
        if len(self._failures) >= MOST_STRANGERS:
            self._failures = {a: f for a, f in self._failures.items() if f.banned_until_s > now_s}
        if len(self._failures) >= MOST_STRANGERS:
            self._failures = _newer_half(self._failures)


K = TypeVar("K")
V = TypeVar("V")


def _newer_half(known: dict[K, V]) -> dict[K, V]:
    return dict(list(known.items())[len(known) // 2 :])
