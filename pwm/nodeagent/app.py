"""Wires the agent together and runs it until it is told to stop.

    session ─ assignments ─▶ supervisor ─▶ one task per container ─▶ driver ─▶ engine
       ▲  ▲                                     │        │
       │  └── usage, inventory                  │        └─▶ logs (spool) ─▶ relay ─▶ whoever reads
       └───────── reporter ◀─ journal ◀─────────┘

A stop (SIGTERM, Ctrl-C) leaves every container running: the next agent finds them again. The same goes for an
agent that is killed, only without the goodbyes: what it owes for as long as it is away is left to the
watchdog (`guard.py`).
"""

import asyncio
import fcntl
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import structlog

from pwm import daemon_log
from pwm.api.v1.agent_pb2 import ContainerUsage, NodeUsage
from pwm.api.v1.node_pb2 import GPUDevice, Inventory
from pwm.nodeagent.allegiance import Allegiance
from pwm.nodeagent.config import AgentConfig, ConfigError
from pwm.nodeagent.drivers.docker import DockerDriver
from pwm.nodeagent.drivers.driver import Driver
from pwm.nodeagent.drivers.process import ProcessDriver
from pwm.nodeagent.fence import Fence
from pwm.nodeagent.gpu.activity import ActivityWatch
from pwm.nodeagent.guard import Guard
from pwm.nodeagent.health import Health
from pwm.nodeagent.host import Host
from pwm.nodeagent.membership import Membership
from pwm.nodeagent.relay import Relays
from pwm.nodeagent.session import Callbacks, Dial, Sessions, dial_insecure
from pwm.nodeagent.shells import Shells
from pwm.nodeagent.supervisor import Supervisor

log = structlog.get_logger(__name__)

# A stop waits no longer than this for a controller.
LEAVE_TIMEOUT_S = 2.0


