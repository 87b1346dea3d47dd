"""Has letters sent by a process of their own (`sender`), and hears what became of each.

A process for some letters at a time: it is started when there are any, does nothing else, and is gone afterwards,
killed if it takes too long. So nothing of what sending takes (half a second of imports, threads that hang, memory)
stays in a controller, and most controllers never send anything.
"""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import structlog

from pwm.api.v1.store_pb2 import PendingNotice
from pwm.controlplane.core.targets import MAIL, Allowed

log = structlog.get_logger(__name__)

# Longer than what a letter's own time limits add up to, on a busy machine.
ROUND_LIMIT_S = 60.0
# The environment says how others are reached; here only the settings count.
_LEFT_OUT = ("_proxy", "_PROXY")
# A chat without a bot.
_CHAT = re.compile(r"tgram://(-?[0-9]+)/?")


@dataclass(frozen=True, slots=True)
class MailServer:
    """The cluster's. `tls`: none, starttls or tls."""

    host: str
    port: int
    sender: str
    user: str = ""
    password: str = field(default="", repr=False)
    tls: str = "starttls"


@dataclass(frozen=True, slots=True)
class NoticeSettings:
    """`networks`: those besides public addresses that notices may go to. `telegram_token`: of the cluster's bot, which
    writes to chats that are given without one: tgram://CHAT."""

    mail: MailServer | None = None
    telegram_token: str = field(default="", repr=False)
    allowed: Allowed = field(default_factory=Allowed)
    networks: tuple[str, ...] = ()

    def refusal(self, address: str) -> str:
        """Why nothing is sent to an address, as a sentence; "" if it is."""
        if address.startswith(MAIL) and self.mail is None:
            return "no mail server is set"
        if _CHAT.fullmatch(address) and not self.telegram_token:
            return "no Telegram bot is set"
        return "" if self.allowed.written(address) else "the cluster does not allow such addresses"

    def whole(self, address: str) -> str:
        """With the cluster's own token, where it needs one."""
        chat = _CHAT.fullmatch(address)
        return f"tgram://{self.telegram_token}/{chat[1]}" if chat is not None else address


@asynccontextmanager
async def _sender() -> AsyncIterator[asyncio.subprocess.Process]:
    """Gone afterwards, whatever happens. Raises OSError when it cannot be started."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pwm.controlplane.delivery.sender",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        env={name: value for name, value in os.environ.items() if not name.endswith(_LEFT_OUT)},
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
        await process.wait()


class Courier:
    def __init__(self, settings: NoticeSettings) -> None:
        self.settings = settings

    async def deliver(self, letters: Sequence[PendingNotice]) -> list[str]:
        """What went wrong with each; "" where nothing did."""
        errors = ["it was not sent in time"] * len(letters)
        try:
            async with asyncio.timeout(ROUND_LIMIT_S), _sender() as process:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(self._task(letters))
                process.stdin.close()
                async for line in process.stdout:
                    said = json.loads(line)
                    errors[said["number"]] = said["error"]
        except (TimeoutError, OSError, ValueError) as error:
            log.warning("notices were not sent", why=str(error) or "the time was up")
        return errors

    def _task(self, letters: Sequence[PendingNotice]) -> bytes:
        mail = self.settings.mail
        return json.dumps(
            {
                "mail": None if mail is None else _plain(mail),
                "networks": self.settings.networks,
                "letters": [_letter(letter, self.settings.whole(letter.address)) for letter in letters],
            }
        ).encode()


def _plain(mail: MailServer) -> dict[str, Any]:
    return {name: getattr(mail, name) for name in ("host", "port", "sender", "user", "password", "tls")}


def _letter(notice: PendingNotice, address: str) -> dict[str, Any]:
    return {
        "id": notice.id,
        "address": address,
        "kind": notice.kind,
        "subject": notice.subject,
        "text": notice.text,
        "time": notice.time.ToJsonString(),
        "about": {"kind": notice.about_kind, "group": notice.about_group, "name": notice.about_name},
        "user": notice.user,
        "reason": notice.reason,
    }
