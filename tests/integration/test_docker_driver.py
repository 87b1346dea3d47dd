"""The Docker driver on a real engine."""

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import time
import uuid
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from pwm.api.v1.agent_pb2 import Assignment, PullProgress, StartExec, TerminalSize
from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.workload_pb2 import ContainerSpec
from pwm.images import ensure_busybox
from pwm.nodeagent.drivers.docker import DockerDriver
from pwm.nodeagent.drivers.driver import (
    ContainerMissing,
    ContainerNotRunning,
    DriverError,
    EngineUnreachable,
    ExecSession,
    ImageMissing,
    Runtime,
)
from pwm.nodeagent.logs.tail import FileTail
from tests.docker_engine import DockerEngine, IsolatedDockerdFactory
from tests.integration.registry import Registry
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.docker

T = TypeVar("T")
FOREVER = ["sh", "-c", "while :; do sleep 0.1; done"]


@asynccontextmanager
async def running_driver(host: str, node: str) -> AsyncIterator[DockerDriver]:
    """A driver whose containers are removed at the end, whatever happened."""
    driver = DockerDriver(host.removeprefix("unix://"), node=node, cluster="tests")
    watching = asyncio.ensure_future(driver.run())
    try:
        assert (await driver.probe()).ready
        yield driver
    finally:
        with contextlib.suppress(EngineUnreachable):
            for found in await driver.adopt():
                await driver.remove(found.uid)
        watching.cancel()
        await asyncio.wait([watching])
        await driver.close()


async def quietly(start: Callable[[], T]) -> T:
    """Start an engine. The SDK that waits for it leaves a socket open per refused connection; they go here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        started = await asyncio.to_thread(start)
        gc.collect()
    return started


@pytest.fixture
def node() -> str:
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
async def driver(docker_engine: DockerEngine, node: str) -> AsyncIterator[DockerDriver]:
    async with running_driver(docker_engine.host, node) as driver:
        yield driver


async def docker(engine: DockerEngine, *arguments: str) -> None:
    """The docker command, as somebody beside PWM uses it."""
    command = ["docker", "-H", engine.host, *arguments]
    await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)


Order = Callable[..., Assignment]


@pytest.fixture
def order(busybox_image: str) -> Order:
    return maker(busybox_image)


def maker(image: str) -> Order:
    def make(*cmd: str, **spec: Any) -> Assignment:
        uid = uuid.uuid4().hex
        spec = {"workload": f"wk-{uid[:8]}", "attempt": 1, "image": image, "cmd": cmd, **spec}
        return Assignment(uid=uid, name=f"wk-{uid[:8]}.0.1", group="lab", spec=ContainerSpec(**spec))

    return make


async def launch(driver: DockerDriver, assignment: Assignment) -> str:
    await driver.create(assignment)
    await driver.start(assignment.uid)
    return assignment.uid


async def soon(awaitable: Awaitable[T]) -> T:
    async with asyncio.timeout(PATIENCE_S):
        return await awaitable


def printed(driver: DockerDriver, uid: str) -> bytes:
    """Everything in the container's log, as the spool would read it."""
    source = driver.output(uid)
    assert source is not None
    tail = FileTail(source.path, source.format)
    try:
        data = b""
        while batch := tail.read().data:
            data += batch
        return data
    finally:
        tail.close()


# -- ends


@pytest.mark.parametrize("code", [0, 3, 255])
async def test_an_end_has_its_exit_code_and_time(driver: DockerDriver, order: Order, code: int) -> None:
    before = time.time_ns()
    uid = await launch(driver, order("sh", "-c", f"exit {code}"))
    ended = await soon(driver.wait(uid))
    assert ended.exit_code == code
    assert before < ended.finished_at_ns < time.time_ns()
    assert not ended.oom_killed


async def test_a_container_that_needs_more_memory_than_it_may_is_oom_killed(driver: DockerDriver, order: Order) -> None:
    # Not at once: engines overlook what happens before they watch (containerd #8180).
    uid = await launch(
        driver, order("sh", "-c", "sleep 1; x=$(yes aaaaaaaaaaaaaaaa)", resources={"memory_bytes": 16 << 20})
    )
    ended = await soon(driver.wait(uid))
    assert (ended.exit_code, ended.oom_killed) == (137, True)


