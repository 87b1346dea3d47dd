"""Limits of users and groups: who is held back, with which figure, and who is not."""

import pytest
from google.protobuf.json_format import ParseDict

from pwm.api.v1.common_pb2 import Actor, Reason
from pwm.api.v1.identity_pb2 import ResourceLimits
from pwm.api.v1.workload_pb2 import ContainerStatus, Workload
from pwm.controlplane.core.limits import (
    GROUP,
    OVER_CODES,
    REACHED_CODES,
    USER,
    Account,
    HeldBack,
    Start,
    Use,
    What,
    bounds_of,
    held_back,
)
from pwm.controlplane.core.scheduling.cluster import Cluster
from pwm.controlplane.core.scheduling.explain import explain
from pwm.controlplane.core.scheduling.plan import Plan, plan
from pwm.controlplane.core.scheduling.spec import container_spec
from tests.unit.scheduling.machines import GIB, cluster_of, container_of, node, waiting_for, workload

ANN, VISION = Account(USER, "ann"), Account(GROUP, "vision")


def limits(**resources: object) -> ResourceLimits:
    return ParseDict(resources, ResourceLimits())


def of_ann(name: str, **spec: object) -> Workload:
    """A workload that ann created, in the group vision."""
    made = workload(name, **spec)  # type: ignore[arg-type]
    made.metadata.created_by.CopyFrom(Actor(type=Actor.USER, name="ann"))
    return made


def limited(account: Account = ANN, **resources: object) -> Cluster:
    """Two nodes with 8 GPUs and 32 cores each, and the limits of one account."""
    cluster = cluster_of(*(node(f"n{n}", gpus=8, cores=32, memory=128 * GIB) for n in (1, 2)))
    cluster.set_limits(account, limits(**resources))
    return cluster


def start(cluster: Cluster, *wanted: Workload) -> Plan:
    """Plan these, and let what is placed run."""
    made = plan(cluster, [item for each in wanted for item in waiting_for(each)], now_ms=0, seed=0)
    for placement in made.placements:
        cluster.set_container(container_of(placement))
    return made


def placed(made: Plan) -> list[str]:
    return [f"{p.waiting.workload.metadata.name}.{p.waiting.replica}" for p in made.placements]


def test_a_container_counts_for_who_created_its_workload_and_for_its_group() -> None:
    cluster = limited()
    start(
        cluster, of_ann("a", gpus=2, cpu="4", memory="8GiB", replicas=2), workload("b", gpus=1, cpu="1", memory="1GiB")
    )
    assert cluster.accounts.use(ANN) == Use(workloads=1, gpus=4, cpu_millis=8000, memory_bytes=16 * GIB)
    assert cluster.accounts.use(VISION) == Use(workloads=2, gpus=5, cpu_millis=9000, memory_bytes=17 * GIB)


@pytest.mark.parametrize("phase", [ContainerStatus.EXITED, ContainerStatus.FAILED, ContainerStatus.LOST])
def test_what_has_ended_or_is_lost_counts_no_more(phase: ContainerStatus.Phase.ValueType) -> None:
    cluster = limited(gpus={"total": 2})
    first = start(cluster, of_ann("a", gpus=2)).placements[0]
    assert placed(start(cluster, of_ann("b", gpus=2))) == []
    container = container_of(first)
    container.status.phase = phase
    for _ in range(2):  # told twice it counts once
        cluster.set_container(container)
    assert cluster.accounts.use(ANN) == Use()
    assert placed(start(cluster, of_ann("b", gpus=2))) == ["b.0"]


TOTALS = [
    ({"gpus": {"total": 4}}, {"gpus": 3}, {"gpus": 2}, Reason.TOO_MANY_GPUS,
     "user ann may have 4 GPUs at once and uses 3; this needs 2"),
    ({"cpus": {"total": 8}}, {"cpu": "6"}, {"cpu": "2500m"}, Reason.TOO_MANY_CPUS,
     "user ann may have 8 CPUs at once and uses 6; this needs 2.5"),
    ({"memory": "64GiB"}, {"memory": "40GiB"}, {"memory": "32GiB"}, Reason.TOO_MUCH_MEMORY,
     "user ann may have 64GiB of memory at once and uses 40GiB; this needs 32GiB"),
    ({"workloads": {"concurrently": 1}}, {}, {}, Reason.TOO_MANY_WORKLOADS,
     "user ann may run 1 workload at once and runs 1"),
]  # fmt: skip


@pytest.mark.parametrize(("allowed", "has", "wants", "code", "sentence"), TOTALS)
def test_who_has_reached_a_total_waits_and_is_told_the_figures(
    allowed: dict[str, object], has: dict[str, object], wants: dict[str, object], code: int, sentence: str
) -> None:
    cluster = limited(**allowed)
    first = of_ann("a", **has)
    held = start(cluster, first, of_ann("b", **wants), workload("others", **wants))  # type: ignore[arg-type]
    assert placed(held) == ["a.0", "others.0"]
    for explanation in (held.refusals["b"], explain(cluster, of_ann("b", **wants))):
        assert (explanation.reason.code, explanation.reason.message) == (code, sentence)
        assert explanation.possible
        assert "have spec.limits.resources." in explanation.suggestions[0]
    cluster.drop_container("a.0.1")
    assert placed(start(cluster, of_ann("b", **wants))) == ["b.0"]


