"""etcd's own trouble, on real processes: members lost and frozen, no quorum, history compacted away, no space."""

import http.client
import json
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from pwm.etcd_process import EtcdProcess
from tests.docker_engine import DockerEngine
from tests.etcd_server import EtcdCluster, make_cluster
from tests.patience import PATIENCE_S
from tests.pwm_cluster import PwmCluster, eventually
from tests.pwm_watch import watching

pytestmark = [pytest.mark.etcd, pytest.mark.docker, pytest.mark.slow]

FOR_EVER = "trap 'exit 0' TERM; while :; do sleep 0.2; done"
UNAVAILABLE = 503
QUOTA_BYTES = 16 << 20

_numbers = count(1)
# The figures: pytest -o log_cli=true --log-cli-level=info
log = logging.getLogger(__name__)


class ThreeMembers:
    """Three members of etcd in the place of one."""

    def __init__(self, directory: Path) -> None:
        self.cluster: EtcdCluster = make_cluster(directory, unsafe_no_fsync=True)

    @property
    def address(self) -> str:
        return ",".join(self.cluster.addresses)

    @property
    def pid(self) -> int:
        return min(member.pid for member in self.cluster.members.values())

    def start(self) -> None:
        self.cluster.start()

    def kill(self) -> None:
        self.cluster.stop()


@contextmanager
def started(pwm: PwmCluster) -> Iterator[PwmCluster]:
    try:
        yield pwm.start()
    finally:
        pwm.close()


@pytest.fixture(scope="module")
def three(
    docker_engine: DockerEngine, busybox_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PwmCluster]:
    """Two controllers on three members."""
    directory = tmp_path_factory.mktemp("three")
    pwm = PwmCluster(directory, docker_engine.host, controllers=2)
    pwm.etcd = ThreeMembers(directory / "etcd")  # type: ignore[assignment]
    with started(pwm):
        pwm.apply("stays", FOR_EVER)
        pwm.until("stays", "RUNNING")
        yield pwm


def members_of(pwm: PwmCluster) -> EtcdCluster:
    assert isinstance(pwm.etcd, ThreeMembers)
    return pwm.etcd.cluster


# ---- requests without the time that the command line takes to start


@dataclass
class Answer:
    status: int
    body: dict[str, Any]
    took_s: float

    @property
    def said(self) -> str:
        return json.dumps(self.body)


def authorization(pwm: PwmCluster) -> dict[str, str]:
    return {"Authorization": f"Bearer {(pwm.directory / 'admin-token').read_text().strip()}"}


def ask(
    pwm: PwmCluster, method: str, path: str, *, body: Any = None, key: str = "", part: str = "controller"
) -> Answer:
    headers = {**authorization(pwm), "Content-Type": "application/json"}
    if key:
        headers["Idempotency-Key"] = key
    begun = time.monotonic()
    connection = http.client.HTTPConnection(pwm.replica(part).http, timeout=PATIENCE_S)
    try:
        connection.request(method, path, body=json.dumps(body) if body is not None else None, headers=headers)
        response = connection.getresponse()
        content = json.loads(response.read() or b"{}")
    finally:
        connection.close()
    return Answer(response.status, content, time.monotonic() - begun)


def write(pwm: PwmCluster, name: str, *, key: str = "", part: str = "controller") -> Answer:
    document = {"apiVersion": "v1", "kind": "Volume", "metadata": {"name": name}, "spec": {"storage": "s"}}
    return ask(pwm, "POST", "/v1/apply", body={"documents": [document]}, key=key, part=part)


def volumes(pwm: PwmCluster, part: str = "controller", *, min_revision: int = 0) -> Answer:
    return ask(pwm, "GET", f"/v1/resources/Volume?minRevision={min_revision}", part=part)


def names(answer: Answer) -> list[str]:
    return [item["metadata"]["name"] for item in answer.body.get("items", [])]


def some_name() -> str:
    return f"v{next(_numbers)}"


def process(pwm: PwmCluster) -> str:
    """What would differ if the container had been touched."""
    (container,) = pwm.containers("stays")
    form = "{{.Id}} {{.State.Pid}} {{.State.StartedAt}}"
    command = ["docker", "-H", pwm.docker_host, "inspect", "--format", form, container["status"]["runtimeId"]]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


# ---- no quorum