async def test_all_output_is_in_the_log_when_the_end_is_known(driver: DockerDriver, order: Order) -> None:
    uid = await launch(driver, order("sh", "-c", "seq 1 20000; printf '\\377\\000end'; echo bad >&2"))
    await soon(driver.wait(uid))
    lines = b"".join(b"%d\n" % n for n in range(1, 20001))
    assert sorted(printed(driver, uid)) == sorted(lines + b"\xff\x00endbad\n")


async def test_a_container_removed_behind_our_back_is_missing_and_not_ended(
    driver: DockerDriver, order: Order, docker_engine: DockerEngine
) -> None:
    assignment = order(*FOREVER)
    runtime_id = await driver.create(assignment)
    await driver.start(assignment.uid)
    waiting = asyncio.ensure_future(driver.wait(assignment.uid))
    await docker(docker_engine, "rm", "-f", runtime_id)
    with pytest.raises(ContainerMissing):
        await soon(waiting)


# -- failing to begin


@pytest.mark.parametrize(
    ("cmd", "code", "exit_code"),
    [
        (["no-such-program"], Reason.COMMAND_NOT_FOUND, 127),
        (["/no/such/program"], Reason.COMMAND_NOT_FOUND, 127),
        (["/bin"], Reason.ERROR_STARTING_CONTAINER, 126),
    ],
)
async def test_a_command_that_cannot_run_says_so(
    driver: DockerDriver, order: Order, cmd: list[str], code: Reason.Code.ValueType, exit_code: int
) -> None:
    assignment = order(*cmd)
    await driver.create(assignment)
    with pytest.raises(DriverError) as caught:
        await driver.start(assignment.uid)
    assert (caught.value.reason.code, caught.value.exit_code) == (code, exit_code)
    assert cmd[0] in str(caught.value)


async def test_an_image_that_is_not_here_asks_for_a_pull(driver: DockerDriver, order: Order) -> None:
    with pytest.raises(ImageMissing):
        await driver.create(order("true", image="127.0.0.1:1/nowhere:latest"))


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ({"env": {"LD_PRELOAD": "x"}}, Reason.CONFIG_NOT_ALLOWED),
        ({"env": {"NVIDIA_VISIBLE_DEVICES": "all"}}, Reason.CONFIG_NOT_ALLOWED),
        ({"labels": {"pwm.uid": "another"}}, Reason.CONFIG_NOT_ALLOWED),
        ({"secret_env": {"LD_PRELOAD": {"secret": "s", "key": "k"}}}, Reason.CONFIG_NOT_ALLOWED),
        ({"secret_env": {"KEY": {"secret": "s", "key": "k"}}}, Reason.SECRET_NOT_EXIST),
        ({"secrets": [{"name": "s"}]}, Reason.SECRET_NOT_EXIST),
        ({"volumes": [{"name": "home", "target": "/home"}]}, Reason.VOLUME_NOT_READY),
        ({"image": "Not an image"}, Reason.IMAGE_NOT_PRESENT),
        ({"resources": {"memory_bytes": 1000}}, Reason.ERROR_CREATING_CONTAINER),
        ({"health": {"cmd": ["true"], "interval": "soon"}}, Reason.CONFIG_NOT_ALLOWED),
    ],
)
async def test_what_is_not_allowed_or_not_possible_is_refused(
    driver: DockerDriver, order: Order, spec: dict[str, Any], code: Reason.Code.ValueType
) -> None:
    with pytest.raises(DriverError) as caught:
        await driver.create(order("true", **spec))
    assert caught.value.reason.code == code
    assert await driver.adopt() == []


async def test_a_name_that_somebody_else_took_is_refused(
    driver: DockerDriver, order: Order, docker_engine: DockerEngine, busybox_image: str
) -> None:
    assignment = order("true")
    name = f"pwm.lab.{assignment.name}"
    await docker(docker_engine, "create", "--name", name, busybox_image, "true")
    try:
        with pytest.raises(DriverError) as caught:
            await driver.create(assignment)
        assert caught.value.reason.code == Reason.ERROR_CREATING_CONTAINER
    finally:
        await docker(docker_engine, "rm", "-f", name)


