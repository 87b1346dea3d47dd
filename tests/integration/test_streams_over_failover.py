"""Whoever has something running when a controller dies or freezes sees it go on: not a byte less, none twice.

Three controllers on one etcd, all of which the agent and `pwm` know. Each is killed or frozen in turn, so
that the one which serves the client and the one which holds the agent's session are among them.
"""

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pwm.cli.client import _order
from pwm.cli.errors import CliError
from pwm.cli.http1 import Server
from pwm.cli.profiles import Profile
from pwm.cli.topui.feed import Feed
from tests.patience import PATIENCE_S
from tests.pwm_cluster import PwmCluster, eventually, manifest

pytestmark = [pytest.mark.etcd, pytest.mark.docker]

DONE = 0
# Prints by itself and says what it is given; ends with what the last word says.
TALK = (
    "(n=0; while :; do n=$((n+1)); echo line $n; sleep 0.02; done) & "
    "while read word number; do [ $word = exit ] && break; echo got $number; done; kill $!; exit $number"
)
COUNT = "n=0; while :; do n=$((n+1)); echo line $n; sleep 0.02; done"


@pytest.fixture
def pwm(cluster_of_three: PwmCluster) -> Iterator[PwmCluster]:
    """The module's cluster, whole again after each test whatever the test did to it."""
    yield cluster_of_three
    cluster_of_three.mend()


def in_our_order(pwm: PwmCluster) -> list[str]:
    """The controllers in the order in which `pwm` asks them here."""
    by_url = {Server(f"http://{replica.http}").url: replica.part for replica in pwm.replicas}
    return [by_url[server.url] for server in _order([Server(f"http://{r.http}") for r in pwm.replicas])]


class Follower:
    """A `pwm` that goes on and on, its lines as they come."""

    def __init__(self, pwm: PwmCluster, *words: str) -> None:
        self.process = subprocess.Popen(
            pwm.command(*words),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=pwm.cli_environment, bufsize=0,
        )  # fmt: skip
        self.lines: list[str] = []
        self.notes: list[str] = []
        self._times: list[float] = []
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._threads = [
            threading.Thread(target=self._read, args=(self.process.stdout, self.lines, self._times)),
            threading.Thread(target=self._read, args=(self.process.stderr, self.notes, [])),
        ]
        for thread in self._threads:
            thread.start()

    def _read(self, stream: Any, lines: list[str], times: list[float]) -> None:
        for line in stream:
            lines.append(line.decode().rstrip("\n"))
            times.append(time.monotonic())

    def grows(self, by: int = 20) -> None:
        enough = len(self.lines) + by
        eventually(
            lambda: len(self.lines) >= enough,
            lambda: f"{by} more lines; notes: {self.notes}, exit code {self.process.poll()}",
            limit_s=40,
        )

    def end(self) -> int:
        """Its exit code, once all it printed has been read."""
        code = self.process.wait(PATIENCE_S)
        for thread in self._threads:
            thread.join(PATIENCE_S)
        return code

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


@contextmanager
def following(pwm: PwmCluster, *words: str) -> Iterator[Follower]:
    follower = Follower(pwm, *words)
    try:
        yield follower
    finally:
        follower.close()


class Typist:
    """Types numbered words into a follower until told to stop."""

    def __init__(self, follower: Follower) -> None:
        assert follower.process.stdin is not None
        self._stdin = follower.process.stdin
        self.typed = 0
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._enough.wait(0.02):
            self.typed += 1
            try:
                self._stdin.write(b"word %d\n" % self.typed)
            except BrokenPipeError:
                return

    def stop(self, last: bytes) -> None:
        self._enough.set()
        self._thread.join()
        self._stdin.write(last)


def numbers(lines: list[str], word: str) -> list[int]:
    return [int(line.split()[1]) for line in lines if line.startswith(f"{word} ")]


def assert_counted(found: list[int], what: str) -> None:
    assert found == list(range(1, len(found) + 1)), f"{what}: lines are missing, doubled or out of order"
    assert len(found) > 50, what


@contextmanager
def running(pwm: PwmCluster, name: str, script: str) -> Iterator[None]:
    pwm.apply(name, script)
    pwm.until(name, "RUNNING")
    try:
        yield
    finally:
        pwm.mend()
        pwm.ok("delete", "wk", name, "--wait")


# --- shells ---------------------------------------------------------------------------------------


def test_a_shell_goes_on_when_each_controller_is_killed(pwm: PwmCluster) -> None:
    with running(pwm, "talks", "sleep 1000"), following(pwm, "shell", "wk", "talks", "--", "sh", "-c", TALK) as shell:
        shell.grows()
        typist = Typist(shell)
        for part in in_our_order(pwm):
            pwm.kill(part)
            shell.grows()
            pwm.start_controller(part)
        typist.stop(b"exit 7\n")
        assert shell.end() == 7
        assert numbers(shell.lines, "got") == list(range(1, typist.typed + 1))
        assert_counted(numbers(shell.lines, "line"), "what the command printed")
        assert shell.notes == []


