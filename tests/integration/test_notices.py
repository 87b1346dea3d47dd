"""Notices of real workloads, to a real mail server and a real receiver of webhooks, over the death of the leader."""

import hashlib
import hmac
import json
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Message

from pwm.etcd_process import free_port
from tests.docker_engine import DockerEngine
from tests.etcd_server import require_etcd
from tests.pwm_cluster import PwmCluster, eventually

pytestmark = [pytest.mark.etcd, pytest.mark.docker]

KEY = "a key that only eve and her server know".replace(" ", "-")
# Five seconds pass before it is tried again, and a leader may have to be found first.


class Mailbox(Message):
    """All that the mail server was given."""

    def __init__(self) -> None:
        super().__init__(EmailMessage)
        self.messages: list[Any] = []

    def handle_message(self, message: Any) -> None:
        self.messages.append(message)

    def about(self, workload: str) -> list[Any]:
        return [m for m in self.messages if f" {workload} " in m["Subject"]]


@dataclass
class Receiver:
    """A server for webhooks, which can be told to fail."""

    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    answer: int = 200

    def about(self, workload: str) -> list[tuple[dict[str, str], bytes]]:
        return [one for one in list(self.requests) if json.loads(one[1])["about"]["name"] == workload]


@pytest.fixture(scope="module")
def mailbox() -> Iterator[tuple[Mailbox, int]]:
    box, port = Mailbox(), free_port()
    server = Controller(box, hostname="127.0.0.1", port=port)
    server.start()
    try:
        yield box, port
    finally:
        server.stop()


