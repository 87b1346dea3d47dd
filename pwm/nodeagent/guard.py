"""Keeps a watchdog for as long as something is promised, and lets it see the promise.

What the watchdog is for, and how it decides, is in `watchdog.py`. Here is the agent's side: a watchdog is started
when the first promise is made, again whenever it dies, and sent away when the promise was taken back. It is
not when the agent ends in any other way; that is what it is there for. A new agent starts its own, which
relieves the one that it found.
"""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import structlog

import pwm
from pwm.nodeagent.config import AgentConfig
from pwm.nodeagent.drivers.docker_spec import ON_NODE_LOST, identity
from pwm.nodeagent.drivers.process_spec import PLAIN_ENV
from pwm.nodeagent.drivers.process_tree import gone
from pwm.nodeagent.journal import Contact
from pwm.nodeagent.watchdog import RESCHEDULE, Killed, Promise, PromiseFile, Settings

log = structlog.get_logger(__name__)

# Before another is started: one that cannot start must not keep the machine busy.
RESTART_S = 1.0
# It says a few lines when it acts; what is older is dropped when the next one is started.
LOG_BYTES = 64 * 1024


class Guard:
    """`tell` it every change of contact, and `run` it in a task."""

    def __init__(self, config: AgentConfig, *, processes: Path | None = None) -> None:
        """`processes`: the process driver's folder, if it is in use. Raises OSError."""
        self._config = config
        self._processes = processes
        self._file = PromiseFile(config.state_dir)
        self._promised = asyncio.Event()
        self._watchdog: subprocess.Popen[bytes] | None = None
        # What a watchdog has killed, and nobody has forgotten yet.
        self.killed = Killed(config.state_dir)

    def tell(self, contact: Contact) -> None:
        """Costs next to nothing while a promise stands."""
        self._file.keep(Promise(contact.heard_ms, contact.self_fence_ms, contact.lost_after_ms))
        if contact.heard_ms and contact.self_fence_ms:
            self._promised.set()
            return
        self._promised.clear()
        if self._watchdog is not None:
            # It would find out by itself, a moment later. As nobody has waited for it yet, its number is its own.
            self._watchdog.terminate()

    async def run(self) -> None:
        """Until cancelled; the watchdog goes on."""
        while True:
            await self._promised.wait()
            try:
                self._watchdog = self._start()
                log.info("watchdog starts", pid=self._watchdog.pid)
                await gone(self._watchdog.pid)
                self._watchdog.wait()
                self._watchdog = None
            except OSError as error:
                log.error("the watchdog cannot be started", error=str(error))
            if self._promised.is_set():
                log.warning("without a watchdog: starting another")
                await asyncio.sleep(RESTART_S)

    def _start(self) -> subprocess.Popen[bytes]:
        config = self._config
        settings = Settings(
            state=str(config.state_dir.absolute()),
            agent=os.getpid(),
            docker=config.docker_socket,
            labels=[*identity(node=config.node, cluster=config.cluster), f"{ON_NODE_LOST}={RESCHEDULE}"],
            processes=str(self._processes.absolute()) if self._processes else "",
        )
        log_file = config.state_dir / "watchdog.log"
        with log_file.open("ab") as output:
            if output.tell() > LOG_BYTES:
                output.truncate(0)
            return subprocess.Popen(
                [sys.executable, "-S", "-P", "-m", "pwm.nodeagent.watchdog", json.dumps(settings._asdict())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Nothing of the agent's: it holds a token.
                env={**PLAIN_ENV, "PYTHONPATH": str(Path(pwm.__path__[0]).parent)},
                # Ctrl-C in the agent's terminal is meant for the agent.
                start_new_session=True,
            )
