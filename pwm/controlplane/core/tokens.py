"""What a user's token is worth at a moment, and making and ending tokens, as decisions.

A token ends in one of three ways. It expires, which is no event: whoever looks compares the time. It is revoked, which
is one. Or its user goes: a token speaks for the user it was made for, not for whoever has that name later. What has
ended stays on the list for a while, so that its owner sees why a script stopped working; then it is forgotten.

A user's live tokens have different names. The name of one that has ended is free again: the store holds a name until
the token is revoked, and an expired token that still holds it is revoked by the commit that takes it.
"""

import re
from collections.abc import Iterable, Sequence

from pwm.api.v1.events_pb2 import Removed, TokenIssued, TokenRevoked
from pwm.api.v1.identity_pb2 import Token, TokenSpec, User
from pwm.api.v1.services_pb2 import TokenEntry
from pwm.api.v1.store_pb2 import TokenUse
from pwm.controlplane.core.decide import Change, Refusal, change
from pwm.controlplane.core.fields import NAME

DAY_MS = 86_400_000
# Long enough that nobody is asked each month, short enough that a token forgotten in a script dies by itself.
DEFAULT_LIFETIME_MS = 90 * DAY_MS
# A typing mistake below it makes a token that is gone before it can be used; what is longer should say `never`.
SHORTEST_LIFETIME_MS = 1_000
LONGEST_LIFETIME_MS = 3_650 * DAY_MS
# So many machines and scripts no person has; and all of them can be ended in one commit, with the user.
MAX_LIVE_TOKENS = 30
# How long one that has ended stays on the list.
KEPT_AFTER_END_MS = 30 * DAY_MS
# Of the hash: what people see and type. 48 bits, so that the ids of one user never are the same.
ID_CHARS = 12
SHORTEST_ID_CHARS = 8
MAX_DESCRIPTION_CHARS = 200
# A week is time to make another; of one that is made for a day, the last hours.
WARNED_BEFORE_MS, WARNED_PART = 7 * DAY_MS, 10

_ID = re.compile(rf"[0-9a-f]{{{SHORTEST_ID_CHARS},64}}")
_NUMBERED = re.compile(r"token-([1-9][0-9]{0,8})")


class BadToken(Refusal):
    """What is asked for is no name, or no lifetime."""


class NoSuchToken(Refusal):
    """No live token is called that."""


class TooManyTokens(Refusal):
    """The user has as many as one may have."""


def is_named(token: Token) -> bool:
    """Whether it was given a name; else it goes by its hash."""
    return token.metadata.name != token.metadata.uid


def shown_name(token: Token) -> str:
    return token.metadata.name if is_named(token) else token.metadata.uid[:ID_CHARS]


def speaks_for(token: Token, user: User) -> bool:
    """Whether this is the user it was made for, not another one that was given the same name since."""
    return token.spec.user == user.metadata.name and token.spec.user_uid in ("", user.metadata.uid)


def state(token: Token, now_ms: int) -> TokenEntry.State.ValueType:
    """One that was revoked after it had expired, to free its name, has expired."""
    expires_ms = token.spec.expires_at.ToMilliseconds() if token.spec.HasField("expires_at") else None
    until_ms = token.metadata.updated_at.ToMilliseconds() if token.spec.revoked else now_ms
    if expires_ms is not None and expires_ms <= until_ms:
        return TokenEntry.EXPIRED
    return TokenEntry.REVOKED if token.spec.revoked else TokenEntry.LIVE


