"""Who is calling, and may they: tokens to principals, principals to verbs.

A token is 256 random bits behind a prefix that secret scanners can find; only its hash is stored, as the
uid of a Token stream, so looking one up is one dictionary access and no comparison leaks its timing. Who shows a
token that has ended is told how it ended: it was theirs.
"""

import hashlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import attrgetter
from typing import Any, NamedTuple, Protocol, TypeAlias

import grpc

from pwm.api.v1.access_pb2 import Access
from pwm.api.v1.common_pb2 import Actor
from pwm.api.v1.identity_pb2 import Role, Token, User
from pwm.api.v1.services_pb2 import TokenEntry
from pwm.controlplane.clock import Clock
from pwm.controlplane.core import authz
from pwm.controlplane.core.logins import is_of_login
from pwm.controlplane.core.tokens import ID_CHARS, shown_name, speaks_for, state, warns_from_ms
from pwm.controlplane.errors import ApiError, LoginFailed, refused, unavailable
from pwm.controlplane.view import View

TOKEN_PREFIX = "pwm_"
# How clients send a token.
BEARER = "Bearer "
FOR_EVER_MS = 1 << 62
# A token that is used all the time is noted so often.
NOTED_EVERY_MS = 100
# Tokens of which it is known whom they speak for: more than are in use at once, and no more than a few megabytes.
MOST_KNOWN = 10_000
# Decisions kept of one caller: callers choose the names of groups that they ask about.
MOST_DECIDED = 1_000
# A caller waits so long for a log that is being read anew, which takes a second where there are 100,000 streams.
READING_LIMIT_S = 5.0


# (verb, kind, group, name)
_Question: TypeAlias = tuple[str, str, str, str]


class Decided:
    """What has been decided about a caller, as long as nobody's rights change."""

    __slots__ = ("answers", "let_through", "rights")

    def __init__(self) -> None:
        self.begin(-1)

    def begin(self, rights: int) -> None:
        self.rights = rights
        self.answers: dict[_Question, bool] = {}
        # Calls that were allowed: of which rpc, and about what.
        self.let_through: set[tuple[str, object]] = set()


@dataclass(frozen=True)
class Principal:
    """A caller. `user` is None for the anonymous caller of a public rpc, and for nodes.

    One is kept for a token as long as nothing changes about it, so what each request asks is worked out once.
    """

    user: User | None
    node: str | None = None
    # What the user showed.
    token: Token | None = None
    # The token's id, as lists of tokens show it.
    token_id: str = ""
    # When the token ends, if it is soon: `2026-11-22T10:00:00Z`.
    ending: str = ""
    decided: Decided = field(default_factory=Decided, compare=False, repr=False)

    @cached_property
    def name(self) -> str:
        return self.user.metadata.name if self.user is not None else self.node or "anonymous"

    @cached_property
    def uid(self) -> str:
        """Of the user; "" for others."""
        return self.user.metadata.uid if self.user is not None else ""

    @cached_property
    def default_group(self) -> str:
        return authz.default_group(self.user) if self.user is not None else ""

    @property
    def actor(self) -> Actor:
        return Actor(type=Actor.USER, name=self.name)


ANONYMOUS = Principal(user=None)


def new_token() -> str:
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def _invalid(why: str, found: Token | None = None) -> LoginFailed:
    got_by_logging_in = found is not None and is_of_login(found)
    return LoginFailed(
        why,
        next_step="pwm login --oidc gets another"
        if got_by_logging_in
        else "pwm login takes a live one; whoever has one makes another with pwm token create",
        user=found.spec.user if found is not None else "",
        name=shown_name(found) if found is not None else "",
    )


