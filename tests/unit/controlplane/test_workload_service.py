"""Commands on workloads through the service."""

from typing import Any

from pwm.api.v1 import events_pb2 as ev
from pwm.api.v1 import services_pb2 as api
from pwm.api.v1.identity_pb2 import User
from pwm.controlplane.auth import Principal
from pwm.controlplane.context import CallContext
from pwm.controlplane.core.decide import Change
from pwm.controlplane.services.workloads import WorkloadService
from tests.unit.controlplane.conftest import ACTOR, Plane


async def test_a_retried_restart_restarts_once(plane: Plane) -> None:
    unused: Any = None
    service = WorkloadService(
        view=plane.view, commands=plane.commands, agents=unused, explainer=unused, logs=unused, bridge=unused
    )
    user = User()
    user.metadata.name = "ann"
    new = Change("Workload", "w", "train", "g", None, (ev.WorkloadApplied(generation=1, first_attempt=1),))
    await plane.commands.run(lambda: [new], actor=ACTOR)
    request = api.RestartRequest(name="train", group="g")
    first, again, other = [
        await service.Restart(request, CallContext(principal=Principal(user=user), idempotency_key=key))
        for key in ("k1", "k1", "k2")
    ]
    assert again.revision == first.revision
    assert other.revision > first.revision
    workload = plane.view.by_name("Workload", "train", group="g")
    assert workload is not None
    assert workload.metadata.version == 3, "created, restarted, and restarted by another command"
