"""Where replicas go, and which devices they get."""

import pytest

from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.workload_pb2 import ContainerStatus
from pwm.controlplane.core.scheduling.plan import RESERVE_AFTER_MS, RESERVE_FOR_MS, plan
from pwm.controlplane.core.scheduling.queue import Waiting, order, priority_of
from tests.unit.scheduling.machines import (
    A100,
    GIB,
    T4,
    V100,
    cluster_of,
    container_of,
    node,
    nodes_of,
    planned,
    run,
    waiting_for,
    workload,
)

# ---- the queue


def test_higher_priority_goes_first_then_who_has_waited_longest() -> None:
    def waiting(name: str, priority: str, since_ms: int) -> Waiting:
        return Waiting(workload(name, priority=priority), 0, 1, since_ms)

    queue = [waiting("a", "low", 1), waiting("b", "", 5), waiting("c", "7", 9), waiting("d", "high", 9)]
    queue += [waiting("e", "normal", 3)]
    assert [item.workload.metadata.name for item in order(queue, 10)] == ["d", "c", "e", "b", "a"]


@pytest.mark.parametrize(
    ("text", "number"), [("low", -100), ("normal", 0), ("", 0), ("high", 100), ("-3", -3), ("HIGH", 100), ("soon", 0)]
)
def test_a_priority_is_a_word_or_a_number(text: str, number: int) -> None:
    assert priority_of(text) == number


def test_a_wait_that_starts_in_the_future_is_no_head_start_and_no_handicap() -> None:
    late, early = workload("a"), workload("b")
    queue = order([Waiting(late, 0, 1, 99_000), Waiting(early, 0, 1, 5)], 10)
    assert [item.workload.metadata.name for item in queue] == ["b", "a"]


# ---- which node


def test_fill_takes_the_node_with_the_fewest_free_gpus_that_are_enough() -> None:
    cluster = cluster_of(node("n1", gpus=8), node("n2", gpus=4), node("n3", gpus=2))
    assert nodes_of(run(cluster, workload("two", gpus=2))) == ["n3"]
    assert nodes_of(run(cluster, workload("one", gpus=1))) == ["n2"]
    assert nodes_of(run(cluster, workload("three", gpus=3))) == ["n2"]
    assert nodes_of(run(cluster, workload("eight", gpus=8))) == ["n1"]


def test_fill_puts_replicas_side_by_side() -> None:
    cluster = cluster_of(node("n1"), node("n2"))
    assert nodes_of(planned(cluster, workload("web", cpu="1", memory="1GiB", replicas=4))) == ["n1"] * 4


def test_a_cpu_workload_leaves_gpu_nodes_alone_while_it_fits_elsewhere() -> None:
    cluster = cluster_of(node("a-gpu", gpus=4), node("z-cpu", cores=2))
    assert nodes_of(planned(cluster, workload("web", cpu="1", memory="1GiB", replicas=3))) == [
        "z-cpu",
        "z-cpu",
        "a-gpu",
    ]


def test_a_cpu_workload_that_needs_a_gpu_node_takes_one_whose_gpus_are_gone() -> None:
    cluster = cluster_of(node("n1", gpus=2), node("n2", gpus=2))
    run(cluster, workload("train", gpus=2, cpu="4", memory="1GiB", selectors={"node": {"name": "n2"}}))
    assert nodes_of(planned(cluster, workload("web"))) == ["n2"]


def test_distribute_spreads_the_replicas_of_a_workload_and_counts_those_that_run() -> None:
    cluster = cluster_of(node("n1"), node("n2"), node("n3"))
    spread = workload("web", cpu="1", memory="1GiB", affinity="Distribute", replicas=2)
    assert nodes_of(run(cluster, spread)) == ["n1", "n2"]
    spread.spec.replica.count = 5
    made = plan(cluster, waiting_for(spread, first=2), now_ms=0, seed=0)
    assert nodes_of(made) == ["n3", "n1", "n2"]


def test_distribute_prefers_the_least_used_of_the_nodes_with_as_many_replicas() -> None:
    cluster = cluster_of(node("n1"), node("n2"))
    run(cluster, workload("other", cpu="4", memory="1GiB", selectors={"node": {"name": "n1"}}))
    assert nodes_of(planned(cluster, workload("web", affinity="Distribute"))) == ["n2"]


def test_random_draws_the_same_for_the_same_seed_and_reaches_every_node() -> None:
    cluster = cluster_of(*(node(f"n{i}") for i in range(4)))
    web = workload("web", affinity="Random")
    drawn = [nodes_of(planned(cluster, web, seed=seed))[0] for seed in range(60)]
    assert drawn == [nodes_of(planned(cluster, web, seed=seed))[0] for seed in range(60)]
    assert set(drawn) == {"n0", "n1", "n2", "n3"}


