"""How an agent joins: with one key for as long as it tries, whatever happens in between."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from pwm.certificates import key_digest, requested_key
from pwm.controlplane.authority import Issuer, new_issuer
from pwm.nodeagent import membership
from pwm.nodeagent.config import AgentConfig, ConfigError
from pwm.nodeagent.membership import Membership
from pwm.trust import Refusal, TrustError
from tests.patience import PATIENCE_S

TOKEN = "pwmjoin." + "0" * 64 + ".pwm_secret"
DAY_MS = 86_400_000


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass
class Controller:
    """Answers joins, or does what a test says instead."""

    issuer: Issuer = field(default_factory=lambda: new_issuer(1, now_ms=now_ms()))
    instead: list[Exception] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    def authorities(self, host: str, port: int, fingerprint: str) -> str:
        if self.instead:
            raise self.instead.pop(0)
        return self.issuer.certificate.public_bytes(Encoding.PEM).decode()

    def join(self, host: str, port: int, fingerprint: str, body: dict[str, str]) -> dict[str, Any]:
        key = requested_key(body["signingRequest"])
        self.keys.append(key_digest(key))
        if self.instead:
            raise self.instead.pop(0)
        chain = self.issuer.for_node(key, body["node"], "m1", now_ms=now_ms(), life_ms=DAY_MS)
        roots = self.issuer.certificate.public_bytes(Encoding.PEM).decode()
        return {"certificate": chain.decode(), "authorities": roots}


@pytest.fixture
def controller(monkeypatch: pytest.MonkeyPatch) -> Controller:
    made = Controller()
    monkeypatch.setattr(membership, "_join_one", made.join)
    monkeypatch.setattr(membership, "find_authorities", made.authorities)
    monkeypatch.setattr(membership, "RETRY_S", 0.001)
    return made


@pytest.fixture
def an_agent(tmp_path: Path) -> Callable[[], Membership]:
    def make(token: str = TOKEN) -> Membership:
        config = AgentConfig(servers=("127.0.0.1:1",), node="gpu7", state_dir=tmp_path, join_token=token)
        return Membership(config, now_ms=now_ms)

    return make


async def test_an_answer_that_is_lost_is_asked_for_again_with_the_same_key(
    controller: Controller, an_agent: Callable[[], Membership], tmp_path: Path
) -> None:
    controller.instead = [TrustError("does not answer"), Refusal(503, "no store"), Refusal(429, "come back later")]
    agent = an_agent()
    async with asyncio.timeout(PATIENCE_S):
        await agent.open()
    assert len(controller.keys) == 4
    assert len(set(controller.keys)) == 1
    assert [file.name for file in (tmp_path / "tls").iterdir() if file.name == "joining.pem"] == []
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "tls").iterdir()} == {0o600}


async def test_also_after_a_restart_and_another_node_makes_its_own(
    controller: Controller, an_agent: Callable[[], Membership], tmp_path: Path
) -> None:
    for _ in range(2):
        controller.instead = [Refusal(401, "not now")]
        with pytest.raises(ConfigError, match="may not join: not now"):
            await an_agent().open()
        assert (tmp_path / "tls" / "joining.pem").stat().st_mode & 0o777 == 0o600
    await an_agent().open()
    assert len(set(controller.keys)) == 1
    (tmp_path / "tls" / "identity.pem").unlink()
    await an_agent().open()
    assert len(set(controller.keys)) == 2, "what has joined begins with another key"


async def test_a_key_that_cannot_be_read_is_replaced(
    controller: Controller, an_agent: Callable[[], Membership], tmp_path: Path
) -> None:
    (tmp_path / "tls").mkdir()
    (tmp_path / "tls" / "joining.pem").write_text("nothing")
    await an_agent().open()
    assert len(controller.keys) == 1


async def test_who_is_shut_out_joins_anew_with_the_token_that_it_was_started_with(
    controller: Controller, an_agent: Callable[..., Membership]
) -> None:
    await an_agent().open()
    agent = an_agent()
    await agent.open()
    assert len(controller.keys) == 1, "a good certificate is kept, and the token left alone"
    running = asyncio.ensure_future(agent.run())
    before = agent.identity
    agent.shut_out("revoked")
    async with asyncio.timeout(PATIENCE_S):
        while agent.identity is before:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert len(controller.keys) == 2
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_token_that_does_not_help_stops_nothing(
    controller: Controller, an_agent: Callable[..., Membership]
) -> None:
    await an_agent().open()
    agent = an_agent()
    await agent.open()
    controller.instead = [Refusal(401, "used already")]
    running = asyncio.ensure_future(agent.run())
    agent.shut_out("revoked")
    async with asyncio.timeout(PATIENCE_S):
        while controller.instead:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    await asyncio.sleep(0)
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_token_of_another_cluster_is_said_and_nothing_is_touched(
    controller: Controller, an_agent: Callable[[], Membership], tmp_path: Path
) -> None:
    await an_agent().open()
    before = (tmp_path / "tls" / "identity.pem").read_bytes()
    await an_agent().open()
    controller.issuer = new_issuer(1, now_ms=now_ms())
    controller.instead = [TrustError("is away")]
    await an_agent().open()
    with pytest.raises(ConfigError, match="of another cluster than the join token"):
        await an_agent().open()
    assert (tmp_path / "tls" / "identity.pem").read_bytes() == before
    assert len(controller.keys) == 1
