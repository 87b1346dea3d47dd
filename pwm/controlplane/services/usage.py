"""`pwm top`: live usage, from what agents send with their heartbeats."""

import asyncio
from collections.abc import AsyncIterator

from pwm import lifecycle
from pwm.api.v1 import services_pb2 as api
from pwm.api.v1.agent_pb2 import ContainerUsage, NodeUsage
from pwm.api.v1.common_pb2 import Resources
from pwm.api.v1.node_pb2 import Node, NodeStatus
from pwm.controlplane.agentlink import AgentLink
from pwm.controlplane.auth import Authorizer
from pwm.controlplane.clock import Clock
from pwm.controlplane.commands import timestamp
from pwm.controlplane.context import CallContext
from pwm.controlplane.queries import Queries
from pwm.controlplane.services.workloads import find_workload
from pwm.controlplane.sight import Sight
from pwm.controlplane.view import View
from pwm.enums import value_name

MIN_INTERVAL_S = 0.5


class UsageService:
    def __init__(
        self, *, view: View, queries: Queries, agents: AgentLink, authorizer: Authorizer, clock: Clock
    ) -> None:
        self._view = view
        self._queries = queries
        self._agents = agents
        self._authorizer = authorizer
        self._clock = clock

    async def Top(self, request: api.TopRequest, context: CallContext) -> AsyncIterator[api.TopResponse]:
        sight = Sight(self._authorizer, context.principal)
        if request.workload:
            group = request.group or sight.default_group
            self._authorizer.require(context.principal, verb="top", kind="Workload", group=group)
            find_workload(self._view, request.workload, group)
        interval_s = request.interval.ToMilliseconds() / 1000
        if not interval_s:
            await self._agents.refresh_usage()
            yield self._now(request, sight)
            return
        with self._agents.watch_usage():
            while True:
                yield self._now(request, sight)
                await asyncio.sleep(max(MIN_INTERVAL_S, interval_s))

    def _now(self, request: api.TopRequest, sight: Sight) -> api.TopResponse:
        answer = api.TopResponse(time=timestamp(self._clock.now_ms()))
        usage: dict[str, ContainerUsage] = {}
        may_see_nodes = sight.may("Node")
        for node in sorted(self._view.all("Node"), key=lambda n: n.metadata.name):
            sent = self._agents.usage(node.metadata.name)
            if sent is not None:
                usage.update((c.uid, c) for c in sent.containers)
            if may_see_nodes and not request.workload:
                self._add_node(answer, self._queries.node(node), sent, sight)
        group = request.group or sight.default_group
        for container in self._view.all("Container"):
            metadata = container.metadata
            if container.status.phase not in lifecycle.LIVE:
                continue
            if request.workload and (container.spec.workload != request.workload or metadata.group != group):
                continue
            if not request.all_groups and metadata.group != group:
                continue
            if not sight.may("Workload", verb="top", group=metadata.group):
                continue
            answer.containers.append(
                api.ContainerTop(
                    name=metadata.name,
                    group=metadata.group,
                    workload=container.spec.workload,
                    node=container.spec.node,
                    phase=lifecycle.phase_word(container.status.phase),
                    allocated=container.spec.resources,
                    usage=usage.get(metadata.uid),
                    started_at=container.status.started_at if container.status.HasField("started_at") else None,
                )
            )
        return answer

    def _add_node(self, answer: api.TopResponse, node: Node, sent: NodeUsage | None, sight: Sight) -> None:
        inventory = node.status.inventory
        if sent is not None:
            groups = {c.metadata.uid: c.metadata.group for c in self._view.containers_on(node.metadata.name)}
            sent = sight.usage(sent, groups)
        answer.nodes.append(
            api.NodeTop(
                name=node.metadata.name,
                phase=value_name(NodeStatus.Phase.Name, node.status.phase),
                capacity=Resources(
                    cpu_millis=inventory.cpu_count * 1000, memory_bytes=inventory.memory_bytes, gpus=len(inventory.gpus)
                ),
                allocated=node.status.used,
                usage=sent,
            )
        )
        used = {gpu.uuid: gpu for gpu in sent.gpus} if sent is not None else {}
        for gpu in self._queries.gpus(node):
            answer.gpus.append(
                api.GPUTop(
                    node=node.metadata.name,
                    index=gpu.device.index,
                    product_name=gpu.device.product_name,
                    usage=used.get(gpu.device.uuid),
                    container=gpu.container if sight.container(gpu.container) else "",
                )
            )
