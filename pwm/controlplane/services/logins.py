"""Logging in at a provider of OpenID Connect: the controller's part of `pwm login --oidc`.

Whoever calls is nobody yet, so the door counts these calls as it counts all without a token, and little is kept for
them: a log-in that has been begun is in the *handle* that its owner keeps, sealed with the cluster key. Any replica
opens it and completes the log-in, also one that was started since; one of another cluster does not.

The provider is asked for each beginning, and for each question whether it was confirmed. So that nobody makes a replica
ask more than a provider would like, beginnings from one address have a rate, and the questions about one log-in the
pause that the provider wants.

Everything that ends without a token is a failed log-in in the audit, with what was wrong. Only a handle that this
cluster has not sealed counts as a guess: people who are not known here, or change their mind, are no danger.
"""

import base64
import binascii
import hashlib
from typing import NoReturn, Protocol

import grpc
import structlog
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError

from pwm.api.v1 import services_pb2 as api
from pwm.api.v1.identity_pb2 import Token, TokenSpec, User
from pwm.api.v1.peer_pb2 import BegunLogin
from pwm.controlplane.auth import Principal, new_token, token_uid
from pwm.controlplane.clock import Clock
from pwm.controlplane.cluster_key import CannotOpen, ClusterKey
from pwm.controlplane.commands import Commands, timestamp
from pwm.controlplane.context import CALL, CallContext
from pwm.controlplane.core import logins, tokens
from pwm.controlplane.core.addresses import neighbourhood
from pwm.controlplane.core.decide import Change, Refusal
from pwm.controlplane.core.door import Door, DoorLimits
from pwm.controlplane.errors import ApiError, LoginFailed, unavailable
from pwm.controlplane.oidc.provider import Begun, LoginOver, NotBelieved, NotYet, Provider, ProviderAway, ProviderUnfit
from pwm.controlplane.view import View

# Says what it is, and what it was sealed for: nothing else that the key has sealed is a handle.
HANDLE_PREFIX = "pwmlogin."
SEALED_FOR = "login/begun"
# A device code has 4,096 characters at most.
MAX_HANDLE_CHARS = 8_192
# Of one address. A course of thirty that logs in at the same time behind one router does.
BEGINNINGS = DoorLimits(requests_per_s=1.0, burst=30, failures=0)
# Log-ins of which it is known here when they were asked about last.
MOST_ASKED = 10_000
# A question on its way may gain so much on the one before it.
EARLY_S = 0.5
CATCH_UP_TIMEOUT_S = 5.0
AGAIN = "pwm login --oidc begins anew"

log = structlog.get_logger(__name__)


class Journal(Protocol):
    """Is told who has logged in."""

    def logged_in(self, visitor: Principal, address: str, what: str) -> None: ...


