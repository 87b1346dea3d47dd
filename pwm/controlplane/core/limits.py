"""Limits: what a user, or a group as a whole, may have at once, and the sentence when something is over it.

An *account* is a user or a group. Its limits are read from the spec into `Bounds`; what it has at the moment is a
`Use`. A workload counts for two accounts: the user who created it, whoever starts it again, and its group. Checked is
only what is about to start, so that a limit that is lowered ends nothing.

There are two kinds of no. *Over* a limit is what can never run while the limit is what it is: more GPUs per workload
than allowed, a single replica (of a gang: all together) beyond a total, a node that is denied. Waiting does not help,
so such a workload is DENIED until the limit or the workload changes. *Reached* is a total that will be free again:
the workload is QUEUED. `held_back` looks for the first kind at every account before it looks for the second.

Per workload means all its replicas together, else a limit would be escaped by asking for many small ones. Totals count
what containers have from their placement to their end. One whose node is lost does not count: its successor may
start although nobody can say yet that the first has ended.

Where next: `scheduling/accounts.py` keeps the use of every account, `scheduling/plan.py` asks, and
`controlplane/turns.py` sees to it that two who decide for one account at the same moment do not both get the last GPU.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

from pwm.api.v1.common_pb2 import Actor, Reason
from pwm.api.v1.identity_pb2 import ResourceLimits
from pwm.api.v1.workload_pb2 import Workload
from pwm.quantity import QuantityError, format_bytes, format_cpu, parse_bytes

CORE_MILLIS = 1000
USER, GROUP = "User", "Group"
# Words for any node, as everywhere in documents.
_ANY_NODE = frozenset({"pwm.all", "all"})


class Account(NamedTuple):
    """Who has limits: `kind` is User or Group."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind.lower()} {self.name}"


def owner_of(workload: Workload) -> str:
    """The user a workload counts for; empty when no user created it."""
    creator = workload.metadata.created_by
    return creator.name if creator.type == Actor.USER else ""


def accounts_of(owner: str, group: str) -> tuple[Account, ...]:
    """The accounts that something counts for: of its owner, if there is one, and of its group."""
    return (*((Account(USER, owner),) if owner else ()), Account(GROUP, group))