async def test_creating_and_starting_twice_is_creating_and_starting_once(driver: DockerDriver, order: Order) -> None:
    assignment = order(*FOREVER)
    first = await driver.create(assignment)
    assert await driver.create(assignment) == first
    await driver.start(assignment.uid)
    pid = (await driver.inspect(assignment.uid))["State"]["Pid"]
    await driver.start(assignment.uid)
    assert (await driver.inspect(assignment.uid))["State"]["Pid"] == pid


# -- what a container is given


async def test_every_container_is_confined(driver: DockerDriver, order: Order) -> None:
    status = "grep -E '^(CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; cat /proc/sys/kernel/hostname; env"
    uid = await launch(driver, order("sh", "-c", status, hostname="train", env={"SEED": "1"}))
    await soon(driver.wait(uid))
    lines = printed(driver, uid).decode().splitlines()
    fields = dict(line.split(":\t") for line in lines[:3])
    # CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE SYS_CHROOT AUDIT_WRITE
    assert int(fields["CapBnd"], 16) == sum(1 << bit for bit in (0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 29))
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"
    assert lines[3] == "train"
    assert {"SEED=1", "NVIDIA_VISIBLE_DEVICES=void"} <= set(lines[4:])
    config = (await driver.inspect(uid))["HostConfig"]
    assert config["PidsLimit"] == 16384
    assert config["RestartPolicy"]["Name"] == "no"
    assert config["LogConfig"] == {
        "Type": "local",
        "Config": {"max-size": "64m", "max-file": "5", "compress": "false"},
    }


async def test_limits_users_and_places_are_those_of_the_spec(driver: DockerDriver, order: Order, node: str) -> None:
    assignment = order(
        "sh",
        "-c",
        "id -u; id -g; pwd; df -k /dev/shm | tail -1",
        user={"uid": 1000, "gid": 1001},
        working_dir="/tmp",
        shm_bytes=8 << 20,
        resources={"cpu_millis": 500, "memory_bytes": 64 << 20},
        labels={"team": "vision"},
        ports=[{"port": 8888}],
    )
    uid = await launch(driver, assignment)
    await soon(driver.wait(uid))
    lines = printed(driver, uid).decode().splitlines()
    assert lines[:3] == ["1000", "1001", "/tmp"]
    assert lines[3].split()[1] == str(8 << 10)
    info = await driver.inspect(uid)
    config = info["HostConfig"]
    assert (config["NanoCpus"], config["Memory"], config["MemorySwap"]) == (500_000_000, 64 << 20, 64 << 20)
    assert info["Config"]["Labels"] == {
        "team": "vision",
        "pwm.uid": uid,
        "pwm.group": "lab",
        "pwm.workload": assignment.spec.workload,
        "pwm.replica": "0",
        "pwm.attempt": "1",
        "pwm.node": node,
        "pwm.cluster": "tests",
    }
    assert info["Name"] == f"/pwm.lab.{assignment.name}"
    assert "8888/tcp" in info["Config"]["ExposedPorts"]


async def test_cores_of_its_own_are_a_set_and_no_share(driver: DockerDriver, order: Order) -> None:
    assignment = order("grep", "Cpus_allowed_list", "/proc/self/status", cpu_ids=[0], resources={"cpu_millis": 1000})
    uid = await launch(driver, assignment)
    await soon(driver.wait(uid))
    assert printed(driver, uid).split() == [b"Cpus_allowed_list:", b"0"]


# -- stopping


async def test_a_program_that_handles_the_signal_ends_in_its_own_way(driver: DockerDriver, order: Order) -> None:
    script = "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.05; done"
    uid = await launch(driver, order("sh", "-c", script))
    await until_printed(driver, uid, b"ready\n")
    await soon(driver.stop(uid, grace_ms=10_000))
    assert (await soon(driver.wait(uid))).exit_code == 7
    assert printed(driver, uid) == b"ready\nbye\n"


