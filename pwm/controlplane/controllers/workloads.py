"""The zone leader's main loop: workloads get the containers they should have.

It is level-triggered. A change in the view marks its workload; each turn reconciles the marked ones
(`core.reconcile`), appends what they need stopped or forgotten, and plans places for all replicas that
wait (`core.scheduling`). What it appends comes back through the view and marks again, until nothing is
left to do. A new leader marks everything.
"""

import asyncio
import heapq
from collections.abc import Callable, Sequence

import structlog

from pwm.api.v1 import events_pb2 as ev
from pwm.api.v1.common_pb2 import Actor, Reason
from pwm.api.v1.node_pb2 import Node
from pwm.api.v1.workload_pb2 import Workload
from pwm.controlplane.clock import Clock
from pwm.controlplane.commands import Commands
from pwm.controlplane.core.decide import Change, change, hold_back, place, request_stop
from pwm.controlplane.core.ledger import devices_of
from pwm.controlplane.core.limits import OVER_CODES, REACHED_CODES, Account, accounts_of
from pwm.controlplane.core.reconcile import Gap, Vacancy, reconcile
from pwm.controlplane.core.scheduling.cluster import Cluster
from pwm.controlplane.core.scheduling.demand import zone_of
from pwm.controlplane.core.scheduling.plan import Placement, Refusals, plan
from pwm.controlplane.core.scheduling.queue import Waiting
from pwm.controlplane.core.scheduling.spec import container_spec
from pwm.controlplane.core.secrets import missing
from pwm.controlplane.errors import ApiError
from pwm.controlplane.store.commits import Guard
from pwm.controlplane.turns import Turns
from pwm.controlplane.view import Resync, View, ViewChange

log = structlog.get_logger(__name__)

ACTOR = Actor(type=Actor.CONTROLLER, name="scheduler")
# Every workload is looked at again this often, whatever the marks say.
FULL_PASS_S = 30.0
RETRY_DELAY_S = 0.5
# After a turn there is a rest, about ten times as long as it took to look at its containers, in which marks gather: of
# a long array whose containers end one after the other, each end would else be a reason to look at all of them.
REST_PER_CONTAINER_S = 50e-6
LONGEST_REST_S = 0.2
LIMIT_CODES = OVER_CODES | REACHED_CODES


