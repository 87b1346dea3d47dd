"""What holds of limits for every plan, on any cluster, for any queue and whatever the limits are.

Who has what is added up here from the containers alone, slowly; only the limits are read by the product's own words.
"""

from collections.abc import Iterable

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from pwm.api.v1.common_pb2 import Actor
from pwm.api.v1.identity_pb2 import ResourceLimits
from pwm.api.v1.node_pb2 import Node
from pwm.api.v1.workload_pb2 import Container, ContainerStatus, Workload
from pwm.controlplane.core.limits import GROUP, OVER_CODES, REACHED_CODES, USER, Account, Use
from pwm.controlplane.core.scheduling.cluster import Cluster
from pwm.controlplane.core.scheduling.explain import explain
from pwm.controlplane.core.scheduling.plan import Plan, plan
from pwm.controlplane.core.scheduling.shares import requirements
from pwm.lifecycle import GIVEN_UP
from pwm.quantity import parse_bytes
from tests.property.test_scheduling import Books, demands, fleets
from tests.unit.scheduling.machines import cluster_of, container_of, waiting_for

# Each is a plan or three; with fewer, mistakes that were planted were still found.
enough = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])

OWNERS, GROUPS = ("ann", "bob"), ("vision", "audio")
ACCOUNTS = [*(Account(USER, name) for name in OWNERS), *(Account(GROUP, name) for name in GROUPS)]
Limits = dict[Account, ResourceLimits]


@st.composite
def limits(draw: st.DrawFn) -> ResourceLimits:
    made = ResourceLimits()
    amounts = st.none() | st.integers(0, 8)
    for message, field in (
        (made.gpus, "per_workload"),
        (made.gpus, "total"),
        (made.cpus, "per_workload"),
        (made.cpus, "total"),
        (made.workloads, "concurrently"),
    ):
        amount = draw(amounts)
        if amount is not None:
            setattr(message, field, amount)
    made.memory = draw(st.sampled_from(["", "", "1GiB", "5GiB", "30GiB"]))
    made.nodes.allow.extend(draw(st.sampled_from([[], [], [], ["n0"], ["n0", "n2"], ["pwm.all"]])))
    made.nodes.deny.extend(draw(st.sampled_from([[], [], [], ["n0"], ["n1"]])))
    return made


def all_limits() -> st.SearchStrategy[Limits]:
    return st.dictionaries(st.sampled_from(ACCOUNTS), limits(), max_size=3)


@st.composite
def owned(draw: st.DrawFn, prefix: str) -> list[Workload]:
    """Workloads of several people in several groups; some of nobody."""
    made = draw(demands())
    for workload in made:
        workload.metadata.name = workload.metadata.uid = f"{prefix}{workload.metadata.name}"
        workload.metadata.group = draw(st.sampled_from(GROUPS))
        owner = draw(st.sampled_from([*OWNERS, ""]))
        if owner:
            workload.metadata.created_by.CopyFrom(Actor(type=Actor.USER, name=owner))
    return made


def under(fleet: list[Node], limited: Limits) -> Cluster:
    cluster = cluster_of(*fleet)
    for account, each in limited.items():
        cluster.set_limits(account, each)
    return cluster


def planned(cluster: Cluster, wanted: Iterable[Workload]) -> Plan:
    return plan(cluster, [item for workload in wanted for item in waiting_for(workload)], now_ms=0, seed=0)


def run(cluster: Cluster, wanted: Iterable[Workload]) -> list[Container]:
    made = [container_of(placement) for placement in planned(cluster, wanted).placements]
    for container in made:
        cluster.set_container(container)
    return made


# ---- the oracle


def counts_for(account: Account, *, owner: str, group: str) -> bool:
    return account.name == (owner if account.kind == USER else group)


def use_of(account: Account, containers: Iterable[Container]) -> Use:
    mine = [
        c for c in containers
        if c.status.phase not in GIVEN_UP and counts_for(account, owner=c.spec.owner, group=c.metadata.group)
    ]  # fmt: skip
    return Use(
        len({c.spec.workload_uid for c in mine}),
        sum(len(c.spec.gpu_uuids) for c in mine),
        sum(c.spec.resources.cpu_millis for c in mine),
        sum(c.spec.resources.memory_bytes for c in mine),
    )


def within(use: Use, allowed: ResourceLimits) -> bool:
    return (
        (not allowed.workloads.HasField("concurrently") or use.workloads <= allowed.workloads.concurrently)
        and (not allowed.gpus.HasField("total") or use.gpus <= allowed.gpus.total)
        and (not allowed.cpus.HasField("total") or use.cpu_millis <= allowed.cpus.total * 1000)
        and (not allowed.memory or use.memory_bytes <= parse_bytes(allowed.memory))
    )


