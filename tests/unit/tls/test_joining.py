"""Who gets in with a join token: the right node, once, in time. Everybody else stays out, whatever they try."""

import asyncio
import base64
from dataclasses import dataclass
from typing import Any

import pytest

from pwm.api.v1 import services_pb2 as api
from pwm.api.v1.events_pb2 import NodeAdmitted
from pwm.api.v1.identity_pb2 import Token
from pwm.api.v1.node_pb2 import Inventory, Node, NodeStatus
from pwm.certificates import NODE, Holder, Identity, key_pem, new_key, proof, signing_request
from pwm.controlplane.authority import new_issuer
from pwm.controlplane.core import joining
from pwm.controlplane.core.decide import Refusal
from pwm.controlplane.core.door import DoorLimits
from tests.unit.access.world import World, a_world

ALL = "pwm.all"
NOW_MS = 1_700_000_000_000


def join_token(*, node: str = "n1", revoked: bool = False, ends_ms: int = NOW_MS + 1, join: bool = True) -> Token:
    token = Token(kind="Token")
    token.metadata.uid = "t"
    token.spec.node, token.spec.join, token.spec.revoked = node, join, revoked
    token.spec.expires_at.FromMilliseconds(ends_ms)
    token.metadata.updated_at.FromMilliseconds(NOW_MS - 10)
    return token


def a_node(name: str = "n1", *, joined: bool = True) -> Node:
    node = Node()
    node.metadata.name = node.metadata.uid = name
    if joined:
        node.status.phase = NodeStatus.READY
    return node


def user_token() -> Token:
    token = Token(kind="Token")
    token.spec.user = "admin"
    return token


@pytest.mark.parametrize(
    ("token", "name", "node", "why"),
    [
        (None, "n1", None, "no join token of this cluster"),
        (user_token(), "n1", None, "no join token of this cluster"),
        (join_token(join=False), "n1", None, "no join token of this cluster"),
        (join_token(ends_ms=NOW_MS), "n1", None, "has expired"),
        (join_token(revoked=True), "n1", None, "has been used already"),
        (join_token(), "n2", None, "not for node n2"),
        (join_token(), "N1", None, "not for node N1"),
        (join_token(), "n1.", None, "is no name for a node"),
        (join_token(node=ALL), "", None, "is no name for a node"),
        (join_token(node=ALL), "pwm.all", None, "is no name for a node"),
        (join_token(node=ALL), "n/1", None, "is no name for a node"),
        (join_token(node=ALL), "n1", a_node(), "there is a node n1 already"),
    ],
)
def test_nobody_else_is_let_in(token: Token | None, name: str, node: Node | None, why: str) -> None:
    with pytest.raises(Refusal, match=why):
        joining.check_token(token, name, node, now_ms=NOW_MS)


@pytest.mark.parametrize(
    ("token", "node", "payloads"),
    [
        (join_token(), None, ["NodeJoined", "NodeAdmitted"]),
        (join_token(), a_node(), ["NodeAdmitted"]),
        (join_token(node=ALL), None, ["NodeJoined", "NodeAdmitted"]),
        (join_token(node=ALL), a_node(joined=False), ["NodeJoined", "NodeAdmitted"]),
    ],
    ids=["a new one by name", "one by name that joins anew", "any new one", "any that was only applied"],
)
def test_who_is_let_in_uses_the_token_up_and_takes_the_name(
    token: Token, node: Node | None, payloads: list[str]
) -> None:
    assert joining.check_token(token, "n1", node, now_ms=NOW_MS) is token
    used, named = joining.admit(token, "n1", node, new_uid="u", admitted=NodeAdmitted(membership="m1"))
    assert [payload.DESCRIPTOR.name for payload in used.payloads] == ["TokenRevoked"]
    assert [payload.DESCRIPTOR.name for payload in named.payloads] == payloads


def test_a_node_whose_agent_has_said_what_it_has_counts_as_joined() -> None:
    node = a_node(joined=False)
    node.status.inventory.CopyFrom(Inventory(agent_version="3.0.0"))
    assert joining.has_joined(node)


@dataclass
class Door:
    """The API of a control plane, as agents and admins see it."""

    world: World

    async def token(self, node: str = "", **more: Any) -> str:
        answer = await self.world.ask("keeper", "POST", "/v1/admin/join-tokens", body={"node": node, **more})
        assert answer.status == 200, answer.body
        return str(answer.json["token"])

    async def join(self, token: str, node: str, *, request: str = "") -> tuple[int, Any]:
        body = {"token": token, "node": node, "signingRequest": request or signing_request(new_key())}
        answer = await self.world.ask("anonymous", "POST", "/v1/join", body=body)
        return answer.status, answer.json


