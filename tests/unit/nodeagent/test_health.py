"""What an agent says about itself to whoever watches over its machine."""

import socket
from pathlib import Path

import aiohttp

from tests.unit.nodeagent.fakes import FakeController, FakeDriver, RunningAgent, order, until


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def get(address: str, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://{address}{path}") as answer:
        return answer.status, await answer.text()


async def test_health_readiness_and_metrics_follow_the_agent(
    controller: FakeController, driver: FakeDriver, tmp_path: Path
) -> None:
    address = f"127.0.0.1:{free_port()}"
    agent = RunningAgent(controller, driver, tmp_path)
    await agent.start(health=address)
    try:
        await controller.want(order("a"))
        await controller.reported("a", "RUNNING")
        assert await get(address, "/healthz") == (200, "ok\n")
        assert await get(address, "/readyz") == (200, "ok\n")
        status, text = await get(address, "/metrics")
        assert status == 200
        assert 'pwm_agent_containers_running{driver="pwm.fake"} 1.0' in text
        assert "pwm_agent_connected 1.0" in text
        await controller.stop()
        await until(lambda: not agent.agent.sessions.connected_to)
        status, text = await get(address, "/readyz")
        assert status == 503
        assert "no controller" in text
    finally:
        await agent.stop()
