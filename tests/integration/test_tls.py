"""A cluster whose certificates live a few seconds: everything is renewed under what is open, and nobody notices."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pwm.certificates import Identity
from tests.docker_engine import DockerEngine
from tests.etcd_server import require_etcd
from tests.pwm_cluster import PwmCluster, eventually

pytestmark = [pytest.mark.etcd, pytest.mark.docker]

REFUSED, CONFLICT, USAGE = 5, 4, 2
# Renewed every four seconds; a busy machine has two for it.
LIFE = "6s"
COUNTS = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.1; done"


@pytest.fixture(scope="module")
def pwm(
    docker_engine: DockerEngine, busybox_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PwmCluster]:
    require_etcd()
    made = PwmCluster(tmp_path_factory.mktemp("pwm"), docker_engine.host, controllers=2, certificate_life=LIFE)
    try:
        yield made.start()
    finally:
        made.close()


@contextmanager
def following(pwm: PwmCluster, name: str) -> Iterator[Path]:
    """The file that `pwm logs -f` writes."""
    file = pwm.directory / f"{name}.out"
    with file.open("wb") as out:
        process = subprocess.Popen(
            pwm.command("logs", "wk", name, "-f"), stdout=out, stdin=subprocess.DEVNULL, env=pwm.cli_environment
        )
        try:
            yield file
            assert process.poll() is None, "it goes on"
        finally:
            process.kill()
            process.wait()


def certificate(pwm: PwmCluster) -> Identity:
    """What the agent shows now."""
    text = (pwm.directory / "agent" / "tls" / "identity.pem").read_bytes()
    key, mark, chain = text.partition(b"-----BEGIN CERTIFICATE-----")
    return Identity(mark + chain, key)


def ask(pwm: PwmCluster, *words: str, stdin: str = "", **environment: str) -> "subprocess.CompletedProcess[str]":
    kept = {k: v for k, v in pwm.cli_environment.items() if not k.startswith("PWM_")}
    return subprocess.run(
        pwm.command(*words), input=stdin, env={**kept, **environment}, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip


def test_what_is_open_goes_on_over_renewals_and_a_change_of_the_authority(pwm: PwmCluster) -> None:
    pwm.apply("counts", COUNTS)
    pwm.until("counts", "RUNNING")
    with following(pwm, "counts") as file:
        eventually(lambda: file.read_bytes(), "output comes")
        seen = {certificate(pwm).ends_ms}

        def renewals() -> int:
            seen.add(certificate(pwm).ends_ms)
            return len(seen) - 1

        eventually(lambda: renewals() >= 2, "it is renewed, and again")
        pwm.ok("admin", "ca", "rotate")
        authorities = json.loads(pwm.ok("admin", "ca", "show", "-o", "json"))
        assert [entry.get("issuing", False) for entry in authorities] == [True, False]
        eventually(lambda: certificate(pwm).certificate.issuer.rfc4514_string() == "CN=PWM authority 2",
                   "the agent has one of the new authority")  # fmt: skip
        before = len(file.read_bytes())
        eventually(lambda: len(file.read_bytes()) > before + 20, "output goes on coming")
        numbers = [int(line) for line in file.read_text().split("\n")[:-1]]
        assert numbers == list(range(len(numbers))), "no line is missing, none came twice"
    assert pwm.node()["status"]["phase"] == "READY"
    assert "session ended" not in pwm.log("agent")
    pwm.ok("delete", "wk", "counts", "--wait")


def test_an_agent_and_a_controller_that_start_again_get_in(pwm: PwmCluster) -> None:
    pwm.kill("controller-2")
    pwm.start_controller("controller-2")

    def well() -> int:
        status = json.loads(pwm.ok("admin", "status", "-o", "json"))
        return sum(not replica.get("trouble") for replica in status["replicas"])

    eventually(lambda: well() == 2, lambda: pwm.ok("admin", "status"))
    pwm.stop("agent")
    pwm.start_agent()


def test_an_agent_that_was_away_for_longer_than_its_certificate_lived_comes_back(pwm: PwmCluster) -> None:
    pwm.stop("agent")
    eventually(lambda: certificate(pwm).ends_ms < time.time() * 1000, "it has ended")
    pwm.start_agent()
    back = "came back with a certificate that had ended"
    eventually(lambda: "session begins" in pwm.log("agent").partition(back)[2], "it has a session with another one")


def test_a_revoked_node_is_out_at_every_controller_until_it_joins_anew(pwm: PwmCluster) -> None:
    listed = json.loads(pwm.ok("admin", "node", "credentials", "n1", "-o", "json"))["credentials"]
    assert f"{certificate(pwm).certificate.serial_number:x}" in [entry["id"] for entry in listed]
    before = len(pwm.log("agent"))
    assert pwm.ok("admin", "node", "revoke", "n1").startswith("node/n1 revoked: ")
    eventually(lambda: pwm.node()["status"].get("disconnected"), "its session has ended")

    def refused() -> set[str]:
        """By which controllers it has been sent away."""
        ends = [line for line in pwm.log("agent")[before:].splitlines() if "n1 have been revoked" in line]
        return {replica.part for replica in pwm.replicas for line in ends if replica.agents in line}

    eventually(lambda: len(refused()) == 2, "both controllers send it away")
    assert pwm.node()["status"].get("disconnected"), "and so it stays"
    pwm.stop("agent")
    (pwm.directory / "join-token").unlink()
    pwm.start_agent(wait=False)
    eventually(lambda: not pwm.node()["status"].get("disconnected"), "it has joined anew")
    assert "session begins" in pwm.log("agent")[before:]
    said = pwm.ok("events", "node", "n1")
    assert "certificates revoked" in said
    assert "joined with a join token" in said
    audit = pwm.ok("events", "--audit", "--user", "admin", "-n", "1000")
    assert "Node n1: node credentials revoked" in audit


def test_people_pin_the_authority_by_its_fingerprint(pwm: PwmCluster, tmp_path: Path) -> None:
    fingerprint = json.loads(pwm.ok("admin", "ca", "show", "-o", "json"))[0]["fingerprint"]
    config = str(tmp_path / "config")
    server = f"--server=https://{pwm.replicas[0].http}"
    token = (pwm.directory / "admin-token").read_text()
    wrong = ("0" if fingerprint[0] != "0" else "1") + fingerprint[1:]
    for words, said in (
        (("--fingerprint", wrong), "does not have the authority with the fingerprint"),
        (("--fingerprint", "abc"), "64 hex digits"),
        ((), "it cannot be believed"),
        ((), "pwm login --fingerprint HEX"),
    ):
        refused = ask(pwm, "login", server, *words, stdin=token, PWM_CONFIG=config)
        assert refused.returncode != 0
        assert said in refused.stderr
    done = ask(pwm, "login", server, "--fingerprint", fingerprint, stdin=token, PWM_CONFIG=config)
    assert done.returncode == 0, done.stderr
    assert ask(pwm, "whoami", PWM_CONFIG=config).returncode == 0
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.stat().st_mode & 0o777 for path in files] == [0o600] * 2


def test_who_has_no_certificate_for_it_does_not_get_in(pwm: PwmCluster, tmp_path: Path) -> None:
    spare = (pwm.directory / "join-token").read_text()
    used = ask(
        pwm, "agent", f"--controllers={pwm.replicas[0].agents}", f"--join=https://{pwm.replicas[0].http}",
        "--node=n1", f"--state-dir={tmp_path}", PWM_JOIN_TOKEN=spare,
    )  # fmt: skip
    assert used.returncode == USAGE
    assert "may not join: this join token has been used already" in used.stderr
    without = ask(pwm, "agent", f"--controllers={pwm.replicas[0].agents}", "--node=n2", f"--state-dir={tmp_path}")
    assert without.returncode == USAGE
    assert "has not joined yet" in without.stderr


def test_a_cluster_is_initialised_once(pwm: PwmCluster, tmp_path: Path) -> None:
    words = (
        "admin", "init", f"--etcd={pwm.etcd.address}", "--prefix=/another/", f"--cluster-key-file={tmp_path}/key",
        f"--ca-file={tmp_path}/ca.pem",
    )  # fmt: skip
    first = ask(pwm, *words)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("pwm_")
    assert "BEGIN CERTIFICATE" in (tmp_path / "ca.pem").read_text()
    again = ask(pwm, *words)
    assert (again.returncode, again.stdout) == (CONFLICT, "")
    assert "was initialised before" in again.stderr
    os.truncate(tmp_path / "key", 0)
    assert "there is no cluster key in" in ask(pwm, *words).stderr