class LoginService:
    def __init__(
        self,
        *,
        provider: Provider | None,
        key: ClusterKey | None,
        view: View,
        commands: Commands,
        clock: Clock,
        journal: Journal,
    ) -> None:
        """`provider`: None, if there is none; else there is a `key`."""
        self._provider = provider
        self._key = key
        self._view = view
        self._commands = commands
        self._clock = clock
        self._journal = journal
        self._beginnings = Door(BEGINNINGS)
        # By digest of the device code, when the provider was asked last.
        self._asked_s: dict[bytes, float] = {}

    # ---- the rpcs

    async def GetProvider(self, request: api.GetProviderRequest, context: CallContext) -> api.GetProviderResponse:
        return api.GetProviderResponse(issuer=self._provider.settings.issuer if self._provider is not None else "")

    async def BeginLogin(self, request: api.BeginLoginRequest, context: CallContext) -> api.BeginLoginResponse:
        provider, key = self._in_use
        if self._beginnings.knock(neighbourhood(context.peer), self._clock.monotonic_s()):
            raise ApiError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"too many log-ins are begun from {context.peer}",
                next_step="wait a few seconds, then log in again",
            )
        try:
            begun = await provider.begin()
        except (ProviderAway, ProviderUnfit) as error:
            _no_provider(error)
        return api.BeginLoginResponse(
            handle=self._sealed(begun, provider, key),
            user_code=begun.user_code,
            verification_uri=begun.verification_uri,
            verification_uri_complete=begun.verification_uri_complete,
            lifetime=Duration(seconds=begun.lifetime_s),
            interval=Duration(seconds=begun.interval_s),
        )

    async def CompleteLogin(self, request: api.CompleteLoginRequest, context: CallContext) -> api.CompleteLoginResponse:
        provider, key = self._in_use
        begun = self._opened(request.handle, provider, key)
        if self._is_early(begun):
            return api.CompleteLoginResponse(state=api.CompleteLoginResponse.SLOW_DOWN)
        # Before the log-in is used up: who that is would not be known now.
        await self._catch_up()
        try:
            claims = await provider.complete(begun.device_code)
        except NotYet as error:
            states = api.CompleteLoginResponse
            return api.CompleteLoginResponse(state=states.SLOW_DOWN if error.slower else states.PENDING)
        except LoginOver as error:
            raise _failed(str(error), next_step=AGAIN) from error
        except NotBelieved as error:
            log.warning("a provider's ID token is not believed", issuer=begun.issuer, why=str(error))
            raise _failed(
                f"the provider's ID token is not believed: {error}",
                next_step="an admin looks at the provider and at the settings --oidc-... of the controllers",
            ) from error
        except (ProviderAway, ProviderUnfit) as error:
            _no_provider(error)
        return await self._let_in(claims, request, context, provider)

    # ---- a log-in that has been begun

    @property
    def _in_use(self) -> tuple[Provider, ClusterKey]:
        """Raises ApiError FAILED_PRECONDITION."""
        if self._provider is None or self._key is None:
            raise ApiError(
                grpc.StatusCode.FAILED_PRECONDITION,
                "this PWM has no provider to log in at",
                next_step="log in with a token: pwm login; an admin gives controllers a provider with --oidc-issuer",
            )
        return self._provider, self._key

    def _sealed(self, begun: Begun, provider: Provider, key: ClusterKey) -> str:
        content = BegunLogin(
            issuer=provider.settings.issuer,
            client_id=provider.settings.client_id,
            device_code=begun.device_code,
            expires_at=timestamp(self._clock.now_ms() + begun.lifetime_s * 1000),
            interval=Duration(seconds=begun.interval_s),
        )
        sealed = key.encrypt(content.SerializeToString(), SEALED_FOR)
        return HANDLE_PREFIX + base64.urlsafe_b64encode(sealed).decode().rstrip("=")

    def _opened(self, handle: str, provider: Provider, key: ClusterKey) -> BegunLogin:
        """Raises LoginFailed."""
        text = handle.removeprefix(HANDLE_PREFIX)
        try:
            if text == handle or len(handle) > MAX_HANDLE_CHARS:
                raise ValueError("not a handle")
            sealed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
            begun = BegunLogin.FromString(key.decrypt(sealed, SEALED_FOR))
        except (ValueError, binascii.Error, CannotOpen, DecodeError) as error:
            raise LoginFailed(
                "this is no log-in that was begun at this cluster", next_step=AGAIN, what="no log-in of this cluster"
            ) from error
        if (begun.issuer, begun.client_id) != (provider.settings.issuer, provider.settings.client_id):
            raise _failed("this log-in was begun at another provider", next_step=AGAIN)
        if begun.expires_at.ToMilliseconds() <= self._clock.now_ms():
            raise _failed("the code was not confirmed in time", next_step=AGAIN)
        return begun

    def _is_early(self, begun: BegunLogin) -> bool:
        """Whether somebody asks about it sooner than the provider wants to be asked; the question is noted."""
        code, now_s = hashlib.sha256(begun.device_code.encode()).digest(), self._clock.monotonic_s()
        before_s = self._asked_s.get(code)
        if before_s is not None and now_s - before_s < begun.interval.seconds - EARLY_S:
            return True
        if len(self._asked_s) >= MOST_ASKED:
            self._asked_s = dict(list(self._asked_s.items())[MOST_ASKED // 2 :])
        self._asked_s[code] = now_s
        return False

    # ---- its end

    async def _let_in(
        self, claims: dict[str, object], request: api.CompleteLoginRequest, context: CallContext, provider: Provider
    ) -> api.CompleteLoginResponse:
        """A token for whoever the claims are of. Raises ApiError."""
        settings = provider.settings
        secret = new_token()
        uid = token_uid(secret)
        now_ms = self._clock.now_ms()
        spec = TokenSpec(
            description=f"log-in at {settings.issuer}"[: tokens.MAX_DESCRIPTION_CHARS],
            expires_at=timestamp(now_ms + settings.token_life_ms),
        )

        def who() -> User:
            return logins.whose(claims, claim=settings.claim, users=self._view.all("User"))

        def decide() -> tuple[Change, ...]:
            user = who()
            if user.metadata.uid != principal.uid:
                raise Refusal("who this is was changed meanwhile", next_step=AGAIN)
            of_user: list[Token] = [t for t in self._view.all("Token") if t.spec.user == user.metadata.name]
            return logins.issue(user, of_user, uid=uid, host=request.host, spec=spec, now_ms=now_ms)

        try:
            principal = Principal(user=who(), token_id=uid[: tokens.ID_CHARS])
            # From here on it is known who makes this call, and it is their change that is written down.
            CALL.set(CallContext(principal=principal, peer=context.peer, request_id=context.request_id))
            outcome = await self._commands.run(decide, actor=principal.actor)
        except logins.NotKnown as error:
            raise _failed(str(error), next_step=error.next_step, user=error.user) from error
        except Refusal as error:
            raise _failed(str(error), next_step=error.next_step, user=principal.name) from error
        self._journal.logged_in(principal, context.peer, f"at {settings.issuer}")
        log.info("logged in", user=principal.name, address=context.peer, issuer=settings.issuer)
        made: Token | None = self._view.get("Token", uid)
        if made is None:
            raise unavailable("the token was made, but this replica lags behind the store", next_step=AGAIN)
        return api.CompleteLoginResponse(
            state=api.CompleteLoginResponse.DONE,
            token=secret,
            entry=tokens.entry(made, now_ms=now_ms),
            revision=outcome.revision,
        )

    async def _catch_up(self) -> None:
        try:
            await self._view.wait_for(0, timeout_s=CATCH_UP_TIMEOUT_S)
        except TimeoutError as error:
            raise unavailable("this replica reads the log, and knows nobody yet", next_step="try again") from error


def _failed(message: str, *, next_step: str, user: str = "") -> LoginFailed:
    """Not a guess: it is known that this log-in was begun here, and completed by somebody."""
    return LoginFailed(message, next_step=next_step, user=user, what=message, is_guess=False)


def _no_provider(error: ProviderAway | ProviderUnfit) -> NoReturn:
    """Raises what a caller is told."""
    log.warning("the provider to log in at is of no use", why=str(error))
    if isinstance(error, ProviderAway):
        raise unavailable(
            f"the provider to log in at is out of reach: {error}",
            next_step="try again later, or log in with a token: pwm login",
        ) from error
    raise ApiError(
        grpc.StatusCode.FAILED_PRECONDITION,
        f"one cannot log in at the provider: {error}",
        next_step="an admin looks at it, and at the settings --oidc-... of the controllers",
    ) from error
