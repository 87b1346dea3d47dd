"""Adds to the notice of a crash what the container printed last.

It is read from the container's agent when the notice is about to be sent, and is never kept: the outbox has only whose
output it is. Nobody waits for it for long. An agent that is not connected is not asked, one that does not answer is
given up, and the notice goes out without.

The output is as private as `pwm logs`: it goes to whom may read it there, at that moment. Control characters of
terminals are left out, for it ends in mails and chats.
"""

import asyncio
import re
from collections.abc import Callable, Sequence

import structlog

from pwm.api.v1.agent_pb2 import OpenStream, ReadLogs
from pwm.api.v1.store_pb2 import PendingNotice
from pwm.controlplane.agentlink import AgentLink, AgentRefused, AgentUnreachable
from pwm.controlplane.delivery.post import Sender

log = structlog.get_logger(__name__)

# What is read at a glance, and fits a message of Telegram with the rest of the notice.
MOST_LINES = 20
MOST_BYTES = 2_048
# Twenty lines may be of any length: more than this is not read of them.
READ_BYTES = 1 << 20
# For all letters of a round: an agent answers within milliseconds.
LIMIT_S = 3.0
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class LastWords:
    """A sender that adds them and leaves the rest to another one."""

    def __init__(self, sender: Sender, *, agents: AgentLink, may_read: Callable[[str, str], bool]) -> None:
        """`may_read`: whether a user may read the output of a group's workloads."""
        self._sender = sender
        self._agents = agents
        self._may_read = may_read

    async def deliver(self, letters: Sequence[PendingNotice]) -> list[str]:
        """What went wrong with each; "" where nothing did."""
        whose = [self._source(letter) for letter in letters]
        wanted = set(filter(None, whose))
        said = dict(zip(wanted, await asyncio.gather(*(self._of(*source) for source in wanted)), strict=True))
        words = [said[source] if source else "" for source in whose]
        return await self._sender.deliver([with_words(*pair) for pair in zip(letters, words, strict=True)])

    def _source(self, letter: PendingNotice) -> tuple[str, str] | None:
        """The node and the container whose output goes with the letter; None: none does."""
        if not letter.container_uid or not self._may_read(letter.user, letter.about_group):
            return None
        return letter.node, letter.container_uid

    async def _of(self, node: str, container_uid: str) -> str:
        data = bytearray()
        question = OpenStream(logs=ReadLogs(container_uid=container_uid, tail=MOST_LINES))
        try:
            async with asyncio.timeout(LIMIT_S), self._agents.open(node, question) as stream:
                async for frame in stream:
                    data += frame.log.data
                    if len(data) >= READ_BYTES:
                        break
        except (AgentUnreachable, AgentRefused, TimeoutError) as error:
            log.info("a crash is told without what was printed", node=node, why=str(error) or "no answer")
        return readable(bytes(data))


def readable(data: bytes) -> str:
    """The last lines of some output, as text that is safe to show; nothing when there are none."""
    lines = [_ESCAPES.sub("", line).rstrip() for line in data.decode(errors="replace").splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    kept: list[str] = []
    left = MOST_BYTES
    for line in reversed(lines[-MOST_LINES:]):
        size = len(line.encode()) + 1
        if size > left:
            if not kept:
                kept.append("…" + line.encode()[-left:].decode(errors="ignore"))
            break
        kept.append(line)
        left -= size
    return "\n".join(reversed(kept))


def with_words(letter: PendingNotice, words: str) -> PendingNotice:
    if not words:
        return letter
    whole = PendingNotice()
    whole.CopyFrom(letter)
    indented = "\n".join(f"    {line}".rstrip() for line in words.splitlines())
    whole.text += f"\nIts last lines were:\n\n{indented}\n"
    return whole
