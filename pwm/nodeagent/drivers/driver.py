"""What the agent asks of a driver, whatever runs the containers below it.

A driver does one operation at a time on one container, when it is told to, and says what it saw. It decides
nothing: when to pull, start, stop or remove is the supervisor's (`pwm/nodeagent/supervisor.py`), which drives
every container through `pwm/nodeagent/step.py`. Containers are named by their uid; a driver keeps what it needs
to find them again after the agent restarted (labels, a state folder), so `adopt` needs no memory of the agent.

Errors: `DriverError` and its kin carry a `Reason` that goes to the user as it is. `ImageMissing` asks the
supervisor for a pull, `EngineUnreachable` for patience, `ContainerMissing` says that the container is gone.
Everything else ends the attempt. Times are nanoseconds since 1970, as the engines give them.
"""

from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from pwm.api.v1.agent_pb2 import (
    Assignment,
    ContainerSecrets,
    ContainerUsage,
    ExecOutput,
    PullProgress,
    StartExec,
    TerminalSize,
)
from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.node_pb2 import DriverInfo

# For a container that has no secrets.
NOTHING = ContainerSecrets()


class DriverError(Exception):
    """An operation failed for good. `reason` is for the user; `exit_code` is set where a shell would have one."""

    def __init__(self, code: Reason.Code.ValueType, message: str, *, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.reason = Reason(code=code, message=message)
        self.exit_code = exit_code


class ImageMissing(DriverError):
    """`create` found no such image on this machine: `prepare` may help."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.IMAGE_NOT_PRESENT, message)


class EngineUnreachable(DriverError):
    """The engine below the driver does not answer: nothing is known; try again when `probe` says ready."""

    def __init__(self, message: str) -> None:
        super().__init__(Reason.DRIVER_UNREACHABLE, message)


class ContainerMissing(DriverError):
    """The driver knows no such container (any more)."""

    def __init__(self, message: str = "The container was removed from its node by somebody else") -> None:
        super().__init__(Reason.CONTAINER_DISAPPEARED, message)


class ContainerNotRunning(DriverError):
    """It exists, and what was asked needs it to run."""

    def __init__(self, message: str = "The container is not running") -> None:
        super().__init__(Reason.NONE, message)


@dataclass(frozen=True, slots=True)
class Started:
    """The container runs. `pid` is 0 where asking for it would cost a round trip."""

    started_at_ns: int
    pid: int = 0


@dataclass(frozen=True, slots=True)
class Ended:
    """The container ended. A signal n is exit code 128 + n; `message` is the engine's own remark, if any."""

    exit_code: int
    finished_at_ns: int
    oom_killed: bool = False
    message: str = ""
    # 0 where the engine does not know.
    started_at_ns: int = 0


class Runtime(Enum):
    """Where a container stands in its engine."""

    CREATED = "created"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Adopted:
    """A container of this agent's that the driver found. `labels` are all `pwm.*` ones (pwm.uid, pwm.attempt, ...)."""

    uid: str
    attempt: int
    runtime: Runtime
    runtime_id: str
    labels: dict[str, str]
    started_at_ns: int = 0
    pid: int = 0
    ended: Ended | None = None


class LogFormat(Enum):
    # Docker's `local` log driver, also what PWM's process driver writes: binary records, byte-exact.
    # Older parts are PATH.1, PATH.2, ... (`compress` must be off).
    DOCKER_LOCAL = "docker-local"
    # Docker's json-file: one {"log", "stream", "time"} a line; bytes that are not UTF-8 are lost in it.
    DOCKER_JSON = "docker-json"


@dataclass(frozen=True, slots=True)
class LogSource:
    """Where the container's output appears, for the agent's spool to follow.

    `engine` (as in DOCKER_HOST) and `runtime_id` let the spool ask the engine where the agent may not read `path`.
    """

    format: LogFormat
    path: Path
    engine: str = ""
    runtime_id: str = ""


@dataclass(frozen=True, slots=True)
class ProcessTable:
    titles: list[str]
    rows: list[list[str]]


class ExecSession(Protocol):
    """A command running inside a container."""

    def output(self) -> AsyncIterator[ExecOutput]:
        """Chunks of stdout and stderr as they come, and last of all the exit code."""
        ...

    async def write(self, data: bytes) -> None: ...

    async def close_stdin(self) -> None: ...

    async def resize(self, size: TerminalSize) -> None: ...

    async def close(self) -> None:
        """Let go of it, whether it ended or not."""
        ...


class Driver(Protocol):
    """One way of running containers. Every method may raise `DriverError`."""

    # As in specs: `pwm.docker`.
    name: str

    async def run(self) -> None:
        """Watch the engine until cancelled; owned by the agent's task group. Loses no end of a container."""
        ...

    async def probe(self) -> DriverInfo:
        """Version and readiness; never raises."""
        ...

    async def prepare(
        self, assignment: Assignment, progress: Callable[[PullProgress], None], given: ContainerSecrets = NOTHING
    ) -> None:
        """Bring what `create` needs (the image) to this machine."""
        ...

    async def create(self, assignment: Assignment, given: ContainerSecrets = NOTHING) -> str:
        """Create without starting and give the engine's id for it. Asked twice, it gives the one that is there.

        `given`: what its secrets hold, which is kept nowhere but in the container.
        """
        ...

    async def start(self, uid: str) -> Started: ...

    async def wait(self, uid: str) -> Ended:
        """Until the container has ended, however long the engine itself may be away in between."""
        ...

    async def stop(self, uid: str, *, grace_ms: int) -> None:
        """Ask it to end, kill it after the grace; returns when it has ended. Harmless on an ended one."""
        ...

    async def remove(self, uid: str) -> None:
        """Remove it, killing it if need be. Harmless when it is gone already."""
        ...

    async def adopt(self) -> list[Adopted]:
        """Everything of this agent's that exists, running or not; from then on known to all other methods."""
        ...

    async def exec(self, uid: str, request: StartExec) -> ExecSession: ...

    async def inspect(self, uid: str) -> dict[str, Any]: ...

    async def processes(self, uid: str) -> ProcessTable: ...

    async def usage(self, uids: Collection[str]) -> list[ContainerUsage]:
        """What those of the containers that run are using; ones that don't are left out."""
        ...

    def output(self, uid: str) -> LogSource | None:
        """Where its output appears; None for an unknown container."""
        ...

    async def close(self) -> None: ...
