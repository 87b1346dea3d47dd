"""When each token was used last, and from where.

Reads are no events, and a write to the store for each request would cost more than most requests. So a replica
remembers the uses it has seen, to a tenth of a second, and writes one down for each token in an hour at most: the first
at once, so that a new token is soon seen to work. Whoever asks gets the newest of what is written down and what the
replica it asks has seen itself. What other replicas have seen may be an hour old; what a replica that is killed
has not written down yet is lost.

The keys lie beside the log: nothing is decided on them.
"""

import asyncio
from collections.abc import Iterable
from contextlib import aclosing

import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from pwm.api.v1.identity_pb2 import Token
from pwm.api.v1.store_pb2 import TokenUse
from pwm.controlplane.clock import Clock
from pwm.controlplane.store import errors as store_errors
from pwm.controlplane.store.keys import Keys
from pwm.controlplane.store.kv import KV, Delete, Put

# How often a token's use is written down at most: 10,000 tokens that are used all the time are 3 writes a second.
WRITE_EVERY_MS = 3_600_000
# How often it is looked whether there is anything to write.
BEAT_S = 5.0
# etcd takes 128 operations in a transaction.
WRITES_AT_ONCE = 100

log = structlog.get_logger(__name__)


class TokenUses:
    """`run` keeps writing down what was noted."""

    def __init__(self, kv: KV, *, keys: Keys, clock: Clock) -> None:
        self._kv = kv
        self._keys = keys
        self._clock = clock
        # By uid: when, from where, and whose it is; and when that was last written down from here.
        self._seen: dict[str, tuple[int, str, str]] = {}
        self._written_ms: dict[str, int] = {}

    def note(self, uid: str, user: str, address: str, now_ms: int) -> None:
        """A token, which is a user's, has been used."""
        self._seen[uid] = now_ms, address, user

    async def of(self, tokens: Iterable[Token], *, user: str = "") -> dict[str, TokenUse]:
        """The newest known use of each, by uid; `user`: whose tokens they all are, if one's.

        As long as the store is out of reach, what was seen here is all there is.
        """
        written: dict[bytes, TokenUse] = {}
        try:
            async with aclosing(self._kv.pages(self._keys.token_uses(user))) as pages:
                async for page in pages:
                    written.update((kv.key, TokenUse.FromString(kv.value)) for kv in page.kvs)
        except store_errors.StoreError as error:
            log.info("uses of tokens cannot be read now", why=str(error))
        found: dict[str, TokenUse] = {}
        for token in tokens:
            uid = token.metadata.uid
            use, seen = written.get(self._keys.token_use(token.spec.user, uid)), self._seen.get(uid)
            if seen is not None and (use is None or use.time.ToMilliseconds() < seen[0]):
                use = _use(seen[0], seen[1])
            if use is not None:
                found[uid] = use
        return found

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(BEAT_S)
            await self.write_down()

    async def write_down(self) -> None:
        """What has not been written down within the hour. What the store does not take is tried again."""
        now_ms = self._clock.now_ms()
        due = [
            (uid, *seen)
            for uid, seen in self._seen.items()
            if (last := self._written_ms.get(uid)) is None or (seen[0] > last and now_ms - last >= WRITE_EVERY_MS)
        ]
        for first in range(0, len(due), WRITES_AT_ONCE):
            part = due[first : first + WRITES_AT_ONCE]
            puts = [
                Put(self._keys.token_use(user, uid), _use(seen_ms, address).SerializeToString())
                for uid, seen_ms, address, user in part
            ]
            try:
                await self._kv.txn([], puts)
            except store_errors.StoreError as error:
                log.info("uses of tokens are written down later", why=str(error))
                return
            self._written_ms.update((uid, now_ms) for uid, *_ in part)

    async def forget(self, tokens: Iterable[Token]) -> None:
        """Drops what is known of tokens that are gone. Raises StoreError."""
        keys = []
        for token in tokens:
            uid = token.metadata.uid
            keys.append(self._keys.token_use(token.spec.user, uid))
            self._seen.pop(uid, None)
            self._written_ms.pop(uid, None)
        for first in range(0, len(keys), WRITES_AT_ONCE):
            await self._kv.txn([], [Delete(key) for key in keys[first : first + WRITES_AT_ONCE]])


def _use(seen_ms: int, address: str) -> TokenUse:
    time = Timestamp()
    time.FromMilliseconds(seen_ms)
    return TokenUse(time=time, address=address)
