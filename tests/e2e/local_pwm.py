"""A whole PWM as its users start it, `pwm up`, for tests that use it through the command line only."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.watchdogs import end_watchdogs, watchdogs

START_LIMIT_S = 90.0
STOP_LIMIT_S = 60.0
COMMAND_LIMIT_S = 60.0
# It is sent away, not waited for.
WATCHDOG_LIMIT_S = 10.0
POLL_S = 0.05


class LocalPwm:
    """A running `pwm up`, its profile in a file of its own."""

    def __init__(self, process: "subprocess.Popen[str]", environment: dict[str, str], log: Path) -> None:
        self.process = process
        self.environment = environment
        self.log = log

    def __call__(self, *words: str, stdin: bytes = b"", check: bool = True) -> "subprocess.CompletedProcess[bytes]":
        """Runs `pwm WORD...`; fails unless it ends with 0, if that is wanted."""
        result = subprocess.run(
            [sys.executable, "-m", "pwm", *words],
            input=stdin,
            capture_output=True,
            env=self.environment,
            timeout=COMMAND_LIMIT_S,
        )
        assert not check or result.returncode == 0, (words, result)
        return result

    def get(self, name: str) -> dict[str, Any]:
        """A workload as JSON."""
        found = json.loads(self("get", "wk", name, "-o", "json").stdout)
        document: dict[str, Any] = found["items"][0] if "items" in found else found
        return document

    def phase(self, name: str) -> str:
        return str(self.get(name)["status"]["phase"])

    def wait_for_phase(self, name: str, phase: str) -> None:
        wait_until(lambda: self.phase(name) == phase, f"{name} did not become {phase}")

    def child(self, command: str) -> int:
        """Process id of the controller, agent or etcd that runs under it."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for pid in children:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if command.encode() in words or words[0].endswith(command.encode()):
                return int(pid)
        raise AssertionError(f"{command} does not run")


def wait_until(condition: Any, otherwise: str, *, limit_s: float = COMMAND_LIMIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(POLL_S)


@contextmanager
def pwm_up(directory: Path, *options: str, docker_host: str) -> Iterator[LocalPwm]:
    """Runs `pwm up OPTION...` on free ports until the block ends; it must then end well by itself."""
    directory.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PWM_CONFIG": str(directory / "profiles"), "DOCKER_HOST": docker_host}
    for name in ("PWM_PROFILE", "PWM_SERVER", "PWM_TOKEN"):
        environment.pop(name, None)
    log = directory / "up.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pwm", "up", "--port", "0", *options],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, text=True, start_new_session=True,
        )  # fmt: skip
    state = directory
    try:
        wait_until(lambda: re.search(r"^Ready", log.read_text(), re.M) or process.poll() is not None,
                   f"pwm up is not ready: {log.read_text()}", limit_s=START_LIMIT_S)  # fmt: skip
        assert process.poll() is None, log.read_text()
        state = Path(re.findall(r"^PWM \S+ in (.+)$", log.read_text(), re.M)[0])
        yield LocalPwm(process, environment, log)
        process.send_signal(signal.SIGINT)
        assert process.wait(STOP_LIMIT_S) == 0, log.read_text()
        wait_until(lambda: not watchdogs(state), "an agent that was stopped in good order has left its watchdog behind",
                   limit_s=WATCHDOG_LIMIT_S)  # fmt: skip
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        end_watchdogs(state)
