"""Whoever is put out is out: requests, streams and shells, at every controller, for each way to be put out.

Three real controllers. What puts somebody out is said to one of them, and each of the others holds streams, too.
"""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.patience import PATIENCE_S
from tests.pwm_cluster import PwmCluster, Replica, eventually

pytestmark = [pytest.mark.etcd, pytest.mark.docker]

REFUSED = 5
PROMISE_S = 60.0
STREAMS = {
    "watch": ("get", "wk", "-w"),
    "events": ("events", "-f"),
    "logs": ("logs", "wk", "talk", "-f"),
    "shell": ("shell", "wk", "talk", "--", "sh", "-c", "echo inside; cat; echo $$ > /dev/null; sleep 1000"),
    "shell of a process": ("shell", "wk", "talk", "--", "sleep", "1000"),
}
TALK = "while :; do echo still here; sleep 0.2; done"


class Open:
    """A `pwm` with a token of its own that goes on and on at one controller."""

    def __init__(self, pwm: PwmCluster, replica: Replica, token: str, *words: str) -> None:
        self.words = words
        self._file = pwm.directory / f"open-{time.monotonic_ns()}"
        environment = {**pwm.cli_environment, "PWM_TOKEN": token, "PWM_SERVER": f"http://{replica.http}"}
        with self._file.open("wb") as out, self._file.with_suffix(".err").open("wb") as err:
            self.process = subprocess.Popen(
                pwm.command(*words), stdin=subprocess.PIPE, stdout=out, stderr=err, env=environment
            )

    @property
    def out(self) -> str:
        return self._file.read_text()

    @property
    def err(self) -> str:
        return self._file.with_suffix(".err").read_text()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()


@contextmanager
def opened(pwm: PwmCluster, token: str) -> Iterator[list[Open]]:
    """All kinds of streams, spread over the controllers, each of which has shown something."""
    with ExitStack() as stack:
        made = []
        for number, words in enumerate(STREAMS.values()):
            replica = pwm.replicas[number % len(pwm.replicas)]
            made.append(Open(pwm, replica, token, *words))
            stack.callback(made[-1].close)
        for one in made:
            if one.words[-2:] != ("sleep", "1000"):
                eventually(lambda one=one: one.out, lambda one=one: f"{one.words} begins: {one.err}")  # type: ignore[misc]
        eventually(lambda: "sleep 1000" in _processes(pwm), "the last shell begins")
        yield made


def _processes(pwm: PwmCluster) -> str:
    inside = pwm.pwm("shell", "wk", "talk", "--", "ps")
    return inside.out


