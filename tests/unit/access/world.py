"""A control plane with two groups, and one user for each way of having rights in them, behind the real gateway.

What nobody outside may hear of has a name that appears nowhere else, so that a leak is a word in an answer. For each
such name there is another one, of nothing, as long: what is hidden must be answered as what does not exist.
"""

import asyncio
import io
import json
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from prometheus_client import CollectorRegistry

from pwm.api.v1 import events_pb2 as ev
from pwm.api.v1 import identity_pb2 as identity
from pwm.api.v1.common_pb2 import Actor
from pwm.api.v1.identity_pb2 import TokenSpec
from pwm.api.v1.node_pb2 import Inventory
from pwm.api.v1.workload_pb2 import ContainerSpec, ContainerStatus
from pwm.controlplane.auth import new_token, token_uid
from pwm.controlplane.clock import Clock
from pwm.controlplane.cluster_key import ClusterKey
from pwm.controlplane.core.decide import Change
from pwm.controlplane.core.door import NO_LIMITS, DoorLimits
from pwm.controlplane.credentials import Credentials
from pwm.controlplane.gateway import Gateway
from pwm.controlplane.gateway.doorkeeper import Doorkeeper
from pwm.controlplane.oidc.provider import Provider
from pwm.controlplane.plane import ControlPlane
from pwm.controlplane.servicers import servicers
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.memory import MemoryKV
from tests.patience import PATIENCE_S

ACTOR = Actor(type=Actor.USER, name="nobody")
OWN, OTHER = "vision", "hushgrp"
# What belongs to the other group and to other people; by what it is.
HIDDEN = {
    "group": OTHER, "workload": "hushwkl", "volume": "hushvol", "secret": "hushsec", "user": "hushusr",
    "role": "hushrol",
}  # fmt: skip
# As long, and there is none of them.
NOWHERE = {what: name.replace("hush", "none") for what, name in HIDDEN.items()}
ALL = "pwm.all"

Policy = dict[str, list[str]]
EVERYTHING: Policy = {ALL: [ALL]}
# Each caller is a member of these groups; a word instead of a policy is a role.
CALLERS: dict[str, dict[str, Policy | str]] = {
    "member": {OWN: {"Workload": ["get", "Apply", "CANCEL", "logs"]}},
    "owner": {OWN: EVERYTHING},
    "reader": {OWN: EVERYTHING, OTHER: "watcher"},
    "keeper": {"pwm.resource": EVERYTHING, OWN: {}},
    "steward": {"admin": EVERYTHING, OWN: {}},
    "admin": {ALL: "everything"},
    "stranger": {},
}
# With these tokens nobody gets in.
STRANGERS = ("anonymous", "revoked", "expired", "inactive", "node", "invented")


@dataclass
class Answer:
    status: int
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class World:
    plane: ControlPlane
    session: aiohttp.ClientSession
    url: str
    tokens: dict[str, str]

    async def ask(self, caller: str, method: str, path: str, *, query: Any = None, body: Any = None) -> Answer:
        """Of a stream that goes on, what it begins with."""
        headers = {"Accept": "application/json"}
        if token := self.tokens[caller]:
            headers["Authorization"] = f"Bearer {token}"
        data = io.BytesIO(json.dumps(body).encode()) if body is not None else None
        if body is not None:
            headers["Content-Type"] = "application/json"
        async with (
            asyncio.timeout(PATIENCE_S),
            self.session.request(method, self.url + path, params=query, data=data, headers=headers) as answer,
        ):
            text = b""
            async for line in answer.content:
                text += line
                if b'"SYNCED"' in line:
                    break
            return Answer(answer.status, text)

    async def add_user(self, name: str, memberships: dict[str, Policy | str], *, active: bool = True) -> str:
        """A user's token."""
        await self.commit(new_resource("User", name, ev.UserApplied(spec=user_spec(memberships, active=active))))
        return await _token(self, TokenSpec(user=name))

    async def commit(self, *changes: Change) -> None:
        for change in changes:
            await self.plane.commands.run(lambda change=change: [change], actor=ACTOR)  # type: ignore[misc]


