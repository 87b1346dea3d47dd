"""A workload's output: from the agents that keep it, in one stream.

Each replica is read attempt by attempt. Following goes on into the next attempt when there is one to come
and ends when there is not, so a stream ends by itself with its workload. When an agent goes away while it
is followed, reading goes on from the same byte once it is back.

Bytes pass through untouched, unless several replicas are shown: then each line carries its container's
name, and only whole lines are mixed.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import grpc

from pwm import lifecycle
from pwm.api.v1 import services_pb2 as api
from pwm.api.v1.agent_pb2 import OpenStream, ReadLogs, RelayError
from pwm.api.v1.workload_pb2 import Container, Workload
from pwm.controlplane.agentlink import AgentLink, AgentRefused, AgentUnreachable
from pwm.controlplane.clock import Clock
from pwm.controlplane.commands import timestamp
from pwm.controlplane.core.decide import replica_count
from pwm.controlplane.core.reconcile import reconcile
from pwm.controlplane.errors import ApiError, not_found, unavailable
from pwm.controlplane.view import Resync, View

# Pause before an agent that went away is asked again.
RETRY_DELAY_S = 0.5
# Chunks that may wait while several replicas are merged: back-pressure reaches each agent.
MERGE_QUEUE = 16
# A line without an end is passed on in pieces of this size when lines are prefixed.
MAX_LINE_BYTES = 1 << 20


class LogReader:
    def __init__(self, *, view: View, agents: AgentLink, clock: Clock) -> None:
        self._view = view
        self._agents = agents
        self._clock = clock

    async def read(self, workload: Workload, request: api.LogsRequest) -> AsyncGenerator[api.LogsResponse, None]:
        replicas = self._replicas(workload, request)
        sources = [self._replica(workload, replica, request) for replica in replicas]
        if len(sources) == 1:
            async with aclosing(sources[0]) as source:
                async for chunk in source:
                    yield chunk
        else:
            async with aclosing(_merged(sources)) as merged:
                async for chunk in merged:
                    yield chunk

    def _replicas(self, workload: Workload, request: api.LogsRequest) -> list[int]:
        uid, name = workload.metadata.uid, workload.metadata.name
        with_containers = {c.spec.replica for c in self._view.containers_of(uid)}
        if request.container:
            owner = next((c for c in self._view.containers_of(uid) if c.metadata.name == request.container), None)
            if owner is None:
                raise not_found(f"workload {name} has no container {request.container}")
            return [owner.spec.replica]
        if request.HasField("replica"):
            if request.replica not in with_containers and not 0 <= request.replica < replica_count(workload.spec):
                raise not_found(f"workload {name} has no replica {request.replica}")
            return [request.replica]
        if not request.follow and not with_containers:
            raise ApiError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"workload {name} has not started yet, so there is no output",
                next_step=f"pwm why wk {name} says what it waits for; pwm logs wk {name} -f waits",
            )
        wanted = set(range(replica_count(workload.spec))) if request.follow else set()
        return sorted(wanted | with_containers) or [0]

    # ---- one replica

    async def _replica(
        self, workload: Workload, replica: int, request: api.LogsRequest
    ) -> AsyncGenerator[api.LogsResponse, None]:
        container = self._first(workload, replica, request)
        offset = request.offset if request.container else 0
        tail = request.tail if request.HasField("tail") else -1
        while True:
            if container is None:
                if not request.follow:
                    return
                container = await self._next(workload.metadata.uid, replica, after=0)
                if container is None:
                    return
            question = ReadLogs(
                container_uid=container.metadata.uid,
                follow=request.follow,
                tail=tail,
                timestamps=request.timestamps,
                offset=offset,
            )
            if request.HasField("since"):
                since_ms = self._clock.now_ms() - request.since.ToMilliseconds()
                question.since.CopyFrom(timestamp(since_ms))
            async with aclosing(self._container(container, question)) as chunks:
                async for chunk in chunks:
                    yield chunk
            if not request.follow or request.previous:
                return
            container = await self._next(workload.metadata.uid, replica, after=container.spec.attempt)
            if container is None:
                return
            offset, tail = 0, -1

    def _first(self, workload: Workload, replica: int, request: api.LogsRequest) -> Container | None:
        attempts = [c for c in self._view.containers_of(workload.metadata.uid) if c.spec.replica == replica]
        if request.container:
            return next(c for c in attempts if c.metadata.name == request.container)
        if request.previous:
            if len(attempts) < 2:
                raise not_found(f"replica {replica} of workload {workload.metadata.name} has no earlier attempt")
            return attempts[-2]
        return attempts[-1] if attempts else None

    async def _container(self, container: Container, question: ReadLogs) -> AsyncGenerator[api.LogsResponse, None]:
        name, node = container.metadata.name, container.spec.node
        while not self._never_created(container):
            try:
                async with self._agents.open(node, OpenStream(logs=question)) as stream:
                    async for frame in stream:
                        log = frame.log
                        yield api.LogsResponse(
                            stream=log.stream, data=log.data, container=name, next_offset=log.next_offset
                        )
                        question.offset = log.next_offset
                return
            except AgentRefused as error:
                if error.code != RelayError.UNAVAILABLE:
                    if self._never_created(container):
                        return
                    raise not_found(f"the output of {name} is not kept any more on node {node} ({error})") from error
                if not question.follow:
                    raise unavailable(f"the output of {name} cannot be read now: {error}") from error
            except AgentUnreachable as error:
                if not question.follow:
                    raise unavailable(
                        f"the output of {name} is on node {node}, and {error}",
                        next_step="it can be read again when the node is back; pwm get nodes shows it",
                    ) from error
            if self._view.get("Container", container.metadata.uid) is None:
                return
            await asyncio.sleep(RETRY_DELAY_S)

    def _never_created(self, container: Container) -> bool:
        """It failed before there was anything that could print, such as for want of its image."""
        now: Container = self._view.get("Container", container.metadata.uid) or container
        return now.status.phase in lifecycle.ENDED and not now.status.runtime_id

    async def _next(self, workload_uid: str, replica: int, *, after: int) -> Container | None:
        """The replica's next container after attempt `after`; None when there will be none."""
        with self._view.subscribe() as subscription:
            while True:
                workload: Workload | None = self._view.get("Workload", workload_uid)
                attempts = [c for c in self._view.containers_of(workload_uid) if c.spec.replica == replica]
                later = next((c for c in attempts if c.spec.attempt > after), None)
                if later is not None:
                    return later
                if workload is None:
                    return None
                live = any(c.status.phase in lifecycle.LIVE for c in attempts)
                gap = reconcile(workload, self._view.containers_of(workload_uid), now_ms=self._clock.now_ms())
                if not live and all(v.replica != replica for v in gap.vacancies):
                    return None
                try:
                    await subscription.batch()
                except Resync:
                    continue