def ask(pwm: PwmCluster, token: str, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        pwm.command(*words), env={**pwm.cli_environment, "PWM_TOKEN": token}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def apply_user(pwm: PwmCluster, name: str, *, active: bool = True) -> None:
    everything = {"name": "users", "policy": {"pwm.all": ["pwm.all"]}}
    user = {"apiVersion": "v1", "kind": "User", "metadata": {"name": name}, "spec": {"active": active, "groups": [everything]}}  # fmt: skip # noqa: E501
    pwm.ok("apply", "-f", "-", input=json.dumps(user))


@pytest.fixture(scope="module")
def pwm(cluster_of_three: PwmCluster) -> PwmCluster:
    cluster_of_three.apply("talk", TALK)
    cluster_of_three.until("talk", "RUNNING")
    return cluster_of_three


@pytest.mark.parametrize(
    ("put_out", "said"),
    [
        (lambda pwm: pwm.ok("token", "revoke", "her", "--user", "eve"), "the token her of eve has been revoked"),
        (lambda pwm: apply_user(pwm, "eve", active=False), "user eve is deactivated"),
        (lambda pwm: pwm.ok("delete", "user", "eve"), "this token is not valid"),
    ],
    ids=["revoked", "deactivated", "deleted"],
)
def test_who_is_put_out_is_out_everywhere_at_once(
    pwm: PwmCluster, put_out: Callable[[PwmCluster], Any], said: str
) -> None:
    apply_user(pwm, "eve")
    token = pwm.ok("token", "create", "her", "--user", "eve", "-o", "name").strip()
    stays = pwm.ok("token", "create", "-o", "name").strip()
    with opened(pwm, token) as streams, opened(pwm, stays) as others:
        put_out(pwm)
        for stream in streams:
            assert stream.process.wait(PATIENCE_S) == REFUSED, (stream.words, stream.err)
            assert f"error: {said}" in stream.err
        for replica in pwm.replicas:
            refused = ask(pwm, token, "get", "wk", f"--server=http://{replica.http}")
            assert refused.returncode == REFUSED
            assert said in refused.stderr
        for other in others:
            assert other.process.poll() is None, (other.words, other.err)
    apply_user(pwm, "eve")
    pwm.pwm("token", "revoke", "her", "--user", "eve")


def test_a_token_that_expires_is_out_within_a_minute(pwm: PwmCluster) -> None:
    token = pwm.ok("token", "create", "short", "--expires", "25s", "-o", "name").strip()
    until = time.monotonic() + 25
    with opened(pwm, token) as streams:
        assert time.monotonic() < until, "they began while it was alive"
        for stream in streams:
            code = stream.process.wait(max(0.0, until + PROMISE_S - time.monotonic()))
            assert code == REFUSED, (stream.words, stream.err)
            assert "error: the token short of admin has expired at" in stream.err
    assert "EXPIRED" in pwm.ok("token", "ls")
    again = pwm.ok("token", "create", "short", "-o", "name").strip()
    assert ask(pwm, again, "whoami").returncode == 0, "its name is free again"


def test_the_command_of_a_shell_that_was_put_out_has_ended(pwm: PwmCluster) -> None:
    token = pwm.ok("token", "create", "hers", "-o", "name").strip()
    shell = Open(pwm, pwm.replicas[1], token, "shell", "wk", "talk", "--", "sleep", "4321")
    try:
        eventually(lambda: "sleep 4321" in _processes(pwm), "the command runs")
        pwm.ok("token", "revoke", "hers")
        assert shell.process.wait(PATIENCE_S) == REFUSED
        eventually(lambda: "sleep 4321" not in _processes(pwm), "the command has been hung up on")
    finally:
        shell.close()


def test_a_secret_is_nowhere_but_in_the_answer(pwm: PwmCluster, tmp_path: Path) -> None:
    token = pwm.ok("token", "create", "planted", "-d", "where is it", "-o", "name").strip()
    assert ask(pwm, token, "whoami").returncode == 0
    secret = token.removeprefix("pwm_").encode()
    pwm.ok("token", "revoke", "planted")
    assert ask(pwm, token, "whoami").returncode == REFUSED
    shown = b"".join(
        pwm.ok(*words).encode()
        for words in [("events", "-A"), ("events", "-A", "-o", "json"), ("token", "ls", "-A", "-o", "json")]
    )
    logs = [path for path in pwm.directory.rglob("*") if path.is_file()]
    assert any(path.suffix == ".log" for path in logs)
    assert any("wal" in path.parts for path in logs), "what etcd has on its disk"
    for path in logs:
        assert secret not in path.read_bytes(), path
    assert secret not in shown
    assert b"planted" in shown


def test_people_log_in_with_a_token_that_was_made_for_them(pwm: PwmCluster, tmp_path: Path) -> None:
    apply_user(pwm, "ann")
    token = pwm.ok("token", "create", "--user", "ann", "--expires", "1h", "-o", "name")
    environment = {k: v for k, v in pwm.cli_environment.items() if not k.startswith("PWM_")}
    environment["PWM_CONFIG"] = str(tmp_path / "config")

    def run(*words: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            pwm.command(*words), input=stdin, env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    servers = [f"--server=http://{replica.http}" for replica in pwm.replicas]
    done = run("login", *servers, "--profile", "lab", stdin=token)
    assert done.returncode == 0, done.stderr
    assert "as ann, of users; the token token-1 is good until" in done.stdout
    assert (tmp_path / "config").stat().st_mode & 0o777 == 0o600
    own = run("token", "create", "laptop", "-o", "name")
    assert own.returncode == 0, own.stderr
    assert run("token", "revoke", "token-1").returncode == 0
    assert run("whoami").returncode == REFUSED
    assert run("login", stdin=own.stdout).returncode == 0
    listed = run("token", "ls")
    assert "laptop (this one)" in listed.stdout
    assert run("token", "ls", "-A").returncode == REFUSED
    assert run("token", "create", "--user", "admin").returncode == REFUSED
    (used,) = [t for t in json.loads(run("token", "ls", "-o", "json").stdout) if t["name"] == "laptop"]
    assert used["lastUsedFrom"] == "127.0.0.1"
    assert used["createdBy"] == {"type": "USER", "name": "ann"}
    eventually(
        lambda: all(
            "127.0.0.1" in run("token", "ls", "-o", "wide", f"--server=http://{replica.http}").stdout.splitlines()[-1]
            for replica in pwm.replicas
        ),
        "every controller knows of the use",
    )
