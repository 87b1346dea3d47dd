"""Who is calling, and may they: tokens to principals, principals to verbs.

A token is 256 random bits behind a prefix that secret scanners can find; only its hash is stored, as the
uid of a Token stream, so looking one up is one dictionary access and no comparison leaks its timing. Who shows a
token that has ended is told how it ended: it was theirs.
"""

import hashlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import NamedTuple, Protocol, TypeAlias

import grpc

from pwm.api.v1.access_pb2 import Access
from pwm.api.v1.common_pb2 import Actor
from pwm.api.v1.identity_pb2 import Role, Token, User
from pwm.api.v1.services_pb2 import TokenEntry
from pwm.controlplane.clock import Clock
from pwm.controlplane.core import authz
from pwm.controlplane.core.tokens import ID_CHARS, shown_name, speaks_for, state, warns_from_ms
from pwm.controlplane.errors import ApiError, LoginFailed, refused, unavailable
from pwm.controlplane.view import View, ViewChange

TOKEN_PREFIX = "pwm_"
FOR_EVER_MS = 1 << 62
# Tokens of which it is known whom they speak for: more than are in use at once, and no more than a few megabytes.
MOST_KNOWN = 10_000
# Decisions kept of one user: callers choose the names of groups that they ask about.
MOST_DECIDED = 1_000
# A caller waits so long for a log that is being read anew, which takes a second where there are 100,000 streams.
READING_LIMIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller. `user` is None for the anonymous caller of a public rpc, and for nodes."""

    user: User | None
    node: str | None = None
    # What the user showed.
    token: Token | None = None
    # The token's id, as lists of tokens show it.
    token_id: str = ""
    # When the token ends, if it is soon: `2026-11-22T10:00:00Z`.
    ending: str = ""

    @property
    def name(self) -> str:
        return self.user.metadata.name if self.user is not None else self.node or "anonymous"

    @property
    def default_group(self) -> str:
        return authz.default_group(self.user) if self.user is not None else ""

    @property
    def actor(self) -> Actor:
        return Actor(type=Actor.USER, name=self.name)


ANONYMOUS = Principal(user=None)


def new_token() -> str:
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def _invalid(why: str, found: Token | None = None) -> LoginFailed:
    return LoginFailed(
        why,
        next_step="pwm login takes a live one; whoever has one makes another with pwm token create",
        user=found.spec.user if found is not None else "",
        name=shown_name(found) if found is not None else "",
    )


def token_uid(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


class Authenticator:
    """Tokens to principals, against the view."""

    def __init__(
        self, *, view: View, clock: Clock, note_use: Callable[[Token, str], None] = lambda token, peer: None
    ) -> None:
        """`note_use` is told of each request that came with a live token, and from which address."""
        self._view = view
        self._clock = clock
        self._note_use = note_use
        # Whom each token was found to be good for, by its uid, and until when.
        self._known: dict[str, tuple[Principal, int]] = {}

    async def user(self, token: str | None, peer: str) -> Principal:
        """The principal of a user's token; without a token the anonymous one.

        Raises ApiError UNAUTHENTICATED; UNAVAILABLE when that cannot be known at the moment.
        """
        if not token:
            return ANONYMOUS
        if not self._view.synced:
            await self._reading_is_over()
        uid = token_uid(token)
        found: Token | None = self._view.get("Token", uid)
        if found is None or not found.spec.user:
            raise _invalid("this token is not valid")
        principal, until_ms = self._known.get(uid, (ANONYMOUS, 0))
        # Messages of the view are never changed, only replaced: the same ones mean the same.
        if (
            principal.token is not found
            or self._view.by_name("User", principal.name) is not principal.user
            or self._clock.now_ms() >= until_ms
        ):
            principal, until_ms = self._look(found)
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[uid] = principal, until_ms
        self._note_use(found, peer)
        return principal

    def _look(self, found: Token) -> tuple[Principal, int]:
        """Who a user's token speaks for, and until when. Raises ApiError UNAUTHENTICATED."""
        user: User | None = self._view.by_name("User", found.spec.user)
        if user is None or not speaks_for(found, user):
            raise _invalid(f"there is no user {found.spec.user} any more, whose token this was", found)
        match state(found, self._clock.now_ms()):
            case TokenEntry.REVOKED:
                raise _invalid(f"the token {shown_name(found)} of {found.spec.user} has been revoked", found)
            case TokenEntry.EXPIRED:
                when = found.spec.expires_at.ToJsonString()
                raise _invalid(f"the token {shown_name(found)} of {found.spec.user} has expired at {when}", found)
        if user.spec.HasField("active") and not user.spec.active:
            raise LoginFailed(
                f"user {user.metadata.name} is deactivated",
                next_step="ask an admin; the token works again as soon as the user is active",
                user=user.metadata.name,
                name=shown_name(found),
            )
        principal = Principal(user=user, token=found, token_id=found.metadata.uid[:ID_CHARS])
        warned_from_ms = warns_from_ms(found)
        if warned_from_ms is None:
            return principal, FOR_EVER_MS
        if self._clock.now_ms() < warned_from_ms:
            return principal, warned_from_ms
        ends = found.spec.expires_at
        return replace(principal, ending=ends.ToJsonString()), ends.ToMilliseconds()

    async def _reading_is_over(self) -> None:
        """While the log is read anew, nobody is known and everybody must not be sent away for it."""
        try:
            await self._view.wait_for(0, timeout_s=READING_LIMIT_S)
        except TimeoutError as error:
            raise unavailable(
                "this replica reads the log, and does not know yet who may do what", next_step="try again in a moment"
            ) from error

    async def node(self, token: str) -> str | None:
        """The node a node token is good for ("" = any node); None when it is no live node token."""
        found = self._live(token)
        if found is None or not found.spec.node or found.spec.join:
            return None
        return "" if found.spec.node == authz.ALL else found.spec.node

    def _live(self, token: str) -> Token | None:
        found: Token | None = self._view.get("Token", token_uid(token))
        return found if found is not None and state(found, self._clock.now_ms()) == TokenEntry.LIVE else None