class Agent:
    """Everything of one agent; `run` it once."""

    def __init__(
        self,
        config: AgentConfig,
        *,
        drivers: list[Driver],
        dial: Dial = dial_insecure,
        host: Host | None = None,
        guard: Guard | None = None,
        membership: Membership | None = None,
    ) -> None:
        """`membership`: what to dial with, if there is TLS.

        `guard`: for what happens when this is killed or hangs; tests do without, and the simulator has its own."""
        self._config = config
        self._drivers = drivers
        self._host = host or Host(config)
        self._gpus: list[GPUDevice] = []
        self.supervisor = Supervisor(
            drivers=drivers,
            journal=self._host.journal,
            output=self._host.logs,
            clock_ns=self._host.now_ns,
            on_drivers_changed=self._drivers_changed,
            is_overdue=lambda: self._fence.overdue,
            killed=guard.killed if guard else None,
        )
        self._guard = guard
        self._devices = self._host.devices(self.supervisor.runtime_ids)
        self._activity = ActivityWatch()
        self._fence = Fence(
            self._host.journal,
            boot_id=self._host.inventory.boot_id,
            clock_ms=self._host.uptime_ms,
            tell=guard.tell if guard else lambda contact: None,
        )
        self._shells = Shells()
        relays = Relays(token=config.token, logs=self._host.logs, shells=self._shells, find=self.supervisor.find)
        self.sessions = Sessions(
            servers=config.servers,
            token=config.token,
            node=config.node,
            zone=config.zone,
            reporter=self.supervisor.reporter,
            fence=self._fence,
            allegiance=Allegiance(self._host.journal, clock_ns=self._host.now_ns),
            callbacks=Callbacks(
                inventory=self._inventory,
                sample=self._sample,
                assign=self.supervisor.assign,
                relay=relays.serve,
                held=self.supervisor.held,
                tell_again=self.supervisor.tell_again,
                secrets=self.supervisor.secrets,
                authorities_are=membership.told if membership else lambda authorities_id: None,
                shut_out=membership.shut_out if membership else lambda why: None,
                gpu_used_from=self._activity.configure,
            ),
            dial=membership.dial if membership else dial,
        )
        self._membership = membership

        self._health = Health(supervisor=self.supervisor, sessions=self.sessions, journal=self._host.journal)

    async def run(self) -> None:
        """Until cancelled, or until it has left."""
        log.info("agent starts", node=self._config.node, servers=list(self._config.servers))
        try:
            async with self._health.serving(self._config.health_address), asyncio.TaskGroup() as tasks:
                beside = [tasks.create_task(work) for work in (self._host.logs.run(), self._shells.run())]
                if self._membership:
                    beside.append(tasks.create_task(self._membership.run()))
                if self._guard:
                    beside.append(tasks.create_task(self._guard.run()))
                async with self.supervisor.running():
                    # So that the first hello says what there is.
                    await self.supervisor.engines_asked()
                    beside.append(tasks.create_task(self._fence.run(self.supervisor.fence)))
                    await self.sessions.run()
                for task in beside:
                    task.cancel()
        finally:
            for driver in self._drivers:
                await driver.close()
            self._devices.close()
            await self._host.close()
            log.info("agent stopped, containers run on", node=self._config.node)

    async def leave(self) -> None:
        """Before a stop in good order: nobody may count on containers here being ended from now on.

        Unless the machine itself goes down, which ends them all.
        """
        if await self._host.goes_down():
            return
        self._fence.leave()
        try:
            async with asyncio.timeout(LEAVE_TIMEOUT_S):
                is_known = await self.sessions.leave()
        except TimeoutError:
            is_known = False
        if is_known:
            self._fence.left()
        else:
            log.warning("left without a word: no controller answers", node=self._config.node)

    def _drivers_changed(self) -> None:
        self.sessions.inventory_changed()

    async def _inventory(self) -> Inventory:
        inventory = Inventory()
        inventory.CopyFrom(self._host.inventory)
        self._gpus = await self._devices.gpus()
        inventory.gpus.extend(self._gpus)
        inventory.nvidia_driver = self._devices.nvidia_driver
        inventory.drivers.extend(self.supervisor.drivers())
        inventory.labels.update(self._config.labels)
        inventory.address = self._config.address
        inventory.fenced_after_ms = self._fence.promised_ms
        return inventory

    async def _sample(self) -> NodeUsage:
        usage = await self._devices.usage()
        running = self.supervisor.running_uids()
        usage.activity.extend(
            self._activity.look(usage.gpus, self._gpu_holders(running), now_ms=self._host.uptime_ms())
        )
        for driver in self._drivers:
            usage.containers.extend(await driver.usage(running.get(driver.name, ())))
        usage.containers.extend(ContainerUsage(uid=uid, pull=pull) for uid, pull in self.supervisor.pulls().items())
        if await self._devices.gpus() != self._gpus:
            # A GPU was lost, or somebody else uses it: the scheduler must know.
            self.sessions.inventory_changed()
        return usage

    def _gpu_holders(self, running: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
        """The GPUs of each container that runs and has some. `running`: uids, by driver."""
        found = (self.supervisor.find(uid) for uids in running.values() for uid in uids)
        return {c.uid: c.assignment.spec.gpu_uuids for c in found if c is not None and c.assignment.spec.gpu_uuids}


def drivers_of(config: AgentConfig) -> list[Driver]:
    """What the configuration allows."""
    drivers: list[Driver] = [DockerDriver(config.docker_socket, node=config.node, cluster=config.cluster)]
    if config.allow_process:
        drivers.append(ProcessDriver(_processes(config), node=config.node, cluster=config.cluster))
    return drivers


def _processes(config: AgentConfig) -> Path:
    return config.state_dir / "processes"


async def run(config: AgentConfig) -> None:
    """An agent with the drivers that the configuration allows, until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        guard = Guard(config, processes=_processes(config) if config.allow_process else None)
    except OSError as error:
        raise ConfigError(f"The state folder {config.state_dir} cannot be used: {error.strerror}") from error
    membership = await _member(config, stop)
    if stop.is_set():
        return
    agent = Agent(config, drivers=drivers_of(config), guard=guard, membership=membership)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(agent.run())
        stopped = tasks.create_task(stop.wait())
        await asyncio.wait([running, stopped], return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            await agent.leave()
        running.cancel()
        stopped.cancel()


async def _member(config: AgentConfig, stop: asyncio.Event) -> Membership | None:
    """Who this node is, once it has joined; None without TLS, or when it is told to stop before."""
    if config.plaintext:
        return None
    membership = Membership(config, now_ms=lambda: time.time_ns() // 1_000_000)
    opening, stopped = asyncio.ensure_future(membership.open()), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({opening, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if opening.done():
            opening.result()
    finally:
        for task in (opening, stopped):
            task.cancel()
    return membership


def main(config: AgentConfig) -> int:
    """Run an agent in this process; the exit code. Raises ConfigError for what cannot work."""
    import uvloop

    daemon_log.configure(level=config.log_level, as_json=config.log_json)
    with _only_agent(config.state_dir):
        try:
            uvloop.run(run(config))
        except* ConfigError as group:
            raise group.exceptions[0] from None
    return 0


@contextmanager
def _only_agent(state_dir: Path) -> Iterator[None]:
    """Two agents with one journal would each undo what the other does."""
    try:
        # Private: what containers print is nobody else's business.
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (state_dir / "lock").open("w")
    except OSError as error:
        raise ConfigError(f"The state folder {state_dir} cannot be used: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"Another agent already runs with the state folder {state_dir}") from error
        yield
