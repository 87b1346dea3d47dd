"""Children that are kept running, and what a whole PWM on one machine refuses to start with."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pwm.localcluster import Settings, prepared
from pwm.localground import Ports, UpError, deal, docker_trouble, free_ports
from pwm.supervise import Child, Program, StartError
from tests.patience import PATIENCE_S

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]


def child(tmp_path: Path, command: list[str], said: list[str], *, stop_limit_s: float = 10.0) -> Child:
    program = Program(name="etcd", command=command, log=tmp_path / "log/etcd.log", stop_limit_s=stop_limit_s)
    return Child(program, say=said.append)


async def until(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_a_child_that_dies_is_started_again_and_that_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    kept = child(tmp_path, SLEEPER, said)
    await kept.start()
    async with asyncio.TaskGroup() as group:
        group.create_task(kept.watch())
        await kept.until_ready(lambda: kept.program.log.read_text() == "up\n", limit_s=PATIENCE_S)
        first = kept.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: kept.pid not in (None, first))
        await kept.stop()
    assert said[0].startswith("etcd ended by itself (signal SIGKILL); starting it again in 0.2 s")
    assert kept.pid is None


async def test_a_child_that_never_comes_up_is_given_up_with_the_end_of_its_log(tmp_path: Path) -> None:
    kept = child(tmp_path, [sys.executable, "-c", "raise SystemExit('no such disk')"], [])
    await kept.start()
    with pytest.raises(StartError, match="exit code 1") as caught:
        await kept.watch()
    assert caught.value.log_tail.splitlines()[-1] == "no such disk"


async def test_a_child_that_is_not_ready_in_time_is_said(tmp_path: Path) -> None:
    kept = child(tmp_path, SLEEPER, [])
    await kept.start()
    try:
        with pytest.raises(StartError, match="is not ready after 0"):
            await kept.until_ready(lambda: False, limit_s=0)
    finally:
        await kept.stop()


async def test_a_child_that_ignores_the_polite_signal_is_killed(tmp_path: Path) -> None:
    said: list[str] = []
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    )
    kept = child(tmp_path, [sys.executable, "-c", deaf], said, stop_limit_s=0.1)
    await kept.start()
    await kept.until_ready(lambda: kept.program.log.read_text() == "up\n", limit_s=PATIENCE_S)
    await kept.stop()
    assert kept.pid is None
    assert said == ["etcd does not stop; killing it"]


async def test_stopping_does_not_wait_for_the_pause_before_a_new_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = child(tmp_path, [sys.executable, "-c", ""], [])
    await kept.start()
    kept._deaths, kept._ready = 50, True
    monkeypatch.setattr("pwm.supervise.PAUSES_S", (600.0,))
    async with asyncio.TaskGroup() as group:
        group.create_task(kept.watch())
        await until(lambda: kept.pid is None)
        async with asyncio.timeout(PATIENCE_S):
            await kept.stop()


def test_children_end_with_their_parent_also_when_it_is_killed(tmp_path: Path) -> None:
    parent = f"""