def test_a_plan_does_not_change_the_cluster() -> None:
    cluster = cluster_of(node("n1", gpus=2))
    first = planned(cluster, workload("train", gpus=2))
    assert first.placements
    assert planned(cluster, workload("train", gpus=2)).placements == first.placements
    assert cluster.nodes["n1"].used.gpus == 0


# ---- which devices


def test_gpus_come_from_one_numa_side_where_one_has_enough() -> None:
    cluster = cluster_of(node("n1", gpus=8))
    run(cluster, workload("first", gpus=1, cpu="1", memory="1GiB"))
    made = run(cluster, workload("second", gpus=4, cpu="1", memory="1GiB"))
    assert made.placements[0].gpu_uuids == ("n1/4", "n1/5", "n1/6", "n1/7")


def test_gpus_of_several_sides_are_joined_when_none_has_enough() -> None:
    cluster = cluster_of(node("n1", gpus=8))
    made = run(cluster, workload("six", gpus=6))
    assert made.placements[0].gpu_uuids == ("n1/0", "n1/1", "n1/2", "n1/3", "n1/4", "n1/5")


def test_the_small_rest_of_a_side_is_used_up_before_another_side_is_broken() -> None:
    cluster = cluster_of(node("n1", gpus=8))
    run(cluster, workload("five", gpus=5, cpu="1", memory="1GiB"))
    made = run(cluster, workload("two", gpus=2, cpu="1", memory="1GiB"))
    assert made.placements[0].gpu_uuids == ("n1/5", "n1/6")


def test_only_the_asked_for_models_of_a_mixed_node_are_given() -> None:
    cluster = cluster_of(node("n1", gpus=[T4, V100, T4, V100]))
    made = run(cluster, workload("train", gpus=2, models=["v100"], cpu="1", memory="1GiB"))
    assert made.placements[0].gpu_uuids == ("n1/1", "n1/3")
    assert not planned(cluster, workload("more", gpus=1, models=["V100"], cpu="1", memory="1GiB")).placements


def test_a_gpu_with_a_foreign_process_is_not_given_away() -> None:
    cluster = cluster_of(node("n1", gpus=2, broken=[0]))
    assert planned(cluster, workload("one", gpus=1)).placements[0].gpu_uuids == ("n1/1",)
    assert not planned(cluster, workload("two", gpus=2)).placements


def test_exclusive_cores_are_whole_and_taken_once() -> None:
    cluster = cluster_of(node("n1", cores=4))
    made = run(cluster, workload("pinned", cpu="1500m", exclusive=True, memory="1GiB", replicas=2))
    assert [placement.cpu_ids for placement in made.placements] == [(0, 1), (2, 3)]
    assert [placement.resources.cpu_millis for placement in made.placements] == [2000, 2000]
    assert not planned(cluster, workload("more", cpu="100m")).placements


def test_exclusive_cores_lie_beside_the_gpu() -> None:
    cluster = cluster_of(node("n1", cores=16, gpus=4))
    run(cluster, workload("first", gpus=3, cpu="1", memory="1GiB"))
    made = planned(cluster, workload("pinned", gpus=1, cpu="4", exclusive=True, memory="1GiB"))
    assert made.placements[0].cpu_ids == (12, 13, 14, 15)


# ---- gangs


def test_a_gang_starts_whole_or_not_at_all() -> None:
    cluster = cluster_of(node("n1", gpus=4), node("n2", gpus=4))
    assert len(planned(cluster, workload("fits", gpus=2, replicas=4, gang=True)).placements) == 4
    made = planned(cluster, workload("gang", gpus=2, replicas=5, gang=True), workload("single", gpus=4))
    assert [placement.waiting.workload.metadata.name for placement in made.placements] == ["single"]
    assert made.refusals["gang"].reason.code == Reason.GANG_DOES_NOT_FIT


def test_what_a_gang_gives_back_is_free_for_the_next() -> None:
    cluster = cluster_of(node("n1", cores=4, gpus=2))
    gang = workload("gang", gpus=1, cpu="1", exclusive=True, replicas=3, gang=True, priority="high")
    made = planned(cluster, gang, workload("after", gpus=2, cpu="4", exclusive=True))
    (placement,) = made.placements
    assert placement.gpu_uuids == ("n1/0", "n1/1")
    assert placement.cpu_ids == (0, 1, 2, 3)


# ---- waiting long


def test_small_jobs_go_around_a_large_one_that_does_not_fit() -> None:
    cluster = cluster_of(node("n1", gpus=4))
    run(cluster, workload("running", gpus=1))
    assert [
        p.waiting.workload.metadata.name
        for p in planned(cluster, workload("big", gpus=4), workload("small", gpus=1)).placements
    ] == ["small"]