class _Rule(NamedTuple):
    """The access option of an rpc, as quick to read as it can be: each call does."""

    public: bool
    authenticated: bool
    verb: str
    kind: str
    kind_of: Callable[[object], str]
    grouped: bool
    group_of: Callable[[object], str]
    name_of: Callable[[object], str]
    filtered: bool


def _rule(access: Access) -> _Rule:
    return _Rule(
        public=access.public,
        authenticated=access.authenticated,
        verb=access.verb,
        kind=access.kind,
        kind_of=_reader(access.kind_field),
        grouped=bool(access.group_field),
        group_of=_reader(access.group_field),
        name_of=_reader(access.name_field),
        filtered=access.filtered,
    )


def _reader(path: str) -> Callable[[object], str]:
    """Reads a field of a request, which may be one of a message in it."""
    return attrgetter(path) if path else lambda request: ""


def _name_in(request: object) -> str:
    name = getattr(request, "name", "")
    return name if isinstance(name, str) else ""


# (verb, kind, group, name)
_Question: TypeAlias = tuple[str, str, str, str]


class Denied(Protocol):
    def __call__(self, principal: Principal, *, verb: str, kind: str, group: str, name: str) -> None: ...


class Authorizer:
    """Whether a principal may call an rpc, and whether it may see or touch an item."""

    def __init__(self, view: View, *, denied: Denied | None = None) -> None:
        """`denied` is told of each refusal."""
        self._view = view
        self._denied = denied
        self.roles: Mapping[str, Role] = _RolesByName(view)
        # What has been decided, by the user's uid, as long as no user and no role changes.
        self._decided: dict[str, dict[_Question, bool]] = {}
        self._rules: dict[str, _Rule] = {}
        self._readings = view.readings
        view.observe(self._forget)

    def _forget(self, change: ViewChange) -> None:
        if change.kind in ("User", "Role"):
            self._decided = {}

    def check_call(self, principal: Principal, access: Access, request: object, method: str) -> None:
        """Raises ApiError unless `access`, which is that of `method`, lets the principal call it with this request."""
        rule = self._rules.get(method)
        if rule is None:
            rule = self._rules[method] = _rule(access)
        if rule.public:
            return
        if principal.user is None:
            raise ApiError(
                grpc.StatusCode.UNAUTHENTICATED,
                "no token was sent",
                next_step="add a profile: pwm profile add NAME --token TOKEN --api-server URL",
            )
        if rule.authenticated:
            return
        if not rule.verb:
            raise refused(f"{method} says of nobody that they may call it")
        kind = rule.kind or canonical_kind(str(rule.kind_of(request)))
        if rule.filtered and _item_by_item(kind, request):
            return
        group = ""
        if rule.grouped:
            group = rule.group_of(request) or principal.default_group
        self.require(
            principal, verb=rule.verb, kind=kind, group=group, name=rule.name_of(request), about=_name_in(request)
        )

    def require(
        self, principal: Principal, *, verb: str, kind: str, group: str = "", name: str = "", about: str = ""
    ) -> None:
        """Raises ApiError PERMISSION_DENIED unless the principal holds the verb.

        `about`: what it is wanted for, to be written down, when that does not matter to the question.
        """
        if not self.may(principal, verb=verb, kind=kind, group=group, name=name):
            if self._denied is not None:
                self._denied(principal, verb=verb, kind=kind, group=group, name=name or about)
            where = f" in group {group}" if group and kind not in authz.CLUSTER_KINDS else ""
            what = f" {name}" if name and kind in authz.OWN_KINDS else ""
            raise refused(
                f"{principal.name} may not {verb} {kind}{what}{where}",
                next_step="pwm whoami shows what you may; ask an admin for the verb"
                + (", or name another group with -g" if where else ""),
            )

    def may(self, principal: Principal, *, verb: str, kind: str, group: str = "", name: str = "") -> bool:
        """Whether the principal holds the verb now, whatever it held when the call or stream began."""
        if principal.user is None:
            return False
        metadata = principal.user.metadata
        decided = self.decided.setdefault(metadata.uid, {})
        question = (verb, kind, group, name if kind in authz.OWN_KINDS else "")
        allowed = decided.get(question)
        if allowed is None:
            user: User | None = self._view.by_name("User", metadata.name)
            # Another one of the same name is somebody else.
            allowed = (
                user is not None
                and user.metadata.uid == metadata.uid
                and authz.may(user, self.roles, verb=verb, kind=kind, group=group, name=name)
            )
            if len(decided) < MOST_DECIDED:
                decided[question] = allowed
        return allowed

    def runs_the_cluster(self, principal: Principal) -> bool:
        """Such a one is not held to a rate: he has drills to run, and could change the limit anyway."""
        return self.may(principal, verb="apply", kind="Cluster")

    @property
    def decided(self) -> "dict[str, dict[_Question, bool]]":
        """By the user's uid. Another dictionary as soon as an answer could be another one."""
        if self._view.readings != self._readings:
            self._readings = self._view.readings
            self._decided = {}
        return self._decided