async def test_a_program_that_has_just_begun_may_yet_come_to_handle_the_signal(
    driver: DockerDriver, order: Order
) -> None:
    script = "echo begun; sleep 0.3; trap 'echo bye; exit 7' TERM; while :; do sleep 0.05; done"
    uid = await launch(driver, order("sh", "-c", script))
    await until_printed(driver, uid, b"begun\n")
    await soon(driver.stop(uid, grace_ms=10_000))
    assert (await soon(driver.wait(uid))).exit_code == 7
    assert printed(driver, uid) == b"begun\nbye\n"


async def test_a_program_that_cannot_hear_the_signal_is_not_waited_for(driver: DockerDriver, order: Order) -> None:
    # Once it is the program, and no longer what Docker starts it with, which does hear signals.
    uid = await launch(driver, order("sh", "-c", "echo ready; exec sleep 1000"))
    await until_printed(driver, uid, b"ready\n")
    await soon(driver.stop(uid, grace_ms=600_000))
    assert (await soon(driver.wait(uid))).exit_code == 137


async def test_a_program_that_refuses_to_end_is_killed_after_its_grace(driver: DockerDriver, order: Order) -> None:
    uid = await launch(driver, order("sh", "-c", "trap : TERM; echo ready; while :; do sleep 0.05; done"))
    await until_printed(driver, uid, b"ready\n")
    began = time.monotonic()
    await soon(driver.stop(uid, grace_ms=1_000))
    assert (await soon(driver.wait(uid))).exit_code == 137
    assert time.monotonic() - began > 0.9


async def test_stopping_what_has_ended_and_removing_what_is_gone_is_harmless(
    driver: DockerDriver, order: Order
) -> None:
    uid = await launch(driver, order("true"))
    await soon(driver.wait(uid))
    await driver.stop(uid, grace_ms=1_000)
    await driver.remove(uid)
    await driver.remove(uid)
    with pytest.raises(ContainerMissing):
        await driver.start(uid)


async def until_printed(driver: DockerDriver, uid: str, data: bytes) -> None:
    async def look() -> None:
        # The engine's file, not an event.
        while printed(driver, uid) != data:  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    await soon(look())


# -- after a restart of the agent


async def test_a_new_driver_adopts_everything_of_its_node_and_nothing_else(
    driver: DockerDriver, order: Order, docker_engine: DockerEngine, node: str
) -> None:
    running, ended, created = order(*FOREVER), order("sh", "-c", "exit 4"), order("true")
    await launch(driver, running)
    await launch(driver, ended)
    await soon(driver.wait(ended.uid))
    await driver.create(created)
    pid = (await driver.inspect(running.uid))["State"]["Pid"]
    async with running_driver(docker_engine.host, f"{node}-other") as other:
        assert await other.adopt() == []
    second = DockerDriver(docker_engine.host.removeprefix("unix://"), node=node, cluster="tests")
    watching = asyncio.ensure_future(second.run())
    try:
        found = {adopted.uid: adopted for adopted in await second.adopt()}
        assert {uid: f.runtime for uid, f in found.items()} == {
            running.uid: Runtime.RUNNING,
            ended.uid: Runtime.ENDED,
            created.uid: Runtime.CREATED,
        }
        assert found[running.uid].pid == pid
        assert found[running.uid].attempt == 1
        end = found[ended.uid].ended
        assert end is not None
        assert end.exit_code == 4
        waiting = asyncio.ensure_future(second.wait(running.uid))
        await second.stop(running.uid, grace_ms=0)
        assert (await soon(waiting)).exit_code == 137
    finally:
        watching.cancel()
        await asyncio.wait([watching])
        await second.close()


# -- questions


async def collect(session: ExecSession) -> tuple[bytes, bytes, int]:
    out, err, code = b"", b"", -1
    async for chunk in session.output():
        out, err = out + chunk.stdout, err + chunk.stderr
        if chunk.HasField("exit_code"):
            code = chunk.exit_code
    return out, err, code


