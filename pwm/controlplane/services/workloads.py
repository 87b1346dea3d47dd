"""Commands on workloads, and questions about one: stop, scale, restart, keep, why, inspect, processes."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from pwm import lifecycle
from pwm.api.v1 import services_pb2 as api
from pwm.api.v1.agent_pb2 import InspectContainer, ListProcesses, OpenStream
from pwm.api.v1.workload_pb2 import Container, ContainerStatus, Workload
from pwm.controlplane.agentlink import AgentLink, AgentRefused, AgentUnreachable
from pwm.controlplane.auth import Authorizer
from pwm.controlplane.clock import Clock
from pwm.controlplane.commands import Commands
from pwm.controlplane.context import CallContext
from pwm.controlplane.core.decide import (
    Payload,
    Refusal,
    change,
    restart_workload,
    scale_workload,
    stop_workload,
)
from pwm.controlplane.core.idle import DEFAULT_KEEP_MS, LONGEST_KEEP_MS, SHORTEST_KEEP_MS, keep
from pwm.controlplane.errors import ApiError, conflict, invalid, not_found
from pwm.controlplane.services.exec import ExecBridge
from pwm.controlplane.services.explaining import Explainer
from pwm.controlplane.services.logs import LogReader
from pwm.controlplane.services.using import check_use
from pwm.controlplane.sight import Sight
from pwm.controlplane.store.commits import ReceiptWrite
from pwm.controlplane.store.errors import AlreadyAnswered
from pwm.controlplane.tickets import LIFETIME_S, Tickets
from pwm.controlplane.view import View
from pwm.quantity import format_duration

Answer = TypeVar("Answer")

# As in a manifest: an array of 10,000 replicas is one commit.
MAX_REPLICAS = 10_000


class WorkloadService:
    def __init__(
        self,
        *,
        view: View,
        commands: Commands,
        agents: AgentLink,
        explainer: Explainer,
        logs: LogReader,
        bridge: ExecBridge,
        tickets: Tickets,
        authorizer: Authorizer,
        clock: Clock,
    ) -> None:
        self._tickets = tickets
        self._view = view
        self._commands = commands
        self._agents = agents
        self._explainer = explainer
        self._logs = logs
        self._bridge = bridge
        self._authorizer = authorizer
        self._clock = clock

    # ---- commands

    async def Stop(self, request: api.StopRequest, context: CallContext) -> api.StopResponse:
        revision, changed = await self._change(request, context, stop_workload)
        return api.StopResponse(revision=revision, changed=changed)

    async def Scale(self, request: api.ScaleRequest, context: CallContext) -> api.ScaleResponse:
        if not 0 <= request.count <= MAX_REPLICAS:
            raise invalid(f"{request.count} replicas are not possible", next_step=f"choose 0 to {MAX_REPLICAS:,}")
        if request.count:
            self._check_use(request, context)
        revision, changed = await self._change(request, context, lambda w: scale_workload(w, request.count))
        return api.ScaleResponse(revision=revision, changed=changed)

    async def Restart(self, request: api.RestartRequest, context: CallContext) -> api.RestartResponse:
        self._check_use(request, context)
        revision, _ = await self._change(
            request, context, lambda w: restart_workload(w, self._view.containers_of(w.metadata.uid))
        )
        return api.RestartResponse(revision=revision)

    async def Keep(self, request: api.KeepRequest, context: CallContext) -> api.KeepResponse:
        time_ms = request.time.ToMilliseconds() if request.HasField("time") else DEFAULT_KEEP_MS
        if not SHORTEST_KEEP_MS <= time_ms <= LONGEST_KEEP_MS:
            raise invalid(
                f"a workload is kept for 1 second to 7 days, not for {format_duration(time_ms)}",
                next_step=f"pwm keep wk {request.name} --for 4h",
            )
        now_ms = self._clock.now_ms()
        revision, _ = await self._change(
            request,
            context,
            lambda w: keep(w, self._view.containers_of(w.metadata.uid), time_ms=time_ms, now_ms=now_ms),
        )
        return api.KeepResponse(revision=revision, until=self._find(request, context).status.idle.kept_until)

    async def _change(
        self, request: Any, context: CallContext, decide: Callable[[Workload], tuple[Payload, ...]]
    ) -> tuple[int, bool]:
        # With the caller's key, a retry of a command whose answer was lost is answered and not done twice.
        key, name = context.idempotency_key, context.principal.name
        try:
            outcome = await self._commands.run(
                lambda: [change(w := self._find(request, context), *decide(w))],
                actor=context.principal.actor,
                receipt=ReceiptWrite(name, key, b"") if key else None,
            )
        except AlreadyAnswered as error:
            return error.revision, True
        except Refusal as error:
            raise conflict(str(error), next_step=error.next_step) from error
        return outcome.revision, bool(outcome.changes)

    def _check_use(self, request: Any, context: CallContext) -> None:
        sight = Sight(self._authorizer, context.principal)
        check_use(self._find(request, context), sight, name=context.principal.name)

    def _find(self, request: Any, context: CallContext) -> Workload:
        return find_workload(self._view, request.name, request.group or context.principal.default_group)

    # ---- questions

    async def CreateExecTicket(
        self, request: api.CreateExecTicketRequest, context: CallContext
    ) -> api.CreateExecTicketResponse:
        workload = self._find(request, context).metadata
        ticket = await self._tickets.issue(context.principal, group=workload.group, workload=workload.name)
        answer = api.CreateExecTicketResponse(ticket=ticket)
        answer.lifetime.FromSeconds(LIFETIME_S)
        return answer

    async def Why(self, request: api.WhyRequest, context: CallContext) -> api.WhyResponse:
        return self._explainer.why(self._find(request, context), Sight(self._authorizer, context.principal).container)

    async def Inspect(self, request: api.InspectRequest, context: CallContext) -> api.InspectResponse:
        workload = self._find(request, context)
        containers = latest_containers(self._view, workload, request.replica if request.HasField("replica") else None)

        async def one(container: Container) -> api.ContainerInspection:
            answer = api.ContainerInspection(container=container.metadata.name, node=container.spec.node)
            question = OpenStream(inspect=InspectContainer(container_uid=container.metadata.uid))
            document, answer.error = await self._ask(container, question)
            if document is not None:
                answer.document.CopyFrom(json_format.ParseDict(document, Struct()))
            return answer

        return api.InspectResponse(containers=await _gather(one, containers))

    async def Processes(self, request: api.ProcessesRequest, context: CallContext) -> api.ProcessesResponse:
        workload = self._find(request, context)
        running = [
            c for c in latest_containers(self._view, workload, None) if c.status.phase == ContainerStatus.RUNNING
        ]

        async def one(container: Container) -> api.ProcessList:
            answer = api.ProcessList(container=container.metadata.name, node=container.spec.node)
            question = OpenStream(processes=ListProcesses(container_uid=container.metadata.uid))
            found, answer.error = await self._ask(container, question)
            if found is not None:
                answer.titles.extend(found["titles"])
                answer.rows.extend(api.ProcessRow(cells=row) for row in found["rows"])
            return answer

        return api.ProcessesResponse(containers=await _gather(one, running))

    async def _ask(self, container: Container, question: OpenStream) -> tuple[Any | None, str]:
        """The agent's JSON answer, or why there is none."""
        try:
            async with self._agents.open(container.spec.node, question) as stream:
                async for frame in stream:
                    return json.loads(frame.answer), ""
            return None, "the agent gave no answer"
        except (AgentUnreachable, AgentRefused) as error:
            return None, str(error)

    # ---- streams

    def Logs(self, request: api.LogsRequest, context: CallContext) -> Any:
        return self._logs.read(self._find(request, context), request)

    def Exec(self, requests: Any, context: CallContext) -> Any:
        return self._bridge.run(requests, context)