# ---- several replicas


async def _merged(sources: list[AsyncGenerator[api.LogsResponse, None]]) -> AsyncGenerator[api.LogsResponse, None]:
    queue: asyncio.Queue[api.LogsResponse | None] = asyncio.Queue(MERGE_QUEUE)

    async def pump(source: AsyncGenerator[api.LogsResponse, None]) -> None:
        async for chunk in _prefixed(source):
            await queue.put(chunk)
        await queue.put(None)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(pump(source)) for source in sources]
        open_sources = len(sources)
        try:
            while open_sources:
                chunk = await queue.get()
                if chunk is None:
                    open_sources -= 1
                else:
                    yield chunk
        finally:
            for task in tasks:
                task.cancel()


async def _prefixed(source: AsyncGenerator[api.LogsResponse, None]) -> AsyncGenerator[api.LogsResponse, None]:
    """Whole lines, each with its container's name in front."""
    rest: dict[int, bytes] = {}
    last: api.LogsResponse | None = None
    async for chunk in source:
        last = chunk
        data = rest.pop(chunk.stream, b"") + chunk.data
        lines = [line + b"\n" for line in data.split(b"\n")]
        unfinished = lines.pop()[:-1]
        if len(unfinished) > MAX_LINE_BYTES:
            lines.append(unfinished + b"\n")
            unfinished = b""
        if unfinished:
            rest[chunk.stream] = unfinished
        if lines:
            prefix = f"[{chunk.container}] ".encode()
            chunk.data = b"".join(prefix + line for line in lines)
            yield chunk
    for stream, unfinished in rest.items():
        if last is not None:
            prefix = f"[{last.container}] ".encode()
            yield api.LogsResponse(
                stream=stream,  # type: ignore[arg-type]
                data=prefix + unfinished + b"\n",
                container=last.container,
                next_offset=last.next_offset,
            )
