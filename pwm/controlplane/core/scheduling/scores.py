"""Which of the nodes that fit is the best.

- `Fill` (the default) takes the node with the least left: GPUs first, so that nodes with all GPUs free are kept
  for who needs them whole, then CPU, then memory. A workload without GPUs goes to nodes without GPUs as
  long as it fits there. The rank is one number per node, kept by the table (`table.tightness`).
- `Distribute` takes a node with the fewest replicas of the same workload, and of those the least used.
- `Random` takes any, from the plan's seed: the same plan always draws the same.

Ties go to the first by name.
"""

from hashlib import blake2b

import numpy as np

from pwm.api.v1.workload_pb2 import Config
from pwm.controlplane.core.scheduling.demand import CORE_MILLIS, Demand
from pwm.controlplane.core.scheduling.queue import Waiting
from pwm.controlplane.core.scheduling.scratch import Scratch
from pwm.controlplane.core.scheduling.shares import Ints
from pwm.controlplane.core.scheduling.table import Bools

_WORST = np.iinfo(np.int64).max


def best_row(scratch: Scratch, fits: Bools, *, demand: Demand, waiting: Waiting, seed: int) -> int | None:
    """The row to place on; None when no row fits."""
    if not fits.size:
        return None
    if demand.affinity == Config.Distribute:
        return _distribute(scratch, fits, demand, waiting.workload.metadata.uid)
    if demand.affinity == Config.Random:
        return _random(fits, waiting, seed)
    row = int(np.where(fits, scratch.tightness, _WORST).argmin())
    return row if fits[row] else None


def _distribute(scratch: Scratch, fits: Bools, demand: Demand, workload_uid: str) -> int | None:
    if demand.gpus:
        unused = scratch.free_gpus / np.maximum(scratch.table.gpus, 1)
    else:
        unused = scratch.free_cpu_millis / np.maximum(scratch.table.cores * CORE_MILLIS, 1)
    replicas = scratch.replicas(workload_uid)
    without = fits.copy()
    without[[row for row, count in replicas.items() if count]] = False
    row = int(np.where(without, unused, -1.0).argmax())
    if without[row]:
        return row
    with_some = [row for row in replicas if fits[row]]
    return min(with_some, key=lambda row: (replicas[row], -unused[row], row), default=None)


def _random(fits: Bools, waiting: Waiting, seed: int) -> int | None:
    rows: Ints = np.flatnonzero(fits)
    if not rows.size:
        return None
    draw = f"{seed}/{waiting.workload.metadata.uid}/{waiting.replica}/{waiting.attempt}".encode()
    return int(rows[int.from_bytes(blake2b(draw, digest_size=8).digest()) % rows.size])