def test_a_shell_goes_on_when_each_controller_is_frozen(pwm: PwmCluster) -> None:
    with running(pwm, "talks", "sleep 1000"), following(pwm, "shell", "wk", "talks", "--", "sh", "-c", TALK) as shell:
        shell.grows()
        typist = Typist(shell)
        for part in in_our_order(pwm):
            moment = time.monotonic()
            pwm.freeze(part)
            shell.grows()
            # Both who was served by it and who was not go on until then.
            eventually(lambda moment=moment: time.monotonic() > moment + 7, "it would have been noticed")  # type: ignore[misc]
            shell.grows()
            # What it still holds of the connections that it lost comes too late to harm.
            pwm.thaw(part)
            shell.grows()
        typist.stop(b"exit 3\n")
        assert shell.end() == 3
        assert numbers(shell.lines, "got") == list(range(1, typist.typed + 1))
        assert_counted(numbers(shell.lines, "line"), "what the command printed")


def test_a_command_that_ends_while_its_controller_is_dead_still_gives_its_code(pwm: PwmCluster) -> None:
    script = "echo begun; sleep 2; echo last words; exit 9"
    with running(pwm, "talks", "sleep 1000"), following(pwm, "shell", "wk", "talks", "--", "sh", "-c", script) as shell:
        shell.grows(1)
        for replica in pwm.replicas:
            pwm.kill(replica.part)
        threading.Event().wait(3)
        for replica in pwm.replicas:
            pwm.start_controller(replica.part)
        assert shell.end() == 9
        assert shell.lines == ["begun", "last words"]
        assert [note for note in shell.notes if "reconnecting" in note], "it took long enough to be said"


def test_a_shell_whose_agent_was_restarted_says_that_it_is_lost(pwm: PwmCluster) -> None:
    with running(pwm, "talks", "sleep 1000"), following(pwm, "shell", "wk", "talks", "--", "sh", "-c", TALK) as shell:
        shell.grows(1)
        pwm.kill("agent")
        pwm.start_agent()
        assert shell.end() == 255
        assert any("the session is over" in note for note in shell.notes), shell.notes


@pytest.mark.parametrize("way", ["hangs up", "is killed"])
def test_a_command_whose_client_has_gone_is_hung_up_on(pwm: PwmCluster, way: str, tmp_path: Path) -> None:
    script = "trap 'echo hung up > /hangup; exit' HUP; echo begun; while :; do sleep 0.1; done"
    with running(pwm, "talks", "sleep 1000"), following(pwm, "shell", "wk", "talks", "--", "sh", "-c", script) as shell:
        shell.grows(1)
        began = time.monotonic()
        if way == "hangs up":
            shell.process.terminate()
        else:
            shell.process.kill()
        # A client that said good-bye is believed at once; one that vanished may come back for a minute.
        limit_s = 10 if way == "hangs up" else 80
        look = ("shell", "wk", "talks", "--", "cat", "/hangup")
        eventually(lambda: pwm.pwm(*look).out == "hung up\n", "it is hung up on", limit_s=limit_s)
        if way == "is killed":
            assert time.monotonic() - began > 50


# --- logs -----------------------------------------------------------------------------------------


def test_logs_go_on_over_three_kills_and_three_freezes(pwm: PwmCluster) -> None:
    with running(pwm, "counts", COUNT), following(pwm, "logs", "wk", "counts", "-f") as logs:
        logs.grows()
        for part in in_our_order(pwm):
            moment = time.monotonic()
            pwm.kill(part)
            logs.grows()
            pwm.start_controller(part)
        for part in in_our_order(pwm):
            moment = time.monotonic()
            pwm.freeze(part)
            logs.grows()
            eventually(lambda moment=moment: time.monotonic() > moment + 12, "it would have been noticed")  # type: ignore[misc]
            logs.grows()
            pwm.thaw(part)
        pwm.ok("stop", "wk", "counts", "--wait")
        assert logs.end() == DONE
        assert_counted(numbers(logs.lines, "line"), "what was followed")
        assert logs.lines == pwm.ok("logs", "wk", "counts").splitlines()


# --- events and lists -----------------------------------------------------------------------------


