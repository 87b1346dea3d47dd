"""Taking of a total that several share, without taking more than there is.

What a user or a group has is added up from the view (`core/scheduling/accounts`), and a view may be behind. So whoever
places something for an account with totals takes a *turn*: a key per account, which each placing commit compares and
rewrites. The leader that places reads the key, waits until its view holds everything up to that revision, decides, and
commits on condition that the key is as it was. Then every earlier placement of the account was counted, wherever it
was decided; of two that decide at the same moment, for zones of their own or because one does not know yet that
it has been deposed, one commits and the other decides again. That something has ended may come in unseen: it only makes
room. Limits are relied upon, too: the commit holds only if user and group are as they were (`Change.given`).

After an own commit the key is known without reading it, so that as long as one leader places for an account a turn
costs a compare and a put in a transaction that is made anyway, and nothing for those without totals.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import structlog

from pwm.api.v1.common_pb2 import Actor
from pwm.controlplane.commands import MAX_STREAMS_PER_COMMIT, Commands
from pwm.controlplane.core.decide import Change
from pwm.controlplane.core.limits import Account
from pwm.controlplane.store.commits import Guard, Turn
from pwm.controlplane.store.errors import GuardFailed
from pwm.controlplane.view import View

log = structlog.get_logger(__name__)

# Conditions of one commit: heads, users, groups and turns; etcd takes 128, and the fence and the store need some.
MAX_CONDITIONS = 100


@dataclass(frozen=True, slots=True)
class Placed:
    """What became of placements. `contested`: of some accounts another has taken meanwhile; decide again at once."""

    skipped: list[Change]
    contested: bool


class Turns:
    """Of one leader, for one term."""

    def __init__(self, *, commands: Commands, view: View) -> None:
        self._commands = commands
        self._view = view
        self._known: dict[Account, Turn] = {}

    async def learn(self, wanted: Callable[[], Iterable[Account]]) -> None:
        """Until it is known whose turn it is at each account, and the view holds what others have taken before.

        `wanted` is asked again after every wait. Raises ApiError when the store or the view does not answer.
        """
        while missing := set(wanted()) - self._known.keys():
            found = await self._commands.turns(sorted(missing))
            self._known.update(found)

    async def append(
        self,
        placements: Sequence[tuple[Change, frozenset[Account]]],
        *,
        actor: Actor,
        fence: Guard,
    ) -> Placed:
        """Append placements, each with the accounts whose totals it takes of.

        Raises what `Commands.run_in_parts` raises.
        """
        free = [change for change, accounts in placements if not accounts]
        shared = [(change, accounts) for change, accounts in placements if accounts]
        skipped = await self._commands.run_in_parts(free, actor=actor, guards=(fence,)) if free else []
        parts = _parts(shared)
        for number, (part, accounts) in enumerate(parts):
            if not accounts <= self._known.keys():
                return Placed(skipped + [c for later, _ in parts[number:] for c in later], contested=True)
            try:
                skipped += await self._append_part(part, accounts, actor=actor, fence=fence)
            except GuardFailed as error:
                self._known.clear()
                log.info("another has taken of the same total", key=str(error))
                return Placed(skipped + [c for later, _ in parts[number:] for c in later], contested=True)
            except BaseException:
                self._known.clear()
                raise
        return Placed(skipped, contested=False)

    async def _append_part(
        self, part: Sequence[Change], accounts: frozenset[Account], *, actor: Actor, fence: Guard
    ) -> list[Change]:
        turns = tuple(self._known[account] for account in sorted(accounts))
        revision, skipped = await self._commands.run_part(part, actor=actor, guards=(fence,), turns=turns)
        for account in accounts if revision else ():
            if self._view.revision >= revision:
                self._known[account] = Turn(self._known[account].key, revision)
            else:
                del self._known[account]  # learning it again waits for the view
        return skipped


def _parts(placements: Sequence[tuple[Change, frozenset[Account]]]) -> list[tuple[list[Change], frozenset[Account]]]:
    """Commits of as many placements as fit, in their order, with the accounts of each."""
    parts: list[tuple[list[Change], frozenset[Account]]] = []
    given: set[tuple[str, str]] = set()
    for change, accounts in placements:
        relied_on = {(state.kind, state.metadata.uid) for state in change.given}
        if parts:
            part, so_far = parts[-1]
            conditions = len(part) + 1 + len(given | relied_on) + len(so_far | accounts)
            if len(part) < MAX_STREAMS_PER_COMMIT and conditions <= MAX_CONDITIONS:
                part.append(change)
                parts[-1] = part, so_far | accounts
                given |= relied_on
                continue
        parts.append(([change], accounts))
        given = relied_on
    return parts
