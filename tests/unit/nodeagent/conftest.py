"""An agent without Docker: its driver is `FakeDriver`, its controller `FakeController`."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.unit.nodeagent.fakes import FakeController, FakeDriver, RunningAgent


@pytest.fixture
async def controller() -> AsyncIterator[FakeController]:
    controller = FakeController()
    await controller.start()
    yield controller
    await controller.stop()


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver()


@pytest.fixture
async def agent(controller: FakeController, driver: FakeDriver, tmp_path: Path) -> AsyncIterator[RunningAgent]:
    agent = RunningAgent(controller, driver, tmp_path)
    await agent.start()
    yield agent
    await agent.stop()
