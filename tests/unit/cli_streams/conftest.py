"""A fake gateway for each test, and `pwm` as a process of its own against it."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.unit.cli_streams.fake_server import FakeServer, serving

Pwm = Callable[..., "subprocess.CompletedProcess[bytes]"]
# Far more than a command takes; one that hangs fails its test instead of the whole run.
COMMAND_LIMIT_S = 30


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serving() as running:
        yield running


@pytest.fixture
def environment(server: FakeServer, tmp_path: os.PathLike[str]) -> dict[str, str]:
    """Variables that send `pwm` to the fake server and keep it away from the user's own files."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "HOME") if name in os.environ}
    return {**kept, "PWM_CONFIG": f"{tmp_path}/profiles", "PWM_SERVER": server.url, "PWM_TOKEN": "pwm_secret"}


@pytest.fixture
def pwm(environment: dict[str, str]) -> Pwm:
    """Runs `pwm WORD...` without a terminal and returns what it printed and its exit code."""

    def run(*words: str, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
        command = [sys.executable, "-m", "pwm", *words]
        return subprocess.run(command, input=stdin, capture_output=True, env=environment, timeout=COMMAND_LIMIT_S)

    return run
