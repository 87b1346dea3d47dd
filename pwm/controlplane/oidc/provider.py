"""A provider of OpenID Connect, as seen by a client of it: the device flow, and what it says about people.

    begin    ──▶ device_authorization_endpoint   a code for the person, and one to ask with
    complete ──▶ token_endpoint                  not yet ... not yet ... an ID token
             ──▶ jwks_uri                        the keys that it is signed with, when they are not known
             ──▶ userinfo_endpoint               claims that are not in it (by the standard they need not be)

Where all of these are, the provider says itself (Discovery); that and its keys are kept for an hour. A key that is not
known is asked for at once: providers change them when they like. Nothing is kept that a log-in hangs on, so what one
replica began another one completes.

RFC 8628 (device flow), OpenID Connect Core 1.0 and Discovery 1.0.
"""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote_plus

from pwm.controlplane.core.logins import EMAIL, EMAIL_VERIFIED
from pwm.controlplane.oidc.id_token import MAX_TOKEN_CHARS, KeyUnknown, NotBelieved, verified
from pwm.controlplane.oidc.settings import OidcSettings, is_safe_url
from pwm.controlplane.oidc.wire import NotForUs, ProviderAway, ProviderError, ProviderUnfit, Wire

DISCOVERY = "/.well-known/openid-configuration"
GRANT = "urn:ietf:params:oauth:grant-type:device_code"
# How long it is believed what the provider says of itself, and which keys it has; and how soon keys are asked for again
# when one comes that is not among them.
KEPT_S = 3_600.0
KEYS_AGAIN_AFTER_S = 1.0
# People who log in at the same moment; more wait for their turn.
MOST_AT_ONCE = 16
# For all that one call needs of the provider, the turn included. A client waits 30 s for an answer.
CALL_LIMIT_S = 15.0
# Codes are good for so long at most, whatever the provider says; and questions are that far apart.
MAX_LIFETIME_S = 1_800
DEFAULT_INTERVAL_S, MAX_INTERVAL_S = 5, 60
MAX_CODE_CHARS, MAX_USER_CODE_CHARS = 4_096, 64
MAX_KEYS = 100
MAX_SAID_CHARS = 200


class NotYet(Exception):
    """It has not been confirmed. `slower`: the provider wants to be asked less often."""

    def __init__(self, *, slower: bool = False) -> None:
        super().__init__("not confirmed yet")
        self.slower = slower


class LoginOver(Exception):
    """Nothing comes of this log-in any more. The message is a sentence for whoever logs in."""


@dataclass(frozen=True, slots=True)
class Begun:
    device_code: str = field(repr=False)
    user_code: str
    verification_uri: str
    verification_uri_complete: str
    lifetime_s: int
    interval_s: int


@dataclass(frozen=True, slots=True)
class _About:
    """What the provider says of itself."""

    device_endpoint: str
    token_endpoint: str
    keys_url: str
    userinfo_endpoint: str
    # How a client with a secret may show it.
    shows_secret: tuple[str, ...]


