"""The cluster leader's chores: retention of the log and of the audit. Every replica besides looks after etcd's space by
itself, because no leader can be elected once etcd refuses new leases."""

import asyncio
from contextlib import suppress

import structlog

from pwm.controlplane.clock import Clock
from pwm.controlplane.store import errors as store_errors
from pwm.controlplane.store.commits import Guard
from pwm.controlplane.store.guarded import GuardedKV
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.kv import KV, Delete, Put
from pwm.controlplane.store.prepared import guard_compare
from pwm.controlplane.store.retention import DAY_MS, EVENTS_PER_TXN, Retention
from pwm.controlplane.store.space import look_after_space

log = structlog.get_logger(__name__)

# A pass reads every head's version: cheap enough each ten minutes, often enough for a log that fills slowly.
RETENTION_EVERY_S = 600.0
# A guess is looked into within weeks. A cluster of many changes writes some 3 MB a day.
DEFAULT_AUDIT_KEPT_MS = 30 * DAY_MS
# Looked at this often, or as soon as something was refused for want of space, but not without a pause in between:
# making room costs etcd a moment in which it does nothing else.
SPACE_EVERY_S = 20.0
SPACE_PAUSE_S = 1.0


async def keep_retention(retention: Retention, *, clock: Clock, fence: Guard) -> None:
    """Until cancelled. Raises FenceLost when another replica leads."""
    while True:
        await asyncio.sleep(RETENTION_EVERY_S)
        try:
            report = await retention.run(now_ms=clock.now_ms(), fence=fence)
            log.info("retention", trimmed=report.trimmed_events, dropped=report.dropped_streams, to=report.compacted_to)
        except store_errors.KVError as error:
            log.warning("retention waits", why=str(error))


async def keep_audit(kv: KV, *, keys: Keys, clock: Clock, fence: Guard, kept_ms: int) -> None:
    """Until cancelled. Raises FenceLost when another replica leads."""
    while True:
        await asyncio.sleep(RETENTION_EVERY_S)
        try:
            await drop_old_audit(kv, keys=keys, fence=fence, before_ms=clock.now_ms() - kept_ms)
        except store_errors.KVError as error:
            log.warning("retention of the audit waits", why=str(error))


async def drop_old_audit(kv: KV, *, keys: Keys, fence: Guard, before_ms: int) -> None:
    """Drops what is older, and says that it did. Raises FenceLost, KVError."""
    until = keys.audit_from(before_ms)
    dropped = 0
    while (oldest := await kv.range(keys.all_audit, until, limit=EVENTS_PER_TXN, keys_only=True)).kvs:
        drop = Delete(keys.all_audit, oldest.kvs[-1].key + b"\0")
        result = await kv.txn([guard_compare(fence)], [Put(keys.audit_kept_since, b"%d" % before_ms), drop])
        if not result.succeeded:
            raise store_errors.FenceLost(fence.key)
        dropped += len(oldest.kvs)
    if dropped:
        log.info("dropped old entries of the audit", before_ms=before_ms, batches=dropped)


async def watch_space(kv: GuardedKV) -> None:
    """Until cancelled."""
    warned = False
    while True:
        kv.no_space.clear()
        try:
            space = await look_after_space(kv)
        except store_errors.StoreError as error:
            log.debug("etcd's space is unknown", why=str(error))
        else:
            if space.scarce and not warned:
                log.warning("etcd runs out of space", used_bytes=space.used_bytes, quota_bytes=space.quota_bytes)
            warned = space.scarce
        await asyncio.sleep(SPACE_PAUSE_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(SPACE_EVERY_S):
                await kv.no_space.wait()
