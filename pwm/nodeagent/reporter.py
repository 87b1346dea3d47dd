"""Reports on their way to the control plane: in order, in batches, each until it is acknowledged.

The supervisor hands every step it saw to `report`, which writes it to the journal and returns at once; a
session sends what waits (`outgoing`) and passes acknowledgements back. A new session begins again at the
oldest report that nobody acknowledged: the control plane drops what it already has, since phases only grow.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from itertools import islice

from pwm.api.v1.agent_pb2 import Report, Reports
from pwm.api.v1.events_pb2 import ContainerReported
from pwm.nodeagent.journal import Journal, Record

# One message carries so many: beyond a hundred a batch, the cost per report no longer falls.
BATCH_REPORTS = 500


class Reporter:
    def __init__(
        self, journal: Journal, *, on_acknowledged: Callable[[str], None], clock_ns: Callable[[], int]
    ) -> None:
        self._journal = journal
        self._on_acknowledged = on_acknowledged
        self._clock_ns = clock_ns
        self._waiting = asyncio.Event()

    def report(self, record: Record, reported: ContainerReported) -> None:
        """Keep and send that the container reached a phase; its record in the journal moves along."""
        report = Report(container_uid=record.uid, attempt=record.assignment.spec.attempt, reported=reported)
        report.time.FromNanoseconds(self._clock_ns())
        self._journal.append(record, report)
        self._waiting.set()

    def acknowledged(self, up_to_sequence: int) -> None:
        for report in self._journal.acknowledge(up_to_sequence):
            self._on_acknowledged(report.container_uid)

    async def outgoing(self) -> AsyncIterator[Reports]:
        """Batches for one session, from the oldest unacknowledged report on."""
        sent = 0
        while True:
            self._waiting.clear()
            while batch := list(islice(self._journal.pending(after=sent), BATCH_REPORTS)):
                sent = batch[-1].sequence
                yield Reports(reports=batch)
            await self._waiting.wait()
