"""What replicas get when they did not say how much, and what nodes keep for themselves."""

import pytest

from pwm.controlplane.core.scheduling.nodes import allocatable_memory
from pwm.controlplane.core.scheduling.shares import requirements
from tests.unit.scheduling.machines import GIB, cluster_of, node, planned, workload

MIB = 1024**2


@pytest.mark.parametrize(
    ("total", "reserve"),
    [(1 * GIB, 256 * MIB), (256 * MIB, 128 * MIB), (100 * GIB, 2 * GIB), (4096 * GIB, 8 * GIB), (0, 0)],
)
def test_a_node_keeps_a_little_memory_for_itself(total: int, reserve: int) -> None:
    assert total - allocatable_memory(total) == reserve


def test_a_gpu_workload_gets_cores_and_memory_in_proportion_to_its_gpus() -> None:
    machine = node("n1", cores=64, memory=512 * GIB, gpus=8)
    share = requirements(workload("train", gpus=2), machine)
    assert share.resources.cpu_millis == 16_000
    assert share.resources.memory_bytes == allocatable_memory(512 * GIB) // 4
    assert share.resources.gpus == 2
    assert share.cores == 0


def test_what_is_said_is_taken_as_it_is() -> None:
    machine = node("n1", cores=64, memory=512 * GIB, gpus=8)
    share = requirements(workload("train", gpus=2, cpu="500m", memory="3GiB"), machine).resources
    assert (share.cpu_millis, share.memory_bytes) == (500, 3 * GIB)


def test_a_cpu_workload_gets_one_core_and_its_share_of_memory() -> None:
    share = requirements(workload("web"), node("n1", cores=16, memory=64 * GIB)).resources
    assert share.cpu_millis == 1000
    assert share.memory_bytes == pytest.approx(allocatable_memory(64 * GIB) / 16, abs=1024)


def test_memory_follows_the_cpu_that_a_cpu_workload_asks_for() -> None:
    share = requirements(workload("web", cpu="4"), node("n1", cores=16, memory=64 * GIB)).resources
    assert share.memory_bytes == pytest.approx(allocatable_memory(64 * GIB) / 4, abs=1024)


def test_exclusive_cores_default_to_the_share_in_whole_cores() -> None:
    machine = node("n1", cores=10, gpus=4)
    assert requirements(workload("train", gpus=1, exclusive=True), machine).cores == 2
    assert requirements(workload("web", exclusive=True), machine).cores == 1


@pytest.mark.parametrize("word", ["", "pwm.all", "All", "0"])
def test_no_number_of_cpus_means_the_share(word: str) -> None:
    assert requirements(workload("web", cpu=word), node("n1")).resources.cpu_millis == 1000


@pytest.mark.parametrize("gpus", [3, 7, 8])
def test_shares_of_all_gpus_fit_together(gpus: int) -> None:
    cluster = cluster_of(node("n1", cores=13, memory=100 * GIB - 7, gpus=gpus))
    assert len(planned(cluster, workload("train", gpus=1, replicas=gpus)).placements) == gpus


def test_shares_of_all_cores_fit_together() -> None:
    cluster = cluster_of(node("n1", cores=7, memory=10 * GIB + 1))
    assert len(planned(cluster, workload("web", replicas=7)).placements) == 7
