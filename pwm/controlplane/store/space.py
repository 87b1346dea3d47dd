"""Keeping etcd's space quota from stopping everything.

When etcd's database reaches its quota it raises an alarm and refuses writes and new leases until somebody
compacts, defragments and lifts the alarm. Since no lease can be granted then, no leader can be elected to do
it: every replica looks by itself, and doing it twice does no harm.
"""

from dataclasses import dataclass

import structlog

from pwm.controlplane.store import errors
from pwm.controlplane.store.kv import KV

DEFAULT_QUOTA_BYTES = 2 * 1024 * 1024 * 1024
"""etcd's own default. etcd does not tell its quota, so another one has to be configured here too."""

WARN_SHARE = 0.7

HISTORY_KEPT_REVISIONS = 1000
"""What followers that are only a moment behind still find after an emergency compaction."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Space:
    """The fullest member's share of its quota, and whether writes are refused."""

    used_bytes: int
    quota_bytes: int
    refusing_writes: bool

    @property
    def scarce(self) -> bool:
        return self.refusing_writes or self.used_bytes >= WARN_SHARE * self.quota_bytes


async def look_after_space(
    kv: KV, *, quota_bytes: int = DEFAULT_QUOTA_BYTES, history_revisions: int = HISTORY_KEPT_REVISIONS
) -> Space:
    """Looks, warns above 70 %, and when writes are refused makes room. Returns how it was found.

    Raises Unavailable when there is nobody to ask.
    """
    status = await kv.status()
    heard = [member for member in status.members if not member.trouble]
    if not heard:
        raise errors.Unavailable(status.members[0].trouble)
    space = Space(max(member.db_bytes for member in heard), quota_bytes, "NOSPACE" in status.alarms)
    if space.refusing_writes:
        log.error("etcd is out of space: compacting and defragmenting", used_bytes=space.used_bytes)
        await kv.compact(max(status.revision - history_revisions, 1))
        await kv.free_space()
    elif space.scarce:
        log.warning("etcd is running out of space", used_bytes=space.used_bytes, quota_bytes=quota_bytes)
    return space
