"""A driver as the supervisor sees it: whether its engine answers, and what it had when it first did.

The engine is asked every few seconds, and at once when somebody found it away. Its containers are listed
before anything else is done with them, because an engine that is away would look like one that has nothing.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress

import structlog

from pwm.api.v1.node_pb2 import DriverInfo
from pwm.nodeagent.drivers.driver import Adopted, Driver, EngineUnreachable

log = structlog.get_logger(__name__)

# How often to ask an engine that answers, and one that does not.
PROBE_READY_S = 5.0
PROBE_AWAY_S = 0.5


class Engine:
    """One driver's engine."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.info = DriverInfo(name=driver.name, message="not asked yet")
        # By uid, from its listing; taken out when a container's task begins.
        self.adopted: dict[str, Adopted] = {}
        self.listed = False
        # It was asked at least once.
        self.asked = asyncio.Event()
        self._ready = asyncio.Event()
        self._doubted = asyncio.Event()

    async def ready(self) -> None:
        """Wait until the engine answers and its containers are known."""
        await self._ready.wait()

    def doubt(self) -> None:
        """Somebody found the engine away: look now, and let nobody else try before."""
        self._ready.clear()
        self._doubted.set()

    async def watch(self, on_change: Callable[[], None]) -> None:
        """Keep asking the engine how it is; list its containers once it answers."""
        while True:
            self._doubted.clear()
            info = await self.driver.probe()
            if info.ready and not self.listed:
                try:
                    self.adopted = {found.uid: found for found in await self.driver.adopt()}
                    self.listed = True
                except EngineUnreachable as error:
                    info.ready, info.message = False, str(error)
            if info != self.info:
                log.info("driver", name=info.name, version=info.version, ready=info.ready, message=info.message)
                self.info = info
                on_change()
            if info.ready:
                self._ready.set()
            else:
                self._ready.clear()
            self.asked.set()
            await self._pause(PROBE_READY_S if info.ready else PROBE_AWAY_S)

    async def _pause(self, seconds: float) -> None:
        """Cut short when an engine that answered is found away."""
        if not self._ready.is_set():
            self._doubted.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._doubted.wait()