@dataclass(frozen=True, slots=True)
class NodeRule:
    """Which nodes an account may use. `allow` is empty where all may be used that are not denied."""

    whose: str
    allow: frozenset[str]
    deny: frozenset[str]

    def admits(self, node: str) -> bool:
        return not self._denied(node) and (not self.allow or node in self.allow)

    def _denied(self, node: str) -> bool:
        return node in self.deny or any(name.lower() in _ANY_NODE for name in self.deny)

    def refusal(self, node: str) -> str:
        """A clause whose subject is the node."""
        return f"is denied to {self.whose}" if self._denied(node) else f"is not among the nodes allowed to {self.whose}"


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits of one account as numbers; None: not limited."""

    account: Account
    workloads: int | None = None
    gpus_each: int | None = None
    gpus: int | None = None
    cpu_millis_each: int | None = None
    cpu_millis: int | None = None
    memory_bytes: int | None = None
    nodes: NodeRule | None = None

    @property
    def has_totals(self) -> bool:
        """Whether anything is limited that several workloads share."""
        return any(total is not None for total in (self.workloads, self.gpus, self.cpu_millis, self.memory_bytes))

    @property
    def limits_shares(self) -> bool:
        """Whether anything is limited of which a replica may be given a share of its node."""
        return any(amount is not None for amount in (self.cpu_millis_each, self.cpu_millis, self.memory_bytes))


def bounds_of(account: Account, limits: ResourceLimits) -> Bounds | None:
    """None when nothing is limited. A size that cannot be read (it was refused when applied) limits nothing."""
    gpus, cpus, workloads = limits.gpus, limits.cpus, limits.workloads
    nodes = None
    allow = frozenset(limits.nodes.allow)
    if any(name.lower() in _ANY_NODE for name in allow):
        allow = frozenset()
    if allow or limits.nodes.deny:
        nodes = NodeRule(str(account), allow, frozenset(limits.nodes.deny))
    bounds = Bounds(
        account,
        workloads=workloads.concurrently if workloads.HasField("concurrently") else None,
        gpus_each=gpus.per_workload if gpus.HasField("per_workload") else None,
        gpus=gpus.total if gpus.HasField("total") else None,
        cpu_millis_each=cpus.per_workload * CORE_MILLIS if cpus.HasField("per_workload") else None,
        cpu_millis=cpus.total * CORE_MILLIS if cpus.HasField("total") else None,
        memory_bytes=_bytes(limits.memory),
        nodes=nodes,
    )
    return None if bounds == Bounds(account) else bounds


def _bytes(text: str) -> int | None:
    try:
        return parse_bytes(text) if text else None
    except QuantityError:
        return None


class Use(NamedTuple):
    """What an account has: workloads with a container, and what these containers take.

    A tuple, as `Start`: one is made for each replica that waits.
    """

    workloads: int = 0
    gpus: int = 0
    cpu_millis: int = 0
    memory_bytes: int = 0

    def plus(self, other: "Use", *, times: int = 1) -> "Use":
        return Use(
            self.workloads + times * other.workloads,
            self.gpus + times * other.gpus,
            self.cpu_millis + times * other.cpu_millis,
            self.memory_bytes + times * other.memory_bytes,
        )


class Start(NamedTuple):
    """What is about to start: what one replica takes, how many start `together` (all or none), and how many the
    workload has in all."""

    gpus: int = 0
    cpu_millis: int = 0
    memory_bytes: int = 0
    together: int = 1
    replicas: int = 1
    gang: bool = False


class What(Enum):
    """What is limited: the codes when a total is reached and when it is over the limit, and the limit's place."""

    WORKLOADS = (Reason.TOO_MANY_WORKLOADS, Reason.OVER_WORKLOAD_LIMIT, "workloads.concurrently", "")
    GPUS_EACH = (Reason.OVER_GPU_LIMIT, Reason.OVER_GPU_LIMIT, "gpus.perWorkload", "selectors.gpu.count")
    GPUS = (Reason.TOO_MANY_GPUS, Reason.OVER_GPU_LIMIT, "gpus.total", "selectors.gpu.count")
    CPUS_EACH = (Reason.OVER_CPU_LIMIT, Reason.OVER_CPU_LIMIT, "cpus.perWorkload", "selectors.cpu.count")
    CPUS = (Reason.TOO_MANY_CPUS, Reason.OVER_CPU_LIMIT, "cpus.total", "selectors.cpu.count")
    MEMORY = (Reason.TOO_MUCH_MEMORY, Reason.OVER_MEMORY_LIMIT, "memory", "config.memory")

    def __init__(self, reached: Reason.Code.ValueType, over: Reason.Code.ValueType, limit: str, asked_in: str) -> None:
        self.reached = reached
        self.over = over
        # Below spec.limits.resources of the account, and below spec of the workload.
        self.limit = limit
        self.asked_in = asked_in


# A workload with one of these waits in vain until a limit or the workload itself is changed.
OVER_CODES = frozenset({*(what.over for what in What), Reason.NODE_NOT_ALLOWED})
REACHED_CODES = frozenset({what.reached for what in What} - OVER_CODES)


@dataclass(frozen=True, slots=True)
class HeldBack:
    """A no: `allowed` of something, of which the account has `used` and `needs` more. `over`: it can never run."""

    account: Account
    what: What
    allowed: int
    used: int
    needs: int
    over: bool
    # Of how many replicas `needs` is the sum, where that is worth telling.
    replicas: int = 1

    @property
    def reason(self) -> Reason:
        return Reason(code=self.what.over if self.over else self.what.reached, message=self._sentence())

    def _sentence(self) -> str:
        what, whose = self.what, str(self.account)
        if what is What.WORKLOADS:
            may = f"{whose} may run {_amount(what, self.allowed)} at once"
            return may if self.over else f"{may} and runs {self.used}"
        each = what in (What.GPUS_EACH, What.CPUS_EACH)
        parts = f" ({self.replicas} replicas)" if self.replicas > 1 else ""
        if each:
            return f"{whose} may have {_amount(what, self.allowed)} per workload; this asks for {self._needs()}{parts}"
        may = f"{whose} may have {_amount(what, self.allowed)} at once"
        needs = f"; this needs {self._needs()}{parts}"
        return f"{may}{needs}" if self.over else f"{may} and uses {self._number(self.used)}{needs}"

    def _needs(self) -> str:
        return self._number(self.needs)

    def _number(self, amount: int) -> str:
        if self.what in (What.CPUS, What.CPUS_EACH):
            return format_cpu(amount)
        return format_bytes(amount) if self.what is What.MEMORY else str(amount)

    @property
    def fields(self) -> tuple[tuple[str, str], ...]:
        """The field of the workload's spec that asks for too much, with what is allowed; nothing where that is none."""
        if not self.over or not self.allowed or not self.what.asked_in or self.replicas > 1:
            return ()
        return ((self.what.asked_in, self._number(self.allowed)),)

    @property
    def advice(self) -> str:
        """What would help, as an imperative."""
        raised = f"have spec.limits.resources.{self.what.limit} of {self.account} raised"
        if not self.over:
            return f"wait until something of {self.account} ends, or {raised}"
        if self.what is What.WORKLOADS or not self.allowed:
            return raised
        return (
            f"ask for at most {_amount(self.what, self.allowed)}{' in all' if self.replicas > 1 else ''}, or {raised}"
        )


