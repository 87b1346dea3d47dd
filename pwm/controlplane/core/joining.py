"""Whether a join token lets a node in: as a decision.

A join token is good for one certificate, of one node: the one it names, or if it names none, any that has never joined.
So a token that gets lost, or that its finder uses first, makes at most one node that an admin has not seen before, and
never one in the place of another. Using it revokes it in the very commit that says so: of two that use it at once, at
whatever replicas, one is refused.
"""

from pwm.api.v1.events_pb2 import NodeJoined, TokenRevoked
from pwm.api.v1.identity_pb2 import Token
from pwm.api.v1.node_pb2 import Inventory, Node
from pwm.api.v1.services_pb2 import TokenEntry
from pwm.controlplane.core.authz import ALL
from pwm.controlplane.core.decide import Change, Refusal, change
from pwm.controlplane.core.fields import NAME
from pwm.controlplane.core.tokens import state

MINUTE_MS = 60_000
# A machine that was switched off over the holidays comes back by itself; one that was given away does not for ever.
COMES_BACK_WITHIN_MS = 30 * 24 * 60 * MINUTE_MS
DEFAULT_LIFETIME_MS = 15 * MINUTE_MS
SHORTEST_LIFETIME_MS, LONGEST_LIFETIME_MS = 1_000, 24 * 60 * MINUTE_MS
AGAIN = "an admin makes another with `pwm admin join-token NODE`"


class NotAdmitted(Refusal):
    """Nobody gets a certificate for this token."""


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


def admit(token: Token | None, node_name: str, node: Node | None, *, new_uid: str, now_ms: int) -> tuple[Change, ...]:
    """What uses the token up, and takes the name. `node`: the one of that name, if it is known.

    Raises NotAdmitted, Refusal.
    """
    if token is None or not token.spec.join:
        raise NotAdmitted("this is no join token of this cluster", next_step=AGAIN)
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
    used = change(token, TokenRevoked())
    if node is not None and has_joined(node):
        return (used,)
    uid = node.metadata.uid if node is not None else new_uid
    return used, Change("Node", uid, node_name, "", node, (NodeJoined(inventory=Inventory()),))


def check_return(node_name: str, node: Node | None, *, certified: str, ended_ms: int, now_ms: int) -> None:
    """Whether a node whose certificate has ended gets another one. `certified`: whom it is for. Raises NotAdmitted."""
    if certified != node_name:
        raise NotAdmitted(f"this certificate is not for node {node_name}", next_step=AGAIN)
    if node is None:
        raise NotAdmitted(f"there is no node {node_name} any more", next_step=AGAIN)
    if now_ms - ended_ms > COMES_BACK_WITHIN_MS:
        raise NotAdmitted("this certificate has ended too long ago", next_step=AGAIN)


def has_joined(node: Node) -> bool:
    """An agent has been there; a node that was only applied waits for its first one."""
    return bool(node.status.phase) or bool(node.status.inventory.agent_version)
