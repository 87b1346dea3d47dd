"""What containers of a real engine print arrives in the spool, byte by byte."""

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import docker
import pytest

from pwm.api.v1.agent_pb2 import STDERR, STDOUT, ReadLogs
from pwm.nodeagent.drivers import docker_spec
from pwm.nodeagent.drivers.driver import LogFormat, LogSource
from pwm.nodeagent.logs import LogStore
from tests.docker_engine import DockerEngine

pytestmark = pytest.mark.docker

LOG_OPTIONS = {"max-size": docker_spec.LOG_MAX_SIZE, "max-file": docker_spec.LOG_MAX_FILES, "compress": "false"}
# Rotates a dozen times a second, and keeps enough of it for a machine that is busy with other tests.
BUSY_OPTIONS = LOG_OPTIONS | {"max-size": "2m", "max-file": "30"}


class Printer:
    """Containers that print, and where their engine keeps it."""

    def __init__(self, engine: DockerEngine, image: str) -> None:
        self.engine = engine
        self._image = image
        self._client = engine.client()
        self._root = Path(self._client.info()["DockerRootDir"])
        self._made: list[Any] = []

    def create(self, script: str, *, options: dict[str, str] = LOG_OPTIONS, driver: str = "local", **more: Any) -> Any:
        container = self._client.containers.create(
            self._image,
            ["sh", "-c", script],
            network_mode="none",
            log_config=docker.types.LogConfig(type=driver, config=options),
            **more,
        )
        self._made.append(container)
        return container

    def source(self, container: Any, *, path: Path | None = None) -> LogSource:
        folder = self._root / "containers" / container.id / "local-logs"
        path = path or folder / "container.log"
        return LogSource(LogFormat.DOCKER_LOCAL, path, engine=self.engine.host, runtime_id=container.id)

    def json_source(self, container: Any) -> LogSource:
        return LogSource(LogFormat.DOCKER_JSON, self._root / "containers" / container.id / f"{container.id}-json.log")

    def close(self) -> None:
        for container in self._made:
            container.remove(force=True)
        self._client.close()


@pytest.fixture
def printer(docker_engine: DockerEngine, busybox_image: str) -> Iterator[Printer]:
    printer = Printer(docker_engine, busybox_image)
    yield printer
    printer.close()


@pytest.fixture
def as_root(printer: Printer) -> None:
    if os.geteuid() != 0:
        pytest.skip("reading the engine's files needs root")


@asynccontextmanager
async def running(root: Path) -> AsyncIterator[LogStore]:
    store = LogStore(root)
    task = asyncio.create_task(store.run())
    try:
        yield store
    finally:
        task.cancel()
        await asyncio.wait([task])
        await store.close()


async def read(store: LogStore, *, stream: int | None = None, **request: Any) -> bytes:
    asked = ReadLogs(**{"container_uid": "u1", "tail": -1, **request})
    return b"".join([chunk.data async for chunk in store.read(asked) if stream in (None, chunk.stream)])


async def run_to_end(store: LogStore, container: Any, source: LogSource) -> None:
    await asyncio.to_thread(container.start)
    store.follow("u1", source)
    await asyncio.to_thread(container.wait)
    await store.finish("u1")


@pytest.mark.usefixtures("as_root")
async def test_binary_output_long_lines_and_a_missing_newline_arrive_byte_by_byte(
    tmp_path: Path, printer: Printer
) -> None:
    script = (
        "printf 'umlaut \\303\\244 broken \\377\\376 nul \\000 escape \\033[1m\\n\\n';"
        "head -c 100000 /dev/zero | tr '\\0' x; echo; printf '\\303\\244%.0s' $(seq 20000);"
        "printf 'carriage\\rreturn'; echo sorry >&2; printf 'no newline'"
    )
    container = printer.create(script)
    async with running(tmp_path) as store:
        await run_to_end(store, container, printer.source(container))
        expected = (
            b"umlaut \xc3\xa4 broken \xff\xfe nul \0 escape \x1b[1m\n\n"
            + b"x" * 100_000 + b"\n" + b"\xc3\xa4" * 20_000 + b"carriage\rreturnno newline"
        )  # fmt: skip
        assert await read(store, stream=STDOUT) == expected
        assert await read(store, stream=STDERR) == b"sorry\n"


@pytest.mark.usefixtures("as_root")
async def test_a_log_that_rotates_many_times_under_load_is_complete(tmp_path: Path, printer: Printer) -> None:
    """90 MB of records in files of 2 MB, which change their names under the reader."""
    container = printer.create("seq 1 2000000", options=BUSY_OPTIONS)
    async with running(tmp_path) as store:
        await run_to_end(store, container, printer.source(container))
        taken = hashlib.sha256()
        async for chunk in store.read(ReadLogs(container_uid="u1", tail=-1)):
            taken.update(chunk.data)
        expected = hashlib.sha256()
        for first in range(1, 2_000_001, 100_000):
            expected.update("".join(f"{number}\n" for number in range(first, first + 100_000)).encode())
        assert taken.digest() == expected.digest()