def _amount(what: What, amount: int) -> str:
    """`4 GPUs`, `no GPU`, `1 workload`, `64GiB of memory`."""
    if what is What.MEMORY:
        return f"{format_bytes(amount)} of memory" if amount else "no memory"
    word = {What.WORKLOADS: "workload", What.GPUS: "GPU", What.GPUS_EACH: "GPU"}.get(what, "CPU")
    number = format_cpu(amount) if word == "CPU" else str(amount)
    return f"{number} {word}s" if number not in ("0", "1") else f"{'no' if number == '0' else number} {word}"


def held_back(start: Start, standing: Sequence[tuple[Bounds, Use, bool]]) -> HeldBack | None:
    """Why something may not start; None: it may.

    `standing`: for each account with limits its bounds, its use, and whether the workload is among what it runs.
    """
    for bounds, _, _ in standing:
        over = _over(start, bounds)
        if over is not None:
            return over
    for bounds, use, runs in standing:
        reached = _reached(start, bounds, use, runs=runs)
        if reached is not None:
            return reached
    return None


def _over(start: Start, bounds: Bounds) -> HeldBack | None:
    least = start.replicas if start.gang else 1
    if bounds.workloads == 0:
        return HeldBack(bounds.account, What.WORKLOADS, 0, 0, 1, over=True)
    for what, allowed, amount, replicas in (
        (What.GPUS_EACH, bounds.gpus_each, start.gpus, start.replicas),
        (What.CPUS_EACH, bounds.cpu_millis_each, start.cpu_millis, start.replicas),
        (What.GPUS, bounds.gpus, start.gpus, least),
        (What.CPUS, bounds.cpu_millis, start.cpu_millis, least),
        (What.MEMORY, bounds.memory_bytes, start.memory_bytes, least),
    ):
        if allowed is not None and amount * replicas > allowed:
            return HeldBack(bounds.account, what, allowed, 0, amount * replicas, over=True, replicas=replicas)
    return None


def _reached(start: Start, bounds: Bounds, use: Use, *, runs: bool) -> HeldBack | None:
    if bounds.workloads is not None and not runs and use.workloads >= bounds.workloads:
        return HeldBack(bounds.account, What.WORKLOADS, bounds.workloads, use.workloads, 1, over=False)
    for what, allowed, used, amount in (
        (What.GPUS, bounds.gpus, use.gpus, start.gpus),
        (What.CPUS, bounds.cpu_millis, use.cpu_millis, start.cpu_millis),
        (What.MEMORY, bounds.memory_bytes, use.memory_bytes, start.memory_bytes),
    ):
        needs = amount * start.together
        # Who needs none of it is not held back by it, even where a lowered limit is exceeded.
        if allowed is not None and needs and used + needs > allowed:
            return HeldBack(bounds.account, what, allowed, used, needs, over=False, replicas=start.together)
    return None


@lru_cache(maxsize=65_536)
def node_refusal(rules: tuple[NodeRule, ...], node: str) -> str:
    """Why these rules keep a node from being used, as a clause whose subject is the node; empty: they do not."""
    return next((rule.refusal(node) for rule in rules if not rule.admits(node)), "")


def whom(rules: Iterable[NodeRule]) -> str:
    """`user ann and group vision`: whose rules these are."""
    return " and ".join(rule.whose for rule in rules)
