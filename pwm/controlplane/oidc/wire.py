"""One question to a provider, one JSON object back: in bounded time, of bounded size, over a connection that is safe.

A provider is trusted to say who somebody is, and with nothing else. It may be slow, broken or somebody else by now: so
no redirection is followed, nothing is unpacked, no cookie is kept, and what is too long is not read to its end.
"""

import ssl
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import orjson

from pwm.controlplane.oidc.settings import BadSettings
from pwm.version import VERSION

# Answers are a few kilobytes; the keys of a large provider 20.
MAX_ANSWER_BYTES = 256 * 1024
# Of one question, from looking up the name to the last byte. It is asked while somebody waits.
ANSWER_LIMIT_S = 6.0
CONNECT_LIMIT_S = 4.0


class ProviderError(Exception):
    """The provider is of no use now. The message is a sentence."""


class ProviderAway(ProviderError):
    """It does not answer, or says that it cannot: later it may."""


class ProviderUnfit(ProviderError):
    """It answers what cannot be used, or does not want PWM: an admin has to look at it."""


class NotForUs(ProviderUnfit):
    """It does not answer that to who shows this, or no more."""


class Wire:
    """Use it as a context; it keeps connections until its end."""

    def __init__(self, *, ca: Path | None = None, limit_s: float = ANSWER_LIMIT_S) -> None:
        self._ca = ca
        self._limit_s = limit_s
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Raises BadSettings for authorities that cannot be read."""
        try:
            context = ssl.create_default_context(cafile=self._ca)
        except (OSError, ssl.SSLError) as error:
            raise BadSettings(f"the provider's authorities cannot be read: {error.strerror}: {self._ca}") from error
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context, limit=0),
            timeout=aiohttp.ClientTimeout(total=self._limit_s, connect=CONNECT_LIMIT_S),
            headers={"User-Agent": f"pwm/{VERSION}", "Accept": "application/json", "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, url: str, *, token: str = "") -> dict[str, Any]:
        """The object there. Raises ProviderError."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        _, found = await self._ask("GET", url, headers=headers)
        return found

    async def post(self, url: str, form: Mapping[str, str], headers: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
        """Status and object that a form is answered with; a refusal is an answer, too. Raises ProviderError."""
        return await self._ask("POST", url, headers=headers, form=form)

    async def _ask(
        self, method: str, url: str, *, headers: Mapping[str, str], form: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        assert self._session is not None, "it is used as a context"
        try:
            async with self._session.request(
                method, url, data=form, headers=headers, allow_redirects=False
            ) as answer:  # fmt: skip
                if answer.status >= 500 or answer.status == 429:
                    raise ProviderAway(f"{url} answers {answer.status}")
                if method == "GET" and answer.status != 200:
                    raise (NotForUs if answer.status in (401, 403) else ProviderUnfit)(f"{url} answers {answer.status}")
                return answer.status, _object(await _read(answer, url), url)
        except TimeoutError as error:
            raise ProviderAway(f"{url} does not answer within {self._limit_s:g} s") from error
        except aiohttp.ClientSSLError as error:
            raise ProviderAway(f"{url} cannot be believed: {_words(error)}") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ProviderAway(f"{url} does not answer: {_words(error)}") from error


async def _read(answer: aiohttp.ClientResponse, url: str) -> bytes:
    content = b""
    async for part in answer.content.iter_any():
        content += part
        if len(content) > MAX_ANSWER_BYTES:
            raise ProviderUnfit(f"{url} answers more than {MAX_ANSWER_BYTES // 1024} KiB")
    return content


def _object(content: bytes, url: str) -> dict[str, Any]:
    try:
        found = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise ProviderUnfit(f"{url} does not answer JSON") from error
    if not isinstance(found, dict):
        raise ProviderUnfit(f"{url} does not answer a JSON object")
    return found


def _words(error: Exception) -> str:
    """What went wrong; never what was sent."""
    certificate = getattr(error, "certificate_error", None)
    text = getattr(certificate, "verify_message", "") or getattr(error, "strerror", "") or type(error).__name__
    return str(text)[:200]
