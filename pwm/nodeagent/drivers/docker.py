"""The Docker driver: containers of the engine on this machine.

Fast where users wait: an image that is present costs no question (`create` is simply tried), and `start` asks
nothing afterwards. Ends are learned from one stream of events for all containers; because a stream can
break, every new one is followed by a listing, and each end is then read from the container itself, so that
exit code, time and OOM are the engine's own. While the engine is away `wait` just goes on waiting.

`docker_spec.py` says what is created, `docker_stop.py` for whom a grace is no use, `docker_errors.py` how errors
read, `docker_api.py` speaks HTTP.
"""

import asyncio
import json
import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from pwm.api.v1.agent_pb2 import Assignment, ContainerSecrets, ContainerUsage, PullProgress, StartExec
from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.node_pb2 import DriverInfo
from pwm.nodeagent.drivers import docker_exec
from pwm.nodeagent.drivers.docker_api import ApiError, DockerApi
from pwm.nodeagent.drivers.docker_errors import create_error, start_error
from pwm.nodeagent.drivers.docker_pull import Pulls
from pwm.nodeagent.drivers.docker_spec import (
    add_secrets,
    check,
    check_given,
    container_name,
    create_body,
    identity,
    masked,
)
from pwm.nodeagent.drivers.docker_stop import ignores_stop_signal
from pwm.nodeagent.drivers.docker_usage import Cgroups
from pwm.nodeagent.drivers.driver import (
    NOTHING,
    Adopted,
    ContainerMissing,
    ContainerNotRunning,
    DriverError,
    Ended,
    EngineUnreachable,
    ExecSession,
    LogFormat,
    LogSource,
    ProcessTable,
    Runtime,
    Started,
)
from pwm.nodeagent.secret_files import SecretFiles

log = structlog.get_logger(__name__)

NAME = "pwm.docker"
# Between attempts to reach an engine that is away: its restart takes seconds.
RECONNECT_DELAY_S = 0.5
# Questions at once when many containers are looked at; the engine answers them one after the other anyway.
INSPECTS_AT_ONCE = 16
# Events this long before the stream began are asked for too: the engine answers before it subscribes.
EVENTS_OVERLAP_S = 2.0
# What an engine needs on top of the grace to end a container.
STOP_MARGIN_S = 60.0

_RUNNING_STATES = frozenset({"running", "paused", "restarting"})
_REMOVED_STATES = frozenset({"removing", "dead"})


@dataclass(slots=True)
class _Known:
    runtime_id: str
    image: str
    # None in it: the container was removed.
    ended: asyncio.Future[Ended | None]