def warns_from_ms(token: Token) -> int | None:
    """From when on whoever uses it should be told that it ends; None: it does not end."""
    if not token.spec.HasField("expires_at"):
        return None
    end_ms, began_ms = token.spec.expires_at.ToMilliseconds(), token.metadata.created_at.ToMilliseconds()
    return end_ms - min(WARNED_BEFORE_MS, max(0, end_ms - began_ms) // WARNED_PART)


def ended_ms(token: Token, now_ms: int) -> int:
    """When it ended; 0 while it lives."""
    match state(token, now_ms):
        case TokenEntry.EXPIRED:
            return token.spec.expires_at.ToMilliseconds()
        case TokenEntry.REVOKED:
            return token.metadata.updated_at.ToMilliseconds()
    return 0


def entry(token: Token, *, now_ms: int, use: TokenUse | None = None, current: bool = False) -> TokenEntry:
    """What there is to say of it."""
    metadata, spec = token.metadata, token.spec
    made = TokenEntry(
        id=metadata.uid[:ID_CHARS],
        name=shown_name(token),
        user=spec.user,
        description=spec.description,
        state=state(token, now_ms),
        created_at=metadata.created_at,
        created_by=metadata.created_by,
        expires_at=spec.expires_at if spec.HasField("expires_at") else None,
        current=current,
    )
    if made.state == TokenEntry.REVOKED:
        made.revoked_at.CopyFrom(metadata.updated_at)
    if use is not None:
        made.last_used_at.CopyFrom(use.time)
        made.last_used_from = use.address
    return made


# ---- decisions


def check_lifetime(asked_ms: int) -> None:
    """Raises BadToken."""
    if not SHORTEST_LIFETIME_MS <= asked_ms <= LONGEST_LIFETIME_MS:
        raise BadToken(
            "a token lives for 1 second to 3650 days",
            next_step="one that has to live for ever can be told to: --expires never",
        )


def check_name(name: str) -> None:
    """Raises BadToken."""
    if not NAME.fullmatch(name):
        raise BadToken(
            f"{name[:80]!r} is no name for a token",
            next_step="a name has 63 letters, digits and any of _.- at most, and a letter or digit at both ends",
        )


def issue(
    user: User, of_user: Iterable[Token], *, uid: str, name: str, spec: TokenSpec, now_ms: int
) -> tuple[Change, ...]:
    """Make a token. `of_user`: all tokens there are in the user's name. An empty `name` becomes token-1, token-2, ...

    Raises Refusal.
    """
    if user.spec.HasField("active") and not user.spec.active:
        raise Refusal(
            f"user {user.metadata.name} is deactivated", next_step="an admin can set spec.active of the User again"
        )
    tokens = list(of_user)
    alive = [t for t in tokens if state(t, now_ms) == TokenEntry.LIVE and speaks_for(t, user)]
    if len(alive) >= MAX_LIVE_TOKENS:
        raise TooManyTokens(
            f"{user.metadata.name} has {len(alive)} tokens, which is the most one user may have",
            next_step="revoke some of them; pwm token ls shows when each was used last",
        )
    if any(token.metadata.name == name for token in alive):
        raise Refusal(
            f"{user.metadata.name} has a token {name} already",
            next_step=f"choose another name, or end that one first: pwm token revoke {name}",
            conflict=True,
        )
    chosen = name or _next_name(tokens)
    holders = [t for t in tokens if t.metadata.name == chosen and not t.spec.revoked]
    issued = TokenSpec(user=user.metadata.name, user_uid=user.metadata.uid)
    issued.MergeFrom(spec)
    made = Change("Token", uid, chosen, "", None, (TokenIssued(spec=issued),))
    return (*(change(holder, TokenRevoked()) for holder in holders), made)


def _next_name(tokens: Iterable[Token]) -> str:
    numbers = [int(found[1]) for t in tokens if (found := _NUMBERED.fullmatch(t.metadata.name))]
    return f"token-{max(numbers, default=0) + 1}"


def replace(lost: Token, *, uid: str) -> tuple[Change, ...]:
    """Another one in the place of a token that nobody has got to see: of the same name, and to the same end."""
    spec = TokenSpec()
    spec.CopyFrom(lost.spec)
    made = Change("Token", uid, lost.metadata.name, "", None, (TokenIssued(spec=spec),))
    return change(lost, TokenRevoked()), made


def named(wanted: str, of_user: Sequence[Token], *, now_ms: int) -> Token:
    """The live token of that name or id. Raises NoSuchToken."""
    alive = [token for token in of_user if state(token, now_ms) == TokenEntry.LIVE]
    found = [token for token in alive if token.metadata.name == wanted]
    if not found and _ID.fullmatch(wanted):
        found = [token for token in alive if token.metadata.uid.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        raise NoSuchToken(f"{wanted} begins the ids of {len(found)} tokens", next_step="give more of it")
    ended = [t for t in of_user if wanted in (t.metadata.name, t.metadata.uid[:ID_CHARS])]
    if ended:
        word = "expired" if state(ended[-1], now_ms) == TokenEntry.EXPIRED else "been revoked"
        raise NoSuchToken(f"token {wanted} has {word} already", next_step="pwm token ls shows what there is")
    raise NoSuchToken(f"there is no token {wanted[:80]}", next_step="pwm token ls shows what there is")


def end_with(user: User, of_user: Iterable[Token], *, at_most: int, now_ms: int) -> tuple[Change, ...]:
    """The tokens that go when the user goes, living ones first; the rest `forgotten` finds."""
    own = [token for token in of_user if speaks_for(token, user)]
    own.sort(key=lambda token: state(token, now_ms) != TokenEntry.LIVE)
    return tuple(change(token, Removed()) for token in own[:at_most])


def forgotten(tokens: Iterable[Token], users: dict[str, User], *, now_ms: int) -> list[Change]:
    """Tokens that ended long ago, or whose user is gone. `users`: by name."""
    changes = []
    for token in tokens:
        ended = ended_ms(token, now_ms)
        user = users.get(token.spec.user) if token.spec.user else None
        orphaned = bool(token.spec.user) and (user is None or not speaks_for(token, user))
        if orphaned or (ended and now_ms - ended > KEPT_AFTER_END_MS):
            changes.append(change(token, Removed()))
    return changes