import asyncio, pathlib, sys
from pwm.supervise import Child, Program
async def main():
    log = pathlib.Path({str(tmp_path)!r}) / "log"
    kept = Child(Program(name="x", command=[sys.executable, "-c", "import time; time.sleep(600)"], log=log), say=print)
    await kept.start()
    print(kept.pid, flush=True)
    await kept.watch()
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
    deadline = time.monotonic() + PATIENCE_S
    while is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- what keeps it from starting --------------------------------------------------------------------


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A machine with etcd, and with an engine unless the test takes it away."""
    monkeypatch.setattr("pwm.localcluster.found_etcd", lambda: "/bin/true")
    monkeypatch.setattr("pwm.localcluster.docker_trouble", lambda host: None)
    return Settings(state_dir=tmp_path / "state", port=0)


def test_a_second_pwm_on_the_same_directory_is_refused_with_the_place_of_the_first(settings: Settings) -> None:
    with (
        prepared(settings, say=print) as cluster,
        pytest.raises(UpError, match=f"process {os.getpid()}, {cluster.urls[0]}"),
        contextlib.ExitStack() as second,
    ):
        second.enter_context(prepared(settings, say=print))


def test_the_directory_is_free_again_afterwards(settings: Settings) -> None:
    for _ in range(2):
        with prepared(settings, say=print) as cluster:
            assert cluster.ports.first > 0
    assert settings.state_dir.stat().st_mode & 0o077 == 0


def _behind_a_free_one() -> socket.socket:
    """Listens at a port, and the one before it is free."""
    while True:
        with contextlib.suppress(OSError), socket.socket() as before:
            before.bind(("127.0.0.1", 0))
            return socket.create_server(("127.0.0.1", before.getsockname()[1] + 1))


def test_a_port_that_is_taken_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pwm.localground.PORTS_FREE_LIMIT_S", 0)
    with _behind_a_free_one() as other:
        port = other.getsockname()[1]
        taken = Settings(state_dir=settings.state_dir, port=port - 1)
        with pytest.raises(UpError, match=f"port {port} of 127.0.0.1 is taken"), prepared(taken, say=print):
            pass


def test_a_missing_engine_is_said_with_what_to_install(tmp_path: Path) -> None:
    trouble = docker_trouble(f"unix://{tmp_path}/docker.sock")
    assert trouble is not None
    assert "no Docker engine" in str(trouble)
    assert "apt-get install docker.io" in trouble.next_step


def test_an_engine_that_has_died_is_said_with_how_to_start_it(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
    trouble = docker_trouble(f"unix://{path}")
    assert trouble is not None
    assert "does not answer" in str(trouble)
    assert "systemctl start docker" in trouble.next_step


def test_without_an_engine_the_process_driver_can_do(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pwm.localcluster.docker_trouble", lambda host: UpError("no Docker engine"))
    with pytest.raises(UpError, match="no Docker engine"), prepared(settings, say=print):
        pass
    said: list[str] = []
    willing = Settings(state_dir=settings.state_dir, port=0, allow_process=True)
    with prepared(willing, say=said.append):
        assert said == ["no Docker engine; only the process driver can be used"]


def test_a_missing_etcd_is_said_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("PWM_ETCD_BIN", raising=False)
    with pytest.raises(UpError, match="etcd-server"), prepared(Settings(state_dir=tmp_path), say=print):
        pass


# --- several of each --------------------------------------------------------------------------------


def test_one_of_each_has_the_ports_in_a_row_and_further_ones_rows_ten_apart() -> None:
    assert Ports(first=4700).all() == [4700, 4701, 4702, 4703]
    three = Ports(first=4700, controllers=3, members=1)
    assert three.all() == [4700, 4710, 4720, 4701, 4711, 4721, 4702, 4703]


def test_any_free_ports_are_distinct() -> None:
    ports = free_ports(3, 5, ()).all()
    assert len(set(ports)) == len(ports) == 2 * 3 + 2 * 5


def test_the_members_of_an_etcd_keep_the_ports_they_know_each_other_by(settings: Settings) -> None:
    several = replace(settings, controllers=2, etcd=3)
    with prepared(several, say=print) as cluster:
        first = [cluster.ports.peer(member) for member in range(3)]
    with prepared(several, say=print) as cluster:
        assert [cluster.ports.peer(member) for member in range(3)] == first
        assert len(cluster.urls) == 2
        commands = [" ".join(program.command) for program in cluster._etcd_programs()]
    for member, command in enumerate(commands):
        assert f"--listen-peer-urls=http://127.0.0.1:{first[member]}" in command
        assert f"pwm-3=http://127.0.0.1:{first[2]}" in command


@pytest.mark.parametrize(("there", "asked"), [(1, 3), (3, 1), (3, 5)])
def test_an_etcd_of_another_number_of_members_is_left_alone(settings: Settings, there: int, asked: int) -> None:
    with prepared(replace(settings, etcd=there), say=print):
        (settings.state_dir / "etcd" / "member").mkdir(parents=True) if there == 1 else None
    with (
        pytest.raises(UpError, match=f"has {there} member.*not {asked}") as caught,
        prepared(replace(settings, etcd=asked), say=print),
    ):
        pass
    assert f"--etcd {there}" in caught.value.next_step


def test_agents_of_before_that_are_not_started_are_named(settings: Settings) -> None:
    (settings.state_dir / "agent").mkdir(parents=True)
    said: list[str] = []
    with prepared(replace(settings, nodes=2), say=said.append):
        pass
    assert said == ["not started: agent of an earlier `pwm up` here; what runs there waits for its return"]


def test_the_machine_is_dealt_out_whole_and_nothing_twice() -> None:
    shares = deal(3, cpus=8, memory_bytes=90, gpus=["a", "b", "c", "d"])
    assert [share.cpus for share in shares] == [3, 3, 2]
    assert [share.memory_bytes for share in shares] == [30, 30, 30]
    assert [share.gpus for share in shares] == [("a", "b"), ("c",), ("d",)]


def test_a_node_has_at_least_one_cpu() -> None:
    assert [share.cpus for share in deal(3, cpus=2, memory_bytes=9, gpus=[])] == [1, 1, 1]
