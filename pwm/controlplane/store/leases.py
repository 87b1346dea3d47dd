"""A lease that is kept alive, and that knows by itself when it must be considered gone.

The deadline is counted from the *sending* of the last renewal that was answered, so the local clock always
runs out before the store can give the lease's keys to another (as long as both clocks run at the same
rate). At that moment `lost` is set, whether or not anybody could be asked. A lease that is lost stays lost:
its owner makes a new one. A lease is no proof of leadership by itself; the fence of `election` is.
"""

import asyncio
from types import TracebackType

import structlog

from pwm.controlplane.store import errors
from pwm.controlplane.store.kv import KV

RENEWALS_PER_TTL = 3
"""Two renewals may fail before the lease is lost."""

RETRY_PAUSE_S = 0.1

log = structlog.get_logger(__name__)


class Lease:
    """Use as `async with Lease(kv, ttl_s=3) as lease:`; leaving it ends the lease and deletes its keys."""

    def __init__(self, kv: KV, *, ttl_s: int) -> None:
        self.lost = asyncio.Event()
        self.id = 0
        self._kv = kv
        self._ttl_s = ttl_s
        self._keeper: asyncio.Task[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> "Lease":
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Asks for the lease and keeps it alive from now on. Raises Unavailable, NoSpace."""
        assert self._keeper is None, "a lease is opened once"
        loop = asyncio.get_running_loop()
        sent = loop.time()
        granted = await self._kv.grant_lease(self._ttl_s)
        self.id, self._ttl_s = granted.id, granted.ttl_s
        self._extend_to(sent + granted.ttl_s)
        self._keeper = loop.create_task(self._keep(), name=f"lease {self.id:x}")

    async def close(self) -> None:
        """Ends the lease at once if the store can be reached, else it ends by itself."""
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        keeper.cancel()
        await asyncio.wait({keeper})
        already_lost = self.lost.is_set()
        self._lose()
        if already_lost:
            return
        try:
            await self._kv.revoke_lease(self.id)
        except errors.KVError as error:
            log.info("lease left to expire", lease=self.id, error=str(error))

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        while not self.lost.is_set():
            await asyncio.sleep(self._ttl_s / RENEWALS_PER_TTL)
            sent = loop.time()
            try:
                ttl_s = await self._kv.keep_alive(self.id)
            except errors.LeaseLost:
                self._lose()
                return
            except errors.KVError as error:
                log.warning("lease not renewed", lease=self.id, error=str(error))
                await asyncio.sleep(RETRY_PAUSE_S)
                continue
            if not self.lost.is_set():
                self._extend_to(sent + ttl_s)

    def _extend_to(self, deadline: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = asyncio.get_running_loop().call_at(deadline, self._lose)

    def _lose(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self.lost.set()
