"""A tail follows an engine's log file through rotations and restarts."""

import os
from pathlib import Path

import pytest

from pwm.nodeagent.drivers.driver import LogFormat
from pwm.nodeagent.logs.batch import START, Cursor
from pwm.nodeagent.logs.tail import FileTail
from tests.unit.nodeagent_io.records import appender, line, rotate, rotating


def _tail(path: Path, cursor: Cursor = START) -> FileTail:
    return FileTail(path, LogFormat.DOCKER_LOCAL, cursor=cursor)


def _all(tail: FileTail) -> bytes:
    taken = b""
    while data := tail.read().data:
        taken += data
    return taken


def _from_new_tail(path: Path, cursor: Cursor = START) -> bytes:
    tail = _tail(path, cursor)
    try:
        return _all(tail)
    finally:
        tail.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "container.log"


def test_a_file_that_appears_later_is_read_from_its_beginning(path: Path) -> None:
    tail = _tail(path)
    assert _all(tail) == b""
    path.write_bytes(line(b"first"))
    assert _all(tail) == b"first\n"
    tail.close()


def test_what_was_added_before_and_after_a_rotation_is_read_in_order(path: Path) -> None:
    append = appender(path)
    append(line(b"1"))
    tail = _tail(path)
    assert _all(tail) == b"1\n"
    append(line(b"2"))
    rotate(path)
    append(line(b"3"))
    assert _all(tail) == b"2\n3\n"
    tail.close()


def test_several_rotations_between_two_looks_lose_nothing(path: Path) -> None:
    append = appender(path)
    append(line(b"0"))
    tail = _tail(path)
    assert _all(tail) == b"0\n"
    for number in range(1, 4):
        append(line(b"end of %d" % (number - 1)))
        rotate(path)
        append(line(b"%d" % number))
    assert _all(tail) == b"end of 0\n1\nend of 1\n2\nend of 2\n3\n"
    tail.close()


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("taken", [0, 1], ids=["from the beginning", "going on"])
def test_a_look_in_the_midst_of_a_rotation_loses_nothing(path: Path, taken: int, steps: int) -> None:
    """However long the engine takes from one renaming to the next."""
    append = appender(path)
    append(line(b"0"))
    tail = _tail(path)
    seen = _all(tail) if taken else b""
    for number in (1, 2):
        rotate(path)
        append(line(b"%d" % number))
    rotation = rotating(path)
    for _ in range(steps):
        next(rotation)
    seen += _all(tail)
    list(rotation)
    append(line(b"3"))
    assert seen + _all(tail) == b"0\n1\n2\n3\n"
    tail.close()


def test_a_new_tail_begins_with_the_oldest_file(path: Path) -> None:
    append = appender(path)
    for number in range(4):
        append(line(b"%d" % number))
        rotate(path)
    assert _from_new_tail(path) == b"0\n1\n2\n3\n"


@pytest.mark.parametrize("rotations", [0, 1, 3])
def test_a_tail_goes_on_where_an_earlier_one_stopped(path: Path, rotations: int) -> None:
    append = appender(path)
    append(line(b"taken") + line(b"not yet"))
    first = _tail(path)
    first.read()
    inode, _, mark = first.cursor
    first.close()
    cursor = (inode, len(line(b"taken")), mark)
    for _ in range(rotations):
        rotate(path)
        append(line(b"newer"))
    assert _from_new_tail(path, cursor) == b"not yet\n" + b"newer\n" * rotations


def test_after_its_file_was_deleted_a_tail_goes_on_with_the_oldest_that_is_left(path: Path) -> None:
    append = appender(path)
    append(line(b"lost"))
    first = _tail(path)
    first.read()
    cursor = first.cursor
    first.close()
    for number in range(6):
        rotate(path)
        append(line(b"%d" % number, time_ns=1_770_000_000_000_000_000 + number))
    assert _from_new_tail(path, cursor) == b"1\n2\n3\n4\n5\n"


def test_another_file_with_the_same_inode_is_not_mistaken_for_the_known_one(path: Path) -> None:
    path.write_bytes(line(b"old content", time_ns=1_770_000_000_000_000_000))
    first = _tail(path)
    _all(first)
    cursor = first.cursor
    first.close()
    # As if the old file was deleted and its number given to a new one.
    path.write_bytes(line(b"new content", time_ns=1_780_000_000_000_000_000) + line(b"more"))
    assert path.stat().st_ino == cursor[0]
    assert _from_new_tail(path, cursor) == b"new content\nmore\n"


def test_a_file_that_is_begun_anew_is_read_from_its_beginning(path: Path) -> None:
    append = appender(path)
    append(line(b"a long first life"))
    tail = _tail(path)
    assert _all(tail) == b"a long first life\n"
    os.truncate(path, 0)
    append(line(b"second"))
    assert _all(tail) == b"second\n"
    tail.close()


def test_half_a_record_waits_for_its_other_half(path: Path) -> None:
    append, record = appender(path), line(b"in two writes")
    append(record[:10])
    tail = _tail(path)
    assert _all(tail) == b""
    append(record[10:])
    assert _all(tail) == b"in two writes\n"
    tail.close()


def test_half_a_record_at_the_end_of_a_rotated_file_does_not_stop_the_tail(path: Path) -> None:
    append = appender(path)
    append(line(b"whole") + line(b"torn")[:10])
    tail = _tail(path)
    assert _all(tail) == b"whole\n"
    rotate(path)
    append(line(b"next file"))
    assert _all(tail) == b"next file\n"
    tail.close()


def test_a_record_bigger_than_a_block_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pwm.nodeagent.logs.tail.BLOCK_BYTES", 64)
    path.write_bytes(line(b"x" * 5000) + line(b"y"))
    assert _from_new_tail(path) == b"x" * 5000 + b"\ny\n"