class WorkloadController:
    """Runs for one term of leading `zone`; make a new one for the next."""

    def __init__(
        self,
        *,
        zone: str,
        view: View,
        commands: Commands,
        cluster: Cluster,
        clock: Clock,
        fence: Guard,
        denial: Callable[[Workload], Reason | None] = lambda workload: None,
    ) -> None:
        """`denial`: why nothing of a workload may start, whatever is free."""
        self._zone = zone
        self._view = view
        self._commands = commands
        self._cluster = cluster
        self._clock = clock
        self._fence = fence
        self._denial = denial
        self._marked: dict[str, None] = {}
        self._waiting: dict[str, list[Waiting]] = {}
        self._wakes: list[tuple[int, str]] = []
        # Workload -> (replica, attempt) -> since when this leader has seen that it backs off.
        self._backing_off: dict[str, dict[tuple[int, int], float]] = {}
        self._next_full_pass_s = 0.0
        self._turns = Turns(commands=commands, view=view)
        # Somebody else has placed for the same accounts: it is decided again at once.
        self._contested = False

    async def run(self) -> None:
        """Until cancelled. Raises FenceLost when another replica leads."""
        with self._view.subscribe() as subscription:
            while True:
                try:
                    looked_at = await self._turn()
                except ApiError as error:
                    log.warning("the scheduler waits", why=error.message)
                    await asyncio.sleep(RETRY_DELAY_S)
                    self._next_full_pass_s = 0.0
                    continue
                await asyncio.sleep(min(LONGEST_REST_S, looked_at * REST_PER_CONTAINER_S))
                try:
                    async with asyncio.timeout(self._pause_s()):
                        for seen in await subscription.batch():
                            self._mark(seen)
                except TimeoutError:
                    pass
                except Resync:
                    self._next_full_pass_s = 0.0

    def _mark(self, seen: ViewChange) -> None:
        if seen.kind == "Workload":
            self._marked[seen.uid] = None
        elif seen.kind == "Container":
            container = seen.after or seen.before
            self._marked[container.spec.workload_uid] = None  # type: ignore[union-attr]

    def _pause_s(self) -> float:
        pause = max(0.0, self._next_full_pass_s - self._clock.monotonic_s())
        if self._contested:
            return 0.0
        if self._wakes:
            pause = min(pause, max(0.0, (self._wakes[0][0] - self._clock.now_ms()) / 1000))
        return pause

    async def _turn(self) -> int:
        """How many containers were looked at."""
        now_ms = self._clock.now_ms()
        self._mark_due(now_ms)
        marked, self._marked = self._marked, {}
        changes: list[Change] = []
        looked_at = 0
        for uid in marked:
            workload = self._view.get("Workload", uid)
            if workload is not None and zone_of(workload.spec.zone) != self._zone:
                continue
            containers = self._view.containers_of(uid)
            looked_at += len(containers)
            gap = reconcile(workload, containers, now_ms=now_ms)
            self._note(uid, workload, gap, now_ms)
            changes += _changes(workload, gap)
        if changes:
            await self._commands.run_in_parts(changes, actor=ACTOR, guards=(self._fence,))
        if self._waiting:
            await self._place(now_ms)
        return looked_at

    def _mark_due(self, now_ms: int) -> None:
        if self._clock.monotonic_s() >= self._next_full_pass_s:
            self._next_full_pass_s = self._clock.monotonic_s() + FULL_PASS_S
            self._waiting.clear()
            self._wakes.clear()
            self._marked = dict.fromkeys(w.metadata.uid for w in self._view.all("Workload"))
            self._marked.update(dict.fromkeys(self._view.workload_uids_with_containers()))
        while self._wakes and self._wakes[0][0] <= now_ms:
            self._marked[heapq.heappop(self._wakes)[1]] = None

    def _note(self, uid: str, workload: Workload | None, gap: Gap, now_ms: int) -> None:
        if gap.wake_at_ms:
            heapq.heappush(self._wakes, (gap.wake_at_ms, uid))
        ready = self._ready(uid, gap.vacancies, now_ms)
        if workload is not None and ready:
            self._waiting[uid] = [
                Waiting(workload, v.replica, v.attempt, since_ms=v.since_ms, failures=v.failures) for v in ready
            ]
        else:
            self._waiting.pop(uid, None)

    def _ready(self, uid: str, vacancies: Sequence[Vacancy], now_ms: int) -> list[Vacancy]:
        """Those whose back-off is over. It began when another machine's clock said so, which may be days ahead of
        this one's: so it is over, too, once this leader itself has seen the vacancy for as long.
        """
        now_s, before = self._clock.monotonic_s(), self._backing_off.pop(uid, {})
        ready, seen = [], {}
        for vacancy in vacancies:
            attempt = vacancy.replica, vacancy.attempt
            since_s = before.get(attempt, now_s)
            left_ms = vacancy.delay_ms - int((now_s - since_s) * 1000)
            if vacancy.not_before_ms <= now_ms or left_ms <= 0:
                ready.append(vacancy)
            else:
                seen[attempt] = since_s
                heapq.heappush(self._wakes, (now_ms + left_ms, uid))
        if seen:
            self._backing_off[uid] = seen
        return ready

    def _has_secrets(self, workload: Workload) -> bool:
        """What refers to a secret waits until it is there."""
        return missing(workload, lambda group, name: self._view.by_name("Secret", name, group=group)) is None

    async def _place(self, now_ms: int) -> None:
        self._contested = False
        await self._turns.learn(self._shared)
        waiting = [
            w for replicas in self._waiting.values() if self._denial(replicas[0].workload) is None for w in replicas
        ]
        waiting = [w for w in waiting if self._has_secrets(w.workload)]
        planned = plan(self._cluster, waiting, now_ms=now_ms, seed=self._clock.seed())
        if planned.placements:
            placements = [self._placement(placement) for placement in planned.placements]
            done = await self._turns.append(placements, actor=ACTOR, fence=self._fence)
            self._contested = done.contested
            placed = len(placements) - len(done.skipped)
            log.debug("placed", containers=placed, waiting=len(waiting) - placed)
        await self._tell(planned.refusals)

    async def _tell(self, refusals: Refusals) -> None:
        """Whom a limit keeps from starting, in the log."""
        held = [(uid, why.reason) for uid, why in refusals.held_back.items()]
        for uid in refusals.without_node:
            workload = self._view.get("Workload", uid)
            # What has been said already is not worked out again.
            if workload is not None and workload.status.held_back.code not in OVER_CODES:
                held.append((uid, refusals[uid].reason))
        changes = ((self._view.get("Workload", uid), reason) for uid, reason in held if reason.code in LIMIT_CODES)
        news = [change(workload, *hold_back(workload, reason)) for workload, reason in changes if workload is not None]
        news = [each for each in news if each.payloads]
        if news:
            await self._commands.run_in_parts(news, actor=ACTOR, guards=(self._fence,))

    def _shared(self) -> set[Account]:
        """The accounts that others may take of as well."""
        return self._cluster.accounts.shared(replicas[0].workload for replicas in self._waiting.values())

    def _placement(self, placement: Placement) -> tuple[Change, frozenset[Account]]:
        """With the accounts whose totals it takes of, and what their limits are read from."""
        workload = placement.waiting.workload
        spec = container_spec(workload, placement, revision=self._view.revision)
        node: Node | None = self._view.by_name("Node", placement.node)
        if node is not None:
            spec.devices.extend(devices_of(spec, node.status.inventory))
        limited_by = (self._view.by_name(*account) for account in accounts_of(spec.owner, workload.metadata.group))
        given = tuple([state for state in limited_by if state is not None])
        shared = [bounds.account for bounds in self._cluster.accounts.bounds(workload) if bounds.has_totals]
        return place(workload, spec, given=given), frozenset(shared)


def _changes(workload: Workload | None, gap: Gap) -> list[Change]:
    changes = [change(c, *request_stop(c, reason), cause=workload) for c, reason in gap.stops]
    changes += [change(c, ev.Removed(), cause=workload) for c in gap.removals]
    if workload is not None and gap.workload_gone:
        changes.append(change(workload, ev.Removed(reason=Reason(code=Reason.DELETED_BY_USER))))
    return changes
