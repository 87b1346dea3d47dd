"""Which member of etcd is used, played by members that only tell how they are."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import grpc.aio
import pytest

from pwm.api.etcd import rpc_pb2 as pb
from pwm.api.etcd import rpc_pb2_grpc as rpc
from pwm.controlplane.store import errors
from pwm.controlplane.store.etcd import EtcdKV
from pwm.controlplane.store.etcd_quota import Quotas
from tests.patience import PATIENCE_S

GOOD = "3.5.28"


class Member(rpc.MaintenanceServicer, rpc.KVServicer):
    def __init__(self, number: int) -> None:
        self.number = number
        self.version = GOOD
        self.leader = 1
        self.thawed = asyncio.Event()
        self.thawed.set()
        self.asked = 0
        self.address = ""

    async def Status(self, request: Any, context: Any) -> pb.StatusResponse:  # type: ignore[override]
        await self.thawed.wait()
        header = pb.ResponseHeader(member_id=self.number, revision=7)
        return pb.StatusResponse(header=header, version=self.version, leader=self.leader, dbSize=10, dbSizeQuota=100)

    async def Alarm(self, request: Any, context: Any) -> pb.AlarmResponse:  # type: ignore[override]
        return pb.AlarmResponse()

    async def Range(self, request: Any, context: Any) -> pb.RangeResponse:  # type: ignore[override]
        self.asked += 1
        await self.thawed.wait()
        return pb.RangeResponse(header=pb.ResponseHeader(member_id=self.number, revision=7))


@pytest.fixture
async def members() -> AsyncIterator[list[Member]]:
    made = [Member(number) for number in (1, 2, 3)]
    async with AsyncExitStack() as stack:
        for member in made:
            server = grpc.aio.server()
            rpc.add_MaintenanceServicer_to_server(member, server)
            rpc.add_KVServicer_to_server(member, server)
            member.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
            await server.start()
            stack.push_async_callback(server.stop, 0)
        yield made


@pytest.fixture
async def kv(members: list[Member]) -> AsyncIterator[EtcdKV]:
    async with EtcdKV([member.address for member in members]) as kv:
        yield kv


async def used(kv: EtcdKV, members: list[Member]) -> Member:
    """The member that answers now."""
    before = [member.asked for member in members]
    await kv.range(b"k")
    (member,) = (m for m, asked in zip(members, before, strict=True) if m.asked > asked)
    return member


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - what the client does in the background
            await asyncio.sleep(0.01)


async def test_a_frozen_member_costs_one_call_its_time_and_is_used_again_once_it_is_well(
    kv: EtcdKV, members: list[Member]
) -> None:
    frozen = await used(kv, members)
    frozen.thawed.clear()
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await kv.range(b"k")
    cost_s, begun = loop.time() - begun, loop.time()
    for _ in range(20):
        await kv.range(b"k")
    assert loop.time() - begun < cost_s, "the others are asked at once"
    frozen.thawed.set()
    endpoint = next(e for e in kv._endpoints.all if e.address == frozen.address)
    await eventually(lambda: not endpoint.away)
    for member in members:
        if member is not frozen:
            member.thawed.clear()
    assert (await kv.range(b"k")).revision == 7
    for member in members:
        member.thawed.set()


async def test_a_member_without_a_leader_stays_away(kv: EtcdKV, members: list[Member]) -> None:
    lonely = await used(kv, members)
    lonely.leader = 0
    lonely.thawed.clear()
    await kv.range(b"k")
    lonely.thawed.set()
    endpoint = next(e for e in kv._endpoints.all if e.address == lonely.address)
    await asyncio.sleep(1.2)  # two probes
    assert endpoint.away
    lonely.leader = 1
    await eventually(lambda: not endpoint.away)


async def test_a_member_exchanged_for_a_bad_version_is_not_used_until_it_is_replaced(
    kv: EtcdKV, members: list[Member]
) -> None:
    bad = await used(kv, members)
    await kv.check_versions()
    bad.version = "3.5.2"
    status = await kv.status()
    assert [member.refused != "" for member in status.members].count(True) == 1
    assert await used(kv, members) is not bad
    with pytest.raises(errors.VersionRefused, match=r"3\.5\.2"):
        await kv.check_versions()
    for member in members:
        member.version = "3.5.3"
    await kv.status()
    with pytest.raises(errors.VersionRefused):
        await kv.range(b"k")
    for member in members:
        member.version = GOOD
    await kv.status()
    await used(kv, members)


async def test_a_version_with_known_faults_is_used_with_advice(kv: EtcdKV, members: list[Member]) -> None:
    members[0].version = "3.4.23"
    await kv.check_versions()
    advice = [member.advice for member in (await kv.status()).members]
    assert sorted(map(bool, advice)) == [False, False, True]


async def test_the_quota_is_told_with_the_status_or_else_asked_for(kv: EtcdKV) -> None:
    assert {member.quota_bytes for member in (await kv.status()).members} == {100}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n# TYPE x\netcd_server_quota_backend_bytes 2.147483648e+09\nother 1\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    quotas = Quotas()
    assert await quotas(f"127.0.0.1:{port}") == 2 << 30
    server.close()
    await server.wait_closed()
    assert await quotas(f"127.0.0.1:{port}") == 2 << 30, "it is remembered for a while"
    assert await quotas("127.0.0.1:1") == 0
