"""How many connections of strangers are kept, and which one goes when there are too many: sums, without a socket.

A connection is a *stranger's* until a valid token came over it. Whoever means well shows one with the first request,
some milliseconds after the connection was made; what stays a stranger's is a browser before a log-in, something that
asks for `/healthz`, or somebody who opens connections and says nothing, to use up what a server has of them.

So there is a limit of each address and one of all. When a connection comes that is too many it is let in, and an older
one goes: the oldest of the same address, or of the address that has most when there are too many of all. Whoever floods
pushes out nobody but himself; others at his address need only be quicker than his next few thousand connections.

After a fail-over many who mean well come at once, and a server that is busy with them is slow itself. So a connection
that has just come, or has sent something that has not been read yet, is *spared*: of one address there may be several
times the limit of these before the oldest goes all the same. The limit of all has no such exceptions.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

# So many of the oldest are looked at for one that is not spared.
LOOKED_AT = 8
# Where all of them are spared, more are let in: as many times the limit of an address.
OVERFULL = 8


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Of connections without a valid token. 0: no limit."""

    per_address: int = 0
    total: int = 0


NO_LIMITS = ConnectionLimits()


def within(limits: ConnectionLimits, room: int) -> ConnectionLimits:
    """The limits where there is room for so many at all."""
    return ConnectionLimits(limits.per_address, min(limits.total, room) if limits.total else 0)


C = TypeVar("C", bound=Hashable)


class Antechamber(Generic[C]):
    """`C`: connections. `spared`: whether one should stay if another can go."""

    def __init__(self, limits: ConnectionLimits, *, spared: Callable[[C], bool] = lambda connection: False) -> None:
        self._limits = limits
        self._spared = spared
        # Of each address, oldest first.
        self._strangers: dict[str, dict[C, None]] = {}
        # Addresses by how many they have, so that the one with most is found at once.
        self._by_count: dict[int, dict[str, None]] = {}
        self._most = 0
        self.count = 0

    def enter(self, address: str, connection: C, *, many: bool = False) -> C | None:
        """A connection comes; the one that has to go for it. `many`: the address speaks for many, as a proxy does."""
        gone = None
        mine = len(self._strangers.get(address, ()))
        if self._limits.per_address and mine >= self._limits.per_address and not many:
            gone = self._choose(address, overfull=mine >= OVERFULL * self._limits.per_address)
        if gone is None and self._limits.total and self.count >= self._limits.total:
            fullest = next(iter(self._by_count[self._most]))
            gone = self._choose(fullest, overfull=True)
        if gone is not None:
            self.leave(*gone)
        self._strangers.setdefault(address, {})[connection] = None
        self.count += 1
        self._moved(address, mine_before=len(self._strangers[address]) - 1)
        return gone[1] if gone is not None else None

    def leave(self, address: str, connection: C) -> None:
        """The connection is a stranger's no more, or is closed. No error when it has left already."""
        mine = self._strangers.get(address)
        if mine is None or connection not in mine:
            return
        del mine[connection]
        self.count -= 1
        self._moved(address, mine_before=len(mine) + 1)
        if not mine:
            del self._strangers[address]

    def _choose(self, address: str, *, overfull: bool) -> tuple[str, C] | None:
        """The oldest of an address that is not spared; `overfull`: if there is none, the oldest."""
        oldest = list(islice(self._strangers[address], LOOKED_AT))
        chosen = next((connection for connection in oldest if not self._spared(connection)), None)
        if chosen is None and overfull:
            chosen = oldest[0]
        return (address, chosen) if chosen is not None else None

    def _moved(self, address: str, *, mine_before: int) -> None:
        mine = len(self._strangers[address])
        if mine_before:
            same = self._by_count[mine_before]
            del same[address]
            if not same:
                del self._by_count[mine_before]
        if mine:
            self._by_count.setdefault(mine, {})[address] = None
        # It moves by one, so this is where the most are now.
        self._most = max(mine, self._most if self._most in self._by_count else mine)
