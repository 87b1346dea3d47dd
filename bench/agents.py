"""Thousands of agents that are not there: each speaks the real protocol over a connection of its own.

A program of its own, so that what it costs is not counted with the controllers:

    python bench/agents.py --controllers 127.0.0.1:4701,... --token-file F --count 5000

Each agent says hello, sends heartbeats as it is told, takes its assignments and reports that each container was
pulled, ran and ended, `--life` seconds later. Prints a JSON line of what it has done each second.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from contextlib import suppress
from pathlib import Path

import grpc
import uvloop

sys.path.insert(0, str(Path(__file__).parent.parent))

from pwm.api.v1.agent_pb2 import (
    Assignment,
    GPUUsage,
    Heartbeat,
    Hello,
    NodeUsage,
    Report,
    Reports,
    SessionRequest,
)
from pwm.api.v1.agent_pb2_grpc import AgentServiceStub
from pwm.api.v1.events_pb2 import ContainerReported
from pwm.api.v1.node_pb2 import DriverInfo, GPUDevice, Inventory
from pwm.api.v1.workload_pb2 import ContainerStatus
from pwm.controlplane.commands import timestamp

GIB = 1 << 30
GPUS = 4
# Joins at the same moment: a machine room that gets its power back, within reason.
JOINING = 64
OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.keepalive_time_ms", 10_000))


class Counts:
    def __init__(self) -> None:
        self.connected = self.heartbeats = self.reports = self.broken = 0


class FakeAgent:
    def __init__(self, number: int, servers: list[str], token: str, life_s: float, counts: Counts) -> None:
        self._node = f"sim-{number:05}"
        self._servers = servers
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._life_s = life_s
        self._counts = counts
        self._random = random.Random(number)
        self._heartbeat_s = 5.0
        self._sequence = 0
        self._known: set[str] = set()
        self._writing = asyncio.Lock()

    async def run(self, joining: asyncio.Semaphore) -> None:
        turn = self._random.randrange(len(self._servers))
        while True:
            address = self._servers[turn % len(self._servers)]
            try:
                await self._session(address, joining)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                self._counts.broken += 1
            turn += 1
            await asyncio.sleep(self._random.uniform(0.1, 2.0))

    async def _session(self, address: str, joining: asyncio.Semaphore) -> None:
        async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
            call = AgentServiceStub(channel).Session(metadata=self._metadata)
            async with joining:
                await call.write(SessionRequest(hello=Hello(node=self._node, inventory=self._inventory())))
                welcome = await call.read()
            if welcome is grpc.aio.EOF or welcome.WhichOneof("message") != "welcome":
                return
            self._counts.connected += 1
            beating = asyncio.ensure_future(self._beat(call))
            lives: set[asyncio.Task[None]] = set()
            try:
                while (message := await call.read()) is not grpc.aio.EOF:
                    if message.WhichOneof("message") != "assignments":
                        continue
                    for assignment in message.assignments.set:
                        if assignment.uid not in self._known and assignment.desired == Assignment.RUN:
                            self._known.add(assignment.uid)
                            task = asyncio.ensure_future(self._live(call, assignment.uid))
                            lives.add(task)
                            task.add_done_callback(lives.discard)
            finally:
                self._counts.connected -= 1
                beating.cancel()
                for task in lives:
                    task.cancel()
                call.cancel()

    async def _write(self, call: grpc.aio.StreamStreamCall, message: SessionRequest) -> None:
        async with self._writing:
            with suppress(asyncio.InvalidStateError):  # the call is over: reading says so
                await call.write(message)

    def _inventory(self) -> Inventory:
        return Inventory(
            agent_version="sim", boot_id=self._node, cpu_product="Sim", cpu_count=64, memory_bytes=256 * GIB,
            drivers=[DriverInfo(name="pwm.docker", version="sim", ready=True)],
            gpus=[
                GPUDevice(uuid=f"GPU-{self._node}-{n}", index=n, product_name="A100", healthy=True)
                for n in range(GPUS)
            ],
        )  # fmt: skip

    async def _beat(self, call: grpc.aio.StreamStreamCall) -> None:
        usage = NodeUsage(
            cpu=0.5, memory_used_bytes=100 * GIB, memory_total_bytes=256 * GIB,
            gpus=[GPUUsage(uuid=f"GPU-{self._node}-{n}", utilization=0.9, power_w=300) for n in range(GPUS)],
        )  # fmt: skip
        number = 0
        await asyncio.sleep(self._random.uniform(0, self._heartbeat_s))
        while True:
            number += 1
            await self._write(call, SessionRequest(heartbeat=Heartbeat(usage=usage, number=number)))
            self._counts.heartbeats += 1
            await asyncio.sleep(self._heartbeat_s * self._random.uniform(0.9, 1.1))

    async def _live(self, call: grpc.aio.StreamStreamCall, uid: str) -> None:
        for phase in (ContainerStatus.PULLING, ContainerStatus.RUNNING, ContainerStatus.EXITED):
            self._sequence += 1
            reported = ContainerReported(phase=phase)
            if phase == ContainerStatus.EXITED:
                reported.exit_code = 0
            report = Report(
                sequence=self._sequence, container_uid=uid, attempt=1, time=timestamp(time.time_ns() // 1_000_000),
                reported=reported,
            )  # fmt: skip
            await self._write(call, SessionRequest(reports=Reports(reports=[report])))
            self._counts.reports += 1
            await asyncio.sleep(self._life_s / 2)


async def run(servers: list[str], token: str, count: int, life_s: float) -> None:
    counts, joining = Counts(), asyncio.Semaphore(JOINING)
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(FakeAgent(number, servers, token, life_s, counts).run(joining))
        while True:
            await asyncio.sleep(1.0)
            print(json.dumps(vars(counts)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--controllers", required=True)
    parser.add_argument("--token-file", type=Path, required=True)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--life", type=float, default=4.0)
    given = parser.parse_args()
    uvloop.run(run(given.controllers.split(","), given.token_file.read_text().strip(), given.count, given.life))


if __name__ == "__main__":
    main()
