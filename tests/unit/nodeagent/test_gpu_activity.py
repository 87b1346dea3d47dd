"""How long GPUs are unused, from one look at them to the next."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from pwm.api.v1.agent_pb2 import GPUUsage
from pwm.api.v1.workload_pb2 import GPUActivity
from pwm.nodeagent.gpu.activity import MAX_PAUSE_MS, ActivityWatch

HOLDERS: Mapping[str, Sequence[str]] = {"c": ["a", "b"]}


class Looks:
    """One each 5 s; `busy`: percent, None for a GPU that was not measured."""

    def __init__(self) -> None:
        self.watch = ActivityWatch()
        self.now_ms = 1_000

    def at(self, *busy: int | None, after_ms: int = 5_000, holders: Mapping[str, Sequence[str]] = HOLDERS) -> Any:
        self.now_ms += after_ms
        usage = [
            GPUUsage(uuid=uuid, utilization=(percent or 0) / 100, measured=percent is not None, memory_used_bytes=7)
            for uuid, percent in zip("ab", busy, strict=True)
        ]
        found = self.watch.look(usage, holders, now_ms=self.now_ms)
        return {(each.uid, gpu.uuid): gpu for each in found for gpu in each.gpus}


def test_time_without_use_is_counted_from_the_first_look_with_what_the_looks_found() -> None:
    looks = Looks()
    looks.at(0, 4)
    looks.at(0, 1)
    found = looks.at(0, 1)
    assert found["c", "a"] == GPUActivity(uuid="a", unused_ms=10_000, samples=3, memory_used_bytes=7)
    assert (found["c", "b"].utilization_max, found["c", "b"].utilization_mean) == pytest.approx((0.04, 0.02))


def test_use_begins_the_time_anew_and_is_remembered() -> None:
    looks = Looks()
    looks.at(0, 0)
    found = looks.at(0, 5)
    assert (found["c", "b"].unused_ms, found["c", "b"].samples, found["c", "b"].seen_in_use) == (0, 0, True)
    found = looks.at(0, 4)
    assert (found["c", "b"].unused_ms, found["c", "b"].samples, found["c", "b"].seen_in_use) == (5_000, 1, True)
    assert (found["c", "a"].unused_ms, found["c", "a"].seen_in_use) == (10_000, False)


@pytest.mark.parametrize(("percent", "used"), [(0, False), (1, True), (30, True)])
def test_from_how_much_on_it_is_use_is_said_by_the_control_plane(percent: int, used: bool) -> None:
    looks = Looks()
    looks.watch.configure(30 if percent == 30 else 1)
    assert looks.at(percent, 0)["c", "a"].seen_in_use is used
    looks.watch.configure(0)
    assert not looks.at(4, 0)["c", "b"].seen_in_use


def test_what_was_not_measured_does_not_let_the_time_grow() -> None:
    looks = Looks()
    looks.at(0, 0)
    looks.at(0, 0)
    found = looks.at(0, None)
    assert (found["c", "a"].unused_ms, found["c", "b"].unused_ms) == (10_000, 5_000)
    assert looks.at(0, 0)["c", "b"].unused_ms == 15_000, "a short pause is no hole"


def test_a_gpu_that_is_never_measured_is_never_reported_nor_is_its_container() -> None:
    looks = Looks()
    for _ in range(100):
        assert looks.at(0, None) == {}


@pytest.mark.parametrize(("pause_ms", "unused_ms"), [(MAX_PAUSE_MS, MAX_PAUSE_MS), (MAX_PAUSE_MS + 1, 0)])
def test_after_a_long_pause_a_watch_begins_anew(pause_ms: int, unused_ms: int) -> None:
    looks = Looks()
    looks.at(0, 0)
    assert looks.at(0, 0, after_ms=pause_ms)["c", "a"].unused_ms == unused_ms


def test_a_watch_without_measures_ends() -> None:
    looks = Looks()
    looks.at(0, 0)
    assert looks.at(None, None, after_ms=MAX_PAUSE_MS)
    assert not looks.at(None, None, after_ms=1)


def test_the_time_of_one_container_is_not_that_of_the_next_with_the_same_gpu() -> None:
    looks = Looks()
    looks.at(0, 0)
    looks.at(0, 0)
    found = looks.at(0, 0, holders={"d": ["a"], "e": []})
    assert {key: gpu.unused_ms for key, gpu in found.items()} == {("d", "a"): 0}
