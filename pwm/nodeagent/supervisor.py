"""Owns all containers of this node and brings each to what the control plane wants.

One task per container (`container.py`) asks `next_step` what to do and does it; this module starts those
tasks, tells them what is wanted, and knows the drivers. It is level-triggered: a full set of assignments
is compared with everything the engines and the journal have, and whatever no assignment names is stopped and
removed. Before a driver has listed its containers (`adopt`) nothing of it is touched, because an engine that is
away would look like one that has nothing.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress

import structlog

from pwm.api.v1.agent_pb2 import Assignment, Assignments, HeldContainer, PullProgress
from pwm.api.v1.node_pb2 import DriverInfo
from pwm.api.v1.workload_pb2 import ContainerSpec, WorkloadSpec
from pwm.nodeagent.container import Container, Killed, Output, Surroundings
from pwm.nodeagent.drivers.docker_spec import ON_NODE_LOST
from pwm.nodeagent.drivers.driver import Adopted, Driver
from pwm.nodeagent.engine import Engine
from pwm.nodeagent.fence import Fencing
from pwm.nodeagent.journal import Journal, Record
from pwm.nodeagent.reporter import Reporter
from pwm.nodeagent.secrets import Secrets
from pwm.nodeagent.step import Desired
from pwm.nodeagent.watchdog import RESCHEDULE

log = structlog.get_logger(__name__)

# Starting containers is the engine's work. Its rate grows up to eight in flight per core, more only wait longer.
STARTS_PER_CORE = 8
# An agent whose engine hangs joins without it.
FIRST_ANSWERS_S = 3.0


class Supervisor:
    """`run` it in a task; everything else may be called from the same loop at any time."""

    def __init__(
        self,
        *,
        drivers: Iterable[Driver],
        journal: Journal,
        output: Output,
        clock_ns: Callable[[], int],
        on_drivers_changed: Callable[[], None],
        is_overdue: Callable[[], bool] = lambda: False,
        killed: Killed | None = None,
    ) -> None:
        """`is_overdue`: whether the self-fence is. `killed`: what the watchdog has killed, where there is one."""
        self._is_overdue = is_overdue
        self._engines = {driver.name: Engine(driver) for driver in drivers}
        self._journal = journal
        self.reporter = Reporter(journal, on_acknowledged=self._acknowledged, clock_ns=clock_ns)
        self.secrets = Secrets()
        self._output = output
        self._clock_ns = clock_ns
        self._on_drivers_changed = on_drivers_changed
        self._slots = asyncio.Semaphore(STARTS_PER_CORE * (os.cpu_count() or 1))
        self._containers: dict[str, Container] = {}
        self._tasks: asyncio.TaskGroup | None = None
        # None until the control plane has said what it wants.
        self._assigned: set[str] | None = None
        self._pulling: dict[str, PullProgress] = {}
        self._killed: Killed = set[str]() if killed is None else killed

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Watch and act for as long as the block lasts; containers go on running when it ends."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            for record in self._journal.records():
                self._begin(record, Desired.UNKNOWN)
            watches = [tasks.create_task(self._serve(engine)) for engine in self._engines.values()]
            try:
                yield
            finally:
                self._tasks = None
                for task in [*watches, *(c.task for c in self._containers.values() if c.task)]:
                    task.cancel()

    async def _serve(self, engine: Engine) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(engine.driver.run())
            tasks.create_task(engine.watch(lambda: self._engine_changed(engine)))

    # -- what the control plane wants

    def assign(self, message: Assignments) -> None:
        """Take over a full set, or a change to the one before. Who checks their chain is the session."""
        if message.full or self._assigned is None:
            self._assigned = set()
        for assignment in message.set:
            self._assigned.add(assignment.uid)
            self._want(assignment)
        for uid in message.removed_uids:
            self._assigned.discard(uid)
            if container := self._containers.get(uid):
                container.want(Desired.GONE)
        if message.full:
            for uid, container in self._containers.items():
                if uid not in self._assigned:
                    container.want(Desired.GONE)
            self._remove_strangers()

    def _want(self, assignment: Assignment) -> None:
        desired = Desired.STOP if assignment.desired == Assignment.STOP else Desired.RUN
        if container := self._containers.get(assignment.uid):
            container.want(desired, assignment)
        else:
            self._begin(Record(assignment.uid, assignment), desired)

    def _engine_changed(self, engine: Engine) -> None:
        if engine.listed:
            # Containers that the journal lost are watched too: they are found by their labels.
            for uid, found in list(engine.adopted.items()):
                if uid not in self._containers and self._assigned is None:
                    self._begin(_record_of(found, engine.driver.name), Desired.UNKNOWN)
            if self._assigned is not None:
                self._remove_strangers()
        self._on_drivers_changed()

    def _remove_strangers(self) -> None:
        """Whatever carries this node's labels and nobody wants."""
        for name, engine in self._engines.items():
            for uid, found in list(engine.adopted.items()):
                if uid not in self._containers:
                    log.warning("removing a container that no assignment names", uid=uid, runtime=found.runtime_id)
                    self._begin(_record_of(found, name), Desired.GONE)

    def fence(self, fencing: Fencing) -> None:
        """End every container that may have a successor by now, or soon. Nothing takes that back."""
        for container in self._containers.values():
            if container.assignment.spec.on_node_lost == WorkloadSpec.reschedule:
                container.fence(fencing)

    # -- containers

    def _begin(self, record: Record, desired: Desired) -> None:
        assert self._tasks is not None, "the supervisor does not run"
        engine = self._engines.get(record.assignment.spec.driver or next(iter(self._engines), ""))
        self._journal.put(record)
        container = Container(
            record,
            desired,
            engine=engine,
            around=Surroundings(
                journal=self._journal,
                reporter=self.reporter,
                output=self._output,
                slots=self._slots,
                clock_ns=self._clock_ns,
                pulling=self._pulling,
                killed=self._killed,
                secrets=self.secrets,
                is_overdue=self._is_overdue,
                elder_runs=self._elder_runs,
            ),
        )
        self._containers[record.uid] = container
        container.task = self._tasks.create_task(self._live(container), name=f"container {record.uid}")

    def _elder_runs(self, uid: str) -> bool:
        """Where nobody was there to end it in time, agent and watchdog both, its successor may be placed beside it."""
        replica, attempt = _place(uid)
        return any(
            container.may_run
            for place, container in ((_place(other), container) for other, container in self._containers.items())
            if place[0] == replica and place[1] < attempt
        )

    async def _live(self, container: Container) -> None:
        try:
            await container.run()
        except Exception:
            # A mistake of the agent's own with one container must not cost the others their agent.
            log.exception("container task broke", uid=container.uid)
            await container.give_up()
        del self._containers[container.uid]
        self._killed.discard(container.uid)

    def _acknowledged(self, uid: str) -> None:
        if container := self._containers.get(uid):
            container.changed.set()

    # -- questions

    async def engines_asked(self) -> None:
        """Wait until every engine was asked how it is, and had the time to answer."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_ANSWERS_S):
                for engine in self._engines.values():
                    await engine.asked.wait()

    def drivers(self) -> list[DriverInfo]:
        return [engine.info for engine in self._engines.values()]

    def pulls(self) -> Mapping[str, PullProgress]:
        """Progress by uid of those whose image is being pulled."""
        return self._pulling

    def find(self, uid: str) -> Container | None:
        """A container of this node, until it is forgotten."""
        return self._containers.get(uid)

    def held(self) -> list[HeldContainer]:
        """Everything of this node that is not forgotten, as it is told to a control plane that may not know it."""
        return [
            HeldContainer(uid=record.uid, name=_name(record.assignment), group=record.assignment.group)
            for record in self._journal.records()
        ]

    def tell_again(self) -> None:
        """The control plane has forgotten what was reported to it for a while: report how everything is now."""
        for container in self._containers.values():
            container.tell_again()

    def runtime_ids(self) -> dict[str, str]:
        """Engines' ids → uids of everything that may have processes. May be called from any thread."""
        containers = list(self._containers.values())
        return {c.runtime_id: c.uid for c in containers if c.runtime_id}

    def running_uids(self) -> dict[str, list[str]]:
        """By driver: the containers that run now, as far as is known."""
        found: dict[str, list[str]] = {}
        for uid, container in self._containers.items():
            if container.is_running and container.driver is not None:
                found.setdefault(container.driver.name, []).append(uid)
        return found


def _place(uid: str) -> tuple[str, int]:
    """Which replica, and which attempt of it: `WORKLOAD.REPLICA.ATTEMPT`."""
    replica, _, attempt = uid.rpartition(".")
    return (replica, int(attempt)) if attempt.isdecimal() else (uid, 0)


def _name(assignment: Assignment) -> str:
    spec = assignment.spec
    return assignment.name or f"{spec.workload}.{spec.replica}.{spec.attempt}"


def _record_of(found: Adopted, driver: str) -> Record:
    """What can be said of a container from its labels alone."""
    labels = found.labels
    spec = ContainerSpec(
        driver=driver,
        workload=labels.get("pwm.workload", ""),
        replica=int(labels.get("pwm.replica", "0")),
        attempt=found.attempt,
        on_node_lost=WorkloadSpec.reschedule if labels.get(ON_NODE_LOST) == RESCHEDULE else WorkloadSpec.wait,
    )
    assignment = Assignment(uid=found.uid, group=labels.get("pwm.group", ""), spec=spec)
    return Record(found.uid, assignment, runtime_id=found.runtime_id)
