"""Control groups of both versions, on folders that stand in for the kernel's."""

import os
from pathlib import Path

import pytest

from pwm.nodeagent.drivers.process_cgroup import PIDS_LIMIT, Cgroup, Limits, Use

LIMITS = Limits(cpu_millis=1500, memory_bytes=64 << 20)


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def _version_1(path: Path) -> Path:
    for controller in ("cpu", "cpuacct", "memory", "pids", "blkio"):
        (path / controller).mkdir()
    return path


def _version_2(path: Path) -> Path:
    (path / "cgroup.controllers").write_text("cpu memory pids\n")
    return path


def test_version_1_has_a_folder_and_a_limit_per_controller(tmp_path: Path) -> None:
    group = Cgroup("c.n.u1", root=_version_1(tmp_path))
    assert not group.exists
    assert group.create(LIMITS)
    assert (tmp_path / "memory/pwm/c.n.u1/memory.limit_in_bytes").read_text() == str(64 << 20)
    assert (tmp_path / "cpu/pwm/c.n.u1/cpu.cfs_quota_us").read_text() == "150000"
    assert (tmp_path / "pids/pwm/c.n.u1/pids.max").read_text() == str(PIDS_LIMIT)
    assert len(group.procs) == 4
    assert not (tmp_path / "blkio/pwm").exists()


def test_version_2_has_one_folder_with_all_limits(tmp_path: Path) -> None:
    group = Cgroup("c.n.u1", root=_version_2(tmp_path))
    assert group.create(LIMITS)
    folder = tmp_path / "pwm/c.n.u1"
    assert (folder / "memory.max").read_text() == str(64 << 20)
    assert (folder / "cpu.max").read_text() == "150000 100000"
    assert (tmp_path / "pwm/cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    assert group.procs == [str(folder / "cgroup.procs")]


def test_without_limits_there_are_none(tmp_path: Path) -> None:
    assert Cgroup("u", root=_version_2(tmp_path)).create(Limits(cpu_millis=0, memory_bytes=0))
    assert (tmp_path / "pwm/u/memory.max").read_text() == "max"
    assert (tmp_path / "pwm/u/cpu.max").read_text() == "max 100000"


def test_use_leaves_out_files_that_the_kernel_may_drop(tmp_path: Path) -> None:
    group = Cgroup("u", root=_version_2(tmp_path))
    group.create(LIMITS)
    folder = tmp_path / "pwm/u"
    (folder / "cpu.stat").write_text("usage_usec 2500\nuser_usec 2000\n")
    (folder / "memory.current").write_text("5000\n")
    (folder / "memory.stat").write_text("anon 1000\ninactive_file 3000\n")
    (folder / "pids.current").write_text("7\n")
    assert group.use() == Use(cpu_ns=2_500_000, memory_bytes=2_000, pids=7)


@pytest.mark.parametrize(("events", "killed"), [("oom 1\noom_kill 1\n", True), ("oom 3\noom_kill 0\n", False)])
def test_an_oom_kill_is_known_and_a_near_miss_is_none(tmp_path: Path, events: str, killed: bool) -> None:
    group = Cgroup("u", root=_version_2(tmp_path))
    group.create(LIMITS)
    (tmp_path / "pwm/u/memory.events").write_text(events)
    assert group.oom_killed() is killed


def test_a_machine_without_the_controllers_makes_no_group(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    group = Cgroup("u", root=tmp_path)
    assert not group.create(LIMITS)
    assert not Cgroup("u", root=tmp_path / "nothing").create(LIMITS)
    assert not group.oom_killed()
