"""Who somebody is that a provider knows, and the token for a log-in: as decisions.

A provider says in *claims* who has logged in there. One of them, which the admin chooses, says which User that is:

    email      the User whose spec.contact.email it is, if the provider has verified that it is theirs
    any other  the User of that name

An address is the only one that may be believed without knowing the provider: an admin has written it into the User,
and the provider has made sure that mail to it is read by whoever logs in. Names may be anything that people call
themselves at some providers, so an admin has to choose such a claim knowingly. Nobody is made a User by logging in.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pwm.api.v1.events_pb2 import TokenRevoked
from pwm.api.v1.identity_pb2 import Token, TokenSpec, User
from pwm.api.v1.services_pb2 import TokenEntry
from pwm.controlplane.core import tokens
from pwm.controlplane.core.decide import Change, Refusal, change

EMAIL, EMAIL_VERIFIED = "email", "email_verified"
TOKEN_NAME_PREFIX = "oidc-"
# A token's name has 63 characters: the prefix, the host and `-5`.
MAX_HOST_CHARS = 55
# Who logs in more often at one machine while the tokens are good has lost the older ones: the oldest one ends.
MOST_TOKENS_PER_HOST = 5
# Of what a provider says, in an answer to whoever logs in.
MAX_SHOWN_CHARS = 100

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]+")


class NotKnown(Refusal):
    """Nobody here is who the provider says. `user`: who it would be, if that is known."""

    def __init__(self, message: str, *, next_step: str, user: str = "") -> None:
        super().__init__(message, next_step=next_step)
        self.user = user


def whose(claims: Mapping[str, Any], *, claim: str, users: Iterable[User]) -> User:
    """The active User that the claims are of. Raises NotKnown."""
    said = claims.get(claim)
    if not isinstance(said, str) or not said:
        raise NotKnown(
            f"the provider does not say the {claim} of who has logged in",
            next_step="an admin chooses what it says: pwm controller --oidc-claim, --oidc-scope",
        )
    # Only the JSON value true: a text, or nothing at all, may come from anywhere.
    if claim == EMAIL and claims.get(EMAIL_VERIFIED) is not True:
        raise NotKnown(
            f"the provider has not verified that {_shown(said)} is your e-mail address",
            next_step="have it verified there, then log in again",
        )
    found = [user for user in users if _is(user, claim, said)]
    if not found:
        where = "spec.contact.email of your User" if claim == EMAIL else f"a User named after your {claim}"
        raise NotKnown(
            f"no user here has the {'e-mail address' if claim == EMAIL else claim} {_shown(said)}",
            next_step=f"ask an admin for it: {where}",
        )
    if len(found) > 1:
        raise NotKnown(
            f"{len(found)} users here have the e-mail address {_shown(said)}",
            next_step="an admin gives each User an address of its own: spec.contact.email",
        )
    user = found[0]
    if user.spec.HasField("active") and not user.spec.active:
        raise NotKnown(
            f"user {user.metadata.name} is deactivated",
            next_step="ask an admin; log in again as soon as the user is active",
            user=user.metadata.name,
        )
    return user


def _is(user: User, claim: str, said: str) -> bool:
    if claim == EMAIL:
        return bool(user.spec.contact.email) and _address(user.spec.contact.email) == _address(said)
    return user.metadata.name == said


def _address(text: str) -> str:
    """For comparing. Beyond ASCII, letters that look different have the same lower case: there it must be the same."""
    text = text.strip()
    return text.lower() if text.isascii() else text


def _shown(said: str) -> str:
    text = "".join(c if c.isprintable() else "\ufffd" for c in said[:MAX_SHOWN_CHARS])
    return text if len(said) <= MAX_SHOWN_CHARS else text + "…"


# ---- the token


def token_name(host: str) -> str:
    """What the tokens of a machine are called, up to a number."""
    name = _NOT_IN_NAMES.sub("-", host)[:MAX_HOST_CHARS].strip("_.-")
    return f"{TOKEN_NAME_PREFIX}{name or 'somewhere'}"


def is_of_login(token: Token) -> bool:
    """Whether somebody got it for a log-in at a provider, as far as its name says."""
    return token.metadata.name.startswith(TOKEN_NAME_PREFIX)


def issue(
    user: User, of_user: Sequence[Token], *, uid: str, host: str, spec: TokenSpec, now_ms: int
) -> tuple[Change, ...]:
    """Make a token for a log-in at a machine. `of_user`: all tokens there are in the user's name. Raises Refusal."""
    base = token_name(host)
    names = [base, *(f"{base}-{number}" for number in range(2, MOST_TOKENS_PER_HOST + 1))]
    live = {
        token.metadata.name: token
        for token in of_user
        if tokens.state(token, now_ms) == TokenEntry.LIVE and tokens.speaks_for(token, user)
    }
    free = next((name for name in names if name not in live), "")
    if free:
        return tokens.issue(user, of_user, uid=uid, name=free, spec=spec, now_ms=now_ms)
    oldest = min((live[name] for name in names), key=lambda token: token.metadata.created_at.ToNanoseconds())
    others = [token for token in of_user if token is not oldest]
    made = tokens.issue(user, others, uid=uid, name=oldest.metadata.name, spec=spec, now_ms=now_ms)
    return change(oldest, TokenRevoked()), *made