class _RolesByName(Mapping[str, Role]):
    """The view's roles, looked up without building a dictionary for each call."""

    def __init__(self, view: View) -> None:
        self._view = view

    def __getitem__(self, name: str) -> Role:
        role: Role | None = self._view.by_name("Role", name) if name else None
        if role is None:
            raise KeyError(name)
        return role

    def __iter__(self):  # type: ignore[no-untyped-def]
        return (role.metadata.name for role in self._view.all("Role"))

    def __len__(self) -> int:
        return self._view.count("Role")


KINDS = {
    kind.lower(): kind
    for kind in (
        *("Workload", "Container", "Node", "GPU", "CPU", "Zone", "Group", "User", "Role", "Storage", "Volume"),
        *("Secret", "ResourceCredit", "Bind", "Event"),
    )
}


def canonical_kind(kind: str) -> str:
    """`workload` -> `Workload`. Raises ApiError for a kind that does not exist."""
    found = KINDS.get(kind.lower())
    if found is None:
        raise ApiError(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"there is no kind {kind}",
            next_step="kinds are " + ", ".join(KINDS.values()),
        )
    return found


def _item_by_item(kind: str, request: object) -> bool:
    """Whether the service leaves out what the caller may not see, instead of the whole call being refused."""
    return kind in authz.OWN_KINDS or (kind not in authz.CLUSTER_KINDS and bool(getattr(request, "all_groups", False)))
