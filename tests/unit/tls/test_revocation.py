"""A node whose credentials are revoked is out at once, and comes back with a new join token and with nothing else."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from pwm.api.v1 import agent_pb2_grpc
from pwm.api.v1.agent_pb2 import Hello, OpenStream, ReadLogs, RelayRequest, RenewRequest, SessionRequest
from pwm.api.v1.identity_pb2 import TokenSpec
from pwm.api.v1.node_pb2 import Inventory, Node
from pwm.certificates import SERVER_NAME, Identity, key_pem, new_key, signing_request
from pwm.controlplane.agentlink import AgentUnreachable
from pwm.controlplane.dispatcher import relay
from pwm.controlplane.plane import ControlPlane
from tests.patience import PATIENCE_S
from tests.unit.access.world import World, _token, a_world

REVOKE = "/v1/admin/node-credentials/revoke"


@dataclass
class Agents:
    """The agents' port of a control plane, and its API."""

    world: World
    port: int

    @property
    def plane(self) -> ControlPlane:
        return self.world.plane

    def node(self, name: str = "gpu7") -> Node:
        found: Node | None = self.plane.view.by_name("Node", name)
        assert found is not None
        return found

    async def join(self, name: str = "gpu7") -> Identity:
        made = await self.world.ask("keeper", "POST", "/v1/admin/join-tokens", body={"node": name})
        key = new_key()
        body = {"token": made.json["token"], "node": name, "signingRequest": signing_request(key)}
        answer = await self.world.ask("anonymous", "POST", "/v1/join", body=body)
        assert answer.status == 200, answer.body
        return Identity(answer.json["certificate"].encode(), key_pem(key))

    async def revoke(self, name: str = "gpu7") -> Any:
        answer = await self.world.ask("keeper", "POST", REVOKE, body={"node": name})
        assert answer.status == 200, answer.body
        return answer.json

    async def credentials(self, name: str = "") -> Any:
        answer = await self.world.ask("keeper", "GET", "/v1/admin/node-credentials", query={"node": name})
        assert answer.status == 200, answer.body
        return answer.json

    def dial(self, identity: Identity) -> grpc.aio.Channel:
        known = self.plane.credentials
        assert known is not None
        credentials = grpc.ssl_channel_credentials(known.roots.encode(), identity.key, identity.chain)
        options = (("grpc.ssl_target_name_override", SERVER_NAME),)
        return grpc.aio.secure_channel(f"127.0.0.1:{self.port}", credentials, options)

    async def refusal(self, identity: Identity, name: str = "gpu7") -> str:
        """What a hello is answered with; "" for a welcome."""
        async with self.dial(identity) as channel:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await session(channel, name)
            except grpc.aio.AioRpcError as error:
                return f"{error.code().name}: {error.details()}"
        return ""

    async def renew(self, identity: Identity) -> str:
        """What asking for another certificate is refused with; "" for a certificate."""
        async with self.dial(identity) as channel:
            request = RenewRequest(signing_request=signing_request(new_key()))
            try:
                answer = await agent_pb2_grpc.AgentServiceStub(channel).Renew(request, timeout=PATIENCE_S)
            except grpc.aio.AioRpcError as error:
                return f"{error.code().name}: {error.details()}"
            assert answer.certificate
            return ""


async def session(channel: grpc.aio.Channel, name: str = "gpu7", **metadata: str) -> Any:
    """A session that has begun."""
    call = agent_pb2_grpc.AgentServiceStub(channel).Session(metadata=tuple(metadata.items()))
    await call.write(SessionRequest(hello=Hello(node=name, inventory=Inventory(cpu_count=8, agent_version="3"))))
    welcome, full = await call.read(), await call.read()
    if welcome is grpc.aio.EOF:
        await call  # raises why
    assert welcome.WhichOneof("message") == "welcome"
    assert full.assignments.full
    return call


async def ends(call: Any) -> bool:
    async with asyncio.timeout(PATIENCE_S):
        while await call.read() is not grpc.aio.EOF:
            pass
    return True


