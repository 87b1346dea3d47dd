"""The journal: nothing that was written is lost with the process, and a broken disk stops nothing."""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from pwm.api.v1.agent_pb2 import Report
from pwm.api.v1.workload_pb2 import ContainerStatus as P
from pwm.nodeagent.journal import Journal, Record
from tests.unit.nodeagent.fakes import order


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent" / "journal.db"


def report(uid: str, phase: P.Phase.ValueType) -> Report:
    made = Report(container_uid=uid)
    made.reported.phase = phase
    return made


def test_records_and_reports_are_there_after_a_restart(path: Path) -> None:
    journal = Journal(path)
    record = Record("a", order("a"), runtime_id="r1")
    journal.put(record)
    first = journal.append(record, report("a", P.RUNNING))
    second = journal.append(journal.record("a") or record, report("a", P.EXITED))
    journal.close()

    again = Journal(path)
    assert [r.sequence for r in again.pending(after=0)] == [first, second]
    kept = again.record("a")
    assert kept is not None
    assert (kept.phase, kept.runtime_id, kept.end_sequence) == (P.EXITED, "r1", second)
    assert kept.assignment == order("a")
    again.close()


def test_sequences_go_on_after_everything_was_acknowledged(path: Path) -> None:
    journal = Journal(path)
    record = Record("a", order("a"))
    first = journal.append(record, report("a", P.RUNNING))
    assert [r.container_uid for r in journal.acknowledge(first)] == ["a"]
    assert journal.acknowledge(first) == []
    journal.close()

    again = Journal(path)
    assert list(again.pending(after=0)) == []
    assert again.is_acknowledged(first)
    assert again.append(record, report("a", P.EXITED)) == first + 1
    again.close()


def test_pending_begins_after_what_was_sent(path: Path) -> None:
    journal = Journal(path)
    record = Record("a", order("a"))
    sequences = [journal.append(record, report("a", phase)) for phase in (P.CREATING, P.RUNNING, P.EXITED)]
    assert [r.sequence for r in journal.pending(after=sequences[0])] == sequences[1:]
    assert not journal.is_acknowledged(sequences[-1])
    assert not journal.is_acknowledged(0)
    journal.close()


def test_a_forgotten_container_stays_forgotten(path: Path) -> None:
    journal = Journal(path)
    journal.put(Record("a", order("a")))
    journal.forget("a")
    journal.forget("a")
    journal.close()
    again = Journal(path)
    assert again.records() == []
    again.close()


@pytest.mark.parametrize("content", [b"not a database at all" * 500, b"SQLite format 3\0" + b"\xff" * 5000])
def test_an_unreadable_journal_is_moved_aside_and_a_new_one_begun(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    journal = Journal(path, clock_ms=lambda: 1_000)
    assert journal.records() == []
    assert journal.append(Record("a", order("a")), report("a", P.RUNNING)) == 1_001
    journal.close()
    (aside,) = path.parent.glob("journal.db.unreadable-*")
    assert aside.read_bytes() == content


def test_a_journal_with_a_damaged_row_is_moved_aside(path: Path) -> None:
    Journal(path).close()
    db = sqlite3.connect(path)
    db.execute("INSERT INTO container VALUES ('a', ?, 1, '', 0)", (b"\xff\xff\xff",))
    db.commit()
    db.close()
    journal = Journal(path)
    assert journal.records() == []
    assert list(path.parent.glob("journal.db.unreadable-*"))
    journal.close()


def test_when_the_disk_refuses_memory_goes_on_and_is_written_later(path: Path) -> None:
    journal = Journal(path)
    record = Record("a", order("a"))
    journal.put(record)
    journal._db.execute("PRAGMA query_only = 1")  # every write fails from here on
    journal.append(record, report("a", P.RUNNING))
    assert [r.reported.phase for r in journal.pending(after=0)] == [P.RUNNING]
    journal._db.execute("PRAGMA query_only = 0")
    journal.append(journal.record("a") or record, report("a", P.EXITED))
    journal.close()

    again = Journal(path)
    assert [r.reported.phase for r in again.pending(after=0)] == [P.RUNNING, P.EXITED]
    again.close()


_WRITER = """
import sys
from pathlib import Path
from pwm.api.v1.agent_pb2 import Assignment, Report
from pwm.nodeagent.journal import Journal, Record
journal = Journal(Path(sys.argv[1]))
record = Record("a", Assignment(uid="a"))
while True:
    report = Report(container_uid="a")
    report.reported.phase = 4
    print(journal.append(record, report), flush=True)
"""


def test_kill_9_loses_no_report_that_was_written(path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout is not None
        written = [int(writer.stdout.readline()) for _ in range(200)]
        os.kill(writer.pid, signal.SIGKILL)
        written += [int(line) for line in writer.stdout.read().splitlines() if line]
    finally:
        writer.kill()
        writer.wait()
        if writer.stdout:
            writer.stdout.close()
    journal = Journal(path)
    kept = [r.sequence for r in journal.pending(after=0)]
    journal.close()
    # The last one may have been written and not yet said.
    assert kept[: len(written)] == written
    assert len(kept) - len(written) in (0, 1)