def token_uid(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


@dataclass(slots=True)
class _Known:
    """Whom a token was found to be good for: until when, and as long as nobody's rights change."""

    principal: Principal
    until_ms: int
    rights: int
    # Until when a use from there need not be noted: not after `until_ms`.
    noted_until_ms: int = 0
    used_from: str = ""


# (uid of a token, its user, from which address, when)
NoteUse: TypeAlias = Callable[[str, str, str, int], None]


class Authenticator:
    """Tokens to principals, against the view."""

    def __init__(self, *, view: View, clock: Clock, note_use: NoteUse = lambda uid, user, peer, now_ms: None) -> None:
        """`note_use` is told of each request that came with a live token."""
        self._view = view
        self._clock = clock
        self._note_use = note_use
        # By the header that a token comes in. Hashes of text are keyed, so timing tells nothing of what is kept here.
        self._known: dict[str, _Known] = {}

    def recognize(self, authorization: str, peer: str) -> Principal | None:
        """The principal of a header Authorization whose token was looked at a moment ago and is as good as it was then.

        None: `user` has to look at it, or to note that it is used.
        """
        known = self._known.get(authorization)
        # While the log is read anew rights are not what they were, so nobody is known.
        if (
            known is None
            or known.rights != self._view.rights
            or known.used_from != peer
            or self._clock.now_ms() >= known.noted_until_ms
        ):
            return None
        return known.principal

    async def user(self, token: str | None, peer: str) -> Principal:
        """The principal of a user's token; without a token the anonymous one.

        Raises ApiError UNAUTHENTICATED; UNAVAILABLE when that cannot be known at the moment.
        """
        if not token:
            return ANONYMOUS
        if not self._view.synced:
            await self._reading_is_over()
        header, now_ms = BEARER + token, self._clock.now_ms()
        known = self._known.get(header)
        if known is None or not self._is_current(known, now_ms):
            # What has ended is not kept.
            self._known.pop(header, None)
            known = self._look(token_uid(token), now_ms)
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[header] = known
        self._note(known, peer, now_ms)
        return known.principal

    def _is_current(self, known: _Known, now_ms: int) -> bool:
        return known.rights == self._view.rights and now_ms < known.until_ms

    def _note(self, known: _Known, peer: str, now_ms: int) -> None:
        known.noted_until_ms, known.used_from = min(known.until_ms, now_ms + NOTED_EVERY_MS), peer
        assert known.principal.token is not None
        self._note_use(known.principal.token.metadata.uid, known.principal.name, peer, now_ms)

    async def holder(self, uid: str, peer: str) -> Principal:
        """As `user`, for whoever holds the token of that id, and has shown something that was given for it."""
        if not self._view.synced:
            await self._reading_is_over()
        now_ms = self._clock.now_ms()
        known = self._look(uid, now_ms)
        self._note(known, peer, now_ms)
        return known.principal

    def _look(self, uid: str, now_ms: int) -> _Known:
        """Who a user's token speaks for. Raises ApiError UNAUTHENTICATED."""
        found: Token | None = self._view.get("Token", uid)
        if found is None or not found.spec.user:
            raise _invalid("this token is not valid")
        user: User | None = self._view.by_name("User", found.spec.user)
        if user is None or not speaks_for(found, user):
            raise _invalid(f"there is no user {found.spec.user} any more, whose token this was", found)
        match state(found, now_ms):
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
        warned_from_ms, rights = warns_from_ms(found), self._view.rights
        if warned_from_ms is None:
            return _Known(principal, FOR_EVER_MS, rights)
        if now_ms < warned_from_ms:
            return _Known(principal, warned_from_ms, rights)
        ends = found.spec.expires_at
        return _Known(replace(principal, ending=ends.ToJsonString()), ends.ToMilliseconds(), rights)

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

    authenticated: bool
    verb: str
    kind: str
    kind_of: Callable[[object], str]
    grouped: bool
    group_of: Callable[[object], str]
    name_of: Callable[[object], str]
    filtered: bool
    # All that the answer depends on, for kinds of which nobody has some of his own.
    asked_of: Callable[[object], object]


def _rule(access: Access) -> _Rule:
    return _Rule(
        authenticated=access.authenticated,
        verb=access.verb,
        kind=access.kind,
        kind_of=_reader(access.kind_field),
        grouped=bool(access.group_field),
        group_of=_reader(access.group_field),
        name_of=_reader(access.name_field),
        filtered=access.filtered,
        asked_of=_reader(*filter(None, (access.kind_field, access.group_field))),
    )


def _reader(*paths: str) -> Callable[[object], Any]:
    """Reads fields of a request, which may be of a message in it: the one, or all as a tuple; "" for none."""
    return attrgetter(*paths) if any(paths) else lambda request: ""


def _name_in(request: object) -> str:
    name = getattr(request, "name", "")
    return name if isinstance(name, str) else ""


class Denied(Protocol):
    def __call__(self, principal: Principal, *, verb: str, kind: str, group: str, name: str) -> None: ...


class Authorizer:
    """Whether a principal may call an rpc, and whether it may see or touch an item."""

    def __init__(self, view: View, *, denied: Denied | None = None) -> None:
        """`denied` is told of each refusal."""
        self.view = view
        self._denied = denied
        self.roles: Mapping[str, Role] = _RolesByName(view)

    def check_of(self, access: Access, method: str) -> Callable[[Principal, object], None]:
        """What raises ApiError unless `access`, which is that of `method`, lets a principal call it with a request."""
        rule, view = _rule(access), self.view
        asked_of = rule.asked_of

        def check(principal: Principal, request: object) -> None:
            call, decided = (method, asked_of(request)), principal.decided
            if decided.rights != view.rights or call not in decided.let_through:
                self._check(principal, rule, request, call)

        return check

    def _check(self, principal: Principal, rule: _Rule, request: object, call: tuple[str, object]) -> None:
        if principal.user is None:
            raise ApiError(
                grpc.StatusCode.UNAUTHENTICATED,
                "no token was sent",
                next_step="add a profile: pwm profile add NAME --token TOKEN --api-server URL",
            )
        if rule.authenticated:
            return
        if not rule.verb:
            raise refused(f"{call[0]} says of nobody that they may call it")
        kind = rule.kind or canonical_kind(rule.kind_of(request))
        if rule.filtered and _item_by_item(kind, request):
            return
        group = (rule.group_of(request) or principal.default_group) if rule.grouped else ""
        name = rule.name_of(request)
        if not self.may(principal, rule.verb, kind, group, name):
            about = name or _name_in(request)
            self.require(principal, verb=rule.verb, kind=kind, group=group, name=name, about=about)
        elif kind not in authz.OWN_KINDS and len(principal.decided.let_through) < MOST_DECIDED:
            principal.decided.let_through.add(call)

    def require(
        self, principal: Principal, *, verb: str, kind: str, group: str = "", name: str = "", about: str = ""
    ) -> None:
        """Raises ApiError PERMISSION_DENIED unless the principal holds the verb.

        `about`: what it is wanted for, to be written down, when that does not matter to the question.
        """
        if not self.may(principal, verb, kind, group, name):
            if self._denied is not None:
                self._denied(principal, verb=verb, kind=kind, group=group, name=name or about)
            where = f" in group {group}" if group and kind not in authz.CLUSTER_KINDS else ""
            what = f" {name}" if name and kind in authz.OWN_KINDS else ""
            raise refused(
                f"{principal.name} may not {verb} {kind}{what}{where}",
                next_step="pwm whoami shows what you may; ask an admin for the verb"
                + (", or name another group with -g" if where else ""),
            )

    def may(self, principal: Principal, verb: str, kind: str, group: str = "", name: str = "") -> bool:
        """Whether the principal holds the verb now, whatever it held when the call or stream began."""
        if principal.user is None:
            return False
        decided = principal.decided
        if decided.rights != self.view.rights:
            decided.begin(self.view.rights)
        question = (verb, kind, group, name if kind in authz.OWN_KINDS else "")
        allowed = decided.answers.get(question)
        if allowed is None:
            user: User | None = self.view.by_name("User", principal.name)
            # Another one of the same name is somebody else.
            allowed = (
                user is not None
                and user.metadata.uid == principal.uid
                and authz.may(user, self.roles, verb=verb, kind=kind, group=group, name=name)
            )
            if len(decided.answers) < MOST_DECIDED:
                decided.answers[question] = allowed
        return allowed

    def runs_the_cluster(self, principal: Principal) -> bool:
        """Such a one is not held to a rate: he has drills to run, and could change the limit anyway."""
        return self.may(principal, "apply", "Cluster")


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


_KINDS = (
    *("Workload", "Container", "Node", "GPU", "CPU", "Zone", "Group", "User", "Role", "Storage", "Volume"),
    *("Secret", "ResourceCredit", "Bind", "Event"),
)
# As they are written, and as people write them.
KINDS = {**{kind: kind for kind in _KINDS}, **{kind.lower(): kind for kind in _KINDS}}


def canonical_kind(kind: str) -> str:
    """`workload` -> `Workload`. Raises ApiError for a kind that does not exist."""
    found = KINDS.get(kind) or KINDS.get(kind.lower())
    if found is None:
        raise ApiError(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"there is no kind {kind}",
            next_step="kinds are " + ", ".join(_KINDS),
        )
    return found


def _item_by_item(kind: str, request: object) -> bool:
    """Whether the service leaves out what the caller may not see, instead of the whole call being refused."""
    return kind in authz.OWN_KINDS or (kind not in authz.CLUSTER_KINDS and bool(getattr(request, "all_groups", False)))