def test_events_and_lists_go_on_over_kills_and_freezes(pwm: PwmCluster) -> None:
    names = [f"many-{n}" for n in range(24)]
    with (
        following(pwm, "events", "-f", "-n", "1", "-o", "json") as events,
        following(pwm, "get", "wk", "-w", "-o", "json") as watch,
    ):
        events.grows(1)
        for number, part in enumerate([*in_our_order(pwm), *in_our_order(pwm)]):
            frozen = number >= 3
            some = names[number * 4 : number * 4 + 4]
            pwm.ok("apply", "-f", "-", input="".join(manifest(name, "echo hello", cpu="10m") for name in some[:2]))
            pwm.freeze(part) if frozen else pwm.kill(part)
            pwm.ok("apply", "-f", "-", input="".join(manifest(name, "echo hello", cpu="10m") for name in some[2:]))
            for name in some:
                pwm.until(name, "EXITED")
            wait_for_end_of(watch, some)
            pwm.thaw(part) if frozen else pwm.start_controller(part)
        pwm.ok("delete", "wk", *names, "--wait")
        last = {name: pwm_removed(pwm, name) for name in names}
        eventually(
            lambda: all(removed in identities(events) for removed in last.values()),
            lambda: f"every event has come; notes: {events.notes}",
        )
        eventually(lambda: set(names) <= deleted(watch), lambda: f"every deletion has come; {watch.notes}")
        assert_all_events_once(pwm, events, names)
        assert_no_state_twice(watch)


def wait_for_end_of(watch: Follower, names: list[str]) -> None:
    def shown() -> dict[str, str]:
        resources = [json.loads(line)["resource"] for line in list(watch.lines)]
        return {r["metadata"]["name"]: r["status"].get("phase", "") for r in resources}

    eventually(
        lambda: all(shown().get(name) == "EXITED" for name in names), lambda: f"{names} are shown; {watch.notes}",
        limit_s=40,
    )  # fmt: skip


def stored_events(pwm: PwmCluster, name: str) -> list[tuple[str, str]]:
    """Of a workload and its containers, as they are kept."""
    lines = pwm.ok("events", "wk", name, "-n", "1000", "-o", "json").splitlines()
    return [(event["uid"], event["version"]) for event in map(json.loads, lines)]


def pwm_removed(pwm: PwmCluster, name: str) -> tuple[str, str]:
    return stored_events(pwm, name)[-1]


def identities(events: Follower) -> list[tuple[str, str]]:
    return [(event["uid"], event["version"]) for event in map(json.loads, list(events.lines))]


def deleted(watch: Follower) -> set[str]:
    messages = [json.loads(line) for line in list(watch.lines)]
    return {m["resource"]["metadata"]["name"] for m in messages if m["type"] == "DELETED"}


def assert_all_events_once(pwm: PwmCluster, events: Follower, names: list[str]) -> None:
    found = identities(events)
    assert len(found) == len(set(found)), "an event was shown twice"
    followed = [json.loads(line) for line in events.lines]
    assert [int(e["revision"]) for e in followed] == sorted(int(e["revision"]) for e in followed)
    for name in names:
        of_it = [e for e in followed if e["name"] == name or e["name"].startswith(f"{name}.")]
        versions: dict[str, list[int]] = {}
        for event in of_it:
            versions.setdefault(event["uid"], []).append(int(event["version"]))
        assert len(versions) == 2, "the workload and its container"
        for uid, seen in versions.items():
            assert seen == list(range(1, len(seen) + 1)), f"{uid} of {name}: events are missing or out of order"


def assert_no_state_twice(watch: Follower) -> None:
    before: dict[str, Any] = {}
    for line in watch.lines:
        message = json.loads(line)
        uid = message["resource"]["metadata"]["uid"]
        assert before.get(uid) != message, f"shown twice: {line}"
        assert (message["type"] == "ADDED") == (uid not in before)
        before[uid] = message


# --- commands whose answer is lost ----------------------------------------------------------------


def _message(source: socket.socket) -> bytes:
    """A whole request or answer; b"" when the other side has gone before it was."""
    message = b""
    while b"\r\n\r\n" not in message or len(message) < _whole(message):
        more = source.recv(1 << 20)
        if not more:
            return b""
        message += more
    return message


class AnswerThief:
    """A way to a controller on which the answer of one request is lost: it was carried out, and nobody hears of it."""

    def __init__(self, target: str, *, of: bytes) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._of = of
        self.stolen = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            with client, socket.create_connection(self._target) as server:
                client.settimeout(10)
                server.settimeout(10)
                self._pass(client, server)

    def _pass(self, client: socket.socket, server: socket.socket) -> None:
        """One request, whole, and its answer, unless that is to be lost."""
        while request := _message(client):
            server.sendall(request)
            answer = _message(server)
            if request.startswith(self._of):
                self.stolen += 1
                return
            client.sendall(answer)

    def close(self) -> None:
        # Closing alone does not wake who waits in accept.
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(PATIENCE_S)


def _whole(message: bytes) -> int:
    head, _, _ = message.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return len(head) + 4 + (int(lengths[0].split(b":")[1]) if lengths else 0)


