"""Forgets tokens that ended long ago, and those whose user is gone: a chore of the cluster's leader."""

import asyncio

import structlog

from pwm.api.v1.common_pb2 import Actor
from pwm.controlplane.clock import Clock
from pwm.controlplane.commands import Commands
from pwm.controlplane.core.tokens import forgotten
from pwm.controlplane.errors import ApiError
from pwm.controlplane.store import errors as store_errors
from pwm.controlplane.store.commits import Guard
from pwm.controlplane.token_uses import TokenUses
from pwm.controlplane.view import View

log = structlog.get_logger(__name__)

ACTOR = Actor(type=Actor.CONTROLLER, name="tokens")
# They have ended long ago: nobody waits for it.
FORGET_EVERY_S = 600.0


async def forget_tokens(*, view: View, commands: Commands, clock: Clock, uses: TokenUses, fence: Guard) -> None:
    """Until cancelled. Raises FenceLost when another replica leads."""
    while True:
        await asyncio.sleep(FORGET_EVERY_S)
        try:
            await forget(view=view, commands=commands, clock=clock, uses=uses, fence=fence)
        except (ApiError, store_errors.KVError) as error:
            log.warning("tokens are forgotten later", why=str(error))


async def forget(*, view: View, commands: Commands, clock: Clock, uses: TokenUses, fence: Guard) -> None:
    """Once. Raises FenceLost, KVError, ApiError."""
    users = {user.metadata.name: user for user in view.all("User")}
    gone = forgotten(view.all("Token"), users, now_ms=clock.now_ms())
    if not gone:
        return
    tokens = [view.get("Token", change.uid) for change in gone]
    await commands.run_in_parts(gone, actor=ACTOR, guards=(fence,))
    await uses.forget(token for token in tokens if token is not None)
    log.info("forgot tokens", count=len(gone))
