"""One container's task: ask `next_step`, do that, ask again; sleep when there is nothing to do.

What takes long and can be overtaken by a new wish (a pull, the wait for the end) runs beside the loop and wakes
it; everything else is one call after the other. What a driver refuses ends the attempt with its reason; an
engine that is away ends nothing: the loop waits until it is back and asks again.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import structlog

from pwm.api.v1.agent_pb2 import Assignment, ContainerSecrets, PullProgress
from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.events_pb2 import ContainerReported
from pwm.api.v1.workload_pb2 import ContainerStatus, Image, WorkloadSpec
from pwm.lifecycle import ENDED, Phase
from pwm.nodeagent import endings
from pwm.nodeagent.drivers.driver import (
    NOTHING,
    ContainerMissing,
    Driver,
    DriverError,
    Ended,
    EngineUnreachable,
    ImageMissing,
    LogSource,
    Runtime,
)
from pwm.nodeagent.engine import Engine
from pwm.nodeagent.fence import Fencing
from pwm.nodeagent.journal import Journal, Record
from pwm.nodeagent.reporter import Reporter
from pwm.nodeagent.secrets import Secrets, needs_secrets
from pwm.nodeagent.step import Desired, Operation, Seen, Situation, next_step

log = structlog.get_logger(__name__)

P = ContainerStatus
DEFAULT_GRACE_MS = 10_000
# Before what failed for a reason outside the container is tried again.
RETRY_DELAY_S = 0.5
# Until it is looked again whether the fence falls.
LATE_S = 0.2
# A start that takes less is told when it is done: a report on the way would make the control plane work just
# while the engine needs the processor.
START_WITHOUT_WORD_S = 1.0
# A spool that cannot be written (a full disk) must not keep the end of a container secret for ever.
DRAIN_TIMEOUT_S = 60.0
_SEEN = {Runtime.CREATED: Seen.CREATED, Runtime.RUNNING: Seen.RUNNING, Runtime.ENDED: Seen.ENDED}


class Output(Protocol):
    """Where the containers' output is kept."""

    def follow(self, uid: str, source: LogSource) -> None:
        """Begin, or go on, to take over what the container prints."""
        ...

    async def finish(self, uid: str) -> None:
        """The container has ended: returns when everything it printed is kept."""
        ...


