"""Puts into the log that somebody was not told something: a notice that nothing has taken for a day.

The event is one of what the notice was about, as far as that is still there, else of the user who was to be told. It
says by which way, and nothing of where to: more people see it than may see the address.
"""

import asyncio

import structlog

from pwm.api.v1 import events_pb2 as ev
from pwm.api.v1.common_pb2 import Actor
from pwm.api.v1.store_pb2 import PendingNotice
from pwm.controlplane.commands import Commands
from pwm.controlplane.core.decide import Change, change
from pwm.controlplane.core.evolve import State
from pwm.controlplane.core.targets import MAIL, sort_of
from pwm.controlplane.errors import ApiError
from pwm.controlplane.store.commits import Guard
from pwm.controlplane.view import View

log = structlog.get_logger(__name__)

ACTOR = Actor(type=Actor.CONTROLLER, name="notices")
RETRY_DELAY_S = 1.0
# A store that is away comes back; what else may be wrong does not keep other notices waiting.
TRIES = 30


class LostNotices:
    def __init__(self, *, view: View, commands: Commands, fence: Guard) -> None:
        self._view = view
        self._commands = commands
        self._fence = fence

    async def note(self, letter: PendingNotice, why: str) -> None:
        """Raises FenceLost when another replica leads."""
        for _ in range(TRIES):
            try:
                await self._commands.run(lambda: self._decide(letter, why), actor=ACTOR, guards=(self._fence,))
                return
            except ApiError as error:
                log.warning("the end of a notice is noted later", why=error.message)
                await asyncio.sleep(RETRY_DELAY_S)

    def _decide(self, letter: PendingNotice, why: str) -> list[Change]:
        state = self._about(letter)
        if state is None:
            return []
        lost = ev.NoticeGivenUp(
            kind=letter.kind,
            user=letter.user,
            to=sort_of(letter.address),
            attempts=letter.attempts + 1,
            why=why.replace(letter.address.removeprefix(MAIL), "…"),
        )
        return [change(state, lost)]

    def _about(self, letter: PendingNotice) -> State | None:
        """What it was about; the user it was for when that is gone, though another one may have its name now."""
        about: State | None = self._view.by_name(letter.about_kind, letter.about_name, group=letter.about_group)
        if about is not None and about.metadata.created_at.ToNanoseconds() <= letter.time.ToNanoseconds():
            return about
        user: State | None = self._view.by_name("User", letter.user)
        return user
