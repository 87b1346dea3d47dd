"""Runs containers as plain processes of the machine: no image, no isolation, the owner's own tools.

For machines without an engine, and for programs that need the machine as it is. A node offers it only when its
owner said so. What there is of protection: never root unless allowed, a clean environment, no new privileges,
limits by control groups where the agent is root, and everything the process started dies with it.

Each container has a folder: the assignment, the shim's configuration, its lock and result files, and the log
that it writes. The shim (`process_shim.py`) is the process's parent, not the agent: a restart of the agent
touches nothing, and exit codes are there afterwards. The folder is all the memory this driver has, so adopting
is reading it.
"""

import asyncio
import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from pwm.api.v1.agent_pb2 import Assignment, ContainerSecrets, ContainerUsage, PullProgress, StartExec
from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.node_pb2 import DriverInfo
from pwm.api.v1.workload_pb2 import WorkloadSpec
from pwm.nodeagent.drivers import docker_spec, process_shim, process_spec, process_tree
from pwm.nodeagent.drivers.driver import (
    NOTHING,
    Adopted,
    ContainerMissing,
    ContainerNotRunning,
    DriverError,
    Ended,
    ExecSession,
    LogFormat,
    LogSource,
    ProcessTable,
    Runtime,
    Started,
)
from pwm.nodeagent.drivers.process_cgroup import Cgroup, Limits, Use
from pwm.nodeagent.drivers.process_exec import ProcessExec, shim_command
from pwm.nodeagent.secret_files import SecretFiles
from pwm.nodeagent.secrets import needs_secrets

NAME = "pwm.process"
# The way to the spool only; must hold what is printed while the agent restarts.
_LOG_LIMITS = {"max_bytes": 64 << 20, "max_files": 5}
_SHIM = Path(process_shim.__file__)
# Between a shim's launch and its first report; a machine under load has needed a second.
_LAUNCH_S = 30.0
_POLL_S = 0.02
# After SIGKILL: the shim cleans up and writes how it ended.
_KILL_S = 10.0
_UNKNOWN_END = Ended(
    exit_code=128 + signal.SIGKILL,
    finished_at_ns=0,
    message="its supervisor is gone: the machine was restarted or it was killed",
)

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Process:
    folder: Path
    assignment: Assignment
    cgroup: Cgroup
    # From its creation to its start; None: an agent before this one created it, and took them with it.
    secret_env: dict[str, str] | None = field(default=None, repr=False)
    sessions: set[ProcessExec] = field(default_factory=set)
    # CPU time at the last look, and when that was.
    last_use: tuple[float, int] | None = None

    def result(self, name: str) -> dict[str, Any] | None:
        """One of the shim's result files; None while there is none."""
        try:
            content: dict[str, Any] = json.loads((self.folder / name).read_text())
        except FileNotFoundError:
            return None
        return content

    @property
    def launched(self) -> bool:
        return (self.folder / "launched").exists()

    @property
    def launching(self) -> bool:
        return process_shim.watches(self.folder) and self.result("started") is None

    @property
    def pid(self) -> int:
        """Of the process while it lives, else 0."""
        started = self.result("started")
        if started and process_shim.start_ticks(started["pid"]) == started["pid_started"]:
            return int(started["pid"])
        return 0


