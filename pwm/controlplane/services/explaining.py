"""`pwm why`: every reason a workload is not running, or why it ended, in sentences."""

from collections import defaultdict
from collections.abc import Callable

from pwm import lifecycle
from pwm.api.v1 import services_pb2 as api
from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.node_pb2 import NodeStatus
from pwm.api.v1.workload_pb2 import Container, Workload, WorkloadStatus
from pwm.controlplane.clock import Clock
from pwm.controlplane.commands import timestamp
from pwm.controlplane.core.idle import evidence_said
from pwm.controlplane.core.limits import OVER_CODES
from pwm.controlplane.core.reconcile import reconcile
from pwm.controlplane.core.scheduling.cluster import Cluster
from pwm.controlplane.core.scheduling.explain import explain
from pwm.controlplane.core.scheduling.queue import Waiting, order
from pwm.controlplane.queries import Queries
from pwm.controlplane.view import View
from pwm.enums import value_name

# What is waited for has nothing to do with nodes.
_ADVICE = {
    Reason.OUT_OF_CREDITS: "wait for the next week, or have spec.limits.credits.weekly raised",
    Reason.SECRET_NOT_EXIST: "apply the secret; the workload starts by itself then",
}


class Explainer:
    def __init__(
        self,
        *,
        view: View,
        queries: Queries,
        cluster: Cluster,
        clock: Clock,
        stale_since_ms: Callable[[], int],
    ) -> None:
        self._view = view
        self._queries = queries
        self._cluster = cluster
        self._clock = clock
        self._stale_since_ms = stale_since_ms

    def why(self, workload: Workload, may_see: Callable[[str], bool]) -> api.WhyResponse:
        """`may_see`: whether the caller may hear of a container, GROUP/NAME, that is in the workload's way."""
        status = self._queries.workload(workload).status
        answer = api.WhyResponse(phase=status.phase, reason=status.reason)
        containers = self._view.containers_of(workload.metadata.uid)
        gap = reconcile(workload, containers, now_ms=self._clock.now_ms())
        backing_off = {v.replica: v.not_before_ms for v in gap.vacancies if v.not_before_ms > self._clock.now_ms()}
        advice = _ADVICE.get(status.reason.code)
        if advice is not None:
            answer.suggestions.append(advice)
        elif any(v.replica not in backing_off for v in gap.vacancies):
            self._waiting(answer, workload, may_see)
        answer.replicas.extend(self._stories(containers, backing_off))
        answer.warnings.extend(self._warnings(containers))
        answer.evidence.extend(evidence_said(workload))
        return answer

    def _waiting(self, answer: api.WhyResponse, workload: Workload, may_see: Callable[[str], bool]) -> None:
        explanation = explain(self._cluster, workload)
        answer.refusals.extend(api.Refusal(reason=reason, nodes=nodes) for reason, nodes in explanation.refusals)
        answer.suggestions.extend(change.told(may_see) for change in explanation.changes)
        if explanation.reason.code in OVER_CODES:
            return  # it is not the queue that it waits for
        queue = self._queue()
        answer.queue_length = len(queue)
        uids = [w.workload.metadata.uid for w in queue]
        if workload.metadata.uid in uids:
            answer.queue_position = uids.index(workload.metadata.uid) + 1

    def _queue(self) -> list[Waiting]:
        """The first waiting replica of every workload, in the order they will be placed."""
        now_ms = self._clock.now_ms()
        waiting = []
        for workload in self._view.all("Workload"):
            if workload.status.desired != WorkloadStatus.RUN:
                continue
            gap = reconcile(workload, self._view.containers_of(workload.metadata.uid), now_ms=now_ms)
            for vacancy in gap.vacancies[:1]:
                if vacancy.not_before_ms <= now_ms:
                    waiting.append(
                        Waiting(
                            workload=workload,
                            replica=vacancy.replica,
                            attempt=vacancy.attempt,
                            since_ms=vacancy.since_ms,
                        )
                    )
        return order(waiting, now_ms)

    def _stories(self, containers: list[Container], backing_off: dict[int, int]) -> list[api.ReplicaStory]:
        by_replica: defaultdict[int, list[Container]] = defaultdict(list)
        for container in containers:
            by_replica[container.spec.replica].append(container)
        stories = []
        for replica, attempts in sorted(by_replica.items()):
            last = attempts[-1]
            story = api.ReplicaStory(
                replica=replica,
                attempts=last.spec.attempt,
                container=last.metadata.name,
                status=last.status,
                node=last.spec.node,
            )
            if replica in backing_off:
                story.next_attempt.CopyFrom(timestamp(backing_off[replica]))
            stories.append(story)
        return stories

    def _warnings(self, containers: list[Container]) -> list[str]:
        warnings = []
        if self._stale_since_ms():
            away_s = (self._clock.now_ms() - self._stale_since_ms()) // 1000
            warnings.append(
                f"the control plane cannot reach etcd since {away_s} s: nothing new is placed until it is back"
            )
        for name in sorted({c.spec.node for c in containers}):
            node = self._view.by_name("Node", name)
            if node is not None and node.status.phase not in (NodeStatus.READY, NodeStatus.MAINTENANCE):
                phase = value_name(NodeStatus.Phase.Name, node.status.phase)
                warnings.append(f"node {name} is {phase}: {node.status.reason.message}")
                continue
            used = {c.spec.driver for c in containers if c.spec.node == name and c.status.phase in lifecycle.LIVE}
            for driver in node.status.inventory.drivers if node is not None else ():
                if driver.name in used and not driver.ready:
                    warnings.append(f"{driver.name} on node {name} is away: {driver.message}")
        return warnings