@asynccontextmanager
async def serving(world: World) -> AsyncIterator[Agents]:
    server = grpc.aio.server()
    agent_pb2_grpc.add_AgentServiceServicer_to_server(world.plane.dispatcher, server)
    assert world.plane.credentials is not None
    port = server.add_secure_port("127.0.0.1:0", world.plane.credentials.agents())
    await server.start()
    try:
        yield Agents(world, port)
    finally:
        await server.stop(None)


@pytest.fixture
async def agents() -> AsyncIterator[Agents]:
    async with a_world() as world, serving(world) as agents:
        yield agents


async def test_a_revoked_node_is_cut_off_at_once_and_comes_back_with_a_new_join_token_only(agents: Agents) -> None:
    identity = await agents.join()
    assert await agents.renew(identity) == ""
    async with agents.dial(identity) as channel:
        call = await session(channel)
        assert agents.plane.dispatcher.holds("gpu7")
        answer = await agents.revoke()
        assert (answer["certificates"], answer.get("tokens", 0)) == (2, 0)
        assert await ends(call)
    assert not agents.plane.dispatcher.holds("gpu7")
    said = "UNAUTHENTICATED: the certificates of node gpu7 have been revoked"
    assert (await agents.refusal(identity)).startswith(said)
    assert (await agents.renew(identity)).startswith(said)
    again = await agents.join()
    assert await agents.refusal(again) == ""
    assert (await agents.refusal(identity)).startswith("UNAUTHENTICATED: node gpu7 has joined anew")
    assert (await agents.renew(identity)).startswith("UNAUTHENTICATED: node gpu7 has joined anew")
    assert await agents.renew(again) == ""


async def test_what_is_read_from_a_node_ends_with_its_credentials(agents: Agents) -> None:
    async with agents.dial(await agents.join()) as channel:
        call = await session(channel)
        asked = agents.plane.dispatcher.open("gpu7", OpenStream(logs=ReadLogs(container_uid="c")))
        opening = asyncio.ensure_future(asked.__aenter__())
        message = await call.read()
        while message.WhichOneof("message") != "open":
            message = await call.read()
        serving = agent_pb2_grpc.AgentServiceStub(channel).Relay()
        await serving.write(RelayRequest(stream_id=message.open.stream_id))
        reading = aiter(await opening)
        await agents.revoke()
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(AgentUnreachable):
                await anext(reading)
        await asked.__aexit__(None, None, None)
        serving.cancel()


async def test_a_node_that_joins_anew_ends_what_it_had_before(agents: Agents) -> None:
    async with agents.dial(await agents.join()) as channel:
        call = await session(channel)
        await agents.join()
        assert await ends(call)


async def test_a_node_that_is_deleted_is_out_with_its_tokens_and_so_it_stays_when_its_name_is_used_again(
    agents: Agents,
) -> None:
    identity = await agents.join()
    await agents.world.ask("keeper", "POST", "/v1/admin/join-tokens", body={"node": "gpu7"})
    spare = (await agents.credentials("gpu7"))["credentials"][1]
    assert (spare["kind"], spare["node"]) == ("JOIN_TOKEN", "gpu7")
    async with agents.dial(identity) as channel:
        call = await session(channel)
        gone = await agents.world.ask("admin", "DELETE", "/v1/resources/node/gpu7")
        assert (gone.status, gone.json["cascade"]) == (200, [f"Token {spare['id']}"])
        assert await ends(call)
    assert (await agents.refusal(identity)).startswith("UNAUTHENTICATED: there is no node gpu7 any more")
    assert agents.plane.view.by_name("Node", "gpu7") is None
    document = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "gpu7"}, "spec": {}}
    applied = await agents.world.ask("admin", "POST", "/v1/apply", body={"documents": [document]})
    assert applied.status == 200, applied.body
    assert (await agents.refusal(identity)).startswith("UNAUTHENTICATED")
    assert await agents.refusal(await agents.join()) == ""


