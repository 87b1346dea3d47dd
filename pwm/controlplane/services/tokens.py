"""Tokens of users: making, listing and ending them.

Everybody looks after their own. Those of others are for who holds the verb `token` on the kind `User`, which is a
strong one: whoever makes a token of somebody can act as them from then on.

The secret is made here, goes into the answer, and is nowhere else: the log has its hash, and a receipt, from which a
repeated request is answered, must not have more. So a repeated request gets a new secret: the token that the
first one made, and that nobody has got to see, is revoked in the same commit.
"""

from collections.abc import Callable, Sequence

import grpc

from pwm.api.v1 import services_pb2 as api
from pwm.api.v1.events_pb2 import TokenRevoked
from pwm.api.v1.identity_pb2 import Token, TokenSpec, User
from pwm.controlplane.auth import Authorizer, new_token, token_uid
from pwm.controlplane.clock import Clock
from pwm.controlplane.commands import Commands, timestamp
from pwm.controlplane.context import CallContext
from pwm.controlplane.core import tokens
from pwm.controlplane.core.decide import Change, Refusal, change
from pwm.controlplane.errors import ApiError, conflict, invalid, not_found, refused, unavailable
from pwm.controlplane.store.commits import ReceiptWrite
from pwm.controlplane.store.errors import AlreadyAnswered
from pwm.controlplane.token_uses import TokenUses
from pwm.controlplane.view import View

# How long a repeated request waits until the view has what the first one wrote.
CATCH_UP_TIMEOUT_S = 5.0


