"""An agent asks for what a container needs, in each session until it is answered, and keeps nothing of it."""

import asyncio

import pytest

from pwm.api.v1.agent_pb2 import ContainerSecrets
from pwm.api.v1.common_pb2 import Reason
from pwm.nodeagent.drivers.docker_spec import masked
from pwm.nodeagent.drivers.driver import DriverError
from pwm.nodeagent.secrets import Secrets


async def asked(secrets: Secrets, count: int) -> list[str]:
    """What one session asks for."""
    found: list[str] = []
    async for uid in secrets.wanted():
        found.append(uid)
        if len(found) == count:
            break
    return found


async def test_what_was_asked_in_a_session_that_broke_is_asked_again_in_the_next() -> None:
    secrets = Secrets()
    waiting = [asyncio.ensure_future(secrets.of(uid)) for uid in ("c1", "c2")]
    await asyncio.sleep(0)
    assert await asked(secrets, 2) == ["c1", "c2"]
    assert await asked(secrets, 2) == ["c1", "c2"]
    secrets.arrived(ContainerSecrets(container_uid="c1", env={"A": "1"}))
    assert dict((await waiting[0]).env) == {"A": "1"}
    assert await asked(secrets, 1) == ["c2"]
    # Whoever no longer waits is no longer asked for, and an answer that comes too late is dropped.
    waiting[1].cancel()
    await asyncio.gather(waiting[1], return_exceptions=True)
    secrets.arrived(ContainerSecrets(container_uid="c2", env={"A": "2"}))
    again = asyncio.ensure_future(secrets.of("c2"))
    await asyncio.sleep(0)
    assert await asked(secrets, 1) == ["c2"], "nothing was kept"
    secrets.arrived(ContainerSecrets(container_uid="c2", env={"A": "3"}))
    assert dict((await again).env) == {"A": "3"}


async def test_a_refusal_ends_the_attempt_with_its_reason() -> None:
    secrets = Secrets()
    waiting = asyncio.ensure_future(secrets.of("c1"))
    await asyncio.sleep(0)
    reason = Reason(code=Reason.SECRET_NOT_EXIST, message="there is no secret s in group g")
    secrets.arrived(ContainerSecrets(container_uid="c1", refused=reason))
    with pytest.raises(DriverError, match="there is no secret s in group g") as refused:
        await waiting
    assert refused.value.reason == reason


def test_what_docker_says_of_a_container_is_shown_without_values() -> None:
    labels = {"pwm.secret-env": "A,TOKEN"}
    env = ["PLAIN=1", "TOKEN=tell-nobody", "A=tell=nobody", "TOKEN_2=plain"]
    found = masked({"Config": {"Env": env, "Labels": labels}})
    assert found["Config"]["Env"] == ["PLAIN=1", "TOKEN=(secret)", "A=(secret)", "TOKEN_2=plain"]
    assert masked({"Config": {"Env": None, "Labels": None}})["Config"]["Env"] == []
