"""Folders of secrets: who can read them, where they lie, and that nothing of them stays."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from pwm.api.v1.agent_pb2 import ContainerSecrets
from pwm.api.v1.common_pb2 import Reason
from pwm.api.v1.workload_pb2 import RunAs
from pwm.nodeagent.drivers.driver import DriverError
from pwm.nodeagent.secret_files import SecretFiles

SHM = Path("/dev/shm")
AS_ROOT = os.geteuid() == 0
pytestmark = pytest.mark.skipif(not os.access(SHM, os.W_OK), reason="/dev/shm is not there")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    found = SHM / f"pwm-test-{os.getpid()}"
    yield found
    for path in sorted(found.rglob("*"), reverse=True) if found.exists() else ():
        path.rmdir() if path.is_dir() else path.unlink()
    if found.exists():
        found.rmdir()


def given() -> ContainerSecrets:
    made = ContainerSecrets()
    made.folders.add(name="s", target="/run/secrets/s", files={"a": b"1", "raw": b"\xff\x00"})
    made.folders.add(name="s", target="/keys", files={"a": b"1"})
    return made


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_each_folder_has_a_read_only_file_per_key(place: Path) -> None:
    folders = SecretFiles("c.n.docker", places=[place]).write("u1", given(), None)
    assert set(folders) == {"/run/secrets/s", "/keys"}
    first = folders["/run/secrets/s"]
    assert {path.name: path.read_bytes() for path in first.iterdir()} == {"a": b"1", "raw": b"\xff\x00"}
    assert {mode(path) for path in first.iterdir()} == {0o444}, "its user is not known, and nobody else gets there"
    assert mode(first.parent) == 0o700


@pytest.mark.skipif(not AS_ROOT, reason="only root can give files away")
def test_the_user_of_a_workload_is_the_only_one_who_can_read_them(place: Path) -> None:
    files = SecretFiles("c.n.docker", places=[place])
    folder = files.write("u1", given(), RunAs(uid=1234, gid=1235))["/keys"]
    for path in (folder, folder / "a"):
        assert (path.stat().st_uid, path.stat().st_gid) == (1234, 1235)
    assert (mode(folder), mode(folder / "a")) == (0o700, 0o400)
    assert folder.parent.stat().st_uid == 0, "they are mounted: nobody comes there by their path"
    outside = files.write("u2", given(), RunAs(uid=1234, gid=1235), reached_from_outside=True)["/keys"].parent
    assert (outside.stat().st_uid, mode(outside)) == (1234, 0o700)
    assert (mode(place), mode(outside.parent)) == (0o711, 0o711)


def test_nothing_stays_of_what_was_removed_or_left_behind(place: Path) -> None:
    files = SecretFiles("c.n.docker", places=[place])
    other = SecretFiles("c.other.docker", places=[place])
    for uid in ("u1", "u2", "u3"):
        files.write(uid, given(), RunAs(uid=os.geteuid(), gid=os.getegid()))
    other.write("u9", given(), None)
    files.remove("u1")
    files.keep_only({"u3"})
    files.remove("never was")
    assert sorted(path.name for path in (place / "c.n.docker").iterdir()) == ["u3"]
    assert (place / "c.other.docker" / "u9").exists()
    for one, uid in ((files, "u3"), (other, "u9")):
        one.remove(uid)


def test_written_again_they_are_new(place: Path) -> None:
    files = SecretFiles("c.n.docker", places=[place])
    files.write("u1", given(), None)
    changed = ContainerSecrets()
    changed.folders.add(name="s", target="/keys", files={"b": b"2"})
    (folder,) = files.write("u1", changed, None).values()
    assert [path.name for path in folder.iterdir()] == ["b"]
    assert files.write("u2", ContainerSecrets(), None) == {}


def test_a_disk_is_no_place_for_them(tmp_path: Path) -> None:
    with pytest.raises(DriverError, match="This node has no file system in memory for secrets") as refused:
        SecretFiles("c.n.docker", places=[tmp_path / "pwm"]).write("u1", given(), None)
    assert refused.value.reason.code == Reason.ERROR_CREATING_CONTAINER
    assert not (tmp_path / "pwm").exists()


@pytest.mark.parametrize("trap", ["open", "link"])
def test_a_folder_that_others_could_have_made_is_not_used(place: Path, trap: str, tmp_path: Path) -> None:
    if trap == "open":
        place.mkdir()
        place.chmod(0o777)
    else:
        place.symlink_to(tmp_path)
    try:
        with pytest.raises(DriverError, match="could not be written"):
            SecretFiles("c.n.docker", places=[place]).write("u1", given(), None)
        assert not list(tmp_path.iterdir())
    finally:
        if trap == "link":
            place.unlink()