async def test_a_node_joins_with_its_token_and_gets_a_certificate_of_its_name() -> None:
    async with a_world() as world:
        door = Door(world)
        token = await door.token("gpu7")
        credentials = world.plane.credentials
        assert credentials is not None
        assert token.split(".")[:2] == ["pwmjoin", credentials.fingerprint]
        status, answer = await door.join(token, "gpu7")
        assert status == 200
        membership = world.plane.view.by_name("Node", "gpu7").status.credentials.membership  # type: ignore[union-attr]
        assert membership
        assert Identity(answer["certificate"].encode(), b"").holder == Holder(NODE, "gpu7", membership)
        assert answer["authorities"] == credentials.roots
        assert answer["authoritiesId"] == credentials.bundle_id


async def test_a_token_lets_one_in_of_those_who_use_it_at_once() -> None:
    async with a_world() as world:
        door = Door(world)
        token = await door.token()
        answers = await asyncio.gather(*(door.join(token, f"gpu{number}") for number in range(8)))
        assert sorted(status for status, _ in answers) == [200, *[401] * 7]
        assert {answer["message"] for status, answer in answers if status == 401} == {
            "this join token has been used already"
        }


async def test_two_tokens_for_any_node_do_not_make_two_of_the_same_name() -> None:
    async with a_world() as world:
        door = Door(world)
        first, second = await door.token(), await door.token()
        answers = await asyncio.gather(door.join(first, "gpu7"), door.join(second, "gpu7"))
        assert sorted(status for status, _ in answers) == [200, 401]


async def test_what_is_no_good_is_answered_as_a_failed_log_in_and_uses_nothing_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with a_world() as world:
        door, credentials = Door(world), world.plane.credentials
        token, short = await door.token("gpu7"), await door.token("gpu7", lifetime="1s")
        other = await door.token()
        mangled = token[:-1] + ("A" if token[-1] != "A" else "B")
        with monkeypatch.context() as patch:
            patch.delattr(type(credentials), "certify_node")  # nothing is signed for them
            for bad in ("", "pwmjoin..", mangled, world.tokens["admin"], world.tokens["node"]):
                status, answer = await door.join(bad, "gpu7")
                assert (status, answer["message"]) == (401, "this is no join token of this cluster"), bad
        assert (await door.join(token, "gpu8"))[0] == 401
        assert (await door.join(other, "n1"))[0] == 401, "n1 has joined already"
        assert (await door.join(token, "gpu7", request="nothing"))[0] == 400
        assert (await door.join(token, "gpu7"))[0] == 200
        assert (await door.join(token, "gpu7"))[0] == 401
        await asyncio.sleep(1)  # it lives by the clock
        assert (await door.join(short, "gpu7"))[1]["message"] == "this join token has expired"


async def test_a_join_token_is_no_log_in_and_no_node_token() -> None:
    async with a_world() as world:
        door = Door(world)
        token = await door.token("gpu7")
        secret = token.rpartition(".")[2]
        assert await world.plane.authenticator.node(secret) is None
        for shown in (token, secret):
            world.tokens["joiner"] = shown
            assert (await world.ask("joiner", "GET", "/v1/whoami")).status == 401


async def test_who_makes_join_tokens_has_to_say_a_lifetime_that_makes_sense() -> None:
    async with a_world() as world:
        for lifetime in ("0s", "86401s", "-5s"):
            answer = await world.ask("admin", "POST", "/v1/admin/join-tokens", body={"lifetime": lifetime})
            assert answer.status == 400, lifetime
        answer = await world.ask("admin", "POST", "/v1/admin/join-tokens", body={})
        made = api.CreateJoinTokenResponse()
        made.expires_at.FromJsonString(answer.json["expiresAt"])
        left_ms = made.expires_at.ToMilliseconds() - world.plane.clock.now_ms()
        assert 14 * 60_000 < left_ms <= 15 * 60_000


DAY_MS = 86_400_000


@dataclass
class Away:
    """A node that has joined, been switched off, and comes back with what it had."""

    door: Door
    name: str = "gpu7"

    async def come_back(self, *, ended_ms_ago: int = DAY_MS, **other: Any) -> tuple[int, str]:
        plane = self.door.world.plane
        issuer = other.get("issuer") or plane.credentials._issuer  # type: ignore[union-attr]
        key, now_ms = new_key(), plane.clock.now_ms()
        began_ms = now_ms - ended_ms_ago - DAY_MS
        if other.get("replica"):
            shown = issuer.for_controller(self.name, hosts=[], now_ms=began_ms, life_ms=DAY_MS)
        else:
            node = plane.view.by_name("Node", self.name)
            membership = other.get("membership", node.status.credentials.membership if node else "m1")
            chain = issuer.for_node(key.public_key(), self.name, membership, now_ms=began_ms, life_ms=DAY_MS)
            shown = Identity(chain, key_pem(key))
        text = signing_request(new_key())
        signer = Identity(b"", key_pem(new_key())) if other.get("thief") else shown
        body = {
            "node": other.get("node", self.name),
            "signingRequest": text,
            "certificate": other.get("certificate", shown.chain.decode()),
            "proof": base64.b64encode(proof(signer, other.get("signed", text))).decode(),
        }
        answer = await self.door.world.ask("anonymous", "POST", "/v1/join", body=body)
        return answer.status, answer.json.get("message", "")


