"""Commands on workloads through the service."""

from typing import Any

import pytest

from pwm.api.v1 import events_pb2 as ev
from pwm.api.v1 import services_pb2 as api
from pwm.api.v1.identity_pb2 import User
from pwm.controlplane.auth import Authorizer, Principal
from pwm.controlplane.clock import Clock
from pwm.controlplane.context import CallContext
from pwm.controlplane.core.decide import Change
from pwm.controlplane.services.resources import ResourceService
from pwm.controlplane.services.workloads import WorkloadService
from tests.unit.controlplane.conftest import ACTOR, Plane, add_user


@pytest.fixture(autouse=True)
async def ann(plane: Plane) -> None:
    await add_user(plane, "ann", {})


async def test_a_retried_restart_restarts_once(plane: Plane) -> None:
    unused: Any = None
    service = WorkloadService(
        view=plane.view,
        commands=plane.commands,
        agents=unused,
        explainer=unused,
        logs=unused,
        bridge=unused,
        tickets=unused,
        authorizer=Authorizer(plane.view),
        clock=Clock(),
    )
    new = Change("Workload", "w", "train", "g", None, (ev.WorkloadApplied(generation=1, first_attempt=1),))
    await plane.commands.run(lambda: [new], actor=ACTOR)
    request = api.RestartRequest(name="train", group="g")
    first, again, other = [await service.Restart(request, by_ann(key)) for key in ("k1", "k1", "k2")]
    assert again.revision == first.revision
    assert other.revision > first.revision
    workload = plane.view.by_name("Workload", "train", group="g")
    assert workload is not None
    assert workload.metadata.version == 3, "created, restarted, and restarted by another command"


async def test_a_retried_stop_says_what_the_first_one_did(plane: Plane) -> None:
    unused: Any = None
    service = WorkloadService(
        view=plane.view,
        commands=plane.commands,
        agents=unused,
        explainer=unused,
        logs=unused,
        bridge=unused,
        tickets=unused,
        authorizer=unused,
        clock=Clock(),
    )
    await create(plane, "w")
    request = api.StopRequest(name="train", group="g")
    answers = [await service.Stop(request, by_ann(key)) for key in ("k1", "k1", "k2")]
    assert [answer.changed for answer in answers] == [True, True, False]


async def test_a_retried_delete_is_answered_like_the_first_and_spares_what_has_been_made_anew(plane: Plane) -> None:
    unused: Any = None
    service = ResourceService(
        view=plane.view, queries=unused, commands=plane.commands, applier=unused, authorizer=unused, clock=Clock(),
        stale_since_ms=lambda: 0, store_revision=plane.store.revision, observe_contact=lambda observer: None,
        newest_events=unused,
    )  # fmt: skip
    await create(plane, "w")
    request = api.DeleteRequest(kind="Workload", name="train", group="g")
    first = await service.Delete(request, by_ann("k1"))
    assert await service.Delete(request, by_ann("k1")) == first
    await create(plane, "another")
    assert await service.Delete(request, by_ann("k1")) == first
    assert plane.view.get("Workload", "another") is not None
    await service.Delete(request, by_ann("k2"))
    assert plane.view.get("Workload", "another") is None


async def create(plane: Plane, uid: str) -> None:
    new = Change("Workload", uid, "train", "g", None, (ev.WorkloadApplied(generation=1, first_attempt=1),))
    await plane.commands.run(lambda: [new], actor=ACTOR)


def by_ann(key: str) -> CallContext:
    user = User()
    user.metadata.name, user.metadata.uid = "ann", "uid-ann"
    return CallContext(principal=Principal(user=user), idempotency_key=key)
