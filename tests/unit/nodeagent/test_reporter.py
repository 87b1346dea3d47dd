"""Reports leave in order, in batches, and again for a new session until they are acknowledged."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from pwm.api.v1.agent_pb2 import Reports
from pwm.api.v1.events_pb2 import ContainerReported
from pwm.api.v1.workload_pb2 import ContainerStatus as P
from pwm.nodeagent.journal import Journal, Record
from pwm.nodeagent.reporter import BATCH_REPORTS, Reporter
from tests.patience import PATIENCE_S
from tests.unit.nodeagent.fakes import order


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal(tmp_path / "journal.db")
    yield journal
    journal.close()


@pytest.fixture
def acknowledged() -> list[str]:
    return []


@pytest.fixture
def reporter(journal: Journal, acknowledged: list[str]) -> Reporter:
    return Reporter(journal, on_acknowledged=acknowledged.append, clock_ns=lambda: 5_000_000_000)


def say(reporter: Reporter, uid: str, phase: P.Phase.ValueType = P.RUNNING) -> None:
    reporter.report(Record(uid, order(uid, attempt=2)), ContainerReported(phase=phase))


async def next_of(batches: AsyncIterator[Reports]) -> Reports:
    async with asyncio.timeout(PATIENCE_S):
        return await anext(batches)


async def test_what_waits_leaves_in_one_batch_with_its_time_and_attempt(reporter: Reporter) -> None:
    say(reporter, "a", P.CREATING)
    say(reporter, "a", P.RUNNING)
    say(reporter, "b")
    batch = await next_of(reporter.outgoing())
    assert [(r.container_uid, r.reported.phase) for r in batch.reports] == [
        ("a", P.CREATING),
        ("a", P.RUNNING),
        ("b", P.RUNNING),
    ]
    assert {(r.attempt, r.time.seconds) for r in batch.reports} == {(2, 5)}
    sequences = [r.sequence for r in batch.reports]
    assert sequences == list(range(sequences[0], sequences[0] + 3))


async def test_a_session_sends_each_report_once_and_wakes_for_new_ones(reporter: Reporter) -> None:
    batches = reporter.outgoing()
    say(reporter, "a")
    assert len((await next_of(batches)).reports) == 1
    waiting = asyncio.ensure_future(next_of(batches))
    await asyncio.sleep(0)
    assert not waiting.done()
    say(reporter, "b")
    assert [r.container_uid for r in (await waiting).reports] == ["b"]


async def test_a_new_session_begins_at_the_oldest_unacknowledged_report(
    reporter: Reporter, acknowledged: list[str]
) -> None:
    for uid in ("a", "b", "c"):
        say(reporter, uid)
    first = await next_of(reporter.outgoing())
    reporter.acknowledged(first.reports[0].sequence)
    again = await next_of(reporter.outgoing())
    assert [r.container_uid for r in again.reports] == ["b", "c"]
    assert acknowledged == ["a"]


async def test_many_reports_leave_in_bounded_batches(reporter: Reporter) -> None:
    for number in range(BATCH_REPORTS + 1):
        say(reporter, f"c{number}")
    batches = reporter.outgoing()
    assert [len((await next_of(batches)).reports) for _ in range(2)] == [BATCH_REPORTS, 1]