class Killed(Protocol):
    """Uids of what the watchdog has killed while the agent was not there."""

    def __contains__(self, uid: str, /) -> bool: ...

    def discard(self, uid: str, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all containers share."""

    journal: Journal
    reporter: Reporter
    output: Output
    slots: asyncio.Semaphore
    clock_ns: Callable[[], int]
    pulling: dict[str, PullProgress]
    killed: Killed
    secrets: Secrets
    # The self-fence is due: what is wanted is what was wanted long ago.
    is_overdue: Callable[[], bool]
    # Whether an earlier attempt of the same replica as this uid's may still run here.
    elder_runs: Callable[[str], bool]


class Container:
    def __init__(self, record: Record, desired: Desired, *, engine: Engine | None, around: Surroundings) -> None:
        self.uid = record.uid
        self.task: asyncio.Task[None] | None = None
        self.changed = asyncio.Event()
        self._engine = engine
        self._around = around
        self._desired = desired
        self._seen = Seen.ABSENT
        self._started_at_ns = 0
        self._pid = 0
        self._ended: Ended | None = None
        self._drained = False
        self._pull: asyncio.Task[None] | None = None
        self._pulled = False
        self._image_missing = False
        # What its secrets hold, from when it was told to its creation.
        self._given: ContainerSecrets | None = None
        self._watch: asyncio.Task[None] | None = None
        self._adopted = asyncio.Event()
        self._fencing: Fencing | None = None
        self._fenced = asyncio.Event()
        self._has_output = False
        self._output_settled = asyncio.Event()

    @property
    def driver(self) -> Driver | None:
        return self._engine.driver if self._engine else None

    @property
    def runtime_id(self) -> str:
        """The engine's id; empty before it was created."""
        record = self._around.journal.record(self.uid)
        return record.runtime_id if record else ""

    @property
    def is_running(self) -> bool:
        return self._seen is Seen.RUNNING

    @property
    def may_run(self) -> bool:
        """It has not ended: it runs, or is on the way to it, or nobody knows."""
        return self._seen is not Seen.ENDED and self.record.phase not in ENDED

    @property
    def record(self) -> Record:
        record = self._around.journal.record(self.uid)
        assert record is not None, "a container's record lives as long as its task"
        return record

    @property
    def assignment(self) -> Assignment:
        return self.record.assignment

    def want(self, desired: Desired, assignment: Assignment | None = None) -> None:
        """Tell it what the control plane wants now."""
        self._desired = desired
        if assignment is not None:
            self._around.journal.put(replace(self.record, assignment=assignment))
        self.changed.set()

    def fence(self, fencing: Fencing) -> None:
        """It is to end, whatever is wanted and however much time it was given: it may have a successor."""
        if self._fencing is None:
            log.info("fenced", uid=self.uid, grace_ms=fencing.grace_ms)
            self._fencing = fencing
            self._fenced.set()
            self.changed.set()

    def tell_again(self) -> None:
        """Whatever was acknowledged is forgotten: report how it is once more."""
        phase = self.record.phase
        if phase in ENDED and (self._seen is Seen.CREATED or not self._end_acknowledged()):
            # One that never ran must not be taken for one that may start; the other report is on its way anyhow.
            return
        self._around.journal.put(replace(self.record, phase=P.PHASE_UNSPECIFIED, end_sequence=0))
        self.changed.set()

    async def adopted(self) -> None:
        """Wait until the engine has said what it has of this container, so that it can be asked about it."""
        await self._adopted.wait()

    async def has_output(self) -> bool:
        """Whether it prints into a log of ours; waits until that is known, which is when it starts or fails."""
        await self._output_settled.wait()
        return self._has_output

    # -- the loop

    async def run(self) -> None:
        """Until the container is over, reported, removed and forgotten."""
        if self._engine is None:
            await self._run_without_driver()
            return
        await self._engine.ready()
        self._adopt(self._engine)
        self._adopted.set()
        async with asyncio.TaskGroup() as beside:
            while (operation := self._next()) is not Operation.FORGET:
                if operation is Operation.NOTHING:
                    await self.changed.wait()
                    self.changed.clear()
                    continue
                try:
                    await self._do(operation, self._engine.driver, beside)
                except ContainerMissing:
                    self._seen = Seen.ABSENT
                except EngineUnreachable as error:
                    log.info("waiting for the engine", uid=self.uid, operation=operation.name, error=str(error))
                    self._engine.doubt()
                    await self._patience()
                except DriverError as error:
                    if self.record.phase not in ENDED:
                        self._failed(error)
                    else:
                        log.warning("will be tried again", uid=self.uid, operation=operation.name, error=str(error))
                        await self._patience()
            for task in (self._pull, self._watch):
                if task is not None:
                    task.cancel()
        self._output_settled.set()
        self._around.journal.forget(self.uid)

    async def _patience(self) -> None:
        assert self._engine is not None
        await asyncio.sleep(RETRY_DELAY_S)
        await self._engine.ready()

    async def _run_without_driver(self) -> None:
        name = self.assignment.spec.driver
        if not self.record.phase:
            message = f"This node has no driver {name}; its agent must be started with it"
            self._failed(DriverError(Reason.DRIVER_NOT_ALLOWED, message))
        await self._until_forgotten()

    async def give_up(self) -> None:
        """After a mistake of the agent's own: the attempt failed; what is left of it goes when the agent restarts."""
        if self.record.phase not in ENDED:
            message = "The agent made a mistake with this container; its log on the node says more"
            self._failed(DriverError(Reason.ERROR_STARTING_CONTAINER, message))
        await self._until_forgotten()

    async def _until_forgotten(self) -> None:
        while self._desired is not Desired.GONE or not self._end_acknowledged():
            await self.changed.wait()
            self.changed.clear()
        self._around.journal.forget(self.uid)

    def _adopt(self, engine: Engine) -> None:
        found = engine.adopted.pop(self.uid, None)
        if found is None:
            return
        log.info("adopted", uid=self.uid, runtime=found.runtime_id, state=found.runtime.value, pid=found.pid)
        self._seen = _SEEN[found.runtime]
        self._started_at_ns, self._pid, self._ended = found.started_at_ns, found.pid, found.ended
        self._around.journal.put(replace(self.record, runtime_id=found.runtime_id))
        if self._ended is not None and self.record.phase not in ENDED:
            self._follow(engine.driver)

    def _next(self) -> Operation:
        spec, record = self.assignment.spec, self.record
        if self._pull is not None and self._wanted is not Desired.RUN:
            self._pull.cancel()
        return next_step(
            Situation(
                desired=self._wanted,
                seen=self._seen,
                phase=record.phase,
                created_before=bool(record.runtime_id) or record.assignment.started,
                must_pull=not self._pulled and (self._image_missing or spec.pull_policy == Image.Always),
                pulling=self._pull is not None,
                watching=self._watch is not None,
                drained=self._drained,
                end_acknowledged=self._end_acknowledged(),
            )
        )

    @property
    def _wanted(self) -> Desired:
        """What the control plane wants, unless it has been out of reach for too long."""
        return self._desired if self._fencing is None or self._desired is Desired.GONE else Desired.STOP

    def _end_acknowledged(self) -> bool:
        return self._around.journal.is_acknowledged(self.record.end_sequence)

    async def _do(self, operation: Operation, driver: Driver, beside: asyncio.TaskGroup) -> None:
        match operation:
            case Operation.PULL:
                self._report_once(P.PULLING)
                self._pull = beside.create_task(self._run_pull(driver))
            case Operation.CREATE if self._given is None and needs_secrets(self.assignment.spec):
                self._pull = beside.create_task(self._run_fetch())
            case Operation.CREATE:
                await self._launch(driver)
            case Operation.START:
                if self._has_to_wait:
                    await asyncio.sleep(LATE_S)
                    return
                async with self._around.slots:
                    await self._start(driver)
            case Operation.WATCH:
                self._follow(driver)
                self._watch = beside.create_task(self._run_watch(driver))
            case Operation.REPORT_RUNNING:
                self._report(P.RUNNING, started_at_ns=self._started_at_ns, pid=self._pid)
            case Operation.STOP:
                self._report_once(P.EXITING, reason=self._stop_reason())
                await self._stop(driver)
                await self._wait_for_watch()
            case Operation.DRAIN:
                await self._drain()
            case Operation.REPORT_END:
                self._report_end()
            case Operation.REPORT_NEVER_RAN:
                self._report(P.EXITED, reason=self._stop_reason())
            case Operation.REPORT_DISAPPEARED:
                self._report(P.FAILED, reason=ContainerMissing().reason, finished_at_ns=self._around.clock_ns())
            case Operation.REMOVE:
                await driver.remove(self.uid)
                self._seen = Seen.ABSENT
            case Operation.NOTHING | Operation.FORGET:
                raise AssertionError(operation)

    # -- beginning

    async def _run_pull(self, driver: Driver) -> None:
        def progress(now: PullProgress) -> None:
            self._around.pulling[self.uid] = now

        try:
            if needs_secrets(self.assignment.spec):
                self._given = await self._around.secrets.of(self.uid)
            await driver.prepare(self.assignment, progress, self._given or NOTHING)
            self._pulled = True
        except EngineUnreachable:
            # Asked again once the engine is back.
            assert self._engine is not None
            self._engine.doubt()
            await self._patience()
        except DriverError as error:
            self._failed(error)
        finally:
            self._around.pulling.pop(self.uid, None)
            self._pull = None
            self.changed.set()

    async def _run_fetch(self) -> None:
        """Gets what the secrets hold; beside the loop, since no controller may be there to say it."""
        try:
            self._given = await self._around.secrets.of(self.uid)
        except DriverError as error:
            self._failed(error)
        finally:
            self._pull = None
            self.changed.set()

    async def _launch(self, driver: Driver) -> None:
        """Create, and start in the same turn: whoever comes first should also run first."""
        async with self._around.slots:
            if self._wanted is not Desired.RUN:
                return
            try:
                runtime_id = await driver.create(self.assignment, self._given or NOTHING)
            except ImageMissing:
                if self._pulled:
                    raise
                self._image_missing = True
                return
            self._around.journal.put(replace(self.record, runtime_id=runtime_id))
            self._seen, self._given = Seen.CREATED, None
            await self._start(driver)

    @property
    def _is_late(self) -> bool:
        """It may have a successor by now: the agent was stopped, woke up again, and has not been told yet."""
        return self.assignment.spec.on_node_lost == WorkloadSpec.reschedule and self._around.is_overdue()

    @property
    def _has_to_wait(self) -> bool:
        """Or the one before it, which was given up for lost, is still to be ended: two never run at the same time."""
        return self._is_late or self._around.elder_runs(self.uid)

    async def _start(self, driver: Driver) -> None:
        """Unless it is not to start any more, or not yet."""
        if self._wanted is not Desired.RUN or self._has_to_wait:
            return
        starting = asyncio.ensure_future(driver.start(self.uid))
        try:
            await asyncio.wait([starting], timeout=START_WITHOUT_WORD_S)
            if not starting.done():
                self._report_once(P.CREATING)
            started = await starting
        finally:
            starting.cancel()
        self._seen = Seen.RUNNING
        self._started_at_ns, self._pid = started.started_at_ns, started.pid
        self._report(P.RUNNING, started_at_ns=started.started_at_ns, pid=started.pid)

    # -- ending

    def _follow(self, driver: Driver) -> None:
        if source := driver.output(self.uid):
            self._around.output.follow(self.uid, source)
            self._has_output = True
        self._output_settled.set()

    async def _run_watch(self, driver: Driver) -> None:
        try:
            self._ended = await driver.wait(self.uid)
            self._seen = Seen.ENDED
        except ContainerMissing:
            self._seen = Seen.ABSENT
        self.changed.set()

    async def _stop(self, driver: Driver) -> None:
        """With the grace it was placed with, or with what a fence that falls meanwhile leaves of it."""
        waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(driver.stop(self.uid, grace_ms=self._grace_ms()))]
        if self._fencing is None:
            waits.append(asyncio.ensure_future(self._fenced.wait()))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if not waits[0].done():
                await driver.stop(self.uid, grace_ms=self._grace_ms())
            await waits[0]
        finally:
            for wait in waits:
                wait.cancel()

    def _grace_ms(self) -> int:
        grace_ms = self.assignment.spec.stop_grace_ms or DEFAULT_GRACE_MS
        return grace_ms if self._fencing is None else min(grace_ms, self._fencing.grace_ms)

    async def _wait_for_watch(self) -> None:
        if self._watch is not None:
            await asyncio.wait([self._watch])

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT_S):
                await self._around.output.finish(self.uid)
        except TimeoutError:
            log.error("the end of the output could not be kept", uid=self.uid, after_s=DRAIN_TIMEOUT_S)
        self._drained = True

    def _failed(self, error: DriverError) -> None:
        log.info("container failed", uid=self.uid, reason=Reason.Code.Name(error.reason.code), message=str(error))
        self._report(P.FAILED, reason=error.reason, exit_code=error.exit_code, finished_at_ns=self._around.clock_ns())

    def _report_end(self) -> None:
        assert self._ended is not None
        ended, record = self._ended, self.record
        stop = None
        if record.phase == P.EXITING or self._desired in (Desired.STOP, Desired.GONE):
            stop = self._stop_reason()
        elif ended.exit_code == endings.KILLED and self.uid in self._around.killed:
            log.warning("the watchdog had ended it", uid=self.uid)
            stop = endings.BY_WATCHDOG
        self._report(
            P.EXITED,
            reason=endings.reason(ended, record.assignment.spec, stop=stop),
            # The engine's own time, where it has one: the agent's is that of the answer to `start`. Both may be
            # noted only after a very short command has already ended.
            started_at_ns=min(ended.started_at_ns or self._started_at_ns, ended.finished_at_ns),
            finished_at_ns=ended.finished_at_ns,
            exit_code=ended.exit_code,
            oom_killed=ended.oom_killed,
        )

    def _stop_reason(self) -> Reason:
        if self._fencing is not None:
            return self._fencing.reason
        if self.assignment.HasField("reason"):
            return self.assignment.reason
        return Reason(code=Reason.DELETED_BY_USER, message="The container is no longer wanted on this node")

    # -- reports

    def _report_once(self, phase: Phase.ValueType, *, reason: Reason | None = None) -> None:
        """A phase on the way, unless it or a later one was reported before."""
        if self.record.phase < phase:
            self._report(phase, reason=reason)

    def _report(
        self,
        phase: Phase.ValueType,
        *,
        reason: Reason | None = None,
        started_at_ns: int = 0,
        finished_at_ns: int = 0,
        exit_code: int | None = None,
        oom_killed: bool = False,
        pid: int = 0,
    ) -> None:
        record = self.record
        assert phase > record.phase, f"{phase} after {record.phase}"
        reported = ContainerReported(
            phase=phase,
            reason=reason,
            exit_code=exit_code,
            oom_killed=oom_killed,
            pid=pid,
            runtime_id=record.runtime_id,
        )
        if started_at_ns:
            reported.started_at.FromNanoseconds(started_at_ns)
        if finished_at_ns:
            reported.finished_at.FromNanoseconds(finished_at_ns)
        self._around.reporter.report(record, reported)
        if phase in ENDED:
            self._output_settled.set()