def test_without_a_quorum_writes_are_refused_in_time_reads_go_on_and_all_is_well_after_it(three: PwmCluster) -> None:
    members = members_of(three)
    kept, before = some_name(), process(three)
    assert write(three, kept).status == 200
    with watching(three, "volume", "-o", "name") as watch:
        for member in ("a", "b"):
            members.kill(member)
        key, wanted = "settles-it", some_name()
        refusals = [write(three, wanted, key=key)]
        for part in ("controller", "controller-2"):
            refusals += in_parallel([lambda part=part: write(three, some_name(), part=part)] * 8)  # type: ignore[misc]
        log.info("refused after %s s", sorted(round(r.took_s, 2) for r in refusals))
        assert {refusal.status for refusal in refusals} == {UNAVAILABLE}
        for refusal in refusals:
            assert "saved" in refusal.body["message"]
            assert refusal.body["details"][0]["nextStep"]

        for part in ("controller", "controller-2"):
            eventually(lambda part=part: "staleSince" in volumes(three, part).body, "reads say that they may be old")  # type: ignore[misc]
        read = volumes(three)
        assert (read.status, kept in names(read)) == (200, True)
        assert "may be old" in three.pwm("get", "volume").err
        eventually(lambda: not leading(three), "leaders stop leading", limit_s=15)

        for member in ("a", "b"):
            members.members[member].start(wait=False)
        for member in ("a", "b"):
            members.members[member].wait_until_healthy()
        begun = time.monotonic()
        eventually(lambda: write(three, wanted, key=key).status == 200, "writes go on")
        back_s = time.monotonic() - begun
        log.info("first write %.2f s after quorum", back_s)
        eventually(lambda: f"volume/{wanted}" in watch.lines(), "the same watch goes on")
    eventually(lambda: "staleSince" not in volumes(three).body, "reads are as new as ever")
    assert names(volumes(three)).count(wanted) == 1
    made = ask(three, "GET", f"/v1/resources/Volume/{wanted}").body["resource"]
    assert made["metadata"]["version"] == "1", "nothing is done twice"
    assert kept in names(volumes(three))
    eventually(lambda: leading(three) == {"zone/default", "cluster"}, "leaders take up again")
    assert process(three) == before
    three.ok("admin", "verify")


def leading(pwm: PwmCluster) -> set[str]:
    """Roles that a replica leads, as the replicas themselves say it."""
    found = set()
    for replica in pwm.replicas:
        metrics = metric(pwm, "pwm_leading", replica.part)
        found |= {f"{replica.part}:{n}" for n in range(int(metrics))}
    if len(found) == 2:
        return {"zone/default", "cluster"}
    return found


def metric(pwm: PwmCluster, name: str, part: str) -> float:
    connection = http.client.HTTPConnection(pwm.replica(part).http, timeout=PATIENCE_S)
    try:
        connection.request("GET", "/metrics", headers=authorization(pwm))
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    return float(next(line.split()[1] for line in text.splitlines() if line.startswith(f"{name} ")))


def in_parallel(calls: list[Callable[[], Answer]]) -> list[Answer]:
    answers: list[Answer] = []
    threads = [threading.Thread(target=lambda call=call: answers.append(call())) for call in calls]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


# ---- one member


class Writers:
    """Writes without a pause through each of some replicas, each repeated until it is acknowledged."""

    def __init__(self, pwm: PwmCluster, parts: list[str]) -> None:
        self.slowest = dict.fromkeys(parts, 0.0)
        self.acknowledged: dict[str, int] = {}
        self._pwm = pwm
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._write_on, args=(part,)) for part in parts]

    def __enter__(self) -> "Writers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_for_more(self, number: int) -> None:
        enough = len(self.acknowledged) + number
        eventually(lambda: len(self.acknowledged) > enough, "writes go on")

    def _write_on(self, part: str) -> None:
        while not self._stop.is_set():
            name = some_name()
            begun = time.monotonic()
            # As the command line does it: the same key, until there is an answer.
            while (answer := write(self._pwm, name, key=name, part=part)).status != 200:
                assert time.monotonic() - begun < PATIENCE_S, "writes do not go on"
            self.slowest[part] = max(self.slowest[part], time.monotonic() - begun)
            self.acknowledged[name] = int(answer.body["revision"])


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_the_loss_of_any_one_member_loses_no_write_and_stops_none(three: PwmCluster, how: signal.Signals) -> None:
    members, before = members_of(three), process(three)
    for victim in list(members.members):
        with Writers(three, ["controller", "controller-2"]) as writers:
            writers.wait_for_more(20)
            os.kill(members.members[victim].pid, how)
            if how == signal.SIGKILL:
                members.kill(victim)
            try:
                writers.wait_for_more(60)
            finally:
                if how == signal.SIGKILL:
                    members.restart(victim)
                else:
                    os.kill(members.members[victim].pid, signal.SIGCONT)
            writers.wait_for_more(20)
        log.info("%s %s: slowest write %s", how.name, victim, {p: round(s, 2) for p, s in writers.slowest.items()})
        for part in writers.slowest:
            there = names(volumes(three, part, min_revision=max(writers.acknowledged.values())))
            assert set(writers.acknowledged) <= set(there)
            assert len(there) == len(set(there))
    assert process(three) == before
    three.ok("admin", "verify")


