"""A client of etcd itself, putting one key after the other: how long etcd alone makes its clients wait."""

import asyncio
import itertools
from collections.abc import Sequence

from pwm.controlplane.store import errors
from pwm.controlplane.store.etcd import EtcdKV
from pwm.controlplane.store.kv import Member
from tests.faults.cluster import until
from tests.faults.network import Host

KEY = b"/faults/put"
PUT_LIMIT_S = 0.5
PAUSE_S = 0.01


class Putter:
    """`run` it as a task."""

    def __init__(self, etcd: Sequence[str]) -> None:
        self._etcd = list(etcd)
        self._put_s: list[float] = []

    async def run(self) -> None:
        async with EtcdKV(self._etcd) as kv:
            for number in itertools.count():
                try:
                    async with asyncio.timeout(PUT_LIMIT_S):
                        await kv.put(KEY, str(number).encode())
                    self._put_s.append(asyncio.get_running_loop().time())
                except (TimeoutError, errors.StoreError):
                    continue
                await asyncio.sleep(PAUSE_S)

    async def members(self, hosts: Sequence[Host]) -> dict[Host, Member]:
        """Each member's own words."""
        async with EtcdKV(self._etcd) as kv:
            status = await kv.status()
        return {host: member for host in hosts for member in status.members if member.address.startswith(host.address)}

    def gap_s(self, since_s: float, until_s: float) -> float:
        """The longest time without a successful put in between."""
        times = [since_s, *(t for t in self._put_s if since_s <= t <= until_s), until_s]
        return max(after - before for before, after in itertools.pairwise(times))

    async def first_put_after(self, moment_s: float, *, limit_s: float) -> float:
        async def put() -> bool:
            return bool(self._put_s) and self._put_s[-1] > moment_s

        await until(put, "etcd takes a put", limit_s=limit_s)
        return self._put_s[-1]