class ProcessDriver:
    name = NAME

    def __init__(self, state_dir: Path, *, node: str, cluster: str, allow_root: bool = False) -> None:
        self._root = state_dir
        self._node = node
        self._cluster = cluster
        self._allow_root = allow_root
        self._known: dict[str, _Process] = {}
        self._files = SecretFiles(f"{cluster}.{node}.process")
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)

    async def run(self) -> None:
        # Nothing to watch: `wait` holds the process itself.
        await asyncio.Event().wait()

    async def close(self) -> None:
        for process in self._known.values():
            for session in list(process.sessions):
                await session.close()

    async def probe(self) -> DriverInfo:
        return DriverInfo(name=NAME, version=platform.release(), ready=True)

    # -- one operation each

    async def prepare(
        self, assignment: Assignment, progress: Callable[[PullProgress], None], given: ContainerSecrets = NOTHING
    ) -> None:
        """There is no image."""

    async def create(self, assignment: Assignment, given: ContainerSecrets = NOTHING) -> str:
        process_spec.check(assignment, allow_root=self._allow_root)
        docker_spec.check_given(assignment.spec, given)
        secret_env = await asyncio.to_thread(self._keep_secrets, assignment, given)
        folder = self._root / assignment.uid
        folder.mkdir(exist_ok=True, mode=0o700)
        self._write(folder / "assignment", assignment.SerializeToString(deterministic=True))
        process = self._known[assignment.uid] = self._process(folder, assignment)
        process.secret_env = secret_env
        return assignment.uid

    def _keep_secrets(self, assignment: Assignment, given: ContainerSecrets) -> dict[str, str]:
        """Writes the files; gives the variables, among them the one that says where the files are."""
        env = dict(given.env)
        if given.folders:
            user = process_spec.runs_as(assignment.spec)
            folder = self._files.write(assignment.uid, given, user, reached_from_outside=True)
            env[process_spec.SECRETS_FOLDER] = str(next(iter(folder.values())).parent)
        return env

    async def start(self, uid: str) -> Started:
        process = self._get(uid)
        if process.launched:
            raise DriverError(Reason.ERROR_STARTING_CONTAINER, "The process was started before")
        if process.secret_env is None and needs_secrets(process.assignment.spec):
            message = "The agent was restarted before it could hand over the secrets; another attempt gets them"
            raise DriverError(Reason.ERROR_STARTING_CONTAINER, message)
        await asyncio.to_thread(self._launch, process)
        started = process.result("started")
        if started is None:
            raise process_spec.start_error(process.assignment.spec, process.result("error"), _remark(process))
        return Started(started_at_ns=started["at"], pid=started["pid"])

    async def wait(self, uid: str) -> Ended:
        process = self._get(uid)
        await self._shim_gone(process)
        for session in list(process.sessions):
            await session.close()
        return self._ended(process)

    async def stop(self, uid: str, *, grace_ms: int) -> None:
        process = self._get(uid)
        self._signal(process, signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_ms / 1000):
                await self._shim_gone(process)
        except TimeoutError:
            await self._kill(process)

    async def remove(self, uid: str) -> None:
        process = self._known.pop(uid, None)
        if process is None:
            return
        await self._kill(process)
        process.cgroup.remove()
        await asyncio.to_thread(self._files.remove, uid)
        await asyncio.to_thread(shutil.rmtree, process.folder, ignore_errors=True)

    async def adopt(self) -> list[Adopted]:
        found = []
        for folder in sorted(self._root.iterdir()):
            assignment = Assignment()
            try:
                assignment.ParseFromString((folder / "assignment").read_bytes())
            except OSError:
                # Killed while it was created or removed: nothing of it ever ran, or all of it has ended.
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
                continue
            process = self._known.setdefault(assignment.uid, self._process(folder, assignment))
            found.append(await self._adopt(process))
        await asyncio.to_thread(self._files.keep_only, set(self._known))
        return found

    # -- questions

    async def exec(self, uid: str, request: StartExec) -> ExecSession:
        process = self._get(uid)
        if not process.pid:
            raise ContainerNotRunning
        if not request.cmd:
            raise DriverError(Reason.CONFIG_NOT_ALLOWED, "There is no command to run")
        spec = process.assignment.spec
        config = process_spec.surroundings(spec, argv=list(request.cmd), tty=request.tty)
        config |= {"cgroups": process.cgroup.procs, "die_with_parent": False}
        file = process.folder / f"exec-{time.monotonic_ns()}.json"
        secret_env = process_spec.variables_of(process.pid, [*spec.secret_env, process_spec.SECRETS_FOLDER])
        config["secret_env"] = sorted(secret_env)
        self._write(file, json.dumps(config).encode())
        command = shim_command(sys.executable, _SHIM, "exec", str(file))
        session = ProcessExec(command, request, env={**os.environ, **secret_env})
        process.sessions.add(session)
        session.on_close = lambda: process.sessions.discard(session)
        return session

    async def inspect(self, uid: str) -> dict[str, Any]:
        process = self._get(uid)
        spec = process.assignment.spec
        config = process_spec.surroundings(spec, argv=[*spec.entrypoint, *spec.cmd], tty=spec.tty)
        return {
            "Id": uid,
            "Driver": NAME,
            "Command": config["argv"],
            "User": {"uid": config["uid"], "gid": config["gid"]},
            "WorkingDir": config["cwd"],
            "Environment": sorted(config["env"]),
            "ControlGroups": [str(folder) for folder in process.cgroup.folders if folder.is_dir()],
            "Pid": process.pid,
            "Started": process.result("started"),
            "Exit": process.result("exit"),
        }

    async def processes(self, uid: str) -> ProcessTable:
        process = self._get(uid)
        started = process.result("started")
        if not process.pid or started is None:
            raise ContainerNotRunning
        return await asyncio.to_thread(process_tree.table, started["shim"])

    async def usage(self, uids: Collection[str]) -> list[ContainerUsage]:
        return await asyncio.to_thread(lambda: [usage for uid in uids if (usage := self._usage(uid)) is not None])

    def output(self, uid: str) -> LogSource | None:
        process = self._known.get(uid)
        if process is None:
            return None
        return LogSource(LogFormat.DOCKER_LOCAL, self._log_folder(process) / "container.log")

    # -- how

    def _get(self, uid: str) -> _Process:
        process = self._known.get(uid)
        if process is None:
            raise ContainerMissing("The process is not on this node")
        return process

    def _process(self, folder: Path, assignment: Assignment) -> _Process:
        return _Process(folder, assignment, Cgroup(f"{self._cluster}.{self._node}.{assignment.uid}"))

    def _log_folder(self, process: _Process) -> Path:
        # Of its own: whoever watches it wakes up for nothing else.
        return process.folder / "log"

    def _launch(self, process: _Process) -> None:
        """Starts the shim and waits until the process runs or could not."""
        spec, secret_env = process.assignment.spec, process.secret_env or {}
        process.secret_env = None
        self._log_folder(process).mkdir(exist_ok=True, mode=0o700)
        limited = process.cgroup.create(
            Limits(cpu_millis=spec.resources.cpu_millis, memory_bytes=spec.resources.memory_bytes)
        )
        config = process_spec.surroundings(spec, argv=[*spec.entrypoint, *spec.cmd], tty=spec.tty)
        config |= {
            "cgroups": process.cgroup.procs,
            "data_bytes": 0 if limited else spec.resources.memory_bytes,
            "log": str(self._log_folder(process) / "container.log"),
            "log_limits": _LOG_LIMITS,
            "secret_env": sorted(secret_env),
            # For the watchdog.
            "on_node_lost": WorkloadSpec.OnNodeLost.Name(spec.on_node_lost),
        }
        self._write(process.folder / "config.json", json.dumps(config).encode())
        self._write(process.folder / "launched", b"")
        command = shim_command(sys.executable, _SHIM, "run", str(process.folder))
        with (process.folder / "shim.log").open("ab") as messages, contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=messages,
                stderr=messages,
                # What is secret is in no file: the shim passes it on.
                env=process_spec.PLAIN_ENV | secret_env,
                cwd="/",
                check=False,
                timeout=_LAUNCH_S,
            )

    async def _adopt(self, process: _Process) -> Adopted:
        # The agent may have been killed while the shim started; it needs a moment, or it died too.
        deadline = time.monotonic() + _LAUNCH_S
        while process.launching and time.monotonic() < deadline:  # noqa: ASYNC110 - a file of another process
            await asyncio.sleep(_POLL_S)
        started = process.result("started")
        running = process_shim.watches(process.folder)
        assignment = process.assignment
        ended = self._ended(process) if process.launched and not running else None
        return Adopted(
            uid=assignment.uid,
            attempt=assignment.spec.attempt,
            runtime=Runtime.RUNNING if running else Runtime.ENDED if ended else Runtime.CREATED,
            runtime_id=assignment.uid,
            labels=docker_spec.own_labels(assignment, node=self._node, cluster=self._cluster),
            started_at_ns=started["at"] if started else 0,
            pid=process.pid,
            ended=ended,
        )

    def _ended(self, process: _Process) -> Ended:
        result = process.result("exit")
        if result is None:
            if process.result("started") is None and (error := process.result("error")):
                failed = process_spec.start_error(process.assignment.spec, error, "")
                return Ended(failed.exit_code or process_shim.CANNOT_RUN, time.time_ns(), message=str(failed))
            return _UNKNOWN_END
        return Ended(
            exit_code=result["code"],
            finished_at_ns=result["at"],
            oom_killed=result["code"] == 128 + signal.SIGKILL and process.cgroup.oom_killed(),
        )

    async def _shim_gone(self, process: _Process) -> None:
        """Until the shim has ended, and with it everything it watched. Works for the shim of an earlier agent."""
        started = process.result("started")
        if started is not None and process_shim.watches(process.folder):
            with contextlib.suppress(ProcessLookupError):
                await process_tree.gone(started["shim"])
        while process_shim.watches(process.folder):  # noqa: ASYNC110 - a lock of another process
            await asyncio.sleep(_POLL_S)

    def _signal(self, process: _Process, number: signal.Signals) -> None:
        """To the process and all of its group."""
        if pid := process.pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, number)

    async def _kill(self, process: _Process) -> None:
        self._signal(process, signal.SIGKILL)
        try:
            async with asyncio.timeout(_KILL_S):
                await self._shim_gone(process)
        except TimeoutError as error:
            # In the kernel's hands (a dead file server, a GPU that hangs).
            raise DriverError(
                Reason.NONE, f"Process {process.pid} does not end although it was killed; the machine may need help"
            ) from error

    def _usage(self, uid: str) -> ContainerUsage | None:
        process = self._known.get(uid)
        started = process.result("started") if process else None
        if process is None or started is None or not process.pid:
            return None
        try:
            use = process.cgroup.use() if process.cgroup.exists else process_tree.use(started["shim"])
        except (OSError, ValueError, LookupError):
            return None
        return ContainerUsage(
            uid=uid,
            cpu_cores=_cores(process, use),
            memory_bytes=use.memory_bytes,
            memory_limit_bytes=process.assignment.spec.resources.memory_bytes,
            pids=use.pids,
        )

    def _write(self, file: Path, content: bytes) -> None:
        new = file.with_name(file.name + ".new")
        new.write_bytes(content)
        new.rename(file)


def _cores(process: _Process, use: Use) -> float:
    now, last = time.monotonic(), process.last_use
    process.last_use = now, use.cpu_ns
    if last is None or now <= last[0]:
        return 0.0
    return max(0.0, (use.cpu_ns - last[1]) / 1e9 / (now - last[0]))


def _remark(process: _Process) -> str:
    """What the shim said last, if it failed itself."""
    try:
        return (process.folder / "shim.log").read_text(errors="replace").strip().rpartition("\n")[2]
    except FileNotFoundError:
        return ""
