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
    rows: Ints = np.flatnonzero(fits)
    if not rows.size:
        return None
    states, placed = scratch.table.states, scratch.replicas.get(workload_uid, {})
    replicas = np.array([states[row].replicas.get(workload_uid, 0) + placed.get(row, 0) for row in rows.tolist()])
    rows = rows[replicas == replicas.min()]
    if demand.gpus:
        free, all_of = scratch.free_gpus[rows], scratch.table.gpus[rows]
    else:
        free, all_of = scratch.free_cpu_millis[rows], scratch.table.cores[rows] * CORE_MILLIS
    return int(rows[(free / np.maximum(all_of, 1)).argmax()])


def _random(fits: Bools, waiting: Waiting, seed: int) -> int | None:
    rows: Ints = np.flatnonzero(fits)
    if not rows.size:
        return None
    draw = f"{seed}/{waiting.workload.metadata.uid}/{waiting.replica}/{waiting.attempt}".encode()
    return int(rows[int.from_bytes(blake2b(draw, digest_size=8).digest()) % rows.size])