def versions_of(pwm: PwmCluster, name: str) -> int:
    return int(pwm.workload(name)["metadata"]["version"])


Check = Callable[[PwmCluster], None]


@pytest.mark.parametrize(
    ("request_line", "words", "said"),
    [
        (b"POST /v1/workloads/w/scale", ("scale", "wk", "w", "2"), "Workload/w scaled to 2\n"),
        (b"POST /v1/workloads/w/restart", ("restart", "wk", "w"), "Workload/w restarted\n"),
        (b"POST /v1/workloads/w/stop", ("stop", "wk", "w"), "Workload/w stopped\n"),
        (b"DELETE /v1/resources/Workload/w", ("delete", "wk", "w"), "Workload/w deleted\n"),
    ],
)
def test_a_command_whose_answer_is_lost_is_done_once(
    pwm: PwmCluster, request_line: bytes, words: tuple[str, ...], said: str
) -> None:
    pwm.apply("w", "sleep 1000")
    pwm.until("w", "RUNNING")
    before = len(stored_events_of_workload(pwm, "w"))
    thieves = [AnswerThief(replica.http, of=request_line) for replica in pwm.replicas]
    try:
        # Whichever is asked first loses its answer; the next ones are asked without anybody in between.
        servers = [f"http://{thieves[0].address}", f"http://{pwm.replicas[1].http}"]
        environment = {**pwm.cli_environment, "PWM_SERVER": ",".join(servers)}
        while in_order(servers)[0] != servers[0]:
            thieves.append(AnswerThief(pwm.replicas[0].http, of=request_line))
            servers[0] = f"http://{thieves[-1].address}"
            environment["PWM_SERVER"] = ",".join(servers)
        done = subprocess.run(pwm.command(*words), capture_output=True, env=environment, timeout=60, check=False)
        assert sum(thief.stolen for thief in thieves) == 1
    finally:
        for thief in thieves:
            thief.close()
    assert (done.returncode, done.stderr.decode()) == (DONE, "")
    assert done.stdout.decode().startswith(said)
    assert len(stored_events_of_workload(pwm, "w")) == before + 1, "it was carried out once"
    if words[0] != "delete":
        pwm.ok("delete", "wk", "w", "--wait")
    eventually(lambda: pwm.phase("w") == "GONE", "it is gone")


def test_a_command_waits_a_moment_for_a_frozen_controller_and_asks_the_next(pwm: PwmCluster) -> None:
    first = in_our_order(pwm)[0]
    pwm.freeze(first)
    pwm.ok("get", "node")
    pwm.ok("apply", "-f", "-", input='{"apiVersion": "v1", "kind": "Group", "metadata": {"name": "frozen"}}')
    pwm.thaw(first)
    pwm.ok("delete", "group", "frozen")


def in_order(servers: list[str]) -> list[str]:
    return [server.url for server in _order([Server(url) for url in servers])]


def stored_events_of_workload(pwm: PwmCluster, name: str) -> list[Any]:
    """Events of users on the newest workload of that name."""
    lines = pwm.ok("events", "wk", name, "-n", "1000", "-o", "json").splitlines()
    events = [event for event in map(json.loads, lines) if event["name"] == name]
    return [event for event in events if event["uid"] == events[-1]["uid"] and event["actor"]["type"] == "USER"]


def test_nothing_of_ours_is_left_to_the_next_test(pwm: PwmCluster) -> None:
    assert os.environ.get("PWM_SERVER") is None
    assert json.loads(pwm.ok("get", "wk", "-A", "-o", "json")) == []


# --- usage ----------------------------------------------------------------------------------------


def test_top_goes_on_over_three_kills_and_a_freeze(pwm: PwmCluster) -> None:
    beats: list[float] = []
    troubles: list[str] = []
    ended: list[CliError] = []
    profile = Profile(
        "test", servers=[f"http://{r.http}" for r in pwm.replicas], token=pwm.cli_environment["PWM_TOKEN"]
    )
    feed = Feed(
        profile, query={"interval": "0.5s"}, beat=lambda _: beats.append(time.monotonic()), trouble=troubles.append,
        fatal=ended.append,
    )  # fmt: skip

    def beats_on() -> None:
        enough = len(beats) + 4
        eventually(lambda: len(beats) >= enough, lambda: f"top goes on; {troubles[-1:]} {ended}")

    feed.start()
    try:
        beats_on()
        for part in in_our_order(pwm):
            pwm.kill(part)
            beats_on()
            pwm.start_controller(part)
        for part in in_our_order(pwm):
            pwm.freeze(part)
            beats_on()
            pwm.thaw(part)
    finally:
        feed.stop()
    assert not ended
    assert troubles[-1] == "", "what was wrong is no longer said"