class TokenService:
    def __init__(
        self,
        *,
        view: View,
        commands: Commands,
        authorizer: Authorizer,
        clock: Clock,
        uses: TokenUses,
        stale_since_ms: Callable[[], int],
    ) -> None:
        self._view = view
        self._commands = commands
        self._authorizer = authorizer
        self._clock = clock
        self._uses = uses
        self._stale_since_ms = stale_since_ms

    # ---- the rpcs

    async def CreateToken(self, request: api.CreateTokenRequest, context: CallContext) -> api.CreateTokenResponse:
        user = request.user or context.principal.name
        self._check_whose(user, context)
        secret = new_token()
        uid = token_uid(secret)

        def decide() -> Sequence[Change]:
            return tokens.issue(
                self._user(user), self._of(user), uid=uid, name=request.name, spec=spec, now_ms=self._clock.now_ms()
            )

        key = context.idempotency_key
        try:
            if request.name:
                tokens.check_name(request.name)
            spec = self._spec(request)
            outcome = await self._commands.run(
                decide,
                actor=context.principal.actor,
                receipt=ReceiptWrite(context.principal.name, key, uid.encode()) if key else None,
            )
        except AlreadyAnswered as error:
            return await self._in_place_of(error, context)
        except Refusal as error:
            raise _refused(error) from error
        return self._created(secret, outcome.revision, context)

    async def ListTokens(self, request: api.ListTokensRequest, context: CallContext) -> api.ListTokensResponse:
        user = "" if request.all_users else request.user or context.principal.name
        self._check_whose(user, context)
        if user and user != context.principal.name:
            self._user(user)
        found = [token for token in self._view.all("Token") if user in ("", token.spec.user) and self._is_owned(token)]
        found.sort(key=lambda token: (token.spec.user, token.metadata.created_at.ToNanoseconds()))
        uses = await self._uses.of(found, user=user)
        now_ms = self._clock.now_ms()
        listed = [
            tokens.entry(t, now_ms=now_ms, use=uses.get(t.metadata.uid), current=_is_current(t, context)) for t in found
        ]
        since_ms = self._stale_since_ms()
        return api.ListTokensResponse(
            tokens=listed, revision=self._view.revision, stale_since=timestamp(since_ms) if since_ms else None
        )

    async def RevokeTokens(self, request: api.RevokeTokensRequest, context: CallContext) -> api.RevokeTokensResponse:
        user = request.user or context.principal.name
        self._check_whose(user, context)
        if not 0 < len(request.names) <= tokens.MAX_LIVE_TOKENS:
            raise invalid(f"name 1 to {tokens.MAX_LIVE_TOKENS} tokens", next_step="pwm token ls shows what there is")
        ended: dict[str, Token] = {}

        def decide() -> list[Change]:
            if user != context.principal.name:
                self._user(user)
            now_ms = self._clock.now_ms()
            found = [tokens.named(name, self._of(user), now_ms=now_ms) for name in request.names]
            ended.clear()
            ended.update((token.metadata.uid, token) for token in found)
            return [change(token, TokenRevoked()) for token in ended.values()]

        key = context.idempotency_key
        try:
            outcome = await self._commands.run(
                decide,
                actor=context.principal.actor,
                receipt=ReceiptWrite(context.principal.name, key, b"") if key else None,
                answer=lambda: " ".join(ended).encode(),
            )
            uids, revision = list(ended), outcome.revision
        except AlreadyAnswered as error:
            uids, revision = error.answer.decode(errors="replace").split(), error.revision
            await self._catch_up(revision)
        except Refusal as error:
            raise _refused(error) from error
        now_ms = self._clock.now_ms()
        gone = [token for uid in uids if (token := self._view.get("Token", uid)) is not None]
        listed = [tokens.entry(token, now_ms=now_ms, current=_is_current(token, context)) for token in gone]
        return api.RevokeTokensResponse(tokens=listed, revision=revision)

    # ---- parts of them

    def _check_whose(self, user: str, context: CallContext) -> None:
        """Raises ApiError PERMISSION_DENIED; `user` empty: everybody's."""
        if user != context.principal.name:
            self._authorizer.require(context.principal, verb="token", kind="User")

    def _spec(self, request: api.CreateTokenRequest) -> TokenSpec:
        """Description and end of the token that is asked for. Raises ApiError INVALID_ARGUMENT, Refusal."""
        if request.never_expires and request.HasField("lifetime"):
            raise invalid("a token expires or it does not", next_step="give lifetime or neverExpires, not both")
        if len(request.description) > tokens.MAX_DESCRIPTION_CHARS or not request.description.isprintable():
            raise invalid(f"a description is one line of {tokens.MAX_DESCRIPTION_CHARS} characters at most")
        spec = TokenSpec(description=request.description)
        if not request.never_expires:
            asked_ms = tokens.DEFAULT_LIFETIME_MS
            if request.HasField("lifetime"):
                asked_ms = request.lifetime.seconds * 1000 + request.lifetime.nanos // 1_000_000
            tokens.check_lifetime(asked_ms)
            spec.expires_at.CopyFrom(timestamp(self._clock.now_ms() + asked_ms))
        return spec

    async def _in_place_of(self, answered: AlreadyAnswered, context: CallContext) -> api.CreateTokenResponse:
        """A new token instead of the one whose answer was lost. Only once: it may be in use by then."""
        await self._catch_up(answered.revision)
        secret = new_token()
        uid = token_uid(secret)

        def decide() -> Sequence[Change]:
            lost: Token | None = self._view.get("Token", answered.answer.decode(errors="replace"))
            if lost is None or tokens.ended_ms(lost, self._clock.now_ms()):
                raise Refusal(
                    "this request was answered before, and a token is shown only once",
                    next_step="look with pwm token ls, revoke the one you have not got, and create another",
                    conflict=True,
                )
            self._check_whose(lost.spec.user, context)
            return tokens.replace(lost, uid=uid)

        try:
            outcome = await self._commands.run(decide, actor=context.principal.actor)
        except Refusal as error:
            raise _refused(error) from error
        return self._created(secret, outcome.revision, context)

    def _created(self, secret: str, revision: int, context: CallContext) -> api.CreateTokenResponse:
        token = self._view.get("Token", token_uid(secret))
        if token is None and self._view.revision < revision:
            raise unavailable(
                "the token was made, but this replica lags behind the store",
                next_step="try again, with the same Idempotency-Key",
            )
        if token is None:
            raise conflict(
                "the token was made, and ended at once by somebody else",
                next_step="create another; pwm token ls shows what there is",
            )
        entry = tokens.entry(token, now_ms=self._clock.now_ms())
        return api.CreateTokenResponse(token=secret, entry=entry, revision=revision)

    async def _catch_up(self, revision: int) -> None:
        try:
            await self._view.wait_for(revision, timeout_s=CATCH_UP_TIMEOUT_S)
        except TimeoutError as error:
            raise unavailable("this replica lags behind the store", next_step="try again") from error

    def _is_owned(self, token: Token) -> bool:
        """Whether the user it was made for is there: not an agent's, nor of somebody who had the name before."""
        user: User | None = self._view.by_name("User", token.spec.user) if token.spec.user else None
        return user is not None and tokens.speaks_for(token, user)

    def _of(self, user: str) -> list[Token]:
        """All tokens in a user's name, also those of one who had the name before."""
        return [token for token in self._view.all("Token") if token.spec.user == user]

    def _user(self, name: str) -> User:
        found: User | None = self._view.by_name("User", name)
        if found is None:
            raise not_found(f"there is no User {name}", next_step="pwm get users lists those there are")
        return found


def _is_current(token: Token, context: CallContext) -> bool:
    own = context.principal.token
    return own is not None and own.metadata.uid == token.metadata.uid


def _refused(error: Refusal) -> ApiError:
    match error:
        case tokens.BadToken():
            return invalid(str(error), next_step=error.next_step)
        case tokens.NoSuchToken():
            return not_found(str(error), next_step=error.next_step)
        case tokens.TooManyTokens():
            return ApiError(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error), next_step=error.next_step)
    if error.conflict:
        return ApiError(grpc.StatusCode.ALREADY_EXISTS, str(error), next_step=error.next_step)
    return refused(str(error), next_step=error.next_step)
