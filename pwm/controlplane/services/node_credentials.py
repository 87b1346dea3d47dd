"""What lets agents in: certificates, node tokens and join tokens, listed and ended. `core.joining` decides."""

from pwm.api.v1 import services_pb2 as api
from pwm.api.v1.identity_pb2 import Token
from pwm.api.v1.node_pb2 import Node
from pwm.api.v1.services_pb2 import NodeCredential, TokenEntry
from pwm.controlplane.clock import Clock
from pwm.controlplane.commands import MAX_STREAMS_PER_COMMIT, Commands, Outcome
from pwm.controlplane.context import CallContext
from pwm.controlplane.core import joining
from pwm.controlplane.core.authz import ALL
from pwm.controlplane.core.decide import Change, Refusal
from pwm.controlplane.core.tokens import ID_CHARS, state
from pwm.controlplane.errors import invalid, not_found
from pwm.controlplane.view import View


class NodeCredentials:
    def __init__(self, *, view: View, commands: Commands, clock: Clock) -> None:
        self._view = view
        self._commands = commands
        self._clock = clock

    def listed(self, request: api.ListNodeCredentialsRequest) -> api.ListNodeCredentialsResponse:
        """Those of each node, and the tokens for any node last. Raises ApiError NOT_FOUND."""
        wanted, now_ms = request.node, self._clock.now_ms()
        if wanted and self._view.by_name("Node", wanted) is None and not self._tokens(wanted):
            raise not_found(f"there is no Node {wanted}", next_step="pwm get nodes lists what there is")
        answer = api.ListNodeCredentialsResponse(revision=self._view.revision)
        for node in self._view.all("Node"):
            if wanted in ("", node.metadata.name):
                answer.credentials.extend(_certificates(node, now_ms))
                answer.revoked.extend(_revoked(node))
        answer.credentials.extend(
            _token(token)
            for token in self._view.all("Token")
            if token.spec.node
            and (not wanted or token.spec.node in (ALL, wanted))
            and state(token, now_ms) == TokenEntry.LIVE
        )
        answer.credentials.sort(key=lambda c: (not c.node, c.node, c.kind, c.issued_at.ToNanoseconds()))
        answer.revoked.sort(key=lambda revoked: revoked.node)
        return answer

    def _tokens(self, node: str) -> list[Token]:
        return joining.tokens_of(node, self._view.all("Token"), now_ms=self._clock.now_ms())

    async def revoke(
        self, request: api.RevokeNodeCredentialsRequest, context: CallContext
    ) -> api.RevokeNodeCredentialsResponse:
        if bool(request.node) == bool(request.token):
            raise invalid("say a node, or the id of a token", next_step="`pwm admin node credentials` lists both")
        before: Node | None = self._view.by_name("Node", request.node) if request.node else None
        answer = api.RevokeNodeCredentialsResponse(
            certificates=len(_certificates(before, self._clock.now_ms())) if before is not None else 0
        )

        def decide() -> list[Change]:
            now_ms, tokens = self._clock.now_ms(), self._view.all("Token")
            if request.token:
                return joining.revoke_token(request.token, tokens, now_ms=now_ms)
            node: Node | None = self._view.by_name("Node", request.node)
            return joining.revoke_node(node, request.node, tokens, now_ms=now_ms)[:MAX_STREAMS_PER_COMMIT]

        try:
            outcome = await self._commands.run(decide, actor=context.principal.actor)
            while len(outcome.changes) == MAX_STREAMS_PER_COMMIT:
                answer.tokens += _tokens_in(outcome)
                outcome = await self._commands.run(decide, actor=context.principal.actor)
        except Refusal as error:
            raise not_found(str(error), next_step=error.next_step) from error
        answer.tokens += _tokens_in(outcome)
        answer.revision = outcome.revision
        return answer


def _tokens_in(outcome: Outcome) -> int:
    return sum(change.kind == "Token" for change in outcome.changes)


def _certificates(node: Node, now_ms: int) -> list[NodeCredential]:
    """Those that have not ended."""
    return [
        NodeCredential(
            node=node.metadata.name,
            kind=NodeCredential.CERTIFICATE,
            id=certificate.serial,
            fingerprint=certificate.fingerprint,
            issued_at=certificate.issued_at,
            expires_at=certificate.expires_at,
        )
        for certificate in node.status.credentials.certificates
        if certificate.expires_at.ToMilliseconds() > now_ms
    ]


def _revoked(node: Node) -> list[api.RevokedNode]:
    known = node.status.credentials
    if not known.HasField("revoked_at"):
        return []
    return [api.RevokedNode(node=node.metadata.name, revoked_at=known.revoked_at, revoked_by=known.revoked_by.name)]


def _token(token: Token) -> NodeCredential:
    spec, metadata = token.spec, token.metadata
    return NodeCredential(
        node="" if spec.node == ALL else spec.node,
        kind=NodeCredential.JOIN_TOKEN if spec.join else NodeCredential.NODE_TOKEN,
        id=metadata.uid[:ID_CHARS],
        issued_at=metadata.created_at,
        expires_at=spec.expires_at if spec.HasField("expires_at") else None,
        issued_by=metadata.created_by.name,
    )