def may_use(node: str, allowed: ResourceLimits) -> bool:
    open_to_all = not allowed.nodes.allow or "pwm.all" in allowed.nodes.allow
    return node not in allowed.nodes.deny and (open_to_all or node in allowed.nodes.allow)


def may_start(wanted: Workload, machine: Node, running: list[Container], limited: Limits) -> bool:
    """Whether one more replica on this node is allowed by all limits."""
    need = requirements(wanted, machine).resources
    more = Container(metadata=wanted.metadata)
    more.spec.workload_uid, more.spec.owner = wanted.metadata.uid, wanted.metadata.created_by.name
    more.spec.resources.CopyFrom(need)
    more.spec.gpu_uuids.extend(str(n) for n in range(need.gpus))
    count = wanted.spec.replica.count
    for account, allowed in limited.items():
        if not counts_for(account, owner=more.spec.owner, group=more.metadata.group):
            continue
        gpus, cpus = allowed.gpus, allowed.cpus
        if gpus.HasField("per_workload") and need.gpus * count > gpus.per_workload:
            return False
        if cpus.HasField("per_workload") and need.cpu_millis * count > cpus.per_workload * 1000:
            return False
        if not may_use(machine.metadata.name, allowed):
            return False
        if not within(use_of(account, [*running, more]), allowed):
            return False
    return True


# ---- the properties


@enough
@given(fleets(), all_limits(), owned("a"), owned("b"))
def test_nobody_is_given_more_than_the_limits_allow(
    fleet: list[Node], limited: Limits, first: list[Workload], second: list[Workload]
) -> None:
    cluster, running = under(fleet, limited), list[Container]()
    for wanted in (first, second):
        running += run(cluster, wanted)
        for account, allowed in limited.items():
            use = use_of(account, running)
            assert within(use, allowed)
            assert cluster.accounts.use(account) == use
            assert all(
                may_use(c.spec.node, allowed)
                for c in running
                if counts_for(account, owner=c.spec.owner, group=c.metadata.group)
            )
    event(f"{len(limited)} limits, {'something' if running else 'nothing'} runs")


@enough
@given(fleets(), all_limits(), owned("a"))
def test_nothing_waits_that_the_limits_and_the_nodes_allow(
    fleet: list[Node], limited: Limits, wanted: list[Workload]
) -> None:
    cluster = under(fleet, limited)
    made = planned(cluster, wanted)
    running = [container_of(placement) for placement in made.placements]
    for workload in wanted:
        if workload.metadata.uid in made.refusals and not workload.spec.gang:
            could = [m.metadata.name for m in fleet if Books.of(m, running).fits(workload)]
            allowed = [m.metadata.name for m in fleet if may_start(workload, m, running, limited)]
            assert not set(could) & set(allowed), workload.metadata.name


@enough
@given(fleets(), all_limits(), owned("a"))
def test_what_is_over_a_limit_never_runs_and_what_has_reached_one_runs_without_the_others(
    fleet: list[Node], limited: Limits, wanted: list[Workload]
) -> None:
    cluster = under(fleet, limited)
    run(cluster, wanted)
    for workload in wanted:
        code = explain(cluster, workload).reason.code
        alone = explain(under(fleet, limited), workload).reason.code
        if code in OVER_CODES:
            assert not planned(under(fleet, limited), [workload]).placements
            event("over")
        elif code in REACHED_CODES:
            assert any(use_of(account, run(under(fleet, limited), wanted)) != Use() for account in limited)
            event("reached")
        assert alone not in REACHED_CODES


@enough
@given(fleets(), owned("a"), st.randoms(use_true_random=False))
def test_use_is_the_same_after_any_history(fleet: list[Node], wanted: list[Workload], random: object) -> None:
    containers = run(cluster_of(*fleet), wanted)
    cluster = Cluster()
    told: dict[str, Container] = {}
    for _ in range(4 * len(containers)):
        container = Container()
        container.CopyFrom(random.choice(containers))  # type: ignore[attr-defined]
        before = told.get(container.metadata.uid)
        if before is not None and before.status.phase in GIVEN_UP:
            continue
        container.status.phase = random.choice(  # type: ignore[attr-defined]
            [ContainerStatus.ASSIGNED, ContainerStatus.RUNNING, ContainerStatus.LOST, ContainerStatus.EXITED]
        )
        told[container.metadata.uid] = container
        cluster.set_container(container)
        for account in ACCOUNTS:
            assert cluster.accounts.use(account) == use_of(account, told.values())
