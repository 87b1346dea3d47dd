"""Records of Docker's `local` log driver become exactly the bytes that were printed."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pwm.nodeagent.drivers import process_shim
from pwm.nodeagent.logs import docker_local
from tests.unit.nodeagent_io.records import START_NS, framed, line, part

# Around the steps of a varint, and the most that Docker puts in a record.
_SIZES = (1, 127, 128, 16383, 16384)


@pytest.mark.parametrize(
    ("records", "printed"),
    [
        ([line(b"hello")], b"hello\n"),
        ([line(b""), line(b""), line(b"x")], b"\n\nx\n"),
        (
            [line(b"a" * size) for size in (1, 127, 128, 16383)],
            b"".join(b"a" * n + b"\n" for n in (1, 127, 128, 16383)),
        ),
        ([part(b"a" * 16384), part(b"b" * 16384), part(b"c", last=True)], b"a" * 16384 + b"b" * 16384 + b"c\n"),
        ([part(b"a" * 16384), part(b"", last=True)], b"a" * 16384 + b"\n"),
        ([line(b"x"), part(b"no newline at the end")], b"x\nno newline at the end"),
        ([line(bytes(range(10)) + bytes(range(11, 256)))], bytes(range(10)) + bytes(range(11, 256)) + b"\n"),
        ([line(b"\n\x06stdout\x10 looks like a record")], b"\n\x06stdout\x10 looks like a record\n"),
    ],
    ids=["line", "empty lines", "lengths", "parts", "empty last part", "no newline", "binary", "forged record"],
)
def test_records_give_the_bytes_back(records: list[bytes], printed: bytes) -> None:
    block = b"".join(records)
    batch = docker_local.parse(block)
    assert batch.data == printed
    assert batch.consumed == len(block)


def test_runs_say_when_and_on_which_stream_to_a_millisecond() -> None:
    times = [START_NS, START_NS + 10, START_NS + 20, START_NS + 2_000_000, START_NS + 2_000_001]
    streams = [False, False, True, True, True]
    block = b"".join(line(b"12345", stderr=s, time_ns=t) for t, s in zip(times, streams, strict=True))
    runs = docker_local.parse(block).runs
    assert runs.starts.tolist() == [0, 12, 18]
    assert runs.times.tolist() == [times[0], times[2], times[3]]
    assert runs.stderr.tolist() == [False, True, True]


@pytest.mark.parametrize("time_ns", [1, 1 << 40, (1 << 63) - 1])
def test_any_clock_is_read(time_ns: int) -> None:
    block = line(b"early", time_ns=time_ns) + line(b"now")
    batch = docker_local.parse(block)
    assert batch.data == b"early\nnow\n"
    assert batch.runs.times.tolist()[0] == time_ns


def test_a_record_without_a_time_is_read() -> None:
    batch = docker_local.parse(framed(b"\x0a\x06stderr\x1a\x02hi") + line(b"there"))
    assert batch.data == b"hi\nthere\n"
    assert batch.runs.stderr.tolist() == [True, False]


def test_what_the_process_driver_writes_is_read_as_it_came() -> None:
    pieces = [b"no newline", b"\n", b"\0\xff binary \n\n", b"x" * 65536]
    block = b"".join(process_shim.encode(stderr=i % 2 == 1, time_ns=START_NS, data=p) for i, p in enumerate(pieces))
    batch = docker_local.parse(block)
    assert batch.data == b"".join(pieces)
    assert batch.runs.stderr.tolist() == [False, True, False, True]


def test_a_torn_record_is_skipped_and_what_follows_is_found_again() -> None:
    torn = line(b"written only in part when the engine died")[:30]
    block = line(b"before") + torn + line(b"after") + line(b"and more")
    taken, position = [], 0
    while (batch := docker_local.parse(block[position:])).consumed:
        taken.append(batch.data)
        position += batch.consumed
    assert b"".join(taken) == b"before\nafter\nand more\n"


def test_an_absurd_length_is_damage_and_not_a_reason_to_wait() -> None:
    block = b"\xff\xff\xff\xff garbage " + line(b"after")
    position, taken = 0, b""
    while (batch := docker_local.parse(block[position:])).consumed:
        taken += batch.data
        position += batch.consumed
    assert taken == b"after\n"


_texts = st.binary(max_size=300).map(lambda text: text.replace(b"\n", b" "))
_entries = st.tuples(_texts, st.booleans(), st.integers(0, 3), st.integers(0, 5_000_000))


@settings(max_examples=200, deadline=None)
@given(entries=st.lists(_entries, max_size=40), seed=st.integers(0, 2**32))
def test_however_a_file_grows_the_same_bytes_come_out(entries: list[tuple[bytes, bool, int, int]], seed: int) -> None:
    chance = random.Random(seed)
    records, printed, time_ns = [], b"", START_NS
    for text, stderr, kind, later_ns in entries:
        time_ns += later_ns
        if kind == 0:
            records.append(part(text, stderr=stderr, time_ns=time_ns))
            printed += text
        elif kind == 1:
            records.append(part(text, last=True, stderr=stderr, time_ns=time_ns))
            printed += text + b"\n"
        else:
            records.append(line(text, stderr=stderr, time_ns=time_ns))
            printed += text + b"\n"
    file = b"".join(records)
    position, written, taken = 0, 0, b""
    while written < len(file):
        written = min(len(file), written + chance.randint(1, 400))
        while (batch := docker_local.parse(file[position:written])).consumed:
            assert len(batch.runs) == 0 or batch.runs.starts[0] == 0
            position += batch.consumed
            taken += batch.data
    assert taken == printed
    assert position == len(file)
