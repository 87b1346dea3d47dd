"""What every user and every group has, kept up to date container by container, beside their limits.

`Accounts` belongs to `Cluster` and is fed with it. Use is added up when a container comes and taken off when it goes,
so that asking costs the same with ten containers as with ten thousand; for those without limits nothing is asked at
all.

A `Budget` is to `Accounts` what a `Scratch` is to the table: a plan's own copy, from which what it places is taken
and given back without anybody noticing. It answers whether something may start (`core.limits` says why not). What a
replica takes may depend on the node, for its share of CPU and memory does. So it is asked twice: first with the least
that it would take on any node that would do, then node by node, as a mask over the table's rows.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TypeAlias

from pwm.api.v1.identity_pb2 import ResourceLimits
from pwm.api.v1.workload_pb2 import Container, Workload
from pwm.controlplane.core.limits import (
    Account,
    Bounds,
    HeldBack,
    NodeRule,
    Start,
    Use,
    accounts_of,
    bounds_of,
    held_back,
    owner_of,
)
from pwm.controlplane.core.scheduling.demand import Demand, demand_of
from pwm.controlplane.core.scheduling.nodes import holding_of
from pwm.controlplane.core.scheduling.scratch import Scratch, Taken
from pwm.controlplane.core.scheduling.table import Bools
from pwm.lifecycle import GIVEN_UP

_NOTHING = Use()
# CPU (millis) and memory (bytes), at least and at most.
Range: TypeAlias = tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Charge:
    """What one container counts, and for whom."""

    accounts: tuple[Account, ...]
    workload_uid: str
    use: Use


@dataclass(slots=True)
class _Standing:
    """What one account has, and how many containers of each of its workloads."""

    use: Use = _NOTHING
    containers: dict[str, int] = field(default_factory=dict)


class Accounts:
    """Limits and use of all accounts. Only `Cluster` changes it; everybody may read."""

    def __init__(self) -> None:
        self._bounds: dict[Account, Bounds] = {}
        # Owner and group -> the bounds of both; until a limit changes.
        self._known: dict[tuple[str, str], tuple[Bounds, ...]] = {}
        self._charges: dict[str, Charge] = {}
        self._standings: defaultdict[Account, _Standing] = defaultdict(_Standing)

    # ---- as things change

    def set_limits(self, account: Account, limits: ResourceLimits) -> bool:
        """The limits of an account as they are now; whether that is news."""
        bounds = bounds_of(account, limits)
        if bounds == self._bounds.get(account):
            return False
        if bounds is None:
            del self._bounds[account]
        else:
            self._bounds[account] = bounds
        self._known.clear()
        return True

    def drop_limits(self, account: Account) -> bool:
        """The account is gone; whether it had limits."""
        self._known.clear()
        return self._bounds.pop(account, None) is not None

    def set_container(self, container: Container) -> bool:
        """A container as it is now; whether anybody has more or less by it."""
        uid = container.metadata.uid
        if container.status.phase in GIVEN_UP:
            return self.drop_container(uid)
        if uid in self._charges:
            return False
        charge = self._charges[uid] = _charge_of(container)
        for account in charge.accounts:
            self._add(self._standings[account], charge, sign=1)
        return True

    def drop_container(self, uid: str) -> bool:
        """The container has ended, is lost or gone; whether it counted until now."""
        charge = self._charges.pop(uid, None)
        if charge is None:
            return False
        for account in charge.accounts:
            standing = self._standings[account]
            self._add(standing, charge, sign=-1)
            if not standing.containers:
                del self._standings[account]
        return True

    @staticmethod
    def _add(standing: _Standing, charge: Charge, *, sign: int) -> None:
        use = standing.use.plus(charge.use, times=sign)
        count = standing.containers.get(charge.workload_uid, 0) + sign
        if count:
            standing.containers[charge.workload_uid] = count
        else:
            del standing.containers[charge.workload_uid]
        standing.use = use._replace(workloads=len(standing.containers))

    def clear(self) -> None:
        """Forget everything, to be told anew."""
        self._bounds.clear()
        self._known.clear()
        self._charges.clear()
        self._standings.clear()

    # ---- reading

    def use(self, account: Account) -> Use:
        standing = self._standings.get(account)
        return standing.use if standing is not None else _NOTHING

    def runs(self, account: Account, workload_uid: str) -> bool:
        """Whether the workload has a container that counts for the account."""
        standing = self._standings.get(account)
        return standing is not None and workload_uid in standing.containers

    def bounds(self, workload: Workload) -> tuple[Bounds, ...]:
        """The limits that a workload is under; mostly none."""
        if not self._bounds:
            return ()
        return self._bounds_of(owner_of(workload), workload.metadata.group)

    def _bounds_of(self, owner: str, group: str) -> tuple[Bounds, ...]:
        known = self._known.get((owner, group))
        if known is None:
            found = (self._bounds.get(account) for account in accounts_of(owner, group))
            known = self._known[owner, group] = tuple([bounds for bounds in found if bounds is not None])
        return known

    def shared(self, workloads: Iterable[Workload]) -> set[Account]:
        """The accounts of these workloads that have totals: of them several may take at the same moment."""
        if not self._bounds:
            return set()
        whose = {(owner_of(workload), workload.metadata.group) for workload in workloads}
        return {b.account for owner, group in whose for b in self._bounds_of(owner, group) if b.has_totals}

    def demand_of(self, workload: Workload) -> Demand:
        """The demand of each replica, with the nodes that its accounts may use."""
        bounds = self.bounds(workload)
        rules = tuple([each.nodes for each in bounds if each.nodes is not None]) if bounds else ()
        return _under(demand_of(workload), rules) if rules else demand_of(workload)


@lru_cache(maxsize=16_384)
def _under(demand: Demand, rules: tuple[NodeRule, ...]) -> Demand:
    """Equal demands under equal rules are one object, as without."""
    return replace(demand, rules=rules)


def _charge_of(container: Container) -> Charge:
    holding = holding_of(container)
    return Charge(
        accounts_of(container.spec.owner, container.metadata.group),
        holding.workload_uid,
        Use(0, len(holding.gpu_uuids), holding.cpu_millis, holding.memory_bytes),
    )


class Budget:
    """What accounts have, with what a plan placed already added."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts
        self._more: dict[Account, Use] = {}
        self._placed: dict[tuple[Account, str], int] = {}
        self._ranges: dict[Demand, Range] = {}

    def held_back(self, scratch: Scratch, demand: Demand, workload: Workload, *, together: int) -> HeldBack | None:
        """Why `together` replicas may not start even if they took the least that they could take on any node."""
        bounds = self._accounts.bounds(workload)
        if not bounds:
            return None
        least = self._range(scratch, demand, bounds)[0]
        return self._judge(bounds, demand, workload, least=least, together=together)

    def held_back_where_it_fits(
        self, scratch: Scratch, demand: Demand, workload: Workload, *, fits: Bools
    ) -> HeldBack | None:
        """The same, for one replica, of the nodes where it would fit, of which there are some."""
        bounds = self._accounts.bounds(workload)
        if not bounds:
            return None
        screen = scratch.table.screen(demand)
        least = int(screen.cpu_millis[fits].min()), int(screen.memory_bytes[fits].min())
        return self._judge(bounds, demand, workload, least=least, together=1)

    def affordable(self, scratch: Scratch, demand: Demand, workload: Workload) -> Bools | None:
        """The rows on which a replica takes no more CPU and memory than is left; None: all of them."""
        bounds = self._accounts.bounds(workload)
        if not bounds:
            return None
        least, most = self._range(scratch, demand, bounds)
        if least == most:
            return None  # it takes the same everywhere, and that was looked at
        replicas = max(_count(workload), 1)
        cpu, memory = [], []
        for each in bounds:
            use = self._use(each.account)
            cpu += [each.cpu_millis_each // replicas] if each.cpu_millis_each is not None else []
            cpu += [each.cpu_millis - use.cpu_millis] if each.cpu_millis is not None else []
            memory += [each.memory_bytes - use.memory_bytes] if each.memory_bytes is not None else []
        left = min(cpu, default=most[0]), min(memory, default=most[1])
        if left[0] >= most[0] and left[1] >= most[1]:
            return None
        screen = scratch.table.screen(demand)
        rows: Bools = screen.usable.copy()
        rows &= (screen.cpu_millis <= left[0]) & (screen.memory_bytes <= left[1])
        return rows

    def _range(self, scratch: Scratch, demand: Demand, bounds: tuple[Bounds, ...]) -> Range:
        """CPU and memory that a replica takes at least and at most on any row that would do; what it says itself where
        that is all there is to know, or where none would do."""
        said = demand.cpu_millis or 0, demand.memory_bytes or 0
        if all(said) or not any(each.limits_shares for each in bounds):
            return said, said
        known = self._ranges.get(demand)
        if known is None:
            screen = scratch.table.screen(demand)
            cpu, memory = screen.cpu_millis[screen.usable], screen.memory_bytes[screen.usable]
            if cpu.size:
                known = (int(cpu.min()), int(memory.min())), (int(cpu.max()), int(memory.max()))
            else:
                known = said, said
            self._ranges[demand] = known
        return known

    def take(self, workload: Workload, taken: Taken) -> None:
        """One replica is placed."""
        self._move(workload, taken, sign=1)

    def give_back(self, workload: Workload, taken: Taken) -> None:
        """Undo a take."""
        self._move(workload, taken, sign=-1)

    def _move(self, workload: Workload, taken: Taken, *, sign: int) -> None:
        limited = self._accounts.bounds(workload)
        if not limited:
            return
        use = Use(0, len(taken.gpus), taken.cpu_millis, taken.memory_bytes)
        for bounds in limited:
            account, key = bounds.account, (bounds.account, workload.metadata.uid)
            self._more[account] = self._more.get(account, _NOTHING).plus(use, times=sign)
            before = self._placed.get(key, 0)
            self._placed[key] = before + sign
            if not self._accounts.runs(*key) and (before == 0 or before + sign == 0):
                self._more[account] = self._more[account].plus(Use(workloads=1), times=sign)

    def _use(self, account: Account) -> Use:
        more = self._more.get(account)
        return self._accounts.use(account) if more is None else self._accounts.use(account).plus(more)

    def _judge(
        self,
        bounds: tuple[Bounds, ...],
        demand: Demand,
        workload: Workload,
        *,
        least: tuple[int, int],
        together: int,
    ) -> HeldBack | None:
        """`least`: CPU and memory that one replica takes."""
        start = Start(
            gpus=demand.gpus,
            cpu_millis=least[0],
            memory_bytes=least[1],
            together=together,
            replicas=_count(workload),
            gang=workload.spec.gang,
        )
        uid = workload.metadata.uid
        return held_back(start, [(each, self._use(each.account), self._runs(each.account, uid)) for each in bounds])

    def _runs(self, account: Account, workload_uid: str) -> bool:
        return self._accounts.runs(account, workload_uid) or self._placed.get((account, workload_uid), 0) > 0


def _count(workload: Workload) -> int:
    return workload.spec.replica.count if workload.spec.replica.HasField("count") else 1