@pytest.fixture(scope="module")
def webhook() -> Iterator[tuple[Receiver, str]]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.requests.append((dict(self.headers), body))
            self.send_response(receiver.answer)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            """Nothing on the tests' output."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield receiver, f"http://127.0.0.1:{server.server_port}/hook?for=eve#{KEY}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def pwm(
    docker_engine: DockerEngine,
    busybox_image: str,
    tmp_path_factory: pytest.TempPathFactory,
    mailbox: tuple[Mailbox, int],
) -> Iterator[PwmCluster]:
    require_etcd()
    settings = {
        "PWM_SMTP": f"127.0.0.1:{mailbox[1]}",
        "PWM_SMTP_SENDER": "pwm@example.org",
        "PWM_SMTP_TLS": "none",
        "PWM_NOTIFY_NETWORK": "127.0.0.1/32",
    }
    made = PwmCluster(tmp_path_factory.mktemp("pwm"), docker_engine.host, environment=settings, controllers=2)
    try:
        yield made.start()
    finally:
        made.close()


@pytest.fixture(scope="module")
def eve(pwm: PwmCluster) -> str:
    """Her token."""
    everything = {"name": "users", "policy": {"pwm.all": ["pwm.all"]}}
    spec = {"groups": [everything], "contact": {"email": "eve@example.org"}}
    user = {"apiVersion": "v1", "kind": "User", "metadata": {"name": "eve"}, "spec": spec}
    pwm.ok("apply", "-f", "-", input=json.dumps(user))
    return pwm.ok("token", "create", "--user", "eve", "-o", "name").strip()


def ask(pwm: PwmCluster, token: str, *words: str, input: str = "") -> str:
    done = subprocess.run(
        pwm.command(*words), input=input, env={**pwm.cli_environment, "PWM_TOKEN": token},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "notify" not in done.stderr
    assert "warning" not in done.stderr
    return done.stdout


def run(pwm: PwmCluster, token: str, name: str, script: str, notify: dict[str, Any]) -> None:
    config = {"cmd": ["sh", "-c", script], "memory": "32MiB"}
    spec = {"image": "pwm-demo/busybox", "selectors": {"cpu": {"count": "50m"}}, "config": config, "notify": notify}
    document = {"apiVersion": "v1", "kind": "Workload", "metadata": {"name": name}, "spec": spec}
    ask(pwm, token, "apply", "-f", "-", input=json.dumps(document))


def verify(headers: dict[str, str], body: bytes) -> None:
    """As docs/notifications.md tells receivers to."""
    signed = headers["X-PWM-Timestamp"].encode() + b"." + body
    expected = "v1=" + hmac.new(KEY.encode(), signed, hashlib.sha256).hexdigest()
    assert hmac.compare_digest(expected, headers["X-PWM-Signature"])


def test_a_workload_that_crashes_sends_one_mail_with_the_reason_and_its_last_lines(
    pwm: PwmCluster, eve: str, mailbox: tuple[Mailbox, int]
) -> None:
    box = mailbox[0]
    run(pwm, eve, "fails", "echo it goes; echo it breaks >&2; exit 3", {"byEmail": True, "on": ["crashed"]})
    eventually(lambda: box.about("fails"), lambda: f"a mail: {pwm.log('controller')[-3000:]}")
    run(pwm, eve, "works", "exit 0", {"byEmail": True})
    eventually(lambda: len(box.about("works")) == 2, "it ran, and it ended")
    (mail,) = box.about("fails")
    assert mail["To"] == "eve@example.org"
    assert mail["From"] == "pwm@example.org"
    assert mail["Subject"] == "PWM: fails has crashed: exited with code 3"
    assert "pwm why wk fails -g users" in mail.get_payload()
    printed = mail.get_payload().partition("Its last lines were:")[2].split()
    assert sorted(printed) == ["breaks", "goes", "it", "it"]
    assert [m["Subject"] for m in box.about("works")] == [
        "PWM: works is running",
        "PWM: works has ended: ended with code 0",
    ]


def test_a_signed_webhook_is_repeated_until_it_is_taken_also_when_the_leader_dies(
    pwm: PwmCluster, eve: str, webhook: tuple[Receiver, str]
) -> None:
    receiver, address = webhook
    receiver.answer = 500
    run(pwm, eve, "told", "exit 0", {"to": [address], "on": ["exited"]})
    eventually(lambda: receiver.about("told"), "a first attempt")
    leader = eventually(
        lambda: next((r.part for r in pwm.replicas if "notice not delivered" in pwm.log(r.part)), ""),
        "it is known that it was not taken",
    )
    pwm.kill(leader)
    attempts = len(receiver.about("told"))
    receiver.answer = 200
    eventually(lambda: len(receiver.about("told")) > attempts, "another leader repeats it")
    survivor = next(r.part for r in pwm.replicas if r.part != leader)
    eventually(lambda: "notice delivered" in pwm.log(survivor), "it is known that it was taken")
    for headers, body in receiver.about("told"):
        verify(headers, body)
    assert len({body for _, body in receiver.about("told")}) == 1
    told = json.loads(receiver.about("told")[0][1])
    assert told["kind"] == "exited"
    assert told["about"] == {"kind": "Workload", "group": "users", "name": "told"}
    assert told["id"] == receiver.about("told")[0][0]["X-PWM-Notice"]
    assert KEY not in receiver.about("told")[0][1].decode()


def test_others_do_not_see_where_notices_go(pwm: PwmCluster, eve: str, webhook: tuple[Receiver, str]) -> None:
    run(pwm, eve, "hers", "exit 0", {"to": [webhook[1]], "on": ["crashed"]})
    for words in (
        ("get", "wk", "hers", "-o", "yaml"),
        ("describe", "wk", "hers"),
        ("events", "wk", "hers", "-o", "json"),
    ):
        assert KEY not in pwm.ok(*words)
    seen = json.loads(pwm.ok("get", "wk", "hers", "-o", "json"))
    assert seen["spec"]["notify"]["to"] == ["http://***"]
    # What was seen can be applied again, and changes nothing.
    assert "unchanged" in pwm.ok("apply", "-f", "-", input=json.dumps(seen))


def test_a_user_says_once_for_all_workloads_where_to_be_told(
    pwm: PwmCluster, eve: str, webhook: tuple[Receiver, str]
) -> None:
    receiver, address = webhook
    receiver.answer = 200
    said = ask(pwm, eve, "notify", "set", "--on", "crashed,denied", "--to", address)
    assert address in said
    assert ask(pwm, eve, "notify") == said
    assert KEY not in pwm.ok("get", "user", "eve", "-o", "yaml")
    assert KEY not in pwm.ok("events", "user", "eve", "-o", "json")
    run(pwm, eve, "any", "exit 4", {})
    eventually(lambda: receiver.about("any"), "it is told of a workload that says nothing")
    assert "nowhere" not in said
    assert "idle, credits" in ask(pwm, eve, "notify", "reset")
