"""The leader's watch over GPUs that nobody uses, on a control plane in memory and what agents report."""

from typing import Any

import pytest

from pwm.api.v1 import events_pb2 as ev
from pwm.api.v1 import services_pb2 as api
from pwm.api.v1.agent_pb2 import NodeUsage
from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.node_pb2 import GPUDevice, Inventory
from pwm.api.v1.workload_pb2 import ContainerSpec, ContainerStatus, Workload, WorkloadSpec, WorkloadStatus
from pwm.controlplane.clock import Clock
from pwm.controlplane.context import CallContext
from pwm.controlplane.controllers.idle import STALE_AFTER_S, IdleController
from pwm.controlplane.core import idle
from pwm.controlplane.core.decide import Change
from pwm.controlplane.core.idle import MINUTE_MS, IdlePolicy
from pwm.controlplane.errors import ApiError
from pwm.controlplane.services.workloads import WorkloadService
from pwm.controlplane.store.commits import Guard
from tests.unit.controlplane.conftest import ACTOR, Plane, add_user

# A key that nobody writes: the fence of a leader who leads for ever.
FENCE = Guard(b"/t/leader/never", create_revision=0)
POLICY = IdlePolicy(spared_ms=0)


class Agents:
    """What the nodes last said, and how often they were asked."""

    def __init__(self) -> None:
        self.said: dict[str, NodeUsage] = {}
        self.asked = 0

    def say(self, node: str, uid: str, *, unused_ms: int) -> None:
        usage = NodeUsage()
        usage.time.FromMilliseconds(self.said[node].time.ToMilliseconds() + 1 if node in self.said else 1)
        gpu = usage.activity.add(uid=uid).gpus.add()
        gpu.uuid, gpu.unused_ms, gpu.samples = f"{node}-gpu", unused_ms, 9
        self.said[node] = usage

    def usage(self, node: str) -> NodeUsage | None:
        return self.said.get(node)

    async def refresh_usage(self) -> None:
        self.asked += 1


class LaterClock(Clock):
    """Elapsed time as a test wants it."""

    later_s = 0.0

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.later_s


def controller(plane: Plane, agents: Any, *, zone: str = "default", clock: Clock | None = None) -> IdleController:
    return IdleController(
        zone=zone, view=plane.view, commands=plane.commands, agents=agents, clock=clock or Clock(), fence=FENCE,
        policy=POLICY,
    )  # fmt: skip


async def run_on(plane: Plane, node: str, *, gpu: bool = True) -> str:
    """A workload that runs on a node of its own; the uid of its container."""
    spec = WorkloadSpec()
    spec.selectors.gpu.count = int(gpu)
    inventory = Inventory(gpus=[GPUDevice(uuid=f"{node}-gpu", healthy=True)])
    placed = ContainerSpec(workload_uid=f"w-{node}", workload=f"on-{node}", attempt=1, generation=1, node=node)
    if gpu:
        placed.gpu_uuids.append(f"{node}-gpu")
    applied = ev.WorkloadApplied(spec=spec, generation=1, first_attempt=1)
    running = ev.ContainerReported(phase=ContainerStatus.RUNNING)
    uid = f"w-{node}.0.1"
    await commit(
        plane,
        Change("Node", f"u-{node}", node, "", None, (ev.NodeJoined(inventory=inventory),)),
        Change("Workload", f"w-{node}", f"on-{node}", "g", None, (applied,)),
        Change("Container", uid, f"on-{node}.0.1", "g", None, (ev.ContainerPlaced(spec=placed), running)),
    )
    return uid


async def commit(plane: Plane, *changes: Change) -> None:
    await plane.commands.run(lambda: list(changes), actor=ACTOR)


def workload(plane: Plane, node: str) -> Workload:
    found = plane.view.by_name("Workload", f"on-{node}", group="g")
    assert isinstance(found, Workload)
    return found


async def test_it_warns_and_then_stops_what_agents_say_is_unused_and_leaves_the_rest(plane: Plane) -> None:
    agents, watch = Agents(), None
    uids = {node: await run_on(plane, node) for node in ("idle", "busy", "mute")}
    watch = controller(plane, agents)
    agents.say("idle", uids["idle"], unused_ms=11 * MINUTE_MS)
    agents.say("busy", uids["busy"], unused_ms=9 * MINUTE_MS)
    await watch.turn()
    assert idle.warning(workload(plane, "idle"))
    await watch.turn()
    assert workload(plane, "idle").metadata.version == 2, "warned once"
    agents.say("idle", uids["idle"], unused_ms=17 * MINUTE_MS)
    agents.say("busy", uids["busy"], unused_ms=0)
    # A new leader goes on where the last one was.
    await controller(plane, agents).turn()
    stopped = workload(plane, "idle").status
    assert (stopped.desired, stopped.desired_reason.code) == (WorkloadStatus.STOP, Reason.IDLE)
    assert stopped.desired_by.name == "idle"
    for node in ("busy", "mute"):
        assert workload(plane, node).metadata.version == 1


async def test_nobody_is_asked_while_the_rule_is_about_nobody(plane: Plane) -> None:
    agents = Agents()
    await run_on(plane, "cpu", gpu=False)
    await controller(plane, agents).turn()
    assert agents.asked == 0
    await run_on(plane, "gpu")
    await controller(plane, agents, zone="another").turn()
    assert agents.asked == 0
    await controller(plane, agents).turn()
    assert agents.asked == 1


async def test_what_an_agent_said_long_ago_is_no_evidence(plane: Plane) -> None:
    agents, clock = Agents(), LaterClock()
    uid = await run_on(plane, "n")
    # In its first word there is nothing yet; then it hangs, and the replica repeats what it heard.
    agents.say("n", uid, unused_ms=0)
    watch = controller(plane, agents, clock=clock)
    await watch.turn()
    agents.said["n"].activity[0].gpus[0].unused_ms = 11 * MINUTE_MS
    clock.later_s += STALE_AFTER_S
    await watch.turn()
    assert idle.warning(workload(plane, "n")) is None
    agents.say("n", uid, unused_ms=11 * MINUTE_MS)
    await watch.turn()
    assert idle.warning(workload(plane, "n"))


async def test_who_keeps_a_workload_is_told_until_when_and_a_retry_does_not_make_it_longer(plane: Plane) -> None:
    await run_on(plane, "n")
    unused: Any = None
    service = WorkloadService(
        view=plane.view, commands=plane.commands, agents=unused, explainer=unused, logs=unused, bridge=unused,
        tickets=unused, authorizer=unused, clock=Clock(),
    )  # fmt: skip
    by_ann = CallContext(principal=await add_user(plane, "ann", {}), idempotency_key="k")
    request = api.KeepRequest(name="on-n", group="g", time={"seconds": 3600})
    first, again = [await service.Keep(request, by_ann) for _ in range(2)]
    assert first == again
    kept = workload(plane, "n")
    assert (kept.metadata.version, kept.status.idle.kept_until) == (2, first.until)
    for seconds in (0, 8 * 86_400):
        request.time.seconds = seconds
        with pytest.raises(ApiError, match="1 second to 7 days"):
            await service.Keep(request, by_ann)