def find_workload(view: View, name: str, group: str) -> Workload:
    """Raises ApiError NOT_FOUND."""
    workload: Workload | None = view.by_name("Workload", name, group=group)
    if workload is None:
        raise not_found(
            f"there is no workload {name} in group {group}",
            next_step="pwm get wk -A lists what there is; -g GROUP names a group",
        )
    return workload


def latest_containers(view: View, workload: Workload, replica: int | None) -> list[Container]:
    """The last attempt of each replica (or of one), lowest replica first.

    Raises ApiError NOT_FOUND when the replica has no container, FAILED_PRECONDITION when none has.
    """
    latest: dict[int, Container] = {}
    for container in view.containers_of(workload.metadata.uid):
        latest[container.spec.replica] = container
    name = workload.metadata.name
    if replica is not None:
        if replica not in latest:
            raise not_found(
                f"replica {replica} of workload {name} has no container", next_step=f"pwm why wk {name} says why"
            )
        return [latest[replica]]
    if not latest:
        raise ApiError(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"workload {name} has no container yet",
            next_step=f"pwm why wk {name} says what it waits for",
        )
    live = [c for c in latest.values() if c.status.phase in lifecycle.LIVE]
    return live or list(latest.values())


async def _gather(one: Callable[[Container], Awaitable[Answer]], containers: list[Container]) -> list[Answer]:
    return list(await asyncio.gather(*(one(c) for c in containers)))