async def test_a_command_in_a_container_keeps_its_streams_apart(driver: DockerDriver, order: Order) -> None:
    uid = await launch(driver, order(*FOREVER))
    session = await driver.exec(
        uid, StartExec(cmd=["sh", "-c", "cat; head -c 300000 /dev/zero; echo bad >&2; exit 9"], stdin=True)
    )
    await session.write(b"given")
    await session.close_stdin()
    out, err, code = await soon(collect(session))
    await session.close()
    assert (out, err, code) == (b"given" + bytes(300000), b"bad\n", 9)


async def test_a_terminal_has_the_size_it_is_given(driver: DockerDriver, order: Order) -> None:
    uid = await launch(driver, order(*FOREVER))
    command = ["sh", "-c", "read x; stty size; read x; stty size"]
    session = await driver.exec(
        uid, StartExec(cmd=command, tty=True, stdin=True, size=TerminalSize(rows=11, columns=22))
    )
    await session.write(b"\n")
    output = session.output()
    seen = b""
    while b"11 22" not in seen:
        seen += (await soon(anext(output))).stdout
    await session.resize(TerminalSize(rows=33, columns=44))
    await session.write(b"\n")
    async for chunk in output:
        seen += chunk.stdout
    await session.close()
    assert b"33 44" in seen


async def test_a_shell_that_is_left_does_not_stay_behind(driver: DockerDriver, order: Order) -> None:
    uid = await launch(driver, order(*FOREVER))
    session = await driver.exec(uid, StartExec(cmd=["sleep", "997"], stdin=True))
    await session.close()

    async def gone() -> None:
        while any("997" in row[-1] for row in (await driver.processes(uid)).rows):  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    await soon(gone())


async def test_questions_about_an_ended_container_say_that_it_does_not_run(driver: DockerDriver, order: Order) -> None:
    uid = await launch(driver, order("true"))
    await soon(driver.wait(uid))
    with pytest.raises(ContainerNotRunning):
        await driver.exec(uid, StartExec(cmd=["sh"]))
    with pytest.raises(ContainerNotRunning):
        await driver.processes(uid)
    assert await driver.usage([uid]) == []


async def test_usage_is_that_of_the_container(driver: DockerDriver, order: Order) -> None:
    assignment = order("sh", "-c", "while :; do :; done", resources={"memory_bytes": 64 << 20, "cpu_millis": 500})
    uid = await launch(driver, assignment)
    await driver.usage([uid])

    async def busy() -> Any:
        while True:
            await asyncio.sleep(0.2)
            (usage,) = await driver.usage([uid])
            if usage.cpu_cores > 0.05:
                return usage

    usage = await soon(busy())
    assert usage.cpu_cores < 0.8
    assert 0 < usage.memory_bytes < usage.memory_limit_bytes == 64 << 20
    assert usage.pids == 1
    assert [row[-1] for row in (await driver.processes(uid)).rows] == ["sh -c while :; do :; done"]


# -- pulling


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    async with Registry().serving() as registry:
        yield registry


async def test_an_image_is_pulled_once_for_all_who_ask_with_progress(
    driver: DockerDriver, order: Order, registry: Registry, docker_engine: DockerEngine
) -> None:
    image = f"{registry.address}/public"
    registry.layer_delay_s = 0.02
    orders = [order(image=image) for _ in range(5)]
    seen: dict[str, list[PullProgress]] = {assignment.uid: [] for assignment in orders}
    try:
        await soon(asyncio.gather(*(driver.prepare(o, seen[o.uid].append) for o in orders)))
        for assignment in orders:
            await launch(driver, assignment)
            assert (await soon(driver.wait(assignment.uid))).exit_code == 0
        most = [max(p.total_bytes for p in progress) for progress in seen.values()]
        assert min(most) > 100_000, "everyone who waits sees the download"
        assert registry.manifests_asked <= 2
    finally:
        for assignment in orders:
            await driver.remove(assignment.uid)
        await docker(docker_engine, "rmi", image)


async def test_a_pull_that_nobody_wants_any_more_ends(driver: DockerDriver, order: Order, registry: Registry) -> None:
    # A drip, not a stop: an engine notices that it should hang up only once it has read the next bytes.
    registry.layer_delay_s = 1.0
    pulling = asyncio.ensure_future(driver.prepare(order(image=f"{registry.address}/public"), lambda _: None))
    await soon(registry.downloading.wait())
    pulling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(pulling)
    await soon(registry.abandoned.wait())