async def test_credentials_are_listed_with_serial_and_fingerprint_and_ended_one_by_one(agents: Agents) -> None:
    identity = await agents.join()
    await agents.world.ask("keeper", "POST", "/v1/admin/join-tokens", body={"node": "gpu7"})
    await agents.world.ask("keeper", "POST", "/v1/admin/join-tokens", body={})
    listed = (await agents.credentials("gpu7"))["credentials"]
    assert [(c.get("node", ""), c["kind"]) for c in listed] == [
        ("gpu7", "CERTIFICATE"), ("gpu7", "JOIN_TOKEN"), ("", "NODE_TOKEN"), ("", "JOIN_TOKEN"),
    ]  # fmt: skip
    certificate, token = listed[:2]
    assert int(certificate["id"], 16) == identity.certificate.serial_number
    assert len(certificate["fingerprint"]) == 64
    assert (token["issuedBy"], "expiresAt" in token) == ("keeper", True)
    ended = await agents.world.ask("keeper", "POST", REVOKE, body={"token": token["id"]})
    assert (ended.status, ended.json["tokens"]) == (200, 1)
    left = [c["id"] for c in (await agents.credentials("gpu7"))["credentials"]]
    assert token["id"] not in left
    assert len(left) == 3
    assert await agents.refusal(identity) == "", "a token is no certificate"
    for body in ({"token": token["id"]}, {"token": "ab"}, {"token": ""}, {}, {"node": "gpu9"}):
        refused = await agents.world.ask("keeper", "POST", REVOKE, body=body)
        assert refused.status in (400, 404), body
    user = await agents.world.ask("admin", "GET", "/v1/tokens")
    assert (await agents.world.ask("admin", "POST", REVOKE, body={"token": user.json["tokens"][0]["id"]})).status == 404
    assert (await agents.world.ask("keeper", "GET", "/v1/admin/node-credentials", query={"node": "none"})).status == 404


async def test_revoking_is_in_the_log_and_a_second_time_it_changes_nothing(agents: Agents) -> None:
    await agents.join()
    await agents.world.ask("keeper", "POST", "/v1/admin/join-tokens", body={"node": "gpu7"})
    before = agents.node().metadata.version
    assert (await agents.revoke()) | {"revision": ""} == {"certificates": 1, "tokens": 1, "revision": ""}
    node = agents.node()
    assert (node.metadata.version, node.status.credentials.revoked_by.name) == (before + 1, "keeper")
    event = next(e for e in reversed(agents.plane.view.recent) if e.kind == "Node").event
    assert (event.WhichOneof("payload"), event.actor.name) == ("node_credentials_revoked", "keeper")
    assert set(await agents.revoke()) == {"revision"}
    assert agents.node().metadata.version == before + 1
    assert [r["node"] for r in (await agents.credentials())["revoked"]] == ["gpu7"]


async def test_without_tls_a_revoked_node_needs_a_token_by_its_own_name() -> None:
    async with a_world() as world:
        plane = ControlPlane(
            kv=world.plane.kv, keys=world.plane.store.keys, replica="p", address="", clock=world.plane.clock
        )
        server = grpc.aio.server()
        agent_pb2_grpc.add_AgentServiceServicer_to_server(plane.dispatcher, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        following = asyncio.create_task(plane.follower.run())
        try:
            await plane.view.wait_for(0)
            async with plane.store, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                tokens = [world.tokens["node"], await _token(world, TokenSpec(node="n1"))]
                calls = [await session(channel, "n1", authorization=f"Bearer {token}") for token in tokens]
                assert await ends(calls[0]), "a newer session took over"
                revoked = await world.ask("keeper", "POST", REVOKE, body={"node": "n1"})
                assert (revoked.status, revoked.json["tokens"]) == (200, 1)
                assert await ends(calls[1])
                for token in tokens:
                    with pytest.raises(grpc.aio.AioRpcError) as refused:
                        await session(channel, "n1", authorization=f"Bearer {token}")
                    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
                anew = await _token(world, TokenSpec(node="n1"))
                async with asyncio.timeout(PATIENCE_S):
                    await plane.view.wait_for(world.plane.view.revision)
                await session(channel, "n1", authorization=f"Bearer {anew}")
        finally:
            await server.stop(None)
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


async def test_a_call_that_says_nothing_is_ended(agents: Agents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "FIRST_MESSAGE_S", 0.05)
    async with agents.dial(await agents.join()) as channel:
        stub = agent_pb2_grpc.AgentServiceStub(channel)
        for call in (stub.Session(), stub.Relay()):
            async with asyncio.timeout(PATIENCE_S):
                assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
