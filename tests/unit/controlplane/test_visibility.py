"""Nobody is shown what belongs to a group they may not see (I12)."""

from contextlib import aclosing
from typing import Any

import pytest

from pwm.api.v1 import events_pb2 as ev
from pwm.api.v1 import services_pb2 as api
from pwm.api.v1.common_pb2 import Actor
from pwm.api.v1.workload_pb2 import Notify, WorkloadSpec
from pwm.controlplane.auth import Authorizer
from pwm.controlplane.clock import Clock
from pwm.controlplane.context import CallContext
from pwm.controlplane.core.decide import Change
from pwm.controlplane.core.nodes import Contact
from pwm.controlplane.core.scheduling.cluster import Cluster
from pwm.controlplane.queries import Queries
from pwm.controlplane.services.events import EventService
from pwm.controlplane.services.newest_events import NewestEvents
from pwm.controlplane.services.resources import ResourceService
from tests.unit.controlplane.conftest import ACTOR, Plane, add_user

SEEN, HIDDEN = "vision", "secret"


@pytest.fixture
async def both_groups(plane: Plane) -> Plane:
    for group in (SEEN, HIDDEN):
        new = Change("Workload", f"uid-{group}", f"of-{group}", group, None, (ev.WorkloadApplied(),))
        await plane.commands.run(lambda new=new: [new], actor=ACTOR)  # type: ignore[misc]
    return plane


@pytest.fixture
async def context(both_groups: Plane) -> CallContext:
    return CallContext(principal=await add_user(both_groups, "ann", {SEEN: {"pwm.all": ["pwm.all"]}}))


def resources(plane: Plane) -> ResourceService:
    unused: Any = None
    clock = Clock()
    return ResourceService(
        view=plane.view,
        queries=Queries(view=plane.view, cluster=Cluster(), clock=clock, contact=lambda node: Contact(connected=True)),
        commands=plane.commands,
        applier=unused,
        authorizer=Authorizer(plane.view),
        clock=clock,
        stale_since_ms=lambda: 0,
        store_revision=plane.store.revision,
        observe_contact=lambda observer: None,
        newest_events=NewestEvents(plane.view, plane.store, lambda: plane.follower.changed_last),
    )


ADDRESS, MASKED = "tgram://123456/7890", "tgram://***"


async def applied(plane: Plane, *addresses: str) -> None:
    """By eve, for whom these are."""
    spec = WorkloadSpec(notify=Notify(to=addresses)) if addresses else WorkloadSpec()
    state = plane.view.by_name("Workload", "hers", group=SEEN)
    payload = ev.WorkloadApplied(spec=spec, generation=1, first_attempt=1)
    new = Change("Workload", "uid-hers", "hers", SEEN, state, (payload,))
    await plane.commands.run(lambda: [new], actor=Actor(type=Actor.USER, name="eve"))


@pytest.mark.parametrize(("viewer", "shown"), [("ann", MASKED), ("eve", ADDRESS)])
async def test_addresses_are_shown_to_whom_they_belong_only_since_when_they_were_written(
    plane: Plane, viewer: str, shown: str
) -> None:
    context = CallContext(principal=await add_user(plane, viewer, {SEEN: {"pwm.all": ["pwm.all"]}}))
    service = resources(plane)

    async def got() -> list[str]:
        return list((await service.Get(get, context)).resource.workload.spec.notify.to)

    async def listed() -> list[str]:
        (item,) = (await service.List(api.ListRequest(kind="Workload", group=SEEN), context)).items
        return list(item.workload.spec.notify.to)

    async def watched() -> list[str]:
        async with aclosing(watch) as told:  # type: ignore[type-var]
            return list((await anext(told)).resource.workload.spec.notify.to)  # type: ignore[call-overload]

    get = api.GetRequest(kind="Workload", name="hers", group=SEEN)
    for addresses, expected in (((), []), ((ADDRESS,), [shown]), ((), []), ((ADDRESS,), [shown])):
        await applied(plane, *addresses)
        for _ in range(2):
            watch = service.Watch(api.WatchRequest(kind="Workload", group=SEEN), context)
            assert [await got(), await listed(), await watched()] == [expected] * 3


@pytest.mark.parametrize("kind", ["Workload", "Event", "Bind"])
async def test_a_list_of_all_groups_leaves_out_those_of_others(
    both_groups: Plane, context: CallContext, kind: str
) -> None:
    request = api.ListRequest(kind=kind, all_groups=True, format=api.TABLE)
    answer = await resources(both_groups).List(request, context)
    assert SEEN in answer.text
    assert HIDDEN not in answer.text


async def test_a_watch_of_all_groups_leaves_out_those_of_others(both_groups: Plane, context: CallContext) -> None:
    seen = []
    async for answer in resources(both_groups).Watch(api.WatchRequest(kind="Workload", all_groups=True), context):
        if answer.type == api.WatchResponse.SYNCED:
            break
        seen.append(answer.resource.workload.metadata.group)
    assert seen == [SEEN]


async def test_events_of_all_groups_leave_out_those_of_others(both_groups: Plane, context: CallContext) -> None:
    unused: Any = None
    service = EventService(
        audit=unused,
        view=both_groups.view,
        store=both_groups.store,
        authorizer=Authorizer(both_groups.view),
        clock=Clock(),
        stale_since_ms=lambda: 0,
        newest=NewestEvents(both_groups.view, both_groups.store, lambda: both_groups.follower.changed_last),
    )
    answers = service.ListEvents(api.ListEventsRequest(kind="Workload", all_groups=True), context)
    assert [answer.event.group async for answer in answers] == [SEEN]