@pytest.mark.parametrize(
    ("image", "code"),
    [
        ("{}/public:no-such-tag", Reason.IMAGE_NOT_PRESENT),
        ("{}/nothing", Reason.IMAGE_NOT_PRESENT),
        ("{}/private", Reason.PULL_FAILED),
        ("127.0.0.1:1/public", Reason.REGISTRY_UNREACHABLE),
    ],
)
async def test_a_pull_that_fails_says_why(
    driver: DockerDriver, order: Order, registry: Registry, image: str, code: Reason.Code.ValueType
) -> None:
    image = image.format(registry.address)
    with pytest.raises(DriverError) as caught:
        await soon(driver.prepare(order(image=image), lambda _: None))
    assert caught.value.reason.code == code
    assert image in str(caught.value)


# -- the engine's own troubles


async def test_an_engine_that_is_not_there_is_said_and_not_raised(tmp_path: Path, order: Order) -> None:
    driver = DockerDriver(str(tmp_path / "no.sock"), node="n", cluster="tests")
    info = await driver.probe()
    assert not info.ready
    assert "no.sock" in info.message
    with pytest.raises(EngineUnreachable):
        await driver.create(order("true"))
    await driver.close()


@pytest.mark.slow
async def test_containers_survive_a_killed_engine_with_live_restore_and_their_end_is_seen(
    isolated_dockerd: IsolatedDockerdFactory, node: str
) -> None:
    engine = await quietly(lambda: isolated_dockerd(live_restore=True))
    order = maker(await asyncio.to_thread(ensure_busybox, engine.host))
    async with running_driver(engine.host, node) as driver:
        lasting = await launch(driver, order(*FOREVER))
        ending = await launch(driver, order("sh", "-c", "trap 'exit 5' TERM; while :; do sleep 0.05; done"))
        pid = (await driver.inspect(lasting))["State"]["Pid"]
        end_pid = (await driver.inspect(ending))["State"]["Pid"]
        waits = {uid: asyncio.ensure_future(driver.wait(uid)) for uid in (lasting, ending)}
        engine.kill()
        os.kill(end_pid, signal.SIGTERM)
        assert not (await driver.probe()).ready
        await quietly(engine.start)
        assert (await soon(waits[ending])).exit_code == 5
        assert not waits[lasting].done()
        assert (await driver.inspect(lasting))["State"]["Pid"] == pid
        await driver.stop(lasting, grace_ms=0)
        assert (await soon(waits[lasting])).exit_code == 137


@pytest.mark.slow
async def test_containers_that_die_with_their_engine_are_told_truthfully(
    isolated_dockerd: IsolatedDockerdFactory, node: str
) -> None:
    engine = await quietly(isolated_dockerd)
    order = maker(await asyncio.to_thread(ensure_busybox, engine.host))
    async with running_driver(engine.host, node) as driver:
        uid = await launch(driver, order(*FOREVER))
        waiting = asyncio.ensure_future(driver.wait(uid))
        engine.kill()
        await quietly(engine.start)
        ended = await soon(waiting)
        assert ended.exit_code != 0
        assert "restarted" in ended.message


@pytest.mark.slow
async def test_gpus_are_handed_to_the_engine_by_their_uuid(isolated_dockerd: IsolatedDockerdFactory, node: str) -> None:
    engine = await quietly(lambda: isolated_dockerd(gpu_hook=True))
    order = maker(await asyncio.to_thread(ensure_busybox, engine.host))
    async with running_driver(engine.host, node) as driver:
        uid = await launch(driver, order("env", gpu_uuids=["GPU-aaaa", "GPU-bbbb"]))
        assert (await soon(driver.wait(uid))).exit_code == 0
        assert b"NVIDIA_VISIBLE_DEVICES=GPU-aaaa,GPU-bbbb\n" in printed(driver, uid)
        (request,) = (await driver.inspect(uid))["HostConfig"]["DeviceRequests"]
        assert (request["Driver"], request["DeviceIDs"]) == ("nvidia", ["GPU-aaaa", "GPU-bbbb"])