@pytest.mark.parametrize(
    ("waited_ms", "placed"), [(RESERVE_AFTER_MS - 1, 1), (RESERVE_AFTER_MS, 0), (RESERVE_AFTER_MS + RESERVE_FOR_MS, 1)]
)
def test_who_waits_long_gets_room_kept_for_a_while(waited_ms: int, placed: int) -> None:
    cluster = cluster_of(node("n1", gpus=4))
    run(cluster, workload("running", gpus=1))
    queue = [*waiting_for(workload("big", gpus=4)), *waiting_for(workload("small", gpus=1), since_ms=waited_ms)]
    made = plan(cluster, queue, now_ms=waited_ms, seed=0)
    assert len(made.placements) == placed
    if not placed:
        assert made.refusals["big"].reason.message == "needs 4 GPUs, 3 free of 4 on n1"
        assert made.refusals["small"].reason.code == Reason.NO_GPU_FREE
        assert made.refusals["small"].reason.message == "n1 is kept for vision/big, which has waited for 10m"


def test_a_reservation_leaves_the_rest_of_the_node_and_other_nodes_to_others() -> None:
    cluster = cluster_of(node("n1", cores=16, gpus=4), node("n2", cores=16, gpus=2))
    run(cluster, workload("running", gpus=1, cpu="1", memory="1GiB", selectors={"node": {"name": "n1"}}))
    big = workload("big", gpus=4, cpu="4", memory="4GiB")
    small = workload("small", gpus=1, cpu="1", memory="1GiB", replicas=3)
    web = workload("web", cpu="10", memory="1GiB", replicas=2)
    queue = [*waiting_for(big), *waiting_for(small, since_ms=1), *waiting_for(web, since_ms=2)]
    made = plan(cluster, queue, now_ms=RESERVE_AFTER_MS, seed=0)
    assert [(p.waiting.workload.metadata.name, p.node) for p in made.placements] == [
        ("small", "n2"),
        ("small", "n2"),
        ("web", "n2"),
        ("web", "n1"),
    ]


def test_nothing_is_kept_for_who_can_never_run() -> None:
    cluster = cluster_of(node("n1", gpus=4))
    queue = [*waiting_for(workload("huge", gpus=9)), *waiting_for(workload("small", gpus=1), since_ms=1)]
    assert len(plan(cluster, queue, now_ms=RESERVE_AFTER_MS, seed=0).placements) == 1


# ---- the accounting


def test_a_container_counts_once_and_until_its_end() -> None:
    cluster = cluster_of(node("n1", gpus=2))
    (placement,) = planned(cluster, workload("train", gpus=2)).placements
    for phase in (ContainerStatus.ASSIGNED, ContainerStatus.PULLING, ContainerStatus.RUNNING, ContainerStatus.LOST):
        cluster.set_container(container_of(placement, phase=phase))
        assert cluster.nodes["n1"].used.gpus == 2
        assert cluster.nodes["n1"].used == placement.resources
    cluster.set_container(container_of(placement, phase=ContainerStatus.EXITED))
    cluster.set_container(container_of(placement, phase=ContainerStatus.DELETED))
    cluster.drop_container("train.0.1")
    assert cluster.nodes["n1"].used.gpus == 0
    assert cluster.live_replicas("train") == 0


def test_a_container_may_come_before_its_node_and_outlive_it() -> None:
    machine = node("n1", gpus=2)
    (placement,) = planned(cluster_of(machine), workload("train", gpus=2)).placements
    cluster = cluster_of()
    cluster.set_container(container_of(placement))
    cluster.set_node(machine)
    assert cluster.nodes["n1"].used.gpus == 2
    cluster.drop_node("n1")
    cluster.set_node(machine)
    assert cluster.nodes["n1"].used.gpus == 2
    assert not planned(cluster, workload("more", gpus=1)).placements


def test_a_node_that_changes_is_seen_by_the_next_plan() -> None:
    cluster = cluster_of(node("n1"))
    train = workload("train", gpus=1, models=["V100"])
    assert not planned(cluster, train).placements
    cluster.set_node(node("n1", gpus=[V100]))
    assert nodes_of(planned(cluster, train)) == ["n1"]
    cluster.set_node(node("n1", gpus=[A100]))
    assert not planned(cluster, train).placements


def test_memory_for_the_machine_itself_is_never_promised() -> None:
    cluster = cluster_of(node("n1", memory=64 * GIB))
    assert cluster.nodes["n1"].capacity.memory_bytes == 64 * GIB - 64 * GIB * 2 // 100
    assert not planned(cluster, workload("all", memory="64GiB")).placements
