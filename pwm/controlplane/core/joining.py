"""Whether a join token lets a node in, and what its certificates are worth afterwards: as decisions.

A join token is good for one certificate, of one node: the one it names, or if it names none, any that has never joined.
So a token that gets lost, or that its finder uses first, makes at most one node that an admin has not seen before, and
never one in the place of another. Using it revokes it in the very commit that says so: of two that use it at once, at
whatever replicas, one is refused.

Each join begins a *membership*, which is in every certificate that follows from it, and in the node's state. Those of
another membership count for nothing: so a node that joins anew ends what it had before, a node that is deleted takes
its certificates along, and revoking them is one event. There are no lists of revoked certificates that could get lost.
"""

from collections.abc import Iterable

from pwm.api.v1.events_pb2 import NodeAdmitted, NodeCertified, NodeCredentialsRevoked, NodeJoined, TokenRevoked
from pwm.api.v1.identity_pb2 import Token
from pwm.api.v1.node_pb2 import Inventory, Node, NodeCertificate
from pwm.api.v1.services_pb2 import TokenEntry
from pwm.controlplane.core.authz import ALL
from pwm.controlplane.core.decide import Change, Payload, Refusal, change
from pwm.controlplane.core.fields import NAME
from pwm.controlplane.core.tokens import ID_CHARS, SHORTEST_ID_CHARS, state

MINUTE_MS = 60_000
# A machine that was switched off over the holidays comes back by itself; one that was given away does not for ever.
COMES_BACK_WITHIN_MS = 30 * 24 * 60 * MINUTE_MS
DEFAULT_LIFETIME_MS = 15 * MINUTE_MS
SHORTEST_LIFETIME_MS, LONGEST_LIFETIME_MS = 1_000, 24 * 60 * MINUTE_MS
AGAIN = "an admin makes another with `pwm admin join-token NODE`"


class NotAdmitted(Refusal):
    """Nobody gets a certificate for this."""


class Unknown(NotAdmitted):
    """For something that this cluster has never given to anybody."""


def check_lifetime(lifetime_ms: int) -> int:
    """Raises Refusal."""
    if not SHORTEST_LIFETIME_MS <= lifetime_ms <= LONGEST_LIFETIME_MS:
        raise Refusal("a join token lives from 1 s to 24 h")
    return lifetime_ms


def check_node_name(name: str) -> str:
    """Raises Refusal."""
    if not NAME.fullmatch(name) or name.startswith("pwm."):
        raise Refusal(f"{name[:80]!r} is no name for a node", next_step="the host's short name is a good one")
    return name


def check_token(token: Token | None, node_name: str, node: Node | None, *, now_ms: int) -> Token:
    """The token, if it lets that node in. `node`: the one of that name, if it is known. Raises NotAdmitted, Refusal."""
    if token is None or not token.spec.join:
        raise Unknown("this is no join token of this cluster", next_step=AGAIN)
    match state(token, now_ms):
        case TokenEntry.EXPIRED:
            raise NotAdmitted("this join token has expired", next_step=AGAIN)
        case TokenEntry.REVOKED:
            raise NotAdmitted("this join token has been used already", next_step=AGAIN)
    check_node_name(node_name)
    if token.spec.node not in (ALL, node_name):
        raise NotAdmitted(f"this join token is not for node {node_name}", next_step=AGAIN)
    if token.spec.node == ALL and node is not None and has_joined(node):
        raise NotAdmitted(
            f"there is a node {node_name} already, and this join token is for a new one",
            next_step=f"`pwm admin join-token {node_name}` makes one that lets it join anew",
        )
    return token


def admit(token: Token, node_name: str, node: Node | None, *, new_uid: str, admitted: NodeAdmitted) -> list[Change]:
    """What uses a token up that was checked, takes the name, and begins a membership."""
    payloads: list[Payload] = [admitted]
    if node is None or not has_joined(node):
        payloads.insert(0, NodeJoined(inventory=Inventory()))
    uid = node.metadata.uid if node is not None else new_uid
    return [change(token, TokenRevoked()), Change("Node", uid, node_name, "", node, tuple(payloads))]