NEVER = [
    ({"gpus": {"perWorkload": 4}}, {"gpus": 4, "replicas": 2}, Reason.OVER_GPU_LIMIT,
     "user ann may have 4 GPUs per workload; this asks for 8 (2 replicas)"),
    ({"gpus": {"perWorkload": 0}}, {"gpus": 1}, Reason.OVER_GPU_LIMIT,
     "user ann may have no GPU per workload; this asks for 1"),
    ({"gpus": {"total": 4}}, {"gpus": 5}, Reason.OVER_GPU_LIMIT, "user ann may have 4 GPUs at once; this needs 5"),
    ({"gpus": {"total": 4}}, {"gpus": 2, "replicas": 3, "gang": True}, Reason.OVER_GPU_LIMIT,
     "user ann may have 4 GPUs at once; this needs 6 (3 replicas)"),
    ({"cpus": {"perWorkload": 1}}, {"cpu": "500m", "replicas": 3}, Reason.OVER_CPU_LIMIT,
     "user ann may have 1 CPU per workload; this asks for 1.5 (3 replicas)"),
    ({"cpus": {"perWorkload": 3}}, {"gpus": 1}, Reason.OVER_CPU_LIMIT,  # its share of a node is 4
     "user ann may have 3 CPUs per workload; this asks for 4"),
    ({"cpus": {"total": 2}}, {"cpu": "3"}, Reason.OVER_CPU_LIMIT, "user ann may have 2 CPUs at once; this needs 3"),
    ({"memory": "1GiB"}, {"memory": "2GiB"}, Reason.OVER_MEMORY_LIMIT,
     "user ann may have 1GiB of memory at once; this needs 2GiB"),
    ({"workloads": {"concurrently": 0}}, {}, Reason.OVER_WORKLOAD_LIMIT, "user ann may run no workload at once"),
    ({"nodes": {"deny": ["n1", "n2"]}}, {}, Reason.NODE_NOT_ALLOWED, "no node is open to user ann"),
    ({"nodes": {"allow": ["n3"]}}, {"selectors": {"node": {"name": "n2"}}}, Reason.NODE_NOT_ALLOWED,
     "n2 is not among the nodes allowed to user ann"),
    ({"nodes": {"deny": ["n2"]}}, {"selectors": {"node": {"name": "n2"}}}, Reason.NODE_NOT_ALLOWED,
     "n2 is denied to user ann"),
]  # fmt: skip


@pytest.mark.parametrize(("allowed", "wants", "code", "sentence"), NEVER)
def test_what_can_never_run_under_a_limit_is_told_so(
    allowed: dict[str, object], wants: dict[str, object], code: int, sentence: str
) -> None:
    cluster = limited(**allowed)
    held = start(cluster, of_ann("a", **wants))
    assert placed(held) == []
    for explanation in (held.refusals["a"], explain(cluster, of_ann("a", **wants))):
        assert (explanation.reason.code, explanation.reason.message) == (code, sentence)
        assert not explanation.possible
        assert explanation.reason.code in OVER_CODES
    cluster.set_limits(ANN, ResourceLimits())
    assert len(start(cluster, of_ann("a", **wants)).placements) == wants.get("replicas", 1)


def test_nodes_are_chosen_among_those_that_user_and_group_may_use() -> None:
    cluster = limited(nodes={"deny": ["n1"]})
    assert [p.node for p in start(cluster, of_ann("a", replicas=3)).placements] == ["n2"] * 3
    cluster.set_limits(VISION, limits(nodes={"allow": ["n1"]}))
    assert placed(start(cluster, of_ann("b"))) == []
    cluster.set_limits(ANN, limits(nodes={"allow": ["pwm.all"]}))
    assert [p.node for p in start(cluster, of_ann("c")).placements] == ["n1"]


def test_who_may_use_no_node_at_all_is_told_apart_from_who_waits_for_one() -> None:
    cluster = limited(nodes={"deny": ["n1"]})
    here, gone = {"selectors": {"node": {"name": "n1"}}}, {"selectors": {"node": {"name": "n9"}}}
    made = plan(
        cluster,
        [*waiting_for(of_ann("denied", **here)), *waiting_for(of_ann("waits", gpus=9)),
         *waiting_for(of_ann("lost", **gone)), *waiting_for(workload("other", gpus=9))],
        now_ms=0, seed=0,
    )  # fmt: skip
    assert made.refusals.without_node == ["denied"]
    denied = made.refusals["denied"]
    assert denied.reason.message == "n1 is denied to user ann"
    assert denied.suggestions == [
        "leave selectors.node.name out to run on any node",
        "have spec.limits.resources.nodes of user ann widened",
    ]


def test_the_limits_of_a_group_count_all_members_together() -> None:
    cluster = limited(VISION, gpus={"total": 3})
    made = start(cluster, of_ann("a", gpus=2), workload("b", gpus=2), workload("c", gpus=1))
    assert placed(made) == ["a.0", "c.0"]
    assert made.refusals["b"].reason.message == "group vision may have 3 GPUs at once and uses 2; this needs 2"


