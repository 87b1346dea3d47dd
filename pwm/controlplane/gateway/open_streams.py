"""The streams that are open, and when they have to end.

A stream outlives the check that let it in. So each is written down here with what it was let in for, and three things
can end it from outside: the controller stops, its deadline passes, or its caller is checked again and may no longer
do what the stream does, because a token was revoked, a user deactivated or a role changed. Callers are checked again
as soon as such a change is known, and every `RECHECK_S` for what is no change, a token that expires. One caller can
keep only so many open, so that a runaway script cannot take the server from the others.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

import grpc
import structlog

from pwm.controlplane.errors import ApiError
from pwm.controlplane.gateway.failures import Code, deadline_exceeded

# Streams of one principal. Ten people's browsers and scripts on one account stay below it.
MAX_STREAMS_PER_PRINCIPAL = 1_000
# A token that has expired ends its streams within 60 s: this, and the time the check takes.
RECHECK_S = 30
# Changes come in crowds (`pwm apply` of a hundred users): one check is made for all that come within this time.
GATHER_S = 0.3
# A check takes 20 us. After so many in a row others get a turn.
CHECKS_AT_ONCE = 100

log = structlog.get_logger(__name__)

_ENDS_A_STREAM = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


class OpenStream:
    """One open stream. `ended` is set to the error that ends it."""

    def __init__(self, recheck: Callable[[], Awaitable[None]]) -> None:
        self.recheck = recheck
        self.ended: asyncio.Future[ApiError] = asyncio.get_running_loop().create_future()

    def end(self, error: ApiError) -> None:
        if not self.ended.done():
            self.ended.set_result(error)


class OpenStreams:
    def __init__(self, most_per_owner: int) -> None:
        self._most_per_owner = most_per_owner
        self._streams: set[OpenStream] = set()
        self._by_owner: Counter[str] = Counter()
        # Set when the server stops: no stream begins any more.
        self._closed: ApiError | None = None
        self._due = asyncio.Event()

    @contextmanager
    def open(
        self, owner: str, recheck: Callable[[], Awaitable[None]], *, deadline: float | None
    ) -> Iterator[OpenStream]:
        """Registers a stream for as long as the block runs; ApiError when the owner has too many.

        deadline: loop time at which the stream ends; None = never
        """
        if self._closed is not None:
            raise self._closed
        if self._by_owner[owner] >= self._most_per_owner:
            raise ApiError(
                Code.RESOURCE_EXHAUSTED,
                f"{owner} has {self._most_per_owner} streams open, which is the most one caller may have",
                next_step="close some of them",
            )
        stream = OpenStream(recheck)
        timer = None
        if deadline is not None:
            timer = asyncio.get_running_loop().call_at(deadline, stream.end, deadline_exceeded())
        self._by_owner[owner] += 1
        self._streams.add(stream)
        try:
            yield stream
        finally:
            if timer is not None:
                timer.cancel()
            self._streams.discard(stream)
            self._by_owner[owner] -= 1
            if not self._by_owner[owner]:
                del self._by_owner[owner]

    def end_all(self, error: ApiError) -> None:
        """Ends every stream, and any that would begin later."""
        self._closed = error
        for stream in self._streams:
            stream.end(error)

    def recheck_soon(self) -> None:
        """Something has changed about who may do what."""
        self._due.set()

    async def recheck_for_ever(self) -> None:
        """Checks every stream's caller again, round after round."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(RECHECK_S):
                    await self._due.wait()
                    await asyncio.sleep(GATHER_S)
            self._due.clear()
            await self.recheck()

    async def recheck(self) -> None:
        for number, stream in enumerate(list(self._streams), start=1):
            if number % CHECKS_AT_ONCE == 0:
                await asyncio.sleep(0)
            try:
                await stream.recheck()
            except ApiError as error:
                # Anything else (etcd is away) says nothing about the caller.
                if error.code in _ENDS_A_STREAM:
                    stream.end(error)
            except Exception:
                log.exception("a stream's caller could not be checked again")
