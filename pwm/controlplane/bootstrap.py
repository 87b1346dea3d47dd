"""The first things in an empty store: groups, the admin's role and user, the first tokens.

Nobody can log in before somebody exists, so the first controller on an empty store makes these and writes
the two tokens to files that only its user can read. Where there already is an admin nothing is changed;
a token file that has gone missing gets a new token.
"""

import os
from pathlib import Path

import structlog

from pwm.api.v1 import events_pb2 as ev
from pwm.api.v1 import identity_pb2 as identity
from pwm.api.v1.common_pb2 import Actor
from pwm.api.v1.identity_pb2 import TokenSpec
from pwm.controlplane.auth import new_token, token_uid
from pwm.controlplane.clock import Clock
from pwm.controlplane.commands import Commands, NameInUse
from pwm.controlplane.core.authz import ALL
from pwm.controlplane.core.decide import Change, Payload
from pwm.controlplane.view import View

log = structlog.get_logger(__name__)

ACTOR = Actor(type=Actor.CONTROLLER, name="bootstrap")
ADMIN = "admin"
# The group people work in, the admins' own, and the one of shared nodes, storages and data sets.
GROUPS = ("users", "admin", "pwm.resource")


class Bootstrap:
    def __init__(self, *, view: View, commands: Commands, clock: Clock) -> None:
        self._view = view
        self._commands = commands
        self._clock = clock

    async def run(self, *, admin_token_file: Path | None, node_token_file: Path | None) -> None:
        """What a controller does at each start."""
        await self._first_things()
        if admin_token_file is not None:
            await self._token(admin_token_file, self._admin_token())
        if node_token_file is not None:
            await self._token(node_token_file, TokenSpec(node=ALL, description="made at the first start"))

    async def first_admin(self) -> str:
        """The token of the first admin, for whoever made it; empty when there was one already."""
        return await self._issue(self._admin_token()) if await self._first_things() else ""

    def _admin_token(self) -> TokenSpec:
        admin: identity.User | None = self._view.by_name("User", ADMIN)
        uid = admin.metadata.uid if admin is not None else ""
        return TokenSpec(user=ADMIN, user_uid=uid, description="made at the first start")

    async def _first_things(self) -> bool:
        """Whether the first admin was made here and now."""
        everything = identity.Verbs(verbs=[ALL])
        firsts: list[tuple[str, str, Payload]] = [
            ("Zone", "default", ev.ZoneApplied()),
            *(("Group", name, ev.GroupApplied()) for name in GROUPS),
            ("Role", ADMIN, ev.RoleApplied(spec=identity.RoleSpec(permission={ALL: everything}))),
            ("User", ADMIN, ev.UserApplied(spec=_admin())),
        ]
        made = [await self._ensure(kind, name, payload) for kind, name, payload in firsts]
        return made[-1]

    async def _ensure(self, kind: str, name: str, payload: Payload) -> bool:
        """Whether it was made here and now."""
        uid = self._clock.new_id()

        def decide() -> list[Change]:
            if self._view.by_name(kind, name) is not None:
                return []
            return [Change(kind, uid, name, "", None, (payload,))]

        try:
            return bool((await self._commands.run(decide, actor=ACTOR)).changes)
        except NameInUse:
            log.debug("made by another replica", kind=kind, name=name)
            return False

    async def _token(self, file: Path, spec: TokenSpec) -> None:
        if file.exists():
            known = self._view.get("Token", token_uid(file.read_text().strip()))
            if known is not None and not known.spec.revoked:
                return
        write_private(file, await self._issue(spec) + "\n")
        log.info("wrote a new token", file=str(file), user=spec.user, node=spec.node)

    async def _issue(self, spec: TokenSpec) -> str:
        token = new_token()
        uid = token_uid(token)
        await self._commands.run(
            lambda: [Change("Token", uid, uid, "", None, (ev.TokenIssued(spec=spec),))], actor=ACTOR
        )
        return token


def _admin() -> identity.UserSpec:
    spec = identity.UserSpec(active=True)
    spec.groups.add(name="users", role=ADMIN)
    spec.groups.add(name=ALL, role=ADMIN)
    return spec


def write_private(file: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    scratch = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
    scratch.replace(file)