@asynccontextmanager
async def a_world(limits: DoorLimits = NO_LIMITS, *, provider: Provider | None = None) -> AsyncIterator[World]:
    kv, keys, clock = MemoryKV(), Keys(b"/t/"), Clock()
    credentials = Credentials(
        kv, keys=keys, cluster_key=ClusterKey.generate(), clock=clock, replica="r", hosts=["localhost"]
    )
    await credentials.load()
    plane = ControlPlane(
        kv=kv,
        keys=keys,
        replica="r",
        address="http://127.0.0.1",
        clock=clock,
        credentials=credentials,
        provider=provider,
        cluster_key=ClusterKey.generate() if provider is not None else None,
    )
    async with plane.store:
        following = asyncio.create_task(plane.follower.run())
        await plane.view.wait_for(0)
        gateway = Gateway(
            services=servicers(plane),
            authenticate=plane.authenticator.user,
            recognize=plane.authenticator.recognize,
            authorize=plane.authorizer.check_of,
            redeem=plane.tickets.redeem,
            health=plane.health,
            registry=CollectorRegistry(),
            title="PWM",
            version="0",
            door=Doorkeeper(limits, journal=plane.audit, unlimited=plane.authorizer.runs_the_cluster),
        )
        port = await gateway.start("127.0.0.1", 0)
        try:
            async with aiohttp.ClientSession() as session:
                world = World(plane, session, f"http://127.0.0.1:{port}", {})
                await _populate(world)
                yield world
        finally:
            await gateway.stop(0.1)
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await plane.kv.close()


async def _populate(world: World) -> None:
    roles = {"everything": EVERYTHING, "watcher": {"Workload": ["get"]}, HIDDEN["role"]: {"Workload": ["get"]}}
    await world.commit(
        *(new_resource("Zone", name, ev.ZoneApplied()) for name in ("default", "spare-zone")),
        *(
            new_resource("Group", name, ev.GroupApplied())
            for name in (OWN, OTHER, "admin", "pwm.resource", "spare-group")
        ),
        *(
            new_resource("Role", name, ev.RoleApplied(spec=identity.RoleSpec(permission=_verbs(policy))))
            for name, policy in roles.items()
        ),
        new_resource("ResourceCredit", "A100", ev.ResourceCreditApplied()),
        new_resource("Storage", "nas", ev.StorageApplied()),
        new_resource("Node", "n1", _joined()),
        *_group(OWN, "ownwkl", "ownvol", "ownsec", gpu="GPU-0"),
        *_group(OTHER, HIDDEN["workload"], HIDDEN["volume"], HIDDEN["secret"], gpu="GPU-1"),
        new_resource("Volume", "dataset", ev.VolumeApplied(), group="pwm.resource"),
    )
    for caller, memberships in {**CALLERS, "inactive": CALLERS["admin"], HIDDEN["user"]: {OTHER: EVERYTHING}}.items():
        world.tokens[caller] = await world.add_user(caller, memberships, active=caller != "inactive")
    world.tokens |= {
        "anonymous": "",
        "invented": new_token(),
        "revoked": await _token(world, TokenSpec(user="admin", revoked=True)),
        "expired": await _token(world, TokenSpec(user="admin", expires_at={"seconds": 1})),
        "node": await _token(world, TokenSpec(node=ALL)),
    }


def new_resource(kind: str, name: str, payload: Any, *, group: str = "") -> Change:
    return Change(kind, f"uid-{zlib.crc32(f'{kind}/{group}/{name}'.encode()):08x}", name, group, None, (payload,))


def _group(group: str, workload: str, volume: str, secret: str, *, gpu: str) -> list[Change]:
    """A workload with a container that holds a GPU, a volume and a secret."""
    made = new_resource("Workload", workload, ev.WorkloadApplied(generation=1, first_attempt=1), group=group)
    placed = ev.ContainerPlaced(
        spec=ContainerSpec(
            workload=workload, workload_uid=made.uid, replica=0, attempt=1, generation=1, node="n1", gpu_uuids=[gpu]
        )
    )
    running = ev.ContainerReported(phase=ContainerStatus.RUNNING)
    container = Change("Container", f"{made.uid}.0.1", f"{workload}.0.1", group, None, (placed, running))
    return [
        made,
        container,
        new_resource("Volume", volume, ev.VolumeApplied(), group=group),
        new_resource("Secret", secret, ev.SecretApplied(keys=["password"]), group=group),
    ]


def _joined() -> ev.NodeJoined:
    inventory = Inventory(cpu_count=8, memory_bytes=1 << 34)
    for index in range(3):
        inventory.gpus.add(uuid=f"GPU-{index}", index=index, product_name="A100", healthy=True)
    return ev.NodeJoined(inventory=inventory)


def _verbs(policy: Policy) -> dict[str, identity.Verbs]:
    return {kind: identity.Verbs(verbs=verbs) for kind, verbs in policy.items()}


def user_spec(memberships: dict[str, Policy | str], *, active: bool = True) -> identity.UserSpec:
    spec = identity.UserSpec(active=active)
    for group, policy in memberships.items():
        if isinstance(policy, str):
            spec.groups.add(name=group, role=policy)
        else:
            spec.groups.add(name=group, policy=_verbs(policy))
    return spec


async def _token(world: World, spec: TokenSpec) -> str:
    token = new_token()
    uid = token_uid(token)
    await world.commit(Change("Token", uid, uid, "", None, (ev.TokenIssued(spec=spec),)))
    return token