class DockerDriver:
    name = NAME

    def __init__(self, socket: str, *, node: str, cluster: str) -> None:
        self._host = f"unix://{socket}"
        self._api = DockerApi(socket)
        self._node = node
        self._cluster = cluster
        self._own = identity(node=node, cluster=cluster)
        self._pulls = Pulls(self._api)
        self._files = SecretFiles(f"{cluster}.{node}.docker")
        self._known: dict[str, _Known] = {}
        self._root = Path("/var/lib/docker")
        self._version = ""
        self._cgroups = Cgroups()

    async def close(self) -> None:
        await self._api.close()

    # -- the engine

    async def run(self) -> None:
        lost = False
        while True:
            try:
                await self._follow_events(lost=lost)
            except (EngineUnreachable, ApiError) as error:
                if not lost:
                    log.warning("docker engine is out of reach", error=str(error))
            lost = True
            await asyncio.sleep(RECONNECT_DELAY_S)

    async def _follow_events(self, *, lost: bool) -> None:
        params = {
            "filters": json.dumps({"type": ["container"], "event": ["die", "destroy"], "label": self._own}),
            "since": f"{time.time() - EVENTS_OVERLAP_S:.9f}",
        }
        async with self._api.stream("GET", "/events", params) as events:
            # An engine that is starting lets callers wait until it has dealt with its old containers.
            answered_ns = time.time_ns()
            if lost:
                log.info("docker engine is back")
            try:
                async with asyncio.TaskGroup() as settling:
                    settling.create_task(self._settle_all(lost=lost))
                    async for event in events:
                        uid = event["Actor"]["Attributes"].get("pwm.uid", "")
                        if known := self._known.get(uid):
                            old = event["timeNano"] < answered_ns
                            settling.create_task(self._settle(known, lost=lost and old))
            except* EngineUnreachable as group:
                raise group.exceptions[0] from None

    async def _settle_all(self, *, lost: bool) -> None:
        """After a gap in the events: whatever does not run any more is looked at."""
        running = {
            item["Id"] for item in await self._list() if item["State"] in _RUNNING_STATES or item["State"] == "created"
        }
        for known in list(self._known.values()):
            if known.runtime_id not in running and not known.ended.done():
                await self._settle(known, lost=lost)

    async def _settle(self, known: _Known, *, lost: bool) -> None:
        """Find out from the container itself whether and how it ended."""
        if known.ended.done():
            return
        try:
            state = (await self._api.get(f"/containers/{known.runtime_id}/json"))["State"]
        except ApiError as error:
            if error.status != 404:
                raise EngineUnreachable(error.message) from error
            state = {"Status": "removing"}
        if known.ended.done():
            return
        if state["Status"] in _REMOVED_STATES:
            known.ended.set_result(None)
        elif state["Status"] == "exited":
            known.ended.set_result(_ended(state, lost=lost))

    async def _list(self) -> list[dict[str, Any]]:
        try:
            found: list[dict[str, Any]] = await self._api.get(
                "/containers/json", {"all": "1", "filters": json.dumps({"label": self._own})}
            )
        except ApiError as error:
            raise EngineUnreachable(f"The Docker engine did not list its containers: {error.message}") from error
        return found

    async def probe(self) -> DriverInfo:
        info = DriverInfo(name=NAME, version=self._version)
        try:
            await self._api.ping()
            if not self._version:
                about = await self._api.get("/info")
                self._version = info.version = str(about["ServerVersion"])
                self._root = Path(about["DockerRootDir"])
            info.ready = True
        except (EngineUnreachable, ApiError) as error:
            # It may come back as another version.
            self._version = ""
            info.message = str(error)
        return info

    # -- one container's life

    async def prepare(
        self, assignment: Assignment, progress: Callable[[PullProgress], None], given: ContainerSecrets = NOTHING
    ) -> None:
        check(assignment)
        login = given.registry if given.HasField("registry") else None
        await self._pulls.pull(assignment.spec.image, progress, login=login)

    async def create(self, assignment: Assignment, given: ContainerSecrets = NOTHING) -> str:
        check(assignment)
        check_given(assignment.spec, given)
        name, image, spec = container_name(assignment), assignment.spec.image, assignment.spec
        body = create_body(assignment, node=self._node, cluster=self._cluster)
        user = spec.user if spec.HasField("user") else None
        folders = await asyncio.to_thread(self._files.write, assignment.uid, given, user)
        add_secrets(body, given.env, folders)
        try:
            runtime_id = str((await self._api.post("/containers/create", {"name": name}, body=body))["Id"])
        except ApiError as error:
            if error.status != 409:
                raise create_error(image, error) from error
            runtime_id = await self._existing(assignment, name)
        self._remember(assignment.uid, runtime_id, image)
        return runtime_id

    async def _existing(self, assignment: Assignment, name: str) -> str:
        """The container that has the name already, if it is this very one: an earlier answer was lost.

        One of a deleted workload of the same name is on its way out: EngineUnreachable until it is gone.
        """
        try:
            found = await self._api.get(f"/containers/{name}/json")
        except ApiError as error:
            if error.status == 404:
                raise EngineUnreachable(f"The name {name} has just become free") from error
            raise create_error(assignment.spec.image, error) from error
        labels = found["Config"]["Labels"] or {}
        ours = labels.get("pwm.cluster") == self._cluster and labels.get("pwm.node") == self._node
        if ours and (uid := labels.get("pwm.uid", "")) != assignment.uid:
            await self._hasten(uid, found)
            raise EngineUnreachable(f"The container that was called {name} before is still being removed")
        if not ours:
            raise DriverError(
                Reason.ERROR_CREATING_CONTAINER,
                f"Another container on this node is called {name}; rename or remove it there",
            )
        return str(found["Id"])

    async def _hasten(self, uid: str, found: dict[str, Any]) -> None:
        """Remove a container that has ended and that nobody here knows; who is known is removed by its own task."""
        if uid in self._known or found["State"]["Running"]:
            return
        try:
            await self._api.delete(f"/containers/{found['Id']}", {"force": "1", "v": "1"})
        except ApiError as error:
            if error.status not in (404, 409):
                raise EngineUnreachable(f"Docker could not remove the container: {error.message}") from error

    def _remember(self, uid: str, runtime_id: str, image: str) -> _Known:
        known = self._known.get(uid)
        if known is None or known.runtime_id != runtime_id:
            known = _Known(runtime_id, image, asyncio.get_running_loop().create_future())
            self._known[uid] = known
        return known

    async def start(self, uid: str) -> Started:
        known = self._get(uid)
        try:
            await self._api.post(f"/containers/{known.runtime_id}/start")
        except ApiError as error:
            raise start_error(known.image, error) from error
        return Started(started_at_ns=time.time_ns())

    async def wait(self, uid: str) -> Ended:
        # Shielded: who gives up waiting must not end it for the next.
        ended = await asyncio.shield(self._get(uid).ended)
        if ended is None:
            raise ContainerMissing
        return ended

    async def stop(self, uid: str, *, grace_ms: int) -> None:
        known = self._get(uid)
        path = f"/containers/{known.runtime_id}"
        grace_s = math.ceil(grace_ms / 1000)
        try:
            if grace_s and await ignores_stop_signal(self._api, known.runtime_id, within_s=grace_ms / 1000):
                grace_s = 0
            await self._api.post(f"{path}/stop", {"t": str(grace_s)}, timeout_s=grace_s + STOP_MARGIN_S)
        except ApiError as error:
            if error.status == 404:
                raise ContainerMissing from error
            # The engine could not (yet): the container may be in the middle of starting or of being removed.
            raise EngineUnreachable(f"Docker could not stop the container: {error.message}") from error

    async def remove(self, uid: str) -> None:
        known = self._known.get(uid)
        if known is None:
            return
        try:
            await self._api.delete(f"/containers/{known.runtime_id}", {"force": "1", "v": "1"})
        except ApiError as error:
            # 409: its removal is under way.
            if error.status not in (404, 409):
                raise EngineUnreachable(f"Docker could not remove the container: {error.message}") from error
        await asyncio.to_thread(self._files.remove, uid)
        del self._known[uid]
        if not known.ended.done():
            known.ended.set_result(None)

    async def adopt(self) -> list[Adopted]:
        limit = asyncio.Semaphore(INSPECTS_AT_ONCE)

        async def look(runtime_id: str) -> Adopted | None:
            async with limit:
                try:
                    return self._adopt(await self._api.get(f"/containers/{runtime_id}/json"))
                except ApiError:
                    # Removed since the listing.
                    return None

        looked = await asyncio.gather(*(look(item["Id"]) for item in await self._list()))
        found = [adopted for adopted in looked if adopted is not None]
        await asyncio.to_thread(self._files.keep_only, {*self._known, *(adopted.uid for adopted in found)})
        return found

    def _adopt(self, info: dict[str, Any]) -> Adopted | None:
        state, labels = info["State"], info["Config"]["Labels"] or {}
        uid = labels.get("pwm.uid", "")
        if not uid or state["Status"] in _REMOVED_STATES:
            return None
        known = self._remember(uid, info["Id"], info["Config"]["Image"])
        ended = _ended(state, lost=False) if state["Status"] == "exited" else None
        if ended is not None and not known.ended.done():
            known.ended.set_result(ended)
        runtime = Runtime.RUNNING if state["Status"] in _RUNNING_STATES else Runtime.CREATED
        return Adopted(
            uid=uid,
            attempt=int(labels.get("pwm.attempt", "0")),
            runtime=Runtime.ENDED if ended else runtime,
            runtime_id=info["Id"],
            labels={name: value for name, value in labels.items() if name.startswith("pwm.")},
            started_at_ns=_nanoseconds(state["StartedAt"]),
            pid=int(state["Pid"]),
            ended=ended,
        )

    # -- questions

    async def exec(self, uid: str, request: StartExec) -> ExecSession:
        return await docker_exec.start(self._api, self._get(uid).runtime_id, request)

    async def inspect(self, uid: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = await self._api.get(f"/containers/{self._get(uid).runtime_id}/json")
        except ApiError as error:
            raise docker_exec.exec_error(error) from error
        return masked(found)

    async def processes(self, uid: str) -> ProcessTable:
        try:
            table = await self._api.get(f"/containers/{self._get(uid).runtime_id}/top")
        except ApiError as error:
            # Engines differ in the code for a container that has ended.
            raise (ContainerMissing() if error.status == 404 else ContainerNotRunning()) from error
        return ProcessTable(titles=table["Titles"] or [], rows=table["Processes"] or [])

    async def usage(self, uids: Collection[str]) -> list[ContainerUsage]:
        wanted = {
            uid: known.runtime_id
            for uid in uids
            if (known := self._known.get(uid)) is not None and not known.ended.done()
        }
        return await asyncio.to_thread(self._cgroups.sample, wanted)

    def output(self, uid: str) -> LogSource | None:
        known = self._known.get(uid)
        if known is None:
            return None
        folder = self._root / "containers" / known.runtime_id / "local-logs"
        return LogSource(
            LogFormat.DOCKER_LOCAL, folder / "container.log", engine=self._host, runtime_id=known.runtime_id
        )

    def _get(self, uid: str) -> _Known:
        known = self._known.get(uid)
        if known is None:
            raise ContainerMissing("The container is not on this node")
        return known


def _ended(state: dict[str, Any], *, lost: bool) -> Ended:
    exit_code, message = int(state["ExitCode"]), str(state.get("Error") or "")
    if lost and not message:
        # Also with exit code 0: the engine asks containers to end, and a program that obeys has not done its work.
        message = "It ended while the Docker engine of the node was restarted"
    return Ended(
        exit_code=exit_code,
        finished_at_ns=_nanoseconds(state["FinishedAt"]) or time.time_ns(),
        oom_killed=bool(state["OOMKilled"]),
        message=message,
        started_at_ns=_nanoseconds(state["StartedAt"]),
    )


def _nanoseconds(text: str) -> int:
    """0 for Docker's year 1, which means never."""
    time_stamp = Timestamp()
    time_stamp.FromJsonString(text)
    return max(0, time_stamp.ToNanoseconds())