@pytest.mark.usefixtures("as_root")
async def test_a_follower_gets_lines_within_moments_while_the_container_runs(tmp_path: Path, printer: Printer) -> None:
    container = printer.create("for i in 1 2 3; do echo $i; sleep 0.2; done")
    async with running(tmp_path) as store:
        await asyncio.to_thread(container.start)
        store.follow("u1", printer.source(container))
        follower = asyncio.create_task(read(store, follow=True))
        chunks = store.read(ReadLogs(container_uid="u1", follow=True, tail=-1))
        assert (await anext(chunks)).data.startswith(b"1\n")
        assert not follower.done()
        await asyncio.to_thread(container.wait)
        await store.finish("u1")
        assert await follower == b"1\n2\n3\n"
        await chunks.aclose()  # type: ignore[attr-defined]


@pytest.mark.usefixtures("as_root")
async def test_the_json_files_of_an_engine_that_knows_no_better_are_read_too(tmp_path: Path, printer: Printer) -> None:
    container = printer.create("seq 1 300000", driver="json-file", options={"max-size": "2m", "max-file": "30"})
    async with running(tmp_path) as store:
        await run_to_end(store, container, printer.json_source(container))
        assert await read(store) == "".join(f"{number}\n" for number in range(1, 300_001)).encode()


@pytest.mark.parametrize("tty", [False, True], ids=["pipes", "terminal"])
async def test_without_access_to_files_the_engine_is_asked(
    tmp_path: Path, printer: Printer, tty: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "echo before; sleep 0.3; seq 1 50000; head -c 40000 /dev/zero | tr '\\0' x; echo; echo after"
    container = printer.create(script, tty=tty)
    source = printer.source(container)
    with monkeypatch.context() as patch:
        patch.setattr("pwm.nodeagent.logs.source._may_read", lambda path: False)
        async with running(tmp_path) as store:
            store.follow("u1", source)
            await asyncio.to_thread(container.start)
            chunks = store.read(ReadLogs(container_uid="u1", follow=True, tail=-1))
            assert (await anext(chunks)).data.rstrip() == b"before"
    # The next agent goes on with the engine, and takes nothing twice.
    async with running(tmp_path) as store:
        store.follow("u1", source)
        await asyncio.to_thread(container.wait)
        await store.finish("u1")
        expected = "before\n" + "".join(f"{number}\n" for number in range(1, 50_001))
        taken = (await read(store)).replace(b"\r\n", b"\n")
        assert taken.startswith(expected.encode())
        rest = taken.removeprefix(expected.encode())
        # The engine itself leaves out the newline after a line of several parts, and with a terminal nothing says
        # where a part begins, so the times that it puts there stay.
        assert (rest.count(b"x"), rest.endswith(b"after\n")) == (40_000, True)
        if not tty:
            assert rest == b"x" * 40_000 + b"after\n"
            assert await read(store, stream=STDOUT) == taken


_AGENT = """
import asyncio, sys
from pathlib import Path
from pwm.nodeagent.drivers.driver import LogFormat, LogSource
from pwm.nodeagent.logs import LogStore

async def main():
    store = LogStore(Path(sys.argv[1]))
    running = asyncio.create_task(store.run())
    store.follow("u1", LogSource(LogFormat.DOCKER_LOCAL, Path(sys.argv[2])))
    print("follows", flush=True)
    await asyncio.wait([running])

asyncio.run(main())
"""


@pytest.mark.usefixtures("as_root")
async def test_agents_that_are_killed_lose_and_double_no_line(tmp_path: Path, printer: Printer) -> None:
    """kill -9, again and again, while a container prints; the last agent finds every line exactly once."""
    container = printer.create("i=0; while [ $i -lt 60000 ]; do i=$((i+1)); echo line $i; done")
    source = printer.source(container)
    await asyncio.to_thread(container.start)
    for kill in range(8):
        agent = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _AGENT, str(tmp_path), str(source.path), stdout=subprocess.PIPE
        )
        assert agent.stdout is not None
        assert await agent.stdout.readline() == b"follows\n"
        # At different points of its work.
        await asyncio.sleep(0.015 * kill)
        agent.send_signal(signal.SIGKILL)
        await agent.wait()
    taken_by_the_killed = sum(file.stat().st_size for file in (tmp_path / "u1").glob("*.log"))
    assert taken_by_the_killed > 0
    await asyncio.to_thread(container.wait)
    async with running(tmp_path) as store:
        store.follow("u1", source)
        await store.finish("u1")
        assert await read(store) == "".join(f"line {number}\n" for number in range(1, 60_001)).encode()