def is_repeated(token: Token | None, node: Node | None, *, membership: str, now_ms: int) -> bool:
    """Whether a join may be answered again as it was: within the token's time, while nothing has ended since.

    `membership`: the one that it began.
    """
    in_time = token is not None and token.spec.expires_at.ToMilliseconds() > now_ms
    return in_time and is_member(node, membership)


# ---- afterwards


def is_member(node: Node | None, membership: str) -> bool:
    """Whether certificates of this membership are good for the node."""
    return node is not None and bool(membership) and node.status.credentials.membership == membership


def certify(node: Node | None, node_name: str, *, membership: str, certificate: NodeCertificate) -> list[Change]:
    """Another certificate for what the one before has proved. Raises NotAdmitted."""
    if node is None or not is_member(node, membership):
        raise NotAdmitted(why_no_member(node, node_name), next_step=AGAIN)
    return [change(node, NodeCertified(certificate=certificate))]


def why_no_member(node: Node | None, node_name: str) -> str:
    if node is None:
        return f"there is no node {node_name} any more"
    if node.status.credentials.HasField("revoked_at"):
        return f"the certificates of node {node_name} have been revoked"
    return f"node {node_name} has joined anew since this certificate was issued"


# ---- revoking


def tokens_of(node_name: str, tokens: Iterable[Token], *, now_ms: int) -> list[Token]:
    """The live tokens that are for this node by name."""
    return [t for t in tokens if t.spec.node == node_name and state(t, now_ms) == TokenEntry.LIVE]


def revoke_node(node: Node | None, node_name: str, tokens: Iterable[Token], *, now_ms: int) -> list[Change]:
    """End whatever lets somebody speak for the node. Raises Refusal when there is neither a node nor a token for it."""
    ended = [change(token, TokenRevoked()) for token in tokens_of(node_name, tokens, now_ms=now_ms)]
    if node is None and not ended:
        raise Refusal(f"there is no node {node_name}", next_step="pwm get nodes lists what there is")
    if node is not None and not node.status.credentials.HasField("revoked_at"):
        ended.insert(0, change(node, NodeCredentialsRevoked()))
    return ended


def revoke_token(wanted: str, tokens: Iterable[Token], *, now_ms: int) -> list[Change]:
    """End one node token or join token, by its id or the beginning of it. Raises Refusal."""
    found = [
        t
        for t in tokens
        if t.spec.node and state(t, now_ms) == TokenEntry.LIVE and t.metadata.uid.startswith(wanted.lower())
    ]
    if len(wanted) < SHORTEST_ID_CHARS or not found:
        raise Refusal(
            f"there is no live token of a node {wanted[:80]!r}",
            next_step=f"`pwm admin node credentials` lists them; an id has {ID_CHARS} characters",
        )
    if len(found) > 1:
        raise Refusal(f"{wanted} begins the ids of {len(found)} tokens", next_step="give more of it")
    return [change(found[0], TokenRevoked())]


# ---- a node that was away


def check_return(
    node_name: str, node: Node | None, *, certified: str, membership: str, ended_ms: int, now_ms: int
) -> None:
    """Whether a node whose certificate has ended gets another one. Raises NotAdmitted.

    `certified`, `membership`: whom the certificate is for, and by which join.
    """
    if certified != node_name:
        raise NotAdmitted(f"this certificate is not for node {node_name}", next_step=AGAIN)
    if not is_member(node, membership):
        raise NotAdmitted(why_no_member(node, node_name), next_step=AGAIN)
    if now_ms - ended_ms > COMES_BACK_WITHIN_MS:
        raise NotAdmitted("this certificate has ended too long ago", next_step=AGAIN)


def has_joined(node: Node) -> bool:
    """An agent has been there; a node that was only applied waits for its first one."""
    return bool(node.status.phase) or bool(node.status.inventory.agent_version)
