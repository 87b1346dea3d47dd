"""After etcd was restored from an older snapshot: what that means for containers, and an admin's word to go on.

Agents are held meanwhile and have said what they have (`dispatcher`). What of it the restored log does not know was
placed after the snapshot: with no entry in the log there is nobody that it belongs to, so the agents stop and
remove it once the restored log is the truth. Whoever decides is told which ones, and can save what is in them before.
"""

import asyncio

import grpc
import structlog

from pwm.api.v1 import services_pb2 as api
from pwm.api.v1.agent_pb2 import HeldContainer
from pwm.controlplane.errors import ApiError, unavailable
from pwm.controlplane.replicas import Replicas
from pwm.controlplane.store import errors as store_errors
from pwm.controlplane.store.commits import StreamId
from pwm.controlplane.store.eventstore import EventStore
from pwm.controlplane.store.lineage import Lineage
from pwm.controlplane.view import View

log = structlog.get_logger(__name__)

# Containers looked up in the store at the same time.
LOOKUPS_AT_ONCE = 50
# How long followers may take to build their view anew before the answer goes out without it.
REBUILT_WITHIN_S = 10.0


class Restore:
    def __init__(self, *, lineage: Lineage, store: EventStore, view: View, replicas: Replicas) -> None:
        self._lineage = lineage
        self._store = store
        self._view = view
        self._replicas = replicas

    async def accept(self, *, dry_run: bool, by: str) -> api.AcceptRestoreResponse:
        """Raises ApiError FAILED_PRECONDITION when there is nothing to decide, UNAVAILABLE."""
        try:
            await self._lineage.check()
            doubt = self._lineage.doubt
            if doubt is None:
                raise _nothing_to_decide()
            answer = api.AcceptRestoreResponse(doubt=doubt)
            held = {
                node.node: list(node.containers)
                for said in (await self._replicas.describe()).values()
                for node in said.held
            }
            answer.strangers.extend(await self._strangers(held))
            nodes = {node.metadata.name for node in self._view.all("Node")}
            answer.unheard.extend(sorted(nodes - held.keys()))
            if not dry_run:
                answer.incarnation = await self._lineage.accept()
                log.warning("a restored store was accepted", by=by, why=doubt.why, strangers=len(answer.strangers))
                await self._view.wait_for(0, timeout_s=REBUILT_WITHIN_S)
        except store_errors.NotInDoubt as error:
            raise _nothing_to_decide() from error
        except (store_errors.StoreError, TimeoutError) as error:
            raise unavailable(f"etcd cannot be asked now: {error}", next_step="try again in a moment") from error
        return answer

    async def _strangers(self, held: dict[str, list[HeldContainer]]) -> list[str]:
        """Containers that the log in the store does not know, as NODE GROUP/NAME."""
        turns = asyncio.Semaphore(LOOKUPS_AT_ONCE)

        async def unknown(container: HeldContainer) -> bool:
            async with turns:
                head = await self._store.head(StreamId("Container", container.uid))
                return head is None or bool(head.removed_at_ms)

        all_held = [(node, container) for node, containers in held.items() for container in containers]
        verdicts = await asyncio.gather(*(unknown(container) for _, container in all_held))
        return sorted(
            f"{node} {container.group}/{container.name}"
            for (node, container), is_unknown in zip(all_held, verdicts, strict=True)
            if is_unknown
        )


def _nothing_to_decide() -> ApiError:
    return ApiError(
        grpc.StatusCode.FAILED_PRECONDITION,
        "there is nothing to accept: etcd has not gone back",
        next_step="`pwm admin status` shows how everything is",
    )
