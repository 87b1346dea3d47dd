"""A key-value store in front of another that loses transactions or their answers, as told."""

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from typing import Any

from pwm.controlplane.store import errors
from pwm.controlplane.store.kv import KV, Compare, Delete, Put, Read, TxnResult


class Loss(Enum):
    ANSWER = "applied, but the writer does not learn it"
    REQUEST = "not applied, and the writer cannot know"
    REFUSED = "surely not applied"


class LostAnswers:
    """Passes everything through, but for the next transactions as queued in `losses`.

    `afterwards` is run once, after the next loss and before the writer hears of it.
    """

    def __init__(self, kv: KV) -> None:
        self._kv = kv
        self.losses: deque[Loss] = deque()
        self.afterwards: Callable[[], Awaitable[object]] | None = None
        self.transactions = 0
        self.operations: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kv, name)

    async def txn(
        self,
        compares: Sequence[Compare],
        then: Sequence[Put | Delete],
        otherwise: Sequence[Read] = (),
        *,
        timeout_s: float | None = None,
    ) -> TxnResult:
        self.transactions += 1
        self.operations.append(len(then))
        loss = self.losses.popleft() if self.losses else None
        if loss is Loss.REFUSED:
            raise errors.Unavailable("no member answered")
        if loss is Loss.REQUEST:
            await self._run_afterwards()
            raise errors.Ambiguous("the request was lost")
        result = await self._kv.txn(compares, then, otherwise, timeout_s=timeout_s)
        if loss is Loss.ANSWER:
            await self._run_afterwards()
            raise errors.Ambiguous("the answer was lost")
        return result

    async def _run_afterwards(self) -> None:
        afterwards, self.afterwards = self.afterwards, None
        if afterwards is not None:
            await afterwards()
