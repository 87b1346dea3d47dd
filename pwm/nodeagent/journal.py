"""What the agent must not forget when it is killed: its containers, the reports nobody acknowledged yet, and since
when it has not been heard.

All of it is in memory, and every change is also written to SQLite (WAL, one small transaction each), which
survives `kill -9` of the agent; a power cut may cost the last transactions, but then the containers are gone
too. Reading therefore costs nothing, and a full disk stops no container: the agent goes on from memory,
says so, and writes everything again once writing works.

A journal that cannot be read is moved aside and a new one begun: the containers are found again by their
labels (`Driver.adopt`), and the control plane knows what it was told. Sequence numbers of a new journal
begin at the time of its making in milliseconds, so that they are above any that an older journal gave out.
"""

import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog
from google.protobuf.message import DecodeError

from pwm.api.v1.agent_pb2 import Assignment, Report
from pwm.api.v1.store_pb2 import Position
from pwm.lifecycle import ENDED, Phase

log = structlog.get_logger(__name__)

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE container (
    uid TEXT PRIMARY KEY, assignment BLOB NOT NULL, phase INTEGER NOT NULL, runtime_id TEXT NOT NULL,
    end_sequence INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE report (sequence INTEGER PRIMARY KEY, payload BLOB NOT NULL);
CREATE TABLE counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""
# Later than the schema, and made where it is missing: an older agent leaves it alone.
_CONTACT = """
CREATE TABLE IF NOT EXISTS contact (
    only INTEGER PRIMARY KEY CHECK (only = 0), boot_id TEXT NOT NULL, heard_ms INTEGER NOT NULL,
    self_fence_ms INTEGER NOT NULL, lost_after_ms INTEGER NOT NULL
)
"""
_OBEYED = """
CREATE TABLE IF NOT EXISTS obeyed (
    only INTEGER PRIMARY KEY CHECK (only = 0), cluster TEXT NOT NULL, position BLOB NOT NULL,
    incarnation INTEGER NOT NULL
)
"""
# A reader such as a backup may hold the file for a moment.
_BUSY_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of one container. `assignment` is the last one heard, so that an end can be explained."""

    uid: str
    assignment: Assignment
    phase: Phase.ValueType = 0  # type: ignore[assignment]  # PHASE_UNSPECIFIED: nothing reported yet
    runtime_id: str = ""
    # Sequence of the report of its end; 0: it has not ended.
    end_sequence: int = 0


@dataclass(frozen=True, slots=True)
class Contact:
    """When the control plane has last heard this agent, and what that obliges it to (see pwm/nodeagent/fence.py)."""

    boot_id: str = ""
    # On the clock of elapsed time since that boot; 0: not since then.
    heard_ms: int = 0
    self_fence_ms: int = 0
    lost_after_ms: int = 0


@dataclass(frozen=True, slots=True)
class Obeyed:
    """Whose orders were obeyed, and how far their log had been read (see pwm/nodeagent/allegiance.py)."""

    cluster: str = ""
    position: Position = field(default_factory=Position)
    incarnation: int = 0


class Journal:
    """Owned by one event loop; not for threads."""

    def __init__(
        self,
        path: Path,
        *,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        connect: Callable[[Path], sqlite3.Connection] | None = None,
    ) -> None:
        """`connect` opens the database, for the simulator; else it is the file at `path`."""
        self._path = path
        self._connect = connect or _connect
        self._clock_ms = clock_ms
        self._records: dict[str, Record] = {}
        # In order of their sequence.
        self._pending: dict[int, Report] = {}
        self._behind = False
        self._last_sequence = 0
        self._contact, self._obeyed = Contact(), Obeyed()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self._db = self._open()
            self._load()
        except sqlite3.DatabaseError as error:
            self._move_aside(error)
            self._records.clear()
            self._pending.clear()
            self._contact, self._obeyed = Contact(), Obeyed()
            self._db = self._open()
            self._load()

    def close(self) -> None:
        self._db.close()

    # -- containers

    def records(self) -> list[Record]:
        return list(self._records.values())

    def record(self, uid: str) -> Record | None:
        return self._records.get(uid)

    def put(self, record: Record) -> None:
        if self._records.get(record.uid) == record:
            return
        self._records[record.uid] = record
        self._write(lambda db: self._put_row(db, record))

    def forget(self, uid: str) -> None:
        if self._records.pop(uid, None) is not None:
            self._write(lambda db: db.execute("DELETE FROM container WHERE uid = ?", (uid,)))

    # -- reports

    def append(self, record: Record, report: Report) -> int:
        """Number the report, and keep it together with what it does to the container's record."""
        sequence = self._last_sequence = self._last_sequence + 1
        report.sequence = sequence
        phase = report.reported.phase
        record = replace(record, phase=phase, end_sequence=sequence if phase in ENDED else 0)
        self._records[record.uid] = record
        self._pending[sequence] = report

        def write(db: sqlite3.Connection) -> None:
            self._put_row(db, record)
            db.execute("INSERT INTO report VALUES (?, ?)", (sequence, report.SerializeToString(deterministic=True)))
            db.execute("UPDATE counter SET value = ? WHERE name = 'sequence'", (sequence,))

        self._write(write)
        return sequence

    def pending(self, *, after: int) -> Iterator[Report]:
        """Unacknowledged reports above a sequence, oldest first."""
        return (report for sequence, report in self._pending.items() if sequence > after)

    def acknowledge(self, up_to: int) -> list[Report]:
        """Drop what arrived; gives the reports that were dropped."""
        done = []
        for sequence in self._pending:
            if sequence > up_to:
                break
            done.append(sequence)
        if not done:
            return []
        dropped = [self._pending.pop(sequence) for sequence in done]
        self._write(lambda db: db.execute("DELETE FROM report WHERE sequence <= ?", (up_to,)))
        return dropped

    def is_acknowledged(self, sequence: int) -> bool:
        return bool(sequence) and sequence not in self._pending

    # -- allegiance

    @property
    def obeyed(self) -> Obeyed:
        return self._obeyed

    def obey(self, obeyed: Obeyed) -> None:
        self._obeyed = obeyed
        self._write(lambda db: self._put_obeyed(db, obeyed))

    # -- contact

    @property
    def contact(self) -> Contact:
        return self._contact

    def keep_contact(self, contact: Contact) -> None:
        self._contact = contact
        self._write(lambda db: self._put_contact(db, contact))

    # -- the file

    def _open(self) -> sqlite3.Connection:
        db = self._connect(self._path)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            (sound,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if sound != "ok":
                raise sqlite3.DatabaseError(sound)
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version == 0:
                db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT;")
                db.execute("INSERT INTO counter VALUES ('sequence', ?)", (self._clock_ms(),))
            elif version != _SCHEMA_VERSION:
                raise sqlite3.DatabaseError(f"written by another version ({version})")
            db.execute(_CONTACT)
            db.execute(_OBEYED)
        except BaseException:
            db.close()
            raise
        return db

    def _load(self) -> None:
        try:
            for uid, assignment, phase, runtime_id, end in self._db.execute(
                "SELECT uid, assignment, phase, runtime_id, end_sequence FROM container"
            ):
                self._records[uid] = Record(uid, Assignment.FromString(assignment), phase, runtime_id, end)
            for sequence, payload in self._db.execute("SELECT sequence, payload FROM report ORDER BY sequence"):
                self._pending[sequence] = Report.FromString(payload)
            row = self._db.execute("SELECT value FROM counter WHERE name = 'sequence'").fetchone()
            for kept in self._db.execute("SELECT boot_id, heard_ms, self_fence_ms, lost_after_ms FROM contact"):
                self._contact = Contact(*kept)
            for obeyed in self._db.execute("SELECT cluster, position, incarnation FROM obeyed"):
                cluster, position, incarnation = obeyed
                self._obeyed = Obeyed(cluster, Position.FromString(position), incarnation)
        except DecodeError as error:
            self._db.close()
            raise sqlite3.DatabaseError(f"a row is no message any more: {error}") from error
        # A crash between making the table and its first row leaves none.
        self._last_sequence = max(int(row[0]) if row else self._clock_ms(), *self._pending, 0)

    def _move_aside(self, error: sqlite3.DatabaseError) -> None:
        aside = self._path.with_name(f"{self._path.name}.unreadable-{self._clock_ms()}")
        log.error("journal cannot be read, starting a new one", path=str(self._path), kept=str(aside), error=str(error))
        self._path.rename(aside)
        for suffix in ("-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)

    def _write(self, change: Callable[[sqlite3.Connection], object]) -> None:
        """One transaction; when the disk refuses, memory is the truth until everything could be written again."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                if self._behind:
                    self._rewrite()
                else:
                    change(self._db)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            if not self._behind:
                log.error("journal cannot be written, going on from memory", path=str(self._path), error=str(error))
            self._behind = True
        else:
            if self._behind:
                log.info("journal is written again", path=str(self._path))
            self._behind = False

    def _rewrite(self) -> None:
        self._db.execute("DELETE FROM container")
        self._db.execute("DELETE FROM report")
        for record in self._records.values():
            self._put_row(self._db, record)
        rows = [(sequence, report.SerializeToString(deterministic=True)) for sequence, report in self._pending.items()]
        self._db.executemany("INSERT INTO report VALUES (?, ?)", rows)
        self._db.execute("UPDATE counter SET value = ? WHERE name = 'sequence'", (self._last_sequence,))
        self._put_contact(self._db, self._contact)
        self._put_obeyed(self._db, self._obeyed)

    @staticmethod
    def _put_obeyed(db: sqlite3.Connection, obeyed: Obeyed) -> None:
        db.execute(
            "INSERT OR REPLACE INTO obeyed VALUES (0, ?, ?, ?)",
            (obeyed.cluster, obeyed.position.SerializeToString(), obeyed.incarnation),
        )

    @staticmethod
    def _put_contact(db: sqlite3.Connection, contact: Contact) -> None:
        db.execute(
            "INSERT OR REPLACE INTO contact VALUES (0, ?, ?, ?, ?)",
            (contact.boot_id, contact.heard_ms, contact.self_fence_ms, contact.lost_after_ms),
        )

    @staticmethod
    def _put_row(db: sqlite3.Connection, record: Record) -> None:
        assignment = record.assignment.SerializeToString(deterministic=True)
        db.execute(
            "INSERT OR REPLACE INTO container VALUES (?, ?, ?, ?, ?)",
            (record.uid, assignment, record.phase, record.runtime_id, record.end_sequence),
        )


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