def test_of_an_array_as_many_run_as_the_total_allows() -> None:
    cluster = limited(gpus={"total": 3})
    array = of_ann("a", gpus=1, replicas=10)
    assert placed(start(cluster, array)) == ["a.0", "a.1", "a.2"]
    cluster.drop_container("a.1.1")
    made = plan(cluster, waiting_for(array, first=3), now_ms=0, seed=0)
    assert placed(made) == ["a.3"]


def test_a_gang_that_waits_for_a_total_takes_nothing_of_it() -> None:
    cluster = limited(gpus={"total": 4})
    start(cluster, of_ann("a", gpus=1))
    made = start(cluster, of_ann("gang", gpus=2, replicas=2, gang=True), of_ann("single", gpus=3))
    assert placed(made) == ["single.0"]
    assert made.refusals["gang"].reason.message == (
        "user ann may have 4 GPUs at once and uses 1; this needs 4 (2 replicas)"
    )


def test_a_gang_that_does_not_fit_on_the_nodes_gives_back_what_it_took() -> None:
    cluster = limited(gpus={"total": 16})
    made = start(cluster, of_ann("gang", gpus=5, replicas=3, gang=True), of_ann("single", gpus=8))
    assert placed(made) == ["single.0"]
    assert made.refusals["gang"].reason.code == Reason.GANG_DOES_NOT_FIT


def test_replicas_of_a_workload_that_runs_are_not_held_back_by_the_number_of_workloads() -> None:
    cluster = limited(workloads={"concurrently": 1})
    assert placed(start(cluster, of_ann("a", replicas=3), of_ann("b"))) == ["a.0", "a.1", "a.2"]


def test_a_lowered_limit_holds_back_only_who_takes_more_of_the_same() -> None:
    cluster = limited(gpus={"total": 4})
    start(cluster, of_ann("a", gpus=4))
    cluster.set_limits(ANN, limits(gpus={"total": 1}))
    made = start(cluster, of_ann("b", gpus=1), of_ann("c", cpu="1"))
    assert placed(made) == ["c.0"]
    assert made.refusals["b"].reason.message == "user ann may have 1 GPU at once and uses 4; this needs 1"


def test_a_share_that_is_too_much_on_one_node_may_be_had_on_another() -> None:
    # A GPU comes with 4 cores on n1 and with 2 on n2.
    cluster = cluster_of(node("n1", gpus=2, cores=8), node("n2", gpus=4, cores=8))
    cluster.set_limits(ANN, limits(cpus={"total": 5}))
    assert [p.node for p in start(cluster, of_ann("a", gpus=1, replicas=3)).placements] == ["n1"]
    cluster.set_limits(ANN, limits(cpus={"perWorkload": 3}))
    assert [p.node for p in start(cluster, of_ann("b", gpus=1)).placements] == ["n2"]
    start(cluster, workload("filler", gpus=3, cpu="1", memory="1GiB"))
    held = explain(cluster, of_ann("c", gpus=1)).reason
    assert held.message == "user ann may have 3 CPUs per workload; this asks for 4"


def test_the_node_that_was_filled_last_is_left_when_its_share_is_too_much() -> None:
    # A GPU comes with 8 cores on n1 and with 2 on n2.
    cluster = cluster_of(node("n1", gpus=2, cores=16), node("n2", gpus=4, cores=8))
    cluster.set_limits(ANN, limits(cpus={"total": 12}))
    assert [p.node for p in start(cluster, of_ann("a", gpus=1, replicas=4)).placements] == ["n1", "n2", "n2"]


def test_who_could_not_run_anyway_hears_of_that_and_not_of_a_total() -> None:
    cluster = limited(workloads={"concurrently": 1})
    start(cluster, of_ann("a"))
    assert explain(cluster, of_ann("b", gpus=1, models=["H100"])).reason.code == Reason.EMPTY_GPU_SELECTOR


def test_a_container_of_nobody_counts_for_its_group_only() -> None:
    cluster = limited(VISION, workloads={"concurrently": 1})
    made = start(cluster, workload("a"), of_ann("b"))
    assert placed(made) == ["a.0"]
    assert container_spec(workload("a"), made.placements[0], revision=1).owner == ""
    assert cluster.accounts.use(ANN) == Use()


def test_every_kind_of_limit_has_codes_of_its_own_kind() -> None:
    assert REACHED_CODES.isdisjoint(OVER_CODES)
    assert all(what.over in OVER_CODES for what in What)


def test_no_limits_are_no_bounds() -> None:
    assert bounds_of(ANN, ResourceLimits()) is None
    assert bounds_of(ANN, limits(nodes={"allow": ["pwm.all"]})) is None
    zero = bounds_of(ANN, limits(gpus={"total": 0}))
    assert zero is not None
    assert zero.has_totals
    assert held_back(Start(cpu_millis=1000), [(zero, Use(), False)]) is None
    assert isinstance(held_back(Start(gpus=1), [(zero, Use(), False)]), HeldBack)
