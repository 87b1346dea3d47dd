"""Nodes' certificates as the log knows them: none is issued that is not in it, and each is good as long as it says so.

`core.joining` decides, `credentials` signs; here the two meet, for the API (a node joins, or comes back after a long
time) and for the agents' port (a certificate is renewed, or shown). A certificate is made first and handed out once it
is in the log: one that nobody has heard of would be one that nobody can list.

The answer to a join is good for as long as the token would have been: when it is lost on the way, the agent asks again
with the same key and gets the very same certificate. Whoever has copied the token has another key, and gets nothing.
"""

from collections.abc import Sequence

from pwm import certificates
from pwm.api.v1.agent_pb2 import RenewRequest, RenewResponse
from pwm.api.v1.common_pb2 import Actor
from pwm.api.v1.events_pb2 import NodeAdmitted
from pwm.api.v1.identity_pb2 import Token
from pwm.api.v1.node_pb2 import Node
from pwm.api.v1.services_pb2 import JoinRequest, JoinResponse
from pwm.controlplane.auth import token_uid
from pwm.controlplane.clock import Clock
from pwm.controlplane.commands import Commands
from pwm.controlplane.core import joining
from pwm.controlplane.core.decide import Change
from pwm.controlplane.credentials import Credentials, peer
from pwm.controlplane.store.commits import ReceiptWrite
from pwm.controlplane.store.errors import AlreadyAnswered
from pwm.controlplane.view import View

# Says what it is, and tells a join token from those that people log in with: they are of no use for each other.
JOIN_PREFIX = "pwmjoin."
# Whose the answers to joins are in the store: no user can have such a name.
RECEIPTS_OF = "pwm.join"


class Memberships:
    """What `Join` and `Renew` answer."""

    def __init__(self, *, view: View, commands: Commands, clock: Clock, credentials: Credentials) -> None:
        self._view = view
        self._commands = commands
        self._clock = clock
        self._credentials = credentials

    @property
    def bundle_id(self) -> str:
        """Names the authorities that are trusted now."""
        return self._credentials.bundle_id

    def holder(self, auth_context: dict[str, Sequence[bytes]]) -> certificates.Holder | None:
        """The node at the other end of a call, as its certificate says; None: it is none."""
        holder = peer(auth_context)
        return holder if holder is not None and holder.role == certificates.NODE else None

    async def join(self, request: JoinRequest) -> JoinResponse:
        """The first certificate, for a join token. Raises joining.NotAdmitted, Refusal, BadRequest, ApiError."""
        key = certificates.requested_key(request.signing_request)
        joining.check_node_name(request.node)
        await self._view.wait_for(0)
        uid = token_uid(request.token.removeprefix(JOIN_PREFIX).rpartition(".")[2])
        shown = self._token(uid)
        if shown is None or not shown.spec.join:
            # Nothing is signed, nor looked up in the store, for who has only invented a token.
            joining.check_token(shown, request.node, self._node(request.node), now_ms=self._clock.now_ms())
        membership = self._clock.new_id()
        made = self._credentials.certify_node(request.signing_request, request.node, membership)

        def decide() -> list[Change]:
            node = self._node(request.node)
            token = joining.check_token(self._token(uid), request.node, node, now_ms=self._clock.now_ms())
            admitted = NodeAdmitted(membership=membership, certificate=made.entry)
            return joining.admit(token, request.node, node, new_uid=self._clock.new_id(), admitted=admitted)

        receipt = ReceiptWrite(RECEIPTS_OF, f"{uid}/{request.node}/{certificates.key_digest(key)}", made.chain.encode())
        try:
            await self._commands.run(decide, actor=_actor(request.node), receipt=receipt)
        except AlreadyAnswered as before:
            return self._again(request, uid, before)
        return self._welcome(made.chain)

    def _again(self, request: JoinRequest, uid: str, before: AlreadyAnswered) -> JoinResponse:
        """What was answered to the same key before. Raises joining.NotAdmitted."""
        holder = certificates.holder_of(before.answer)
        assert holder is not None, "made here"
        token, node, now_ms = self._token(uid), self._node(request.node), self._clock.now_ms()
        if not joining.is_repeated(token, node, membership=holder.membership, now_ms=now_ms):
            raise joining.NotAdmitted("this join token has been used already", next_step=joining.AGAIN)
        return self._welcome(before.answer.decode())

    async def come_back(self, request: JoinRequest) -> JoinResponse:
        """A certificate for one that has ended while the node was switched off.

        Raises joining.NotAdmitted, BadRequest, ApiError.
        """
        await self._view.wait_for(0)
        certified, ended_ms = self._credentials.returning(request)
        joining.check_return(
            request.node,
            self._node(request.node),
            certified=certified.name,
            membership=certified.membership,
            ended_ms=ended_ms,
            now_ms=self._clock.now_ms(),
        )
        return self._welcome(await self._certify(request.signing_request, certified))

    async def renew(self, request: RenewRequest, holder: certificates.Holder) -> RenewResponse:
        """The next certificate. Raises joining.NotAdmitted, BadRequest, ApiError."""
        chain = await self._certify(request.signing_request, holder)
        return RenewResponse(certificate=chain, authorities=self._credentials.roots, authorities_id=self.bundle_id)

    async def _certify(self, signing_request: str, holder: certificates.Holder) -> str:
        made = self._credentials.certify_node(signing_request, holder.name, holder.membership)

        def decide() -> list[Change]:
            return joining.certify(
                self._node(holder.name), holder.name, membership=holder.membership, certificate=made.entry
            )

        await self._commands.run(decide, actor=_actor(holder.name))
        return made.chain

    def _welcome(self, chain: str) -> JoinResponse:
        known = self._credentials
        return JoinResponse(certificate=chain, authorities=known.roots, authorities_id=known.bundle_id)

    def _node(self, name: str) -> Node | None:
        return self._view.by_name("Node", name)

    def _token(self, uid: str) -> Token | None:
        return self._view.get("Token", uid)


def _actor(node: str) -> Actor:
    return Actor(type=Actor.NODE, name=node)