async def test_a_node_comes_back_with_a_certificate_that_has_ended() -> None:
    async with a_world() as world:
        door = Door(world)
        away = Away(door)
        assert await away.come_back() == (401, "there is no node gpu7 any more")
        assert (await door.join(await door.token("gpu7"), "gpu7"))[0] == 200
        assert await away.come_back() == (200, "")
        assert await away.come_back(ended_ms_ago=29 * DAY_MS) == (200, "")
        assert await away.come_back(ended_ms_ago=31 * DAY_MS) == (401, "this certificate has ended too long ago")
        assert await away.come_back(node="n1") == (401, "this certificate is not for node n1")
        joined_anew = "node gpu7 has joined anew since this certificate was issued"
        assert await away.come_back(membership="m1") == (401, joined_anew)
        for bad in (
            {"thief": True},
            {"signed": "another request"},
            {"replica": True},
            {"issuer": new_issuer(1, now_ms=NOW_MS)},
            {"certificate": "nothing"},
        ):
            status, message = await away.come_back(**bad)
            assert (status, "certificate" in message) == (400, True), bad
        credentials = world.plane.credentials
        assert credentials is not None
        old = credentials._issuer
        await credentials.rotate(trust_old_for_ms=0)
        assert (await away.come_back(issuer=old))[0] == 400, "its authority has retired"


# ---- a join whose answer was lost


async def test_a_join_is_answered_again_with_the_same_certificate_to_the_same_key_only() -> None:
    async with a_world() as world:
        door = Door(world)
        token, key = await door.token("gpu7"), new_key()
        first, other = signing_request(key), signing_request(new_key())
        status, answer = await door.join(token, "gpu7", request=first)
        assert status == 200
        node = world.plane.view.by_name("Node", "gpu7")
        assert node is not None
        for request in (first, signing_request(key)):  # signed anew: another text, and the same key
            assert await door.join(token, "gpu7", request=request) == (200, answer)
        assert world.plane.view.by_name("Node", "gpu7").metadata.version == node.metadata.version  # type: ignore[union-attr]
        used = (401, "this join token has been used already")
        for name, request in (("gpu7", other), ("gpu8", first)):
            status, refused = await door.join(token, name, request=request)
            assert (status, refused["message"]) == used, name


async def test_of_two_keys_that_use_a_token_at_once_one_gets_in_however_often_both_ask() -> None:
    async with a_world() as world:
        door = Door(world)
        token = await door.token("gpu7")
        requests = [signing_request(new_key()) for _ in range(2)]
        asked = [request for request in requests for _ in range(4)]
        answers = await asyncio.gather(*(door.join(token, "gpu7", request=request) for request in asked))
        statuses = [status for status, _ in answers]
        assert sorted([statuses[:4], statuses[4:]]) == [[200] * 4, [401] * 4]
        assert len({answer["certificate"] for status, answer in answers if status == 200}) == 1


async def test_a_join_is_not_answered_again_when_its_time_is_over_or_it_was_ended() -> None:
    async with a_world() as world:
        door = Door(world)
        for end in ("time", "revoked", "deleted"):
            request = signing_request(new_key())
            token = await door.token("gpu7", lifetime="1s")
            assert (await door.join(token, "gpu7", request=request))[0] == 200
            if end == "time":
                await asyncio.sleep(1)  # it lives by the clock
            elif end == "revoked":
                revoked = await world.ask("keeper", "POST", "/v1/admin/node-credentials/revoke", body={"node": "gpu7"})
                assert revoked.status == 200
            else:
                assert (await world.ask("admin", "DELETE", "/v1/resources/node/gpu7")).status == 200
            assert (await door.join(token, "gpu7", request=request))[0] == 401, end


async def test_what_was_good_once_is_no_guess_and_bans_nobody_who_comes_with_another_token() -> None:
    async with a_world(DoorLimits(failures=3)) as world:
        door, request = Door(world), signing_request(new_key())
        used = await door.token("gpu7")
        assert (await door.join(used, "gpu7", request=request))[0] == 200
        assert {(await door.join(used, "gpu7"))[0] for _ in range(5)} == {401}
        await world.ask("keeper", "POST", "/v1/admin/node-credentials/revoke", body={"node": "gpu7"})
        assert {(await Away(door).come_back())[0] for _ in range(5)} == {401}
        assert (await door.join(await door.token("gpu7"), "gpu7"))[0] == 200
        invented = "pwmjoin.f.pwm_invented"
        assert [(await door.join(invented, "gpu7"))[0] for _ in range(4)] == [401, 401, 401, 429]
