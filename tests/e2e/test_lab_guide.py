"""docs/lab-guide.md, typed as it is: a lab from an empty etcd on, with TLS, a node that joins, users and their days."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pwm.etcd_process import EtcdProcess, free_port
from pwm.images import ensure_busybox
from tests.docker_engine import IsolatedDockerdFactory
from tests.e2e.guide import ROOT, Reader, Typed, seen, typed_in
from tests.fake_gpus import FakeGpus
from tests.watchdogs import end_watchdogs

pytestmark = [pytest.mark.etcd, pytest.mark.docker]

PAGE = ROOT / "docs" / "lab-guide.md"
FILES = ROOT / "examples" / "lab"


@pytest.fixture
def reader(
    isolated_dockerd: IsolatedDockerdFactory, fake_gpus: FakeGpus, etcd_binary: str, tmp_path: Path
) -> Iterator[Reader]:
    """With the files of the lab, an empty etcd, and a machine with four GPUs and Docker."""
    engine = isolated_dockerd(gpu_hook=True)
    ensure_busybox(engine.host)
    fake_gpus.set("count 4", "name NVIDIA A100-SXM4-80GB")
    directory = tmp_path / "lab"
    shutil.copytree(FILES, directory / "lab")
    for file in directory.rglob("*.yaml"):
        # There is no registry to pull from.
        file.write_text(file.read_text().replace("image: busybox", "image: pwm-demo/busybox"))
    etcd = EtcdProcess(tmp_path / "etcd", client_port=free_port(), peer_port=free_port(), unsafe_no_fsync=True)
    api, agents = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    names = {
        "head:2379": etcd.address, "0.0.0.0:4700": api, "0.0.0.0:4701": agents, "head:4700": api, "head:4701": agents,
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


def test_the_guide_can_be_typed_as_it_is(reader: Reader) -> None:
    page = list(typed_in(PAGE.read_text()))
    assert len(page) > 40
    for typed in page:
        reader.types(typed)


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
