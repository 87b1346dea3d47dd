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
"""etcd's own default, for members that do not tell theirs."""

WARN_SHARE = 0.7

HISTORY_KEPT_REVISIONS = 1000
"""What followers that are only a moment behind still find after an emergency compaction."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Space:
    """How full the fullest member is, and whether writes are refused. `in_use_bytes` of it hold data."""

    used_bytes: int
    in_use_bytes: int
    quota_bytes: int
    refusing_writes: bool

    @property
    def scarce(self) -> bool:
        return self.refusing_writes or self.used_bytes >= WARN_SHARE * self.quota_bytes


async def look_after_space(kv: KV, *, history_revisions: int = HISTORY_KEPT_REVISIONS) -> Space:
    """Looks, and when writes are refused makes room. Returns how it was found. Raises Unavailable."""
    status = await kv.status()
    found = [
        Space(m.db_bytes, m.db_in_use_bytes, m.quota_bytes or DEFAULT_QUOTA_BYTES, "NOSPACE" in status.alarms)
        for m in status.members
        if not m.trouble
    ]
    if not found:
        raise errors.Unavailable(status.members[0].trouble)
    space = max(found, key=lambda member: member.used_bytes / member.quota_bytes)
    if space.refusing_writes:
        log.error(
            "etcd is out of space: compacting and defragmenting",
            used_bytes=space.used_bytes,
            quota_bytes=space.quota_bytes,
        )
        await kv.compact(max(status.revision - history_revisions, 1))
        await kv.free_space()
    return space