class Provider:
    """Use it as a context, in which it has connections. All methods raise ProviderError."""

    def __init__(self, settings: OidcSettings, *, clock_s: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self._clock_s = clock_s
        self._wire = Wire(ca=settings.ca)
        self._turns = asyncio.Semaphore(MOST_AT_ONCE)
        # One asks, the others wait for what it finds.
        self._asking = asyncio.Lock()
        self._about: _About | None = None
        self._about_since_s = 0.0
        self._keys: list[Mapping[str, Any]] = []
        self._keys_since_s = 0.0

    async def __aenter__(self) -> Self:
        """Raises BadSettings."""
        await self._wire.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._wire.__aexit__(kind, error, trace)

    # ---- the flow

    async def begin(self) -> Begun:
        async with self._call():
            about = await self._known()
            form, headers = self._client(about)
            form["scope"] = self.settings.scope
            status, said = await self._wire.post(about.device_endpoint, form, headers)
        if status != 200:
            raise ProviderUnfit(f"the provider refuses to begin a log-in: {_error(said)}")
        return self._begun(said)

    async def complete(self, device_code: str) -> dict[str, Any]:
        """Claims of who has confirmed it. Raises NotYet, LoginOver, NotBelieved."""
        async with self._call():
            about = await self._known()
            # A code is good for one answer: what it takes to read that is got before.
            await self._current_keys(about)
            form, headers = self._client(about)
            form |= {"grant_type": GRANT, "device_code": device_code}
            status, said = await self._wire.post(about.token_endpoint, form, headers)
            if status != 200:
                raise _refused(said)
            claims = await self._believed(about, said.get("id_token"))
            return await self._with_what_is_missing(about, claims, said.get("access_token"))

    @asynccontextmanager
    async def _call(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(CALL_LIMIT_S), self._turns:
                yield
        except TimeoutError as error:
            raise ProviderAway(f"the provider does not answer within {CALL_LIMIT_S:g} s") from error

    def _client(self, about: _About) -> tuple[dict[str, str], dict[str, str]]:
        """Fields and headers that say which client asks."""
        settings = self.settings
        form = {"client_id": settings.client_id}
        if not settings.client_secret:
            return form, {}
        if "client_secret_basic" in about.shows_secret:
            # Each encoded by itself, since either may have a colon in it: RFC 6749, 2.3.1.
            shown = f"{quote_plus(settings.client_id)}:{quote_plus(settings.client_secret)}"
            return form, {"Authorization": "Basic " + base64.b64encode(shown.encode()).decode()}
        return form | {"client_secret": settings.client_secret}, {}

    def _begun(self, said: Mapping[str, Any]) -> Begun:
        # Google's word for it is older than the standard.
        page = said.get("verification_uri") or said.get("verification_url")
        complete = said.get("verification_uri_complete") or ""
        lifetime_s, interval_s = _seconds(said.get("expires_in")), _seconds(said.get("interval", DEFAULT_INTERVAL_S))
        if not (
            _is_text(said.get("device_code"), MAX_CODE_CHARS)
            and _is_text(said.get("user_code"), MAX_USER_CODE_CHARS)
            and self._is_url(page)
            and (not complete or self._is_url(complete))
            and lifetime_s > 0
        ):
            raise ProviderUnfit("the provider begins a log-in with an answer that cannot be used")
        return Begun(
            device_code=said["device_code"],
            user_code=said["user_code"],
            verification_uri=str(page),
            verification_uri_complete=str(complete),
            lifetime_s=min(lifetime_s, MAX_LIFETIME_S),
            interval_s=min(max(1, interval_s), MAX_INTERVAL_S),
        )

    # ---- who it is

    async def _believed(self, about: _About, token: object) -> dict[str, Any]:
        if not isinstance(token, str):
            raise NotBelieved("there is none; the scope openid asks for it")
        try:
            return self._verified(token, await self._current_keys(about))
        except KeyUnknown:
            return self._verified(token, await self._current_keys(about, again=True))

    def _verified(self, token: str, keys: list[Mapping[str, Any]]) -> dict[str, Any]:
        settings = self.settings
        return verified(token, keys, issuer=settings.issuer, client_id=settings.client_id, now_s=time.time())

    async def _with_what_is_missing(
        self, about: _About, claims: dict[str, Any], access_token: object
    ) -> dict[str, Any]:
        """With the claims that a person is known by, which the provider may tell only when asked for them."""
        claim = self.settings.claim
        wanted = {claim, EMAIL_VERIFIED} if claim == EMAIL else {claim}
        if wanted <= claims.keys() or not about.userinfo_endpoint or not _is_text(access_token, MAX_TOKEN_CHARS):
            return claims
        try:
            more = await self._wire.get(about.userinfo_endpoint, token=str(access_token))
        except NotForUs as error:
            # Some take everything back that they gave for a code when it is shown once more.
            raise LoginOver("the provider has taken this log-in back") from error
        if more.get("sub") != claims["sub"]:
            raise NotBelieved("the provider's other answer is about somebody else")
        # All of them from one place: an address and whether it is verified belong together.
        return {**claims, **{name: more.get(name) for name in wanted}} if claim in more else claims

    # ---- what the provider is

    async def _known(self) -> _About:
        async with self._asking:
            if self._about is not None and self._clock_s() - self._about_since_s < KEPT_S:
                return self._about
            try:
                self._about = self._read_about(
                    await self._wire.get(self.settings.issuer.rstrip("/") + DISCOVERY)
                )  # fmt: skip
            except ProviderAway:
                if self._about is None:
                    raise
            self._about_since_s = self._clock_s()
            return self._about

    def _read_about(self, said: Mapping[str, Any]) -> _About:
        issuer = said.get("issuer")
        if issuer != self.settings.issuer:
            raise ProviderUnfit(
                f"the provider calls itself {str(issuer)[:MAX_SAID_CHARS]!r}: --oidc-issuer has to, too"
            )
        places = [said.get(n) for n in ("device_authorization_endpoint", "token_endpoint", "jwks_uri")]
        if places[0] is None:
            raise ProviderUnfit("the provider does not offer to log in with the device flow")
        if not all(map(self._is_url, places)):
            raise ProviderUnfit("the provider names addresses that cannot be used")
        device, token, keys = (str(place) for place in places)
        userinfo = said.get("userinfo_endpoint")
        methods = said.get("token_endpoint_auth_methods_supported")
        return _About(
            device_endpoint=device,
            token_endpoint=token,
            keys_url=keys,
            userinfo_endpoint=str(userinfo) if self._is_url(userinfo) else "",
            shows_secret=tuple(map(str, methods)) if isinstance(methods, list) else ("client_secret_basic",),
        )

    async def _current_keys(self, about: _About, *, again: bool = False) -> list[Mapping[str, Any]]:
        """The provider's keys; `again`: one that is signed with is not among those that are known."""
        async with self._asking:
            age_s = self._clock_s() - self._keys_since_s
            if self._keys and age_s < (KEYS_AGAIN_AFTER_S if again else KEPT_S):
                return self._keys
            found = (await self._wire.get(about.keys_url)).get("keys")
            if not isinstance(found, list) or len(found) > MAX_KEYS:
                raise ProviderUnfit("the provider's keys cannot be read")
            self._keys = [key for key in found if isinstance(key, dict)]
            self._keys_since_s = self._clock_s()
            return self._keys

    def _is_url(self, text: object) -> bool:
        return isinstance(text, str) and is_safe_url(text, local=self.settings.local)


def _refused(said: Mapping[str, Any]) -> Exception:
    """What is raised for an answer of the token endpoint that is no token."""
    match said.get("error"):
        case "authorization_pending":
            return NotYet()
        case "slow_down":
            return NotYet(slower=True)
        case "access_denied":
            return LoginOver("the log-in was refused at the provider")
        case "expired_token":
            return LoginOver("the code was not confirmed in time")
        case "invalid_grant":
            return LoginOver("this log-in has been completed already, or the provider has forgotten it")
    return ProviderUnfit(f"the provider refuses to complete a log-in: {_error(said)}")


def _error(said: Mapping[str, Any]) -> str:
    """Its error in its own words, for the admin."""
    text = " - ".join(str(said[name]) for name in ("error", "error_description") if said.get(name)) or "it says no more"
    return "".join(c if c.isprintable() else "\ufffd" for c in text[:MAX_SAID_CHARS])


def _seconds(value: object) -> int:
    """0 for what is none. Some write numbers as text."""
    try:
        return int(value) if isinstance(value, int | float | str) else 0
    except (ValueError, OverflowError):
        return 0


def _is_text(value: object, most_chars: int) -> bool:
    return isinstance(value, str) and 0 < len(value) <= most_chars and value.isascii() and value.isprintable()


__all__ = ["Begun", "LoginOver", "NotBelieved", "NotYet", "Provider", "ProviderAway", "ProviderError", "ProviderUnfit"]
