"""A control plane in memory: store, view that follows it, commands."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from pwm.api.v1.common_pb2 import Actor
from pwm.controlplane.clock import Clock
from pwm.controlplane.commands import Commands
from pwm.controlplane.follower import Follower
from pwm.controlplane.store.eventstore import EventStore
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.memory import MemoryKV
from pwm.controlplane.view import View

ACTOR = Actor(type=Actor.USER, name="ann")


@dataclass
class Plane:
    kv: MemoryKV
    store: EventStore
    view: View
    commands: Commands
    follower: Follower


@pytest.fixture
async def plane() -> AsyncIterator[Plane]:
    kv, clock, view = MemoryKV(), Clock(), View()
    async with EventStore(kv, keys=Keys(b"/test/")) as store:
        follower = Follower(store=store, view=view, clock=clock, on_loaded=lambda: None)
        following = asyncio.create_task(follower.run())
        await view.wait_for(0)
        yield Plane(kv, store, view, Commands(store=store, view=view, clock=clock), follower)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    await kv.close()
