"""Replicas that attend to each other over real gRPC: a crash is noticed, and nothing else is taken for one."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from pwm.api.v1 import peer_pb2 as pb
from pwm.api.v1 import peer_pb2_grpc
from pwm.api.v1.agent_pb2 import OpenStream
from pwm.controlplane.agentlink import AgentUnreachable
from pwm.controlplane.clock import Clock
from pwm.controlplane.plane import ControlPlane
from pwm.controlplane.store.election import leaders
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.memory import MemoryKV
from tests.patience import PATIENCE_S

KEYS = Keys(b"/test/")
# Far less than the leader's lease: what is seen this soon was not seen by it.
AT_ONCE_S = 1.5


@dataclass
class Replica:
    plane: ControlPlane
    server: grpc.aio.Server
    loops: "asyncio.Task[None]"

    async def crash(self) -> None:
        """The process is gone: port closed, connections reset, no good-bye, leases left behind."""
        await self.server.stop(None)

    @property
    def id(self) -> str:
        return self.plane.replica


@asynccontextmanager
async def replica(kv: MemoryKV, name: str) -> AsyncIterator[Replica]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    port = server.add_insecure_port("127.0.0.1:0")
    plane = ControlPlane(
        kv=kv, keys=KEYS, replica=name, address="", peer_address=f"127.0.0.1:{port}", peer_token=f"token-{name}",
        clock=Clock(),
    )  # fmt: skip
    peer_pb2_grpc.add_PeerServiceServicer_to_server(plane.peer_door, server)
    await server.start()
    made = Replica(plane, server, asyncio.ensure_future(plane.run()))
    try:
        yield made
    finally:
        plane.peer_door.leave()
        made.loops.cancel()
        await asyncio.wait({made.loops})
        await server.stop(None)
        await plane.store.close()


@pytest.fixture
async def kv() -> AsyncIterator[MemoryKV]:
    made = MemoryKV()
    yield made
    await made.close()


async def until(condition: Callable[[], Any], what: str, *, limit_s: float = PATIENCE_S) -> None:
    ends = asyncio.get_running_loop().time() + limit_s
    while not condition():
        if asyncio.get_running_loop().time() > ends:
            pytest.fail(f"not within {limit_s} s: {what}")
        await asyncio.sleep(0.01)


async def stays(condition: Callable[[], Any], seconds: float) -> None:
    """It holds now, and all the while."""
    ends = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < ends:
        assert condition()
        await asyncio.sleep(0.01)


def attended(by: Replica, other: Replica) -> Callable[[], bool]:
    return lambda: other.id in by.plane.peers.alive()


async def test_the_roles_of_a_crashed_replica_are_taken_over_long_before_its_leases_end(kv: MemoryKV) -> None:
    async with replica(kv, "r1") as first, replica(kv, "r2") as second:
        await until(lambda: len(first.plane.roles.led() + second.plane.roles.led()) == 2, "both roles are led")
        await until(attended(first, second), "r1 attends to r2")
        await until(attended(second, first), "r2 attends to r1")
        leading, other = (first, second) if "zone/default" in first.plane.roles.led() else (second, first)
        # Its loops go on, as those of a frozen process that comes back would: its leases are still renewed.
        await leading.crash()
        await until(lambda: "zone/default" in other.plane.roles.led(), "the other leads", limit_s=AT_ONCE_S)
        assert (await leaders(kv, KEYS))["zone/default"].replica_id == other.id


async def test_a_replica_that_was_never_reached_is_not_called_dead(kv: MemoryKV) -> None:
    async with replica(kv, "r1") as first:
        await until(lambda: "zone/default" in first.plane.roles.led(), "r1 leads")
        await first.crash()
        async with replica(kv, "r2") as second:
            await until(lambda: "r1" in second.plane.presence.replicas, "r2 knows r1")
            await stays(lambda: not second.plane.roles.led(), AT_ONCE_S)


async def test_who_does_not_know_the_token_is_refused(kv: MemoryKV) -> None:
    async with replica(kv, "r1") as first:
        await until(lambda: "r1" in first.plane.presence.replicas, "it has announced itself")
        address = str(first.plane.presence.replicas["r1"]["peer"])
        async with grpc.aio.insecure_channel(address) as channel:
            stub = peer_pb2_grpc.PeerServiceStub(channel)
            for metadata in ((), (("authorization", "Bearer token-r2"),)):
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await stub.Describe(pb.DescribeRequest(), metadata=metadata)
                assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_a_replica_describes_itself_to_the_others(kv: MemoryKV) -> None:
    async with replica(kv, "r1") as first, replica(kv, "r2") as second:
        await until(attended(first, second), "r1 attends to r2")
        (described,) = await first.plane.peers.describe()
        assert (described.replica, list(described.roles)) == ("r2", second.plane.roles.led())


async def test_a_stream_to_an_agent_that_is_nowhere_is_refused_and_not_passed_in_circles(kv: MemoryKV) -> None:
    async with replica(kv, "r1") as first, replica(kv, "r2") as second:
        await until(attended(first, second), "r1 attends to r2")

        async def ask() -> list[Any]:
            async with first.plane.peers.open("r2", "n1", OpenStream()) as stream:
                return [frame async for frame in stream]

        with pytest.raises(AgentUnreachable, match="not connected"):
            await ask()


async def test_a_role_is_handed_to_a_replica_that_has_newly_come(kv: MemoryKV, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pwm.controlplane.roles.REBALANCE_AFTER_S", 0.5)
    async with replica(kv, "r1") as first:
        await until(lambda: len(first.plane.roles.led()) == 2, "r1 leads everything")
        async with replica(kv, "r2") as second:
            await until(lambda: len(second.plane.roles.led()) == 1, "r2 has got its part")
            await until(lambda: len(first.plane.roles.led()) == 1, "r1 keeps the rest")
