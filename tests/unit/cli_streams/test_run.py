"""`pwm run`: what it declares, what it shows, and what it ends with."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from pwm.cli.commands.run import Detached, Interrupts, volume_mount, workload_document
from pwm.cli.names import ADJECTIVES, NOUNS, readable_name
from pwm.cli.progress import StatusLine
from tests.patience import PATIENCE_S
from tests.unit.cli_streams.conftest import Pwm
from tests.unit.cli_streams.fake_server import END, FakeServer, cursor, frame
from tests.unit.cli_streams.test_logs_and_inspect import workload

NO_OPTIONS: dict[str, Any] = dict.fromkeys(
    ("env", "memory", "workdir", "restart", "gpu", "gpu_model", "cpu", "node", "volume")
)


class Cluster:
    """Takes one workload and lets it go through the given states; a stop ends what still goes on."""

    def __init__(self, server: FakeServer, *states: dict[str, Any], output: bytes = b"", last: str = "EXITED") -> None:
        self.states = list(states)
        self.output = output
        self.last = last
        self.stopped = asyncio.Event()
        self.document: dict[str, Any] = {}
        self.deleted = False
        server.on("POST", "/v1/apply", self.apply)
        server.on("GET", "/v1/watch/Workload", self.watch)
        server.on("GET", "/v1/workloads/train/logs", self.logs)
        server.on("POST", "/v1/workloads/train/stop", self.stop)
        server.on("DELETE", "/v1/resources/Workload/train", self.delete)

    async def apply(self, request: web.Request) -> web.StreamResponse:
        self.document = (await request.json())["documents"][0]
        return web.json_response({"results": [{"outcome": "CREATED", "name": "train"}], "revision": "7"})

    async def watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for state in self.states:
            await response.write(json.dumps({"result": {"type": "MODIFIED", "resource": state}}).encode() + b"\n")
        await self.stopped.wait()
        state = workload("STOPPED", code="STOPPED_BY_USER")
        await response.write(json.dumps({"result": {"type": "MODIFIED", "resource": state}}).encode() + b"\n")
        await asyncio.Event().wait()
        return response

    async def logs(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(self.output + cursor("train.0.1", len(self.output)))
        if self.last == "hangs":
            await self.stopped.wait()
        await response.write(END)
        return response

    async def stop(self, request: web.Request) -> web.StreamResponse:
        self.stopped.set()
        return web.json_response({"revision": "9", "changed": True})

    async def delete(self, request: web.Request) -> web.StreamResponse:
        self.deleted = True
        return web.json_response({"revision": "10"})


def test_output_and_error_and_exit_code_are_the_containers(server: FakeServer, pwm: Pwm) -> None:
    Cluster(
        server,
        workload("QUEUED"),
        workload("RUNNING"),
        workload("CRASHED", code="EXIT_CODE", exit_code=7),
        output=frame(1, b"out\n") + frame(2, b"err\n"),
    )
    result = pwm("run", "--name", "train", "busybox", "--", "false")
    assert (result.returncode, result.stdout, result.stderr) == (7, b"out\n", b"err\n")


def test_a_container_that_never_ran_ends_with_125_and_the_reason(server: FakeServer, pwm: Pwm) -> None:
    Cluster(server, workload("CRASHED", code="IMAGE_NOT_PRESENT", reason="there is no image nosuch"))
    result = pwm("run", "--name", "train", "nosuch")
    assert result.returncode == 125
    assert b"train never ran: there is no image nosuch" in result.stderr


def test_a_refused_workload_ends_with_125_and_says_what_is_wrong(server: FakeServer, pwm: Pwm) -> None:
    problem = {"field": "spec.config.memory", "message": "'9 apples' is not a size", "nextStep": "write 2GiB"}
    server.answer("POST", "/v1/apply", {"results": [{"outcome": "REFUSED", "problems": [problem]}]})
    result = pwm("run", "-m", "9 apples", "busybox")
    assert result.returncode == 125
    assert b"spec.config.memory: '9 apples' is not a size" in result.stderr
    assert b"write 2GiB" in result.stderr


def test_a_name_that_is_taken_is_refused_and_nothing_is_changed(server: FakeServer, pwm: Pwm) -> None:
    server.answer("GET", "/v1/resources/Workload/train", {"resource": workload("RUNNING")})
    result = pwm("run", "--name", "train", "busybox")
    assert result.returncode == 125
    assert b"there is a workload 'train' already" in result.stderr
    assert all(method == "GET" for method, *_ in server.requests)


def test_detached_it_prints_the_name_and_returns(server: FakeServer, pwm: Pwm) -> None:
    cluster = Cluster(server)
    result = pwm("run", "-d", "busybox", "--", "sleep", "9")
    assert result.returncode == 0
    assert result.stdout.decode().strip() == cluster.document["metadata"]["name"]


def test_rm_removes_the_workload_in_the_end(server: FakeServer, pwm: Pwm) -> None:
    cluster = Cluster(server, workload("RUNNING"), workload("EXITED"))
    assert pwm("run", "--rm", "--name", "train", "busybox").returncode == 0
    assert cluster.deleted


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_interrupt_stops_the_workload_and_its_last_output_still_comes(
    server: FakeServer, environment: dict[str, str], number: signal.Signals, code: int
) -> None:
    cluster = Cluster(server, workload("RUNNING"), output=frame(1, b"working\n"), last="hangs")
    command = [sys.executable, "-m", "pwm", "run", "--name", "train", "busybox"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"working\n"
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == code
    assert cluster.stopped.is_set()


def test_an_interrupt_that_comes_just_before_a_read_stops_it_too() -> None:
    """As if: another thread is given the signal, so that no call of the main thread is broken off by it."""
    stopped, line = threading.Event(), StatusLine(io.StringIO())

    class Heard(Interrupts):
        def _stop(self) -> None:
            stopped.set()

    unused: Any = None
    with Heard(unused, unused, line) as interrupts:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        try:
            other = threading.Thread(target=_take, args=(signal.SIGTERM, threading.get_native_id()))
            other.start()
            assert stopped.wait(PATIENCE_S), "the main thread has not been given anything to do"
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
            other.join()
        interrupts.settle()
    assert interrupts.exit_code == 143


def test_a_second_interrupt_that_comes_just_before_a_read_breaks_it_off_too() -> None:
    class Heard(Interrupts):
        def _stop(self) -> None:
            pass

    unused: Any = None
    reading, writing = os.pipe()
    with Heard(unused, unused, StatusLine(io.StringIO())) as interrupts:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        try:
            other = threading.Thread(target=_take, args=(signal.SIGTERM, threading.get_native_id(), 2))
            other.start()
            with pytest.raises(Detached):
                os.read(reading, 1)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
            other.join()
            os.close(writing)
        assert os.read(reading, 1) == b"", "nothing more is broken off"
        interrupts.settle()
    os.close(reading)
    assert interrupts.exit_code == 143


def _take(number: signal.Signals, waiting: int, times: int = 1) -> None:
    """Takes the signal once that thread waits, as it does at many looks in a row."""
    asleep = 0
    while asleep < 20:
        state = Path(f"/proc/self/task/{waiting}/stat").read_text().rpartition(")")[2].split()[0]
        asleep = asleep + 1 if state == "S" else 0
        time.sleep(0.001)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    for _ in range(times):
        signal.pthread_kill(threading.get_ident(), number)


def test_the_second_interrupt_leaves_the_workload_to_itself(server: FakeServer, environment: dict[str, str]) -> None:
    cluster = Cluster(server, workload("RUNNING"), output=frame(1, b"working\n"), last="hangs")

    async def ignored(request: web.Request) -> web.StreamResponse:
        return web.json_response({"changed": True})  # a container that takes its time

    server.on("POST", "/v1/workloads/train/stop", ignored)
    command = [sys.executable, "-m", "pwm", "run", "--rm", "--name", "train", "busybox"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"working\n"
        process.send_signal(signal.SIGINT)
        assert b"stopping train" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
        assert b"left train to itself" in process.stderr.read()
    assert not cluster.deleted


def test_it_without_a_terminal_is_refused(pwm: Pwm) -> None:
    result = pwm("run", "-it", "busybox")
    assert result.returncode == 2
    assert b"-it needs a terminal" in result.stderr


def test_the_options_make_the_document_a_user_would_write() -> None:
    options = {
        **NO_OPTIONS,
        "env": ("A=b=c",),
        "memory": "2GiB",
        "workdir": "/code",
        "restart": "OnFailure",
        "gpu": 2,
        "gpu_model": ("A100", "H100"),
        "cpu": "500m",
        "volume": ("pwm.resource/datasets:/data:ro", "home:/home"),
    }
    assert workload_document("pytorch", ["python", "main.py"], options)["spec"] == {
        "image": "pytorch",
        "config": {
            "cmd": ["python", "main.py"],
            "env": {"A": "b=c"},
            "memory": "2GiB",
            "workingDir": "/code",
            "restartPolicy": "OnFailure",
        },
        "selectors": {"gpu": {"count": 2, "product_name": ["A100", "H100"]}, "cpu": {"count": "500m"}},
        "volumes": [
            {"name": "datasets", "group": "pwm.resource", "target": "/data", "policy": "readonly"},
            {"name": "home", "target": "/home"},
        ],
    }


@pytest.mark.parametrize("text", ["home", "home:relative", ":/data", "home:/data:rx"])
def test_a_mount_that_is_none_says_how_to_write_one(text: str) -> None:
    with pytest.raises(ValueError, match="write VOLUME:/PATH"):
        volume_mount(text)


def test_made_up_names_are_valid_names_and_their_words_are_told_apart() -> None:
    assert len(set(ADJECTIVES)) == len(ADJECTIVES)
    assert len(set(NOUNS)) == len(NOUNS)
    name = readable_name()
    assert len(name) <= 63
    assert name.replace("-", "").isalpha()
