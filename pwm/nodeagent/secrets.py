"""Asks the control plane for what the secrets of a container hold, when it is about to be pulled or created.

The answer stays in memory until the container has been created. What was asked for in a session that broke is asked
for again in the next; a new agent asks anew.
"""

import asyncio
from collections.abc import AsyncIterator

from pwm.api.v1.agent_pb2 import ContainerSecrets
from pwm.api.v1.workload_pb2 import ContainerSpec
from pwm.nodeagent.drivers.driver import DriverError


def needs_secrets(spec: ContainerSpec) -> bool:
    return bool(spec.secret_env or spec.secrets or spec.HasField("registry_secret"))


class Secrets:
    """Owned by one event loop."""

    def __init__(self) -> None:
        self._asked: dict[str, asyncio.Future[ContainerSecrets]] = {}
        self._news = asyncio.Event()

    async def of(self, uid: str) -> ContainerSecrets:
        """What a container is given; waits until a controller has answered. Raises DriverError if it gets nothing."""
        answer = self._asked.get(uid)
        if answer is None:
            answer = self._asked[uid] = asyncio.get_running_loop().create_future()
            self._news.set()
        try:
            given = await asyncio.shield(answer)
        finally:
            self._asked.pop(uid, None)
        if given.HasField("refused"):
            raise DriverError(given.refused.code, given.refused.message)
        return given

    def arrived(self, given: ContainerSecrets) -> None:
        answer = self._asked.get(given.container_uid)
        if answer is not None and not answer.done():
            answer.set_result(given)

    async def wanted(self) -> AsyncIterator[str]:
        """For one session: uids of the containers whose secrets are to be asked for, each once."""
        told: set[str] = set()
        while True:
            self._news.clear()
            for uid in [uid for uid in self._asked if uid not in told]:
                told.add(uid)
                yield uid
            told &= self._asked.keys()
            await self._news.wait()
