"""Which provider people log in at, and as which client of it PWM asks there.

Nothing of the provider is asked for here: a controller starts whether it answers or not.
"""

from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from pwm.controlplane.core.logins import EMAIL
from pwm.controlplane.core.tokens import LONGEST_LIFETIME_MS, SHORTEST_LIFETIME_MS

# A working day and a late evening: who works here every day logs in once a day.
DEFAULT_TOKEN_LIFE_MS = 12 * 3_600_000
MAX_URL_CHARS = 2_048
# Scopes that bring the claims that people are known by.
_SCOPE_OF_EMAIL, _SCOPE_OF_OTHERS = "email", "profile"


class BadSettings(ValueError):
    """These settings cannot work. The message is a sentence for the admin."""


@dataclass(frozen=True, slots=True)
class OidcSettings:
    """
    issuer:       the provider's URL, exactly as it calls itself
    client_id:    as what PWM is registered there, for the device flow
    client_secret: "" for a public client
    scopes:       to ask for; none: those that the claim needs
    claim:        which claim says who it is (core/logins.py)
    ca:           authorities to believe instead of the system's, PEM
    token_life_ms: how long a token is good for that somebody gets for a log-in
    """

    issuer: str
    client_id: str
    client_secret: str = field(default="", repr=False)
    scopes: tuple[str, ...] = ()
    claim: str = EMAIL
    ca: Path | None = None
    token_life_ms: int = DEFAULT_TOKEN_LIFE_MS

    def __post_init__(self) -> None:
        """Raises BadSettings."""
        if not is_safe_url(self.issuer) or urlsplit(self.issuer).query:
            raise BadSettings(f"{self.issuer!r} is no issuer: it is https://HOST/..., or http:// on this machine")
        if not self.client_id:
            raise BadSettings("a provider to log in at needs --oidc-client-id")
        if not self.claim:
            raise BadSettings("--oidc-claim names the claim that people are known by")
        if not SHORTEST_LIFETIME_MS <= self.token_life_ms <= LONGEST_LIFETIME_MS:
            raise BadSettings("tokens of a log-in live for 1 second to 3650 days")

    @property
    def scope(self) -> str:
        """As it is asked for."""
        wanted = self.scopes or ("openid", _SCOPE_OF_EMAIL if self.claim == EMAIL else _SCOPE_OF_OTHERS)
        return " ".join(wanted if "openid" in wanted else ("openid", *wanted))

    @property
    def local(self) -> bool:
        """The provider is on this machine, and speaks without TLS."""
        return urlsplit(self.issuer).scheme == "http"


def read_secret(file: Path | None) -> str:
    """Raises BadSettings."""
    if file is None:
        return ""
    try:
        secret = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise BadSettings(f"the secret for the provider cannot be read: {why}: {file}") from error
    if not secret:
        raise BadSettings(f"there is no secret in {file}")
    return secret


def is_safe_url(text: str, *, local: bool = True) -> bool:
    """Whether what is sent there can be read by nobody on the way: with TLS or, if `local`, on this machine."""
    try:
        parts = urlsplit(text)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError:
        return False
    if len(text) > MAX_URL_CHARS or not text.isascii() or not text.isprintable() or " " in text:
        return False
    if not host or parts.username is not None or parts.fragment:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and local and _is_loopback(host))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
