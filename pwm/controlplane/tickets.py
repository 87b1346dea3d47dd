"""Tickets: what opens one shell, once, within half a minute, for whoever cannot show a token.

A browser's WebSocket carries no Authorization header, and what it does carry, cookies and addresses, is sent along by
any page and written into logs on the way. So a page asks for a ticket first, as it asks for everything else, with its
token, and puts the ticket into the address of the WebSocket. By the time that anybody reads it there, it is worth
nothing.

A ticket is for one workload, and never more than the token that it was given for: that is looked up when it is used,
and again and again while the shell is open. It lies in the store, by its hash and under a lease, so that any replica
can take it; of two that see it at the same time, one does.
"""

import hashlib
import secrets
from dataclasses import dataclass

from pwm.api.v1.services_pb2 import ExecRequest
from pwm.api.v1.store_pb2 import Ticket
from pwm.controlplane.auth import Authenticator, Principal
from pwm.controlplane.errors import ApiError, LoginFailed, refused, unavailable
from pwm.controlplane.store import errors as store_errors
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.kv import KV, Compare, Put, Target

TICKET_PREFIX = "pwmticket_"
LIFETIME_S = 30
ANOTHER = "ask for another one: each opens one shell, within 30 s"


@dataclass(frozen=True, slots=True)
class Admission:
    """Who came with a ticket, and what for."""

    principal: Principal
    _ticket: Ticket
    _authenticator: Authenticator
    _peer: str

    async def again(self) -> Principal:
        """Who it is now. Raises ApiError UNAUTHENTICATED when the token behind it has ended."""
        return await self._authenticator.holder(self._ticket.token, self._peer)

    def check(self, first: ExecRequest) -> None:
        """Raises ApiError unless the shell that is asked for is the one that the ticket is for."""
        group = first.start.group or self.principal.default_group
        if (group, first.start.name) != (self._ticket.group, self._ticket.workload):
            raise refused(f"this ticket is for a shell in {self._ticket.group}/{self._ticket.workload}")


class Tickets:
    def __init__(self, kv: KV, *, keys: Keys, authenticator: Authenticator) -> None:
        self._kv = kv
        self._keys = keys
        self._authenticator = authenticator

    async def issue(self, principal: Principal, *, group: str, workload: str) -> str:
        """A new ticket. Raises ApiError UNAVAILABLE."""
        assert principal.token is not None, "who may open a shell has shown a token"
        secret = TICKET_PREFIX + secrets.token_urlsafe(32)
        ticket = Ticket(token=principal.token.metadata.uid, user=principal.name, group=group, workload=workload)
        try:
            lease = await self._kv.grant_lease(LIFETIME_S)
            await self._kv.put(self._key(secret), ticket.SerializeToString(), lease=lease.id)
        except store_errors.StoreError as error:
            raise _out_of_reach(error) from error
        return secret

    async def redeem(self, secret: str, peer: str) -> Admission:
        """Uses a ticket up. Raises ApiError UNAUTHENTICATED, UNAVAILABLE."""
        key = self._key(secret)
        try:
            page = await self._kv.range(key)
            ticket = Ticket.FromString(page.kvs[0].value) if page.kvs else None
            if ticket is None:
                raise LoginFailed("this ticket is not valid, or not any more", next_step=ANOTHER)
            found = page.kvs[0]
            used = Ticket(used=True)
            used.MergeFrom(ticket)
            first = not ticket.used and await self._kv.txn(
                [Compare(key, Target.MOD, found.mod_revision)],
                [Put(key, used.SerializeToString(), lease=found.lease)],
            )
        except store_errors.StoreError as error:
            raise _out_of_reach(error) from error
        if not first or not first.succeeded:
            raise LoginFailed("this ticket has been used", next_step=ANOTHER, user=ticket.user)
        principal = await self._authenticator.holder(ticket.token, peer)
        return Admission(principal, ticket, self._authenticator, peer)

    def _key(self, secret: str) -> bytes:
        return self._keys.ticket(hashlib.sha256(secret.encode()).hexdigest())


def _out_of_reach(error: store_errors.StoreError) -> ApiError:
    return unavailable(f"tickets cannot be had now: {error}", next_step="try again in a moment")
