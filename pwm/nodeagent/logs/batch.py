"""What a source hands to the spool: bytes in the order they were printed, and who printed which when.

A batch holds many lines. Its runs say from which byte on a stream and a time hold; runs are coalesced, so a
container that prints half a million lines a second costs a thousand entries and not half a million, at the
price that times are exact to a millisecond only. numpy does the work per batch, so that no Python runs per line.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Lines of one stream that were printed within the same millisecond share a run.
RUN_NS = 1_000_000

# Where a source stands, as three numbers that only the source understands; (0, 0, 0): nothing taken yet.
Cursor = tuple[int, int, int]
START: Cursor = (0, 0, 0)


@dataclass(frozen=True, slots=True)
class Runs:
    """`starts[i]`: first byte of run i; `times[i]`: ns since 1970; `stderr[i]`: whether it is error output."""

    starts: NDArray[np.int64]
    times: NDArray[np.int64]
    stderr: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.starts)


@dataclass(frozen=True, slots=True)
class Batch:
    """`consumed`: how many bytes of the source's block it stands for; 0 with no data: nothing whole was there."""

    data: bytes
    runs: Runs
    consumed: int


NO_RUNS = Runs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.bool_))


def coalesce(starts: NDArray[np.int64], times: NDArray[np.int64], stderr: NDArray[np.bool_]) -> Runs:
    """One run per stretch of lines of the same stream and millisecond."""
    if len(starts) == 0:
        return NO_RUNS
    bucket = times // RUN_NS
    first = np.empty(len(starts), np.bool_)
    first[0] = True
    np.logical_or(bucket[1:] != bucket[:-1], stderr[1:] != stderr[:-1], out=first[1:])
    return Runs(starts[first], times[first], stderr[first])
