"""Lines of Docker's json-file log driver."""

import json

from pwm.nodeagent.logs import docker_json


def _line(text: str, stream: str = "stdout", time: str = "2026-02-02T02:40:00.000000001Z") -> bytes:
    return json.dumps({"log": text, "stream": stream, "time": time}).encode() + b"\n"


def test_lines_with_escapes_and_parts_of_lines_are_joined() -> None:
    block = _line('say "hi"\t<&> \u00e4 \u0000\n') + _line("long ") + _line("line\n")
    batch = docker_json.parse(block)
    assert batch.data == 'say "hi"\t<&> ä \0\nlong line\n'.encode()
    assert batch.consumed == len(block)


def test_a_line_that_is_still_being_written_waits() -> None:
    block = _line("whole\n") + _line("half\n")[:20]
    batch = docker_json.parse(block)
    assert batch.data == b"whole\n"
    assert batch.consumed == len(_line("whole\n"))
    assert docker_json.parse(block[batch.consumed :]).consumed == 0


def test_a_line_that_was_torn_when_the_engine_died_is_skipped() -> None:
    block = _line("before\n") + b'{"log":"torn' + b"\n" + _line("after\n")
    batch = docker_json.parse(block)
    assert batch.data == b"before\nafter\n"
    assert batch.consumed == len(block)


def test_runs_change_with_the_stream_and_the_millisecond() -> None:
    times = ["2026-02-02T02:40:00Z", "2026-02-02T02:40:00.000999999Z", "2026-02-02T02:40:00.001Z"]
    block = _line("a\n", time=times[0]) + _line("b\n", time=times[1]) + _line("c\n", "stderr", times[2])
    runs = docker_json.parse(block).runs
    assert runs.starts.tolist() == [0, 2, 4]
    assert runs.stderr.tolist() == [False, False, True]
    assert runs.times.tolist() == [1770000000000000000, 1770000000000999999, 1770000000001000000]
