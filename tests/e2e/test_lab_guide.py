"""docs/lab-guide.md, typed as it is: a lab from an empty etcd on, with TLS, a node that joins, users and their days."""

import re
import shutil
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Message

from pwm.etcd_process import EtcdProcess, free_port
from pwm.images import ensure_busybox
from tests.docker_engine import IsolatedDockerdFactory
from tests.e2e.guide import ROOT, Reader, Typed, seen, typed_in
from tests.fake_gpus import FakeGpus
from tests.pwm_cluster import eventually
from tests.watchdogs import end_watchdogs

pytestmark = [pytest.mark.etcd, pytest.mark.docker]

PAGE = ROOT / "docs" / "lab-guide.md"
MAIL = re.compile(r"```mail\n(.*?)```", re.DOTALL)
FILES = ROOT / "examples" / "lab"


class Mailbox(Message):
    """All that the mail server was given."""

    def __init__(self) -> None:
        super().__init__(EmailMessage)
        self.mails: list[str] = []

    def handle_message(self, message: Any) -> None:
        self.mails.append(f"To: {message['To']}\nSubject: {message['Subject']}\n\n{message.get_payload()}")


@pytest.fixture
def mail_server() -> Iterator[tuple[Mailbox, str]]:
    """What it got, and its address."""
    box, port = Mailbox(), free_port()
    server = Controller(box, hostname="127.0.0.1", port=port)
    server.start()
    try:
        yield box, f"127.0.0.1:{port}"
    finally:
        server.stop()


@pytest.fixture
def reader(
    isolated_dockerd: IsolatedDockerdFactory,
    fake_gpus: FakeGpus,
    etcd_binary: str,
    mail_server: tuple[Mailbox, str],
    tmp_path: Path,
) -> Iterator[Reader]:
    """With the files of the lab, an empty etcd, and a machine with four GPUs and Docker."""
    engine = isolated_dockerd(gpu_hook=True)
    # There is no registry to pull from.
    client = engine.client()
    client.images.get(ensure_busybox(engine.host)).tag("busybox")
    client.close()
    fake_gpus.set("count 4", "name NVIDIA A100-SXM4-80GB")
    directory = tmp_path / "lab"
    shutil.copytree(FILES, directory / "lab")
    etcd = EtcdProcess(tmp_path / "etcd", client_port=free_port(), peer_port=free_port(), unsafe_no_fsync=True)
    api, agents = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    names = {
        "head:2379": etcd.address, "0.0.0.0:4700": api, "0.0.0.0:4701": agents, "head:4700": api, "head:4701": agents,
        "mail:25": mail_server[1],
    }  # fmt: skip
    state = tmp_path / "agent"
    machine = {**fake_gpus.environment, "PWM_DOCKER_HOST": engine.host, "PWM_STATE_DIR": str(state)}
    try:
        etcd.start()
        with Reader(directory, names=names, environment=machine) as made:
            yield made
    finally:
        end_watchdogs(state)
        etcd.kill()


def test_the_guide_can_be_typed_as_it_is(reader: Reader, mail_server: tuple[Mailbox, str]) -> None:
    page = list(typed_in(PAGE.read_text()))
    assert len(page) > 40
    for typed in page:
        reader.types(typed)
    (shown,) = MAIL.findall(PAGE.read_text())
    mails = mail_server[0].mails
    eventually(
        lambda: any(seen(shown.splitlines(), mail) is not None for mail in mails),
        lambda: f"the mail is sent: {mails}",
        limit_s=60,
    )


def test_a_page_is_read_as_people_read_it() -> None:
    first = "ann$ pwm get wk \\\n    -A\nNAME  AGE\n...\nbob$ pwm top &\n"
    page = f"Text.\n\n```console\n{first}```\n\n```console\nann$ true\n```\n"
    assert list(typed_in(page)) == [
        Typed("ann", "pwm get wk -A", ["NAME  AGE", "..."]),
        Typed("bob", "pwm top &", []),
        Typed("ann", "true", []),
    ]


@pytest.mark.parametrize(
    ("shown", "said", "found"),
    [
        (["a  b"], "a b\n", {}),
        (["a ... d"], "a b c d", {}),
        (["a", "..."], "a\nb\nc\n", {}),
        (["...", "c", "..."], "c\n", {}),
        (["key  <KEY>"], "key 12ab\n", {"KEY": "12ab"}),
        ([], "", {}),
        ([], "a\n", None),
        (["a"], "a\nb\n", None),
        (["a.c"], "abc\n", None),
        (["a ... d"], "a b\nc d\n", None),
        (["key  <KEY>"], "key 12ab 3\n", None),
    ],
)
def test_what_comes_back_is_all_that_a_page_shows(shown: list[str], said: str, found: dict[str, str] | None) -> None:
    assert seen(shown, said) == found
