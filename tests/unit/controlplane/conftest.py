"""A control plane in memory: store, view that follows it, commands."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from pwm.api.v1 import events_pb2 as ev
from pwm.api.v1.common_pb2 import Actor
from pwm.api.v1.identity_pb2 import UserSpec, Verbs
from pwm.controlplane.auth import Principal
from pwm.controlplane.clock import Clock
from pwm.controlplane.cluster_key import ClusterKey
from pwm.controlplane.commands import Commands
from pwm.controlplane.core.decide import Change
from pwm.controlplane.follower import Follower
from pwm.controlplane.secrets import Secrets
from pwm.controlplane.store.eventstore import EventStore
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.memory import MemoryKV
from pwm.controlplane.view import View

ACTOR = Actor(type=Actor.USER, name="ann")
Policy = dict[str, list[str]]


@dataclass
class Plane:
    kv: MemoryKV
    store: EventStore
    view: View
    commands: Commands
    follower: Follower
    secrets: Secrets


async def add_user(plane: Plane, name: str, policies: dict[str, Policy | str], *, active: bool = True) -> Principal:
    """A user with a policy or a role in each of these groups, as a principal."""
    spec = UserSpec(active=active)
    for group, policy in policies.items():
        if isinstance(policy, str):
            spec.groups.add(name=group, role=policy)
        else:
            spec.groups.add(name=group, policy={kind: Verbs(verbs=verbs) for kind, verbs in policy.items()})
    new = Change("User", f"uid-{name}", name, "", None, (ev.UserApplied(spec=spec),))
    await plane.commands.run(lambda: [new], actor=ACTOR)
    return Principal(user=plane.view.by_name("User", name))


@pytest.fixture
async def plane() -> AsyncIterator[Plane]:
    kv, clock, view = MemoryKV(), Clock(), View()
    async with EventStore(kv, keys=Keys(b"/test/")) as store:
        follower = Follower(store=store, view=view, clock=clock, on_loaded=lambda: None)
        following = asyncio.create_task(follower.run())
        await view.wait_for(0)
        commands = Commands(store=store, view=view, clock=clock)
        yield Plane(kv, store, view, commands, follower, Secrets(store=store, view=view, key=ClusterKey.generate()))
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    await kv.close()