# ---- compaction


def test_a_replica_that_was_away_while_history_was_compacted_builds_its_view_anew(three: PwmCluster) -> None:
    members = members_of(three)
    rebuilds = metric(three, "pwm_view_rebuilds", "controller-2")
    with watching(three, "volume", "-o", "name", f"--server=http://{three.replica('controller-2').http}") as watch:
        three.freeze("controller-2")
        try:
            made = [some_name() for _ in range(30)]
            for name in made:
                assert write(three, name).status == 200
            revision = ask(three, "GET", "/v1/resources/Volume").body["revision"]
            compact = ["etcdctl", f"--endpoints={members.addresses[0]}", "compaction", str(revision)]
            subprocess.run(compact, check=True, capture_output=True, env={**os.environ, "ETCDCTL_API": "3"})
            # The connections of a machine that was away for long are gone.
            for member in members.members:
                members.kill(member)
                members.members[member].start(wait=False)
                members.members[member].wait_until_healthy()
        finally:
            three.thaw("controller-2")
        eventually(
            lambda: set(made) <= set(names(volumes(three, "controller-2"))), "it holds what it has missed", limit_s=30
        )
        assert metric(three, "pwm_view_rebuilds", "controller-2") > rebuilds
        eventually(lambda: {f"volume/{name}" for name in made} <= {*watch.lines()}, "who watches is told all of it")
    three.ok("admin", "verify")


# ---- no space


def test_out_of_space_is_told_before_refused_in_words_and_recovered_from_without_a_leader(
    docker_engine: DockerEngine, busybox_image: str, tmp_path: Path
) -> None:
    pwm = PwmCluster(tmp_path, docker_engine.host, controllers=2)
    assert isinstance(pwm.etcd, EtcdProcess)
    pwm.etcd.quota_bytes = QUOTA_BYTES
    with started(pwm):
        fill(pwm, lambda: b"at " in status(pwm) and b"% of its quota" in status(pwm))
        assert "etcd raised the alarm" not in status(pwm).decode()
        assert b"16MiB" in status(pwm), "how large it may grow"
        eventually(lambda: "etcd runs out of space" in pwm.log("controller"), "the log warns")
        # Roles are spread: either leads something.
        leader, other = "controller", "controller-2"
        eventually(lambda: metric(pwm, "pwm_leading", leader), "it leads something")
        fill(pwm, lambda: False)
        pwm.kill(leader)
        begun = time.monotonic()
        refused = write(pwm, "refused", part=other)
        if refused.status != 200:
            assert (refused.status, "out of space" in refused.body["message"]) == (UNAVAILABLE, True)
        name = some_name()
        eventually(lambda: write(pwm, name, part=other).status == 200, "there is room again", limit_s=PATIENCE_S)
        log.info("room again after %.2f s; before: %s", time.monotonic() - begun, refused.body.get("message"))
        eventually(lambda: metric(pwm, "pwm_leading", other) == 2, "the other leads now")
        pwm.ok("admin", "verify")


def status(pwm: PwmCluster) -> bytes:
    result = pwm.pwm("admin", "status")
    return result.out.encode()


def fill(pwm: PwmCluster, enough: Callable[[], bool]) -> None:
    """Overwrite one key until etcd refuses, or it is enough."""
    environment = {**os.environ, "ETCDCTL_API": "3"}
    command = ["etcdctl", f"--endpoints={pwm.etcd.address}", "put", "elsewhere"]
    for _ in range(200):
        done = subprocess.run(command, input=b"x" * 600_000, capture_output=True, env=environment, check=False)
        if done.returncode != 0:
            assert b"space exceeded" in done.stderr
            return
        if enough():
            return
    pytest.fail("etcd is never full")
