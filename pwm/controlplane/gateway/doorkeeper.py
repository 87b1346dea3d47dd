"""The doorkeeper: says from which address a request comes, and sends away who asks for too much or guesses tokens.

`core/door.py` has the sums; here they meet requests. What is refused is answered with 429 and a Retry-After that is
true: whoever waits so long is served. A connection that is refused for a ban is closed as well, so that each round
of guesses costs a handshake.

Behind a proxy every request comes from the proxy's address. Proxies that are named as trusted are believed what they
say in X-Forwarded-For; from all others that header is nothing but text.

Each replica counts for itself: what it would take to count together is worth more than what it would keep out.
"""

import math
import time
from collections.abc import Callable, Iterable
from ipaddress import ip_network
from typing import Any, Protocol

import structlog
from aiohttp import web

from pwm.controlplane.core.addresses import neighbourhood, parsed, plain
from pwm.controlplane.core.door import NO_LIMITS, Door, DoorLimits, Visitor
from pwm.controlplane.errors import ApiError, LoginFailed
from pwm.controlplane.gateway.failures import Code, HttpError

# Proxies in a row that are believed, each naming the one before it.
MOST_PROXIES = 16

log = structlog.get_logger(__name__)


class Journal(Protocol):
    """Is told what happens at the door."""

    def visit_began(self, visitor: Any, address: str) -> None: ...

    def login_failed(self, error: ApiError, address: str) -> None: ...

    def banned(self, address: str, seconds: float) -> None: ...


class NoJournal:
    def visit_began(self, visitor: Any, address: str) -> None:
        pass

    def login_failed(self, error: ApiError, address: str) -> None:
        pass

    def banned(self, address: str, seconds: float) -> None:
        pass


class Doorkeeper:
    def __init__(
        self,
        limits: DoorLimits = NO_LIMITS,
        *,
        proxies: Iterable[str] = (),
        unlimited: Callable[[Any], bool] = lambda visitor: False,
        journal: Journal | None = None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        proxies:   networks (10.0.0.0/8, or an address) whose X-Forwarded-For is believed; ValueError for what is none
        unlimited: who may ask for as much as he likes; asked only when there is too much
        clock_s:   never goes back
        """
        self._door = Door(limits)
        self._proxies = tuple(ip_network(text) for text in proxies)
        self._unlimited = unlimited
        self._journal = journal or NoJournal()
        self._clock_s = clock_s
        self.refused = 0
        """Requests that were answered with 429, for the metrics."""
        self.bans = 0

    def address(self, request: web.BaseRequest) -> str:
        """From where a request comes."""
        address = plain(request.remote or "")
        if self._proxies and self.is_proxy(address):
            # The last that a trusted proxy has put there is who came to it, and so on; what is before may be invented.
            came_from = ",".join(request.headers.getall("X-Forwarded-For", ())).split(",")
            for text in reversed(came_from[-MOST_PROXIES:]):
                before = plain(text.strip())
                if not before:
                    break
                address = before
                if not self.is_proxy(address):
                    break
        return address

    def knock(self, address: str) -> None:
        """A request without a token. Raises HttpError 429."""
        wait_s = self._door.knock(neighbourhood(address), self._clock_s())
        if wait_s:
            raise self._sent_away(address, wait_s)

    def fail(self, address: str, error: ApiError) -> ApiError:
        """A token let nobody in, as `error` says. What to answer."""
        self._journal.login_failed(error, address)
        now_s, where = self._clock_s(), neighbourhood(address)
        banned_before = self._door.banned_s(where, now_s) > 0
        # One that has ended was somebody's, whose script may not know yet: that is no guess.
        guessed = not isinstance(error, LoginFailed) or error.is_guess
        if guessed and self._door.fail(where, now_s):
            self.bans += 1
            ban_s = self._door.limits.ban_s
            # In the audit it is bounded; a log must not be filled by who has many addresses.
            log.debug("address banned", address=address, seconds=ban_s, why="wrong tokens")
            self._journal.banned(address, ban_s)
        if guessed and banned_before:
            return self._sent_away(address, self._door.banned_s(where, now_s))
        return error

    def visit(self, address: str, visitor: Visitor) -> None:
        """A request with a valid token. Raises HttpError 429."""
        wait_s, begins = self._door.visit(neighbourhood(address), visitor, self._clock_s())
        if begins:
            self._journal.visit_began(visitor, address)
        if wait_s and not self._unlimited(visitor):
            self.refused += 1
            rate = self._door.limits.requests_per_s
            raise HttpError(
                Code.RESOURCE_EXHAUSTED,
                f"too many requests: {visitor.name} may make {rate:g} a second from {address}",
                status=429,
                headers=_retry_after(wait_s),
                next_step=f"wait {math.ceil(wait_s)} s; ask for more at once, or watch instead of asking again",
            )

    def _sent_away(self, address: str, wait_s: float) -> HttpError:
        self.refused += 1
        banned = self._door.banned_s(neighbourhood(address), self._clock_s()) > 0
        if banned:
            message = f"too many wrong tokens came from {address}"
            next_step = f"wait {math.ceil(wait_s)} s, or show a token that is valid: that is not held up"
        else:
            message = f"too many requests without a token come from {address}"
            next_step = f"wait {math.ceil(wait_s)} s, or log in: who shows a token is counted for himself"
        headers = _retry_after(wait_s) | ({"Connection": "close"} if banned else {})
        return HttpError(Code.RESOURCE_EXHAUSTED, message, status=429, headers=headers, next_step=next_step)

    def is_proxy(self, address: str) -> bool:
        """Whether an address speaks for others."""
        ip = parsed(address)
        return ip is not None and any(ip in network for network in self._proxies)


def _retry_after(wait_s: float) -> dict[str, str]:
    return {"Retry-After": str(math.ceil(wait_s))}
