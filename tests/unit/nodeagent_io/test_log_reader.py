"""What a reader of a log gets: everything, its end, what is new, with times, by stream, from an offset."""

from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from pwm.api.v1.agent_pb2 import STDERR, STDOUT, ReadLogs
from pwm.nodeagent.logs import reader
from pwm.nodeagent.logs.reader import SpoolReader
from pwm.nodeagent.logs.spool import Spool
from tests.unit.nodeagent_io.records import START_NS
from tests.unit.nodeagent_io.spooling import MS_NS, batch, chunks, spool_of, text

# Ten lines, ten milliseconds apart, the even ones on stdout; three to a segment.
LINES = [b"line %d\n" % n for n in range(10)]


@pytest.fixture(params=[1 << 20, 20], ids=["one segment", "many segments"])
def spool(tmp_path: Path, request: pytest.FixtureRequest) -> Spool:
    batches = [batch((line, n * 10, n % 2 == 1)) for n, line in enumerate(LINES)]
    return spool_of(tmp_path / "spool", batches, segment_bytes=request.param)


def _at(ms: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(START_NS + int(ms * MS_NS))
    return stamp


def test_streams_are_told_apart(spool: Spool) -> None:
    assert text(spool) == b"".join(LINES)
    assert text(spool, stream=STDOUT) == b"".join(LINES[0::2])
    assert text(spool, stream=STDERR) == b"".join(LINES[1::2])


@pytest.mark.parametrize(("tail", "first"), [(0, 10), (1, 9), (3, 7), (10, 0), (11, 0), (-1, 0)])
def test_a_tail_has_so_many_lines(spool: Spool, tail: int, first: int) -> None:
    assert text(spool, tail=tail) == b"".join(LINES[first:])


def test_a_last_line_without_its_newline_counts(spool: Spool) -> None:
    spool.append(batch((b"prompt> ", 100, False)), (1, 11, 1))
    assert text(spool, tail=1) == b"prompt> "
    assert text(spool, tail=2) == b"line 9\nprompt> "


@pytest.mark.parametrize(("ms", "first"), [(-1, 0), (0, 0), (35, 4), (40, 4), (40.5, 4), (41, 5), (90, 9), (91, 10)])
def test_since_begins_with_the_first_line_of_that_time_or_later(spool: Spool, ms: float, first: int) -> None:
    assert text(spool, since=_at(ms)) == b"".join(LINES[first:])


@pytest.mark.parametrize(("ms", "tail", "first"), [(40, 2, 8), (80, 5, 8)])
def test_since_and_tail_together_give_what_both_would(spool: Spool, ms: float, tail: int, first: int) -> None:
    assert text(spool, since=_at(ms), tail=tail) == b"".join(LINES[first:])


@pytest.mark.parametrize("offset", [1, 6, 7, 30, 69, 70, 999])
def test_an_offset_resumes_at_that_byte_whatever_else_is_asked(spool: Spool, offset: int) -> None:
    assert text(spool, offset=offset, tail=0, since=_at(0)) == b"".join(LINES)[offset:]


def test_each_chunk_says_where_to_resume(spool: Spool) -> None:
    whole = b"".join(LINES)
    found = chunks(spool, ReadLogs(tail=-1))
    assert [chunk.next_offset for chunk in found] == [7 * (n + 1) for n in range(10)]
    for chunk in found[:-1]:
        assert text(spool, offset=chunk.next_offset) == whole[chunk.next_offset :]


def test_timestamps_stand_before_each_line_as_docker_writes_them(tmp_path: Path) -> None:
    many = batch(
        (b"a\n\nb\n", 0, False), (b"err", 1, True), (b"c\n", 2, False), (b" or\n", 3, True), (b"end", 4, False)
    )
    spool = spool_of(tmp_path, [many])
    stamps = [b"2026-02-02T02:40:00.00%d000000Z " % ms for ms in range(5)]
    assert text(spool, timestamps=True) == (
        stamps[0] + b"a\n" + stamps[0] + b"\n" + stamps[0] + b"b\n"
        + stamps[1] + b"err" + stamps[2] + b"c\n" + b" or\n" + stamps[4] + b"end"
    )  # fmt: skip


def test_a_resumed_read_with_timestamps_does_not_stamp_the_middle_of_a_line(tmp_path: Path) -> None:
    spool = spool_of(tmp_path, [batch((b"one line\nnext\n", 0, False))])
    assert text(spool, timestamps=True, offset=4) == b"line\n2026-02-02T02:40:00.000000000Z next\n"


def test_long_output_comes_in_chunks_of_the_agreed_size(tmp_path: Path) -> None:
    data = bytes(range(256)) * 8192
    spool = spool_of(tmp_path, [batch((data, 0, False))], segment_bytes=4 << 20)
    found = chunks(spool, ReadLogs(tail=-1))
    assert b"".join(chunk.data for chunk in found) == data
    assert {len(chunk.data) for chunk in found} == {reader.CHUNK_BYTES}


def test_a_stream_that_changes_with_every_line_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_RUNS_AT_ONCE", 7)
    lines = [(b"%d\n" % n, n, n % 2 == 1) for n in range(100)]
    spool = spool_of(tmp_path, [batch(*lines[i : i + 10]) for i in range(0, 100, 10)], segment_bytes=64)
    assert text(spool) == b"".join(line for line, _, _ in lines)
    assert text(spool, stream=STDERR) == b"".join(line for line, _, stderr in lines if stderr)
    # From within line 53: stamps before 55, 57, ..., 99.
    assert text(spool, timestamps=True, offset=150, stream=STDERR).count(b"Z ") == 23


def test_a_reader_follows_what_is_appended(tmp_path: Path) -> None:
    spool = spool_of(tmp_path, [], segment_bytes=16)
    reading = SpoolReader(spool, ReadLogs(tail=-1))
    assert reading.read() == []
    for n in range(20):
        spool.append(batch((b"%d\n" % n, n, n % 3 == 0)), (1, n, 1))
        assert [(chunk.data, chunk.stream == STDERR) for chunk in reading.read()] == [(b"%d\n" % n, n % 3 == 0)]
        assert reading.read() == []
    reading.close()


def test_a_reader_goes_on_with_the_oldest_byte_when_its_segment_was_dropped(tmp_path: Path) -> None:
    spool = spool_of(tmp_path, [batch((b"%05d\n" % n, n, False)) for n in range(3)], max_bytes=24, segment_bytes=6)
    reading = SpoolReader(spool, ReadLogs(tail=-1))
    assert reading.read()[0].data == b"00000\n"
    for n in range(3, 20):
        spool.append(batch((b"%05d\n" % n, n, False)), (1, n, 1))
    found = []
    while some := reading.read():
        found.extend(chunk.data for chunk in some)
    assert found == [b"00016\n", b"00017\n", b"00018\n", b"00019\n"]
    reading.close()


def test_a_closed_reader_gives_nothing(spool: Spool) -> None:
    reading = SpoolReader(spool, ReadLogs(tail=-1))
    reading.close()
    assert reading.read() == []
